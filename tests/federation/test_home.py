"""The coordinator's folder of a federation."""

from __future__ import annotations

import json
import stat
from datetime import UTC, datetime
from pathlib import Path

import pytest
from pydantic import ValidationError

from eucaim_fl.errors import JournalError, KeyFileError, ServiceStateError
from eucaim_fl.federation import home as home_module
from eucaim_fl.federation.home import (
    AdmittedSite,
    FederationHome,
    Settings,
    create,
    find_home,
    held,
    known_homes,
    parse_file,
    write_private_json,
    write_server_certificate,
)
from eucaim_fl.signing import PrivateKey, certificate_facts

NOW = datetime(2026, 3, 1, 12, tzinfo=UTC)


def settings(**changes: object) -> Settings:
    return Settings.model_validate({"name": "liver", "host": "fl.example.org", "port": 443, "made_at": NOW, **changes})


@pytest.fixture
def home(tmp_path, monkeypatch) -> FederationHome:
    monkeypatch.setenv("EUCAIM_FL_FEDERATIONS", str(tmp_path / "federations"))
    return create(settings(), NOW)


def record(name: str = "a") -> AdmittedSite:
    return AdmittedSite(site=name, node_key="k", site_key=PrivateKey.create().public, admitted_at=NOW)


class TestSettings:
    @pytest.mark.parametrize(
        "changes",
        [
            {"name": "local"},
            {"name": "ray"},
            {"name": "../x"},
            {"host": "a b"},
            {"host": "fl.example.org; return 200"},
            {"host": ""},
            {"listen": "8443"},
            {"listen": "0.0.0.0:0"},
            {"listen": "0.0.0.0:8443 ssl; root /"},
            {"listen": "0.0.0.0:70000"},
            {"listen": "127.0.0.1:9091"},
            {"port": 0},
            {"superlink_port": 70000},
        ],
    )
    def test_what_can_not_work_or_would_reach_a_configuration_is_refused(self, changes):
        with pytest.raises(ValidationError, match="validation error"):
            settings(**changes)

    def test_sites_connect_to_the_public_port_and_the_proxy_listens_on_its_own(self):
        made = settings(listen="[::]:8443")
        assert (made.address, made.listen_port) == ("fl.example.org:443", 8443)


class TestCreate:
    def test_everything_is_for_the_owner_alone(self, home):
        modes = {p.relative_to(home.folder): stat.S_IMODE(p.stat().st_mode) for p in home.folder.rglob("*")}
        assert stat.S_IMODE(home.folder.stat().st_mode) == 0o700
        for path, mode in modes.items():
            assert mode == (0o700 if (home.folder / path).is_dir() else 0o600), path

    def test_settings_hold_no_secret(self, home):
        assert json.loads((home.folder / "federation.json").read_text()).keys() == set(Settings.model_fields)

    def test_what_a_run_asks_for_is_there(self, home):
        assert (home.name, home.runtime_address) == ("liver", "127.0.0.1:9091")
        assert len(home.executor_secret) == 64
        assert home.coordinator_key.public.startswith("ed25519:")
        assert home.sites() == {}

    def test_sites_see_one_certificate_and_loopback_another_that_lasts_as_long_as_the_authority(self, home):
        outside = certificate_facts(home.server_file.read_bytes())
        inside = certificate_facts(home.superlink_file.read_bytes())
        assert outside.names == ("fl.example.org", "localhost", "127.0.0.1")
        assert inside.names == ("localhost", "127.0.0.1")
        assert ((outside.not_after - NOW).days, (inside.not_after - NOW).days) == (365, 3650)

    def test_it_refuses_to_overwrite(self, home):
        before = home.ca_key.read_bytes()
        with pytest.raises(ServiceStateError, match="exists already"):
            create(settings(), NOW)
        assert home.ca_key.read_bytes() == before

    @pytest.mark.parametrize("failing", ["create_authority", "issue_server", "write_private_json"])
    def test_what_fails_half_way_leaves_nothing(self, tmp_path, monkeypatch, failing):
        monkeypatch.setenv("EUCAIM_FL_FEDERATIONS", str(tmp_path))

        def fail(*_: object) -> None:
            raise KeyboardInterrupt

        monkeypatch.setattr(home_module, failing, fail)
        with pytest.raises(KeyboardInterrupt):
            create(settings(), NOW)
        assert list(tmp_path.iterdir()) == []

    def test_what_was_killed_half_way_is_no_federation(self, tmp_path, home):
        (home.folder.parent / ".other.abc").mkdir()
        (home.folder.parent / ".other.abc" / "federation.json").write_text("{}")
        assert list(known_homes()) == ["liver"]

    def test_a_folder_that_can_not_be_made_is_an_error(self, tmp_path, monkeypatch):
        (tmp_path / "file").write_text("")
        monkeypatch.setenv("EUCAIM_FL_FEDERATIONS", str(tmp_path / "file"))
        with pytest.raises(JournalError, match="can't be made"):
            create(settings(), NOW)


class TestFind:
    def test_a_federation_is_found_by_its_name(self, home):
        assert find_home("liver") == home

    def test_an_unknown_name_says_the_nearest(self, home):
        with pytest.raises(ServiceStateError, match="Did you mean 'liver'") as told:
            find_home("livr")
        assert str(home.folder.parent) not in str(told.value)

    def test_one_of_another_user_is_not_called_missing(self, home, monkeypatch):
        monkeypatch.setattr(home_module.os, "access", lambda *_: False)
        with pytest.raises(ServiceStateError, match="belongs to another user") as told:
            find_home("liver")
        assert told.value.fix == "Run this as the user who made it."
        assert str(home.folder.parent) not in str(told.value)

    def test_nor_one_in_a_folder_that_is_closed(self, home, monkeypatch):
        def closed(_path):
            raise PermissionError

        monkeypatch.setattr(home_module.Path, "exists", closed)
        with pytest.raises(ServiceStateError, match="belongs to another user"):
            find_home("liver")

    def test_where_there_is_none_it_says_how_to_make_one(self, tmp_path, monkeypatch):
        monkeypatch.setenv("EUCAIM_FL_FEDERATIONS", str(tmp_path))
        with pytest.raises(ServiceStateError, match="federation init livr"):
            find_home("livr")

    def test_without_the_variable_they_lie_under_the_working_folder(self, tmp_path, monkeypatch):
        monkeypatch.delenv("EUCAIM_FL_FEDERATIONS", raising=False)
        monkeypatch.chdir(tmp_path)
        made = create(settings(), NOW)
        assert made.folder == tmp_path / "federations" / "liver"

    def test_a_home_named_relatively_stays_where_it_was(self, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        assert FederationHome(Path("x")).folder == tmp_path / "x"


class TestRecords:
    def test_sites_come_in_the_order_of_their_names(self, home):
        for name in "ba":
            home.write_site(record(name))
        assert list(home.sites()) == ["a", "b"]
        assert stat.S_IMODE((home.sites_folder / "a.json").stat().st_mode) == 0o600

    @pytest.mark.parametrize("text", ["", "{", "[]", '{"site": "a"}', "[" * 100_000])
    def test_a_damaged_record_is_an_error_without_a_path(self, home, text):
        (home.sites_folder / "a.json").write_text(text)
        with pytest.raises(ServiceStateError, match="damaged") as told:
            home.sites()
        assert str(home.folder) not in str(told.value)

    def test_a_record_that_is_too_large_is_not_read_as_one(self, home):
        (home.folder / "federation.json").write_text(" " * 2**21)
        with pytest.raises(ServiceStateError, match="damaged"):
            parse_file(Settings, home.folder / "federation.json")

    def test_a_folder_without_federation_is_an_error(self, tmp_path):
        with pytest.raises(ServiceStateError, match="missing"):
            _ = FederationHome(tmp_path).settings

    def test_a_missing_secret_is_an_error(self, home):
        home.executor_secret_file.unlink()
        with pytest.raises(ServiceStateError, match="executor secret"):
            _ = home.executor_secret

    def test_a_record_that_can_not_be_written_is_an_error(self, home):
        home.sites_folder.rmdir()
        home.sites_folder.write_text("")
        with pytest.raises(JournalError, match="can't be written"):
            home.write_site(record())
        with pytest.raises(JournalError, match="can't be written"):
            write_private_json(home.sites_folder / "x.json", {})

    def test_two_do_not_change_the_records_at_once(self, home):
        with home.changing_sites(), pytest.raises(ServiceStateError, match="Another command"), home.changing_sites():
            raise AssertionError("both hold it")
        with home.changing_sites():
            pass

    def test_who_comes_second_is_told_in_the_callers_words(self, tmp_path):
        with held(tmp_path, "Mine."), pytest.raises(ServiceStateError, match=r"Mine\."), held(tmp_path, "Mine."):
            raise AssertionError("both hold it")


class TestRenewal:
    def test_key_and_certificate_change_at_once_and_the_authority_stays(self, home):
        before, authority = home.server_file.read_bytes(), home.ca_file.read_bytes()
        later = datetime(2027, 2, 1, tzinfo=UTC)
        write_server_certificate(home, home.settings, later)
        assert home.server_file.read_bytes() != before
        assert home.ca_file.read_bytes() == authority
        assert (certificate_facts(home.server_file.read_bytes()).not_after - later).days == 365
        assert stat.S_IMODE(home.server_file.stat().st_mode) == 0o600

    def test_without_the_authoritys_key_nothing_changes(self, home):
        before = home.server_file.read_bytes()
        home.ca_key.unlink()
        with pytest.raises(KeyFileError, match="can't be read"):
            write_server_certificate(home, home.settings, NOW)
        assert home.server_file.read_bytes() == before

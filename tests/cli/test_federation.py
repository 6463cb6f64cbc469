"""`eucaim-fl federation` as a coordinator meets it, and `federation=NAME` in recipes."""

from __future__ import annotations

import json
import socket
import stat
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from eucaim_fl.cli import cli
from eucaim_fl.compose import compose
from eucaim_fl.config import FederationConfig
from eucaim_fl.enrolment import Request, read_invitation, request
from eucaim_fl.errors import ConfigError, EnrolmentError, EucaimError, RecipeError, ServiceStateError
from eucaim_fl.federation.heads import Heads
from eucaim_fl.federation.home import FederationHome, find_home
from eucaim_fl.signing import PrivateKey, certificate_facts, fingerprint, new_node_key


def run(*words: str, says: str = "") -> Result:
    return CliRunner().invoke(cli, ["federation", *words], input=says)


def free_port() -> str:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return str(probe.getsockname()[1])


@pytest.fixture
def home(tmp_path, monkeypatch) -> FederationHome:
    """A federation `liver` that is not started, in a working folder of its own."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("EUCAIM_FL_FEDERATIONS", raising=False)
    listen = f"127.0.0.1:{free_port()}"
    result = run("init", "liver", "--host", "fl.example.org:443", "--listen", listen, "--superlink-port", free_port())
    assert result.exit_code == 0, result.output
    return find_home("liver")


def answer(invitation_file: Path, **changes: Any) -> tuple[Path, PrivateKey]:
    """What a site makes of an invitation: its request, in a file."""
    invitation = read_invitation(json.loads(invitation_file.read_text()), datetime.now(UTC))
    key = PrivateKey.create()
    values = {
        "federation": invitation.federation,
        "site": invitation.site,
        "token": invitation.token,
        "node_key": new_node_key(invitation_file.parent / f"{key.public[-8:]}.pem"),
        "site_key": key.public,
        **changes,
    }
    path = invitation_file.with_name(f"{invitation.site}.request.json")
    path.write_text(json.dumps(request(Request(**values), key)))
    return path, key


def admitted(home: FederationHome, site: str) -> PrivateKey:
    assert run("invite", "liver", site).exit_code == 0
    path, key = answer(Path(f"{site}.invite.json"))
    assert run("admit", "liver", str(path), "--yes").exit_code == 0
    return key


class TestHelp:
    @pytest.mark.parametrize("name", ["init", "start", "status", "stop", "invite", "admit", "remove", "renew", "heads"])
    def test_every_command_has_help_with_an_example(self, name):
        result = run(name, "--help")
        assert result.exit_code == 0
        assert "Example" in result.output
        assert name in run("--help").output


class TestInit:
    def test_it_says_the_coordinators_fingerprint_and_what_comes_next(self, tmp_path, monkeypatch):
        monkeypatch.setenv("EUCAIM_FL_FEDERATIONS", str(tmp_path))
        result = run("init", "lung", "--host", "10.0.0.5")
        made = find_home("lung")
        assert fingerprint(made.coordinator_key.public) in result.output
        assert "federation invite lung" in result.output
        assert made.settings.address == "10.0.0.5:8443"

    def test_a_public_port_may_differ_from_the_one_listened_on(self, home):
        assert home.settings.address == "fl.example.org:443"
        assert home.settings.listen_port != 443

    @pytest.mark.parametrize(
        "words",
        [
            ["local", "--host", "x"],
            ["ray", "--host", "x"],
            ["A", "--host", "x"],
            ["a", "--host", "x y"],
            ["a", "--host", "x:y"],
            ["a", "--host", "x", "--listen", "8443"],
        ],
    )
    def test_impossible_values_make_nothing(self, words, tmp_path, monkeypatch):
        monkeypatch.setenv("EUCAIM_FL_FEDERATIONS", str(tmp_path / "f"))
        result = run("init", *words)
        assert isinstance(result.exception, ConfigError)
        assert not (tmp_path / "f").exists()

    def test_a_second_time_is_refused(self, home):
        assert isinstance(run("init", "liver", "--host", "x").exception, ServiceStateError)


class TestEnrolment:
    def test_from_invitation_to_admission(self, home, tmp_path):
        result = run("invite", "liver", "hospital_a", "--patients", "40", "--days", "3")
        assert fingerprint(home.coordinator_key.public) in result.output
        written = tmp_path / "hospital_a.invite.json"
        assert stat.S_IMODE(written.stat().st_mode) == 0o600
        path, key = answer(written)
        result = run("admit", "liver", str(path), says="y\n")
        assert result.exit_code == 0, result.output
        assert fingerprint(key.public) in result.output
        assert "learns this when it does" in result.output
        assert home.sites()["hospital_a"].largest_patients == 40

    def test_a_fingerprint_that_differs_admits_nobody(self, home):
        run("invite", "liver", "a")
        path, _ = answer(Path("a.invite.json"))
        assert run("admit", "liver", str(path), says="n\n").exit_code == 1
        assert home.sites() == {}

    def test_an_invitations_file_is_not_overwritten(self, home):
        run("invite", "liver", "a")
        assert isinstance(run("invite", "liver", "a").exception, EnrolmentError)
        assert run("invite", "liver", "a", "--out", "again.json").exit_code == 0

    @pytest.mark.parametrize("content", [None, "{", "[]", "[" * 100_000, " " * 10**6])
    def test_what_is_no_request_is_refused(self, home, content):
        if content is not None:
            Path("x.json").write_text(content)
        assert isinstance(run("admit", "liver", "x.json", "--yes").exception, EnrolmentError)

    def test_one_name_or_key_twice_is_refused(self, home):
        admitted(home, "a")
        assert isinstance(run("invite", "liver", "a").exception, EnrolmentError)
        run("invite", "liver", "b")
        path, _ = answer(Path("b.invite.json"), node_key=home.sites()["a"].node_key)
        assert isinstance(run("admit", "liver", str(path), "--yes").exception, EnrolmentError)

    def test_a_removed_site_is_gone_from_the_records(self, home):
        admitted(home, "a")
        assert run("remove", "liver", "a", says="n\n").exit_code == 1
        result = run("remove", "liver", "a", "--yes")
        assert result.exit_code == 0, result.output
        assert home.sites() == {}
        assert isinstance(run("remove", "liver", "a", "--yes").exception, EnrolmentError)

    def test_an_unknown_federation_says_the_nearest(self, home):
        with pytest.raises(ServiceStateError, match="'liver'"):
            raise run("invite", "livr", "a").exception or AssertionError("it was found")


class TestHeads:
    def test_they_are_printed_as_the_site_wants_them(self, home):
        admitted(home, "a")
        kept = Heads(home.heads_folder)
        kept.accept("a", 3, "f" * 64)
        kept.accept("a", 5, "e" * 64)
        shown = json.loads(run("heads", "liver", "a").output)
        assert shown["site"] == "a"
        assert [(head["count"], head["hash"]) for head in shown["heads"]] == [(3, "f" * 64), (5, "e" * 64)]
        assert all(datetime.fromisoformat(head["at"]).tzinfo for head in shown["heads"])

    def test_a_site_that_never_sent_one_has_none(self, home):
        admitted(home, "a")
        assert json.loads(run("heads", "liver", "a").output) == {"site": "a", "heads": []}

    def test_a_site_that_was_never_admitted_is_refused(self, home):
        assert isinstance(run("heads", "liver", "../../x").exception, EnrolmentError)


class TestStatus:
    def test_json_has_everything(self, home):
        key = admitted(home, "a")
        run("invite", "liver", "b")
        found = json.loads(run("status", "liver", "--json").output)
        assert (found["running"], found["superlink_answers"], found["proxy_answers"]) == (False, False, False)
        assert (found["good"], found["renewal_is_due"], found["certificate_days_left"]) == (False, False, 364)
        assert list(found["invitations"]) == ["b"]
        (site,) = found["sites"]
        assert (site["site"], site["connected"], site["fingerprint"]) == ("a", None, fingerprint(key.public))

    def test_words_say_the_same(self, home):
        output = run("status", "liver").output
        assert "does not run" in output
        assert "SuperLink: does not answer; proxy: does not answer" in output
        assert "No site is admitted" in output

    def test_a_check_fails_while_it_does_not_run(self, home):
        assert run("status", "liver").exit_code == 0
        assert run("status", "liver", "--check").exit_code == 2


class TestStartAndStop:
    def test_what_does_not_run_can_not_be_stopped(self, home):
        assert isinstance(run("stop", "liver").exception, ServiceStateError)

    @pytest.mark.parametrize("words", [[], ["--detach"]])
    def test_a_port_in_use_is_told(self, home, words):
        with socket.create_server(("127.0.0.1", home.settings.superlink_port)):
            assert isinstance(run("start", "liver", *words).exception, EucaimError)

    def test_renewing_works_while_it_does_not_run(self, home):
        before = home.server_file.read_bytes()
        result = run("renew", "liver")
        assert "from the next start on" in result.output
        assert home.server_file.read_bytes() != before
        end = certificate_facts(home.server_file.read_bytes()).not_after
        assert f"{end:%Y-%m-%d}" in result.output


class TestRecipes:
    def test_a_federation_is_a_choice_of_its_group(self, home):
        config = compose(["experiment=demo", "federation=liver", "federation.quorum=3"]).federation
        assert (config.engine, config.home, config.quorum) == ("superlink", home.folder, 3)
        defaults = FederationConfig(engine="superlink", home=home.folder)
        assert config.model_copy(update={"quorum": 1}) == defaults.model_copy(update={"quorum": 1})

    def test_an_unknown_one_says_the_nearest(self, home):
        with pytest.raises(RecipeError, match="'liver'"):
            compose(["experiment=demo", "federation=livr"])

    def test_the_engines_of_one_machine_stay(self, home):
        assert compose(["experiment=demo", "federation=local"]).federation.engine == "local"

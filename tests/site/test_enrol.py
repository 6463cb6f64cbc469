"""A site's home is made whole or not at all, from an invitation that is checked, and its keys stay in it."""

from __future__ import annotations

import json
import os
import stat
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from eucaim_fl.enrolment import Invitation, invite, new_token, read_request
from eucaim_fl.errors import EnrolmentError, ServiceStateError, SiteFileError
from eucaim_fl.signing import PrivateKey, fingerprint, node_key_line
from eucaim_fl.site.enrol import NO_COHORT, CohortChoice, make_home, open_invitation, read_joined, to_compare
from eucaim_fl.site.home import SiteHome
from eucaim_fl.site.policy import load_policy
from eucaim_fl.site.running import ever_started
from eucaim_fl.sitefile import load_site_file

NOW = datetime(2026, 3, 1, 12, tzinfo=UTC)
COORDINATOR = PrivateKey.create()


def authority() -> str:
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "authority")])
    builder = x509.CertificateBuilder().subject_name(name).issuer_name(name).public_key(key.public_key())
    builder = builder.serial_number(1).not_valid_before(NOW).not_valid_after(NOW + timedelta(days=365))
    return builder.sign(key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM).decode()


AUTHORITY = authority()


def invited(**changes: Any) -> Invitation:
    values: dict[str, Any] = {
        "federation": "prostate",
        "site": "north",
        "address": "127.0.0.1:8443",
        "ca_pem": AUTHORITY,
        "coordinator_key": COORDINATOR.public,
        "token": new_token(),
        "valid_until": NOW + timedelta(days=14),
    }
    return Invitation(**{**values, **changes})


@pytest.fixture
def make(tmp_path: Path) -> Callable[..., Path]:
    """Makes the home `tmp_path/home` from an invitation; returns the request's path."""

    def run(invitation: Invitation, cohort: CohortChoice | None = None) -> Path:
        document = invite(invitation, COORDINATOR)
        return make_home(tmp_path / "home", invitation, document, cohort or CohortChoice())

    return run


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


class KilledError(BaseException):
    """Stands for the end of the process."""


def killed_after(count: int, patch: pytest.MonkeyPatch) -> None:
    """From now on the process ends instead of renaming, after `count` renames."""
    real, left = os.rename, iter(range(count))

    def rename(*names: Any, **options: Any) -> None:
        if next(left, None) is None:
            raise KilledError
        real(*names, **options)

    patch.setattr(os, "rename", rename)
    patch.setattr(os, "replace", rename)


class TestTheInvitation:
    def test_it_is_read_from_a_file(self, tmp_path):
        invitation = invited()
        (tmp_path / "a.json").write_text(json.dumps(invite(invitation, COORDINATOR)))
        assert open_invitation(tmp_path / "a.json", NOW)[0] == invitation

    def test_what_was_altered_or_has_expired_is_refused(self, tmp_path):
        document = invite(invited(), COORDINATOR)
        (tmp_path / "a.json").write_text(json.dumps(document))
        with pytest.raises(EnrolmentError, match="expired"):
            open_invitation(tmp_path / "a.json", NOW + timedelta(days=15))
        document["invitation"]["address"] = "127.0.0.1:9999"
        (tmp_path / "a.json").write_text(json.dumps(document))
        with pytest.raises(EnrolmentError, match="altered"):
            open_invitation(tmp_path / "a.json", NOW)
        with pytest.raises(EnrolmentError, match="can't be read"):
            open_invitation(tmp_path / "missing.json", NOW)

    def test_people_compare_fingerprints(self):
        told = dict(to_compare(invited()))
        assert told["coordinator's key"] == fingerprint(COORDINATOR.public)
        assert len(told["certificate authority"]) == 39
        assert told["valid until"] == "2026-03-15 12:00 UTC"

    def test_an_authority_that_is_none_is_told_before_anything_is_made(self):
        broken = invited(ca_pem="-----BEGIN CERTIFICATE-----\nMAA=\n-----END CERTIFICATE-----\n")
        with pytest.raises(EnrolmentError, match="authority"):
            to_compare(broken)


class TestTheHome:
    def test_it_is_complete_and_its_owners_alone(self, make, tmp_path):
        home = SiteHome(tmp_path / "home")
        wanted = make(invited())
        assert home.require() is home
        assert not ever_started(home)
        assert wanted == home.folder / "north.request.json"
        assert [mode(p) for p in (home.folder, home.node_key.parent)] == [0o700, 0o700]
        assert [mode(p) for p in (home.node_key, home.site_key, home.federation_file, wanted)] == [0o600] * 4
        assert sorted(p.name for p in tmp_path.iterdir()) == ["home"]

    def test_the_request_bears_the_public_keys_and_no_private_one(self, make, tmp_path):
        invitation, home = invited(), SiteHome(tmp_path / "home")
        text = make(invitation).read_text()
        asked = read_request(json.loads(text))
        assert (asked.site, asked.federation, asked.token) == ("north", "prostate", invitation.token)
        assert asked.node_key == node_key_line(home.node_key)
        assert asked.site_key == PrivateKey.load(home.site_key).public
        assert "PRIVATE" not in text

    def test_it_remembers_by_which_invitation_it_joined(self, make, tmp_path):
        invitation, home = invited(), SiteHome(tmp_path / "home")
        make(invitation)
        assert read_joined(home) == invitation
        home.federation_file.write_text("{}")
        with pytest.raises(EnrolmentError, match="not a signed invitation"):
            read_joined(home)

    def test_the_site_file_is_filled_in_and_valid(self, make, tmp_path):
        folder = tmp_path / 'a "cohort": {name} #1'
        make(invited(), CohortChoice(folder, "bids"))
        site = load_site_file(tmp_path / "home" / "site.yaml")
        assert (site.name, site.cohort.folder, site.cohort.layout) == ("north", folder, "bids")
        assert site.cache_folder() == tmp_path / "home" / "cache"
        assert site.release.data_is == "confidential"
        assert site.cache.limit_gb == 50

    def test_without_a_cohort_a_placeholder_stands_there(self, make, tmp_path):
        make(invited())
        assert load_site_file(tmp_path / "home" / "site.yaml").cohort.folder == NO_COHORT

    def test_the_policy_is_there_and_allows_nothing_yet(self, make, tmp_path):
        make(invited())
        assert load_policy(tmp_path / "home" / "policy.yaml").policy.valid_until is None
        assert load_site_file(tmp_path / "home" / "site.yaml").policy == Path("policy.yaml")

    def test_every_key_of_a_site_file_is_in_the_template(self, make, tmp_path):
        make(invited())
        site = load_site_file(tmp_path / "home" / "site.yaml")
        assert site.model_fields_set == set(type(site).model_fields)
        for part in ("cohort", "deidentification", "consent", "cache", "compute", "release"):
            section = getattr(site, part)
            assert section.model_fields_set == set(type(section).model_fields), part


class TestAHomeThatIsThereAlready:
    def test_a_second_making_changes_nothing(self, make, tmp_path):
        invitation, home = invited(), SiteHome(tmp_path / "home")
        make(invitation)
        before = home.site_key.read_bytes()
        with pytest.raises(ServiceStateError, match="home of a site already") as caught:
            make_home(home.folder, invitation, invite(invitation, COORDINATOR), CohortChoice())
        assert "Send the request" in caught.value.fix
        assert home.site_key.read_bytes() == before

    def test_a_folder_with_other_files_is_left_alone(self, make, tmp_path):
        (tmp_path / "home").mkdir()
        (tmp_path / "home" / "letter.txt").write_text("")
        with pytest.raises(ServiceStateError, match="not empty"):
            make(invited())
        assert [p.name for p in (tmp_path / "home").iterdir()] == ["letter.txt"]

    def test_an_empty_folder_such_as_a_mounted_one_is_filled(self, make, tmp_path):
        (tmp_path / "home").mkdir()
        make(invited())
        assert SiteHome(tmp_path / "home").require()
        assert not [p for p in (tmp_path / "home").iterdir() if p.name.startswith(".")]

    @pytest.mark.parametrize(("exists", "renames"), [(False, 5), (True, 10)])
    def test_a_making_that_was_killed_before_any_rename_is_mended_by_the_next(self, make, exists, renames, tmp_path):
        invitation = invited()
        document = invite(invitation, COORDINATOR)
        for count in range(renames):
            home = SiteHome(tmp_path / f"home-{count}")
            if exists:
                home.folder.mkdir()
            with pytest.MonkeyPatch.context() as patch:
                killed_after(count, patch)
                with pytest.raises(KilledError):
                    make_home(home.folder, invitation, document, CohortChoice())
            wanted = make_home(home.folder, invitation, document, CohortChoice())
            assert home.require()
            assert read_request(json.loads(wanted.read_text())).site_key == PrivateKey.load(home.site_key).public
        assert not list(tmp_path.rglob(".*"))

    def test_one_that_needs_only_the_last_renames_keeps_its_keys(self, make, tmp_path):
        invitation, home = invited(), SiteHome(tmp_path / "home")
        make(invitation)
        key = home.site_key.read_bytes()
        (home.folder / ".init-complete").mkdir()
        home.federation_file.rename(home.folder / ".init-complete" / "federation.json")
        document = invite(invitation, COORDINATOR)
        assert make_home(home.folder, invitation, document, CohortChoice()) == home.folder / "north.request.json"
        assert home.site_key.read_bytes() == key


class TestAHomeThatCannotBe:
    def test_it_does_not_lie_in_the_cohort(self, make, tmp_path):
        invitation = invited()
        with pytest.raises(ServiceStateError, match="inside the cohort"):
            make_home(tmp_path / "home", invitation, {}, CohortChoice(tmp_path))

    def test_its_name_can_be_printed(self, tmp_path):
        with pytest.raises(ServiceStateError, match="such a name"):
            make_home(tmp_path / "a\nb", invited(), {}, CohortChoice())

    def test_a_place_that_is_a_file_or_below_one(self, make, tmp_path):
        (tmp_path / "home").write_text("")
        with pytest.raises(ServiceStateError, match="can't be made"):
            make(invited())
        with pytest.raises(ServiceStateError, match="can't be made"):
            make_home(tmp_path / "home" / "below", invited(), {}, CohortChoice())

    def test_a_site_file_that_would_not_be_valid(self, make, tmp_path):
        with pytest.raises(SiteFileError, match="wrong keys"):
            make_home(tmp_path / "home", invited(), {}, CohortChoice(tmp_path / ("x" * 300), "bids"))
        assert not (tmp_path / "home").exists()

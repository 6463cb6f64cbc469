"""Who belongs to a federation: invitations, requests, records."""

from __future__ import annotations

import json
import stat
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from eucaim_fl.enrolment import Request, read_invitation, request
from eucaim_fl.errors import EnrolmentError, ServiceStateError
from eucaim_fl.federation.admission import admit, invite, open_invitations, remove, requested
from eucaim_fl.federation.home import AdmittedSite, FederationHome, Settings, create
from eucaim_fl.signing import PrivateKey, new_node_key

NOW = datetime(2026, 3, 1, 12, tzinfo=UTC)


@pytest.fixture
def home(tmp_path, monkeypatch) -> FederationHome:
    monkeypatch.setenv("EUCAIM_FL_FEDERATIONS", str(tmp_path / "federations"))
    return create(Settings(name="liver", host="fl.example.org", port=443, made_at=NOW), NOW)


class Site:
    """A hospital with keys of its own."""

    def __init__(self, folder: Any) -> None:
        folder.mkdir()
        self.key = PrivateKey.create()
        self.node_key = new_node_key(folder / "node_key.pem")

    def answer(self, document: Any, **changes: Any) -> dict[str, Any]:
        invitation = read_invitation(document, NOW)
        values = {
            "federation": invitation.federation,
            "site": invitation.site,
            "token": invitation.token,
            "node_key": self.node_key,
            "site_key": self.key.public,
            **changes,
        }
        return request(Request(**values), self.key)


@pytest.fixture
def site(tmp_path):
    return Site(tmp_path / "site")


@pytest.fixture
def other(tmp_path):
    return Site(tmp_path / "other")


def admitted(home: FederationHome, site: Site, name: str = "a") -> AdmittedSite:
    found = requested(home, site.answer(invite(home, name, NOW)), NOW)
    admit(home, found)
    return found


class TestInvite:
    def test_it_says_where_the_federation_is_and_whose_it_is(self, home):
        invitation = read_invitation(invite(home, "a", NOW, days=3, patients=40), NOW)
        assert (invitation.federation, invitation.site, invitation.address) == ("liver", "a", "fl.example.org:443")
        assert invitation.ca_pem == home.ca_file.read_text()
        assert invitation.coordinator_key == home.coordinator_key.public
        assert (invitation.largest_patients, invitation.valid_until) == (40, NOW + timedelta(days=3))

    def test_the_coordinator_keeps_no_token(self, home):
        token = read_invitation(invite(home, "a", NOW), NOW).token
        kept = home.invitations_folder / "a.json"
        assert token not in kept.read_text()
        assert stat.S_IMODE(kept.stat().st_mode) == 0o600

    def test_a_later_one_replaces_an_earlier_one(self, home, site):
        first = invite(home, "a", NOW)
        invite(home, "a", NOW)
        with pytest.raises(EnrolmentError, match="Nobody was invited with this token"):
            requested(home, site.answer(first), NOW)

    @pytest.mark.parametrize("name", ["A", "", "../a", "a b"])
    def test_a_name_that_no_site_can_have_is_refused(self, home, name):
        with pytest.raises(EnrolmentError, match="not valid"):
            invite(home, name, NOW)
        assert list(home.invitations_folder.iterdir()) == []

    def test_a_site_that_is_admitted_is_not_invited_again(self, home, site):
        admitted(home, site)
        with pytest.raises(EnrolmentError, match="admitted already"):
            invite(home, "a", NOW)

    def test_open_ones_are_those_neither_used_nor_expired(self, home, site):
        invite(home, "old", NOW - timedelta(days=30))
        invite(home, "open", NOW)
        admitted(home, site)
        assert open_invitations(home, NOW) == {"open": NOW + timedelta(days=14)}

    @pytest.mark.parametrize("text", ["{", "[]", '{"valid_until": 3}'])
    def test_a_damaged_record_is_an_error(self, home, text):
        (home.invitations_folder / "a.json").write_text(text)
        with pytest.raises(EnrolmentError, match="record of the invitation is damaged"):
            open_invitations(home, NOW)


class TestRequest:
    def test_an_answer_becomes_a_site_with_the_limit_of_its_invitation(self, home, site):
        found = requested(home, site.answer(invite(home, "a", NOW, patients=40)), NOW)
        assert (found.site, found.site_key, found.node_key) == ("a", site.key.public, site.node_key)
        assert (found.largest_patients, found.admitted_at, found.node_id) == (40, NOW, None)
        assert home.sites() == {}

    def test_it_expires_with_its_invitation(self, home, site):
        document = site.answer(invite(home, "a", NOW))
        with pytest.raises(EnrolmentError, match="expired"):
            requested(home, document, NOW + timedelta(days=15))

    @pytest.mark.parametrize("changes", [{"site": "b"}, {"federation": "lung"}, {"token": "x" * 43}])
    def test_it_must_answer_the_invitation_that_was_sent(self, home, site, changes):
        invite(home, "b", NOW)
        document = site.answer(invite(home, "a", NOW), **changes)
        with pytest.raises(EnrolmentError, match="refused"):
            requested(home, document, NOW)

    def test_an_altered_one_is_refused(self, home, site):
        document = site.answer(invite(home, "a", NOW))
        document["request"]["site"] = "b"
        with pytest.raises(EnrolmentError, match="altered"):
            requested(home, document, NOW)

    @pytest.mark.parametrize("document", [None, [], {}, {"request": {}}])
    def test_what_is_no_request_is_refused(self, home, document):
        with pytest.raises(EnrolmentError, match="request"):
            requested(home, document, NOW)


class TestAdmit:
    def test_a_site_is_admitted_once_and_the_same_keys_again_change_nothing(self, home, site):
        found = admitted(home, site)
        admit(home, found.model_copy(update={"admitted_at": NOW + timedelta(days=1)}))
        assert home.sites() == {"a": found}

    def test_its_invitation_is_used_then(self, home, site, other):
        document = invite(home, "a", NOW)
        admit(home, requested(home, site.answer(document), NOW))
        with pytest.raises(EnrolmentError, match="used already, with another key"):
            requested(home, other.answer(document), NOW)

    def test_two_sites_of_one_name_are_refused(self, home, site, other):
        found = admitted(home, site)
        with pytest.raises(EnrolmentError, match="admitted already, with other keys"):
            admit(home, found.model_copy(update={"site_key": other.key.public, "node_key": other.node_key}))

    @pytest.mark.parametrize("shared", ["site_key", "node_key"])
    def test_two_names_with_one_key_are_refused(self, home, site, other, shared):
        found = admitted(home, site)
        keys = {"site_key": other.key.public, "node_key": other.node_key, shared: getattr(found, shared)}
        with pytest.raises(EnrolmentError, match="belongs to the site 'a'"):
            admit(home, found.model_copy(update={"site": "b", **keys}))
        assert list(home.sites()) == ["a"]

    def test_it_waits_for_no_other_command(self, home, site):
        found = requested(home, site.answer(invite(home, "a", NOW)), NOW)
        with home.changing_sites(), pytest.raises(ServiceStateError, match="Another command"):
            admit(home, found)


class TestRemove:
    def test_the_record_is_kept_with_the_time(self, home, site):
        found = admitted(home, site)
        remove(home, "a", NOW)
        assert home.sites() == {}
        assert home.removed() == (found,)
        (kept,) = home.removed_folder.glob("*.json")
        assert json.loads(kept.read_text())["removed_at"] == NOW.isoformat()

    def test_its_keys_are_not_taken_again(self, home, site):
        admitted(home, site)
        remove(home, "a", NOW)
        with pytest.raises(EnrolmentError, match="belongs to the site 'a', or did"):
            admit(home, requested(home, site.answer(invite(home, "a", NOW)), NOW))

    def test_with_new_keys_it_can_come_back_and_begins_a_new_audit_log(self, home, site, other):
        admitted(home, site)
        (home.heads_folder / "a.jsonl").write_text('{"count": 9, "hash": "x", "at": "t"}\n')
        remove(home, "a", NOW)
        admitted(home, other)
        assert list(home.sites()) == ["a"]
        assert not (home.heads_folder / "a.jsonl").exists()
        assert len(list(home.removed_folder.glob("*.heads.jsonl"))) == 1
        assert len(home.removed()) == 1

    def test_who_is_not_admitted_can_not_be_removed(self, home):
        with pytest.raises(EnrolmentError, match="No site called 'a'"):
            remove(home, "a", NOW)

    def test_it_waits_for_no_other_command(self, home, site):
        admitted(home, site)
        with home.changing_sites(), pytest.raises(ServiceStateError, match="Another command"):
            remove(home, "a", NOW)

"""Joining a federation: no value of an invitation or a request can be altered, and no invitation serves two sites."""

from __future__ import annotations

import base64
import copy
import json
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from eucaim_fl.enrolment import (
    Invitation,
    Request,
    check_request,
    invitation_record,
    invite,
    new_token,
    read_invitation,
    read_request,
    request,
)
from eucaim_fl.errors import EnrolmentError
from eucaim_fl.signing import PrivateKey, canonical_json, sign_document

COORDINATOR, SITE, STRANGER = PrivateKey.create(), PrivateKey.create(), PrivateKey.create()
NOW = datetime(2026, 6, 1, 12, tzinfo=UTC)
_NODE_KEY = "ecdsa-sha2-nistp384 AAAAE2VjZHNhLXNoYTItbmlzdHAzODQAAAAIbmlzdHAzODQAAABh"
NODE_KEYS = (
    f"{_NODE_KEY}BGSU7BouS7ZNmUPbhZfrDHUylQMy1l5+WQzo9Z8idtA3+YFBoLPxi4B4seGUYH/k"
    "Z8LN4kVMamQIA63PNh/F/4n4BQlDuGrdKxoqckW2IYw8+k4yVPjOQSmWCQqR5K/fpw==",
    f"{_NODE_KEY}BAewBL9oyejFP9ZbbG1UX9jzYSFLpf2rJ0NqIF+mTxaUBvnk94HOMle2VHKRx4Ng"
    "FzKgzwPTrQAVmR8K+I5o+ttulwIcjJ0+iPpXP2Z6PHMB20CfU07NFfeTTvqzMWt83A==",
)


def pem(content: bytes = b"\x30" + bytes(70), kind: str = "CERTIFICATE") -> str:
    text = base64.b64encode(content).decode()
    lines = "\n".join(text[i : i + 64] for i in range(0, len(text), 64))
    return f"-----BEGIN {kind}-----\n{lines}\n-----END {kind}-----\n"


TERMS: dict[str, Any] = {
    "federation": "lung",
    "site": "north",
    "address": "hub.example.org:443",
    "ca_pem": pem(),
    "coordinator_key": COORDINATOR.public,
    "token": new_token(),
    "largest_patients": 5000,
    "valid_until": datetime(2026, 6, 15, tzinfo=UTC),
}
ASKED: dict[str, Any] = {
    "federation": "lung",
    "site": "north",
    "token": TERMS["token"],
    "node_key": NODE_KEYS[0],
    "site_key": SITE.public,
}


def invitation_of(**changes: Any) -> Invitation:
    return Invitation.model_validate({**TERMS, **changes})


def request_of(**changes: Any) -> Request:
    return Request.model_validate({**ASKED, **changes})


INVITATION = invite(invitation_of(), COORDINATOR)
REQUEST = request(request_of(), SITE)


def leaves(value: Any, place: tuple[Any, ...] = ()) -> Iterator[tuple[tuple[Any, ...], Any]]:
    """Every single value of a document with its place."""
    for key, inner in value.items() if isinstance(value, dict) else ():
        yield from leaves(inner, (*place, key))
    if not isinstance(value, dict):
        yield place, value


def put(document: object, place: tuple[Any, ...], value: object) -> Any:
    changed = copy.deepcopy(document)
    inner: Any = changed
    for key in place[:-1]:
        inner = inner[key]
    inner[place[-1]] = value
    return changed


GOOD: dict[str, object] = {
    "federation": "breast",
    "site": "south",
    "address": "evil.example.org:443",
    "ca_pem": pem(b"\x30evil"),
    "coordinator_key": STRANGER.public,
    "key": STRANGER.public,
    "site_key": STRANGER.public,
    "node_key": NODE_KEYS[1],
    "token": new_token(),
    "largest_patients": 5001,
    "valid_until": "2036-06-15T00:00:00Z",
    "signature": STRANGER.sign("invitation", None),
    "schema": "eucaim-fl-invitation/2",
}
"""For each value another one that would be as good."""
GARBAGE = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["schema", "invitation", "request", "key", "signature"]), inner, max_size=5)
    ),
    max_leaves=12,
)


class TestInvitation:
    @pytest.mark.parametrize(
        "address",
        [
            "localhost:9092",
            "hub.example.org:443",
            "10.0.0.1:1",
            "[::1]:65535",
            "[2001:db8::8a2e:370:7334]:443",
            "a-1:80",
        ],
    )
    def test_an_address_is_host_and_port(self, address: str) -> None:
        assert invitation_of(address=address).address == address

    @pytest.mark.parametrize(
        "address",
        [
            "",
            "hub",
            "hub:",
            "hub:0",
            "hub:65536",
            "hub:080",
            "hub:443\n",
            "hub :443",
            "hub/x:443",
            "https://hub:443",
            "me@hub:443",
            "::1:443",
            "[::1]",
            "[::g]:1",
            "[1.2.3.4]:1",
            "[fe80::1%eth0]:1",
            "256.1.1.1:1",
            "1.2.3:1",
            "-hub:1",
            "hub-:1",
            "hub..org:1",
            "hub.:1",
            ".hub:1",
            "h_b:1",
            "hüb:1",
            "x" * 64 + ":1",
            ".".join(["x" * 60] * 5) + ":1",
            "hub:٣",
        ],
    )
    def test_nothing_else_is_an_address(self, address: str) -> None:
        with pytest.raises(ValidationError, match="address"):
            invitation_of(address=address)

    def test_the_authority_may_be_several_certificates(self) -> None:
        assert invitation_of(ca_pem=pem() + pem().rstrip("\n")).ca_pem.count("BEGIN") == 2

    @pytest.mark.parametrize(
        "text",
        [
            "",
            "no certificate",
            pem(kind="PRIVATE KEY"),
            pem() + pem(kind="PRIVATE KEY"),
            pem() + "\n",
            "subject: GARCIA\n" + pem(),
            pem(b"no sequence"),
            pem().replace("-----END", "-----FIN"),
            pem().replace("\nMAAA", "\nM AA"),
            pem(b"\x30" + bytes(25 * 1024)),
        ],
    )
    def test_the_authority_is_nothing_else(self, text: str) -> None:
        with pytest.raises(ValidationError, match="ca_pem"):
            invitation_of(ca_pem=text)

    @pytest.mark.parametrize(
        ("changes", "complaint"),
        [
            ({"site": "North"}, "site"),
            ({"federation": "../lung"}, "federation"),
            ({"coordinator_key": "ed25519:x"}, "coordinator_key"),
            ({"token": "short"}, "token"),
            ({"largest_patients": 0}, "largest_patients"),
            ({"valid_until": datetime(2026, 6, 15)}, "timezone"),
            ({"valid_until": datetime(2200, 1, 1, tzinfo=UTC)}, "less than 2200"),
        ],
    )
    def test_its_values_are_checked(self, changes: dict[str, Any], complaint: str) -> None:
        with pytest.raises(ValidationError, match=complaint):
            invitation_of(**changes)

    def test_fifty_thousand_patients_are_believed_unless_it_says_otherwise(self) -> None:
        assert (
            Invitation.model_validate({k: v for k, v in TERMS.items() if k != "largest_patients"}).largest_patients
            == 50_000
        )

    def test_tokens_differ(self) -> None:
        assert new_token() != new_token()


class TestReadInvitation:
    def test_what_was_signed_is_read(self) -> None:
        assert read_invitation(INVITATION, NOW) == invitation_of()
        assert read_invitation(json.loads(json.dumps(INVITATION)), NOW) == invitation_of()

    @pytest.mark.parametrize("place", [place for place, _ in leaves(INVITATION)], ids=lambda p: ".".join(map(str, p)))
    def test_no_value_can_be_altered(self, place: tuple[Any, ...]) -> None:
        for change in (GOOD[place[-1]], None, "", 0, []):
            with pytest.raises(EnrolmentError, match="invitation"):
                read_invitation(put(INVITATION, place, change), NOW)

    def test_both_places_of_the_key_can_not_be_altered_either(self) -> None:
        changed = put(put(INVITATION, ("key",), STRANGER.public), ("invitation", "coordinator_key"), STRANGER.public)
        with pytest.raises(EnrolmentError, match="was altered"):
            read_invitation(changed, NOW)

    def test_one_that_somebody_else_signed_does_not_pass_for_the_coordinators(self) -> None:
        body: Any = INVITATION["invitation"]
        with pytest.raises(EnrolmentError, match="was altered"):
            read_invitation(sign_document("invitation", body, STRANGER), NOW)

    def test_one_signed_in_another_form_is_refused(self) -> None:
        body: Any = INVITATION["invitation"]
        for change in ({"largest_patients": "5000"}, {"valid_until": "2026-06-15T02:00:00+02:00"}):
            with pytest.raises(EnrolmentError, match="another form"):
                read_invitation(sign_document("invitation", {**body, **change}, COORDINATOR), NOW)

    def test_it_can_be_answered_before_it_expires(self) -> None:
        end = TERMS["valid_until"]
        assert read_invitation(INVITATION, end - timedelta(seconds=1)).site == "north"
        with pytest.raises(EnrolmentError, match="has expired"):
            read_invitation(INVITATION, end)

    def test_a_site_that_has_joined_may_read_it_for_ever(self) -> None:
        assert read_invitation(INVITATION).valid_until == TERMS["valid_until"]

    def test_errors_quote_nothing_from_outside(self) -> None:
        body: Any = INVITATION["invitation"]
        with pytest.raises(EnrolmentError, match="unknown or wrong values") as caught:
            read_invitation(sign_document("invitation", {**body, "GARCIA": "/data/P007"}, COORDINATOR), NOW)
        assert "GARCIA" not in str(caught.value)

    @given(GARBAGE)
    def test_garbage_is_refused(self, document: object) -> None:
        with pytest.raises(EnrolmentError, match="invitation"):
            read_invitation(document, NOW)

    @given(st.sampled_from([place for place, _ in leaves(INVITATION)]), GARBAGE)
    def test_garbage_in_one_place_is_refused(self, place: tuple[Any, ...], value: object) -> None:
        with pytest.raises(EnrolmentError, match="invitation"):
            read_invitation(put(INVITATION, place, value), NOW)


class TestInvite:
    def test_only_the_key_that_is_named_signs(self) -> None:
        with pytest.raises(EnrolmentError, match="another key"):
            invite(invitation_of(), STRANGER)

    def test_one_of_the_largest_size_fits(self) -> None:
        large = invitation_of(ca_pem=pem(b"\x30" + bytes(23_000)))
        assert read_invitation(invite(large, COORDINATOR), NOW) == large


class TestRequests:
    def test_what_was_signed_is_read(self) -> None:
        assert read_request(REQUEST) == request_of()
        assert read_request(json.loads(json.dumps(REQUEST))) == request_of()

    def test_only_the_key_that_is_named_signs(self) -> None:
        with pytest.raises(EnrolmentError, match="another key"):
            request(request_of(), STRANGER)

    @pytest.mark.parametrize("place", [place for place, _ in leaves(REQUEST)], ids=lambda p: ".".join(map(str, p)))
    def test_no_value_can_be_altered(self, place: tuple[Any, ...]) -> None:
        for change in (GOOD[place[-1]], None, "", 0, []):
            with pytest.raises(EnrolmentError, match="request"):
                read_request(put(REQUEST, place, change))

    @pytest.mark.parametrize(
        "node_key",
        [NODE_KEYS[0] + " me@host", NODE_KEYS[0] + "\n", NODE_KEYS[0].replace("BGSU", "BGSV"), SITE.public],
        ids=["comment", "line-end", "other-kind", "signing-key"],
    )
    def test_the_node_key_is_one_on_its_curve_without_a_comment(self, node_key: str) -> None:
        with pytest.raises(ValidationError, match="node_key"):
            request_of(node_key=node_key)
        with pytest.raises(EnrolmentError, match="unknown or wrong values"):
            read_request(sign_document("request", {**ASKED, "node_key": node_key}, SITE))

    def test_an_invitation_is_no_request(self) -> None:
        with pytest.raises(EnrolmentError, match="not a signed request"):
            read_request(INVITATION)

    @given(GARBAGE)
    def test_garbage_is_refused(self, document: object) -> None:
        with pytest.raises(EnrolmentError, match="request"):
            read_request(document)

    @given(st.sampled_from([place for place, _ in leaves(REQUEST)]), GARBAGE)
    def test_garbage_in_one_place_is_refused(self, place: tuple[Any, ...], value: object) -> None:
        with pytest.raises(EnrolmentError, match="request"):
            read_request(put(REQUEST, place, value))


class TestCheckRequest:
    RECORD = invitation_record(invitation_of())

    def test_the_site_that_was_invited_is_let_in(self) -> None:
        assert check_request(request_of(), self.RECORD, NOW) == ()
        assert check_request(request_of(), json.loads(canonical_json(self.RECORD)), NOW) == ()
        assert check_request(request_of(), {**self.RECORD, "node_id": 5}, NOW) == ()

    def test_the_record_does_not_hold_the_token(self) -> None:
        assert TERMS["token"] not in json.dumps(self.RECORD)

    def test_without_an_invitation_nobody_is(self) -> None:
        assert check_request(request_of(), {}, NOW) == ("Nobody was invited with this token.",)

    @pytest.mark.parametrize(
        ("change", "reason"),
        [
            ({"token": new_token()}, "Nobody was invited with this token."),
            ({"site": "south"}, "The request names another site than was invited."),
            ({"federation": "breast"}, "The request is for another federation."),
        ],
    )
    def test_another_request_is_not(self, change: dict[str, Any], reason: str) -> None:
        assert check_request(request_of(**change), self.RECORD, NOW) == (reason,)

    def test_an_invitation_that_expired_is_too_late(self) -> None:
        end = TERMS["valid_until"]
        assert check_request(request_of(), self.RECORD, end - timedelta(seconds=1)) == ()
        assert check_request(request_of(), self.RECORD, end) == ("The invitation has expired.",)

    def test_an_invitation_serves_one_pair_of_keys(self) -> None:
        used = invitation_record(invitation_of(), used_by=request_of())
        assert check_request(request_of(), used, NOW) == ()
        reason = ("The invitation was used already, with another key.",)
        assert check_request(request_of(site_key=STRANGER.public), used, NOW) == reason
        assert check_request(request_of(node_key=NODE_KEYS[1]), used, NOW) == reason

    def test_all_reasons_are_given(self) -> None:
        used = invitation_record(invitation_of(), used_by=request_of())
        wrong = request_of(token=new_token(), site="south", federation="breast", node_key=NODE_KEYS[1])
        assert len(check_request(wrong, used, NOW.replace(year=2030))) == 5

    @pytest.mark.parametrize("until", [None, 5, "never", "2026-06-15"])
    def test_a_damaged_record_lets_nobody_in(self, until: object) -> None:
        with pytest.raises(EnrolmentError, match="record of the invitation is damaged"):
            check_request(request_of(), {**self.RECORD, "valid_until": until}, NOW)

    @pytest.mark.parametrize("name", ["token_sha256", "site", "federation"])
    def test_a_record_that_lacks_a_value_lets_nobody_in(self, name: str) -> None:
        assert len(check_request(request_of(), {k: v for k, v in self.RECORD.items() if k != name}, NOW)) == 1

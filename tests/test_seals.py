"""A seal says who speaks to whom about what; nothing in it can be changed, and none stands for another."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from eucaim_fl.errors import SealError
from eucaim_fl.seals import (
    InstructionSeal,
    ReplySeal,
    new_nonce,
    read_instruction_seal,
    read_reply_seal,
    sealed,
)
from eucaim_fl.signing import PrivateKey

COORDINATOR, SITE = PrivateKey.create(), PrivateKey.create()
COMMON: dict[str, Any] = {
    "federation": "prostate",
    "site": "north",
    "plan": "a" * 64,
    "kind": "round",
    "round": 3,
    "nonce": "b" * 32,
    "content": "c" * 64,
}
INSTRUCTION = InstructionSeal(**COMMON, issued_at=1_800_000_000, deadline_s=60.0, audit_count=5)
REPLY = ReplySeal(**COMMON, state="answer", audit_count=7, audit_hash="d" * 64, audit_then="e" * 64)
OTHER: dict[str, object] = {
    "federation": "breast",
    "site": "south",
    "plan": "0" * 64,
    "kind": "final",
    "round": 4,
    "nonce": "0" * 32,
    "issued_at": 1_800_000_001,
    "deadline_s": 61.0,
    "content": "0" * 64,
    "state": "unknown",
    "audit_count": 8,
    "audit_hash": "0" * 64,
    "audit_then": "0" * 64,
}


def altered(record: dict[str, str], key: str, value: object) -> dict[str, str]:
    """The record with another value in its body and the old signature."""
    return {**record, "body": json.dumps({**json.loads(record["body"]), key: value})}


def signed(body: object, purpose: str = "instruction", key: PrivateKey = COORDINATOR) -> dict[str, str]:
    """Any body with a signature that fits."""
    return {"body": json.dumps(body), "signature": key.sign(purpose, body)}


class TestSeals:
    def test_they_are_read_by_the_public_key_of_who_made_them(self) -> None:
        assert read_instruction_seal(sealed(INSTRUCTION, COORDINATOR), COORDINATOR.public) == INSTRUCTION
        assert read_reply_seal(sealed(REPLY, SITE), SITE.public) == REPLY

    @pytest.mark.parametrize("key", sorted(InstructionSeal.model_fields))
    def test_no_field_of_an_instruction_s_can_be_changed(self, key: str) -> None:
        record = altered(sealed(INSTRUCTION, COORDINATOR), key, OTHER[key])
        with pytest.raises(SealError, match="not of whom it claims"):
            read_instruction_seal(record, COORDINATOR.public)

    @pytest.mark.parametrize("key", sorted(ReplySeal.model_fields))
    def test_no_field_of_a_reply_s_can_be_changed(self, key: str) -> None:
        with pytest.raises(SealError, match="not of whom it claims"):
            read_reply_seal(altered(sealed(REPLY, SITE), key, OTHER[key]), SITE.public)

    def test_one_with_another_key_is_refused(self) -> None:
        with pytest.raises(SealError, match="not of whom it claims"):
            read_instruction_seal(sealed(INSTRUCTION, SITE), COORDINATOR.public)
        with pytest.raises(SealError, match="not of whom it claims"):
            read_reply_seal(sealed(REPLY, COORDINATOR), SITE.public)

    def test_an_instruction_s_is_none_of_a_reply_nor_the_other_way_round(self) -> None:
        key = PrivateKey.create()
        with pytest.raises(SealError, match="not of whom it claims"):
            read_reply_seal(sealed(INSTRUCTION, key), key.public)
        with pytest.raises(SealError, match="not of whom it claims"):
            read_instruction_seal(sealed(REPLY, key), key.public)
        for purpose in ("permit", "plan", "audit", "reply"):
            with pytest.raises(SealError, match="not of whom it claims"):
                read_instruction_seal(signed(INSTRUCTION.model_dump(mode="json"), purpose), COORDINATOR.public)

    @pytest.mark.parametrize(
        "record",
        [None, [], "x", {}, {"body": "{}"}, {"signature": "x"}, {"body": 1, "signature": "x"},
         {"body": b"{}", "signature": "x"}, {"body": "{}", "signature": None},
         {"body": " " * 5000, "signature": "x"}],
    )  # fmt: skip
    def test_a_message_without_one_is_refused(self, record: object) -> None:
        with pytest.raises(SealError, match="bears no seal"):
            read_instruction_seal(record, COORDINATOR.public)
        with pytest.raises(SealError, match="bears no seal"):
            read_reply_seal(record, COORDINATOR.public)

    @pytest.mark.parametrize("body", ["", "no json", "[" * 4000, "9" * 4090 + "x"])
    def test_one_that_is_no_json_is_refused(self, body: str) -> None:
        with pytest.raises(SealError, match="not JSON"):
            read_reply_seal({"body": body, "signature": "A" * 86}, SITE.public)

    @pytest.mark.parametrize("body", ['"\\ud800"', "NaN", "1e999", "[" * 900 + "]" * 900])
    def test_one_that_can_not_be_signed_is_refused(self, body: str) -> None:
        with pytest.raises(SealError, match=r"not of whom|not JSON"):
            read_reply_seal({"body": body, "signature": "A" * 86}, SITE.public)

    @pytest.mark.parametrize(
        ("key", "value"),
        [("kind", "run"), ("round", -1), ("nonce", "b" * 31), ("plan", "A" * 64), ("site", "../north"),
         ("content", None), ("deadline_s", 0), ("deadline_s", 1e9), ("issued_at", -1), ("more", 1),
         ("audit_count", -1), ("audit_count", 2**53 + 1), ("audit_count", 10**400)],
    )  # fmt: skip
    def test_a_malformed_one_is_refused_whoever_signed_it(self, key: str, value: object) -> None:
        body = {**INSTRUCTION.model_dump(mode="json"), key: value}
        with pytest.raises(SealError, match="malformed"):
            read_instruction_seal(signed(body), COORDINATOR.public)

    @pytest.mark.parametrize(
        ("key", "value"),
        [("state", "done"), ("audit_count", -1), ("audit_count", 2**63), ("audit_hash", ""), ("audit_then", "e" * 63),
         ("audit_then", "E" * 64), ("audit_then", "e" * 64 + "\n"), ("audit_then", None), ("x", 1)],
    )  # fmt: skip
    def test_a_malformed_reply_s_is_refused_too(self, key: str, value: object) -> None:
        body = {**REPLY.model_dump(mode="json"), key: value}
        with pytest.raises(SealError, match="malformed"):
            read_reply_seal(signed(body, "reply", SITE), SITE.public)

    @pytest.mark.parametrize("key", sorted(set(ReplySeal.model_fields) - {"audit_then"}))
    def test_one_that_leaves_something_out_is_refused(self, key: str) -> None:
        body = REPLY.model_dump(mode="json")
        del body[key]
        with pytest.raises(SealError, match="malformed"):
            read_reply_seal(signed(body, "reply", SITE), SITE.public)

    def test_a_coordinator_that_knows_no_record_of_the_log_asks_for_none_and_gets_none(self) -> None:
        body = INSTRUCTION.model_dump(mode="json")
        del body["audit_count"]
        assert read_instruction_seal(signed(body), COORDINATOR.public).audit_count == 0
        body = REPLY.model_dump(mode="json")
        del body["audit_then"]
        assert read_reply_seal(signed(body, "reply", SITE), SITE.public).audit_then == ""

    def test_the_hash_of_an_earlier_record_can_neither_be_taken_out_nor_put_in(self) -> None:
        silent = REPLY.model_copy(update={"audit_then": ""})
        for seal, other in ((REPLY, ""), (silent, "e" * 64)):
            with pytest.raises(SealError, match="not of whom it claims"):
                read_reply_seal(altered(sealed(seal, SITE), "audit_then", other), SITE.public)
        without = json.loads(sealed(REPLY, SITE)["body"])
        del without["audit_then"]
        with pytest.raises(SealError, match="not of whom it claims"):
            read_reply_seal({**sealed(REPLY, SITE), "body": json.dumps(without)}, SITE.public)

    @given(st.dictionaries(st.sampled_from(["body", "signature", "more"]), st.text() | st.binary() | st.none()))
    def test_garbage_is_refused(self, record: dict[str, object]) -> None:
        with pytest.raises(SealError, match="seal"):
            read_reply_seal(record, SITE.public)


class TestNonces:
    def test_each_is_another_128_bits(self) -> None:
        made = {new_nonce() for _ in range(100)}
        assert len(made) == 100
        assert all(len(bytes.fromhex(nonce)) == 16 for nonce in made)

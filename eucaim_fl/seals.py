"""What instructions and replies are signed over: who to whom, about what, answering what, with which bytes.

A seal is a small JSON body and its signature. It binds the packed content by its digest, so that neither the SuperLink
nor the proxy nor another site can change, replay or pass off what they carry.
"""

from __future__ import annotations

import json
import secrets
from typing import Annotated, Literal

from pydantic import Field, NonNegativeInt

from eucaim_fl.errors import ConfigError, PlanError, SealError
from eucaim_fl.parsing import SITE_NAME, Config, parse
from eucaim_fl.signing import PrivateKey, verify

__all__ = ["InstructionSeal", "Kind", "ReplySeal", "new_nonce", "read_instruction_seal", "read_reply_seal", "sealed"]

Kind = Literal["hello", "statistics", "round", "final", "probe"]
_LONGEST = 4096
_Hash = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
_Count = Annotated[int, Field(ge=0, le=2**53)]
_Nonce = Annotated[str, Field(pattern=r"^[0-9a-f]{32}$")]


class InstructionSeal(Config):
    """The coordinator's word: this site is asked this about this plan.

    nonce: used for one instruction only, however often it is sent. issued_at: seconds since 1970. deadline_s: how long
    the coordinator waits. content: digest of the packed message. audit_count: the last record of the site's audit log
    that the coordinator knows of; the site answers with that record's hash.
    """

    federation: Annotated[str, Field(pattern=SITE_NAME)]
    site: Annotated[str, Field(pattern=SITE_NAME)]
    plan: _Hash
    kind: Kind
    round: NonNegativeInt
    nonce: _Nonce
    issued_at: NonNegativeInt
    deadline_s: Annotated[float, Field(gt=0, le=1e7)]
    content: _Hash
    audit_count: _Count = 0


class ReplySeal(Config):
    """The site's word: this is my answer to that instruction.

    state: `answer`; or, to a probe, `working` on the instruction or `unknown`. audit: number of records and hash of the
    head of the site's audit log, after the record of this very reply. audit_then: hash of the record that the
    instruction names, empty if there is none: who rewrote the log has another there.
    """

    federation: Annotated[str, Field(pattern=SITE_NAME)]
    site: Annotated[str, Field(pattern=SITE_NAME)]
    plan: _Hash
    kind: Kind
    round: NonNegativeInt
    nonce: _Nonce
    state: Literal["answer", "working", "unknown"]
    content: _Hash
    audit_count: _Count
    audit_hash: _Hash
    audit_then: Annotated[str, Field(pattern=r"^([0-9a-f]{64})?$")] = ""


def new_nonce() -> str:
    """A number used once: 128 random bits in hexadecimal."""
    return secrets.token_hex(16)


def sealed(body: InstructionSeal | ReplySeal, key: PrivateKey) -> dict[str, str]:
    """Body (as JSON text) and signature, as they travel."""
    value = body.model_dump(mode="json")
    purpose = "instruction" if isinstance(body, InstructionSeal) else "reply"
    return {"body": json.dumps(value, sort_keys=True), "signature": key.sign(purpose, value)}


def _read(record: object, public: str, purpose: str) -> object:
    body, signature = (record.get("body"), record.get("signature")) if isinstance(record, dict) else (None, None)
    if not isinstance(body, str) or not isinstance(signature, str) or len(body) > _LONGEST:
        raise SealError("The message bears no seal.")
    try:
        value: object = json.loads(body)
        fits = verify(public, purpose, value, signature)
    except (ValueError, RecursionError):
        raise SealError("The message's seal is not JSON.") from None
    if not fits:
        raise SealError("The message's seal is not of whom it claims to come from.")
    return value


def read_instruction_seal(record: object, public: str) -> InstructionSeal:
    """The seal of an instruction, by the coordinator's public key.

    Raises SealError if there is none, the signature is another's, or it is malformed.
    """
    value = _read(record, public, "instruction")
    try:
        return parse(InstructionSeal, value, "The seal", PlanError)
    except ConfigError:
        raise SealError("The message's seal is malformed.") from None


def read_reply_seal(record: object, public: str) -> ReplySeal:
    """The seal of a reply, by the public key of the site that was asked.

    Raises SealError if there is none, the signature is another's, or it is malformed.
    """
    value = _read(record, public, "reply")
    try:
        return parse(ReplySeal, value, "The seal", PlanError)
    except ConfigError:
        raise SealError("The message's seal is malformed.") from None

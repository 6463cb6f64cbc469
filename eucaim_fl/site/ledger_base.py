"""What stands in a privacy ledger: values, records' bodies, patient sets, and the tables that keep them.

Kinds and their bodies (events, never an epsilon):
    reserved    plan (SHA-256), name, purpose, dataset, use, part, secure, noise, rate, steps, patients (digest of the
                set), count (of the set): for all of the plan that is still to come; replaces what it had reserved
    committed   the same, and round: steps whose noise may now be drawn. Patients are EVERYBODY and count is 0 where a
                lost ledger knew whom it had charged, and nobody else does
    released    plan: what it has reserved and not committed is free

The ledger keeps a write-ahead log, which a hard kill can leave beside the database; that it was lost is seen by the
signed head. A set of patients stands there once, as sorted keyed hashes of 16 bytes, found by its SHA-256.
"""

from __future__ import annotations

import hashlib
import hmac
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Literal

from pydantic import JsonValue

from eucaim_fl.errors import LedgerError
from eucaim_fl.privacy.accounting import Mechanism
from eucaim_fl.privacy.budget import Budget
from eucaim_fl.site.audit_chain import Head
from eucaim_fl.site.log_kind import LogKind, tables

__all__ = [
    "EVERYBODY",
    "LEDGER",
    "Claim",
    "LedgerHead",
    "Limits",
    "Purchase",
    "Release",
    "body_of",
    "check_mechanism",
    "event_of",
    "hidden_patients",
    "members_of",
    "packed",
    "set_digest",
]

EVERYBODY = "*"
"""Stands for the set of a charge that counts for every patient, whether the ledger knows the patient or not."""
LedgerHead = Head
"""The end of a ledger: its number of records and the hash of the last one."""
_HASH_BYTES = 16
_VERIFY = "Run `eucaim-fl site ledger verify`, keep the files as they are, and ask who answers for data protection."
_KEEP = "BEGIN SELECT RAISE(ABORT, 'the privacy ledger is append-only'); END"
_KNOWN = "EXISTS (SELECT 1 FROM sets WHERE digest = NEW.digest)"
LEDGER = LogKind(
    schema="eucaim-fl-ledger/1",
    name="privacy ledger",
    file="ledger.sqlite",
    error=LedgerError,
    keeper="the audit log",
    advice=_VERIFY,
    damaged=_VERIFY,
    foreign="A ledger stays with its site and its key: put the files back that belong together.",
    missing="It is made when the site first trains with differential privacy.",
    statements=tables(
        "privacy ledger",
        more=(
            "CREATE TABLE sets (digest TEXT PRIMARY KEY NOT NULL, members BLOB NOT NULL)",
            f"CREATE TRIGGER sets_update BEFORE UPDATE ON sets {_KEEP}",
            f"CREATE TRIGGER sets_delete BEFORE DELETE ON sets {_KEEP}",
            f"CREATE TRIGGER sets_insert BEFORE INSERT ON sets WHEN {_KNOWN} {_KEEP}",
        ),
    ),
    journal="WAL",
    synchronous="FULL",
    largest_value=256 * 1024 * 1024,
)


@dataclass(frozen=True)
class Limits:
    """Budgets that what is asked must fit in; None: no limit.

    plan: of one plan, whose noise, rate and steps are fixed beforehand (`accounting.epsilon`). patient, dataset,
    purpose: of all plans together, which may follow from one another (`Budget.holds`).
    """

    plan: Budget | None
    patient: Budget | None
    dataset: Budget | None
    purpose: Budget | None


@dataclass(frozen=True)
class Purchase:
    """What patients' privacy is spent on. plan: SHA-256. secure: whether the noise comes from a secure source.

    part: tells cohorts of the same use apart (a split of figures), each of which has a reservation of its own.
    """

    plan: str
    name: str
    purpose: str
    dataset: str
    use: Literal["train", "figures"]
    secure: bool
    part: str = ""


@dataclass(frozen=True)
class Claim:
    """A purchase, what it costs, and the patients whom it costs it: digest of the set, and their number.

    round: None if reserved. patients: or EVERYBODY, whose number is 0.
    """

    what: Purchase
    mechanism: Mechanism
    patients: str
    count: int
    round: int | None


@dataclass(frozen=True)
class Release:
    """What a plan has reserved and not committed is free."""

    plan: str


def check_mechanism(mechanism: Mechanism) -> None:
    """Raises ValueError if no patient can be charged so: noise or rate of no sense, or less than one step."""
    noise, rate, steps = mechanism.noise, mechanism.rate, mechanism.steps
    if not (math.isfinite(noise) and noise >= 0 and 0 < rate <= 1 and isinstance(steps, int) and steps >= 1):
        raise ValueError("a mechanism has finite noise, a rate in (0, 1] and at least one step")


def body_of(claim: Claim) -> dict[str, JsonValue]:
    """A claim as the body of its record; floats are written so that they are read back exactly."""
    what, mechanism = claim.what, claim.mechanism
    body: dict[str, JsonValue] = {
        "plan": what.plan,
        "name": what.name,
        "purpose": what.purpose,
        "dataset": what.dataset,
        "use": what.use,
        "part": what.part,
        "secure": what.secure,
        "noise": float(mechanism.noise),
        "rate": float(mechanism.rate),
        "steps": mechanism.steps,
        "patients": claim.patients,
        "count": claim.count,
    }
    return body if claim.round is None else {**body, "round": claim.round}


def event_of(word: str, body: Mapping[str, JsonValue]) -> Claim | Release | None:
    """What a record says, by its kind and body; None if no ledger has such a record."""
    if word == "released":
        plan = body.get("plan")
        return Release(plan) if isinstance(plan, str) and len(body) == 1 else None
    if word not in ("reserved", "committed"):
        return None
    try:
        use, secure = body["use"], body["secure"]
        if use not in ("train", "figures") or not isinstance(secure, bool):
            return None
        texts = (_text(body[name]) for name in ("plan", "name", "purpose", "dataset", "part", "patients"))
        plan, name, purpose, dataset, part, patients = texts
        mechanism = Mechanism(_float(body["noise"]), _float(body["rate"]), _whole(body["steps"]))
        check_mechanism(mechanism)
        number = _whole(body["round"]) if word == "committed" else None
        what = Purchase(plan, name, purpose, dataset, "train" if use == "train" else "figures", secure, part)
        claim = Claim(what, mechanism, patients, _whole(body["count"]), number)
    except (KeyError, TypeError, ValueError):
        return None
    if patients == EVERYBODY and (claim.count or number is None):
        return None
    return claim if body_of(claim) == dict(body) else None


def hidden_patients(key: bytes, names: Iterable[str]) -> dict[str, bytes]:
    """Each name's keyed hash (HMAC-SHA256, 16 bytes)."""
    return {name: hmac.digest(key, name.encode("utf-8", "surrogatepass"), "sha256")[:_HASH_BYTES] for name in names}


def packed(patients: Iterable[bytes]) -> bytes:
    """A set of keyed hashes in its one form: sorted, one after the other."""
    return b"".join(sorted(patients))


def set_digest(members: bytes) -> str:
    """The name of a packed set: its SHA-256."""
    return hashlib.sha256(members).hexdigest()


def members_of(members: object, digest: str, count: int) -> frozenset[bytes] | None:
    """The patients of a packed set; None if it is not the set of that digest and size."""
    if not isinstance(members, bytes) or set_digest(members) != digest or len(members) != count * _HASH_BYTES:
        return None
    found = frozenset(members[at : at + _HASH_BYTES] for at in range(0, len(members), _HASH_BYTES))
    return found if len(found) == count else None


def _text(value: object) -> str:
    if not isinstance(value, str):
        raise TypeError("no text")
    return value


def _float(value: object) -> float:
    if not isinstance(value, float):
        raise TypeError("no number")
    return value


def _whole(value: object) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or value < 0:
        raise TypeError("no whole number")
    return value

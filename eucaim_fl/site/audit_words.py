"""Audit records in plain words: who asked, what was decided and why, what left. For people and for exports.

Only fields that are known are taken over, and each is checked: whatever else stands in a record stays in it. A text
that looks like a path is not passed on.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from pydantic import JsonValue

from eucaim_fl.site.audit_chain import AuditRecord
from eucaim_fl.site.audit_reader import AuditReader

__all__ = ["Asker", "Askers", "Left", "Line", "line_of"]

_HASH = re.compile(r"[0-9a-f]{64}")
_WORD = re.compile(r"[A-Za-z0-9][A-Za-z0-9._@+-]{0,127}")
_PATH = re.compile(r"(^|[\s\"'(=:])[/~]|\\|\.\./")
_LONGEST_TEXT = 300
_NOT_SHOWN = "(not shown)"
_ASKED = {
    "hello": "to take part",
    "statistics": "to tell sums over training patients",
    "round": "to train round {0}",
    "final": "to evaluate the final model",
}
_HAPPENED = {
    "started": "the site's client started",
    "stopped": "the site's client stopped",
    "decision": "a request was decided",
    "approved": "a person of the site approved the plan",
    "refused": "a person of the site refused the plan",
    "sent": "an answer left the site",
    "withheld": "an answer was withheld",
    "ignored": "messages were ignored: the coordinator had not signed them for this site",
    "exported": "the log was exported",
    "ledger_replaced": "the privacy ledger was lost; a new one charges everybody with all that can have been spent",
}
_UNSEEN = "; nothing shows whether other plans trained here without the client, and a person said that none did"
_VERDICTS = {"allow": "allowed", "refuse": "refused", "wait": "waits"}


@dataclass(frozen=True)
class Asker:
    """By what right a plan asks: the permit's holder, the permit, the purpose; None where nothing was stated."""

    holder: str | None = None
    permit: str | None = None
    purpose: str | None = None


@dataclass(frozen=True)
class Left:
    """What left: bytes, number of arrays, patients behind the update, names of metrics by split, SHA-256 of it all.

    pictures: example pictures of data that may be shown. update_norm: L2 length of the update. epsilon, delta: what the
    plan had cost the training patients by then; None: no noise that the site adds. ledger_count, ledger: number and
    hash of the last record that the privacy ledger had by then. record: SHA-256 of what the site signed of frozen
    models, which `report verify` has, too.
    """

    bytes: int
    arrays: int | None
    patients: int | None
    metrics: Mapping[str, tuple[str, ...]]
    pictures: int
    digest: str | None
    update_norm: float | None
    epsilon: float | None
    delta: float | None = None
    ledger_count: int | None = None
    ledger: str | None = None
    record: str | None = None


@dataclass(frozen=True)
class Line:
    """A record as people read it. happened: what, in words. outcome: allowed, refused, waits, sent, withheld or empty.

    reasons: keys of the policy, or codes and sentences of the gate. by: the login name of who decided, and in brackets
    the name that they gave themselves, which nobody checked.
    """

    number: int
    time: str
    kind: str
    happened: str
    asker: Asker
    plan: str | None
    asked: str
    outcome: str
    reasons: tuple[str, ...]
    by: str | None
    left: Left | None
    hash: str


def _text(value: JsonValue) -> str | None:
    """A short text without control characters; what looks like a path is not shown."""
    if not isinstance(value, str) or not value:
        return None
    plain = "".join(sign if sign.isprintable() else " " for sign in value)
    return plain if len(plain) <= _LONGEST_TEXT and _PATH.search(plain) is None else _NOT_SHOWN


def _word(value: JsonValue) -> str | None:
    if not isinstance(value, str) or not value:
        return None
    return value if _WORD.fullmatch(value) else _NOT_SHOWN


def _hash(value: JsonValue) -> str | None:
    return value if isinstance(value, str) and _HASH.fullmatch(value) else None


def _count(value: JsonValue) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) and value >= 0 else None


def _number(value: JsonValue) -> float | None:
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else None


def _words(value: JsonValue) -> tuple[str, ...]:
    return tuple(_text(item) or _NOT_SHOWN for item in value) if isinstance(value, list) else ()


def _who(body: Mapping[str, JsonValue]) -> str | None:
    login, stated = _word(body.get("by")), _word(body.get("stated_by"))
    return login if login is None or stated is None else f"{login} (gave the name {stated})"


def _metrics(value: JsonValue) -> dict[str, tuple[str, ...]]:
    if not isinstance(value, dict):
        return {}
    return {
        split: tuple(_word(name) or _NOT_SHOWN for name in names)
        for split, names in sorted(value.items())
        if isinstance(names, list) and _word(split) == split
    }


class Askers:
    """Who asked, for records that name a plan only: as the last decision before them says.

    Records must be asked for in their order. Its memory grows with the number of plans.
    """

    def __init__(self, reader: AuditReader) -> None:
        self._reader = reader
        self._known: dict[str, Asker] = {}

    def of(self, record: AuditRecord) -> Asker:
        """The asker behind a record; empty for what nobody asked for."""
        plan = _hash(record.body.get("plan"))
        if record.kind == "decision":
            found = self._stated(record)
            if plan is not None:
                self._known[plan] = found
            return found
        if plan is None:
            return Asker()
        if plan not in self._known:
            earlier = self._reader.records(plan=plan, kind="decision", before=record.seq, last=1)
            self._known[plan] = next((self._stated(one) for one in earlier), Asker())
        return self._known[plan]

    def _stated(self, record: AuditRecord) -> Asker:
        body = record.body
        return Asker(_text(body.get("holder")), _word(body.get("permit")), _word(body.get("purpose")))


def line_of(record: AuditRecord, asker: Asker) -> Line:
    """A record in plain words.

    >>> record = AuditRecord(1, "2026-03-01T12:00:00.000000+00:00", "refused", {"by": "it"}, "", "", "")
    >>> line_of(record, Asker()).happened
    'a person of the site refused the plan'
    """
    body, kind = record.body, record.kind
    verdict = body.get("verdict")
    outcome = {"sent": "sent", "withheld": "withheld"}.get(kind, "")
    if kind == "decision":
        outcome = _VERDICTS.get(verdict, "") if isinstance(verdict, str) else ""
    asked = body.get("kind")
    left = None
    if kind == "sent":
        left = Left(
            _count(body.get("bytes")) or 0,
            _count(body.get("arrays")),
            _count(body.get("patients")),
            _metrics(body.get("metrics")),
            _count(body.get("pictures")) or 0,
            _hash(body.get("digest")),
            _number(body.get("update_norm")),
            _number(body.get("epsilon")),
            _number(body.get("delta")),
            _count(body.get("ledger_count")),
            _hash(body.get("ledger")),
            _hash(body.get("record")),
        )
    code = _word(body.get("code")) if kind == "withheld" else None
    return Line(
        number=record.seq,
        time=record.time,
        kind=kind,
        happened=_HAPPENED.get(kind, kind.replace("_", " ")) + (_UNSEEN if body.get("lineage_missing") is True else ""),
        asker=asker,
        plan=_hash(body.get("plan")),
        asked=_ASKED.get(asked, "").format(_count(body.get("round"))) if isinstance(asked, str) else "",
        outcome=outcome,
        reasons=(*([code] if code else []), *_words(body.get("reasons"))),
        by=_who(body),
        left=left,
        hash=record.hash,
    )

"""Questions to the audit log that need no key. Each costs as much as its answer is long, not as the log is."""

from __future__ import annotations

import datetime
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from eucaim_fl.errors import AuditError
from eucaim_fl.site.audit_base import COLUMNS, PLAN, AuditFiles, altered, guarded, opened, record_of
from eucaim_fl.site.audit_chain import SCHEMA, AuditRecord, Head, LogIdentity

__all__ = ["NOT_BEGUN", "AuditReader", "Sent", "utc_text"]

NOT_BEGUN = "It is made when the site's client starts for the first time."
"""What is said where there is no log."""

_BATCH = 500
_WITHOUT_TRAINING = ("hello", "statistics", "final")


@dataclass(frozen=True)
class Sent:
    """What left for one plan: bytes of all its messages, and the rounds that the site trained for it."""

    bytes: int
    rounds: frozenset[int]


def utc_text(moment: datetime.datetime) -> str:
    """A moment as records state it: UTC, ISO 8601, always with microseconds, so that texts sort like times.

    Raises ValueError if the moment has no time zone.

    >>> utc_text(datetime.datetime(2026, 3, 1, 12, tzinfo=datetime.UTC))
    '2026-03-01T12:00:00.000000+00:00'
    """
    if moment.tzinfo is None:
        raise ValueError("a moment needs a time zone")
    return moment.astimezone(datetime.UTC).isoformat(timespec="microseconds")


class AuditReader:
    """A log that is read only: what it says is not verified here, see `verify_log`."""

    def __init__(self, folder: Path) -> None:
        """Raises AuditError if there is no audit log in the folder."""
        self.folder = folder
        self._files = AuditFiles(folder)
        if not self._files.base.is_file():
            raise AuditError(
                "There is no audit log here.",
                fix=NOT_BEGUN,
                local_detail=str(folder),
            )

    def identity(self) -> LogIdentity:
        """Whose log it says it is. Raises AuditError if it can't be read, or is of another version."""
        found = self._ask("SELECT schema, site, key FROM about")
        if len(found) != 1 or found[0][0] != SCHEMA:
            raise AuditError("The audit log is of another version.", local_detail=str(self.folder))
        return LogIdentity(self._text(found[0][1]), self._text(found[0][2]))

    def head(self) -> Head:
        """Number of records and hash of the last one. Raises AuditError if the log can't be read."""
        found = self._ask("SELECT seq, hash FROM records ORDER BY seq DESC LIMIT 1")
        return Head(self._number(found[0][0]), self._text(found[0][1])) if found else self.identity().start

    def span(self) -> tuple[AuditRecord, AuditRecord] | None:
        """The first and the last record; None of an empty log. Raises AuditError if it can't be read."""
        ends = "SELECT min(seq) FROM records UNION SELECT max(seq) FROM records"
        found = self._ask(f"SELECT {COLUMNS} FROM records WHERE seq IN ({ends}) ORDER BY seq")  # noqa: S608
        return (record_of(found[0], self.folder), record_of(found[-1], self.folder)) if found else None

    def records(
        self,
        plan: str | None = None,
        kind: str | None = None,
        since: datetime.datetime | None = None,
        until: datetime.datetime | None = None,
        before: int | None = None,
        last: int | None = None,
    ) -> Iterator[AuditRecord]:
        """Records in their order that fit all that is given; a few are in memory at a time.

        plan: SHA-256. since, until: aware; from `since` on and before `until`. before: with a smaller number.
        last: only so many, the last ones.
        Raises AuditError if the log can't be read.
        """
        given = {
            f"{PLAN} = ?": plan,
            "kind = ?": kind,
            "time >= ?": None if since is None else utc_text(since),
            "time < ?": None if until is None else utc_text(until),
            "seq < ?": before,
        }
        clauses = ["seq > ?", *(clause for clause, value in given.items() if value is not None)]
        asked: list[str | int] = [0, *(value for value in given.values() if value is not None)]
        where = " AND ".join(clauses)
        if last is not None:
            found = self._ask(f"SELECT seq FROM records WHERE {where} ORDER BY seq DESC LIMIT ?", *asked, last)  # noqa: S608
            if not found:
                return
            asked[0] = self._number(found[-1][0]) - 1
        query = f"SELECT {COLUMNS} FROM records WHERE {where} ORDER BY seq LIMIT {_BATCH}"  # noqa: S608
        while rows := self._ask(query, *asked):
            for row in rows:
                yield record_of(row, self.folder)
            asked[0] = self._number(rows[-1][0], above=int(asked[0]))

    def plans(self, start: str) -> tuple[str, ...]:
        """SHA-256 of plans in the log that start with these characters, at most ten.

        Raises AuditError if the log can't be read.
        """
        query = f"SELECT DISTINCT {PLAN} FROM records WHERE {PLAN} >= ? AND {PLAN} < ? LIMIT 10"  # noqa: S608
        return tuple(self._text(row[0]) for row in self._ask(query, start, start + "g"))  # after all hexadecimal digits

    def approval(self, plan_sha256: str) -> Literal["approved", "refused"] | None:
        """What a person of the site decided of a plan; the last decision counts.

        Raises AuditError if the log can't be read.
        """
        query = f"SELECT max(seq) FROM records WHERE {PLAN} = ? AND kind = ?"  # noqa: S608
        yes, no = (self._number(self._ask(query, plan_sha256, kind)[0][0] or 0) for kind in ("approved", "refused"))
        if not yes and not no:
            return None
        return "approved" if yes > no else "refused"

    def permit_plans(self, permit_id: str) -> frozenset[str]:
        """SHA-256 of the plans that were allowed under a permit. Raises AuditError if the log can't be read."""
        query = (
            f"SELECT {PLAN} FROM records WHERE kind = 'decision' AND json_extract(body, '$.verdict') = 'allow' "  # noqa: S608
            f"AND json_extract(body, '$.permit') = ? AND {PLAN} > ? ORDER BY {PLAN} LIMIT 1"
        )
        plans: list[str] = []
        while found := self._ask(query, permit_id, plans[-1] if plans else ""):
            plans.append(self._text(found[0][0], above=plans[-1] if plans else ""))
        return frozenset(plans)

    def sent(self, plan_sha256: str) -> Sent:
        """What left for a plan. Hello, statistics and the final evaluation count as bytes, not as rounds.

        Raises AuditError if the log can't be read.
        """
        parts = ", ".join(f"json_extract(body, '$.{name}')" for name in ("bytes", "round", "kind"))
        query = f"SELECT {parts} FROM records WHERE {PLAN} = ? AND kind = 'sent'"  # noqa: S608
        found = self._ask(query, plan_sha256)
        trained = (number for _, number, kind in found if number is not None and kind not in _WITHOUT_TRAINING)
        return Sent(sum(self._number(size or 0) for size, _, _ in found), frozenset(map(self._number, trained)))

    def ledger_head(self) -> tuple[int, str] | None:
        """Number of records and head of the privacy ledger, as they were noted last; None if they never were.

        Records are looked through from the last one back: quick where plans with noise run, the whole log elsewhere.
        Raises AuditError if the log can't be read.
        """
        parts = "json_extract(body, '$.ledger_count'), json_extract(body, '$.ledger')"
        query = (
            f"SELECT {parts} FROM records WHERE seq > 0 AND +kind IN ('sent', 'ledger_replaced') "  # noqa: S608
            "AND json_extract(body, '$.ledger_count') IS NOT NULL ORDER BY seq DESC LIMIT 1"
        )
        found = self._ask(query)
        return (self._number(found[0][0]), self._text(found[0][1])) if found else None

    def hash_at(self, count: int) -> str:
        """Hash of one record by its number; empty if there is none. Raises AuditError if the log can't be read."""
        found = self._ask("SELECT hash FROM records WHERE seq = ?", count)
        return self._text(found[0][0]) if found else ""

    def times_asked(self, plan_sha256: str, kind: str, number: int) -> int:
        """How often a question about a plan was allowed. Raises AuditError if the log can't be read."""
        query = (
            f"SELECT count(*) FROM records WHERE {PLAN} = ? AND kind = 'decision' AND json_extract(body, '$.kind') = ? "  # noqa: S608
            "AND json_extract(body, '$.round') = ? AND json_extract(body, '$.verdict') = 'allow'"
        )
        return self._number(self._ask(query, plan_sha256, kind, number)[0][0])

    def plans_allowed(self, since: datetime.datetime | None = None) -> frozenset[str]:
        """SHA-256 of plans that were allowed; since: not before that time.

        Raises AuditError if the log can't be read.
        """
        query = (
            f"SELECT DISTINCT {PLAN} FROM records WHERE kind = 'decision' AND time >= ? "  # noqa: S608
            "AND json_extract(body, '$.verdict') = 'allow'"
        )
        return frozenset(self._text(row[0]) for row in self._ask(query, utc_text(since) if since else ""))

    def sent_today(self, now: datetime.datetime) -> int:
        """Bytes that left on the day of `now`, in the time zone of `now`.

        Raises AuditError if the log can't be read; ValueError if `now` has no time zone.
        """
        start = now.replace(hour=0, minute=0, second=0, microsecond=0)
        query = (
            "SELECT sum(json_extract(body, '$.bytes')) FROM records INDEXED BY records_sent "
            "WHERE kind = 'sent' AND time >= ? AND time < ?"
        )
        found = self._ask(query, utc_text(start), utc_text(start + datetime.timedelta(days=1)))
        return self._number(found[0][0] or 0)

    def _ask(self, query: str, *values: str | int) -> list[tuple[Any, ...]]:
        with guarded(self.folder), opened(self._files) as base:
            found: list[tuple[Any, ...]] = base.execute(query, values).fetchall()
            return found

    def _number(self, value: object, above: int | None = None) -> int:
        """A number where there must be one, and in its order: a damaged file could lead in circles."""
        if not isinstance(value, int) or (above is not None and value <= above):
            raise altered(self.folder)
        return value

    def _text(self, value: object, above: str | None = None) -> str:
        if not isinstance(value, str) or (above is not None and value <= above):
            raise altered(self.folder)
        return value

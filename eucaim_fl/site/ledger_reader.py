"""Questions to the privacy ledger that need no key. What they add up is read along the chain of hashes, and checked."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from eucaim_fl.errors import EucaimError
from eucaim_fl.privacy.accounting import Mechanism, merged
from eucaim_fl.site.audit_base import COLUMNS, AuditFiles, altered, guarded, opened, record_of, schema_faults
from eucaim_fl.site.audit_chain import AuditRecord, ChainCheck, LogIdentity, Witness, read_head
from eucaim_fl.site.audit_verify import chain_faults, head_bytes, rows_after
from eucaim_fl.site.ledger_base import EVERYBODY, LEDGER, Claim, LedgerHead, Purchase, Release, event_of, members_of
from eucaim_fl.site.ledger_books import Books

__all__ = ["History", "LedgerReader", "Reservation", "has_ledger", "read_books", "verify_ledger"]

_BATCH = 500
_PLAN = "json_extract(body, '$.plan')"


@dataclass(frozen=True)
class History:
    """Patients with equal histories: how many, and what was committed for them, by purpose and plan (SHA-256)."""

    patients: int
    spent: Mapping[tuple[str, str], tuple[Mechanism, ...]]


@dataclass(frozen=True)
class Reservation:
    """What a plan has reserved for a number of patients; mechanism: with the steps that are not committed yet."""

    what: Purchase
    mechanism: Mechanism
    patients: int


def has_ledger(folder: Path) -> bool:
    """Whether a ledger was begun in the folder: it has its key, or a head that names records.

    What a beginning left that was cut short before the first record is no ledger yet. Raises LedgerError if the folder
    can't be read.
    """
    with guarded(folder, LEDGER):
        head = folder / "head.json"
        return (folder / "ledger.key").exists() or (head.exists() and b'"count": 0,' not in head.read_bytes())


class LedgerReader:
    """A ledger that is read only. Its signatures are verified by `verify_ledger` alone."""

    def __init__(self, folder: Path) -> None:
        """Raises LedgerError if there is no privacy ledger in the folder."""
        self.folder = folder
        self._files = AuditFiles(folder, LEDGER)
        if not self._files.base.is_file():
            raise LEDGER.error("There is no privacy ledger here.", fix=LEDGER.missing, local_detail=str(folder))

    def identity(self) -> LogIdentity:
        """Whose ledger it says it is. Raises LedgerError if it can't be read, or is of another version."""
        with guarded(self.folder, LEDGER), opened(self._files) as base:
            return _stated(base, self.folder)

    def head(self) -> LedgerHead:
        """Number of records and hash of the last one. Raises LedgerError if the ledger can't be read."""
        found = self._ask("SELECT seq, hash FROM records ORDER BY seq DESC LIMIT 1")
        if not found:
            return self.identity().start
        count, digest = found[0]
        if not isinstance(count, int) or not isinstance(digest, str):
            raise altered(self.folder, LEDGER)
        return LedgerHead(count, digest)

    def hash_at(self, count: int) -> str:
        """Hash of one record by its number; empty if there is none. Raises LedgerError if it can't be read."""
        found = self._ask("SELECT hash FROM records WHERE seq = ?", count)
        return str(found[0][0]) if found else ""

    def entries(self, plan: str | None = None) -> Iterator[AuditRecord]:
        """Records in their order, of one plan (SHA-256) or all; a few are in memory at a time.

        Raises LedgerError if the ledger can't be read.
        """
        where = "seq > ?" if plan is None else f"seq > ? AND {_PLAN} = ?"
        query = f"SELECT {COLUMNS} FROM records WHERE {where} ORDER BY seq LIMIT {_BATCH}"  # noqa: S608
        last = 0
        while rows := self._ask(query, last, *(() if plan is None else (plan,))):
            for row in rows:
                record = record_of(row, self.folder, LEDGER)
                if record.seq <= last:
                    raise altered(self.folder, LEDGER)
                last = record.seq
                yield record

    def charges(self, plan: str, after: int) -> tuple[Claim, ...]:
        """What was charged for a plan (SHA-256) in records after so many.

        Raises LedgerError if the ledger can't be read.
        """
        query = f"SELECT {COLUMNS} FROM records WHERE {_PLAN} = ? AND kind = 'committed' AND seq > ? ORDER BY seq"  # noqa: S608
        records = (record_of(row, self.folder, LEDGER) for row in self._ask(query, plan, after))
        events = (event_of(record.kind, record.body) for record in records)
        return tuple(event for event in events if isinstance(event, Claim))

    def rounds_committed(self, plan: str) -> frozenset[int]:
        """Rounds of training of a plan that were charged, once or more. Raises LedgerError if it can't be read."""
        query = (
            f"SELECT DISTINCT json_extract(body, '$.round') FROM records WHERE {_PLAN} = ? "  # noqa: S608
            "AND kind = 'committed' AND json_extract(body, '$.use') = 'train'"
        )
        found = [row[0] for row in self._ask(query, plan)]
        if not all(isinstance(number, int) for number in found):
            raise altered(self.folder, LEDGER)
        return frozenset(found)

    def plan_mechanisms(self, plan: str, use: str | None = None) -> tuple[Mechanism, ...]:
        """All that was committed for a plan, for one use or all, equal steps added up.

        Raises LedgerError if the ledger can't be read, or was altered.
        """
        return self.mechanisms(plan=plan, use=use)

    def mechanisms(
        self,
        plan: str | None = None,
        dataset: str | None = None,
        purpose: str | None = None,
        use: str | None = None,
        *,
        held: bool = False,
    ) -> tuple[Mechanism, ...]:
        """All that was committed and fits what is given, whoever the patients are; held: and all that is reserved.

        Raises LedgerError if the ledger can't be read, or was altered.
        """
        return merged(self.books().mechanisms(plan, dataset, purpose, use, held=held))

    def histories(self) -> tuple[History, ...]:
        """What was committed for the patients, who are in groups of equal histories; the largest group first.

        Raises LedgerError if the ledger can't be read, or was altered.
        """
        books = self.books()
        groups = books.of_patients(books.places).items()
        found = [History(len(members), books.spent_on(group)) for group, members in groups]
        return tuple(sorted(found, key=lambda one: (-one.patients, sorted(one.spent.items()))))

    def reservations(self) -> tuple[Reservation, ...]:
        """What plans have reserved and not yet committed or released.

        Raises LedgerError if the ledger can't be read, or was altered.
        """
        held = self.books().held
        return tuple(Reservation(held[slot].what, held[slot].mechanism, held[slot].count) for slot in sorted(held))

    def books(self) -> Books:
        """The state after all records. Raises LedgerError if the ledger can't be read, or was altered."""
        with guarded(self.folder, LEDGER), opened(self._files) as base:
            identity = _stated(base, self.folder)
        return read_books(self._files, identity, Books(identity.start))

    def _ask(self, query: str, *values: str | int) -> list[tuple[Any, ...]]:
        with guarded(self.folder, LEDGER), opened(self._files) as base:
            found: list[tuple[Any, ...]] = base.execute(query, values).fetchall()
            return found


def read_books(files: AuditFiles, identity: LogIdentity, books: Books) -> Books:
    """The books with all records that came after them: each must chain, the last one be signed, the head be there.

    Raises LedgerError if the ledger can't be read, or was altered.
    """
    with guarded(files.folder, LEDGER):
        raw = head_bytes(files)  # before the records, which are never behind it
        with opened(files) as base:
            base.execute("BEGIN")  # one state of the database for all that follows
            faults = list(schema_faults(base, LEDGER)[0])
            if faults:
                raise _distrusted(files.folder, faults)
            if base.execute("SELECT schema, site, key FROM about").fetchall() != [
                (LEDGER.schema, identity.site, identity.public)
            ]:
                raise LEDGER.error(
                    "The privacy ledger is that of another site or another key.",
                    fix=LEDGER.foreign,
                    local_detail=str(files.folder),
                )
            kept = None if raw is None else read_head(raw, identity)
            if kept is None:
                faults.append("The ledger's signed head is missing, was altered, or is that of another site or key.")
            if books.head.count:
                known = base.execute("SELECT hash FROM records WHERE seq = ?", (books.head.count,)).fetchone()
                faults += [] if known == (books.head.hash,) else [f"Record {books.head.count} was changed or removed."]
            if faults:
                raise _distrusted(files.folder, faults)
            rows = list(rows_after(base, books.head.count or None))
            witnesses = [Witness(kept, "head")] if kept is not None else []
            check = ChainCheck(identity, witnesses, books.head if books.head.count else None, signatures="last")
            for row in rows:
                check.take(row)
            faults += check.faults()
            if faults:
                raise _distrusted(files.folder, faults)
            for row in rows:
                books = _with(base, books, record_of(row, files.folder, LEDGER), files.folder)
    return books


def _with(base: sqlite3.Connection, books: Books, record: AuditRecord, folder: Path) -> Books:
    event = event_of(record.kind, record.body)
    if event is None:
        raise _distrusted(folder, [f"Record {record.seq} is none of a privacy ledger."])
    if isinstance(event, Claim) and event.patients != EVERYBODY and event.patients not in books.sets:
        found = base.execute("SELECT members FROM sets WHERE digest = ?", (event.patients,)).fetchone()
        patients = members_of(found and found[0], event.patients, event.count)
        if patients is None:
            raise _distrusted(folder, [f"The patients of record {record.seq} were changed or removed."])
        books = books.with_set(event.patients, patients)
    return books.after(LedgerHead(record.seq, record.hash), event, record.time)


def _distrusted(folder: Path, faults: Sequence[str]) -> EucaimError:
    return LEDGER.error(
        "The privacy ledger was altered, so nothing is charged to it.",
        fix=LEDGER.advice,
        local_detail=f"{folder}: {' '.join(faults)}",
    )


def _stated(base: sqlite3.Connection, folder: Path) -> LogIdentity:
    found = base.execute("SELECT schema, site, key FROM about LIMIT 2").fetchall()
    if len(found) != 1 or found[0][0] != LEDGER.schema or not all(isinstance(value, str) for value in found[0]):
        raise LEDGER.error("The privacy ledger is of another version.", local_detail=str(folder))
    return LogIdentity(found[0][1], found[0][2], LEDGER)


def verify_ledger(folder: Path, public: str | None = None, heads: Sequence[LedgerHead] = ()) -> tuple[str, ...]:
    """Everything that is wrong with a ledger, in plain words with the records' numbers; () if it is intact.

    public: its public key, from somewhere else than the ledger; None takes the one that it states, which a ledger that
    was made anew states too. heads: those that the audit log kept. No record is written; a write-ahead log that a
    killed process left is taken into the database.
    Raises LedgerError if the ledger can't be looked at: it is held by another process, or may not be read.
    """
    return chain_faults(AuditFiles(folder, LEDGER), public, heads, more=_event_faults)


def _event_faults(base: sqlite3.Connection) -> list[str]:
    """Records that are none of a ledger, and sets of patients that are not those that the records name."""
    faults: list[str] = []
    sound: dict[str, int | None] = {}
    for row in rows_after(base):
        try:
            record = record_of(row, Path(), LEDGER)
        except LEDGER.error:
            continue  # the chain's own check names it
        event = event_of(record.kind, record.body)
        if event is None:
            faults.append(f"Record {record.seq} is none of a privacy ledger.")
        if event is None or isinstance(event, Release) or event.patients == EVERYBODY:
            continue
        if event.patients not in sound:
            found = base.execute("SELECT members FROM sets WHERE digest = ?", (event.patients,)).fetchone()
            members = members_of(found and found[0], event.patients, event.count)
            sound[event.patients] = None if members is None else event.count
        if sound[event.patients] != event.count:
            faults.append(f"The patients of record {record.seq} were changed or removed.")
    strangers = {digest for (digest,) in base.execute("SELECT digest FROM sets")} - sound.keys()
    return [*faults, *([f"Sets of patients that no record names: {len(strangers)}."] if strangers else [])]

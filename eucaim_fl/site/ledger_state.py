"""What a privacy ledger tells those who look at it, read in one go: charges, reservations, how patients stand."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import NamedTuple

from eucaim_fl.privacy.accounting import Mechanism, merged
from eucaim_fl.site.audit_base import AuditFiles
from eucaim_fl.site.audit_chain import AuditRecord
from eucaim_fl.site.ledger_base import LEDGER, Claim, LedgerHead, Purchase, event_of
from eucaim_fl.site.ledger_books import Books
from eucaim_fl.site.ledger_reader import LedgerReader, has_ledger, read_books

__all__ = ["EMPTY", "Charge", "Group", "Held", "State", "charges_of", "read_state"]


class Charge(NamedTuple):
    """One charge. number, time: of its record; time is UTC, ISO 8601. patients: how many were charged; 0: everybody,
    whether the ledger knows them or not."""

    number: int
    time: str
    what: Purchase
    round: int
    mechanism: Mechanism
    patients: int


class Group(NamedTuple):
    """Patients with equal histories. done: what they were charged for. counted: with what is reserved for them."""

    patients: int
    done: tuple[Mechanism, ...]
    counted: tuple[Mechanism, ...]


class Held(NamedTuple):
    """What a plan has reserved and was not charged for yet.

    last: when the plan last reserved, or was charged for anything; UTC, ISO 8601.
    """

    what: Purchase
    mechanism: Mechanism
    patients: int
    last: str


@dataclass(frozen=True)
class State:
    """A ledger at one moment. charges: in their order. groups: all patients that it knows. key: its public key."""

    head: LedgerHead
    site: str = ""
    key: str = ""
    charges: tuple[Charge, ...] = ()
    held: tuple[Held, ...] = ()
    groups: tuple[Group, ...] = ()

    @property
    def entries(self) -> tuple[Charge | Held, ...]:
        """Charges, then reservations."""
        return (*self.charges, *self.held)

    @property
    def everybody(self) -> tuple[Mechanism, ...]:
        """What was charged to everybody, for a ledger that was lost."""
        return merged(charge.mechanism for charge in self.charges if not charge.patients)

    @property
    def patients(self) -> int:
        """Patients who were ever charged, or are reserved for."""
        return sum(group.patients for group in self.groups)


EMPTY = State(LedgerHead(0, ""))
"""Of a site that was never charged."""


def charges_of(records: Iterable[AuditRecord]) -> tuple[Charge, ...]:
    """The charges among a ledger's records, in their order; other records are passed over."""
    found = []
    for record in records:
        event = event_of(record.kind, record.body)
        if isinstance(event, Claim) and event.round is not None:
            found.append(Charge(record.seq, record.time, event.what, event.round, event.mechanism, event.count))
    return tuple(found)


def read_state(folder: Path, *, apart: str | None = None, idle_since: datetime | None = None) -> State:
    """What the ledger in a folder says; `EMPTY` if none was begun.

    apart: what this plan (SHA-256) has reserved is left out. idle_since: and what plans have reserved that were not
    heard of after this moment, with a time zone; so a plan meets the ledger when it reserves.
    Raises LedgerError if it can't be read, was altered, or a part of it is missing.
    """
    if not has_ledger(folder):
        return EMPTY
    reader = LedgerReader(folder)
    identity = reader.identity()
    books = read_books(AuditFiles(folder, LEDGER), identity, Books(identity.start))
    if apart is not None:
        books = books.apart({apart})
    if idle_since is not None:
        books = books.apart(books.idle(idle_since))
    count = books.head.count
    return State(
        head=books.head,
        site=identity.site,
        key=identity.public,
        charges=charges_of(record for record in reader.entries() if record.seq <= count),
        held=tuple(
            Held(claim.what, claim.mechanism, claim.count, books.touched[claim.what.plan])
            for _, claim in sorted(books.held.items())
        ),
        groups=_groups(books),
    )


def _groups(books: Books) -> tuple[Group, ...]:
    """The largest first."""
    by_place = books.groups(books.places)
    sizes = Counter(by_place[place] for place in books.places.values())
    found = [
        Group(size, merged(m for several in books.spent_on(group).values() for m in several), books.history(group))
        for group, size in sizes.items()
    ]
    return tuple(sorted(found, key=lambda group: (-group.patients, group.done, group.counted)))

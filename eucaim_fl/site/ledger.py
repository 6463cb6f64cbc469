"""The site's privacy ledger: who can pay for a plan, and that it was paid before any noise is drawn.

Two phases: `reserve` for a whole plan before its first step, `commit` for each round before its noise is drawn. A
commit that returned is on the disk; one that was cut short may be charged for nothing, and is never free. A round that
is done again is charged again. Nothing is held while costs are computed: what was decided on one state of the ledger is
written only if the ledger still is in that state, otherwise it is decided anew, so that no two plans spend the same.

The ledger signs with a key of its own, `ledger.key`, from which the keyed hashes of patients follow too. The file gets
that name last, when database and head are on the disk: from then on neither may be missing.
"""

from __future__ import annotations

import contextlib
import datetime
import hashlib
import time
from collections.abc import Callable, Collection
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from pathlib import Path

from eucaim_fl.durable import flush_folder
from eucaim_fl.errors import EucaimError, KeyFileError, PrivacyBudgetError
from eucaim_fl.privacy.accounting import Mechanism, merged
from eucaim_fl.signing import PrivateKey
from eucaim_fl.site.audit_base import PATIENCE_S, AuditFiles, guarded, locked, opened
from eucaim_fl.site.audit_chain import LogIdentity
from eucaim_fl.site.chain_writer import ChainWriter
from eucaim_fl.site.ledger_base import (
    EVERYBODY,
    LEDGER,
    Claim,
    LedgerHead,
    Limits,
    Purchase,
    Release,
    body_of,
    check_mechanism,
    event_of,
    hidden_patients,
    members_of,
    packed,
    set_digest,
)
from eucaim_fl.site.ledger_books import Books, affordable
from eucaim_fl.site.ledger_reader import History, LedgerReader, Reservation, has_ledger, read_books, verify_ledger

__all__ = [
    "History",
    "Ledger",
    "LedgerHead",
    "LedgerReader",
    "Limits",
    "Purchase",
    "Reservation",
    "has_ledger",
    "verify_ledger",
]

_ATTEMPTS = 200
"""How often a decision is made anew because other processes wrote meanwhile."""
_SETS_KEPT = 4


def _now() -> datetime.datetime:
    return datetime.datetime.now(datetime.UTC)


@dataclass(frozen=True)
class _Patients:
    """Patients by name, their names by keyed hash, the hashes, and these packed."""

    everybody: frozenset[str]
    names: dict[bytes, str]
    hidden: frozenset[bytes]
    members: bytes
    digest: str

    def named(self, kept: frozenset[bytes]) -> frozenset[str]:
        return self.everybody if kept is self.hidden else frozenset(self.names[patient] for patient in kept)


@dataclass(frozen=True)
class _Ask:
    """What is asked. round: None to reserve."""

    what: Purchase
    mechanism: Mechanism
    patients: _Patients
    limits: Limits
    at_least: int
    round: int | None = None

    def judged(self, books: Books) -> frozenset[bytes]:
        """The patients who can pay. Raises PrivacyBudgetError as `affordable`."""
        before = books.without(self.what) if self.round is None else books.taking(self.what, self.mechanism)
        return affordable(before, self.what, self.mechanism, self.patients.hidden, self.limits, self.at_least)

    def claim(self, kept: frozenset[bytes]) -> tuple[Claim, bytes]:
        """What to write down if these patients pay, and their set. Raises ValueError if no record can say it."""
        everybody = kept is self.patients.hidden
        members = self.patients.members if everybody else packed(kept)
        digest = self.patients.digest if everybody else set_digest(members)
        claim = Claim(self.what, self.mechanism, digest, len(kept), self.round)
        if event_of("reserved" if self.round is None else "committed", body_of(claim)) != claim:
            raise ValueError("a purchase is told by texts, and rounds are numbered from 0")
        return claim, members


class Ledger(LedgerReader):
    """The ledger with the key that writes it. Several processes and threads may have one of the same ledger.

    clock: says the time of a record, aware.
    """

    def __init__(self, folder: Path, site: str, *, clock: Callable[[], datetime.datetime] = _now) -> None:
        """Open a site's ledger, or begin it; all records are checked along their chain.

        Raises LedgerError if it can't be written, is held by another process for more than 10 s, was altered, is
        another site's, or a part of it is missing.
        """
        files = AuditFiles(folder, LEDGER)
        key_file, new_key = folder / "ledger.key", folder / "ledger.key.new"
        with guarded(folder, LEDGER):
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        with locked(files, time.monotonic() + PATIENCE_S), guarded(folder, LEDGER):
            begun = key_file.exists()
            if begun and not (files.base.is_file() and files.head.is_file()):
                raise _incomplete(folder)
            key = _load(key_file) if begun else _create(files, new_key)
            identity = LogIdentity(site, key.public, LEDGER)
            self._writer = ChainWriter(files, key, identity, clock)
            if not begun:
                with self._writer.transaction() as base:
                    self._writer.begin(base, 1)
                new_key.replace(key_file)
                flush_folder(folder)
        super().__init__(folder)
        self._identity = identity
        # Ed25519 signatures are always the same (RFC 8032). A key in a file of its own could be lost alone, and all
        # patients would begin anew.
        self._clock = clock
        self._hash_key = hashlib.sha256(key.sign("ledger patients", site).encode()).digest()
        self._asked: dict[frozenset[str], _Patients] = {}
        self._known = read_books(files, identity, Books(identity.start))

    def reserve(
        self, what: Purchase, mechanism: Mechanism, patients: Collection[str], limits: Limits, at_least: int
    ) -> frozenset[str]:
        """Hold what all of a plan that is still to come will cost; replaces what it holds for this use and part.

        mechanism: of all steps together. Returns the patients whose budgets hold it; the others must not be used.
        Raises PrivacyBudgetError if these are fewer than `at_least`, or a budget of dataset, purpose or plan does not
        hold it (nothing changes then); LedgerError if it can't be written; ValueError if what is asked makes no sense.
        """
        return self._enter(_Ask(what, mechanism, self._patients(patients), limits, at_least))

    def commit(
        self,
        what: Purchase,
        round_number: int,
        mechanism: Mechanism,
        patients: Collection[str],
        limits: Limits,
        at_least: int,
    ) -> frozenset[str]:
        """Charge for steps, from what is reserved for them as far as it goes; on the disk when this returns.

        Returns the patients who were charged: nobody else may be used. A round that is done again is charged again.
        Raises PrivacyBudgetError as `reserve` does; LedgerError if it can't be written: then no noise may be drawn;
        ValueError if what is asked makes no sense.
        """
        return self._enter(_Ask(what, mechanism, self._patients(patients), limits, at_least, round_number))

    def among_reserved(self, what: Purchase, patients: Collection[str]) -> frozenset[str]:
        """Those of the patients for whom this was reserved last, also if all of it is used; all if it never was.

        Raises LedgerError if the ledger can't be read.
        """
        books, asked = self.books(), self._patients(patients)
        claim = books.held.get((what.plan, what.use, what.part))
        digest = self._reserved_last(what) if claim is None else claim.patients
        if digest is None:
            return frozenset(patients)
        bit = 1 << books.sets[digest]
        return asked.named(frozenset(one for one in asked.hidden if books.places.get(one, 0) & bit))

    def _reserved_last(self, what: Purchase) -> str | None:
        """Digest of the patients of the last reservation of this plan, use and part."""
        bodies = (record.body for record in self.entries(what.plan) if record.kind == "reserved")
        found = [str(body["patients"]) for body in bodies if (body["use"], body["part"]) == (what.use, what.part)]
        return found[-1] if found else None

    def preview(
        self, what: Purchase, mechanism: Mechanism, patients: Collection[str], limits: Limits, at_least: int
    ) -> frozenset[str]:
        """What `reserve` would answer now; nothing is written.

        Raises PrivacyBudgetError and ValueError as it does; LedgerError if the ledger can't be read.
        """
        check_mechanism(mechanism)
        ask = _Ask(what, mechanism, self._patients(patients), limits, at_least)
        return ask.patients.named(ask.judged(self.books()))

    def release(self, plan: str) -> None:
        """Free what a plan (SHA-256) holds and has not committed: it ended, or was given up.

        Raises LedgerError if it can't be written.
        """
        self._release(lambda books: {slot[0] for slot in books.held} & {plan})

    def release_idle(self, days: int, keep: str) -> None:
        """Free what plans other than `keep` hold and have neither reserved nor been charged for in so many days.

        Whoever goes on with such a plan later can still pay, as far as the budgets then hold it.
        Raises LedgerError if it can't be written.
        """
        since = self._clock() - datetime.timedelta(days=days)
        self._release(lambda books: books.idle(since) - {keep})

    def _release(self, due: Callable[[Books], AbstractSet[str]]) -> None:
        """Release the plans that are due, one record each, decided on what is on the disk each time."""
        missed = 0
        while missed < _ATTEMPTS:
            books = self.books()
            plans = sorted(due(books))
            if not plans:
                return
            missed += not self._write(books, Release(plans[0]), None)
        raise _crowded(self.folder)

    def trained(self, patients: Collection[str]) -> frozenset[str]:
        """Those of the patients who were ever charged for training, under any plan.

        Raises LedgerError if the ledger can't be read, or was altered.
        """
        asked = self._patients(patients)
        return asked.named(self.books().charged("train", asked.hidden))

    def patient_mechanisms(self, patient: str) -> tuple[Mechanism, ...]:
        """All that was committed for one patient, by name, over all plans and uses.

        Raises LedgerError if the ledger can't be read, or was altered.
        """
        books = self.books()
        hidden = self._patients([patient]).hidden
        found = (one for group in books.groups(hidden).values() for one in books.spent_on(group).values())
        return merged(mechanism for several in found for mechanism in several)

    def identity(self) -> LogIdentity:
        """Whose ledger it is."""
        return self._identity

    def _patients(self, patients: Collection[str]) -> _Patients:
        """With their keyed hashes; the same sets are asked for round after round, so that the last few are kept."""
        everybody = frozenset(patients)
        known = self._asked.get(everybody)
        if known is None:
            names = {hidden: name for name, hidden in hidden_patients(self._hash_key, everybody).items()}
            members = packed(names)
            known = _Patients(everybody, names, frozenset(names), members, set_digest(members))
            self._asked = {**dict(list(self._asked.items())[-_SETS_KEPT:]), everybody: known}
        return known

    def books(self) -> Books:
        """The state after all records; only new ones are read.

        Raises LedgerError if the ledger can't be read, or was altered.
        """
        self._known = books = read_books(self._files, self._identity, self._known)
        return books

    def _enter(self, ask: _Ask) -> frozenset[str]:
        """Decide, and write if the ledger has not changed since; a refusal and an answer without a record only count
        if they were decided on what is on the disk.
        """
        check_mechanism(ask.mechanism)
        books, fresh = self._known, False
        for _ in range(_ATTEMPTS):
            try:
                kept = ask.judged(books)
            except PrivacyBudgetError:
                if fresh:
                    raise
            else:
                names = ask.patients.named(kept)
                claim, members = ask.claim(kept)
                if claim in books.held.values():
                    if fresh:
                        return names
                elif self._write(books, claim, members):
                    return names
            books, fresh = self.books(), True
        raise _crowded(self.folder)

    def charge_everybody(self, what: Purchase, round_number: int, mechanism: Mechanism) -> None:
        """Charge every patient, known here or not, for what a lost ledger was charged with; no budget is asked.

        Raises LedgerError if it can't be written; ValueError if what is charged makes no sense.
        """
        check_mechanism(mechanism)
        claim = Claim(what, mechanism, EVERYBODY, 0, round_number)
        for _ in range(_ATTEMPTS):
            if self._write(self.books(), claim, None):
                return
        raise _crowded(self.folder)

    def _write(self, books: Books, event: Claim | Release, members: bytes | None) -> bool:
        """Add a record if the ledger ends where the books do; whether it did. members: None of EVERYBODY."""
        with self._writer.writing(PATIENCE_S) as base:
            end = self._writer.checked_end(base, 1)
            if end != books.head:
                return False
            if isinstance(event, Release):
                record = self._writer.add(base, end, "released", {"plan": event.plan})
            else:
                known = base.execute("SELECT 1 FROM sets WHERE digest = ?", (event.patients,)).fetchone()
                if members is not None and known is None:
                    base.execute("INSERT INTO sets VALUES (?, ?)", (event.patients, members))
                word = "reserved" if event.round is None else "committed"
                record = self._writer.add(base, end, word, body_of(event))
        if isinstance(event, Claim) and members is not None:
            books = books.with_set(event.patients, members_of(members, event.patients, event.count) or ())
        self._known = books.after(LedgerHead(record.seq, record.hash), event, record.time)
        return True


def _load(path: Path) -> PrivateKey:
    try:
        return PrivateKey.load(path)
    except KeyFileError as problem:
        raise LEDGER.error(
            "The key of the privacy ledger can't be used.",
            fix=problem.fix or LEDGER.advice,
            local_detail=f"{problem.message} {problem.local_detail}",
        ) from None


def _create(files: AuditFiles, path: Path) -> PrivateKey:
    """A key for a ledger that is to begin; what a beginning that was cut short left is removed.

    Records, or a head that names some, are no such remains.
    """
    with contextlib.ExitStack() as stack:
        if files.base.is_file() and files.base.stat().st_size:
            base = stack.enter_context(opened(files))
            made = base.execute("SELECT count(*) FROM sqlite_master WHERE name = 'records'").fetchone()[0]
            if made and base.execute("SELECT count(*) FROM records").fetchone()[0]:
                raise _incomplete(files.folder)
    if has_ledger(files.folder):
        raise _incomplete(files.folder)
    name = files.base.name
    for left in (path, files.head, *(files.base.with_name(name + end) for end in ("-shm", "-wal", ""))):
        left.unlink(missing_ok=True)
    key = PrivateKey.create()
    try:
        key.save(path)
    except KeyFileError as problem:
        raise LEDGER.error(
            "The key of the privacy ledger can't be made.", fix=problem.fix, local_detail=problem.local_detail
        ) from None
    return key


def _incomplete(folder: Path) -> EucaimError:
    return LEDGER.error(
        "A part of the privacy ledger is missing, so nothing is charged to it.",
        fix=LEDGER.advice,
        local_detail=str(folder),
    )


def _crowded(folder: Path) -> EucaimError:
    return LEDGER.error(
        "Other processes write into the privacy ledger all the time.",
        fix="Let some of them end, then start again.",
        local_detail=str(folder),
    )

"""The ledger's arithmetic, pure: what was spent and is held by whom, and who can still pay for what is asked.

The cost of a patient is that of all events, of any plan and use, whose set holds the patient, and of all that is
reserved for such sets. Patients with equal histories are judged once. A patient leaves by the own history alone, as the
privacy filter demands (see `privacy.budget`).
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import Literal, NamedTuple

from eucaim_fl.errors import PrivacyBudgetError
from eucaim_fl.privacy.accounting import Mechanism, epsilon, merged
from eucaim_fl.privacy.budget import Budget
from eucaim_fl.site.audit_reader import utc_text
from eucaim_fl.site.ledger_base import EVERYBODY, Claim, LedgerHead, Limits, Purchase, Release

__all__ = ["Account", "Books", "affordable"]


class Account(NamedTuple):
    """What is added up separately."""

    plan: str
    purpose: str
    dataset: str
    use: str
    patients: str


_Slot = tuple[str, str, str]
"""What has one reservation at a time: plan, use and part."""


def _slot(what: Purchase) -> _Slot:
    return what.plan, what.use, what.part


@dataclass(frozen=True)
class Books:
    """The state after some records. spent: committed, by sets of patients or for EVERYBODY.

    held: reserved and not yet committed, with the steps left.
    sets: digest → its place. places: patient → the sets that hold the patient, as bits by their places.
    touched: plan → time of the last record in which it reserved or was charged, as records state it.
    """

    head: LedgerHead
    spent: Mapping[Account, tuple[Mechanism, ...]] = field(default_factory=dict)
    held: Mapping[_Slot, Claim] = field(default_factory=dict)
    sets: Mapping[str, int] = field(default_factory=dict)
    places: Mapping[bytes, int] = field(default_factory=dict)
    touched: Mapping[str, str] = field(default_factory=dict)

    def with_set(self, digest: str, patients: Iterable[bytes]) -> Books:
        """The same, knowing one more set of patients."""
        if digest in self.sets:
            return self
        bit, places = 1 << len(self.sets), dict(self.places)
        for patient in patients:
            places[patient] = places.get(patient, 0) | bit
        return replace(self, sets={**self.sets, digest: len(self.sets)}, places=places)

    def after(self, head: LedgerHead, event: Claim | Release, time: str) -> Books:
        """The state after one more record, which `head` names; its set of patients must be known.

        time: of the record, as `audit_reader.utc_text` writes it.
        """
        if isinstance(event, Release):
            return replace(self.apart({event.plan}), head=head)
        what, touched = event.what, {**self.touched, event.what.plan: time}
        if event.round is None:
            return replace(self, head=head, held={**self.held, _slot(what): event}, touched=touched)
        account = Account(what.plan, what.purpose, what.dataset, what.use, event.patients)
        spent = {**self.spent, account: merged((*self.spent.get(account, ()), event.mechanism))}
        return replace(self.taking(what, event.mechanism), head=head, spent=spent, touched=touched)

    def apart(self, plans: Collection[str]) -> Books:
        """The same without what these plans have reserved."""
        return replace(self, held={slot: claim for slot, claim in self.held.items() if slot[0] not in plans})

    def idle(self, since: datetime) -> frozenset[str]:
        """Plans that hold something and have neither reserved nor been charged after a moment (with a time zone)."""
        last = utc_text(since)
        return frozenset(slot[0] for slot in self.held if self.touched[slot[0]] <= last)

    def charged(self, use: Literal["train", "figures"], patients: Iterable[bytes]) -> frozenset[bytes]:
        """Those of the patients of whom something was ever spent for a use, under any plan."""
        counted = {account.patients for account in self.spent if account.use == use}
        if EVERYBODY in counted:
            return frozenset(patients)
        bits = sum(1 << self.sets[digest] for digest in counted)
        return frozenset(patient for patient in patients if self.places.get(patient, 0) & bits)

    def without(self, what: Purchase) -> Books:
        """The same without what is reserved for this plan's use, to reserve anew."""
        return replace(self, held={slot: claim for slot, claim in self.held.items() if slot != _slot(what)})

    def taking(self, what: Purchase, mechanism: Mechanism) -> Books:
        """The same after the steps were taken from what is reserved for them: never more than there are.

        What was reserved with other noise, or for other data, stays: it is no payment for these steps.
        """
        claim = self.held.get(_slot(what))
        if claim is None or (claim.mechanism.noise, claim.mechanism.rate) != (mechanism.noise, mechanism.rate):
            return self
        if (claim.what.purpose, claim.what.dataset) != (what.purpose, what.dataset):
            return self
        left = claim.mechanism.steps - mechanism.steps
        if left <= 0:
            return self.without(what)
        rest = replace(claim, mechanism=replace(claim.mechanism, steps=left))
        return replace(self, held={**self.held, _slot(what): rest})

    def mechanisms(
        self,
        plan: str | None = None,
        dataset: str | None = None,
        purpose: str | None = None,
        use: str | None = None,
        *,
        held: bool = True,
    ) -> tuple[Mechanism, ...]:
        """All that fits what is given, whoever the patients are; held: with what is reserved. Not merged."""

        def fits(*found: str) -> bool:
            return all(a in (None, b) for a, b in zip((plan, dataset, purpose, use), found, strict=True))

        chosen = [
            one
            for account, several in self.spent.items()
            if fits(account.plan, account.dataset, account.purpose, account.use)
            for one in several
        ]
        if held:
            chosen += [
                claim.mechanism
                for claim in self.held.values()
                if fits(claim.what.plan, claim.what.dataset, claim.what.purpose, claim.what.use)
            ]
        return tuple(chosen)

    def groups(self, patients: Iterable[bytes]) -> dict[int | None, int]:
        """What the patients have in `places` (None: not there) → those of its sets that count: who has the same there
        has an equal history.
        """
        counted = {account.patients for account in self.spent} | {claim.patients for claim in self.held.values()}
        relevant = sum(1 << self.sets[digest] for digest in counted - {EVERYBODY})
        return {place: (place or 0) & relevant for place in set(map(self.places.get, patients))}

    def of_patients(self, patients: Iterable[bytes]) -> dict[int, list[bytes]]:
        """The patients in groups of equal history; the key is for `history` and `spent_on`."""
        every = tuple(patients)
        groups, found = self.groups(every), defaultdict[int, list[bytes]](list)
        for patient in every:
            found[groups[self.places.get(patient)]].append(patient)
        return dict(found)

    def history(self, group: int) -> tuple[Mechanism, ...]:
        """All that was spent on, and is held for, the patients of a group."""
        spent = [one for account, several in self.spent.items() if self._in(group, account.patients) for one in several]
        held = [claim.mechanism for claim in self.held.values() if self._in(group, claim.patients)]
        return merged((*spent, *held))

    def of_plan(self, plan: str, group: int) -> tuple[Mechanism, ...]:
        """What one plan spent on, and holds for, the patients of a group: those who train pay for no figures."""
        spent = [
            one
            for account, several in self.spent.items()
            if account.plan == plan and self._in(group, account.patients)
            for one in several
        ]
        held = [
            claim.mechanism
            for claim in self.held.values()
            if claim.what.plan == plan and self._in(group, claim.patients)
        ]
        return merged((*spent, *held))

    def spent_on(self, group: int) -> dict[tuple[str, str], tuple[Mechanism, ...]]:
        """What was committed for the patients of a group, by purpose and plan."""
        found: dict[tuple[str, str], tuple[Mechanism, ...]] = {}
        for account, several in self.spent.items():
            if self._in(group, account.patients):
                key = (account.purpose, account.plan)
                found[key] = merged((*found.get(key, ()), *several))
        return found

    def _in(self, group: int, digest: str) -> bool:
        return digest == EVERYBODY or bool(group >> self.sets[digest] & 1)


def affordable(
    books: Books, what: Purchase, mechanism: Mechanism, patients: frozenset[bytes], limits: Limits, at_least: int
) -> frozenset[bytes]:
    """The patients whose budgets hold what is asked on top of the books (in which it does not stand yet).

    Raises PrivacyBudgetError if they are fewer than `at_least`, or the budget of the dataset, the purpose or the plan
    does not hold it.
    """
    kept = patients
    if limits.patient is not None:
        groups = books.groups(patients)
        full = {one for one in set(groups.values()) if not limits.patient.holds((*books.history(one), mechanism))}
        if full:
            kept = frozenset(one for one in patients if groups[books.places.get(one)] not in full)
    if len(kept) < at_least:
        raise _refused(
            "Too few patients of this site have privacy budget left for what is asked.",
            f"{len(kept)} of {len(patients)} patients have; {at_least} are needed",
        )
    for budget, asked, name in (
        (limits.dataset, books.mechanisms(dataset=what.dataset), "data"),
        (limits.purpose, books.mechanisms(purpose=what.purpose), "purpose"),
    ):
        if budget is not None and not budget.holds((*asked, mechanism)):
            raise _refused(
                f"This site's privacy budget for the {name} does not hold what is asked.",
                _figures(budget, budget.used(asked), budget.used((*asked, mechanism))),
            )
    if limits.plan is not None:
        delta = limits.plan.delta
        for before in {books.of_plan(what.plan, one) for one in set(books.groups(kept).values())}:
            total = epsilon((*before, mechanism), delta)
            if not total <= limits.plan.epsilon:
                raise _refused(
                    "This site's privacy budget for one plan does not hold what is asked.",
                    _figures(limits.plan, epsilon(before, delta), total),
                )
    return kept


def _figures(budget: Budget, before: float, total: float) -> str:
    return (
        f"spent and reserved: epsilon {before:.4g}; with what is asked: {total:.4g}; "
        f"budget: {budget.epsilon:g} at delta {budget.delta:g}"
    )


def _refused(message: str, detail: str) -> PrivacyBudgetError:
    return PrivacyBudgetError(
        message, fix="Ask for more noise, fewer rounds or a smaller sampling rate.", local_detail=detail
    )

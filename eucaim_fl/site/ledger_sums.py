"""What a privacy ledger comes to, pure: spent and left by cohort, purpose, patient and run, and what a plan would cost.

Two figures stand side by side and differ. What was *done* is the epsilon of all charges by the tight accountant. What
*counts* against a budget is by the privacy filter (`privacy.budget`) and with what is reserved: it holds also if people
choose a plan by what earlier ones showed, and so is larger.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from eucaim_fl.config import Purpose
from eucaim_fl.privacy.accounting import Mechanism, epsilon, merged
from eucaim_fl.privacy.budget import Budget
from eucaim_fl.site.ledger_base import Purchase
from eucaim_fl.site.ledger_state import Group, State
from eucaim_fl.site.policy import PrivacyPolicy
from eucaim_fl.site.policy_privacy import limits_of

__all__ = [
    "Ceilings",
    "Patients",
    "RunSum",
    "Spending",
    "ceilings_of",
    "cohort_spending",
    "mechanisms_of",
    "patients_at_limit",
    "patients_of",
    "purpose_spending",
    "run_sums",
    "share_of",
]

_QUARTERS = 4
_RULER_EPSILON = 8.0
"""Without a budget patients are put in order by the divergence at the order that such a budget has."""


@dataclass(frozen=True)
class Ceilings:
    """The budgets of a site, as its policy has them; None, or no entry: no limit.

    plan: of one plan. patient, dataset: over all plans. purposes: over all plans for one purpose.
    """

    plan: Budget | None = None
    patient: Budget | None = None
    dataset: Budget | None = None
    purposes: Mapping[str, Budget] = field(default_factory=dict)


@dataclass(frozen=True)
class Spending:
    """What was done, and what counts against a budget.

    done: tight epsilon of what was committed. counts: what counts against the budget, with what is reserved; share: of
    the budget, in the divergence that it limits, so that shares add up. None without a budget.
    """

    done: float
    budget: Budget | None
    counts: float | None
    share: float | None


@dataclass(frozen=True)
class Patients:
    """How much patients have spent; never who.

    known: patients who were ever charged, or are reserved for. done: tight epsilon of the one who has spent least, of
    the quartiles, of the one who has spent most. Only with a budget: quarters: how many have used up to ¼, ½, ¾, all of
    it, with what is reserved; worst: of the one of whom most counts; at_limit: how many have spent so much that it does
    not hold another round like the last.
    """

    known: int
    done: tuple[float, ...] = ()
    quarters: tuple[int, ...] = ()
    worst: Spending | None = None
    at_limit: int | None = None


@dataclass(frozen=True)
class RunSum:
    """What one plan was charged for. rounds: of training, each once; charges: with those that were done again.

    patients: of the last charge. training, figures: tight epsilon of a patient who was charged every time. reserved:
    steps that are reserved and not charged. share: of the cohort's budget, by what was charged. first, last: times of
    charges. touched: when the plan last reserved or was charged, if it has something reserved; else empty.
    """

    plan: str
    name: str
    purpose: str
    dataset: str
    secure: bool
    rounds: int
    charges: int
    patients: int
    training: float
    figures: float
    reserved: int
    share: float | None
    first: str
    last: str
    touched: str


def ceilings_of(policy: PrivacyPolicy | None) -> Ceilings:
    """The budgets that a policy sets; none without one."""
    if policy is None:
        return Ceilings()
    purposes: tuple[Purpose, ...] = tuple(sorted(policy.purpose_epsilon))
    by_purpose = {purpose: limits_of(policy, purpose).purpose for purpose in purposes}
    any_purpose: Purpose = "scientific_research"
    limits = limits_of(policy, any_purpose)
    return Ceilings(limits.plan, limits.patient, limits.dataset, {p: b for p, b in by_purpose.items() if b is not None})


def share_of(budget: Budget, mechanisms: Iterable[Mechanism]) -> float:
    """What part of a budget mechanisms fill: their Rényi divergence over the one that it holds. Shares add up.

    A budget's epsilon is that divergence plus a constant, which is found by doing all twice.
    """
    once = merged(mechanisms)
    if not once:
        return 0.0
    used, twice = budget.used(once), budget.used(one.times(2) for one in once)
    constant = 2 * used - twice
    if not math.isfinite(constant) or constant >= budget.epsilon:
        return math.inf
    return (used - constant) / (budget.epsilon - constant)


def _spending(done: Sequence[Mechanism], counted: Sequence[Mechanism], budget: Budget | None, delta: float) -> Spending:
    if budget is None:
        return Spending(epsilon(done, delta), None, None, None)
    return Spending(epsilon(done, delta), budget, budget.used(counted), share_of(budget, counted))


def mechanisms_of(
    state: State,
    *,
    plan: str | None = None,
    dataset: str | None = None,
    purpose: str | None = None,
    use: str | None = None,
    held: bool = False,
) -> tuple[Mechanism, ...]:
    """All charges that fit what is given, whoever the patients are, equal steps added up; held: and reservations."""
    asked = (plan, dataset, purpose, use)

    def fits(what: Purchase) -> bool:
        found = (what.plan, what.dataset, what.purpose, what.use)
        return all(a in (None, b) for a, b in zip(asked, found, strict=True))

    entries = state.entries if held else state.charges
    return merged(entry.mechanism for entry in entries if fits(entry.what))


def cohort_spending(state: State, budget: Budget | None, delta: float) -> dict[str, Spending]:
    """By dataset: of all that was done with any of its patients, as if one patient had been in all."""
    return {
        name: _spending(
            mechanisms_of(state, dataset=name), mechanisms_of(state, dataset=name, held=True), budget, delta
        )
        for name in sorted({entry.what.dataset for entry in state.entries})
    }


def purpose_spending(state: State, budgets: Mapping[str, Budget], delta: float) -> dict[str, Spending]:
    """By purpose: of all that was done for it; purposes that have a budget are there also if nothing was asked yet."""
    names = {entry.what.purpose for entry in state.entries}
    return {
        name: _spending(
            mechanisms_of(state, purpose=name),
            mechanisms_of(state, purpose=name, held=True),
            budgets.get(name),
            delta,
        )
        for name in sorted(names | budgets.keys())
    }


def patients_of(state: State, budget: Budget | None, delta: float) -> Patients:
    """How much the patients of a ledger have spent; without a budget of patients, by what was done alone."""
    if not state.groups:
        return Patients(0, at_limit=None if budget is None else 0)
    ruler = budget or Budget(_RULER_EPSILON, delta)
    ordered = sorted(state.groups, key=lambda group: ruler.used(group.done))
    marks = [_at(ordered, (state.patients - 1) * quarter // _QUARTERS) for quarter in range(_QUARTERS + 1)]
    spent = tuple(epsilon(group.done, delta) for group in marks)
    if budget is None:
        return Patients(state.patients, spent)
    quarters = [0] * _QUARTERS
    for group in state.groups:
        part = share_of(budget, group.counted) * _QUARTERS
        quarters[min(max(math.ceil(part) - 1, 0), _QUARTERS - 1) if math.isfinite(part) else -1] += group.patients
    top = max(state.groups, key=lambda group: budget.used(group.counted))
    return Patients(
        state.patients,
        spent,
        tuple(quarters),
        _spending(top.done, top.counted, budget, delta),
        patients_at_limit(state, budget),
    )


def patients_at_limit(state: State, budget: Budget) -> int:
    """How many patients have spent so much that their budget does not hold another round like the last."""
    last = next((charge.mechanism for charge in reversed(state.charges) if charge.what.use == "train"), None)
    if last is None:
        return 0
    return sum(group.patients for group in state.groups if not budget.holds((*group.done, last)))


def _at(groups: Sequence[Group], rank: int) -> Group:
    """The group of the patient of that rank, counted from 0."""
    for group in groups:
        rank -= group.patients
        if rank < 0:
            return group
    return groups[-1]


def run_sums(state: State, budget: Budget | None, delta: float, plan: str | None = None) -> tuple[RunSum, ...]:
    """What every plan (or one) was charged for, in the order of first charges; plans that have only reserved come last.

    budget: the cohort's.
    """
    plans = dict.fromkeys(entry.what.plan for entry in state.entries)
    return tuple(_run(_of_plan(state, one), budget, delta) for one in plans if plan in (None, one))


def _of_plan(state: State, plan: str) -> State:
    """What one plan was charged for and holds, looked out once for all of its sums."""
    charges = tuple(charge for charge in state.charges if charge.what.plan == plan)
    return replace(state, charges=charges, held=tuple(one for one in state.held if one.what.plan == plan))


def _run(state: State, budget: Budget | None, delta: float) -> RunSum:
    charges, held = state.charges, state.held
    trained = [charge for charge in charges if charge.what.use == "train"]
    what = state.entries[0].what
    return RunSum(
        plan=what.plan,
        name=what.name,
        purpose=what.purpose,
        dataset=what.dataset,
        secure=all(entry.what.secure for entry in state.entries),
        rounds=len({charge.round for charge in trained}),
        charges=len(trained),
        patients=(trained or charges or held)[-1].patients,
        training=epsilon(mechanisms_of(state, use="train"), delta),
        figures=epsilon(mechanisms_of(state, use="figures"), delta),
        reserved=sum(one.mechanism.steps for one in held),
        share=None if budget is None else share_of(budget, mechanisms_of(state)),
        first=charges[0].time if charges else "",
        last=charges[-1].time if charges else "",
        touched=held[0].last if held else "",
    )

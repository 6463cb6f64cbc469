"""What a plan would cost at a site, and whether the budgets hold it. Pure; nothing is reserved."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

from eucaim_fl.plan import FederationPlan
from eucaim_fl.privacy.accounting import Mechanism, epsilon
from eucaim_fl.privacy.budget import Budget
from eucaim_fl.privacy.promise import figures_mechanism, round_mechanism, site_is_charged
from eucaim_fl.site.ledger_state import State
from eucaim_fl.site.ledger_sums import Ceilings, mechanisms_of, share_of

__all__ = ["Check", "Cost", "Projection", "costs_of", "project"]

_SPLITS = ("validation", "test")


@dataclass(frozen=True)
class Cost:
    """What a plan charges each patient of one part of the cohort. of: training, validation or test.

    each: of one round, or one release of figures. times: how often. epsilon: of all together, at the plan's delta.
    """

    of: str
    each: Mechanism
    times: int
    epsilon: float


@dataclass(frozen=True)
class Check:
    """Whether one budget holds what the plan still asks. before, after: what counts against it; epsilon at its delta.

    plans: how many such plans, whole, it would hold from now on.
    """

    whose: str
    budget: Budget
    before: float
    after: float
    holds: bool
    plans: int


@dataclass(frozen=True)
class Projection:
    """What a plan would cost here, and what it meets.

    charged: rounds of training that were charged already. known: patients whom the ledger knows; leaving: how many of
    them could not pay for the training that is still to come; plans: of how many such plans enough of them could pay
    for the training. None without a budget of patients. to_pay: whether anything of it is not yet charged; a plan that
    costs nothing has nothing to pay either.
    """

    costs: tuple[Cost, ...]
    delta: float
    charged: int
    checks: tuple[Check, ...]
    known: int
    leaving: int | None
    plans: int | None
    to_pay: bool = True

    def fits(self, at_least: int, *, all_must_pay: bool) -> bool:
        """Whether the budgets hold what is still to come, by what is known here.

        at_least: patients that the site needs; where the ledger knows no more, others are taken to have spent nothing.
        all_must_pay: an update tells of all patients, so none may be unable to pay. What was paid for fits.
        """
        if not self.to_pay:
            return True
        leaving = self.leaving or 0
        enough = not leaving if all_must_pay else self.known - leaving >= min(at_least, self.known)
        return enough and all(check.holds for check in self.checks)


def costs_of(plan: FederationPlan, declared: Collection[str]) -> tuple[Cost, ...]:
    """What a plan charges patients of a site over all its rounds; () if the site adds no noise.

    declared: splits that the policy declares as test data: their figures cost nothing.
    """
    delta, once = plan.privacy.delta, round_mechanism(plan.privacy, plan.training)
    if delta is None:
        return ()
    found = []
    if once is not None and site_is_charged(plan.privacy):
        found.append(Cost("training", once, plan.rounds, epsilon([once.times(plan.rounds)], delta)))
    figures = figures_mechanism(plan.privacy)
    for split, times in zip(_SPLITS, (len(plan.measured_rounds()), 1), strict=True):
        if figures is not None and split not in declared:
            found.append(Cost(split, figures, times, epsilon([figures.times(times)], delta)))
    return tuple(found)


def project(
    state: State, plan: FederationPlan, ceilings: Ceilings, declared: Collection[str], dataset: str, at_least: int
) -> Projection:
    """What a plan would cost and meet now.

    state: without what this plan has reserved itself, which it would reserve anew. dataset: the cohort's name in the
    ledger. at_least: patients without whom the site does not train.
    """
    costs, identity = costs_of(plan, declared), plan.sha256()
    whole = tuple(cost.each.times(cost.times) for cost in costs)
    rest = tuple(cost.each.times(max(cost.times - len(_paid(state, identity, cost.of)), 0)) for cost in costs)
    training = tuple(one for cost, one in zip(costs, whole, strict=True) if cost.of == "training")
    to_come = tuple(one for cost, one in zip(costs, rest, strict=True) if cost.of == "training")
    rounds = sum(1 for number in range(1, plan.rounds + 1) if number in _paid(state, identity, "training"))
    checks = []
    if ceilings.plan is not None:
        checks.append(_of_plan(ceilings.plan, mechanisms_of(state, plan=identity, held=True), rest))
    purpose = f"the purpose {plan.purpose.replace('_', ' ')}"
    for whose, budget, before in (
        ("the cohort", ceilings.dataset, mechanisms_of(state, dataset=dataset, held=True)),
        (purpose, ceilings.purposes.get(plan.purpose), mechanisms_of(state, purpose=plan.purpose, held=True)),
    ):
        if budget is not None:
            checks.append(_check(whose, budget, before, rest, whole))
    if ceilings.patient is not None:
        checks.append(
            _check("a patient whom the ledger does not know", ceilings.patient, state.everybody, to_come, training)
        )
    leaving, plans = _of_patients(state, ceilings.patient, to_come, training, at_least)
    to_pay = any(one.steps for one in rest)
    return Projection(costs, plan.privacy.delta or 0.0, rounds, tuple(checks), state.patients, leaving, plans, to_pay)


def _paid(state: State, plan: str, of: str) -> frozenset[int]:
    """Rounds of which training, or figures of a split, were charged: they are reserved no more. of: as in `Cost`."""
    slot = ("train", "") if of == "training" else ("figures", of)
    return frozenset(c.round for c in state.charges if (c.what.plan, c.what.use, c.what.part) == (plan, *slot))


def _of_plan(budget: Budget, before: Sequence[Mechanism], rest: Sequence[Mechanism]) -> Check:
    """A plan's own budget is kept by the tight accountant: its noise, rate and steps are fixed beforehand."""
    after = epsilon((*before, *rest), budget.delta)
    holds = after <= budget.epsilon
    return Check("this plan", budget, epsilon(before, budget.delta), after, holds, 1 if holds else 0)


def _check(
    whose: str, budget: Budget, before: Sequence[Mechanism], rest: Sequence[Mechanism], whole: Sequence[Mechanism]
) -> Check:
    after = (*before, *rest)
    times = _times(budget, before, whole)
    return Check(whose, budget, budget.used(before), budget.used(after), budget.holds(after), times)


def _times(budget: Budget, before: Sequence[Mechanism], whole: Sequence[Mechanism]) -> int:
    """How often a budget holds a plan on top of what was before; 0 of a plan that costs nothing."""
    cost = share_of(budget, whole)
    if not cost > 0:
        return 0
    count = max(int((1 - share_of(budget, before)) / cost), 0)
    while count and not budget.holds((*before, *(one.times(count) for one in whole))):
        count -= 1  # the share is rounded, what holds is not
    return count


def _of_patients(
    state: State, budget: Budget | None, to_come: Sequence[Mechanism], training: Sequence[Mechanism], at_least: int
) -> tuple[int | None, int | None]:
    """How many known patients can't pay for what is still to come; for how many whole plans enough of them can."""
    if budget is None or not state.groups:
        return None, None
    leaving, able = 0, []
    for group in state.groups:
        if not budget.holds((*group.counted, *to_come)):
            leaving += group.patients
        able += [_times(budget, group.counted, training)] * group.patients
    able.sort(reverse=True)
    return leaving, able[at_least - 1] if len(able) >= at_least else None

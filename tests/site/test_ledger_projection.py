"""What a plan would cost a site, and which budgets hold it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest

from eucaim_fl.config import StoppingConfig
from eucaim_fl.plan import FederationPlan
from eucaim_fl.privacy.accounting import Mechanism, epsilon
from eucaim_fl.privacy.budget import Budget
from eucaim_fl.site.ledger_base import LedgerHead
from eucaim_fl.site.ledger_projection import Projection, costs_of, project
from eucaim_fl.site.ledger_state import EMPTY, Charge, Group, State
from eucaim_fl.site.ledger_sums import Ceilings
from tests.site.ledgers import BUDGET, DELTA, once, purchase

pytestmark = pytest.mark.integration

OPEN = Ceilings()


@pytest.fixture
def noised(plan_for: Callable[..., FederationPlan]) -> Callable[..., FederationPlan]:
    """A plan whose round costs `once`: an update with twice the noise, since a patient moves it by two norms."""

    def make(rounds: int = 3, **privacy: object) -> FederationPlan:
        values = {"mechanism": "update_dp", "noise_multiplier": 8.0, "delta": DELTA, "clipping_norm": 1.0, **privacy}
        return plan_for(rounds=rounds, purpose="education", privacy=values)

    return make


def spent(*groups: tuple[int, int]) -> State:
    """Patients in groups: how many, and how many steps each was charged."""
    found = tuple(Group(number, (once(steps),), (once(steps),)) for number, steps in groups)
    return State(LedgerHead(1, ""), groups=found)


class TestCosts:
    def test_every_round_costs_a_training_patient_one_step(self, noised: Callable[..., FederationPlan]) -> None:
        (cost,) = costs_of(noised(3), ())
        assert (cost.of, cost.each, cost.times) == ("training", once(), 3)
        assert cost.epsilon == epsilon([once(3)], DELTA)

    def test_figures_cost_those_who_are_no_test_data(self, noised: Callable[..., FederationPlan]) -> None:
        plan = noised(3, metrics_noise=5.0)
        found = {cost.of: (cost.each, cost.times) for cost in costs_of(plan, ("test",))}
        assert found["validation"] == (Mechanism(5.0, 1.0, 1), 4), "after every round, and at the end"
        assert "test" not in found
        assert {cost.of for cost in costs_of(plan, ())} == {"training", "validation", "test"}
        seldom = plan.model_copy(update={"stopping": StoppingConfig(validate_every=2)})
        assert {cost.of: cost.times for cost in costs_of(seldom, ())} == {"training": 3, "validation": 3, "test": 1}

    def test_without_noise_of_the_site_nothing_is_charged(self, plan_for: Callable[..., FederationPlan]) -> None:
        assert costs_of(plan_for(), ()) == ()
        privacy = {"mechanism": "central_dp", "noise_multiplier": 1.0, "delta": DELTA, "clipping_norm": 1.0}
        assert costs_of(plan_for(privacy=privacy), ()) == ()


class TestProject:
    def test_without_budgets_all_of_it_fits(self, noised: Callable[..., FederationPlan]) -> None:
        found = project(EMPTY, noised(), OPEN, (), "a", 1)
        assert (found.checks, found.leaving, found.charged) == ((), None, 0)
        assert found.fits(1, all_must_pay=True)

    def test_a_budget_says_before_after_and_how_many_such_plans(self, noised: Callable[..., FederationPlan]) -> None:
        found = project(EMPTY, noised(3), Ceilings(dataset=BUDGET), (), "a", 1)
        (check,) = found.checks
        assert (check.whose, check.before, check.after) == ("the cohort", 0.0, BUDGET.used([once(3)]))
        assert (check.holds, check.plans) == (True, 2), "it holds seven steps"

    def test_the_plan_s_own_budget_is_kept_by_the_tight_accountant(self, noised: Callable[..., FederationPlan]) -> None:
        for limit, holds in ((2.0, True), (1.0, False)):
            found = project(EMPTY, noised(3), Ceilings(plan=Budget(limit, DELTA)), (), "a", 1)
            assert [(c.whose, c.holds, c.after) for c in found.checks] == [
                ("this plan", holds, epsilon([once(3)], DELTA))
            ]
            assert found.fits(1, all_must_pay=False) is holds

    def test_rounds_that_were_charged_are_not_asked_again(self, noised: Callable[..., FederationPlan]) -> None:
        plan = noised(3)
        charges = tuple(Charge(n, "", purchase(plan.sha256()), n, once(), 4) for n in (1, 2))
        state = State(LedgerHead(2, ""), charges=charges, groups=(Group(4, (once(2),), (once(2),)),))
        found = project(state, plan, Ceilings(dataset=BUDGET, patient=BUDGET), (), "a", 1)
        assert found.charged == 2
        assert found.checks[0].after == BUDGET.used([once(3)])
        assert (found.leaving, found.plans) == (0, 1), "five of seven steps are free: one more whole plan"

    def test_a_plan_that_was_paid_for_fits_whatever_the_budgets_hold(
        self, noised: Callable[..., FederationPlan]
    ) -> None:
        plan = noised(3)
        charges = tuple(Charge(n, "", purchase(plan.sha256()), n, once(), 4) for n in (1, 2, 3))
        state = State(LedgerHead(3, ""), charges=charges, groups=(Group(4, (once(3),), (once(9),)),))
        found = project(state, plan, Ceilings(dataset=Budget(0.1, DELTA), patient=BUDGET), (), "a", 4)
        assert (found.charged, found.leaving, found.to_pay) == (3, 4, False)
        assert found.fits(4, all_must_pay=True)
        left = project(replace(state, charges=charges[:2]), plan, Ceilings(patient=BUDGET), (), "a", 4)
        assert (left.to_pay, left.fits(4, all_must_pay=True)) == (True, False)

    def test_what_was_charged_to_everybody_is_not_asked_again_of_who_is_new(
        self, noised: Callable[..., FederationPlan]
    ) -> None:
        """After a lost ledger was replaced: five of seven steps are spent, and the last round of six still fits."""
        plan = noised(6)
        charges = tuple(Charge(n, "", purchase(plan.sha256()), n, once(), 0) for n in range(1, 6))
        found = project(State(LedgerHead(5, ""), charges=charges), plan, Ceilings(patient=BUDGET), (), "a", 1)
        (check,) = found.checks
        assert (check.whose, check.holds) == ("a patient whom the ledger does not know", True)
        assert (check.before, check.after) == (BUDGET.used([once(5)]), BUDGET.used([once(6)]))
        assert check.plans == 0, "but no whole plan"

    def test_nor_are_figures_that_were_charged(self, noised: Callable[..., FederationPlan]) -> None:
        plan = noised(2, metrics_noise=4.0)
        charges = tuple(
            Charge(n, "", replace(purchase(plan.sha256(), use="figures"), part="validation"), n, once(), 4)
            for n in (1, 2)
        )
        found = project(State(LedgerHead(2, ""), charges=charges), plan, Ceilings(dataset=BUDGET), (), "a", 1)
        assert found.checks[0].after == BUDGET.used([once(2 + 2 + 1 + 1)]), (
            "one of validation, and that of test, remain"
        )

    def test_patients_who_have_spent_theirs_are_counted(self, noised: Callable[..., FederationPlan]) -> None:
        state = spent((5, 1), (3, 6))
        found = project(state, noised(3), Ceilings(patient=BUDGET), (), "a", 4)
        assert (found.known, found.leaving, found.plans) == (8, 3, 2)
        assert found.fits(4, all_must_pay=False)
        assert not found.fits(6, all_must_pay=False), "five are left"
        assert not found.fits(4, all_must_pay=True)
        assert project(state, noised(3), Ceilings(patient=BUDGET), (), "a", 9).plans is None, "it knows only eight"

    def test_the_purpose_s_budget_is_that_of_the_plan_s_purpose(self, noised: Callable[..., FederationPlan]) -> None:
        ceilings = Ceilings(purposes={"education": BUDGET, "statistics": BUDGET})
        found: Projection = project(EMPTY, noised(9), ceilings, (), "a", 1)
        (check,) = found.checks
        assert (check.whose, check.holds, check.plans) == ("the purpose education", False, 0)

"""What was done and what counts, added up from a ledger's charges."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from eucaim_fl.privacy.accounting import Mechanism, epsilon
from eucaim_fl.privacy.budget import Budget
from eucaim_fl.site.ledger_base import LedgerHead
from eucaim_fl.site.ledger_state import EMPTY, Group, State
from eucaim_fl.site.ledger_sums import (
    Ceilings,
    ceilings_of,
    cohort_spending,
    mechanisms_of,
    patients_at_limit,
    patients_of,
    purpose_spending,
    run_sums,
    share_of,
)
from eucaim_fl.site.policy import PrivacyPolicy
from tests.site.ledgers import BUDGET, DELTA, A, B, charge, once, two_runs


class TestShareOf:
    @given(st.integers(1, 40), st.integers(1, 40))
    def test_shares_of_parts_add_up(self, some: int, others: int) -> None:
        together = share_of(BUDGET, [once(some), once(others)])
        assert together == pytest.approx(share_of(BUDGET, [once(some)]) + share_of(BUDGET, [once(others)]), rel=1e-9)

    @given(st.integers(1, 30))
    def test_a_budget_holds_what_is_at_most_all_of_it(self, steps: int) -> None:
        assert BUDGET.holds([once(steps)]) == (share_of(BUDGET, [once(steps)]) <= 1)

    def test_nothing_is_no_part_and_no_noise_is_more_than_all(self) -> None:
        assert share_of(BUDGET, []) == 0.0
        assert share_of(BUDGET, [Mechanism(0.0, 1.0, 1)]) == math.inf
        assert share_of(Budget(0.001, 1e-5), [once()]) == math.inf, "no Rényi order gives such an epsilon"


class TestCeilings:
    def test_they_are_what_the_policy_says(self) -> None:
        policy = PrivacyPolicy(
            mechanism="dp", epsilon=3, delta=DELTA, patient_epsilon=6, purpose_epsilon={"education": 2}
        )
        found = ceilings_of(policy)
        assert (found.plan, found.patient, found.dataset) == (Budget(3, DELTA), Budget(6, DELTA), None)
        assert found.purposes == {"education": Budget(2, DELTA)}

    def test_without_a_policy_or_a_delta_there_are_none(self) -> None:
        assert ceilings_of(None) == ceilings_of(PrivacyPolicy(mechanism="none")) == Ceilings()


class TestSpending:
    def test_what_is_reserved_counts_but_is_not_done(self) -> None:
        (spent,) = cohort_spending(two_runs(), BUDGET, DELTA).values()
        assert spent.done == epsilon([once(4)], DELTA)
        assert spent.counts == BUDGET.used([once(6)])
        assert spent.share == share_of(BUDGET, [once(6)])

    def test_without_a_budget_nothing_counts(self) -> None:
        (spent,) = cohort_spending(two_runs(), None, DELTA).values()
        assert (spent.budget, spent.counts, spent.share) == (None, None, None)

    def test_a_purpose_with_a_budget_is_there_before_it_was_asked_for(self) -> None:
        found = purpose_spending(two_runs(), {"statistics": BUDGET}, DELTA)
        assert list(found) == ["education", "statistics"]
        assert (found["statistics"].done, found["statistics"].counts) == (0.0, 0.0)

    def test_charges_are_chosen_by_plan_and_use(self) -> None:
        assert mechanisms_of(two_runs(), plan=A) == (once(3),)
        assert mechanisms_of(two_runs(), plan=B, held=True) == (once(3),)
        assert mechanisms_of(two_runs(), use="figures") == ()


class TestPatients:
    def test_they_are_counted_by_what_they_have_spent(self) -> None:
        found = patients_of(two_runs(), BUDGET, DELTA)
        low, high = epsilon([once(3)], DELTA), epsilon([once(4)], DELTA)
        assert (found.known, found.done) == (10, (low, low, low, high, high))
        assert found.quarters == (0, 6, 0, 4), "three of seven steps are under a half, six are over three quarters"
        assert found.worst is not None
        assert found.worst.counts == BUDGET.used([once(6)])

    def test_who_could_not_pay_another_round_has_reached_the_limit(self) -> None:
        state = State(LedgerHead(1, ""), charges=(charge(1, 1),), groups=(Group(3, (once(7),), (once(7),)),))
        assert patients_at_limit(state, BUDGET) == 3
        assert patients_at_limit(two_runs(), BUDGET) == 0
        assert patients_at_limit(State(LedgerHead(1, "")), BUDGET) == 0, "nobody was charged"

    def test_without_a_budget_only_what_was_done_is_told(self) -> None:
        found = patients_of(two_runs(), None, DELTA)
        assert (len(found.done), found.quarters, found.worst, found.at_limit) == (5, (), None, None)
        assert patients_of(EMPTY, None, DELTA).known == 0


class TestRuns:
    def test_a_round_that_was_done_again_is_charged_and_counted_twice(self) -> None:
        first, second = run_sums(two_runs(), BUDGET, DELTA)
        assert (first.plan, first.rounds, first.charges, first.patients, first.reserved) == (A, 2, 3, 10, 0)
        assert first.training == epsilon([once(3)], DELTA)
        assert first.share == share_of(BUDGET, [once(3)])
        assert (second.plan, second.rounds, second.patients, second.reserved) == (B, 1, 4, 2)
        assert (first.touched, second.touched) == ("", "2026-03-01T12:04:00.000000+00:00")

    def test_one_plan_can_be_asked_for(self) -> None:
        (found,) = run_sums(two_runs(), None, DELTA, B)
        assert (found.name, found.share) == ("plan-b", None)

    def test_figures_are_no_training(self) -> None:
        state = State(LedgerHead(1, ""), charges=(charge(1, 1, use="figures"),))
        (found,) = run_sums(state, None, DELTA)
        assert (found.rounds, found.training, found.figures) == (0, 0.0, epsilon([once()], DELTA))

"""A budget is a privacy filter: one Rényi order, fixed beforehand, and what would go beyond it is refused."""

from __future__ import annotations

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from eucaim_fl.privacy.accounting import Mechanism, epsilon, renyi_epsilon
from eucaim_fl.privacy.budget import Budget

EVERYBODY = st.builds(Mechanism, st.floats(0.5, 50), st.just(1.0), st.integers(1, 50))
SAMPLED = st.builds(Mechanism, st.floats(0.7, 10), st.floats(0.01, 0.9), st.integers(1, 50))


class TestTheOrder:
    @pytest.mark.parametrize(
        ("budget", "order"),
        [(Budget(8.0, 1e-5), 4), (Budget(1.0, 1e-3), 10), (Budget(0.1, 1e-6), 166), (Budget(50.0, 1e-5), 2)],
    )
    def test_it_follows_from_epsilon_and_delta_alone(self, budget: Budget, order: int) -> None:
        before = budget.order
        budget.used([Mechanism(1.0, 0.1, 10)])
        assert before == budget.order == Budget(budget.epsilon, budget.delta).order == order

    @pytest.mark.parametrize("budget", [Budget(3.0, 1e-5), Budget(0.5, 1e-3)], ids=str)
    def test_no_other_order_holds_more_steps_with_much_noise(self, budget: Budget) -> None:
        # one step of noise 1 has divergence order/2; what its epsilon is above that comes from converting, once
        rooms = {}
        for order in range(2, 100):
            conversion = renyi_epsilon([Mechanism(1.0, 1.0, 1)], budget.delta, order) - order / 2
            rooms[order] = (budget.epsilon - conversion) / order
        assert max(rooms, key=lambda order: rooms[order]) == budget.order


class TestUsed:
    def test_nothing_done_uses_nothing(self) -> None:
        assert Budget(1.0, 1e-5).used([]) == 0.0
        assert Budget(1.0, 1e-5).used([Mechanism(1.0, 1.0, 0)]) == 0.0

    def test_it_is_the_sum_of_divergences_converted_once(self) -> None:
        # order 4: 4/(2·2²) + 4/(2·4²)·3 = 0.5 + 0.375
        conversion = math.log(3 / 4) - (math.log(1e-5) + math.log(4)) / 3
        used = Budget(8.0, 1e-5).used([Mechanism(2.0, 1.0, 1), Mechanism(4.0, 1.0, 3)])
        assert used == pytest.approx(0.875 + conversion)

    def test_without_noise_it_is_infinite(self) -> None:
        assert Budget(1e9, 1e-5).used([Mechanism(0.0, 1.0, 1)]) == math.inf

    @given(st.lists(EVERYBODY, min_size=1, max_size=4), st.sampled_from([0.5, 3.0, 8.0, 40.0]))
    def test_it_is_never_below_what_was_truly_spent(self, done: list[Mechanism], limit: float) -> None:
        assert Budget(limit, 1e-5).used(done) >= epsilon(done, 1e-5) - 1e-9

    @settings(max_examples=4)
    @given(st.lists(SAMPLED, min_size=1, max_size=2), st.sampled_from([1.0, 8.0]))
    def test_nor_with_sampling(self, done: list[Mechanism], limit: float) -> None:
        assert Budget(limit, 1e-5).used(done) >= epsilon(done, 1e-5) - 1e-9

    @settings(max_examples=30)
    @given(st.lists(EVERYBODY | SAMPLED, min_size=1, max_size=4), EVERYBODY | SAMPLED)
    def test_order_and_grouping_do_not_matter_and_more_uses_more(self, done: list[Mechanism], more: Mechanism) -> None:
        budget = Budget(8.0, 1e-5)
        split = [Mechanism(one.noise, one.rate, 1) for one in done for _ in range(one.steps)]
        assert budget.used(done) == budget.used(done[::-1]) == budget.used(split)
        assert budget.used([*done, more]) > budget.used(done)


class TestHolds:
    def test_up_to_the_last_step_that_fits(self) -> None:
        budget, steps = Budget(3.0, 1e-5), 0
        while budget.holds([Mechanism(5.0, 1.0, steps + 1)]):
            steps += 1
        assert steps > 0
        assert budget.used([Mechanism(5.0, 1.0, steps)]) <= 3.0 < budget.used([Mechanism(5.0, 1.0, steps + 1)])
        assert epsilon([Mechanism(5.0, 1.0, steps)], 1e-5) < 3.0

    @given(st.lists(EVERYBODY, max_size=30))
    def test_what_it_lets_through_one_by_one_stays_within_it(self, asked: list[Mechanism]) -> None:
        budget, done = Budget(5.0, 1e-6), list[Mechanism]()
        for one in asked:  # whoever asks may choose each by what came of those before
            if budget.holds([*done, one]):
                done.append(one)
        assert epsilon(done, 1e-6) <= 5.0

    def test_what_is_too_large_at_once_is_refused_and_less_still_fits(self) -> None:
        budget, done = Budget(5.0, 1e-5), [Mechanism(4.0, 1.0, 3)]
        assert not budget.holds([*done, Mechanism(0.5, 1.0, 1)])
        assert budget.holds([*done, Mechanism(20.0, 1.0, 1)])

    def test_so_small_a_budget_that_nothing_fits_holds_nothing_done(self) -> None:
        assert Budget(1e-6, 1e-5).holds([])
        assert not Budget(1e-6, 1e-5).holds([Mechanism(1e3, 1.0, 1)])

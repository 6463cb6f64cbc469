"""What noise costs: published values, composition, and the least noise for a target."""

from __future__ import annotations

import math

import dp_accounting
import pytest
from dp_accounting.pld import PLDAccountant
from dp_accounting.rdp import RdpAccountant
from hypothesis import given, settings
from hypothesis import strategies as st

from eucaim_fl.errors import PrivacyError
from eucaim_fl.privacy import accounting
from eucaim_fl.privacy.accounting import Mechanism, epsilon, merged, noise_for, renyi_epsilon
from eucaim_fl.privacy.budget import Budget

# Sources of published values
TF_PLD = "tensorflow/privacy, compute_dp_sgd_privacy_test.py, accountant PLD"
TF_RDP = "tensorflow/privacy, compute_dp_sgd_privacy_test.py, accountant RDP"
MSR = "microsoft/prv_accountant (Gopi et al. 2021), as in opacus/tests/prv_accountant.py, delta 1e-6"
OPACUS = "opacus/tests/accountants_test.py"
GOOGLE = "google/differential-privacy, dp_accounting/pld/accountant_test.py"

TIGHT = [
    (Mechanism(0.7, 0.01, 120), 1e-5, 2.4612381, 0.0, TF_PLD),
    (Mechanism(1.0, 0.0064, 782), 1e-6, 1.199, 0.0, TF_PLD),
    (Mechanism(0.7, 1.0, 2), 1e-5, 10.1224946, 0.0, TF_PLD),
    (Mechanism(1.0, 1.0, 5), 1e-6, 12.595, 0.0, TF_PLD),
    (Mechanism(1 / 3, 1.0, 1), 0.78760074, 1.0, 0.0, f"{GOOGLE} (formula of Balle and Wang 2018)"),
    (Mechanism(0.67379294682, 0.01, 1), 1e-5, 1.0, 0.0, GOOGLE),
    (Mechanism(1.5, 0.05, 100), 1e-6, 1.95385313568, 0.01, MSR),
    (Mechanism(0.8, 0.2, 100), 1e-6, 24.3336641779, 0.01, MSR),
    (Mechanism(2.0, 0.05, 1000), 1e-6, 4.17279986667, 0.01, MSR),
    (Mechanism(3.0, 0.05, 50000), 1e-6, 24.9420056431, 0.01, MSR),
    (Mechanism(1.5, 0.04, 2249), 1e-5, 6.777395712150674, 0.01, OPACUS),
]
"""Mechanism, delta, epsilon as published, the error that the published one allows itself upwards, source."""
RENYI = [
    (Mechanism(1.3, 150 / 60_000, 6_000), 1e-5, 19, 0.7242234026109595, TF_RDP),
    (Mechanism(1.0, 0.001, 30_000), 1e-7, 13, 1.4154988495444842, TF_RDP),
    (Mechanism(1.5, 0.04, 2250), 1e-5, 4, 7.32911117143, f"{OPACUS} (fractional orders)"),
]
OLDER_BOUNDS = [
    (Mechanism(4.0, 0.01, 10_000), 1e-5, 1.26, "Abadi et al. 2016, section 3.2: moments accountant"),
    (Mechanism(0.7, 256 / 60_000, 16_406), 1e-5, 8.68, "Bu et al. 2020, figure 4: moments accountant"),
    (Mechanism(0.6, 256 / 60_000, 7_032), 1e-5, 9.74, "tensorflow/privacy, tutorials/README.md"),
]


class TestPublishedValues:
    @pytest.mark.parametrize(("mechanism", "delta", "published", "allowance", "source"), TIGHT, ids=str)
    def test_epsilon_has_their_first_three_digits(
        self, mechanism: Mechanism, delta: float, published: float, allowance: float, source: str
    ) -> None:
        assert epsilon([mechanism], delta) == pytest.approx(published - allowance, rel=5e-4), source

    @pytest.mark.parametrize(("mechanism", "delta", "order", "published", "source"), RENYI, ids=str)
    def test_the_renyi_bound_too_and_epsilon_lies_below_it(
        self, mechanism: Mechanism, delta: float, order: int, published: float, source: str
    ) -> None:
        assert renyi_epsilon([mechanism], delta, order) == pytest.approx(published, rel=5e-4), source
        assert epsilon([mechanism], delta) < published

    @pytest.mark.parametrize(("mechanism", "delta", "published", "source"), OLDER_BOUNDS, ids=str)
    def test_older_and_looser_bounds_lie_above(
        self, mechanism: Mechanism, delta: float, published: float, source: str
    ) -> None:
        assert 0.5 * published < epsilon([mechanism], delta) < published, source


class TestEpsilon:
    def test_nothing_done_costs_nothing_and_no_noise_costs_everything(self) -> None:
        assert epsilon([], 1e-5) == 0.0
        assert epsilon([Mechanism(1.0, 0.1, 0)], 1e-5) == 0.0
        assert epsilon([Mechanism(0.0, 0.1, 1), Mechanism(1.0, 0.1, 1)], 1e-5) == math.inf

    def test_rounds_runs_and_a_restart_cost_what_one_run_of_all_steps_costs(self) -> None:
        mechanism = Mechanism(0.8, 0.1, 60)
        half = Mechanism(mechanism.noise, mechanism.rate, mechanism.steps // 2)
        rounds = [Mechanism(mechanism.noise, mechanism.rate, mechanism.steps // 20)] * 20
        whole = epsilon([mechanism], 1e-5)
        assert (
            epsilon(rounds, 1e-5) == epsilon([half, half], 1e-5) == epsilon([*rounds[:7], *rounds[7:]], 1e-5) == whole
        )
        one_by_one = PLDAccountant(value_discretization_interval=1e-3)
        event = dp_accounting.PoissonSampledDpEvent(mechanism.rate, dp_accounting.GaussianDpEvent(mechanism.noise))
        for _ in range(4):
            one_by_one.compose(event, mechanism.steps // 4)
        assert whole == pytest.approx(one_by_one.get_epsilon(1e-5), rel=1e-3)

    def test_unlike_mechanisms_add_up_in_any_order(self) -> None:
        train, figures = Mechanism(1.0, 0.1, 50), Mechanism(8.0, 1.0, 11)
        both = epsilon([train, figures], 1e-5)
        assert both == epsilon([figures, train], 1e-5)
        assert max(epsilon([train], 1e-5), epsilon([figures], 1e-5)) < both
        assert both < epsilon([train], 0.5e-5) + epsilon([figures], 0.5e-5)  # basic composition

    def test_sums_over_everybody_are_exact(self) -> None:
        # n sums with noise σ are one with noise σ/√n, and unlike ones add their 1/σ²: here 4/2² + 1/0.5² = 5
        together = [Mechanism(2.0, 1.0, 4), Mechanism(0.5, 1.0, 1)]
        assert epsilon(together, 1e-5) == pytest.approx(epsilon([Mechanism(5**-0.5, 1.0, 1)], 1e-5), rel=1e-9)

    @given(st.floats(0.05, 1e6), st.floats(1e-15, 0.5), st.integers(1, 10_000))
    def test_for_sums_over_everybody_delta_is_that_of_the_formula(self, noise: float, delta: float, steps: int) -> None:
        def phi(x: float) -> float:
            return 0.5 * math.erfc(-x / math.sqrt(2))

        found = epsilon([Mechanism(noise, 1.0, steps)], delta)
        mu = math.sqrt(steps) / noise
        if 1e-2 < mu < 10 and found > 0:
            reached = phi(mu / 2 - found / mu) - math.exp(found) * phi(-mu / 2 - found / mu)
            assert reached == pytest.approx(delta, rel=1e-6, abs=1e-13)
        assert 0 <= found <= renyi_epsilon([Mechanism(noise, 1.0, steps)], delta, 8)

    def test_its_own_grid_costs_less_than_a_thousandth(self) -> None:
        fine = PLDAccountant(value_discretization_interval=5e-5)
        fine.compose(dp_accounting.PoissonSampledDpEvent(0.02, dp_accounting.GaussianDpEvent(1.5)), 500)
        truth = fine.get_epsilon(1e-5)
        assert truth <= epsilon([Mechanism(1.5, 0.02, 500)], 1e-5) <= 1.0001 * truth

    @pytest.mark.parametrize(
        ("mechanism", "delta"),
        [
            (Mechanism(0.2, 0.5, 100), 1e-5),
            (Mechanism(20.0, 0.01, 150_000), 1e-5),
            (Mechanism(2.0, 0.01, 100), 1e-12),
        ],
        ids=["beyond all promise", "many steps", "tiny delta"],
    )
    def test_where_the_tight_computation_is_not_sure_the_renyi_bound_is_told(
        self, mechanism: Mechanism, delta: float
    ) -> None:
        best = min(renyi_epsilon([mechanism], delta, order) for order in (*range(2, 65), 128, 256, 512))
        assert epsilon([mechanism], delta) == best

    @settings(max_examples=3)
    @given(st.floats(0.8, 5), st.floats(0.05, 0.5), st.integers(2, 100), st.sampled_from([1e-6, 1e-5, 1e-3]))
    def test_it_falls_with_noise_and_delta_and_grows_with_steps_and_rate(
        self, noise: float, rate: float, steps: int, delta: float
    ) -> None:
        cost = epsilon([Mechanism(noise, rate, steps)], delta)
        assert epsilon([Mechanism(1.1 * noise, rate, steps)], delta) <= cost
        assert epsilon([Mechanism(noise, 0.9 * rate, steps)], delta) <= cost
        assert epsilon([Mechanism(noise, rate, steps - 1)], delta) <= cost
        assert epsilon([Mechanism(noise, rate, steps)], 2 * delta) <= cost
        assert cost <= epsilon([Mechanism(noise, 1.0, steps)], delta)  # sampling only helps


class TestExtremeNumbers:
    """A ledger takes any finite noise; what can't be computed must count as spent, never as free."""

    @pytest.mark.parametrize("rate", [0.5, 1.0])
    @pytest.mark.parametrize("noise", [1e-99, 1e-155, 1e-162, 1e-200, 5e-324])
    def test_next_to_no_noise_costs_everything(self, noise: float, rate: float) -> None:
        mechanisms, budget = [Mechanism(noise, rate, 1), Mechanism(2.0, 1.0, 1)], Budget(3.0, 1e-5)
        assert epsilon(mechanisms, 1e-5) > 1e90
        assert renyi_epsilon(mechanisms, 1e-5, 4) > 1e90
        assert not budget.holds(mechanisms)

    def test_a_divergence_that_is_no_number_is_infinite(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(accounting, "_sampled_divergence", lambda *_: math.nan)
        assert renyi_epsilon([Mechanism(3.0, 0.123, 1)], 1e-5, 4) == math.inf
        monkeypatch.setattr(accounting, "_sampled_divergence", lambda _, __, order: math.nan if order < 9 else 5.0)
        monkeypatch.setattr(accounting, "_tight", lambda *_: math.inf)
        assert 5 < epsilon([Mechanism(3.0, 0.124, 1)], 1e-5) < 10, "other orders still tell it"

    @pytest.mark.parametrize("order", [2, 3, 4, 5, 8])
    def test_a_divergence_that_rounding_brings_below_0_takes_nothing_off_the_others(self, order: int) -> None:
        alone, many = Mechanism(2.0, 1.0, 1), Mechanism(1e6, 1e-4, 10**12)
        assert renyi_epsilon([alone, many], 1e-5, order) >= renyi_epsilon([alone], 1e-5, order)

    @pytest.mark.parametrize("mechanism", [Mechanism(1e300, 0.5, 10**9), Mechanism(1e6, 1e-300, 1)], ids=str)
    def test_much_noise_and_small_rates_cost_next_to_nothing(self, mechanism: Mechanism) -> None:
        assert 0 <= epsilon([mechanism], 1e-5) <= Budget(3.0, 1e-5).used([mechanism]) < 1e-3


class TestRenyiEpsilon:
    def test_it_is_the_formula_for_sums_over_everybody(self) -> None:
        # divergence 4 · 3/(2 · 2²) = 1.5 at order 4 for 3 steps of noise 2; Canonne et al. 2020, proposition 12
        expected = 1.5 + math.log(3 / 4) - (math.log(1e-5) + math.log(4)) / 3
        assert renyi_epsilon([Mechanism(2.0, 1.0, 3)], 1e-5, 4) == pytest.approx(expected)

    @settings(max_examples=40)
    @given(
        st.floats(0.1, 100.0), st.sampled_from([1e-4, 0.01, 0.3, 0.99, 1.0]), st.integers(1, 1000), st.integers(2, 256)
    )
    def test_it_is_what_the_library_says_at_the_same_order(
        self, noise: float, rate: float, steps: int, order: int
    ) -> None:
        accountant = RdpAccountant([order], dp_accounting.NeighboringRelation.ADD_OR_REMOVE_ONE)
        sampled = dp_accounting.PoissonSampledDpEvent(rate, dp_accounting.GaussianDpEvent(noise))
        accountant.compose(sampled, steps).compose(dp_accounting.GaussianDpEvent(2.0), 3)
        found = renyi_epsilon([Mechanism(noise, rate, steps), Mechanism(2.0, 1.0, 3)], 1e-5, order)
        assert found == pytest.approx(accountant.get_epsilon(1e-5), rel=1e-9)

    def test_what_was_summed_before_is_not_worked_out_again(self, monkeypatch: pytest.MonkeyPatch) -> None:
        mechanisms = [Mechanism(noise / 7, 0.013, 3) for noise in range(20, 25)]
        renyi_epsilon(mechanisms, 1e-5, 9)
        monkeypatch.setattr(accounting, "_sampled_divergence", None)
        assert renyi_epsilon([one.times(2) for one in mechanisms[1:]], 1e-5, 9) > 0

    def test_no_noise_costs_everything(self) -> None:
        assert renyi_epsilon([Mechanism(0.0, 1.0, 1)], 1e-5, 4) == math.inf


class TestMerged:
    @given(st.lists(st.builds(Mechanism, st.sampled_from([1.0, 2.0]), st.sampled_from([0.1, 1.0]), st.integers(0, 9))))
    def test_no_step_is_lost_and_order_does_not_matter(self, mechanisms: list[Mechanism]) -> None:
        together = merged(mechanisms)
        assert together == merged(reversed(mechanisms)) == merged(together)
        for noise, rate in {(one.noise, one.rate) for one in mechanisms}:
            before, after = (
                sum(one.steps for one in several if (one.noise, one.rate) == (noise, rate))
                for several in (mechanisms, together)
            )
            assert before == after

    def test_a_mechanism_times_rounds_has_so_many_times_the_steps(self) -> None:
        assert Mechanism(1.0, 0.1, 25).times(20) == Mechanism(1.0, 0.1, 500)


class TestNoiseFor:
    @pytest.mark.parametrize(
        ("target", "delta", "rate", "steps"),
        [
            (8.0, 1e-5, 0.1, 60),
            (8.0, 1e-5, 1.0, 10),
            (0.01, 1e-6, 1.0, 5),
        ],
    )
    def test_it_is_the_least(self, target: float, delta: float, rate: float, steps: int) -> None:
        noise = noise_for(target, delta, rate, steps)
        last_digit = 10.0 ** (max(0, math.floor(math.log10(noise))) - 4)
        assert epsilon([Mechanism(noise, rate, steps)], delta) <= target
        assert epsilon([Mechanism(noise - last_digit, rate, steps)], delta) > target
        assert noise == float(f"{noise:.5g}")

    @settings(max_examples=20)
    @given(st.floats(0.01, 1000), st.floats(1e-12, 1e-2), st.integers(1, 1000))
    def test_it_reaches_every_target_of_sums_over_everybody(self, target: float, delta: float, steps: int) -> None:
        noise = noise_for(target, delta, 1.0, steps)
        assert epsilon([Mechanism(noise, 1.0, steps)], delta) <= target
        assert noise == 0.05 or epsilon([Mechanism(0.999 * noise, 1.0, steps)], delta) > 0.99 * target

    def test_so_little_noise_as_to_be_none_is_not_given(self) -> None:
        assert noise_for(1000.0, 1e-5, 0.01, 1) == 0.05

    def test_what_no_noise_reaches_is_refused(self) -> None:
        with pytest.raises(PrivacyError, match=r"No noise brings 10000 steps below epsilon 0\.0001"):
            noise_for(1e-4, 1e-12, 1.0, 10_000)

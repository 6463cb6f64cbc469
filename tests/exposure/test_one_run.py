"""What guesses about canaries prove, by hand and by simulation."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy.optimize import brentq
from scipy.stats import norm

from eucaim_fl.exposure.one_run import (
    SHARES,
    correct_guesses,
    epsilon_of_gaussian,
    evidence,
    gaussian_bound,
    gaussian_estimate,
    general_bound,
    p_value,
)
from eucaim_fl.privacy.accounting import Mechanism, epsilon


class TestPValue:
    def test_without_privacy_loss_and_delta_it_is_that_of_fair_coins(self):
        assert p_value(10, 10, 10, 0.0, 0.0) == pytest.approx(2**-10)
        assert p_value(10, 4, 3, 0.0, 0.0) == pytest.approx(5 / 16)

    def test_epsilon_makes_a_guess_right_as_randomised_response_is(self):
        assert p_value(2, 2, 2, math.log(3), 0.0) == pytest.approx(9 / 16)

    def test_delta_adds_to_it(self):
        # P(2 right) = 1/4; P(1 right) = 1/2, so the steepest is max(1/2 / 1, 3/4 / 2) = 1/2, times 2 · 10 · 0.01
        assert p_value(10, 2, 2, 0.0, 0.01) == pytest.approx(1 / 4 + 1 / 2 * 0.2)

    def test_no_right_guess_proves_nothing(self):
        assert p_value(10, 10, 0, 5.0, 1e-5) == 1.0

    @pytest.mark.parametrize(("canaries", "guesses", "correct"), [(5, 6, 1), (5, 4, 5), (5, 4, -1)])
    def test_impossible_counts_are_refused(self, canaries, guesses, correct):
        with pytest.raises(ValueError, match="guesses"):
            p_value(canaries, guesses, correct, 1.0, 0.0)

    def test_impossible_promises_are_refused(self):
        with pytest.raises(ValueError, match="epsilon"):
            p_value(5, 5, 5, -1.0, 0.0)


class TestGeneralBound:
    def test_all_right_gives_the_epsilon_at_which_that_has_a_chance_of_one_in_twenty(self):
        right = 0.05 ** (1 / 100)
        assert general_bound(100, 100, 100, 0.0) == pytest.approx(math.log(right / (1 - right)), abs=1e-4)

    def test_half_right_proves_nothing(self):
        assert general_bound(100, 100, 50, 1e-5) == 0.0

    def test_more_canaries_can_not_bring_it_far_above_what_delta_allows(self):
        assert general_bound(50_000, 50_000, 50_000, 1e-4) < math.log(1e4)

    def test_randomised_response_is_seldom_found_worse_than_it_is(self):
        rng, promised = np.random.default_rng(0), 1.0
        right = rng.binomial(200, 1 / (1 + math.exp(-promised)), size=500)
        above = [p_value(200, 200, int(v), promised, 0.0) < 0.05 for v in right]
        assert 0 < np.mean(above) <= 0.07


class TestGaussianBound:
    def test_it_is_never_above_what_gaussian_noise_was_used(self):
        rng = np.random.default_rng(0)
        for mu in (0.5, 1.0, 2.0):
            included = rng.random(2000) < 0.5
            scores = mu * included + rng.normal(size=2000)
            right = correct_guesses(scores, included, 200, 200)
            assert 0 < gaussian_bound(2000, 400, right, 1e-5) < epsilon_of_gaussian(mu, 1e-5)

    def test_one_canary_of_one_is_bounded_by_the_trade_off_curve_itself(self):
        # P(right) = (1 − x) + … is at most Φ(mu/2) for one fair coin, so at 0.95 nothing below 2 Φ⁻¹(0.95) explains it
        mu = 2 * norm.ppf(0.95)
        assert gaussian_bound(1, 1, 1, 1e-5, confidence=0.05) == pytest.approx(epsilon_of_gaussian(mu, 1e-5), rel=1e-4)

    def test_without_noise_it_rises_above_what_the_general_bound_can_show(self):
        assert gaussian_bound(5000, 4500, 4500, 1e-5) > 11 > general_bound(5000, 4500, 4500, 1e-5)

    def test_nothing_right_and_half_right_prove_nothing(self):
        assert gaussian_bound(100, 100, 0, 1e-5) == gaussian_bound(100, 100, 50, 1e-5) == 0.0


class TestEpsilonOfGaussian:
    def test_it_is_the_published_value(self):
        assert epsilon_of_gaussian(1.0, 1e-5) == pytest.approx(4.3772, abs=1e-4)

    def test_it_solves_its_equation_where_numbers_are_large(self):
        found = epsilon_of_gaussian(20.0, 1e-5)
        left, right = norm.logcdf(10 - found / 20), found + norm.logcdf(-10 - found / 20)
        assert math.exp(left) - math.exp(right) == pytest.approx(1e-5, rel=1e-6)

    def test_sampled_steps_are_less_visible_than_the_gaussian_of_equal_epsilon(self):
        steps = [Mechanism(1.0, 0.2, 5)]
        equal = epsilon(steps, 1e-5)
        mu = brentq(lambda x: epsilon_of_gaussian(x, 1e-5) - equal, 0.01, 10)
        assert all(epsilon(steps, delta) < epsilon_of_gaussian(mu, delta) for delta in (1e-4, 1e-3, 1e-2, 0.1, 0.3))

    def test_no_distance_costs_nothing(self):
        assert epsilon_of_gaussian(0.0, 1e-5) == epsilon_of_gaussian(1e-9, 1e-5) == 0.0


class TestCorrectGuesses:
    def test_the_ends_are_guessed_and_the_middle_is_not(self):
        scores, included = np.array([5.0, 4.0, 3.0, 2.0, 1.0]), np.array([True, True, False, True, False])
        assert correct_guesses(scores, included, 1, 2) == 3
        assert correct_guesses(scores, included, 0, 3) == 2
        assert correct_guesses(scores, included, 2, 0) == 1


class TestEvidence:
    def test_the_best_number_of_guesses_counts_and_all_are_paid_for(self):
        included = np.arange(1000) % 2 == 0
        found = evidence(included.astype(float), included, 1e-5)
        assert (found.canaries, found.guesses, found.correct) == (1000, 900, 900)
        assert found.general == general_bound(1000, 900, 900, 1e-5, 1 - 0.05 / len(SHARES))
        assert found.epsilon == found.gaussian > found.general

    def test_scores_that_tell_nothing_prove_nothing(self):
        rng = np.random.default_rng(0)
        assert evidence(rng.normal(size=500), rng.random(500) < 0.5, 1e-5).epsilon == 0.0

    def test_what_does_not_fit_is_refused(self):
        with pytest.raises(ValueError, match="one score and one coin"):
            evidence(np.zeros(3), np.zeros(2, bool), 1e-5)
        with pytest.raises(ValueError, match="at least one"):
            evidence(np.zeros(0), np.zeros(0, bool), 1e-5)
        with pytest.raises(ValueError, match="not a number"):
            evidence(np.array([np.nan, 0.0]), np.array([True, False]), 1e-5)


class TestGaussianEstimate:
    def test_it_finds_the_distance_of_normal_scores(self):
        rng = np.random.default_rng(0)
        included = rng.random(20_000) < 0.5
        found = gaussian_estimate(included + rng.normal(size=20_000), included, 1e-5)
        assert found == pytest.approx(epsilon_of_gaussian(1.0, 1e-5), rel=0.05)

    def test_scores_without_spread_have_no_end(self):
        included = np.array([True, True, False, False])
        assert gaussian_estimate(included.astype(float), included, 1e-5) == 200.0
        assert gaussian_estimate(np.zeros(4), included, 1e-5) == 0.0

    def test_one_canary_on_a_side_tells_nothing(self):
        assert gaussian_estimate(np.arange(3.0), np.array([True, False, False]), 1e-5) == 0.0

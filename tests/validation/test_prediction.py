"""What a further site may expect, against integration by chance, the published bootstrap, and known truths."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from eucaim_fl.errors import DataError
from eucaim_fl.validation.meta_analysis import random_effects
from eucaim_fl.validation.prediction import predicted, variances_at
from tests.validation.test_meta_analysis import RISK_ERRORS, RISK_RATIOS

# Thirteen trials of cisapride against placebo (Hartung and Knapp 2001): successes and patients of both arms.
TREATED = np.array(
    [(15, 12, 29, 42, 14, 44, 14, 29, 10, 17, 38, 19, 21), (16, 16, 34, 56, 22, 54, 17, 58, 14, 26, 44, 29, 38)]
)
PLACEBO = np.array(
    [(9, 1, 18, 31, 6, 17, 7, 23, 3, 6, 12, 22, 19), (16, 16, 34, 56, 22, 55, 15, 58, 15, 27, 45, 30, 38)]
)
CELLS = np.stack([TREATED[0], TREATED[1] - TREATED[0], PLACEBO[0], PLACEBO[1] - PLACEBO[0]]) + 0.5
ODDS_RATIOS, VARIANCES = np.log(CELLS[0] * CELLS[3] / (CELLS[1] * CELLS[2])), (1 / CELLS).sum(axis=0)

SITES = st.lists(st.tuples(st.floats(-20, 20), st.floats(0.1, 10)), min_size=2, max_size=8)


def drawn(y: np.ndarray, v: np.ndarray, size: int) -> np.ndarray:
    """The same by chance: τ² by bisection of Q, then a mean and a further site."""
    rng = np.random.default_rng(0)
    c = rng.chisquare(len(y) - 1, size)
    low, high = np.zeros(size), np.full(size, 1e7)
    for _ in range(100):
        middle = (low + high) / 2
        w = 1 / (v + middle[:, None])
        mean = (w * y).sum(axis=1) / w.sum(axis=1)
        above = (w * (y - mean[:, None]) ** 2).sum(axis=1) > c
        low, high = np.where(above, middle, low), np.where(above, high, middle)
    w = 1 / (v + low[:, None])
    return np.asarray(rng.normal((w * y).sum(axis=1) / w.sum(axis=1), np.sqrt(low + 1 / w.sum(axis=1))))


class TestPredicted:
    def test_cisapride_is_near_to_the_published_bootstrap(self) -> None:
        """pimeta's vignette: odds ratio 4.141 with τ² 0.718, I² 69.9 %, and 0.533 to 33.692 for a further trial.

        That takes DerSimonian and Laird's Q, Hartung and Knapp's error and 25,000 draws, so limits agree roughly.
        """
        plain = random_effects(ODDS_RATIOS, np.sqrt(VARIANCES), method="dersimonian_laird")
        assert (math.exp(plain.estimate), plain.tau2, plain.i2) == pytest.approx((4.141, 0.718, 0.699), abs=5e-4)
        assert predicted(ODDS_RATIOS, VARIANCES) == pytest.approx(np.log([0.533, 33.692]), abs=0.06)
        assert (plain.prediction_low, plain.prediction_high) == pytest.approx(predicted(ODDS_RATIOS, VARIANCES))

    def test_it_is_what_many_draws_give(self) -> None:
        y, v = np.array([0.0, 1.5, -1.0, 3.0, 0.5]), np.array([0.2, 1.0, 0.5, 0.3, 2.0])
        many = drawn(y, v, 20_000)
        found = predicted(y, v, level=0.9)
        assert np.mean(many < found[0]) == pytest.approx(0.05, abs=0.005)
        assert np.mean(many > found[1]) == pytest.approx(0.05, abs=0.005)

    @pytest.mark.parametrize("sites", [2, 3, 5, 20])
    def test_of_sites_that_know_their_figure_it_is_students_prediction(self, sites: int) -> None:
        y = np.random.default_rng(sites).normal(size=sites)
        half = stats.t.ppf(0.975, sites - 1) * y.std(ddof=1) * math.sqrt(1 + 1 / sites)
        assert predicted(y, np.full(sites, 1e-9)) == pytest.approx((y.mean() - half, y.mean() + half), rel=2e-3)

    def test_sites_that_agree_exactly_leave_the_error_of_their_mean(self) -> None:
        assert predicted(np.zeros(4), np.ones(4)) == pytest.approx((-1.959964 / 2, 1.959964 / 2))

    @settings(max_examples=40, deadline=None)
    @given(SITES, st.floats(-5, 5), st.floats(0.1, 10))
    def test_it_moves_and_turns_with_the_estimates_and_widens_with_the_level(self, sites, shift, unit) -> None:
        y, v = (np.array(column) for column in zip(*sites, strict=True))
        low, high = predicted(y, v)
        assert predicted(shift - unit * y, unit**2 * v) == pytest.approx(
            (shift - unit * high, shift - unit * low), rel=1e-6, abs=1e-6 * (high - low) * unit
        )
        narrow = predicted(y, v, level=0.5)
        assert low < narrow[0] < narrow[1] < high

    def test_it_holds_a_further_site_as_often_as_it_says_where_the_estimated_variance_alone_does_not(self) -> None:
        """Six sites of unequal precision that differ about as much as their estimates err."""
        rng = np.random.default_rng(5)
        held = {"averaged": 0.0, "student": 0.0}
        for _ in range(250):
            v = rng.choice([0.2, 0.6, 3.0], size=6)
            y = rng.normal(size=6) + np.sqrt(v) * rng.normal(size=6)
            for prediction in held:
                found = random_effects(y, np.sqrt(v), prediction=prediction)  # type: ignore[arg-type]
                limits = stats.norm.cdf([found.prediction_low, found.prediction_high])
                held[prediction] += (limits[1] - limits[0]) / 250
        assert 0.935 < held["averaged"] < 0.985
        assert held["student"] < held["averaged"]

    def test_one_site_and_other_levels_are_refused(self) -> None:
        with pytest.raises(DataError, match="two sites"):
            predicted(np.zeros(1), np.ones(1))
        for level in (0.0, 1.0):
            with pytest.raises(DataError, match="level"):
                predicted(np.zeros(3), np.ones(3), level)


class TestVariancesAt:
    @settings(max_examples=60, deadline=None)
    @given(SITES)
    def test_q_has_the_value_there_or_is_smaller_everywhere(self, sites) -> None:
        y, v = (np.array(column) for column in zip(*sites, strict=True))
        q = stats.chi2.ppf([1e-6, 0.01, 0.5, 0.99], len(y) - 1)
        for value, tau2 in zip(q, variances_at(y, v, q), strict=True):
            w = 1 / (v + tau2)
            own = float((w * (y - np.average(y, weights=w)) ** 2).sum())
            assert own == pytest.approx(value, rel=1e-6) if tau2 else own <= value * (1 + 1e-9)

    def test_it_has_the_published_limits_of_the_variance(self) -> None:
        """Trials of the BCG vaccine, metafor's test_misc_confint.r: τ² 0.1197 to 1.1115; data in test_meta_analysis."""
        found = variances_at(RISK_RATIOS, RISK_ERRORS**2, stats.chi2.ppf([0.975, 0.025], 12))
        assert found == pytest.approx([0.1197, 1.1115], abs=5e-5)

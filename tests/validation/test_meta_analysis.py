"""Random-effects meta-analysis against published examples, a second computation, and its edges."""

from __future__ import annotations

import math
from dataclasses import astuple

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import optimize, stats

from eucaim_fl.errors import DataError
from eucaim_fl.validation.meta_analysis import (
    MetaAnalysis,
    analysis_from_logit,
    from_logit,
    on_logit,
    random_effects,
)

# Trials of the BCG vaccine (Colditz et al. 1994), as in metafor's dat.bcg: cases and others, vaccinated and not.
VACCINATED = np.stack(
    [
        (4, 6, 3, 62, 33, 180, 8, 505, 29, 17, 186, 5, 27),
        (119, 300, 228, 13536, 5036, 1361, 2537, 87886, 7470, 1699, 50448, 2493, 16886),
    ],
    axis=1,
)
OTHERS = np.stack(
    [
        (11, 29, 11, 248, 47, 372, 10, 499, 45, 65, 141, 3, 29),
        (128, 274, 209, 12619, 5761, 1079, 619, 87892, 7232, 1600, 27197, 2338, 17825),
    ],
    axis=1,
)
RISK_RATIOS = np.log(VACCINATED[:, 0] / VACCINATED.sum(axis=1) / (OTHERS[:, 0] / OTHERS.sum(axis=1)))
RISK_ERRORS = np.sqrt((1 / VACCINATED[:, 0] - 1 / VACCINATED.sum(axis=1)) + (1 / OTHERS[:, 0] - 1 / OTHERS.sum(axis=1)))

# Teachers' expectations and pupils' IQ (Raudenbush 1984), as in metafor's dat.raudenbush1985.
EFFECTS = [0.03, 0.12, -0.14, 1.18, 0.26, -0.06, -0.02, -0.32, 0.27, 0.80, 0.54, 0.18, -0.02, 0.23, -0.18, -0.06]
EFFECTS += [0.30, 0.07, -0.07]
VARIANCES = [0.0156, 0.0216, 0.0279, 0.1391, 0.1362, 0.0106, 0.0106, 0.0484, 0.0269, 0.0630, 0.0912, 0.0497, 0.0835]
VARIANCES += [0.0841, 0.0253, 0.0279, 0.0193, 0.0088, 0.0303]
EFFECT_ERRORS = np.sqrt(VARIANCES)

SITES = st.lists(st.tuples(st.floats(-50, 50), st.floats(0.01, 20)), min_size=2, max_size=8)


def restricted_likelihood(tau2: float | np.ndarray, y: np.ndarray, s: np.ndarray) -> np.ndarray:
    """Written out anew, as the density of the contrasts with the first site: REML by its definition, at each τ²."""
    contrasts = np.eye(len(y))[1:] - np.eye(len(y))[0]
    covariance = contrasts @ (np.diag(s**2) + np.multiply.outer(tau2, np.eye(len(y)))) @ contrasts.T
    seen = contrasts @ y
    distance = (seen * np.linalg.solve(covariance, seen[:, None])[..., 0]).sum(axis=-1)
    return -(distance + np.linalg.slogdet(covariance)[1] + len(seen) * math.log(2 * math.pi)) / 2


class TestVaccineTrials:
    """Figures printed by metafor: its test_misc_confint.r, and rma(yi, vi) with REML and DL."""

    def test_restricted_likelihood(self) -> None:
        found = random_effects(RISK_RATIOS, RISK_ERRORS, adjust="none")
        assert found.estimate == pytest.approx(-0.7145, abs=5e-5)
        assert found.standard_error == pytest.approx(0.1798, abs=5e-5)
        assert (found.low, found.high) == pytest.approx((-1.0669, -0.3622), abs=5e-5)
        assert found.tau2 == pytest.approx(0.3132, abs=5e-5)
        assert found.q == pytest.approx(152.2330, abs=5e-5)
        assert found.degrees_of_freedom == 12
        assert found.i2 == pytest.approx(0.9222, abs=5e-5)

    def test_with_hartung_and_knapps_error(self) -> None:
        """README of metafor, rma(yi, vi, test="knha"): 0.1808, −1.1084 to −0.3206."""
        found = random_effects(RISK_RATIOS, RISK_ERRORS)
        assert (found.estimate, found.standard_error) == pytest.approx((-0.7145, 0.1808), abs=5e-5)
        assert (found.low, found.high) == pytest.approx((-1.1084, -0.3206), abs=5e-5)

    def test_prediction_is_the_published_one_with_one_degree_of_freedom_less(self) -> None:
        """The same page predicts risk ratios of 0.14 to 1.76, with k − 1 degrees of freedom where we take k − 2."""
        found = random_effects(RISK_RATIOS, RISK_ERRORS, prediction="student")
        shrink = stats.t.ppf(0.975, 12) / stats.t.ppf(0.975, 11)
        ends = np.array([found.prediction_low, found.prediction_high])
        assert np.exp(found.estimate + shrink * (ends - found.estimate)) == pytest.approx([0.14, 1.76], abs=5e-3)

    def test_by_moments_with_the_profile_of_q(self) -> None:
        found = random_effects(RISK_RATIOS, RISK_ERRORS, method="dersimonian_laird", adjust="none")
        assert np.exp([found.estimate, found.low, found.high]) == pytest.approx([0.4896, 0.3449, 0.6950], abs=5.1e-5)
        assert (found.tau2, found.tau2_low, found.tau2_high) == pytest.approx((0.3088, 0.1197, 1.1115), abs=5e-5)
        assert (found.i2, found.i2_low, found.i2_high) == pytest.approx((0.921173, 0.819177, 0.976781), abs=5e-5)

    def test_odds_ratios_have_the_published_profile_limits(self) -> None:
        """Van Houwelingen et al. 2002, page "analyses:vanhouwelingen2002" of metafor-project.org: 0.1302 to 1.1812."""
        ratios = np.log(VACCINATED[:, 0] / VACCINATED[:, 1] / (OTHERS[:, 0] / OTHERS[:, 1]))
        found = random_effects(ratios, np.sqrt((1 / VACCINATED + 1 / OTHERS).sum(axis=1)))
        assert (found.tau2_low, found.tau2_high) == pytest.approx((0.1302, 1.1812), abs=1e-4)


class TestTeachersExpectations:
    """Raudenbush 2009, table 16.3, as reproduced digit by digit in metafor's test_analysis_example_raudenbush2009.r."""

    @pytest.mark.parametrize(
        ("method", "adjust", "published"),
        [
            ("reml", "none", (0.019, 0.084, 0.052, -0.018, 0.185)),
            ("dersimonian_laird", "none", (0.026, 0.089, 0.056, -0.020, 0.199)),
            ("reml", "hartung_knapp", (0.019, 0.084, 0.062, -0.046, 0.213)),
            ("dersimonian_laird", "hartung_knapp", (0.026, 0.089, 0.064, -0.044, 0.223)),
        ],
    )
    def test_table(self, method, adjust, published) -> None:
        found = random_effects(EFFECTS, EFFECT_ERRORS, method=method, adjust=adjust)
        own = (found.tau2, found.estimate, found.standard_error, found.low, found.high)
        assert tuple(round(number, 3) for number in own) == published
        assert round(found.q, 2) == 35.83

    def test_prediction_is_the_published_one_with_students_t_for_the_normal_quantile(self) -> None:
        """metafor prints −0.204 to 0.371, with 1.96; Higgins et al. 2009 have t with k − 2 degrees of freedom."""
        found = random_effects(EFFECTS, EFFECT_ERRORS, adjust="none", prediction="student")
        shrink = stats.norm.ppf(0.975) / stats.t.ppf(0.975, 17)
        limits = (found.prediction_low - found.estimate, found.prediction_high - found.estimate)
        assert [found.estimate + shrink * limit for limit in limits] == pytest.approx([-0.204, 0.371], abs=5e-4)


class TestSecondComputation:
    """Where no published figure is at hand: maximised likelihood of contrasts, and formulas of the sources anew."""

    @settings(max_examples=60, deadline=None)
    @given(SITES)
    def test_no_other_variance_between_sites_is_likelier(self, sites) -> None:
        y, s = (np.array(column) for column in zip(*sites, strict=True))
        found = random_effects(y, s)
        own = restricted_likelihood(found.tau2, y, s)
        top = 4 * (np.ptp(y) ** 2 + s.max() ** 2)
        rivals = [0.0, *np.geomspace(1e-6 * s.min() ** 2, top, 60)]
        heights = restricted_likelihood(np.array(rivals), y, s)
        best = int(np.argmax(heights))
        refined = optimize.minimize_scalar(
            lambda tau2: -restricted_likelihood(tau2, y, s),
            bounds=(rivals[max(best - 1, 0)], rivals[min(best + 1, 60)]),
            method="bounded",
        )
        assert own >= max(heights.max(), -refined.fun) - 1e-7 * (1 + abs(own))

    def test_of_two_peaks_the_higher_is_taken(self) -> None:
        """Scoring from the estimate by moments ends at 0 here, a lower peak."""
        y, s = np.array([0.08, 0.14, 1.58, 4.47, -5.34]), np.array([0.02, 0.12, 4.53, 2.61, 1.57])
        rivals = np.geomspace(1e-4, 1e4, 4001)
        heights = restricted_likelihood(rivals, y, s)
        assert restricted_likelihood(0.0, y, s) > heights[0]
        assert restricted_likelihood(0.0, y, s) < heights.max() - 0.4
        assert random_effects(y, s).tau2 == pytest.approx(rivals[heights.argmax()], rel=0.01)

    def test_hartung_knapp_and_prediction_of_the_vaccine_trials(self) -> None:
        found = random_effects(RISK_RATIOS, RISK_ERRORS, prediction="student")
        w = 1 / (RISK_ERRORS**2 + found.tau2)
        mean = np.average(RISK_RATIOS, weights=w)
        error = math.sqrt(np.average((RISK_RATIOS - mean) ** 2, weights=w) / 12)
        half, ahead = stats.t.ppf(0.975, 12) * error, stats.t.ppf(0.975, 11) * math.hypot(error, math.sqrt(found.tau2))
        assert (found.low, found.high) == pytest.approx((mean - half, mean + half))
        assert (found.prediction_low, found.prediction_high) == pytest.approx((mean - ahead, mean + ahead))
        assert found.p_heterogeneity == pytest.approx(stats.chi2.sf(found.q, 12))
        assert found.weights == pytest.approx(w / w.sum())

    @settings(max_examples=40, deadline=None)
    @given(SITES)
    def test_q_reaches_the_quantiles_of_chance_at_the_limits_of_the_variance(self, sites) -> None:
        y, s = (np.array(column) for column in zip(*sites, strict=True))
        found = random_effects(y, s, level=0.9)

        def q(tau2: float) -> float:
            w = 1 / (s**2 + tau2)
            return float((w * (y - np.average(y, weights=w)) ** 2).sum())

        most, least = stats.chi2.ppf([0.95, 0.05], len(y) - 1)
        if math.isnan(found.tau2_low):
            assert math.isnan(found.tau2_high)
            assert q(0) <= least * (1 + 1e-9)
            return
        assert q(found.tau2_high) == pytest.approx(least, rel=1e-6)
        if found.tau2_low > 0:
            assert q(found.tau2_low) == pytest.approx(most, rel=1e-6)
        else:
            assert q(0) <= most * (1 + 1e-9)


class TestEdges:
    def test_one_site_is_itself_and_knows_nothing_of_others(self) -> None:
        found = random_effects([0.8], [0.1])
        assert (found.estimate, found.standard_error, found.weights) == (0.8, 0.1, (1.0,))
        assert (found.low, found.high) == pytest.approx((0.8 - 0.195996, 0.8 + 0.195996), abs=1e-6)
        assert (found.q, found.degrees_of_freedom) == (0.0, 0)
        unknown = (found.tau2, found.tau2_low, found.tau2_high, found.p_heterogeneity, found.i2, found.i2_low)
        assert all(map(math.isnan, (*unknown, found.i2_high, found.prediction_low, found.prediction_high)))

    def test_two_sites_have_a_wide_interval_and_no_prediction(self) -> None:
        """By hand: y = ±1, s = 1; Q = 2, DL τ² = (2 − 1)/1 = 1, REML the same, SE = 1, t(1) = 12.706."""
        for method in ("reml", "dersimonian_laird"):
            found = random_effects([-1.0, 1.0], [1.0, 1.0], method=method)
            assert (found.tau2, found.standard_error, found.q) == pytest.approx((1, 1, 2))
            assert (found.low, found.high) == pytest.approx((-12.706, 12.706), abs=1e-3)
            assert math.isnan(found.prediction_low)
            assert math.isnan(found.prediction_high)

    def test_sites_that_agree_exactly_differ_by_nothing_and_the_interval_keeps_a_width(self) -> None:
        found = random_effects([0.9, 0.9, 0.9], [0.1, 0.1, 0.1])
        assert (found.estimate, found.tau2, found.q, found.i2, found.p_heterogeneity) == (0.9, 0, 0, 0, 1)
        assert (found.variance_factor, found.standard_error) == (0.0, pytest.approx(0.1 / math.sqrt(3)))
        assert math.isnan(found.tau2_low)
        assert math.isnan(found.tau2_high)

    @settings(max_examples=60, deadline=None)
    @given(SITES)
    def test_hartung_knapp_is_never_narrower_than_the_normal_interval(self, sites) -> None:
        y, s = (np.array(column) for column in zip(*sites, strict=True))
        careful, plain = random_effects(y, s), random_effects(y, s, adjust="none")
        assert careful.high - careful.low > plain.high - plain.low
        assert careful.estimate == plain.estimate
        assert math.isnan(plain.variance_factor)

    @settings(max_examples=60, deadline=None)
    @given(SITES.filter(lambda sites: len(sites) > 2))
    def test_a_prediction_encloses_the_interval(self, sites) -> None:
        y, s = (np.array(column) for column in zip(*sites, strict=True))
        found = random_effects(y, s)
        assert found.prediction_low <= found.low < found.high <= found.prediction_high

    @pytest.mark.parametrize("unit", [1e-90, 1e-12, 1e12, 1e90])
    def test_the_unit_of_measurement_changes_nothing(self, unit: float) -> None:
        plain, other = (
            random_effects(EFFECTS, EFFECT_ERRORS),
            random_effects(np.array(EFFECTS) * unit, EFFECT_ERRORS * unit),
        )
        for name in ("estimate", "low", "high", "standard_error", "prediction_low", "prediction_high"):
            assert getattr(other, name) == pytest.approx(getattr(plain, name) * unit, rel=1e-6)
        assert other.tau2 == pytest.approx(plain.tau2 * unit**2, rel=1e-6)
        assert (other.q, other.i2, *other.weights) == pytest.approx((plain.q, plain.i2, *plain.weights), rel=1e-6)

    @settings(max_examples=40, deadline=None)
    @given(SITES, st.randoms())
    def test_the_order_of_sites_changes_no_bit(self, sites, random) -> None:
        shuffled = list(range(len(sites)))
        random.shuffle(shuffled)
        found = random_effects(*zip(*sites, strict=True))
        turned = random_effects(*zip(*(sites[i] for i in shuffled), strict=True))
        first, second = ([x for x in astuple(one) if not isinstance(x, tuple)] for one in (found, turned))
        assert np.array_equal(first, second, equal_nan=True)
        assert turned.weights == pytest.approx([found.weights[i] for i in shuffled], abs=0)
        assert math.fsum(found.weights) == pytest.approx(1)

    def test_a_large_common_level_does_not_swallow_the_differences(self) -> None:
        plain, moved = random_effects(EFFECTS, EFFECT_ERRORS), random_effects(np.array(EFFECTS) + 1e6, EFFECT_ERRORS)
        assert moved.tau2 == pytest.approx(plain.tau2, rel=1e-6)
        assert moved.estimate - 1e6 == pytest.approx(plain.estimate, abs=1e-8)

    @pytest.mark.parametrize(
        ("estimates", "errors", "changes", "complaint"),
        [
            ([], [], {}, "at least one site"),
            ([1.0, 2.0], [1.0], {}, "one standard error for each"),
            ([[1.0, 2.0]], [[1.0, 1.0]], {}, "one standard error for each"),
            ([1.0, math.nan], [1.0, 1.0], {}, "not finite"),
            ([1.0, 2.0], [1.0, math.inf], {}, "not finite"),
            ([1.0, 2.0], [1.0, 0.0], {}, "not positive"),
            ([1.0, 2.0], [1.0, -1.0], {}, "not positive"),
            ([1.0, 2.0], [1e-200, 1e-200], {}, "double precision"),
            ([1.0, 2.0], [1.0, 1e11], {}, "double precision"),
            ([1e308, -1e308], [1.0, 1.0], {}, "double precision"),
            ([1e180, 2e180], [1e180, 1e180], {}, "double precision"),
            ([1.0, 2.0], [1.0, 1.0], {"level": 1.0}, "level"),
            ([1.0, 2.0], [1.0, 1.0], {"method": "ml"}, "dersimonian_laird"),
            ([1.0, 2.0], [1.0, 1.0], {"adjust": "t"}, "hartung_knapp"),
            ([1.0, 2.0], [1.0, 1.0], {"prediction": "t"}, "averaged"),
        ],
    )
    def test_what_can_not_be_combined_is_an_error(self, estimates, errors, changes, complaint: str) -> None:
        with pytest.raises(DataError, match=complaint):
            random_effects(estimates, errors, **changes)


class TestLogit:
    @given(st.floats(1e-12, 1 - 1e-12))
    def test_there_and_back(self, p: float) -> None:
        value, error = on_logit(p, 0.01)
        assert from_logit(value) == pytest.approx(p, rel=1e-12)
        assert error == pytest.approx(0.01 / (p * (1 - p)))

    def test_far_out_it_stays_within_0_and_1(self) -> None:
        assert (from_logit(-math.inf), from_logit(-800), from_logit(800)) == (0.0, 0.0, 1.0)
        assert math.isnan(from_logit(math.nan))

    @pytest.mark.parametrize(
        ("estimate", "error", "complaint"),
        [
            (0.0, 0.1, "between 0 and 1"),
            (1.0, 0.1, "between 0 and 1"),
            (math.nan, 0.1, "between 0 and 1"),
            (0.5, -0.1, "at least 0"),
            (0.5, math.inf, "at least 0"),
        ],
    )
    def test_what_has_no_logit_is_an_error(self, estimate: float, error: float, complaint: str) -> None:
        with pytest.raises(DataError, match=complaint):
            on_logit(estimate, error)

    def test_an_analysis_comes_back_within_0_and_1_and_keeps_its_heterogeneity(self) -> None:
        sites = [on_logit(p, s) for p, s in [(0.99, 0.008), (0.97, 0.02), (0.90, 0.04)]]
        there = random_effects(*zip(*sites, strict=True))
        back = analysis_from_logit(there)
        assert 0 < back.prediction_low < back.low < back.estimate < back.high < back.prediction_high < 1
        assert from_logit(there.low) == back.low
        assert (back.tau2, back.weights, back.i2) == (there.tau2, there.weights, there.i2)
        assert on_logit(back.estimate, back.standard_error)[1] == pytest.approx(there.standard_error)
        assert isinstance(back, MetaAnalysis)

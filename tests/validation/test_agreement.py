"""Agreement and means from sums over sites, and whether an interval tells enough."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.integrate import quad
from scipy.stats import chi2, norm, t, ttest_1samp

from eucaim_fl.errors import DataError
from eucaim_fl.validation.agreement import (
    Moments,
    bland_altman,
    enough,
    mean_interval,
    pooled_moments,
    stratified_mean,
)
from eucaim_fl.validation.intervals import Interval

# peak expiratory flow in l/min of 17 people, first reading of the large and of the mini Wright meter: Bland and
# Altman 1986, table 1
LARGE = [494, 395, 516, 434, 476, 557, 413, 442, 650, 433, 417, 656, 267, 478, 178, 423, 427]
MINI = [512, 430, 520, 428, 500, 600, 364, 380, 658, 445, 432, 626, 260, 477, 259, 350, 451]


def moments(values: list[float] | np.ndarray) -> Moments:
    """What a site sends of its values."""
    return Moments(len(values), math.fsum(values), math.fsum(v * v for v in values))


def limits(interval: Interval) -> list[float]:
    """Both limits, to be compared."""
    return [interval.low, interval.high]


PEAK_FLOW = moments([a - b for a, b in zip(LARGE, MINI, strict=True)])


class TestMoments:
    @pytest.mark.parametrize(
        ("numbers", "reason"),
        [
            ((1.5, 0, 0), "whole"),
            ((-1, 0, 0), "whole"),
            ((2, math.nan, 1), "finite"),
            ((2, 1, math.inf), "finite"),
            ((2, 3, 4), "No 2 values"),
            ((2, 0, -1), "No 2 values"),
        ],
    )
    def test_what_no_values_have_is_refused(self, numbers: tuple[int, float, float], reason: str) -> None:
        with pytest.raises(DataError, match=reason):
            Moments(*numbers)

    def test_few_have_no_variance(self) -> None:
        assert math.isnan(Moments(0, 0, 0).mean)
        assert math.isnan(Moments(1, 2, 4).variance)


class TestMeans:
    @settings(max_examples=40)
    @given(st.lists(st.floats(-10, 10), min_size=2, max_size=20), st.integers(0, 20))
    def test_the_pooled_interval_is_that_of_all_patients(self, values: list[float], cut: int) -> None:
        found = mean_interval(pooled_moments([moments(values[:cut]), moments(values[cut:])]))
        reach = t.ppf(0.975, len(values) - 1) * np.std(values, ddof=1) / math.sqrt(len(values))
        assert found.estimate == pytest.approx(np.mean(values), abs=1e-9)
        assert found.high - found.low == pytest.approx(2 * reach, abs=1e-5)

    def test_it_is_that_of_scipy(self) -> None:
        values = np.random.default_rng(0).normal(3, 2, size=30)
        expected = ttest_1samp(values, 0).confidence_interval(0.9)
        assert limits(mean_interval(moments(values), level=0.9)) == pytest.approx([expected.low, expected.high])

    def test_differences_between_sites_are_no_error_of_these_sites(self) -> None:
        draws = np.random.default_rng(1)
        sites = [moments(draws.normal(shift, 1, size=40)) for shift in (0.0, 5.0, 10.0)]
        pooled, within = mean_interval(pooled_moments(sites)), stratified_mean(sites)
        assert within.estimate == pooled.estimate
        variance = sum((one.patients / 120) ** 2 * one.variance / one.patients for one in sites)
        assert (within.high - within.low) / 2 == pytest.approx(1.98 * math.sqrt(variance), rel=0.005)
        assert pooled.high - pooled.low > 3 * (within.high - within.low)

    def test_two_sites_have_welchs_degrees_of_freedom(self) -> None:
        # the mean of two sites of equal size is half their sum, whose t-test is Welch's with the other sign
        draws = np.random.default_rng(2)
        a, b = draws.normal(0, 1, size=8), draws.normal(0, 4, size=8)
        parts = [np.var(one, ddof=1) / 8 for one in (a, b)]
        freedom = sum(parts) ** 2 / sum(part**2 / 7 for part in parts)
        found = stratified_mean([moments(a), moments(b)])
        assert (found.high - found.low) / 2 == pytest.approx(t.ppf(0.975, freedom) * math.sqrt(sum(parts)) / 2)

    def test_sites_of_one_patient_are_put_together(self) -> None:
        ones = [Moments(1, v, v * v) for v in (1.0, 2.0, 6.0)]
        assert stratified_mean(ones) == mean_interval(pooled_moments(ones))
        large, small = moments([1.0, 2.0, 3.0, 5.0]), moments([1.0, 4.0])
        found = stratified_mean([large, ones[2], small])
        assert found == stratified_mean([large, moments([1.0, 4.0, 6.0])])

    def test_values_that_agree_leave_no_doubt(self) -> None:
        assert stratified_mean([moments([2.0, 2.0]), moments([2.0, 2.0])]) == Interval(2, 2, 2)

    def test_others_are_refused(self) -> None:
        for interval in (lambda one: mean_interval(one), lambda one: stratified_mean([one])):
            with pytest.raises(DataError, match="two patients"):
                interval(Moments(1, 1, 1))
        with pytest.raises(DataError, match="two patients"):
            mean_interval(Moments(0, 0, 0))
        with pytest.raises(DataError, match="two patients"):
            stratified_mean([])
        with pytest.raises(DataError, match="level"):
            mean_interval(PEAK_FLOW, level=1)


class TestBlandAltman:
    def test_peak_flow_has_the_published_bias_and_limits(self) -> None:
        # Bland and Altman 1986: mean −2.1, SD 38.8, bias −22.0 to 17.8; limits there with 2 SD, here with 1.96
        found = bland_altman(PEAK_FLOW)
        assert found.bias.estimate == pytest.approx(-2.1, abs=0.05)
        assert math.sqrt(PEAK_FLOW.variance) == pytest.approx(38.8, abs=0.05)
        assert limits(found.bias) == pytest.approx([-22.0, 17.8], abs=0.1)
        assert found.upper.estimate == pytest.approx(-2.12 + 1.96 * 38.77, abs=0.05)
        # the exact interval lies further out than the published approximate one, 40.9 to 110.1 around 75.5
        assert found.upper.low > 40.9
        assert found.upper.high > 110.1
        assert found.upper.high - found.upper.estimate > found.upper.estimate - found.upper.low

    def test_blood_pressure_has_the_published_limits(self) -> None:
        # Bland and Altman 1999, section 2: 85 people, mean −16.29, SD 19.61 mmHg; approximate ± 7.1
        variance, mean, people = 19.61**2, -16.29, 85
        found = bland_altman(Moments(people, people * mean, variance * (people - 1) + people * mean**2))
        assert [found.lower.estimate, found.upper.estimate] == pytest.approx([-54.7, 22.1], abs=0.06)
        assert limits(found.upper) == pytest.approx([14.9, 29.3], abs=1.2)
        assert limits(found.lower) == pytest.approx([-61.9, -47.5], abs=1.2)

    def test_the_limits_are_the_tolerance_factors_of_tables(self) -> None:
        # one-sided factors of normal tolerance limits, 95% of the population with 95% confidence, n = 10 and 20
        for people, factor in ((10, 2.911), (20, 2.396)):
            found = bland_altman(Moments(people, 0, people - 1), level=0.9, share=0.9)
            assert found.upper.high == pytest.approx(factor, abs=6e-4)
            assert found.lower.low == pytest.approx(-factor, abs=6e-4)

    def test_a_limit_is_exact_by_integration_over_mean_and_deviation(self) -> None:
        people, z = 6, norm.ppf(0.975)
        factor = bland_altman(Moments(people, 0, people - 1)).upper.high
        # P(mean + factor·s ≥ z) over the distribution of s² of normal differences
        covered, _ = quad(
            lambda x: norm.sf((z - factor * math.sqrt(x / (people - 1))) * math.sqrt(people)) * chi2.pdf(x, people - 1),
            0,
            60,
        )
        assert covered == pytest.approx(0.975, abs=1e-5)

    def test_it_covers_the_true_limit_as_often_as_it_says(self) -> None:
        draws, covered, runs = np.random.default_rng(5), 0, 400
        for values in draws.normal(size=(runs, 10)):
            found = bland_altman(moments(values)).upper
            covered += found.low <= 1.959964 <= found.high
        assert 0.92 <= covered / runs <= 0.98

    def test_others_are_refused(self) -> None:
        with pytest.raises(DataError, match="two patients"):
            bland_altman(Moments(1, 1, 1))
        with pytest.raises(DataError, match="share"):
            bland_altman(PEAK_FLOW, share=1)


class TestEnough:
    def test_so_many_patients_are_enough(self) -> None:
        found = enough(Interval(0.8, 0.75, 0.85), 0.05, 100)
        assert found.enough
        assert found.note == ""
        assert found.needed == 100

    def test_what_is_needed_makes_a_mean_as_sure_as_wanted(self) -> None:
        values = np.random.default_rng(6).normal(size=200)
        few = mean_interval(moments(values[:50]))
        found = enough(few, (few.high - few.low) / 4, 50)
        assert not found.enough
        assert found.needed == 200
        assert "About 200 patients would do; there are 50." in found.note
        many = mean_interval(moments(values))
        assert (many.high - many.low) / 2 == pytest.approx(found.wanted_half_width, rel=0.15)

    def test_an_interval_without_end_tells_no_number(self) -> None:
        found = enough(Interval(3, 1, math.inf), 1, 10)
        assert found.needed is None
        assert "would do" not in found.note

    @pytest.mark.parametrize(
        ("interval", "wanted", "patients"),
        [
            (Interval(0, 1, 0), 0.1, 5),
            (Interval(0, math.nan, 1), 0.1, 5),
            (Interval(0, 0, 1), 0.0, 5),
            (Interval(0, 0, 1), 0.1, -1),
        ],
    )
    def test_others_are_refused(self, interval: Interval, wanted: float, patients: int) -> None:
        with pytest.raises(DataError, match="limits in order"):
            enough(interval, wanted, patients)

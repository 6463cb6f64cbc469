"""Two models on the same patients: published examples, all pairs counted, and what must not matter."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from eucaim_fl.errors import DataError
from eucaim_fl.validation.intervals import Interval
from eucaim_fl.validation.meta_analysis import random_effects
from eucaim_fl.validation.metrics import auc
from eucaim_fl.validation.pairs import (
    Estimate,
    delong,
    delong_pair,
    holm,
    holm_adjusted,
    mcnemar,
    non_inferior,
    paired_bootstrap,
    stratified,
)

# Three markers of 41 patients with a poor and 72 with a good outcome after a subarachnoid haemorrhage (Turck et al.
# 2010; pROC's aSAH), in this order, as dense ranks: an AUC sees no more of them. The ranks follow from the placements
# in pROC's tests/testthat/helper-deLongPlacementsCpp-expected.R; neighbours of one class without one of the other
# between them share a rank, which changes no placement.
POOR, GOOD = 41, 72
OUTCOME = np.array([1] * POOR + [0] * GOOD)
WFNS = np.fromstring(
    """
    2 1 3 4 4 4 4 1 4 1 0 1 4 3 3 1 4 4 4 1 4 1 4 1 3 4 3 3 0 3 3 1 1 4 4 1 1 4 4 4 4 0 0 0 0 4 0 1 1 0 1 1 0 0 0
    1 0 1 0 0 2 3 0 3 0 4 4 0 0 1 3 0 0 1 1 0 1 0 1 1 0 0 0 0 1 0 1 0 0 2 1 3 1 0 3 0 0 4 3 1 1 0 0 0 2 0 1 1 3 3
    0 0 0
    """,
    sep=" ",
)
S100B = np.fromstring(
    """
    8 5 11 7 25 30 28 2 19 4 2 23 21 27 30 15 30 30 30 2 30 17 0 4 13 30 15 30 3 15 8 5 6 13 30 9 30 18 30 30 25 8
    9 5 1 26 12 5 5 1 3 1 4 6 2 12 2 6 8 12 1 11 9 20 4 29 26 11 2 24 26 6 3 4 3 1 8 5 9 10 1 1 4 1 4 3 11 4 3 19
    6 16 2 5 18 2 1 14 22 5 10 3 9 5 2 1 12 10 26 12 10 29 27
    """,
    sep=" ",
)
NDKA = np.fromstring(
    """
    37 24 28 35 3 9 18 43 47 43 43 14 32 39 5 7 30 1 51 39 16 18 22 30 41 26 39 7 49 34 3 12 39 3 11 43 20 32 45
    18 35 0 8 6 17 4 34 4 38 29 38 36 46 10 4 23 4 4 50 25 13 13 38 2 6 4 12 27 6 33 44 6 4 23 10 6 27 42 40 15 21
    48 4 36 13 17 17 33 2 36 23 10 17 38 17 21 6 13 17 42 8 23 26 44 19 23 10 42 15 31 40 4 29
    """,
    sep=" ",
)
TWO_MODELS = st.lists(st.tuples(st.integers(0, 5), st.integers(0, 5), st.integers(0, 1)), min_size=1, max_size=25)


def columns(rows: list[tuple[int, int, int]]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    a, b, truth = (np.array(column) for column in zip(*rows, strict=True))
    return a.astype(float), b.astype(float), truth


def covariances(a: np.ndarray, b: np.ndarray, truth: np.ndarray) -> tuple[list[float], np.ndarray]:
    """AUCs and their covariance matrix as DeLong et al. write them, over all pairs of patients."""
    kernels = []
    for scores in (a, b):
        high, low = scores[truth == 1][:, None], scores[truth == 0][None]
        kernels.append((high > low) + 0.5 * (high == low))
    areas = [kernel.mean() for kernel in kernels]
    s10 = np.cov(np.stack([kernel.mean(axis=1) for kernel in kernels]))
    s01 = np.cov(np.stack([kernel.mean(axis=0) for kernel in kernels]))
    return areas, s10 / (truth == 1).sum() + s01 / (truth == 0).sum()


class TestDelong:
    @pytest.mark.parametrize(
        ("marker", "area", "variance"),
        [
            (WFNS, 0.823678861788618, 0.00146991470882363),
            (S100B, 0.731368563685637, 0.00266868245717244),
            (NDKA, 0.611957994579946, 0.0031908105493913),
        ],
        ids=["wfns", "s100b", "ndka"],
    )
    def test_areas_and_variances_are_those_of_proc(self, marker: np.ndarray, area: float, variance: float) -> None:
        """pROC's tests/testthat/test-var.R and helper-deLongPlacementsCpp-expected.R, to all digits they have."""
        found = delong(marker, OUTCOME)
        assert found.value == pytest.approx(area, rel=1e-13)
        assert found.variance == pytest.approx(variance, rel=1e-12)

    def test_intervals_are_the_published_ones(self) -> None:
        """Of ndka: pROC's test-ci.auc.R; of s100b: 0.6301 to 0.8326 in the examples of pROC's manual."""
        limits = delong(NDKA, OUTCOME).interval()
        assert limits == pytest.approx((0.501244999271703, 0.722670989888189), rel=1e-12)
        assert delong(S100B, OUTCOME).interval() == pytest.approx((0.6301, 0.8326), abs=5e-5)

    @settings(max_examples=150, deadline=None)
    @given(TWO_MODELS)
    def test_it_is_what_all_pairs_of_patients_give(self, rows) -> None:
        scores, _, truth = columns(rows)
        found = delong(scores, truth)
        if len(set(truth)) < 2:
            assert math.isnan(found.value)
            assert math.isnan(found.variance)
            return
        assert found.value == pytest.approx(auc(scores, truth))
        if min(truth.sum(), (1 - truth).sum()) < 2:
            assert math.isnan(found.variance)
        else:
            areas, matrix = covariances(scores, scores, truth)
            assert (found.value, found.variance) == pytest.approx((areas[0], matrix[0, 0]), abs=1e-15)

    @settings(max_examples=50, deadline=None)
    @given(TWO_MODELS, st.randoms())
    def test_neither_the_order_of_patients_nor_a_rising_scale_changes_a_bit(self, rows, random) -> None:
        shuffled = list(rows)
        random.shuffle(shuffled)
        scores, _, truth = columns(rows)
        mixed, _, of_mixed = columns(shuffled)
        one, other = delong(scores, truth), delong(np.exp(mixed), of_mixed)
        assert np.array_equal([one.value, one.variance], [other.value, other.variance], equal_nan=True)

    @given(st.integers(2, 9), st.integers(2, 9))
    def test_scores_that_are_all_tied_are_as_good_as_chance(self, positives: int, negatives: int) -> None:
        truth = np.array([1] * positives + [0] * negatives)
        assert delong(np.full(len(truth), 0.3), truth) == Estimate(0.5, 0.0)

    def test_turned_scores_have_the_area_that_is_left_and_the_same_variance(self) -> None:
        found, turned = delong(S100B, OUTCOME), delong(-S100B, OUTCOME)
        assert turned.value == pytest.approx(1 - found.value)
        assert turned.variance == pytest.approx(found.variance)

    def test_a_hundred_thousand_patients_take_no_table_of_pairs(self) -> None:
        rng = np.random.default_rng(0)
        truth = rng.integers(0, 2, 100_000)
        found = delong(rng.normal(size=100_000) + truth, truth)
        assert found.value == pytest.approx(stats.norm.cdf(math.sqrt(0.5)), abs=4 * found.standard_error)
        assert found.standard_error < 0.002

    @pytest.mark.parametrize(
        ("scores", "truth", "complaint"),
        [
            ([0.1, 0.2], [0, 1, 1], "one score for each"),
            ([0.1, math.nan], [0, 1], "not finite"),
            ([0.1, 0.2], [0, 2], "0 or 1"),
            ([[0.1, 0.2]], [[0, 1]], "0 or 1"),
        ],
    )
    def test_what_does_not_fit_is_an_error(self, scores, truth, complaint: str) -> None:
        with pytest.raises(DataError, match=complaint):
            delong(np.array(scores), np.array(truth))
        with pytest.raises(DataError, match=complaint):
            delong_pair(np.array(scores), np.array(scores), np.array(truth))


class TestDelongPair:
    @pytest.mark.parametrize(
        ("first", "second", "z", "p", "limits", "covariance"),
        [
            (WFNS, S100B, 2.20898359144091, 0.0271757822291882, (0.0104061769564846, 0.174214419249478), 0.00119615567),
            (WFNS, NDKA, 2.79777591868904, 0.00514557970691, (0.0634011709339876, 0.3600405634833566), -0.00053296785),
            (NDKA, S100B, -1.39077002573558, 0.164295175223, (-0.2876917446341914, 0.0488706064228094), -0.00075616493),
        ],
        ids=["wfns-s100b", "wfns-ndka", "ndka-s100b"],
    )
    def test_it_is_procs_test_of_correlated_curves(self, first, second, z, p, limits, covariance) -> None:
        """pROC's tests/testthat/test-roc.test.R and test-cov.R."""
        found = delong_pair(first, second, OUTCOME)
        assert found.value / found.standard_error == pytest.approx(z, rel=1e-10)
        assert found.p_value() == pytest.approx(p, rel=1e-10)
        assert found.interval() == pytest.approx(limits, rel=1e-10)
        apart = delong(first, OUTCOME).variance + delong(second, OUTCOME).variance
        assert (apart - found.variance) / 2 == pytest.approx(covariance, rel=3e-8)

    @settings(max_examples=150, deadline=None)
    @given(TWO_MODELS)
    def test_it_is_what_all_pairs_of_patients_give_and_swapping_changes_the_sign(self, rows) -> None:
        a, b, truth = columns(rows)
        found, swapped = delong_pair(a, b, truth), delong_pair(b, a, truth)
        assert np.array_equal([found.value, found.variance], [-swapped.value, swapped.variance], equal_nan=True)
        if 2 <= truth.sum() <= len(truth) - 2:
            areas, matrix = covariances(a, b, truth)
            assert found.value == pytest.approx(areas[0] - areas[1], abs=1e-12)
            assert found.variance == pytest.approx(matrix[0, 0] + matrix[1, 1] - 2 * matrix[0, 1], abs=1e-12)

    def test_a_model_is_as_good_as_itself(self) -> None:
        found = delong_pair(WFNS, WFNS, OUTCOME)
        assert (found, found.p_value()) == (Estimate(0.0, 0.0), 1.0)

    def test_a_difference_without_variance_has_no_p_value(self) -> None:
        scores, truth = np.array([1.0, 2.0, 3.0, 4.0]), np.array([0, 0, 1, 1])
        found = delong_pair(scores, -scores, truth)
        assert found == Estimate(1.0, 0.0)
        assert math.isnan(found.p_value())


class TestEstimate:
    def test_interval_and_p_value_are_those_of_the_normal_distribution(self) -> None:
        assert Estimate(1.96, 1.0).p_value() == pytest.approx(0.05, abs=1e-4)
        assert Estimate(0.0, 4.0).interval(0.9) == pytest.approx((-3.28971, 3.28971), abs=1e-5)

    def test_what_is_not_defined_stays_so(self) -> None:
        assert math.isnan(Estimate(0.5, math.nan).p_value())
        assert all(map(math.isnan, Estimate(0.5, math.nan).interval()))

    def test_a_level_beyond_0_and_1_is_an_error(self) -> None:
        with pytest.raises(DataError, match="level"):
            Estimate(0.0, 1.0).interval(1.0)


COUNTS = st.tuples(*[st.integers(0, 40)] * 4).filter(any)


class TestMcNemar:
    def test_children_before_and_after_a_transplantation(self) -> None:
        """Bentur et al. 2009 as in Fagerland et al. 2013 (p-values; its supplement) and 2014 (Tango's interval)."""
        found = mcnemar(1, 1, 7, 12)
        assert (round(found.p_exact, 4), round(found.p_mid, 4)) == (0.0703, 0.0391)
        assert (round(found.low, 3), round(found.high, 3)) == (-0.517, -0.026)
        assert found.difference == pytest.approx(-6 / 21)

    def test_two_media_for_cultures(self) -> None:
        """Armitage and Berry 1994, p. 127, as computed by StatsDirect's manual: P (two sided) = 0.0129."""
        assert round(mcnemar(20, 12, 2, 16).p_exact, 4) == 0.0129

    @pytest.mark.parametrize(
        ("counts", "level", "limits"),
        [
            pytest.param((43, 0, 1, 0), 0.90, (-0.096, 0.037), id="Tango 1998, contact lenses"),
            pytest.param((4, 9, 3, 16), 0.95, (-0.027, 0.390), id="Tango 1998, crossover trial"),
            pytest.param((53, 16, 8, 9), 0.95, (-0.020, 0.207), id="Agresti and Min 2005"),
        ],
    )
    def test_published_intervals(self, counts, level: float, limits: tuple[float, float]) -> None:
        """As collected in the tests of the R package ratesci (tests/testthat, "legacy & new methods match …")."""
        found = mcnemar(*counts, level=level)
        assert (round(found.low, 3), round(found.high, 3)) == limits

    @settings(max_examples=100, deadline=None)
    @given(COUNTS)
    def test_p_values_are_those_of_a_fair_coin(self, counts) -> None:
        found = mcnemar(*counts)
        b, c = counts[1:3]
        assert found.p_exact == pytest.approx(stats.binomtest(b, b + c, 0.5).pvalue if b + c else 1)
        mid = found.p_exact - stats.binom.pmf(b, b + c, 0.5) if b != c else 1
        assert found.p_mid == pytest.approx(mid)

    @settings(max_examples=150, deadline=None)
    @given(COUNTS, st.sampled_from([0.5, 0.9, 0.95, 0.999]))
    def test_limits_enclose_the_difference_and_swapping_models_changes_the_sign(self, counts, level: float) -> None:
        found = mcnemar(*counts, level=level)
        swapped = mcnemar(counts[0], counts[2], counts[1], counts[3], level=level)
        assert -1 <= found.low <= found.difference <= found.high <= 1
        assert found.low < found.high
        assert (swapped.low, swapped.high, swapped.difference) == (-found.high, -found.low, -found.difference)
        assert (swapped.p_exact, swapped.p_mid, swapped.variance) == (found.p_exact, found.p_mid, found.variance)

    @settings(max_examples=100, deadline=None)
    @given(COUNTS.filter(lambda counts: counts[1] != counts[2]))
    def test_the_interval_leaves_out_0_when_mcnemars_statistic_is_beyond_the_quantile(self, counts) -> None:
        b, c = counts[1:3]
        found = mcnemar(*counts)
        beyond = (b - c) ** 2 / (b + c) > stats.chi2.ppf(0.95, 1)
        assert beyond == (found.low > 0 or found.high < 0)

    def test_models_that_never_differ_still_leave_doubt(self) -> None:
        """By hand: Tango's limits are then ±z²/(n + z²)."""
        found = mcnemar(90, 0, 0, 10)
        square = stats.chi2.ppf(0.95, 1)
        assert (found.low, found.high) == pytest.approx((-square / (100 + square), square / (100 + square)))
        assert (found.variance, found.p_exact, found.p_mid) == (0.0, 1.0, 1.0)

    def test_a_model_that_alone_is_always_right(self) -> None:
        found = mcnemar(0, 12, 0, 0)
        assert (found.difference, found.high) == (1.0, 1.0)
        assert 0 < found.low < 1

    def test_variance_is_that_of_the_differences_of_patients(self) -> None:
        differences = [0] * 13 + [1] + [-1] * 7
        assert mcnemar(1, 1, 7, 12).variance == pytest.approx(np.var(differences) / 21)

    def test_millions_of_patients_and_any_level(self) -> None:
        found = mcnemar(10**7, 10**6, 10**6 + 5000, 10**7)
        half = 1.959964 * math.sqrt(found.variance)
        assert (found.low, found.high) == pytest.approx((found.difference - half, found.difference + half), rel=1e-3)
        narrow = mcnemar(10**6, 0, 0, 10**6, level=1e-9)
        assert narrow.low <= 0 <= narrow.high

    @pytest.mark.parametrize(
        ("counts", "level", "complaint"),
        [
            ((1, -1, 1, 1), 0.95, "not negative"),
            ((1, 1.5, 1, 1), 0.95, "whole"),
            ((0, 0, 0, 0), 0.95, "no patient"),
            ((1, 1, 1, 1), 0.0, "level"),
        ],
    )
    def test_what_are_no_counts_is_an_error(self, counts, level: float, complaint: str) -> None:
        with pytest.raises(DataError, match=complaint):
            mcnemar(*counts, level=level)


VALUES = st.lists(st.tuples(st.floats(-1, 1), st.floats(-1, 1)), min_size=1, max_size=12)


class TestPairedBootstrap:
    def test_the_interval_is_near_the_one_of_the_normal_distribution(self) -> None:
        rng = np.random.default_rng(3)
        a, b = rng.normal(0.1, 1, 400), rng.normal(0, 1, 400)
        found = paired_bootstrap(a, b, seed=1)
        half = 1.96 * (a - b).std() / 20
        assert found.estimate == pytest.approx((a - b).mean())
        assert (found.low, found.high) == pytest.approx(((a - b).mean() - half, (a - b).mean() + half), abs=0.03)

    @settings(max_examples=50, deadline=None)
    @given(VALUES, st.integers(0, 5), st.randoms())
    def test_order_changes_nothing_and_swapping_models_changes_the_sign(self, rows, seed: int, random) -> None:
        a, b = zip(*rows, strict=True)
        found = paired_bootstrap(a, b, seed=seed, samples=60)
        mixed = list(rows)
        random.shuffle(mixed)
        assert paired_bootstrap(*zip(*mixed, strict=True), seed=seed, samples=60) == found
        swapped = paired_bootstrap(b, a, seed=seed, samples=60)
        assert swapped == Interval(-found.estimate, -found.high, -found.low)

    def test_another_seed_draws_anew(self) -> None:
        a, b = [0.1, 0.5, 0.9, 0.3], [0.2, 0.3, 0.5, 0.2]
        assert paired_bootstrap(a, b, seed=0, samples=50) != paired_bootstrap(a, b, seed=1, samples=50)

    def test_a_patient_without_a_value_is_left_out_of_both(self) -> None:
        found = paired_bootstrap([0.5, math.nan, 1.0], [0.25, 0.5, math.nan], seed=0)
        assert found == Interval(0.25, 0.25, 0.25)

    @pytest.mark.parametrize(
        ("a", "b", "changes", "complaint"),
        [
            ([1.0], [1.0, 2.0], {}, "one value of each model"),
            ([[1.0]], [[1.0]], {}, "one value of each model"),
            ([math.nan], [1.0], {}, "no patient"),
            ([math.inf], [math.inf], {}, "infinite"),
            ([1.0], [0.0], {"samples": 0}, "at least one sample"),
            ([1.0], [0.0], {"level": 1.0}, "level"),
        ],
    )
    def test_what_can_not_be_compared_is_an_error(self, a, b, changes, complaint: str) -> None:
        with pytest.raises(DataError, match=complaint):
            paired_bootstrap(a, b, seed=0, **changes)


class TestNonInferior:
    @pytest.mark.parametrize(
        ("difference", "low", "high", "outcome", "words"),
        [
            (0.02, 0.01, 0.03, "shown", "better than the reference; the margin was 0.05."),
            (0.02, 0.0, 0.04, "shown", "at worst as good as the reference"),
            (-0.02, -0.04, -0.01, "shown", "at worst 0.04 below the reference, less than the margin of 0.05."),
            (0.0, -0.05, 0.05, "not_shown", "may be as much as 0.05 below the reference; the margin is 0.05."),
            (-0.06, -0.08, -0.05, "not_shown", "may be as much as 0.08 below"),
            (-0.1, -0.14, -0.06, "inferior_shown", "at least 0.06 below the reference, more than the margin of 0.05."),
        ],
    )
    def test_outcomes(self, difference: float, low: float, high: float, outcome: str, words: str) -> None:
        found = non_inferior(difference, low, high, 0.05)
        assert found.outcome == outcome
        assert words in found.sentence

    @given(st.floats(-1, 1), st.floats(0, 1), st.floats(0, 1), st.floats(0.001, 1))
    def test_it_is_never_shown_together_with_inferiority(self, difference, below, above, margin) -> None:
        low, high = difference - below, difference + above
        outcome = non_inferior(difference, low, high, margin).outcome
        assert (outcome == "shown") == (low > -margin)
        assert (outcome == "inferior_shown") == (high < -margin)

    @pytest.mark.parametrize(
        ("numbers", "complaint"),
        [
            ((0.0, -0.1, 0.1, 0.0), "above 0"),
            ((0.0, 0.1, 0.2, 0.1), "enclose"),
            ((0.0, math.nan, 0.1, 0.1), "finite"),
            ((0.0, -0.1, 0.1, math.inf), "finite"),
        ],
    )
    def test_what_says_nothing_is_an_error(self, numbers: tuple[float, ...], complaint: str) -> None:
        with pytest.raises(DataError, match=complaint):
            non_inferior(*numbers)


P_VALUES = st.lists(st.floats(0, 1), max_size=8)


class TestHolm:
    def test_four_hypotheses_by_hand(self) -> None:
        """4·0.005, 3·0.01, 2·0.03, and 0.04 not below the one before."""
        assert holm_adjusted([0.01, 0.04, 0.03, 0.005]) == pytest.approx((0.03, 0.06, 0.06, 0.02))
        assert holm([0.01, 0.04, 0.03, 0.005]) == (True, False, False, True)

    @given(P_VALUES)
    def test_stepping_down_as_holm_wrote_it_rejects_the_same(self, p_values: list[float]) -> None:
        rejected = [False] * len(p_values)
        for step, index in enumerate(sorted(range(len(p_values)), key=p_values.__getitem__)):
            if (len(p_values) - step) * p_values[index] > 0.05:
                break
            rejected[index] = True
        assert holm(p_values) == tuple(rejected)

    @given(P_VALUES, st.randoms())
    def test_adjusted_values_lie_between_plain_and_bonferroni_in_any_order(self, p_values, random) -> None:
        adjusted = holm_adjusted(p_values)
        for own, plain in zip(adjusted, p_values, strict=True):
            assert plain <= own <= min(1.0, len(p_values) * plain)
        mixed = list(range(len(p_values)))
        random.shuffle(mixed)
        assert holm_adjusted([p_values[i] for i in mixed]) == tuple(adjusted[i] for i in mixed)

    def test_what_is_no_probability_is_an_error(self) -> None:
        for wrong in (1.5, -0.1, math.nan):
            with pytest.raises(DataError, match="between 0 and 1"):
                holm_adjusted([0.5, wrong])
            with pytest.raises(DataError, match="between 0 and 1"):
                holm([0.5, wrong])
        with pytest.raises(DataError, match="level"):
            holm([0.5], level=0.0)


class TestStratified:
    def test_by_hand(self) -> None:
        found = stratified([0.1, 0.4], [0.01, 0.02])
        assert (found.value, found.variance) == pytest.approx((0.2, 1 / 150))

    @given(st.lists(st.tuples(st.floats(-1, 1), st.floats(1e-6, 1)), min_size=1, max_size=8), st.randoms())
    def test_the_order_of_sites_changes_no_bit_and_turned_models_change_the_sign(self, sites, random) -> None:
        mixed = list(sites)
        random.shuffle(mixed)
        found = stratified(*zip(*sites, strict=True))
        assert stratified(*zip(*mixed, strict=True)) == found
        turned = stratified([-difference for difference, _ in sites], [variance for _, variance in sites])
        assert turned == Estimate(-found.value, found.variance)
        assert found.variance <= min(variance for _, variance in sites) * (1 + 1e-12)

    def test_sites_that_agree_give_the_same_as_with_random_effects(self) -> None:
        differences, errors = [0.1, 0.12, 0.09], [0.1, 0.2, 0.15]
        found = stratified(differences, [error**2 for error in errors])
        assert found.value == pytest.approx(random_effects(differences, errors).estimate)

    def test_two_sites_with_half_the_patients_each_are_near_one_with_all(self) -> None:
        rng = np.random.default_rng(5)
        truth = rng.integers(0, 2, 4000)
        a, b = truth + rng.normal(size=4000), truth + 2 * rng.normal(size=4000)
        parts = [delong_pair(a[half], b[half], truth[half]) for half in (slice(2000), slice(2000, None))]
        found = stratified([part.value for part in parts], [part.variance for part in parts])
        whole = delong_pair(a, b, truth)
        assert found.value == pytest.approx(whole.value, abs=whole.standard_error)
        assert found.variance == pytest.approx(whole.variance, rel=0.05)

    @pytest.mark.parametrize(
        ("differences", "variances", "complaint"),
        [
            ([], [], "at least one site"),
            ([0.1, 0.2], [0.1], "one variance for each"),
            ([math.nan], [0.1], "not finite"),
            ([0.1], [math.inf], "not finite"),
            ([0.1, 0.2], [0.1, 0.0], "not positive"),
        ],
    )
    def test_what_can_not_be_combined_is_an_error(self, differences, variances, complaint: str) -> None:
        with pytest.raises(DataError, match=complaint):
            stratified(differences, variances)

"""Binned scores: adding sites is pooling patients, and AUC and its error are those of the binned patients."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from sklearn.metrics import roc_auc_score, roc_curve

from eucaim_fl.errors import DataError
from eucaim_fl.validation.binned import (
    HUNDREDTHS,
    BinnedScores,
    auc_bounds,
    auc_interval,
    auc_of,
    bin_scores,
    delong_error,
    edges_with,
    pooled_scores,
    roc_points,
    widest_auc_interval,
)
from eucaim_fl.validation.pooling import BINS, classification_summary, histogram_auc

HALVES = (0.0, 0.5, 1.0)
HANLEY = BinnedScores((0, 1, 2, 3, 4, 5), (33, 6, 6, 11, 2), (3, 2, 2, 11, 33))
"""Ratings of CT images, Hanley and McNeil 1982, table I."""

WFNS = ((37, 20, 3, 8, 4), (2, 12, 1, 8, 18))
"""Patients by grade of the World Federation of Neurosurgical Societies, with a good and with a poor outcome."""

Patients = tuple[NDArray[np.float64], NDArray[np.int64]]


@st.composite
def patients(draw: st.DrawFn, least: int = 2) -> Patients:
    """Scores, many of them equal, of at least so many patients of each class."""
    number = st.integers(least, 12)
    negatives, positives = draw(number), draw(number)
    size = negatives + positives
    scores = draw(st.lists(st.integers(0, 40).map(lambda k: k / 40), min_size=size, max_size=size))
    return np.array(scores), np.array([0] * negatives + [1] * positives)


def one_by_one(scores: BinnedScores) -> Patients:
    """The binned patients: the number of the bin as the score."""
    bins = np.arange(len(scores.negative))
    both = np.concatenate([np.repeat(bins, scores.negative), np.repeat(bins, scores.positive)])
    return both.astype(np.float64), np.repeat([0, 1], scores.patients)


def brute_delong(scores: NDArray[np.float64], truth: NDArray[np.int64]) -> tuple[float, float]:
    """AUC and standard error from every pair of patients."""
    high, low = scores[truth == 1], scores[truth == 0]
    pairs = np.array([[1.0 if x > y else 0.5 if x == y else 0.0 for y in low] for x in high])
    variance = pairs.mean(axis=1).var(ddof=1) / len(high) + pairs.mean(axis=0).var(ddof=1) / len(low)
    return float(pairs.mean()), math.sqrt(variance)


def brute_within(scores: NDArray[np.float64], truth: NDArray[np.int64], site: NDArray[np.int64]) -> float:
    """Standard error from every pair of patients, in which sites were not drawn by chance; none has one of a class."""
    high, low = scores[truth == 1], scores[truth == 0]
    pairs = np.array([[1.0 if x > y else 0.5 if x == y else 0.0 for y in low] for x in high])
    variance = 0.0
    for components, of in ((pairs.mean(axis=1), site[truth == 1]), (pairs.mean(axis=0), site[truth == 0])):
        for one in set(of.tolist()):
            inside = components[of == one]
            variance += (len(inside) / len(of)) ** 2 * inside.var(ddof=1) / len(inside)
    return math.sqrt(variance)


def at_sites(of: Patients, cut: int, edges: Sequence[float]) -> list[BinnedScores]:
    """The first patients of each class at one site, the others at another."""
    scores, truth = of
    first = np.concatenate([np.arange((truth == k).sum()) < cut for k in (0, 1)])
    return [bin_scores(scores[inside], truth[inside], edges) for inside in (first, ~first)]


def exact(scores: NDArray[np.float64], truth: NDArray[np.int64]) -> BinnedScores:
    """Bins so fine that patients in one have the same score."""
    places = np.unique(scores)
    return bin_scores(scores, truth, [*places, places[-1] + 1])


class TestBinnedScores:
    @pytest.mark.parametrize(
        "edges", [(0.0,), (0.0, 0.0, 1.0), (1.0, 0.5, 0.0), (0.0, math.nan, 1.0), (0, 1, math.inf)]
    )
    def test_edges_ascend(self, edges: tuple[float, ...]) -> None:
        with pytest.raises(DataError, match="ascend"):
            BinnedScores(edges, (1,) * (len(edges) - 1), (1,) * (len(edges) - 1))

    def test_each_bin_has_a_count_of_both_classes(self) -> None:
        with pytest.raises(DataError, match="one count for each bin"):
            BinnedScores(HALVES, (1, 2), (1, 2, 3))

    @pytest.mark.parametrize("count", [-1, 0.5, math.nan, math.inf, 1e17])
    def test_counts_are_whole_and_not_negative(self, count: float) -> None:
        with pytest.raises(DataError, match="whole numbers"):
            BinnedScores(HALVES, (count, 2), (1, 2))  # type: ignore[arg-type]

    def test_sums_lie_within_their_bins(self) -> None:
        assert BinnedScores(HALVES, (2, 0), (0, 1), ((0.6, 0), (0, 0.9)), 0.18 + 0.81).squares == pytest.approx(0.99)
        with pytest.raises(DataError, match="within its bin"):
            BinnedScores(HALVES, (2, 0), (0, 1), ((1.1, 0), (0, 0.9)))
        with pytest.raises(DataError, match="one sum for each bin"):
            BinnedScores(HALVES, (2, 0), (0, 1), ((1.0,), (0, 0.9)))
        with pytest.raises(DataError, match="squares is not that"):
            BinnedScores(HALVES, (2, 0), (0, 1), ((0.6, 0), (0, 0.9)), 0.9)
        with pytest.raises(DataError, match="without sums"):
            BinnedScores(HALVES, (2, 0), (0, 1), squares=0.9)

    def test_squares_have_bounds_only_with_sums(self) -> None:
        with pytest.raises(DataError, match="Without sums"):
            BinnedScores(HALVES, (2, 0), (0, 1)).square_bounds()

    def test_lists_of_floats_as_in_json_become_tuples_of_counts(self) -> None:
        scores = BinnedScores([0, 0.5, 1], [3.0, 1.0], [0.0, 2.0])  # type: ignore[arg-type]
        assert scores == BinnedScores(HALVES, (3, 1), (0, 2))
        assert scores.patients == (4, 2)

    def test_a_threshold_is_an_edge(self) -> None:
        scores = BinnedScores((0, 0.1, 0.2, 1), (1, 1, 1), (1, 1, 1))
        assert [scores.bin_from(t) for t in (0, 0.1, 0.3 - 0.1)] == [0, 1, 2]
        for threshold in (0.15, 1.0, math.nan):
            with pytest.raises(DataError, match="no edge of a bin"):
                scores.bin_from(threshold)


class TestEdges:
    def test_thresholds_become_edges(self) -> None:
        edges = edges_with([0.3, 0.333])
        assert len(edges) == 102
        assert {0.3, 0.333} <= set(edges)

    @pytest.mark.parametrize(("thresholds", "bins"), [([1.0], 4), ([-0.1], 4), ([], 0)])
    def test_others_are_refused(self, thresholds: list[float], bins: int) -> None:
        with pytest.raises(DataError, match="Bins must be positive"):
            edges_with(thresholds, bins)

    def test_hundredths_are_the_bins_of_the_histograms_that_sites_send(self) -> None:
        draws = np.random.default_rng(0)
        scores, truth = draws.random(300), draws.integers(0, 2, 300)
        sent = classification_summary("test", np.stack([1 - scores, scores], axis=1), truth, histograms=True)
        binned = bin_scores(scores, truth, HUNDREDTHS)
        assert len(binned.negative) == BINS
        assert binned.positive == sent.sums["scores_1_positive"]
        assert binned.negative == sent.sums["scores_1_negative"]


class TestBinScores:
    def test_a_score_on_an_edge_lies_above_it_except_on_the_last(self) -> None:
        scores = bin_scores(np.array([0, 0.5, 1, 0.49]), np.array([0, 0, 1, 1]), HALVES, sums=True)
        assert scores == BinnedScores(HALVES, (1, 1), (1, 1), ((0, 0.5), (0.49, 1)), 0.25 + 1 + 0.49**2)

    def test_other_scores_are_refused(self) -> None:
        for wrong in (1.1, math.nan):
            with pytest.raises(DataError, match="outside the bins"):
                bin_scores(np.array([0.5, wrong]), np.array([0, 1]), HALVES)
        for truth in ([0, 2], [0], [[0, 1]]):
            with pytest.raises(DataError, match="one score and one class"):
                bin_scores(np.array([0.5, 0.6]), np.array(truth), HALVES)


class TestPooledScores:
    @settings(max_examples=50)
    @given(patients(least=0), st.integers(0, 24), st.randoms(use_true_random=False))
    def test_adding_sites_is_pooling_patients(self, of: Patients, cut: int, draws: object) -> None:
        scores, truth = of
        edges = edges_with([0.33], bins=7)
        sites = [bin_scores(scores[part], truth[part], edges, sums=True) for part in (slice(cut), slice(cut, None))]
        added, whole = pooled_scores(sites), bin_scores(scores, truth, edges, sums=True)
        assert (added.negative, added.positive) == (whole.negative, whole.positive)
        np.testing.assert_allclose(added.sums, whole.sums, atol=1e-12)
        assert added.squares == pytest.approx(whole.squares)
        assert pooled_scores(sites[::-1]) == added

    def test_sums_that_a_site_lacks_are_not_known(self) -> None:
        bare = BinnedScores(HALVES, (1, 0), (0, 1))
        full = BinnedScores(HALVES, (1, 0), (0, 1), ((0.1, 0), (0, 0.9)))
        assert pooled_scores([full, bare]).sums is None
        assert pooled_scores([full, full]).sums == ((0.2, 0), (0, 1.8))

    def test_other_bins_are_refused(self) -> None:
        with pytest.raises(DataError, match="different bins"):
            pooled_scores([BinnedScores(HALVES, (1, 0), (0, 1)), BinnedScores((0, 0.4, 1), (1, 0), (0, 1))])
        with pytest.raises(DataError, match="no site"):
            pooled_scores([])


class TestRoc:
    @settings(max_examples=50)
    @given(patients(least=1))
    def test_the_points_are_those_of_the_patients_at_the_edges(self, of: Patients) -> None:
        scores, truth = of
        points = roc_points(bin_scores(scores, truth, edges_with(bins=5)))
        assert points[0, 1:].tolist() == [0, 0]
        assert points[-1, 1:].tolist() == [1, 1]
        for threshold, fall_out, sensitivity in points[1:]:
            assert fall_out == pytest.approx(np.mean(scores[truth == 0] >= threshold))
            assert sensitivity == pytest.approx(np.mean(scores[truth == 1] >= threshold))

    def test_hanley_and_mcneil_have_the_curve_of_scikit_learn(self) -> None:
        ratings, truth = one_by_one(HANLEY)
        fall_out, sensitivity, _ = roc_curve(truth, ratings, drop_intermediate=False)
        np.testing.assert_allclose(roc_points(HANLEY)[:, 1:], np.stack([fall_out, sensitivity], axis=1))


class TestAuc:
    @settings(max_examples=50)
    @given(patients(least=1))
    def test_it_is_that_of_the_binned_patients_and_the_true_one_lies_within_the_bound(self, of: Patients) -> None:
        binned = bin_scores(*of, edges_with(bins=6))
        bounds, truth = auc_bounds(binned), one_by_one(binned)[1]
        assert bounds.value == pytest.approx(roc_auc_score(truth, one_by_one(binned)[0]))
        assert float(auc_of(binned.counts)) == pytest.approx(histogram_auc(binned.negative, binned.positive)[0])
        assert bounds.lowest - 1e-12 <= roc_auc_score(of[1], of[0]) <= bounds.highest + 1e-12

    @settings(max_examples=50)
    @given(patients(least=2))
    def test_the_order_of_bins_reversed_mirrors_it(self, of: Patients) -> None:
        binned = bin_scores(*of, edges_with(bins=6))
        edges = tuple(1 - edge for edge in binned.edges[::-1])
        mirrored = BinnedScores(edges, binned.negative[::-1], binned.positive[::-1])
        there, back = auc_interval(binned), auc_interval(mirrored)
        assert [1 - back.estimate, 1 - back.high, 1 - back.low] == pytest.approx(
            [there.estimate, there.low, there.high]
        )
        assert delong_error(mirrored).value == pytest.approx(delong_error(binned).value)

    def test_without_a_class_there_is_none(self) -> None:
        none = BinnedScores(HALVES, (1, 2), (0, 0))
        assert math.isnan(auc_bounds(none).value)
        assert np.isnan(auc_of(none.counts))


class TestDelong:
    def test_hanley_and_mcneil_have_the_published_area_error_and_limits(self) -> None:
        # area 0.893: Hanley and McNeil 1982; error and limits 0.0307, 0.83295 to 0.95339: Stata's manual, roctab
        error = delong_error(HANLEY).value
        area = auc_bounds(HANLEY).value
        assert area == pytest.approx(0.8932, abs=5e-5)
        assert error == pytest.approx(0.0307, abs=5e-5)
        assert [area - 1.959964 * error, area + 1.959964 * error] == pytest.approx([0.83295, 0.95339], abs=5e-5)

    @settings(max_examples=50)
    @given(patients(least=2))
    def test_it_is_that_of_all_pairs_and_the_true_one_lies_within_the_bound(self, of: Patients) -> None:
        binned = bin_scores(*of, edges_with(bins=6))
        error = delong_error(binned)
        assert error.value == pytest.approx(brute_delong(*one_by_one(binned))[1], abs=1e-9)
        assert error.lowest - 1e-9 <= brute_delong(*of)[1] <= error.highest + 1e-9

    def test_one_patient_of_a_class_has_no_variance(self) -> None:
        one = BinnedScores(HALVES, (1, 2), (0, 1))
        assert math.isnan(delong_error(one).value)
        assert math.isnan(delong_error(one, [one]).value)

    def test_of_the_wfns_grades_of_proc_it_gives_the_published_area_and_limits(self) -> None:
        """Grades 1 to 5 of 72 patients with a good and 41 with a poor outcome (Turck et al. 2010; pROC's aSAH).

        AUC and variance: pROC's tests/testthat/test-var.R.
        """
        grades = BinnedScores((1, 2, 3, 4, 5, 6), *WFNS)
        area, error = auc_bounds(grades).value, delong_error(grades).value
        assert (area, error**2) == pytest.approx((0.823678861788618, 0.00146991470882363), rel=1e-12)
        assert [area - 1.959964 * error, area + 1.959964 * error] == pytest.approx([0.7485, 0.8988], abs=5e-5)


class TestDelongOverSites:
    @settings(max_examples=50)
    @given(patients(least=4), st.integers(2, 2))
    def test_it_is_that_of_all_pairs_within_sites_and_the_true_one_lies_within_the_bound(
        self, of: Patients, cut: int
    ) -> None:
        scores, truth = of
        site = np.concatenate([np.arange((truth == k).sum()) < cut for k in (0, 1)]).astype(np.int64)
        for edges in ([*np.unique(scores), 2.0], edges_with(bins=6)):
            sites = at_sites(of, cut, edges)
            found = delong_error(pooled_scores(sites), sites)
            true = brute_within(scores, truth, site)
            assert found.lowest - 1e-9 <= true <= found.highest + 1e-9
            if len(edges) != 7:
                assert found.value == pytest.approx(true, abs=1e-9)
        assert delong_error(pooled_scores(sites), sites[::-1]) == found

    @settings(max_examples=30)
    @given(patients(least=2))
    def test_of_one_site_it_is_the_plain_one(self, of: Patients) -> None:
        one = bin_scores(*of, edges_with(bins=6))
        assert delong_error(one, [one]) == delong_error(one)
        assert auc_interval(one, sites=[one]) == auc_interval(one)
        assert widest_auc_interval(one, sites=[one]) == widest_auc_interval(one)

    def test_differences_between_sites_are_no_error_of_these_sites(self) -> None:
        draws, edges = np.random.default_rng(8), tuple(np.linspace(-9, 9, 101))
        truth = np.repeat([0, 1], [60, 40])
        sites = [bin_scores(draws.normal(shift + truth), truth, edges) for shift in (-1.0, 0.0, 1.0)]
        pooled = pooled_scores(sites)
        within, whole = auc_interval(pooled, sites=sites), auc_interval(pooled)
        assert within.estimate == whole.estimate
        assert within.high - within.low < 0.9 * (whole.high - whole.low)
        widest = widest_auc_interval(pooled, sites=sites)
        assert widest.low < within.low < within.high < widest.high

    def test_sites_with_one_patient_of_a_class_are_put_together(self) -> None:
        edges = (0, 1, 2, 3)
        large, first, second = (
            BinnedScores(edges, (4, 2, 1), (1, 3, 2)), BinnedScores(edges, (3, 1, 0), (0, 0, 1)),
            BinnedScores(edges, (1, 2, 2), (1, 0, 0)),
        )  # fmt: skip
        whole = pooled_scores([large, first, second])
        # of those without the disease every site has two and more, of the diseased two sites have one
        apart = [large, BinnedScores(edges, (3, 1, 0), (1, 0, 1)), BinnedScores(edges, (1, 2, 2), (0, 0, 0))]
        assert delong_error(whole, [large, first, second]).value == delong_error(whole, apart).value
        with_smallest = [large, BinnedScores(edges, (3, 1, 0), (0, 0, 0)), BinnedScores(edges, (1, 2, 2), (0, 1, 1))]
        other = [large, BinnedScores(edges, (3, 1, 0), (0, 0, 1)), BinnedScores(edges, (1, 2, 2), (0, 1, 0))]
        pair = pooled_scores(other)
        assert delong_error(pair, other).value == delong_error(pair, with_smallest).value


class TestAucInterval:
    def test_it_is_on_the_logit_scale(self) -> None:
        # 0.8932 and its error 0.0307 by hand: logit 2.1236, error on that scale 0.3219
        found = auc_interval(HANLEY)
        assert [found.low, found.high] == pytest.approx([0.8164, 0.9402], abs=2e-4)

    @settings(max_examples=80)
    @given(patients(least=1), st.integers(2, 30))
    def test_that_of_the_scores_themselves_lies_within_the_widest(self, of: Patients, bins: int) -> None:
        binned = bin_scores(*of, edges_with(bins=bins))
        widest, own, true = widest_auc_interval(binned), auc_interval(binned), auc_interval(exact(*of))
        for inner in (own, true):
            assert widest.low - 1e-6 <= inner.low <= inner.high <= widest.high + 1e-6

    def test_bins_in_which_nobody_is_tied_leave_no_doubt(self) -> None:
        apart = BinnedScores((0, 1, 2, 3, 4), (5, 0, 4, 0), (0, 3, 0, 6))
        assert widest_auc_interval(apart) == auc_interval(apart)

    def test_classes_that_do_not_overlap_have_an_interval_with_a_width(self) -> None:
        found = auc_interval(BinnedScores(HALVES, (20, 0), (0, 20)))
        assert found.estimate == found.high == 1
        assert 0.85 < found.low < 0.95
        worst = auc_interval(BinnedScores(HALVES, (0, 20), (20, 0)))
        assert [worst.low, worst.high] == pytest.approx([0, 1 - found.low])
        few = auc_interval(BinnedScores(HALVES, (4, 0), (0, 1)))
        assert few.low < 0.6
        assert few.high == 1

    def test_others_are_refused(self) -> None:
        for interval in (auc_interval, widest_auc_interval):
            with pytest.raises(DataError, match="both classes"):
                interval(BinnedScores(HALVES, (1, 2), (0, 0)))
        with pytest.raises(DataError, match="level between"):
            auc_interval(HANLEY, level=1)
        with pytest.raises(DataError, match="both classes"):
            widest_auc_interval(BinnedScores(HALVES, (1, 2), (0, 0)))

    @pytest.mark.parametrize(("shift", "truth"), [(1.0, 0.760250), (2.5, 0.961450)])
    def test_it_covers_the_truth_about_as_often_as_it_says(self, shift: float, truth: float) -> None:
        # Φ(shift/√2) is the AUC of two normal distributions; binning into 64 moves it by less than 0.001
        draws, covered, runs = np.random.default_rng(4), 0, 300
        edges = [-math.inf, *np.linspace(-3, 3 + shift, 63), math.inf]
        for _ in range(runs):
            low, high = draws.normal(size=60), draws.normal(shift, size=30)
            counts = [np.histogram(side, edges)[0].tolist() for side in (low, high)]
            found = auc_interval(BinnedScores(tuple(range(65)), tuple(counts[0]), tuple(counts[1])))
            covered += found.low <= truth <= found.high
        assert 0.92 <= covered / runs <= 0.985

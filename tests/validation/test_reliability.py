"""Whether probabilities are right, from binned scores."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy.special import expit, logit
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import brier_score_loss

from eucaim_fl.errors import DataError
from eucaim_fl.validation.binned import BinnedScores, bin_scores, edges_with, pooled_scores
from eucaim_fl.validation.metrics import calibration_line
from eucaim_fl.validation.reliability import (
    CalibrationLine,
    binned_brier,
    binned_calibration_error,
    binned_calibration_line,
    binned_calibration_lines,
    brier_figure,
    calibration_bins,
    calibration_error_figure,
    calibration_line_figure,
)

RATINGS = BinnedScores((0, 1, 2), (1, 1), (1, 1))
"""Scores that are no probabilities."""

Patients = tuple[NDArray[np.float64], NDArray[np.int64]]


def cohort(seed: int, size: int, slope: float = 0.7, intercept: float = -0.4) -> Patients:
    """Probabilities of patients, whose true logit is intercept + slope · logit p."""
    draws = np.random.default_rng(seed)
    logits = draws.normal(-0.5, 1.5, size=size)
    return np.asarray(expit(logits)), (draws.random(size) < expit(intercept + slope * logits)).astype(np.int64)


def drawn() -> st.SearchStrategy[Patients]:
    """Probabilities and classes of a few patients."""
    one = st.tuples(st.integers(0, 50).map(lambda k: k / 50), st.integers(0, 1))
    return st.lists(one, min_size=1, max_size=20).map(
        lambda rows: (np.array([p for p, _ in rows]), np.array([y for _, y in rows]))
    )


class TestBrier:
    @settings(max_examples=60)
    @given(drawn(), st.integers(2, 12), st.booleans())
    def test_the_true_one_lies_within_the_bound(self, of: Patients, bins: int, sums: bool) -> None:
        true = brier_score_loss(of[1], of[0], labels=[0, 1], pos_label=1)
        binned = bin_scores(*of, edges_with(bins=bins), sums=sums)
        found = binned_brier(BinnedScores(binned.edges, binned.negative, binned.positive, binned.sums))
        assert found.lowest - 1e-9 <= true <= found.highest + 1e-9
        assert found.lowest - 1e-9 <= found.value <= found.highest + 1e-9
        if sums:
            assert found.highest - found.lowest <= 1 / (4 * bins**2) + 1e-9
            assert [binned_brier(binned).lowest, binned_brier(binned).highest] == pytest.approx([true, true], abs=1e-9)

    def test_of_added_sites_with_sums_it_is_that_of_all_patients(self) -> None:
        sites = [cohort(seed, 80) for seed in range(3)]
        pooled = pooled_scores([bin_scores(*site, edges_with(), sums=True) for site in sites])
        true = brier_score_loss(np.concatenate([y for _, y in sites]), np.concatenate([p for p, _ in sites]))
        assert binned_brier(pooled).value == pytest.approx(true, abs=1e-12)
        assert brier_figure(pooled)(pooled.counts[None])[0] == pytest.approx(true, abs=0.25 / 100**2)

    def test_others_are_refused(self) -> None:
        assert math.isnan(binned_brier(BinnedScores((0, 1), (0,), (0,))).value)
        with pytest.raises(DataError, match="probabilities"):
            binned_brier(RATINGS)
        with pytest.raises(DataError, match="probabilities"):
            brier_figure(RATINGS)


class TestCalibrationBins:
    def test_they_hold_every_patient_once_with_the_mean_of_the_scores(self) -> None:
        scores, truth = cohort(0, 400)
        found = calibration_bins(bin_scores(scores, truth, edges_with(), sums=True), groups=8)
        assert len(found) == 8
        assert sum(one.patients for one in found) == 400
        for one in found:
            inside = (scores >= one.low) & (scores < one.high)
            assert one.patients == inside.sum()
            assert one.mean_score.value == pytest.approx(scores[inside].mean())
            assert one.mean_score.lowest == one.mean_score.highest == one.mean_score.value
            assert one.observed.estimate == pytest.approx(truth[inside].mean())
            assert one.observed.low < one.observed.estimate < one.observed.high
            assert 30 <= one.patients <= 70

    def test_without_sums_the_mean_lies_between_the_edges(self) -> None:
        found = calibration_bins(BinnedScores((0, 0.2, 0.6, 1), (3, 1, 0), (0, 1, 3)), groups=3)
        assert [one.mean_score.value for one in found] == pytest.approx([0.1, 0.4, 0.8])
        assert [one.mean_score.highest for one in found] == pytest.approx([0.2, 0.6, 1.0])

    def test_others_are_refused(self) -> None:
        with pytest.raises(DataError, match="at least one group"):
            calibration_bins(BinnedScores((0, 1), (1,), (1,)), groups=0)
        with pytest.raises(DataError, match="no interval"):
            calibration_bins(BinnedScores((0, 1), (1,), (1,)), level=2)
        with pytest.raises(DataError, match="probabilities"):
            calibration_bins(RATINGS)


class TestCalibrationError:
    @settings(max_examples=60)
    @given(drawn(), st.integers(2, 12), st.integers(1, 5))
    def test_that_of_the_scores_themselves_lies_within_the_bound(self, of: Patients, bins: int, groups: int) -> None:
        scores, truth = of
        binned = bin_scores(scores, truth, edges_with(bins=bins))
        true = 0.0
        for one in calibration_bins(binned, groups):
            inside = (scores >= one.low) & ((scores < one.high) | (one.high == 1))
            true += inside.mean() * abs(truth[inside].mean() - scores[inside].mean())
        found = binned_calibration_error(binned, groups)
        assert found.lowest - 1e-9 <= true <= found.highest + 1e-9
        with_sums = bin_scores(scores, truth, edges_with(bins=bins), sums=True)
        assert binned_calibration_error(with_sums, groups).value == pytest.approx(true, abs=1e-9)
        figure = calibration_error_figure(with_sums, groups)
        assert figure(with_sums.counts[None])[0] == pytest.approx(true, abs=1e-9)

    def test_others_are_refused(self) -> None:
        assert math.isnan(binned_calibration_error(BinnedScores((0, 1), (0,), (0,))).value)
        for call in (binned_calibration_error, calibration_error_figure):
            with pytest.raises(DataError, match="probabilities"):
                call(RATINGS)
        with pytest.raises(DataError, match="at least one group"):
            binned_calibration_error(BinnedScores((0, 1), (1,), (1,)), groups=0)
        with pytest.raises(DataError, match="at least one group"):
            calibration_error_figure(BinnedScores((0, 1), (1,), (1,)), groups=0)


def _numbers(line: CalibrationLine) -> list[float]:
    parts = (line.slope.estimate, line.slope.low, line.slope.high, line.intercept.estimate, line.intercept.low)
    return [*parts, line.bounds.lowest, line.bounds.highest]


class TestCalibrationLine:
    @pytest.mark.parametrize(
        ("size", "slope", "bins"), [(60, 1.0, 10), (150, 0.7, 20), (150, 0.05, 10), (150, -0.6, 20)]
    )
    def test_the_slope_lies_in_its_range_wherever_scores_are_in_their_bins(self, size, slope, bins):
        scores, truth = cohort(5, size, slope)
        edges = edges_with(bins=bins)
        counted = bin_scores(scores, truth, edges)
        bounds = binned_calibration_line(counted).slope_bounds
        place, rng = np.searchsorted(edges, scores, side="right") - 1, np.random.default_rng(0)
        low, high = np.take(edges, place), np.take(edges, place + 1)
        inward, outward = np.clip(0.5, low, high), np.where(low + high > 1, high, low)
        ends = [np.where(truth == 1, a, b) for a in (low, high, inward, outward) for b in (low, high, inward, outward)]
        for values in (scores, *ends, *(low + rng.random(size) * (high - low) for _ in range(20))):
            assert bounds.lowest <= calibration_line(values, truth)[0] <= bounds.highest
        assert bounds.lowest < bounds.value < bounds.highest

    def test_the_slopes_range_shrinks_with_the_bins(self):
        scores, truth = cohort(5, 400)
        widths = []
        for bins in (20, 100, 200):
            bounds = binned_calibration_line(bin_scores(scores, truth, edges_with(bins=bins))).slope_bounds
            widths.append(bounds.highest - bounds.lowest)
        assert widths[0] > 2 * widths[1] > 3 * widths[2]

    def test_it_is_the_regression_of_scikit_learn_on_the_binned_patients(self) -> None:
        scores, truth = cohort(1, 500)
        binned = bin_scores(scores, truth, edges_with(bins=20), sums=True)
        means = binned.means[np.minimum((scores * 20).astype(np.int64), 19)]
        reference = LogisticRegression(C=math.inf, tol=1e-10).fit(logit(means)[:, None], truth)
        found = binned_calibration_line(binned)
        assert found.slope.estimate == pytest.approx(reference.coef_[0, 0], abs=1e-4)
        assert (found.slope.estimate, found.intercept.estimate) == pytest.approx(calibration_line(means, truth))

    def test_hundred_bins_move_it_little_and_the_intercept_stays_within_its_bound(self) -> None:
        for seed in range(5):
            scores, truth = cohort(seed, 400)
            slope, intercept = calibration_line(scores, truth)
            found = binned_calibration_line(bin_scores(scores, truth, edges_with()))
            assert found.slope.estimate == pytest.approx(slope, abs=0.02)
            assert found.intercept.estimate == pytest.approx(intercept, abs=0.02)
            assert found.bounds.lowest <= intercept <= found.bounds.highest

    def test_wald_limits_are_those_of_two_groups_by_hand(self) -> None:
        # 10 of 40 at 0.2 and 30 of 40 at 0.8: slope = ln 9 / ln 16, its variance (1/10 + 1/30) · 2 / ln² 16
        scores = BinnedScores((0, 0.4, 0.6, 1), (30, 0, 10), (10, 0, 30))
        found = binned_calibration_line(scores).slope
        reach = 1.959964 * math.sqrt(2 * (1 / 10 + 1 / 30)) / math.log(16)
        expected = math.log(9) / math.log(16)
        assert [found.estimate, found.low, found.high] == pytest.approx([expected, expected - reach, expected + reach])

    def test_many_samples_at_once_are_each_by_itself(self) -> None:
        both = [bin_scores(*cohort(seed, 100), edges_with(bins=30)) for seed in range(4)]
        counts = np.stack([one.counts for one in both])
        lines = [binned_calibration_line(one) for one in both]
        slopes = calibration_line_figure(both[0])(counts)
        assert slopes == pytest.approx([line.slope.estimate for line in lines])
        intercepts = calibration_line_figure(both[0], intercept=True)(counts)
        assert intercepts == pytest.approx([line.intercept.estimate for line in lines])

    def test_a_sample_without_a_line_leaves_the_others_theirs(self) -> None:
        scores = BinnedScores((0, 0.4, 0.6, 1), (30, 0, 10), (10, 0, 30))
        counts = np.array([[[30, 0, 10], [10, 0, 30]], [[30, 0, 0], [0, 0, 30]], [[5, 0, 5], [0, 0, 0]]])
        found = calibration_line_figure(scores)(counts.astype(np.float64))
        assert np.isnan(found).tolist() == [False, True, True]

    @pytest.mark.parametrize("sums", [False, True])
    def test_those_of_several_sites_are_each_its_own(self, sums: bool) -> None:
        edges = edges_with(bins=20)
        sites = [bin_scores(*cohort(seed, 80 + 40 * seed), edges, sums=sums) for seed in range(4)]
        sites.append(BinnedScores(edges, (1,) * 20, (0,) * 20))
        for together, alone in zip(binned_calibration_lines(sites), map(binned_calibration_line, sites), strict=True):
            for one, other in zip(_numbers(together), _numbers(alone), strict=True):
                assert one == pytest.approx(other, abs=1e-12, nan_ok=True)

    def test_binned_calibration_lines_refuse_others(self) -> None:
        with pytest.raises(DataError, match="level between 0 and 1"):
            binned_calibration_lines([BinnedScores((0, 0.5, 1), (1, 1), (1, 1))], level=1)

    def test_one_class_has_none(self) -> None:
        found = binned_calibration_line(BinnedScores((0, 0.5, 1), (1, 2), (0, 0)))
        assert math.isnan(found.slope.estimate)
        assert math.isnan(found.intercept.low)

    def test_others_are_refused(self) -> None:
        with pytest.raises(DataError, match="probabilities"):
            binned_calibration_line(RATINGS)
        with pytest.raises(DataError, match="probabilities"):
            calibration_line_figure(RATINGS)
        with pytest.raises(DataError, match="level"):
            binned_calibration_line(BinnedScores((0, 1), (1,), (1,)), level=0)

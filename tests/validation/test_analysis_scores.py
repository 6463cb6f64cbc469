"""Figures and curves of score counts: limits, bands, and what is not defined."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.special import ndtr

from eucaim_fl.errors import DataError
from eucaim_fl.seeding import generator
from eucaim_fl.validation.analysis_scores import figure_of, score_curves, score_figures, share_figure
from eucaim_fl.validation.binned import BinnedScores, bin_scores, edges_with
from eucaim_fl.validation.intervals import Interval
from eucaim_fl.validation.resampled import Resamples, bca_interval, percentile_interval, resample
from eucaim_fl.validation.thresholds import average_precision_of, net_benefit, proportion

HALVES = (0.0, 0.5, 1.0)


def site(seed: int, size: int) -> BinnedScores:
    rng = np.random.default_rng(seed)
    truth = (rng.random(size) < 0.4).astype(np.int64)
    return bin_scores(ndtr(rng.normal(size=size) + truth - 0.5), truth, edges_with((0.35,), 20))


SITES = [site(seed, size) for seed, size in enumerate((40, 60, 30))]
FREE = resample(SITES, fixed_classes=False, samples=300, rng=generator(0, "free"))
FIXED = resample(SITES, fixed_classes=True, samples=300, rng=generator(0, "fixed"))


def exactly(scores: BinnedScores) -> Resamples:
    """One resample, which is what was observed."""
    return Resamples(scores.counts[None], scores.counts[None])


class TestFigures:
    def test_average_precision_has_its_interval_from_patients_whose_classes_vary(self) -> None:
        figure = score_figures(SITES, [0.35], "", FREE)[0]["average_precision"]
        expected = bca_interval(FREE, average_precision_of)
        assert (figure.value, figure.low, figure.high) == (expected.estimate, expected.low, expected.high)

    def test_without_resamples_it_has_a_value_and_says_why_no_more(self) -> None:
        figure = score_figures(SITES, [0.35], "")[0]["average_precision"]
        assert figure.value is not None
        assert figure.low is figure.high is None
        assert "No interval" in figure.reason

    def test_shares_have_wilsons_intervals_and_their_own_denominators(self) -> None:
        figures, counts = score_figures(SITES, [0.35], "nodule")
        one = counts[0]
        expected = proportion(one.true_positives, one.true_positives + one.false_negatives)
        figure = figures["sensitivity@0.35_nodule"]
        assert (figure.value, figure.low, figure.high) == (expected.estimate, expected.low, expected.high)
        assert figure.patients == one.true_positives + one.false_negatives
        assert figure.sites == 3
        assert figures["accuracy@0.35_nodule"].patients == 130

    def test_with_one_class_there_is_no_auc_and_no_sensitivity_and_each_says_why(self) -> None:
        figures, _ = score_figures([BinnedScores(HALVES, (3, 2), (0, 0))], [0.5], "")
        for name in ("auc", "average_precision", "sensitivity@0.5", "calibration_slope", "f1@0.5", "lr_positive@0.5"):
            if name == "f1@0.5":
                assert figures[name].value == 0
                continue
            assert figures[name].value is None, name
            assert figures[name].low is None
            assert figures[name].reason
        assert figures["specificity@0.5"].value == pytest.approx(0.6)

    def test_a_limit_without_end_is_null_and_says_so(self) -> None:
        figure = score_figures([BinnedScores(HALVES, (4, 0), (1, 3))], [0.5], "")[0]["lr_positive@0.5"]
        assert figure.value is None
        figure = score_figures([BinnedScores(HALVES, (0, 4), (0, 3))], [0.5], "")[0]["lr_negative@0.5"]
        assert figure.value is None
        assert figure.high is None

    def test_a_perfect_model_has_no_interval_from_resamples_that_are_all_alike(self) -> None:
        scores = BinnedScores(HALVES, (6, 0), (0, 6))
        free = resample([scores], fixed_classes=False, samples=50, rng=generator(0, "x"))
        figures, _ = score_figures([scores], [0.5], "", free)
        assert figures["average_precision"].value == 1
        assert figures["average_precision"].low is None
        assert "nothing to vary" in figures["average_precision"].reason
        assert figures["auc"].low is not None
        assert figures["auc"].low < 1

    def test_others_are_refused(self) -> None:
        with pytest.raises(DataError, match="no site"):
            score_figures([], [0.5], "")
        with pytest.raises(DataError, match="different bins"):
            score_figures([SITES[0], BinnedScores(HALVES, (1, 0), (0, 1))], [0.5], "")
        with pytest.raises(DataError, match="no edge"):
            score_figures(SITES, [0.33], "")

    def test_a_value_that_is_not_defined_keeps_no_limits(self) -> None:
        assert share_figure(0, 0).value is None
        assert figure_of(Interval(float("nan"), 0.0, 1.0), patients=0).high is None


class TestCurves:
    def test_limits_of_net_benefit_are_percentiles_of_the_same_resamples(self) -> None:
        curves = score_curves(SITES, "", FIXED, FREE)
        pooled = [point for point in curves.decision if point.threshold in (0.1, 0.35, 0.9)]
        assert len(pooled) == 3
        for point in pooled:
            expected = percentile_interval(FREE, net_benefit(SITES[0], point.threshold))
            assert (point.model, point.low, point.high) == pytest.approx(
                (expected.estimate, expected.low, expected.high)
            )

    def test_a_band_of_the_observed_patients_alone_is_the_curve(self) -> None:
        scores = BinnedScores(HALVES, (6, 4), (1, 4))  # at ½: false positives 0.4, sensitivity 0.8
        band = {round(one.x, 2): one for one in score_curves([scores], "", exactly(scores), exactly(scores)).roc_band}
        for x, y in ((0.0, 0.0), (0.2, 0.4), (0.4, 0.8), (0.7, 0.9), (1.0, 1.0)):
            assert (band[x].low, band[x].high) == pytest.approx((y, y))

    def test_an_upright_curve_is_read_at_its_upper_end(self) -> None:
        scores = BinnedScores(HALVES, (5, 0), (2, 3))
        band = score_curves([scores], "", exactly(scores), None).roc_band
        assert band[0].low == pytest.approx(0.6)

    def test_a_line_towards_an_upright_part_ends_at_its_foot(self) -> None:
        scores = BinnedScores((0.0, 0.3, 0.6, 1.0), (4, 0, 1), (0, 3, 1))  # (0.2, ¼), upright to (0.2, 1)
        band = {round(one.x, 2): one for one in score_curves([scores], "", exactly(scores), None).roc_band}
        for x, y in ((0.0, 0.0), (0.1, 0.125), (0.18, 0.225), (0.2, 1.0), (0.6, 1.0)):
            assert (band[x].low, band[x].high) == pytest.approx((y, y))

    def test_precision_is_that_of_the_highest_threshold_that_reaches_a_recall(self) -> None:
        scores = BinnedScores(HALVES, (6, 1), (2, 3))
        band = {round(one.x, 2): one for one in score_curves([scores], "", None, exactly(scores)).pr_band}
        assert band[0.6].low == pytest.approx(3 / 4)
        assert band[0.62].low == pytest.approx(5 / 12)

    def test_bands_hold_the_curve_in_the_middle_and_grow_with_doubt(self) -> None:
        few = [BinnedScores(one.edges, one.negative, one.positive) for one in SITES[:1]]
        drawn = resample(few, fixed_classes=True, samples=300, rng=generator(0, "few"))
        wide, narrow = score_curves(few, "", drawn, None).roc_band, score_curves(SITES, "", FIXED, None).roc_band
        widths = [[(one.high or 0) - (one.low or 0) for one in band] for band in (wide, narrow)]
        assert sum(widths[0]) > sum(widths[1])

    def test_without_a_class_there_are_no_bands_and_points_are_null(self) -> None:
        curves = score_curves([BinnedScores(HALVES, (3, 2), (0, 0))], "", None, None)
        assert curves.roc_band == curves.pr_band == curves.decision == ()
        assert curves.roc[1].sensitivity is None
        assert curves.roc[1].false_positive_rate == pytest.approx(0.4)

    def test_others_are_refused(self) -> None:
        with pytest.raises(DataError, match="no site"):
            score_curves([], "", None, None)
        with pytest.raises(DataError, match="different bins"):
            score_curves([SITES[0], BinnedScores(HALVES, (1, 0), (0, 1))], "", None, None)

"""Figures at thresholds, precision and recall, and net benefit, from binned scores."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy.special import ndtr
from sklearn.metrics import (
    average_precision_score,
    balanced_accuracy_score,
    class_likelihood_ratios,
    f1_score,
    precision_recall_curve,
    precision_score,
    recall_score,
)

from eucaim_fl.errors import DataError, RecipeError
from eucaim_fl.validation.binned import BinnedScores, bin_scores, edges_with
from eucaim_fl.validation.intervals import Interval
from eucaim_fl.validation.thresholds import (
    NetBenefit,
    at_threshold,
    average_precision_bounds,
    average_precision_of,
    decided,
    decision_curve,
    net_benefit,
    pr_points,
    proportion,
    threshold_figure,
)

HALVES = (0.0, 0.5, 1.0)

Patients = tuple[NDArray[np.float64], NDArray[np.int64]]


def fourfold(tp: int, fp: int, fn: int, tn: int) -> BinnedScores:
    """Two bins with this table at ½."""
    return BinnedScores(HALVES, (tn, fp), (fn, tp))


def limits(interval: Interval) -> list[float]:
    """Both limits, to be compared."""
    return [interval.low, interval.high]


def cohort(seed: int, size: int) -> Patients:
    """Scores of patients, of whom a third has the disease."""
    draws = np.random.default_rng(seed)
    truth = (draws.random(size) < 1 / 3).astype(np.int64)
    return np.asarray(ndtr(draws.normal(size=size) + 1.5 * truth - 1)), truth


class TestProportion:
    @pytest.mark.parametrize(
        ("count", "patients", "wilson", "exact"),
        [
            (81, 263, (0.2553, 0.3662), (0.2527, 0.3676)),
            (15, 148, (0.0624, 0.1605), (0.0578, 0.1617)),
            (0, 20, (0.0, 0.1611), (0.0, 0.1684)),
            (1, 29, (0.0061, 0.1718), (0.0009, 0.1776)),
        ],
    )
    def test_limits_are_those_published_by_newcombe(
        self, count: int, patients: int, wilson: tuple[float, float], exact: tuple[float, float]
    ) -> None:
        # Newcombe 1998, table I, methods 3 and 5
        assert limits(proportion(count, patients)) == pytest.approx(wilson, abs=6e-5)
        assert limits(proportion(count, patients, method="exact")) == pytest.approx(exact, abs=6e-5)

    def test_nobody_has_every_share(self) -> None:
        found = proportion(0, 0)
        assert math.isnan(found.estimate)
        assert limits(found) == [0, 1]

    @pytest.mark.parametrize(("count", "patients", "level"), [(3, 2, 0.95), (-1, 2, 0.95), (1, 2, 1.0)])
    def test_others_are_refused(self, count: int, patients: int, level: float) -> None:
        with pytest.raises(DataError, match="have no interval"):
            proportion(count, patients, level=level)


class TestAtThreshold:
    @pytest.mark.parametrize("threshold", [0.3, 0.5])
    def test_figures_are_those_of_scikit_learn_on_the_patients_themselves(self, threshold: float) -> None:
        scores, truth = cohort(0, 200)
        called = (scores >= threshold).astype(np.int64)
        found = at_threshold(bin_scores(scores, truth, edges_with([threshold], bins=7)), threshold).figures
        ratios = class_likelihood_ratios(truth, called)
        expected = {
            "sensitivity": recall_score(truth, called),
            "specificity": recall_score(truth, called, pos_label=0),
            "ppv": precision_score(truth, called),
            "npv": precision_score(truth, called, pos_label=0),
            "f1": f1_score(truth, called),
            "balanced_accuracy": balanced_accuracy_score(truth, called),
            "lr_positive": ratios[0],
            "lr_negative": ratios[1],
        }
        assert {name: one.estimate for name, one in found.items()} == pytest.approx(expected)
        assert all(one.low < one.estimate < one.high for one in found.values())

    @pytest.mark.parametrize(
        ("table", "positive", "negative"),
        [
            ((25, 1, 1, 83), (11, 568), (0.01, 0.27)),
            ((32, 49, 3, 28), (1.18, 1.75), (0.08, 0.72)),
        ],
    )
    def test_likelihood_ratios_have_published_limits(
        self, table: tuple[int, int, int, int], positive: tuple[float, float], negative: tuple[float, float]
    ) -> None:
        # the calculator of the University of Illinois at Chicago, araw.mede.uic.edu/cgi-bin/testcalc.pl
        found = at_threshold(fourfold(*table), 0.5).figures
        assert limits(found["lr_positive"]) == pytest.approx(positive, rel=0.05, abs=0.006)
        assert limits(found["lr_negative"]) == pytest.approx(negative, abs=0.006)

    def test_an_empty_cell_leaves_one_limit_open(self) -> None:
        found = at_threshold(fourfold(8, 0, 2, 10), 0.5).figures
        assert found["lr_positive"].estimate == found["lr_positive"].high == math.inf
        assert 1 < found["lr_positive"].low < 10
        found = at_threshold(fourfold(20, 5, 0, 20), 0.5).figures
        assert found["lr_negative"].estimate == found["lr_negative"].low == 0
        assert 0 < found["lr_negative"].high < 1

    def test_what_is_not_defined_has_the_widest_interval(self) -> None:
        found = at_threshold(fourfold(0, 2, 0, 3), 0.5).figures
        for name in ("sensitivity", "npv", "balanced_accuracy", "lr_positive"):
            assert math.isnan(found[name].estimate) == (name != "npv")
        assert limits(found["sensitivity"]) == limits(found["balanced_accuracy"]) == [0, 1]
        assert limits(found["lr_positive"]) == [0, math.inf]

    def test_f1_has_the_limits_of_the_share_that_it_follows_from(self) -> None:
        # 2·l/(1+l) of Wilson's limits of 15 out of 148
        found = at_threshold(fourfold(15, 100, 33, 7), 0.5).figures["f1"]
        assert limits(found) == pytest.approx([2 * 0.0624 / 1.0624, 2 * 0.1605 / 1.1605], abs=2e-4)

    def test_the_mean_of_two_shares_is_as_sure_as_square_and_add_makes_it(self) -> None:
        found = at_threshold(fourfold(56, 22, 14, 58), 0.5).figures["balanced_accuracy"]
        # sensitivity 56/70 (0.6918 to 0.8770), specificity 58/80 (0.6187 to 0.8110), limits by Wilson
        down, up = math.hypot(0.8 - 0.6918, 0.725 - 0.6187) / 2, math.hypot(0.8770 - 0.8, 0.8110 - 0.725) / 2
        assert limits(found) == pytest.approx([0.7625 - down, 0.7625 + up], abs=2e-4)

    def test_a_threshold_within_a_bin_is_refused(self) -> None:
        with pytest.raises(DataError, match="no edge of a bin"):
            at_threshold(fourfold(1, 1, 1, 1), 0.4)
        with pytest.raises(DataError, match="no interval"):
            at_threshold(fourfold(1, 1, 1, 1), 0.5, level=0)

    def test_a_figure_for_resampling_is_the_same_one(self) -> None:
        binned = bin_scores(*cohort(1, 60), edges_with(bins=10))
        for name, one in at_threshold(binned, 0.4).figures.items():
            assert threshold_figure(binned, name, 0.4)(binned.counts[None])[0] == pytest.approx(one.estimate)
        with pytest.raises(RecipeError, match="sensitvity"):
            threshold_figure(binned, "sensitvity", 0.4)
        with pytest.raises(DataError, match="no edge of a bin"):
            decided(binned, 0.45)
        with pytest.raises(DataError, match="no edge of a bin"):
            threshold_figure(binned, "ppv", 0.45)

    def test_sensitivity_and_f1_are_covered_about_as_often_as_they_say(self) -> None:
        # 100 patients: 30 of 100 diseased, 0.8 of them found; 0.1 of the others found too: F1 = 2·24/(48+7+6)
        draws, runs = np.random.default_rng(1), 300
        covered = {"sensitivity": 0, "ppv": 0, "f1": 0}
        truth = {"sensitivity": 0.8, "ppv": 24 / 31, "f1": 48 / 61}
        for tp, fp, fn, tn in draws.multinomial(100, [0.24, 0.07, 0.06, 0.63], size=runs).tolist():
            found = at_threshold(fourfold(tp, fp, fn, tn), 0.5).figures
            for name, value in truth.items():
                covered[name] += found[name].low <= value <= found[name].high
        assert all(0.915 <= count / runs <= 0.985 for count in covered.values()), covered


class TestAveragePrecision:
    @settings(max_examples=60)
    @given(
        st.lists(st.tuples(st.integers(0, 20), st.booleans()), min_size=2, max_size=25).filter(
            lambda drawn: any(diseased for _, diseased in drawn)
        ),
        st.integers(2, 8),
    )
    def test_it_is_that_of_the_binned_patients_and_the_true_one_lies_within_the_bound(
        self, drawn: list[tuple[int, bool]], bins: int
    ) -> None:
        scores, truth = np.array([k / 20 for k, _ in drawn]), np.array([int(y) for _, y in drawn])
        edges = edges_with(bins=bins)
        place = np.minimum(np.searchsorted(edges, scores, side="right") - 1, bins - 1)
        found = average_precision_bounds(bin_scores(scores, truth, edges))
        assert found.value == pytest.approx(average_precision_score(truth, place))
        assert found.lowest - 1e-9 <= average_precision_score(truth, scores) <= found.highest + 1e-9
        assert found.lowest - 1e-9 <= found.value <= found.highest + 1e-9

    def test_the_points_are_those_of_scikit_learn(self) -> None:
        scores, truth = cohort(2, 300)
        edges = edges_with(bins=8)
        binned = bin_scores(scores, truth, edges)
        precision, recall, _ = precision_recall_curve(truth, np.searchsorted(edges, scores, side="right"))
        np.testing.assert_allclose(pr_points(binned)[:, 1:], np.stack([recall, precision], axis=1)[-2::-1])

    def test_without_diseased_patients_there_is_none(self) -> None:
        assert math.isnan(average_precision_bounds(fourfold(0, 1, 0, 1)).value)
        assert np.isnan(average_precision_of(fourfold(0, 1, 0, 1).counts))


class TestDecisionCurve:
    @pytest.mark.parametrize(
        ("percent", "everyone"),
        [(3, 0.278), (5, 0.263), (8, 0.239), (10, 0.222), (20, 0.125), (30, 0.0), (40, -0.167), (50, -0.4)],
    )
    def test_acting_on_everyone_has_the_published_benefit_at_a_prevalence_of_three_tenths(
        self, percent: int, everyone: float
    ) -> None:
        # table 4 of PMC6993280 (hepatocellular carcinoma, AFP below 400 µg/L), made by Vickers and Elkin's formula
        scores = BinnedScores(edges_with(), (7, *[0] * 99), (*[0] * 99, 3))
        found = decision_curve(scores, [percent / 100])[0]
        assert found.everyone == pytest.approx(everyone, abs=6e-4)
        assert found.model == pytest.approx(0.3)

    def test_it_weighs_false_positives_by_the_odds_of_the_threshold(self) -> None:
        scores, truth = cohort(3, 150)
        binned = bin_scores(scores, truth, edges_with([0.25], bins=6))
        called = scores >= 0.25
        expected = np.mean(called & (truth == 1)) - np.mean(called & (truth == 0)) / 3
        assert decision_curve(binned, [0.25])[0].model == pytest.approx(expected)

    def test_with_nobody_there_is_no_benefit(self) -> None:
        assert math.isnan(decision_curve(fourfold(0, 0, 0, 0), [0.5])[0].model)

    def test_others_are_refused(self) -> None:
        assert decision_curve(fourfold(1, 0, 0, 1), []) == ()
        assert decision_curve(fourfold(1, 0, 0, 1), [0.5]) == (NetBenefit(0.5, 0.5, 0.0),)
        with pytest.raises(DataError, match="no edge of a bin"):
            decision_curve(fourfold(1, 1, 1, 1), [0.4])
        with pytest.raises(DataError, match="between 0 and 1"):
            net_benefit(fourfold(1, 1, 1, 1), 0.0)

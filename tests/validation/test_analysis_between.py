"""Hospitals side by side: standard errors, and what they say of hospitals at large."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy.special import logit

from eucaim_fl.validation.analysis_between import MainFigure, between, main_figures, point_of
from eucaim_fl.validation.analysis_input import asked_of
from eucaim_fl.validation.analysis_moments import mean_figures
from eucaim_fl.validation.analysis_scores import score_figures
from eucaim_fl.validation.binned import BinnedScores, delong_error
from eucaim_fl.validation.meta_analysis import random_effects
from eucaim_fl.validation.record import ModelFigures
from eucaim_fl.validation.result_schema import BetweenSites, Figure
from tests.validation.site_records import decided, measured, ordered, plan_for

PLAN = plan_for("classification", ["a", "b", "c"])
TWO, MASKS = asked_of(PLAN), asked_of(plan_for("segmentation", ["a"]))
AUC, SENSITIVITY = MainFigure("auc"), MainFigure("sensitivity", "", 0.5)


def patients(seed: int, gain: float = 1.0, size: int = 80) -> ModelFigures:
    rng = np.random.default_rng(seed)
    truth = (np.arange(size) % 2).astype(np.int64)
    return decided(PLAN, 1 / (1 + np.exp(-rng.normal(size=size) - gain * (truth - 0.5))), truth)


def counted(figures: ModelFigures) -> BinnedScores:
    return BinnedScores(TWO.edges, *figures.scores["yes"])


def of_auc(sites: dict[str, ModelFigures]) -> BetweenSites:
    figures = {site: score_figures([counted(one)], [0.5], "")[0]["auc"] for site, one in sites.items()}
    return between(TWO, AUC, sites, figures)


def of_dice(**sites: list[float]) -> BetweenSites:
    told = {site: measured({"dice": np.array(values)}) for site, values in sites.items()}
    figures = {site: mean_figures(MASKS, [one])["dice"] for site, one in told.items()}
    return between(MASKS, MainFigure("dice"), told, figures)


class TestMainFigures:
    @pytest.mark.parametrize(
        ("task", "keys"),
        [
            ("classification", ["auc", "sensitivity@0.5", "specificity@0.5"]),
            ("three", ["auc_low", "auc_middle", "auc_high"]),
            ("multilabel", ["auc_oedema", "auc_nodule"]),
            ("segmentation", ["dice"]),
            ("organs", ["dice_liver", "dice_lesion"]),
            ("survival", ["c_index"]),
        ],
    )
    def test_they_follow_from_the_task(self, task: str, keys: list[str]) -> None:
        assert [main.key for main in main_figures(asked_of(plan_for(task, ["a"])))] == keys


class TestPoint:
    def test_an_auc_has_delongs_error(self) -> None:
        figures = patients(0)
        point = point_of(TWO, AUC, [figures])
        assert point is not None
        assert point.standard_error == delong_error(counted(figures)).value

    def test_a_perfect_auc_counts_one_more_patient_in_the_middle(self) -> None:
        scores, truth = np.array([0.1, 0.1, 0.2, 0.9]), np.array([0, 0, 0, 1])
        point = point_of(TWO, AUC, [decided(PLAN, scores, truth)])
        assert point is not None
        assert point.value == 0.75
        assert point.standard_error > 0

    def test_a_share_of_all_counts_half_a_patient_on_either_side(self) -> None:
        point = point_of(TWO, SENSITIVITY, [decided(PLAN, np.array([0.9, 0.8, 0.7, 0.1]), np.array([1, 1, 1, 0]))])
        assert point is not None
        assert point.value == 3.5 / 4
        assert point.standard_error == pytest.approx(math.sqrt(3.5 / 4 * 0.5 / 4 / 4))

    def test_what_has_no_error_is_none(self) -> None:
        one_class = decided(PLAN, np.array([0.9]), np.array([1]))
        assert point_of(TWO, AUC, [one_class]) is None
        assert point_of(TWO, MainFigure("specificity", "", 0.5), [one_class]) is None
        assert point_of(TWO, AUC, [ModelFigures()]) is None
        assert point_of(MASKS, MainFigure("dice"), [measured({"dice": np.array([0.5])})]) is None
        assert point_of(MASKS, MainFigure("dice"), [measured({"dice": np.array([0.5, 0.5])})]) is None
        assert point_of(MASKS, MainFigure("dice"), [ModelFigures()]) is None


class TestBetween:
    def test_aucs_are_combined_on_the_logit_scale(self) -> None:
        sites = {
            name: patients(seed, gain) for seed, (name, gain) in enumerate(zip("abc", (0.4, 1.2, 2.0), strict=True))
        }
        found = of_auc(sites)
        points = [point_of(TWO, AUC, [one]) for one in sites.values()]
        values = np.array([0.0 if one is None else one.value for one in points])
        errors = np.array([0.0 if one is None else one.standard_error for one in points])
        expected = random_effects(logit(values), errors / (values * (1 - values)))
        assert logit(found.value or 0) == pytest.approx(expected.estimate)
        assert logit(found.prediction_low or 0) == pytest.approx(expected.prediction_low)
        assert found.tau == pytest.approx(math.sqrt(expected.tau2))
        assert (found.i2, found.scale, found.sites) == (expected.i2, "logit", 3)
        assert [row.weight for row in found.rows] == pytest.approx(expected.weights)
        assert found.worst_site == "a"

    def test_two_sites_have_no_prediction_and_one_says_nothing_of_others(self) -> None:
        two, one = of_auc({"a": patients(0), "b": patients(1)}), of_auc({"a": patients(0)})
        assert two.prediction_low is None
        assert "Two sites" in two.reason
        assert (one.tau, one.i2) == (None, None)
        assert "One site" in one.reason

    def test_predictions_of_means_stay_within_their_range(self) -> None:
        found = of_dice(a=[0.95, 0.99, 0.97], b=[0.5, 0.6, 0.55], c=[0.9, 0.92, 0.95])
        assert found.scale == "plain"
        assert found.prediction_high == 1.0
        assert found.prediction_low == 0.0
        assert found.worst_site == "b"

    def test_a_site_without_an_error_is_shown_without_a_weight(self) -> None:
        found = of_dice(a=[0.8, 0.9], b=[0.5], c=[0.6, 0.9])
        assert [row.weight is None for row in found.rows] == [False, True, False]
        assert found.rows[1].value == 0.5
        assert found.rows[1].reason
        assert found.sites == 2

    def test_of_a_distance_the_worst_site_has_the_highest(self) -> None:
        told = {s: measured({"hd95_mm": np.array(v)}) for s, v in (("a", [2.0, 3.0]), ("b", [9.0, 11.0]))}
        figures = {site: mean_figures(MASKS, [one])["hd95_mm"] for site, one in told.items()}
        assert between(MASKS, MainFigure("hd95_mm"), told, figures).worst_site == "b"

    def test_c_indices_are_only_shown_side_by_side(self) -> None:
        asked = asked_of(plan_for("survival", ["a"]))
        told = ordered(np.array([1.0, 0.5, 0.2]), np.array([1.0, 2.0, 3.0]), np.array([True, True, False]))
        found = between(asked, MainFigure("c_index"), {"a": told}, {"a": Figure(value=1.0, patients=3)})
        assert found.value is None
        assert "side by side" in found.reason
        assert found.rows[0].value == 1.0
        assert "no standard error" in found.rows[0].reason

    def test_nobody_told_it(self) -> None:
        found = between(TWO, AUC, {}, {})
        assert (found.value, found.worst_site, found.rows) == (None, None, ())
        assert found.reason

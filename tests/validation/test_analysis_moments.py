"""Means, lesions, confusion counts and pairs of patients, with intervals that say what they leave out."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy.stats import poisson
from sklearn.metrics import accuracy_score, balanced_accuracy_score

from eucaim_fl.validation.agreement import Moments, stratified_mean
from eucaim_fl.validation.analysis_input import asked_of
from eucaim_fl.validation.analysis_moments import (
    concordance_figure,
    confusion_figures,
    lesion_figures,
    macro_auc,
    mean_figures,
    undefined_counts,
    volumes,
)
from eucaim_fl.validation.concordance import compared
from eucaim_fl.validation.metrics import confusion
from eucaim_fl.validation.record import ModelFigures
from eucaim_fl.validation.result_schema import Figure
from tests.validation.site_records import measured, plan_for

ONE, ORGANS = asked_of(plan_for("segmentation", ["a"])), asked_of(plan_for("organs", ["a"]))


class TestMeans:
    def test_over_sites_the_interval_is_that_of_the_strata(self) -> None:
        sites = [measured({"dice": np.array([0.5, 0.7, 0.9])}), measured({"dice": np.array([0.6, 0.8])})]
        figure = mean_figures(ONE, sites)["dice"]
        expected = stratified_mean([Moments(3, 2.1, 1.55), Moments(2, 1.4, 1.0)])
        assert (figure.value, figure.low, figure.high) == pytest.approx((0.7, expected.low, expected.high))
        assert (figure.patients, figure.sites) == (5, 2)

    def test_labels_stand_behind_metrics(self) -> None:
        found = mean_figures(ORGANS, [measured({"hd95_mm_liver": np.array([3.0, 5.0])})])
        assert found["hd95_mm_liver"].value == 4.0

    def test_what_is_not_defined_says_why(self) -> None:
        nobody, alone = np.array([math.nan, math.nan]), np.array([0.5, math.nan])
        found = mean_figures(ONE, [measured({"dice": nobody, "surface_dice": alone, "hd95_mm": np.array([2.0, 2.0])})])
        assert found["dice"].value is None
        assert "no patient" in found["dice"].reason
        assert (found["surface_dice"].value, found["surface_dice"].low) == (0.5, None)
        assert "one patient only" in found["surface_dice"].reason
        assert "no width" in found["hd95_mm"].reason

    def test_those_without_a_value_are_counted(self) -> None:
        sites = [measured({"dice": np.array([math.nan, 0.5])}), measured({"dice": np.array([math.nan, math.nan])})]
        assert undefined_counts(ONE, sites) == {"dice": 3}

    def test_volumes_of_one_patient_have_no_limits(self) -> None:
        assert volumes(ONE, [measured({"volume_difference_ml": np.array([1.0])})]) == ()
        found = volumes(ORGANS, [measured({"volume_difference_ml_liver": np.array([1.0, 3.0])})])
        assert (found[0].label, found[0].bias.value, found[0].unit) == ("liver", 2.0, "ml")


class TestLesions:
    def test_false_findings_have_exact_poisson_limits(self) -> None:
        figures, counts = lesion_figures(ONE, [ModelFigures(lesions={"lesion": (20, 15, 10, 5)})])
        figure = figures["false_positives_per_patient"]
        assert figure.value == 2.0
        assert figure.low is not None
        assert figure.high is not None
        assert poisson.sf(9, 5 * figure.low) == pytest.approx(0.025)
        assert poisson.cdf(10, 5 * figure.high) == pytest.approx(0.025)
        assert "too narrow" in figures["lesion_sensitivity"].reason
        assert figures["lesion_sensitivity"].patients is None
        assert counts[0].found == 15

    def test_none_of_them_has_a_limit_too(self) -> None:
        figures, _ = lesion_figures(ONE, [ModelFigures(lesions={"lesion": (0, 0, 0, 4)})])
        assert figures["false_positives_per_patient"].low == 0
        assert figures["false_positives_per_patient"].high == pytest.approx(-math.log(0.025) / 4)
        assert figures["lesion_sensitivity"].value is None

    def test_nobody_looked_is_no_zero(self) -> None:
        figures, _ = lesion_figures(ORGANS, [ModelFigures(lesions={"liver": (0, 0, 0, 0)})])
        assert figures["false_positives_per_patient_liver"].value is None


class TestConfusion:
    def test_figures_are_those_of_the_patients(self) -> None:
        rng = np.random.default_rng(0)
        truth, called = rng.integers(0, 3, 80), rng.integers(0, 3, 80)
        found = confusion_figures(confusion(called, truth, 3).ravel().tolist(), 2)
        assert found["accuracy"].value == pytest.approx(accuracy_score(truth, called))
        balanced = found["balanced_accuracy"]
        assert balanced.value == pytest.approx(balanced_accuracy_score(truth, called))
        assert balanced.low is not None
        assert balanced.high is not None
        assert balanced.low < (balanced.value or 0) < balanced.high

    def test_a_class_without_patients_leaves_no_balanced_accuracy(self) -> None:
        assert confusion_figures((0, 0, 1, 3), 1)["balanced_accuracy"].value is None
        assert confusion_figures((), 0) == {}


class TestMacroAuc:
    def test_half_widths_are_averaged(self) -> None:
        found = macro_auc([Figure(value=0.8, low=0.7, high=0.9), Figure(value=0.6, low=0.4, high=0.7, sites=3)])
        assert (found.value, found.low, found.high) == pytest.approx((0.7, 0.55, 0.8))

    def test_so_are_the_ends_of_what_binning_can_change(self) -> None:
        found = macro_auc([Figure(value=0.8, low=0.7, high=0.9, lowest=0.78, highest=0.84), Figure(value=0.6)])
        assert (found.lowest, found.highest) == pytest.approx((0.69, 0.72))

    def test_a_label_without_one_leaves_none(self) -> None:
        assert macro_auc([Figure(value=0.8, low=0.7, high=0.9), None]).value is None
        assert macro_auc([Figure(value=None, reason="x")]).value is None


class TestConcordance:
    def test_its_interval_is_wider_than_what_patients_drawn_again_give(self) -> None:
        rng = np.random.default_rng(1)
        risk = rng.normal(size=60)
        time, event = rng.exponential(np.exp(-risk)), rng.random(60) < 0.7
        counts = compared(risk, time, event)
        figure = concordance_figure([(60.0 - event.sum(), float(event.sum()), *map(float, counts))])
        drawn = []
        for _ in range(200):
            again = rng.integers(0, 60, 60)
            concordant, tied, pairs = compared(risk[again], time[again], event[again])
            drawn.append((concordant + tied / 2) / pairs)
        low, high = np.quantile(drawn, [0.025, 0.975])
        assert figure is not None
        assert figure.low is not None
        assert figure.high is not None
        assert high - low < figure.high - figure.low < 2.5 * (high - low)

    def test_hand_made_numbers(self) -> None:
        # 2 sites, 10 of 12 pairs concordant; S = 10/36 + 2·25/36, SE² = 4·S/144
        figure = concordance_figure([(2.0, 3.0, 5.0, 0.0, 6.0), (2.0, 3.0, 5.0, 0.0, 6.0)])
        assert figure is not None
        error = math.sqrt(4 * (60 / 36) / 144) / (5 / 36)
        assert figure.value == pytest.approx(5 / 6)
        assert figure.low == pytest.approx(1 / (1 + math.exp(-(math.log(5) - 1.959964 * error))))
        assert figure.patients == 10

    def test_what_is_not_defined(self) -> None:
        assert concordance_figure([]) is None
        nobody, perfect = (
            concordance_figure([(4.0, 0.0, 0.0, 0.0, 0.0)]),
            concordance_figure([(2.0, 2.0, 4.0, 0.0, 4.0)]),
        )
        assert nobody is not None
        assert perfect is not None
        assert nobody.value is None
        assert (perfect.value, perfect.low) == (1.0, None)

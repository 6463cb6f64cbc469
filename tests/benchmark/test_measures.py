"""Metrics by weights are those of the sample that holds each patient so often."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from eucaim_fl.benchmark.measures import measures_of, over_seeds, weighted_auc, weighted_mean
from eucaim_fl.errors import RecipeError
from eucaim_fl.validation.metrics import auc, balanced_accuracy, brier

PATIENTS = st.lists(st.tuples(st.integers(0, 4), st.booleans(), st.integers(0, 3)), min_size=1, max_size=8)


def rows(probabilities: list[list[float]], truth: list[int]) -> np.ndarray:
    return np.column_stack([np.array(probabilities), truth])


class TestWeightedAuc:
    @given(PATIENTS)
    def test_it_is_that_of_the_repeated_sample(self, patients: list[tuple[int, bool, int]]) -> None:
        scores = np.array([score / 4 for score, _, _ in patients])
        positive = np.array([truth for _, truth, _ in patients])
        counts = np.array([times for _, _, times in patients])
        expected = (
            auc(np.repeat(scores, counts), np.repeat(positive, counts).astype(np.int64)) if counts.any() else math.nan
        )
        found = weighted_auc(scores, positive, counts[None].astype(float))[0]
        assert found == pytest.approx(expected, nan_ok=True)


class TestWeightedMean:
    def test_patients_that_are_not_drawn_do_not_count(self) -> None:
        found = weighted_mean(np.array([1.0, 5.0]), np.array([[2.0, 0.0], [1.0, 3.0], [0.0, 0.0]]))
        assert found[:2].tolist() == [1.0, 4.0]
        assert math.isnan(found[2])


class TestOverSeeds:
    def test_a_patient_counts_under_the_seeds_that_held_it_out(self) -> None:
        dice = measures_of("segmentation").resampled["dice"]
        nan = [math.nan, math.nan]
        seeds = [np.array([[0.2, 1.0], nan]), np.array([[0.4, 1.0], [0.8, 1.0]])]
        assert over_seeds(dice, seeds, np.ones((1, 2)))[0] == pytest.approx((0.2 + 0.6) / 2)

    def test_nobody_held_out_is_not_defined(self) -> None:
        dice = measures_of("segmentation").resampled["dice"]
        assert math.isnan(over_seeds(dice, [np.full((2, 2), math.nan)], np.ones((1, 2)))[0])


class TestMeasuresOf:
    def test_classification_agrees_with_the_metrics(self) -> None:
        probabilities = [[0.6, 0.3, 0.1], [0.2, 0.5, 0.3], [0.5, 0.1, 0.4], [0.1, 0.8, 0.1]]
        truth = [0, 1, 2, 0]
        values, one = rows(probabilities, truth), np.ones((1, 4))
        found = {name: measure(values, one)[0] for name, measure in measures_of("classification").resampled.items()}
        p, t = np.array(probabilities), np.array(truth)
        assert found == pytest.approx(
            {"auc": auc(p, t), "balanced_accuracy": balanced_accuracy(p.argmax(axis=1), t, 3), "brier": brier(p, t)}
        )

    def test_two_classes_too(self) -> None:
        values = rows([[0.9, 0.1], [0.3, 0.7], [0.6, 0.4]], [0, 1, 1])
        measures = measures_of("classification")
        assert measures.resampled["auc"](values, np.ones((1, 3)))[0] == 1.0
        assert measures.resampled["brier"](values, np.ones((1, 3)))[0] == pytest.approx((0.01 + 0.09 + 0.36) / 3)
        assert measures.points["calibration_error"](values) > 0

    def test_a_class_that_nobody_has_is_left_out_of_the_means(self) -> None:
        values = rows([[0.8, 0.1, 0.1], [0.2, 0.7, 0.1]], [0, 1])
        measures = measures_of("classification").resampled
        assert measures["auc"](values, np.ones((1, 2)))[0] == 1.0
        assert measures["balanced_accuracy"](values, np.ones((1, 2)))[0] == 1.0

    def test_a_calibration_line_is_for_two_classes(self) -> None:
        assert math.isnan(measures_of("classification").points["calibration_slope"](rows([[0.8, 0.1, 0.1]], [0])))

    def test_other_tasks_are_refused(self) -> None:
        with pytest.raises(RecipeError, match="task that can be compared"):
            measures_of("captioning")

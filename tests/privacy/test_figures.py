"""Noised figures: what one patient can change, how much noise there is, and that patients could have what comes out."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from eucaim_fl.privacy.figures import (
    LARGEST_HD95_MM,
    Normal,
    class_sensitivity,
    class_vectors,
    noised_classification,
    noised_segmentation,
    value_sensitivity,
    value_vectors,
)
from eucaim_fl.records import SiteMetrics
from eucaim_fl.validation.pooling import check_metrics, classification_summary, count_values, segmentation_summary

NAMES = ("dice", "dice_lesion", "hd95_mm", "hd95_mm_lesion")


def silent(n: int) -> NDArray[np.float64]:
    return np.zeros(n)


def source(seed: int) -> Normal:
    return np.random.default_rng(seed).standard_normal


def segmented(rng: np.random.Generator, patients: int) -> list[dict[str, float]]:
    """Results with missing and undefined values, and distances beyond the bound."""
    found = []
    for _ in range(patients):
        one = {n: float(rng.choice([0.0, 0.5, 1.0, rng.random(), math.nan])) for n in NAMES}
        found.append({n: v * (500.0 if n.startswith("hd95") else 1.0) for n, v in one.items() if rng.random() > 0.1})
    return found


def classified(rng: np.random.Generator, patients: int, classes: int) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Probabilities, many of them certain, and truth."""
    sure = np.eye(classes)[rng.integers(classes, size=patients)]
    mixed = rng.dirichlet(np.ones(classes), size=patients)
    return np.where(rng.random((patients, 1)) < 0.5, sure, mixed), rng.integers(classes, size=patients)


class TestValueVectors:
    @settings(max_examples=30)
    @given(st.integers(0, 2**32), st.integers(1, 12))
    def test_a_patient_added_or_removed_changes_the_sums_by_the_sensitivity_at_most(self, seed: int, n: int) -> None:
        rng = np.random.default_rng(seed)
        largest = np.array([1.0, 100.0, 2.0])
        values = rng.choice([0.0, 0.3, 1.0, 2.0, 50.0, 1e9, -5.0, math.nan], size=(n, 3))
        whole = value_vectors(values, largest).sum(axis=0)
        for gone in range(n):
            without = value_vectors(np.delete(values, gone, axis=0), largest).sum(axis=0)
            assert np.linalg.norm(whole - without) <= value_sensitivity(3) + 1e-9

    def test_the_bound_is_reached(self) -> None:
        one = value_vectors(np.array([[0.0, 100.0]]), np.array([1.0, 100.0]))
        assert np.linalg.norm(one) == pytest.approx(value_sensitivity(2)) == pytest.approx(math.sqrt(3))

    def test_what_is_not_defined_counts_as_nothing(self) -> None:
        assert not value_vectors(np.array([[math.nan]]), np.array([1.0])).any()


class TestClassVectors:
    @settings(max_examples=30)
    @given(st.integers(0, 2**32), st.integers(1, 12), st.integers(2, 5), st.booleans())
    def test_a_patient_added_or_removed_changes_the_sums_by_the_sensitivity_at_most(
        self, seed: int, n: int, classes: int, histograms: bool
    ) -> None:
        p, truth = classified(np.random.default_rng(seed), n, classes)
        bound = class_sensitivity(classes, histograms=histograms)
        whole = class_vectors(p, truth, histograms=histograms).sum(axis=0)
        for gone in range(n):
            left = class_vectors(np.delete(p, gone, 0), np.delete(truth, gone), histograms=histograms).sum(axis=0)
            assert np.linalg.norm(whole - left) <= bound + 1e-9

    def test_the_bound_is_reached_by_a_patient_whom_the_model_gets_wholly_wrong(self) -> None:
        one = class_vectors(np.array([[1.0, 0.0]]), np.array([1]), histograms=True)
        assert (
            np.linalg.norm(one)
            == pytest.approx(class_sensitivity(2, histograms=True))
            == pytest.approx(1.5 * 1.2019, 1e-3)
        )


class TestNoisedSegmentation:
    def test_without_noise_it_is_the_summary(self) -> None:
        results = [{"dice": 0.25, "hd95_mm": 40.0}, {"dice": 1.0, "hd95_mm": math.nan}, {"dice": 0.0, "hd95_mm": 900.0}]
        clipped = [{n: min(v, LARGEST_HD95_MM) for n, v in one.items()} for one in results]
        found = noised_segmentation("test", results, ("hd95_mm", "dice"), 1.0, silent)
        expected = segmentation_summary("test", [{n: v for n, v in one.items() if v == v} for one in clipped])
        assert found.patients == 3
        assert found.values == pytest.approx(dict(expected.values))
        for name, numbers in expected.sums.items():
            assert found.sums[name] == pytest.approx(numbers)

    @settings(max_examples=30)
    @given(st.integers(0, 2**32), st.integers(0, 30), st.floats(0.05, 50))
    def test_patients_could_have_it(self, seed: int, patients: int, noise: float) -> None:
        rng = np.random.default_rng(seed)
        found = noised_segmentation("test", segmented(rng, patients), NAMES, noise, rng.standard_normal)
        check_metrics(found)
        for name, value in found.values.items():
            assert 0 <= value <= (LARGEST_HD95_MM if name.startswith("hd95_mm") else 1)

    def test_nobody_and_noise_that_hides_everybody_give_no_sums(self) -> None:
        assert noised_segmentation("test", [], NAMES, 1.0, silent) == SiteMetrics("test", 0)

    def test_the_noise_has_the_stated_scale(self) -> None:
        """Of n: multiplier · sensitivity, over the weight ½ that n has."""
        results = [{"dice": 0.5}] * 1000
        seen = [noised_segmentation("test", results, ("dice",), 3.0, source(seed)).patients for seed in range(400)]
        assert np.std(seen) == pytest.approx(2 * 3.0 * value_sensitivity(1), rel=0.1)
        assert np.mean(seen) == pytest.approx(1000, abs=1)

    def test_metrics_that_no_patient_has_are_noised_too(self) -> None:
        drawn: list[int] = []

        def counted(n: int) -> NDArray[np.float64]:
            drawn.append(n)
            return np.zeros(n)

        noised_segmentation("test", [{"dice": 0.5}], NAMES, 1.0, counted)
        noised_segmentation("test", [], NAMES, 1.0, counted)
        assert drawn == [12, 12]


class TestNoisedClassification:
    def test_without_noise_it_is_the_summary_with_scores_in_tenths(self) -> None:
        p, truth = classified(np.random.default_rng(0), 40, 2)
        found = noised_classification("test", p, truth, histograms=True, noise_multiplier=1.0, normal=silent)
        expected = classification_summary("test", p, truth, histograms=True)
        assert found.patients == 40
        assert found.values == pytest.approx({"brier": expected.values["brier"]})
        assert found.sums["confusion"] == expected.sums["confusion"]
        assert found.sums["brier"] == pytest.approx(expected.sums["brier"])
        for side in ("scores_1_negative", "scores_1_positive"):
            assert sum(found.sums[side]) == sum(expected.sums[side])
        assert count_values(found.sums)["auc"] == pytest.approx(expected.values["auc"], abs=0.05)

    @settings(max_examples=30)
    @given(st.integers(0, 2**32), st.integers(0, 30), st.integers(2, 4), st.booleans(), st.floats(0.05, 50))
    def test_patients_could_have_it(
        self, seed: int, patients: int, classes: int, histograms: bool, noise: float
    ) -> None:
        rng = np.random.default_rng(seed)
        p, truth = classified(rng, patients, classes)
        found = noised_classification(
            "test", p, truth, histograms=histograms, noise_multiplier=noise, normal=rng.standard_normal
        )
        check_metrics(found, classes=classes)
        assert 0 <= found.values.get("brier", 0.0) <= (1 if classes == 2 else 2)

    def test_the_noise_has_the_stated_scale(self) -> None:
        """Of a class of two cells: √2 · multiplier · sensitivity."""
        p, truth = np.tile([0.9, 0.1], (900, 1)), np.repeat([0, 1], [600, 300])
        seen = [
            sum(
                noised_classification(
                    "test", p, truth, histograms=True, noise_multiplier=2.0, normal=source(seed)
                ).sums["confusion"][:2]
            )
            for seed in range(400)
        ]
        assert np.std(seen) == pytest.approx(math.sqrt(2) * 2.0 * class_sensitivity(2, histograms=True), rel=0.1)
        assert np.mean(seen) == pytest.approx(600, abs=1)

    def test_nobody_gives_no_sums(self) -> None:
        none = np.zeros((0, 2)), np.zeros(0, np.int64)
        found = noised_classification("test", *none, histograms=True, noise_multiplier=1.0, normal=silent)
        assert found == SiteMetrics("test", 0)


class TestHostileWeights:
    @pytest.mark.parametrize("broken", [np.nan, np.inf, -np.inf])
    def test_a_patient_whose_probabilities_are_not_finite_moves_the_sums_no_further_than_others(self, broken):
        probabilities = np.full((4, 2), 0.5)
        probabilities[2] = broken
        vectors = class_vectors(probabilities, np.array([0, 1, 1, 0]), histograms=True)
        assert np.isfinite(vectors).all()
        assert np.linalg.norm(vectors[2]) <= class_sensitivity(2, histograms=True) + 1e-12
        assert vectors[2].tolist() == vectors[1].tolist()

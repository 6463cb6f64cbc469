"""Metrics of one patient or one group of patients."""

from __future__ import annotations

import itertools
import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays
from numpy.typing import NDArray
from sklearn.linear_model import LogisticRegression

from eucaim_fl.errors import DataError
from eucaim_fl.validation.metrics import (
    auc,
    balanced_accuracy,
    brier,
    brier_per_patient,
    calibration_error,
    calibration_line,
    confusion,
    dice,
    hd95_mm,
    logistic_fit,
)

Mask = NDArray[np.bool_]


def mask(shape: tuple[int, ...], *voxels: tuple[int, ...]) -> Mask:
    found = np.zeros(shape, bool)
    for voxel in voxels:
        found[voxel] = True
    return found


PAIRS = array_shapes(min_dims=2, max_dims=3, max_side=5).flatmap(
    lambda shape: st.tuples(arrays(bool, shape), arrays(bool, shape))
)


class TestDice:
    def test_one_voxel_of_two_is_two_thirds(self) -> None:
        assert dice(mask((1, 2), (0, 0), (0, 1)), mask((1, 2), (0, 0))) == 2 / 3

    def test_two_empty_masks_have_none(self) -> None:
        assert math.isnan(dice(mask((2, 2)), mask((2, 2))))

    def test_one_empty_mask_is_zero(self) -> None:
        assert dice(mask((2, 2)), mask((2, 2), (0, 0))) == 0.0

    def test_other_shapes_are_refused(self) -> None:
        with pytest.raises(DataError, match="shape"):
            dice(mask((2, 2)), mask((2, 3)))

    @given(PAIRS)
    def test_it_is_symmetric_and_one_for_equal_masks(self, pair: tuple[Mask, Mask]) -> None:
        a, b = pair
        if a.any():
            assert dice(a, a) == 1.0
            assert 0 <= dice(a, b) <= 1
            assert dice(a, b) == dice(b, a)


def brute_force_hd95(pred: Mask, truth: Mask, spacing_mm: tuple[float, ...]) -> float:
    """Straight from the definition, voxel by voxel."""

    def surface(of: Mask) -> NDArray[np.float64]:
        points = []
        for voxel in itertools.product(*map(range, of.shape)):
            beside = [
                tuple(v + step * (axis == a) for a, v in enumerate(voxel))
                for axis in range(of.ndim)
                for step in (-1, 1)
            ]
            inside = [all(0 <= v < n for v, n in zip(b, of.shape, strict=True)) and bool(of[b]) for b in beside]
            if of[voxel] and not all(inside):
                points.append([v * s for v, s in zip(voxel, spacing_mm, strict=True)])
        return np.array(points)

    a, b = surface(pred), surface(truth)
    distances = np.sqrt(((a[:, None] - b[None]) ** 2).sum(axis=2))
    return float(max(np.percentile(distances.min(axis=1), 95), np.percentile(distances.min(axis=0), 95)))


class TestHausdorff:
    def test_it_is_measured_in_millimetres_along_each_axis(self) -> None:
        a = mask((4, 4, 4), (0, 0, 0))
        assert hd95_mm(a, mask((4, 4, 4), (0, 0, 3)), (1.0, 2.0, 0.5)) == 1.5
        assert hd95_mm(a, mask((4, 4, 4), (3, 2, 0)), (1.0, 2.0, 0.5)) == 5.0

    def test_equal_masks_are_no_distance_apart(self) -> None:
        assert hd95_mm(mask((3, 3), (1, 1)), mask((3, 3), (1, 1)), (1.0, 1.0)) == 0.0

    def test_the_inside_of_a_mask_does_not_count(self) -> None:
        full, hollow = np.ones((5, 5), bool), np.ones((5, 5), bool)
        hollow[2, 2] = False
        # the hole's four neighbours are surface, one voxel from the rim: 4 of 20 voxels, beyond the 95th percentile
        assert hd95_mm(full, hollow, (1.0, 1.0)) == 1.0

    def test_the_worse_direction_counts(self) -> None:
        near, near_and_far = mask((1, 10), (0, 0)), mask((1, 10), (0, 0), (0, 9))
        assert hd95_mm(near, near_and_far, (1.0, 1.0)) == hd95_mm(near_and_far, near, (1.0, 1.0))
        assert hd95_mm(near, near_and_far, (1.0, 1.0)) == pytest.approx(0.95 * 9)

    def test_two_empty_masks_have_none(self) -> None:
        assert math.isnan(hd95_mm(mask((2, 2)), mask((2, 2)), (1.0, 1.0)))

    def test_one_empty_mask_is_the_diagonal_of_the_image(self) -> None:
        some = mask((3, 2), (0, 0))
        assert hd95_mm(some, mask((3, 2)), (1.0, 2.0)) == 5.0
        assert hd95_mm(mask((3, 2)), some, (1.0, 2.0)) == 5.0

    def test_other_shapes_are_refused(self) -> None:
        with pytest.raises(DataError, match="shape"):
            hd95_mm(mask((2, 2)), mask((2, 3)), (1.0, 1.0))

    @pytest.mark.parametrize("spacing", [(1.0,), (1.0, 0.0), (1.0, math.nan), (1.0, 1.0, 1.0)])
    def test_other_spacings_are_refused(self, spacing: tuple[float, ...]) -> None:
        with pytest.raises(DataError, match="Spacing"):
            hd95_mm(mask((2, 2)), mask((2, 2)), spacing)

    @settings(max_examples=60)
    @given(PAIRS)
    def test_it_is_what_the_definition_gives(self, pair: tuple[Mask, Mask]) -> None:
        a, b = pair
        spacing = (0.5, 1.0, 3.0)[: a.ndim]
        if a.any() and b.any():
            found = hd95_mm(a, b, spacing)
            assert found == pytest.approx(brute_force_hd95(a, b, spacing))
            assert found == hd95_mm(b, a, spacing)
            assert found < hd95_mm(a, np.zeros_like(a), spacing)


class TestAuc:
    def test_three_of_four_pairs_in_order(self) -> None:
        assert auc(np.array([0.1, 0.4, 0.35, 0.8]), np.array([0, 0, 1, 1])) == 0.75

    def test_a_tie_counts_one_half(self) -> None:
        assert auc(np.array([0.5, 0.5]), np.array([0, 1])) == 0.5

    def test_two_columns_give_what_the_second_gives(self) -> None:
        scores = np.array([0.1, 0.4, 0.35, 0.8])
        assert auc(np.stack([1 - scores, scores], axis=1), np.array([0, 0, 1, 1])) == 0.75

    def test_several_classes_take_the_mean_of_one_against_the_rest(self) -> None:
        scores = np.array([[0.8, 0.1, 0.1], [0.2, 0.7, 0.1], [0.3, 0.4, 0.3], [0.5, 0.3, 0.2]])
        # class 0: 1 of 1·3 wins all; class 1: 0.7 and 0.3 against 0.1, 0.4: 3 of 4; class 2: all
        assert auc(scores, np.array([0, 1, 2, 1])) == pytest.approx((1 + 0.75 + 1) / 3)

    @pytest.mark.parametrize("truth", [[0, 0], [1, 1]])
    def test_one_class_only_has_none(self, truth: list[int]) -> None:
        assert math.isnan(auc(np.array([0.2, 0.7]), np.array(truth)))

    def test_a_class_that_nobody_has_leaves_it_undefined(self) -> None:
        assert math.isnan(auc(np.eye(3)[[0, 1]], np.array([0, 1])))

    @pytest.mark.parametrize(
        ("scores", "truth", "message"),
        [
            ([0.1, math.nan], [0, 1], "not finite"),
            ([0.1, 0.2], [0, 2], "0 to 1"),
            ([0.1, 0.2], [0, -1], "0 to 1"),
            ([0.1, 0.2], [0], "one per patient"),
            ([0.1, 0.2], [0.0, 1.0], "whole numbers"),
            ([[0.1], [0.2]], [0, 1], "per patient and class"),
        ],
    )
    def test_what_does_not_fit_is_refused(self, scores: Any, truth: Any, message: str) -> None:
        with pytest.raises(DataError, match=message):
            auc(np.array(scores), np.array(truth))

    @given(st.lists(st.tuples(st.integers(0, 5), st.booleans()), min_size=2, max_size=12))
    def test_it_is_the_share_of_pairs_in_order(self, patients: list[tuple[int, bool]]) -> None:
        low = [score for score, positive in patients if not positive]
        high = [score for score, positive in patients if positive]
        found = auc(np.array([float(s) for s, _ in patients]), np.array([int(p) for _, p in patients]))
        if low and high:
            wins = sum((h > n) + (h == n) / 2 for h in high for n in low)
            assert found == pytest.approx(wins / (len(low) * len(high)))
        else:
            assert math.isnan(found)


class TestConfusionAndBalancedAccuracy:
    def test_rows_are_true_and_columns_predicted(self) -> None:
        assert confusion(np.array([1, 1, 0]), np.array([0, 1, 0]), 2).tolist() == [[1, 1], [0, 1]]

    def test_a_rare_class_counts_as_much_as_a_common_one(self) -> None:
        assert balanced_accuracy(np.array([0] * 10), np.array([0] * 9 + [1]), 2) == 0.5

    def test_a_class_that_nobody_has_leaves_it_undefined(self) -> None:
        assert math.isnan(balanced_accuracy(np.array([0, 1]), np.array([0, 0]), 2))

    def test_classes_out_of_range_are_refused(self) -> None:
        with pytest.raises(DataError, match="0 to 1"):
            confusion(np.array([0, 2]), np.array([0, 1]), 2)
        with pytest.raises(DataError, match="0 to 1"):
            balanced_accuracy(np.array([0, 1]), np.array([0, 2]), 2)

    def test_different_lengths_are_refused(self) -> None:
        with pytest.raises(DataError, match="one per patient"):
            balanced_accuracy(np.array([0]), np.array([0, 1]), 2)


class TestBrier:
    def test_two_classes_take_the_square_of_the_second(self) -> None:
        assert brier_per_patient(np.array([[0.5, 0.5], [0.0, 1.0]]), np.array([1, 0])).tolist() == [0.25, 1.0]
        assert brier(np.array([0.5, 1.0]), np.array([1, 0])) == 0.625

    def test_several_classes_add_the_squares(self) -> None:
        # (0.5 − 1)² + 0.25² + 0.25²
        assert brier(np.array([[0.5, 0.25, 0.25]]), np.array([0])) == 0.375

    def test_no_patient_has_none(self) -> None:
        assert math.isnan(brier(np.zeros((0, 2)), np.zeros(0, int)))

    @pytest.mark.parametrize("probabilities", [[[0.5, 0.6]], [[-0.5, 1.5]], [[math.nan, 0.5]]])
    def test_what_is_no_probability_is_refused(self, probabilities: list[list[float]]) -> None:
        with pytest.raises(DataError, match=r"Probabilities|not finite"):
            brier_per_patient(np.array(probabilities), np.array([0]))
        with pytest.raises(DataError, match=r"Probabilities|not finite"):
            brier(np.array(probabilities), np.array([0]))


class TestCalibrationError:
    def test_two_bins_by_hand(self) -> None:
        # bins {0.1, 0.3} with one of two positive, {0.7, 0.9} with both: |1 − 0.4| and |2 − 1.6|, over 4 patients
        found = calibration_error(np.array([0.9, 0.1, 0.3, 0.7]), np.array([1, 0, 1, 1]), bins=2)
        assert found == pytest.approx((0.6 + 0.4) / 4)

    def test_many_classes_are_measured_by_the_likeliest(self) -> None:
        probabilities = np.array([[0.6, 0.3, 0.1], [0.1, 0.1, 0.8]])
        assert calibration_error(probabilities, np.array([0, 1]), bins=1) == pytest.approx(abs(1 - 1.4) / 2)

    def test_more_bins_than_patients_are_no_matter(self) -> None:
        assert calibration_error(np.array([0.2, 0.8]), np.array([0, 1]), bins=10) == pytest.approx(0.2)

    def test_nobody_has_none(self) -> None:
        assert math.isnan(calibration_error(np.zeros((0, 2)), np.zeros(0, np.int64)))

    def test_the_order_of_patients_changes_nothing(self) -> None:
        scores, truth = np.array([0.5, 0.5, 0.5, 0.2]), np.array([1, 0, 1, 0])
        every = {calibration_error(scores[list(o)], truth[list(o)], bins=2) for o in itertools.permutations(range(4))}
        assert len(every) == 1

    def test_what_is_no_probability_is_refused(self) -> None:
        with pytest.raises(DataError, match="between 0 and 1"):
            calibration_error(np.array([1.5]), np.array([1]))
        with pytest.raises(DataError, match="at least one bin"):
            calibration_error(np.array([0.5]), np.array([1]), bins=0)


class TestCalibrationLine:
    def test_probabilities_that_are_right_have_slope_one_and_intercept_zero(self) -> None:
        probabilities = np.repeat([0.2, 0.5, 0.8], 10)
        truth = np.concatenate([np.arange(10) < n for n in (2, 5, 8)]).astype(np.int64)
        assert calibration_line(probabilities, truth) == pytest.approx((1.0, 0.0), abs=1e-6)

    def test_logits_twice_as_large_have_half_the_slope(self) -> None:
        odds = np.repeat([0.25, 1.0, 4.0], 10) ** 2
        truth = np.concatenate([np.arange(10) < n for n in (2, 5, 8)]).astype(np.int64)
        assert calibration_line(odds / (1 + odds), truth)[0] == pytest.approx(0.5, abs=1e-6)

    def test_probabilities_that_are_too_high_have_an_intercept_below_zero(self) -> None:
        slope, intercept = calibration_line(np.full(10, 0.8), (np.arange(10) < 5).astype(np.int64))
        assert intercept == pytest.approx(-math.log(4), abs=1e-6)
        assert math.isnan(slope)  # one probability for all tells of no slope

    @pytest.mark.parametrize("slope", [0.5, 4.0, 12.0, -8.0])
    def test_a_line_far_from_where_the_search_begins_is_found(self, slope: float) -> None:
        # as many patients as the line says, a tenth of them at each score; low scores all, so the intercept is far, too
        probabilities = np.linspace(0.05, 0.25, 41)
        logits = np.log(probabilities / (1 - probabilities))
        expected = 1 / (1 + np.exp(-slope * (logits + 1.8)))
        found = logistic_fit(
            np.stack([np.ones(41), logits], axis=1), np.zeros(41), 100 * expected[None], np.full((1, 41), 100.0)
        )
        assert found[0] == pytest.approx([1.8 * slope, slope], rel=1e-6)

    def test_a_steep_line_of_few_patients_is_found(self) -> None:
        # 98 patients whose scores lie between 0.06 and 0.22, where steps from the middle went past it for ever
        counts = {
            0: {6: 2, 7: 9, 8: 6, 9: 9, 10: 9, 11: 9, 12: 12, 13: 5, 14: 1, 15: 1, 16: 1, 21: 1},
            1: {9: 2, 10: 4, 11: 4, 12: 9, 13: 7, 14: 3, 15: 1, 16: 1, 18: 1, 21: 1},
        }
        rows = [(place, k) for k, by in counts.items() for place, n in by.items() for _ in range(n)]
        places, truth = np.array(rows).T
        probabilities = (places + 0.5) / 100
        logits = np.log(probabilities / (1 - probabilities))
        slope = calibration_line(probabilities, truth)[0]
        reference = LogisticRegression(C=math.inf, tol=1e-10).fit(logits[:, None], truth)
        assert slope == pytest.approx(reference.coef_[0, 0], abs=1e-3)
        assert slope == pytest.approx(4.05714, abs=1e-5)

    def test_perfect_separation_has_no_finite_slope(self) -> None:
        assert math.isnan(calibration_line(np.array([0.1, 0.2, 0.8, 0.9]), np.array([0, 0, 1, 1]))[0])

    def test_one_class_has_none(self) -> None:
        assert all(math.isnan(v) for v in calibration_line(np.array([0.1, 0.9]), np.array([1, 1])))

    def test_other_values_are_refused(self) -> None:
        with pytest.raises(DataError, match="two classes"):
            calibration_line(np.full((2, 3), 1 / 3), np.array([0, 1]))
        with pytest.raises(DataError, match="between 0 and 1"):
            calibration_line(np.array([1.5]), np.array([1]))

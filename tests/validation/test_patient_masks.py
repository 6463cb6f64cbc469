"""A patient's results of a segmentation, from masks by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest

from eucaim_fl.errors import DataError
from eucaim_fl.validation.patient_masks import mask_results, merged_images

SPACING = (1.0, 2.0, 5.0)


def classes(*boxes: tuple[int, slice]) -> np.ndarray:
    mask = np.zeros((20, 4, 2), np.uint8)
    for number, where in boxes:
        mask[where] = number
    return mask


class TestMaskResults:
    def test_one_label_has_plain_names_and_values_in_the_units_that_they_say(self):
        truth, found = classes((1, slice(0, 4)), (1, slice(10, 14))), classes((1, slice(0, 6)))
        result = mask_results(found, truth, SPACING, ["lesion"], tolerance_mm=2.0, overlap=0.5)
        assert result["dice"] == 2 * 32 / (48 + 64)
        assert (result["found_ml"], result["true_ml"]) == (0.48, 0.64)
        assert [result[f"lesions_{what}"] for what in ("true", "found", "false")] == [2, 1, 0]
        assert 0 < result["surface_dice"] < 1
        assert result["hd95_mm"] == 8.0

    def test_several_labels_have_values_each_and_means_and_sums_over_them(self):
        truth, found = classes((1, slice(0, 4)), (2, slice(10, 14))), classes((1, slice(0, 4)))
        result = mask_results(found, truth, SPACING, ["liver", "lesion"], tolerance_mm=1.0, overlap=0.5)
        assert (result["dice_liver"], result["dice_lesion"], result["dice"]) == (1.0, 0.0, 0.5)
        assert (result["true_ml"], result["found_ml"], result["lesions_found"]) == (0.64, 0.32, 1.0)

    def test_a_label_that_is_nowhere_is_not_defined(self):
        result = mask_results(classes(), classes(), SPACING, ["lesion"], tolerance_mm=1.0, overlap=0.5)
        assert all(math.isnan(result[name]) for name in ("dice", "hd95_mm", "surface_dice"))
        assert result["found_ml"] == result["lesions_false"] == 0.0

    def test_two_grids_are_refused(self):
        with pytest.raises(DataError, match="can't be compared"):
            mask_results(classes(), np.zeros((2, 2, 2), int), SPACING, ["lesion"], tolerance_mm=1.0, overlap=0.5)


class TestMergedImages:
    def test_lesions_add_up_and_overlaps_are_averaged(self):
        images = [{"dice_a": 0.5, "lesions_true": 2.0}, {"dice_a": 1.0, "lesions_true": 3.0}]
        assert merged_images(images) == {"dice_a": 0.75, "lesions_true": 5.0}

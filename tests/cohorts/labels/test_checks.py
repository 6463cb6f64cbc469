from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

from eucaim_fl.cohorts.labels import LABEL_PROBLEMS, check_label
from eucaim_fl.cohorts.phantom import Acquisition, Tissue, image_abdomen
from eucaim_fl.cohorts.volume import Volume
from eucaim_fl.errors import LabelError

RNG = np.random.default_rng(0)
NOISE = RNG.normal(0, 5, (40, 40, 12)).astype(np.float32)


def body(spacing: float = 8.0, *, to_left: bool = False) -> Volume:
    """A block of 100 in air of −1000, in an image of 40 x 40 x 12; I grows to the patient's right, or to the left."""
    array = np.full((40, 40, 12), -1000, np.float32)
    array[4:36, 4:36] = 100
    return Volume(array + NOISE, np.diag([-spacing if to_left else spacing, spacing, 5.0, 1.0]))


def label_at(*place: slice, value: int = 1) -> np.ndarray:
    label = np.zeros((40, 40, 12), np.uint8)
    label[place] = value
    return label


LESION = np.s_[8:14, 18:24, 4:8]
"""Off the middle along I, by more than its own size."""


def with_lesion(image: Volume, contrast: float = -60.0) -> Volume:
    array = image.array.copy()
    array[LESION] += contrast
    return Volume(array, image.affine)


class TestEachCode:
    def test_a_right_label_has_no_problem(self):
        assert check_label(with_lesion(body()), label_at(*LESION)) == ()

    def test_a_label_of_nothing_is_empty_and_nothing_else(self):
        assert check_label(body(), np.zeros((40, 40, 12), np.uint8)) == ("empty",)

    @pytest.mark.parametrize("place", [np.s_[8:14, 18:24, :3], np.s_[8:14, 18:24, 10:], np.s_[20:, 18:24, 4:8]])
    def test_a_label_at_the_edge_may_be_cut(self, place):
        assert "touches_border" in check_label(body(), label_at(*place))

    def test_a_single_slice_is_not_cut_along_its_normal(self):
        image = Volume(with_lesion(body()).array[:, :, 5:6].copy(), body().affine)
        assert check_label(image, label_at(*LESION)[:, :, 5:6]) == ()

    @pytest.mark.parametrize(("voxels", "tiny"), [(1, True), (2, True), (3, False)])
    def test_fewer_than_three_voxels_are_tiny(self, voxels, tiny):
        label = label_at(slice(10, 10 + voxels), slice(20, 21), slice(5, 6))
        assert ("tiny" in check_label(body(), label)) == tiny

    def test_each_value_counts_by_itself(self):
        label = label_at(*LESION)
        label[20, 20, 5] = 2
        assert "tiny" in check_label(with_lesion(body()), label)

    def test_a_label_beside_the_body_is_told(self):
        assert "off_body" in check_label(body(), label_at(slice(37, 39), slice(18, 24), slice(4, 8)))

    def test_an_image_without_background_has_nothing_beside_the_body(self):
        image = Volume((RNG.normal(100, 5, (40, 40, 12))).astype(np.float32), np.eye(4))
        assert "off_body" not in check_label(image, label_at(slice(30, 39), slice(18, 24), slice(4, 8)))

    def test_an_image_of_one_value_is_no_reason_to_stumble(self):
        assert check_label(Volume(np.zeros((40, 40, 12), np.float32), np.eye(4)), label_at(*LESION), "L") == ()

    def test_another_shape_is_an_error(self):
        with pytest.raises(LabelError, match="does not fit"):
            check_label(body(), np.zeros((40, 40, 11), np.uint8))

    def test_every_code_says_what_it_is_and_what_to_do(self):
        assert list(LABEL_PROBLEMS) == ["empty", "touches_border", "tiny", "left_right", "off_body"]
        assert all(says.endswith(".") and do.endswith(".") for says, do in LABEL_PROBLEMS.values())


class TestLeftAndRight:
    @pytest.mark.parametrize("contrast", [-60.0, 60.0])
    @pytest.mark.parametrize("to_left", [False, True])
    def test_a_label_whose_mirror_image_lies_on_the_lesion_looks_swapped(self, contrast, to_left):
        image = with_lesion(body(to_left=to_left), contrast)
        assert check_label(image, np.flip(label_at(*LESION), 0)) == ("left_right",)

    def test_swapped_is_along_the_axis_closest_to_left_right(self):
        image = with_lesion(body())
        turned = Volume(image.array.transpose(1, 0, 2), image.affine[:, [1, 0, 2, 3]])
        assert check_label(turned, np.flip(label_at(*LESION), 0).transpose(1, 0, 2)) == ("left_right",)
        assert check_label(image, np.flip(label_at(*LESION), 2)) == ()

    def test_a_lesion_that_the_image_does_not_show_says_nothing(self):
        assert check_label(body(), label_at(*LESION)) == ()

    @pytest.mark.parametrize(
        ("stated", "to_left", "wrong"),
        [("L", False, False), ("R", False, True), ("RIGHT", False, True), ("L", True, True), ("", True, False),
         ("B", True, False)],
    )  # fmt: skip
    def test_the_stated_side_counts_where_both_sides_are_seen(self, stated, to_left, wrong):
        image = with_lesion(body(to_left=to_left))
        assert ("left_right" in check_label(image, label_at(*LESION), stated)) == wrong

    def test_an_image_of_one_side_says_nothing_about_the_other(self):
        assert check_label(with_lesion(body(spacing=4.0)), label_at(*LESION), "R") == ()

    def test_the_middle_is_the_body_s_not_the_image_s(self):
        wide = np.full((80, 40, 12), -1000, np.float32)
        wide[:40] = body().array
        label = np.zeros(wide.shape, np.uint8)
        label[22:34, 18:24, 4:8] = 1  # right of the body's middle, left of the image's
        image = Volume(wide, np.diag([8.0, 8, 5, 1]))
        assert check_label(image, label, "R") == ()
        assert check_label(image, label, "L") == ("left_right",)


def far_off(mask: np.ndarray) -> bool:
    """Whether the mask's centre is off the middle by more than the radius of a ball of its volume, along I."""
    centre = np.argwhere(mask)[:, 0].mean()
    return bool(abs(centre - (mask.shape[0] - 1) / 2) > (3 * mask.sum() / 4 / np.pi) ** (1 / 3))


class TestRates:
    """How often right labels are called swapped, and swapped ones are found."""

    def test_on_demo_abdomens(self):
        false = found = there = 0
        tissue = Tissue(liver=100, spleen=115, aorta=140, vessel=22, lesion=(-72, -52))
        affine = np.diag([-3.6, -3.6, 5.0, 1.0])
        affine[:3, 3] = (135, 135, -50)
        for number in range(12):
            rng = np.random.default_rng(number)
            truth = image_abdomen(rng, (76, 76, 21), affine, tissue, Acquisition(1.6, 8), malignant=bool(number % 2))
            image, mask = Volume(truth.image, affine), truth.lesions.astype(np.uint8)
            false += "left_right" in check_label(image, mask)
            if far_off(truth.lesions):
                there += 1
                found += "left_right" in check_label(image, np.ascontiguousarray(mask[::-1]))
        assert there >= 10
        assert false == 0
        assert found >= 0.9 * there

    @pytest.mark.realdata
    def test_on_real_lung_nodules(self):
        root = os.environ.get("EUCAIM_FL_SHARED_DATA") or Path(__file__).parents[4] / "shared" / "data"
        archive = Path(root) / "lidc_nodules" / "lidc_nodules_51.npz"
        if not archive.is_file():
            pytest.skip("the shared data set lidc_nodules is not here")
        with np.load(archive, allow_pickle=False) as stored:
            cubes, masks = stored["images"], stored["masks"].astype(bool)
        false = found = there = 0
        for cube, whole in zip(cubes, masks, strict=True):
            array, mask = cube[16:].astype(np.float32) * 1400 - 1000, whole[16:]  # the nodule off the middle
            image = Volume(array, np.eye(4))
            false += "left_right" in check_label(image, mask.astype(np.uint8))
            if far_off(mask):
                there += 1
                found += "left_right" in check_label(image, mask[::-1].astype(np.uint8))
        assert there > 70
        assert false <= 0.02 * len(cubes)
        assert found >= 0.8 * there

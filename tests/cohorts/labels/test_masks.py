from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from eucaim_fl.cohorts.dicom import read_series
from eucaim_fl.cohorts.labels import read_label
from eucaim_fl.cohorts.labels.grids import Target
from eucaim_fl.cohorts.labels.masks import read_mask
from eucaim_fl.cohorts.nifti import read_nifti
from eucaim_fl.cohorts.volume import Volume
from eucaim_fl.errors import LabelError, UnreadableFileError

LABELS = ("organ", "lesion")


class TestNifti:
    @given(
        axes=st.permutations(range(3)),
        flips=st.tuples(st.booleans(), st.booleans(), st.booleans()),
        shape=st.tuples(st.integers(2, 4), st.integers(2, 4), st.integers(1, 4)),
    )
    def test_a_permuted_and_flipped_label_comes_back_onto_its_image(
        self, made, tiny, tmp_path_factory, axes, flips, shape
    ):
        folder = tmp_path_factory.mktemp("n")
        values = np.random.default_rng(0).integers(0, 3, shape).astype(np.uint8)
        image = read_nifti(tiny.nifti(folder / "image.nii", np.zeros(shape, np.int16)))
        move = np.zeros((4, 4))  # index in the turned array → index in the image
        move[3, 3] = 1
        for axis, (old, flip) in enumerate(zip(axes, flips, strict=True)):
            move[old, axis], move[old, 3] = (-1, shape[old] - 1) if flip else (1, 0)
        turned = values.transpose(axes)
        turned = turned[tuple(slice(None, None, -1 if flip else 1) for flip in flips)]
        path = tiny.nifti(folder / "label.nii", np.ascontiguousarray(turned), tiny.affine @ move)
        assert np.array_equal(read_label(made.case([path], "nifti"), image, LABELS), values)

    def test_a_mask_over_a_dicom_series(self, made, tiny, tmp_path):
        stored = np.zeros((5, 6, 7), np.int16)
        image = read_series(tiny.series(tmp_path / "image", stored, orientation=(0.8, 0.6, 0, -0.36, 0.48, -0.8)))
        mask = np.random.default_rng(0).integers(0, 3, image.shape).astype(np.uint8)
        path = tiny.nifti(tmp_path / "label.nii.gz", mask, image.affine)
        assert np.array_equal(read_label(made.case([path], "nifti"), image, LABELS), mask)

    @pytest.fixture
    def image(self, tiny, tmp_path):
        return read_nifti(tiny.nifti(tmp_path / "image.nii", np.zeros((4, 5, 6), np.int16)))

    @pytest.mark.parametrize(
        ("shape", "move"),
        [
            ((4, 5, 5), np.eye(4)),
            ((5, 4, 6), np.eye(4)),
            ((4, 5, 6), np.array([[1, 0, 0, 0.5], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]])),
            ((4, 5, 6), np.array([[1, 0, 0, 1], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]])),
            ((4, 5, 6), np.diag([1, 1, 1.1, 1])),
            ((4, 5, 6), np.diag([2, 1, 1, 1])),
            ((4, 5, 6), np.array([[0.7, -0.7, 0, 0], [0.7, 0.7, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]])),
        ],
    )
    def test_another_grid_is_an_error(self, made, tiny, tmp_path, image, shape, move):
        path = tiny.nifti(tmp_path / "SECRET.nii", np.zeros(shape, np.uint8), tiny.affine @ move)
        with pytest.raises(LabelError, match="grid is not") as caught:
            read_label(made.case([path], "nifti"), image, LABELS)
        assert "SECRET" not in str(caught.value)

    @pytest.mark.parametrize("value", [3, -1, 1.5, np.nan])
    def test_a_value_without_a_name_is_an_error(self, made, tiny, tmp_path, image, value):
        path = tiny.nifti(tmp_path / "label.nii", np.full((4, 5, 6), value, np.float32))
        with pytest.raises(LabelError, match="other values than 0 to 2"):
            read_label(made.case([path], "nifti"), image, LABELS)

    def test_two_masks_for_one_image_are_an_error(self, made, tiny, tmp_path, image):
        files = [tiny.nifti(tmp_path / f"{n}.nii", np.zeros((4, 5, 6), np.uint8)) for n in (1, 2)]
        with pytest.raises(LabelError, match="several NIfTI labels"):
            read_label(made.case(files, "nifti"), image, LABELS)

    def test_a_truncated_mask_is_unreadable(self, made, tiny, tmp_path, image):
        path = tiny.nifti(tmp_path / "label.nii.gz", np.zeros((4, 5, 6), np.uint8))
        path.write_bytes(path.read_bytes()[:-4])
        with pytest.raises(UnreadableFileError, match="truncated"):
            read_label(made.case([path], "nifti"), image, LABELS)

    def test_whole_numbers_may_be_stored_as_any_type(self, made, tiny, tmp_path, image):
        values = np.random.default_rng(0).integers(0, 3, image.shape).astype(np.float64)
        path = tiny.nifti(tmp_path / "label.nii", values)
        label = read_label(made.case([path], "nifti"), image, LABELS)
        assert label.dtype == np.uint8
        assert np.array_equal(label, values)

    def test_a_mask_of_nothing_is_all_background(self, made, tiny, tmp_path, image):
        path = tiny.nifti(tmp_path / "label.nii", np.zeros(image.shape, np.uint8))
        assert not read_label(made.case([path], "nifti"), image, LABELS).any()


class TestOnAnotherGrid:
    def test_a_mask_on_finer_voxels_gives_each_voxel_what_lies_at_its_centre(self, made, tiny, tmp_path):
        image = Volume(np.zeros((3, 3, 3), np.float32), np.diag([3.0, 3.0, 3.0, 1.0]))
        fine = np.random.default_rng(0).integers(0, 3, (9, 9, 9)).astype(np.uint8)
        affine = np.eye(4)
        affine[:3, 3] = -1  # the middle one of three fine voxels lies in the image's centre
        path = tiny.nifti(tmp_path / "label.nii", fine, affine)
        label = read_label(made.case([path], "nifti"), image, LABELS, resample=True)
        assert np.array_equal(label, fine[1::3, 1::3, 1::3])

    def test_it_is_refused_unless_the_plan_says_so(self, made, tiny, tmp_path):
        image = made.volume((3, 3, 3))
        path = tiny.nifti(tmp_path / "label.nii", np.ones((6, 6, 6), np.uint8), np.diag([0.5, 0.5, 0.5, 1]))
        with pytest.raises(LabelError, match="grid is not"):
            read_mask([path], Target(image), ("lesion",))
        assert read_mask([path], Target(image, resample=True), ("lesion",)).all()

    def test_what_lies_beyond_the_image_is_cut_off(self, made, tiny, tmp_path):
        move = np.eye(4)
        move[0, 3] = 2
        path = tiny.nifti(tmp_path / "label.nii", np.ones((4, 4, 4), np.uint8), move)
        label = read_label(made.case([path], "nifti"), made.volume((4, 4, 4)), ("lesion",), resample=True)
        assert label.sum() == 2 * 4 * 4
        assert label[2:].all()

    def test_a_mask_beside_the_image_is_an_error(self, made, tiny, tmp_path):
        move = np.eye(4)
        move[0, 3] = 40
        path = tiny.nifti(tmp_path / "label.nii", np.ones((4, 4, 4), np.uint8), move)
        with pytest.raises(LabelError, match="outside its image"):
            read_label(made.case([path], "nifti"), made.volume((4, 4, 4)), ("lesion",), resample=True)

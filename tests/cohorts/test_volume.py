from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from eucaim_fl.cohorts import volume as module
from eucaim_fl.cohorts.volume import Volume, corners, is_sheared, same_grid, straighten
from eucaim_fl.errors import SeriesError


def _volume(affine: np.ndarray | None = None, shape: tuple[int, ...] = (2, 3, 4)) -> Volume:
    return Volume(np.zeros(shape, np.float32), np.eye(4) if affine is None else affine)


class TestVolume:
    def test_spacing_is_the_length_of_each_axis_step(self):
        affine = np.eye(4)
        affine[:3, :3] = [[0, -2, 0], [0.6, 0, 0], [0.8, 0, 5]]
        assert _volume(affine).spacing_mm == (1.0, 2.0, 5.0)

    def test_a_flat_array_is_no_volume(self):
        with pytest.raises(SeriesError, match="three axes"):
            Volume(np.zeros((2, 3), np.float32), np.eye(4))

    @pytest.mark.parametrize("affine", [np.zeros((4, 4)), np.eye(3), np.full((4, 4), np.nan)])
    def test_a_position_that_can_not_be_inverted_is_refused(self, affine):
        with pytest.raises(SeriesError, match="invertible"):
            Volume(np.zeros((2, 3, 4), np.float32), affine)


class TestSameGrid:
    def test_an_image_lies_on_its_own_grid(self):
        assert same_grid(_volume(), _volume())

    @given(shift=st.floats(0.002, 100), axis=st.integers(0, 2))
    def test_a_shift_beyond_the_tolerance_is_another_grid(self, shift, axis):
        moved = np.eye(4)
        moved[axis, 3] = shift
        assert not same_grid(_volume(), _volume(moved))
        assert same_grid(_volume(), _volume(moved), tolerance_mm=shift * 1.01)

    def test_another_shape_is_another_grid(self):
        assert not same_grid(_volume(), _volume(shape=(2, 3, 5)))

    def test_a_flip_is_another_grid_even_along_an_axis_of_one_voxel(self):
        assert not same_grid(_volume(shape=(2, 3, 1)), _volume(np.diag([1.0, 1, -1, 1]), shape=(2, 3, 1)))

    def test_corners_are_the_centres_of_the_corner_voxels(self):
        places = corners((2, 3, 4), np.diag([2.0, 1, 1, 1]))
        assert places.min(axis=0).tolist() == [0, 0, 0]
        assert places.max(axis=0).tolist() == [2, 2, 3]


def _sheared(shift: float, slices: int = 5, column_mm: float = 2.0) -> Volume:
    """Slices 3 mm apart, each shifted by `shift` mm against the one before, along J; a bar runs through all of them."""
    affine = np.diag([1.0, column_mm, 3.0, 1.0])
    affine[:3, 2] = [0, shift, 3]
    affine[:3, 3] = [10, -20, 30]
    array = np.full((4, 20, slices), -1000, np.float32)
    for k in range(slices):
        array[:, 8 - k : 12 - k, k] = 100.0  # shift == column_mm: it stands upright in the patient
    return Volume(array, affine)


class TestIsSheared:
    @pytest.mark.parametrize("turn", [0.0, 0.3, 1.2])
    def test_perpendicular_axes_are_not_sheared_however_they_are_turned_or_flipped(self, turn):
        affine = np.eye(4)
        affine[:2, :2] = [[np.cos(turn), -np.sin(turn)], [np.sin(turn), np.cos(turn)]]
        assert not is_sheared(_volume(affine @ np.diag([-0.5, 0.7, -3.0, 1.0])))

    def test_a_tilted_gantry_is_sheared(self):
        assert is_sheared(_sheared(2.0))

    def test_rounding_of_positions_is_not(self):
        assert not is_sheared(_sheared(0.01))

    def test_one_slice_never_is(self):
        assert not is_sheared(_sheared(2.0, slices=1))


class TestStraighten:
    def test_a_bar_that_stands_upright_in_the_patient_does_so_in_the_image(self):
        before = _sheared(2.0)
        after = straighten(before)
        assert after.shape == (4, 24, 5)
        assert after.spacing_mm == (1.0, 2.0, 3.0)
        assert not is_sheared(after)
        expected = np.full((4, 24, 5), -1000, np.float32)
        expected[:, 8:12] = 100.0
        assert np.array_equal(after.array, expected)

    def test_values_between_voxels_are_interpolated_linearly(self):
        before = _sheared(1.0)  # half a voxel a slice
        after = straighten(before)
        assert after.shape == (4, 22, 5)
        assert after.array[0, 6:13, 1].tolist() == [-1000, -450, 100, 100, 100, -450, -1000]

    def test_labels_take_the_nearest_voxel(self):
        label = Volume((_sheared(1.0).array > 0).astype(np.float32), _sheared(1.0).affine)
        assert set(np.unique(straighten(label, nearest=True).array)) == {0.0, 1.0}

    @given(
        shift=st.floats(-5, 5).filter(lambda mm: abs(mm) > 0.5),
        flip=st.tuples(*[st.sampled_from([1.0, -1.0])] * 3),
        turn=st.floats(0, 6),
    )
    def test_a_point_of_the_patient_keeps_its_value_wherever_the_axes_point(self, shift, flip, turn):
        turned = np.eye(4)
        turned[1:3, 1:3] = [[np.cos(turn), -np.sin(turn)], [np.sin(turn), np.cos(turn)]]
        before = _sheared(shift)
        i, j, k = np.meshgrid(*map(np.arange, before.shape), indexing="ij")
        affine = turned @ before.affine @ np.diag([*flip, 1.0])
        ramp = Volume((2.0 * i + 3.0 * j + 5.0 * k).astype(np.float32), affine)
        after = straighten(ramp)
        gram = after.affine[:3, :3].T @ after.affine[:3, :3]
        assert np.abs(gram - np.diag(np.diag(gram))).max() < 1e-9
        spot = np.array([2, 10, 2])  # well inside
        index = np.linalg.solve(after.affine, ramp.affine @ [*spot, 1])[:3]
        low = np.clip(np.floor(index + 1e-6).astype(int), 0, np.array(after.shape) - 1)
        back = np.linalg.solve(ramp.affine, after.affine @ [*low, 1])[:3]
        assert after.array[tuple(low)] == pytest.approx(float(back @ [2, 3, 5]), abs=1e-3)

    def test_the_input_is_not_changed(self):
        before = _sheared(2.0)
        array, affine = before.array.copy(), before.affine.copy()
        straighten(before)
        assert np.array_equal(before.array, array)
        assert np.array_equal(before.affine, affine)

    def test_what_would_become_too_large_is_refused(self, monkeypatch):
        monkeypatch.setattr(module, "LARGEST_VOLUME_BYTES", 4 * 20 * 5 * 4)
        with pytest.raises(SeriesError, match="larger than a volume"):
            straighten(_sheared(2.0))

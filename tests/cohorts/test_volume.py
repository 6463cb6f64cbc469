from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from eucaim_fl.cohorts.volume import Volume, corners, same_grid
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

"""Surface Dice at a tolerance: by hand, at its edges, and as MONAI has it."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from monai.metrics import SurfaceDiceMetric
from scipy import ndimage

from eucaim_fl.errors import DataError
from eucaim_fl.validation.metrics import hd95_mm, hd95_of, surface_distances
from eucaim_fl.validation.surface import surface_dice, surface_figures


def blob(seed: int, size: int = 12) -> np.ndarray:
    noise = ndimage.gaussian_filter(np.random.default_rng(seed).normal(size=(size,) * 3), 2)
    return np.asarray(noise > np.quantile(noise, 0.8))


def box(*limits: tuple[int, int]) -> np.ndarray:
    mask = np.zeros((10, 10, 10), bool)
    mask[tuple(slice(low, high) for low, high in limits)] = True
    return mask


class TestSurfaceDice:
    def test_two_planes_are_as_near_as_the_spacing_says(self):
        one, other = box((2, 3), (0, 10), (0, 10)), box((4, 5), (0, 10), (0, 10))
        assert surface_dice(one, other, (1.5, 1.0, 1.0), 2.9) == 0.0
        assert surface_dice(one, other, (1.5, 1.0, 1.0), 3.0) == 1.0

    def test_the_share_within_the_tolerance_is_that_of_both_surfaces_together(self):
        one, other = box((0, 1), (0, 1), (0, 4)), box((0, 1), (0, 1), (0, 6))
        assert surface_dice(one, other, (1.0, 1.0, 1.0), 1.0) == 9 / 10  # the sixth voxel alone is 2 mm away

    def test_inner_voxels_do_not_count(self):
        cube, hollow = box((1, 6), (1, 6), (1, 6)), box((1, 6), (1, 6), (1, 6))
        hollow[3, 3, 3] = False
        assert surface_dice(cube, cube, (1.0, 1.0, 1.0), 0.0) == 1.0
        assert surface_dice(cube, hollow, (1.0, 1.0, 1.0), 0.0) == 2 * 98 / (98 + 98 + 6)

    def test_nothing_on_both_sides_is_not_defined_and_on_one_side_nought(self):
        empty, one = box((0, 0)), box((0, 1))
        assert math.isnan(surface_dice(empty, empty, (1.0, 1.0, 1.0), 1.0))
        assert surface_dice(empty, one, (1.0, 1.0, 1.0), 1e9) == surface_dice(one, empty, (1.0, 1.0, 1.0), 1e9) == 0.0

    @settings(max_examples=25, deadline=None)
    @given(
        st.integers(0, 500),
        st.tuples(*[st.sampled_from([0.7, 1.0, 2.5])] * 3),
        st.sampled_from([0.0, 0.8, 1.7, 3.1]),
    )
    def test_it_is_that_of_monai(self, seed, spacing, tolerance):
        one, other = blob(seed), blob(seed + 1)
        batch = [torch.from_numpy(mask)[None, None].float() for mask in (one, other)]
        theirs = SurfaceDiceMetric([tolerance], include_background=True)(*batch, spacing=spacing)
        assert surface_dice(one, other, spacing, tolerance) == pytest.approx(float(theirs), abs=1e-6)

    @settings(max_examples=25, deadline=None)
    @given(st.integers(0, 500), st.floats(0, 5), st.floats(0, 5))
    def test_more_tolerance_is_never_worse_and_who_is_compared_with_whom_is_the_same(self, seed, low, high):
        one, other = blob(seed), blob(seed + 1)
        values = [surface_dice(one, other, (1.0, 2.0, 3.0), t) for t in sorted((low, high))]
        assert values[0] <= values[1]
        assert values[1] == surface_dice(other, one, (1.0, 2.0, 3.0), max(low, high))

    @pytest.mark.parametrize("tolerance", [-1.0, math.nan, math.inf])
    def test_a_tolerance_that_is_none_is_refused(self, tolerance):
        with pytest.raises(DataError, match="number of mm from 0"):
            surface_dice(box((0, 1)), box((0, 1)), (1.0, 1.0, 1.0), tolerance)

    def test_another_grid_is_refused(self):
        with pytest.raises(DataError, match="can't be compared"):
            surface_dice(box((0, 1)), np.ones((2, 2, 2), bool), (1.0, 1.0, 1.0), 1.0)


class TestSurfaceFigures:
    @pytest.mark.parametrize("pair", [(3, 4), (5, 5), (None, 6), (7, None), (None, None)])
    def test_found_once_they_are_what_each_is_alone(self, pair):
        one, other = (np.zeros((12, 12, 12), bool) if seed is None else blob(seed) for seed in pair)
        alone = hd95_mm(one, other, (1.0, 2.0, 3.0)), surface_dice(one, other, (1.0, 2.0, 3.0), 2.0)
        assert np.array_equal(surface_figures(one, other, (1.0, 2.0, 3.0), 2.0), alone, equal_nan=True)

    def test_surface_figures_refuse_what_surface_dice_does(self):
        with pytest.raises(DataError, match="number of mm from 0"):
            surface_figures(box((0, 1)), box((0, 1)), (1.0, 1.0, 1.0), -1.0)

    def test_hd95_of_nothing_on_one_side_is_the_diagonal(self):
        assert hd95_of(np.array([math.inf]), np.array([]), 7.0) == 7.0
        assert math.isnan(hd95_of(np.array([]), np.array([]), 7.0))
        assert hd95_of(np.array([1.0]), np.array([2.0]), 7.0) == 2.0


class TestSurfaceDistances:
    def test_each_surface_voxel_has_one_both_ways(self):
        one, other = box((0, 1), (0, 1), (0, 2)), box((0, 1), (0, 1), (4, 5))
        there, back = surface_distances(one, other, (1.0, 1.0, 0.5))
        assert there.tolist() == [2.0, 1.5]
        assert back.tolist() == [1.5]

    def test_nothing_is_infinitely_far(self):
        there, back = surface_distances(box((0, 1), (0, 1), (0, 2)), box((0, 0)), (1.0, 1.0, 1.0))
        assert there.tolist() == [math.inf, math.inf]
        assert not len(back)

    def test_a_spacing_that_is_none_is_refused(self):
        with pytest.raises(DataError, match="one positive number"):
            surface_distances(box((0, 1)), box((0, 1)), (1.0, 0.0, 1.0))

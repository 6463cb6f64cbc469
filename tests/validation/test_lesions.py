"""Lesions: what hangs together, what was found, how large it is."""

from __future__ import annotations

import math
from itertools import permutations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from scipy import ndimage

from eucaim_fl.errors import DataError
from eucaim_fl.validation.lesions import LesionCounts, components, lesion_counts, volume_ml

masks = arrays.arrays(np.bool_, (4, 4, 3), elements=st.booleans())
sparse_masks = arrays.arrays(np.bool_, (5, 5, 3), elements=st.sampled_from([False, False, False, True]))


def flooded(mask: np.ndarray) -> list[set[tuple[int, ...]]]:
    """Connected parts by a walk over all 26 neighbours, as an independent implementation."""
    left, parts = {tuple(int(i) for i in place) for place in np.argwhere(mask)}, []
    while left:
        part, edge = set(), {min(left)}
        while edge:
            part |= edge
            left -= edge
            edge = {one for one in left if any(max(abs(a - b) for a, b in zip(one, e, strict=True)) <= 1 for e in edge)}
        parts.append(part)
    return parts


def best_matching(pred: np.ndarray, truth: np.ndarray, overlap: float) -> int:
    """Most pairs with enough overlap, by trying all."""
    predicted, real = flooded(pred), flooded(truth)
    shorter, longer = sorted((predicted, real), key=len)
    return max(
        (
            sum(len(a & b) >= overlap * len(a | b) for a, b in zip(shorter, order, strict=True))
            for order in permutations(longer, len(shorter))
        ),
        default=0,
    )


class TestComponents:
    @given(masks)
    def test_parts_are_those_that_a_walk_by_face_edge_and_corner_finds(self, mask):
        numbered, count = components(mask)
        found = [{tuple(map(int, p)) for p in np.argwhere(numbered == k)} for k in range(1, count + 1)]
        assert sorted(map(sorted, found)) == sorted(map(sorted, flooded(mask)))

    def test_two_voxels_that_touch_by_a_corner_are_one_and_by_faces_alone_they_would_be_two(self):
        mask = np.zeros((2, 2, 2), bool)
        mask[0, 0, 0] = mask[1, 1, 1] = True
        assert components(mask)[1] == 1
        assert ndimage.label(mask)[1] == 2


class TestLesionCounts:
    def box(self, *places: tuple[int, int]) -> np.ndarray:
        mask = np.zeros((40, 4, 4), bool)
        for low, high in places:
            mask[low:high] = True
        return mask

    def test_found_missed_and_false_lesions_are_counted(self):
        truth, pred = self.box((0, 4), (10, 14), (20, 24)), self.box((1, 5), (30, 33), (10, 14))
        found = lesion_counts(pred, truth, 0.1)
        assert found == LesionCounts(true=3, found=2, false=1)
        assert found.sensitivity == 2 / 3

    def test_an_overlap_of_exactly_the_least_is_enough(self):
        truth, pred = self.box((0, 4)), self.box((2, 6))  # 2 of 6 slices
        assert lesion_counts(pred, truth, 1 / 3).found == 1
        assert lesion_counts(pred, truth, 0.34).found == 0

    def test_a_part_that_covers_two_lesions_finds_one_and_one_in_two_parts_leaves_a_false_one(self):
        apart, whole = self.box((0, 4), (5, 9)), self.box((0, 9))
        assert lesion_counts(whole, apart, 0.1) == LesionCounts(2, 1, 0)
        assert lesion_counts(apart, whole, 0.1) == LesionCounts(1, 1, 1)

    @settings(max_examples=60, deadline=None)
    @given(sparse_masks, sparse_masks, st.sampled_from([0.05, 0.1, 0.3, 0.5, 1.0]))
    def test_as_many_are_found_as_the_best_of_all_matchings_has(self, pred, truth, overlap):
        if max(len(flooded(pred)), len(flooded(truth))) > 6:
            return
        counts = lesion_counts(pred, truth, overlap)
        assert counts.found == best_matching(pred, truth, overlap)
        assert (counts.true, counts.false) == (len(flooded(truth)), len(flooded(pred)) - counts.found)

    @given(masks, masks)
    def test_what_is_found_of_a_in_b_is_found_of_b_in_a(self, one, other):
        assert lesion_counts(one, other, 0.2).found == lesion_counts(other, one, 0.2).found

    def test_nothing_to_find_has_no_sensitivity(self):
        counts = lesion_counts(self.box((0, 2)), self.box(), 0.1)
        assert counts == LesionCounts(0, 0, 1)
        assert math.isnan(counts.sensitivity)
        assert lesion_counts(self.box(), self.box((0, 2)), 0.1) == LesionCounts(1, 0, 0)

    @pytest.mark.parametrize("overlap", [0.0, -0.1, 1.1, math.nan])
    def test_an_overlap_that_is_none_is_refused(self, overlap):
        with pytest.raises(DataError, match="above 0 and at most 1"):
            lesion_counts(self.box(), self.box(), overlap)

    def test_masks_of_two_grids_are_refused(self):
        with pytest.raises(DataError, match="can't be compared"):
            lesion_counts(self.box(), np.zeros((2, 2, 2), bool), 0.1)


class TestVolumeMl:
    def test_it_is_voxels_times_spacing(self):
        mask = np.zeros((10, 10, 10), bool)
        mask[:2, :5, :4] = True
        assert volume_ml(mask, (2.0, 1.0, 5.0)) == pytest.approx(0.4)

    @pytest.mark.parametrize("spacing", [(1.0, 1.0), (1.0, 1.0, 0.0), (1.0, 1.0, math.nan)])
    def test_a_spacing_that_is_none_is_refused(self, spacing):
        with pytest.raises(DataError, match="one positive number"):
            volume_ml(np.ones((1, 1, 1), bool), spacing)

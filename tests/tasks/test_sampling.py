"""Patches lie inside the image wherever they fit, and are padded where they do not."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from eucaim_fl.tasks.sampling import crop, patch_start

axes = st.integers(1, 3).flatmap(
    lambda n: st.lists(st.tuples(st.integers(0, 30), st.integers(1, 12), st.integers(1, 31)), min_size=n, max_size=n)
)


class TestPatchStart:
    def test_the_centre_is_in_the_middle(self) -> None:
        assert patch_start([8], [4], [16]) == (6,)

    def test_at_the_border_the_patch_moves_inwards(self) -> None:
        assert patch_start([0, 15], [4, 4], [16, 16]) == (0, 12)

    def test_an_image_shorter_than_the_patch_starts_at_zero(self) -> None:
        assert patch_start([1], [8], [3]) == (0,)

    @given(axes)
    def test_a_patch_holds_its_centre(self, drawn: list[tuple[int, int, int]]) -> None:
        shape = [n for _, _, n in drawn]
        centre = [c % n for c, _, n in drawn]
        size = [s for _, s, _ in drawn]
        for first, c, s, n in zip(patch_start(centre, size, shape), centre, size, shape, strict=True):
            assert 0 <= first <= c < first + s
            assert first + s <= max(n, s)


class TestCrop:
    def test_it_takes_the_last_axes(self) -> None:
        array = np.arange(24).reshape(2, 3, 4)
        assert crop(array, (1, 2), (2, 2)).tolist() == array[:, 1:3, 2:4].tolist()

    def test_what_is_missing_is_zero_at_the_end(self) -> None:
        assert crop(np.ones((1, 2)), (0,), (4,)).tolist() == [[1, 1, 0, 0]]

    @given(axes)
    def test_it_has_the_asked_size_its_own_memory_and_the_images_type(self, drawn: list[tuple[int, int, int]]) -> None:
        shape = tuple(n for _, _, n in drawn)
        size = tuple(s for _, s, _ in drawn)
        array = np.arange(np.prod(shape), dtype=np.int16).reshape(1, *shape)
        array.flags.writeable = False
        patch = crop(array, patch_start([c % n for c, _, n in drawn], size, shape), size)
        assert patch.shape == (1, *size)
        assert patch.dtype == array.dtype
        assert patch.flags.c_contiguous

"""Pieces of a volume: the slice or patch that one training example is made of."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["crop", "patch_start"]


def patch_start(centre: Sequence[int], size: Sequence[int], shape: Sequence[int]) -> tuple[int, ...]:
    """First index of a patch of `size` around `centre`, moved so that it lies inside `shape` where it fits.

    centre, size, shape: voxels, one value an axis. An axis shorter than the patch starts at 0 (and is padded by
    `crop`).
    """
    return tuple(int(min(max(c - s // 2, 0), max(n - s, 0))) for c, s, n in zip(centre, size, shape, strict=True))


def crop(array: NDArray[Any], start: Sequence[int], size: Sequence[int]) -> NDArray[Any]:
    """A patch of the last axes of `array`, padded with zeros at the end where the array is too short.

    array: (…, *spatial); start, size: one value a spatial axis. Returns a new C-contiguous array (…, *size).
    """
    lead = array.ndim - len(size)
    every = (slice(None),) * lead
    piece = array[every + tuple(slice(s, s + n) for s, n in zip(start, size, strict=True))]
    if piece.shape[lead:] == tuple(size):
        return np.ascontiguousarray(piece)
    out = np.zeros((*array.shape[:lead], *size), dtype=array.dtype)
    out[every + tuple(slice(0, n) for n in piece.shape[lead:])] = piece
    return out

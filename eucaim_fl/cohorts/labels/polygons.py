"""Which pixels lie inside polygons: even-odd over all of them, many edges at a time."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from eucaim_fl.errors import LabelError

__all__ = ["fill_polygons"]

_BOUNDARY_PIXELS = 2e-3
_MOST_CROSSINGS = 200_000_000
_CROSSINGS_AT_ONCE = 1_000_000

Points = npt.NDArray[np.float64]


def _edges(polygons: Sequence[Points]) -> Points:
    """All edges as (row, column) of their start and of their end, shape (n, 4)."""
    return np.concatenate([np.hstack([p, np.roll(p, -1, axis=0)]) for p in polygons])


def _inside(edges: Points, shape: tuple[int, int]) -> npt.NDArray[np.bool_]:
    """Even-odd of pixel centres: a centre is inside if an odd number of edges crosses its row at or before it."""
    rows, columns = shape
    start, end = np.sort(edges[:, [0, 2]], axis=1).T
    first = np.clip(np.ceil(start), 0, rows).astype(np.int64)
    count = np.clip(np.ceil(end), 0, rows).astype(np.int64) - first
    if count.sum() > _MOST_CROSSINGS:
        raise LabelError("A structure's contours are too intricate to be drawn.")
    crossed = count > 0
    edges, first, count = edges[crossed], first[crossed], count[crossed]
    slope = (edges[:, 3] - edges[:, 1]) / (edges[:, 2] - edges[:, 0])
    total = np.cumsum(count)
    crossings = np.zeros(rows * (columns + 1), dtype=np.int64)
    begin = 0
    while begin < len(edges):
        done = total[begin - 1] if begin else 0
        stop = max(int(np.searchsorted(total, done + _CROSSINGS_AT_ONCE)), begin + 1)
        many = count[begin:stop]
        edge = np.repeat(np.arange(begin, stop), many)
        row = first[edge] + np.arange(len(edge)) - np.repeat(np.cumsum(many) - many, many)
        column = np.ceil(edges[edge, 1] + (row - edges[edge, 0]) * slope[edge])
        place = np.clip(column, 0, columns).astype(np.int64) * rows + row
        crossings += np.bincount(place, minlength=crossings.size)
        begin = stop
    odd = (crossings & 1).astype(np.bool_).reshape(columns + 1, rows)
    inside: npt.NDArray[np.bool_] = np.logical_xor.accumulate(odd, axis=0)[:-1]  # along whole rows of memory at a time
    return inside.T


def fill_polygons(polygons: Sequence[Points], shape: tuple[int, int]) -> npt.NDArray[np.bool_]:
    """Pixels whose centre lies inside an odd number of the polygons, or on a boundary; shape (rows, columns).

    polygons: vertices as (row, column) indices, shape (n, 2), closed without repeating the first; pixel (r, c) has its
    centre there. A polygon inside another is a hole; one that leads along a keyhole to its own hole works alike.
    Boundaries count as inside, because many programs trace through the centres of the outermost pixels.
    Raises LabelError if the edges cross more rows than any drawing by hand could.

    >>> int(fill_polygons([np.array([[0.5, 0.5], [0.5, 3.5], [2.5, 3.5], [2.5, 0.5]])], (5, 5)).sum())
    6
    """
    filled: npt.NDArray[Any] = np.zeros(shape, dtype=np.bool_)
    edges = [p for p in polygons if len(p) >= 3]
    if not edges:
        return filled
    every = _edges(edges)
    low = np.clip(np.floor(every.reshape(-1, 2).min(axis=0)), 0, shape).astype(np.int64)
    high = np.clip(np.ceil(every.reshape(-1, 2).max(axis=0)) + 1, low, shape).astype(np.int64)
    if (high <= low).any():
        return filled
    part = filled[low[0] : high[0], low[1] : high[1]]
    for down in (-_BOUNDARY_PIXELS, _BOUNDARY_PIXELS):
        for right in (-_BOUNDARY_PIXELS, _BOUNDARY_PIXELS):
            shift = np.array([down, right, down, right]) - np.tile(low, 2)
            part |= _inside(every + shift, (int(part.shape[0]), int(part.shape[1])))
    return filled

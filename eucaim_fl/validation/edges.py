"""Where bins of scores begin and end."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

from eucaim_fl.errors import DataError
from eucaim_fl.validation.pooling import BINS

__all__ = ["edges_with"]

_CLOSE = 1e-9


def edges_with(thresholds: Sequence[float] = (), bins: int = BINS - 1) -> tuple[float, ...]:
    """Edges that divide [0, 1] evenly into bins, and further ones at the thresholds, for which counts are then exact.

    Raises DataError if bins is not positive, or a threshold does not lie between 0 and 1.

    >>> edges_with([0.3], bins=4)
    (0.0, 0.25, 0.3, 0.5, 0.75, 1.0)
    """
    return _edges(tuple(thresholds), bins)


@lru_cache(maxsize=64)
def _edges(thresholds: tuple[float, ...], bins: int) -> tuple[float, ...]:
    if bins < 1 or not all(0 < threshold < 1 for threshold in thresholds):
        raise DataError("Bins must be positive, and thresholds lie between 0 and 1.")
    even = [k / bins for k in range(bins + 1)]
    new = {float(t) for t in thresholds if min(abs(t - edge) for edge in even) > _CLOSE}
    return tuple(sorted({*even, *new}))

"""The geometric median of updates (RFA): the point from which the distances to all of them add up to the least."""

from __future__ import annotations

from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

__all__ = ["geometric_coefficients"]

FloatArray: TypeAlias = NDArray[np.float64]

_NEAR, _FAR = 1e-6, 1e6  # of the distance that half of the updates are within
_SETTLED = 1e-10  # largest change of a share with which the search ends


def geometric_coefficients(squared_distances: FloatArray, iterations: int = 100) -> FloatArray:
    """Shares aᵢ of the updates in their geometric median v = Σ aᵢxᵢ, which makes Σ ‖v − xᵢ‖ least.

    squared_distances: of all pairs, float64, shape (n, n), as `krum.squared_distances` gives them. Returns float64,
    shape (n,), not negative, with sum 1.
    Smoothed Weiszfeld: aᵢ ∝ 1 / max(ν, ‖v − xᵢ‖), from equal shares, until no share changes by 1e-10 or `iterations`
    are made. v is always a mean of the updates, so ‖v − xᵢ‖² = Σⱼ aⱼdᵢⱼ − ½ Σⱼₖ aⱼaₖdⱼₖ follows from the distances, and
    the updates themselves are read twice only: for these, and for the mean.
    The scale is the distance within which half of the updates lie from the one where it is least; a minority can't make
    it large. ν is a millionth of it. An update that is a million times as far away from that one has no share: it would
    move the median no further than a nearer one, but what the others differ by would drown in rounding. Where the scale
    is 0, more than half of the updates are one and the same, and this is the median.
    Every site counts alike: the paper's weights by patients would give influence to who claims many. Less than half of
    the sites move the median by a bounded multiple of the others' spread, however far away they are.
    Source: Pillutla, Kakade and Harchaoui 2022, Robust Aggregation for Federated Learning, algorithm 2.

    >>> line = np.array([0.0, 1.0, 100.0])
    >>> geometric_coefficients((line[:, None] - line) ** 2).round(3).tolist()
    [0.0, 1.0, 0.0]
    """
    distances = np.sqrt(squared_distances)
    medians = np.median(distances, axis=1)
    middle, scale = int(medians.argmin()), float(medians.min())
    shares = np.zeros(len(distances))
    if scale == 0.0:
        alike = medians == 0.0
        shares[alike] = 1.0 / alike.sum()
        return shares
    near = np.flatnonzero(distances[middle] <= _FAR * scale)
    shares[near] = _weiszfeld(squared_distances[np.ix_(near, near)], _NEAR * scale, iterations)
    return shares


def _weiszfeld(squared_distances: FloatArray, smallest: float, iterations: int) -> FloatArray:
    sites = len(squared_distances)
    shares = np.full(sites, 1.0 / sites)
    for _ in range(iterations):
        pulls = 1.0 / np.maximum(smallest, _from_mean(squared_distances, shares))
        following = pulls / pulls.sum()
        settled = np.abs(following - shares).max() <= _SETTLED
        shares = following
        if settled:
            break
    return shares


def _from_mean(squared_distances: FloatArray, shares: FloatArray) -> FloatArray:
    """Distances of all updates from their mean with these shares."""
    towards = (squared_distances * shares).sum(axis=1)
    return np.asarray(np.sqrt(np.maximum(towards - 0.5 * (towards * shares).sum(), 0.0)))

"""Krum and Multi-Krum (Blanchard et al. 2017): trust the updates that lie close to many others."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, TypeAlias

import numpy as np
from numpy.typing import NDArray

from eucaim_fl.errors import RecipeError

if TYPE_CHECKING:
    from eucaim_fl.strategies.aggregation import Source

__all__ = ["check_krum", "krum_choice", "krum_scores", "squared_distances"]

FloatArray: TypeAlias = NDArray[np.float64]

_STACK_BYTES = 32 * 2**20  # of all sites' chunks together
_BLOCK = 4096  # elements whose differences are formed at a time: they stay in the processor's cache


def squared_distances(sources: Sequence[Source], trainable: Callable[[str], bool] = lambda _: True) -> FloatArray:
    """Squared Euclidean distances between all pairs of updates, over floating arrays that are trained: Σ (xᵢ − xⱼ)².

    trainable: False for buffers, beside whose values those of the weights' changes would drown. Returns float64, shape
    (sites, sites), symmetric, zero diagonal. Differences are taken before squaring: the cheaper xᵢ² + xⱼ² − 2·xᵢxⱼ
    cancels where updates are alike. Time grows with the square of the number of sites.
    """
    sites = len(sources)
    distances = np.zeros((sites, sites))
    block = _block(sites)
    length = max(1, _STACK_BYTES // (8 * sites * block)) * block
    for name in sorted(sources[0].names):
        if sources[0].dtype(name).kind != "f" or not trainable(name):
            continue
        total = math.prod(sources[0].shape(name))
        for start in range(0, total, length):
            _add_distances(distances, sources, name, start, min(length, total - start))
    return distances + distances.T


def _block(sites: int) -> int:
    return max(1, min(_BLOCK, _STACK_BYTES // (8 * sites)))


def _add_distances(distances: FloatArray, sources: Sequence[Source], name: str, start: int, count: int) -> None:
    """Add one chunk's part to the upper triangle of `distances`, in place."""
    sites, block = len(sources), _block(len(sources))
    stack = np.empty((sites, count))
    for row, source in zip(stack, sources, strict=True):
        row[:] = source.read(name, start, count)
    for first in range(0, count, block):
        values = np.ascontiguousarray(stack[:, first : first + block])
        room = np.empty_like(values)
        for site in range(sites - 1):
            difference = np.subtract(values[site + 1 :], values[site], out=room[site + 1 :])
            distances[site, site + 1 :] += np.einsum("ij,ij->i", difference, difference)


def krum_scores(squared_distances: FloatArray, suspects: int) -> FloatArray:
    """Krum's score of each site: the sum of its squared distances to its n − f − 2 nearest others. Low is good.

    squared_distances: shape (n, n). suspects: f, how many sites may be wrong. Returns shape (n,).
    Raises RecipeError if n < 2f + 3, below which Krum promises nothing.
    Source: Blanchard et al. 2017, section 4.
    """
    sites = len(squared_distances)
    check_krum(sites, suspects)
    others = squared_distances[~np.eye(sites, dtype=bool)].reshape(sites, sites - 1)
    return np.asarray(np.sort(others, axis=1)[:, : sites - suspects - 2].sum(axis=1))


def krum_choice(scores: FloatArray, keep: int = 1) -> tuple[int, ...]:
    """Indices of the `keep` lowest scores, in ascending order; of equal scores the first in canonical order wins.

    Raises RecipeError if `keep` is not between 1 and the number of sites.
    """
    if not 1 <= keep <= len(scores):
        raise RecipeError(
            f"Multi-Krum can't keep {keep} of {len(scores)} sites.", fix="Lower method.rule.keep, or leave it out."
        )
    return tuple(sorted(int(site) for site in np.argsort(scores, kind="stable")[:keep]))


def check_krum(sites: int, suspects: int) -> None:
    """Whether Krum can work with that many sites of which `suspects` may be wrong.

    Raises RecipeError if sites < 2·suspects + 3, below which Krum promises nothing.
    """
    if suspects < 0 or sites < 2 * suspects + 3:
        raise RecipeError(
            f"Krum with {suspects} suspects needs at least {2 * max(suspects, 0) + 3} sites; there are {sites}.",
            fix="Lower method.rule.suspects, raise federation.quorum, or take the median.",
        )

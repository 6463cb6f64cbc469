"""Which scan goes to which of four sites: evenly at random, or skewed by what its nodules look like. Values only."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from eucaim_fl.seeding import generator

__all__ = ["FEWEST_OF_A_CLASS", "equal_split", "skew_score", "skewed_split"]

FEWEST_OF_A_CLASS = 4
"""Malignant and benign scans that each site of a skewed split has, if there are enough."""
_PARTS = 4
_JITTER = 0.5
"""Standard deviation of the score's jitter; the score's own is about 1.4, so neighbouring sites overlap."""

_Numbers = NDArray[np.float64]


def equal_split(count: int, seed: int) -> NDArray[np.int64]:
    """Number of the site, 0 to 3, of each of `count` scans: dealt out at random, so sites differ by one at most."""
    site = np.empty(count, np.int64)
    site[generator(seed, "lidc split").permutation(count)] = np.arange(count) % _PARTS
    return site


def skew_score(volume: Sequence[float], texture: Sequence[float]) -> _Numbers:
    """z(log volume) − z(texture): low for small solid nodules, high for large ones of ground glass.

    volume: voxels, positive; texture: 1 (ground glass) to 5 (solid). z(x) = (x − mean) / standard deviation; 0 where
    all are alike.

    >>> skew_score([1.0, 100.0], [5.0, 1.0]).tolist()
    [-2.0, 2.0]
    """
    return _standard(np.log(np.asarray(volume, np.float64))) - _standard(np.asarray(texture, np.float64))


def _standard(values: _Numbers) -> _Numbers:
    centred: _Numbers = values - values.mean()
    return centred / (float(values.std()) or 1.0)


def skewed_split(
    volume: Sequence[float], texture: Sequence[float], malignant: Sequence[bool | None], seed: int
) -> NDArray[np.int64]:
    """Number of the site, 0 to 3, of each scan: sorted by `skew_score` with a jitter from the seed, and cut into four.

    malignant: None where it is undecided. Sites differ by one scan at most. Where a site has fewer than
    FEWEST_OF_A_CLASS malignant or benign scans, it exchanges scans with the site that has most of them: what it gets
    and gives lies next to the middle of the site where it goes.
    """
    score = skew_score(volume, texture)
    score = score + generator(seed, "lidc skew").normal(0.0, _JITTER, len(score))
    site = np.empty(len(score), np.int64)
    for number, members in enumerate(np.array_split(np.argsort(score, kind="stable"), _PARTS)):
        site[members] = number
    for wanted in (True, False):
        has = np.array([one is wanted for one in malignant])
        for poor in range(_PARTS):
            _fill_up(site, score, has, poor)
    return site


def _fill_up(site: NDArray[np.int64], score: _Numbers, has: NDArray[np.bool_], poor: int) -> None:
    """Exchange scans of one site until it has enough that `has` marks, or nobody can spare one. Changes `site`."""

    def nearest(choice: NDArray[np.bool_], to: int) -> Any:
        found = np.flatnonzero(choice)
        return found[np.abs(score[found] - np.median(score[site == to])).argmin()]

    while has[site == poor].sum() < FEWEST_OF_A_CLASS:
        counts = np.bincount(site[has], minlength=_PARTS)
        rich = int(counts.argmax())
        if counts[rich] <= FEWEST_OF_A_CLASS or has[site == poor].all():
            return
        gets = nearest(has & (site == rich), poor)
        gives = nearest(~has & (site == poor), rich)
        site[gets], site[gives] = poor, rich

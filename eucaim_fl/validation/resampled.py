"""Intervals of any figure of binned scores by resampling patients within their sites, from the counts alone.

Drawing n patients with replacement from n is the same as drawing how many fall into each bin from a multinomial
distribution with the bins' shares: patients of a bin and class are alike to every figure of the counts. So this is
exactly the bootstrap of the binned patients, and no patient is needed for it.

Numbers of patients of a site never change, since sites were not drawn. Whether those of its classes do is the choice
`fixed_classes`:
 - fixed: each class of each site is drawn by itself. Right where patients were taken by class (so many with the
   disease, so many without), and for figures of which the share of the diseased is no part (AUC, sensitivity,
   specificity): the interval then holds given how many of each there were.
 - not fixed: bins of both classes are drawn together, so the share of the diseased varies as it does among patients who
   come as they come. Needed for all that depends on that share: PPV, NPV, F1, average precision, Brier score,
   calibration, net benefit. With classes fixed their intervals would be too narrow.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtr, ndtri

from eucaim_fl.errors import DataError
from eucaim_fl.validation.binned import BinnedScores, Functional, pooled_scores
from eucaim_fl.validation.intervals import Interval, percentile_limits

__all__ = ["Resamples", "bca_interval", "percentile_interval", "resample"]

FloatArray: TypeAlias = NDArray[np.float64]

_PATIENTS_A_CELL = 20  # from about as many on a cell's count is drawn faster than its patients are
_SAMPLES_AT_ONCE, _PATIENTS_AT_ONCE = 256, 1024
_SIXTEEN_BITS = 1 << 16


@dataclass(frozen=True)
class Resamples:
    """Counts over all sites in each resample, shape (samples, 2, bins), and the strata that they were drawn in.

    strata: shape (strata, 2, bins), the counts of one site, or of one class of one site (the other row is zero).
    """

    counts: FloatArray
    strata: FloatArray

    @property
    def observed(self) -> FloatArray:
        """The counts that were resampled, over all sites, shape (2, bins)."""
        return np.asarray(self.strata.sum(axis=0))


def resample(
    sites: Sequence[BinnedScores], *, fixed_classes: bool, samples: int = 2000, rng: np.random.Generator
) -> Resamples:
    """Resampled counts, added over sites; one draw serves all figures, which are then paired.

    Raises DataError without a site or patient, if edges differ, or if samples is not positive.
    """
    pooled = pooled_scores(sites)
    if samples < 1 or not sum(pooled.patients):
        raise DataError("A bootstrap needs patients and at least one sample.")
    whole = np.stack([site.counts for site in sites])
    strata = whole[:, None] * np.eye(2)[None, :, :, None] if fixed_classes else whole[:, None]
    strata = strata.reshape(-1, *whole.shape[1:])
    strata = strata[strata.sum(axis=(1, 2)) > 0]
    drawn = _drawn(strata.reshape(len(strata), -1), samples, rng)
    return Resamples(drawn.reshape(samples, *whole.shape[1:]), strata)


def _drawn(strata: FloatArray, samples: int, rng: np.random.Generator) -> FloatArray:
    """Counts of as many patients as each stratum has, drawn from it and added up: shape (strata, cells) → (samples,
    cells). Patients are drawn one by one, or cells from their distribution, whichever takes less time."""
    many = strata.sum(axis=1) > _PATIENTS_A_CELL * np.count_nonzero(strata, axis=1)
    drawn = _drawn_one_by_one(strata[~many], samples, rng)
    for stratum in strata[many]:
        filled = np.flatnonzero(stratum)
        patients = int(stratum.sum())
        drawn[:, filled] += rng.multinomial(patients, stratum[filled] / patients, size=samples)
    return drawn


def _drawn_one_by_one(strata: FloatArray, samples: int, rng: np.random.Generator) -> FloatArray:
    """The same by drawing patients, some strata and samples at a time, so that all of it stays near the processor."""
    found, cells = np.zeros((samples, strata.shape[1])), strata.shape[1]
    columns = cells * np.arange(_SAMPLES_AT_ONCE)
    for owners in _chunks([np.repeat(np.arange(cells), stratum.astype(np.int64)) for stratum in strata]):
        for first in range(0, samples, _SAMPLES_AT_ONCE):
            size, start = min(_SAMPLES_AT_ONCE, samples - first), 0
            place = np.empty((sum(map(len, owners)), size), dtype=np.int64)
            for owner in owners:
                shape, bits = (len(owner), size), np.uint16 if len(owner) <= _SIXTEEN_BITS else np.int64
                drawn = rng.integers(len(owner), size=shape, dtype=bits)
                np.take(owner, drawn, out=place[start : start + len(owner)], mode="clip")  # all are in range
                start += len(owner)
            place += columns[:size]
            counts = np.bincount(place.ravel(), minlength=size * cells)
            found[first : first + size] += counts.reshape(size, cells)
    return found


def _chunks(owners: Sequence[NDArray[np.int64]]) -> list[list[NDArray[np.int64]]]:
    """Strata in groups of not many patients, each stratum in one."""
    found: list[list[NDArray[np.int64]]] = []
    patients = 0
    for owner in owners:
        if not found or patients + len(owner) > _PATIENTS_AT_ONCE:
            found.append([])
            patients = 0
        found[-1].append(owner)
        patients += len(owner)
    return found


def percentile_interval(resamples: Resamples, functional: Functional, level: float = 0.95) -> Interval:
    """Percentile interval of a figure. Resamples in which it is not defined are left out.

    An interval without a width (no patient is on the wrong side) says that resampling can't tell, not that it is sure.
    Raises DataError if the figure is not defined for the observed counts, or level is not between 0 and 1.
    Source: Efron and Tibshirani 1993, section 13.3; strata as in Davison and Hinkley 1997, section 3.2.
    """
    estimate, statistics = _statistics(resamples, functional, level)
    return Interval(estimate, *percentile_limits(statistics, level))


def bca_interval(resamples: Resamples, functional: Functional, level: float = 0.95) -> Interval:
    """Interval of a figure, corrected for bias and for an error that grows with the figure (BCa).

    The acceleration is Σ d³ / (6 (Σ d²)^(3/2)) over all patients, d = (n_s−1)/n_s · (mean over the stratum of the
    figure without one patient − the figure without this one): one evaluation for each bin and class, since patients of
    a bin are alike. It is better than the percentile interval for skewed figures, unless there are few resamples.
    Raises DataError if the figure is not defined for the observed counts, or without some single patient, or if level
    is not between 0 and 1.
    Source: Efron 1987; for several strata Davison and Hinkley 1997, section 5.3.2.
    """
    estimate, statistics = _statistics(resamples, functional, level)
    statistics = statistics[~np.isnan(statistics)]
    acceleration = _acceleration(resamples, functional)
    below = (np.mean(statistics < estimate) + np.mean(statistics <= estimate)) / 2
    half = 1 / (2 * len(statistics))
    bias = ndtri(np.clip(below, half, 1 - half))
    shifted = bias + ndtri([(1 - level) / 2, (1 + level) / 2])
    low, high = np.quantile(statistics, ndtr(bias + shifted / (1 - acceleration * shifted)))
    return Interval(estimate, float(low), float(high))


def _statistics(resamples: Resamples, functional: Functional, level: float) -> tuple[float, FloatArray]:
    if not 0 < level < 1:
        raise DataError("An interval needs a level between 0 and 1.")
    estimate, statistics = float(functional(resamples.observed[None])[0]), functional(resamples.counts)
    if math.isnan(estimate) or np.isnan(statistics).all():
        raise DataError("The figure is not defined for these patients.")
    return estimate, statistics


def _acceleration(resamples: Resamples, functional: Functional) -> float:
    observed = resamples.observed
    cells = np.flatnonzero(observed)
    one_less = np.repeat(observed.reshape(1, -1), len(cells), axis=0)
    one_less[np.arange(len(cells)), cells] -= 1
    without = functional(one_less.reshape(-1, *observed.shape))
    if np.isnan(without).any():
        raise DataError("Without one of the patients the figure is not defined, so BCa has no acceleration.")
    counts = resamples.strata.reshape(len(resamples.strata), -1)[:, cells]
    patients = counts.sum(axis=1, keepdims=True)
    moved = (patients - 1) / patients * ((counts @ without)[:, None] / patients - without)
    squares, cubes = (counts * moved**2).sum(), (counts * moved**3).sum()
    return float(cubes / (6 * squares**1.5)) if squares > 0 else 0.0

"""Confidence intervals by resampling patients, within their sites."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from numpy.typing import ArrayLike, NDArray

from eucaim_fl.errors import DataError

__all__ = [
    "Interval",
    "Statistic",
    "mean",
    "paired_bootstrap",
    "patient_bootstrap",
    "percentile_limits",
    "resample_counts",
]

FloatArray: TypeAlias = NDArray[np.float64]
Statistic: TypeAlias = Callable[[FloatArray], FloatArray]
"""Values of resampled patients, shape (resamples, patients, …) → one number per resample; NaN where undefined."""

_DRAWN_AT_ONCE = 1 << 20  # numbers


@dataclass(frozen=True)
class Interval:
    """A value with its confidence limits."""

    estimate: float
    low: float
    high: float


def mean(resamples: FloatArray) -> FloatArray:
    """The mean over patients of each resample: shape (resamples, patients) → (resamples,)."""
    return np.asarray(resamples.mean(axis=1))


def patient_bootstrap(
    values: Sequence[float] | FloatArray,
    *,
    statistic: Statistic = mean,
    samples: int = 2000,
    level: float = 0.95,
    rng: np.random.Generator,
    strata: Sequence[Hashable] | None = None,
) -> Interval:
    """Percentile bootstrap interval of a statistic over patients.

    values: one row per patient, shape (n,) or (n, …) where the statistic needs several numbers of a patient (score and
    truth for an AUC). A patient with a NaN is left out. strata: the patient's site, say; each resample draws with
    replacement within every stratum as many patients as it has, since sites were not drawn at random.
    Resamples in which the statistic is NaN (an AUC without positives) are left out. With one patient in every
    stratum nothing varies, and the interval has no width: it then says nothing.
    Raises DataError if no patient is left, a value is infinite, strata don't fit, level is not in (0, 1), samples is
    not positive, or the statistic is undefined.
    Source: Efron and Tibshirani 1993, section 13.3; stratified as in Davison and Hinkley 1997, section 3.2.
    """
    rows = np.asarray(values, dtype=np.float64)
    if rows.size == 0 or rows.ndim == 0:
        raise DataError("There is no patient with a value, so there is no interval.")
    labels = [None] * len(rows) if strata is None else list(strata)
    if len(labels) != len(rows):
        raise DataError(f"{len(labels)} strata were given for {len(rows)} patients.")
    if not 0 < level < 1 or samples < 1:
        raise DataError("A bootstrap needs a level between 0 and 1 and at least one sample.")
    if np.isinf(rows).any():
        raise DataError("A patient's value is infinite.")
    kept = [not np.isnan(row).any() for row in rows]
    if not any(kept):
        raise DataError("There is no patient with a value, so there is no interval.")
    rows, labels = rows[kept], [label for label, keep in zip(labels, kept, strict=True) if keep]

    members: dict[Hashable, list[int]] = {}
    for patient, label in enumerate(labels):
        members.setdefault(label, []).append(patient)
    groups = [np.asarray(group) for group in members.values()]
    at_once = max(1, _DRAWN_AT_ONCE // rows.size)
    drawn = []
    for first in range(0, samples, at_once):
        size = min(at_once, samples - first)
        index = np.concatenate([group[rng.integers(len(group), size=(size, len(group)))] for group in groups], axis=1)
        drawn.append(statistic(rows[index]))
    statistics = np.concatenate(drawn)
    statistics = statistics[~np.isnan(statistics)]
    estimate = float(statistic(rows[None])[0])
    if not len(statistics) or np.isnan(estimate):
        raise DataError("The statistic is not defined for these patients.")
    low, high = np.quantile(statistics, [(1 - level) / 2, (1 + level) / 2])
    return Interval(estimate, float(low), float(high))


def paired_bootstrap(
    a: ArrayLike,
    b: ArrayLike,
    *,
    statistic: Statistic = mean,
    samples: int = 2000,
    level: float = 0.95,
    rng: np.random.Generator,
    strata: Sequence[Hashable] | None = None,
) -> Interval:
    """Interval of statistic(a) − statistic(b) for two methods on the same patients, drawn together.

    a, b: shape (n,) or (n, …), row i of both is patient i. A patient with a NaN in either is left out of both. The
    rest is as in `patient_bootstrap`.
    Raises DataError if the shapes differ, or for what `patient_bootstrap` refuses.
    Source: Efron and Tibshirani 1993, section 13.3, on differences of pairs.
    """
    first, second = np.asarray(a, dtype=np.float64), np.asarray(b, dtype=np.float64)
    if first.shape != second.shape or first.ndim == 0:
        raise DataError("A paired comparison needs the same patients for both.")

    def difference(resamples: FloatArray) -> FloatArray:
        return statistic(resamples[:, :, 0]) - statistic(resamples[:, :, 1])

    return patient_bootstrap(
        np.stack([first, second], axis=1), statistic=difference, samples=samples, level=level, rng=rng, strata=strata
    )


def resample_counts(strata: Sequence[Hashable], samples: int, rng: np.random.Generator) -> FloatArray:
    """How often each patient is drawn in each resample, shape (samples, patients): one draw for many statistics.

    Drawn as in `patient_bootstrap`: with replacement within every stratum, as many as it has. What is computed from the
    same counts for two models is paired by patient.
    Raises DataError if there is no patient, or samples is not positive.

    >>> resample_counts(["a", "a", "b"], 2, np.random.default_rng(0)).sum(axis=1)
    array([3., 3.])
    """
    if not len(strata) or samples < 1:
        raise DataError("A bootstrap needs patients and at least one sample.")
    counts = np.zeros((samples, len(strata)))
    members: dict[Hashable, list[int]] = {}
    for patient, label in enumerate(strata):
        members.setdefault(label, []).append(patient)
    for group in members.values():
        counts[:, group] = rng.multinomial(len(group), np.full(len(group), 1 / len(group)), size=samples)
    return counts


def percentile_limits(statistics: FloatArray, level: float = 0.95) -> tuple[float, float]:
    """The percentile interval of a statistic's resamples; those in which it is NaN are left out, (NaN, NaN) if all are.

    >>> [round(limit, 6) for limit in percentile_limits(np.arange(41.0))]
    [1.0, 39.0]
    """
    defined = statistics[~np.isnan(statistics)]
    if not len(defined):
        return float("nan"), float("nan")
    low, high = np.quantile(defined, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)

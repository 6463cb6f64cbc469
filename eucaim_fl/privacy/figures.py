"""Figures with noise: one joint Gaussian release of the sums that a site sends, of stated sensitivity to one patient.

A patient is a vector of bounded length; the release is the sum of the patients' vectors plus independent normal noise
of standard deviation noise multiplier × largest length on every entry: `Mechanism(noise_multiplier, 1.0, 1)` of the
accountant, for a patient added or removed. All that follows (possible counts, means in their range) uses nothing else.
Source: Dwork and Roth 2014, theorem 3.22 and proposition 2.1 (post-processing).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from eucaim_fl.privacy.stages import grid
from eucaim_fl.records import SiteMetrics, SplitName

__all__ = [
    "LARGEST_HD95_MM",
    "Normal",
    "class_sensitivity",
    "class_vectors",
    "noised_classification",
    "noised_segmentation",
    "value_sensitivity",
    "value_vectors",
]

LARGEST_HD95_MM = 100.0
"""HD95 of a patient counts as at most this in noised figures; without a bound no noise would be enough."""

FloatArray: TypeAlias = NDArray[np.float64]
Normal: TypeAlias = Callable[[int], FloatArray]
"""n → so many independent standard normal numbers, float64, shape (n,)."""

_BINS = 101
_GROUPS = 10
"""Scores are noised in ten groups of bins: noise of fewer counts adds up in an AUC."""
_COUNT, _SQUARE = 0.5, 0.5
"""Weights of n and of Σx² against Σx in one metric; the mean, which people read, gets the least noise for its size."""
_LENGTH_OF_VALUE = math.sqrt(_COUNT**2 + 1 + _SQUARE**2)


# --- one patient as a vector -----------------------------------------------------------------------------------------


def value_sensitivity(metrics: int) -> float:
    """Largest length (L2) of a patient's vector of so many metrics, see `value_vectors`: √(1.5 · metrics)."""
    return math.sqrt(metrics) * _LENGTH_OF_VALUE


def value_vectors(values: FloatArray, largest: FloatArray) -> FloatArray:
    """Each patient's share of the sums, shape (n, 3·m): for each metric (½, u, (u² − ½)) with u in −1 … 1.

    values: shape (n, m), NaN where a metric is not defined, which counts as nothing. largest: shape (m,); a value is
    clipped to 0 … largest, and u = 2·value/largest − 1: centred, so that noise in n does not move a middling mean.
    """
    defined = ~np.isnan(values)
    u = np.where(defined, 2 * np.clip(np.nan_to_num(values), 0, largest) / largest - 1, 0.0)
    parts = (np.where(defined, _COUNT, 0.0), u, np.where(defined, _SQUARE * (2 * u**2 - 1), 0.0))
    return np.stack(parts, axis=2).reshape(len(values), 3 * values.shape[1])


def class_sensitivity(classes: int, *, histograms: bool) -> float:
    """Largest length (L2) of a patient's vector, see `class_vectors`."""
    pairs = (1 if classes == 2 else classes) if histograms else 0
    return math.sqrt(1 + pairs + 1 + _SQUARE**2)


def class_vectors(probabilities: FloatArray, truth: NDArray[np.integer[Any]], *, histograms: bool) -> FloatArray:
    """Each patient's share of the sums, one row a patient: confusion cell, u and ½·(2u² − 1) of the Brier score, and
    for each pair of histograms the group of scores.

    probabilities: shape (n, K), rows sum to 1. truth: shape (n,), 0 … K−1. The number of patients is the sum of the
    confusion counts, so it needs no entry. A row that is not finite stands for no knowledge, 1/K each: weights that
    overflow on one patient's image must not end the release, for that alone would tell of the patient.
    """
    people, classes = probabilities.shape
    probabilities = np.where(np.isfinite(probabilities).all(axis=1, keepdims=True), probabilities, 1 / classes)
    rows, kinds = np.arange(people), range(classes)
    cells = np.zeros((people, classes * classes))
    cells[rows, truth * classes + probabilities.argmax(axis=1)] = 1.0
    if classes == 2:
        brier = (probabilities[:, 1] - truth) ** 2
    else:
        brier = ((probabilities - (truth[:, None] == np.arange(classes))) ** 2).sum(axis=1)
    moments = value_vectors(brier[:, None], _largest_brier(classes))[:, 1:]
    scores = []
    for k in ([1] if classes == 2 else kinds) if histograms else ():
        one = np.zeros((people, 2, _GROUPS))
        group = np.minimum((np.clip(probabilities[:, k], 0, 1) * _GROUPS).astype(np.int64), _GROUPS - 1)
        one[rows, (truth == k).astype(np.int64), group] = 1.0
        scores.append(one.reshape(people, 2 * _GROUPS))
    return np.concatenate([cells, moments, *scores], axis=1)


def _largest_brier(classes: int) -> FloatArray:
    return np.array([1.0 if classes == 2 else 2.0])


# --- the release -----------------------------------------------------------------------------------------------------


def _released(vectors: FloatArray, sensitivity: float, noise_multiplier: float, normal: Normal) -> FloatArray:
    noise, deviation = np.asarray(normal(vectors.shape[1]), dtype=np.float64), noise_multiplier * sensitivity
    noised = vectors.sum(axis=0) + deviation * noise
    step = grid(deviation)
    return np.asarray(np.round(noised / step) * step)


def noised_segmentation(
    split: SplitName,
    results: Sequence[Mapping[str, float]],
    names: Sequence[str],
    noise_multiplier: float,
    normal: Normal,
) -> SiteMetrics:
    """What a site sends about a segmentation, noised as a whole; otherwise as `pooling.segmentation_summary`.

    results: metric → value of one patient each; NaN or missing where it is not defined. names: all metrics of the task,
    which follow from the plan, not from the patients; those in mm (`hd95_mm…`) are clipped to LARGEST_HD95_MM, all
    others to 1. A metric whose noised number of patients is below one is left out.
    Whether enough patients are there to be asked is decided before, and not hidden by this noise.
    """
    names = sorted(names)
    largest = np.array([LARGEST_HD95_MM if name.startswith("hd95_mm") else 1.0 for name in names])
    values = np.array([[float(one.get(name, math.nan)) for name in names] for one in results], dtype=np.float64)
    vectors = value_vectors(values.reshape(len(results), len(names)), largest)
    noised = _released(vectors, value_sensitivity(len(names)), noise_multiplier, normal).reshape(len(names), 3)
    sums = {}
    for name, (count, linear, square), bound in zip(names, noised, largest, strict=True):
        patients = max(0, round(float(count) / _COUNT))
        if patients:
            sums[name] = _moments(patients, float(linear), float(square), float(bound))
    patients = int(max((one[0] for one in sums.values()), default=0))
    return SiteMetrics(split, patients, {name: one[1] / one[0] for name, one in sums.items()}, sums)


def noised_classification(
    split: SplitName,
    probabilities: FloatArray,
    truth: NDArray[np.integer[Any]],
    *,
    histograms: bool,
    noise_multiplier: float,
    normal: Normal,
) -> SiteMetrics:
    """What a site sends about a classification, noised as a whole; otherwise as `pooling.classification_summary`.

    probabilities: shape (n, K); truth: shape (n,). The record has the Brier score's mean; AUC and balanced accuracy are
    those of its counts (`pooling.count_values`). Scores stand in the middle of tenths. No patients (by the noised
    counts) give no sums.
    Whether enough patients are there to be asked is decided before, and not hidden by this noise.
    """
    classes = probabilities.shape[1]
    vectors = class_vectors(probabilities, truth, histograms=histograms)
    sensitivity = class_sensitivity(classes, histograms=histograms)
    noised = _released(vectors, sensitivity, noise_multiplier, normal)
    cells, rest = noised[: classes * classes].reshape(classes, classes), noised[classes * classes :]
    people = [max(0, round(float(row.sum()))) for row in cells]
    total = sum(people)
    if not total:
        return SiteMetrics(split, 0)
    confusion = np.concatenate([_counts(row, n) for row, n in zip(cells, people, strict=True)])
    brier = _moments(total, float(rest[0]), float(rest[1]), float(_largest_brier(classes)[0]))
    sums: dict[str, tuple[float, ...]] = {"confusion": tuple(map(float, confusion)), "brier": brier}
    pairs = rest[2:].reshape(-1, 2, _GROUPS)
    for k, (negative, positive) in zip([1] if classes == 2 else range(classes), pairs, strict=False):
        sums[f"scores_{k}_negative"] = _in_bins(_counts(negative, total - people[k]))
        sums[f"scores_{k}_positive"] = _in_bins(_counts(positive, people[k]))
    return SiteMetrics(split, total, {"brier": brier[1] / brier[0]}, sums)


# --- what patients could have ----------------------------------------------------------------------------------------


def _moments(patients: int, linear: float, square: float, largest: float) -> tuple[float, float, float]:
    """(n, Σx, Σx²) of values in 0 … largest, from the noised sums over n patients."""
    mean_u = min(max(linear / patients, -1.0), 1.0)
    square_u = min(max((square / (_SQUARE * patients) + 1) / 2, mean_u**2), 1.0)
    mean, mean_square = (mean_u + 1) / 2, (square_u + 2 * mean_u + 1) / 4
    mean_square = max(mean_square, mean * mean)
    return float(patients), patients * mean * largest, patients * mean_square * largest**2


def _counts(noised: FloatArray, total: int) -> NDArray[np.int64]:
    """Whole numbers from zero of that sum, near the noised ones: their projection on the simplex, then rounded.

    Source of the projection: Held, Wolfe and Crowder 1974; as in Duchi et al. 2008, figure 1.
    """
    if not total:
        return np.zeros(len(noised), dtype=np.int64)
    ordered = np.sort(noised)[::-1]
    excess = (np.cumsum(ordered) - total) / np.arange(1, len(noised) + 1)
    places = np.maximum(noised - excess[np.nonzero(ordered > excess)[0][-1]], 0.0)
    whole: NDArray[np.int64] = np.floor(places).astype(np.int64)
    more = np.argsort(whole - places, kind="stable")[: max(0, total - int(whole.sum()))]
    whole[more] += 1
    return whole


def _in_bins(groups: NDArray[np.int64]) -> tuple[float, ...]:
    """Counts of tenths as a histogram of hundredths, each in the middle of its tenth."""
    bins = np.zeros(_BINS)
    bins[np.arange(_GROUPS) * 10 + 5] = groups
    return tuple(map(float, bins))

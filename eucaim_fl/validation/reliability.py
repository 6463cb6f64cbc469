"""Whether predicted probabilities are right, from binned scores: Brier score, calibration in bins, slope and intercept.

Sums of scores by bin make the mean score of each bin exact; without them it is taken as the middle of the bin, and the
bounds say what that can change.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray
from scipy.special import expit, logit, ndtri

from eucaim_fl.errors import DataError
from eucaim_fl.validation.binned import BinnedScores, Bounded, Functional
from eucaim_fl.validation.intervals import Interval
from eucaim_fl.validation.metrics import logistic_fit
from eucaim_fl.validation.slope_range import slope_ranges
from eucaim_fl.validation.thresholds import proportion

__all__ = [
    "CalibrationBin",
    "CalibrationLine",
    "binned_brier",
    "binned_calibration_error",
    "binned_calibration_line",
    "binned_calibration_lines",
    "brier_figure",
    "calibration_bins",
    "calibration_error_figure",
    "calibration_line_figure",
]

FloatArray: TypeAlias = NDArray[np.float64]

_CLOSEST = 1e-6  # how far from 0 and 1 probabilities are on the logit scale at least, as in metrics.calibration_line


@dataclass(frozen=True)
class CalibrationBin:
    """Patients whose scores lie between two edges: their mean score, and how many of them have the disease."""

    low: float
    high: float
    patients: int
    mean_score: Bounded
    observed: Interval


@dataclass(frozen=True)
class CalibrationLine:
    """Slope b of logit P(y = 1) = a + b·logit p, and intercept a where b is held at 1; 1 and 0 are perfect.

    bounds, slope_bounds: where the intercept and the slope of the patients' own scores lie.
    """

    slope: Interval
    intercept: Interval
    bounds: Bounded
    slope_bounds: Bounded


def binned_brier(scores: BinnedScores) -> Bounded:
    """Brier score, and the range in which that of the scores themselves lies: a point if sums and squares are known.

    Σ p² − 2 Σ_diseased p + n⁺, over n. Without sums each score is taken as the middle of its bin, and may lie at either
    edge; with sums only Σ p² is uncertain (`BinnedScores.square_bounds`). All NaN without patients.
    Raises DataError if edges do not lie in 0 … 1.
    """
    _check_probabilities(scores)
    patients = sum(scores.patients)
    if not patients:
        return Bounded(math.nan, math.nan, math.nan)
    value = float(brier_figure(scores)(scores.counts))
    if scores.sums is None:
        low, high = np.asarray(scores.edges[:-1]), np.asarray(scores.edges[1:])
        ends = [(scores.counts * np.stack([a**2, (1 - b) ** 2])).sum() for a, b in ((low, high), (high, low))]
        return Bounded(value, *(float(end) / patients for end in ends))
    shift = scores.patients[1] - 2 * math.fsum(scores.sums[1])
    least, most = ((squares + shift) / patients for squares in scores.square_bounds())
    if scores.squares is not None:
        value = least = most = (scores.squares + shift) / patients
    return Bounded(min(max(value, least), most), least, most)


def brier_figure(scores: BinnedScores) -> Functional:
    """The Brier score as a function of counts in the same bins, each patient at the mean score of bin and class.

    It leaves out how scores vary within a bin, at most a quarter of its width squared. NaN without patients.
    Raises DataError if edges do not lie in 0 … 1.
    """
    _check_probabilities(scores)
    typical = np.stack([scores.means, scores.means])
    if scores.sums is not None:
        typical = np.where(scores.counts > 0, np.asarray(scores.sums) / np.maximum(scores.counts, 1), typical)
    errors = (typical - np.array([[0.0], [1.0]])) ** 2

    def figure(counts: FloatArray) -> FloatArray:
        with np.errstate(invalid="ignore"):
            return np.asarray((counts * errors).sum(axis=(-2, -1)) / counts.sum(axis=(-2, -1)))

    return figure


def calibration_bins(scores: BinnedScores, groups: int = 10, level: float = 0.95) -> tuple[CalibrationBin, ...]:
    """Observed share of diseased patients against the mean score, in at most `groups` runs of bins of about as many
    patients each; a bin is never divided. Intervals are Wilson's (see `thresholds.proportion`).

    Raises DataError if groups is not positive, level not between 0 and 1, or edges do not lie in 0 … 1.
    """
    return tuple(
        CalibrationBin(low, high, patients, mean, proportion(diseased, patients, level=level))
        for low, high, patients, diseased, mean in _in_groups(scores, groups)
    )


def binned_calibration_error(scores: BinnedScores, groups: int = 10) -> Bounded:
    """Expected calibration error over `calibration_bins`: Σ_g n_g/n·|observed share − mean score|.

    The range is that of the patients' own scores in the same groups; `metrics.calibration_error` divides patients into
    groups of equal size and so has other ones. The value is too large for few patients, since each group's noise counts
    as an error. All NaN without patients.
    Raises DataError if groups is not positive, or edges do not lie in 0 … 1.
    """
    bins = _in_groups(scores, groups)
    patients = sum(scores.patients)
    if not patients:
        return Bounded(math.nan, math.nan, math.nan)
    value = lowest = highest = 0.0
    for _, _, here, diseased, mean in bins:
        weight, observed = here / patients, diseased / here
        value += weight * abs(observed - mean.value)
        lowest += weight * max(0.0, mean.lowest - observed, observed - mean.highest)
        highest += weight * max(abs(observed - mean.lowest), abs(observed - mean.highest))
    return Bounded(value, lowest, highest)


def calibration_error_figure(scores: BinnedScores, groups: int = 10) -> Functional:
    """`binned_calibration_error` as a function of counts, with the groups that these scores make.

    Resamples add noise to each group, so they lie above the value; so does the value lie above the truth. An interval
    from them tells of neither; it is for looking at. NaN without patients.
    Raises DataError if groups is not positive, or edges do not lie in 0 … 1.
    """
    _check_probabilities(scores)
    members = np.asarray(_groups(scores, groups), dtype=np.float64).reshape(-1, len(scores.negative)).T

    def figure(counts: FloatArray) -> FloatArray:
        total = counts.sum(axis=-2)
        with np.errstate(invalid="ignore"):
            gaps = np.abs((counts[..., 1, :] - total * scores.means) @ members)
            return np.asarray(gaps.sum(axis=-1) / total.sum(axis=-1))

    return figure


def binned_calibration_line(scores: BinnedScores, level: float = 0.95) -> CalibrationLine:
    """Calibration slope and intercept by logistic regression over bins, each weighted by its patients.

    The score of a bin is its mean, at least 10⁻⁶ away from 0 and 1. Intervals: estimate ± z·SE from the information at
    the estimate (Wald). The intercept falls when any score rises, so its range has the ends where all scores lie at the
    upper and at the lower edges of their bins (with sums the range would be narrower; it is not used). The slope's
    range is that of `slope_ranges`: it is wide where diseased patients lie in the lowest bin or others in the highest
    one, whose logits reach far out.
    NaN unless both classes occur; a slope that no finite number fits best is NaN.
    Raises DataError if level is not between 0 and 1, or edges do not lie in 0 … 1.
    Source: Cox 1958; Van Calster et al. 2019, Calibration: the Achilles heel of predictive analytics.
    """
    return _lines([scores], level)[0]


def binned_calibration_lines(sites: Sequence[BinnedScores], level: float = 0.95) -> tuple[CalibrationLine, ...]:
    """`binned_calibration_line` of each of several scores; those in the same bins and without sums are fitted together,
    which takes much less time and may move the last digit.

    Raises DataError as `binned_calibration_line`.
    """
    alike = len({one.edges for one in sites}) == 1 and all(one.sums is None for one in sites)
    return _lines(sites, level) if alike else tuple(binned_calibration_line(one, level) for one in sites)


def _lines(sites: Sequence[BinnedScores], level: float) -> tuple[CalibrationLine, ...]:
    """Lines of scores whose bins have the same means."""
    first = sites[0]
    _check_probabilities(first)
    if not 0 < level < 1:
        raise DataError("An interval needs a level between 0 and 1.")
    z, logits, counts = float(ndtri((1 + level) / 2)), _logits(first.means), np.stack([one.counts for one in sites])
    both, ends = np.stack([np.ones_like(logits), logits], axis=1), _logits(np.asarray(first.edges))
    slopes = _fit(both, np.zeros_like(logits), counts)
    offsets = np.repeat([logits, ends[1:], ends[:-1]], len(sites), axis=0)
    intercepts = _fit(both[:, :1], offsets, np.tile(counts, (3, 1, 1))).reshape(3, -1)
    ranges = slope_ranges(ends, counts, slopes[:, 1])
    total = counts.sum(axis=1)
    reach = z * _errors(both, slopes @ both.T, total)[:, 1]
    shift = z * _errors(both[:, :1], intercepts[0][:, None] + logits, total)[:, 0]
    rows = np.stack([slopes[:, 1], reach, intercepts[0], shift, *intercepts[1:], *ranges.T], axis=1).tolist()
    return tuple(
        CalibrationLine(
            Interval(slope, slope - wide, slope + wide),
            Interval(intercept, intercept - high, intercept + high),
            Bounded(intercept, *edges),
            Bounded(slope, *around),
        )
        for (slope, wide, intercept, high), edges, around in ((row[:4], row[4:6], row[6:]) for row in rows)
    )


def calibration_line_figure(scores: BinnedScores, *, intercept: bool = False) -> Functional:
    """The calibration slope (or the intercept where the slope is 1) as a function of counts, to be resampled.

    Counts: shape (…, 2, bins) → (…); NaN as in `binned_calibration_line`.
    Raises DataError if edges do not lie in 0 … 1.
    """
    _check_probabilities(scores)
    logits = _logits(scores.means)
    design = np.stack([np.ones_like(logits), logits], axis=1)

    def figure(counts: FloatArray) -> FloatArray:
        samples = counts.reshape(-1, *counts.shape[-2:])
        if intercept:
            found = _fit(design[:, :1], logits, samples)[:, 0]
        else:
            found = _fit(design, np.zeros_like(logits), samples)[:, 1]
        return found.reshape(counts.shape[:-2])

    return figure


def _check_probabilities(scores: BinnedScores) -> None:
    if scores.edges[0] < 0 or scores.edges[-1] > 1:
        raise DataError("Scores must be probabilities, in bins between 0 and 1.")


def _mean_range(scores: BinnedScores) -> tuple[FloatArray, FloatArray]:
    """The least and largest mean score of each bin: the same if sums are known, else the edges."""
    if scores.sums is not None:
        return scores.means, scores.means
    return np.asarray(scores.edges[:-1]), np.asarray(scores.edges[1:])


def _groups(scores: BinnedScores, groups: int) -> list[NDArray[np.bool_]]:
    """Runs of bins, as masks; a bin belongs to the group in which the middle one of its patients is."""
    group, total = _group_of(scores, groups), scores.counts.sum(axis=0)
    return [(group == k) & (total > 0) for k in np.unique(group[total > 0])]


def _group_of(scores: BinnedScores, groups: int) -> NDArray[np.int64]:
    if groups < 1:
        raise DataError("Calibration needs at least one group.")
    total = scores.counts.sum(axis=0)
    middle = (np.cumsum(total) - total / 2) / max(total.sum(), 1)
    return np.asarray(np.minimum((groups * middle).astype(np.int64), groups - 1))


def _in_groups(scores: BinnedScores, groups: int) -> list[tuple[float, float, int, int, Bounded]]:
    """Of each run of bins (`_groups`) its edges, patients, those with the disease, and their mean score."""
    _check_probabilities(scores)
    group, total = _group_of(scores, groups), scores.counts.sum(axis=0)
    filled = np.flatnonzero(total)
    if not len(filled):
        return []
    starts = np.flatnonzero(np.diff(group[filled], prepend=-1))
    here = total[filled]
    sums = np.add.reduceat(
        np.stack(
            [
                here,
                scores.counts[1, filled],
                *(here * values[filled] for values in (scores.means, *_mean_range(scores))),
            ]
        ),
        starts,
        axis=1,
    ).T.tolist()
    first, last = filled[starts].tolist(), filled[np.append(starts[1:], len(filled)) - 1].tolist()
    return [
        (scores.edges[a], scores.edges[b + 1], int(n), int(diseased), Bounded(*(one / n for one in means)))
        for a, b, (n, diseased, *means) in zip(first, last, sums, strict=True)
    ]


def _logits(probabilities: FloatArray) -> FloatArray:
    return np.asarray(logit(np.clip(probabilities, _CLOSEST, 1 - _CLOSEST)))


def _fit(design: FloatArray, offset: FloatArray, counts: FloatArray) -> FloatArray:
    return logistic_fit(design, offset, counts[:, 1], counts.sum(axis=1))


def _errors(design: FloatArray, predictor: FloatArray, total: FloatArray) -> FloatArray:
    """Standard errors of the coefficients of logistic regressions, shape (B, k); NaN where there is no fit.

    design: shape (n, k). predictor, total: shape (B, n).
    """
    found, fitted = np.full((len(predictor), design.shape[1]), math.nan), ~np.isnan(predictor).any(axis=1)
    mean = expit(predictor[fitted])
    information = (total[fitted] * mean * (1 - mean))[:, None, :] * design.T @ design
    found[fitted] = np.sqrt(np.diagonal(np.linalg.inv(information), axis1=1, axis2=2))
    return found

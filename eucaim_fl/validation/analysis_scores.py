"""Figures and curves of one label's score counts: ranks, decisions, and whether probabilities are right."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from eucaim_fl.errors import DataError
from eucaim_fl.validation.agreement import enough
from eucaim_fl.validation.analysis_input import figure_key
from eucaim_fl.validation.binned import (
    BinnedScores,
    Bounded,
    auc_bounds,
    auc_interval,
    delong_error,
    pooled_scores,
    roc_points,
    widest_auc_interval,
)
from eucaim_fl.validation.intervals import Interval
from eucaim_fl.validation.reliability import (
    CalibrationLine,
    binned_brier,
    binned_calibration_error,
    binned_calibration_line,
    brier_figure,
    calibration_bins,
)
from eucaim_fl.validation.resampled import Resamples, bca_interval, percentile_interval
from eucaim_fl.validation.result_schema import (
    Band,
    CalibrationGroup,
    Curves,
    DecisionPoint,
    Figure,
    PrPoint,
    RocPoint,
    ThresholdCounts,
)
from eucaim_fl.validation.thresholds import (
    AtThreshold,
    at_threshold,
    average_precision_bounds,
    average_precision_of,
    decision_curve,
    pr_points,
    proportion,
)

__all__ = ["LEVEL", "figure_of", "score_curves", "score_figures", "share_figure", "undefined"]

FloatArray: TypeAlias = NDArray[np.float64]

LEVEL = 0.95
"""Of every interval of a result."""

NO_CLASSES = "Of one class there is nobody, or too few to be told."
_NO_PATIENT = "Nobody is counted in it, or too few to be told."
_NO_LINE = "No finite line fits best: the classes do not overlap, or are not both there."
_NO_RANGE = "How far binning may have moved it is not known: scores within the bins could be such that it has no end."
_FROM_RESAMPLES = "Interval from resampled patients, within their sites."
_NOT_RESAMPLED = "No interval: patients are resampled over all sites, and at each one for all its patients only."
_ECE = "No interval: few patients make this error too large, and resampling makes it larger still."
_F1 = "The interval holds for the share of diseased patients in these data."
_UNBOUNDED = "There is no upper limit: a cell is empty."
_GRID = np.linspace(0.0, 1.0, 51)


def undefined(reason: str, *, sites: int = 1, patients: int | None = None) -> Figure:
    """A figure without a value."""
    return Figure(value=None, patients=patients, sites=sites, reason=reason)


def figure_of(
    interval: Interval,
    *,
    patients: int | None,
    sites: int = 1,
    bounds: Bounded | None = None,
    reason: str = "",
    missing: str = _NO_PATIENT,
) -> Figure:
    """An interval as the result has it; one whose estimate is NaN has no value, and `missing` as its reason.

    A limit that is infinite is null; bounds are left out where they are the value itself.
    """
    if not math.isfinite(interval.estimate):
        return undefined(missing, sites=sites, patients=patients)
    exact = bounds is None or bounds.lowest == bounds.highest
    return Figure(
        value=interval.estimate,
        low=_finite(interval.low),
        high=_finite(interval.high),
        lowest=None if exact or bounds is None else _finite(bounds.lowest),
        highest=None if exact or bounds is None else _finite(bounds.highest),
        patients=patients,
        sites=sites,
        reason=reason,
    )


def share_figure(count: int, patients: int, *, sites: int = 1, reason: str = "") -> Figure:
    """A share of patients with Wilson's interval; without patients it has no value."""
    return figure_of(proportion(count, patients, level=LEVEL), patients=patients, sites=sites, reason=reason)


def score_figures(
    sites: Sequence[BinnedScores],
    thresholds: Sequence[float],
    label: str,
    free: Resamples | None = None,
    *,
    exact_brier: bool = False,
    line: CalibrationLine | None = None,
) -> tuple[dict[str, Figure], tuple[ThresholdCounts, ...]]:
    """Figures of the scores of one site or of several together, and the counts at each threshold.

    AUC: of the pooled patients, with DeLong's interval within sites, and what binning can change. Shares at thresholds:
    Wilson's, over pooled patients, which is a little wide where sites differ. Average precision and, where no exact one
    was told (`exact_brier`: one takes its place), the Brier score have intervals from resamples `free` (classes not
    fixed), without which they have none. line: of calibration, where it is known already.
    Raises DataError without a site, or if edges differ or lack a threshold.
    """
    scores, number = pooled_scores(sites), len(sites)
    everybody = sum(scores.patients)
    found = {
        "auc": _auc(scores, sites),
        "prevalence": share_figure(scores.patients[1], everybody, sites=number),
        "average_precision": _resampled(
            average_precision_of, free, average_precision_bounds(scores), everybody, number
        ),
        "brier": _resampled(
            brier_figure(scores), None if exact_brier else free, binned_brier(scores), everybody, number
        ),
    } | _calibration(scores, number, line or binned_calibration_line(scores, LEVEL))
    decided = [at_threshold(scores, threshold, level=LEVEL) for threshold in thresholds]
    figures = {figure_key(name, label): figure for name, figure in found.items()}
    for one in decided:
        figures |= _decisions(one, label, number)
    return figures, tuple(_counts(one, label) for one in decided)


def score_curves(sites: Sequence[BinnedScores], label: str, fixed: Resamples | None, free: Resamples | None) -> Curves:
    """The histogram of the pooled scores, their ROC, PR, calibration and decision curves, and pointwise bands.

    fixed, free: resamples with classes fixed (ROC) and as they come (PR, net benefit); without them there are no bands.
    Raises DataError without a site, or if edges differ.
    """
    scores = pooled_scores(sites)
    inside = [edge for edge in scores.edges if 0 < edge < 1]
    decided = decision_curve(scores, inside) if free is not None else ()
    benefit = _benefits(free, scores, inside) if free is not None else np.zeros((2, 0))
    return Curves(
        label=label,
        edges=scores.edges,
        without=scores.negative,
        with_disease=scores.positive,
        roc=tuple(
            RocPoint(threshold=t, false_positive_rate=_finite(x), sensitivity=_finite(y))
            for t, x, y in roc_points(scores).tolist()
        ),
        roc_band=_band(fixed, _sensitivities, _GRID) if fixed is not None and all(scores.patients) else (),
        pr=tuple(
            PrPoint(threshold=t, recall=_finite(x), precision=_finite(y)) for t, x, y in pr_points(scores).tolist()
        ),
        pr_band=_band(free, _precisions, _GRID[1:]) if free is not None and scores.patients[1] else (),
        calibration=_groups(scores),
        decision=tuple(
            DecisionPoint(
                threshold=one.threshold,
                model=_finite(one.model),
                low=_finite(low),
                high=_finite(high),
                everyone=_finite(one.everyone),
            )
            for one, low, high in zip(decided, *benefit.tolist(), strict=True)
        ),
    )


def _finite(value: float) -> float | None:
    return float(value) if math.isfinite(value) else None


def _auc(scores: BinnedScores, sites: Sequence[BinnedScores]) -> Figure:
    patients = sum(scores.patients)
    if not all(scores.patients):
        return undefined(NO_CLASSES, sites=len(sites), patients=patients)
    error = delong_error(scores, sites)
    widest = widest_auc_interval(scores, LEVEL, sites, error=error)
    own = auc_interval(scores, LEVEL, sites, error=error)
    figure = figure_of(own, patients=patients, sites=len(sites), bounds=auc_bounds(scores))
    return figure.model_copy(update={"widest_low": widest.low, "widest_high": widest.high})


def _resampled(
    functional: Callable[[FloatArray], FloatArray],
    free: Resamples | None,
    bounds: Bounded,
    patients: int,
    sites: int,
) -> Figure:
    """A figure with its interval by BCa, or by percentiles where one patient less would leave it undefined."""
    if math.isnan(bounds.value):
        return undefined(NO_CLASSES, sites=sites, patients=patients)
    if free is None:
        found, reason = Interval(bounds.value, math.nan, math.nan), _NOT_RESAMPLED
    else:
        try:
            found, reason = bca_interval(free, functional, LEVEL), _FROM_RESAMPLES
        except DataError:
            found, reason = percentile_interval(free, functional, LEVEL), _FROM_RESAMPLES
        if enough(found, 1.0, patients).half_width == 0:
            found = Interval(found.estimate, math.nan, math.nan)
            reason = "No interval: these patients leave resampling nothing to vary."
    return figure_of(found, patients=patients, sites=sites, bounds=bounds, reason=reason)


def _calibration(scores: BinnedScores, sites: int, line: CalibrationLine) -> dict[str, Figure]:
    patients, error = sum(scores.patients), binned_calibration_error(scores)
    around = line.slope_bounds
    known = math.isfinite(around.lowest) and math.isfinite(around.highest)
    return {
        "calibration_slope": figure_of(
            line.slope,
            patients=patients,
            sites=sites,
            bounds=around if known else None,
            reason="" if known else _NO_RANGE,
            missing=_NO_LINE,
        ),
        "calibration_intercept": figure_of(
            line.intercept, patients=patients, sites=sites, bounds=line.bounds, missing=_NO_LINE
        ),
        "calibration_error": figure_of(
            Interval(error.value, math.nan, math.nan), patients=patients, sites=sites, bounds=error, reason=_ECE
        ),
    }


def _decisions(one: AtThreshold, label: str, sites: int) -> dict[str, Figure]:
    tp, fp, fn, tn = one.true_positives, one.false_positives, one.false_negatives, one.true_negatives
    everybody = tp + fp + fn + tn
    behind = {"sensitivity": tp + fn, "specificity": fp + tn, "ppv": tp + fp, "npv": tn + fn, "f1": tp + fp + fn}
    named = {
        name: figure_of(
            interval,
            patients=behind.get(name, everybody),
            sites=sites,
            reason=_F1 if name == "f1" else "" if math.isfinite(interval.high) else _UNBOUNDED,
        )
        for name, interval in one.figures.items()
    }
    named["accuracy"] = share_figure(tp + tn, everybody, sites=sites)
    return {figure_key(name, label, one.threshold): figure for name, figure in named.items()}


def _counts(one: AtThreshold, label: str) -> ThresholdCounts:
    return ThresholdCounts(
        label=label,
        threshold=one.threshold,
        true_positives=one.true_positives,
        false_positives=one.false_positives,
        false_negatives=one.false_negatives,
        true_negatives=one.true_negatives,
    )


def _groups(scores: BinnedScores) -> tuple[CalibrationGroup, ...]:
    return tuple(
        CalibrationGroup(
            low=one.low,
            high=one.high,
            patients=one.patients,
            mean_score=one.mean_score.value,
            mean_score_lowest=one.mean_score.lowest,
            mean_score_highest=one.mean_score.highest,
            observed=figure_of(one.observed, patients=one.patients),
        )
        for one in calibration_bins(scores, level=LEVEL)
    )


def _above(counts: FloatArray) -> FloatArray:
    """Patients at or above each edge, from the last one (nobody) down: shape (…, 2, bins) → (…, 2, bins + 1)."""
    nobody = np.zeros((*counts.shape[:-1], 1))
    return np.concatenate([nobody, np.cumsum(counts[..., ::-1], axis=-1)], axis=-1)


def _band(resamples: Resamples, curve: Callable[[FloatArray], FloatArray], grid: FloatArray) -> tuple[Band, ...]:
    drawn = curve(_above(resamples.counts))
    limits = _limits(drawn)
    return tuple(
        Band(x=float(x), low=_finite(low), high=_finite(high)) for x, low, high in zip(grid, *limits, strict=True)
    )


def _limits(drawn: FloatArray) -> FloatArray:
    """Percentile limits over resamples, shape (resamples, points) → (2, points); NaN where none is defined."""
    missing, tails = np.isnan(drawn).sum(axis=0), [(1 - LEVEL) / 2, (1 + LEVEL) / 2]
    limits = np.full((2, drawn.shape[1]), math.nan)
    limits[:, missing == 0] = np.quantile(drawn[:, missing == 0], tails, axis=0)
    for column in np.flatnonzero((missing > 0) & (missing < len(drawn))):
        limits[:, column] = np.nanquantile(drawn[:, column], tails)
    return limits


def _sensitivities(above: FloatArray) -> FloatArray:
    """Sensitivity at each false positive rate of the grid, along straight lines between the points."""
    shares = above / above[..., -1:]
    return np.stack([_highest_at(rates, found) for rates, found in shares])


def _highest_at(rates: FloatArray, found: FloatArray) -> FloatArray:
    """The curve at the grid; where it is upright, its upper end, as whoever reads a ROC curve takes it.

    A line towards an upright part ends at the foot of that, so all points are needed, not only the upper ends.
    """
    behind = np.searchsorted(rates, _GRID, side="right")
    before, behind = behind - 1, np.minimum(behind, len(rates) - 1)
    width = np.where(behind > before, rates[behind] - rates[before], 1.0)
    return np.asarray(found[before] + (_GRID - rates[before]) * (found[behind] - found[before]) / width)


def _precisions(above: FloatArray) -> FloatArray:
    """Precision at the highest threshold that reaches each recall of the grid; NaN in resamples without diseased."""
    drawn = np.full((len(above), len(_GRID) - 1), math.nan)
    for row, (false, true) in enumerate(above):
        if true[-1]:
            place = np.searchsorted(true, _GRID[1:] * true[-1] * (1 - 1e-12), side="left")
            drawn[row] = true[place] / (true[place] + false[place])
    return drawn


def _benefits(free: Resamples, scores: BinnedScores, thresholds: Sequence[float]) -> FloatArray:
    """Limits of the net benefit at each threshold, shape (2, thresholds)."""
    from_bin = [scores.bin_from(threshold) for threshold in thresholds]
    above = _above(free.counts)[..., ::-1][..., from_bin]
    odds = np.asarray(thresholds) / (1 - np.asarray(thresholds))
    everybody = free.counts.sum(axis=(1, 2))[:, None]
    return _limits((above[:, 1] - odds * above[:, 0]) / everybody)

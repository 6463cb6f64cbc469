"""What is measured of a model over resampled patients: each metric for all resamples at once, by weights.

A patient's row of values is (Dice, HD95) in segmentation, and (probabilities of the K classes …, true class) in
classification. Weights say how often each resample holds each patient, shape (resamples, patients).
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from eucaim_fl.registry import lookup
from eucaim_fl.validation.metrics import calibration_error, calibration_line

__all__ = ["MEASURES", "Measures", "measures_of", "over_seeds", "weighted_auc", "weighted_mean"]

FloatArray = NDArray[np.float64]
Measure = Callable[[FloatArray, FloatArray], FloatArray]
"""(values of patients, shape (n, width); weights, shape (resamples, n)) → (resamples,); NaN where undefined."""
Point = Callable[[FloatArray], float]
"""Values of patients, shape (n, width) → one number; NaN where undefined."""


@dataclass(frozen=True)
class Measures:
    """A task's metrics, the most important first.

    resampled: those that get intervals. lower: of these, those of which less is better. points: those that get none,
    since resampling patients adds an error of its own to them (see `calibration_error`).
    """

    resampled: Mapping[str, Measure]
    points: Mapping[str, Point]
    lower: frozenset[str]

    @property
    def first(self) -> str:
        """The metric that models are compared by."""
        return next(iter(self.resampled))


def weighted_mean(values: FloatArray, weights: FloatArray) -> FloatArray:
    """Mean of values (n,) under each row of weights (resamples, n): Σ w·x / Σ w; NaN where the weights sum to 0.

    >>> weighted_mean(np.array([0.0, 1.0]), np.array([[1.0, 1.0], [0.0, 2.0]]))
    array([0.5, 1. ])
    """
    totals = weights.sum(axis=1)
    return np.asarray((weights @ values) / np.where(totals > 0, totals, np.nan))


def weighted_auc(scores: FloatArray, positive: NDArray[np.bool_], weights: FloatArray) -> FloatArray:
    """AUC under each row of weights: the share of weighted (positive, negative) pairs ranked right; a tie is one half.

    scores, positive: shape (n,); weights: shape (resamples, n). NaN where one side has no weight. Whole-number weights
    give the AUC of the sample that holds each patient so often (see `validation.metrics.auc`).

    >>> weighted_auc(np.array([0.1, 0.4, 0.35, 0.8]), np.array([False, False, True, True]), np.ones((1, 4)))
    array([0.75])
    """
    order = np.argsort(scores, kind="stable")
    starts = np.flatnonzero(np.diff(scores[order], prepend=-math.inf))
    ordered = weights[:, order]
    high = np.add.reduceat(ordered * positive[order], starts, axis=1)
    low = np.add.reduceat(ordered * ~positive[order], starts, axis=1)
    below = np.cumsum(low, axis=1) - low
    pairs = high.sum(axis=1) * low.sum(axis=1)
    return np.asarray(((below + low / 2) * high).sum(axis=1) / np.where(pairs > 0, pairs, np.nan))


def over_seeds(measure: Measure, seeds: Sequence[FloatArray], weights: FloatArray) -> FloatArray:
    """Mean over seeds of a metric, each over the patients that were held out under that seed, drawn together.

    seeds: for each, values of all patients (n, width), NaN for those who were not held out or have no value. A seed
    under which the metric is not defined is left out of the mean; NaN where it is defined under none.
    """
    results = []
    for values in seeds:
        here = ~np.isnan(values).any(axis=1)
        if here.any():
            results.append(measure(values[here], weights[:, here]))
    return _mean_defined(results, len(weights))


def _mean_defined(results: Sequence[FloatArray], resamples: int) -> FloatArray:
    """Mean over the arrays, of what is not NaN."""
    if not results:
        return np.full(resamples, np.nan)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # numpy says where all are NaN; that is meant
        return np.asarray(np.nanmean(np.stack(results), axis=0))


def _column(index: int) -> Measure:
    return lambda values, weights: weighted_mean(values[:, index], weights)


def _auc(values: FloatArray, weights: FloatArray) -> FloatArray:
    """Of the second of two classes; of more, the mean of one-against-the-rest areas over the classes that occur."""
    truth, probabilities = values[:, -1], values[:, :-1]
    classes = [1] if probabilities.shape[1] == 2 else range(probabilities.shape[1])
    return _mean_defined([weighted_auc(probabilities[:, k], truth == k, weights) for k in classes], len(weights))


def _balanced_accuracy(values: FloatArray, weights: FloatArray) -> FloatArray:
    """Mean over the classes that occur of the share of their patients that were recognised."""
    truth, predicted = values[:, -1], values[:, :-1].argmax(axis=1)
    recalls = [
        weighted_mean((predicted[truth == k] == k).astype(np.float64), weights[:, truth == k]) for k in np.unique(truth)
    ]
    return _mean_defined(recalls, len(weights))


def _brier(values: FloatArray, weights: FloatArray) -> FloatArray:
    truth, probabilities = values[:, -1], values[:, :-1]
    errors = ((probabilities - (truth[:, None] == np.arange(probabilities.shape[1]))) ** 2).sum(axis=1)
    return weighted_mean(errors / 2 if probabilities.shape[1] == 2 else errors, weights)


def _calibration_error(values: FloatArray) -> float:
    return calibration_error(values[:, :-1], values[:, -1].astype(np.int64))


def _slope(values: FloatArray) -> float:
    return math.nan if values.shape[1] != 3 else calibration_line(values[:, :-1], values[:, -1].astype(np.int64))[0]


def _intercept(values: FloatArray) -> float:
    return math.nan if values.shape[1] != 3 else calibration_line(values[:, :-1], values[:, -1].astype(np.int64))[1]


MEASURES: Mapping[str, Measures] = {
    "segmentation": Measures({"dice": _column(0), "hd95_mm": _column(1)}, {}, frozenset({"hd95_mm"})),
    "classification": Measures(
        {"auc": _auc, "balanced_accuracy": _balanced_accuracy, "brier": _brier},
        {
            "calibration_error": _calibration_error,
            "calibration_slope": _slope,
            "calibration_intercept": _intercept,
        },
        frozenset({"brier"}),
    ),
}


def measures_of(task: str) -> Measures:
    """The metrics of a task.

    Raises RecipeError for a task whose models can't be compared.
    """
    return lookup(MEASURES, task, "task that can be compared")

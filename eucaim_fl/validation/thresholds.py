"""What a model is worth at fixed thresholds, from binned scores: decisions, precision and recall, net benefit."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray
from scipy.special import digamma, ndtri

from eucaim_fl.errors import DataError
from eucaim_fl.registry import lookup
from eucaim_fl.validation.binned import BinnedScores, Bounded, Functional
from eucaim_fl.validation.intervals import Interval

__all__ = [
    "AtThreshold",
    "NetBenefit",
    "at_threshold",
    "average_precision_bounds",
    "average_precision_of",
    "decided",
    "decision_curve",
    "net_benefit",
    "pr_points",
    "proportion",
    "threshold_figure",
]

FloatArray: TypeAlias = NDArray[np.float64]


@dataclass(frozen=True)
class AtThreshold:
    """Decisions "score ≥ threshold": patients by truth and decision, and figures by name with their intervals."""

    threshold: float
    true_positives: int
    false_positives: int
    false_negatives: int
    true_negatives: int
    figures: Mapping[str, Interval]


@dataclass(frozen=True)
class NetBenefit:
    """Net benefit per patient of acting by the model, and on everyone, at a threshold probability; nobody has 0."""

    threshold: float
    model: float
    everyone: float


def proportion(
    count: int, patients: int, *, level: float = 0.95, method: Literal["wilson", "exact"] = "wilson"
) -> Interval:
    """A share of patients with its interval: Wilson's score interval, or Clopper and Pearson's (`exact`).

    Wilson's keeps the level on average, Clopper and Pearson's for every true share, and is wider. Without patients the
    share is NaN, and its interval is 0 to 1.
    Raises DataError if count is not among 0 … patients, or level not between 0 and 1.
    Source: Wilson 1927; Clopper and Pearson 1934; Newcombe 1998, Two-sided confidence intervals for the single
    proportion: comparison of seven methods.

    >>> [round(limit, 4) for limit in (proportion(81, 263).low, proportion(81, 263).high)]
    [0.2553, 0.3662]
    """
    if not 0 <= count <= patients or not 0 < level < 1:
        raise DataError(f"{count} of {patients} patients, at the level {level:g}, have no interval.")
    if not patients:
        return Interval(math.nan, 0.0, 1.0)
    if method == "exact":
        from scipy.stats import binomtest  # takes a second to load

        limits = binomtest(count, patients).proportion_ci(level, method=method)
        return Interval(count / patients, float(limits.low), float(limits.high))
    square = _normal(level) ** 2  # written out, since scipy's makes a p-value first, which takes long
    middle, reach = count + square / 2, math.sqrt(square * (count * (patients - count) / patients + square / 4))
    low, high = (middle - reach) / (patients + square), (middle + reach) / (patients + square)
    return Interval(count / patients, low if count else 0.0, high if count < patients else 1.0)


@lru_cache(maxsize=16)
def _normal(level: float) -> float:
    """z of a two-sided interval."""
    return float(ndtri((1 + level) / 2))


_FIGURES: dict[str, Callable[[FloatArray, FloatArray, FloatArray, FloatArray], FloatArray]] = {
    "sensitivity": lambda tp, fp, fn, tn: tp / (tp + fn),
    "specificity": lambda tp, fp, fn, tn: tn / (tn + fp),
    "ppv": lambda tp, fp, fn, tn: tp / (tp + fp),
    "npv": lambda tp, fp, fn, tn: tn / (tn + fn),
    "f1": lambda tp, fp, fn, tn: 2 * tp / (2 * tp + fp + fn),
    "balanced_accuracy": lambda tp, fp, fn, tn: (tp / (tp + fn) + tn / (tn + fp)) / 2,
    "lr_positive": lambda tp, fp, fn, tn: (tp / (tp + fn)) / (fp / (tn + fp)),
    "lr_negative": lambda tp, fp, fn, tn: (fn / (tp + fn)) / (tn / (tn + fp)),
}


def _tally(counts: FloatArray, first: int) -> tuple[FloatArray, FloatArray, FloatArray, FloatArray]:
    """True positives, false positives, false negatives, true negatives if bins from `first` on are called positive."""
    called, others = counts[..., first:].sum(axis=-1), counts[..., :first].sum(axis=-1)
    return called[..., 1], called[..., 0], others[..., 1], others[..., 0]


def decided(scores: BinnedScores, threshold: float) -> tuple[int, int, int, int]:
    """True positives, false positives, false negatives and true negatives of "score ≥ threshold".

    Raises DataError if the threshold is no edge.

    >>> decided(BinnedScores((0, 0.5, 1), (3, 1), (0, 2)), 0.5)
    (2, 1, 0, 3)
    """
    tp, fp, fn, tn = map(int, _tally(scores.counts, scores.bin_from(threshold)))
    return tp, fp, fn, tn


def threshold_figure(scores: BinnedScores, name: str, threshold: float) -> Functional:
    """A figure at a threshold as a function of counts in the same bins, shape (…, 2, bins) → (…), to be resampled.

    name: one of those in `at_threshold`; NaN where the figure is not defined, infinity for a likelihood ratio over 0.
    Raises DataError if the threshold is no edge, RecipeError for another name.
    """
    figure, first = lookup(_FIGURES, name, "figure at a threshold"), scores.bin_from(threshold)

    def at(counts: FloatArray) -> FloatArray:
        with np.errstate(invalid="ignore", divide="ignore"):
            return np.asarray(figure(*_tally(counts, first)))

    return at


def at_threshold(
    scores: BinnedScores, threshold: float, *, level: float = 0.95, method: Literal["wilson", "exact"] = "wilson"
) -> AtThreshold:
    """Sensitivity, specificity, PPV, NPV, F1, balanced accuracy and likelihood ratios of "score ≥ threshold".

    Counts at an edge are exact, so binning changes nothing here. Intervals: `proportion` for the four shares. F1 =
    2J/(1+J) has that of the share J = TP/(TP+FP+FN) (Hand, Christen and Kirielle 2021), which is binomial given how
    many patients are no true negatives, if patients came as they come, not by class. Balanced accuracy: square-and-add
    of the limits of both shares (Newcombe 1998; Zou and Donner 2008). Likelihood ratios: on the log scale (Simel, Samsa
    and Matchar 1991); where a cell is empty, ½ is added to each cell for the limit that is left, and the other one is 0
    or infinity. PPV, NPV and F1 hold for the share of diseased patients in these data only.
    What is not defined is NaN with the widest interval.
    Raises DataError if the threshold is no edge, or level is not between 0 and 1.
    """
    first = scores.bin_from(threshold)
    tally = _tally(scores.counts, first)
    tp, fp, fn, tn = map(int, tally)
    share = partial(proportion, level=level, method=method)
    sensitivity, specificity = share(tp, tp + fn), share(tn, tn + fp)
    jaccard, z = share(tp, tp + fp + fn), _normal(level)
    with np.errstate(invalid="ignore", divide="ignore"):
        values = {name: float(figure(*tally)) for name, figure in _FIGURES.items()}
    f1 = Interval(values["f1"], *(2 * limit / (1 + limit) for limit in (jaccard.low, jaccard.high)))
    return AtThreshold(
        threshold,
        tp,
        fp,
        fn,
        tn,
        {
            "sensitivity": sensitivity,
            "specificity": specificity,
            "ppv": share(tp, tp + fp),
            "npv": share(tn, tn + fn),
            "f1": f1,
            "balanced_accuracy": _mean_of_two(sensitivity, specificity),
            "lr_positive": Interval(values["lr_positive"], *_ratio_limits(tp, tp + fn, fp, tn + fp, z)),
            "lr_negative": Interval(values["lr_negative"], *_ratio_limits(fn, tp + fn, tn, tn + fp, z)),
        },
    )


def _mean_of_two(a: Interval, b: Interval) -> Interval:
    estimate = (a.estimate + b.estimate) / 2
    if math.isnan(estimate):
        return Interval(math.nan, 0.0, 1.0)
    down = math.hypot(a.estimate - a.low, b.estimate - b.low) / 2
    return Interval(estimate, estimate - down, estimate + math.hypot(a.high - a.estimate, b.high - b.estimate) / 2)


def _ratio_limits(above: int, of_above: int, below: int, of_below: int, z: float) -> tuple[float, float]:
    """Limits of (above/of_above) / (below/of_below)."""
    if not of_above or not of_below or (not above and not below):
        return 0.0, math.inf
    add = 0.0 if above and below else 0.5
    a, n, b, m = above + add, of_above + 2 * add, below + add, of_below + 2 * add
    ratio, width = (a / n) / (b / m), z * math.sqrt(1 / a - 1 / n + 1 / b - 1 / m)
    low, high = ratio * math.exp(-width), ratio * math.exp(width)
    return (low if above else 0.0), (high if below else math.inf)


def pr_points(scores: BinnedScores) -> FloatArray:
    """Points of precision and recall, shape (bins, 3): threshold (an edge, from the highest down), recall, precision.

    The points lie on the curve of the scores themselves. Between two of them it is no straight line (Davis and Goadrich
    2006). Precision is NaN where nobody scores that high, recall without a diseased patient.
    """
    fp, tp = np.cumsum(scores.counts[:, ::-1], axis=1)
    with np.errstate(invalid="ignore"):
        return np.stack([np.asarray(scores.edges[:-1])[::-1], tp / tp[-1], tp / (tp + fp)], axis=1)


def average_precision_of(counts: FloatArray) -> FloatArray:
    """Average precision of binned counts, Σ_b (recall gained in b)·precision at b; shape (…, 2, bins) → (…).

    NaN without a diseased patient. As high as the share of diseased patients by chance alone.

    >>> round(float(average_precision_of(np.array([[1, 1], [0, 2]]))), 6)
    0.666667
    """
    called = np.cumsum(counts[..., ::-1], axis=-1)[..., ::-1]
    high = counts[..., 1, :]
    with np.errstate(invalid="ignore", divide="ignore"):
        gained = np.where(high > 0, high * (called[..., 1, :] / called.sum(axis=-2)), 0.0)
        return np.asarray(gained.sum(axis=-1) / high.sum(axis=-1))


def average_precision_bounds(scores: BinnedScores) -> Bounded:
    """Average precision of the binned scores, and the range in which that of the scores themselves lies.

    Of the p diseased and m other patients of a bin, with P and F above it, the i-th diseased adds at least
    (P+i)/(P+i+F+m), all others before, and at most (P+p)/(P+p+F), the diseased tied before all others. All NaN
    without a diseased patient.
    """
    low, high = scores.counts
    if not high.sum():
        return Bounded(math.nan, math.nan, math.nan)
    positives_above = np.cumsum(high[::-1])[::-1] - high
    others_above = np.cumsum(low[::-1])[::-1] - low
    other = others_above + low
    reached = positives_above + high
    # Σ_i (P+i)/(P+i+c) = p − c·(ψ(P+c+p+1) − ψ(P+c+1))
    least = high - other * (digamma(reached + other + 1) - digamma(positives_above + other + 1))
    most = high * reached / np.maximum(reached + others_above, 1)
    return Bounded(
        float(average_precision_of(scores.counts)), float(least.sum() / high.sum()), float(most.sum() / high.sum())
    )


def net_benefit(scores: BinnedScores, threshold: float, *, everyone: bool = False) -> Functional:
    """Net benefit at a threshold probability as a function of counts, shape (…, 2, bins) → (…), to be resampled.

    TP/n − FP/n · p/(1−p), of the model's decisions or of acting on everyone. NaN without patients.
    Raises DataError if the threshold is no edge, or not between 0 and 1.
    """
    if not 0 < threshold < 1:
        raise DataError("A threshold probability lies between 0 and 1.")
    first, weight = (0 if everyone else scores.bin_from(threshold)), threshold / (1 - threshold)

    def benefit(counts: FloatArray) -> FloatArray:
        tp, fp, fn, tn = _tally(counts, first)
        with np.errstate(invalid="ignore"):
            return np.asarray((tp - weight * fp) / (tp + fp + fn + tn))

    return benefit


def decision_curve(scores: BinnedScores, thresholds: Sequence[float]) -> tuple[NetBenefit, ...]:
    """Net benefit of the model and of acting on everyone, at each threshold probability; on nobody it is 0.

    The scores must be probabilities, and patients come as in practice: with classes in chosen numbers the share of the
    diseased, and so all benefits, are those of the choice. Binning changes nothing, since thresholds are edges.
    Raises DataError if a threshold is no edge, or not between 0 and 1.
    Source: Vickers and Elkin 2006, Decision Curve Analysis.

    >>> decision_curve(BinnedScores((0, 0.5, 1), (3, 1), (0, 4)), [0.5])
    (NetBenefit(threshold=0.5, model=0.375, everyone=0.0),)
    """
    return tuple(
        NetBenefit(
            threshold,
            float(net_benefit(scores, threshold)(scores.counts)),
            float(net_benefit(scores, threshold, everyone=True)(scores.counts)),
        )
        for threshold in thresholds
    )

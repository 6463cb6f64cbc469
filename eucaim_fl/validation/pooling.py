"""From per-patient results to what a site sends, and from what sites send to values over all patients.

Sufficient statistics that add up over sites (`SiteMetrics.sums`):

    dice, dice_<label>, hd95_mm, brier      (n, Σx, Σx²) over the patients for whom x is defined
    confusion                               K·K counts: row true class, column predicted class
    scores_<k>_negative, scores_<k>_positive
                                            101 counts of p(class k), rounded to hundredths, among patients not of, and
                                            of, class k; two classes: k = 1 only. Sent only if the site allows it.
    concordance                             patients without and with the event; pairs (see `validation.concordance`)

A multi-label task has those of two classes for each label, with its name behind them (see `validation.labels`).
"""

from __future__ import annotations

import math
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from eucaim_fl.errors import DataError, ReplyError
from eucaim_fl.records import SiteMetrics, SplitName
from eucaim_fl.registry import lookup
from eucaim_fl.validation.concordance import c_index, check_concordance, pooled_c_index
from eucaim_fl.validation.labels import MACRO, by_label, joined, label_name, means_over_labels
from eucaim_fl.validation.metrics import auc, balanced_accuracy, brier_per_patient, confusion

__all__ = [
    "BINS",
    "better",
    "check_metrics",
    "classification_summary",
    "count_values",
    "histogram_auc",
    "multilabel_summary",
    "pool",
    "segmentation_summary",
]

BINS = 101
"""Bins of a score histogram: probabilities rounded to 0.00, 0.01, … 1.00."""

Goal: TypeAlias = tuple[str, Literal["max", "min"]]
_GOALS: dict[str, tuple[Goal, ...]] = {
    "segmentation": (("dice", "max"),),
    "classification": (("auc", "max"), ("auc_site_mean", "max"), ("brier", "min")),
    "multilabel": (("auc", "max"), ("auc_site_mean", "max"), ("brier", "min")),
    "survival": (("c_index", "max"), ("c_index_site_mean", "max")),
}
_HISTOGRAM = re.compile(r"scores_(\d{1,2})_(negative|positive)")
_LARGEST = 2.0**53  # beyond it sums are not exact, and further on they overflow
_DERIVED = frozenset({"patients", "auc", "auc_site_mean", "balanced_accuracy", "c_index", "c_index_site_mean"})


def segmentation_summary(split: SplitName, results: Sequence[Mapping[str, float]]) -> SiteMetrics:
    """What a site sends about a segmentation: results of one patient each.

    results: metric → value of that patient; NaN (or no entry) where it is not defined for the patient, who is then
    missing from that metric's n but not from `patients`. A metric defined for nobody has sums and no value.
    Raises DataError for an infinite value.
    """
    values: dict[str, float] = {}
    sums: dict[str, tuple[float, ...]] = {}
    for key in sorted({key for result in results for key in result}):
        defined = [float(result[key]) for result in results if key in result and not math.isnan(result[key])]
        sums[key] = _moments(key, defined)
        if defined:
            values[key] = sums[key][1] / len(defined)
    return SiteMetrics(split, len(results), values, sums)


def classification_summary(
    split: SplitName, probabilities: NDArray[np.float64], truth: NDArray[np.integer[Any]], *, histograms: bool
) -> SiteMetrics:
    """What a site sends about a classification.

    probabilities: shape (n, K), rows sum to 1. truth: shape (n,), 0 … K−1. The predicted class is the likeliest, of
    equals the first. histograms: whether the site allows score histograms, without which no pooled AUC exists.
    Values that are not defined at the site (AUC without positives) are left out.
    Raises DataError if shapes don't fit or a value is no probability.
    """
    if probabilities.ndim != 2:
        raise DataError("Probabilities must have one column for each class.")
    classes = probabilities.shape[1]
    errors = brier_per_patient(probabilities, truth)
    predicted = probabilities.argmax(axis=1)
    sums: dict[str, tuple[float, ...]] = {
        "confusion": tuple(map(float, confusion(predicted, truth, classes).ravel())),
        "brier": _moments("brier", list(map(float, errors))),
    }
    values = {
        "auc": auc(probabilities, truth),
        "balanced_accuracy": balanced_accuracy(predicted, truth, classes),
        "brier": sums["brier"][1] / len(errors) if len(errors) else math.nan,
    }
    if histograms:
        bins = np.rint(probabilities * (BINS - 1)).astype(np.int64)
        for k in [1] if classes == 2 else range(classes):
            for side, members in (("negative", truth != k), ("positive", truth == k)):
                counts = np.bincount(bins[members, k], minlength=BINS)
                sums[f"scores_{k}_{side}"] = tuple(map(float, counts))
    return SiteMetrics(split, len(errors), {k: v for k, v in values.items() if not math.isnan(v)}, sums)


def multilabel_summary(
    split: SplitName,
    probabilities: NDArray[np.float64],
    truth: NDArray[np.float64],
    targets: Sequence[str],
    *,
    histograms: bool,
) -> SiteMetrics:
    """What a site sends about a multi-label task: the summary of each label over the patients of whom it is known.

    probabilities: shape (n, T), of yes. truth: shape (n, T), 0, 1 or NaN. targets: names of the T labels. A probability
    of ½ is a no. Labels that are known of nobody are left out.
    Raises DataError as `classification_summary` does, and if shapes don't fit.
    """
    if probabilities.shape != truth.shape or probabilities.shape[1:] != (len(targets),):
        raise DataError("Probabilities and truth must have one column for each target.")
    labels = {}
    for column, target in enumerate(targets):
        known = ~np.isnan(truth[:, column])
        yes = probabilities[known, column]
        both, classes = np.stack([1 - yes, yes], axis=1), truth[known, column].astype(np.int64)
        if known.any():
            labels[target] = classification_summary(split, both, classes, histograms=histograms)
    return joined(SiteMetrics(split, 0), labels)


def histogram_auc(negative: Sequence[float], positive: Sequence[float]) -> tuple[float, float]:
    """AUC from two histograms over the same ascending bins, and the largest error that binning can have made.

    Pairs in one bin count one half. Only their order was lost, so the error is at most half their share of all pairs:
    ½ · Σ_b n⁻_b·n⁺_b / (n⁻·n⁺). (NaN, NaN) if one side is empty.

    >>> histogram_auc([2, 2, 0], [0, 2, 2])
    (0.875, 0.125)
    """
    low, high = np.asarray(negative, dtype=np.float64), np.asarray(positive, dtype=np.float64)
    pairs = float(low.sum() * high.sum())
    if not pairs:
        return math.nan, math.nan
    tied = float((low * high).sum()) / 2
    below = np.concatenate([[0.0], np.cumsum(low)[:-1]])
    return (float((below * high).sum()) + tied) / pairs, tied / pairs


def check_metrics(metrics: SiteMetrics, classes: int | None = None) -> None:
    """Whether what a site sent can be pooled; ask it for each reply, so that a faulty one is named and left out.

    classes: K of the plan's classification; None does not check it.
    Raises ReplyError for a sum of the wrong length, a number that is not finite or absurdly large, a count that is
    negative, no whole number or not that of the patients, moments that no patients can have, or values where metrics
    are withheld.
    """
    if metrics.withheld:
        if metrics.values or metrics.sums:
            raise ReplyError("Metrics were called withheld, and sent.")
        return
    if not 0 <= metrics.patients <= _LARGEST:
        raise ReplyError("A number of patients is negative or absurdly large.")
    if not all(abs(value) <= _LARGEST for value in metrics.values.values()):
        raise ReplyError("A metric is not finite.")
    if not all(0 <= metrics.values.get(name, 0.5) <= 1 for name in ("auc", "c_index")):
        raise ReplyError("An AUC or a c-index lies outside 0 to 1.")
    if labels := by_label(metrics):
        _check_labels(metrics, labels)
        return
    for key, numbers in metrics.sums.items():
        if key in _DERIVED:
            raise ReplyError(f"'{key}' is no sum that a site sends.")
        if not all(abs(number) <= _LARGEST for number in numbers):
            raise ReplyError(f"The sums of '{key}' are not finite.")
        if key == "confusion":
            side = math.isqrt(len(numbers))
            if side < 2 or side * side != len(numbers) or side != (classes or side):
                raise ReplyError("The confusion matrix has the wrong size.")
            _check_counts(key, numbers, metrics.patients)
        elif key.startswith("scores_"):
            if not _HISTOGRAM.fullmatch(key) or len(numbers) != BINS:
                raise ReplyError("A score histogram has the wrong name or length.")
            pair = key.rsplit("_", 1)[0]
            both = [metrics.sums.get(f"{pair}_{side}", ()) for side in ("negative", "positive")]
            _check_counts(key, (*both[0], *both[1]), metrics.patients)
        elif key == "concordance":
            check_concordance(numbers, metrics.patients)
        else:
            _check_moments(key, numbers, metrics.patients)


def count_values(sums: Mapping[str, tuple[float, ...]]) -> dict[str, float]:
    """Balanced accuracy of confusion counts, AUC of score histograms and c-index of pairs, as far as there are some
    and they define it.

    >>> count_values({"confusion": (8.0, 2.0, 5.0, 5.0), "dice": (3.0, 1.5, 0.75)})
    {'balanced_accuracy': 0.65}
    """
    matrices = [sums["confusion"]] if "confusion" in sums else []
    index = c_index(sums["concordance"][2:]) if "concordance" in sums else math.nan
    found = {} if math.isnan(index) else {"c_index": index}
    return _pooled_balanced_accuracy(matrices) | _histogram_areas([sums]) | found


def pool(metrics: Sequence[SiteMetrics]) -> dict[str, float]:
    """Values over all patients of all sites that sent metrics of one split; sites that withhold are left out.

    Means (Dice, HD95, Brier) are those of the pooled patients, and so is balanced accuracy from the added confusion
    matrices. `auc` comes from the added score histograms (see `histogram_auc` for its error) if every site with
    patients sent them; otherwise `auc_site_mean`, the sites' own AUCs weighted by patients, stands instead. A c-index
    is that of the added pairs (see `pooled_c_index`). Labels are pooled one by one; what has no label's name is the
    plain mean over them.
    `patients` is their number. What is not defined (nobody has it, a class is missing) is left out. The order of
    sites changes no bit.
    Raises ReplyError for what `check_metrics` refuses, or if splits or numbers of classes differ.
    """
    for entry in metrics:
        check_metrics(entry)
    if len({entry.split for entry in metrics}) > 1:
        raise ReplyError("Metrics of different splits can't be pooled.")
    sites = [entry for entry in metrics if not entry.withheld and entry.patients > 0]
    pooled = {"patients": float(sum(entry.patients for entry in sites))}
    if any(labelled := [by_label(entry) for entry in sites]):
        return pooled | _pooled_labels(labelled)
    for key in sorted({key for entry in sites for key in entry.sums}):
        if key in ("confusion", "concordance") or key.startswith("scores_"):
            continue
        moments = [entry.sums[key] for entry in sites if key in entry.sums]
        if patients := math.fsum(n for n, _, _ in moments):
            pooled[key] = math.fsum(total for _, total, _ in moments) / patients
    pooled.update(_pooled_balanced_accuracy([e.sums["confusion"] for e in sites if "confusion" in e.sums]))
    pooled.update(_pooled_auc(sites))
    pooled.update(pooled_c_index(sites))
    return pooled


def _pooled_labels(sites: Sequence[Mapping[str, SiteMetrics]]) -> dict[str, float]:
    """The pooled values of each label, and their means. An AUC is of added histograms for all labels, or for none."""
    every = [one for labels in sites for one in labels.values()]
    exact = all(any(key.startswith("scores_") for key in one.sums) for one in every)
    found: dict[str, dict[str, float]] = {}
    for label in sorted({label for labels in sites for label in labels}):
        own = [labels[label] for labels in sites if label in labels]
        if not exact:
            own = [replace(one, sums={k: v for k, v in one.sums.items() if k in (*MACRO, "confusion")}) for one in own]
        found[label] = {name: value for name, value in pool(own).items() if name != "patients"}
    named = {label_name(name, label): value for label, values in found.items() for name, value in values.items()}
    return means_over_labels(list(found.values())) | named


def better(task_name: str, available: Collection[str] | None = None) -> Goal:
    """The metric that chooses the best model of a task, and whether more or less of it is better.

    available: metrics that every candidate has; the first goal among them is taken, the last one if there is none.
    None takes the first goal: Dice for a segmentation; for classes and labels AUC (of labels the mean), with the mean
    of the sites' AUCs and then the Brier score to fall back on; the c-index for survival, with the mean of the sites'.
    Raises RecipeError for an unknown task.

    >>> better("classification", {"auc_site_mean", "brier"})
    ('auc_site_mean', 'max')
    """
    goals = lookup(_GOALS, task_name, "task")
    return next((goal for goal in goals if available is None or goal[0] in available), goals[-1])


def _moments(key: str, values: list[float]) -> tuple[float, ...]:
    if not all(math.isfinite(value) for value in values):
        raise DataError(f"A patient's value of '{key}' is not finite.")
    return float(len(values)), math.fsum(values), math.fsum(value * value for value in values)


def _check_labels(metrics: SiteMetrics, labels: Mapping[str, SiteMetrics]) -> None:
    names = {label_name(name, label) for label, one in labels.items() for name in one.sums}
    if set(metrics.sums) - names:
        raise ReplyError("A record of labels holds sums of none.")
    for one in labels.values():
        if not 1 <= one.patients <= metrics.patients:
            raise ReplyError(f"A label is known for {one.patients} of {metrics.patients} patients.")
        check_metrics(one, classes=2)


def _check_counts(key: str, numbers: Sequence[float], patients: int) -> None:
    if any(number < 0 or number != int(number) for number in numbers) or math.fsum(numbers) != patients:
        raise ReplyError(f"The counts of '{key}' are not those of {patients} patients.")


def _check_moments(key: str, numbers: Sequence[float], patients: int) -> None:
    if len(numbers) != 3:
        raise ReplyError(f"The sums of '{key}' must be number, sum and sum of squares.")
    n, total, squares = numbers
    if n != int(n) or not 0 <= n <= patients:
        raise ReplyError(f"'{key}' can't be defined for {n:g} of {patients} patients.")
    # Cauchy–Schwarz: (Σx)² ≤ n·Σx², up to rounding
    if squares < 0 or total * total > n * squares * (1 + 1e-9):
        raise ReplyError(f"No {n:g} values have the sums of '{key}'.")


def _pooled_balanced_accuracy(matrices: list[tuple[float, ...]]) -> dict[str, float]:
    if len({len(matrix) for matrix in matrices}) > 1:
        raise ReplyError("Sites differ in the number of classes.")
    if not matrices:
        return {}
    counts = np.sum(matrices, axis=0).reshape(math.isqrt(len(matrices[0])), -1)
    patients = counts.sum(axis=1)
    return {"balanced_accuracy": float(np.mean(np.diag(counts) / patients))} if patients.all() else {}


def _pooled_auc(sites: Sequence[SiteMetrics]) -> dict[str, float]:
    keys = {frozenset(key for key in site.sums if key.startswith("scores_")) for site in sites}
    if len(keys) == 1 and next(iter(keys)):
        return _histogram_areas([site.sums for site in sites])
    known = [(site.patients, site.values["auc"]) for site in sites if "auc" in site.values]
    if not known:
        return {}
    return {"auc_site_mean": math.fsum(n * value for n, value in known) / sum(n for n, _ in known)}


def _histogram_areas(sums: Sequence[Mapping[str, tuple[float, ...]]]) -> dict[str, float]:
    """The mean area over classes of histograms that add up; empty without, or where an area is not defined."""
    areas = []
    for k in sorted({int(key.split("_")[1]) for one in sums for key in one if key.startswith("scores_")}):
        sides = [
            np.sum([one.get(f"scores_{k}_{side}", (0.0,) * BINS) for one in sums], axis=0)
            for side in ("negative", "positive")
        ]
        areas.append(histogram_auc(sides[0], sides[1])[0])
    value = math.fsum(areas) / len(areas) if areas else math.nan
    return {} if math.isnan(value) else {"auc": value}

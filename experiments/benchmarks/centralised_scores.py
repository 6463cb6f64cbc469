"""Each figure and curve of one label's scores in a report, beside that of the patients' own scores."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import centralised_figures as own
import numpy as np
from centralised_binning import Cells, Range, cells_of
from centralised_people import Comparison, FloatArray, Path, Scores
from centralised_resamples import Draws
from sklearn.metrics import average_precision_score, brier_score_loss, roc_auc_score

_GRID = np.linspace(0, 1, 51)


@dataclass(frozen=True)
class Expected:
    """A figure of patients. ends: of its interval, None has none. ranges: of value, low and high where binning changes
    them; a value's None: the report states it. ends_in: ranges of low and high, given that of the value. patients: in
    its denominator."""

    value: float
    ends: tuple[float, float] | None
    patients: int | None
    ranges: tuple[Range | None, Range | None, Range | None] = (None, None, None)
    binned: bool = False
    kind: str = "derived"
    ends_in: Callable[[Range], tuple[Range, Range]] | None = None


def figure(look: Comparison, path: Path, found: Expected, sites: int) -> None:
    """Every field of a figure of the report."""
    told = {name: look.left.get((*path, name)) for name in ("value", "lowest", "highest", "widest_low", "widest_high")}
    ends = (math.nan, math.nan) if found.ends is None else found.ends
    spans = found.ranges[1:]
    if found.ends_in is not None and told["value"] is not None and told["lowest"] is None:
        # the report says that there is no range: the patients' own scores may have a slope without end
        for name, value in (("value", found.value), ("low", ends[0]), ("high", ends[1])):
            look.unbounded((*path, name), value)
        _rest(look, path, found, sites)
        return
    if found.ends_in is not None and told["value"] is not None:
        stated = tuple(told["value"] if told[end] is None else told[end] for end in ("lowest", "highest"))
        spans = found.ends_in((stated[0], stated[1]))
    if found.binned and found.ranges[0] is None:
        look.between((*path, "value"), found.value, told["lowest"], told["highest"], "stated")
    elif found.ranges[0] is not None:
        look.between((*path, "value"), found.value, *found.ranges[0], found.kind)
    else:
        look.exact((*path, "value"), found.value)
    for name, value, span in zip(("low", "high"), ends, spans, strict=True):
        if span is None:
            look.exact((*path, name), value)
        else:
            look.between((*path, name), value, *span, found.kind)
    _rest(look, path, found, sites)


def _rest(look: Comparison, path: Path, found: Expected, sites: int) -> None:
    """Ends of ranges, numbers of patients and sites, and the reason."""
    ends = (math.nan, math.nan) if found.ends is None else found.ends
    for name, below in (("lowest", True), ("highest", False)):
        look.side((*path, name), found.value, below=below)
    for name, value, below in (("widest_low", ends[0], True), ("widest_high", ends[1], False)):
        look.side((*path, name), value, below=below)
    look.exact((*path, "patients"), found.patients)
    look.exact((*path, "sites"), sites)
    look.words((*path, "reason"))


def share(count: int, patients: int) -> Expected:
    """A share of patients with Wilson's interval."""
    if not patients:
        return Expected(math.nan, None, patients)
    return Expected(count / patients, own.wilson(count, patients), patients)


def score_figures(
    one: Scores, edges: Sequence[float], thresholds: Sequence[float], draws: Draws | None
) -> dict[str, Expected]:
    """All figures of scores by name, without label."""
    cells, truth, scores, n = cells_of(one, edges), one.truth, one.scores, len(one.truth)
    both = 0 < truth.sum() < n
    found = {"prevalence": share(int(truth.sum()), n)}
    found["auc"] = _area(one, cells) if both else Expected(math.nan, None, n)
    found["average_precision"] = Expected(math.nan, None, n)
    if truth.any():
        value = float(average_precision_score(truth, scores))
        limits = draws.precision(one, cells) if draws is not None else None
        found["average_precision"] = _resampled(value, limits, n)
    limits = draws.brier(one, cells) if draws is not None else None
    found["brier"] = _resampled(float(brier_score_loss(truth, scores, labels=[0, 1])), limits, n)
    found |= _calibration(one, cells) if both else {
        name: Expected(math.nan, None, n) for name in ("calibration_slope", "calibration_intercept")
    }  # fmt: skip
    for threshold in thresholds:
        found |= {f"{name}@{threshold:g}": figure for name, figure in _decisions(one, threshold).items()}
    return found


def _resampled(value: float, limits: tuple[FloatArray, Range, Range] | None, patients: int) -> Expected:
    if limits is None or limits[0][0] == limits[0][1]:  # nothing varies, so there is no interval
        return Expected(value, None, patients, binned=True)
    return Expected(value, tuple(limits[0]), patients, (None, *limits[1:]), binned=True, kind="resampled")


def _area(one: Scores, cells: Cells) -> Expected:
    area, error = own.delong(one.scores, one.truth)
    area = float(roc_auc_score(one.truth, one.scores))
    patients = len(one.truth) - int(one.truth.sum()), int(one.truth.sum())
    ends = own.auc_limits(area, error if math.isfinite(error) else 0.0, patients)
    return Expected(area, ends, sum(patients), (None, *cells.auc_ends()), binned=True)


def _calibration(one: Scores, cells: Cells) -> dict[str, Expected]:
    n = len(one.truth)
    intercept, error = own.calibration_intercept(one.scores, one.truth)
    _, below, above = cells.intercept_ends()
    ends = intercept - own.Z * error, intercept + own.Z * error
    found = {"calibration_intercept": Expected(intercept, ends, n, (None, below, above), binned=True)}
    high, low_class = one.scores[one.truth == 1], one.scores[one.truth == 0]
    if max(high.min(), low_class.min()) > min(high.max(), low_class.max()):
        found["calibration_slope"] = Expected(math.nan, None, n, ends_in=cells.slope_ends)
        return found
    _, slope, error = own.calibration_slope(one.scores, one.truth)
    ends = slope - own.Z * error, slope + own.Z * error
    found["calibration_slope"] = Expected(slope, ends, n, binned=True, ends_in=cells.slope_ends)
    return found


def _decisions(one: Scores, threshold: float) -> dict[str, Expected]:
    tp, fp, fn, tn = counts_at(one, threshold)
    n = tp + fp + fn + tn
    found = {
        "sensitivity": share(tp, tp + fn),
        "specificity": share(tn, tn + fp),
        "ppv": share(tp, tp + fp),
        "npv": share(tn, tn + fn),
        "accuracy": share(tp + tn, n),
    }
    jaccard = share(tp, tp + fp + fn)
    ends = None if jaccard.ends is None else tuple(2 * limit / (1 + limit) for limit in jaccard.ends)
    found["f1"] = Expected(2 * tp / (2 * tp + fp + fn) if tp + fp + fn else math.nan, ends, tp + fp + fn)
    found["balanced_accuracy"] = Expected(math.nan, None, n)
    found["lr_positive"] = found["lr_negative"] = Expected(math.nan, None, n)
    if tp + fn and tn + fp:
        shares = [(s.value, *(s.ends or (0.0, 1.0))) for s in (found["sensitivity"], found["specificity"])]
        value, *limits = own.newcombe_mean(shares)
        found["balanced_accuracy"] = Expected(value, (limits[0], limits[1]), n)
        rows = {"lr_positive": (tp, tp + fn, fp, tn + fp), "lr_negative": (fn, tp + fn, tn, tn + fp)}
        for name, (a, of_a, b, of_b) in rows.items():
            ratio = (a / of_a) / (b / of_b) if b else math.nan
            found[name] = Expected(ratio, own.ratio_limits(a, of_a, b, of_b) if b else None, n)
    return found


def counts_at(one: Scores, threshold: float) -> tuple[int, int, int, int]:
    """True positives, false positives, false negatives, true negatives of "score ≥ threshold"."""
    called, has = one.scores >= threshold, one.truth == 1
    return tuple(int((a & b).sum()) for a, b in ((called, has), (called, ~has), (~called, has), (~called, ~has)))  # type: ignore[return-value]


# --- curves -----------------------------------------------------------------------------------------------------------


def curves(
    look: Comparison, path: Path, one: Scores, edges: Sequence[float], draws: tuple[Draws | None, Draws | None]
) -> None:
    """Every point and band of a label's curves. draws: with the numbers of each class fixed, and not."""
    fixed, free = draws
    cells, n = cells_of(one, edges), len(one.truth)
    look.words((*path, "label"))
    for k, edge in enumerate(edges):
        look.exact((*path, "edges", str(k)), edge)
    for name, row in (("without", cells.counts[0]), ("with_disease", cells.counts[1])):
        for k, count in enumerate(row):
            look.exact((*path, name, str(k)), int(count))
    has = one.truth == 1
    for k, edge in enumerate(reversed(edges)):
        called = one.scores >= edge if k else np.zeros(n, dtype=bool)
        look.exact((*path, "roc", str(k), "threshold"), edge)
        look.exact((*path, "roc", str(k), "false_positive_rate"), _ratio((called & ~has).sum(), (~has).sum()))
        look.exact((*path, "roc", str(k), "sensitivity"), _ratio((called & has).sum(), has.sum()))
        if k:
            look.exact((*path, "pr", str(k - 1), "threshold"), edge)
            look.exact((*path, "pr", str(k - 1), "recall"), _ratio((called & has).sum(), has.sum()))
            look.exact((*path, "pr", str(k - 1), "precision"), _ratio((called & has).sum(), called.sum()))
    bands = [("roc_band", _GRID, fixed.roc_band(one, cells) if fixed is not None and 0 < has.sum() < n else None)]
    bands += [("pr_band", _GRID[1:], free.precision_band(one, cells) if free is not None and has.any() else None)]
    for name, grid, limits in bands:
        if limits is None:
            look.exact((*path, name), ())
            continue
        for k, x in enumerate(grid):
            look.exact((*path, name, str(k), "x"), float(x))
            for row, end in enumerate(("low", "high")):
                ranges = (float(limits[1][row, k]), float(limits[2][row, k]))
                look.between((*path, name, str(k), end), float(limits[0][row, k]), *ranges, "resampled")
    _groups(look, path, one, cells)
    _benefits(look, path, one, edges, free)


def _ratio(count: Any, of: Any) -> float | None:
    return float(count) / float(of) if of else None


def _groups(look: Comparison, path: Path, one: Scores, cells: Cells) -> None:
    """Calibration in groups: tenths of the patients, by the bin in which the middle one of each bin's patients is."""
    total = cells.counts.sum(axis=0)
    middle = (np.cumsum(total) - total / 2) / total.sum()
    group = np.minimum((10 * middle).astype(int), 9)
    error = 0.0
    for k, number in enumerate(np.unique(group[total > 0])):
        bins = np.flatnonzero((group == number) & (total > 0))
        low, high = cells.edges[bins[0]], cells.edges[bins[-1] + 1]
        inside = (one.scores >= low) & ((one.scores < high) | (high == 1.0))
        mean, at = float(one.scores[inside].mean()), (*path, "calibration", str(k))
        look.exact((*at, "low"), float(low))
        look.exact((*at, "high"), float(high))
        look.exact((*at, "patients"), int(inside.sum()))
        ends = tuple(float(look.left[(*at, f"mean_score_{end}")]) for end in ("lowest", "highest"))
        look.between((*at, "mean_score"), mean, *ends, "stated")
        look.side((*at, "mean_score_lowest"), mean, below=True)
        look.side((*at, "mean_score_highest"), mean, below=False)
        figure(look, (*at, "observed"), share(int(one.truth[inside].sum()), int(inside.sum())), 1)
        error += inside.mean() * abs(one.truth[inside].mean() - mean)


def calibration_error(one: Scores, edges: Sequence[float]) -> Expected:
    """Σ n_g/n·|observed share − mean score| over the groups of the report."""
    cells = cells_of(one, edges)
    total = cells.counts.sum(axis=0)
    group = np.minimum((10 * (np.cumsum(total) - total / 2) / total.sum()).astype(int), 9)
    place = np.clip(np.searchsorted(cells.edges, one.scores, side="right") - 1, 0, len(total) - 1)
    error = 0.0
    for number in np.unique(group[place]):
        inside = group[place] == number
        error += inside.mean() * abs(one.truth[inside].mean() - one.scores[inside].mean())
    return Expected(error, None, len(one.truth), binned=True)


def _benefits(look: Comparison, path: Path, one: Scores, edges: Sequence[float], free: Draws | None) -> None:
    inside = [edge for edge in edges if 0 < edge < 1]
    if free is None:
        look.exact((*path, "decision"), ())
        return
    limits, n = free.benefit(one, inside), len(one.truth)
    for k, edge in enumerate(inside):
        odds, at = edge / (1 - edge), (*path, "decision", str(k))
        tp, fp, _, _ = counts_at(one, edge)
        look.exact((*at, "threshold"), edge)
        look.exact((*at, "model"), (tp - odds * fp) / n)
        look.exact((*at, "everyone"), (one.truth.sum() - odds * (n - one.truth.sum())) / n)
        look.exact((*at, "low"), float(limits[0, k]))
        look.exact((*at, "high"), float(limits[1, k]))


def threshold_counts(look: Comparison, path: Path, label: str, one: Scores, threshold: float) -> None:
    """Patients by truth and decision."""
    look.exact((*path, "label"), label)
    look.exact((*path, "threshold"), threshold)
    names = ("true_positives", "false_positives", "false_negatives", "true_negatives")
    for name, count in zip(names, counts_at(one, threshold), strict=True):
        look.exact((*path, name), count)


Figures = Mapping[str, Expected]

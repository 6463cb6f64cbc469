"""Groups of patients, and two models: each number of their differences beside that of the patients."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import centralised_figures as own
import numpy as np
from centralised_between import Point, near
from centralised_binning import Range, difference_range
from centralised_people import Comparison, FloatArray, Path, People, Scores
from centralised_scores import Expected
from scipy import stats

# --- groups of patients -----------------------------------------------------------------------------------------------


def group_difference(
    look: Comparison, path: Path, points: tuple[Point | None, Point | None], shares: tuple[Expected, Expected] | None
) -> Range | None:
    """A group less the reference. Returns the range of its p-value, None where it has none."""
    group, reference = points
    if group is None or reference is None:
        for name in ("difference", "low", "high", "p"):
            look.exact((*path, name), None)
        return None
    value, error = group.value - reference.value, math.hypot(group.error, reference.error)
    span = difference_range(group.values, reference.values)
    errors = math.hypot(group.errors[0], reference.errors[0]), math.hypot(group.errors[1], reference.errors[1])
    p = 2 * float(stats.norm.sf(abs(value) / error))
    distances = (0.0 if span[0] <= 0 <= span[1] else min(map(abs, span))), max(map(abs, span))
    p_range = tuple(
        2 * float(stats.norm.sf(a / b)) for a, b in ((distances[1], errors[0] or 1e-300), (distances[0], errors[1]))
    )
    exact = group.exact and reference.exact
    if shares is not None:
        (a, ends_a), (b, ends_b) = ((one.value, one.ends or (0.0, 1.0)) for one in shares)
        ends = a - b - math.hypot(a - ends_a[0], ends_b[1] - b), a - b + math.hypot(ends_a[1] - a, b - ends_b[0])
        for name, one in (("difference", a - b), ("low", ends[0]), ("high", ends[1]), ("p", p)):
            look.exact((*path, name), one)
        return p, p
    ranges: dict[str, Range | None] = dict.fromkeys(("difference", "low", "high", "p"))
    if not exact:
        ranges = {
            "difference": span,
            "low": (span[0] - own.Z * errors[1], span[1] - own.Z * errors[0]),
            "high": (span[0] + own.Z * errors[0], span[1] + own.Z * errors[1]),
            "p": (p_range[0], p_range[1]),
        }
    for name, one in (("difference", value), ("low", value - own.Z * error), ("high", value + own.Z * error), ("p", p)):
        look.between((*path, name), one, *(ranges[name] or (None, None)), "derived" if ranges[name] else "exact")
    return (p, p) if exact else (p_range[0], p_range[1])


# --- two models -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Pair:
    """What two models' difference is by the patients. p: NaN has none."""

    difference: float
    ends: tuple[float, float] | None
    p: float
    sites: int
    patients: int | None = None
    counts: tuple[int, int, int, int] | None = None


def areas_pair(people: People, columns: int, task: Any, sites: int) -> Pair:
    """The hospitals' own differences of AUCs (DeLong) by inverse variance."""
    told = []
    for number in range(sites):
        here = people.at(number)
        first, second = (here.scores(model, columns, task) for model in (0, 1))
        if len(first.truth):
            told.append(own.delong_difference(first.scores, second.scores, first.truth))
    told = [one for one in told if math.isfinite(one[1])]
    usable = [(value, variance) for value, variance in told if variance >= 1e-300]
    if not usable:
        same = bool(told) and all(value == 0 for value, _ in told)
        return Pair(0.0 if same else math.nan, None, math.nan, len(told))
    values, variances = map(np.array, zip(*usable, strict=True))
    value, error = float(np.average(values, weights=1 / variances)), 1 / math.sqrt((1 / variances).sum())
    return Pair(
        value, (value - own.Z * error, value + own.Z * error), 2 * float(stats.norm.sf(abs(value) / error)), len(usable)
    )


def shares_pair(first: Scores, second: Scores, metric: str, threshold: float) -> Pair:
    """Shares of right decisions: Tango's interval and McNemar's mid-p. A report has accuracy of the hospitals that tell
    of both classes, and says so."""
    has = [first.truth == k for k in (0, 1)]
    both = np.isin(first.site, np.intersect1d(first.site[has[0]], first.site[has[1]]))
    members = {"accuracy": both, "sensitivity": has[1], "specificity": has[0]}[metric]
    right = [((one.scores >= threshold) == (one.truth == 1))[members] for one in (first, second)]
    cells = tuple(
        int((a & b).sum()) for a, b in (right, (right[0], ~right[1]), (~right[0], right[1]), (~right[0], ~right[1]))
    )
    n = sum(cells)
    sites = len(np.unique(first.site[members]))
    if not n:
        return Pair(math.nan, None, math.nan, sites)
    return Pair(
        (cells[1] - cells[2]) / n, own.tango(cells[1], cells[2], n), own.mid_p(cells[1], cells[2]), sites, n, cells
    )  # type: ignore[arg-type]


def means_pair(values: FloatArray, site: Any) -> Pair:
    """The mean difference of patients, stratified by hospital; p of the same Student's t."""
    known = ~np.isnan(values)
    values, site = values[known], site[known]
    sites, mean = len(np.unique(site)), float(values.mean()) if len(values) else math.nan
    if len(values) < 2:
        return Pair(mean, None, math.nan, sites)
    error, freedom = own.stratified(values, site)
    if not error:
        return Pair(mean, None, math.nan, sites)
    reach = float(stats.t.ppf(0.975, freedom)) * error
    return Pair(
        mean, (mean - reach, mean + reach), 2 * float(stats.t.sf(abs(mean) / error, freedom)), sites, len(values)
    )


def comparison(look: Comparison, path: Path, found: Pair, more: tuple[str, str, float | None]) -> None:
    """Every number of a comparison but its adjusted p. more: metric, figure, margin."""
    metric, key, margin = more
    better = "neither" if metric.startswith("volume") else "lower" if metric.startswith(("hd95", "brier")) else "higher"
    ends = (math.nan, math.nan) if found.ends is None else found.ends
    for name, value in (
        ("metric", metric),
        ("figure", key),
        ("better", better),
        ("sites", found.sites),
        ("margin", margin),
    ):
        look.exact((*path, name), value)
    for name, value in (("difference", found.difference), ("low", ends[0]), ("high", ends[1])):
        told = look.left[(*path, name)]
        slack = 1e-8 if told is not None else None
        look.between((*path, name), value, *((told - slack, told + slack) if slack else (None, None)), "exact")
    near(look, (*path, "p"), found.p)
    if found.counts is None:
        look.exact((*path, "counts"), None)
    else:
        for k, count in enumerate(found.counts):
            look.exact((*path, "counts", str(k)), count)
    look.exact((*path, "patients"), found.patients)
    outcome = None
    if margin is not None and found.ends is not None and better != "neither":
        low, high = found.ends if better == "higher" else (-found.ends[1], -found.ends[0])
        outcome = "shown" if low > -margin else "inferior_shown" if high < -margin else "not_shown"
    look.exact((*path, "outcome"), outcome)
    look.words((*path, "sentence"))
    look.words((*path, "reason"))

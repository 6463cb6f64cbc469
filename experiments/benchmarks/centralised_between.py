"""Hospitals at large, groups of patients, and two models: each number of a report beside that of the patients."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import centralised_figures as own
import numpy as np
from centralised_binning import Range, cells_of, difference_range
from centralised_people import Comparison, FloatArray, Path, People, Scores
from centralised_scores import Expected, counts_at
from scipy import special, stats


@dataclass(frozen=True)
class Point:
    """An estimate, its error, and where binning lets both lie. exact: binning changes nothing."""

    value: float
    error: float
    patients: int
    values: Range
    errors: Range

    @property
    def exact(self) -> bool:
        return self.values[0] == self.values[1]


def area_point(one: Scores, edges: Sequence[float]) -> Point | None:
    """An AUC; None without a class."""
    if not 0 < one.truth.sum() < len(one.truth):
        return None
    cells = cells_of(one, edges)
    value, error = own.between_points(one.scores, one.truth)
    values, errors = cells.auc_range(), cells.error_range()
    if not (values[0] > 0 and values[1] < 1 and errors[0] > 0):  # classes that do not overlap may be patched, or not
        values, errors = (0.0, 1.0), (0.0, math.inf)
    return Point(value, error, len(one.truth), values, errors)


def share_point(one: Scores, metric: str, threshold: float) -> Point | None:
    """A sensitivity or specificity; half a patient is counted on either side of 0 and 1."""
    tp, fp, fn, tn = counts_at(one, threshold)
    hit, missed = (tp, fn) if metric == "sensitivity" else (tn, fp)
    if not hit + missed:
        return None
    add = 0.0 if hit and missed else 0.5
    n = hit + missed + 2 * add
    value = (hit + add) / n
    error = math.sqrt(value * (1 - value) / n)
    return Point(value, error, hit + missed, (value, value), (error, error))


def mean_point(values: FloatArray, site: Any) -> Point | None:
    """A mean of patients at one hospital or several."""
    known = ~np.isnan(values)
    values, site = values[known], site[known]
    if len(values) < 2:
        return None
    if len(np.unique(site)) == 1:
        error = values.std(ddof=1) / math.sqrt(len(values))
    else:  # a report has it from its interval, so with Student's quantile over the normal one
        found, freedom = own.stratified(values, site)
        error = found * float(stats.t.ppf(0.975, freedom)) / own.Z
    value = float(values.mean())
    return Point(value, float(error), len(values), (value, value), (error, error)) if error > 0 else None


# --- hospitals at large -----------------------------------------------------------------------------------------------

_PLAIN = ("value", "low", "high", "prediction_low", "prediction_high")
_REST = ("tau", "tau_low", "tau_high", "i2", "i2_low", "i2_high", "q", "p_heterogeneity")


_OF_CHANCE = ("tau_low", "tau_high", "i2_low", "i2_high")
"""Not there where hospitals agree better than chance allows, which binning may decide."""


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def between(
    look: Comparison,
    path: Path,
    points: Mapping[str, Point | None],
    figures: Mapping[str, Expected],
    more: tuple[str, bool, bool],
) -> None:
    """A forest plot. figures: of each site that told, in order. more: the figure, whether on the logit scale, and
    whether limits are cut to 0 … 1."""
    key, logit, cut = more
    counted = {site: one for site, one in points.items() if one is not None and one.error > 0}
    look.exact((*path, "figure"), key)
    look.exact((*path, "scale"), "logit" if logit else "plain")
    look.exact((*path, "sites"), len(counted))
    look.words((*path, "reason"))
    known = {site: one.value for site, one in figures.items() if math.isfinite(one.value)}
    sign = -1 if key.split("@")[0].startswith(("hd95", "brier")) else 1
    worst = min(sorted(known), key=lambda site: sign * known[site]) if known else None
    told = look.left[(*path, "worst_site")]
    near = told in known and abs(known[told] - known[worst or told]) <= sum(
        _width(figures, s, points) for s in (told, worst)
    )
    look.between((*path, "worst_site"), told if near else worst, None, None, "derived")
    exact = all(one.exact for one in counted.values())
    found, ranges = _analysed(list(counted.values()), logit)
    for name in (*_PLAIN, *_REST):
        value = math.nan if found is None else getattr(found, name)
        span = ranges.get(name)
        if logit and name in _PLAIN:
            value = float(special.expit(value))
            span = None if span is None else (float(special.expit(span[0])), float(special.expit(span[1])))
        if cut and name in _PLAIN[1:] and math.isfinite(value):
            value = min(max(value, 0.0), 1.0)
        if (
            name in _OF_CHANCE
            and not exact
            and ranges.get("perhaps")
            and None in (look.left[(*path, name)], _finite(value))
        ):
            look.unbounded((*path, name), value)
        elif exact or span is None:
            _near(look, (*path, name), value)
        else:
            look.between((*path, name), value, *span, "derived")
    if not figures:
        look.exact((*path, "rows"), ())
    for k, (site, figure) in enumerate(figures.items()):
        at = (*path, "rows", str(k))
        look.exact((*at, "site"), site)
        look.exact((*at, "patients"), figure.patients)
        ends = (math.nan, math.nan) if figure.ends is None else figure.ends
        for name, value, span in zip(("value", "low", "high"), (figure.value, *ends), figure.ranges, strict=True):
            if name == "value" and figure.binned and points.get(site) is not None:
                span = points[site].values  # type: ignore[union-attr]
            look.between((*at, name), value, *(span or (None, None)), "derived" if span else "exact")
        weight = None
        if site in counted and found is not None:
            weight = found.weights[list(counted).index(site)]
        if weight is None or exact:
            _near(look, (*at, "weight"), weight)
        else:
            look.between((*at, "weight"), weight, *ranges["weights"][list(counted).index(site)], "derived")
        look.words((*at, "reason"))


def _width(figures: Mapping[str, Expected], site: str | None, points: Mapping[str, Point | None]) -> float:
    point = points.get(site or "")
    return 0.0 if point is None else point.values[1] - point.values[0]


def _near(look: Comparison, path: Path, value: float | None) -> None:
    """Equal up to where a search for the likeliest τ² ends."""
    told = look.left[path]
    slack = 2e-5 * max(1.0, abs(value)) if value is not None and math.isfinite(value) and told is not None else 0.0
    look.between(path, value, *((told - slack, told + slack) if slack else (None, None)), "exact")


def _analysed(points: Sequence[Point], logit: bool) -> tuple[own.Pooled | None, dict[str, Any]]:
    if not points:
        return None, {}
    y, s = np.array([one.value for one in points]), np.array([one.error for one in points])
    values, errors = np.array([one.values for one in points]).T, np.array([one.errors for one in points]).T
    if logit:
        slopes = (
            1 / (values * (1 - values)) if (values > 0).all() and (values < 1).all() else np.full_like(values, np.inf)
        )
        inside = (values[0] <= 0.5) & (values[1] >= 0.5)
        errors = np.stack([errors[0] * np.where(inside, 4.0, slopes.min(axis=0)), errors[1] * slopes.max(axis=0)])
        s, y, values = s / (y * (1 - y)), special.logit(y), special.logit(values)
    if len(points) == 1:
        half = own.Z * s[0]
        none = [math.nan] * 8
        alone = own.Pooled(y[0], y[0] - half, y[0] + half, math.nan, math.nan, *none[:6], 0.0, math.nan, (1.0,))
        span = (values[0][0], values[1][0])
        reach = own.Z * errors[:, 0]
        ends = {"low": (span[0] - reach[1], span[1] - reach[0]), "high": (span[0] + reach[0], span[1] + reach[1])}
        return alone, {"value": span, "weights": [(1.0, 1.0)], **ends}
    return own.random_effects(y, s), effects_ranges(values, errors)


def effects_ranges(y: FloatArray, s: FloatArray) -> dict[str, Any]:
    """Where the numbers of a meta-analysis lie if estimates lie anywhere in y[0] … y[1], errors in s[0] … s[1].

    On a grid of τ² the weights, the mean, the residuals and the derivative of the restricted likelihood have ranges (by
    interval arithmetic); the τ² at which that of the derivative holds 0 hold the likeliest one. Q is a least sum of
    squares over μ: at most what it is at one μ with the largest terms, at least the least sum of the smallest terms.
    """
    k = y.shape[1]
    everything = dict.fromkeys((*_PLAIN, *_REST), (-math.inf, math.inf)) | {"weights": [(0.0, 1.0)] * k}
    if not (np.isfinite(y).all() and np.isfinite(s).all() and (s > 0).all()):
        return everything
    top = 16 * (float(y[1].max() - y[0].min()) ** 2 + float(s[1].max() ** 2))
    taus = np.concatenate([[0.0], np.geomspace(1e-6 * top, top, 600)])[:, None]
    light, heavy = 1 / (s[1] ** 2 + taus), 1 / (s[0] ** 2 + taus)
    means = np.stack([_weighted(y[0], light, heavy, -1), _weighted(y[1], light, heavy, 1)], axis=1)
    low, high = means[:, :1], means[:, 1:]
    far = np.maximum(np.abs(y[1] - low), np.abs(high - y[0]))
    near = np.maximum(0.0, np.maximum(y[0] - high, low - y[1]))
    most = (heavy**2 * far**2).sum(1) - light.sum(1) + (heavy**2).sum(1) / light.sum(1)
    least = (light**2 * near**2).sum(1) - heavy.sum(1) + (light**2).sum(1) / heavy.sum(1)
    possible = np.flatnonzero((least <= 0) & (most >= 0))
    if least[0] <= 0:
        possible = np.union1d(possible, [0])
    if not len(possible):
        return everything
    first, last = max(int(possible[0]) - 1, 0), min(int(possible[-1]) + 1, len(taus) - 1)
    here = slice(first, last + 1)
    q_low, q_high = _cochran(y, light, heavy, means)
    factor = np.maximum(1.0, np.stack([(light * near**2).sum(1), q_high]) / (k - 1))[:, here]
    se = np.sqrt(factor[0] / heavy.sum(1)[here]), np.sqrt(factor[1] / light.sum(1)[here])
    t, ahead = float(stats.t.ppf(0.975, k - 1)), float(stats.t.ppf(0.975, k - 2)) if k > 2 else math.nan
    low, high, tau2 = means[here, 0], means[here, 1], taus[here, 0]
    found: dict[str, Any] = dict(everything)
    found["value"] = float(low.min()), float(high.max())
    for name, reach in (("", [t * one for one in se]), ("prediction_", [ahead * np.sqrt(tau2 + one**2) for one in se])):
        found[f"{name}low"] = float((low - reach[1]).min()), float((high - reach[0]).max())
        found[f"{name}high"] = float((low + reach[0]).min()), float((high + reach[1]).max())
    found["q"] = float(q_low[0]), float(q_high[0])
    found["p_heterogeneity"] = float(stats.chi2.sf(q_high[0], k - 1)), float(stats.chi2.sf(q_low[0], k - 1))
    found["perhaps"] = bool(q_low[0] <= stats.chi2.ppf(0.025, k - 1) <= q_high[0])
    typical = [
        (k - 1) * one[0].sum() / (other[0].sum() ** 2 - (other[0] ** 2).sum())
        for one, other in ((light, heavy), (heavy, light))
    ]
    spans = {"": (float(tau2[0]), float(tau2[-1]))}
    for name, chance in (("_low", 0.975), ("_high", 0.025)):
        level = float(stats.chi2.ppf(chance, k - 1))
        at = np.flatnonzero((q_low <= level) & (q_high >= level))
        if not len(at) or at[-1] == len(taus) - 1:
            spans[name] = (0.0, 0.0) if q_high[0] <= level else (0.0, math.inf)
        else:
            spans[name] = (0.0 if at[0] == 0 else float(taus[at[0] - 1, 0])), float(taus[at[-1] + 1, 0])
    for name, (a, b) in spans.items():
        found[f"tau{name}"] = math.sqrt(a), math.sqrt(b)
        found[f"i2{name}"] = a / (a + typical[1]), (1.0 if math.isinf(b) else b / (b + typical[0]))
    w = light[here], heavy[here]
    found["weights"] = [
        (
            float((w[0][:, i] / (w[0][:, i] + w[1].sum(1) - w[1][:, i])).min()),
            float((w[1][:, i] / (w[1][:, i] + w[0].sum(1) - w[0][:, i])).max()),
        )
        for i in range(k)
    ]
    return found


def _weighted(y: FloatArray, light: FloatArray, heavy: FloatArray, sign: int) -> FloatArray:
    """The largest (sign 1) or least weighted mean at each τ², weights anywhere in their ranges: heavy on one side."""
    order = np.argsort(sign * y)
    means = []
    for cut in range(len(y) + 1):
        w = np.concatenate([light[:, order[:cut]], heavy[:, order[cut:]]], axis=1)
        means.append(w @ y[order] / w.sum(axis=1))
    return np.asarray(np.max(means, axis=0) if sign > 0 else np.min(means, axis=0))


def _cochran(y: FloatArray, light: FloatArray, heavy: FloatArray, means: FloatArray) -> tuple[FloatArray, FloatArray]:
    """Least and most of Q at each τ²; the least sum over μ, which is convex, by thirds."""
    middle = means.mean(axis=1, keepdims=True)
    high = (heavy * np.maximum(np.abs(y[0] - middle), np.abs(y[1] - middle)) ** 2).sum(axis=1)

    def total(mu: FloatArray) -> FloatArray:
        return np.asarray((light * np.maximum(0.0, np.maximum(y[0] - mu, mu - y[1])) ** 2).sum(axis=1))

    left, right = np.full_like(middle, y.min()), np.full_like(middle, y.max())
    for _ in range(80):
        thirds = left + (right - left) / 3, right - (right - left) / 3
        lower = (total(thirds[0]) < total(thirds[1]))[:, None]
        left, right = np.where(lower, left, thirds[0]), np.where(lower, thirds[1], right)
    return np.maximum(0.0, total((left + right) / 2) - 1e-9), high


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
    """Shares of right decisions: Tango's interval and McNemar's mid-p."""
    members = {"accuracy": first.truth >= 0, "sensitivity": first.truth == 1, "specificity": first.truth == 0}[metric]
    right = [((one.scores >= threshold) == (one.truth == 1))[members] for one in (first, second)]
    cells = tuple(
        int((a & b).sum()) for a, b in (right, (right[0], ~right[1]), (~right[0], right[1]), (~right[0], ~right[1]))
    )
    n = sum(cells)
    sites = len(np.unique(first.site))
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
    _near(look, (*path, "p"), found.p)
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

"""Hospitals at large: each number of a forest plot beside that of the patients."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import centralised_figures as own
import numpy as np
from centralised_binning import Range, cells_of
from centralised_people import Comparison, FloatArray, Path, Scores
from centralised_scores import Expected, counts_at
from scipy import optimize, special, stats


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
    close = told in known and abs(known[told] - known[worst or told]) <= sum(
        _width(figures, s, points) for s in (told, worst)
    )
    look.between((*path, "worst_site"), told if close else worst, None, None, "derived")
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
            near(look, (*path, name), value)
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
            near(look, (*at, "weight"), weight)
        else:
            look.between((*at, "weight"), weight, *ranges["weights"][list(counted).index(site)], "derived")
        look.words((*at, "reason"))


def _width(figures: Mapping[str, Expected], site: str | None, points: Mapping[str, Point | None]) -> float:
    point = points.get(site or "")
    return 0.0 if point is None else point.values[1] - point.values[0]


def near(look: Comparison, path: Path, value: float | None) -> None:
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
    t = float(stats.t.ppf(0.975, k - 1))
    low, high, tau2 = means[here, 0], means[here, 1], taus[here, 0]
    found: dict[str, Any] = dict(everything)
    found["value"] = float(low.min()), float(high.max())
    reach = [t * one for one in se]
    found["low"] = float((low - reach[1]).min()), float((high - reach[0]).max())
    found["high"] = float((low + reach[0]).min()), float((high + reach[1]).max())
    if k > 2:
        lower, upper = prediction_ranges(y, s)
        found["prediction_low"] = min(lower[0], found["low"][0]), min(lower[1], found["low"][1])
        found["prediction_high"] = max(upper[0], found["high"][0]), max(upper[1], found["high"][1])
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


def prediction_ranges(y: FloatArray, s: FloatArray) -> tuple[Range, Range]:
    """Where the limits of a further hospital's figure lie, for estimates and errors as in `effects_ranges`.

    τ² at a quantile c of Q is above all τ² at which even the least Q exceeds c, and below all at which even the largest
    one does not. From there to there mean and spread have their ranges, and with them the distribution function: of a
    normal number it is least with the largest mean, and with the largest spread above it, the least one below.
    """
    top = float(y[1].max() - y[0].min()) ** 2 + float(s[1].max() ** 2)
    taus = np.concatenate([[0.0], np.geomspace(1e-6 * top, 1e7 * top, 2000)])[:, None]
    light, heavy = 1 / (s[1] ** 2 + taus), 1 / (s[0] ** 2 + taus)
    means = np.stack([_weighted(y[0], light, heavy, -1), _weighted(y[1], light, heavy, 1)], axis=1)
    least, most = _cochran(y, light, heavy, means)
    spreads = np.sqrt(taus + 1 / np.stack([heavy.sum(axis=1), light.sum(axis=1)], axis=1))
    mu, spread = [], []
    for level in stats.chi2.ppf(own.NODES, y.shape[1] - 1):
        above, below = np.flatnonzero(least > level), np.flatnonzero(most < level)
        if not len(below):
            return (-math.inf, math.inf), (-math.inf, math.inf)
        here = slice(int(above[-1]) if len(above) else 0, int(below[0]) + 1)
        mu.append((means[here, 0].min(), means[here, 1].max()))
        spread.append((spreads[here, 0].min(), spreads[here, 1].max()))
    (mu_low, mu_high), (s_low, s_high) = np.array(mu).T, np.array(spread).T

    def quantile(share: float, at: FloatArray, outer: FloatArray, inner: FloatArray) -> float:
        def beyond(x: float) -> float:
            return float(own.SHARES @ special.ndtr((x - at) / np.where(x > at, outer, inner))) - share

        ends = float((at - 40 * s_high).min()), float((at + 40 * s_high).max())
        return float(optimize.brentq(beyond, *ends, xtol=1e-12))

    lower, upper = (
        (quantile(share, mu_low, s_low, s_high), quantile(share, mu_high, s_high, s_low)) for share in (0.025, 0.975)
    )
    return lower, upper


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

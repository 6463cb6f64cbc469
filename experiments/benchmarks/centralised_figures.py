"""Figures of patients themselves, by textbook formulas in numpy, scipy and scikit-learn: nothing here is the product's.

Scores: shape (n,), probabilities. Truth: shape (n,), 0 or 1. Site: shape (n,), the number of each patient's hospital.
Intervals are at 95 %.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray
from scipy import optimize, special, stats
from sklearn.linear_model import LogisticRegression

FloatArray: TypeAlias = NDArray[np.float64]
IntArray: TypeAlias = NDArray[np.int64]
Limits: TypeAlias = tuple[float, float]

Z = float(stats.norm.ppf(0.975))
CLIPPED = 1e-6  # how far from 0 and 1 probabilities are on the logit scale at least

# --- shares and counts ------------------------------------------------------------------------------------------------


def wilson(count: int, patients: int) -> Limits:
    """Wilson's score interval of a share."""
    if not patients:
        return 0.0, 1.0
    share, extra = count / patients, Z * Z / patients
    centre, half = share + extra / 2, Z * math.sqrt(share * (1 - share) / patients + extra / (4 * patients))
    low, high = (centre - half) / (1 + extra), (centre + half) / (1 + extra)
    return (low if count else 0.0), (high if count < patients else 1.0)


def ratio_limits(a: int, n: int, b: int, m: int) -> Limits:
    """Simel, Samsa and Matchar's limits of (a/n)/(b/m); half a patient is added where a cell is empty."""
    if not n or not m or (not a and not b):
        return 0.0, math.inf
    add = 0.5 if not a or not b else 0.0
    p, q = (a + add) / (n + 2 * add), (b + add) / (m + 2 * add)
    width = Z * math.sqrt((1 - p) / (a + add) + (1 - q) / (b + add))
    middle = math.log(p / q)
    return (math.exp(middle - width) if a else 0.0), (math.exp(middle + width) if b else math.inf)


def newcombe_mean(shares: Sequence[tuple[float, float, float]]) -> tuple[float, float, float]:
    """The mean of independent shares (value, low, high), its limits by squares that are added (MOVER)."""
    value = sum(share for share, _, _ in shares) / len(shares)
    down = math.sqrt(sum((share - low) ** 2 for share, low, _ in shares)) / len(shares)
    up = math.sqrt(sum((high - share) ** 2 for share, _, high in shares)) / len(shares)
    return value, value - down, value + up


def poisson(count: int) -> Limits:
    """Garwood's limits of a Poisson count."""
    low = stats.chi2.ppf(0.025, 2 * count) / 2 if count else 0.0
    return float(low), float(stats.chi2.ppf(0.975, 2 * count + 2) / 2)


# --- ranks ------------------------------------------------------------------------------------------------------------


def placements(scores: FloatArray, truth: IntArray) -> tuple[FloatArray, FloatArray]:
    """DeLong's structural components of those with and without the disease, from mid-ranks."""
    high, low = scores[truth == 1], scores[truth == 0]
    together = stats.rankdata(np.concatenate([high, low]))
    of_high = (together[: len(high)] - stats.rankdata(high)) / max(len(low), 1)
    of_low = 1 - (together[len(high) :] - stats.rankdata(low)) / max(len(high), 1)
    return of_high, of_low


def delong(scores: FloatArray, truth: IntArray) -> tuple[float, float]:
    """AUC and its standard error, S₁₀/m + S₀₁/n; NaN where one is not defined."""
    of_high, of_low = placements(scores, truth)
    if min(len(of_high), len(of_low)) < 1:
        return math.nan, math.nan
    if min(len(of_high), len(of_low)) < 2:
        return float(of_high.mean()), math.nan
    return float(of_high.mean()), math.sqrt(of_high.var(ddof=1) / len(of_high) + of_low.var(ddof=1) / len(of_low))


def delong_difference(first: FloatArray, second: FloatArray, truth: IntArray) -> tuple[float, float]:
    """AUC of the first scores less that of the second, and its variance, with DeLong's covariance matrices."""
    (a_high, a_low), (b_high, b_low) = placements(first, truth), placements(second, truth)
    if min(len(a_high), len(a_low)) < 2:
        return math.nan, math.nan
    covariance = np.cov(a_high, b_high) / len(a_high) + np.cov(a_low, b_low) / len(a_low)
    variance = covariance[0, 0] + covariance[1, 1] - 2 * covariance[0, 1]
    return float(a_high.mean() - b_high.mean()), max(0.0, float(variance))


def hanley_mcneil(auc: float, positives: float, negatives: float) -> float:
    """Hanley and McNeil's standard error of an AUC."""
    q1, q2 = auc / (2 - auc), 2 * auc**2 / (1 + auc)
    variance = auc * (1 - auc) + (positives - 1) * (q1 - auc**2) + (negatives - 1) * (q2 - auc**2)
    return math.sqrt(max(0.0, variance) / (positives * negatives))


def auc_limits(auc: float, error: float, patients: tuple[int, int]) -> Limits:
    """DeLong's interval on the logit scale; without an error, Newcombe's method 5. patients: without and with."""
    if error > 1e-9 and 0 < auc < 1:
        width = Z * error / (auc * (1 - auc))
        return float(special.expit(special.logit(auc) - width)), float(special.expit(special.logit(auc) + width))
    each, scale = sum(patients) / 2, sum(patients) / 2 / math.sqrt(patients[0] * patients[1])

    def reach(area: float) -> float:
        return Z * scale * hanley_mcneil(area, each, each)

    low = optimize.brentq(lambda x: auc - x - reach(x), 0, min(auc, 1 - 1e-9)) if auc > 1e-9 else 0.0
    high = optimize.brentq(lambda x: x - auc - reach(x), max(auc, 1e-9), 1) if auc < 1 - 1e-9 else 1.0
    return float(low), float(high)


# --- probabilities ----------------------------------------------------------------------------------------------------


def logits(scores: FloatArray) -> FloatArray:
    """log(p/(1−p)) of probabilities at least 10⁻⁶ from 0 and 1."""
    return np.asarray(special.logit(np.clip(scores, CLIPPED, 1 - CLIPPED)))


def calibration_slope(scores: FloatArray, truth: IntArray) -> tuple[float, float, float]:
    """Intercept and slope of a logistic regression on the logits (scikit-learn), and the slope's Wald error."""
    x = logits(scores)
    fit = LogisticRegression(C=np.inf, tol=1e-12, max_iter=10_000, solver="newton-cholesky").fit(x[:, None], truth)
    a, b = float(fit.intercept_[0]), float(fit.coef_[0, 0])
    p = special.expit(a + b * x)
    information = np.stack([np.ones_like(x), x])
    covariance = np.linalg.inv(information @ (information * (p * (1 - p))).T)
    return a, b, math.sqrt(covariance[1, 1])


def calibration_intercept(scores: FloatArray, truth: IntArray) -> tuple[float, float]:
    """The intercept where the slope is 1, at which as many are predicted as diseased as are, and its Wald error."""
    x = logits(scores)
    found = float(optimize.brentq(lambda a: special.expit(a + x).sum() - truth.sum(), -60, 60, xtol=1e-13))
    p = special.expit(found + x)
    return found, 1 / math.sqrt((p * (1 - p)).sum())


# --- means ------------------------------------------------------------------------------------------------------------


def t_limits(values: FloatArray) -> Limits:
    """Student's interval of a mean."""
    low, high = stats.ttest_1samp(values, 0.0).confidence_interval(0.95)
    return float(low), float(high)


def stratified(values: FloatArray, site: IntArray) -> tuple[float, float]:
    """Standard error of the mean of patients in these hospitals, and Satterthwaite's degrees of freedom.

    Hospitals with one patient are put together, or to the smallest other one (collapsed strata).
    """
    groups = [values[site == k] for k in np.unique(site)]
    large = sorted((one for one in groups if len(one) > 1), key=lambda one: (len(one), one.sum()))
    single = [one for one in groups if len(one) == 1]
    if len(single) == 1 and large:
        large, single = [np.concatenate([large[0], single[0]]), *large[1:]], []
    strata = [*large, *([np.concatenate(single)] if single else [])]
    parts = [len(one) * one.var(ddof=1) / len(values) ** 2 for one in strata]
    spread = sum(part**2 / (len(one) - 1) for part, one in zip(parts, strata, strict=True))
    return math.sqrt(sum(parts)), (sum(parts) ** 2 / spread if spread > 0 else len(values) - 1)


def bland_altman(values: FloatArray) -> dict[str, tuple[float, float, float]]:
    """Bias and limits of agreement, each with its interval: Student's, and Carkeet's from the non-central t."""
    n, mean, spread = len(values), float(values.mean()), float(values.std(ddof=1))
    inner, outer = (spread * float(stats.nct.ppf(q, n - 1, math.sqrt(n) * Z)) / math.sqrt(n) for q in (0.025, 0.975))
    return {
        "bias": (mean, *t_limits(values)),
        "lower": (mean - Z * spread, mean - outer, mean - inner),
        "upper": (mean + Z * spread, mean + inner, mean + outer),
    }


def concordance(risk: FloatArray, time: FloatArray, event: IntArray) -> tuple[int, int, int, int]:
    """Harrell's pairs of one hospital, patient by patient: concordant, tied, comparable; and how many patients."""
    concordant = tied = pairs = 0
    for i in np.flatnonzero(event):
        for j in range(len(risk)):
            if time[j] > time[i] or (time[j] == time[i] and not event[j]):
                pairs += 1
                concordant += int(risk[i] > risk[j])
                tied += int(risk[i] == risk[j])
    return concordant, tied, pairs, len(risk)


# --- two models -------------------------------------------------------------------------------------------------------


def tango(b: int, c: int, n: int) -> Limits:
    """Tango's score interval of (b − c)/n: where |z(δ)| of the constrained likelihood is the normal quantile."""

    def z(delta: float) -> float:
        second = -b - c + (2 * n - b + c) * delta
        third = -c * delta * (1 - delta)
        share = (math.sqrt(max(0.0, second**2 - 8 * n * third)) - second) / (4 * n)
        variance = n * (2 * share + delta * (1 - delta))
        distance = b - c - n * delta
        return distance / math.sqrt(variance) if variance > 1e-300 else math.copysign(math.inf, distance)

    found, near = (b - c) / n, 1e-9
    low = -1.0 if z(-1 + 1e-15) < Z else float(optimize.brentq(lambda d: min(z(d), 1e9) - Z, -1 + 1e-15, found - near))
    high = 1.0 if z(1 - 1e-15) > -Z else float(optimize.brentq(lambda d: max(z(d), -1e9) + Z, found + near, 1 - 1e-15))
    return low, high


def mid_p(b: int, c: int) -> float:
    """McNemar's mid-p-value."""
    if b == c:
        return 1.0
    law = stats.binom(b + c, 0.5)
    return float(2 * law.cdf(min(b, c)) - law.pmf(min(b, c)))


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's adjusted p-values, in the order given."""
    order = np.argsort(p_values, kind="stable")
    stepped = np.maximum.accumulate([(len(p_values) - i) * p_values[k] for i, k in enumerate(order)])
    found = np.empty(len(p_values))
    found[order] = np.minimum(stepped, 1.0)
    return [float(one) for one in found]


# --- hospitals at large -----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Pooled:
    """A random-effects meta-analysis (REML, Hartung-Knapp with f ≥ 1, Q-profile, predictions averaged over the τ² that
    the estimates allow), on the scale of its estimates."""

    value: float
    low: float
    high: float
    prediction_low: float
    prediction_high: float
    tau: float
    tau_low: float
    tau_high: float
    i2: float
    i2_low: float
    i2_high: float
    q: float
    p_heterogeneity: float
    weights: tuple[float, ...]


def random_effects(y: FloatArray, error: FloatArray) -> Pooled:
    """REML by a search over τ², everything else from its formula. y, error: one a hospital, two or more."""
    v, k = error**2, len(y)

    def mean(tau2: float) -> float:
        return float(np.average(y, weights=1 / (v + tau2)))

    def cochran(tau2: float) -> float:
        return float((((y - mean(tau2)) ** 2) / (v + tau2)).sum())

    def deviance(tau2: float) -> float:
        w = 1 / (v + tau2)
        return float(np.log(v + tau2).sum() + math.log(w.sum()) + cochran(tau2))

    top = 4 * (float(np.ptp(y)) ** 2 + float(v.max()))
    grid = np.concatenate([[0.0], np.geomspace(1e-9 * top, top, 400)])
    best = int(np.argmin([deviance(one) for one in grid]))
    ends = grid[max(best - 1, 0)], grid[min(best + 1, 400)]
    refined = optimize.minimize_scalar(deviance, bounds=ends, method="bounded", options={"xatol": 1e-14 * top})
    tau2 = min((0.0, float(refined.x)), key=deviance)

    def profile(chance: float) -> float:
        level = float(stats.chi2.ppf(chance, k - 1))
        if cochran(0.0) <= level:
            return 0.0
        return float(optimize.brentq(lambda one: cochran(one) - level, 0.0, 1e6 * top, xtol=1e-16, rtol=1e-12))

    none = cochran(0.0) < stats.chi2.ppf(0.025, k - 1)
    tau2_low, tau2_high = (math.nan, math.nan) if none else (profile(0.975), profile(0.025))
    w = 1 / (v + tau2)
    se = math.sqrt(max(1.0, cochran(tau2) / (k - 1)) / w.sum())
    reach = float(stats.t.ppf(0.975, k - 1)) * se
    ahead = (math.nan, math.nan)
    if k > 2:
        further = predicted(y, v)
        ahead = min(further[0], mean(tau2) - reach), max(further[1], mean(tau2) + reach)
    fixed = 1 / v
    typical = (k - 1) * fixed.sum() / (fixed.sum() ** 2 - (fixed**2).sum())
    return Pooled(
        mean(tau2), mean(tau2) - reach, mean(tau2) + reach, *ahead,
        *(math.sqrt(one) for one in (tau2, tau2_low, tau2_high)),
        *(one / (one + typical) for one in (tau2, tau2_low, tau2_high)),
        cochran(0.0), float(stats.chi2.sf(cochran(0.0), k - 1)), tuple(float(one) for one in w / w.sum()),
    )  # fmt: skip


NODES, SHARES = (both / 2 for both in np.polynomial.legendre.leggauss(64))
NODES = NODES + 0.5
"""Shares of the χ² distribution of Q at which τ² is looked for, and what each counts; the report says how many."""


def predicted(y: FloatArray, v: FloatArray) -> Limits:
    """Quantiles of the true figure of a further hospital, N(μ̂, τ² + 1/Σw) averaged over τ².

    At each share of the χ² distribution with k − 1 degrees of freedom τ² is where Cochran's Q is its quantile, 0 where
    Q is below it already; found by halving.
    """

    def weighted(tau2: FloatArray) -> tuple[FloatArray, FloatArray]:
        w = 1 / (v + tau2[:, None])
        return w @ y / w.sum(axis=1), w

    wanted = stats.chi2.ppf(NODES, len(y) - 1)
    low, high = np.zeros(len(wanted)), np.full(len(wanted), 1e9 * (float(np.ptp(y)) ** 2 + float(v.max())))
    for _ in range(150):
        middle = (low + high) / 2
        mu, w = weighted(middle)
        above = (w * (y - mu[:, None]) ** 2).sum(axis=1) > wanted
        low, high = np.where(above, middle, low), np.where(above, high, middle)
    mu, w = weighted(low)
    spread = np.sqrt(low + 1 / w.sum(axis=1))
    ends = float((mu - 40 * spread).min()), float((mu + 40 * spread).max())
    return tuple(
        float(optimize.brentq(lambda x, p=p: SHARES @ stats.norm.cdf((x - mu) / spread) - p, *ends, xtol=1e-12))
        for p in (0.025, 0.975)
    )  # type: ignore[return-value]


def between_points(scores: FloatArray, truth: IntArray) -> tuple[float, float]:
    """A hospital's AUC and error as it enters a meta-analysis: one more patient, in the middle, where there is none."""
    area, error = delong(scores, truth)
    if not error > 1e-9 or not 0 < area < 1:
        fewer = min(int(truth.sum()), len(truth) - int(truth.sum()))
        area = (area * fewer + 0.5) / (fewer + 1)
        error = hanley_mcneil(area, int(truth.sum()), len(truth) - int(truth.sum()))
    return area, error


# --- resamples --------------------------------------------------------------------------------------------------------


def weighted_precision(order_by: FloatArray, truth: IntArray, weights: FloatArray) -> FloatArray:
    """Average precision of patients counted so many times, shape (B, n) → (B,), as scikit-learn defines it."""
    order = np.argsort(-order_by, kind="stable")
    ends = np.flatnonzero(np.append(np.diff(order_by[order]) != 0, True))
    true = np.cumsum(weights[:, order] * truth[order], axis=1, dtype=np.float64)[:, ends]
    called = np.cumsum(weights[:, order], axis=1, dtype=np.float64)[:, ends]
    gained = np.diff(true, axis=1, prepend=0.0)
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.asarray(np.where(gained > 0, gained * true / called, 0.0).sum(axis=1) / true[:, -1])


def bca(drawn: FloatArray, estimate: float, without: FloatArray, site: IntArray) -> tuple[FloatArray, FloatArray]:
    """Efron's BCa limits, shape (2,), and their levels as quantiles. without: the figure less each patient.

    The acceleration is that of several strata (Davison and Hinkley 1997, section 5.3.2).
    """
    share = (np.mean(drawn < estimate) + np.mean(drawn <= estimate)) / 2
    half = 1 / (2 * len(drawn))
    z0 = stats.norm.ppf(min(max(share, half), 1 - half))
    moved = np.zeros(len(without))
    for one in np.unique(site):
        own = site == one
        moved[own] = (own.sum() - 1) / own.sum() * (without[own].mean() - without[own])
    squares = (moved**2).sum()
    a = (moved**3).sum() / (6 * squares**1.5) if squares > 0 else 0.0
    shifted = z0 + stats.norm.ppf([0.025, 0.975])
    levels = stats.norm.cdf(z0 + shifted / (1 - a * shifted))
    return np.quantile(drawn, levels), levels

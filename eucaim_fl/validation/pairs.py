"""Two models on the same patients: AUCs, shares of right answers and means compared, at a site and over sites."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import optimize, special

from eucaim_fl.errors import DataError
from eucaim_fl.seeding import generator
from eucaim_fl.validation.intervals import Interval, patient_bootstrap

__all__ = [
    "Estimate",
    "McNemar",
    "NonInferiority",
    "Outcome",
    "delong",
    "delong_pair",
    "holm",
    "holm_adjusted",
    "mcnemar",
    "non_inferior",
    "paired_bootstrap",
    "stratified",
]

FloatArray: TypeAlias = NDArray[np.float64]
IntArray: TypeAlias = NDArray[np.integer[Any]]
Outcome: TypeAlias = Literal["shown", "not_shown", "inferior_shown"]


@dataclass(frozen=True)
class Estimate:
    """A figure that is near to normal over repeated samples of patients, and its variance (NaN: not defined)."""

    value: float
    variance: float

    @property
    def standard_error(self) -> float:
        """√variance."""
        return math.sqrt(self.variance)

    def interval(self, level: float = 0.95) -> tuple[float, float]:
        """value ± z·√variance; not cut to the figure's range. Raises DataError if level is not in (0, 1)."""
        half = _normal(level) * self.standard_error
        return self.value - half, self.value + half

    def p_value(self) -> float:
        """Two-sided, of the value 0: 2Φ(−|value|/√variance). 1 for a value of 0; NaN where only the variance is 0."""
        if self.value == 0 and self.variance == 0:
            return 1.0
        return 2 * float(special.ndtr(-abs(self.value) / self.standard_error)) if self.variance > 0 else math.nan


def delong(scores: FloatArray, truth: IntArray) -> Estimate:
    """AUC and its variance: S₁₀/m + S₀₁/n, the variances of the m positives' and n negatives' placements.

    A positive's placement is the share of negatives that score lower, a negative's that of positives that score higher;
    a tie counts one half. Time O(N log N). The order of patients changes no bit.
    scores: shape (N,), higher for the positive; truth: shape (N,), 0 or 1.
    Returns NaN as value unless both classes occur, as variance with fewer than two patients of either. Where all
    positives score higher than all negatives the variance is 0, which says that it can't be estimated, not that the AUC
    is certain. Near 1 an interval on the logit scale is better (`meta_analysis.on_logit`).
    Raises DataError if lengths differ, a score is not finite, or a class is neither 0 nor 1.
    Source: DeLong, DeLong and Clarke-Pearson 1988; sorting instead of all pairs as in Sun and Xu 2014.

    >>> delong(np.array([1.0, 3.0, 2.0, 4.0]), np.array([0, 0, 1, 1]))
    Estimate(value=0.75, variance=0.125)
    """
    positives, negatives = _placements(scores, _classes(truth))
    return _two_samples(positives, negatives)


def delong_pair(a: FloatArray, b: FloatArray, truth: IntArray) -> Estimate:
    """AUC of a less AUC of b on the same patients, with the variance that allows for their correlation.

    Var = V(a) + V(b) − 2·Cov(a, b), computed as the variance of the differences of placements, so it is never negative,
    and swapping the models changes nothing but the sign. Shapes, ties and what is NaN: as in `delong`.
    Raises DataError if lengths differ, a score is not finite, or a class is neither 0 nor 1.
    Source: DeLong, DeLong and Clarke-Pearson 1988, section 3.

    >>> delong_pair(np.array([1.0, 3.0, 2.0, 4.0]), np.array([3.0, 1.0, 2.0, 4.0]), np.array([0, 0, 1, 1]))
    Estimate(value=0.0, variance=0.25)
    """
    classes = _classes(truth)
    of_a, of_b = _placements(a, classes), _placements(b, classes)
    return _two_samples(of_a[0] - of_b[0], of_a[1] - of_b[1])


@dataclass(frozen=True)
class McNemar:
    """Shares of patients whom two models judge rightly, compared: first − second, with its limits and p-values.

    variance: of the difference (Wald), for `stratified`; 0 where the models were never right on different patients.
    p_exact: McNemar's exact conditional test; p_mid: its mid-p version, which is less cautious.
    """

    difference: float
    low: float
    high: float
    variance: float
    p_exact: float
    p_mid: float


def mcnemar(both_right: int, only_first: int, only_second: int, both_wrong: int, *, level: float = 0.95) -> McNemar:
    """Difference of two shares of right answers on the same n patients, (b − c)/n with b, c = only_first, only_second.

    p_exact = 2·P(X ≤ min(b, c)), X ~ Binomial(b + c, ½), at most 1. p_mid = 2·(P(X < min) + ½P(X = min)), which is 1
    for b = c, where Fagerland et al. have 1 − ½P(X = b). The interval is Tango's: all differences that the score test,
    which for 0 is McNemar's without continuity correction, does not reject. It stays within −1 and 1, and has a width
    even where the models never differ; p_mid and it may disagree near the level.
    The four counts are numbers of patients.
    Raises DataError if a count is negative or not whole, there is no patient, or level is not in (0, 1).
    Source: McNemar 1947; Fagerland, Lydersen and Laake 2013 (mid-p); Tango 1998 (interval), whose test is the usual one
    of non-inferiority of paired shares; compared in Fagerland, Lydersen and Laake 2014.

    >>> found = mcnemar(1, 1, 7, 12)
    >>> round(found.low, 3), round(found.high, 3), round(found.p_exact, 4), round(found.p_mid, 4)
    (-0.517, -0.026, 0.0703, 0.0391)
    """
    counts = (both_right, only_first, only_second, both_wrong)
    if any(count < 0 or count != int(count) for count in counts):
        raise DataError("Numbers of patients must be whole and not negative.")
    n = sum(counts)
    if not n:
        raise DataError("There is no patient on whom the models could be compared.")
    z = _normal(level)
    fewer, discordant = min(only_first, only_second), only_first + only_second
    at_most = float(special.bdtr(fewer, discordant, 0.5)) if discordant else 1.0
    below = float(special.bdtr(fewer - 1, discordant, 0.5)) if fewer else 0.0
    return McNemar(
        difference=(only_first - only_second) / n,
        low=_tango_low(only_first, only_second, n, z),
        high=-_tango_low(only_second, only_first, n, z),
        variance=(discordant - (only_first - only_second) ** 2 / n) / n**2,
        p_exact=min(1.0, 2 * at_most),
        p_mid=1.0 if only_first == only_second else at_most + below,
    )


def paired_bootstrap(
    values_a: ArrayLike, values_b: ArrayLike, *, seed: int, samples: int = 2000, level: float = 0.95
) -> Interval:
    """Mean of a − b over patients with its percentile bootstrap interval, the same for the same seed.

    values_a, values_b: shape (n,), row i of both is patient i; a patient with a NaN in either is left out. Neither the
    order of patients nor which model is named first changes what is drawn: swapping them changes the sign, no more.
    For other statistics, or strata, see `intervals.paired_bootstrap`.
    Raises DataError if the shapes differ, no patient is left, a value is infinite, samples is not positive, or level is
    not in (0, 1).
    Source: Efron and Tibshirani 1993, section 13.3, on differences of pairs.

    >>> paired_bootstrap([0.5, 0.75], [0.25, 0.5], seed=0)
    Interval(estimate=0.25, low=0.25, high=0.25)
    """
    first, second = np.asarray(values_a, dtype=np.float64), np.asarray(values_b, dtype=np.float64)
    if first.shape != second.shape or first.ndim != 1:
        raise DataError("A paired comparison needs one value of each model for each patient.")
    if np.isinf(first).any() or np.isinf(second).any():
        raise DataError("A patient's value is infinite.")
    differences = first - second
    forward = np.sort(differences[~np.isnan(differences)])
    backward = np.sort(-forward)
    turned = forward.tolist() < backward.tolist()
    rng = generator(seed, "paired bootstrap")
    found = patient_bootstrap(backward if turned else forward, samples=samples, level=level, rng=rng)
    if np.array_equal(forward, backward):
        half = (found.high - found.low) / 2
        return Interval(0.0, 0.0 - half, half)
    return Interval(-found.estimate, -found.high, -found.low) if turned else found


@dataclass(frozen=True)
class NonInferiority:
    """Whether a model is not worse than another by a margin or more, and the same as a sentence."""

    outcome: Outcome
    sentence: str


def non_inferior(difference: float, low: float, high: float, margin: float) -> NonInferiority:
    """Whether new − reference is above −margin: "shown" if low > −margin, "inferior_shown" if high < −margin.

    Otherwise "not_shown": the patients leave open whether the new model is too much worse. A higher figure is better.
    low, high: limits of the difference; with two-sided 95 % limits the test is one-sided at 2.5 %. margin: the largest
    loss that would not matter, in the figure's unit, fixed before the data were seen.
    Raises DataError if a number is not finite, the limits don't enclose the difference, or the margin is not positive.
    Source: CONSORT extension for non-inferiority trials (Piaggio et al. 2012), figure 1.

    >>> print(non_inferior(-0.01, -0.03, 0.01, 0.05).sentence)
    Non-inferiority is shown: the new model is at worst 0.03 below the reference, less than the margin of 0.05.
    """
    if not all(map(math.isfinite, (difference, low, high, margin))):
        raise DataError("Difference, limits and margin must be finite.")
    if not low <= difference <= high:
        raise DataError("The limits do not enclose the difference.")
    if margin <= 0:
        raise DataError("The margin of non-inferiority must be above 0.")
    if low > -margin:
        worst = f"at worst {-low:.3g} below" if low < 0 else "at worst as good as" if low == 0 else "better than"
        rest = f", less than the margin of {margin:.3g}." if low < 0 else f"; the margin was {margin:.3g}."
        return NonInferiority("shown", f"Non-inferiority is shown: the new model is {worst} the reference{rest}")
    if high < -margin:
        text = f"at least {-high:.3g} below the reference, more than the margin of {margin:.3g}."
        return NonInferiority("inferior_shown", f"Inferiority is shown: the new model is {text}")
    text = f"the new model may be as much as {-low:.3g} below the reference; the margin is {margin:.3g}."
    return NonInferiority("not_shown", f"Non-inferiority is not shown: {text}")


def holm(p_values: Sequence[float], *, level: float = 0.05) -> tuple[bool, ...]:
    """Which of several hypotheses are rejected, such that any false rejection has a chance of at most level.

    p_values: one a hypothesis, in any order and however dependent; the answer has the same order.
    Raises DataError if a p-value is not in [0, 1], or level is not in (0, 1).
    Source: Holm 1979, A Simple Sequentially Rejective Multiple Test Procedure.

    >>> holm([0.01, 0.04, 0.03, 0.005])
    (True, False, False, True)
    """
    if not 0 < level < 1:
        raise DataError("The level must lie between 0 and 1.")
    return tuple(p <= level for p in holm_adjusted(p_values))


def holm_adjusted(p_values: Sequence[float]) -> tuple[float, ...]:
    """p-values to be held against the common level: the running maximum of (k − i + 1)·p₍ᵢ₎, at most 1.

    p_values: one a hypothesis, in any order; the answer has the same order.
    Raises DataError if a p-value is not in [0, 1].
    Source: Holm 1979; as adjusted values Wright 1992.

    >>> [round(p, 3) for p in holm_adjusted([0.01, 0.04, 0.03, 0.005])]
    [0.03, 0.06, 0.06, 0.02]
    """
    if not all(0 <= p <= 1 for p in p_values):
        raise DataError("A p-value must lie between 0 and 1.")
    adjusted = [0.0] * len(p_values)
    largest = 0.0
    for rank, index in enumerate(sorted(range(len(p_values)), key=p_values.__getitem__)):
        largest = max(largest, min(1.0, (len(p_values) - rank) * p_values[index]))
        adjusted[index] = largest
    return tuple(adjusted)


def stratified(differences: Sequence[float], variances: Sequence[float]) -> Estimate:
    """One difference from those of sites: Σdᵢ/vᵢ / Σ1/vᵢ, with variance 1 / Σ1/vᵢ; the order of sites changes no bit.

    It speaks of these sites only and takes the true difference as the same at each; `meta_analysis.random_effects` does
    not. differences, variances: one a site, in one unit and its square.
    Raises DataError if there is no site, lengths differ, a number is not finite, or a variance is not positive or too
    small to divide by.
    Source: Cochran 1954; the fixed-effect estimate of Hedges and Olkin 1985, chapter 6.

    >>> stratified([0.0, 1.0], [0.25, 0.25])
    Estimate(value=0.5, variance=0.125)
    """
    if len(differences) != len(variances) or not len(differences):
        raise DataError("A combination over sites needs at least one site, and one variance for each difference.")
    if not all(map(math.isfinite, (*differences, *variances))):
        raise DataError("A site's difference or variance is not finite.")
    smallest = min(variances)
    if smallest < 1e-300:
        raise DataError("A site's variance is not positive, so its difference would count alone.")
    weights = [smallest / variance for variance in variances]
    total = math.fsum(weights)
    value = math.fsum(weight * difference for weight, difference in zip(weights, differences, strict=True)) / total
    return Estimate(value, smallest / total)


def _normal(level: float) -> float:
    if not 0 < level < 1:
        raise DataError("The level of an interval must lie between 0 and 1.")
    return float(special.ndtri((1 + level) / 2))


def _classes(truth: IntArray) -> NDArray[np.bool_]:
    values = np.asarray(truth)
    if values.ndim != 1 or not np.isin(values, (0, 1)).all():
        raise DataError("Classes must be 0 or 1, one for each patient.")
    return np.asarray(values == 1)


def _placements(scores: FloatArray, positive: NDArray[np.bool_]) -> tuple[FloatArray, FloatArray]:
    """(positives', negatives') placements, shapes (m,) and (n,); NaN where the other class is missing."""
    values = np.asarray(scores, dtype=np.float64)
    if values.shape != positive.shape:
        raise DataError("A comparison needs one score for each patient.")
    if not np.isfinite(values).all():
        raise DataError("A score is not finite.")
    high, low = values[positive], values[~positive]
    return _share_below(high, low), 1 - _share_below(low, high)


def _share_below(values: FloatArray, others: FloatArray) -> FloatArray:
    if not len(others):
        return np.full(len(values), math.nan)
    ordered = np.sort(others)
    halves = np.searchsorted(ordered, values, "left") + np.searchsorted(ordered, values, "right")
    return np.asarray(halves / (2 * len(others)))


def _two_samples(positives: FloatArray, negatives: FloatArray) -> Estimate:
    """The mean of the placements and its variance over positives and negatives; exact sums, so in any order."""
    if not len(positives) or not len(negatives):
        return Estimate(math.nan, math.nan)
    spread = [_variance_of_mean(group) for group in (positives, negatives)]
    return Estimate(math.fsum(positives) / len(positives), math.fsum(spread))


def _variance_of_mean(values: FloatArray) -> float:
    if len(values) < 2:
        return math.nan
    mean = math.fsum(values) / len(values)
    return math.fsum((values - mean) ** 2) / (len(values) - 1) / len(values)


def _tango_low(b: int, c: int, n: int, z: float) -> float:
    """The difference below (b − c)/n whose score statistic is z."""

    def excess(difference: float) -> float:
        half = ((2 * n - b + c) * difference - b - c) / 2
        product = c * difference * (1 - difference)
        second = (math.sqrt(max(0.0, half * half + 2 * n * product)) - half) / (
            2 * n
        )  # share of c under the difference
        variance = n * (2 * second + difference * (1 - difference))
        return (b - c) - n * difference - z * math.sqrt(max(0.0, variance))

    estimate = (b - c) / n
    if estimate == -1 or excess(-1.0) <= 0:
        return -1.0
    for nudge in (1e-9, 1e-12, 1e-15):  # at the estimate itself the score's variance may be 0, and so its excess
        if excess(estimate - nudge) < 0:
            return float(optimize.brentq(excess, -1.0, estimate - nudge, xtol=1e-13))
    return estimate  # nearer than that

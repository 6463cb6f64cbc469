"""Scores counted in bins by class, added up over sites: ROC curve, AUC, its uncertainty, and what binning can change.

No score of a patient is known any more, only the bin. So each figure here is that of the binned scores (patients of a
bin are tied), and a bound says how far that of the pooled patients' own scores can lie from it. Counts are taken as
they are: what a site changed in them to tell less (multiples of a base, noise) is in no bound and in no interval here.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from itertools import pairwise
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import brentq
from scipy.special import expit, logit, ndtri

from eucaim_fl.errors import DataError
from eucaim_fl.validation.edges import edges_with
from eucaim_fl.validation.intervals import Interval
from eucaim_fl.validation.pooling import BINS, histogram_auc
from eucaim_fl.validation.spread import auc_standard_error

__all__ = [
    "HUNDREDTHS",
    "BinnedScores",
    "Bounded",
    "Functional",
    "auc_bounds",
    "auc_interval",
    "auc_of",
    "bin_scores",
    "delong_error",
    "edges_with",
    "pooled_scores",
    "roc_points",
    "widest_auc_interval",
]

FloatArray: TypeAlias = NDArray[np.float64]
Functional: TypeAlias = Callable[[FloatArray], FloatArray]
"""A figure of counts of those without and with the disease by bin, shape (…, 2, bins) → (…); NaN where not defined."""

HUNDREDTHS = (0.0, *((2 * k - 1) / 200 for k in range(1, BINS)), 1.0)
"""Edges of the score histograms of a classification, which round to hundredths (see `validation.pooling`). There a
score that lies on an edge to the last bit may be in either bin; no round threshold is an edge (see `edges_with`)."""

_LARGEST = 2**53
_CLOSE = 1e-9


@dataclass(frozen=True)
class Bounded:
    """A figure of binned scores, and the range in which that of the pooled patients' own scores lies."""

    value: float
    lowest: float
    highest: float


@dataclass(frozen=True)
class BinnedScores:
    """Patients by bin of the score: bin b holds edges[b] ≤ score < edges[b+1], the last one its upper edge too.

    edges: bins + 1 ascending numbers. negative, positive: `bins` counts of patients without and with the disease.
    sums: Σ score of each bin, of those without and of those with the disease; squares: Σ score² of all patients. Both
    may be missing; squares need sums. Sequences become tuples.
    Raises DataError unless edges are finite and ascend, lengths fit, counts are whole and not negative, and sums are
    those of scores within the bins.
    """

    edges: tuple[float, ...]
    negative: tuple[int, ...]
    positive: tuple[int, ...]
    sums: tuple[tuple[float, ...], tuple[float, ...]] | None = None
    squares: float | None = None

    def __post_init__(self) -> None:
        edges = _edges(tuple(self.edges))
        if not len(self.negative) == len(self.positive) == len(edges) - 1:
            raise DataError("There must be one count for each bin and class.")
        counts = self.counts
        whole = bool(((counts >= 0) & (counts == np.floor(counts))).all())
        if not whole or max(*self.negative, *self.positive) > _LARGEST:
            raise DataError("Counts of patients must be whole numbers, and not negative.")
        object.__setattr__(self, "edges", edges)
        for name in ("negative", "positive"):
            object.__setattr__(self, name, tuple(map(int, getattr(self, name))))
        if self.sums is not None:
            negative, positive = (tuple(map(float, side)) for side in self.sums)
            object.__setattr__(self, "sums", (negative, positive))
        self._check_sums()

    def _check_sums(self) -> None:
        if self.sums is None:
            if self.squares is not None:
                raise DataError("A sum of squares says nothing without sums.")
            return
        if not len(self.sums[0]) == len(self.sums[1]) == len(self.negative):
            raise DataError("There must be one sum for each bin and class.")
        counts, sums = self.counts, np.asarray(self.sums)
        slack = _CLOSE * (1 + counts * np.abs(self.edges).max())
        low, high = np.asarray(self.edges[:-1]), np.asarray(self.edges[1:])
        if not ((sums >= counts * low - slack) & (sums <= counts * high + slack)).all():
            raise DataError("A sum is not that of scores within its bin.")
        if self.squares is not None:
            least, most = self.square_bounds()
            room = _CLOSE * (1 + abs(most))
            if not least - room <= self.squares <= most + room:
                raise DataError("A sum of squares is not that of scores within their bins.")

    @cached_property
    def counts(self) -> FloatArray:
        """Counts of those without (row 0) and with the disease (row 1), shape (2, bins); read-only."""
        counts = np.asarray((self.negative, self.positive), dtype=np.float64)
        counts.setflags(write=False)
        return counts

    @cached_property
    def patients(self) -> tuple[int, int]:
        """Numbers of patients without and with the disease."""
        return sum(self.negative), sum(self.positive)

    @cached_property
    def means(self) -> FloatArray:
        """The mean score of each bin, shape (bins,): from sums, else (and for empty bins) the middle of the bin;
        read-only."""
        means = self._means()
        means.setflags(write=False)
        return means

    def _means(self) -> FloatArray:
        middle = np.asarray((np.asarray(self.edges[:-1]) + np.asarray(self.edges[1:])) / 2)
        if self.sums is None:
            return middle
        total = self.counts.sum(axis=0)
        means = np.where(total > 0, np.sum(self.sums, axis=0) / np.maximum(total, 1), middle)
        return np.asarray(np.clip(means, self.edges[:-1], self.edges[1:]))

    def square_bounds(self) -> tuple[float, float]:
        """The least and most that Σ score² of all patients can be, given counts and sums.

        In a bin [a, b] n scores with the sum s have at least s²/n (all alike) and at most (a + b)·s − n·a·b (all at the
        edges, or one of them not). Raises DataError without sums.
        """
        if self.sums is None:
            raise DataError("Without sums nothing is known of squares.")
        counts, sums = self.counts, np.asarray(self.sums)
        low, high = np.asarray(self.edges[:-1]), np.asarray(self.edges[1:])
        least = sums**2 / np.maximum(counts, 1)
        return float(least.sum()), float(((low + high) * sums - counts * low * high).sum())

    def bin_from(self, threshold: float) -> int:
        """The number of the first bin at or above a threshold, so that the bins from it on hold score ≥ threshold.

        Raises DataError unless the threshold is an edge below the last one: elsewhere patients can't be told apart.

        >>> BinnedScores((0, 0.5, 1), (3, 1), (0, 2)).bin_from(0.5)
        1
        """
        found = _place(self.edges, threshold)
        if found is None:
            raise DataError(
                f"The threshold {threshold:g} is no edge of a bin, so nobody knows on which side patients are.",
                fix="Name the threshold before scores are counted, so that it becomes an edge.",
            )
        return found


@lru_cache(maxsize=64)
def _edges(edges: tuple[float, ...]) -> tuple[float, ...]:
    """Edges of bins as plain numbers; the same ones are looked at once."""
    plain = tuple(map(float, edges))
    if len(plain) < 2 or not all(map(math.isfinite, plain)) or not all(a < b for a, b in pairwise(plain)):
        raise DataError("Edges of bins must be finite and ascend.")
    return plain


@lru_cache(maxsize=1024)
def _place(edges: tuple[float, ...], threshold: float) -> int | None:
    """The first edge but the last at a threshold; None if none is there."""
    found = np.flatnonzero(np.abs(np.asarray(edges[:-1]) - threshold) <= _CLOSE)
    return int(found[0]) if len(found) else None


def bin_scores(
    scores: FloatArray, truth: NDArray[np.integer[Any]], edges: Sequence[float], *, sums: bool = False
) -> BinnedScores:
    """Patients counted by bin and class, as a hospital does it.

    scores: shape (n,), within the edges. truth: shape (n,), 0 or 1. sums: whether sums and squares are made too.
    Raises DataError if shapes don't fit, a score lies outside the edges, a class is neither 0 nor 1, or edges do not
    ascend.
    """
    values, classes = np.asarray(scores, dtype=np.float64), np.asarray(truth)
    if values.ndim != 1 or values.shape != classes.shape or not np.isin(classes, (0, 1)).all():
        raise DataError("There must be one score and one class, 0 or 1, for each patient.")
    if len(edges) < 2 or not ((values >= edges[0]) & (values <= edges[-1])).all():
        raise DataError("A score lies outside the bins.")
    bins = len(edges) - 1
    place = np.clip(np.searchsorted(edges, values, side="right") - 1, 0, bins - 1)
    sides = [np.bincount(place[classes == k], minlength=bins) for k in (0, 1)]
    totals = [np.bincount(place[classes == k], weights=values[classes == k], minlength=bins) for k in (0, 1)]
    return BinnedScores(
        tuple(edges),
        tuple(sides[0].tolist()),
        tuple(sides[1].tolist()),
        (tuple(totals[0].tolist()), tuple(totals[1].tolist())) if sums else None,
        math.fsum(values**2) if sums else None,
    )


def pooled_scores(sites: Sequence[BinnedScores]) -> BinnedScores:
    """The counts of all sites' patients together; sums and squares only if every site has them.

    The order of sites changes no bit. Raises DataError without a site, or if edges differ.

    >>> edges = (0, 0.5, 1)
    >>> pooled_scores([BinnedScores(edges, (3, 1), (0, 2)), BinnedScores(edges, (2, 0), (1, 1))]).positive
    (1, 3)
    """
    if not sites:
        raise DataError("There is no site to add up.")
    if len({site.edges for site in sites}) > 1:
        raise DataError("Sites counted scores in different bins.")
    if len(sites) == 1:
        return sites[0]
    sums = [site.sums for site in sites if site.sums is not None]
    squares = [site.squares for site in sites if site.squares is not None]
    sides = [tuple(map(math.fsum, zip(*(one[k] for one in sums), strict=True))) for k in (0, 1)]
    negative, positive = np.sum([site.counts for site in sites], axis=0)  # exact, since counts are whole
    return BinnedScores(
        sites[0].edges,
        negative.tolist(),
        positive.tolist(),
        (sides[0], sides[1]) if len(sums) == len(sites) else None,
        math.fsum(squares) if len(squares) == len(sites) else None,
    )


def roc_points(scores: BinnedScores) -> FloatArray:
    """Points of the ROC curve, shape (bins + 1, 3): threshold, 1 − specificity, sensitivity, from (0, 0) to (1, 1).

    A row counts who scores at or above its threshold, an edge; the first row, with the last edge, counts nobody. The
    points lie on the curve of the scores themselves; only the way between them is not known. NaN without a class.
    """
    above = np.concatenate([np.zeros((2, 1)), np.cumsum(scores.counts[:, ::-1], axis=1)], axis=1)
    with np.errstate(invalid="ignore"):
        shares = above / above[:, -1:]
    return np.stack([np.asarray(scores.edges)[::-1], *shares], axis=1)


def auc_of(counts: FloatArray) -> FloatArray:
    """AUC of binned counts, shape (…, 2, bins) → (…); pairs of one bin count one half. NaN without a class.

    >>> float(auc_of(np.array([[2, 2, 0], [0, 2, 2]])))
    0.875
    """
    low, high = counts[..., 0, :], counts[..., 1, :]
    with np.errstate(invalid="ignore", divide="ignore"):
        below = (np.cumsum(low, axis=-1) - low / 2) / low.sum(axis=-1, keepdims=True)
        return np.asarray((below * high).sum(axis=-1) / high.sum(axis=-1))


def auc_bounds(scores: BinnedScores) -> Bounded:
    """AUC of the binned scores, and the range in which that of the scores themselves lies (see `histogram_auc`).

    All NaN without a class.

    >>> auc_bounds(BinnedScores((0, 0.3, 0.6, 1), (2, 2, 0), (0, 2, 2)))
    Bounded(value=0.875, lowest=0.75, highest=1.0)
    """
    value, error = histogram_auc(scores.negative, scores.positive)
    return Bounded(value, value - error, value + error)


def delong_error(scores: BinnedScores, sites: Sequence[BinnedScores] = ()) -> Bounded:
    """Standard error of the AUC by DeLong, DeLong and Clarke-Pearson (1988), from counts alone.

    A patient's structural component is the share of the other class on the right side, ties one half; it is the same
    for all patients of a bin and class, so counts give the variance S₁₀/n⁺ + S₀₁/n⁻ of the binned scores exactly.
    sites: those whose counts add up to `scores`. Then it is the error of these sites, none of them drawn by chance:
    each S/n becomes Σ_s (n_s/n)²·S_s/n_s, the variance of the same components within sites, as in a sample stratified
    by site (Cochran 1977, section 5.3). Without sites all patients are one sample, in which differences between sites
    count as chance; the error is then too large for these sites, and the more so the more they differ. Of a class of
    which a site has one patient, such sites are put together, or with the smallest other one (collapsed strata, section
    5A.12).
    The range is that of the scores themselves: binning moves the component of a patient of bin b by at most
    n_b/(2n) of the other class, a standard deviation by at most that of what was moved, and so the error by at most
    √(Σ_b n⁺_b·(n⁻_b/2n⁻)²/(n⁺(n⁺−1)) + Σ_b n⁻_b·(n⁺_b/2n⁺)²/(n⁻(n⁻−1))), over sites with (n_s/n)²/(n_s(n_s−1)) instead
    of 1/(n(n−1)). All NaN with fewer than two of a class.
    """
    low, high = scores.counts
    negatives, positives = low.sum(), high.sum()
    if min(negatives, positives) < 2:
        return Bounded(math.nan, math.nan, math.nan)
    of_positive = (np.cumsum(low) - low / 2) / negatives
    of_negative = 1 - (np.cumsum(high) - high / 2) / positives
    counts = np.stack([one.counts for one in sites]) if len(sites) else scores.counts[None]
    variance = moved = 0.0
    for strata, component, most in (
        (_strata(counts[:, 1]), of_positive, low / (2 * negatives)),
        (_strata(counts[:, 0]), of_negative, high / (2 * positives)),
    ):
        patients = strata.sum(axis=1)
        share = patients / (patients.sum() ** 2 * (patients - 1))
        apart = component - (strata @ component / patients)[:, None]
        variance += float(share @ (strata * apart**2).sum(axis=1))
        moved += float(share @ (strata @ most**2))
    error, room = math.sqrt(variance), math.sqrt(moved)
    return Bounded(error, max(0.0, error - room), error + room)


def _strata(counts: FloatArray) -> FloatArray:
    """Counts of one class by site, shape (sites, bins), so put together that each stratum has two patients or more."""
    if len(counts) == 1:
        return counts
    patients = counts.sum(axis=1)
    alone, large = counts[patients == 1], counts[patients > 1]
    large = large[np.lexsort((*large.T, large.sum(axis=1)))]
    if len(alone) > 1:
        return np.concatenate([large, alone.sum(axis=0, keepdims=True)])
    if len(alone):
        return np.concatenate([large[:1] + alone, large[1:]])
    return np.asarray(large)


def auc_interval(
    scores: BinnedScores, level: float = 0.95, sites: Sequence[BinnedScores] = (), *, error: Bounded | None = None
) -> Interval:
    """Confidence interval of the AUC of the binned scores.

    logit(A) ± z·SE/(A(1−A)) with DeLong's standard error, which keeps its level near 0 and 1 as well (Perme and
    Manevski 2019, Confidence intervals for the Mann-Whitney test). Where that error is zero or not defined (classes
    that do not overlap, one patient of a class), the limits θ solve |A − θ| = z·SE(θ) with Hanley and McNeil's error
    for (n⁻ + n⁺)/2 patients of each class, times (n⁻ + n⁺)/(2√(n⁻·n⁺)) (method 5 of Newcombe 2006, Confidence intervals
    for an effect size measure based on the Mann-Whitney statistic, part 2): such an interval has a width.
    sites: as in `delong_error`. With them it is about the AUC of all patients of these sites together, with as many of
    each class as each has; what a further site may have is for `meta_analysis`. error: their `delong_error`, if it is
    known already.
    Raises DataError without a class, or if level is not between 0 and 1.
    """
    z, area = _quantile(scores, level), float(auc_of(scores.counts))
    known = (error or delong_error(scores, sites)).value
    if known > _CLOSE and 0 < area < 1:
        return Interval(area, *_logit_limits(area, area, z * known))
    return Interval(area, *_score_limits(area, area, scores.patients, z))


def widest_auc_interval(
    scores: BinnedScores, level: float = 0.95, sites: Sequence[BinnedScores] = (), *, error: Bounded | None = None
) -> Interval:
    """Limits beyond which those of `auc_interval` can't lie for the pooled patients' own scores; the AUC is binned.

    Both AUC and standard error are taken anywhere in the ranges of `auc_bounds` and `delong_error`. On the way from the
    lowest to the highest AUC a limit turns once at the most, and away from the outside, so it is outermost at an end.
    Raises DataError as `auc_interval`.
    """
    z, area = _quantile(scores, level), auc_bounds(scores)
    if min(scores.patients) < 2:
        return Interval(area.value, *_score_limits(area.lowest, area.highest, scores.patients, z))
    if area.lowest == area.highest:
        return auc_interval(scores, level, sites, error=error)
    most = (error or delong_error(scores, sites)).highest
    return Interval(area.value, *_logit_limits(area.lowest, area.highest, z * most))


def _quantile(scores: BinnedScores, level: float) -> float:
    if not all(scores.patients):
        raise DataError("There is no AUC without patients of both classes.")
    if not 0 < level < 1:
        raise DataError("An interval needs a level between 0 and 1.")
    return float(ndtri((1 + level) / 2))


def _logit_limits(lowest: float, highest: float, reach: float) -> tuple[float, float]:
    """The outermost limits over AUCs of that range, in which z·SE is at most `reach`."""
    if lowest <= _CLOSE or highest >= 1 - _CLOSE:
        return 0.0, 1.0
    ends = [(logit(area), reach / (area * (1 - area))) for area in (lowest, highest)]
    return float(expit(min(x - w for x, w in ends))), float(expit(max(x + w for x, w in ends)))


def _score_limits(lowest: float, highest: float, patients: tuple[int, int], z: float) -> tuple[float, float]:
    each, scale = sum(patients) / 2, sum(patients) / 2 / math.sqrt(patients[0] * patients[1])

    def reach(area: float) -> float:
        return z * auc_standard_error(area, each, each) * scale

    inside = 1e-9  # at 0 and 1 themselves the error is zero, which solves the equation and says nothing
    low = brentq(lambda x: lowest - x - reach(x), 0, min(lowest, 1 - inside)) if lowest > inside else 0.0
    high = brentq(lambda x: x - highest - reach(x), max(highest, inside), 1) if highest < 1 - inside else 1.0
    return float(low), float(high)

"""How far a figure of binned scores can lie from that of the scores, from counts alone: what reports do not state.

Each range is derived anew here, not taken from the product. Cells: counts by class and bin, shape (2, bins).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from centralised_figures import CLIPPED, Z
from centralised_people import FloatArray, Scores
from scipy import optimize, special

Range = tuple[float, float]
_NONE: Range = (-math.inf, math.inf)


@dataclass(frozen=True)
class Cells:
    """Counts of scores by class and bin. edges: shape (bins + 1,)."""

    counts: FloatArray
    edges: FloatArray

    @property
    def spans(self) -> tuple[FloatArray, FloatArray]:
        """Logits between which the scores of each bin lie."""
        ends = special.logit(np.clip(self.edges, CLIPPED, 1 - CLIPPED))
        return np.asarray(ends[:-1]), np.asarray(ends[1:])

    def auc_range(self) -> Range:
        """Pairs within a bin may be ordered either way, all others are known."""
        low, high = self.counts
        below = np.concatenate([[0.0], np.cumsum(low)[:-1]])
        pairs = low.sum() * high.sum()
        if not pairs:
            return math.nan, math.nan
        return float(below @ high) / pairs, float((below + low) @ high) / pairs

    def error_range(self) -> Range:
        """DeLong's standard error: each component moves by at most half the share of the other class in its bin, and a
        standard deviation by at most that of what is added (triangle inequality of the Euclidean norm)."""
        low, high = self.counts
        n, m = low.sum(), high.sum()
        if min(n, m) < 2:
            return math.nan, math.nan
        of_high, of_low = (np.cumsum(low) - low / 2) / n, 1 - (np.cumsum(high) - high / 2) / m
        area = float(of_high @ high / m)
        each = m * (m - 1), n * (n - 1)
        error = math.sqrt(high @ (of_high - area) ** 2 / each[0] + low @ (of_low - area) ** 2 / each[1])
        room = math.sqrt(high @ (low / (2 * n)) ** 2 / each[0] + low @ (high / (2 * m)) ** 2 / each[1])
        return max(0.0, error - room), error + room

    def auc_ends(self) -> tuple[Range, Range]:
        """Where the limits of logit(A) ± z·SE/(A(1−A)) lie over both ranges: at their ends, or where a limit turns."""
        (low, high), (least, most) = self.auc_range(), self.error_range()
        if not (low > 0 and high < 1 and least > 0):
            return (0.0, 1.0), (0.0, 1.0)
        found: list[Range] = []
        for sign in (-1, 1):
            values = []
            for error in (least, most):
                reach = Z * error
                turns = [((1 + 2 * sign * reach) + way * math.sqrt(1 + 4 * reach**2)) / 2 for way in (-1, 1)]
                areas = [low, high, *(one for one in turns if low < one < high)]
                values += [float(special.expit(special.logit(a) + sign * reach / (a * (1 - a)))) for a in areas]
            found.append((min(values), max(values)))
        return found[0], found[1]

    def precision_range(self) -> Range:
        """Average precision: the diseased of a bin tied before all others of it, or one by one after them."""
        low, high = self.counts
        if not high.sum():
            return math.nan, math.nan
        least = most = 0.0
        true = false = 0
        for m, p in zip(low[::-1].astype(int), high[::-1].astype(int), strict=True):
            ranks = np.arange(1, p + 1)
            least += float(((true + ranks) / (true + ranks + false + m)).sum())
            most += p * (true + p) / max(true + p + false, 1)
            true, false = true + p, false + m
        return least / true, most / true

    def intercept_ends(self) -> tuple[Range, Range, Range]:
        """The intercept at slope 1, and its limits a ± z/√Σpq: scores at either edge; least and most pq in each bin."""
        patients = self.counts.sum(axis=0)
        low, high = self._level(self.spans[1]), self._level(self.spans[0])
        least, most = _information(low + self.spans[0], high + self.spans[1])
        errors = 1 / math.sqrt(float(most @ patients)), 1 / math.sqrt(float(least @ patients))
        return (low, high), (low - Z * errors[1], high - Z * errors[0]), (low + Z * errors[0], high + Z * errors[1])

    def _level(self, logits: FloatArray) -> float:
        """The a at which Σ 1/(1 + e^−(a + logit)) is the number of diseased patients."""
        patients, ends = self.counts.sum(axis=0), (-60 - float(logits.max()), 60 - float(logits.min()))
        return float(optimize.brentq(lambda a: special.expit(a + logits) @ patients - self.counts[1].sum(), *ends))

    def slope_ends(self, slope: Range) -> tuple[Range, Range]:
        """Limits b ± z·SE of the slope, given the range of b.

        The intercept beside it lies between those of all b·x at their largest and at their least. 1/SE² = min_c Σ pq·(x
        − c)²: the least and most of each term in its bin, and then the least over c.
        """
        if not all(map(math.isfinite, slope)):
            return _NONE, _NONE
        low, high = self.spans
        patients = self.counts.sum(axis=0)
        products = np.stack([b * x for b in slope for x in (low, high)])
        ends = products.min(axis=0), products.max(axis=0)
        least, most = _information(self._level(ends[1]) + ends[0], self._level(ends[0]) + ends[1])

        def spread(c: float, *, largest: bool) -> float:
            inside = (low <= c) & (c <= high)
            near = np.where(inside, 0.0, np.minimum(np.abs(low - c), np.abs(high - c)))
            far = np.maximum(np.abs(low - c), np.abs(high - c))
            return float(patients @ (most * far**2 if largest else least * near**2))

        ends = float(low.min()), float(high.max())
        found = [
            optimize.minimize_scalar(lambda c, way=way: spread(c, largest=way), bounds=ends, method="bounded").fun
            for way in (False, True)
        ]
        errors = 1 / math.sqrt(found[1]), 1 / math.sqrt(found[0]) if found[0] > 0 else math.inf
        return (slope[0] - Z * errors[1], slope[1] - Z * errors[0]), (
            slope[0] + Z * errors[0],
            slope[1] + Z * errors[1],
        )


def _information(low: FloatArray, high: FloatArray) -> tuple[FloatArray, FloatArray]:
    """Least and most p(1−p) where the logit lies between two numbers."""
    ends = [special.expit(one) * special.expit(-one) for one in (low, high)]
    return np.minimum(*ends), np.where((low <= 0) & (high >= 0), 0.25, np.maximum(*ends))


def cells_of(one: Scores, edges: Sequence[float]) -> Cells:
    """The counts of scores by class and bin, from the scores."""
    counts = [np.histogram(np.clip(one.scores[one.truth == k], 0, 1), bins=np.asarray(edges))[0] for k in (0, 1)]
    return Cells(np.asarray(counts, dtype=np.float64), np.asarray(edges, dtype=np.float64))


def difference_range(first: Range, second: Range) -> Range:
    """x − y, each somewhere in its range."""
    return first[0] - second[1], first[1] - second[0]

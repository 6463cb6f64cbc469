"""Intervals by resampling: the same draws of patients, with the patients' own scores in place of the bins'.

The product draws how many patients of each bin and class a resample has. Here each of these is one of the bin's
patients, drawn evenly: together that is the bootstrap of patients within hospitals. A figure of such a resample lies
between those that its counts allow, and so do quantiles over the resamples.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property

import centralised_figures as own
import numpy as np
from centralised_binning import Cells, Range
from centralised_people import FloatArray, Scores
from numpy.typing import NDArray

from eucaim_fl.errors import DataError
from eucaim_fl.validation import resampled
from eucaim_fl.validation.binned import BinnedScores
from eucaim_fl.validation.resampled import resample

_GRID = np.linspace(0, 1, 51)
_TAILS = (0.025, 0.975)


@dataclass(frozen=True)
class Draws:
    """Resamples of some patients. make: the generator from which the product draws. samples: how many."""

    one: Scores
    edges: tuple[float, ...]
    make: Callable[[], np.random.Generator]
    samples: int
    fixed: bool

    @cached_property
    def place(self) -> FloatArray:
        """The bin of each patient."""
        return np.clip(np.searchsorted(self.edges, self.one.scores, side="right") - 1, 0, len(self.edges) - 2)

    @cached_property
    def weights(self) -> FloatArray:
        """How often each patient is in each resample, shape (samples, n)."""
        rng, within, one, bins = self.make(), np.random.default_rng(1), self.one, len(self.edges) - 1
        found, drawn_by = np.zeros((self.samples, len(one.truth)), dtype=np.int32), []
        for here in self._strata():
            counts = [np.bincount(self.place[here & (one.truth == k)], minlength=bins) for k in (0, 1)]
            told = BinnedScores(self.edges, tuple(counts[0].tolist()), tuple(counts[1].tolist()))
            drawn = resample([told], fixed_classes=self.fixed, samples=self.samples, rng=rng).counts.astype(np.int64)
            drawn_by.append(drawn)
            for k in (0, 1):
                for bin_ in np.flatnonzero(counts[k]):
                    members = np.flatnonzero(here & (one.truth == k) & (self.place == bin_))
                    found[:, members] = within.multinomial(drawn[:, k, bin_], np.full(len(members), 1 / len(members)))
        if not (sum(drawn_by) == self._product()).all():
            raise DataError("The patients' draws are not the report's.", fix="Take at most 256 samples.")
        return found

    def _strata(self) -> list[NDArray[np.bool_]]:
        """Patients who are drawn together, as masks, in the order in which the product draws: first sites, or classes
        of sites, with few patients in a bin, whom it draws one by one, then the others."""
        one = self.one
        sites = [one.site == number for number in np.unique(one.site)]
        strata = [site & (one.truth == k) for site in sites for k in (0, 1)] if self.fixed else sites
        few, many = list[NDArray[np.bool_]](), list[NDArray[np.bool_]]()
        for here in strata:
            cells = len(np.unique(self.place[here] + len(self.edges) * one.truth[here]))
            if cells:
                (many if here.sum() > resampled._PATIENTS_A_CELL * cells else few).append(here)
        return [*few, *many]

    def _product(self) -> FloatArray:
        """The counts of all patients in each resample, as the report has them: shape (samples, 2, bins)."""
        one, told = self.one, []
        for number in np.unique(one.site):
            here = [(one.site == number) & (one.truth == k) for k in (0, 1)]
            counts = [np.bincount(self.place[rows], minlength=len(self.edges) - 1).tolist() for rows in here]
            told.append(BinnedScores(self.edges, tuple(counts[0]), tuple(counts[1])))
        return resample(told, fixed_classes=self.fixed, samples=self.samples, rng=self.make()).counts

    @cached_property
    def above(self) -> FloatArray:
        """Patients at or above each edge but the last, from the highest down: shape (samples, 2, bins)."""
        found = np.zeros((self.samples, 2, len(self.edges) - 1))
        for k in (0, 1):
            rows = self.one.truth == k
            columns = np.zeros((int(rows.sum()), len(self.edges) - 1))
            columns[np.arange(int(rows.sum())), self.place[rows]] = 1
            found[:, k] = self.weights[:, rows] @ columns
        return np.cumsum(found[..., ::-1], axis=-1)

    def precision(self, one: Scores, cells: Cells) -> tuple[FloatArray, Range, Range]:
        """BCa limits of the average precision, and where binning lets them lie."""
        drawn = own.weighted_precision(one.scores, one.truth, self.weights)
        binned = own.weighted_precision(self.place.astype(float), one.truth, self.weights)
        ends = np.array([Cells(_counts(row), cells.edges).precision_range() for row in self.above])
        return self._limits(drawn, binned, ends.T, lambda scores, w: own.weighted_precision(scores, one.truth, w))

    def brier(self, one: Scores, cells: Cells) -> tuple[FloatArray, Range, Range]:
        """BCa limits of the mean squared error, where the report's are those of the middles of bins."""
        middles = (cells.edges[:-1] + cells.edges[1:]) / 2
        scores = middles[self.place]
        sides = np.stack([cells.edges[:-1][self.place], cells.edges[1:][self.place]])
        errors = np.sort((sides - one.truth) ** 2, axis=0)

        def mean(values: FloatArray, weights: FloatArray) -> FloatArray:
            return np.asarray(weights @ ((values - one.truth) ** 2) / weights.sum(axis=1))

        totals = self.weights.sum(axis=1)
        ends = np.stack([self.weights @ row / totals for row in errors])
        return self._limits(mean(one.scores, self.weights), mean(scores, self.weights), ends, mean, scores)

    def _limits(
        self,
        drawn: FloatArray,
        binned: FloatArray,
        ends: FloatArray,
        figure: Callable[[FloatArray, FloatArray], FloatArray],
        coarse: FloatArray | None = None,
    ) -> tuple[FloatArray, Range, Range]:
        """The patients' own BCa limits, and their ranges: quantiles of the ends, at the levels of either's limits."""
        rows = np.ones((1, len(self.one.truth)))
        found, levels = [], []
        for scores, statistics in (
            (self.one.scores, drawn),
            (self.place.astype(float) if coarse is None else coarse, binned),
        ):
            without = np.concatenate(
                [
                    figure(scores, rows - np.eye(len(rows[0]))[part])
                    for part in np.array_split(np.arange(len(rows[0])), 1 + len(rows[0]) // 500)
                ]
            )
            estimate = float(figure(scores, rows)[0])
            if np.isnan(without).any():  # without one patient it is not defined, so there is no acceleration
                limits, own_levels = np.nanquantile(statistics, _TAILS), np.asarray(_TAILS)
            else:
                limits, own_levels = own.bca(statistics[~np.isnan(statistics)], estimate, without, self.one.site)
            found.append(limits)
            levels.append(own_levels)
        ranges = [
            (float(np.nanquantile(ends[0], min(one))), float(np.nanquantile(ends[1], max(one))))
            for one in zip(*levels, strict=True)
        ]
        return found[0], ranges[0], ranges[1]

    def roc_band(self, one: Scores, cells: Cells) -> tuple[FloatArray, FloatArray, FloatArray]:
        """Percentile limits of the sensitivity at each false positive rate, and where binning lets them lie."""
        order = np.argsort(-one.scores, kind="stable")
        ends = np.flatnonzero(np.append(np.diff(one.scores[order]) != 0, True))
        curves, low, high = (np.zeros((self.samples, len(_GRID))) for _ in range(3))
        for k, weights in enumerate(self.weights):
            rows = [np.cumsum(weights[order] * (one.truth[order] == c))[ends] for c in (0, 1)]
            curves[k] = _read(*rows)
            false, true = (np.append(0.0, side) / side[-1] for side in self.above[k])
            # between two thresholds the curve of the scores themselves stays in the rectangle of their points
            before = np.searchsorted(false, _GRID * (1 - 1e-12) - 1e-15, side="left") - 1
            low[k] = true[np.maximum(before, 0)]
            after = np.searchsorted(false, _GRID * (1 + 1e-12) + 1e-15, side="right")
            high[k] = true[np.minimum(after, len(true) - 1)]
        return tuple(np.quantile(one, _TAILS, axis=0) for one in (curves, low, high))  # type: ignore[return-value]

    def precision_band(self, one: Scores, cells: Cells) -> tuple[FloatArray, FloatArray, FloatArray]:
        """Percentile limits of the precision at the highest threshold that reaches each recall, and their ranges."""
        order = np.argsort(-one.scores, kind="stable")
        ends = np.flatnonzero(np.append(np.diff(one.scores[order]) != 0, True))
        curves, low, high = (np.full((self.samples, 50), np.nan) for _ in range(3))
        for k, weights in enumerate(self.weights):
            false, true = (np.cumsum(weights[order] * (one.truth[order] == c))[ends] for c in (0, 1))
            if not true[-1]:
                continue
            wanted = _GRID[1:] * true[-1] * (1 - 1e-12)
            place = np.searchsorted(true, wanted)
            curves[k] = true[place] / (true[place] + false[place])
            bins_false, bins_true = (np.append(0.0, side) for side in self.above[k])
            place = np.searchsorted(bins_true, wanted)
            # the bin in which the recall is reached: all of its others before, or none of them
            needed, most = np.ceil(wanted - 1e-9), bins_true[place]
            low[k] = needed / (needed + bins_false[place])
            high[k] = most / (most + bins_false[place - 1])
        return tuple(np.nanquantile(one, _TAILS, axis=0) for one in (curves, low, high))  # type: ignore[return-value]

    def benefit(self, one: Scores, thresholds: Sequence[float]) -> FloatArray:
        """Percentile limits of the net benefit, shape (2, thresholds); binning changes nothing at an edge."""
        odds = np.asarray(thresholds) / (1 - np.asarray(thresholds))
        called = np.stack([one.scores >= threshold for threshold in thresholds]).T
        tp = self.weights @ (called & (one.truth == 1)[:, None]).astype(float)
        fp = self.weights @ (called & (one.truth == 0)[:, None]).astype(float)
        return np.quantile((tp - odds * fp) / self.weights.sum(axis=1)[:, None], _TAILS, axis=0)


def _counts(above: FloatArray) -> FloatArray:
    """Counts by class and bin from those at or above each edge."""
    return np.diff(above, axis=-1, prepend=0.0)[..., ::-1]


def _read(false: FloatArray, true: FloatArray) -> FloatArray:
    """A ROC curve at the grid, along straight lines, and at the upper end where it is upright."""
    rates, found = (np.append(0.0, side) / side[-1] for side in (false, true))
    behind = np.searchsorted(rates, _GRID, side="right")
    before, behind = behind - 1, np.minimum(behind, len(rates) - 1)
    width = np.where(behind > before, rates[behind] - rates[before], 1.0)
    return np.asarray(found[before] + (_GRID - rates[before]) * (found[behind] - found[before]) / width)

"""Between which a calibration slope lies, wherever in their bins the scores are."""

from __future__ import annotations

import math

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.optimize import brentq
from scipy.special import expit, logit, wrightomega

from eucaim_fl.validation import slope_range
from eucaim_fl.validation.binned import bin_scores, edges_with
from eucaim_fl.validation.slope_range import slope_ranges

EDGES = logit(np.clip(edges_with([0.33], bins=20), 1e-6, 1 - 1e-6))
CASES = [(20, 1.0, 1.5), (150, 0.7, 1.5), (150, 0.05, 0.5), (150, -0.6, 1.5), (2000, 3.0, 3.0)]
"""Patients, slope and spread of logits."""


def counted(size: int, slope: float, spread: float, seed: int = 4) -> NDArray[np.float64]:
    """Counts by class and bin of patients whose true logit is slope · logit p − 0.3."""
    rng = np.random.default_rng(seed)
    logits = rng.normal(-0.2, spread, size)
    truth = (rng.random(size) < expit(slope * logits - 0.3)).astype(np.int64)
    return bin_scores(expit(logits), truth, edges_with([0.33], bins=20)).counts


def bound_by_patients(counts: NDArray[np.float64], b: float, sign: int) -> float:
    """The bound of sign · Σ (x − c)(y − p), bin by bin and point by point, b > 0."""
    low, high, total = EDGES[:-1], EDGES[1:], counts.sum(axis=0)
    middle = (low + high) / 2
    lowest, highest = (
        brentq(lambda a, z=b * edge: float(expit(a + z) @ total) - counts[1].sum(), -100 - 14 * b, 100 + 14 * b)
        for edge in (high, low)
    )
    worst = -math.inf
    for a in np.linspace(lowest, highest, 9):
        weights, found = total * expit(a + b * middle) * expit(-a - b * middle), []
        for c in weights @ middle / weights.sum() + np.linspace(-1.5, 1.5, 7):
            tops = c - (1 + wrightomega(a + b * c - 1)) / b, c + (1 + wrightomega(-1 - a - b * c)) / b
            value = 0.0
            for k, top in enumerate(tops):
                where = np.stack([low, high, np.clip(top, low, high)])
                terms = (c - where) * expit(a + b * where) if k == 0 else (where - c) * expit(-a - b * where)
                value += sign * float((terms.max(axis=0) if sign > 0 else terms.min(axis=0)) @ counts[k])
            ends = lowest + b * low, highest + b * high
            steepest = np.where((ends[0] <= 0) & (ends[1] >= 0), 0.25, np.max([expit(z) * expit(-z) for z in ends], 0))
            far = np.maximum(abs(low - c), abs(high - c))
            found.append(value + (highest - lowest) / 16 * float(far @ (total * steepest)))
        worst = max(worst, min(found))
    return worst


class TestBound:
    @pytest.mark.parametrize("case", CASES)
    @pytest.mark.parametrize("sign", [-1, 1])
    def test_it_is_the_sum_of_patients_largest_terms(self, case: tuple[int, float, float], sign: int) -> None:
        counts = np.stack([counted(*case), counted(*case, seed=5)])
        slopes = np.array([0.4, 1.7])
        found = slope_range._most(slope_range._Boxes(EDGES, counts), slopes, sign)
        assert found == pytest.approx([bound_by_patients(*each, sign) for each in zip(counts, slopes, strict=True)])

    @pytest.mark.parametrize("sign", [-1, 1])
    def test_of_turned_logits_the_derivative_is_turned(self, sign: int) -> None:
        counts = counted(*CASES[1])
        turned = counts[None, :, ::-1]
        boxes, mirrored = slope_range._Boxes(EDGES, counts[None]), slope_range._Boxes(-EDGES[::-1], turned)
        slope = np.array([0.8])
        assert slope_range._bounds(mirrored, -slope, sign) == pytest.approx(slope_range._bounds(boxes, slope, -sign))


class TestRange:
    def test_sites_together_have_the_ranges_that_each_has_alone(self) -> None:
        """More sites than are looked at together."""
        counts = np.stack([counted(*CASES[1], seed=seed) for seed in range(70)])
        slopes = np.linspace(0.4, 1.0, len(counts))
        found = slope_ranges(EDGES, counts, slopes)
        for site in (0, 20, 63, 64, 69):
            assert slope_ranges(EDGES, counts[[site]], slopes[[site]])[0] == pytest.approx(found[site], rel=1e-12)
        assert (found[:, 0] < slopes).all()
        assert (slopes < found[:, 1]).all()

    @pytest.mark.parametrize("case", CASES[1:])
    def test_beyond_its_ends_there_is_no_slope_and_a_little_inside_there_may_be_one(self, case) -> None:
        counts = counted(*case)
        slope = float(case[1])
        for end, sign in zip(slope_ranges(EDGES, counts[None], np.array([slope]))[0], (-1, 1), strict=True):
            boxes = slope_range._Boxes(EDGES, counts[None])
            apart = abs(end - slope)
            assert slope_range._bounds(boxes, np.array([end]), sign)[0] <= 0
            assert slope_range._bounds(boxes, np.array([end - sign * apart / 32]), sign)[0] > 0

    def test_what_no_score_could_contradict_has_no_end(self) -> None:
        counts = np.zeros((1, 2, len(EDGES) - 1))
        counts[0, 0, 3], counts[0, 1, 3:5] = 10, 10  # scores of the bin that both have may part them
        low, high = slope_ranges(EDGES, counts, np.array([2.0]))[0]
        assert math.isinf(high)
        assert low < 2

    def test_a_slope_that_is_none_has_no_range(self) -> None:
        found = slope_ranges(EDGES, np.stack([counted(*CASES[1])] * 2), np.array([math.nan, 0.7]))
        assert np.isnan(found[0]).all()
        assert np.isfinite(found[1]).all()

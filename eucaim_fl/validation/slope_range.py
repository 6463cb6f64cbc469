"""Between which a calibration slope lies, wherever in their bins the patients' scores are."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray
from scipy.special import logit, wrightomega

__all__ = ["slope_ranges"]

FloatArray: TypeAlias = NDArray[np.float64]

_STEPS, _START = 14, 4  # from 0.01 to 82, of 1 or of the slope; where most ranges end
_HALVINGS, _GUESSES = 6, 3
_INTERCEPTS = 9
_SHIFTS = np.linspace(-1.5, 1.5, 7)
_AT_ONCE = 64  # so that all of it stays near the processor


def slope_ranges(edges: FloatArray, counts: FloatArray, slopes: FloatArray) -> FloatArray:
    """The least and the largest slope that each site's own scores may have; infinite where no end is found.

    The slope is above b only if the derivative of the profile likelihood at b, which falls in b, is positive: Σ (x − c)
    (y − p), with x the logit of a score, p = 1/(1 + e^−(a + bx)), the a at which Σ (y − p) = 0, and any c, since the
    residuals sum to 0. a lies between those of all scores at an upper and at a lower edge. Given a and c each patient's
    term is largest at one point of the bin (`_most`), so the sum of these is a bound. Over a it is taken on a grid,
    with the most that it can change in between added; of some c the least bound counts. The ends are taken on the
    outer side of a 64th of the last of steps that double.

    edges: of the bins on the logit scale, in order, shape (bins + 1,). counts: patients of each site without and with
    the disease, shape (sites, 2, bins). slopes: which the binned scores have, shape (sites,). Returns shape (sites, 2),
    NaN for a slope that is NaN.
    """
    found = np.full((len(slopes), 2), math.nan)
    known = np.flatnonzero(~np.isnan(slopes))
    for first in range(0, len(known), _AT_ONCE):
        here = known[first : first + _AT_ONCE]
        boxes = _Boxes(edges, counts[here])
        found[here, 0], found[here, 1] = (_reach(boxes, slopes[here], sign) for sign in (-1, 1))
    return found


@dataclass(frozen=True)
class _Boxes:
    """Patients by the bins in which their logits lie; edges: shape (n + 1,). counts: shape (sites, 2, n)."""

    edges: FloatArray
    counts: FloatArray

    def of(self, sites: NDArray[np.intp]) -> _Boxes:
        """Some of the sites."""
        return _Boxes(self.edges, self.counts[sites])

    def mirrored(self) -> _Boxes:
        """With all logits' signs turned."""
        return _Boxes(-self.edges[::-1], self.counts[:, :, ::-1])


def _reach(boxes: _Boxes, slopes: FloatArray, sign: int) -> FloatArray:
    """The end of each slope's range on one side: of steps out that double, then of 64 even parts of the last one."""
    steps = 0.01 * np.maximum(1.0, np.abs(slopes))[:, None] * 2.0 ** np.arange(_STEPS)
    coarse = np.concatenate([slopes[:, None], slopes[:, None] + sign * steps], axis=1)
    first, bounds = _first_beyond(boxes, coarse, sign, np.full((len(slopes), 2), math.nan), _START)
    found, here = np.full_like(slopes, sign * math.inf), np.flatnonzero(first <= _STEPS)
    fine = np.empty((len(here), 2**_HALVINGS + 1))
    fine[:, 0], fine[:, -1] = coarse[here, first[here] - 1], coarse[here, first[here]]
    for part in 2 ** np.arange(_HALVINGS)[::-1]:
        fine[:, part :: 2 * part] = (fine[:, : -part : 2 * part] + fine[:, 2 * part :: 2 * part]) / 2
    first, _ = _first_beyond(boxes.of(here), fine[:, :-1], sign, bounds[here])
    found[here] = fine[np.arange(len(here)), first]
    return found


def _first_beyond(
    boxes: _Boxes, slopes: FloatArray, sign: int, bounds: FloatArray, start: int | None = None
) -> tuple[NDArray[np.intp], FloatArray]:
    """Which of slopes further and further out, shape (sites, n), is the first that no scores have; n if there is none.

    That some have the very first one is taken for granted. bounds: `_most` there and behind the last one, shape (sites,
    2), NaN where not known; those at both sides of what is found are returned, too. Where they are known they say where
    to look, as if they were a straight line. start: where to look at first.
    """
    inner, outer, bounds = np.zeros(len(slopes), dtype=np.intp), np.full(len(slopes), slopes.shape[1]), bounds.copy()
    times = 0
    while len(active := np.flatnonzero(outer - inner > 1)):
        between, (near, far) = (outer - inner)[active], bounds[active].T
        guess = np.where(np.isnan(near), between - 1, between * near / (near - far))
        if times > _GUESSES:
            guess = between / 2
        guess = np.where(np.isnan(far), 1, guess)  # much further out the bound may be a worse one
        tried = inner[active] + np.clip(np.rint(np.nan_to_num(guess)), 1, between - 1).astype(np.intp)
        if not times and start is not None:
            tried[:] = start
        bound = _bounds(boxes.of(active), slopes[active, tried], sign)
        beyond = bound <= 0
        outer[active[beyond]], inner[active[~beyond]] = tried[beyond], tried[~beyond]
        bounds[active, beyond.astype(np.intp)] = bound
        times += 1
    return outer, bounds


def _bounds(boxes: _Boxes, slopes: FloatArray, sign: int) -> FloatArray:
    """`_most` at slopes of either sign: not above 0 where no scores have such a slope, or one further out."""
    found = np.empty(len(slopes))
    for turned in (False, True):  # for a negative one all signs of logits are turned, and with them the derivative's
        here = np.flatnonzero((slopes > 0) != turned)
        if len(here):
            part = boxes.of(here)
            b = np.maximum(np.abs(slopes[here]), 1e-9)
            found[here] = _most(part.mirrored() if turned else part, b, -sign if turned else sign)
    return found


def _most(boxes: _Boxes, b: FloatArray, sign: int) -> FloatArray:
    """A bound of sign · Σ (x − c)(y − p) over all places of the scores, b > 0, for each site (see `slope_ranges`)."""
    edges, total = boxes.edges, boxes.counts.sum(axis=1)
    low, high, middle = edges[:-1], edges[1:], (edges[:-1] + edges[1:]) / 2
    diseased, steep = boxes.counts[:, 1].sum(axis=1), b[:, None, None]
    lowest, highest = _levels(b[:, None, None] * np.stack([high, low]), diseased, total).T
    a = np.linspace(lowest, highest, _INTERCEPTS, axis=1)[:, :, None]
    weights = total[:, None] * _spread(a + steep * middle)
    with np.errstate(invalid="ignore"):
        c = ((weights @ middle) / weights.sum(axis=2))[:, :, None] + _SHIFTS
    p, q = _chances(a + steep * edges)
    # of the diseased all signs of logits are turned, by which (x − c)(1 − p) becomes −(x − c)p
    bound = _summed(boxes.edges, boxes.counts[:, 0], p, (a, steep, c), sign) + _summed(
        -edges[::-1], boxes.counts[:, 1, ::-1], q[:, :, ::-1], (-a, steep, -c), sign
    )
    inner, outer = lowest[:, None] + b[:, None] * low, highest[:, None] + b[:, None] * high
    steepest = total * np.where((inner <= 0) & (outer >= 0), 0.25, np.maximum(_spread(inner), _spread(outer)))
    far = _distances(middle, steepest, c) + (steepest @ ((high - low) / 2))[:, None, None]
    between = ((highest - lowest) / (2 * (_INTERCEPTS - 1)))[:, None, None] * far
    return np.asarray((sign * bound + between).min(axis=2).max(axis=1))


def _summed(
    edges: FloatArray, patients: FloatArray, p: FloatArray, at: tuple[FloatArray, FloatArray, FloatArray], sign: int
) -> FloatArray:
    """Σ of patients' largest (sign 1) or least (−1) terms −(x − c)p in their bins, shape (sites, grid, shifts).

    With z = a + bx a term rises up to b(c − x) = 1 + ω(a + bc − 1) and falls then, ω being Wright's function (from
    b(c − x)(1 − p) = 1). So in bins below that point it is largest at the upper edge and least at the lower one, in
    those above it the other way round; only the bin in which the point lies has to be looked at.
    patients: shape (sites, bins). p: at the edges, shape (sites, grid, bins + 1). at: a, shape (sites, grid, 1), b,
    shape (sites, 1, 1), and c, shape (sites, grid, shifts).
    """
    (a, b, c), last = at, patients.shape[1] - 1
    top = c - (1 + wrightomega(a + b * c - 1)) / b
    bins = np.searchsorted(edges, top, side="right") - 1  # −1: it lies below all bins; last + 1: above them
    found, before = np.zeros_like(c), np.maximum(bins, 0)
    sums = np.zeros_like(p)
    # all at the edges that are right above the point, and then what the bins below it add
    right = slice(-1) if sign > 0 else slice(1, None)
    for values, factor in ((p, c), (p * edges, -1.0)):
        np.cumsum(patients[:, None] * np.diff(values, axis=2), axis=2, out=sums[:, :, 1:])
        everything = values[:, :, right] @ patients[:, :, None]
        found += factor * (everything + sign * np.take_along_axis(sums, before, axis=2))
    own = np.clip(bins, 0, last)
    lower, upper = ((c - edges[own + k]) * np.take_along_axis(p, own + k, axis=2) for k in (0, 1))
    moved = (c - top) * _chances(a + b * top)[0] - lower if sign > 0 else np.minimum(lower, upper) - upper
    here = np.take_along_axis(patients, own.reshape(len(c), -1), axis=1).reshape(c.shape)
    return found + np.where((bins >= 0) & (bins <= last), here * moved, 0.0)


def _distances(places: FloatArray, weights: FloatArray, c: FloatArray) -> FloatArray:
    """Σ weight · |place − c|; places: in order, shape (n,). weights: shape (sites, n). c: (sites, grid, shifts)."""
    below, sums = np.searchsorted(places, c).reshape(len(c), -1), np.zeros((len(c), len(places) + 1))
    found = np.zeros((len(c), below.shape[1]))
    for values, factor in ((weights, c.reshape(len(c), -1)), (weights * places, -1.0)):
        np.cumsum(values, axis=1, out=sums[:, 1:])
        found += factor * (2 * np.take_along_axis(sums, below, axis=1) - sums[:, -1:])
    return found.reshape(c.shape)


def _chances(z: FloatArray) -> tuple[FloatArray, FloatArray]:
    """1/(1 + e⁻ᶻ) and 1/(1 + eᶻ), both to the last digits."""
    odds: FloatArray = np.exp(np.minimum(z, 700.0))
    rest: FloatArray = 1 / (1 + odds)
    return odds * rest, rest


def _spread(z: FloatArray) -> FloatArray:
    """p(1 − p) of p = 1/(1 + e⁻ᶻ)."""
    p, rest = _chances(z)
    return np.asarray(p * rest)


def _levels(predictor: FloatArray, diseased: FloatArray, total: FloatArray) -> FloatArray:
    """The a at which Σ p = the number of diseased patients, p = 1/(1 + e^−(a + predictor)).

    Newton's method on the logit of the mean of p, kept between ends by halving. predictor: shape (sites, k, n), of each
    site k cases. total: patients, shape (sites, n). diseased: shape (sites,), neither nobody nor everybody. Returns
    shape (sites, k).
    """
    patients, filled, seen = total.sum(axis=1)[:, None], (total > 0)[:, None], diseased[:, None]
    wanted = logit(seen / patients)
    low = wanted - np.where(filled, predictor, -math.inf).max(axis=2)
    high = wanted - np.where(filled, predictor, math.inf).min(axis=2)
    found: FloatArray = np.clip(wanted - (predictor @ total[:, :, None])[:, :, 0] / patients, low, high)
    for _ in range(100):
        p, rest = _chances(found[:, :, None] + predictor)
        expected = (p @ total[:, :, None])[:, :, 0]
        p *= rest
        low, high = np.where(expected < seen, found, low), np.where(expected > seen, found, high)
        with np.errstate(invalid="ignore", divide="ignore"):
            gap = logit(expected / patients) - wanted
            curvature = patients * (p @ total[:, :, None])[:, :, 0]
            moved = found - gap * (expected * (patients - expected)) / curvature
        moved = np.where((moved >= low) & (moved <= high), moved, (low + high) / 2)
        found, step = moved, np.abs(moved - found)
        if (step <= 1e-8 * (1 + np.abs(found))).all():  # the next step would be of the size of its square
            break
    return found

"""What the model is told of its inputs and classes: sums over training patients, and the arrays made of them.

Sums add up over sites, so several sites together give what one with all their patients would. Loads no torch: the
coordinator pools them.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from math import fsum, sqrt
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from numpy.typing import NDArray

from eucaim_fl.arrays import Arrays
from eucaim_fl.plan import FederationPlan
from eucaim_fl.records import CLASS_SHARES, INPUT_MEAN, INPUT_STD

if TYPE_CHECKING:
    from eucaim_fl.cohorts.cohort import PreparedCase

__all__ = ["LEAST_STD", "UNSEEN", "HasSums", "Sums", "conditioning", "own_input", "sums_over"]

LEAST_STD = 1e-3
"""Standard deviation that a channel has at least: one without any contrast can be divided by, and an image that has
some after all does not drown everything. Values lie between 0 and 1, or within some units of 0 (`data.intensity`)."""
UNSEEN = 1.0
"""Patients that a class counts as of which nobody was told: there may be a few, and no share is 0."""
_AT_ONCE = 1 << 20


class HasSums(Protocol):
    """What can be pooled: `Sums`, or the record in which a site tells them."""

    @property
    def patients(self) -> int:
        """Number of patients."""

    @property
    def means(self) -> tuple[float, ...]:
        """By channel."""

    @property
    def squares(self) -> tuple[float, ...]:
        """By channel."""

    @property
    def classes(self) -> tuple[int, ...]:
        """By class."""


@dataclass(frozen=True)
class Sums:
    """Sums over patients. means, squares: by channel, Σ of each patient's mean value, and of its mean squared value,
    in the units that `data.intensity` leaves. classes: patients of each class, in the plan's order.

    What the plan has no use for is empty.
    """

    patients: int
    means: tuple[float, ...] = ()
    squares: tuple[float, ...] = ()
    classes: tuple[int, ...] = ()


def sums_over(cases: Sequence[PreparedCase], plan: FederationPlan) -> Sums:
    """Sums over the patients of some cases, on the plan's grid and after its `intensity`; every voxel counts alike.

    A patient with several cases counts once, with the mean over these. Moments are taken where `data.standardise` is
    not `none`, classes where the federation's shares are needed.
    """
    by_patient: dict[str, list[PreparedCase]] = defaultdict(list)
    for case in cases:
        by_patient[case.patient].append(case)
    means: tuple[float, ...] = ()
    squares: tuple[float, ...] = ()
    if plan.data.standardise != "none":
        each = np.array(
            [np.mean([_moments(case.image()) for case in own], axis=0) for own in by_patient.values()]
        ).reshape(-1, 2, plan.data.number_of_channels())
        means, squares = (tuple(fsum(column) for column in each[:, kind].T) for kind in (0, 1))
    classes: tuple[int, ...] = ()
    if plan.asked_classes():
        targets = [own[0].target for own in by_patient.values()]
        classes = tuple(targets.count(index) for index in range(plan.asked_classes()))
    return Sums(len(by_patient), means, squares, classes)


def conditioning(sums: Sequence[HasSums], plan: FederationPlan) -> Arrays:
    """The model's arrays from all sums together: by channel E[x] and √(E[x²] − E[x]²), by class nₖ/Σn; float32.

    `records.INPUT_MEAN` and `INPUT_STD`, shape (channels,), where sums hold moments; each patient counts alike. A
    standard deviation is at least `LEAST_STD`. `CLASS_SHARES`, shape (classes,), where sums hold classes; they add up
    to 1, and a class without patients counts as `UNSEEN` of them. Where counts of classes add up to more patients than
    their sums are over (rounding, or a site that lies), they are made smaller in proportion until they do not. Sums
    without patients are passed over.
    Raises ValueError if no sums have patients, or they are not those that the plan asks for.
    """
    told = [one for one in sums if one.patients > 0]
    if not told:
        raise ValueError("no sums over any patients")
    classes, channels = plan.asked_classes(), plan.data.number_of_channels()
    moments = {len(part) for one in told for part in (one.means, one.squares)}
    possible = {"none": ({0},), "site": ({0}, {channels}), "federation": ({channels},)}[plan.data.standardise]
    if moments not in possible or {len(one.classes) for one in told} != {classes}:
        raise ValueError("sums that are not those of the plan")
    arrays: Arrays = {}
    if moments == {channels}:
        patients = sum(one.patients for one in told)
        mean = [fsum(column) / patients for column in zip(*(one.means for one in told), strict=True)]
        square = [fsum(column) / patients for column in zip(*(one.squares for one in told), strict=True)]
        spread = [sqrt(max(s - m * m, 0.0)) for m, s in zip(mean, square, strict=True)]
        arrays[INPUT_MEAN] = np.array(mean, np.float32)
        arrays[INPUT_STD] = np.maximum(np.array(spread, np.float32), np.float32(LEAST_STD))
    if classes:
        columns = zip(*(_counted(one) for one in told), strict=True)
        counts = np.array([fsum(column) for column in columns], np.float64)
        counts[counts == 0] = UNSEEN
        arrays[CLASS_SHARES] = (counts / counts.sum()).astype(np.float32)
    return arrays


def _counted(one: HasSums) -> tuple[float, ...]:
    """Patients of each class, together no more than the sums are over."""
    factor = min(1.0, one.patients / max(1, sum(one.classes)))
    return tuple(factor * number for number in one.classes)


def own_input(cases: Sequence[PreparedCase], plan: FederationPlan) -> Arrays:
    """`INPUT_MEAN` and `INPUT_STD` of one site's own training patients, for `data.standardise: site`; they never leave.

    Empty for other plans.
    """
    if plan.data.standardise != "site":
        return {}
    found = sums_over(cases, plan)
    made = conditioning([found], plan)
    return {name: made[name] for name in (INPUT_MEAN, INPUT_STD)}


def _moments(image: NDArray[Any]) -> NDArray[np.float64]:
    """Mean and mean square of each channel of an image (C, I, J, K), shape (2, C); a piece at a time, in float64."""
    flat = image.reshape(len(image), -1)
    totals = np.zeros((2, len(flat)))
    for start in range(0, flat.shape[1], _AT_ONCE):
        piece = flat[:, start : start + _AT_ONCE].astype(np.float64)
        totals[0] += piece.sum(axis=1)
        totals[1] += np.square(piece, out=piece).sum(axis=1)
    return totals / max(flat.shape[1], 1)

"""Sums over training patients, asked for once before the first round: what a site tells, and what may be told.

They go by the rules of figures. A plan chooses windows, grid and classes, so it can ask for nearly anything that is a
mean over the training patients, and ask again with other plans: the same patients, or others who differ from all sets
told about before by enough of them (see `differencing`). Sums are made of the mean over those patients, to the policy's
decimals, times the number that the site tells anyway, so that no total shows an exact number.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from eucaim_fl.errors import ReplyError
from eucaim_fl.plan import FederationPlan
from eucaim_fl.site.differencing import Group, Told
from eucaim_fl.site.disclosure import LeastPeople, announced, enough_by_class
from eucaim_fl.site.report import SiteReport, StatisticsRecord, asked_statistics
from eucaim_fl.training.statistics import sums_over

if TYPE_CHECKING:
    from eucaim_fl.cohorts.cohort import PreparedCase

__all__ = ["NOTHING_TOLD", "check_statistics", "objections", "statistics_told"]

NOTHING_TOLD = StatisticsRecord(patients=0)
"""What a site tells that tells nothing, whatever the reason."""

_USE = "train"
_NEARLY = 1e-9
_MOST_MEAN, _MOST_SQUARE = 1.001, 1.1
_MOST_SCORE = 10.0
"""Of z-scores: a mean, or the root of a mean square, that lies further out is no image's."""
_MOST_COUNTED, _ROUNDED = 1.5, 20
"""Counts are rounded by a base that only the site knows; beyond this no rounding explains them."""


def statistics_told(
    cases: Sequence[PreparedCase], plan: FederationPlan, least: LeastPeople, memory: Told, patients: int
) -> StatisticsRecord:
    """The sums that a plan asks for over training cases, as they may leave but for decimals (`disclosure.rounded`).

    patients: their number as the site tells it. Patients of a class with too few are in no sum, and neither is who has
    to be left out so that two sets do not tell a few patients apart; a class of which nobody is left is told as 0.
    Raises JournalError if it can't be remembered what is told; then nothing may leave.
    """
    classified = plan.task.name == "classification"
    kinds = {case.patient: case.target if classified else None for case in cases}
    groups = enough_by_class(kinds, least.metric)
    if least.apart > 1:
        found = memory.figures(_USE, plan.sha256(), groups, least.metric, least.base)
    else:
        found = tuple(Group(members, len(members)) for members in groups.values())
    if not found or not patients:
        return NOTHING_TOLD
    kept = frozenset[str]().union(*(group.patients for group in found))
    sums = sums_over([case for case in cases if case.patient in kept], plan)
    counts = {kinds[min(group.patients)]: group.number for group in found}
    asked = plan.asked_channels() > 0
    return StatisticsRecord(
        patients=patients,
        means=tuple(patients * (total / sums.patients) for total in sums.means) if asked else (),
        squares=tuple(patients * (total / sums.patients) for total in sums.squares) if asked else (),
        classes=tuple(counts.get(index, 0) for index in range(plan.asked_classes())),
    )


def objections(
    report: SiteReport, plan: FederationPlan, least: LeastPeople, listed: frozenset[str] | None
) -> tuple[str, ...]:
    """Why a report must not leave because of statistics that it holds, or should hold; empty if it may.

    listed: names of figures on the policy's list; None lists all. How finely they are rounded is looked at elsewhere.
    """
    record = report.statistics
    if report.kind != "statistics" or not plan.needs_statistics():
        asked = report.kind != "statistics" and record is None
        return () if asked else ("statistics that were not asked for",)
    trained = report.steps or report.seen or report.train_loss is not None or report.metrics
    if record is None or trained:
        return ("an answer of another form than was asked for",)
    reasons = []
    if listed is not None and not asked_statistics(plan) <= listed:
        reasons.append("a statistic that is not on the list")
    try:
        check_statistics(report, plan)
    except ReplyError as problem:
        reasons.append(problem.message[:1].lower() + problem.message[1:].rstrip("."))
    off = 3 * least.base // 2 if least.base > 1 else 0  # each number at most
    if sum(record.classes) > record.patients + off * (1 + len(record.classes)):
        reasons.append("more patients of all classes than there are")
    if any(number % least.base for number in record.classes):
        reasons.append("an exact count of a class")
    if any(0 < number < announced(least.metric, least.base) for number in record.classes):
        reasons.append("a class of fewer patients than the site's minimum")
    return tuple(reasons)


def check_statistics(report: SiteReport, plan: FederationPlan) -> None:
    """Whether a report's sums are those that the plan asks for, and such as patients can have; or nothing is told.

    Raises ReplyError.
    """
    record = report.statistics
    if record is None:
        raise ReplyError("The reply holds no statistics.")
    if record.patients == 0:
        if record != NOTHING_TOLD:
            raise ReplyError("Statistics of nobody look unlike those of which nothing is told.")
        return
    shape = (plan.asked_channels(), plan.asked_channels(), plan.asked_classes())
    if (len(record.means), len(record.squares), len(record.classes)) != shape:
        raise ReplyError("Statistics hold another number of channels or classes than the plan.")
    if record.patients != report.patients:
        raise ReplyError("Statistics are over other patients than the site tells of.")
    if sum(record.classes) > _MOST_COUNTED * record.patients + _ROUNDED * (1 + len(record.classes)):
        raise ReplyError("Statistics count more patients of all classes than there are.")
    scaled = plan.data.intensity.kind != "zscore"  # to 0 … 1, and clipped
    for total, square in zip(record.means, record.squares, strict=True):
        mean, mean_square = total / record.patients, square / record.patients
        possible = mean_square - mean * mean >= -_NEARLY * max(1.0, mean * mean)
        inside = 1 - _MOST_MEAN <= mean <= _MOST_MEAN and mean_square <= _MOST_SQUARE
        if not scaled:
            inside = abs(mean) <= _MOST_SCORE and mean_square <= _MOST_SCORE**2
        if not (possible and inside):
            raise ReplyError("Statistics are such as no images can have.")

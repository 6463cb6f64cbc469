"""What must stay because too few people are behind it, or is told no finer than the policy says. Pure; the site applies
it before its gate looks again."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from eucaim_fl.errors import ReplyError
from eucaim_fl.records import SiteMetrics, SplitName
from eucaim_fl.site.coarsening import Numbers, announced, base_name, on_base, patients_by_class
from eucaim_fl.site.report import MetricsRecord, SiteReport, StatisticsRecord
from eucaim_fl.validation.labels import by_label, joined, means_over_labels
from eucaim_fl.validation.pooling import check_metrics

__all__ = [
    "LEAST_BASE",
    "LEAST_METRIC_PATIENTS",
    "LEAST_TRAINING_PATIENTS",
    "WITHHELD",
    "LeastPeople",
    "announced",
    "as_told",
    "base_name",
    "coarse",
    "coarse_seconds",
    "enough_by_class",
    "least_people",
    "not_as_told",
    "on_base",
    "only_listed",
    "rounded",
    "rounded_moments",
    "small_class",
    "two_sided",
    "withheld",
    "without_few",
]

LEAST_TRAINING_PATIENTS = 10
LEAST_METRIC_PATIENTS = 5
LEAST_BASE = 5
"""Floors for confidential data; a site may only raise them."""
WITHHELD = "by_the_sites_rules"
"""The one reason for withholding that is told: few, none, the policy's and the privacy's no look the same."""

_BY_CLASS = ("auc", "balanced_accuracy", "confusion", "scores_", "c_index", "concordance")


# --- how many people ------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class LeastPeople:
    """training: least patients behind an update. metric: behind a figure, and of each class in figures by class.

    base: counts of people leave as multiples of it; 1 tells them exactly. apart: by so many patients two sets must
    differ, or not at all, for figures of both to leave; 1 compares nothing.
    """

    training: int
    metric: int
    base: int
    apart: int


def least_people(*, confidential: bool, training: int, metric: int, base: int = 1) -> LeastPeople:
    """What applies where a site asks for these numbers: for confidential data never less than the floors.

    Public and synthetic data hide nobody, so there the site's own numbers count, and sets are not compared. A base
    above a minimum raises it, since else a count that is enough could be told as none.

    >>> least_people(confidential=True, training=3, metric=8)
    LeastPeople(training=10, metric=8, base=5, apart=8)
    >>> least_people(confidential=False, training=3, metric=2)
    LeastPeople(training=3, metric=2, base=1, apart=1)
    """
    if confidential:
        training, metric = max(training, LEAST_TRAINING_PATIENTS), max(metric, LEAST_METRIC_PATIENTS)
        base = max(base, LEAST_BASE)
    training, metric = max(training, base), max(metric, base)
    return LeastPeople(training, metric, base, metric if confidential else 1)


def coarse(count: int, minimum: int) -> int:
    """A count of people who are not behind any figure, rounded down to a multiple of the minimum.

    A plan decides who is set aside (by the class or the series that it asks for), so an exact count would answer how
    many patients have a value.

    >>> [coarse(n, 5) for n in (0, 1, 4, 5, 11)]
    [0, 0, 0, 5, 10]
    """
    return count // minimum * minimum


def coarse_seconds(seconds: float, base: int) -> float:
    """A time as it is told: the next of 1, 2, 5, 10, 20, 50, … s; 0 stays, and with base 1 four decimal places do.

    Work grows with patients, so an exact time counts them. When an answer arrives can be seen all the same; and under
    differential privacy that moves with the number of patients that were sampled.

    >>> [coarse_seconds(s, 5) for s in (0.0, 0.2, 1.0, 1.1, 3.0, 34.5, 50.1)]
    [0.0, 1.0, 1.0, 2.0, 5.0, 50.0, 100.0]
    """
    if base == 1 or seconds <= 0:
        return round(max(seconds, 0.0), 4)
    decade = 1
    while decade * 5 < seconds:
        decade *= 10
    return float(next(step for step in (decade, 2 * decade, 5 * decade) if seconds <= step))


# --- which figures --------------------------------------------------------------------------------------------------


def withheld(split: SplitName) -> SiteMetrics:
    """What is told of a split of which nothing is told, whatever the reason."""
    return SiteMetrics(split, 0, withheld=WITHHELD)


def enough_by_class(classes: Mapping[str, int | None], minimum: int) -> dict[str, frozenset[str]]:
    """Groups of patients that figures may be about, by class and in the order of classes: those with enough patients.

    classes: patient → class; None for all in a segmentation, who are the one group `all`. Patients of a class with
    fewer than the minimum are in no group, so a site with few of a class measures and tells exactly what it would if it
    had none.

    >>> enough_by_class({"p": 0, "q": 0, "r": 1}, 2) == {"0": {"p", "q"}}
    True
    """
    groups: dict[int, set[str]] = {}
    for patient, kind in classes.items():
        groups.setdefault(-1 if kind is None else kind, set()).add(patient)
    return {
        "all" if kind < 0 else str(kind): frozenset(groups[kind])
        for kind in sorted(groups)
        if len(groups[kind]) >= minimum
    }


def two_sided(groups: Mapping[str, frozenset[str]]) -> bool:
    """Whether both sides of a label, or patients with and without an event, are there; for a figure of the one side
    alone would say that the other is small. groups: see `enough_by_class`."""
    return {"0", "1"} <= set(groups)


def small_class(metrics: SiteMetrics, minimum: int) -> bool:
    """Whether figures by class are given although some class has patients, but fewer than the minimum.

    The patients of a class are a row of the confusion counts. A row without patients stands for none, or for few who
    were left out of all figures (see `enough_by_class`). Of a label both sides must have the minimum, and so must those
    with and without an event.
    """
    if labels := by_label(metrics):
        return any(_one_sided(one, minimum) for one in labels.values())
    if "concordance" in metrics.sums:
        return _one_sided(metrics, minimum)
    return any(0 < patients < minimum for patients in patients_by_class(metrics))


def _one_sided(metrics: SiteMetrics, minimum: int) -> bool:
    return any(patients < minimum for patients in patients_by_class(metrics))


def without_few(metrics: SiteMetrics, minimum: int) -> SiteMetrics:
    """Without sums and means that are defined for fewer patients than the minimum, nobody included (a Dice of empty
    masks is not defined), and without figures by class if a class has some, but fewer; a label's of a side with fewer
    are left out as a whole."""
    if labels := by_label(metrics):
        return joined(metrics, {name: one for name, one in labels.items() if not _one_sided(one, minimum)})
    few = {n for n, sums in metrics.sums.items() if not n.startswith(_BY_CLASS) and sums[0] < minimum}
    if small_class(metrics, minimum):
        few |= {n for n in {*metrics.values, *metrics.sums} if n.startswith(_BY_CLASS)}
    return replace(
        metrics,
        values={n: v for n, v in metrics.values.items() if n not in few},
        sums={n: v for n, v in metrics.sums.items() if n not in few},
    )


def only_listed(metrics: SiteMetrics, listed: frozenset[str] | None) -> SiteMetrics:
    """Without metrics whose base name is not on the policy's list; None lists all."""
    if listed is None:
        return metrics
    return replace(
        metrics,
        values={n: v for n, v in metrics.values.items() if base_name(n) in listed},
        sums={n: v for n, v in metrics.sums.items() if base_name(n) in listed},
    )


def as_told(
    metrics: SiteMetrics, least: LeastPeople, listed: frozenset[str] | None, groups: Numbers | None = None
) -> SiteMetrics:
    """Measured figures as they may leave: of enough people, counts on the base, only what is listed.

    groups: numbers told for the groups that were measured (see `on_base`). Where nothing is left, the record is that of
    a split of which nothing is told.
    """
    if metrics.withheld or metrics.patients < least.metric:
        return withheld(metrics.split)
    told = only_listed(on_base(without_few(metrics, least.metric), least.base, groups), listed)
    return told if told.values or told.sums else withheld(metrics.split)


# --- how finely -----------------------------------------------------------------------------------------------------


def not_as_told(report: SiteReport, least: LeastPeople, digits: int | None) -> tuple[str, ...]:
    """What in a report is finer than may be told: counts of people, times, withheld splits; empty if nothing is.

    digits: as for `rounded`. Sums that no patients can have are left to `pooling.check_metrics`.
    """
    plain = [entry.plain() for entry in report.metrics]
    reasons = []
    if any(count % least.base for count in (report.patients, report.seen, *(m.patients for m in plain))):
        reasons.append("an exact count of patients")
    if any(coarse_seconds(s, least.base) != s for s in (report.seconds, report.prepare_seconds)):
        reasons.append("an exact time")
    if any((m.withheld or not (m.values or m.sums)) and m != replace(withheld(m.split), model=m.model) for m in plain):
        reasons.append("a split of which nothing is told, but which looks unlike others")
    if not reasons and _can_be(plain):
        again = report.model_copy(update={"metrics": tuple(MetricsRecord.of(on_base(m, least.base)) for m in plain)})
        if rounded(again, digits) != rounded(report, digits):
            reasons.append("figures from exact counts of patients")
    return tuple(reasons)


def _can_be(metrics: Sequence[SiteMetrics]) -> bool:
    try:
        for entry in metrics:
            check_metrics(entry)
    except ReplyError:
        return False
    return True


def rounded(report: SiteReport, digits: int | None) -> SiteReport:
    """The report with every figure of patients told to `digits` decimal places (0 to 6); None changes nothing.

    That is each metric, the mean training loss and, of statistics, mean and standard deviation of a channel over the
    patients, from which sums are made again. Of sums (count, sum, sum of squares) the two means are rounded and
    multiplied by the count again: a sum told exactly would give the mean exactly, and the difference of two rounds the
    result of one patient. A mean of squares below the square of the rounded mean is raised to the next decimal above
    it, so that such moments exist. Counts stay. What is rounded already stays the same to the bit, for figures below
    10⁹.
    """
    if digits is None:
        return report
    loss = report.train_loss
    return report.model_copy(
        update={
            "train_loss": None if loss is None else round(loss, digits),
            "metrics": tuple(_rounded_metrics(metrics, digits) for metrics in report.metrics),
            "statistics": None if report.statistics is None else _rounded_statistics(report.statistics, digits),
        }
    )


def _rounded_statistics(told: StatisticsRecord, digits: int) -> StatisticsRecord:
    """The deviation is rounded, not the mean square, whose last place decides on the deviation where that is small."""
    if not told.patients:
        return told
    means, squares = [], []
    for total, square in zip(told.means, told.squares, strict=False):
        exact = total / told.patients
        mean = round(exact, digits)
        deviation = round(math.sqrt(max(square / told.patients - exact * exact, 0.0)), digits)
        means.append(told.patients * mean)
        squares.append(told.patients * (mean * mean + deviation * deviation))
    return told.model_copy(update={"means": tuple(means), "squares": tuple(squares)})


def _rounded_metrics(metrics: MetricsRecord, digits: int) -> MetricsRecord:
    """Means over labels are rounded after their labels, so that they tell no more than these do."""
    values = {name: round(value, digits) for name, value in metrics.values.items()}
    labels = by_label(SiteMetrics(metrics.split, metrics.patients, values))
    means = {n: round(v, digits) for n, v in means_over_labels([one.values for one in labels.values()]).items()}
    values |= {name: value for name, value in means.items() if name in values}
    return metrics.model_copy(update={"values": values, "sums": _rounded_sums(metrics.sums, digits)})


def _rounded_sums(sums: Mapping[str, tuple[float, ...]], digits: int) -> dict[str, tuple[float, ...]]:
    return {
        name: rounded_moments(numbers, digits)
        if len(numbers) == 3 and numbers[0] > 0 and base_name(name) not in ("confusion", "scores", "concordance")
        else numbers
        for name, numbers in sums.items()
    }


def rounded_moments(numbers: tuple[float, ...], digits: int) -> tuple[float, ...]:
    """(n, Σx, Σx²) of n > 0 values with both means rounded, as `rounded` does it.

    >>> rounded_moments((4.0, 1.05, 0.9), 1)
    (4.0, 1.2, 0.8)
    """
    count, total, squares = numbers
    mean = round(total / count, digits)
    least = math.ceil(mean * mean * 10**digits) / 10**digits
    return count, count * mean, count * max(round(squares / count, digits), least)

"""What must stay because too few people are behind it, or is told no finer than the policy says. Pure; the site applies
it before its gate looks again."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate

from eucaim_fl.errors import ReplyError
from eucaim_fl.records import SiteMetrics, SplitName
from eucaim_fl.site.report import MetricsRecord, SiteReport
from eucaim_fl.validation.pooling import check_metrics, count_values

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
    "small_class",
    "withheld",
    "without_few",
]

LEAST_TRAINING_PATIENTS = 10
LEAST_METRIC_PATIENTS = 5
LEAST_BASE = 5
"""Floors for confidential data; a site may only raise them."""
WITHHELD = "by_the_sites_rules"
"""The one reason for withholding that is told: few, none, the policy's and the privacy's no look the same."""

_BY_CLASS = ("auc", "balanced_accuracy", "confusion", "scores_")
_WITH_ENDING = ("dice", "hd95_mm", "scores")
_POSITIVE = "_positive"


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


def announced(count: int, base: int) -> int:
    """A count of people as it is told: the nearest multiple of the base, the upper one of two; it is near the truth,
    since sites are weighted by it.

    >>> [announced(n, 5) for n in (0, 2, 3, 7, 8, 12)]
    [0, 0, 5, 5, 10, 10]
    """
    return (count + base // 2) // base * base


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


def base_name(metric: str) -> str:
    """The metric's name as a policy lists it: without label or class.

    >>> [base_name(name) for name in ("dice_liver", "hd95_mm", "scores_1_positive", "auc")]
    ['dice', 'hd95_mm', 'scores', 'auc']
    """
    return next((base for base in _WITH_ENDING if metric == base or metric.startswith(f"{base}_")), metric)


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


def small_class(metrics: SiteMetrics, minimum: int) -> bool:
    """Whether figures by class are given although some class has patients, but fewer than the minimum.

    The patients of a class are a row of the confusion counts. A row without patients stands for none, or for few who
    were left out of all figures (see `enough_by_class`).
    """
    return any(0 < patients < minimum for patients in _rows(metrics))


def without_few(metrics: SiteMetrics, minimum: int) -> SiteMetrics:
    """Without sums and means that are defined for fewer patients than the minimum, nobody included (a Dice of empty
    masks is not defined), and without figures by class if a class has some, but fewer."""
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
    metrics: SiteMetrics, least: LeastPeople, listed: frozenset[str] | None, groups: Sequence[int] | None = None
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


def on_base(metrics: SiteMetrics, base: int, groups: Sequence[int] | None = None) -> SiteMetrics:
    """The record with every count of people on multiples of the base, so that it is one that patients could have.

    groups: numbers told for the classes that have patients, in their order (one number in a segmentation); None takes
    `announced` of the record's own. Means stay: of sums, mean and mean square are multiplied by the number told.
    Confusion counts keep the proportions of each class as well as multiples of the base can. A score histogram tells
    n/base quantiles of its n patients (quantile j is where the share (j + ½)·base/n of them is reached) and the bins
    between follow from these. The site's AUC is put on the nearest value that so many patients can have, and balanced
    accuracy is that of the counts told, since the exact ones betray the numbers of patients.
    What is on the base already stays the same to the bit. base 1 without groups changes nothing.
    """
    if metrics.withheld or (base == 1 and groups is None):
        return metrics
    rows = _rows(metrics)
    if rows:
        numbers = iter(groups or [])
        told = [0 if not n else int(next(numbers, announced(int(n), base))) for n in rows]
    else:
        told = [sum(groups) if groups else announced(metrics.patients, base)]
    total = sum(told)
    sums: dict[str, tuple[float, ...]] = {}
    for name, given in metrics.sums.items():
        if name == "confusion":
            side = len(rows)
            cells = [_shared(given[k * side : (k + 1) * side], told[k], base) for k in range(side)]
            sums[name] = tuple(count for row in cells for count in row)
        elif name.startswith("scores_"):
            positive = dict(enumerate(told)).get(int(name.split("_")[1]), 0)
            sums[name] = _quantiles(given, positive if name.endswith(_POSITIVE) else total - positive, base)
        else:
            sums[name] = _moments_for(given, metrics.patients, total, base)
    values = dict(metrics.values)
    if "balanced_accuracy" in values:
        values |= count_values({n: c for n, c in sums.items() if n == "confusion"})
    pairs = min((n * (total - n) for n in told), default=0)
    if "auc" in values and pairs:
        values["auc"] = round(values["auc"] * pairs) / pairs
    return replace(metrics, patients=total, values=values, sums=sums)


def _rows(metrics: SiteMetrics) -> list[float]:
    """Patients by class: from the confusion counts, else from the histograms; empty where no figure is by class."""
    counts = metrics.sums.get("confusion", ())
    if counts:
        classes = math.isqrt(len(counts))
        return [sum(counts[k * classes : (k + 1) * classes]) for k in range(classes)]
    positive = {int(name.split("_")[1]): sum(c) for name, c in metrics.sums.items() if name.endswith(_POSITIVE)}
    if set(positive) == {1}:
        return [metrics.patients - positive[1], positive[1]]
    return [positive[k] for k in sorted(positive)]


def _shared(cells: Sequence[float], total: int, base: int) -> tuple[float, ...]:
    """A total, which is a multiple of the base, shared out in whole bases by the largest remainders of the cells."""
    units, people = total // base, int(sum(cells))
    if not units or not people:
        return (0.0,) * len(cells)
    whole = [divmod(int(count) * units, people) for count in cells]
    order = sorted(range(len(cells)), key=lambda k: (-whole[k][1], k))
    more = set(order[: units - sum(count for count, _ in whole)])
    return tuple(float((count + (k in more)) * base) for k, (count, _) in enumerate(whole))


def _quantiles(histogram: Sequence[float], total: int, base: int) -> tuple[float, ...]:
    """A histogram of that total that tells no more of the given one than its total/base quantiles.

    The middle one of every `base` patients stands at a quantile, the others on the way to its neighbours. With all of
    them at the quantile, scores would spread less than they do, and an AUC would be too good.
    """
    units, people = total // base, int(sum(histogram))
    below, last = list(accumulate(int(count) for count in histogram)), len(histogram) - 1
    middle: list[int] = []
    for place, reached in enumerate(below if people else []):
        while len(middle) < units and 2 * units * reached > (2 * len(middle) + 1) * people:
            middle.append(place)
    told = [0.0] * len(histogram)
    for j, place in enumerate(middle):
        step_up = middle[j + 1] - place if j + 1 < units else place - middle[max(j - 1, 0)]
        step_down = place - middle[j - 1] if j else step_up
        for way in range(-(base // 2), base - base // 2):
            moved = (2 * way * (step_up if way > 0 else step_down) + base) // (2 * base)
            told[min(max(place + moved, 0), last)] += 1
    return tuple(told)


def _moments_for(numbers: Sequence[float], patients: int, told: int, base: int) -> tuple[float, ...]:
    """(n, Σx, Σx²) with the same means for another n: all who are told, or as large a share of them, on the base."""
    count = int(numbers[0])
    share = told if count >= patients else min(told, max(base, announced(round(count * told / patients), base)))
    if not count or share == count:
        return tuple(numbers)
    return float(share), share * (numbers[1] / count), share * (numbers[2] / count)


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
    if any((m.withheld or not (m.values or m.sums)) and m != withheld(m.split) for m in plain):
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

    That is each metric and the mean training loss. Of sums (count, sum, sum of squares) the two means are rounded and
    multiplied by the count again: a sum told exactly would give the mean exactly, and the difference of two rounds the
    result of one patient. A mean of squares below the square of the rounded mean is raised to it, so that such
    moments exist. Counts stay. What is rounded already stays the same to the bit, for figures below 10⁹.
    """
    if digits is None:
        return report
    loss = report.train_loss
    return report.model_copy(
        update={
            "train_loss": None if loss is None else round(loss, digits),
            "metrics": tuple(_rounded_metrics(metrics, digits) for metrics in report.metrics),
        }
    )


def _rounded_metrics(metrics: MetricsRecord, digits: int) -> MetricsRecord:
    values = {name: round(value, digits) for name, value in metrics.values.items()}
    return metrics.model_copy(update={"values": values, "sums": _rounded_sums(metrics.sums, digits)})


def _rounded_sums(sums: Mapping[str, tuple[float, ...]], digits: int) -> dict[str, tuple[float, ...]]:
    return {
        name: _rounded_moments(numbers, digits)
        if len(numbers) == 3 and numbers[0] > 0 and base_name(name) not in ("confusion", "scores")
        else numbers
        for name, numbers in sums.items()
    }


def _rounded_moments(numbers: tuple[float, ...], digits: int) -> tuple[float, ...]:
    count, total, squares = numbers
    mean = round(total / count, digits)
    least = math.ceil(mean * mean * 10**digits) / 10**digits
    return count, count * mean, count * max(round(squares / count, digits), least)

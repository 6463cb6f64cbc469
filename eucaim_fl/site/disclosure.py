"""What must stay because too few people are behind it, or is told no finer than the policy says. Pure; the site applies
it before its gate looks again."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace

from eucaim_fl.records import SiteMetrics
from eucaim_fl.site.report import MetricsRecord, SiteReport

__all__ = ["base_name", "coarse", "only_listed", "rounded", "small_class", "without_few"]

_BY_CLASS = ("auc", "balanced_accuracy", "confusion", "scores_")
_WITH_ENDING = ("dice", "hd95_mm", "scores")


def base_name(metric: str) -> str:
    """The metric's name as a policy lists it: without label or class.

    >>> [base_name(name) for name in ("dice_liver", "hd95_mm", "scores_1_positive", "auc")]
    ['dice', 'hd95_mm', 'scores', 'auc']
    """
    return next((base for base in _WITH_ENDING if metric == base or metric.startswith(f"{base}_")), metric)


def small_class(metrics: SiteMetrics, minimum: int) -> bool:
    """Whether figures by class are given although some class has patients, but fewer than the minimum.

    The patients of a class are a row of the confusion counts. A class that nobody has tells of nobody.
    """
    counts = metrics.sums.get("confusion", ())
    classes = math.isqrt(len(counts))
    rows = [sum(counts[k * classes : (k + 1) * classes]) for k in range(classes)]
    return any(0 < patients < minimum for patients in rows)


def without_few(metrics: SiteMetrics, minimum: int) -> SiteMetrics:
    """Without means that are defined for fewer patients than the minimum (a Dice of empty masks is not defined), and
    without figures by class if a class has fewer."""
    few = {n for n, sums in metrics.sums.items() if n in metrics.values and sums[0] < minimum}
    if small_class(metrics, minimum):
        few |= {n for n in {*metrics.values, *metrics.sums} if n.startswith(_BY_CLASS)}
    return replace(
        metrics,
        values={n: v for n, v in metrics.values.items() if n not in few},
        sums={n: v for n, v in metrics.sums.items() if n not in few},
    )


def coarse(count: int, minimum: int) -> int:
    """A count of people who are not behind any figure, rounded down to a multiple of the minimum.

    A plan decides who is set aside (by the class or the series that it asks for), so an exact count would answer how
    many patients have a value.

    >>> [coarse(n, 5) for n in (0, 1, 4, 5, 11)]
    [0, 0, 0, 5, 10]
    """
    return count // minimum * minimum


def only_listed(metrics: SiteMetrics, listed: frozenset[str] | None) -> SiteMetrics:
    """Without metrics whose base name is not on the policy's list; None lists all."""
    if listed is None:
        return metrics
    return replace(
        metrics,
        values={n: v for n, v in metrics.values.items() if base_name(n) in listed},
        sums={n: v for n, v in metrics.sums.items() if base_name(n) in listed},
    )


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

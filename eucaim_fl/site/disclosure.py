"""What must stay because too few people are behind it. Pure; the site applies it before its gate looks again."""

from __future__ import annotations

import math
from dataclasses import replace

from eucaim_fl.records import SiteMetrics

__all__ = ["small_class", "without_few"]

_BY_CLASS = ("auc", "balanced_accuracy", "confusion", "scores_")


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

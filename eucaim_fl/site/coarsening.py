"""Figures as finely as they may be told: every count of people on multiples of a base, and what follows from counts."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import accumulate
from typing import TypeAlias

from eucaim_fl.records import SiteMetrics
from eucaim_fl.validation.concordance import most_pairs
from eucaim_fl.validation.labels import by_label, joined
from eucaim_fl.validation.pooling import count_values

__all__ = ["Numbers", "announced", "base_name", "on_base", "patients_by_class", "shared_out"]

Numbers: TypeAlias = Sequence[int] | Mapping[str, Sequence[int]]
"""Numbers told for groups of patients, in their order; of a multi-label task, for those of each label."""

_WITH_ENDING = ("dice", "hd95_mm", "scores", "auc", "balanced_accuracy", "brier", "confusion")
_POSITIVE = "_positive"


def announced(count: int, base: int) -> int:
    """A count of people as it is told: the nearest multiple of the base, the upper one of two; it is near the truth,
    since sites are weighted by it.

    >>> [announced(n, 5) for n in (0, 2, 3, 7, 8, 12)]
    [0, 0, 5, 5, 10, 10]
    """
    return (count + base // 2) // base * base


def base_name(metric: str) -> str:
    """The metric's name as a policy lists it: without label or class.

    >>> [base_name(name) for name in ("dice_liver", "hd95_mm", "scores_1_positive", "auc_oedema", "c_index")]
    ['dice', 'hd95_mm', 'scores', 'auc', 'c_index']
    """
    return next((base for base in _WITH_ENDING if metric == base or metric.startswith(f"{base}_")), metric)


def on_base(metrics: SiteMetrics, base: int, groups: Numbers | None = None) -> SiteMetrics:
    """The record with every count of people on multiples of the base, so that it is one that patients could have.

    groups: numbers told for the classes that have patients, in their order (one number in a segmentation); None takes
    `announced` of the record's own. Means stay: of sums, mean and mean square are multiplied by the number told.
    Confusion counts keep the proportions of each class as well as multiples of the base can. A score histogram tells
    n/base quantiles of its n patients (quantile j is where the share (j + ½)·base/n of them is reached) and the bins
    between follow from these. The site's AUC is put on the nearest value that so many patients can have, and balanced
    accuracy is that of the counts told, since the exact ones betray the numbers of patients. Of a survival task the
    pairs told are the nearest tenth (at least one) of those that so many patients can form, shared as the given ones
    are, and the c-index is theirs. Labels are taken one by one.
    What is on the base already stays the same to the bit. base 1 without groups changes nothing.
    """
    if metrics.withheld or (base == 1 and groups is None):
        return metrics
    labels = by_label(metrics)
    if labels or isinstance(groups, Mapping):
        named = groups if isinstance(groups, Mapping) else {}
        return joined(metrics, {name: on_base(one, base, named.get(name)) for name, one in labels.items()})
    rows = patients_by_class(metrics)
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
            cells = [shared_out(given[k * side : (k + 1) * side], told[k], base) for k in range(side)]
            sums[name] = tuple(count for row in cells for count in row)
        elif name == "concordance":
            sums[name] = _pairs(given, told)
        elif name.startswith("scores_"):
            positive = dict(enumerate(told)).get(int(name.split("_")[1]), 0)
            sums[name] = _quantiles(given, positive if name.endswith(_POSITIVE) else total - positive, base)
        else:
            sums[name] = _moments_for(given, metrics.patients, total, base)
    values = dict(metrics.values)
    for counted, figure in (("confusion", "balanced_accuracy"), ("concordance", "c_index")):
        if figure in values:
            values |= count_values({n: c for n, c in sums.items() if n == counted})
    pairs = min((n * (total - n) for n in told), default=0)
    if "auc" in values and pairs:
        values["auc"] = round(values["auc"] * pairs) / pairs
    return replace(metrics, patients=total, values=values, sums=sums)


def patients_by_class(metrics: SiteMetrics) -> list[float]:
    """Patients of each class: from the confusion counts, else from the histograms; of a survival task those without
    and with the event. Empty where no figure is by class, and for labels, which have classes each."""
    if "concordance" in metrics.sums:
        return list(metrics.sums["concordance"][:2])
    counts = metrics.sums.get("confusion", ())
    if counts:
        classes = math.isqrt(len(counts))
        return [sum(counts[k * classes : (k + 1) * classes]) for k in range(classes)]
    positive = {int(name.split("_")[1]): sum(c) for name, c in metrics.sums.items() if name.endswith(_POSITIVE)}
    if set(positive) == {1}:
        return [metrics.patients - positive[1], positive[1]]
    return [positive[k] for k in sorted(positive)]


def _pairs(numbers: Sequence[float], told: Sequence[int]) -> tuple[float, ...]:
    """`concordance` of so many patients: pairs by the nearest tenth of all possible ones, shared as the given are.

    How many pairs there are follows from who was lost sight of when, and would count patients.
    """
    censored, events, concordant, tied, pairs = numbers
    possible, could = most_pairs(censored, events), most_pairs(*told)
    new = round(could * max(round(pairs / possible, 1), 0.1)) if pairs else 0
    if new == pairs:
        return float(told[0]), float(told[1]), concordant, tied, pairs
    share = new / pairs
    equal = min(round(tied * share), new)
    return float(told[0]), float(told[1]), float(min(round(concordant * share), new - equal)), float(equal), float(new)


def shared_out(cells: Sequence[float], total: int, base: int) -> tuple[float, ...]:
    """A total, which is a multiple of the base, shared out in whole bases by the largest remainders of the cells.

    >>> shared_out((11, 2, 0), 15, 5)
    (15.0, 0.0, 0.0)
    """
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

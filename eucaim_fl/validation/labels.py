"""A multi-label record and the records of its labels, each of which is that of a classification into no and yes.

In the whole record a label's figures have its name behind them (`auc_oedema`, `confusion_oedema`,
`scores_oedema_positive`), and AUC, balanced accuracy and Brier score without a name are plain means over those labels
that have one. `patients` is that of the label with most: labels are known of different patients.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace

from eucaim_fl.records import SiteMetrics

__all__ = ["MACRO", "by_label", "joined", "label_name", "means_over_labels"]

MACRO = ("auc", "balanced_accuracy", "brier")
"""Figures of a label, which have a mean over labels."""

_FIGURE = re.compile(r"(auc|balanced_accuracy|brier|confusion)_([A-Za-z][A-Za-z0-9_]*)")
_SCORES = re.compile(r"scores_([A-Za-z][A-Za-z0-9_]*)_(negative|positive)")
_OF_YES = re.compile(r"scores_1_(negative|positive)")


def _of_label(name: str) -> tuple[str, str] | None:
    """The label of a figure, and what the figure is called in the label's own record; None if it is of no label."""
    if found := _FIGURE.fullmatch(name):
        return found[2], found[1]
    found = _SCORES.fullmatch(name)
    return None if found is None else (found[1], f"scores_1_{found[2]}")


def label_name(name: str, label: str) -> str:
    """What a figure of a label's own record is called in the whole one.

    >>> label_name("auc", "oedema"), label_name("scores_1_positive", "oedema")
    ('auc_oedema', 'scores_oedema_positive')
    """
    found = _OF_YES.fullmatch(name)
    return f"{name}_{label}" if found is None else f"scores_{label}_{found[1]}"


def by_label(metrics: SiteMetrics) -> dict[str, SiteMetrics]:
    """The records of the labels, in order of names; empty for a record that is of no labels.

    A label's patients are those in its counts, else in its moments; where it has neither, those of the whole record.
    """
    values: dict[str, dict[str, float]] = {}
    sums: dict[str, dict[str, tuple[float, ...]]] = {}
    for name, value in metrics.values.items():
        if found := _of_label(name):
            values.setdefault(found[0], {})[found[1]] = value
    for name, numbers in metrics.sums.items():
        if found := _of_label(name):
            sums.setdefault(found[0], {})[found[1]] = numbers
    return {
        label: replace(
            metrics,
            patients=_patients(sums.get(label, {}), metrics.patients),
            values=values.get(label, {}),
            sums=sums.get(label, {}),
        )
        for label in sorted({*values, *sums})
    }


def _patients(sums: Mapping[str, tuple[float, ...]], otherwise: int) -> int:
    if "confusion" in sums:
        counted = sum(sums["confusion"])
    elif scores := [numbers for name, numbers in sums.items() if _OF_YES.fullmatch(name)]:
        counted = sum(map(sum, scores))
    else:
        counted = sums["brier"][0] if sums.get("brier") else otherwise
    return int(counted) if math.isfinite(counted) else otherwise


def joined(whole: SiteMetrics, labels: Mapping[str, SiteMetrics]) -> SiteMetrics:
    """The whole record of labels' own; a label of which nothing is told is left out.

    whole: whose split and model it has. The means over labels are made anew.
    """
    told = {label: one for label, one in sorted(labels.items()) if one.values or one.sums}
    values = {label_name(name, label): value for label, one in told.items() for name, value in one.values.items()}
    sums = {label_name(name, label): numbers for label, one in told.items() for name, numbers in one.sums.items()}
    means = means_over_labels([one.values for one in told.values()])
    patients = max((one.patients for one in told.values()), default=0)
    return replace(whole, patients=patients, values={**means, **values}, sums=sums)


def means_over_labels(values: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """The mean of each figure over the labels that have it; without those that no label has.

    >>> means_over_labels([{"auc": 0.75, "brier": 0.25}, {"auc": 0.25}])
    {'auc': 0.5, 'brier': 0.25}
    """
    found = {name: [one[name] for one in values if name in one] for name in (*MACRO, "auc_site_mean")}
    return {name: math.fsum(each) / len(each) for name, each in found.items() if each}

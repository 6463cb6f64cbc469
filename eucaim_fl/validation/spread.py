"""How far a pooled figure may be off for want of patients: standard errors from what the sites sent."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np

from eucaim_fl.records import SiteMetrics
from eucaim_fl.validation.labels import by_label, label_name

__all__ = ["auc_standard_error", "standard_errors"]

_OF_LABEL = ("auc", "auc_site_mean")


def auc_standard_error(auc: float, positives: float, negatives: float) -> float:
    """Standard error of an AUC over so many patients of each class; NaN without any of one.

    Source: Hanley and McNeil 1982, The Meaning and Use of the Area under a ROC Curve, eq. 1 and 2 (exponential scores).

    >>> round(auc_standard_error(0.9, 50, 50), 4)
    0.0321
    """
    if positives < 1 or negatives < 1:
        return math.nan
    q1, q2 = auc / (2 - auc), 2 * auc * auc / (1 + auc)
    variance = auc * (1 - auc) + (positives - 1) * (q1 - auc * auc) + (negatives - 1) * (q2 - auc * auc)
    return math.sqrt(max(0.0, variance) / (positives * negatives))


def standard_errors(pooled: Mapping[str, float], metrics: Sequence[SiteMetrics]) -> dict[str, float]:
    """Standard errors of pooled metrics: of means over patients (Dice, HD95, Brier), and of AUCs of two classes or of a
    label. Means over labels, whose errors go together, have none, nor has a c-index.

    pooled: values over all sites; metrics: what the sites sent of the same split. Patients are taken as independent;
    what is not defined (fewer than two patients, no counts) is left out. It tells of the patients that were measured,
    not of another training run, whose seed and noise would be others.
    """
    found: dict[str, float] = {}
    labelled = [by_label(one) for one in metrics]
    for label in sorted({label for labels in labelled for label in labels}):
        own = {name: pooled[label_name(name, label)] for name in _OF_LABEL if label_name(name, label) in pooled}
        errors = standard_errors(own, [labels[label] for labels in labelled if label in labels])
        found |= {label_name(name, label): error for name, error in errors.items()}
    for name in pooled:
        moments = [m.sums[name] for m in metrics if name in m.sums and len(m.sums[name]) == 3]
        count, total, squares = (math.fsum(column) for column in zip(*moments, strict=True)) if moments else (0, 0, 0)
        if count >= 2:
            variance = max(0.0, squares / count - (total / count) ** 2) * count / (count - 1)
            found[name] = math.sqrt(variance / count)
    rows = [
        np.reshape(m.sums["confusion"], (2, 2)).sum(axis=1) for m in metrics if len(m.sums.get("confusion", ())) == 4
    ]
    for name in ("auc", "auc_site_mean"):
        if name in pooled and rows:
            negatives, positives = (float(n) for n in np.sum(rows, axis=0))
            error = auc_standard_error(pooled[name], positives, negatives)
            found |= {name: error} if math.isfinite(error) else {}
    return found

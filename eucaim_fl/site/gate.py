"""The one gate: what a site is about to say is allowed, or refused with reasons. Pure; it decides and does nothing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from eucaim_fl.arrays import Array
from eucaim_fl.plan import FederationPlan
from eucaim_fl.records import ArraySpec
from eucaim_fl.site.disclosure import small_class
from eucaim_fl.site.node import Answer
from eucaim_fl.site.report import MetricsRecord, allowed_metrics
from eucaim_fl.sitefile import ReleaseConfig

__all__ = ["refusals"]


def refusals(
    answer: Answer, plan: FederationPlan, specs: Sequence[ArraySpec], release: ReleaseConfig
) -> tuple[str, ...]:
    """Reasons why an answer must not leave; empty if it may.

    Looked at: the update's names, shapes, types and finiteness; the number of training patients; the metrics' names
    and numbers of patients; score histograms and pictures, which the site file must permit. The reasons name arrays of
    the plan's own network at most, so they are safe to send.
    """
    return (*_update(answer.update, specs), *_people(answer, release), *_metrics(answer, plan, release))


def _update(update: Mapping[str, Array], specs: Sequence[ArraySpec]) -> list[str]:
    if not update:
        return []
    expected = {spec.name: spec for spec in specs}
    if set(update) != set(expected):
        return ["the update holds other arrays than the plan's network"]
    reasons = []
    for name, spec in expected.items():
        array = update[name]
        if array.shape != spec.shape or array.dtype.name != spec.dtype:
            reasons.append(f"array '{name}' has another shape or type than the plan's network")
        elif np.issubdtype(array.dtype, np.floating) and not np.isfinite(array).all():
            reasons.append(f"array '{name}' is not finite")
    return reasons


def _people(answer: Answer, release: ReleaseConfig) -> list[str]:
    reasons = []
    if answer.report.patients < release.minimum_patients:
        reasons.append("fewer training patients than the site's minimum")
    if any(0 < m.patients < release.minimum_metric_patients for m in answer.report.metrics):
        reasons.append("a metric over fewer patients than the site's minimum")
    if any(0 < people < release.minimum_metric_patients for m in answer.report.metrics for people in _defined(m)):
        reasons.append("a metric that is defined for fewer patients than the site's minimum")
    if any(small_class(m.plain(), release.minimum_metric_patients) for m in answer.report.metrics):
        reasons.append("figures by class with fewer patients of a class than the site's minimum")
    if any((m.values or m.sums) and m.patients == 0 for m in answer.report.metrics):
        reasons.append("a metric without patients")
    if answer.pictures is not None and release.data_is == "confidential":
        reasons.append("pictures of confidential data")
    return reasons


def _defined(metrics: MetricsRecord) -> list[float]:
    """For how many patients each mean is defined: the first of its sums (count, sum, sum of squares)."""
    return [sums[0] for name, sums in metrics.sums.items() if sums and name != "confusion" and "scores_" not in name]


def _metrics(answer: Answer, plan: FederationPlan, release: ReleaseConfig) -> list[str]:
    names = {name for m in answer.report.metrics for name in (*m.values, *m.sums)}
    reasons = [] if names <= allowed_metrics(plan) else ["a metric that is not on the list"]
    if not release.score_histograms and any(name.startswith("scores_") for name in names):
        reasons.append("score histograms, which the site file does not permit")
    return reasons

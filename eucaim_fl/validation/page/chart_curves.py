"""The plots of a validation's scores: ROC, precision and recall, calibration, decision curves."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from scipy.optimize import brentq
from scipy.special import expit, logit

from eucaim_fl.validation.binned import BinnedScores
from eucaim_fl.validation.page.blocks import Plot
from eucaim_fl.validation.page.charts import everybody
from eucaim_fl.validation.page.curves import (
    CalibrationPoint,
    Curve,
    Marked,
    calibration_svg,
    decision_svg,
    precision_recall_svg,
    roc_svg,
)
from eucaim_fl.validation.page.drawing import Span
from eucaim_fl.validation.page.names import show_figure, span_of
from eucaim_fl.validation.result_schema import Curves, ModelResult, ScopeResult, ThresholdCounts, ValidationResult

__all__ = ["MOST_LABELS", "calibration_plots", "curve_plots", "decision_plots"]

MOST_LABELS = 4
"""Labels or classes whose curves are drawn; the numbers of all of them are in report.json."""


def curve_plots(result: ValidationResult) -> list[Plot]:
    """ROC and precision-recall of the models, by label."""
    plots = []
    for place, label in enumerate(_labels(result)):
        behind = f", {label}" if label else ""
        found = _curves(result, label)
        roc = [
            Curve(
                model.name,
                [
                    (p.false_positive_rate, p.sensitivity)
                    for p in curves.roc
                    if p.false_positive_rate is not None and p.sensitivity is not None
                ],
                [(b.x, b.low, b.high) for b in curves.roc_band if b.low is not None and b.high is not None],
                _marked(scope, label, precision=False),
                f"AUC {show_figure(scope.figures.get(_with(label, 'auc')), 'auc')}",
            )
            for model, scope, curves in found
        ]
        pr = [
            Curve(
                model.name,
                [(p.recall, p.precision) for p in curves.pr if p.recall is not None and p.precision is not None],
                [(b.x, b.low, b.high) for b in curves.pr_band if b.low is not None and b.high is not None],
                _marked(scope, label, precision=True),
                f"average precision {show_figure(scope.figures.get(_with(label, 'average_precision')), 'auc')}",
            )
            for model, scope, curves in found
        ]
        told = "Marked with its limits: the plan's thresholds. Band: 95 % at each place by itself. Dotted: guessing."
        plots.append(Plot(f"ROC curve{behind}", roc_svg(f"roc-{place}", roc), told))
        share = _share(found[0][2]) if found else math.nan
        words = f" Dotted: the share of patients with it, {share:.2f}." if math.isfinite(share) else ""
        plots.append(
            Plot(
                f"Precision and recall{behind}",
                precision_recall_svg(f"pr-{place}", pr, share),
                f"Marked: the plan's thresholds.{words}",
            )
        )
    return plots


def calibration_plots(result: ValidationResult) -> list[Plot]:
    """Calibration of every model, by label."""
    plots = []
    for place, label in enumerate(_labels(result)):
        for which, (model, scope, curves) in enumerate(_curves(result, label)):
            points = [
                CalibrationPoint(one.mean_score, span_of(one.observed) or Span(math.nan), one.patients)
                for one in curves.calibration
            ]
            slope, intercept = (
                scope.figures.get(_with(label, name)) for name in ("calibration_slope", "calibration_intercept")
            )
            fit = None if slope is None or slope.value is None else (slope.value, _intercept(curves, slope.value))
            words = (
                f"Slope {show_figure(slope, 'calibration_slope')}; intercept at slope 1 "
                f"{show_figure(intercept, 'calibration_intercept')}."
            )
            drawing = calibration_svg(f"calibration-{place}-{which}", model.name, which, points, fit)
            plots.append(Plot(f"{model.name}{f', {label}' if label else ''}", drawing, words))
    return plots


def decision_plots(result: ValidationResult, thresholds: Sequence[float]) -> list[Plot]:
    """Net benefit of the models beside acting on everyone and on nobody, by label."""
    plots = []
    for place, label in enumerate(_labels(result)):
        found = _curves(result, label)
        curves = [
            Curve(
                model.name,
                [(p.threshold, p.model) for p in part.decision if p.model is not None],
                [(p.threshold, p.low, p.high) for p in part.decision if p.low is not None and p.high is not None],
            )
            for model, _, part in found
        ]
        if not any(curve.points for curve in curves):
            continue
        everyone = [(p.threshold, p.everyone) for p in found[0][2].decision if p.everyone is not None]
        title = f"Decision curve{f', {label}' if label else ''}"
        drawing = decision_svg(f"decision-{place}", curves, everyone, thresholds)
        plots.append(
            Plot(title, drawing, "Dotted: acting on everyone. Line at 0: on nobody. Upright: the plan's thresholds.")
        )
    return plots


def _labels(result: ValidationResult) -> list[str]:
    """Labels that have curves, the first few."""
    found: dict[str, None] = {}
    for model in result.models:
        scope = everybody(model)
        found |= {curves.label: None for curves in (scope.curves if scope is not None else ())}
    return list(found)[:MOST_LABELS]


def _curves(result: ValidationResult, label: str) -> list[tuple[ModelResult, ScopeResult, Curves]]:
    found = []
    for model in result.models:
        scope = everybody(model)
        if scope is not None:
            found += [(model, scope, curves) for curves in scope.curves if curves.label == label]
    return found


def _marked(scope: ScopeResult, label: str, *, precision: bool) -> list[Marked]:
    """The plan's thresholds on a curve, from the counts at them."""
    points = []
    for counts in scope.thresholds:
        if counts.label != label:
            continue
        across, up = ("sensitivity", "ppv") if precision else ("specificity", "sensitivity")
        x, y = (_at(scope, name, counts) for name in (across, up))
        if x is None or y is None:
            continue
        limits = (1 - x.high, 1 - x.low) if not precision else (x.low, x.high)
        points.append(Marked(counts.threshold, x.value if precision else 1 - x.value, y.value, limits, (y.low, y.high)))
    return points


def _at(scope: ScopeResult, name: str, counts: ThresholdCounts) -> Span | None:
    return span_of(scope.figures.get(_with(counts.label, f"{name}@{counts.threshold:g}")))


def _with(label: str, name: str) -> str:
    return f"{name}_{label}" if label else name


def _share(curves: Curves) -> float:
    with_it, all_of_them = sum(curves.with_disease), sum(curves.with_disease) + sum(curves.without)
    return with_it / all_of_them if all_of_them else math.nan


def _intercept(curves: Curves, slope: float) -> float:
    """The intercept that belongs to a slope: at which as many patients are predicted to have it as have it.

    It is that of the logistic regression with this slope, of which the told intercept (at slope 1) is not a part. NaN
    without patients of both classes.
    """
    counts = np.asarray([curves.without, curves.with_disease], dtype=np.float64)
    if not counts.sum(axis=1).all():
        return math.nan
    means = BinnedScores(curves.edges, curves.without, curves.with_disease).means
    logits = slope * logit(np.clip(means, 1e-6, 1 - 1e-6))
    total, wanted = counts.sum(axis=0), counts[1].sum()

    def excess(intercept: float) -> float:
        return float((total * expit(intercept + logits)).sum() - wanted)

    reach = float(np.abs(logits).max()) + 50.0
    return float(brentq(excess, -reach, reach))

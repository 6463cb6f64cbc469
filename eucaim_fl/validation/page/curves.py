"""Curves of a model over thresholds: ROC, precision and recall, calibration, decision curve."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from eucaim_fl.validation.page.drawing import Axes, Span, finite, line, mark, number, polyline, svg, text

__all__ = ["CalibrationPoint", "Curve", "Marked", "calibration_svg", "decision_svg", "precision_recall_svg", "roc_svg"]

_SIZE = (360.0, 330.0)
_BOX = (46.0, 12.0, 348.0, 282.0)
_STRIP = 32.0
_ROOM = 38.0
_LEAST = 1e-6


@dataclass(frozen=True)
class Marked:
    """A point of a curve at a threshold. up, across: its limits on both axes, where they are known."""

    threshold: float
    x: float
    y: float
    across: tuple[float, float] | None = None
    up: tuple[float, float] | None = None


@dataclass(frozen=True)
class Curve:
    """A model's curve. points: (x, y) in their order. band: (x, low, high) in ascending x; empty where none is known.
    marked: thresholds of the plan. summary: what it comes to in words, such as its AUC."""

    model: str
    points: Sequence[tuple[float, float]]
    band: Sequence[tuple[float, float, float]] = ()
    marked: Sequence[Marked] = ()
    summary: str = ""


@dataclass(frozen=True)
class CalibrationPoint:
    """Patients of about the same score: their mean score, and the share of them with the disease, with its limits."""

    score: float
    observed: Span
    patients: int


def roc_svg(name: str, curves: Sequence[Curve]) -> str:
    """Sensitivity against the share of false alarms, one curve a model, and the line of guessing."""
    axes = Axes((0, 1), (0, 1), _BOX, ("1 − specificity", "Sensitivity"))
    parts = [*axes.frame(), polyline(axes.path([(0, 0), (1, 1)]), "guess")]
    return _curves(name, axes, "ROC curve", curves, parts, -1)


def precision_recall_svg(name: str, curves: Sequence[Curve], share: float) -> str:
    """Precision against recall, one curve a model. share: of patients with the disease, what guessing would get."""
    axes = Axes((0, 1), (0, 1), _BOX, ("Recall (sensitivity)", "Precision (PPV)"))
    parts = axes.frame()
    if math.isfinite(share):
        parts.append(polyline(axes.path([(0, share), (1, share)]), "guess"))
    return _curves(name, axes, "Precision and recall", curves, parts, 1)


def calibration_svg(
    name: str, model: str, which: int, points: Sequence[CalibrationPoint], fit: tuple[float, float] | None
) -> str:
    """Observed share of disease against the mean score by groups of patients; a perfect model lies on the diagonal.

    which: 0 for the first model, 1 for the second. fit: slope and intercept of logit(observed) on logit(score), drawn
    as a line over the scores there are; None where there is none. Bars below tell how many patients a group has; beside
    them is the number of the largest.
    """
    left, top, right, bottom = _BOX
    axes = Axes((0, 1), (0, 1), (left, top, right, bottom - _STRIP), ("Predicted probability", "Observed share"))
    parts = [*axes.frame(), polyline(axes.path([(0, 0), (1, 1)]), "guess")]
    known = [point for point in points if math.isfinite(point.score) and math.isfinite(point.observed.value)]
    if fit is not None and all(map(math.isfinite, fit)) and known:
        low, high = min(point.score for point in known), max(point.score for point in known)
        parts.append(polyline(axes.path(_fitted(fit, low, high)), f"curve m{which}"))
    most = max((point.patients for point in known), default=1) or 1
    for point in known:
        x = axes.across(point.score)
        ends = [axes.up(end) for end in point.observed[1:] if math.isfinite(end)]
        if len(ends) == 2:
            parts.append(line(x, ends[0], x, ends[1], f"whisker m{which}"))
        words = f"{point.patients} patients: predicted {point.score:.2f}, observed {point.observed.value:.2f}"
        parts.append(mark(x, axes.up(point.observed.value), which, 3.5, words))
        height = 20 * point.patients / most
        base = _SIZE[1] - 2
        parts.append(
            f'<rect x="{number(x - 4)}" y="{number(base - height)}" width="8" height="{number(height)}" class="bar"/>'
        )
    parts.append(text(left - 6, _SIZE[1] - 3, f"≤ {most:,}", "soft", "end"))
    told = f"{len(known)} groups of patients of {model}; points on the diagonal are well calibrated."
    if fit is not None and all(map(math.isfinite, fit)):
        told += f" Slope {fit[0]:.2f}, intercept {fit[1]:.2f}."
    return svg(name, _SIZE, f"Calibration of {model}", told, parts)


def decision_svg(
    name: str, curves: Sequence[Curve], everyone: Sequence[tuple[float, float]], marked: Sequence[float] = ()
) -> str:
    """Net benefit against the threshold probability, beside acting on everyone and on nobody.

    everyone: (threshold, net benefit). marked: thresholds of the plan. What lies far below nobody's 0 is cut off.
    """
    values = finite([y for curve in curves for _, y in curve.points] + [y for _, y in everyone])
    high = max([*values, 0.01]) * 1.08
    scores = finite([x for curve in curves for x, _ in curve.points] + [x for x, _ in everyone])
    start, end = (min(scores), max(scores)) if scores and max(scores) > min(scores) else (0.0, 1.0)
    low = max(min([*values, 0.0]), -0.35 * high) - 0.02 * high
    axes = Axes((start, end), (low, high), _BOX, ("Threshold probability", "Net benefit per patient"))
    parts = [*axes.frame(), polyline(axes.path([(start, 0), (end, 0)]), "nobody")]
    kept = [(x, y) for x, y in everyone if y >= low]
    dropped = [(x, y) for x, y in everyone if y < low]
    parts.append(polyline(axes.path([*kept, *dropped[:1]]), "guess"))
    upright = [axes.across(value) for value in marked if start <= value <= end]
    parts += [line(x, _BOX[1], x, _BOX[3], "reference") for x in upright]
    return _curves(name, axes, "Decision curve", curves, parts, 1)


def _curves(name: str, axes: Axes, title: str, curves: Sequence[Curve], parts: list[str], beside: int) -> str:
    """Bands behind, curves before them, marks on top. beside: where a threshold has room, −1 left of it or 1 right."""
    for which, curve in enumerate(curves):
        if curve.band:
            upper = [(x, high) for x, _, high in curve.band]
            lower = [(x, low) for x, low, _ in reversed(curve.band)]
            parts.append(polyline(axes.path([*upper, *lower]), f"area m{which}", closed=True))
    for which, curve in enumerate(curves):
        parts.append(polyline(axes.path(curve.points), f"curve m{which}"))
    for which, curve in enumerate(curves):
        for point in curve.marked:
            parts += _marked(axes, point, which, beside if which == 0 else 0)
    told = "; ".join(f"{curve.model}: {curve.summary}" if curve.summary else curve.model for curve in curves)
    return svg(name, _SIZE, title, f"{told}." if told else "No curve.", parts)


def _marked(axes: Axes, point: Marked, which: int, beside: int) -> list[str]:
    """A threshold on its curve: cross of its limits, mark, and the threshold above it to the left (−1) or right (1)."""
    if not (math.isfinite(point.x) and math.isfinite(point.y)):
        return []
    x, y = axes.across(point.x), axes.up(point.y)
    parts = []
    if point.across is not None and all(map(math.isfinite, point.across)):
        parts.append(line(axes.across(point.across[0]), y, axes.across(point.across[1]), y, f"whisker m{which}"))
    if point.up is not None and all(map(math.isfinite, point.up)):
        parts.append(line(x, axes.up(point.up[0]), x, axes.up(point.up[1]), f"whisker m{which}"))
    parts.append(mark(x, y, which, 4.0, f"threshold {point.threshold:g}"))
    if beside < 0 and x < axes.box[0] + _ROOM:
        parts.append(text(x + 9, y + 16, f"{point.threshold:g}", "value"))
    elif beside:
        parts.append(text(x + 7 * beside, y - 7, f"{point.threshold:g}", "value", "start" if beside > 0 else "end"))
    return parts


def _fitted(fit: tuple[float, float], low: float, high: float, steps: int = 48) -> list[tuple[float, float]]:
    """Points of observed = expit(intercept + slope · logit(score)) from one score to another."""
    slope, intercept = fit
    points = []
    for index in range(steps + 1):
        score = min(1 - _LEAST, max(_LEAST, low + (high - low) * index / steps))
        logit = max(-700.0, min(700.0, intercept + slope * math.log(score / (1 - score))))
        points.append((score, 1 / (1 + math.exp(-logit))))
    return points

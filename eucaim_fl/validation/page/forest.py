"""Figures in rows with their intervals on one axis: a forest plot over hospitals, and one over groups of patients."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from eucaim_fl.validation.page.drawing import Span, finite, line, mark, number, polyline, shortened, svg, text, ticks

__all__ = ["Forest", "Row", "agreement_svg", "forest_svg", "show_span", "subgroup_svg"]

_WIDTH = 680.0
_TOP, _BOTTOM = 22.0, 42.0
_FIGURES_END = 498.0


@dataclass(frozen=True)
class Row:
    """One line. span: what is drawn; None where there is nothing, and `silent` says why.

    patients: empty where it is nothing to count. weight: of a hospital in the pooled figure, 1 for the
    heaviest. aside: words of the last column. kind: `plain`; `pooled`, drawn as a diamond; `range`, a line with ends
    and no middle; `heading`. model: 0 or 1, for its mark. grouped: under a heading.
    """

    name: str
    span: Span | None = None
    patients: str = ""
    weight: float | None = None
    aside: str = ""
    silent: str = ""
    kind: str = "plain"
    model: int = 0
    grouped: bool = False


@dataclass(frozen=True)
class Forest:
    """What a forest plot shows. axis: name and unit. limits: that no figure can leave, such as (0, 1). reference: a
    place to compare with, and what it is called. digits: of the words. columns: heads of the names, of the patients,
    of the figures and of the last column.
    """

    name: str
    title: str
    axis: str
    limits: tuple[float, float] = (-math.inf, math.inf)
    reference: tuple[float, str] | None = None
    digits: int = 3
    columns: tuple[str, str, str, str] = ("Hospital", "Patients", "Estimate (95 % interval)", "")


def show_span(span: Span, digits: int = 3) -> str:
    """A figure with its interval in words; a limit that is not known is a dash.

    >>> show_span(Span(0.8127, 0.7012, 0.9)), show_span(Span(float("nan"))), show_span(Span(2.0, 1.0, float("inf")), 1)
    ('0.813 (0.701 to 0.900)', 'not defined', '2.0 (1.0 to ∞)')
    """
    if not math.isfinite(span.value):
        return "not defined"
    if math.isnan(span.low) and math.isnan(span.high):
        return _shown(span.value, digits)
    return f"{_shown(span.value, digits)} ({_shown(span.low, digits)} to {_shown(span.high, digits)})"


def forest_svg(
    forest: Forest, rows: Sequence[Row], pooled: Span | None, prediction: tuple[float, float] | None, notes: str = ""
) -> str:
    """Hospitals, their pooled figure as a diamond, and what a new hospital may expect as a line below.

    rows: hospitals in their order. prediction: its limits; None or NaN where there is none. notes: of heterogeneity.
    """
    drawn = list(rows)
    if pooled is not None and math.isfinite(pooled.value):
        drawn.append(Row("All hospitals", pooled, kind="pooled"))
        if prediction is not None and not any(map(math.isnan, prediction)):
            drawn.append(Row("A new hospital", Span(pooled.value, *prediction), kind="range"))
    told = f"{forest.axis} of {len(rows)} hospitals with 95 % intervals."
    if pooled is not None and math.isfinite(pooled.value):
        told += f" Pooled: {show_span(pooled, forest.digits)}."
    return _rows_svg(forest, drawn, pooled.value if pooled is not None else None, f"{told} {notes}".strip())


def subgroup_svg(forest: Forest, rows: Sequence[Row], overall: float | None) -> str:
    """Groups of patients under headings, each with its figure and, in the last column, its difference from the others.

    overall: figure of all patients, drawn as a line. A group that is suppressed is named and says so.
    """
    groups = [row for row in rows if row.kind != "heading"]
    silent = sum(row.span is None for row in groups)
    told = f"{forest.axis} of {len(groups)} groups of patients with 95 % intervals; {silent} without a figure."
    return _rows_svg(forest, rows, overall, told)


def agreement_svg(forest: Forest, bias: Span, lower: Span, upper: Span) -> str:
    """Bias and 95 % limits of agreement with their intervals; no patient is a point, since none is known here.

    bias, lower, upper: differences, found − true, in the unit of the axis.
    """
    rows = [Row("Upper limit", upper), Row("Mean difference", bias, kind="pooled"), Row("Lower limit", lower)]
    told = (
        f"Mean difference {show_span(bias, forest.digits)}; 95 % of the differences lie between "
        f"{show_span(lower, forest.digits)} and {show_span(upper, forest.digits)}."
    )
    band = (lower.value, upper.value) if math.isfinite(lower.value) and math.isfinite(upper.value) else None
    return _rows_svg(forest, rows, None, told, band)


def _rows_svg(
    forest: Forest, rows: Sequence[Row], centre: float | None, told: str, band: tuple[float, float] | None = None
) -> str:
    """All rows, and what stands behind them. centre: a dotted line. band: a shaded range."""
    aside = any(row.aside for row in rows)
    left, right = 218.0, 336.0 if aside else 500.0
    low, high = _range(forest, rows, centre)
    step = 20.0 if len(rows) <= 12 else 18.0
    bottom = _TOP + step * len(rows) + 4

    def across(value: float) -> float:
        return left + (right - left) * min(1.0, max(0.0, (value - low) / (high - low)))

    parts = _heads(forest, left, right, aside)
    if band is not None:
        x = across(band[0])
        parts.append(
            f'<rect x="{number(x)}" y="{number(_TOP)}" width="{number(across(band[1]) - x)}" '
            f'height="{number(bottom - _TOP)}" class="band"/>'
        )
    for value in ticks(low, high, 5 if not aside else 4):
        parts.append(line(across(value), _TOP, across(value), bottom, "grid"))
        parts.append(text(across(value), bottom + 16, f"{value:g}", "soft", "middle"))
    if forest.reference is not None and low <= forest.reference[0] <= high:
        at = across(forest.reference[0])
        parts.append(line(at, _TOP, at, bottom, "reference"))
    if centre is not None and math.isfinite(centre):
        parts.append(line(across(centre), _TOP, across(centre), bottom, "centre"))
    parts.append(line(left, bottom, right, bottom, "axis"))
    for index, row in enumerate(rows):
        y = _TOP + step * (index + 0.5) + 2
        if row.kind == "pooled" and index:
            parts.append(line(0, y - step / 2, _WIDTH, y - step / 2, "grid"))
        parts += _row(forest, row, y, aside)
        if row.span is not None and math.isfinite(row.span.value):
            parts += _drawn(row, y, [across(end) for end in _ends(row.span)], (low, high))
    parts.append(text((left + right) / 2, bottom + 33, forest.axis, "soft", "middle"))
    return svg(forest.name, (_WIDTH, bottom + _BOTTOM), forest.title, told, parts)


def _heads(forest: Forest, left: float, right: float, aside: bool) -> list[str]:
    names, patients, figures, last = forest.columns
    heads = [text(0, 14, names, "soft"), text(left - 12, 14, patients, "soft", "end")]
    heads.append(text(_FIGURES_END if aside else _WIDTH, 14, figures, "soft", "end"))
    if aside:
        heads.append(text(_WIDTH, 14, last, "soft", "end"))
    return heads


def _row(forest: Forest, row: Row, y: float, aside: bool) -> list[str]:
    """Words of a row."""
    style = "strong" if row.kind in ("pooled", "heading") else ""
    indent = 10.0 if row.grouped else 0.0
    room = _WIDTH if row.kind == "heading" else 145.0 - indent
    parts = [text(indent, y + 4, shortened(row.name, room), style, whole=row.name)]
    if row.patients:
        parts.append(text(206, y + 4, row.patients, "num", "end"))
    if row.kind == "heading":
        return parts
    if row.span is None:
        parts.append(text(226, y + 4, shortened(row.silent or "no figure", _WIDTH - 226), "silent"))
        return parts
    words = show_span(row.span, forest.digits)
    if row.kind == "range":
        words = f"{_shown(row.span.low, forest.digits)} to {_shown(row.span.high, forest.digits)}"
    parts.append(text(_FIGURES_END if aside else _WIDTH, y + 4, words, f"num {style}".strip(), "end"))
    if row.aside:
        parts.append(text(_WIDTH, y + 4, row.aside, "num", "end"))
    return parts


def _drawn(row: Row, y: float, places: Sequence[float], limits: tuple[float, float]) -> list[str]:
    """The figure of a row: at, from, to on the drawing."""
    at, start, end = places
    if row.span is None:
        return []
    if row.kind == "pooled":
        return [polyline([(start, y), (at, y - 6), (end, y), (at, y + 6)], "diamond", closed=True)]
    style = f"whisker m{row.model}"
    parts = [line(start, y, end, y, style if row.kind == "plain" else "range")]
    for place, beyond in ((start, row.span.low < limits[0]), (end, row.span.high > limits[1])):
        if beyond:  # an arrow says that it goes on
            tip = 5.0 if place == end else -5.0
            parts.append(polyline([(place - tip, y - 4), (place, y), (place - tip, y + 4)], "arrow"))
        elif row.kind == "range":
            parts.append(line(place, y - 5, place, y + 5, "range"))
    if row.kind == "plain":
        half = 4.0 if row.weight is None else 2.5 + 4.0 * math.sqrt(min(1.0, max(0.0, row.weight)))
        parts.append(mark(at, y, row.model, half, f"{row.name}: {show_span(row.span)}"))
    return parts


def _ends(span: Span) -> tuple[float, float, float]:
    """Value, low, high; where no limit is known, the value itself."""
    return (
        span.value,
        span.value if math.isnan(span.low) else span.low,
        span.value if math.isnan(span.high) else span.high,
    )


def _range(forest: Forest, rows: Sequence[Row], centre: float | None) -> tuple[float, float]:
    """What the axis shows: all figures and limits that are numbers, and a bit more, within what is possible."""
    seen = finite([end for row in rows if row.span is not None for end in row.span])
    seen += finite([centre] if centre is not None else [])
    seen += [forest.reference[0]] if forest.reference is not None else []
    if not seen:
        return (0.0, 1.0)
    low, high = min(seen), max(seen)
    room = 0.04 * (high - low) or 0.05 * abs(high) or 0.5
    low, high = max(forest.limits[0], low - room), min(forest.limits[1], high + room)
    return (low, high) if high > low else (low - 0.5, high + 0.5)


def _shown(value: float, digits: int) -> str:
    if math.isnan(value):
        return "–"
    if math.isinf(value):
        return "∞" if value > 0 else "−∞"
    return f"{value + 0.0:.{digits}f}".replace("-", "−")

"""Figures of the audit's page as inline SVG, in the page's own colours; the same input gives the same text."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from html import escape

import numpy as np
from numpy.typing import NDArray

__all__ = ["bars_svg", "roc_svg", "scores_svg"]

_WIDTH, _HEIGHT = 440, 250
_LEFT, _RIGHT, _TOP, _BOTTOM = 46, 22, 12, 40
_INK = {"with": "var(--with)", "without": "var(--without)"}


def _frame(content: Sequence[str], label: str, height: int = _HEIGHT) -> str:
    return f'<svg viewBox="0 0 {_WIDTH} {height}" role="img" aria-label="{escape(label)}">{"".join(content)}</svg>'


def _text(x: float, y: float, words: str, style: str = "") -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" {style}>{escape(words)}</text>'


def _across(share: float) -> float:
    return _LEFT + share * (_WIDTH - _LEFT - _RIGHT)


def _up(share: float) -> float:
    return _HEIGHT - _BOTTOM - share * (_HEIGHT - _TOP - _BOTTOM)


def roc_svg(curves: Mapping[str, Sequence[tuple[float, float]]], least: float) -> str:
    """Curves (false, true positive rate) on logarithmic axes from `least` to 1, and the line of guessing.

    curves: "with" and "without" protection, whichever there is.
    """
    least = 10.0 ** math.floor(math.log10(min(least, 0.1)))

    def place(rate: float) -> float:
        return 1 - math.log10(max(rate, least)) / math.log10(least)

    parts = []
    for power in range(0, round(math.log10(least)) - 1, -1):
        rate, at = 10.0**power, 1 - power / math.log10(least)
        name = f"{100 * rate:g} %"
        parts.append(f'<line class="grid" x1="{_LEFT}" x2="{_WIDTH - _RIGHT}" y1="{_up(at):.1f}" y2="{_up(at):.1f}"/>')
        parts.append(_text(_LEFT - 6, _up(at) + 4, name, 'text-anchor="end"'))
        parts.append(_text(_across(at), _HEIGHT - _BOTTOM + 16, name, 'text-anchor="middle"'))
    parts.append(
        f'<line class="guess" x1="{_across(0):.1f}" y1="{_up(0):.1f}" x2="{_across(1):.1f}" y2="{_up(1):.1f}"/>'
    )
    parts.append(_text(_across(0.5), _HEIGHT - 4, "strangers taken for members", 'text-anchor="middle"'))
    for kind, curve in curves.items():
        points, last = [], (least, least)
        for false, true in curve:
            points += [(false, last[1]), (false, true)]
            last = (false, true)
        path = " ".join(f"{_across(place(x)):.1f},{_up(place(y)):.1f}" for x, y in points)
        parts.append(f'<polyline class="curve" stroke="{_INK[kind]}" points="{path}"/>')
    return _frame(parts, "Members found against strangers taken for members")


def scores_svg(scores: NDArray[np.float64], included: NDArray[np.bool_], kind: str) -> str:
    """How the scores of canaries that were in and out are spread, from the first to the 99.5th of a hundred parts.

    kind: "with" or "without" noise, for the colour.
    """
    low, high = (float(v) for v in np.quantile(scores, [0.005, 0.995]))
    if high <= low:
        low, high = low - 0.5, high + 0.5
    edges = np.linspace(low, high, 41)
    held = np.clip(scores, low, high)
    counts = [np.histogram(held[chosen], edges)[0] for chosen in (~included, included)]
    most = max(1, int(max(c.max() for c in counts)))
    parts = []
    for group, opacity, colour in zip(counts, (0.55, 0.6), ("var(--soft)", _INK[kind]), strict=True):
        for index, count in enumerate(group):
            if count:
                x, y = _across(index / 40), _up(count / most)
                parts.append(
                    f'<rect x="{x:.1f}" y="{y:.1f}" width="{(_across(1) - _across(0)) / 40 - 0.6:.1f}" '
                    f'height="{_up(0) - y:.1f}" fill="{colour}" fill-opacity="{opacity}"/>'
                )
    parts.append(f'<line class="axis" x1="{_LEFT}" x2="{_WIDTH - _RIGHT}" y1="{_up(0):.1f}" y2="{_up(0):.1f}"/>')
    for share in (0.0, 0.5, 1.0):
        value = f"{low + share * (high - low):.3g}"
        parts.append(_text(_across(share), _HEIGHT - _BOTTOM + 16, value, 'text-anchor="middle"'))
    parts.append(_text(_across(0.5), _HEIGHT - 4, "score of a canary", 'text-anchor="middle"'))
    return _frame(parts, "Scores of canaries that were in and that were out")


def bars_svg(rows: Sequence[tuple[str, float, str]], claim: float | None) -> str:
    """One bar for each measured epsilon, (name, value, kind), and a line at the claim."""
    height = 34 * len(rows) + 40
    left = 140
    most = max([value for _, value, _ in rows] + ([claim] if claim is not None else []) + [1e-9]) * 1.12
    parts = []

    def at(value: float) -> float:
        return left + value / most * (_WIDTH - left - 44)

    if claim is not None:
        bottom = height - 24
        parts.append(f'<line class="claim" x1="{at(claim):.1f}" x2="{at(claim):.1f}" y1="4" y2="{bottom}"/>')
        parts.append(_text(at(claim), bottom + 16, f"promised: at most {claim:.2f}", 'text-anchor="middle"'))
    for index, (name, value, kind) in enumerate(rows):
        y = 12 + 34 * index
        parts.append(_text(left - 8, y + 15, name, 'text-anchor="end"'))
        parts.append(
            f'<rect x="{left}" y="{y}" width="{max(at(value) - left, 1):.1f}" height="20" fill="{_INK[kind]}"/>'
        )
        parts.append(_text(at(value) + 6, y + 15, f"{value:.2f}", 'class="value"'))
    return _frame(parts, "Measured lower bounds of epsilon, and the promised upper bound", height)

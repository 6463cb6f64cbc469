"""The drawing of what a run spends: epsilon over charges beside its ceilings, as an inline SVG. Pure."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple
from xml.sax.saxutils import escape

__all__ = ["Point", "spending_svg", "ticks"]

_WIDTH, _HEIGHT = 720.0, 260.0
_LEFT, _RIGHT, _TOP, _BOTTOM = 44.0, 120.0, 16.0, 40.0
_MOST_TICKS = 5
_LEAST_APART = 15.0


class Point(NamedTuple):
    """Epsilon after so many charges."""

    charges: int
    epsilon: float


def ticks(highest: float, *, whole: bool = False) -> tuple[float, ...]:
    """Round values from 0 that reach the highest, at most six; whole: no fractions.

    >>> ticks(8.3), ticks(3, whole=True)
    ((0.0, 2.0, 4.0, 6.0, 8.0), (0.0, 1.0, 2.0, 3.0))
    """
    if highest <= 0:
        return (0.0,)
    scale = 10.0 ** math.floor(math.log10(highest / _MOST_TICKS))
    step = next(scale * factor for factor in (1, 2, 5, 10) if highest / (scale * factor) <= _MOST_TICKS)
    if whole:
        step = max(1.0, float(round(step)))
    return tuple(round(index * step, 12) for index in range(math.floor(highest / step + 1e-9) + 1))


def spending_svg(points: Sequence[Point], levels: Mapping[str, float]) -> str:
    """A line through the points, and a dashed line for each level, named at its end.

    points: finite, in their order, from (0, 0) on. Returns an <svg> element without scripts, links or dates; its
    colours are variables of the page.
    """
    highest = max([*(point.epsilon for point in points), *levels.values()]) * 1.05 or 1.0
    last = max(points[-1].charges, 1)

    def across(charges: float) -> float:
        return round(_LEFT + (_WIDTH - _LEFT - _RIGHT) * charges / last, 1)

    def up(value: float) -> float:
        return round(_HEIGHT - _BOTTOM - (_HEIGHT - _TOP - _BOTTOM) * value / highest, 1)

    end = _WIDTH - _RIGHT
    parts = [f'<svg viewBox="0 0 {_WIDTH:g} {_HEIGHT:g}" aria-hidden="true" focusable="false" font-size="13">']
    for value in ticks(highest):
        parts += [
            f'<line x1="{_LEFT:g}" x2="{end:g}" y1="{up(value)}" y2="{up(value)}" stroke="var(--rule)"/>',
            _text(_LEFT - 8, up(value) + 4, f"{value:g}", "end", "var(--soft)"),
        ]
    for value in ticks(last, whole=True):
        parts.append(_text(across(value), _HEIGHT - _BOTTOM + 18, f"{value:g}", "middle", "var(--soft)"))
    parts.append(_text((_LEFT + end) / 2, _HEIGHT - 3, "charges", "middle", "var(--soft)"))
    names = [(up(value), name, "var(--alarm)") for name, value in levels.items()]
    for at, _, colour in names:
        parts.append(
            f'<line x1="{_LEFT:g}" x2="{end:g}" y1="{at}" y2="{at}" stroke="{colour}" stroke-width="1.5" '
            'stroke-dasharray="5 4"/>'
        )
    line = " ".join(f"{across(point.charges)},{up(point.epsilon)}" for point in points)
    parts.append(f'<polyline points="{line}" fill="none" stroke="var(--line)" stroke-width="2.5"/>')
    parts.append(f'<circle cx="{across(last)}" cy="{up(points[-1].epsilon)}" r="4" fill="var(--line)"/>')
    names.append((up(points[-1].epsilon), "spent", "var(--line)"))
    previous = -math.inf
    for at, name, colour in sorted(names):
        previous = max(at, previous + _LEAST_APART)
        parts.append(_text(end + 10, previous + 4, name, "start", colour))
    return "".join([*parts, "</svg>"])


def _text(x: float, y: float, words: str, anchor: str, colour: str) -> str:
    return f'<text x="{x:g}" y="{y:g}" text-anchor="{anchor}" fill="{colour}">{escape(words)}</text>'

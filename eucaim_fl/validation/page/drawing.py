"""What the plots of the validation's page are made of: axes, lines, marks and words of an inline SVG.

Everything is told by form as well as by colour: a second model has dashes and hollow squares. Colours, fonts and widths
are classes of the page's style sheet, so that one drawing serves screen and print. All words are escaped here. The same
values give the same text.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from typing import NamedTuple

__all__ = [
    "Axes",
    "Span",
    "finite",
    "line",
    "mark",
    "number",
    "polyline",
    "shortened",
    "svg",
    "text",
    "ticks",
    "wrapped",
]

_LETTER = 0.56
"""Mean width of a letter, in sizes of the font."""


class Span(NamedTuple):
    """A figure with its limits; NaN where it is not defined, infinite where a limit has no end."""

    value: float
    low: float = math.nan
    high: float = math.nan


def finite(values: Sequence[float]) -> list[float]:
    """Those that are numbers."""
    return [value for value in values if math.isfinite(value)]


def number(value: float) -> str:
    """A place on the drawing, to a tenth of its unit.

    >>> number(12.3456), number(7.0), number(-0.01)
    ('12.3', '7', '0')
    """
    return f"{round(value, 1) + 0.0:g}"


def ticks(low: float, high: float, most: int = 6) -> tuple[float, ...]:
    """Round numbers from low to high, at most `most` + 1; the lower one alone where there is no way between them.

    >>> ticks(0.0, 1.0), ticks(0.62, 0.93, 4)
    ((0.0, 0.2, 0.4, 0.6, 0.8, 1.0), (0.7, 0.8, 0.9))
    """
    if not high > low:
        return (low,)
    scale = 10.0 ** math.floor(math.log10((high - low) / most))
    step = next(scale * factor for factor in (1, 2, 5, 10) if (high - low) / (scale * factor) <= most)
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return tuple(round(index * step, 12) + 0.0 for index in range(first, last + 1))


def shortened(words: str, width: float, size: float = 12.0) -> str:
    """Words as they fit into a width, the rest given as an ellipsis.

    >>> shortened("university-hospital-of-somewhere", 90)
    'university-h…'
    """
    most = max(2, int(width / (size * _LETTER)))
    return words if len(words) <= most else words[: most - 1] + "…"


def wrapped(words: str, width: float, size: float = 12.0) -> list[str]:
    """Words in lines that fit into a width, broken between words, after hyphens, and where nothing else helps.

    >>> wrapped("Sensitivity at 0.3", 80), wrapped("mammo-triage-2", 80)
    (['Sensitivity', 'at 0.3'], ['mammo-', 'triage-2'])
    """
    most = max(2, int(width / (size * _LETTER)))
    lines: list[str] = []
    for word in words.split():
        parts = [word] if len(word) <= most else re.findall(r"[^-_]+[-_]*|[-_]+", word)
        pieces = [part[at : at + most] for part in parts for at in range(0, len(part), most)]
        for number_of, piece in enumerate(pieces):
            room = most - (len(lines[-1]) if lines else most)
            between = "" if number_of else " "
            if lines and len(between) + len(piece) <= room:
                lines[-1] += between + piece
            else:
                lines.append(piece)
    return lines


def text(x: float, y: float, words: str, style: str = "", anchor: str = "start", whole: str = "") -> str:
    """Words at a place, escaped. anchor: start, middle or end. style: classes. whole: told when pointed at, if not all
    of it is in the words."""
    where = "" if anchor == "start" else f' text-anchor="{anchor}"'
    title = f"<title>{escape(whole)}</title>" if whole and whole != words else ""
    return f'<text x="{number(x)}" y="{number(y)}"{where}{_class(style)}>{escape(words)}{title}</text>'


def line(x1: float, y1: float, x2: float, y2: float, style: str) -> str:
    """A straight line."""
    return f'<line x1="{number(x1)}" y1="{number(y1)}" x2="{number(x2)}" y2="{number(y2)}"{_class(style)}/>'


def polyline(points: Sequence[tuple[float, float]], style: str, *, closed: bool = False) -> str:
    """A line through points, or the area that they enclose."""
    what = "polygon" if closed else "polyline"
    return f'<{what} points="{" ".join(f"{number(x)},{number(y)}" for x, y in points)}"{_class(style)}/>'


def mark(x: float, y: float, which: int, half: float = 4.0, words: str = "") -> str:
    """The mark of a model: a full dot for the first, a hollow square for the second. words: told when pointed at."""
    title = f"<title>{escape(words)}</title>" if words else ""
    if which == 0:
        return f'<circle cx="{number(x)}" cy="{number(y)}" r="{number(half)}" class="dot m0">{title}</circle>'
    side = number(2 * half)
    corner = f'x="{number(x - half)}" y="{number(y - half)}"'
    return f'<rect {corner} width="{side}" height="{side}" class="dot m1">{title}</rect>'


def svg(name: str, size: tuple[float, float], title: str, told: str, parts: Sequence[str]) -> str:
    """The drawing. name: unique on the page; letters, digits and hyphens. title, told: what it shows, for who can't
    see it."""
    ids = f"{escape(name)}-t", f"{escape(name)}-d"
    return (
        f'<svg viewBox="0 0 {number(size[0])} {number(size[1])}" role="img" aria-labelledby="{ids[0]} {ids[1]}" '
        f'style="max-width:{number(1.25 * size[0])}px">'
        f'<title id="{ids[0]}">{escape(title)}</title><desc id="{ids[1]}">{escape(told)}</desc>{"".join(parts)}</svg>'
    )


@dataclass(frozen=True)
class Axes:
    """A field with two axes. x, y: their ranges. box: left, top, right, bottom on the drawing. names: of the axes."""

    x: tuple[float, float]
    y: tuple[float, float]
    box: tuple[float, float, float, float]
    names: tuple[str, str] = ("", "")

    def across(self, value: float) -> float:
        """Where a value of x lies; what is beyond the range lies at its end."""
        left, _, right, _ = self.box
        return left + (right - left) * _share(value, self.x)

    def up(self, value: float) -> float:
        """Where a value of y lies; what is beyond the range lies at its end."""
        _, top, _, bottom = self.box
        return bottom - (bottom - top) * _share(value, self.y)

    def path(self, points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
        """Points of values as places; those that are not numbers are left out."""
        return [(self.across(x), self.up(y)) for x, y in points if math.isfinite(x) and math.isfinite(y)]

    def frame(self) -> list[str]:
        """Grid, numbers and names of both axes."""
        left, top, right, bottom = self.box
        parts = []
        for value in ticks(*self.y, 5):
            at = self.up(value)
            parts += [line(left, at, right, at, "grid"), text(left - 6, at + 4, f"{value:g}", "soft", "end")]
        for value in ticks(*self.x, 5):
            at = self.across(value)
            parts += [line(at, top, at, bottom, "grid"), text(at, bottom + 16, f"{value:g}", "soft", "middle")]
        parts += [line(left, bottom, right, bottom, "axis"), line(left, top, left, bottom, "axis")]
        parts.append(text((left + right) / 2, bottom + 33, self.names[0], "soft", "middle"))
        middle = (top + bottom) / 2
        parts.append(
            f'<text transform="translate(11 {number(middle)}) rotate(-90)" text-anchor="middle" class="soft">'
            f"{escape(self.names[1])}</text>"
        )
        return parts


def _share(value: float, limits: tuple[float, float]) -> float:
    low, high = limits
    return min(1.0, max(0.0, (value - low) / (high - low)))


def _class(style: str) -> str:
    return f' class="{style}"' if style else ""

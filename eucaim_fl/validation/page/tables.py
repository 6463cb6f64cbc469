"""Figures of all hospitals at a glance: a table of shades for models and hospitals, and who took part with how many."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from eucaim_fl.validation.page.drawing import number, shortened, svg, text, wrapped

__all__ = ["Cell", "Taking", "matrix_svg", "participation_svg"]

_WIDTH, _ROW = 680.0, 20.0
_SHADES = 5


@dataclass(frozen=True)
class Cell:
    """A figure in words, and how good it is beside the others in its column: 0 the worst, 1 the best; NaN: no shade."""

    words: str
    good: float = math.nan


@dataclass(frozen=True)
class Taking:
    """A hospital's part. patients: with figures. failed: images without an answer. words: why there is nothing."""

    site: str
    patients: int
    failed: int = 0
    words: str = ""


def matrix_svg(
    name: str, title: str, columns: Sequence[Sequence[str]], rows: Sequence[tuple[str, Sequence[Cell]]]
) -> str:
    """One row a hospital, one column a model's figure; the darker, the worse, and every figure is written out.

    columns: heads in parts, each of which begins a line. rows: name and as many cells as there are columns.
    """
    left = 170.0
    wide = (_WIDTH - left) / max(1, len(columns))
    parts = []
    heads = [[one for part in column for one in wrapped(part, wide - 8)] for column in columns]
    most = max(map(len, heads), default=0)
    top = 8.0 + 15 * most
    for index, lines in enumerate(heads):
        middle = left + wide * (index + 0.5)
        for number_of, words in enumerate(lines):
            y = top - 10 - 15 * (len(lines) - 1 - number_of)
            parts.append(text(middle, y, words, "soft", "middle", whole=", ".join(columns[index])))
    for at, (site, cells) in enumerate(rows):
        y = top + _ROW * at
        parts.append(text(0, y + 14, shortened(site, left - 12), whole=site))
        for index, cell in enumerate(cells):
            x = left + wide * index
            style = "cell none" if math.isnan(cell.good) else f"cell s{_shade(cell.good)}"
            parts.append(
                f'<rect x="{number(x + 1)}" y="{number(y)}" width="{number(wide - 2)}" height="{number(_ROW - 2)}" '
                f'class="{style}"/>'
            )
            words = shortened(cell.words, wide - 8)
            parts.append(text(x + wide / 2, y + 13.5, words, f"in{_shade(cell.good)}", "middle", whole=cell.words))
    told = f"{len(rows)} hospitals, {len(columns)} columns. Every figure is written in its cell."
    return svg(name, (_WIDTH, top + 4 + _ROW * len(rows)), title, told, parts)


def participation_svg(name: str, rows: Sequence[Taking]) -> str:
    """How many patients each hospital's figures are of, as bars; hatched behind: images that got no answer."""
    left, right = 170.0, 490.0
    most = max((row.patients + row.failed for row in rows), default=0) or 1
    parts = [text(left - 12, 14, "Hospital", "soft", "end"), text(left, 14, "Patients with figures", "soft")]
    for at, row in enumerate(rows):
        y = 22 + _ROW * at
        parts.append(text(left - 12, y + 14, shortened(row.site, left - 14), "", "end", whole=row.site))
        wide = (right - left) * row.patients / most
        behind = (right - left) * row.failed / most
        for start, length, style in ((left, wide, "bar"), (left + wide, behind, "failed")):
            if length:
                place = f'x="{number(start)}" y="{number(y + 3)}" width="{number(length)}" height="14"'
                parts.append(f'<rect {place} class="{style}"/>')
        words = row.words or f"{row.patients:,}"
        words += f", {row.failed} images without an answer" if row.failed else ""
        at_x = left + wide + behind + 6
        parts.append(text(at_x, y + 14, shortened(words, _WIDTH - at_x), "silent" if row.words else "num", whole=words))
    told = f"{sum(row.patients > 0 for row in rows)} of {len(rows)} hospitals have figures."
    return svg(name, (_WIDTH, 26 + _ROW * len(rows)), "Patients by hospital", told, parts)


def _shade(good: float) -> int:
    """0 for the best (and for what has no shade) to 4 for the worst."""
    if math.isnan(good):
        return 0
    return min(_SHADES - 1, int((1 - min(1.0, max(0.0, good))) * _SHADES))

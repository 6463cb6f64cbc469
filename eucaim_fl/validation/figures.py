"""Figures of the run report: learning curves as inline SVG, pictures as PNG; the same input gives the same bytes.

Colours are CSS variables of the page (`--ink`, `--soft`, `--rule`, `--site-0` …), so that one drawing serves light,
dark and print.
"""

from __future__ import annotations

import base64
import io
import math
import re
import struct
import zlib
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

__all__ = ["SITE_COLOURS", "curves_svg", "png_data_uri"]

Curve = Sequence[tuple[int, float]]

SITE_COLOURS = 6
"""With more sites than colours, curves are drawn alike and only the lowest and the highest are named."""

_INK, _SOFT, _RULE = "#010101", "#020202", "#030303"
_VARIABLES = {_INK: "var(--ink)", _SOFT: "var(--soft)", _RULE: "var(--rule)"} | {
    f"#0400{index:02x}": f"var(--site-{index})" for index in range(SITE_COLOURS)
}
_WIDTH_IN, _HEIGHT_IN, _FONT_PT = 4.7, 3.0, 11.0
_STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",
    "text.parse_math": False,
    "font.family": "sans-serif",
    "font.size": _FONT_PT,
    "axes.unicode_minus": True,
}
_NO_METADATA = {"Date": None, "Creator": None, "Format": None, "Type": None}
_LONGEST_NAME = 14


def curves_svg(name: str, sites: Mapping[str, Curve], pooled: Curve, rounds: int, *, unit_range: bool = False) -> str:
    """Curves over completed rounds, each named at its end; the pooled one is thick.

    name: short and unique on the page, prefix of the drawing's ids. sites, pooled: (round, value), gaps where a round
    that somebody measured is missing or not finite. rounds: the axis ends there. unit_range: the values lie in 0…1.
    Returns an <svg> element without scripts, links, dates or fixed colours.
    """
    with mpl.rc_context({**_STYLE, "svg.hashsalt": name}):
        figure = Figure(figsize=(_WIDTH_IN, _HEIGHT_IN))
        figure.patch.set_visible(False)
        canvas = FigureCanvasSVG(figure)
        axes = figure.add_axes((0.115, 0.175, 0.645, 0.785))
        _frame(axes, rounds)
        ends = _draw(axes, sites, pooled, rounds)
        _limits(axes, [v for curve in (*sites.values(), pooled) for _, v in curve], unit_range)
        _name_ends(axes, ends, rounds)
        stream = io.StringIO()
        canvas.print_figure(
            stream, format="svg", metadata={"Date": None, "Creator": None, "Format": None, "Type": None}
        )
    return _inline(stream.getvalue(), name)


def png_data_uri(picture: NDArray[np.uint8]) -> str:
    """An RGB picture (H, W, 3) as a `data:` address of a PNG file."""
    height, width = picture.shape[:2]
    rows = np.zeros((height, 1 + width * 3), dtype=np.uint8)  # every row starts with filter type 0
    rows[:, 1:] = picture.reshape(height, -1)

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    data = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header)
    data += chunk(b"IDAT", zlib.compress(rows.tobytes(), 9)) + chunk(b"IEND", b"")
    return "data:image/png;base64," + base64.b64encode(data).decode()


def _frame(axes: Axes, rounds: int) -> None:
    axes.set_facecolor("none")
    axes.set_xlim(0, max(rounds, 1))
    axes.xaxis.set_major_locator(MaxNLocator(nbins=6, integer=True, min_n_ticks=1))
    axes.yaxis.set_major_locator(MaxNLocator(nbins=5))
    axes.set_xlabel("rounds completed", color=_SOFT, labelpad=3)
    axes.tick_params(length=0, labelcolor=_SOFT, pad=4)
    axes.grid(axis="y", color=_RULE, linewidth=0.7)
    axes.set_axisbelow(True)
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
    axes.spines["bottom"].set_color(_RULE)


def _draw(axes: Axes, sites: Mapping[str, Curve], pooled: Curve, rounds: int) -> list[tuple[float, str, str, bool]]:
    """Draw all curves; (last value, name, colour, bold) of those that get a name."""
    few = len(sites) <= SITE_COLOURS
    ends: list[tuple[float, str, str, bool]] = []
    measured = {at for curve in (*sites.values(), pooled) for at, value in curve if math.isfinite(value)}
    places = np.array(sorted(at for at in measured if 0 <= at <= rounds), dtype=np.int64)
    for index, (site, curve) in enumerate(sites.items()):
        colour = f"#0400{index:02x}" if few else _SOFT
        last = _line(axes, curve, places, colour, 1.3 if few else 0.6)
        if last is not None:
            ends.append((last, site if len(site) <= _LONGEST_NAME else site[: _LONGEST_NAME - 1] + "…", colour, False))
    if not few:
        ends = [min(ends), max(ends)] if len(ends) > 1 else ends
    last = _line(axes, pooled, places, _INK, 2.6)
    if last is not None:
        ends.append((last, "pooled", _INK, True))
    return ends


def _line(axes: Axes, curve: Curve, places: NDArray[np.int64], colour: str, width: float) -> float | None:
    """Draw one curve with gaps; its last value, or None if it has none. A point between gaps is a dot.

    places: the rounds that somebody measured, ascending; what lies between two of them is no gap.
    """
    found = dict(curve)
    values = np.array([found.get(int(at), math.nan) for at in places])
    known = np.isfinite(values)
    if not known.any():
        return None
    axes.plot(places, values, color=colour, linewidth=width, solid_capstyle="round", clip_on=False)
    padded = np.concatenate(([False], known, [False]))
    alone = known & ~padded[:-2] & ~padded[2:]
    axes.plot(places[alone], values[alone], ".", color=colour, markersize=3 + width, clip_on=False)
    return float(values[known][-1])


def _limits(axes: Axes, values: Sequence[float], unit_range: bool) -> None:
    finite = [v for v in values if math.isfinite(v)] or [0.0, 1.0]
    low, high = min(0.0, *finite), max(finite)
    if unit_range:
        high = min(1.0, max(high * 1.05, 0.1))
    elif high <= low:
        high = low + 1.0
    axes.set_ylim(low, high if unit_range else low + (high - low) * 1.05)


def _name_ends(axes: Axes, ends: list[tuple[float, str, str, bool]], rounds: int) -> None:
    """Names to the right of the last values, moved apart where they would overlap."""
    low, high = axes.get_ylim()
    step = 1.35 * _FONT_PT / (axes.get_position().height * _HEIGHT_IN * 72)
    places: list[float] = []
    ordered = sorted(ends, key=lambda end: (end[0], end[1]))
    for value, *_ in ordered:
        wish = (value - low) / (high - low)
        places.append(max(wish, places[-1] + step) if places else wish)
    excess = max(places[-1] - 1.0, 0.0) if places else 0.0
    for index in range(len(places) - 1, -1, -1):  # what was pushed over the top comes down again
        ceiling = places[index + 1] - step if index + 1 < len(places) else places[index] - excess
        places[index] = min(places[index], ceiling)
    for (_, name, colour, bold), place in zip(ordered, places, strict=True):
        axes.annotate(
            name, (1.0, place), xycoords="axes fraction", xytext=(7, 0), textcoords="offset points", va="center",
            color=colour, fontweight="bold" if bold else "normal", annotation_clip=False,
        )  # fmt: skip


def _inline(svg: str, name: str) -> str:
    """Only the <svg> element: no prolog, metadata, style sheet, namespaces or fixed size; ids made unique."""
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>|<style.*?</style>|<!--.*?-->", "", svg, flags=re.DOTALL)
    svg = re.sub(r' xmlns(:\w+)?="[^"]*"', "", svg)
    svg = re.sub(r'<svg [^>]*?(viewBox="[^"]*")[^>]*>', r'<svg \1 aria-hidden="true" focusable="false">', svg, count=1)
    svg = svg.replace("xlink:href=", "href=")
    svg = re.sub(r'\bid="', f'id="{name}-', svg)
    svg = re.sub(r'href="#', f'href="#{name}-', svg)
    svg = svg.replace("url(#", f"url(#{name}-")
    svg = re.sub(r"font-family: [^;\"]*;? ?", "", svg)  # the page's own
    for colour, variable in _VARIABLES.items():
        svg = svg.replace(colour, variable)
    return svg.strip()

"""The table of what was compared: how many numbers, how many outside, and the largest difference of each metric."""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence

from centralised_people import Path, Row

__all__ = ["in_bounds", "largest", "metric_of", "report"]

_CLOSE = 1e-9  # to which exact figures must agree, absolute below 1 and relative above
_PLACES = {
    "between": "hospitals at large", "differences": "groups of patients", "half_widths": "half widths",
    "confusion": "counts", "thresholds": "counts", "lesions": "counts", "undefined": "counts", "volumes": "volumes",
    "told": "withheld", "gate": "withheld",
}  # fmt: skip
_CURVES = {
    "roc": "ROC curve", "roc_band": "ROC band", "pr": "precision-recall curve", "pr_band": "precision-recall band",
    "decision": "decision curve", "calibration": "calibration groups",
}  # fmt: skip


def metric_of(path: Path) -> str:
    """What a number belongs to: a metric without threshold, or a part of the report.

    >>> metric_of(("models", "0", "scopes", "0", "figures", "sensitivity@0.5", "low"))
    'sensitivity'
    """
    if "curves" in path:
        part = path[path.index("curves") + 2] if len(path) > path.index("curves") + 2 else ""
        return _CURVES.get(part, "counts")
    if path[0] == "comparisons":
        return "two models"
    for part, name in _PLACES.items():
        if part in path:
            return name
    if "figures" in path and path[-1] != "figures":
        return path[path.index("figures") + 1].partition("@")[0]
    return "counts"


def _number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def in_bounds(row: Row) -> float | None:
    """A difference in units of its bound; None of what has none: no numbers, ends of ranges, no known bound."""
    if not (_number(row.federated) and _number(row.centralised)) or not math.isfinite(row.bound):
        return None
    room = row.bound + _CLOSE * max(1.0, abs(row.federated), abs(row.centralised))
    return abs(row.difference) / room


def largest(rows: Sequence[Row]) -> list[tuple[str, str, int, int, float, float]]:
    """By metric and kind: how many, how many outside, the largest difference, and the largest one in units of its
    bound."""
    by: dict[tuple[str, str], list[Row]] = defaultdict(list)
    for row in rows:
        by[metric_of(row.path), row.kind].append(row)
    found = []
    for (metric, kind), own in sorted(by.items()):
        units = [(abs(row.difference), unit) for row in own if (unit := in_bounds(row)) is not None]
        outside = sum(not row.within for row in own)
        found.append(
            (
                metric,
                kind,
                len(own),
                outside,
                max((one for one, _ in units), default=math.nan),
                max((one for _, one in units), default=math.nan),
            )
        )
    return found


def _lines(rows: Sequence[Row]) -> list[str]:
    lines = ["| metric | kind | numbers | outside | largest difference | in units of its bound |"]
    lines += ["|---|---|--:|--:|--:|--:|"]
    for metric, kind, count, outside, difference, unit in largest(rows):
        units = "–" if math.isnan(unit) else f"{unit:.1e}" if kind == "exact" else f"{unit:.2f}"
        shown = "–" if math.isnan(difference) else f"{difference:.1e}"
        lines.append(f"| {metric} | {kind} | {count} | {outside or 0} | {shown} | {units} |")
    return lines


def report(found: Mapping[str, Sequence[Row]]) -> str:
    """Markdown: a line for each comparison, then a line for each metric, over all comparisons that tell alike."""
    lines = ["| patients of | numbers | exact | within a range | named as withheld | outside of their bounds |"]
    lines += ["|---|--:|--:|--:|--:|--:|"]
    for title, rows in found.items():
        kinds, outside = Counter(row.kind for row in rows), sum(not row.within for row in rows)
        ranged = len(rows) - kinds["exact"] - kinds["withheld"]
        lines.append(f"| {title} | {len(rows)} | {kinds['exact']} | {ranged} | {kinds['withheld']} | {outside} |")
    groups: dict[str, list[Row]] = defaultdict(list)
    for title, rows in found.items():
        name = title.partition(",")[0].removesuffix("_chance")
        groups[f"{name}, under a hospital's policy" if "policy" in title else name].extend(rows)
    for name, rows in groups.items():
        lines += ["", f"**{name}**, all of these together:", "", *_lines(rows)]
    return "\n".join(lines) + "\n"

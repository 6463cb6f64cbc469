"""The benchmark as one HTML page that needs nothing from elsewhere and can be printed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from eucaim_fl.benchmark.sheets import Sheet
from eucaim_fl.pages import filled

__all__ = ["render"]

_SHADES = 8


def render(title: str, table: Mapping[str, Any], sheets: Sequence[Sheet], command: str) -> str:
    """The page: what was asked, whether expectations hold, then every sheet; better cells are darker within a column.

    Whatever comes from elsewhere is escaped; each shaded cell has its number in it.
    """
    return filled(
        Path(__file__).parent / "templates" / "benchmark.html.j2",
        title=title,
        command=command,
        verdicts=table.get("expectations", []),
        undefined=table["undefined"],
        sheets=[
            (
                sheet.title,
                sheet.note,
                sheet.columns,
                [(name, [(cell.text, _level(cell.shade)) for cell in cells]) for name, cells in sheet.rows],
            )
            for sheet in sheets
        ],
    )


def _level(shade: float | None) -> int:
    """0 is not shaded; 1 to 8 from the worst to the best."""
    return 0 if shade is None else 1 + min(_SHADES - 1, int(shade * _SHADES))

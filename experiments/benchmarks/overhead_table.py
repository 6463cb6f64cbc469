"""The table that `overhead.py` prints."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from rich.table import Table

__all__ = ["make_table"]

_TRACKINGS = {"none": "no tracking", "mlflow": "MLflow"}


def _verdict(value: float, target: float) -> str:
    return f"≤ {target:g} " + ("[green]met[/]" if value <= target else "[red]missed[/]")


def _ratio(entry: Mapping[str, float]) -> str:
    return f"{entry['ratio']:.3f} ({entry['ratio_low']:.3f}–{entry['ratio_high']:.3f})"


def _show_start_up(table: Table, found: Mapping[str, Any]) -> None:
    entry = found["compared"]["none"]["first_step"]
    later = f"{entry['later_s']:+.2f} s"
    verdict = _verdict(entry["later_s"], found["target_later_s"])
    table.add_row("first step, 3 sites", f"{entry['ours_s']:.2f} s", f"{entry['bare_s']:.2f} s", later, verdict)


def _show_rounds(table: Table, found: Mapping[str, Any]) -> None:
    for case in found["cases"]:
        job = case["job"]
        for tracking, compared in case["compared"].items():
            for name in ("rounds", "process"):
                entry = compared[name]
                table.add_row(
                    f"{name}, {job['network']}, {job['sites']} sites, {_TRACKINGS[tracking]}",
                    f"{entry['ours_s']:.3f} s",
                    f"{entry['bare_s']:.3f} s",
                    _ratio(entry),
                    _verdict(entry["ratio"], found[f"target_{name}"]),
                )


def _show_memory(table: Table, found: Mapping[str, Any]) -> None:
    for case in found["cases"]:
        free = case["method"].endswith("Adam")
        table.add_row(
            f"peak, {case['method']}, {case['updates']} updates of {case['model'] / 1e6:.0f} MB",
            f"{case['peak'] / 1e6:.0f} MB, {case['seconds']:.1f} s",
            "",
            f"{case['peak_in_models']:.2f} models",
            "" if free else _verdict(case["peak_in_models"], found["target_in_models"]),
        )


def _show_many_sites(table: Table, found: Mapping[str, Any]) -> None:
    table.add_row(
        f"a round of {found['job']['sites']} sites",
        f"{found['seconds_a_round']:.2f} s",
        f"{found['bare_seconds_a_round']:.2f} s",
        f"{found['overhead_ms_a_site_and_round']:+.1f} ms a site",
        "",
    )


_SHOW: Mapping[str, Callable[[Table, Mapping[str, Any]], None]] = {
    "start-up": _show_start_up,
    "rounds": _show_rounds,
    "memory": _show_memory,
    "many-sites": _show_many_sites,
}


def make_table(measurements: Mapping[str, Mapping[str, Any]]) -> Table:
    """A row for each figure with both values, their ratio or difference, and whether the target is met."""
    table = Table(
        "measured", "eucaim-fl", "bare loop", "ratio or difference", "target", title="Overhead", title_justify="left"
    )
    for name, found in measurements.items():
        _SHOW[name](table, found)
        table.add_section()
    return table

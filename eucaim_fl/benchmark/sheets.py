"""The table as people read it: sheets of text cells for terminal, Markdown and HTML, from benchmark.json's content."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from eucaim_fl.validation.wording import show_bytes, show_seconds

__all__ = ["Cell", "Sheet", "markdown", "sheets_of"]

_NAMES = {
    "auc": "AUC",
    "balanced_accuracy": "Balanced accuracy",
    "brier": "Brier score",
    "dice": "Dice",
    "hd95_mm": "HD95, mm",
    "calibration_error": "Calibration error",
    "calibration_slope": "Slope",
    "calibration_intercept": "Intercept",
}
_KINDS = {"federation": "federated", "local": "one site alone", "pooled": "all in one place", "flower": "Flower's own"}
_NONE = "–"


@dataclass(frozen=True)
class Cell:
    """text: what stands there. shade: 0 (worst of the sheet) to 1 (best); None is not shaded."""

    text: str
    shade: float | None = None


@dataclass(frozen=True)
class Sheet:
    """columns: heads, of which the first is that of the rows' names."""

    title: str
    note: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, tuple[Cell, ...]], ...]


def sheets_of(table: Mapping[str, Any]) -> list[Sheet]:
    """All sheets: one for each metric (model × site), calibration, differences, bad sites, costs."""
    found = [_metric(table, metric) for metric in table["metrics"]]
    if table["points"]:
        found.append(_points(table))
    found += [sheet for sheet in (_best_local(table), _poisoned(table)) if sheet.rows]
    return [*found, _costs(table)]


def _models(table: Mapping[str, Any]) -> list[tuple[str, Mapping[str, Any]]]:
    return [(name, table["models"][name]) for name in table["order"]]


def _places(table: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Scopes with their heads."""
    honest = [("honest", "honest sites")] if "honest" in table["patients"] else []
    return [("all", "all"), *honest, ("mean", "mean of sites"), *((site, site) for site in table["sites"])]


def _metric(table: Mapping[str, Any], metric: str) -> Sheet:
    places = _places(table)
    lower = metric in table["lower_is_better"]
    each = {
        scope: [v for m in table["models"].values() if (v := _value(m, metric, scope)) is not None]
        for scope, _ in places
    }
    differences = {
        d["model"]: d
        for d in table["differences"]
        if d["metric"] == metric and d["scope"] == "all" and d["against"] == "pooled"
    }
    rows = []
    for name, model in _models(table):
        values = [(scope, _value(model, metric, scope)) for scope, _ in places]
        cells = [Cell(_shown(v, metric), _shade(v, each[scope], lower)) for scope, v in values]
        whole = model["values"][metric]["all"]
        cells.insert(1, Cell(f"{_shown(whole['low'], metric)} to {_shown(whole['high'], metric)}"))
        cells.insert(2, Cell(_shown(whole.get("sd"), metric)))
        cells.append(Cell(_difference(differences.get(name), metric)))
        rows.append((name, tuple(cells)))
    heads = [head for _, head in places]
    heads[1:1] = ["95 %", "sd of seeds"]
    better = "less is better" if lower else "more is better"
    people = table["patients"]["all"]
    seeds = ", ".join(map(str, table["seeds"]))
    note = (
        f"On {people} held-out patients, mean over the seeds {seeds}; {better}. Intervals resample patients in sites."
    )
    return Sheet(_NAMES.get(metric, metric), note, ("model", *heads, "minus pooled"), tuple(rows))


def _points(table: Mapping[str, Any]) -> Sheet:
    names = [n for n in table["points"] if any(_point(m, n, "all") is not None for m in table["models"].values())]
    rows = []
    for name, model in _models(table):
        if model["points"]:
            every = [_point(model, n, "all") for n in names]
            errors = [_point(model, names[0], site) for site in table["sites"]] if names else []
            rows.append((name, tuple(Cell(_shown(v, "")) for v in (*every, *errors))))
    heads = [*(_NAMES.get(n, n) for n in names), *(f"error at {site}" for site in table["sites"])]
    note = (
        "Over all patients, mean over the seeds. Slope 1 and intercept 0 are perfect; the error is too large where "
        "patients are few."
    )
    return Sheet("Calibration", note, ("model", *heads), tuple(rows))


def _best_local(table: Mapping[str, Any]) -> Sheet:
    first = table["metrics"][0]
    names: dict[str, dict[str, Any]] = {}
    for one in table["differences"]:
        if one["metric"] == first and table["models"][one["against"]]["trained"] == "local":
            names.setdefault(one["model"], {})[one["scope"]] = one
    rows = tuple(
        (name, tuple(Cell(_difference(found.get(site), first)) for site in table["sites"]))
        for name, found in names.items()
    )
    best = {s: f[s]["against"] for f in names.values() for s in table["sites"] if s in f}
    heads = tuple(f"{site} (best: {best.get(site, _NONE)})" for site in table["sites"])
    note = "Difference at each site, paired by patient; the best model of one site is chosen by these same patients."
    return Sheet(f"{_NAMES.get(first, first)} minus the best local model", note, ("model", *heads), rows)


def _poisoned(table: Mapping[str, Any]) -> Sheet:
    first = table["metrics"][0]
    pairs: dict[str, dict[str, Any]] = {}
    for one in table["poisoned"]:
        if one["metric"] == first:
            pairs.setdefault(one["model"], {})[one["scope"]] = one
    rows = []
    for name, found in pairs.items():
        known = next(iter(found.values()))
        words = [known["kind"], known["site"], known["against"]]
        cells = [Cell(word) for word in words] + [Cell(_difference(found.get(s), first)) for s in ("honest", "all")]
        rows.append((name, tuple(cells)))
    note = "A row minus the same without its bad site, paired by patient."
    heads = ("model", "what is bad", "site", "against", "honest sites", "all sites")
    return Sheet(f"{_NAMES.get(first, first)} with a bad site", note, heads, tuple(rows))


def _costs(table: Mapping[str, Any]) -> Sheet:
    rows = []
    for name, model in _models(table):
        cost = model["cost"]
        if cost is not None:
            words = (
                _KINDS.get(model["trained"], str(model["trained"])),
                f"{cost['steps']:.0f}",
                f"{cost['extra_steps']:.0f}" if cost["extra_steps"] else _NONE,
                show_seconds(cost["seconds"]),
                show_bytes(cost["bytes_up"]) if cost["bytes_up"] else _NONE,
                show_bytes(cost["bytes_down"]) if cost["bytes_down"] else _NONE,
            )
            rows.append((name, tuple(map(Cell, words))))
    note = (
        "Mean over the seeds. Steps: of each site, or of the one place. Extra steps: what each site makes beside, for "
        "models of its own. Seconds of rounds hold the validation in them."
    )
    heads = ("model", "trained", "steps", "extra steps", "time", "sent up", "sent down")
    return Sheet("Cost", note, heads, tuple(rows))


def markdown(sheets: Sequence[Sheet], command: str) -> str:
    """The sheets as Markdown, with the command that made them.

    >>> print(markdown([Sheet("T", "A note.", ("a", "b"), (("x", (Cell("1"),)),))], "eucaim-fl benchmark"))
    `eucaim-fl benchmark`
    <BLANKLINE>
    **T.** A note.
    <BLANKLINE>
    | a | b |
    |---|--:|
    | x | 1 |
    <BLANKLINE>
    """
    parts = [f"`{command}`\n"]
    for sheet in sheets:
        lines = [f"**{sheet.title}.** {sheet.note}\n", _line(sheet.columns)]
        lines.append("|---|" + "--:|" * (len(sheet.columns) - 1))
        lines += [_line([name, *(cell.text for cell in cells)]) for name, cells in sheet.rows]
        parts.append("\n".join(lines) + "\n")
    return "\n".join(parts)


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cell.replace('|', '/') for cell in cells)} |"


def _value(model: Mapping[str, Any], metric: str, scope: str) -> float | None:
    found: float | None = model["values"][metric].get(scope, {}).get("estimate")
    return found


def _point(model: Mapping[str, Any], metric: str, scope: str) -> float | None:
    found: float | None = model["points"].get(metric, {}).get(scope)
    return found


def _shown(value: float | None, metric: str) -> str:
    if value is None:
        return _NONE
    return f"{value:.2f}" if metric.endswith("_mm") else f"{value:.3f}"


def _difference(found: Mapping[str, Any] | None, metric: str) -> str:
    if found is None or found["estimate"] is None:
        return _NONE
    digits = 2 if metric.endswith("_mm") else 3
    if found["low"] is None:
        return f"{found['estimate']:+.{digits}f}"
    return f"{found['estimate']:+.{digits}f} ({found['low']:+.{digits}f} to {found['high']:+.{digits}f})"


def _shade(value: float | None, others: Sequence[float], lower: bool) -> float | None:
    """Where a value stands between the worst and the best of its column."""
    if value is None or len(others) < 2 or math.isclose(min(others), max(others)):
        return None
    place = (value - min(others)) / (max(others) - min(others))
    return 1 - place if lower else place

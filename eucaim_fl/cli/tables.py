"""Results as tables on the terminal."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.console import Console
from rich.table import Table

__all__ = ["print_result"]

_ORDER = (*("dice", "hd95_mm", "auc", "auc_site_mean", "c_index", "c_index_site_mean", "balanced_accuracy", "brier"),)
_OF_LABELS = ("balanced_accuracy_", "brier_")
"""Figures of single labels that would make the table too wide; `result.json` and the report have them."""


def print_result(console: Console, result: Mapping[str, Any]) -> None:
    """The final model on the test patients, pooled and by site, and who missed how many rounds."""
    pooled, sites = result["metrics"]["pooled"], result["metrics"]["sites"]
    names = [n for n in _ORDER if n in pooled or any(n in s for s in sites.values())]
    found = {n for s in (pooled, *sites.values()) for n in s if not n.startswith(_OF_LABELS)}
    extra = sorted(found - {*names, "patients", "withheld"})
    table = Table(title="Final model on test patients", title_justify="left")
    table.add_column("site")
    for name in ("patients", *names, *extra, "rounds taken part"):
        table.add_column(name.replace("_", " "), justify="right")
    rounds = [r for r in result["participation"] if r["round"] <= result["rounds"]]
    everyone = [p["site"] for p in result["participation"][-1]["sites"]]
    for site in everyone:
        took = sum(p["status"] == "took_part" for r in rounds for p in r["sites"] if p["site"] == site)
        table.add_row(site, *_cells(sites.get(site, {}), names + extra), f"{took}/{len(rounds)}")
    table.add_section()
    table.add_row("pooled", *_cells(pooled, names + extra), "")
    errors = result["metrics"].get("standard_error", {})
    if errors:
        told = ["", *(f"{errors[n]:.3f}" if n in errors else "" for n in names + extra), ""]
        table.add_row("± standard error", *told)
    console.print(table)
    if result.get("models"):
        console.print(_models(result, everyone))
    if result.get("privacy") is not None:
        from eucaim_fl.validation.wording import privacy_words

        console.print(f"Privacy: {privacy_words(result['privacy'])}", soft_wrap=True)


def _models(result: Mapping[str, Any], everyone: list[str]) -> Table:
    """Each site's models by the first metric, and which one it chose."""
    models: Mapping[str, Any] = result["models"]
    values = [v for entry in models.values() for v in (entry["pooled"], *entry["sites"].values())]
    names = sorted({n for v in values for n in v} - {"patients", "withheld"})
    metric = next((n for n in _ORDER if n in names), names[0] if names else "")
    columns = [name for name in ("common", "personal", "local", "blended", "chosen") if name in models]
    table = Table(title=f"Each site's models on its test patients: {metric.replace('_', ' ')}", title_justify="left")
    table.add_column("site")
    for name in columns:
        table.add_column(name, justify="right")
    table.add_column("the site uses")
    for site in everyone:
        told = [models[name]["sites"].get(site, {}) for name in columns]
        table.add_row(site, *(_cells(one, [metric])[1] for one in told), result["chosen"].get(site, "–"))
    table.add_section()
    table.add_row("pooled", *(_cells(models[name]["pooled"], [metric])[1] for name in columns), "")
    return table


def _cells(values: Mapping[str, Any], names: list[str]) -> list[str]:
    if "withheld" in values:
        return ["withheld", *("–" for _ in names)]
    count = values.get("patients")
    return [
        "–" if count is None else str(int(count)),
        *("–" if values.get(n) is None else f"{values[n]:.3f}" for n in names),
    ]

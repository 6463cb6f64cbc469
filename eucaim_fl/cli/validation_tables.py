"""A validation's result on the terminal: the first page's sentences, and the main figures of each model."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from eucaim_fl.plan import FederationPlan

__all__ = ["print_validation"]

_MOST = 6
_MARKS = {"good": "+", "bad": "-", "warning": "!", "plain": " "}


def print_validation(console: Console, plan: FederationPlan, folder: Path, result: Mapping[str, Any]) -> None:
    """What a finished validation found. folder: of the run, with its report.json. result: of its result.json."""
    from eucaim_fl.validation.page.names import classes_of, figure_name, head_figures, percent, show_figure
    from eucaim_fl.validation.record import EVERYBODY
    from eucaim_fl.validation.result_schema import ValidationResult

    report = json.loads((folder / "report.json").read_text(encoding="utf-8"))
    found = ValidationResult.model_validate_json(json.dumps(report["result"]))
    for verdict in found.verdicts:
        console.print(f"{_MARKS[verdict.tone]} {verdict.sentence}", markup=False, highlight=False, soft_wrap=True)
    labels = classes_of(plan.task)
    scopes = [next((one for one in model.scopes if one.scope == EVERYBODY), None) for model in found.models]
    names = head_figures([name for scope in scopes if scope is not None for name in scope.figures], labels, _MOST)
    names = list(dict.fromkeys(names))
    patients = max((scope.patients for scope in scopes if scope is not None), default=0)
    sites = sum(one.answered for one in found.sites)
    table = Table(title=f"{patients} patients of {sites} sites, {percent(found.level)} intervals", title_justify="left")
    table.add_column("figure")
    for model in found.models:
        table.add_column(model.name, justify="right")
    for name in names:
        cells = [show_figure(None if scope is None else scope.figures.get(name), name, labels) for scope in scopes]
        table.add_row(figure_name(name, labels), *cells)
    console.print(table)
    for entry in result["participation"]:
        if entry["status"] != "took_part":
            why = " ".join(filter(None, (entry.get("code", ""), entry.get("reason", ""))))
            console.print(f"{entry['site']} is missing: {why}", markup=False, highlight=False, soft_wrap=True)

"""What a benchmark leaves in its folder: benchmark.json, benchmark.html and benchmark.md."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from eucaim_fl.benchmark.expectations import Expectation, check_expectations
from eucaim_fl.benchmark.outcome import Outcome
from eucaim_fl.benchmark.page import render
from eucaim_fl.benchmark.request import Request
from eucaim_fl.benchmark.sheets import markdown, sheets_of
from eucaim_fl.benchmark.table import make_table
from eucaim_fl.durable import write_atomically, write_json

__all__ = ["summarise", "write_report"]


def summarise(request: Request, outcomes: Sequence[Outcome]) -> dict[str, Any]:
    """The content of benchmark.json: see `make_table`; beside it name, command, and what became of expectations.

    Raises RecipeError if an expectation names no model, or models were not tested on the same patients.
    """
    table = make_table(outcomes, request.base.task.name, request.seeds[0])
    verdicts = _verdicts(request.expect, table)
    return {
        "schema_version": 1,
        "name": request.base.name,
        "title": request.base.title,
        "command": request.command,
        **table,
        "expectations": verdicts,
    }


def _verdicts(expectations: Sequence[Expectation], table: dict[str, Any]) -> list[dict[str, Any]]:
    first = table["metrics"][0]
    values = {
        name: {scope: entry["estimate"] for scope, entry in model["values"][first].items()}
        for name, model in table["models"].items()
    }
    found = [asdict(one) for one in check_expectations(expectations, values)]
    return [{k: None if v != v else v for k, v in one.items()} for one in found]


def write_report(folder: Path, result: dict[str, Any]) -> None:
    """Write the three files. Raises JournalError if they can't be written."""
    sheets = sheets_of(result)
    write_json(folder / "benchmark.json", result)
    title = result["title"] or result["name"]
    write_atomically(folder / "benchmark.html", render(title, result, sheets, result["command"]).encode())
    write_atomically(folder / "benchmark.md", markdown(sheets, result["command"]).encode())

"""`eucaim-fl runs`: what was run."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import click
from rich.console import Console
from rich.table import Table

__all__ = ["command"]


@click.command("runs", short_help="List the runs of a folder.")
@click.option("--runs-dir", type=click.Path(path_type=Path), default=Path("runs"), show_default=True)
@click.option("--json", "as_json", is_flag=True, help="Print JSON instead of a table.")
def command(runs_dir: Path, as_json: bool) -> None:
    """List the runs of a folder, newest first: trainings, and validations of frozen models.

    \b
    Example:
      eucaim-fl runs
    """
    from eucaim_fl.tracking.summary import list_runs

    rows = list_runs(runs_dir)
    if as_json:
        click.echo(json.dumps([dataclasses.asdict(row) for row in rows], indent=2, default=str))
        return
    table = Table()
    for name, justify in (("run", "left"), ("started (UTC)", "left"), ("state", "left"), ("what", "left"),
                          ("pooled metric", "right"), ("plan", "left")):  # fmt: skip
        table.add_column(name, justify=justify, overflow="fold")  # type: ignore[arg-type]
    for row in rows:
        metric = f"{row.metric[0]} {row.metric[1]:.3f}" if row.metric else "–"
        if row.interval:
            metric += f" ({row.interval[0]:.3f} to {row.interval[1]:.3f})"
        what = f"training, {row.rounds_done}/{row.rounds} rounds"
        if row.kind == "validation":
            what = f"validation of {' against '.join(row.models) or 'unknown models'}"
        started = row.started.strftime("%Y-%m-%d %H:%M") if row.started else "–"
        table.add_row(row.name, started, row.state, what, metric, row.plan_sha256[:8])
    Console().print(table if rows else f"No runs in {runs_dir}. Start one: eucaim-fl train experiment=demo")

"""`eucaim-fl compare`: is the federated model worth it?"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import click
from rich.console import Console
from rich.table import Table

from eucaim_fl.config import ExperimentConfig
from eucaim_fl.errors import RecipeError

__all__ = ["command"]


@click.command(
    "compare",
    context_settings={"ignore_unknown_options": True, "help_option_names": ["-h", "--help"]},
    short_help="Compare local, pooled and federated training.",
)
@click.option("--seeds", default="", help="Seeds to repeat with, e.g. 0,1,2; default: the recipe's seed.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON instead of a table.")
@click.argument("overrides", nargs=-1, type=click.UNPROCESSED)
def command(overrides: tuple[str, ...], seeds: str, as_json: bool) -> None:
    """Train every hospital alone, all data in one place, and federated, with equal optimizer steps; one table.

    Only where the site files call the data synthetic or public. comparison.json lies in the run folder that is
    printed last.

    \b
    Examples:
      eucaim-fl compare experiment=demo
      eucaim-fl compare experiment=lidc_nodules --seeds 0,1,2
    """
    try:
        given = [int(s) for s in seeds.split(",")] if seeds else []
    except ValueError:
        raise RecipeError("--seeds takes whole numbers separated by commas, e.g. 0,1,2.") from None
    if len(set(given)) != len(given) or min(given, default=0) < 0:
        raise RecipeError("--seeds takes different numbers, none below 0.")
    from eucaim_fl.federation.processes import warm_up

    warm_up()
    from eucaim_fl.compose import compose

    config = compose(overrides)
    chosen = given or [config.seed]
    console = Console(stderr=as_json)
    result, folder = _compare(config, chosen, console)
    if as_json:
        click.echo(json.dumps(result, indent=2, sort_keys=True))
        return
    _print(console, result)
    click.echo(str(folder))


def _compare(config: ExperimentConfig, seeds: list[int], console: Console) -> tuple[dict[str, Any], Path]:
    from eucaim_fl.cli.prepare import ensure_prepared
    from eucaim_fl.cli.train import run_quietly
    from eucaim_fl.comparison import check_comparable, check_one_model, compare_models, train_all
    from eucaim_fl.compose import resolve
    from eucaim_fl.durable import write_json

    first = resolve(config)
    check_comparable(first.plan, first.site_files)
    check_one_model(first.plan)
    ensure_prepared(config, console)
    workers = config.federation.workers or min(len(os.sched_getaffinity(0)), len(first.site_files))
    held, folders = [], []
    for seed in seeds:
        recipe = resolve(config.model_copy(update={"seed": seed}))
        console.print(f"Seed {seed}: federated training", highlight=False)
        folders.append(run_quietly(recipe, console))
        console.print(f"Seed {seed}: every site alone, and all data in one place", highlight=False)
        with console.status("training") if console.is_terminal else _Nothing():
            held += train_all(
                recipe.plan,
                recipe.site_files,
                folders[-1] / "models" / "last.safetensors",
                workers,
                lambda name: console.print(f"  {name} done", highlight=False),
            )
    result = compare_models(held, first.plan.task.name, seeds[0])
    result["runs"] = [folder.name for folder in folders]
    result["plan_sha256"] = first.plan.sha256()
    result["steps"] = first.plan.rounds * (first.plan.training.local_steps or 0)
    write_json(folders[-1] / "comparison.json", result)
    return result, folders[-1]


class _Nothing:
    def __enter__(self) -> None:
        return None

    def __exit__(self, *_: object) -> None:
        return None


def _shown(value: float | None) -> str:
    return "–" if value is None else f"{value:.3f}"


def _print(console: Console, result: dict[str, Any]) -> None:
    sites = sorted(next(iter(result["models"].values()))["by_site"])
    patients = next(iter(result["models"].values()))["patients"]
    table = Table(
        title=f"{result['metric']} on the same {patients} held-out patients, {result['steps']} optimizer steps each",
        title_justify="left",
    )
    table.add_column("trained on")
    table.add_column("all", justify="right")
    table.add_column("95 % interval", justify="right")
    for site in sites:
        table.add_column(f"at {site}", justify="right")
    for name, row in result["models"].items():
        if name == "pooled":
            table.add_section()
            table.add_row("mean of local", f"{result['mean_of_local']:.3f}", "", *("" for _ in sites))
        interval = f"{row['low']:.3f} – {row['high']:.3f}"
        table.add_row(name, f"{row['estimate']:.3f}", interval, *(_shown(row["by_site"][s]) for s in sites))
    console.print(table)
    for name, row in result["differences"].items():
        console.print(f"{name}: {row['estimate']:+.3f} ({row['low']:+.3f} – {row['high']:+.3f})", highlight=False)

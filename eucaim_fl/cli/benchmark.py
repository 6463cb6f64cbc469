"""`eucaim-fl benchmark`: every model on the held-out patients of every site, in one table."""

from __future__ import annotations

import json
import os
import shlex
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from rich.console import Console
from rich.table import Table

from eucaim_fl.config import ExperimentConfig
from eucaim_fl.errors import JournalError, RecipeError

if TYPE_CHECKING:
    from eucaim_fl.benchmark.request import Request
    from eucaim_fl.benchmark.training import Work

__all__ = ["command"]

_UNMET = 1
_WIDE = 240


@click.command(
    "benchmark",
    context_settings={"ignore_unknown_options": True, "help_option_names": ["-h", "--help"]},
    short_help="Compare all methods of a recipe with local and pooled training.",
)
@click.option("--seeds", default="", help="Seeds to repeat with, e.g. 0,1,2; default: the recipe's benchmark.seeds.")
@click.option("--rows", default="", help="Only these rows, e.g. local,pooled,fedavg; default: all.")
@click.option("--reduced", is_flag=True, help="The small form: with the overrides of the recipe's benchmark.reduced.")
@click.option("--check", is_flag=True, help="Exit 1 unless every ordering of the recipe's benchmark.expect holds.")
@click.option("--track", is_flag=True, help="Log the federated runs as the recipe's tracking says; else they are not.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON instead of tables.")
@click.argument("overrides", nargs=-1, type=click.UNPROCESSED)
@click.pass_context
def command(context: click.Context, /, overrides: tuple[str, ...], as_json: bool, **options: Any) -> int:
    """Train every site alone, all data in one place, Flower's FedAvg and each method of the recipe; one table.

    All with the same splits, first weights and number of optimizer steps, for each seed; every model is tested on the
    held-out patients of every site. Only where the site files call the data synthetic or public. The recipe's
    `benchmark.rows` name its methods. benchmark.json, .html and .md lie in the folder that is printed last.

    Each training is kept as it ends: a benchmark that was killed goes on with resume=FOLDER.

    \b
    Examples:
      eucaim-fl benchmark experiment=ham10000
      eucaim-fl benchmark experiment=demo --seeds 0 --rows local,pooled,flower_fedavg
      eucaim-fl benchmark experiment=benchmark_reduced --check
      eucaim-fl benchmark resume=runs/benchmark-ham10000-20260101-120000
    """
    from eucaim_fl.federation.processes import warm_up

    console = Console(stderr=as_json)
    resumed = [Path(o.partition("=")[2]) for o in overrides if o.startswith("resume=")]
    if resumed and len(overrides) > 1:
        raise RecipeError("A benchmark that goes on keeps its recipe; nothing can be given beside resume=.")
    if resumed:
        from eucaim_fl.benchmark.request import read_request
        from eucaim_fl.sitefile import DATA_VARIABLE

        folder = resumed[0].absolute()
        request = read_request(folder)
        os.environ.setdefault(DATA_VARIABLE, request.data_root)
        warm_up()
        works = _works(request)
    else:
        warm_up()
        words = ["eucaim-fl", "benchmark", *overrides, *_given(context)]
        request = _asked(overrides, options, shlex.join(words), console)
        works = _works(request)
        folder = _new_folder(request)
    result = _run(request, works, folder, console)
    if as_json:
        click.echo(json.dumps(result, indent=2, sort_keys=True))
    else:
        _print(console, result)
        console.print(f"Report: {(folder / 'benchmark.html').as_uri()}", soft_wrap=True)
        click.echo(str(folder))
    missed = [one["text"] for one in result["expectations"] if not one["holds"]]
    for text in missed:
        click.echo(f"Expected, but does not hold: {text}", err=True)
    return _UNMET if missed and (request.checked or options["check"]) else 0


def _given(context: click.Context) -> list[str]:
    """The options as the user gave them, those that decide what is in the table."""
    found: list[str] = []
    for name in ("seeds", "rows"):
        if context.params[name]:
            found += [f"--{name}", context.params[name]]
    return found + [f"--{name}" for name in ("reduced", "check") if context.params[name]]


def _numbers(text: str) -> tuple[int, ...]:
    try:
        given = tuple(int(s) for s in text.split(",")) if text else ()
    except ValueError:
        raise RecipeError("--seeds takes whole numbers separated by commas, e.g. 0,1,2.") from None
    if len(set(given)) != len(given) or min(given, default=0) < 0:
        raise RecipeError("--seeds takes different numbers, none below 0.")
    return given


def _asked(overrides: Sequence[str], options: dict[str, Any], words: str, console: Console) -> Request:
    """The benchmark of a recipe, each row with the recipe that its overrides make."""
    from eucaim_fl.benchmark.expectations import read_expectation
    from eucaim_fl.benchmark.request import Request
    from eucaim_fl.benchmark.rows import as_shipped, rows_of
    from eucaim_fl.cli.prepare import ensure_prepared
    from eucaim_fl.compose import compose
    from eucaim_fl.sitefile import data_root

    seeds = _numbers(options["seeds"])
    base = compose(overrides)
    if options["reduced"]:
        overrides = [*base.benchmark.reduced, *overrides]  # what the user wrote comes last, and counts
        base = compose(overrides)
    chosen = [name for name in options["rows"].split(",") if name]
    rows = []
    for row in rows_of(base.benchmark.rows, chosen):
        config = compose([*overrides, *row.overrides]) if row.overrides else base
        if row.trained == "flower" and not row.overrides:
            config = as_shipped(config)
        if not options["track"]:
            config = config.model_copy(update={"tracking": config.tracking.model_copy(update={"enabled": False})})
        rows.append((row, config))
    expect = () if chosen else tuple(read_expectation(text) for text in base.benchmark.expect)
    ensure_prepared(base, console)
    return Request(
        words,
        base,
        tuple(rows),
        seeds or base.benchmark.seeds,
        expect,
        str(data_root().absolute()),
        bool(options["check"]),
    )


def _works(request: Request) -> list[Work]:
    """Every row under every seed, checked."""
    from eucaim_fl.benchmark.measures import measures_of
    from eucaim_fl.benchmark.rows import check_row, poisoned_name
    from eucaim_fl.benchmark.training import Work
    from eucaim_fl.comparison import check_comparable
    from eucaim_fl.compose import resolve

    measures_of(request.base.task.name)
    works = []
    for seed in request.seeds:
        base = resolve(_seeded(request.base, seed))
        check_comparable(base.plan, base.site_files)
        for row, config in request.rows:
            clean = resolve(_seeded(config, seed))
            check_row(row, clean.plan, base.plan)
            named = config.model_copy(update={"name": poisoned_name(config.name, row.poison)})
            recipe = resolve(_seeded(named, seed))
            works.append(Work(row, recipe.config, recipe.plan, clean.plan.sha256(), recipe.site_files))
    return works


def _seeded(config: ExperimentConfig, seed: int) -> ExperimentConfig:
    return config.model_copy(update={"seed": seed})


def _new_folder(request: Request) -> Path:
    stamp = datetime.now(UTC).strftime("%Y%m%d-%H%M%S")
    runs = request.base.runs_dir.absolute()
    for attempt in range(1000):
        folder = runs / f"benchmark-{request.base.name}-{stamp}{f'-{attempt}' if attempt else ''}"
        try:
            folder.mkdir(parents=True)
        except FileExistsError:
            continue
        except OSError as problem:
            raise JournalError("The benchmark's folder can't be made.", local_detail=str(problem)) from None
        request.write(folder)
        return folder
    raise JournalError("The benchmark's folder can't be made.", fix="Try again in a second.")


def _run(request: Request, works: Sequence[Work], folder: Path, console: Console) -> dict[str, Any]:
    from eucaim_fl.benchmark.report import summarise, write_report
    from eucaim_fl.benchmark.training import train_all
    from eucaim_fl.durable import exclusive
    from eucaim_fl.errors import InterruptedRunError
    from eucaim_fl.federation.progress import Listener

    cores = len(os.sched_getaffinity(0))
    workers = request.base.federation.workers or min(cores, len(works[0].site_files))
    steps = works[0].steps()
    console.print(
        f"{len(request.rows)} rows, seeds {', '.join(map(str, request.seeds))}, {steps} optimizer steps each; "
        f"in {folder}",
        highlight=False,
        soft_wrap=True,
    )
    try:
        with exclusive(folder):
            say = lambda text: console.print(text, highlight=False, soft_wrap=True)  # noqa: E731
            outcomes = train_all(works, folder, workers, say, Listener)
            result = summarise(request, outcomes)
            write_report(folder, result)
    except KeyboardInterrupt:
        raise InterruptedRunError(
            "The benchmark was stopped.", fix=f"Go on with: eucaim-fl benchmark resume={folder}"
        ) from None
    except InterruptedRunError:
        raise InterruptedRunError(
            "The benchmark was stopped.", fix=f"Go on with: eucaim-fl benchmark resume={folder}"
        ) from None
    return result


def _print(console: Console, result: dict[str, Any]) -> None:
    from eucaim_fl.benchmark.sheets import sheets_of

    if not console.is_terminal:
        console.width = _WIDE  # in a log, lines are not broken
    for sheet in sheets_of(result):
        table = Table(title=sheet.title, caption=sheet.note, title_justify="left", caption_justify="left")
        table.add_column(sheet.columns[0], no_wrap=True)
        for head in sheet.columns[1:]:
            table.add_column(head, justify="right")
        for name, cells in sheet.rows:
            table.add_row(name, *(cell.text for cell in cells))
        console.print(table)
    for one in result["expectations"]:
        console.print(f"{'holds' if one['holds'] else 'does not hold'}: {one['text']}", highlight=False)

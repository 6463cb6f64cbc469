"""`eucaim-fl train`: from a recipe to a model."""

from __future__ import annotations

import json
import socket
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from rich.console import Console

from eucaim_fl.config import ExperimentConfig, FederationConfig
from eucaim_fl.errors import InterruptedRunError, LinkError, RecipeError

if TYPE_CHECKING:
    from eucaim_fl.compose import Recipe
    from eucaim_fl.tracking.sidecar import TrackingOutcome

__all__ = ["command", "resume", "run_folder", "run_quietly", "train_recipe"]

_LOOK_S = 1.0


@click.command(
    "train",
    context_settings={"ignore_unknown_options": True, "help_option_names": ["-h", "--help"]},
    short_help="Train one model over the sites of a recipe.",
)
@click.option("--json", "as_json", is_flag=True, help="Print the result as JSON instead of tables.")
@click.argument("overrides", nargs=-1, type=click.UNPROCESSED)
def command(overrides: tuple[str, ...], as_json: bool) -> None:
    """Train one model over the sites of a recipe; the last line printed is the run folder.

    OVERRIDES are Hydra's: groups (method=fedprox), keys (rounds=20), sweeps (--multirun seed=0,1,2).

    \b
    Examples:
      eucaim-fl train experiment=demo
      eucaim-fl train experiment=demo method=fedprox rounds=20
      eucaim-fl train --multirun experiment=demo seed=0,1,2
      eucaim-fl train experiment=demo federation=NAME
      eucaim-fl train resume=RUN
    """
    console = Console(stderr=as_json)
    resumed = [o.partition("=")[2] for o in overrides if o.startswith("resume=")]
    if resumed:
        resume(resumed[0], [o for o in overrides if not o.startswith("resume=")], console, as_json)
        return
    from eucaim_fl.federation.processes import warm_up

    warm_up()
    from eucaim_fl.compose import sweep

    sweep(overrides, lambda config: train_recipe(config, console, as_json))


def train_recipe(config: ExperimentConfig, console: Console, as_json: bool) -> dict[str, Any]:
    """Prepare the cohorts if the recipe can, run it, print what came out; returns result.json's content."""
    from eucaim_fl.cli.prepare import ensure_prepared
    from eucaim_fl.compose import resolve
    from eucaim_fl.federation.run import create_run

    recipe = resolve(config)
    if recipe.site_files:
        ensure_prepared(config, console)
    folder = create_run(config, recipe.plan, recipe.site_files, recipe.holder_signature)
    return run_folder(folder, config, dict(recipe.site_files), console, as_json)


def run_quietly(recipe: Recipe, console: Console) -> Path:
    """Run a resolved recipe with progress but without tables; returns the run folder."""
    from eucaim_fl.federation.run import create_run

    folder = create_run(recipe.config, recipe.plan, recipe.site_files, recipe.holder_signature)
    _execute(folder, recipe.config, dict(recipe.site_files), console)
    return folder


def resume(name: str, others: list[str], console: Console, as_json: bool) -> None:
    """Go on with a run, of whatever kind. Only `runs_dir` and `federation.workers` may be given beside it: the plan is
    fixed.

    Raises RecipeError for any other word, RunNotFoundError if there is no such run.
    """
    from eucaim_fl.federation.run import find_run, read_recipe
    from eucaim_fl.sitefile import load_site_file

    given = dict(o.partition("=")[::2] for o in others)
    unknown = sorted(set(given) - {"runs_dir", "federation.workers"})
    if unknown:
        raise RecipeError(
            f"A resumed run keeps its plan; {', '.join(unknown)} can't be changed.",
            fix="Only runs_dir and federation.workers may be given, or start a new run.",
        )
    folder = find_run(name, Path(given.get("runs_dir", "runs")))
    config, _ = read_recipe(folder)
    if "federation.workers" in given:
        if not given["federation.workers"].isdigit() or given["federation.workers"] == "0":
            raise RecipeError("federation.workers must be a positive whole number.")
        federation = config.federation.model_copy(update={"workers": int(given["federation.workers"])})
        config = config.model_copy(update={"federation": federation})
    files = {}
    if config.federation.engine != "superlink":
        files = {load_site_file(Path(path)).name: Path(path) for path in config.sites}
    run_folder(folder, config, files, console, as_json)


def run_folder(
    folder: Path, config: ExperimentConfig, site_files: dict[str, Path], console: Console, as_json: bool
) -> dict[str, Any]:
    """Execute a run folder with progress, then print tables or JSON, and the folder's path last; returns result.json's
    content."""
    from eucaim_fl.cli.tables import print_result
    from eucaim_fl.cli.validation_tables import print_validation
    from eucaim_fl.federation.run import read_recipe

    result, tracking = _execute(folder, config, site_files, console)
    if as_json:
        click.echo(json.dumps(result, indent=2, sort_keys=True))
    else:
        if (plan := read_recipe(folder)[1]).validation is not None:
            print_validation(console, plan, folder, result)
        else:
            print_result(console, result)
        console.print(f"Report: {(folder / 'report.html').as_uri()}", soft_wrap=True)
        if tracking is not None:
            console.print(f"MLflow: {tracking.ui_command}" if tracking.ok else tracking.message, soft_wrap=True)
        click.echo(str(folder))
    return result


def _execute(
    folder: Path, config: ExperimentConfig, site_files: dict[str, Path], console: Console
) -> tuple[dict[str, Any], TrackingOutcome | None]:
    from eucaim_fl.cli.progress import BarListener, listener_for
    from eucaim_fl.federation.run import execute

    listener = listener_for(console)
    try:
        if config.federation.engine == "superlink" and not (folder / "result.json").exists():
            _await_superlink(folder, config.federation, listener.line)
        return execute(folder, config, site_files, listener)
    finally:
        if isinstance(listener, BarListener):
            listener.close()


def _await_superlink(folder: Path, federation: FederationConfig, tell: Callable[[str], None]) -> None:
    """Say at once that a federation's SuperLink does not answer, and wait for it for `link_wait_s` at most.

    Raises LinkError if it does not come, InterruptedRunError after Ctrl-C; the run can be resumed.
    """
    from eucaim_fl.federation.home import FederationHome

    home = FederationHome(Path(str(federation.home)))
    resume = f"eucaim-fl train resume={folder.name}"
    status = f"eucaim-fl federation status {home.name}"
    until = time.monotonic() + federation.link_wait_s
    told = False
    try:
        while not _listens(home.runtime_address):
            if not told:
                tell(f"The SuperLink of {home.name} does not answer; see {status}")
            told = True
            if time.monotonic() >= until:
                raise LinkError(
                    f"The SuperLink of {home.name} has not answered for {federation.link_wait_s:g} s.",
                    fix=f"See {status}; then: {resume}",
                )
            time.sleep(min(_LOOK_S, max(0.0, until - time.monotonic())))
    except KeyboardInterrupt:
        raise InterruptedRunError("The run was stopped.", fix=f"Go on with: {resume}") from None


def _listens(address: str) -> bool:
    host, _, port = address.rpartition(":")
    try:
        with socket.create_connection((host, int(port)), _LOOK_S):
            return True
    except OSError:
        return False

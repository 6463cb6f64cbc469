"""`eucaim-fl validate`: from a frozen model to a report."""

from __future__ import annotations

import json
import re
from typing import Any

import click
from rich.console import Console

from eucaim_fl.config import ExperimentConfig
from eucaim_fl.errors import RecipeError

__all__ = ["as_recipe", "command", "validate_recipe"]

_SHORT = {"model": "validation.model", "against": "validation.against", "cohort": "experiment"}


@click.command(
    "validate",
    context_settings={"ignore_unknown_options": True, "help_option_names": ["-h", "--help"]},
    short_help="Judge a frozen model on the sites' patients.",
)
@click.option("--dry-run", is_flag=True, help="Say what sites would be asked and what would leave them; start nothing.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON instead of tables.")
@click.argument("overrides", nargs=-1, type=click.UNPROCESSED)
def command(overrides: tuple[str, ...], dry_run: bool, as_json: bool) -> None:
    """Judge a frozen model on the patients of a recipe's sites; the last line printed is the run folder.

    model= is a file .onnx, .pt or .pt2 with its description in the YAML file of the same stem beside it; a run's folder
    or name; a MONAI bundle's folder or ZIP file; or mlflow:RUN_ID, models:/NAME@best. against= is a second one, to
    compare it with. cohort= names the recipe whose sites, task and split are taken. All other words are Hydra's, as for
    `train`. The images stay where they are; what a single patient got does too.

    A model that was trained at one of the sites is judged there on the patients whom its training held out.

    \b
    Examples:
      eucaim-fl validate model=RUN cohort=demo --dry-run
      eucaim-fl validate model=RUN cohort=demo validation.thresholds=[0.3,0.5]
      eucaim-fl validate model=new.onnx against=old.onnx cohort=RECIPE federation=NAME
      eucaim-fl validate resume=RUN
    """
    console = Console(stderr=as_json)
    resumed = [word.partition("=")[2] for word in overrides if word.startswith("resume=")]
    if resumed:
        from eucaim_fl.cli.train import resume

        if dry_run:
            raise RecipeError("A run that goes on keeps its plan; --dry-run is for new ones.")
        resume(resumed[0], [word for word in overrides if not word.startswith("resume=")], console, as_json)
        return
    words = as_recipe(overrides)
    if not dry_run:
        from eucaim_fl.federation.processes import warm_up

        warm_up()
    from eucaim_fl.compose import compose, resolve_validation

    config = compose(words)
    if dry_run:
        from eucaim_fl.cli.validate_preview import preview, print_preview

        found = preview(resolve_validation(config))
        if as_json:
            click.echo(json.dumps(found, indent=2, sort_keys=True))
        else:
            print_preview(console, found)
        return
    validate_recipe(config, console, as_json)


def as_recipe(words: tuple[str, ...]) -> list[str]:
    """The command's own words as overrides of a recipe; all others stay.

    Raises RecipeError where several runs are asked for at once.

    >>> as_recipe(("model=runs/it's mine", "cohort=demo", "seed=1"))
    ["validation.model='runs/it\\\\'s mine'", 'experiment=demo', 'seed=1']
    """
    if {"--multirun", "-m"} & set(words):
        raise RecipeError("`validate` takes one model at a time.", fix="Leave --multirun out.")
    found = []
    for word in words:
        key, given, value = word.partition("=")
        if not given or key not in _SHORT:
            found.append(word)
        elif key == "cohort":
            found.append(f"{_SHORT[key]}={value}")
        else:
            found.append(f"{_SHORT[key]}={_quoted(value)}")
    return found


def _quoted(path: str) -> str:
    """A path as Hydra reads it letter by letter: quotes are escaped, and backslashes before a quote or the end."""
    escaped = re.sub(r"(\\*)('|$)", lambda found: found[1] * 2 + ("\\'" if found[2] else ""), path)
    return f"'{escaped}'"


def validate_recipe(config: ExperimentConfig, console: Console, as_json: bool) -> dict[str, Any]:
    """Prepare the cohorts if the recipe can, judge its models, print what came out; returns result.json's content."""
    from eucaim_fl.cli.prepare import ensure_prepared
    from eucaim_fl.cli.train import run_folder
    from eucaim_fl.compose import resolve_validation
    from eucaim_fl.federation.run import create_run

    recipe = resolve_validation(config)
    if recipe.site_files:
        ensure_prepared(config, console)
    folder = create_run(recipe.config, recipe.plan, recipe.site_files, recipe.holder_signature, recipe.frozen)
    return run_folder(folder, recipe.config, dict(recipe.site_files), console, as_json)

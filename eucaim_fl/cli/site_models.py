"""`eucaim-fl site models`: what this site keeps of its own models, and how to use or delete it."""

from __future__ import annotations

import dataclasses
import json
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

import click

from eucaim_fl.errors import ConfigError

if TYPE_CHECKING:
    from eucaim_fl.site.state_store import Kept

__all__ = ["command"]

_DAY_S = 86_400.0
_MODEL, _PLAN = "model.safetensors", "plan.json"
_PARTS = {
    "control": "what its method remembers",
    "own": "its own arrays of the model",
    "personal": "a personal model",
    "local": "a local model",
    "diverged_personal": "a note that its personal model's training diverged",
    "diverged_local": "a note that its local model's training diverged",
}


@click.command("models", short_help="Show, export and delete the models that stay at this site.")
@click.argument("site_file", type=click.Path(path_type=Path))
@click.option(
    "--export",
    "wanted",
    nargs=3,
    metavar="PLAN MODEL FOLDER",
    help=f"Write a model of the end into a new folder, complete: {_MODEL} and {_PLAN}.",
)
@click.option("--remove", "unwanted", metavar="PLAN", help="Delete all that is kept of a plan; asks first.")
@click.option(
    "--remove-older-than",
    "days",
    type=click.IntRange(min=1),
    metavar="DAYS",
    help="Delete all that is kept of plans of which nothing was written for so many days; asks first.",
)
@click.option("--yes", is_flag=True, help="Do not ask.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def command(
    site_file: Path,
    wanted: tuple[str, str, str] | None,
    unwanted: str | None,
    days: int | None,
    yes: bool,
    as_json: bool,
) -> None:
    """List what this site keeps, by plan: its state between rounds, and the models that it has in the end.

    The newest come first, with their size and age; the last line is the sum, and what the site file allows
    (records.models_gb). Of a plan that is run again and again the newest two runs stay, and the models of the newest
    one that has ended, which are those that --export takes. Nothing else is ever removed by itself: where there is no
    room left, new plans are refused (EFL703).

    They were trained on its patients, lie in its records (<cache>.records/models) and never leave by themselves. PLAN
    is a plan's SHA-256, or its first characters; MODEL is common, personal or local. What --export writes may tell of
    patients: treat it as their data.

    \b
    Examples:
      eucaim-fl site models sites/a.yaml
      eucaim-fl site models sites/a.yaml --export 3f2a91c0 personal lesions-here
      eucaim-fl site models sites/a.yaml --remove 3f2a91c0
      eucaim-fl site models sites/a.yaml --remove-older-than 180
    """
    from eucaim_fl.site.state_store import kept
    from eucaim_fl.sitefile import load_site_file

    if sum(option is not None for option in (wanted, unwanted, days)) > 1:
        raise ConfigError("--export, --remove and --remove-older-than are commands of their own.", fix="Give one.")
    site = load_site_file(site_file)
    folder = site.records_folder()
    found, now = kept(folder), datetime.now(UTC).timestamp()
    if wanted is not None:
        one, target = _only(found, wanted[0]), Path(wanted[2])
        _outside(target, site.cohort_folder())
        _export(folder, one, wanted[1], target)
        told = {"plan_sha256": one.plan_sha256, "model": wanted[1], "folder": str(target.absolute())}
        click.echo(json.dumps(told) if as_json else f"Written to {target.absolute()}.")
    elif unwanted is not None:
        one = _only(found, unwanted)
        _remove(folder, (one,), yes=yes)
        click.echo(json.dumps(_gone(one)) if as_json else f"Deleted: {_size(one.bytes)} of {one.plan_sha256[:12]}.")
    elif days is not None:
        old = tuple(one for one in found if now - one.changed > days * _DAY_S)
        _remove(folder, old, yes=yes)
        total = f"Deleted: {_size(sum(one.bytes for one in old))} of {_plans(len(old))}."
        click.echo(json.dumps([_gone(one) for one in old]) if as_json else total)
    elif as_json:
        click.echo(json.dumps([dataclasses.asdict(one) for one in found], indent=2))
    else:
        for one in found:
            click.echo(_line(one, now))
        click.echo(_sum(found, site.records.models_bytes()))


def _only(found: tuple[Kept, ...], start: str) -> Kept:
    those = [one for one in found if start and one.plan_sha256.startswith(start)]
    if len(those) != 1:
        raise ConfigError(
            "Several plans start so." if those else "This site keeps nothing of such a plan.",
            fix="Give more characters of its SHA-256." if those else "`site models` lists what it keeps.",
        )
    return those[0]


def _outside(target: Path, cohort: Path) -> None:
    if target.exists() or target.is_symlink():
        raise ConfigError("There is such a folder already.", fix="Name a new one.", local_detail=str(target))
    if target.absolute().resolve().is_relative_to(cohort.resolve()):
        raise ConfigError("A model does not belong into the cohort's folder.", fix="Name another one.")


def _export(folder: Path, one: Kept, model: str, target: Path) -> None:
    from eucaim_fl.arrays import arrays_sha256, encode_arrays
    from eucaim_fl.durable import write_atomically
    from eucaim_fl.site.state_store import StateStore, part

    store = StateStore(folder, one.plan_sha256)
    final = store.final()
    if final is None:
        raise ConfigError("The site has no models of this plan's end.", fix="Wait until the run has ended here.")
    arrays = part(final.load(), model)
    if model == "blended":
        raise ConfigError(
            "The blended model is the mean of what two of the site's models say (their logits).",
            fix=f"Export the two: local, and {next(iter({'personal', 'common'} & set(one.models)), 'the other')}.",
        )
    if not arrays:
        raise ConfigError("The site has no such model of this plan.", fix=f"It has: {', '.join(one.models)}.")
    metadata = {"model": model, "plan_sha256": one.plan_sha256, "weights_sha256": arrays_sha256(arrays)}
    plan = store.plan_json()
    target.mkdir(mode=0o700, parents=True)
    write_atomically(target / _PLAN, plan.encode())
    write_atomically(target / _MODEL, encode_arrays(arrays, metadata))


def _remove(folder: Path, those: tuple[Kept, ...], *, yes: bool) -> None:
    from eucaim_fl.site.state_store import StateStore

    if those and not yes:
        names = ", ".join(f"{_name(one)} ({one.plan_sha256[:12]})" for one in those)
        click.confirm(
            f"Delete all that is kept of {names}? A run that goes on would begin anew with what is this site's own.",
            abort=True,
            err=True,
        )
    for one in those:
        StateStore(folder, one.plan_sha256).remove()


def _gone(one: Kept) -> dict[str, str | int]:
    return {"plan_sha256": one.plan_sha256, "removed_bytes": one.bytes}


def _sum(found: tuple[Kept, ...], allowed: int | None) -> str:
    limit = "without a limit" if allowed is None else f"of at most {_size(allowed)} (records.models_gb)"
    if not found:
        return f"This site keeps no models and no state of any plan, {limit}."
    return f"Together: {_size(sum(one.bytes for one in found))} of {_plans(len(found))}, {limit}."


def _plans(number: int) -> str:
    return f"{number} plan{'' if number == 1 else 's'}"


def _line(one: Kept, now: float) -> str:
    parts = ", ".join(_PARTS.get(name, name) for name in one.parts)
    state = "" if one.round is None else f"; after round {one.round}: {_printable(parts) or 'damaged'}"
    names = ", ".join(f"{name} (chosen)" if name == one.chosen else name for name in one.models)
    end = f"; models of the end: {_printable(names)}" if names else ""
    runs = f" of {one.runs} runs" if one.runs > 1 else ""
    return f"{_name(one)} ({one.plan_sha256[:12]})  {_size(one.bytes)}{runs}, {_age(now - one.changed)}{state}{end}"


def _name(one: Kept) -> str:
    return _printable(one.name) or "a plan without a readable name"


def _size(number: int) -> str:
    from eucaim_fl.validation.wording import show_bytes

    return show_bytes(number)


def _age(seconds: float) -> str:
    minutes = max(0, int(seconds // 60))
    for unit, length in (("day", 24 * 60), ("hour", 60), ("minute", 1)):
        if minutes >= length:
            number = minutes // length
            return f"{number} {unit}{'' if number == 1 else 's'} old"
    return "just written"


def _printable(text: str) -> str:
    return "".join(letter if letter.isprintable() else "?" for letter in text)

"""`eucaim-fl site lineage`: which runs and models patients of this site were used in."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import click

from eucaim_fl.errors import ConfigError

__all__ = ["command"]


@click.command("lineage", short_help="Which runs and models patients were used in.")
@click.argument("site_file", type=click.Path(path_type=Path))
@click.option("--patient", "patients", multiple=True, help="As the cohort names the patient; may be repeated.")
@click.option("--withdrawn", is_flag=True, help="Patients whose consent is withdrawn.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def command(site_file: Path, patients: tuple[str, ...], withdrawn: bool, as_json: bool) -> None:
    """List the runs that used patients of this site. The record lies at this site only, and this sends nothing.

    The round after the last one is the final evaluation. A model's SHA-256 is that of its weights as `result.json` of
    the coordinator's run folder names them.

    \b
    Examples:
      eucaim-fl site lineage sites/a.yaml
      eucaim-fl site lineage sites/a.yaml --patient EUCAIM-0123456789abcdef
      eucaim-fl site lineage sites/a.yaml --withdrawn
    """
    from eucaim_fl.cohorts.consent import read_consent
    from eucaim_fl.site.lineage import Lineage
    from eucaim_fl.sitefile import load_site_file

    site = load_site_file(site_file)
    asked = None
    if withdrawn and site.consent.table is None:
        raise ConfigError(
            "The site file names no consent table, so nobody is known to have withdrawn.",
            fix="Set consent.table, or name patients with --patient.",
        )
    if patients or withdrawn:
        asked = {*patients, *(read_consent(site).withdrawn if withdrawn else ())}
    found = Lineage(site.records_folder()).contributions(asked)
    if as_json:
        click.echo(json.dumps([dataclasses.asdict(one) for one in found], indent=2))
        return
    if not found:
        click.echo("No run used " + ("any of these patients." if asked is not None else "patients of this site yet."))
        return
    for one in found:
        first, last = max(one.rounds[0], min(one.rounds[1], 1)), one.rounds[1]
        what = {"train": "trained with", "validation": "validated on", "test": "tested on"}[one.use]
        rounds = f"round {first}" if first == last else f"rounds {first}–{last}"
        rounds = "before round 1" if last == 0 else rounds
        rounds = "at the end" if one.use == "test" else rounds
        click.echo(
            f"{one.since[:16].replace('T', ' ')}  {one.name} ({one.plan_sha256[:12]})  {rounds}: {what} "
            f"{one.patients} {'patient' if one.patients == 1 else 'patients'}; last weights {one.model_sha256[:12]}"
        )

"""`eucaim-fl site index`: read the headers of what is new in a cohort."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import click
from rich.console import Console

__all__ = ["command"]


@click.command("index", short_help="Read the headers of new and changed files.")
@click.argument("site_file", type=click.Path(path_type=Path))
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.option("--verify", is_flag=True, help="Read every file in full again, whatever size and times say.")
def command(site_file: Path, as_json: bool, verify: bool) -> None:
    """Bring the index of a cohort up to date. Checks and runs do so too; after large imports this saves them the wait.

    Only folders that the cohort's tables allow are looked at. An interrupted scan goes on where it stopped.

    \b
    Examples:
      eucaim-fl site index sites/a.yaml
      eucaim-fl site index sites/a.yaml --verify
    """
    from eucaim_fl.cli.site_check import steps
    from eucaim_fl.cohorts.index import update_index
    from eucaim_fl.cohorts.layouts import LAYOUTS, Place
    from eucaim_fl.sitefile import load_site_file

    site = load_site_file(site_file)
    folders = LAYOUTS[site.cohort.layout].scan_folders(Place.of(site))
    with steps(Console(stderr=True)) as tell:
        report = update_index(
            site, folders, verify=verify, tell=lambda step, done, total: tell(f"{step} files", done, total or None)
        )
    if as_json:
        click.echo(json.dumps(dataclasses.asdict(report), indent=2, sort_keys=True))
        return
    click.echo(f"{report.files:,} files, {report.series:,} series, {report.seconds:.1f} s")
    changes = {
        "new": report.new,
        "changed": report.changed,
        "moved": report.moved,
        "deleted": report.deleted,
        "unchanged": report.unchanged,
        "unreadable": report.unreadable,
    }
    click.echo(", ".join(f"{count:,} {what}" for what, count in changes.items() if count))

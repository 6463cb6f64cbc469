"""`eucaim-fl federation status`: servers, certificate, sites, invitations."""

from __future__ import annotations

import dataclasses
import json
import sys
from datetime import UTC, datetime
from typing import TYPE_CHECKING

import click
from rich.console import Console
from rich.table import Table

if TYPE_CHECKING:
    from eucaim_fl.federation.overview import Overview

__all__ = ["command"]


@click.command("status", short_help="Do they answer? Which sites are connected?")
@click.argument("name")
@click.option("--json", "as_json", is_flag=True, help="Print JSON instead of tables.")
@click.option("--check", is_flag=True, help="Exit with 2 unless both servers answer and the certificate is valid.")
def command(name: str, as_json: bool, check: bool) -> None:
    """Say whether the federation's servers answer, which sites are connected, and what they last showed of their audit.

    \b
    Examples:
      eucaim-fl federation status liver
      eucaim-fl federation status liver --json --check
    """
    from eucaim_fl.federation.home import find_home
    from eucaim_fl.federation.overview import overview

    found = overview(find_home(name), datetime.now(UTC))
    if as_json:
        click.echo(json.dumps({**dataclasses.asdict(found), "good": found.good}, indent=2))
    else:
        _print(found, Console(soft_wrap=True))
    if check and not found.good:
        sys.exit(2)


def _print(found: Overview, console: Console) -> None:
    runs = f"runs since {found.since or 'just now'}, {found.restarts} restarts" if found.running else "does not run"
    console.print(f"{found.name}: {runs}")
    console.print(f"SuperLink: {_says(found.superlink_answers)}; proxy: {_says(found.proxy_answers)} ({found.address})")
    console.print(f"Certificate: ends on {found.certificate_ends[:10]}, in {found.certificate_days_left} days")
    if found.renewal_is_due:
        console.print(f"[bold]Renew it now: eucaim-fl federation renew {found.name}[/bold]")
    console.print(f"Coordinator's key: {found.coordinator_fingerprint}")
    table = Table()
    for column in ("site", "state", "since (UTC)", "most patients", "audit heads", "last head"):
        table.add_column(column)
    for site in found.sites:
        most = str(site.largest_patients or "")
        table.add_row(site.site, site.state, site.since or "", most, str(site.heads), site.last_head_at or "")
    console.print(table if found.sites else "No site is admitted.")
    for invited, until in found.invitations.items():
        console.print(f"Invited: {invited}, until {until}")


def _says(answers: bool) -> str:
    return "answers" if answers else "does not answer"

"""`eucaim-fl site stop`: end the running client."""

from __future__ import annotations

from pathlib import Path

import click

from eucaim_fl.cli.home_option import home_option

__all__ = ["command"]


@click.command("stop", short_help="End the running client.")
@home_option()
@click.option("--wait", "wait_s", type=click.FloatRange(0, 3600), default=60, show_default=True, help="In seconds.")
def command(home: Path, wait_s: float) -> None:
    """Ask the client of this home to end, and wait until it has. What it is at is given up, and can be asked for again.

    \b
    Example:
      eucaim-fl site stop --home /srv/eucaim-fl
    """
    from eucaim_fl.site.home import SiteHome
    from eucaim_fl.site.running import stop_client

    pid = stop_client(SiteHome(home).require(), wait_s)
    click.echo(f"The client (process {pid}) has ended.")

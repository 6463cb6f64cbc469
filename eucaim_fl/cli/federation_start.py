"""`eucaim-fl federation start` and `stop`."""

from __future__ import annotations

import click

__all__ = ["start", "stop"]


@click.command("start", short_help="Run its servers until stopped.")
@click.argument("name")
@click.option("--detach", is_flag=True, help="Run in the background; the log is state/federation.log.")
def start(name: str, detach: bool) -> None:
    """Run SuperLink and proxy until Ctrl-C or SIGTERM; what dies is started again. The log goes to standard output.

    \b
    Examples:
      eucaim-fl federation start liver
      eucaim-fl federation start liver --detach
    """
    from eucaim_fl.federation.home import find_home
    from eucaim_fl.federation.supervisor import say_with_time, start_detached, supervise

    home = find_home(name)
    if not detach:
        supervise(home, say_with_time)
        return
    found = start_detached(home)
    click.echo(f"The federation runs (process {found.pid}); sites connect to {home.settings.address}.")
    click.echo(f"Log: {home.state_folder / 'federation.log'}")


@click.command("stop", short_help="Stop its servers.")
@click.argument("name")
def stop(name: str) -> None:
    """Stop the servers of a federation, wherever they were started on this machine. Runs under way can be resumed.

    \b
    Example:
      eucaim-fl federation stop liver
    """
    from eucaim_fl.federation.home import find_home
    from eucaim_fl.federation.supervisor import stop as stop_servers

    stop_servers(find_home(name))
    click.echo("Stopped.")

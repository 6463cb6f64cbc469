"""`eucaim-fl federation init` and `renew`: authority, keys, certificates."""

from __future__ import annotations

from datetime import UTC, datetime

import click

from eucaim_fl.errors import ConfigError

__all__ = ["init", "renew"]


@click.command("init", short_help="Make a federation: authority, certificates, keys.")
@click.argument("name")
@click.option(
    "--host",
    required=True,
    metavar="HOST[:PORT]",
    help="What sites connect to: a name or an IPv4 address. PORT, if it is not the one that --listen names.",
)
@click.option("--listen", default="0.0.0.0:8443", show_default=True, help="Where the proxy listens on this machine.")
@click.option("--superlink-port", type=int, default=9091, show_default=True, help="For the SuperLink, on loopback.")
def init(name: str, host: str, listen: str, superlink_port: int) -> None:
    """Make the federation NAME: a certificate authority of its own, server certificates, secrets. Starts nothing.

    \b
    Examples:
      eucaim-fl federation init liver --host fl.example.org
      eucaim-fl federation init liver --host fl.example.org:443 --listen 10.0.0.5:8443
    """
    from eucaim_fl.federation.home import Settings, create
    from eucaim_fl.parsing import parse
    from eucaim_fl.signing import fingerprint

    now = datetime.now(UTC)
    public, _, port = host.partition(":")
    values = {
        "name": name,
        "host": public,
        "port": _number(port or listen.rpartition(":")[2]),
        "listen": listen,
        "superlink_port": superlink_port,
        "made_at": now.replace(microsecond=0),
    }
    home = create(parse(Settings, values, "The federation", ConfigError), now)
    click.echo(f"Made {home.folder}")
    click.echo(f"Coordinator's key: {fingerprint(home.coordinator_key.public)}")
    click.echo("Keep a copy of the folder's ca/ and secrets/ in a safe place: nobody can make them again.")
    click.echo(f"Next: eucaim-fl federation start {name}, eucaim-fl federation invite {name} SITE")


def _number(text: str) -> int | str:
    return int(text) if text.isascii() and text.isdigit() else text


@click.command("renew", short_help="Make a new certificate for the proxy.")
@click.argument("name")
def renew(name: str) -> None:
    """Make a new server certificate from the federation's authority, for one year; a running proxy takes it at once.

    Sites need nothing new: they trust the authority.

    \b
    Example:
      eucaim-fl federation renew liver
    """
    from eucaim_fl.federation.home import find_home, write_server_certificate
    from eucaim_fl.federation.supervisor import reload
    from eucaim_fl.signing import certificate_facts

    home = find_home(name)
    write_server_certificate(home, home.settings, datetime.now(UTC))
    end = certificate_facts(home.server_file.read_bytes()).not_after
    click.echo(f"The new certificate ends on {end:%Y-%m-%d}.")
    click.echo("The running proxy takes it now." if reload(home) else "It is used from the next start on.")

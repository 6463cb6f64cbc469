"""`eucaim-fl federation`: what a coordinator does. Commands are imported when they are called."""

from __future__ import annotations

import click

from eucaim_fl.cli.lazy import LazyGroup

__all__ = ["command"]

_CLI = "eucaim_fl.cli"
_COMMANDS = {
    "init": (f"{_CLI}.federation_init:init", "Make a federation: authority, certificates, keys."),
    "start": (f"{_CLI}.federation_start:start", "Run its servers until stopped."),
    "status": (f"{_CLI}.federation_status", "Do they answer? Which sites are connected?"),
    "stop": (f"{_CLI}.federation_start:stop", "Stop its servers."),
    "invite": (f"{_CLI}.federation_sites:invite", "Write an invitation for a site."),
    "admit": (f"{_CLI}.federation_sites:admit", "Admit a site that answered its invitation."),
    "remove": (f"{_CLI}.federation_sites:remove", "Shut a site out."),
    "renew": (f"{_CLI}.federation_init:renew", "Make a new certificate for the proxy."),
    "heads": (f"{_CLI}.federation_sites:heads", "Print the heads of a site's audit log, for comparison."),
}


@click.group(
    "federation", cls=LazyGroup, table=_COMMANDS, short_help="For the coordinator: set up, invite, admit, start."
)
def command() -> None:
    """For the coordinator: a federation of real hospitals.

    Its folder is federations/NAME, or NAME in the folder that EUCAIM_FL_FEDERATIONS names; only its owner can read it.

    Start with: eucaim-fl federation init NAME --host fl.example.org
    """

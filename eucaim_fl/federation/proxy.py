"""The reverse proxy in front of the SuperLink: what of it sites can reach, as a configuration of nginx.

The SuperLink serves the sites' interface and, without any login, one that registers sites and starts runs. Only the
nine calls below pass, by POST, spelled exactly so; everything else is refused before it is forwarded.
"""

from __future__ import annotations

import shutil
from pathlib import Path

from jinja2 import Environment, PackageLoader, StrictUndefined

from eucaim_fl.durable import write_atomically
from eucaim_fl.errors import ServiceStateError
from eucaim_fl.federation.home import FederationHome, Settings

__all__ = ["FLEET_CALLS", "command", "configuration", "find_nginx", "write_configuration"]

FLEET_CALLS = (
    "activate-node",
    "deactivate-node",
    "send-node-heartbeat",
    "pull-messages",
    "push-messages",
    "get-run",
    "push-object",
    "pull-object",
    "confirm-message-received",
)
"""The calls under /v1/fleet/ that a site's client makes; not register-node, unregister-node and get-fab."""
_ROUTINE = ("send-node-heartbeat", "pull-messages", "push-object", "pull-object", "confirm-message-received")
_LIMITS = {"body_mib": 8, "requests_per_s": 100, "burst": 1000, "connections": 64, "all_connections": 512}
_PLACES = ("/usr/sbin/nginx", "/usr/local/sbin/nginx", "/usr/local/nginx/sbin/nginx", "/opt/homebrew/bin/nginx")


def configuration(settings: Settings) -> str:
    """The text of nginx.conf. Every value in it was checked by `Settings`; no path of this machine is in it.

    Bodies of calls are bounded to 8 MiB (a chunk of a model is 5); one address may send 100 requests a second, after
    a thousand at once, over 64 connections.
    """
    environment = Environment(
        loader=PackageLoader("eucaim_fl.federation"),
        undefined=StrictUndefined,
        autoescape=False,  # noqa: S701  (no markup)
        trim_blocks=True,
        keep_trailing_newline=True,
    )
    return environment.get_template("nginx.conf.jinja").render(
        listen=settings.listen,
        superlink_port=settings.superlink_port,
        calls=FLEET_CALLS,
        routine=_ROUTINE,
        **_LIMITS,
    )


def write_configuration(home: FederationHome) -> Path:
    """Write proxy/nginx.conf and make the folders that nginx wants. Raises JournalError if they can't be written."""
    path = home.folder / "proxy" / "nginx.conf"
    write_atomically(path, configuration(home.settings).encode())
    path.chmod(0o600)
    (home.state_folder / "proxy-temp").mkdir(mode=0o700, parents=True, exist_ok=True)
    return path


def find_nginx() -> Path:
    """The nginx of this machine. Raises ServiceStateError that says how to install it if there is none."""
    found = shutil.which("nginx") or next((place for place in _PLACES if Path(place).is_file()), None)
    if found is None:
        raise ServiceStateError(
            "nginx is not installed; without it sites would reach more than they may.",
            fix="Run `sudo apt-get install nginx-light` (Debian, Ubuntu) or `sudo dnf install nginx`.",
        )
    return Path(found)


def command(nginx: Path, home: FederationHome, *options: str) -> tuple[str, ...]:
    """The command line of this federation's nginx: own prefix, own configuration, no file of the system's."""
    return (str(nginx), "-p", f"{home.folder}/", "-e", "stderr", "-c", "proxy/nginx.conf", *options)

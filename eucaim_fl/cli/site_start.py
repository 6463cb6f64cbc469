"""eucaim-fl site start: connect this site to its federation and serve it."""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from types import FrameType

import click

from eucaim_fl.cli.home_option import home_option

__all__ = ["command"]


@click.command(name="start", short_help="Connect this site to its federation and serve it.")
@home_option()
@click.option(
    "--keep-sent",
    type=click.Path(path_type=Path, file_okay=False),
    help="Write a copy of every answer that leaves into this folder.",
)
@click.option("--detach", is_flag=True, help="Run in the background; the log goes to HOME/state/client.log.")
def command(home: Path, keep_sent: Path | None, detach: bool) -> None:
    """Connect this site to its federation and serve it until it is stopped.

    Connects outwards only, to the one address of the invitation (through HTTPS_PROXY, if set). Every instruction is
    decided by HOME/policy.yaml, and recorded before anything leaves; see `eucaim-fl site audit show`. Logs go to the
    terminal. Ctrl-C, SIGTERM or `eucaim-fl site stop` end it.

    \b
    Example:
      eucaim-fl site start --home /srv/eucaim
    """
    ends = threading.Event()

    def end(_number: int, _frame: FrameType | None) -> None:
        ends.set()

    for number in (signal.SIGTERM, signal.SIGINT):  # at once: as process 1 of a container nobody else hears them
        signal.signal(number, end)
    os.umask(0o077)
    from eucaim_fl.errors import ServiceStateError
    from eucaim_fl.site.home import SiteHome
    from eucaim_fl.site.running import client_pid

    place = SiteHome(home.absolute()).require()
    other = client_pid(place)
    if other is not None:
        raise ServiceStateError(
            f"The client of this home already runs (process {other}); `eucaim-fl site stop` ends it.",
            local_detail=str(place.folder),
        )
    from eucaim_fl.federation.site_client import SiteClient

    logging.basicConfig(
        level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s", stream=sys.stdout, force=True
    )
    for noisy in ("httpx", "httpcore", "flwr"):
        logging.getLogger(noisy).setLevel(logging.ERROR)
    os.environ.setdefault("FLWR_TELEMETRY_ENABLED", "0")
    os.environ.setdefault("FLWR_DISABLE_UPDATE_CHECK", "1")
    if detach:
        _in_background(place.folder, keep_sent)
        return
    SiteClient(place, ends, keep_sent).run()


def _in_background(home: Path, keep_sent: Path | None) -> None:
    """Start the same command in a session of its own, and wait until it serves or has ended."""
    from eucaim_fl.errors import ServiceError

    log = home / "state" / "client.log"
    log.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    kept = ["--keep-sent", str(keep_sent.absolute())] if keep_sent else []
    with log.open("ab") as stream:
        process = subprocess.Popen(  # noqa: S603  our own interpreter and module
            [sys.executable, "-m", "eucaim_fl", "site", "start", "--home", str(home), *kept],
            stdin=subprocess.DEVNULL,
            stdout=stream,
            stderr=stream,
            start_new_session=True,
        )
    pid = home / "state" / "running" / "pid"
    until = time.monotonic() + 60
    while time.monotonic() < until:
        if process.poll() is not None:
            raise ServiceError(
                "The client ended at once.",
                fix="Its log says why.",
                local_detail=f"{log}: exit code {process.returncode}",
            )
        if pid.is_file() and pid.read_text(encoding="ascii").strip() == str(process.pid):
            click.echo(f"The client runs (process {process.pid}); its log: {log}")
            return
        time.sleep(0.1)
    raise ServiceError("The client did not start within a minute.", fix="Its log says why.", local_detail=str(log))

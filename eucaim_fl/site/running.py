"""Whether a site's client runs, and how it is ended. Only a process that holds the home's lock is ever signalled."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from pathlib import Path

from eucaim_fl.durable import exclusive
from eucaim_fl.errors import EucaimError, RunFolderBusyError, ServiceStateError
from eucaim_fl.site.home import SiteHome
from eucaim_fl.sitefile import load_site_file

__all__ = ["client_pid", "ever_started", "is_running", "stop_client"]

_PAUSE_S = 0.1


def is_running(home: SiteHome) -> bool:
    """Whether some process holds the home's lock. Raises JournalError if that can't be asked."""
    if not (home.run_folder / ".lock").exists():
        return False
    try:
        with exclusive(home.run_folder):
            return False
    except RunFolderBusyError:
        return True


def ever_started(home: SiteHome) -> bool:
    """Whether anything tells that a client of this home ever ran; False only of a home as `site init` left it.

    Any file in the home's state counts, and any in the privacy ledger; where that lies is read from the site file. What
    can't be looked at counts as a trace too: a log that was removed must not pass for one that was never begun.
    """
    try:
        records = load_site_file(home.require().site_file).records_folder()
        return any(_holds_files(folder) for folder in (home.folder / "state", records / "ledger"))
    except (EucaimError, OSError):
        return True


def _holds_files(folder: Path) -> bool:
    """Whether there is anything but folders. What the system raises is not caught."""
    if not folder.exists():
        return False
    return not folder.is_dir() or any(_holds_files(entry) for entry in folder.iterdir())


def client_pid(home: SiteHome) -> int | None:
    """The process that the home's file `pid` names, if that process has the lock's file open; else None.

    So a file that a killed client left behind never leads to whoever has its number now.
    """
    try:
        with (home.run_folder / "pid").open("rb") as stream:
            text = stream.read(32).strip()
    except OSError:
        return None
    if not text.isdigit() or int(text) < 2:
        return None
    pid = int(text)
    return pid if _has_open(pid, home.run_folder / ".lock") else None


def _has_open(pid: int, path: Path) -> bool:
    """Whether a process has a file open; False if it is another user's."""
    try:
        wanted = path.stat()
        handles = list(Path(f"/proc/{pid}/fd").iterdir())
    except OSError:
        return False
    for handle in handles:
        with contextlib.suppress(OSError):
            found = handle.stat()
            if (found.st_dev, found.st_ino) == (wanted.st_dev, wanted.st_ino):
                return True
    return False


def stop_client(home: SiteHome, wait_s: float) -> int:
    """Ask the running client to end (SIGTERM) and wait until it has; returns the process that ended.

    Raises ServiceStateError if no client runs in this home, it is another user's, or it has not ended after `wait_s`;
    JournalError if the home's lock can't be asked.
    """
    if not is_running(home):
        raise ServiceStateError("No client runs in this home.", local_detail=str(home.folder))
    pid = client_pid(home)
    try:
        if pid is None:
            raise ProcessLookupError
        os.kill(pid, signal.SIGTERM)
    except (ProcessLookupError, PermissionError):
        raise ServiceStateError(
            "A process works in this home that can't be asked to end.",
            fix="Run this as the user who started the client. If it was killed, its worker ends within a minute.",
            local_detail=str(home.folder),
        ) from None
    until = time.monotonic() + wait_s
    while client_pid(home) == pid or is_running(home):
        if time.monotonic() >= until:
            raise ServiceStateError(
                "The client was asked to end, and has not yet.",
                fix="It may be writing its audit log; wait and look with `eucaim-fl site status`.",
                local_detail=f"process {pid}",
            )
        time.sleep(_PAUSE_S)
    return pid

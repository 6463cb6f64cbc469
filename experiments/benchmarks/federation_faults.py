"""Faults for a federation on this machine: which, when and to whom, drawn from a seed; and how each is done."""

from __future__ import annotations

import contextlib
import os
import random
import resource
import signal
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from eucaim_fl.federation.rehearsal import Rehearsal

__all__ = ["Fault", "Faults", "draw", "find"]

_MOST = 3
_LATEST = 1.0
_WHAT: tuple[tuple[str, tuple[str, ...], int], ...] = (
    ("kill", ("client", "worker", "worker_server", "superlink", "proxy", "train", "supervisor"), 8),
    ("freeze", ("client", "worker", "superlink", "proxy", "train", "supervisor"), 5),
    ("disk_full", ("client", "superlink", "train"), 2),
    ("lock", ("tracking",), 4),
)
"""What can happen, to whom, and how often each kind is drawn among the others; `lock` only where tracking is on."""
_AT_A_SITE = ("client", "worker", "worker_server")


@dataclass(frozen=True)
class Fault:
    """One fault. at: when, in undisturbed durations after the start of `train`. whom: a role, with its site if it is
    one of a site's. seconds: how long it is frozen, its disk full, or the database locked; 0 for a kill.
    """

    at: float
    what: str
    whom: str
    seconds: float = 0.0

    def __str__(self) -> str:
        lasts = f" for {self.seconds:.0f} s" if self.seconds else ""
        return f"{self.what} {self.whom} at {self.at:.2f}{lasts}"


def draw(rng: random.Random, sites: list[str], *, tracking: bool) -> tuple[Fault, ...]:
    """One to three faults, in the order of time."""
    kinds = [entry for entry in _WHAT if tracking or entry[0] != "lock"]
    faults = []
    for _ in range(rng.randint(1, _MOST)):
        what, roles, _ = rng.choices(kinds, [weight for _, _, weight in kinds])[0]
        role = rng.choice(roles)
        whom = f"{role}:{rng.choice(sites)}" if role in _AT_A_SITE else role
        seconds = 0.0 if what == "kill" else round(rng.uniform(2.0, 20.0), 1)
        faults.append(Fault(round(rng.uniform(0.05, _LATEST), 3), what, whom, seconds))
    return tuple(sorted(faults, key=lambda fault: fault.at))


def _children(pid: int, having: bytes) -> list[int]:
    """Children of a process whose command line holds `having`."""
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError, ValueError, IndexError):
            parent = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
            if parent == pid and having in (entry / "cmdline").read_bytes():
                found.append(int(entry.name))
    return found


def find(rehearsal: Rehearsal, whom: str, train: int | None) -> list[int]:
    """Numbers of the processes that a fault is done to; empty if there are none at the moment."""
    role, _, site = whom.partition(":")
    state = rehearsal.federation.folder / "state"
    if role == "train":
        return [] if train is None else [train]
    if role == "supervisor":
        return [rehearsal.servers.pid] if rehearsal.servers and rehearsal.servers.poll() is None else []
    if role in ("superlink", "proxy"):
        try:
            master = int((state / f"{role}.pid").read_text())
        except (OSError, ValueError):
            return []
        return [master, *_children(master, b"nginx")] if role == "proxy" else [master]
    client = rehearsal.clients.get(site)
    if client is None or client.poll() is not None:
        return []
    if role == "client":
        return [client.pid]
    servers = _children(client.pid, b"forkserver")
    return servers if role == "worker_server" else [w for s in servers for w in _children(s, b"forkserver")]


@contextlib.contextmanager
def _frozen(pids: list[int]) -> Iterator[None]:
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGCONT)


@contextlib.contextmanager
def _disk_full(pids: list[int]) -> Iterator[None]:
    """No file of these processes can grow: every write to the disk fails as on a full one."""
    before = {}
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            before[pid] = resource.prlimit(pid, resource.RLIMIT_FSIZE)
            resource.prlimit(pid, resource.RLIMIT_FSIZE, (0, before[pid][1]))
    try:
        yield
    finally:
        for pid, limits in before.items():
            with contextlib.suppress(ProcessLookupError):
                resource.prlimit(pid, resource.RLIMIT_FSIZE, limits)


@contextlib.contextmanager
def _locked(database: Path) -> Iterator[None]:
    """Somebody else writes into the database and does not come to an end."""
    connection = sqlite3.connect(database, timeout=30.0, isolation_level=None)
    try:
        connection.execute("BEGIN EXCLUSIVE")
        yield
    finally:
        connection.close()


class Faults:
    """Does faults to a rehearsal while a run is under way, each in its own time; `join` waits until all are over."""

    def __init__(self, rehearsal: Rehearsal, database: Path, train: Callable[[], int | None]) -> None:
        self._rehearsal, self._database, self._train = rehearsal, database, train
        self._threads: list[threading.Thread] = []
        self._cancelled = threading.Event()
        self.done: list[dict[str, object]] = []
        self.frozen_train: list[tuple[float, float]] = []

    def begin(self, faults: tuple[Fault, ...], unit_s: float) -> None:
        """Start the clock. unit_s: how long an undisturbed run takes."""
        began = time.monotonic()
        for fault in faults:
            thread = threading.Thread(target=self._do, args=(fault, began, began + unit_s * fault.at), daemon=True)
            self._threads.append(thread)
            thread.start()

    def cancel(self) -> None:
        """What has not begun does not happen any more."""
        self._cancelled.set()

    @property
    def over(self) -> bool:
        """Whether nothing is wrong any more, and nothing will be."""
        return not any(thread.is_alive() for thread in self._threads)

    def join(self) -> None:
        """Wait until frozen processes go on, disks have room and databases are free."""
        for thread in self._threads:
            thread.join()

    def _do(self, fault: Fault, began: float, moment: float) -> None:
        if self._cancelled.wait(max(0.0, moment - time.monotonic())):
            return
        pids = [] if fault.what == "lock" else find(self._rehearsal, fault.whom, self._train())
        now = time.monotonic()
        self.done.append({"fault": str(fault), "after_s": round(now - began, 2), "processes": len(pids)})
        if fault.what == "kill":
            for pid in pids:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            return
        state = {"freeze": _frozen, "disk_full": _disk_full}.get(fault.what)
        try:
            with _locked(self._database) if state is None else state(pids):
                time.sleep(fault.seconds)
        except sqlite3.OperationalError:
            self.done.append({"fault": "the database could not be locked", "after_s": 0.0, "processes": 0})
        if fault.what == "freeze" and fault.whom == "train" and pids:
            self.frozen_train.append((now, time.monotonic()))

"""A process that is locked in as a model's is, and then tries all that a model must not do; prints what came of it.

Run by tests only: `intruder.py PARENT all|filter`. `filter` leaves out what a kernel or container may refuse.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import resource
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

from eucaim_fl.inference.lock import close_off, lock


def attempts() -> dict[str, Callable[[], object]]:
    """What is tried, by name."""
    libc = ctypes.CDLL(None, use_errno=True)

    def system_call(*values: int) -> object:
        if libc.syscall(*map(ctypes.c_long, values)) == -1:
            raise OSError(ctypes.get_errno(), "")
        return None

    return {
        "internet socket": lambda: socket.socket(socket.AF_INET, socket.SOCK_STREAM),
        "datagram socket": lambda: socket.socket(socket.AF_INET6, socket.SOCK_DGRAM),
        "unix socket": lambda: socket.socket(socket.AF_UNIX),
        "read a file": lambda: Path("/etc/passwd").read_bytes(),
        "read the program": lambda: Path(__file__).read_bytes(),
        "write a file": lambda: Path("taken").write_bytes(b"image"),
        "write elsewhere": lambda: Path("/tmp/eucaim-fl-intruder").write_bytes(b"image"),  # noqa: S108
        "make a folder": lambda: Path("folder").mkdir(),
        "list a folder": lambda: list(Path("/").iterdir()),
        "fork": os.fork,
        "execute": lambda: os.execv("/bin/true", ["true"]),  # noqa: S606
        "signal the parent": lambda: os.kill(os.getppid(), signal.SIGUSR1),
        "trace the parent": lambda: system_call({"x86_64": 101}.get(os.uname().machine, 117), 16, os.getppid(), 0, 0),
        "memory of the parent": lambda: system_call(310, os.getppid(), 0, 0, 0, 0, 0),
        "file in memory": lambda: os.memfd_create("x"),
        "another pipe": os.pipe,
        "more memory": lambda: resource.setrlimit(resource.RLIMIT_AS, (resource.RLIM_INFINITY,) * 2),
        "namespace": lambda: system_call({"x86_64": 272}.get(os.uname().machine, 97), 0x10000000),
        "io_uring": lambda: system_call(425, 1, 0),
        "allocate": lambda: bytearray(2**30),
        # what a model needs
        "compute": lambda: sum(range(1000)),
        "take memory": lambda: bytearray(2**24),
        "start a thread": one_thread,
        "ask the time": time.monotonic,
        "random numbers": lambda: os.urandom(8),
    }


def one_thread() -> None:
    """A thread that lives and ends."""
    done = threading.Event()
    thread = threading.Thread(target=done.set)
    thread.start()
    thread.join(10)
    if not done.is_set():
        raise RuntimeError("the thread did not run")


def main() -> None:
    """Lock, try, tell."""
    held: list[str] = close_off(int(sys.argv[1])) if sys.argv[2] == "all" else []
    if not held:
        ctypes.CDLL(None).prctl(38, 1, 0, 0, 0)
    waiting = threading.Event()
    early: list[str] = []

    def from_before() -> None:
        waiting.wait()
        try:
            Path("/etc/passwd").read_bytes()
            early.append("done")
        except OSError as problem:
            early.append(type(problem).__name__)

    older = threading.Thread(target=from_before)
    older.start()
    tried = attempts()
    layers = lock(2**28, held)
    told: dict[str, str] = {}
    for name, attempt in tried.items():
        try:
            attempt()
            told[name] = "done"
        except (OSError, MemoryError, ValueError, RuntimeError) as problem:
            told[name] = type(problem).__name__
    waiting.set()
    older.join()
    told["older thread"] = early[0]
    with contextlib.suppress(OSError):
        os.write(1, json.dumps([layers, told]).encode())
    os._exit(0)


if __name__ == "__main__":
    main()

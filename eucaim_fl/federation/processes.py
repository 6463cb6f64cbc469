"""Worker processes: forked from one warm server that has torch and MONAI loaded, so that a new one starts at once.

They end with their parent and ignore Ctrl-C (the parent decides).
"""

from __future__ import annotations

import contextlib
import importlib
import multiprocessing
import os
import signal
import threading
from collections.abc import Callable
from multiprocessing import forkserver
from multiprocessing.connection import Connection
from multiprocessing.context import ForkServerContext, ForkServerProcess
from typing import Any

from eucaim_fl.errors import WorkerError

__all__ = ["call", "context", "cool_down", "end_calls", "start_process", "tie_to_parent", "warm_up"]

_PRELOAD = ["eucaim_fl.federation.preload"]
_THREADS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")


_calls: set[ForkServerProcess] = set()


def context() -> ForkServerContext:
    """The multiprocessing context of all worker processes."""
    return multiprocessing.get_context("forkserver")


def warm_up() -> None:
    """Start the server that workers are forked from; it loads torch and MONAI while the caller does other things.

    Libraries' own threads are held at one a process: sites work side by side in processes, and results must not
    depend on how many threads a library chose.
    """
    for name in _THREADS:
        os.environ.setdefault(name, "1")
    for name, value in {
        "FLWR_TELEMETRY_ENABLED": "0",
        "FLWR_DISABLE_UPDATE_CHECK": "1",
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "DO_NOT_TRACK": "true",
        "RAY_USAGE_STATS_ENABLED": "0",
        "CUBLAS_WORKSPACE_CONFIG": ":4096:8",
    }.items():
        os.environ.setdefault(name, value)
    context().set_forkserver_preload(_PRELOAD)
    forkserver.ensure_running()


def cool_down() -> None:
    """End the warm server at once, even while it still loads: a command that failed does not wait for it."""
    server = getattr(forkserver, "_forkserver", None)
    pid = getattr(server, "_forkserver_pid", None)
    if isinstance(pid, int):
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def tie_to_parent() -> None:
    """In a worker: ignore Ctrl-C, and end at once when the parent is gone, whatever is being computed."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    parent = multiprocessing.parent_process()

    def watch() -> None:
        if parent is not None:
            parent.join()
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def start_process(target: Callable[..., None], *args: Any) -> ForkServerProcess:
    """Start a daemon process."""
    process = context().Process(target=target, args=args, daemon=True)
    process.start()
    return process


def _run(target: str, args: tuple[Any, ...], pipe: Connection) -> None:
    tie_to_parent()
    module, _, name = target.partition(":")
    try:
        pipe.send((True, getattr(importlib.import_module(module), name)(*args)))
    except Exception as problem:  # noqa: BLE001  (handed to the caller, which raises it)
        pipe.send((False, problem))


def call(target: str, *args: Any) -> Any:
    """Call `module:function` in a fresh worker process and return its value (own, trusted code and values only).

    Raises what the function raised; WorkerError if the process ended without an answer.
    """
    here, there = context().Pipe(duplex=False)
    process = start_process(_run, target, args, there)
    _calls.add(process)
    there.close()
    try:
        good, value = here.recv()
    except EOFError:
        raise WorkerError(
            "A process of this machine ended without an answer.",
            fix="Look whether memory was short.",
            local_detail=target,
        ) from None
    finally:
        _calls.discard(process)
        here.close()
        process.join(5)
    if not good:
        raise value
    return value


def end_calls() -> None:
    """End all processes that `call` waits for in other threads, which then raise WorkerError."""
    for process in list(_calls):
        process.kill()

"""MLflow in a process of its own, of low priority: tracking neither slows a run down nor makes it fail.

The run only says that its folder has changed; the process reads the folder and logs what is new. What could not be
logged stays in the folder, and `mlflow_tracker.replay` logs it later.
"""

from __future__ import annotations

import contextlib
import logging
import multiprocessing
import os
import queue
import signal
import sys
import threading
import time
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.context import BaseContext
from pathlib import Path
from typing import Any, Protocol, cast

from eucaim_fl.config import TrackingConfig
from eucaim_fl.errors import EucaimError
from eucaim_fl.tracking.address import ui_command
from eucaim_fl.tracking.mlflow_tracker import MlflowTracker, TrackedState
from eucaim_fl.tracking.model_export import warm_up

__all__ = ["Event", "Retries", "Sidecar", "TrackingOutcome"]

_NICENESS = 15
_LOG = "tracking.log"


@dataclass(frozen=True)
class Event:
    """News about the run folder: `running` after a round; `finished` when result, report and models are written;
    `interrupted` or `failed` when the run ends otherwise."""

    state: TrackedState


@dataclass(frozen=True)
class Retries:
    """How often an unreachable MLflow is asked again; the pause doubles from `pause_s` up to `longest_pause_s`."""

    attempts: int = 5
    pause_s: float = 0.5
    longest_pause_s: float = 30.0


@dataclass(frozen=True)
class TrackingOutcome:
    """What became of the tracking. message: why it is not `ok`, in one sentence for the terminal."""

    ok: bool
    run_id: str | None
    message: str
    ui_command: str


class _Process(Protocol):
    """What is used of a process; the contexts' own classes have no common public type."""

    sentinel: int

    def start(self) -> None: ...
    def is_alive(self) -> bool: ...
    def terminate(self) -> None: ...
    def kill(self) -> None: ...
    def join(self, timeout: float | None = None) -> None: ...


class Sidecar:
    """The tracking process of one run. No method raises because of MLflow, and `send` never waits.

    context: a multiprocessing context, best `forkserver` with torch and MONAI preloaded.
    It ends when `close` says so or when this process ends, however that happens.
    """

    def __init__(
        self,
        run_folder: Path,
        config: TrackingConfig,
        runs_dir: Path,
        *,
        context: BaseContext,
        retries: Retries | None = None,
    ) -> None:
        self._arguments = (run_folder.absolute(), config, runs_dir.absolute(), retries or Retries())
        self._ui = ui_command(config, runs_dir)
        self._context = context
        self._process: _Process | None = None
        self._problem = "It was not started."

    def start(self) -> None:
        """Start the process; returns at once."""
        try:
            self._events: Any = self._context.Queue()
            self._answer, theirs = self._context.Pipe(duplex=False)
            made = getattr(self._context, "Process")  # noqa: B009  every context has it, the base class's type has not
            process = cast(
                _Process,
                made(
                    target=_serve, args=(self._events, theirs, *self._arguments), name="eucaim-fl-tracking", daemon=True
                ),
            )
            process.start()
            theirs.close()
            self._process = process
        except OSError as problem:
            self._problem = f"Its process could not be started ({problem.strerror})."

    def send(self, event: Event) -> None:
        """Tell of something new in the folder."""
        if self._process is not None:
            with contextlib.suppress(ValueError, OSError):
                self._events.put_nowait(event)

    def close(self, timeout_s: float = 60.0) -> TrackingOutcome:
        """Let it log what is left, for at most `timeout_s`, then end it and say what became of the tracking."""
        process, self._process = self._process, None
        if process is None:
            return self._failed(self._problem)
        outcome: TrackingOutcome | None = None
        with contextlib.suppress(OSError, ValueError, EOFError):
            self._events.put_nowait(None)
            wait([self._answer, process.sentinel], timeout_s)
            if self._answer.poll(0):
                outcome = self._answer.recv()
        process.join(1.0 if outcome else 0.0)
        if process.is_alive():
            process.terminate()
            process.join(2.0)
            if process.is_alive():
                process.kill()
                process.join()
            reason = f"It did not finish within {timeout_s:g} s."
        else:
            reason = "Its process ended unexpectedly."
        self._events.close()
        self._events.cancel_join_thread()  # the reader may be gone; nobody waits for it
        self._answer.close()
        return outcome or self._failed(reason)

    def _failed(self, reason: str) -> TrackingOutcome:
        return TrackingOutcome(False, None, _advice(reason), self._ui)


def _advice(reason: str) -> str:
    return f"MLflow does not hold the whole run: {reason} The run folder does; it can be logged again from there."


def _serve(
    events: Any, answer: Connection, run_folder: Path, config: TrackingConfig, runs_dir: Path, retries: Retries
) -> None:
    """Body of the process: log the folder whenever there is news, until told to end."""
    _settle(run_folder)
    tracker: MlflowTracker | None = None
    state: TrackedState = "running"
    problem = ""
    pause = retries.pause_s
    ending, pending, cold = False, True, True
    while not ending:
        try:
            # After a failure the folder is looked at again even without news, at growing intervals.
            news = events.get(timeout=pause if problem else None) if not pending else Event(state)
            pending = False
            while True:
                ending, state = (True, state) if news is None else (ending, news.state)
                news = events.get_nowait()
        except queue.Empty:
            pass
        if ending and state == "running":
            state = "interrupted"
        tracker, problem = _attempt(tracker, run_folder, config, runs_dir, state)
        if cold and not problem and not ending:
            cold = False
            with contextlib.suppress(Exception):  # a convenience: the model is logged faster at the end
                warm_up()
        pause = min(pause * 2, retries.longest_pause_s) if problem else retries.pause_s
    for attempt in range(1, retries.attempts):
        if not problem:
            break
        time.sleep(min(retries.pause_s * 2 ** (attempt - 1), retries.longest_pause_s))
        tracker, problem = _attempt(tracker, run_folder, config, runs_dir, state)
    run_id = tracker.run_id if tracker else None
    message = _advice(problem) if problem else ""
    answer.send(TrackingOutcome(not problem, run_id, message, ui_command(config, runs_dir)))


def _attempt(
    tracker: MlflowTracker | None, run_folder: Path, config: TrackingConfig, runs_dir: Path, state: TrackedState
) -> tuple[MlflowTracker | None, str]:
    """Log what is new; the tracker, and in one line what went wrong (details go to the log file)."""
    try:
        tracker = tracker or MlflowTracker(run_folder, config, runs_dir)
        tracker.sync(state)
    except EucaimError as problem:
        return tracker, str(problem)
    except Exception as problem:  # whatever MLflow, its database or its network raise
        logging.exception("tracking failed")
        return tracker, f"{type(problem).__name__} (see {_LOG} in the run folder)."
    return tracker, ""


def _settle(run_folder: Path) -> None:
    """Low priority, deaf to Ctrl-C (the run decides), quiet, and gone when the run's process is gone."""
    with contextlib.suppress(OSError):
        os.nice(_NICENESS)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = multiprocessing.parent_process()
    if parent is not None:
        threading.Thread(target=_end_with, args=(parent.sentinel,), daemon=True).start()
    log = os.open(run_folder / _LOG, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    sys.stdout.flush()
    sys.stderr.flush()
    os.dup2(log, 1)
    os.dup2(log, 2)
    os.close(log)
    os.environ["OMP_NUM_THREADS"] = "1"
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")  # retries are counted here
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "20")
    if "torch" in sys.modules:
        sys.modules["torch"].set_num_threads(1)


def _end_with(sentinel: int) -> None:
    wait([sentinel])
    os._exit(0)

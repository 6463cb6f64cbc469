"""status.json of a running site client: what `site status` and the health check read (see `site.status`)."""

from __future__ import annotations

import contextlib
import os
import threading
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from eucaim_fl import __version__
from eucaim_fl.durable import write_json
from eucaim_fl.errors import EucaimError, JournalError
from eucaim_fl.seals import InstructionSeal

__all__ = ["StatusFile"]

_NO_ILLNESS = {"EFL310", "EFL311", "EFL312"}


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


class StatusFile:
    """What the client last said of itself. Thread-safe; a disk that is full costs the status, not the client."""

    def __init__(self, path: Path, site: str, federation: str) -> None:
        """Nothing is written before the first word: the file may still be another client's."""
        self._path, self._lock = path, threading.Lock()
        self._values: dict[str, Any] = {
            "state": "starting",
            "site": site,
            "federation": federation,
            "pid": os.getpid(),
            "since": _now(),
            "version": __version__,
            "connected": False,
            "admitted": False,
            "node_id": None,
            "last_instruction": None,
            "last_contribution": None,
            "last_problem": None,
            "problem_since_contribution": False,
            "certificate_until": None,
            "working": None,
        }

    def refresh(self, **changes: Any) -> None:
        """Write the status, with changes."""
        with self._lock:
            if changes.get("state", self._values["state"]) != self._values["state"]:
                changes["since"] = _now()
            self._values.update(changes)
            self._values["updated"] = _now()
            with contextlib.suppress(JournalError, OSError):
                self._path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
                write_json(self._path, self._values)

    def connected(self, node_id: int, certificate_until: str | None) -> None:
        """The line stands."""
        self.refresh(
            state="connected", connected=True, admitted=True, node_id=node_id, certificate_until=certificate_until
        )

    def say(self, state: str, problem: EucaimError | None = None) -> None:
        """The line does not stand, and why."""
        changes: dict[str, Any] = {"state": state, "connected": False}
        if state == "not_admitted":
            changes["admitted"] = False
        if problem is not None:
            changes["last_problem"] = {"code": problem.code, "text": str(problem), "at": _now()}
        self.refresh(**changes)

    def problem(self, problem: EucaimError) -> None:
        """An instruction ended in a refusal or a fault. That the policy does not allow a plan is no illness."""
        ill = problem.code not in _NO_ILLNESS or bool(self._values["problem_since_contribution"])
        told = {"code": problem.code, "text": str(problem), "at": _now()}
        self.refresh(last_problem=told, problem_since_contribution=ill)

    def instruction(self, seal: InstructionSeal, name: str) -> None:
        """An instruction was allowed."""
        self.refresh(last_instruction=_about(seal, name))

    def contributed(self, seal: InstructionSeal, name: str) -> None:
        """An answer left."""
        self.refresh(last_contribution=_about(seal, name), problem_since_contribution=False)

    def working(self, seal: InstructionSeal | None, name: str) -> None:
        """What the worker is at; None: nothing."""
        self.refresh(working=None if seal is None else _about(seal, name))


def _about(seal: InstructionSeal, name: str) -> dict[str, Any]:
    return {"plan": seal.plan, "name": name, "kind": seal.kind, "round": seal.round, "at": _now()}

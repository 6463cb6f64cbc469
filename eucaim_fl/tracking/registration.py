"""When a validation's plan was fixed, and when the first record of a site came: written as it happens, never after.

    registered.json              the plan's SHA-256 and the time, before any site is asked
    journal/first-records.json   the time of the first record, once more each time that sites were asked anew

Both times are the coordinator's own word, by its clock.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from eucaim_fl.durable import write_json
from eucaim_fl.errors import JournalError

__all__ = ["Registration", "note_first_record", "read_registration", "register"]

_TIME = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\+00:00")
_REGISTERED, _CAME = "registered.json", "first-records.json"


@dataclass(frozen=True)
class Registration:
    """plan_sha256, at: what was registered, and when; empty where nothing was. came: when the first record came; with
    more than one entry, sites were asked anew after the run had been interrupted. Times: UTC, ISO 8601, to the second.
    """

    plan_sha256: str = ""
    at: str = ""
    came: tuple[str, ...] = ()


def register(folder: Path, plan_sha256: str) -> None:
    """Write down that this plan is fixed, before any site is asked. A run that goes on keeps its first entry.

    Raises JournalError if it can't be written, or another plan is registered in this run's folder.
    """
    known = _read(folder / _REGISTERED)
    if known is None:
        write_json(folder / _REGISTERED, {"plan_sha256": plan_sha256, "at": _now()})
    elif not isinstance(known, dict) or known.get("plan_sha256") != plan_sha256:
        raise JournalError(
            "The plan is not the one that this run registered.",
            fix="Start a new run: a plan is fixed before any site is asked.",
            local_detail=str(folder / _REGISTERED),
        )


def note_first_record(folder: Path) -> None:
    """Write down that the first record of a site has come just now.

    Raises JournalError if it can't be written.
    """
    write_json(folder / "journal" / _CAME, {"at": [*read_registration(folder).came, _now()]})


def read_registration(folder: Path) -> Registration:
    """What a run's folder has of both; what is missing or damaged is empty."""
    fixed, came = _read(folder / _REGISTERED), _read(folder / "journal" / _CAME)
    plan = fixed.get("plan_sha256") if isinstance(fixed, dict) else None
    at = _time(fixed.get("at")) if isinstance(fixed, dict) else ""
    times = came.get("at") if isinstance(came, dict) else None
    return Registration(
        plan if isinstance(plan, str) and re.fullmatch(r"[0-9a-f]{64}", plan) and at else "",
        at if isinstance(plan, str) else "",
        tuple(filter(None, map(_time, times))) if isinstance(times, list) else (),
    )


def _read(path: Path) -> Any:
    """A file's JSON; None if there is none, a text if it can't be read."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except (OSError, ValueError, RecursionError):
        return "damaged"


def _time(value: object) -> str:
    return value if isinstance(value, str) and _TIME.fullmatch(value) else ""


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")

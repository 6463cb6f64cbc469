"""What a site's client last said of itself, and whether that is well: connected, admitted and contributing."""

from __future__ import annotations

import json
from datetime import datetime, timedelta
from typing import Literal

from pydantic import AwareDatetime, BaseModel, ConfigDict, JsonValue, ValidationError

from eucaim_fl.errors import (
    ApprovalPendingError,
    OutsideHoursError,
    PolicyRefusalError,
    ServiceStateError,
)
from eucaim_fl.site.home import SiteHome

__all__ = ["ClientStatus", "Fault", "Step", "health", "read_status", "well"]

_LARGEST_BYTES = 256 * 1024
_OLDEST = timedelta(seconds=60)
_DECISIONS = frozenset({PolicyRefusalError.code, ApprovalPendingError.code, OutsideHoursError.code})
"""Codes by which a site keeps to its own policy; that is no illness."""


class _Told(BaseModel):
    """What a client wrote; keys of a newer one are passed over."""

    model_config = ConfigDict(frozen=True, extra="ignore", allow_inf_nan=False)


class Step(_Told):
    """An instruction, or what was sent in answer to one. plan: SHA-256."""

    plan: str
    name: str
    kind: str
    round: int
    at: AwareDatetime


class Fault(_Told):
    """What went wrong last."""

    code: str
    text: str
    at: AwareDatetime


class ClientStatus(_Told):
    """A client's word on itself.

    since: when it came into this state. updated: when it wrote this. problem_since_contribution: whether the last
    instruction ended in something else than a contribution. certificate_until: of the coordinator's server.
    """

    state: Literal["starting", "connected", "disconnected", "not_admitted", "stopped"]
    site: str
    federation: str
    pid: int
    since: AwareDatetime
    updated: AwareDatetime
    version: str
    connected: bool
    admitted: bool
    node_id: int | str | None = None
    last_instruction: Step | None = None
    last_contribution: Step | None = None
    last_problem: Fault | None = None
    problem_since_contribution: bool = False
    certificate_until: AwareDatetime | None = None
    working: dict[str, JsonValue] | None = None


def read_status(home: SiteHome) -> ClientStatus | None:
    """What the client of a home last wrote; None if it never ran.

    Raises ServiceStateError if the file can't be read or is damaged.
    """
    try:
        with home.status_file.open("rb") as stream:
            raw = stream.read(_LARGEST_BYTES + 1)
        if len(raw) > _LARGEST_BYTES:
            raise ValueError("it is too long")
        return ClientStatus.model_validate(json.loads(raw))
    except FileNotFoundError:
        return None
    except (OSError, ValueError, RecursionError, ValidationError) as problem:
        raise ServiceStateError(
            "The client's status can't be read.",
            fix="Start the client anew; it writes the file.",
            local_detail=f"{home.status_file}: {problem}",
        ) from None


def health(status: ClientStatus | None, now: datetime, *, running: bool = True) -> tuple[str, ...]:
    """Why a site's client is not well; () means connected, admitted and contributing.

    running: whether a process holds the home's lock. What the site's own policy refuses, or lets wait for a person or
    an hour, is no illness. A client that was not asked anything yet is well.
    """
    if status is None:
        return ("The client has never run here.",) if not running else ("The client is starting.",)
    if not running or status.state == "stopped":
        return ("The client does not run.",)
    reasons = []
    age = now - status.updated
    if age > _OLDEST:
        reasons.append(f"The client has said nothing for {age.total_seconds():.0f} s; it may hang.")
    if status.state == "not_admitted" or (status.connected and not status.admitted):
        reasons.append("The coordinator does not admit this site.")
    elif status.state == "starting":
        reasons.append("The client is starting.")
    elif status.state == "disconnected" or not status.connected:
        reasons.append("The client is not connected to the coordinator.")
    if status.certificate_until is not None and status.certificate_until <= now:
        reasons.append("The coordinator's certificate has expired.")
    problem = status.last_problem
    if status.problem_since_contribution and not (problem is not None and problem.code in _DECISIONS):
        code = "" if problem is None else f" ({problem.code})"
        reasons.append(f"The last instruction did not end in a contribution{code}.")
    return tuple(reasons)


def well(status: ClientStatus | None) -> str:
    """What is said of a client with which `health` finds nothing wrong; one that never contributed is not praised.

    A plan that waits for a person, or is refused by the site's policy, is told here.
    """
    problem = None if status is None else status.last_problem
    if status is not None and status.problem_since_contribution and problem is not None:
        why = {
            PolicyRefusalError.code: "this site's policy refuses what was asked last",
            ApprovalPendingError.code: "a plan waits for a person here",
            OutsideHoursError.code: "what was asked last waits for its hours",
        }.get(problem.code, "it could not do what was asked last")
        return f"connected and admitted; {why} ({problem.code})"
    if status is None or status.last_contribution is None:
        return "connected and admitted; nothing was contributed since the client started"
    return "connected, admitted and contributing"

"""All that `site status` tells of a home, gathered in one look."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any

from eucaim_fl.site.approvals import ASKED_WITHIN, Waiting, waiting
from eucaim_fl.site.audit import AuditReader
from eucaim_fl.site.audit_words import Asker, line_of
from eucaim_fl.site.enrol import read_joined
from eucaim_fl.site.home import SiteHome
from eucaim_fl.site.ledger_look import privacy_status
from eucaim_fl.site.running import is_running
from eucaim_fl.site.status import ClientStatus, health, read_status

__all__ = ["LastStep", "Overview", "look"]


@dataclass(frozen=True)
class LastStep:
    """The last request or answer that the audit log has. at: ISO. outcome, reasons: of a request, in plain words."""

    plan: str
    name: str
    kind: str
    round: int
    at: str
    outcome: str
    reasons: tuple[str, ...]


@dataclass(frozen=True)
class Overview:
    """What is known of a site's client. reasons: why it is not well; () if it is. bytes: of messages that left.

    privacy: what was spent of the privacy budget, see `ledger_look.privacy_status`.
    """

    site: str
    federation: str
    address: str
    running: bool
    status: ClientStatus | None
    reasons: tuple[str, ...]
    waiting: tuple[Waiting, ...] = ()
    bytes_today: int = 0
    bytes_sent: int = 0
    messages_sent: int = 0
    last_asked: LastStep | None = None
    last_sent: LastStep | None = None
    privacy: Mapping[str, Any] | None = None


def look(home: SiteHome, now: datetime) -> Overview:
    """Look at a home, whether its client runs or not.

    Raises EnrolmentError, ServiceStateError, AuditError or JournalError if a part of it can't be read.
    """
    invitation = read_joined(home)
    status, running = read_status(home), is_running(home)
    seen = Overview(
        invitation.site,
        invitation.federation,
        invitation.address,
        running,
        status,
        health(status, now, running=running),
        privacy=privacy_status(home),
    )
    if not home.audit_folder.is_dir():
        return seen
    audit = AuditReader(home.audit_folder)
    sizes = [size for record in audit.records(kind="sent") if isinstance(size := record.body.get("bytes"), int)]
    return replace(
        seen,
        waiting=waiting(audit.records(since=now - ASKED_WITHIN)),
        bytes_today=audit.sent_today(now),
        bytes_sent=sum(sizes),
        messages_sent=len(sizes),
        last_asked=_last(audit, "decision"),
        last_sent=_last(audit, "sent"),
    )


def _last(audit: AuditReader, kind: str) -> LastStep | None:
    """The last record of a kind; the plan's name stands in decisions alone."""
    record = next(audit.records(kind=kind, last=1), None)
    if record is None:
        return None
    body, line = record.body, line_of(record, Asker())
    plan, number = line.plan or "", body.get("round")
    asked = record if kind == "decision" else next(audit.records(plan=plan, kind="decision", last=1), record)
    return LastStep(
        plan,
        str(asked.body.get("name") or "a plan"),
        str(body.get("kind") or "instruction"),
        number if isinstance(number, int) else 0,
        record.time,
        line.outcome,
        line.reasons,
    )

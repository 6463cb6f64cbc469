"""All that `site status` tells of a home, gathered in one look."""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import datetime

from eucaim_fl.site.approvals import ASKED_WITHIN, Waiting, waiting
from eucaim_fl.site.audit import AuditReader
from eucaim_fl.site.enrol import read_joined
from eucaim_fl.site.home import SiteHome
from eucaim_fl.site.running import is_running
from eucaim_fl.site.status import ClientStatus, health, read_status

__all__ = ["Overview", "look"]


@dataclass(frozen=True)
class Overview:
    """What is known of a site's client. reasons: why it is not well; () if it is. bytes: of messages that left."""

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
    )

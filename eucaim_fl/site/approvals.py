"""What waits for a person at the site, and the person's word, which the audit log keeps."""

from __future__ import annotations

import os
import pwd
import re
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Literal

from eucaim_fl.errors import ConfigError, PlanError
from eucaim_fl.plan import FederationPlan, read_plan
from eucaim_fl.site.audit import AuditLog, AuditReader, AuditRecord
from eucaim_fl.site.home import SiteHome
from eucaim_fl.site.policy import LoadedPolicy
from eucaim_fl.site.policy_decision import Decision, Situation, decide

__all__ = ["ASKED_WITHIN", "Waiting", "decide_now", "find_plan", "login_name", "say", "stated_name", "waiting"]

ASKED_WITHIN = timedelta(days=30)
"""A plan that nobody has asked for since is not shown as waiting any more."""
_PREFIX = re.compile(r"[0-9a-f]{4,64}")
_STATED = re.compile(r"[A-Za-z0-9][A-Za-z0-9._@+-]{0,63}")
_LARGEST_PLAN_BYTES = 1024 * 1024


@dataclass(frozen=True)
class Waiting:
    """A plan that a person has to decide on. plan: SHA-256. since, last: when it was first and last asked (ISO)."""

    plan: str
    name: str
    purpose: str
    holder: str
    since: str
    last: str


def waiting(records: Iterable[AuditRecord]) -> tuple[Waiting, ...]:
    """The plans whose last decision is that a person decides, with no person's word since; in the order of asking.

    records: of the audit log, in their order; those of other kinds are passed over.
    """
    found: dict[str, Waiting] = {}
    for record in records:
        body = record.body
        plan = str(body.get("plan", ""))
        if record.kind in ("approved", "refused"):
            found.pop(plan, None)
        elif record.kind == "decision":
            reasons = body.get("reasons")
            if body.get("verdict") == "wait" and isinstance(reasons, list) and "approval" in reasons:
                name, purpose, holder = (str(body.get(key) or "") for key in ("name", "purpose", "holder"))
                since = found[plan].since if plan in found else record.time
                found[plan] = Waiting(plan, name, purpose, holder, since, record.time)
            else:
                found.pop(plan, None)
    return tuple(found.values())


def find_plan(home: SiteHome, prefix: str) -> FederationPlan:
    """The plan that was asked for at this site whose SHA-256 begins so (at least 4 digits).

    Raises PlanError if there is none or several, or it can't be read, is not valid or was altered.
    """
    known = "`eucaim-fl site status` lists the plans that wait."
    if not _PREFIX.fullmatch(prefix):
        raise PlanError("A plan is named by its SHA-256, or the first 4 digits of it or more.", fix=known)
    paths = sorted(home.plans_folder.glob(f"{prefix}*.json")) if home.plans_folder.is_dir() else []
    if len(paths) != 1:
        if not paths:
            raise PlanError("No plan of that SHA-256 was asked for at this site.", fix=known)
        raise PlanError("Several plans begin so.", fix="Name more digits.")
    try:
        with paths[0].open("rb") as stream:
            text = stream.read(_LARGEST_PLAN_BYTES).decode()
    except (OSError, UnicodeDecodeError) as problem:
        raise PlanError("The plan can't be read.", local_detail=f"{paths[0]}: {problem}") from None
    plan = read_plan(text)
    if plan.sha256() != paths[0].stem:
        raise PlanError(
            "The plan kept here is not the one that its name says: it was altered.",
            fix="Remove the file; it is kept again when the plan is asked for.",
            local_detail=str(paths[0]),
        )
    return plan


def decide_now(
    plan: FederationPlan,
    site: str,
    loaded: LoadedPolicy,
    audit: AuditReader | None,
    now: datetime,
    *,
    confidential: bool = True,
) -> Decision:
    """What the policy says to a plan at this moment, with what the audit log knows of it.

    The permit holder's signature comes with each instruction only, and is left open, as is how many plans have used the
    permit. Raises AuditError if the log can't be read.
    """
    if audit is None:
        return decide(plan, loaded, Situation(site=site, now=now, preview=True, confidential=confidential))
    identity = plan.sha256()
    sent = audit.sent(identity)
    midnight = now.astimezone(UTC).replace(hour=0, minute=0, second=0, microsecond=0)
    situation = Situation(
        site=site,
        now=now,
        rounds_done=sent.rounds,
        bytes_sent=sent.bytes,
        bytes_sent_today=audit.sent_today(now),
        plans_today=audit.plans_allowed(midnight),
        plans_ever=audit.plans_allowed(),
        approval=audit.approval(identity),
        preview=True,
        confidential=confidential,
    )
    return decide(plan, loaded, situation)


def say(
    audit: AuditLog, plan_sha256: str, word: Literal["approved", "refused"], by: str, stated_by: str | None = None
) -> None:
    """Write a person's word on a plan into the audit log; the last word counts.

    by: the login name, as the machine knows it. stated_by: the name that the person gave, which nobody checks; see
    `stated_name`. Raises AuditError if it can't be written.
    """
    stated = {} if stated_by is None else {"stated_by": stated_by}
    audit.append(word, {"plan": plan_sha256, "by": by, **stated})


def stated_name(name: str) -> str:
    """The name that a person gives at the terminal, as it is.

    Raises ConfigError if it is longer than 64 characters, empty, or has others than A-Z a-z 0-9 . _ @ + - (the first a
    letter or digit).

    >>> stated_name("dpo@hospital")
    'dpo@hospital'
    """
    if not _STATED.fullmatch(name):
        raise ConfigError(
            "The name of who decides can't be recorded so.",
            fix="Give a short name such as dpo-2: at most 64 letters, digits and . _ @ + - without spaces.",
        )
    return name


def login_name() -> str:
    """Who sits at this terminal: the login name, also behind `su` and `sudo`; else that of the process's user."""
    try:
        name = os.getlogin()
    except OSError:
        try:
            name = pwd.getpwuid(os.getuid()).pw_name
        except KeyError:  # a container may run as a user without a name
            name = f"user {os.getuid()}"
    return "".join(letter for letter in name if letter.isprintable())[:64] or "unknown"

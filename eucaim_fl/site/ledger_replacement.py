"""A privacy ledger that is lost without a copy: how a site goes on and yet never counts too little.

What was spent follows from the audit log: an instruction is allowed there before any work on it begins, and is worked
on once at most, so no round was charged more often than it was allowed. Who was charged stood in the ledger alone, and
names come back after years. So the new ledger charges each of these rounds to everybody, known here or not. That is
more than anybody has spent; nobody gets less. Trainings that no instruction asked for, which the log can't know of, are
looked for in the record of who was used.
"""

from __future__ import annotations

import tempfile
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from pydantic import JsonValue

from eucaim_fl.durable import exclusive, flush_folder
from eucaim_fl.errors import LedgerError, RunFolderBusyError, ServiceStateError
from eucaim_fl.plan import FederationPlan
from eucaim_fl.privacy.accounting import Mechanism
from eucaim_fl.privacy.promise import figures_mechanism, round_mechanism, site_is_charged
from eucaim_fl.site.approvals import find_plan
from eucaim_fl.site.audit import AuditLog, AuditReader, AuditRecord
from eucaim_fl.site.audit_base import guarded
from eucaim_fl.site.home import SiteHome
from eucaim_fl.site.ledger import Ledger
from eucaim_fl.site.ledger_base import LEDGER, LedgerHead, Purchase
from eucaim_fl.site.ledger_look import LedgerPlace, audit_heads, ledger_faults
from eucaim_fl.site.lineage import Lineage

__all__ = ["Question", "Spent", "allowed", "begin_anew", "most_spent", "what_was_spent"]

Question = tuple[str, str, int]
"""A plan (SHA-256), the kind of an instruction, its round."""
_WORK = ("round", "final")


@dataclass(frozen=True)
class Spent:
    """What one round of a plan can have cost whoever took part in it."""

    what: Purchase
    round: int
    mechanism: Mechanism


def allowed(records: Iterable[AuditRecord]) -> Counter[Question]:
    """How often each instruction that brings work was allowed. records: of the audit log; others are passed over."""
    found: Counter[Question] = Counter()
    for record in records:
        body = record.body
        plan, kind, number = body.get("plan"), body.get("kind"), body.get("round")
        if record.kind != "decision" or body.get("verdict") != "allow" or kind not in _WORK:
            continue
        if isinstance(plan, str) and isinstance(kind, str) and isinstance(number, int):
            found[plan, kind, number] += 1
    return found


def most_spent(asked: Mapping[Question, int], plans: Mapping[str, FederationPlan], dataset: str) -> tuple[Spent, ...]:
    """The most that instructions can have cost: all of them were worked on, and all figures released with noise.

    asked: how often each was allowed. plans: by SHA-256, all that are asked for. dataset: the cohort's name in the
    ledger. Plans that charge nobody cost nothing.
    """
    found = []
    for (identity, kind, number), times in sorted(asked.items()):
        plan = plans[identity]
        once, figures = round_mechanism(plan.privacy, plan.training), figures_mechanism(plan.privacy)

        if kind == "round" and once is not None and site_is_charged(plan.privacy):
            found.append(Spent(_bought(plan, dataset), number, once.times(times)))
        if figures is not None:
            parts = ("validation",) if kind == "round" else ("validation", "test")
            found += [Spent(_bought(plan, dataset, part), number, figures.times(times)) for part in parts]
    return tuple(found)


def _bought(plan: FederationPlan, dataset: str, part: str = "") -> Purchase:
    """What is bought as `PrivateWork` names it. part: the split of figures; empty of training."""
    return Purchase(
        plan=plan.sha256(),
        name=plan.name,
        purpose=plan.purpose,
        dataset=dataset,
        use="figures" if part else "train",
        secure=plan.privacy.secure,
        part=part,
    )


def what_was_spent(place: LedgerPlace, log: AuditReader) -> tuple[Spent, ...]:
    """The most that the lost ledger of a home can have held.

    Raises LedgerError if the ledger is there, intact and the one that the audit log knows; if a plan that was allowed
    is kept no longer; if plans were trained here that charge patients and that the log does not know. AuditError,
    PlanError, JournalError if the log, a plan or the record of who was used can't be read.
    """
    home = _home(place)
    if not ledger_faults(place, audit_heads(log)):
        raise LEDGER.error(
            "The privacy ledger is not lost: it is intact, or none was begun.", local_detail=str(place.folder)
        )
    asked = allowed(log.records(kind="decision"))
    known = {plan for plan, _, _ in asked}
    used = {one.plan_sha256 for one in Lineage(place.site.records_folder()).contributions()}
    if any(_charges(_kept(home, plan)) for plan in sorted(used - known)):
        raise LEDGER.error(
            "A plan with noise was trained here without the site's client, so nobody can say what was spent.",
            fix="Find a copy of the ledger, or begin with patients who were never used, in a home and a cache of their "
            "own.",
            local_detail=str(place.site.records_folder()),
        )
    return most_spent(asked, {plan: _kept(home, plan) for plan in known}, place.site.name)


def begin_anew(
    place: LedgerPlace, log: AuditLog, spent: Iterable[Spent], by: str, stated_by: str | None = None
) -> LedgerHead:
    """Begin a new ledger with charges to everybody, move what is left of the old one aside, and note both.

    by, stated_by: who decided, see `approvals.say`. Whatever interrupts it, the site refuses plans with noise until it
    was done once more and to its end. Returns the new ledger's head.
    Raises ServiceStateError if the site's client runs; LedgerError, AuditError or JournalError if it can't be written.
    """
    home, charges = _home(place), tuple(spent)
    lost = log.ledger_head()
    try:
        with exclusive(home.run_folder):
            folder = place.folder
            with guarded(folder, LEDGER):
                folder.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
                new = Path(tempfile.mkdtemp(dir=folder.parent, prefix="ledger.", suffix=".part"))
            ledger = Ledger(new, place.site.name)
            for one in charges:
                ledger.charge_everybody(one.what, one.round, one.mechanism)
            head = ledger.head()
            with guarded(folder, LEDGER):
                if folder.exists():
                    folder.rename(folder.with_name(f"ledger.lost-{datetime.now(UTC):%Y%m%dT%H%M%S.%f}"))
                new.rename(folder)
                flush_folder(folder.parent)
            body: dict[str, JsonValue] = {
                "ledger_count": head.count,
                "ledger": head.hash,
                "lost_count": None if lost is None else lost[0],
                "lost": None if lost is None else lost[1],
                "charges": len(charges),
                "plans": len({one.what.plan for one in charges}),
                "by": by,
            }
            log.append("ledger_replaced", body if stated_by is None else {**body, "stated_by": stated_by})
    except RunFolderBusyError:
        raise ServiceStateError(
            "The site's client runs, and may be writing a ledger.",
            fix="End it with `eucaim-fl site stop` first.",
            local_detail=str(home.folder),
        ) from None
    return head


def _home(place: LedgerPlace) -> SiteHome:
    """Raises LedgerError without a home: where no audit log is, nobody knows what was spent."""
    if place.home is None:
        raise LedgerError("Without a home there is no audit log that could say what was spent.")
    return place.home


def _charges(plan: FederationPlan) -> bool:
    return site_is_charged(plan.privacy) or figures_mechanism(plan.privacy) is not None


def _kept(home: SiteHome, identity: str) -> FederationPlan:
    if not (home.plans_folder / f"{identity}.json").is_file():
        raise LEDGER.error(
            "A plan that ran here is not kept any more, so nobody can say what it spent.",
            fix="Ask the coordinator for the run's `plan.json`, and put it into the home as state/plans/SHA-256.json.",
            local_detail=identity,
        )
    return find_plan(home, identity)

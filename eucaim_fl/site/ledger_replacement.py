"""A privacy ledger that is lost without a copy: how a site goes on and yet never counts too little.

What was spent follows from the audit log: an instruction is allowed there before any work on it begins, and is worked
on once at most, so no round was charged more often than it was allowed. Who was charged stood in the ledger alone, and
names come back after years. So the new ledger charges each of these rounds to everybody, known here or not. That is
more than anybody has spent; nobody gets less. Trainings that no instruction asked for, which the log can't know of, are
looked for in the record of who was used: it has an entry for each answer, so what it has more of than the log allowed
was trained without the client. Where that record is lost too, a person has to say that there was no such training.
"""

from __future__ import annotations

import shutil
import tempfile
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
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

__all__ = ["Estimate", "Question", "Spent", "allowed", "begin_anew", "most_spent", "what_was_spent"]

Question = tuple[str, str, int]
"""A plan (SHA-256), the kind of an instruction, its round."""
_WORK = ("round", "final")


@dataclass(frozen=True)
class Spent:
    """What one round of a plan can have cost whoever took part in it."""

    what: Purchase
    round: int
    mechanism: Mechanism


@dataclass(frozen=True)
class Estimate:
    """The most that a lost ledger can have held. folder: where it, and the record of who was used, were looked for.

    lineage_missing: that record is empty, or lacks answers that left, so trainings without the client can't be found.
    """

    spent: tuple[Spent, ...]
    folder: Path
    lineage_missing: bool


def allowed(records: Iterable[AuditRecord]) -> Counter[Question]:
    """How often each instruction that brings work was allowed. records: of the audit log; others are passed over."""
    return Counter(_work(one for one in records if one.kind == "decision" and one.body.get("verdict") == "allow"))


def _work(records: Iterable[AuditRecord]) -> Iterator[Question]:
    """What decisions or answers are about, where it is work."""
    for record in records:
        plan, kind, number = (record.body.get(name) for name in ("plan", "kind", "round"))
        if isinstance(plan, str) and isinstance(kind, str) and kind in _WORK and isinstance(number, int):
            yield plan, kind, number


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
        if figures is not None and (kind == "final" or plan.stopping.validates(number)):
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


def what_was_spent(place: LedgerPlace, log: AuditReader) -> Estimate:
    """The most that the lost ledger of a home can have held.

    Raises LedgerError if the ledger is there, intact and the one that the audit log knows; if a plan that was allowed
    is kept no longer; if the record of who was used has more trainings or figures that cost something than the log
    allowed. AuditError, PlanError, JournalError if the log, a plan or that record can't be read.
    """
    home, folder = _home(place), place.site.records_folder()
    if not ledger_faults(place, audit_heads(log)):
        raise LEDGER.error(
            "The privacy ledger is not lost: it is intact, or none was begun.", local_detail=str(place.folder)
        )
    asked = allowed(log.records(kind="decision"))
    done = Lineage(folder).answers()
    plans = {plan: _kept(home, plan) for plan in sorted({plan for plan, _, _ in (*asked, *done)})}
    if most_spent(done - asked, plans, place.site.name):
        raise LEDGER.error(
            "A plan with noise was trained here without the site's client, so nobody can say what was spent.",
            fix="Find a copy of the ledger, or begin with patients who were never used, in a home and a cache of their "
            "own.",
            local_detail=str(folder),
        )
    missing = not done or not done.keys() >= set(_work(log.records(kind="sent")))
    return Estimate(most_spent(asked, plans, place.site.name), folder, missing)


def begin_anew(
    place: LedgerPlace,
    log: AuditLog,
    shown: Estimate,
    by: str,
    stated_by: str | None = None,
    *,
    no_local_runs: bool = False,
) -> LedgerHead:
    """Begin a new ledger with charges to everybody, move what is left of the old one aside, and note both.

    shown: what the person who decides was shown. by, stated_by: who that is, see `approvals.say`. no_local_runs: that
    person says that no plan with noise was trained without the client; needed where `shown.lineage_missing`. The audit
    log notes the new ledger before anything is moved: whatever interrupts it, from then on the site refuses plans with
    noise until it was done once more and to its end. Returns the new ledger's head.
    Raises ServiceStateError if the site's client runs; LedgerError if by now the ledger is intact or something else
    would be charged than what was shown, or if `no_local_runs` is needed; what `what_was_spent` raises; LedgerError,
    AuditError or JournalError if it can't be written.
    """
    home = _home(place)
    try:
        with exclusive(home.run_folder):
            if what_was_spent(place, log) != shown:
                raise LEDGER.error(
                    "What can have been spent has changed since it was shown, so nothing was replaced.",
                    fix="Run `eucaim-fl site ledger replace` once more.",
                )
            if shown.lineage_missing and not no_local_runs:
                raise LEDGER.error(
                    "The record of who was used is missing, so nobody can see what was trained without the client.",
                    fix="Put the record back, or say with --no-local-runs that no plan with noise was trained so.",
                    local_detail=str(shown.folder),
                )
            return _replace(place, log, shown, {"by": by} if stated_by is None else {"by": by, "stated_by": stated_by})
    except RunFolderBusyError:
        raise ServiceStateError(
            "The site's client runs, and may be writing a ledger.",
            fix="End it with `eucaim-fl site stop` first.",
            local_detail=str(home.folder),
        ) from None


def _replace(place: LedgerPlace, log: AuditLog, shown: Estimate, who: Mapping[str, JsonValue]) -> LedgerHead:
    folder = place.folder
    with guarded(folder, LEDGER):
        folder.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        for left in folder.parent.glob("ledger.*.part"):  # of a call that was killed; a key lies in it
            shutil.rmtree(left)
        new = Path(tempfile.mkdtemp(dir=folder.parent, prefix="ledger.", suffix=".part"))
    try:
        ledger = Ledger(new, place.site.name)
        for one in shown.spent:
            ledger.charge_everybody(one.what, one.round, one.mechanism)
        head, lost = ledger.head(), log.ledger_head()
        log.append(
            "ledger_replaced",
            {
                "ledger_count": head.count,
                "ledger": head.hash,
                "lost_count": None if lost is None else lost[0],
                "lost": None if lost is None else lost[1],
                "charges": len(shown.spent),
                "plans": len({one.what.plan for one in shown.spent}),
                "folder": str(shown.folder),
                "lineage_missing": shown.lineage_missing,
                **who,
            },
        )
        with guarded(folder, LEDGER):
            if folder.exists():
                folder.rename(folder.with_name(f"ledger.lost-{datetime.now(UTC):%Y%m%dT%H%M%S.%f}"))
            new.rename(folder)
            flush_folder(folder.parent)
    finally:
        shutil.rmtree(new, ignore_errors=True)
    return head


def _home(place: LedgerPlace) -> SiteHome:
    """Raises LedgerError without a home: where no audit log is, nobody knows what was spent."""
    if place.home is None:
        raise LedgerError("Without a home there is no audit log that could say what was spent.")
    return place.home


def _kept(home: SiteHome, identity: str) -> FederationPlan:
    if not (home.plans_folder / f"{identity}.json").is_file():
        raise LEDGER.error(
            "A plan that ran here is not kept any more, so nobody can say what it spent.",
            fix="Ask the coordinator for the run's `plan.json`, and put it into the home as state/plans/SHA-256.json.",
            local_detail=identity,
        )
    return find_plan(home, identity)

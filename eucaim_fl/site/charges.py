"""What the border asks the privacy ledger: was what leaves paid for, and what has the plan cost by now."""

from __future__ import annotations

from collections.abc import Collection

from pydantic import JsonValue

from eucaim_fl.errors import LedgerError
from eucaim_fl.plan import FederationPlan
from eucaim_fl.privacy.accounting import Mechanism, epsilon
from eucaim_fl.privacy.promise import figures_mechanism, round_mechanism, site_is_charged
from eucaim_fl.records import SplitName
from eucaim_fl.site.audit_reader import AuditReader
from eucaim_fl.site.gate import GateBounds, Outgoing
from eucaim_fl.site.ledger_reader import LedgerReader, has_ledger
from eucaim_fl.sitefile import SiteFile

__all__ = ["known_head", "ledger_count", "ledger_entry", "owed", "unpaid", "unpaid_figures"]


def _reader(site: SiteFile) -> LedgerReader | None:
    folder = site.records_folder() / "ledger"
    return LedgerReader(folder) if has_ledger(folder) else None


def _charges(plan: FederationPlan) -> bool:
    return site_is_charged(plan.privacy) or plan.privacy.metrics_noise is not None


def known_head(log: AuditReader, plan: FederationPlan) -> tuple[int, str] | None:
    """Number and hash of the ledger's head that the audit log noted last; None if it never did, or the plan charges
    nobody. Raises AuditError if the log can't be read."""
    return log.ledger_head() if _charges(plan) else None


def ledger_count(site: SiteFile, plan: FederationPlan, noted: tuple[int, str] | None) -> int:
    """Records in the site's ledger; 0 if it has none yet, or the plan charges nobody.

    noted: number and hash of the ledger's head that the audit log noted last; None if it never did. A number of 0 is
    the head of a ledger in which nothing is spent, so there is no record to look for.
    Raises LedgerError if the ledger can't be read, or what was noted is not in it: an old copy, or a new one, would
    give back budgets that are spent.
    """
    if not _charges(plan):
        return 0
    reader = _reader(site)
    if noted is not None and noted[0] and (reader is None or reader.hash_at(noted[0]) != noted[1]):
        raise LedgerError(
            "The privacy ledger is not the one that this site's audit log knows.",
            fix="Put the newest copy of the ledger back; `eucaim-fl site ledger verify` compares both. "
            "If there is none: `eucaim-fl site ledger replace`.",
            local_detail=str(site.records_folder() / "ledger"),
        )
    return 0 if reader is None else reader.head().count


def unpaid(site: SiteFile, plan: FederationPlan, asked: tuple[int, int], at_least: int) -> tuple[str, ...]:
    """Why an update must not leave, if its noise was not charged for in full; else ().

    asked: round, and records of the ledger before the work. at_least: patients without whom the site does not train;
    a charge to fewer, or of other noise than the plan's, pays for nothing.
    """
    once = round_mechanism(plan.privacy, plan.training)
    if not site_is_charged(plan.privacy) or once is None:
        return ()
    try:
        paid = _paid(site, plan, asked, once, at_least)
    except LedgerError as problem:
        return (problem.message.rstrip("."),)
    return () if "" in paid else ("an update that this site's privacy ledger was not charged for",)


def unpaid_figures(
    site: SiteFile, plan: FederationPlan, asked: tuple[int, int], at_least: int, splits: Collection[SplitName]
) -> tuple[str, ...]:
    """Why noised figures must not leave, if those of a split were not charged for in full; else ().

    asked: as for `unpaid`. at_least: patients without whom nothing is told of a split.
    """
    once = figures_mechanism(plan.privacy)
    if once is None or not splits:
        return ()
    try:
        paid = _paid(site, plan, asked, once, at_least)
    except LedgerError as problem:
        return (problem.message.rstrip("."),)
    return () if paid >= set(splits) else ("figures that this site's privacy ledger was not charged for",)


def _paid(
    site: SiteFile, plan: FederationPlan, asked: tuple[int, int], once: Mechanism, at_least: int
) -> frozenset[str]:
    """Parts of a round that were charged for since the instruction came: splits of figures, and "" of training."""
    reader, (number, after) = _reader(site), asked
    charges = () if reader is None else reader.charges(plan.sha256(), after)
    return frozenset(
        one.what.part
        for one in charges
        if (one.round, one.mechanism) == (number, once) and one.count >= at_least
        if (one.what.use == "figures") == bool(one.what.part)
    )


def owed(
    site: SiteFile, plan: FederationPlan, answer: Outgoing, gate: GateBounds, asked: tuple[int, int]
) -> tuple[str, ...]:
    """What of an answer must not leave, because it was not charged for since the instruction came; () if all was.

    gate: says which splits' figures cost nothing, and how many people must be behind what leaves. asked: round, and
    records of the ledger before the work.
    """
    told = [one.split for one in answer.report.metrics if one.values or one.sums or not one.withheld]
    bare = [split for split in told if split not in gate.test_data]
    update = unpaid(site, plan, asked, gate.least.training) if answer.update else ()
    return tuple(dict.fromkeys((*update, *unpaid_figures(site, plan, asked, gate.least.metric, bare))))


def ledger_entry(site: SiteFile, plan: FederationPlan) -> dict[str, JsonValue]:
    """For the audit log: the plan's epsilon by now at its delta, and the ledger's head.

    epsilon is None without noise, and where the ledger can't be read (then `unpaid` lets no update leave).
    """
    nothing: dict[str, JsonValue] = {"epsilon": None}
    if not site_is_charged(plan.privacy) or plan.privacy.delta is None:
        return nothing
    try:
        reader = _reader(site)
        if reader is None:
            return nothing
        head = reader.head()
        spent = epsilon(reader.plan_mechanisms(plan.sha256(), "train"), plan.privacy.delta)
    except LedgerError:
        return nothing
    return {"epsilon": round(spent, 6), "delta": plan.privacy.delta, "ledger_count": head.count, "ledger": head.hash}

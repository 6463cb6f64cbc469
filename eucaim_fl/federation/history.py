"""What sites are told of the rounds before, so that what they keep goes on from where the coordinator's state does."""

from __future__ import annotations

from collections.abc import Sequence

from eucaim_fl.plan import FederationPlan
from eucaim_fl.records import Past, RoundRecord

__all__ = ["pasts"]


def pasts(plan: FederationPlan, run: str, records: Sequence[RoundRecord]) -> dict[str, Past]:
    """Site → what it is told with the instruction that follows these rounds; {} if sites keep nothing under the plan.

    run: the run's own name (`Journal.run`). The last round that counted is told only where the server keeps a state of
    its own which that round's updates moved.
    """
    if not plan.keeps_records():
        return {}
    if not plan.method.objective.has_state():
        return dict.fromkeys(plan.sites, Past(run))
    counted = {site: record.round for record in records for site in record.aggregated_from}
    return {site: Past(run, counted.get(site, 0)) for site in plan.sites}

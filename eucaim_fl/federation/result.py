"""result.json: what a script wants to know of a finished run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from eucaim_fl.plan import FederationPlan
from eucaim_fl.privacy.accounting import epsilon
from eucaim_fl.privacy.promise import promise, round_mechanism
from eucaim_fl.records import RoundRecord, SiteMetrics
from eucaim_fl.validation.choice import by_model
from eucaim_fl.validation.pooling import better, pool
from eucaim_fl.validation.spread import standard_errors

__all__ = ["best_round", "make_result", "stalled"]


def make_result(run: str, plan: FederationPlan, records: Sequence[RoundRecord], wall_s: float) -> dict[str, Any]:
    """The content of result.json, from the records of all rounds and the last exchange.

    metrics: of the final model on the test patients; validation: the same on the validation patients. Where arrays stay
    at the sites, the final model is each site's own. A site that withholds its metrics has only `withheld`. models,
    where sites have several: the same as metrics for each of them (common, personal, local, blended), and under
    `chosen` for those that the sites chose; chosen: which that was, by site. standard_error: of the pooled values, see
    `validation.spread`. privacy: what the run promised and cost (None without noise). wall_s: seconds of this call,
    which for a resumed run is not the whole.
    """
    final = records[-1]
    everyone = [p for r in records for p in r.participation]
    sites = sorted({p.site for p in everyone})
    return {
        "schema_version": 1,
        "run": run,
        "plan_sha256": plan.sha256(),
        "weights_sha256": final.weights_sha256,
        "rounds": plan.rounds,
        "rounds_trained": sum(1 for r in records if not r.is_final(plan.rounds)),
        "privacy": _privacy(plan, sum(1 for r in records if r.aggregated_from)),
        "split": "test",
        "metrics": _metrics(plan, final, "test"),
        "validation": _metrics(plan, final, "validation"),
        "models": _models(final) if len(plan.method.personal.candidates()) > 1 else {},
        "chosen": dict(sorted(final.chosen.items())),
        "best": _best(plan, records),
        "participation": [
            {
                "round": r.round,
                "attempts": r.attempts,
                "sites": [
                    {
                        "site": p.site,
                        "status": p.status,
                        "code": p.code,
                        "reason": p.reason,
                        "patients": p.patients,
                    }
                    for p in r.participation
                ],
            }
            for r in records
        ],
        "timings": {
            "wall_s": round(wall_s, 3),
            "rounds_s": [r.seconds for r in records],
            "aggregation_s": [r.aggregation_seconds for r in records],
            "sites_s": {s: round(sum(p.seconds for p in everyone if p.site == s), 3) for s in sites},
        },
        "bytes": {
            s: {
                "up": sum(p.bytes_up for p in everyone if p.site == s),
                "down": sum(p.bytes_down for p in everyone if p.site == s),
            }
            for s in sites
        },
    }


def _privacy(plan: FederationPlan, trained: int) -> dict[str, Any] | None:
    """What the run promised, and what the rounds that were trained cost; a site's own ledger may hold repeats too."""
    promised, once = promise(plan), round_mechanism(plan.privacy, plan.training)
    if promised is None or once is None:
        return None
    return {
        **{name: getattr(plan.privacy, name) for name in ("mechanism", "noise_multiplier", "clipping_norm", "secure")},
        "epsilon": epsilon([once.times(trained)], promised.delta),
        "epsilon_promised": promised.epsilon,
        "delta": promised.delta,
        "unit": promised.unit,
        "against": promised.against,
    }


def _metrics(plan: FederationPlan, record: RoundRecord, split: str) -> dict[str, Any]:
    measured = by_model(record.metrics, {}, split).get(plan.method.personal.candidates()[0], {})
    return _summary(dict(record.pooled.get(split, {})), measured)


def _models(record: RoundRecord) -> dict[str, Any]:
    found = by_model(record.metrics, record.chosen, "test")
    return {model: _summary(pool(list(sites.values())), sites) for model, sites in found.items()}


def _summary(pooled: dict[str, float], measured: Mapping[str, SiteMetrics]) -> dict[str, Any]:
    sites = {
        site: {"withheld": entry.withheld} if entry.withheld else {**entry.values, "patients": entry.patients}
        for site, entry in measured.items()
    }
    return {"pooled": pooled, "standard_error": standard_errors(pooled, list(measured.values())), "sites": sites}


def best_round(plan: FederationPlan, records: Sequence[RoundRecord]) -> RoundRecord | None:
    """The round whose arriving weights have the best pooled validation metric, the first of equals; None without any.

    The metric is one for all rounds that are compared: the task's first choice among those that each of them has (an
    AUC of histograms is none of a round in which some site sent none). Where a round lacks what those before it were
    compared by, it and the best of these are compared by the next choice: those are the two models that are at hand.
    Where no metric is left, the search begins anew with that round. Rounds without any do not count. Where the last
    exchange measures the best model once more, that is no measurement of another one.
    """
    return _search(plan, records)[0]


def stalled(plan: FederationPlan, records: Sequence[RoundRecord]) -> bool:
    """Whether the metric of `best_round` was not bettered in the last `stopping.patience` rounds that have it."""
    patience = plan.stopping.patience
    return patience is not None and _search(plan, records)[1] >= patience


def _search(plan: FederationPlan, records: Sequence[RoundRecord]) -> tuple[RoundRecord | None, int]:
    """The best round, and how many measurements since did not better it."""
    best: RoundRecord | None = None
    shared, since = frozenset[str](), 0
    for record in records:
        values = record.pooled.get("validation", {})
        if better(plan.task.name, values)[0] not in values:
            continue
        if plan.stopping.keep == "best" and record.is_final(plan.rounds):
            continue
        common = shared & values.keys() if best is not None else frozenset(values)
        metric, direction = better(plan.task.name, common)
        if best is None or metric not in common:
            best, shared, since = record, frozenset(values), 0
            continue
        shared, sign = common, 1.0 if direction == "max" else -1.0
        if sign * values[metric] > sign * best.pooled["validation"][metric]:
            best, since = record, 0
        else:
            since += 1
    return best, since


def _best(plan: FederationPlan, records: Sequence[RoundRecord]) -> dict[str, Any] | None:
    best = best_round(plan, records)
    if best is None:
        return None
    return {"after_round": best.round - 1, "validation": dict(best.pooled["validation"])}

"""A validation's record as finely as a site may tell it: counts of people on its base, means rounded. Pure."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from typing import Literal

from eucaim_fl.errors import ReplyError
from eucaim_fl.plan import FederationPlan
from eucaim_fl.records import SiteMetrics
from eucaim_fl.site.coarsening import announced, on_base, shared_out
from eucaim_fl.site.disclosure import LeastPeople, coarse, rounded_moments
from eucaim_fl.validation.groups import possible_groups
from eucaim_fl.validation.record import (
    EVERYBODY,
    TOO_FEW,
    ModelFigures,
    PairFigures,
    ScopeRecord,
    ValidationRecord,
    agreement_key,
    check_record,
    moment_ranges,
    score_names,
)

__all__ = ["CellRules", "coarse_record", "objections_to"]

_Moments = tuple[float, float, float]
_PAIR = "pair "
_SIDES: tuple[Literal["without", "with"], ...] = ("without", "with")


@dataclass(frozen=True)
class CellRules:
    """What a site allows, from its policy.

    least: see `disclosure.least_people`. listed: what may leave: `scores`, `confusion`, `concordance`, `lesions`, and
    metrics without label (`dice`, `brier`); comparisons of two models follow what they compare. None lists all.
    digits: decimal places of means; None leaves them. histograms: whether score histograms, and what stands and falls
    with them, may leave.
    """

    least: LeastPeople
    listed: frozenset[str] | None = None
    digits: int | None = None
    histograms: bool = True

    def allow(self, name: str) -> bool:
        """Whether figures of that name may leave."""
        return (self.listed is None or name in self.listed) and (name != "scores" or self.histograms)


# --- how finely -------------------------------------------------------------------------------------------------------


def coarse_record(record: ValidationRecord, plan: FederationPlan, rules: CellRules) -> ValidationRecord:
    """The record with counts of people on the base, means rounded, and only what is listed; nothing is added to it.

    Counts as in `coarsening.on_base`: confusion rows by their proportions, scores as n/base quantiles, pairs of a
    survival task by tenths. Paired tables and lesions keep their proportions as well as the base can. The standard
    error of a difference of AUCs is told to three digits, the difference on the nearest value that so many patients
    can have. Failed images are rounded down to multiples of the least behind a figure. A scope of which nothing is left
    is withheld. What is on the base already stays the same to the bit; with base 1 and no digits, all does.
    """
    scopes = tuple(one if one.withheld else _coarse_scope(one, plan, rules) for one in record.scopes)
    failed = record.failed
    if rules.least.base > 1:
        failed = {reason: coarse(count, rules.least.metric) for reason, count in failed.items()}
    return replace(record, scopes=scopes, failed={reason: count for reason, count in failed.items() if count})


def _coarse_scope(scope: ScopeRecord, plan: FederationPlan, rules: CellRules) -> ScopeRecord:
    differences = {} if scope.pair is None else scope.pair.differences
    models, patients = [], [0]
    paired: dict[str, _Moments] = {}
    for number, one in enumerate(scope.models):
        more = {f"{_PAIR}{name}": sums for name, sums in differences.items()} if not number else {}
        figures, people, found = _coarse_model(one, scope.patients, more, plan, rules)
        models.append(figures)
        patients.append(people)
        paired |= found
    told = tuple(_listed(one, rules, plan) for one in models)
    pair = None if scope.pair is None else _coarse_pair(scope.pair, models[0], paired, plan, rules)
    if pair is not None and pair == PairFigures():
        pair = None
    if pair is None and all(one == ModelFigures() for one in told):
        return ScopeRecord(scope.scope, 0, withheld=TOO_FEW)
    return ScopeRecord(scope.scope, max(patients), told, pair)


def _coarse_model(
    figures: ModelFigures,
    patients: int,
    differences: Mapping[str, _Moments],
    plan: FederationPlan,
    rules: CellRules,
) -> tuple[ModelFigures, int, dict[str, _Moments]]:
    """A model's figures on the base, the number of patients, and the same of differences."""
    task, base = plan.task, rules.least.base
    if task.name == "multilabel":
        return _coarse_labels(figures, patients, differences, plan, rules)
    names = score_names(task)
    numbers = {name: k + (len(names) == 1) for k, name in enumerate(names)}
    if len(names) > 1 and not figures.confusion:
        numbers = {name: k for k, name in enumerate(name for name in names if name in figures.scores)}
    sums: dict[str, tuple[float, ...]] = {**figures.moments, **differences}
    if figures.confusion:
        sums["confusion"] = tuple(map(float, figures.confusion))
    if figures.concordance:
        sums["concordance"] = tuple(figures.concordance)
    for name, sides in figures.scores.items():
        for side, counts in zip(("negative", "positive"), sides, strict=True):
            sums[f"scores_{numbers[name]}_{side}"] = tuple(map(float, counts))
    told = on_base(SiteMetrics("test", patients, {}, sums), base)
    moments = _rounded({name: told.sums[name] for name in figures.moments}, plan, rules)
    found = ModelFigures(
        scores={
            name: (_whole(told.sums[f"scores_{k}_negative"]), _whole(told.sums[f"scores_{k}_positive"]))
            for name, k in numbers.items()
            if name in figures.scores
        },
        confusion=_whole(told.sums.get("confusion", ())),
        moments=moments,
        lesions={label: _lesions(counts, base) for label, counts in figures.lesions.items()},
        concordance=told.sums.get("concordance", ()),
        undefined={name: told.patients - int(n) for name, (n, *_) in moments.items() if n < told.patients},
    )
    return found, told.patients, _rounded({name: told.sums[name] for name in differences}, plan, rules)


def _coarse_labels(
    figures: ModelFigures,
    patients: int,
    differences: Mapping[str, _Moments],
    plan: FederationPlan,
    rules: CellRules,
) -> tuple[ModelFigures, int, dict[str, _Moments]]:
    """Each label is a record of two classes; the number of patients is that of the label with most."""
    scores: dict[str, tuple[tuple[int, ...], tuple[int, ...]]] = {}
    moments: dict[str, _Moments] = {}
    paired: dict[str, _Moments] = {}
    people = patients if rules.least.base == 1 else 0
    for label in plan.task.columns():
        name, pair = f"brier_{label}", f"{_PAIR}brier_{label}"
        sums: dict[str, tuple[float, ...]] = {}
        if name in figures.moments:
            sums["brier"] = figures.moments[name]
        if pair in differences:
            sums["difference"] = differences[pair]
        if label in figures.scores:
            for side, counts in zip(("negative", "positive"), figures.scores[label], strict=True):
                sums[f"scores_1_{side}"] = tuple(map(float, counts))
        counted = sum(map(sum, figures.scores[label])) if label in figures.scores else sums.get("brier", (0.0,))[0]
        told = on_base(SiteMetrics("test", int(counted), {}, sums), rules.least.base)
        people = max(people, told.patients)
        if label in figures.scores:
            scores[label] = _whole(told.sums["scores_1_negative"]), _whole(told.sums["scores_1_positive"])
        if "brier" in told.sums:
            moments |= _rounded({name: told.sums["brier"]}, plan, rules)
        if "difference" in told.sums:
            paired |= _rounded({pair: told.sums["difference"]}, plan, rules)
    return ModelFigures(scores=scores, moments=moments), people, paired


def _coarse_pair(
    pair: PairFigures, first: ModelFigures, paired: Mapping[str, _Moments], plan: FederationPlan, rules: CellRules
) -> PairFigures:
    asked, base = plan.validation, rules.least.base
    agreement, areas = {}, {}
    for name in score_names(plan.task) if asked is not None and rules.allow("scores") else ():
        if name not in first.scores:
            continue
        sides = [sum(side) for side in first.scores[name]]
        for threshold in asked.thresholds if asked is not None else ():
            for side, total in zip(_SIDES, sides, strict=True):
                key = agreement_key(plan.task, threshold, side, name)
                if key in pair.agreement:
                    counts = shared_out(pair.agreement[key], total, base)
                    agreement[key] = int(counts[0]), int(counts[1]), int(counts[2]), int(counts[3])
        if name in pair.auc and (pairs := math.prod(sides)):
            areas[name] = _area(pair.auc[name], pairs, rules)
    listed = {name.removeprefix(_PAIR): sums for name, sums in paired.items()}
    kept = {name: sums for name, sums in listed.items() if rules.allow(_base(name, plan))}
    return PairFigures(agreement, kept, areas)


def _area(estimate: tuple[float, float], pairs: int, rules: CellRules) -> tuple[float, float]:
    """A difference of AUCs and its variance, which as exact fractions would give the numbers of both classes away."""
    difference, variance = estimate
    if rules.least.base > 1:
        difference = round(difference * pairs) / pairs
        error = float(f"{math.sqrt(variance):.3g}")
        variance = error * error
    return (difference if rules.digits is None else round(difference, rules.digits)), variance


def _lesions(counts: Sequence[int], base: int) -> tuple[int, int, int, int]:
    """Numbers of lesions on the base too: where most patients have one, they are numbers of patients."""
    true, found, false, patients = counts
    told = announced(true, base)
    hit, _ = shared_out((found, true - found), told, base)
    return told, int(hit), announced(false, base), announced(patients, base)


def _rounded(moments: Mapping[str, Sequence[float]], plan: FederationPlan, rules: CellRules) -> dict[str, _Moments]:
    """Both means to the site's decimal places, and no mean square that values in the metric's range can't have."""
    found: dict[str, _Moments] = {}
    for name, (n, total, squares) in moments.items():
        if rules.digits is not None and n > 0:
            n, total, squares = rounded_moments((n, total, squares), rules.digits)
            low, high = moment_ranges(plan.task)[name.removeprefix(_PAIR)]
            if name.startswith(_PAIR):
                low, high = low - high, high - low
            if math.isfinite(low) and math.isfinite(high):
                mean = round(total / n, rules.digits)
                squares = min(squares, n * max(round((low + high) * mean - low * high, rules.digits), 0.0))
        found[name] = n, total, squares
    return found


def _listed(figures: ModelFigures, rules: CellRules, plan: FederationPlan) -> ModelFigures:
    return ModelFigures(
        scores=figures.scores if rules.allow("scores") else {},
        confusion=figures.confusion if rules.allow("confusion") else (),
        moments={name: sums for name, sums in figures.moments.items() if rules.allow(_base(name, plan))},
        lesions=figures.lesions if rules.allow("lesions") else {},
        concordance=figures.concordance if rules.allow("concordance") else (),
        undefined={name: count for name, count in figures.undefined.items() if rules.allow(_base(name, plan))},
    )


def _base(name: str, plan: FederationPlan) -> str:
    """A metric's name without label."""
    one = "brier" if plan.task.name == "multilabel" else ""
    plain = (one,) if one else ("dice", "hd95_mm", "surface_dice", "volume_difference_ml", "brier")
    return next(base for base in plain if name == base or name.startswith(f"{base}_"))


def _whole(counts: Sequence[float]) -> tuple[int, ...]:
    return tuple(map(int, counts))


# --- the gate's second look -------------------------------------------------------------------------------------------


def objections_to(record: ValidationRecord, plan: FederationPlan, rules: CellRules) -> tuple[str, ...]:
    """Reasons why a record must not leave, from the record alone; empty if it may.

    Looked at: its form (see `check_record`); that each count of people, of a class, of those with a metric and with an
    event is none or enough; that nothing is finer than the base and the digits, nor off the list; that each group of
    the plan is there, so that which ones are does not tell. What groups tell together can't be seen from sums.
    """
    try:
        check_record(record, plan)
    except ReplyError:
        return ("figures that no patients can have, or that the plan does not ask for",)
    reasons = []
    asked = () if plan.validation is None else plan.validation.subgroups
    if [one.scope for one in record.scopes] != [EVERYBODY, *chain.from_iterable(map(possible_groups, asked))]:
        reasons.append("a record in which groups are missing")
    least = announced(rules.least.metric, rules.least.base)
    if any(0 < people < least for scope in record.scopes for people in _people(scope, plan)):
        reasons.append("figures of fewer patients than the site's minimum")
    if any(_one_sided(scope, plan) for scope in record.scopes):
        reasons.append("figures of one side alone, which say that the other is small")
    if coarse_record(record, plan, rules) != record:
        reasons.append("figures from exact counts of patients, with more decimal places, or not on the list")
    return tuple(reasons)


def _people(scope: ScopeRecord, plan: FederationPlan) -> list[float]:
    """All numbers of patients that figures of a scope are about."""
    found: list[float] = [scope.patients]
    for one in scope.models:
        side = math.isqrt(len(one.confusion))
        found += [sum(one.confusion[k * side : (k + 1) * side]) for k in range(side)]
        found += [sum(counts) for sides in one.scores.values() for counts in sides]
        found += [sums[0] for sums in one.moments.values()]
        found += one.concordance[:2]
        found += [counts[3] for counts in one.lesions.values()]
    if scope.pair is not None:
        found += [sums[0] for sums in scope.pair.differences.values()]
        found += [sum(counts) for counts in scope.pair.agreement.values()]
    return found


def _one_sided(scope: ScopeRecord, plan: FederationPlan) -> bool:
    sides = [one.concordance[:2] for one in scope.models if one.concordance]
    if plan.task.name == "multilabel":
        sides += [tuple(map(sum, pair)) for one in scope.models for pair in one.scores.values()]
    return any(min(pair) == 0 for pair in sides)

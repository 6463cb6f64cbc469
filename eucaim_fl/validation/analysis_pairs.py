"""Differences: of groups of patients from each other, and of the first model from the second on the same patients."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from scipy.optimize import brentq

from eucaim_fl.validation.agreement import Moments, pooled_moments, stratified_mean
from eucaim_fl.validation.analysis_between import (
    LOWER_IS_BETTER,
    NO_DIRECTION,
    MainFigure,
    Point,
    main_figures,
    point_of,
)
from eucaim_fl.validation.analysis_input import Asked, Scope, figure_key, label_of, scores_of
from eucaim_fl.validation.analysis_scores import LEVEL
from eucaim_fl.validation.binned import auc_of, pooled_scores
from eucaim_fl.validation.intervals import Interval
from eucaim_fl.validation.pairs import Estimate, holm_adjusted, mcnemar, non_inferior, stratified
from eucaim_fl.validation.record import PairFigures, agreement_key
from eucaim_fl.validation.result_schema import ComparisonResult, GroupDifference
from eucaim_fl.validation.thresholds import at_threshold
from eucaim_fl.validation_config import ComparisonConfig

__all__ = ["comparisons", "group_differences"]

_SIDES: dict[str, tuple[Literal["with", "without"], ...]] = {
    "accuracy": ("with", "without"),
    "sensitivity": ("with",),
    "specificity": ("without",),
}
_LEAST_VARIANCE = 1e-300
_SURE = 1 - 1e-12  # the highest level at which a p-value is looked for
_NOT_ADJUSTED = "Groups are compared over all hospitals; where groups differ in their hospitals, so may this."


# --- groups of patients ---------------------------------------------------------------------------------------------


def group_differences(asked: Asked, models: Sequence[str], scopes: Sequence[Scope]) -> tuple[GroupDifference, ...]:
    """Each group of a rule against its largest one, by each main figure and for each model.

    The groups' patients are different ones, so errors add up: d ± z·√(SE² + SE²), and p of the same normal. Shares have
    Newcombe's interval (squares of Wilson's limits added), and may so disagree with p near the level. p-values are
    adjusted by Holm's method over all differences of the result. Groups that no site told of are left out, and so are
    patients of whom it is not known.
    """
    found = [
        difference
        for number, model in enumerate(models)
        for main in main_figures(asked)
        for rule in asked.validation.subgroups
        for difference in _of_rule(asked, (number, model, rule.by), main, _groups_of(rule.by, scopes))
    ]
    tested = [one.p for one in found if one.p is not None]
    adjusted = iter(holm_adjusted(tested))
    return tuple(one if one.p is None else one.model_copy(update={"p_adjusted": next(adjusted)}) for one in found)


def _groups_of(rule: str, scopes: Sequence[Scope]) -> list[Scope]:
    """Those that somebody told of; who belongs to none of them is in no comparison."""
    own = [scope for scope in scopes if scope.name.startswith((f"{rule}=", f"{rule}<", f"{rule}>="))]
    return [scope for scope in own if scope.told and scope.name != f"{rule}=unknown"]


def _of_rule(
    asked: Asked, of: tuple[int, str, str], main: MainFigure, groups: Sequence[Scope]
) -> list[GroupDifference]:
    """of: number and name of the model, and the rule."""
    points = {}
    for scope in groups:
        figures = [figures for _, figures in scope.of_model(of[0])]
        point = point_of(asked, main, figures) if figures else None
        points[scope.name] = (point, _limits(asked, main, scope, of[0]))
    known = [name for name, (point, _) in points.items() if point is not None]
    if len(groups) < 2:
        return []
    largest = max(known, key=lambda name: _patients(points[name][0]), default=groups[0].name)
    return [
        _difference((of[1], of[2], main.key), (name, largest), points[name], points[largest])
        for name in points
        if name != largest
    ]


def _patients(point: Point | None) -> int:
    return point.patients if point is not None else 0


def _limits(asked: Asked, main: MainFigure, scope: Scope, model: int) -> Interval | None:
    """Wilson's interval of a share; None of other figures."""
    if main.threshold is None:
        return None
    record = asked.labels[asked.names.index(main.label)]
    told = scores_of(asked, [figures for _, figures in scope.of_model(model)], record)
    if not told:
        return None
    return at_threshold(pooled_scores(told), main.threshold, level=LEVEL).figures[main.metric]


def _difference(
    of: tuple[str, str, str],
    names: tuple[str, str],
    group: tuple[Point | None, Interval | None],
    reference: tuple[Point | None, Interval | None],
) -> GroupDifference:
    result = GroupDifference(
        model=of[0], rule=of[1], figure=of[2], group=names[0], reference=names[1],
        difference=None, low=None, high=None, p=None, p_adjusted=None,
    )  # fmt: skip
    if group[0] is None or reference[0] is None:
        reason = "A group's figure is withheld, or has too few patients for a standard error."
        return result.model_copy(update={"reason": reason})
    error = Estimate(
        group[0].value - reference[0].value, group[0].standard_error ** 2 + reference[0].standard_error ** 2
    )
    value, (low, high) = error.value, error.interval(LEVEL)
    if group[1] is not None and reference[1] is not None:
        value = group[1].estimate - reference[1].estimate
        low = value - math.hypot(group[1].estimate - group[1].low, reference[1].high - reference[1].estimate)
        high = value + math.hypot(group[1].high - group[1].estimate, reference[1].estimate - reference[1].low)
    return result.model_copy(
        update={"difference": value, "low": low, "high": high, "p": error.p_value(), "reason": _NOT_ADJUSTED}
    )


# --- two models -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Compared:
    """A difference over sites. p: NaN where there is none."""

    difference: float
    low: float
    high: float
    p: float
    sites: int
    patients: int | None = None
    counts: tuple[int, int, int, int] | None = None
    reason: str = ""


def comparisons(asked: Asked, whole: Scope) -> tuple[ComparisonResult, ...]:
    """The first model against the second by each of the plan's comparisons, one for each label that it has.

    AUC: the sites' differences (DeLong) by inverse variance (`pairs.stratified`). Accuracy, sensitivity, specificity at
    the first threshold: added tables (accuracy's of sites that told of both classes; `reason` says how many did not),
    Tango's interval, McNemar's mid-p. Means: `stratified_mean` of the differences; p
    is the level at which its interval reaches 0. Non-inferiority is judged by the limits; of a figure of which less is
    better, with the sign turned. p-values are adjusted by Holm's method over all comparisons.
    """
    results = [one for asked_for in asked.validation.comparisons for one in _compared(asked, whole, asked_for)]
    tested = iter(holm_adjusted([one.p for one in results if one.p is not None]))
    return tuple(one if one.p is None else one.model_copy(update={"p_adjusted": next(tested)}) for one in results)


def _compared(asked: Asked, whole: Scope, asked_for: ComparisonConfig) -> list[ComparisonResult]:
    pairs = [pair for _, pair in whole.pairs()]
    metric = asked_for.metric
    if metric == "auc":
        return [
            _judged(asked_for, figure_key("auc", name), _areas(pairs, label), _pooled_areas(asked, whole, label))
            for label, name in zip(asked.labels, asked.names, strict=True)
        ]
    if metric in _SIDES:
        return [
            _judged(asked_for, figure_key(metric, name, asked.first_threshold), _decided(asked, pairs, metric, label))
            for label, name in zip(asked.labels, asked.names, strict=True)
        ]
    names = sorted({name for pair in pairs for name in pair.differences})
    own = [name for name in names if metric in (name, label_of(asked, name)[0])]
    if not own:
        return [_judged(asked_for, metric, _nothing(0, "No site told the models' differences by this figure."))]
    return [_judged(asked_for, figure_key(*label_of(asked, name)), _means(pairs, name)) for name in own]


def _judged(asked_for: ComparisonConfig, key: str, found: _Compared, pooled: float | None = None) -> ComparisonResult:
    metric = asked_for.metric
    lower, neither = metric in LOWER_IS_BETTER, metric in NO_DIRECTION
    limited = math.isfinite(found.low) and math.isfinite(found.high)
    outcome, sentence, reason = None, "", found.reason
    if asked_for.margin is not None and neither:
        reason = f"{reason} Neither direction is better, so there is no non-inferiority.".strip()
    elif asked_for.margin is not None and limited:
        sides = (-found.high, -found.low) if lower else (found.low, found.high)
        judged = non_inferior(-found.difference if lower else found.difference, *sides, asked_for.margin)
        outcome, sentence = judged.outcome, judged.sentence
        if lower:
            sentence += " (Less is better here, so below means a higher figure.)"
    return ComparisonResult(
        metric=metric,
        figure=key,
        better="neither" if neither else "lower" if lower else "higher",
        difference=_number(found.difference),
        low=_number(found.low),
        high=_number(found.high),
        p=_number(found.p),
        p_adjusted=None,
        pooled_difference=pooled,
        counts=found.counts,
        patients=found.patients,
        sites=found.sites,
        margin=asked_for.margin,
        outcome=outcome,
        sentence=sentence,
        reason=reason,
    )


def _number(value: float) -> float | None:
    return float(value) if math.isfinite(value) else None


def _nothing(sites: int, reason: str, difference: float = math.nan) -> _Compared:
    return _Compared(difference, math.nan, math.nan, math.nan, sites, reason=reason)


def _areas(pairs: Sequence[PairFigures], label: str) -> _Compared:
    told = [pair.auc[label] for pair in pairs if label in pair.auc]
    usable = [(value, variance) for value, variance in told if variance >= _LEAST_VARIANCE]
    if not told:
        return _nothing(0, "No site told the difference of the models' AUCs.")
    if not usable:
        same = all(value == 0 for value, _ in told)
        reason = "At no site does the difference have a variance: the models rank alike, or there are too few patients."
        return _nothing(len(told), reason, 0.0 if same else math.nan)
    estimate = stratified(*zip(*usable, strict=True))
    left = len(told) - len(usable)
    reason = (
        "" if not left else f"{left} of {len(told)} sites have no variance of the difference and count for nothing."
    )
    return _Compared(estimate.value, *estimate.interval(LEVEL), estimate.p_value(), len(usable), reason=reason)


def _pooled_areas(asked: Asked, whole: Scope, label: str) -> float | None:
    areas = []
    for model in (0, 1):
        told = scores_of(asked, [figures for _, figures in whole.of_model(model)], label)
        areas.append(float(auc_of(pooled_scores(told).counts)) if told else math.nan)
    return _number(areas[0] - areas[1])


def _decided(asked: Asked, pairs: Sequence[PairFigures], metric: str, label: str) -> _Compared:
    sides = _SIDES[metric]
    wanted = [agreement_key(asked.config, asked.first_threshold, side, label) for side in sides]
    told = [[pair.agreement[key] for key in wanted if key in pair.agreement] for pair in pairs]
    tables = [table for tables in told if len(tables) == len(wanted) for table in tables]
    sites = sum(len(tables) == len(wanted) for tables in told)
    both, first, second, neither = (int(sum(column)) for column in zip(*tables, strict=True)) if tables else (0,) * 4
    patients = both + first + second + neither
    left = sum(0 < len(tables) < len(wanted) for tables in told)
    reason = f"{left} of {sites + left} sites told of one class alone; their patients are not in it." if left else ""
    if not patients:
        return _nothing(sites, f"No site told on whom the models decide differently. {reason}".strip())
    found = mcnemar(both, first, second, neither, level=LEVEL)
    counts = (both, first, second, neither)
    return _Compared(found.difference, found.low, found.high, found.p_mid, sites, patients, counts, reason)


def _means(pairs: Sequence[PairFigures], name: str) -> _Compared:
    strata = [
        Moments(int(count), total, squares)
        for count, total, squares in (pair.differences[name] for pair in pairs if name in pair.differences)
        if count
    ]
    whole = pooled_moments(strata)
    if whole.patients < 2:
        return _nothing(len(strata), "The difference is defined for fewer than two patients.", whole.mean)
    found = stratified_mean(strata, LEVEL)
    if found.low == found.high:
        reason = "The models differ by the same in all patients, from which no error of chance follows."
        return _nothing(len(strata), reason, found.estimate)
    return _Compared(found.estimate, found.low, found.high, _p_of(strata), len(strata), whole.patients)


def _p_of(strata: Sequence[Moments]) -> float:
    """1 − the level at which the interval of the mean reaches 0."""

    def beyond(level: float) -> float:
        found = stratified_mean(strata, level)
        return (found.high - found.low) / 2 - abs(found.estimate)

    if beyond(1e-12) >= 0:
        return 1.0
    if beyond(_SURE) <= 0:
        return 1 - _SURE
    return 1 - float(brentq(beyond, 1e-12, _SURE, xtol=1e-14))

"""From patients' own results to the sums of a record, before anything is held back or rounded."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from eucaim_fl.config import TaskConfig
from eucaim_fl.errors import DataError
from eucaim_fl.plan import FederationPlan
from eucaim_fl.validation.binned import bin_scores, edges_with
from eucaim_fl.validation.concordance import compared
from eucaim_fl.validation.groups import possible_groups
from eucaim_fl.validation.metrics import brier_per_patient, confusion
from eucaim_fl.validation.pairs import delong_pair
from eucaim_fl.validation.record import (
    EVERYBODY,
    ModelFigures,
    PairFigures,
    ScopeRecord,
    ValidationRecord,
    agreement_key,
    moment_ranges,
    score_names,
)
from eucaim_fl.validation_config import ValidationConfig

__all__ = ["Results", "known", "members_of", "patient_values", "scope_record", "validation_record"]

FloatArray: TypeAlias = NDArray[np.float64]
Results: TypeAlias = Mapping[str, Mapping[str, Any]]
"""Patient → what one model got on that patient. Classification: `probabilities` (classes,), summing to 1, and `truth`,
the class. Several labels: `probabilities` (targets,) and `truth` (targets,), NaN where it is not known. Survival:
`log_risk`, `time`, `event`. Segmentation: numbers `dice`, `hd95_mm`, `surface_dice` (NaN: not defined), `found_ml`,
`true_ml`, and `lesions_true`, `lesions_found`, `lesions_false`; of several labels each also with `_LABEL` behind it.
These stay at the site."""


def validation_record(
    site: str,
    plan: FederationPlan,
    results: Sequence[Results],
    groups: Mapping[str, Collection[str]],
    failed: Mapping[str, int] | None = None,
) -> ValidationRecord:
    """The whole record, of everybody and of each group that somebody is in; nothing is held back.

    results: of each of the plan's models, over the same patients. groups: patient → names, see `groups.groups_of`.
    failed: images without an answer, by reason.
    Raises DataError if models have other patients, results are not those of the task, or a group is none of the plan's.
    """
    asked = _asked(plan)
    if len(results) != len(asked.models) or any(set(one) != set(results[0]) for one in results):
        raise DataError("There must be results of each model, of the same patients.")
    scopes = []
    for name, members in members_of(results[0], groups, plan).items():
        if members or name == EVERYBODY:
            own = [{patient: one[patient] for patient in sorted(members)} for one in results]
            scopes.append(scope_record(name, plan, own))
    return ValidationRecord(site, plan.sha256(), tuple(scopes), dict(failed or {}))


def members_of(
    patients: Collection[str], groups: Mapping[str, Collection[str]], plan: FederationPlan
) -> dict[str, frozenset[str]]:
    """Scope → its patients, of all scopes that the plan can have, in their order.

    Raises DataError unless each patient is in exactly one group of each rule.
    """
    asked, found = _asked(plan), {EVERYBODY: frozenset(patients)}
    for rule in asked.subgroups:
        own = possible_groups(rule)
        for name in own:
            found[name] = frozenset(patient for patient in patients if name in groups.get(patient, ()))
        if sum(len(found[name]) for name in own) != len(found[EVERYBODY]):
            raise DataError(f"Not every patient is in exactly one group by {rule.by}.")
    names = [name for patient in patients for name in groups.get(patient, ())]
    if not set(names) <= found.keys():
        raise DataError("A patient is in a group that the plan does not have.")
    return found


def scope_record(scope: str, plan: FederationPlan, results: Sequence[Results]) -> ScopeRecord:
    """Figures of some patients; those of two models' comparison if there are two. Sums do not depend on their order.

    results: of each of the plan's models, over the same patients.
    Raises DataError if results are not those of the task.
    """
    asked, patients = _asked(plan), sorted(results[0])
    try:
        models = tuple(_model(one, patients, plan.task, asked) for one in results)
        pair = _pair(results, patients, plan.task, asked) if len(results) == 2 else None
    except (KeyError, TypeError, ValueError, IndexError):  # texts of these can quote values
        raise DataError("A patient's results are not those of the task.") from None
    return ScopeRecord(scope, len(patients), models, pair)


def patient_values(result: Mapping[str, Any], task: TaskConfig) -> dict[str, float]:
    """One patient's values of the metrics whose moments a record holds; NaN where a metric is not defined.

    `volume_difference_ml` is found − true. A metric that was not measured is missing.
    Raises DataError for what is no probability.
    """
    if task.name == "classification":
        probabilities, truth = np.asarray(result["probabilities"])[None], np.array([int(result["truth"])])
        return {"brier": float(brier_per_patient(probabilities, truth)[0])}
    if task.name == "multilabel":
        pairs = zip(task.targets, result["probabilities"], result["truth"], strict=True)
        return {f"brier_{label}": (float(p) - float(y)) ** 2 for label, p, y in pairs}
    values = {}
    for name in moment_ranges(task):
        if name.startswith("volume_difference_ml"):
            end = name.removeprefix("volume_difference_ml")
            if f"found_ml{end}" in result:
                values[name] = float(result[f"found_ml{end}"]) - float(result[f"true_ml{end}"])
        elif name in result:
            values[name] = float(result[name])
    return values


def known(result: Mapping[str, Any], name: str, task: TaskConfig) -> bool | None:
    """Whether a patient has what a score is of (a class or label of `score_names`); None if that is not known."""
    if task.name == "multilabel":
        value = float(result["truth"][task.targets.index(name)])
        return None if math.isnan(value) else value > 0
    return bool(task.name == "classification" and task.classes[int(result["truth"])] == name)


def _model(results: Results, patients: Sequence[str], task: TaskConfig, asked: ValidationConfig) -> ModelFigures:
    edges, scores = edges_with(asked.thresholds, asked.bins), {}
    for name in score_names(task):
        values, truth = _scores(results, patients, name, task)
        if len(values) or task.name == "classification":
            counted = bin_scores(values, truth, edges)
            scores[name] = counted.negative, counted.positive
    moments, undefined = _moments([patient_values(results[patient], task) for patient in patients])
    if task.name == "multilabel":  # of whom a label is not known, nothing is asked
        moments, undefined = {name: sums for name, sums in moments.items() if sums[0]}, {}
    return ModelFigures(
        scores=scores,
        confusion=_confusion(results, patients, task),
        moments=moments,
        lesions=_lesions(results, patients, task),
        concordance=_concordance(results, patients) if task.name == "survival" else (),
        undefined=undefined,
    )


def _scores(
    results: Results, patients: Sequence[str], name: str, task: TaskConfig
) -> tuple[FloatArray, NDArray[np.int64]]:
    """Probability and truth (0 or 1) of a class or label, of those patients of whom it is known."""
    names = task.targets if task.name == "multilabel" else task.classes if task.name == "classification" else ()
    column, values, truth = names.index(name), [], []
    for patient in patients:
        has = known(results[patient], name, task)
        if has is not None:
            probabilities = np.asarray(results[patient]["probabilities"], dtype=np.float64)
            if probabilities.shape != (len(names),):
                raise DataError("There must be one probability for each class or label.")
            values.append(float(probabilities[column]))
            truth.append(int(has))
    clipped = np.asarray(values, dtype=np.float64)
    if ((clipped < -1e-3) | (clipped > 1 + 1e-3) | np.isnan(clipped)).any():
        raise DataError("A probability does not lie between 0 and 1.")
    return clipped.clip(0, 1), np.asarray(truth, dtype=np.int64)


def _moments(
    values: Sequence[Mapping[str, float]],
) -> tuple[dict[str, tuple[float, float, float]], dict[str, int]]:
    """Metric → (n, Σx, Σx²) over whom it is defined for; metric → how many others. A metric is of all, or of none."""
    moments, undefined = {}, {}
    for name in sorted({name for one in values for name in one}):
        column = [one.get(name, math.nan) for one in values]
        defined = [value for value in column if not math.isnan(value)]
        if not all(map(math.isfinite, defined)):
            raise DataError("A patient's value is infinite.")
        squares = math.fsum(value * value for value in defined)
        moments[name] = float(len(defined)), math.fsum(defined), squares
        if len(defined) < len(column):
            undefined[name] = len(column) - len(defined)
    return moments, undefined


def _confusion(results: Results, patients: Sequence[str], task: TaskConfig) -> tuple[int, ...]:
    if task.name != "classification":
        return ()
    likeliest = [int(np.argmax(results[patient]["probabilities"])) for patient in patients]
    truth = [int(results[patient]["truth"]) for patient in patients]
    counts = confusion(np.asarray(likeliest, dtype=np.int64), np.asarray(truth, dtype=np.int64), len(task.classes))
    return tuple(map(int, counts.ravel()))


def _lesions(results: Results, patients: Sequence[str], task: TaskConfig) -> dict[str, tuple[int, int, int, int]]:
    found: dict[str, tuple[int, int, int, int]] = {}
    if task.name != "segmentation":
        return found
    for label in task.labels:
        end = f"_{label}" if len(task.labels) > 1 else ""
        rows = [
            [int(results[patient][f"lesions_{what}{end}"]) for what in ("true", "found", "false")]
            for patient in patients
            if f"lesions_true{end}" in results[patient]
        ]
        if rows:
            true, hit, false = (sum(column) for column in zip(*rows, strict=True))
            found[label] = true, hit, false, len(rows)
    return found


def _concordance(results: Results, patients: Sequence[str]) -> tuple[float, ...]:
    risk, time = (
        np.array([float(results[patient][name]) for patient in patients], dtype=np.float64)
        for name in ("log_risk", "time")
    )
    event = np.array([bool(results[patient]["event"]) for patient in patients], dtype=np.bool_)
    events = int(event.sum())
    return tuple(float(n) for n in (len(patients) - events, events, *compared(risk, time, event)))


def _pair(
    results: Sequence[Results], patients: Sequence[str], task: TaskConfig, asked: ValidationConfig
) -> PairFigures:
    agreement, areas = {}, {}
    for name in score_names(task):
        (first, truth), (second, same) = (_scores(one, patients, name, task) for one in results)
        if not np.array_equal(truth, same):
            raise DataError("Two models were given other truths of the same patients.")
        if not len(truth):
            continue
        for threshold in asked.thresholds:
            for has in (0, 1):
                right = [(values[truth == has] >= threshold) == bool(has) for values in (first, second)]
                key = agreement_key(task, threshold, "with" if has else "without", name)
                agreement[key] = _two_by_two(right[0], right[1])
        difference = delong_pair(first, second, truth)
        if math.isfinite(difference.value) and math.isfinite(difference.variance):
            areas[name] = difference.value, difference.variance
    values = [[patient_values(one[patient], task) for patient in patients] for one in results]
    apart = [
        {name: first[name] - second[name] for name in first.keys() & second.keys()}
        for first, second in zip(*values, strict=True)
    ]
    differences = {name: sums for name, sums in _moments(apart)[0].items() if sums[0]}
    return PairFigures(agreement, differences, areas)


def _two_by_two(first: NDArray[np.bool_], second: NDArray[np.bool_]) -> tuple[int, int, int, int]:
    both, only_first, only_second = first & second, first & ~second, ~first & second
    return int(both.sum()), int(only_first.sum()), int(only_second.sum()), int((~first & ~second).sum())


def _asked(plan: FederationPlan) -> ValidationConfig:
    if plan.validation is None:
        raise DataError("The plan asks for no validation.", fix="Give a plan with a part `validation`.")
    return plan.validation

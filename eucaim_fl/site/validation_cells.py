"""A validation's record as it may leave: whose figures it holds, and that its groups together tell of no few. Pure."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace

from eucaim_fl.config import TaskConfig
from eucaim_fl.plan import FederationPlan
from eucaim_fl.site.differencing import Parts
from eucaim_fl.site.validation_rounding import CellRules, coarse_record
from eucaim_fl.site.validation_sets import beside_told, tellable_scopes
from eucaim_fl.validation.groups import possible_groups
from eucaim_fl.validation.patient_figures import Results, known, members_of, patient_values, scope_record
from eucaim_fl.validation.record import (
    EVERYBODY,
    TOO_FEW,
    PairFigures,
    ScopeRecord,
    ValidationRecord,
    moment_ranges,
    score_names,
)

__all__ = ["told_beside", "told_cells", "told_record", "told_sets"]

_PAIR = "pair "
_EACH = "each patient"
_MEANS = ("dice", "hd95_mm", "surface_dice")


# --- which cells ------------------------------------------------------------------------------------------------------


def told_cells(
    plan: FederationPlan,
    results: Sequence[Results],
    groups: Mapping[str, Collection[str]],
    rules: CellRules,
    forbidden: Collection[tuple[str, str]] = (),
) -> dict[str, frozenset[str]]:
    """Population → scopes in which figures over it may be told; see `tellable_scopes`.

    Populations: the patients of each class; of each label's two sides, and those with and without an event, which are
    told both or not at all; of a segmentation those with a value of a metric, by model, or with a lesion. results,
    groups: as `patient_figures.validation_record` takes them. forbidden: (population, scope) that must not be told
    whatever else is; nothing is told instead of it.
    Raises DataError as `patient_figures.members_of` does.
    """
    members, task = members_of(results[0], groups, plan), plan.task
    by_rule = [possible_groups(rule) for rule in plan.validation.subgroups] if plan.validation is not None else []
    told, populations = {}, _populations(plan, results)
    for name, population in populations.items():
        taken = {scope for what, scope in forbidden if what == name}
        tellable = tellable_scopes(population, members, by_rule, rules.least)
        told[name] = frozenset() if EVERYBODY in taken else tellable - taken
    if task.name == "survival":
        both = told["without"] & told["with"]
        return {"without": both, "with": both}
    if task.name == "multilabel":
        for label in task.targets:
            both = told[f"without {label}"] & told[f"with {label}"]
            told |= {f"without {label}": both, f"with {label}": both}
    if task.name == "segmentation":
        told = {name: scopes & told[_EACH] for name, scopes in told.items()}
        for name in [name for name in told if name.startswith(_PAIR)]:
            told[name] &= _compared(name, populations, members, rules)
        if rules.least.apart > 1 and len(task.labels) > 1:
            for name, few in _apart_from_labels(task, task.labels, results, populations).items():
                told[name] &= tellable_scopes(few, members, by_rule, rules.least)
    return told


def _apart_from_labels(
    task: TaskConfig, labels: Sequence[str], results: Sequence[Results], populations: Mapping[str, frozenset[str]]
) -> dict[str, frozenset[str]]:
    """Population of a metric's mean over labels → patients for whom it is not that of their labels' values: not every
    label has one, or in not every image. Without such patients nothing.

    So many times the mean's sum as there are labels, less the sums of all labels, is about these patients alone.
    """
    found: dict[str, frozenset[str]] = {}
    for metric in _MEANS:
        either: frozenset[str] = frozenset()
        for number, one in enumerate(results):
            name = f"{number} {metric}"
            values = {patient: patient_values(one[patient], task) for patient in populations[name]}
            found[name] = frozenset(patient for patient, own in values.items() if not _of_labels(own, metric, labels))
            either |= found[name]
        if len(results) > 1:
            found[f"{_PAIR}{metric}"] = either & populations[f"{_PAIR}{metric}"]
    return {name: few for name, few in found.items() if few}


def _of_labels(values: Mapping[str, float], metric: str, labels: Sequence[str]) -> bool:
    """Whether a mean over labels is that of all their values."""
    together = sum(values.get(f"{metric}_{label}", math.nan) for label in labels)
    return math.isclose(len(labels) * values[metric], together, rel_tol=1e-9, abs_tol=1e-9)


def _compared(
    name: str,
    populations: Mapping[str, frozenset[str]],
    members: Mapping[str, frozenset[str]],
    rules: CellRules,
) -> frozenset[str]:
    """Scopes in which two models' difference in a metric may stand beside the metric of each.

    Both models' sums less that of the difference are about those for whom only one of them has a value. So where there
    are such patients no group's difference is told, and everybody's only if they are enough.
    """
    metric = name.removeprefix(_PAIR)
    alone = [len(populations[f"{number} {metric}"] - populations[name]) for number in (0, 1)]
    if rules.least.apart == 1 or not any(alone):
        return frozenset(members)
    return frozenset() if any(0 < few < rules.least.apart for few in alone) else frozenset({EVERYBODY})


def told_sets(
    plan: FederationPlan,
    results: Sequence[Results],
    groups: Mapping[str, Collection[str]],
    rules: CellRules,
    forbidden: Collection[tuple[str, str]] = (),
) -> dict[tuple[str, str], frozenset[str]]:
    """The sets of patients that figures would be told about, by population and scope.

    Raises DataError as `patient_figures.members_of` does.
    """
    members, populations = members_of(results[0], groups, plan), _populations(plan, results)
    cells = told_cells(plan, results, groups, rules, forbidden)
    return {(name, scope): members[scope] & populations[name] for name in cells for scope in sorted(cells[name])}


def told_beside(
    plan: FederationPlan,
    results: Sequence[Results],
    groups: Mapping[str, Collection[str]],
    rules: CellRules,
    before: Callable[[str], Sequence[Parts]],
) -> tuple[frozenset[tuple[str, str]], dict[str, list[Parts]]]:
    """What may not be told beside what other plans were told, for `forbidden` of `told_record`; and, by kind, what is
    told then, for the site's memory (`differencing.Told.beside`).

    before: kind → groups that were told side by side, see `validation_sets.beside_told`. Of a column all classes are
    one kind, whatever the task calls them: the same patients can be asked for as classes or as a label.
    Raises DataError as `patient_figures.members_of` does.
    """
    members, populations = members_of(results[0], groups, plan), _populations(plan, results)
    by_rule = [possible_groups(rule) for rule in plan.validation.subgroups] if plan.validation is not None else []
    forbidden = set()
    for name, scopes in told_cells(plan, results, groups, rules).items():
        earlier = before(_kind(name, plan))
        kept = beside_told(scopes, populations[name], members, by_rule, earlier, rules.least.apart)
        forbidden |= {(name, scope) for scope in scopes - kept}
    sets, told = told_sets(plan, results, groups, rules, forbidden), dict[str, list[Parts]]()
    for name, population in populations.items():
        if not sets.get((name, EVERYBODY)):
            continue
        several = told.setdefault(_kind(name, plan), [])
        for rule in by_rule:
            parts = [sets[name, scope] for scope in rule if (name, scope) in sets]
            rest = population.difference(*parts)
            several.append((*parts, *([rest] if rest else [])))
        if not by_rule:
            several.append((population,))
    return frozenset(forbidden), told


def _kind(population: str, plan: FederationPlan) -> str:
    """Under what a population's groups are remembered."""
    task = plan.task
    if task.name == "classification":
        return f"validation column {task.target.casefold()}"
    if task.name == "multilabel":
        return f"validation column {population.partition(' ')[2].casefold()}"
    return f"validation column {task.event.casefold()}" if task.name == "survival" else f"validation {population}"


def _populations(plan: FederationPlan, results: Sequence[Results]) -> dict[str, frozenset[str]]:
    task, first = plan.task, results[0]
    found: dict[str, set[str]] = {}
    if task.name == "classification":
        found = {name: set() for name in task.classes}
        for patient, one in first.items():
            found[task.classes[int(one["truth"])]].add(patient)
    elif task.name == "survival":
        found = {"without": set(), "with": set()}
        for patient, one in first.items():
            found["with" if one["event"] else "without"].add(patient)
    elif task.name == "multilabel":
        for label in task.targets:
            sides = {patient: known(one, label, task) for patient, one in first.items()}
            found[f"without {label}"] = {patient for patient, has in sides.items() if has is False}
            found[f"with {label}"] = {patient for patient, has in sides.items() if has}
    else:
        found[_EACH] = set(first)
        values = [{patient: patient_values(one[patient], task) for patient in first} for one in results]
        for name in moment_ranges(task):
            for number, own in enumerate(values):
                found[f"{number} {name}"] = {p for p, v in own.items() if not math.isnan(v.get(name, math.nan))}
            if len(results) > 1:
                found[f"{_PAIR}{name}"] = found[f"0 {name}"] & found[f"1 {name}"]
        for label in task.labels:
            end = f"_{label}" if len(task.labels) > 1 else ""
            found[f"lesions {label}"] = {p for p, one in first.items() if one.get(f"lesions_true{end}", 0) > 0}
    return {name: frozenset(patients) for name, patients in found.items()}


# --- the record that leaves -------------------------------------------------------------------------------------------


def told_record(
    site: str,
    plan: FederationPlan,
    results: Sequence[Results],
    groups: Mapping[str, Collection[str]],
    rules: CellRules,
    *,
    failed: Mapping[str, int] | None = None,
    forbidden: Collection[tuple[str, str]] = (),
) -> ValidationRecord:
    """The record that may leave. Every group that the plan can have stands in it: with figures, or as withheld.

    A group of few, of nobody, or one that would tell of few others looks the same: `too_few`, no number of patients.
    Patients of a class with few in a group are in none of its figures, so that it is what it would be without them.
    results, groups, failed: see `patient_figures.validation_record`. forbidden: see `told_cells`.
    Raises DataError as `patient_figures.validation_record` does.
    """
    cells, members = told_cells(plan, results, groups, rules, forbidden), members_of(results[0], groups, plan)
    scopes = []
    for scope, own in members.items():
        told = frozenset(name for name, where in cells.items() if scope in where)
        kept = [_of_told(one, own, told, plan) for one in results] if told else []
        if kept and kept[0]:
            scopes.append(_without_untold(scope_record(scope, plan, kept), told, plan))
        else:
            scopes.append(ScopeRecord(scope, 0, withheld=TOO_FEW))
    whole = ValidationRecord(site, plan.sha256(), tuple(scopes), dict(failed or {}))
    return coarse_record(whole, plan, rules)


def _of_told(results: Results, members: frozenset[str], told: frozenset[str], plan: FederationPlan) -> Results:
    """Results of a scope's patients without those, or those truths, that are not told of."""
    task = plan.task
    own = {patient: results[patient] for patient in sorted(members)}
    if task.name == "classification":
        return {patient: one for patient, one in own.items() if task.classes[int(one["truth"])] in told}
    if task.name == "multilabel":
        names = [label for label in task.targets if f"with {label}" in told]
        masked = {}
        for patient, one in own.items():
            pairs = zip(task.targets, one["truth"], strict=True)
            truth = [float(value) if label in names else math.nan for label, value in pairs]
            if not all(map(math.isnan, truth)):
                masked[patient] = {**one, "truth": truth}
        return masked
    return own


def _without_untold(scope: ScopeRecord, told: frozenset[str], plan: FederationPlan) -> ScopeRecord:
    """Without metrics and lesions of populations that are not told of, and what is about nobody."""
    models, pair = scope.models, scope.pair
    if plan.task.name == "segmentation":
        models = tuple(
            replace(
                one,
                moments={name: sums for name, sums in one.moments.items() if f"{number} {name}" in told},
                undefined={name: count for name, count in one.undefined.items() if f"{number} {name}" in told},
                lesions={name: counts for name, counts in one.lesions.items() if f"lesions {name}" in told},
            )
            for number, one in enumerate(models)
        )
    if len(score_names(plan.task)) > 1:
        models = tuple(replace(one, scores={n: s for n, s in one.scores.items() if sum(s[1])}) for one in models)
    if pair is not None:
        names = {n for n in pair.differences if plan.task.name != "segmentation" or f"{_PAIR}{n}" in told}
        pair = PairFigures(
            agreement={key: counts for key, counts in pair.agreement.items() if sum(counts)},
            differences={name: sums for name, sums in pair.differences.items() if name in names},
            auc=pair.auc,
        )
    return replace(scope, models=models, pair=pair)

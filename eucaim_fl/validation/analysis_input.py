"""What sites told, checked and put in order for the analysis: by scope, by site, by model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from eucaim_fl.errors import DataError, ReplyError
from eucaim_fl.plan import FederationPlan
from eucaim_fl.task_config import TaskConfig
from eucaim_fl.validation.agreement import Moments
from eucaim_fl.validation.binned import BinnedScores, edges_with
from eucaim_fl.validation.groups import possible_groups
from eucaim_fl.validation.record import (
    EVERYBODY,
    ModelFigures,
    PairFigures,
    ScopeRecord,
    ValidationRecord,
    check_record,
    score_names,
)
from eucaim_fl.validation_config import ValidationConfig

__all__ = ["Asked", "Scope", "asked_of", "by_scope", "figure_key", "label_of", "moments_of", "scores_of"]

_METRICS = frozenset({"hd95_mm", "surface_dice", "volume_difference_ml", "macro_auc", "balanced_accuracy", "c_index"})


@dataclass(frozen=True)
class Asked:
    """What the plan asks for, as the analysis needs it.

    labels: as records call those who have scores; names: the same as figures call them, empty for an only one.
    config: the task. moment_labels: names behind those of means, `("",)` for an only one.
    """

    validation: ValidationConfig
    config: TaskConfig
    edges: tuple[float, ...]
    labels: tuple[str, ...]
    names: tuple[str, ...]
    moment_labels: tuple[str, ...]
    _binned: dict[tuple[tuple[int, ...], tuple[int, ...]], BinnedScores] = field(
        default_factory=dict, init=False, repr=False, compare=False
    )

    def binned(self, without: Sequence[int], diseased: Sequence[int]) -> BinnedScores:
        """Counts in the plan's bins, of which the same ones are checked once. Raises DataError as `BinnedScores`."""
        key = tuple(without), tuple(diseased)
        if key not in self._binned:
            self._binned[key] = BinnedScores(self.edges, *key)
        return self._binned[key]

    @property
    def task(self) -> str:
        """The task's name."""
        return self.config.name

    @property
    def first_threshold(self) -> float:
        """At which decisions are compared."""
        return self.validation.thresholds[0]


@dataclass(frozen=True)
class Scope:
    """A group of patients: what sites told of it, in the order of their names, and which ones withhold, and why."""

    name: str
    told: tuple[tuple[str, ScopeRecord], ...]
    withheld: tuple[tuple[str, str], ...]

    def of_model(self, model: int) -> list[tuple[str, ModelFigures]]:
        """What each site told of a model."""
        return [(site, record.models[model]) for site, record in self.told]

    def pairs(self) -> list[tuple[str, PairFigures]]:
        """What sites told of the first model against the second."""
        return [(site, record.pair) for site, record in self.told if record.pair is not None]

    @property
    def patients(self) -> int:
        """Told by all sites together."""
        return sum(record.patients for _, record in self.told)


def asked_of(plan: FederationPlan) -> Asked:
    """What a plan of a validation asks for. Raises DataError if the plan trains."""
    validation, task = plan.validation, plan.task
    if validation is None:
        raise DataError("The plan asks for no validation.", fix="Take the plan of the validation's own run.")
    labels = score_names(task)
    moment_labels: tuple[str, ...] = ("",)
    if task.name == "multilabel":
        moment_labels = labels
    elif task.name == "segmentation" and len(task.labels) > 1:
        moment_labels = task.labels
    return Asked(
        validation,
        task,
        edges_with(validation.thresholds, validation.bins),
        labels,
        ("",) if len(labels) == 1 else labels,
        ("",) if len(moment_labels) == 1 else moment_labels,
    )


def figure_key(metric: str, label: str = "", threshold: float | None = None) -> str:
    """What a figure is called in the result.

    >>> figure_key("auc"), figure_key("sensitivity", "oedema", 0.5)
    ('auc', 'sensitivity@0.5_oedema')
    """
    at = "" if threshold is None else f"@{threshold:g}"
    return f"{metric}{at}{label and '_'}{label}"


def label_of(asked: Asked, name: str) -> tuple[str, str]:
    """The metric and the label of a mean's name as records have it; an only label's name is left out.

    A name that ends in no label, or is a metric's own (`hd95_mm`), is that of a metric over all labels.
    """
    if name.partition("@")[0] in _METRICS and "_" not in name.partition("@")[2]:
        return name, ""
    for label in sorted({*asked.moment_labels, *asked.labels}, key=len, reverse=True):
        if label and name.endswith(f"_{label}"):
            return name.removesuffix(f"_{label}"), "" if asked.names == ("",) and label in asked.labels else label
    return name, ""


def scores_of(asked: Asked, figures: Sequence[ModelFigures], label: str) -> list[BinnedScores]:
    """Score counts of a label, of those sites that told some."""
    return [asked.binned(*one.scores[label]) for one in figures if label in one.scores]


def moments_of(figures: Sequence[ModelFigures], name: str) -> list[Moments]:
    """Sums of a mean, of those sites in which it is defined for somebody."""
    return [_moments(one.moments[name]) for one in figures if name in one.moments and one.moments[name][0] > 0]


def by_scope(plan: FederationPlan, records: Sequence[ValidationRecord]) -> tuple[Scope, ...]:
    """What sites told, by group of patients: everybody first, then groups in the order of the plan's rules.

    The order of records changes nothing. Each record is checked once more (see `record.check_record`).
    Raises ReplyError without a record; for one of another plan, of a site that the plan does not name or that is there
    already; and for figures that no patients can have. DataError if the plan trains.
    """
    asked = asked_of(plan)
    if not records:
        raise ReplyError("No site told anything.", fix="Ask the sites again; see why they refused in the run's record.")
    ordered = sorted(records, key=lambda record: record.site)
    for number, record in enumerate(ordered):
        try:
            check_record(record, plan)
        except ReplyError as fault:
            of = f"of '{record.site}'" if record.site in plan.sites else "of a site that the plan does not name"
            raise ReplyError(f"A record {of} can't be used: {fault.message}", fix=fault.fix) from None
        if number and ordered[number - 1].site == record.site:
            raise ReplyError(
                f"There are two records of '{record.site}'.", fix="Take the one that the site signed last."
            )
    names = {scope.scope for record in ordered for scope in record.scopes}
    known = [EVERYBODY, *(name for rule in asked.validation.subgroups for name in possible_groups(rule))]
    return tuple(_scope(name, ordered) for name in known if name in names)


def _scope(name: str, records: Sequence[ValidationRecord]) -> Scope:
    found = [(record.site, scope) for record in records for scope in record.scopes if scope.scope == name]
    told = tuple((site, scope) for site, scope in found if not scope.withheld)
    return Scope(name, told, tuple((site, scope.withheld) for site, scope in found if scope.withheld))


def _moments(numbers: Sequence[float]) -> Moments:
    count, total, squares = numbers
    return Moments(int(count), float(total), float(squares))

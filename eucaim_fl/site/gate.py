"""The one gate: what a site is about to say is allowed, or refused with reasons. Pure; it decides and does nothing."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from pydantic import ValidationError

from eucaim_fl.arrays import Array
from eucaim_fl.errors import ReplyError
from eucaim_fl.plan import FederationPlan
from eucaim_fl.records import ArraySpec, ModelName, SplitName
from eucaim_fl.site.concentration import few_behind, one_batch
from eucaim_fl.site.disclosure import (
    WITHHELD,
    LeastPeople,
    announced,
    base_name,
    least_people,
    not_as_told,
    rounded,
    small_class,
)
from eucaim_fl.site.report import MetricsRecord, SiteReport, allowed_metrics
from eucaim_fl.site.statistics import objections
from eucaim_fl.site.validation_rounding import CellRules, objections_to
from eucaim_fl.sitefile import ReleaseConfig
from eucaim_fl.validation.choice import best_model
from eucaim_fl.validation.pooling import check_metrics

__all__ = ["GateBounds", "Outgoing", "default_bounds", "least_of", "refusals", "update_norm"]

_LARGEST_NORM = 1e9
_LARGEST_BYTES = 8 * 2**30
_WITHHELD = ("", WITHHELD)
_SPLITS: dict[str, tuple[SplitName, ...]] = {"round": ("validation",), "final": ("validation", "test")}
_LARGEST_PICTURES = 3


class Outgoing(Protocol):
    """What a site is about to say: its report, its update (local − arriving), its pictures."""

    @property
    def report(self) -> SiteReport:
        """Words and numbers."""

    @property
    def update(self) -> Mapping[str, Array]:
        """The arrays; empty if nothing was trained."""

    @property
    def pictures(self) -> NDArray[np.uint8] | None:
        """Shape (n, H, W, 3); None without."""


@dataclass(frozen=True)
class GateBounds:
    """What an answer may hold; the stricter of site file and policy (see `policy_decision.bounds`).

    minimum_patients: of training. minimum_metric_patients: behind every figure.
    metrics: names without label or class (`disclosure.base_name`); None takes the plan's own list.
    largest_norm: L2 norm of the whole update (see `update_norm`). largest_bytes: arrays, report and pictures together.
    digits: decimal places of figures, see `disclosure.rounded`; None does not look. test_data: splits whose figures
    may leave without noise although the plan has some. base, apart: see `disclosure.LeastPeople`.
    """

    minimum_patients: int
    minimum_metric_patients: int
    metrics: frozenset[str] | None
    largest_norm: float
    largest_bytes: int
    digits: int | None
    pictures: bool
    score_histograms: bool
    test_data: frozenset[str]
    base: int
    apart: int

    @property
    def least(self) -> LeastPeople:
        """The numbers of people that decide what is told."""
        return LeastPeople(self.minimum_patients, self.minimum_metric_patients, self.base, self.apart)

    @property
    def cells(self) -> CellRules:
        """What may be told of frozen models."""
        return CellRules(self.least, self.metrics, self.digits, self.score_histograms)


def default_bounds(release: ReleaseConfig) -> GateBounds:
    """What the site file alone allows, where no policy speaks: runs on one machine."""
    least = least_of(release, release.minimum_patients, release.minimum_metric_patients)
    return GateBounds(
        minimum_patients=least.training,
        minimum_metric_patients=least.metric,
        base=least.base,
        apart=least.apart,
        metrics=None,
        largest_norm=_LARGEST_NORM,
        largest_bytes=_LARGEST_BYTES,
        digits=None,
        pictures=release.data_is != "confidential",
        score_histograms=release.score_histograms,
        test_data=frozenset({"validation", "test"}) if release.data_is != "confidential" else frozenset(),
    )


def least_of(release: ReleaseConfig, training: int, metric: int) -> LeastPeople:
    """The least numbers of people for a site's data, where so many are asked for."""
    confidential = release.data_is == "confidential"
    base = release.count_base if confidential else 1
    return least_people(confidential=confidential, training=training, metric=metric, base=base)


def refusals(answer: Outgoing, plan: FederationPlan, specs: Sequence[ArraySpec], bounds: GateBounds) -> tuple[str, ...]:
    """Reasons why an answer must not leave; empty if it may.

    Looked at: the report's form, plan and site; the update's names, shapes, types, finiteness and norm, and that it
    is one of a round; all bytes; the number of training patients, and of those behind an update or a model of the
    site's own (see `concentration`); the metrics' names, possible values, decimal places and numbers of patients, of
    each model once, and that the choice of one follows from them; statistics, which must be those that the plan asks
    for; score histograms and pictures, which must be permitted. The reasons name arrays of the plan's own network at
    most, so they are safe to send.
    """
    form = _form(answer.report, plan)
    if form:  # nothing else in it can be relied on
        return tuple(form)
    if plan.validation is not None:
        return (*_update(answer, (), bounds), *_size(answer, bounds), *_validated(answer, plan, bounds))
    return (
        *_update(answer, specs, bounds),
        *_size(answer, bounds),
        *_people(answer.report, plan, bounds),
        *_metrics(answer.report, plan, bounds),
        *_choice(answer.report, plan),
        *objections(answer.report, plan, bounds.least, bounds.metrics),
        *not_as_told(answer.report, bounds.least, bounds.digits),
        *_pictures(answer.pictures, bounds),
    )


def update_norm(update: Mapping[str, Array]) -> float:
    """L2 norm of an update over all its floating arrays together, in float64; 0 without any.

    Counters (whole numbers) are new values, not differences, and do not count. No copy of an array is made. NaN or
    infinite if a value is, or if the squares overflow.
    """
    return math.sqrt(sum(_squares(array) for array in update.values() if _floating(array)))


def _floating(array: Array) -> bool:
    return bool(np.issubdtype(array.dtype, np.floating))


def _squares(array: Array) -> float:
    """Sum of squares in float64, in pieces of 64 Ki numbers."""
    pieces: Any = np.nditer(
        array,
        flags=["external_loop", "buffered", "zerosize_ok"],
        op_dtypes=[np.dtype(np.float64)],
        casting="unsafe",
        buffersize=2**16,
    )
    with np.errstate(over="ignore", invalid="ignore"):
        return float(sum(float(np.dot(piece, piece)) for piece in pieces))


def _form(report: SiteReport, plan: FederationPlan) -> list[str]:
    """Whether the report is the strict record, whose only free words are the names of site and metrics."""
    try:  # a record that was copied with changes was not checked again
        same = SiteReport.model_validate(report.model_dump(warnings="none")) == report
    except (ValidationError, TypeError, ValueError, RecursionError):
        same = False
    if not same:
        return ["a report of another form than was agreed"]
    reasons = []
    if report.plan_sha256 != plan.sha256() or report.site not in plan.sites:
        reasons.append("a report about another plan or site")
    if report.validated is not None and (plan.validation is None or report.validated.site != report.site):
        reasons.append("figures of frozen models that nobody asked for, or of another site")
    if any(metrics.withheld not in _WITHHELD for metrics in report.metrics):
        reasons.append("a reason for withholding that is not on the list")
    return reasons


def _update(answer: Outgoing, specs: Sequence[ArraySpec], bounds: GateBounds) -> list[str]:
    update = answer.update
    if not update:
        return []
    if answer.report.kind != "round":
        return ["an update that was not asked for"]
    expected = {spec.name: spec for spec in specs}
    if set(update) != set(expected):
        return ["the update holds other arrays than the plan's network"]
    reasons = []
    total = 0.0
    for name, spec in expected.items():
        array = update[name]
        if array.shape != spec.shape or array.dtype.name != spec.dtype:
            reasons.append(f"array '{name}' has another shape or type than the plan's network")
        elif _floating(array):
            squares = _squares(array)
            total += squares
            if not math.isfinite(squares) and not np.isfinite(array).all():
                reasons.append(f"array '{name}' is not finite")
    if not reasons and not math.sqrt(total) <= bounds.largest_norm:
        reasons.append("an update that is longer (L2 norm) than this site permits")
    return reasons


def _validated(answer: Outgoing, plan: FederationPlan, bounds: GateBounds) -> tuple[str, ...]:
    """What speaks against an answer to a validation: it holds its record and nothing else, and that is as it may be."""
    report, least = answer.report, bounds.least
    plain = SiteReport(
        kind=report.kind,
        site=report.site,
        plan_sha256=report.plan_sha256,
        round=report.round,
        patients=report.patients,
        quarantined=report.quarantined,
        cohort_sha256=report.cohort_sha256,
        seconds=report.seconds,
        prepare_seconds=report.prepare_seconds,
        validated=report.validated,
    )
    reasons = [] if plain == report and answer.pictures is None else ["more than a validation tells"]
    if (report.validated is not None) != (report.kind == "final"):
        reasons.append("figures of frozen models that were not asked for, or none where they were")
    if 0 < report.patients < announced(least.metric, least.base) or report.patients % least.base:
        reasons.append("a number of patients below the site's minimum, or an exact one")
    if report.quarantined % bounds.minimum_metric_patients:
        reasons.append("an exact count of cases that were set aside")
    if report.validated is not None:
        reasons += objections_to(report.validated, plan, bounds.cells)
    return tuple(reasons)


def _size(answer: Outgoing, bounds: GateBounds) -> list[str]:
    arrays = sum(array.nbytes for array in answer.update.values())
    pictures = 0 if answer.pictures is None else answer.pictures.nbytes
    size = arrays + pictures + len(answer.report.model_dump_json().encode())
    return ["more bytes than this site permits"] if size > bounds.largest_bytes else []


def _people(report: SiteReport, plan: FederationPlan, bounds: GateBounds) -> list[str]:
    reasons, base = [], bounds.base
    least, fewest = announced(bounds.minimum_metric_patients, base), announced(bounds.minimum_patients, base)
    private = plan.privacy.mechanism != "none"
    bare = {m.split for m in report.metrics if m.values or m.sums} - bounds.test_data
    if private and plan.privacy.metrics_noise is None and bare:
        reasons.append("figures without noise of patients whom this site does not declare as test data")
    if [(m.model, m.split) for m in report.metrics] != _asked(report, plan):
        reasons.append("a record of other splits or models than were asked for")
    if report.patients < fewest:
        reasons.append("fewer training patients than the site's minimum")
    elif private and (report.seen or report.train_loss is not None):
        reasons.append("a training loss, or a number of sampled patients, of a plan with differential privacy")
    elif report.kind == "round" and not private and report.seen < fewest:
        reasons.append("an update from steps that saw fewer patients than the site's minimum")
    elif report.kind == "round" and not private and _one_batch_of_few(plan, bounds):
        reasons.append("an update that one batch of fewer patients than the site's minimum can stand for")
    if report.kind == "final" and _of_few(report, plan, bounds):
        reasons.append("figures of a model that was trained on fewer patients than the site's minimum")
    if report.quarantined % bounds.minimum_metric_patients:
        reasons.append("an exact count of cases that were set aside")
    if any(0 < m.patients < least for m in report.metrics):
        reasons.append("a metric over fewer patients than the site's minimum")
    if any(0 < people < least for m in report.metrics for people in _defined(m)):
        reasons.append("a metric that is defined for fewer patients than the site's minimum")
    if any(small_class(m.plain(), least) for m in report.metrics):
        reasons.append("figures by class with fewer patients of a class than the site's minimum")
    if any((m.values or m.sums) and m.patients == 0 for m in report.metrics):
        reasons.append("a metric without patients")
    return reasons


def _one_batch_of_few(plan: FederationPlan, bounds: GateBounds) -> bool:
    """Of public and synthetic data, which hide nobody, the number of patients seen alone decides."""
    return bounds.base > 1 and plan.training.batch_size < bounds.minimum_patients and one_batch(plan, "update")


def _of_few(report: SiteReport, plan: FederationPlan, bounds: GateBounds) -> bool:
    """Whether there are figures of a site's own model, behind which there are few patients by the plan alone."""
    few = few_behind(plan, bounds.minimum_patients, confidential=bounds.base > 1)
    return any(m.model in few and (m.values or m.sums) for m in report.metrics)


def _asked(report: SiteReport, plan: FederationPlan) -> list[tuple[ModelName, SplitName]]:
    """Whose figures over which patients an answer holds, in their order."""
    models = plan.method.personal.candidates()
    if report.kind == "round":
        models = models[:1] if plan.stopping.validates(report.round) else ()
    return [(model, split) for model in models for split in _SPLITS.get(report.kind, ())]


def _choice(report: SiteReport, plan: FederationPlan) -> list[str]:
    """A choice follows from the figures beside it, so that it tells nothing more."""
    personal, told = plan.method.personal, [metrics.plain() for metrics in report.metrics]
    due = report.kind == "final" and personal.choose
    best = best_model(plan.task.name, personal.candidates(), told) if due else None
    return [] if report.chosen in (None, best) else ["a choice of a model that does not follow from the figures told"]


def _defined(metrics: MetricsRecord) -> list[float]:
    """For how many patients each mean is defined: the first of its sums (count, sum, sum of squares)."""
    counts = ("confusion", "scores", "concordance")
    return [sums[0] for name, sums in metrics.sums.items() if sums and base_name(name) not in counts]


def _metrics(report: SiteReport, plan: FederationPlan, bounds: GateBounds) -> list[str]:
    names = {name for m in report.metrics for name in (*m.values, *m.sums)}
    bases = {base_name(name) for name in names}
    reasons = []
    if not names <= allowed_metrics(plan) or (bounds.metrics is not None and not bases <= bounds.metrics):
        reasons.append("a metric that is not on the list")
    if "scores" in bases and not bounds.score_histograms:
        reasons.append("score histograms, which this site does not permit")
    if not all(_possible(m, plan) for m in report.metrics):
        reasons.append("figures that no patients can have")
    elif rounded(report, bounds.digits) != report:
        reasons.append("figures with more decimal places than this site permits")
    return reasons


def _possible(metrics: MetricsRecord, plan: FederationPlan) -> bool:
    """Whether sums have the agreed length and counts are whole numbers of these patients: they carry nothing else."""
    classes = len(plan.task.classes) if plan.task.name == "classification" else None
    try:
        check_metrics(metrics.plain(), classes=classes)
    except ReplyError:
        return False
    return True


def _pictures(pictures: NDArray[np.uint8] | None, bounds: GateBounds) -> list[str]:
    if pictures is None:
        return []
    if not bounds.pictures:
        return ["pictures, which this site does not permit"]
    small = pictures.dtype == np.uint8 and pictures.ndim == 4 and pictures.shape[-1] == 3
    return [] if small and len(pictures) <= _LARGEST_PICTURES else ["pictures of another form than was agreed"]

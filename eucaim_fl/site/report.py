"""What a site says beside its arrays: one strict record, the same on both ends of the wire."""

from __future__ import annotations

from collections.abc import Collection
from typing import Annotated, Literal

from pydantic import Field, NonNegativeInt

from eucaim_fl.config import SITE_NAME, Config
from eucaim_fl.plan import FederationPlan
from eucaim_fl.records import ModelName, SiteMetrics
from eucaim_fl.validation.labels import MACRO, label_name
from eucaim_fl.validation.record import ValidationRecord

__all__ = [
    "METRIC_NAMES",
    "MetricsRecord",
    "SiteReport",
    "StatisticsRecord",
    "allowed_metrics",
    "asked_statistics",
    "largest_sum",
    "unlisted",
]

_LABEL = "[A-Za-z][A-Za-z0-9_]{0,63}"
METRIC_NAMES = rf"^(dice|hd95_mm)(_[a-z0-9_-]{{1,63}})?$|^(auc|balanced_accuracy|brier)(_{_LABEL})?$|^c_index$"
_SUM_NAMES = (
    METRIC_NAMES + rf"|^confusion(_{_LABEL})?$|^scores_([0-9]{{1,2}}|{_LABEL})_(negative|positive)$|^concordance$"
)
largest_sum = 64 * 64


People = Annotated[int, Field(ge=0, le=10_000_000)]
Seconds = Annotated[float, Field(ge=0, le=1e8)]


class MetricsRecord(Config):
    """`records.SiteMetrics` as it travels."""

    split: Literal["train", "validation", "test"]
    patients: People
    values: dict[Annotated[str, Field(pattern=METRIC_NAMES)], float] = Field(default_factory=dict, max_length=100)
    sums: dict[
        Annotated[str, Field(pattern=_SUM_NAMES)], Annotated[tuple[float, ...], Field(max_length=largest_sum)]
    ] = Field(default_factory=dict, max_length=200)
    withheld: Annotated[str, Field(pattern=r"^[a-z_]{0,40}$")] = ""
    model: ModelName = "common"

    @classmethod
    def of(cls, metrics: SiteMetrics) -> MetricsRecord:
        """From the plain record."""
        return cls(
            split=metrics.split,
            patients=metrics.patients,
            values=dict(metrics.values),
            sums={name: tuple(values) for name, values in metrics.sums.items()},
            withheld=metrics.withheld,
            model=metrics.model,
        )

    def plain(self) -> SiteMetrics:
        """To the plain record."""
        return SiteMetrics(self.split, self.patients, dict(self.values), dict(self.sums), self.withheld, self.model)


def allowed_metrics(plan: FederationPlan) -> set[str]:
    """Every name that a metric of the plan's task can have; with a free ending, a name could carry anything."""
    task, sides = plan.task, ("negative", "positive")
    if task.name == "segmentation":
        return {kind + end for kind in ("dice", "hd95_mm") for end in ("", *(f"_{name}" for name in task.labels))}
    if task.name == "survival":
        return {"c_index", "concordance"}
    if task.name == "multilabel":
        own = ("auc", "balanced_accuracy", "brier", "confusion", *(f"scores_1_{side}" for side in sides))
        return {*MACRO, *(label_name(name, label) for name in own for label in task.targets)}
    scores = {f"scores_{k}_{side}" for k in range(len(task.classes)) for side in sides}
    return {"auc", "balanced_accuracy", "brier", "confusion", *scores}


def asked_statistics(plan: FederationPlan) -> set[str]:
    """Names, as a policy lists them, of the sums over training patients that a plan asks for before its first round."""
    asked = {"intensity_sums": plan.asked_channels(), "class_counts": plan.asked_classes()}
    return {name for name, number in asked.items() if number}


def unlisted(plan: FederationPlan, listed: Collection[str]) -> tuple[str, ...]:
    """What an asker is told where a plan asks for such sums, and the policy does not list them."""
    if asked_statistics(plan) <= set(listed):
        return ()
    return ("The site tells no sums over training patients, which data.standardise or training.balance asks for.",)


Moment = Annotated[float, Field(ge=-1e15, le=1e15)]


class StatisticsRecord(Config):
    """Sums over a site's training patients, asked for once, before the first round.

    patients: the site's training patients as they are told, by which it counts; 0, and all else empty, where nothing is
    told. means, squares: one value a channel of the network's input: Σ over so many patients of a patient's mean, and
    of its mean square. classes: patients of each class, in the plan's order; a class of too few is told as 0. Empty
    where the plan does not ask for it.
    """

    patients: People
    means: Annotated[tuple[Moment, ...], Field(max_length=16)] = ()
    squares: Annotated[tuple[Moment, ...], Field(max_length=16)] = ()
    classes: Annotated[tuple[People, ...], Field(max_length=64)] = ()


class SiteReport(Config):
    """Everything a site says in words and numbers; no free text, no identifiers.

    kind: hello (cohort opened, nothing computed), statistics (sums over training patients), round (evaluated and
    trained) or final (evaluated only). chosen: which model the site is going to use, where the plan lets it choose.
    validated: figures of frozen models, where the plan asks for these.
    patients: training patients, the site's weight. seen: those of them that the round's steps saw. quarantined: cases
    left out because of faults, rounded down to a multiple of the site's minimum for figures.
    cohort_sha256: fingerprint of the cohort's content, without identifiers. seconds: time spent at the site.
    """

    kind: Literal["hello", "statistics", "round", "final"]
    site: Annotated[str, Field(pattern=SITE_NAME)]
    plan_sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
    round: NonNegativeInt
    patients: People
    quarantined: People = 0
    cohort_sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
    train_loss: Annotated[float, Field(ge=-1e9, le=1e9)] | None = None
    steps: NonNegativeInt = 0
    seen: People = 0
    metrics: tuple[MetricsRecord, ...] = Field(default=(), max_length=8)
    statistics: StatisticsRecord | None = None
    chosen: ModelName | None = None
    seconds: Seconds = 0.0
    prepare_seconds: Seconds = 0.0
    shares_pictures: bool = False
    validated: ValidationRecord | None = None

    def tells_of_models(self) -> bool:
        """Whether there are figures of frozen models in it, of any group of patients."""
        return self.validated is not None and not all(scope.withheld for scope in self.validated.scopes)

    def told(self, plan: FederationPlan) -> dict[str, list[str]]:
        """Whose figures the report tells → their names, as the audit log has them; of all models together."""
        names: dict[str, set[str]] = {}
        for one in self.metrics:
            names.setdefault(one.split, set()).update({*one.values, *one.sums})
        if self.validated is not None:
            scopes = [one for one in self.validated.scopes if not one.withheld]
            kinds = {name for scope in scopes for model in scope.models for name, value in vars(model).items() if value}
            names["validation"] = {*kinds, *(f"scope {one.scope}" for one in scopes)}
        if self.statistics is not None and self.statistics.patients:
            names["train"] = asked_statistics(plan)
        return {use: sorted(given) for use, given in names.items()}

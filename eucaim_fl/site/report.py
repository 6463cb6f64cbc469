"""What a site says beside its arrays: one strict record, the same on both ends of the wire."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, NonNegativeInt

from eucaim_fl.config import SITE_NAME, Config
from eucaim_fl.plan import FederationPlan
from eucaim_fl.records import SiteMetrics

__all__ = ["METRIC_NAMES", "MetricsRecord", "SiteReport", "allowed_metrics", "largest_sum"]

METRIC_NAMES = r"^(dice|hd95_mm)(_[a-z0-9_-]{1,63})?$|^(auc|balanced_accuracy|brier)$"
_SUM_NAMES = METRIC_NAMES[:-1] + r"$|^confusion$|^scores_[0-9]{1,2}_(negative|positive)$"
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

    @classmethod
    def of(cls, metrics: SiteMetrics) -> MetricsRecord:
        """From the plain record."""
        return cls(
            split=metrics.split,
            patients=metrics.patients,
            values=dict(metrics.values),
            sums={name: tuple(values) for name, values in metrics.sums.items()},
            withheld=metrics.withheld,
        )

    def plain(self) -> SiteMetrics:
        """To the plain record."""
        return SiteMetrics(self.split, self.patients, dict(self.values), dict(self.sums), self.withheld)


def allowed_metrics(plan: FederationPlan) -> set[str]:
    """Every name that a metric of the plan's task can have; with a free ending, a name could carry anything."""
    if plan.task.name == "segmentation":
        return {kind + end for kind in ("dice", "hd95_mm") for end in ("", *(f"_{name}" for name in plan.task.labels))}
    scores = {f"scores_{k}_{side}" for k in range(len(plan.task.classes)) for side in ("negative", "positive")}
    return {"auc", "balanced_accuracy", "brier", "confusion", *scores}


class SiteReport(Config):
    """Everything a site says in words and numbers; no free text, no identifiers.

    kind: hello (cohort opened, nothing computed), round (evaluated and trained) or final (evaluated only).
    patients: training patients, the site's weight. seen: those of them that the round's steps saw. quarantined: cases
    left out because of faults, rounded down to a multiple of the site's minimum for figures.
    cohort_sha256: fingerprint of the cohort's content, without identifiers. seconds: time spent at the site.
    """

    kind: Literal["hello", "round", "final"]
    site: Annotated[str, Field(pattern=SITE_NAME)]
    plan_sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
    round: NonNegativeInt
    patients: People
    quarantined: People = 0
    cohort_sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
    train_loss: Annotated[float, Field(ge=-1e9, le=1e9)] | None = None
    steps: NonNegativeInt = 0
    seen: People = 0
    metrics: tuple[MetricsRecord, ...] = Field(default=(), max_length=3)
    seconds: Seconds = 0.0
    prepare_seconds: Seconds = 0.0
    shares_pictures: bool = False

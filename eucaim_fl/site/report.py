"""What a site says beside its arrays: one strict record, the same on both ends of the wire."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, NonNegativeFloat, NonNegativeInt

from eucaim_fl.config import SITE_NAME, Config
from eucaim_fl.records import SiteMetrics

__all__ = ["METRIC_NAMES", "MetricsRecord", "SiteReport", "largest_sum"]

METRIC_NAMES = r"^(dice|hd95_mm)(_[a-z0-9_-]{1,63})?$|^(auc|balanced_accuracy|brier)$"
_SUM_NAMES = METRIC_NAMES[:-1] + r"$|^confusion$|^scores_[0-9]{1,2}_(negative|positive)$"
largest_sum = 64 * 64


class MetricsRecord(Config):
    """`records.SiteMetrics` as it travels."""

    split: Literal["train", "validation", "test"]
    patients: NonNegativeInt
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


class SiteReport(Config):
    """Everything a site says in words and numbers; no free text, no identifiers.

    kind: hello (cohort opened, nothing computed), round (evaluated and trained) or final (evaluated only).
    patients: training patients, the site's weight. quarantined: cases left out because of faults.
    cohort_sha256: fingerprint of the cohort's content, without identifiers. seconds: time spent at the site.
    """

    kind: Literal["hello", "round", "final"]
    site: Annotated[str, Field(pattern=SITE_NAME)]
    plan_sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
    round: NonNegativeInt
    patients: NonNegativeInt
    quarantined: NonNegativeInt = 0
    cohort_sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
    train_loss: float | None = None
    steps: NonNegativeInt = 0
    metrics: tuple[MetricsRecord, ...] = Field(default=(), max_length=3)
    seconds: NonNegativeFloat = 0.0
    prepare_seconds: NonNegativeFloat = 0.0
    shares_pictures: bool = False

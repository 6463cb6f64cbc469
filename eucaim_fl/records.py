"""Values that pass between the parts: who answered, what they measured, what a round was."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

__all__ = [
    "CLASS_SHARES",
    "INPUT_MEAN",
    "INPUT_STD",
    "ArraySpec",
    "ModelName",
    "Participation",
    "Past",
    "RoundRecord",
    "SiteMetrics",
    "SplitName",
]

INPUT_MEAN, INPUT_STD, CLASS_SHARES = "input_mean", "input_std", "class_shares"
"""Names of the arrays that a model has from sums over training patients; see `eucaim_fl.models.conditioned`."""

SplitName = Literal["train", "validation", "test"]
ModelName = Literal["common", "personal", "local", "blended"]
"""Whose model was measured: the common one, the site's personal one, one that never saw the federation, or the mean of
the last with the first of these that the site has as its own."""


@dataclass(frozen=True)
class ArraySpec:
    """One array of the model as plan and network define it. trainable: False for buffers such as running means."""

    name: str
    shape: tuple[int, ...]
    dtype: str
    trainable: bool


@dataclass(frozen=True)
class SiteMetrics:
    """What one site measured on one split.

    patients: number of distinct patients. values: metric name → value of the site (mean over patients, or a rank
    statistic). sums: sufficient statistics that add up over sites, name → list of numbers (see `validation.metrics`).
    A site that withholds a split's metrics sends neither and says why in `withheld`. model: whose model it was.
    """

    split: SplitName
    patients: int
    values: Mapping[str, float] = field(default_factory=dict)
    sums: Mapping[str, tuple[float, ...]] = field(default_factory=dict)
    withheld: str = ""
    model: ModelName = "common"


@dataclass(frozen=True)
class Participation:
    """One site in one round.

    status: took_part; or why not: `error` (it said so), `lost` (its process ended), `deadline` (no answer in
    time), `rejected` (its reply did not fit the plan), `absent` (not connected).
    seconds: that the site worked, by its own clock; for one that failed, that it was waited for.
    code: error code, e.g. EFL302. reason: text that is safe outside the hospital. update_norm: L2, of the whole update.
    trained_norm: L2, of what is trained in it; buffers such as running variances can be much longer.
    """

    site: str
    status: Literal["took_part", "error", "lost", "deadline", "rejected", "absent"]
    code: str = ""
    reason: str = ""
    patients: int = 0
    seconds: float = 0.0
    bytes_up: int = 0
    bytes_down: int = 0
    update_norm: float = 0.0
    trained_norm: float = 0.0


@dataclass(frozen=True)
class Past:
    """What a coordinator tells a site of what was before an instruction, for what the site keeps between rounds.

    run: the run's own name, 32 hexadecimal digits; the same plan run again has another. counted: the last round in
    which the site's update moved the model, 0 if none did. Each is empty, or None, where it is not told.
    """

    run: str = ""
    counted: int | None = None


@dataclass(frozen=True)
class RoundRecord:
    """A completed round as the journal keeps it; `round` counts from 1, and the last exchange (evaluation only)
    is round `rounds + 1`.

    arriving_sha256: weights that were sent out. metrics: site → split → what it measured on those weights.
    train_loss: site → mean training loss of the round. aggregated_from: sites in canonical order. final: nobody
    trained; a run whose sites have spent their privacy budget, or whose model gets no better, ends before its last
    round. chosen: site → the model that it chose by its own validation patients; only of the last exchange. validated:
    site → what it tells of frozen models, as JSON values; of a validation only. signatures: site → its public key and
    its signature over that, as `key` and `signature`; none from sites without keys, which are processes of one machine.
    """

    round: int
    arriving_sha256: str
    weights_sha256: str
    participation: tuple[Participation, ...]
    metrics: Mapping[str, tuple[SiteMetrics, ...]]
    pooled: Mapping[str, Mapping[str, float]]
    train_loss: Mapping[str, float]
    aggregated_from: tuple[str, ...]
    seconds: float
    aggregation_seconds: float = 0.0
    attempts: int = 1
    final: bool = False
    chosen: Mapping[str, str] = field(default_factory=dict)
    validated: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    signatures: Mapping[str, Mapping[str, str]] = field(default_factory=dict)

    def is_final(self, rounds: int) -> bool:
        """Whether it is the last exchange of a plan of that many rounds, in which nobody trains."""
        return self.final or self.round > rounds

    def to_json(self) -> dict[str, Any]:
        """As plain JSON values."""
        return asdict(self)

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> RoundRecord:
        """The inverse of `to_json`."""
        return cls(
            **{
                **value,
                "participation": tuple(Participation(**p) for p in value["participation"]),
                "metrics": {
                    site: tuple(
                        SiteMetrics(**{**m, "sums": {k: tuple(v) for k, v in m["sums"].items()}}) for m in entries
                    )
                    for site, entries in value["metrics"].items()
                },
                "aggregated_from": tuple(value["aggregated_from"]),
            }
        )

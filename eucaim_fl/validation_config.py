"""A validation as a plan fixes it before anybody sees a result: which frozen models, asked for which figures."""

from __future__ import annotations

import math
from collections import Counter
from itertools import pairwise
from typing import Annotated, Literal, Self

from pydantic import Field, PositiveFloat, PositiveInt, model_validator

from eucaim_fl.config import DataConfig, ModelConfig
from eucaim_fl.parsing import SITE_NAME, Config

__all__ = [
    "LARGEST_MODEL_FILE",
    "NATIVE_FORMATS",
    "ComparisonConfig",
    "InferenceLimits",
    "ModelContract",
    "ModelFormat",
    "SubgroupBy",
    "SubgroupConfig",
    "ValidationConfig",
]

LARGEST_MODEL_FILE = 2 * 2**30
"""Bytes of a model's file as it travels."""

ModelFormat = Literal["network", "onnx", "torchscript", "exported"]
NATIVE_FORMATS: tuple[ModelFormat, ...] = ("torchscript", "exported")
"""Formats that are programs: a site's policy has a line of its own for them."""

SubgroupBy = Literal["sex", "age", "manufacturer", "field_strength_t", "slice_thickness_mm", "lesion_volume_ml"]
_IN_WORDS: tuple[SubgroupBy, ...] = ("sex", "manufacturer")
_Text = Annotated[str, Field(min_length=1, max_length=4000, pattern=r"^[^\x00-\x08\x0b-\x1f\x7f]*$")]
_Metric = Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]{0,63}$")]


class ModelContract(Config):
    """A frozen model, and what its maker says of it.

    name: as the report calls it. format: `network`, one of this software's networks with weights in safetensors;
    `onnx`; `torchscript` or `exported`, which are programs. sha256, size_bytes: of the file that travels. network:
    which network and with what arguments; of format `network` only. data: what its input is: channels, spacing, size,
    intensity; `split` is not looked at. patch_voxels: size of the images that it takes, first axis first, where that
    is not the whole grid: of a segmentation's windows. outputs: what it answers: `logits`, of which probabilities are
    made (softmax over the second axis; sigmoid for several labels), or `probabilities`; a log risk stays as it is.
    standardised: its arrays hold each channel's mean and deviation, which it takes out first; of the format network
    only. class_shares: its arrays hold the shares of the classes that it was trained on, and so many times their
    logarithm is added to the logits; None holds none; of the format network only. intended_use: what it is for, by its
    maker.
    trained_on: which data it was made from, by its maker; empty where nobody says.
    """

    name: Annotated[str, Field(pattern=SITE_NAME)]
    format: ModelFormat
    sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
    size_bytes: Annotated[int, Field(ge=1, le=LARGEST_MODEL_FILE)]
    network: ModelConfig | None = None
    data: DataConfig
    patch_voxels: tuple[Annotated[int, Field(ge=1, le=1024)], ...] | None = Field(None, min_length=2, max_length=3)
    outputs: Literal["logits", "probabilities"] = "logits"
    standardised: bool = False
    class_shares: Annotated[float, Field(ge=0, le=1)] | None = None
    intended_use: _Text
    trained_on: Annotated[str, Field(max_length=4000)] = ""

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if (self.network is None) == (self.format == "network"):
            raise ValueError("network: a model of the format network names one, and no other does")
        if self.format != "network" and (self.standardised or self.class_shares is not None):
            raise ValueError("standardised, class_shares: of the format network only")
        if self.network is not None and self.outputs != "logits":
            raise ValueError("outputs: a network of this software answers logits")
        if self.data.standardise != "none":
            raise ValueError("data.standardise: a frozen model brings its own; leave it at none")
        return self

    def image_voxels(self, spatial_dims: int) -> tuple[int, ...] | None:
        """Size of the images that it takes, first axis first; None where neither window nor grid is fixed."""
        if self.patch_voxels is not None:
            return self.patch_voxels
        size = tuple(n for n in self.data.size_voxels[:spatial_dims] if n is not None)
        return size if len(size) == spatial_dims else None


class SubgroupConfig(Config):
    """Figures for groups of patients.

    by: what patients are grouped by: sex as the cohort has it (F, M, O), age in years, manufacturer and field strength
    of the images' scanner, their slice thickness, the patient's lesions' volume together. edges: ascending numbers that
    cut it into groups `below e₁`, `e₁ to e₂`, …, `from eₙ`; the lower edge belongs to its group. Empty for words.
    """

    by: SubgroupBy
    edges: tuple[float, ...] = Field(default=(), max_length=16)

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if bool(self.edges) == (self.by in _IN_WORDS):
            raise ValueError(f"subgroups.{self.by}: numbers need edges, words have none")
        if not all(map(math.isfinite, self.edges)) or any(a >= b for a, b in pairwise(self.edges)):
            raise ValueError(f"subgroups.{self.by}: edges must ascend")
        if len({f"{one:g}" for one in self.edges}) < len(self.edges):
            raise ValueError(f"subgroups.{self.by}: edges must differ within six digits, by which groups are named")
        return self

    def groups(self) -> tuple[str, ...]:
        """Names of its groups in order; empty for words, whose groups are what patients have.

        >>> SubgroupConfig(by="age", edges=(50, 70)).groups()
        ('age<50', 'age=50-70', 'age>=70')
        """
        if not self.edges:
            return ()
        between = (f"{self.by}={low:g}-{high:g}" for low, high in pairwise(self.edges))
        return (f"{self.by}<{self.edges[0]:g}", *between, f"{self.by}>={self.edges[-1]:g}")


class ComparisonConfig(Config):
    """The first model against the second on the same patients.

    metric: `auc`, `accuracy`, `sensitivity` or `specificity` at the first threshold, or a mean over patients such as
    `dice`. margin: how much worse the first may be and still count as not inferior, in units of the metric; None only
    tells the difference.
    """

    metric: _Metric
    margin: PositiveFloat | None = None


class InferenceLimits(Config):
    """How much a model may take at a site; a site's own limits count too.

    image_seconds: for one image. memory_gb: of its process beyond what its libraries take (0.5 to 2 GB), weights
    included. threads: of its process.
    """

    image_seconds: Annotated[float, Field(gt=0, le=3600)] = 60.0
    memory_gb: Annotated[float, Field(gt=0, le=64)] = 4.0
    threads: Annotated[int, Field(ge=1, le=64)] = 1


class ValidationConfig(Config):
    """What is asked of frozen models.

    models: the one under test first; a second one to compare it with. patients: `all` of a cohort that can be used, or
    only those of its `test` split (for models that this federation has trained). thresholds: of the probability, at
    which decisions are counted. bins: of equal width, in which scores are counted beside. tolerance_mm: of the
    normalised surface Dice. lesion_overlap: intersection over union from which a lesion counts as found. subgroups,
    comparisons: what is told beside the whole. half_widths: metric → how narrow half of its 95 % interval should be,
    so that the report can say how many patients are missing.
    """

    models: tuple[ModelContract, ...] = Field(min_length=1, max_length=2)
    patients: Literal["all", "test"] = "all"
    thresholds: tuple[Annotated[float, Field(gt=0, lt=1)], ...] = Field(default=(0.5,), max_length=16)
    bins: Annotated[int, Field(ge=10, le=200)] = 100
    tolerance_mm: PositiveFloat = 2.0
    lesion_overlap: Annotated[float, Field(gt=0, le=1)] = 0.1
    subgroups: tuple[SubgroupConfig, ...] = Field(default=(), max_length=6)
    comparisons: tuple[ComparisonConfig, ...] = Field(default=(), max_length=8)
    half_widths: dict[_Metric, PositiveFloat] = Field(default_factory=dict, max_length=16)
    limits: InferenceLimits = InferenceLimits()
    bootstrap_samples: Annotated[PositiveInt, Field(le=20_000)] = 2000

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        for what, names in (
            ("models", [one.name for one in self.models]),
            ("subgroups", [one.by for one in self.subgroups]),
            ("comparisons", [one.metric for one in self.comparisons]),
        ):
            if doubled := [name for name, times in Counter(names).items() if times > 1]:
                raise ValueError(f"{what}: {doubled[0]} is named twice")
        if any(a >= b for a, b in pairwise(self.thresholds)):
            raise ValueError("thresholds must ascend")
        if len({f"{one:g}" for one in self.thresholds}) < len(self.thresholds):
            raise ValueError("thresholds must differ within six digits, by which they are named")
        if self.comparisons and len(self.models) < 2:
            raise ValueError("comparisons: there is no second model to compare with")
        return self

"""Which figures are asked of frozen models: what recipes and plans of a validation have in common."""

from __future__ import annotations

import math
from collections import Counter
from itertools import pairwise
from typing import Annotated, Literal, Self

from pydantic import Field, PositiveFloat, PositiveInt, model_validator

from eucaim_fl.parsing import Config

__all__ = [
    "ComparisonConfig",
    "FiguresConfig",
    "InferenceLimits",
    "SubgroupBy",
    "SubgroupConfig",
    "ValidationRecipe",
]

SubgroupBy = Literal["sex", "age", "manufacturer", "field_strength_t", "slice_thickness_mm", "lesion_volume_ml"]
_IN_WORDS: tuple[SubgroupBy, ...] = ("sex", "manufacturer")
_Metric = Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]{0,63}$")]


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


class FiguresConfig(Config):
    """What is asked of frozen models, whichever they are.

    thresholds: of the probability, at which decisions are counted. bins: of equal width, in which scores are counted
    beside. tolerance_mm: of the normalised surface Dice. lesion_overlap: intersection over union from which a lesion
    counts as found. subgroups, comparisons: what is told beside the whole. half_widths: metric → how narrow half of its
    95 % interval should be, so that the report can say how many patients are missing. limits: of each model at a site.
    bootstrap_samples: of the intervals that are resampled.
    """

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
    def _figures_differ(self) -> Self:
        for what, names in (
            ("subgroups", [one.by for one in self.subgroups]),
            ("comparisons", [one.metric for one in self.comparisons]),
        ):
            if doubled := [name for name, times in Counter[str](names).items() if times > 1]:
                raise ValueError(f"{what}: {doubled[0]} is named twice")
        if any(a >= b for a, b in pairwise(self.thresholds)):
            raise ValueError("thresholds must ascend")
        if len({f"{one:g}" for one in self.thresholds}) < len(self.thresholds):
            raise ValueError("thresholds must differ within six digits, by which they are named")
        return self


class ValidationRecipe(FiguresConfig):
    """The part of a recipe that `eucaim-fl validate` reads: which models, and what is asked of them.

    model: the one under test: a file, a run, a MONAI bundle or a model in MLflow (see `federation.freezing`); None
    validates nothing. against: a second one, to compare the first with. which: of the models that a run leaves.
    intended_use: what a run's model is for; others bring their own words. patients: `all` of a cohort that can be used,
    or only those of its `test` split; None takes `test` where a model was trained at one of the sites, else `all`.
    """

    model: str | None = Field(default=None, min_length=1, max_length=4096)
    against: str | None = Field(default=None, min_length=1, max_length=4096)
    which: Literal["best", "last"] = "best"
    intended_use: str = Field(default="", max_length=4000)
    patients: Literal["all", "test"] | None = None

    @model_validator(mode="after")
    def _has_a_first(self) -> Self:
        if self.against is not None and self.model is None:
            raise ValueError("against: there is no validation.model to compare with it")
        return self

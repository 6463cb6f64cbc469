"""A validation as a plan fixes it before anybody sees a result: which frozen models, asked for which figures."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from eucaim_fl.config import DataConfig, ModelConfig, TaskConfig
from eucaim_fl.figures_config import ComparisonConfig, FiguresConfig, InferenceLimits, SubgroupBy, SubgroupConfig
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
    "check_metrics",
]

LARGEST_MODEL_FILE = 2 * 2**30
"""Bytes of a model's file as it travels."""

ModelFormat = Literal["network", "onnx", "torchscript", "exported"]
NATIVE_FORMATS: tuple[ModelFormat, ...] = ("torchscript", "exported")

_OF_MASKS = frozenset({"dice", "hd95_mm", "surface_dice", "volume_difference_ml"})
_OF_SCORES = frozenset({"auc", "accuracy", "sensitivity", "specificity", "brier"})
_COMPARED: Mapping[str, frozenset[str]] = {
    "classification": _OF_SCORES,
    "multilabel": _OF_SCORES,
    "segmentation": _OF_MASKS,
    "survival": frozenset(),
}
_SCORED_BESIDE = frozenset(
    {
        *("average_precision", "balanced_accuracy", "calibration_error", "calibration_intercept", "calibration_slope"),
        *("f1", "lr_negative", "lr_positive", "macro_auc", "npv", "ppv", "prevalence"),
    }
)
_TOLD: Mapping[str, frozenset[str]] = {
    "classification": _OF_SCORES | _SCORED_BESIDE,
    "multilabel": _OF_SCORES | _SCORED_BESIDE,
    "segmentation": _OF_MASKS | {"lesion_sensitivity", "false_positives_per_patient"},
    "survival": frozenset({"c_index"}),
}
"""Metrics of a report by task, without thresholds and labels."""
_AT_THRESHOLDS = frozenset(
    ["accuracy", "balanced_accuracy", "f1", "lr_negative", "lr_positive", "npv", "ppv", "sensitivity", "specificity"]
)
"""Metrics that a label has at thresholds only, and so none that a plan could name alone."""
"""Formats that are programs: a site's policy has a line of its own for them."""

_Text = Annotated[str, Field(min_length=1, max_length=4000, pattern=r"^[^\x00-\x08\x0b-\x1f\x7f]*$")]


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


class ValidationConfig(FiguresConfig):
    """What is asked of frozen models, as a plan says it.

    models: the one under test first; a second one to compare it with. patients: `all` of a cohort that can be used, or
    only those of its `test` split (for models that this federation has trained).
    """

    models: tuple[ModelContract, ...] = Field(min_length=1, max_length=2)
    patients: Literal["all", "test"] = "all"

    @model_validator(mode="after")
    def _models_differ(self) -> Self:
        if doubled := [name for name, times in Counter(one.name for one in self.models).items() if times > 1]:
            raise ValueError(f"models: {doubled[0]} is named twice")
        if self.comparisons and len(self.models) < 2:
            raise ValueError("comparisons: there is no second model to compare with")
        return self


def check_metrics(asked: ValidationConfig, task: TaskConfig) -> None:
    """Whether a task has the figures that a plan compares models by, or wants to be narrow.

    Raises ValueError if it does not: in the report they would be missing only after patients' data were asked for it.
    """
    compared, told = _COMPARED[task.name], _TOLD[task.name]
    labels = task.labels if task.name == "segmentation" else task.targets if task.name == "multilabel" else ()
    own = {f"{metric}_{label}" for metric in told - _AT_THRESHOLDS for label in labels}
    means = {name for name in own if name.startswith((*_OF_MASKS, "brier"))}
    for what, names, known in (
        ("comparisons", [one.metric for one in asked.comparisons], compared | means if compared else compared),
        ("half_widths", list(asked.half_widths), told | own),
    ):
        for name in names:
            if name not in known:
                rest = f"choose of {', '.join(sorted(known - own))}" if known else "there is none for it"
                raise ValueError(f"validation.{what}: {task.name} has no figure {name} for it; {rest}")

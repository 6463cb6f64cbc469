"""What a network is asked for: the tasks, as recipes and plans have them."""

from __future__ import annotations

from typing import Annotated, Literal, Self, TypeAlias, get_args

from pydantic import Field, model_validator

from eucaim_fl.parsing import SITE_NAME, Config

__all__ = [
    "TASKS",
    "ClassificationConfig",
    "MultilabelConfig",
    "SegmentationConfig",
    "SurvivalConfig",
    "TaskConfig",
    "TaskName",
]

TaskName = Literal["segmentation", "classification", "multilabel", "survival"]
TASKS: tuple[str, ...] = get_args(TaskName)

_Column = Annotated[str, Field(pattern=r"^[A-Za-z][A-Za-z0-9_]{0,63}$")]
_RESERVED = "site_mean"
"""Ends names of figures that are means over sites (`auc_site_mean`), where those of targets stand in others."""


class SegmentationConfig(Config):
    """Every voxel gets one class: background, or one of `labels` (in this order 1, 2, …)."""

    name: Literal["segmentation"] = "segmentation"
    spatial_dims: Literal[2, 3] = 3
    labels: tuple[Annotated[str, Field(pattern=SITE_NAME)], ...] = Field(min_length=1, max_length=32)

    def columns(self) -> tuple[str, ...]:
        """Clinical columns that are to be predicted."""
        return ()

    def outputs(self) -> int:
        """Logits of each voxel: of background and labels."""
        return 1 + len(self.labels)


class ClassificationConfig(Config):
    """Every patient's image gets one of `classes`, read from the clinical column `target`.

    For two classes the second one is the positive class.
    """

    name: Literal["classification"] = "classification"
    spatial_dims: Literal[2, 3] = 2
    target: _Column
    classes: tuple[Annotated[str, Field(min_length=1, max_length=64)], ...] = Field(min_length=2, max_length=64)

    @model_validator(mode="after")
    def _distinct(self) -> Self:
        if len(set(self.classes)) != len(self.classes):
            raise ValueError("classes must differ from each other")
        return self

    def columns(self) -> tuple[str, ...]:
        """Clinical columns that are to be predicted."""
        return (self.target,)

    def outputs(self) -> int:
        """Logits of each image: one a class."""
        return len(self.classes)


class MultilabelConfig(Config):
    """Every patient's image gets a yes or no for each of `targets`, clinical columns of 0 and 1.

    The answers do not exclude each other. A patient without a value in a column counts neither way there; one without a
    value in any of them is set aside.
    """

    name: Literal["multilabel"] = "multilabel"
    spatial_dims: Literal[2, 3] = 2
    targets: tuple[_Column, ...] = Field(min_length=1, max_length=32)

    @model_validator(mode="after")
    def _distinct(self) -> Self:
        if len({target.casefold() for target in self.targets}) != len(self.targets):
            raise ValueError("targets must differ from each other")
        if any(target.startswith(_RESERVED) for target in self.targets):
            raise ValueError(f"targets: no name can begin with {_RESERVED}, which marks means over sites")
        return self

    def columns(self) -> tuple[str, ...]:
        """Clinical columns that are to be predicted."""
        return self.targets

    def outputs(self) -> int:
        """Logits of each image: one a target."""
        return len(self.targets)


class SurvivalConfig(Config):
    """Every patient's image gets a log risk: who has a higher one is expected to have the event earlier (Cox).

    time: clinical column with the time from baseline to the event, or to the last contact without it; a number from 0,
    in one unit at all sites, which its name had best say (`time_days`). event: clinical column that says whether the
    event was seen (1) or the patient was lost sight of before (0).
    """

    name: Literal["survival"] = "survival"
    spatial_dims: Literal[2, 3] = 3
    time: _Column
    event: _Column

    @model_validator(mode="after")
    def _two_columns(self) -> Self:
        if self.time.casefold() == self.event.casefold():
            raise ValueError("time and event are two columns")
        return self

    def columns(self) -> tuple[str, ...]:
        """Clinical columns that are to be predicted."""
        return (self.time, self.event)

    def outputs(self) -> int:
        """Logits of each image: the log risk alone."""
        return 1


TaskConfig: TypeAlias = Annotated[
    SegmentationConfig | ClassificationConfig | MultilabelConfig | SurvivalConfig, Field(discriminator="name")
]

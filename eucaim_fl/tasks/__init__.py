"""Tasks: what a network is asked for. Every module here has the same names, so the layout is the contract.

`loss(training)`, `training_example(case, plan, rng)`, `predict(network, case, plan)`,
`predictions(network, cases, plan)`, `preview(case, prediction)`.
"""

from __future__ import annotations

from types import ModuleType

from eucaim_fl.config import ClassificationConfig, SegmentationConfig
from eucaim_fl.tasks import classification, segmentation

__all__ = ["classification", "for_task", "segmentation"]


def for_task(task: SegmentationConfig | ClassificationConfig) -> ModuleType:
    """The module that knows how to train, predict and picture a task."""
    return segmentation if task.name == "segmentation" else classification

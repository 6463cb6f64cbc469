"""Tasks: what a network is asked for. Every module here has the same names, so the layout is the contract.

`loss(training)`, `training_example(case, plan, rng)`, `predict(network, case, plan)`,
`predictions(network, cases, plan)`, `preview(case, prediction, data)`. Training asks `eucaim_fl.training.balance` for
its loss; where the plan weighs classes, which is for classification alone, that one's `loss` gets their weights beside.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import ModuleType

from eucaim_fl.config import TaskConfig
from eucaim_fl.tasks import classification, multilabel, segmentation, survival

__all__ = ["classification", "for_task", "multilabel", "segmentation", "survival"]

_MODULES: Mapping[str, ModuleType] = {
    "segmentation": segmentation,
    "classification": classification,
    "multilabel": multilabel,
    "survival": survival,
}


def for_task(task: TaskConfig) -> ModuleType:
    """The module that knows how to train, predict and picture a task."""
    return _MODULES[task.name]

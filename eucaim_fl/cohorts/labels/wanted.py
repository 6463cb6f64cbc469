"""What a case's clinical values say of what a plan wants predicted."""

from __future__ import annotations

from eucaim_fl.cohorts.labels.classes import read_class
from eucaim_fl.cohorts.labels.presence import read_presence
from eucaim_fl.cohorts.labels.survival import read_survival
from eucaim_fl.cohorts.manifest import Case
from eucaim_fl.cohorts.targets import Wanted
from eucaim_fl.config import TaskConfig

__all__ = ["read_wanted"]


def read_wanted(case: Case, task: TaskConfig) -> Wanted:
    """The class, labels, or time and event of a case; nothing for a segmentation, whose truth is an image.

    Raises LabelError as `read_class`, `read_presence` and `read_survival` do.
    """
    if task.name == "classification":
        return Wanted.of_class(read_class(case, task))
    if task.name == "multilabel":
        return Wanted.of_labels(read_presence(case, task.targets))
    if task.name == "survival":
        found = read_survival(case, task.time, task.event)
        return Wanted.of_survival(found.time, event=found.event)
    return Wanted()

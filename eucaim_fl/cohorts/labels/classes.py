"""A patient's class from a clinical column."""

from __future__ import annotations

from eucaim_fl.cohorts.manifest import Case
from eucaim_fl.config import ClassificationConfig
from eucaim_fl.errors import LabelError

__all__ = ["read_class"]


def read_class(case: Case, task: ClassificationConfig) -> int:
    """Index in `task.classes` of the patient's value in the clinical column `task.target`, regardless of case.

    Raises LabelError if the value is missing, or none of the classes.
    """
    value = case.clinical.get(task.target, "").strip()
    if not value:
        raise LabelError(f"A patient has no value in the column '{task.target}'.", local_detail=case.patient)
    known = {name.strip().casefold(): index for index, name in enumerate(task.classes)}
    if value.casefold() not in known:
        raise LabelError(
            f"A patient's value in the column '{task.target}' is none of the plan's classes.",
            local_detail=case.patient,
        )
    return known[value.casefold()]

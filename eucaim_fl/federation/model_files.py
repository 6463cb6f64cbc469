"""Frozen models on their way to the sites: each file travels as one array of bytes, where weights do.

So the coordinator's seal covers it, it is spooled and sent in pieces like weights, and what arrives is compared with
the plan: by the border before anything else, and by the worker again before the model is opened.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
from flwr.app import ArrayRecord

from eucaim_fl.arrays import Arrays
from eucaim_fl.errors import PlanError, RecipeError
from eucaim_fl.federation.messages import from_record
from eucaim_fl.records import ArraySpec
from eucaim_fl.validation_config import ModelContract, ValidationConfig

__all__ = ["FOLDER", "arrived_files", "file_specs", "read_files"]

FOLDER = "frozen"
"""In the run folder: the models' files, by the names that the plan gives the models."""
_ARRAY = "file."


def file_specs(asked: ValidationConfig) -> tuple[ArraySpec, ...]:
    """The arrays that travel: one of bytes for each model, in the plan's order."""
    return tuple(ArraySpec(_ARRAY + one.name, (one.size_bytes,), "uint8", trainable=False) for one in asked.models)


def read_files(folder: Path, asked: ValidationConfig) -> Arrays:
    """The models' files in a run's folder, as arrays.

    Raises RecipeError if a file is missing, or is not the one that the plan names.
    """
    found: Arrays = {}
    for one in asked.models:
        place = folder / FOLDER / one.name
        try:
            content = place.read_bytes()
        except OSError as problem:
            raise RecipeError(
                f"The file of the model '{one.name}' can't be read.", local_detail=f"{place}: {problem.strerror}"
            ) from None
        if not _is(one, content):
            raise RecipeError(f"The file of the model '{one.name}' is not the one that the plan names.")
        found[_ARRAY + one.name] = np.frombuffer(content, dtype=np.uint8)
    return found


def arrived_files(record: ArrayRecord | None, asked: ValidationConfig) -> dict[str, memoryview]:
    """Name of each model → its file as it arrived at a site; nothing is copied.

    Raises PlanError if something is missing or foreign, or a file is not the one that the plan names.
    """
    if record is None:
        raise PlanError("The instruction holds no model.")
    arrays = from_record(record, file_specs(asked), PlanError)
    files = {one.name: memoryview(arrays[_ARRAY + one.name].data) for one in asked.models}
    for one in asked.models:
        if not _is(one, files[one.name]):
            raise PlanError(f"The file of the model '{one.name}' is not the one that the plan names.")
    return files


def _is(contract: ModelContract, content: bytes | memoryview) -> bool:
    return len(content) == contract.size_bytes and hashlib.sha256(content).hexdigest() == contract.sha256

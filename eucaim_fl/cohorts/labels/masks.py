"""Labels from NIfTI masks: value i is the i-th label."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from eucaim_fl.cohorts.labels.grids import LabelArray, Target, foreign_grid, resampled, turn_onto
from eucaim_fl.errors import LabelError

__all__ = ["read_mask"]


def read_mask(files: Sequence[Path], target: Target, labels: Sequence[str]) -> LabelArray:
    """The mask on the target's grid. Whole numbers may be stored as any type; probabilities are refused.

    Raises LabelError if there are several files, a value is not one of 0 to the number of labels, or the grid is not
    the image's and may not be resampled, or lies outside it; and what `nifti.read_array` raises.
    """
    from eucaim_fl.cohorts.nifti import read_array

    detail = str(files[0])
    if len(files) != 1:
        raise LabelError("An image has several NIfTI labels.", fix="Merge them into one.", local_detail=detail)
    values, affine = read_array(files[0])
    # Not an integer, negative, NaN or too large: NaN is the reason for asking what holds, not what fails.
    if not ((values >= 0) & (values <= len(labels)) & (values == np.rint(values))).all():
        raise LabelError(
            f"A label holds other values than 0 to {len(labels)}.",
            fix=f"Value 1 must be {labels[0]}, and so on in the plan's order.",
            local_detail=detail,
        )
    array = values.astype(np.uint8)
    turn = turn_onto(array.shape, affine, target.image)
    if turn is not None and turn.shape == target.image.shape and not any(turn.first):
        return np.ascontiguousarray(turn(array))
    if not target.resample:
        raise foreign_grid(detail)
    return resampled(array, affine, target.image, detail).astype(np.uint8)

"""Labels on the image's own grid: DICOM SEG and NIfTI masks for segmentation, clinical values for classification.

A label is moved onto the image's grid only by permuting and flipping axes; nothing is interpolated, so a label whose
voxels are not the image's voxels is an error.
Source: DICOM PS3.3 A.51 and C.8.20 (Segmentation); NIfTI-1 standard.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from eucaim_fl.cohorts.manifest import Case
from eucaim_fl.cohorts.volume import Affine, Volume, corners
from eucaim_fl.config import ClassificationConfig
from eucaim_fl.errors import LabelError, UnreadableFileError

__all__ = ["read_class", "read_label"]

LabelArray = npt.NDArray[np.uint8]

_TOLERANCE_VOXELS = 0.05


def _plain(name: str) -> str:
    """A segment's name as labels are written: lower case, anything but letters and digits as one underscore."""
    return re.sub(r"[^a-z0-9]+", "_", name.strip().casefold()).strip("_")


def _foreign_grid(detail: str) -> LabelError:
    return LabelError(
        "A label's grid is not its image's.",
        fix="Export the label again on the image's own voxels.",
        local_detail=detail,
    )


def _onto(array: npt.NDArray[Any], affine: Affine, image: Volume, detail: str) -> tuple[npt.NDArray[Any], list[int]]:
    """`array` with axes permuted and flipped to the image's, and the image index of its first voxel."""
    inverse = np.linalg.inv(image.affine)
    relative = inverse @ affine
    if not np.isfinite(relative).all() or np.abs(relative).max() > 1e9:
        raise _foreign_grid(detail)
    permutation = np.rint(relative[:3, :3])
    # A single slice has no neighbour to tell its direction by: let the image's remaining axis be its own.
    if array.shape[2] == 1:
        permutation[:, 2] = np.cross(permutation[:, 0], permutation[:, 1])
    if not np.array_equal(np.abs(permutation) @ np.abs(permutation).T, np.eye(3)):
        raise _foreign_grid(detail)
    places = corners(array.shape, relative)
    first = np.rint(relative[:3, 3])
    rounded = np.eye(4)
    rounded[:3, :3], rounded[:3, 3] = permutation, first
    if np.abs(places - corners(array.shape, rounded)).max() > _TOLERANCE_VOXELS:
        raise _foreign_grid(detail)
    axes = [int(np.flatnonzero(row)[0]) for row in permutation]
    turned = array.transpose(axes)
    for axis, row in enumerate(permutation):
        if row.sum() < 0:
            turned = np.flip(turned, axis)
    return turned, [int(n) for n in np.rint(places.min(axis=0))]


def _nifti_label(files: Sequence[Path], image: Volume, labels: Sequence[str]) -> LabelArray:
    from eucaim_fl.cohorts.nifti import read_array

    detail = str(files[0])
    if len(files) != 1:
        raise LabelError("An image has several NIfTI labels.", fix="Merge them into one.", local_detail=detail)
    values, affine = read_array(files[0])
    # Not an integer, negative, NaN or too large: all of these miss the list of known values.
    if not np.isin(values, np.arange(len(labels) + 1)).all():
        raise LabelError(
            f"A label holds other values than 0 to {len(labels)}.",
            fix=f"Value 1 must be {labels[0]}, and so on in the plan's order.",
            local_detail=detail,
        )
    turned, first = _onto(values, affine, image, detail)
    if turned.shape != image.array.shape or any(first):
        raise _foreign_grid(detail)
    return np.ascontiguousarray(turned, dtype=np.uint8)


def _frame_affine(header: Any, frame: int, detail: str) -> Affine:
    """Index (column, row, 0) of one frame → RAS+ mm."""
    from eucaim_fl.cohorts.dicom import functional_group

    groups = [
        functional_group(header, frame, f"{name}Sequence")
        for name in ("PlanePosition", "PlaneOrientation", "PixelMeasures")
    ]
    try:
        position = np.asarray(groups[0]["ImagePositionPatient"].value, dtype=np.float64)
        directions = np.asarray(groups[1]["ImageOrientationPatient"].value, dtype=np.float64).reshape(2, 3)
        row_mm, column_mm = (float(n) for n in groups[2]["PixelSpacing"].value)
    except (LookupError, TypeError, ValueError, AttributeError):
        raise LabelError("A DICOM segmentation states no position for its frames.", local_detail=detail) from None
    affine = np.eye(4)
    affine[:3, 0], affine[:3, 1] = directions[0] * column_mm, directions[1] * row_mm
    affine[:3, 2], affine[:3, 3] = np.cross(directions[0], directions[1]), position
    affine[:2] *= -1  # LPS+ → RAS+
    return affine


def _frame_masks(
    header: Any, frame: int, pixels: npt.NDArray[Any], values: dict[int, int]
) -> list[tuple[int, npt.NDArray[np.bool_]]]:
    """(label value, mask) of each wanted segment in one frame, both in the frame's own rows and columns."""
    from eucaim_fl.cohorts.dicom import functional_group

    if header.SegmentationType == "LABELMAP":
        return [(value, pixels == number) for number, value in values.items() if (pixels == number).any()]
    segment = functional_group(header, frame, "SegmentIdentificationSequence")
    number = -1 if segment is None else int(segment.ReferencedSegmentNumber)
    if number not in values:
        return []
    least = int(header.MaximumFractionalValue) / 2 if header.SegmentationType == "FRACTIONAL" else 1
    return [(values[number], pixels >= least)]


def _seg_label(files: Sequence[Path], image: Volume, labels: Sequence[str]) -> LabelArray:
    from eucaim_fl.cohorts.dicom import read_frames

    wanted = {_plain(name): value for value, name in enumerate(labels, start=1)}
    result = np.zeros(image.array.shape, dtype=np.uint8)
    seen: set[str] = set()
    for path in files:
        header, frames = read_frames(path)
        try:
            names = {int(s.SegmentNumber): _plain(str(s.SegmentLabel)) for s in header.SegmentSequence}
            values = {number: wanted[name] for number, name in names.items() if name in wanted}
            seen.update(names.values())
            found = [
                (index, *pair) for index, f in enumerate(frames) for pair in _frame_masks(header, index, f, values)
            ]
        except Exception as problem:  # noqa: BLE001 - attributes may be of any type and number
            raise UnreadableFileError(
                "A DICOM segmentation lacks what the standard requires.", local_detail=f"{path}: {problem}"
            ) from None
        for index, value, mask in found:
            turned, first = _onto(mask.T[:, :, None], _frame_affine(header, index, str(path)), image, str(path))
            place = tuple(slice(a, a + n) for a, n in zip(first, turned.shape, strict=True))
            target = result[place]
            partial = [n for n, whole in zip(turned.shape, image.shape, strict=True) if n != whole]
            if min(first) < 0 or target.shape != turned.shape or partial not in ([], [1]):
                raise _foreign_grid(str(path))
            np.maximum(target, turned.astype(np.uint8) * np.uint8(value), out=target)
    if not seen & set(wanted):
        raise LabelError(
            f"A DICOM segmentation has no segment called {' or '.join(labels)}.",
            local_detail=f"{files[0]}: segments {sorted(seen)}",
        )
    return result


def read_label(case: Case, image: Volume, labels: Sequence[str]) -> LabelArray:
    """The case's label on its image's grid: uint8, shape (I, J, K); 0 is background, i is `labels[i - 1]`.

    DICOM SEG: segments go by their SegmentLabel, regardless of case; segments with other names are left out; where
    two overlap, the later one in `labels` wins; fractional segments count from half of their maximum.
    NIfTI: value i is label i. Axes that are permuted or flipped against the image's are turned.
    Raises LabelError if there is no label, its grid is not the image's, a value is not known, or no segment is; and
    UnreadableFileError if a file is missing, truncated or corrupt.
    """
    if not case.label or case.label_format is None:
        raise LabelError("A patient's image has no label.", local_detail=f"{case.patient} {case.series}")
    read = _seg_label if case.label_format == "dicom_seg" else _nifti_label
    return read(case.label, image, labels)


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
            local_detail=f"{case.patient}: {value!r}",
        )
    return known[value.casefold()]

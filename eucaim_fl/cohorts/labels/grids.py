"""From a label's own grid to its image's: the same voxels turned, or other voxels by their stated position."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from eucaim_fl.cohorts.volume import LARGEST_VOLUME_BYTES, Affine, Volume, corners
from eucaim_fl.errors import LabelError

__all__ = ["LabelArray", "Target", "Turn", "check_size", "even_steps", "foreign_grid", "resampled", "turn_onto"]

LabelArray = npt.NDArray[np.uint8]

_TOLERANCE_VOXELS = 0.05
_SAME_PLANE_MM, _LARGEST_STEP_MM, _MOST_PLANES = 0.05, 1e3, 100_000
_TIE_VOXELS = 1e-6  # a centre half-way between two voxels goes to the same one everywhere, whatever the rounding


@dataclass(frozen=True, eq=False)
class Target:
    """What a label is brought to. frame_of_reference: the image's, "" where unknown.

    resample: a label on other voxels may be brought onto the image's.
    """

    image: Volume
    frame_of_reference: str = ""
    resample: bool = False

    def check_frame_of_reference(self, stated: str, detail: str) -> None:
        """Raises LabelError if the label states another frame of reference than the image: places can't be compared."""
        if stated and self.frame_of_reference and stated != self.frame_of_reference:
            raise LabelError(
                "A label was drawn in another frame of reference than its image's.",
                fix="Export it again on this image, or choose the image that it was drawn on.",
                local_detail=detail,
            )


@dataclass(frozen=True)
class Turn:
    """How an array's axes become the image's. axes: the array's axis along each image axis; flips: whether it runs
    against it; first: image index of the first voxel after turning; shape: after turning.
    """

    axes: tuple[int, ...]
    flips: tuple[bool, ...]
    first: tuple[int, ...]
    shape: tuple[int, ...]

    def __call__(self, array: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """A view of `array` with the image's axes."""
        turned = array.transpose(self.axes)
        return turned[tuple(slice(None, None, -1 if flip else 1) for flip in self.flips)]


def foreign_grid(detail: str) -> LabelError:
    """The error of a label whose voxels are not its image's."""
    return LabelError(
        "A label's grid is not its image's.",
        fix="Export the label again on the image's own voxels, or let the plan resample it (labels_on_other_grid).",
        local_detail=detail,
    )


def turn_onto(shape: Sequence[int], affine: Affine, image: Volume) -> Turn | None:
    """How a grid's axes are permuted and flipped to become the image's; None if its voxels are not the image's.

    shape, affine: of the grid, index → RAS+ mm. It may be a part of the image's grid, or reach beyond it.
    """
    relative = np.linalg.inv(image.affine) @ affine
    if not np.isfinite(relative).all() or np.abs(relative).max() > 1e9:
        return None
    permutation = np.rint(relative[:3, :3])
    # A single slice has no neighbour to tell its direction by: let the image's remaining axis be its own.
    if shape[2] == 1:
        permutation[:, 2] = np.cross(permutation[:, 0], permutation[:, 1])
    if not np.array_equal(np.abs(permutation) @ np.abs(permutation).T, np.eye(3)):
        return None
    places = corners(tuple(shape), relative)
    rounded = np.eye(4)
    rounded[:3, :3], rounded[:3, 3] = permutation, np.rint(relative[:3, 3])
    if np.abs(places - corners(tuple(shape), rounded)).max() > _TOLERANCE_VOXELS:
        return None
    axes = tuple(int(np.flatnonzero(row)[0]) for row in permutation)
    return Turn(
        axes,
        tuple(bool(row.sum() < 0) for row in permutation),
        tuple(int(n) for n in np.rint(places.min(axis=0))),
        tuple(shape[axis] for axis in axes),
    )


def even_steps(
    depths: npt.NDArray[np.float64], stated: float, otherwise: float, tolerance: float
) -> tuple[npt.NDArray[np.int64], float] | None:
    """Place of each plane in an even stack, from 0, and the stack's step; None if no step fits. Planes may be missing.

    depths: mm along the planes' normal, in any order. stated: the step in mm as the file states it, 0 if it doesn't;
    then the smallest gap between planes is tried, then `otherwise`. tolerance: how far a plane may lie from its place,
    in steps.

    >>> even_steps(np.array([10.0, 4.0, 6.0]), 0.0, 5.0, 0.1)
    (array([3, 0, 1]), 2.0)
    """
    offsets = depths - depths.min()
    order = np.argsort(offsets, kind="stable")
    every = np.diff(offsets[order])
    gaps = every[every > _SAME_PLANE_MM]
    smallest = float(gaps[gaps < 1.5 * gaps.min()].mean()) if gaps.size else 0.0
    places = np.zeros(len(depths), dtype=np.int64)
    for step in (stated, smallest, otherwise):
        if not _SAME_PLANE_MM < step < _LARGEST_STEP_MM or offsets.max() / step > _MOST_PLANES:
            continue
        places[order[1:]] = np.cumsum(np.rint(every / step))  # gap by gap: a small error of the step doesn't add up
        if places.any():
            step = float(offsets @ places / (places @ places))  # the best fit to all planes
        if np.abs(offsets / step - places).max() <= tolerance:
            return places, step
    return None


def _box(array: npt.NDArray[Any]) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]] | None:
    """First and last index of what is not zero along each axis; None if all is."""
    ends = []
    for axis in range(3):
        filled = np.flatnonzero(array.any(axis=tuple({0, 1, 2} - {axis})))
        if not filled.size:
            return None
        ends.append((filled[0], filled[-1]))
    low, high = np.array(ends, dtype=np.int64).T
    return low, high


def _all_outside(array: npt.NDArray[Any], to_image: Affine, shape: Sequence[int]) -> bool:
    """Whether every voxel that is not zero has its centre outside the image."""
    places = np.argwhere(array) @ to_image[:3, :3].T + to_image[:3, 3]
    return not bool(((places >= -0.5) & (places <= np.array(shape) - 0.5)).all(axis=1).any())


def resampled(
    array: npt.NDArray[Any], affine: Affine, image: Volume, detail: str, *, least: float | None = None
) -> npt.NDArray[Any]:
    """`array` on the image's grid by stated position; 0 where the image reaches beyond it.

    affine: of the array, index → RAS+ mm. Each voxel takes the value of the nearest one at its centre. least: the
    array is interpolated linearly instead, and the result is whether it reaches this value.
    What lies outside the image is cut off.
    Raises LabelError if every voxel that is not zero lies outside the image, or the array's position can't be used.
    """
    from scipy import ndimage

    if not np.isfinite(affine).all() or abs(np.linalg.det(affine[:3, :3])) < 1e-12:
        raise LabelError("A label's position in space is not given by an invertible matrix.", local_detail=detail)
    kind: type[Any] = np.bool_ if least is not None else array.dtype.type
    result: npt.NDArray[Any] = np.zeros(image.shape, dtype=kind)
    box = _box(array)
    if box is None:
        return result
    to_array = np.linalg.inv(affine) @ image.affine
    to_image = np.linalg.inv(image.affine) @ affine
    low, high = box
    margin = 0.5 if least is None else 1.0
    part = array[tuple(slice(a, b + 1) for a, b in zip(low, high, strict=True))]
    shifted = to_image.copy()
    shifted[:3, 3] = to_image[:3, :3] @ (low - margin) + to_image[:3, 3]
    reach = corners(tuple(int(n) for n in high - low + 2 * margin + 1), shifted)
    ends = np.clip(np.stack([np.floor(reach.min(axis=0)), np.ceil(reach.max(axis=0)) + 1]), -1e9, 1e9).astype(np.int64)
    start, stop = np.clip(ends, 0, image.shape)
    if (stop > start).all():
        offset = to_array[:3, :3] @ start + to_array[:3, 3] - low + (_TIE_VOXELS if least is None else 0.0)
        source: npt.NDArray[Any] = part if least is None else part.astype(np.float32)
        # grid-constant: half a voxel around the outer centres still belongs to the label.
        values: npt.NDArray[Any] = ndimage.affine_transform(
            source,
            to_array[:3, :3],
            offset,
            tuple(int(n) for n in stop - start),
            order=0 if least is None else 1,
            mode="grid-constant",
            cval=0.0,
        )
        place = tuple(slice(a, b) for a, b in zip(start, stop, strict=True))
        result[place] = values if least is None else values >= least
    if not result.any() and _all_outside(part, _moved(to_image, low), image.shape):
        raise LabelError("A label lies outside its image.", local_detail=detail)
    return result


def _moved(affine: Affine, index: npt.NDArray[np.int64]) -> Affine:
    """The affine of a part that starts at `index`."""
    moved = affine.copy()
    moved[:3, 3] = affine[:3, :3] @ index + affine[:3, 3]
    return moved


def check_size(shape: Sequence[int], bytes_each: int, detail: str) -> None:
    """Raises LabelError if an array would be larger than a volume may be; called before it is made."""
    if int(np.prod([int(n) for n in shape], dtype=object)) * bytes_each > LARGEST_VOLUME_BYTES:
        raise LabelError("A label's own grid is larger than a volume may be.", local_detail=detail)

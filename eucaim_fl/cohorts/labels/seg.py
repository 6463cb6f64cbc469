"""Labels from DICOM segmentations: which segments are wanted, and their frames on the image's grid."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from eucaim_fl.cohorts.labels.grids import (
    LabelArray,
    Target,
    check_size,
    even_steps,
    foreign_grid,
    resampled,
    turn_onto,
)
from eucaim_fl.cohorts.labels.nested import plain_name
from eucaim_fl.cohorts.labels.segments import Segmentation, read_segmentation
from eucaim_fl.cohorts.volume import Affine, Volume
from eucaim_fl.errors import LabelError

__all__ = ["read_seg"]

_TOLERANCE = 0.1  # of a step between frames, of a pixel within them

Wanted = dict[int, int]
"""Segment number → label value."""


def _chosen(objects: Sequence[Segmentation], labels: Sequence[str]) -> list[Wanted]:
    """The wanted segments of each file. A label that no SegmentLabel fits is looked for among the property types of
    segments whose own label was not asked for.
    """
    found: list[Wanted] = [{} for _ in objects]
    wanted = {plain_name(name): value for value, name in enumerate(labels, start=1)}
    for one, values in zip(objects, found, strict=True):
        values.update({s.number: wanted[s.label] for s in one.segments if s.label in wanted})
    missing = {name: value for name, value in wanted.items() if all(value not in v.values() for v in found)}
    for one, values in zip(objects, found, strict=True):
        by_type = {s.number: missing[s.meaning] for s in one.segments if s.meaning in missing}
        values.update({number: value for number, value in by_type.items() if number not in values})
    return found


def _values(one: Segmentation, wanted: Wanted) -> Iterator[tuple[int, LabelArray]]:
    """(frame, label values in its own rows and columns) of each frame that may hold a wanted segment."""
    frames = one.frames()
    if one.kind == "LABELMAP":
        table = np.zeros(1 << 16, dtype=np.uint8)
        for number, value in wanted.items():
            if 0 <= number < len(table):
                table[number] = value
        yield from ((index, table[frames[index]]) for index in range(len(one.planes)))
        return
    least = one.maximum / 2 if one.kind == "FRACTIONAL" else 1
    for index, plane in enumerate(one.planes):
        if plane.segment in wanted:
            yield index, (frames[index] >= least) * np.uint8(wanted[plane.segment])


def _has_thicker_slices(one: Segmentation, image: Volume) -> bool:
    """Whether the frames stand for thicker slices than the image's: they may all lie on slices of it, with gaps."""
    normal = one.planes[0].affine()[:3, 2]
    across = float(np.abs(normal @ image.affine[:3, :3]).max())
    gaps = np.diff(np.unique(np.rint([normal @ plane.affine()[:3, 3] / across for plane in one.planes])))
    if gaps.size and gaps.min() <= 1:
        return False
    step = one.planes[0].step
    return step > 1.5 * across if step > 0 else len(gaps) > 1


def _exact(one: Segmentation, values: Wanted, image: Volume) -> LabelArray | None:
    """The wanted segments where every frame lies on the image's voxels, else None."""
    if _has_thicker_slices(one, image):
        return None
    result = np.zeros(image.shape, dtype=np.uint8, order="F")  # frames are planes of the first two axes
    for index, frame in _values(one, values):
        turn = turn_onto((one.columns, one.rows, 1), one.planes[index].affine(), image)
        if turn is None or min(turn.first) < 0:
            return None
        target = result[tuple(slice(a, a + n) for a, n in zip(turn.first, turn.shape, strict=True))]
        partial = [n for n, whole in zip(turn.shape, image.shape, strict=True) if n != whole]
        if target.shape != turn.shape or partial not in ([], [1]):
            return None
        np.maximum(target, turn(frame.T[:, :, None]), out=target)
    return result


def _stack(one: Segmentation, image: Volume) -> tuple[npt.NDArray[np.int64], Affine]:
    """The place of each frame in the file's own grid, and that grid's affine. Frames may be missing.

    Raises LabelError if the frames are not parallel, equal and evenly spaced.
    """
    first = one.planes[0].affine()
    affines = np.array([plane.affine() for plane in one.planes])
    normal = first[:3, 2] / np.linalg.norm(first[:3, 2])
    offsets = affines[:, :3, 3] - first[:3, 3]
    depths = offsets @ normal
    sideways = np.linalg.norm(offsets - np.outer(depths, normal), axis=1).max()
    pixel = float(np.linalg.norm(first[:3, :2], axis=0).min())
    if np.abs(affines[:, :3, :3] - first[:3, :3]).max() < 1e-3 * pixel and sideways <= _TOLERANCE * pixel:
        across = float(np.abs(normal @ image.affine[:3, :3]).max())
        stated, thickness = one.planes[0].step, one.planes[0].thickness
        found = even_steps(depths, stated, thickness or across, _TOLERANCE)
        if found is not None:
            places, step = found
            affine = first.copy()
            affine[:3, 2], affine[:3, 3] = normal * step, first[:3, 3] + normal * depths.min()
            return places, affine
    raise LabelError(
        "The frames of a DICOM segmentation are not parallel and evenly spaced.", local_detail=str(one.path)
    )


def _resampled(one: Segmentation, values: Wanted, image: Volume) -> LabelArray:
    """The wanted segments on the image's grid by stated position."""
    places, affine = _stack(one, image)
    shape = (one.columns, one.rows, int(places.max()) + 1)
    check_size(shape, 1, str(one.path))
    if one.kind != "FRACTIONAL":
        own = np.zeros(shape, dtype=np.uint8, order="F")
        for index, frame in _values(one, values):
            target = own[:, :, places[index]]
            np.maximum(target, frame.T, out=target)
        return resampled(own, affine, image, str(one.path)).astype(np.uint8, copy=False)
    result = np.zeros(image.shape, dtype=np.uint8)
    frames = one.frames()
    for number, value in values.items():
        shares: npt.NDArray[Any] = np.zeros(shape, dtype=np.uint8, order="F")
        for index, plane in enumerate(one.planes):
            if plane.segment == number:
                target = shares[:, :, places[index]]
                np.maximum(target, np.minimum(frames[index].T, 255).astype(np.uint8), out=target)
        mask = resampled(shares, affine, image, str(one.path), least=one.maximum / 2)
        np.maximum(result, np.uint8(value), out=result, where=mask)
    return result


def read_seg(files: Sequence[Path], target: Target, labels: Sequence[str]) -> LabelArray:
    """The named segments of one or more DICOM segmentations on the target's grid; 0 elsewhere.

    Raises LabelError if no segment has a wanted name, a file's grid is not the image's and may not be resampled, its
    frame of reference is another one, or its frames have no usable position; and UnreadableFileError if a file is
    missing, truncated, corrupt or no segmentation.
    """
    objects = [read_segmentation(path) for path in files]
    chosen = _chosen(objects, labels)
    if not any(chosen):
        names = sorted({s.label for one in objects for s in one.segments})
        raise LabelError(
            f"A DICOM segmentation has no segment called {' or '.join(labels)}.",
            local_detail=f"{files[0]}: segments {names}",
        )
    result = np.zeros(target.image.shape, dtype=np.uint8, order="F")
    for one, values in zip(objects, chosen, strict=True):
        if not values:
            continue
        target.check_frame_of_reference(one.frame_of_reference, str(one.path))
        label = _exact(one, values, target.image)
        if label is None and not target.resample:
            raise foreign_grid(str(one.path))
        np.maximum(result, _resampled(one, values, target.image) if label is None else label, out=result)
    return result

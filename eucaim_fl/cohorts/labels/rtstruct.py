"""Labels from radiotherapy structure sets: closed contours to voxels whose centres lie inside.

Contours that were drawn on the image's slices are filled there. Others, where the plan allows it, are filled plane by
plane on a grid of their own and brought to the image by position, each plane reaching half-way to its neighbours.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from eucaim_fl.cohorts.labels.contours import Structure, read_contours
from eucaim_fl.cohorts.labels.grids import LabelArray, Target, check_size, even_steps, foreign_grid, resampled
from eucaim_fl.cohorts.labels.nested import plain_name
from eucaim_fl.cohorts.labels.polygons import fill_polygons
from eucaim_fl.cohorts.volume import Affine, Volume, corners
from eucaim_fl.errors import LabelError

__all__ = ["read_structures"]

_OFF_SLICE = 0.25  # of the distance between slices; stored coordinates are often rounded to 0.1 mm
_OFF_PLACE = 0.2  # of the distance between contours' planes
_BEYOND_VOXELS = 1.0  # contours of a whole body run along the outer faces
_FARTHEST_VOXELS = 1e6

Points = npt.NDArray[np.float64]


def _moved(points: Points, affine: npt.NDArray[Any]) -> Points:
    moved: Points = points @ affine[:3, :3].T + affine[:3, 3]
    return moved


def _fill(polygons: Sequence[Points], places: npt.NDArray[np.int64], target: npt.NDArray[np.bool_]) -> None:
    """Fill polygons (row, column) into the planes `target[…, place]`, shape (rows, columns, planes)."""
    planes: dict[int, list[Points]] = {}
    for polygon, place in zip(polygons, places.tolist(), strict=True):
        planes.setdefault(place, []).append(polygon)
    for place, chosen in planes.items():
        target[:, :, place] = fill_polygons(chosen, (target.shape[0], target.shape[1]))


def _on_slices(contours: Sequence[Points], image: Volume, detail: str) -> npt.NDArray[np.bool_] | None:
    """The structure where every contour lies on a slice of the image, else None.

    Raises LabelError if a contour lies wholly or partly outside the image.
    """
    indices = [_moved(points, np.linalg.inv(image.affine)) for points in contours]
    spread = np.array([np.ptp(points, axis=0) for points in indices]).max(axis=0)
    axis = int(np.argmin(spread))
    levels = np.array([points[:, axis].mean() for points in indices])
    rest = [n for n in range(3) if n != axis]
    if spread[axis] > 2 * _OFF_SLICE or np.abs(levels).max() > _FARTHEST_VOXELS:
        return None
    places = np.rint(levels).astype(np.int64)
    gaps = np.diff(np.unique(places))
    # Drawn on thicker slices, whose planes happen to meet every n-th slice of the image: what is between is missing.
    if np.abs(levels - places).max() > _OFF_SLICE or (len(gaps) > 1 and gaps.min() > 1):
        return None
    low = np.array([points.min(axis=0) for points in indices]).min(axis=0)
    high = np.array([points.max(axis=0) for points in indices]).max(axis=0)
    last = np.array(image.shape) - 1
    if (high < -0.5).any() or (low > last + 0.5).any():
        raise LabelError("A label lies outside its image.", local_detail=detail)
    if (
        low.min() < -_BEYOND_VOXELS
        or (high > last + _BEYOND_VOXELS).any()
        or places.min() < 0
        or places.max() > last[axis]
    ):
        return None
    mask = np.zeros(image.shape, dtype=np.bool_, order="F")
    _fill([points[:, rest] for points in indices], places, mask.transpose(*rest, axis))
    return mask


def _frame(contours: Sequence[Points], image: Volume, detail: str) -> Affine:
    """Directions of a grid whose planes are the contours': the third axis is their normal; RAS+ mm, 1 mm steps.

    The first axis follows the image's, and the origin is its origin, so that parallel planes share its voxel centres.
    """
    largest = max(contours, key=lambda points: float(np.ptp(points, axis=0).max()))
    centred = largest - largest.mean(axis=0)
    normal = np.cross(centred, np.roll(centred, -1, axis=0)).sum(axis=0)  # Newell: twice the area, as a vector
    if np.linalg.norm(normal) < 1e-6 * float(np.ptp(centred, axis=0).max()) ** 2:
        raise LabelError("A structure's contours have no area.", local_detail=detail)
    normal /= np.linalg.norm(normal)
    axes = image.affine[:3, :3] / np.linalg.norm(image.affine[:3, :3], axis=0)
    first = axes[:, int(np.argmin(np.abs(normal @ axes)))]
    first = first - normal * (normal @ first)
    first /= np.linalg.norm(first)
    frame = np.eye(4)
    frame[:3, :3] = np.stack([first, np.cross(normal, first), normal], axis=1)
    frame[:3, 3] = image.affine[:3, 3]
    return frame


def _resampled(contours: Sequence[Points], image: Volume, detail: str) -> npt.NDArray[np.bool_]:
    """The structure by stated position. In-plane, centres are off by a quarter of the smallest voxel side at most.

    Raises LabelError if its planes are not parallel and evenly spaced, or it lies outside the image.
    """
    frame = _frame(contours, image, detail)
    placed = [_moved(points, np.linalg.inv(frame)) for points in contours]
    depths = np.array([points[:, 2].mean() for points in placed])
    across = float(np.abs(frame[:3, 2] @ image.affine[:3, :3]).max())
    found = even_steps(depths, 0.0, across, _OFF_PLACE)
    if found is None or max(float(np.ptp(points[:, 2])) for points in placed) > 2 * _OFF_SLICE * found[1]:
        raise LabelError("A structure's contours do not lie in parallel, evenly spaced planes.", local_detail=detail)
    places, step = found
    fine = min(image.spacing_mm) / 2
    reach = _moved(corners(image.shape, image.affine), np.linalg.inv(frame))[:, :2] / fine
    box = np.concatenate([points[:, :2] for points in placed]) / fine
    margin = 2 * max(image.spacing_mm) / fine
    low = np.floor(np.maximum(box.min(axis=0), reach.min(axis=0) - margin))
    high = np.ceil(np.minimum(box.max(axis=0), reach.max(axis=0) + margin))
    if (high < low).any():
        raise LabelError("A label lies outside its image.", local_detail=detail)
    rows, columns = (int(n) + 1 for n in high - low)
    check_size((rows, columns, int(places.max()) + 1), 1, detail)
    own = np.zeros((rows, columns, int(places.max()) + 1), dtype=np.bool_, order="F")
    _fill([points[:, :2] / fine - low for points in placed], places, own)
    affine = frame.copy()
    affine[:3, :3] = frame[:3, :3] * (fine, fine, step)
    affine[:3, 3] = _moved(np.array([*(low * fine), depths.min()]), frame)
    mask: npt.NDArray[np.bool_] = resampled(own.view(np.uint8), affine, image, detail).astype(np.bool_)
    return mask


def _mask(structure: Structure, target: Target, detail: str) -> npt.NDArray[np.bool_]:
    target.check_frame_of_reference(structure.frame_of_reference, detail)
    if not structure.contours:
        if structure.ignored:
            raise LabelError(
                "A structure has no closed contour, only points or open lines.",
                fix="Export it as closed planar contours.",
                local_detail=detail,
            )
        return np.zeros(target.image.shape, dtype=np.bool_)
    mask = _on_slices(structure.contours, target.image, detail)
    if mask is None and not target.resample:
        raise foreign_grid(detail)
    return _resampled(structure.contours, target.image, detail) if mask is None else mask


def read_structures(files: Sequence[Path], target: Target, labels: Sequence[str]) -> LabelArray:
    """The named structures of one or more structure sets on the target's grid; 0 elsewhere.

    A voxel belongs to a structure if its centre lies inside an odd number of the closed contours of its slice, or on
    one of them. Points and open lines beside closed contours are left out.
    Raises LabelError if no structure has a wanted name, one has points or open lines only, contours lie between the
    image's slices or reach beyond it (without resampling), lie outside it, are drawn in another frame of reference or
    are too many; and UnreadableFileError if a file is missing, truncated, corrupt or no structure set.
    """
    wanted = {plain_name(name): value for value, name in enumerate(labels, start=1)}
    result = np.zeros(target.image.shape, dtype=np.uint8, order="F")  # slices are planes of the first two axes
    seen: set[str] = set()
    for path in files:
        structures, names = read_contours(path, wanted)
        seen.update(names)
        for structure in structures:
            mask = _mask(structure, target, str(path))
            np.maximum(result, np.uint8(wanted[structure.name]), out=result, where=mask)
    if not seen & set(wanted):
        raise LabelError(
            f"A structure set has no structure called {' or '.join(labels)}.",
            local_detail=f"{files[0]}: structures {sorted(seen)}",
        )
    return result

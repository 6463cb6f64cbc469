"""One stored plane of an image as its header describes it, and where a stack of planes lies in the patient.

Source: DICOM PS3.3 C.7.6.2.1.1 (position and orientation of an image plane).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from eucaim_fl.cohorts.stacks import SAME_PLACE_MM
from eucaim_fl.cohorts.volume import Affine
from eucaim_fl.errors import SeriesError

__all__ = ["Plane", "place_planes"]

_CROSS_SECTIONS = frozenset({"CT", "MR", "PT"})
_STEEPEST = 1.0
"""Sideways over along the normal, from slice to slice; a gantry tilts by 30 degrees (0.58) at most."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Plane:
    """One plane: a file of one frame, or one frame of a file. It fits `stacks.Placed`; units as there.

    frame: its number in the file, from 0. thickness_mm: distance to the next slice where there is none to tell.
    slope, intercept: stored value x slope + intercept is the modality's unit; for PT before SUV. inverted: larger
    stored values are darker. has_lut: a modality LUT takes the place of slope and intercept. mosaic: it holds many
    slices side by side.
    """

    rows: int
    columns: int
    frame: int = 0
    position: tuple[float, ...] | None = None
    orientation: tuple[float, ...] | None = None
    spacing: tuple[float, ...] | None = None
    thickness_mm: float = 1.0
    slope: float = 1.0
    intercept: float = 0.0
    image_type: tuple[str, ...] = ()
    acquisition: int | None = None
    temporal_position: int | None = None
    echo_time_ms: float | None = None
    b_value: float | None = None
    sop_uid: str = ""
    instance_number: int | None = None
    series_uid: str = ""
    modality: str = ""
    inverted: bool = False
    has_lut: bool = False
    mosaic: bool = False

    def check(self) -> None:
        """Raises ValueError if a number is not finite, of no use, or its attribute has the wrong number of values."""
        given = [self.slope, self.intercept, self.thickness_mm]
        for values, count in ((self.position, 3), (self.orientation, 6), (self.spacing, 2)):
            if values is not None:
                if len(values) != count:
                    raise ValueError("position, orientation or spacing has the wrong number of values")
                given += values
        if not np.isfinite(given).all():
            raise ValueError("a number is not finite")
        if self.slope == 0 or (self.spacing is not None and min(self.spacing) <= 0):
            raise ValueError("rescale slope or pixel spacing is zero or negative")


_Vector = npt.NDArray[np.float64]


def _directions(planes: Sequence[Plane]) -> tuple[_Vector, _Vector, _Vector]:
    """Unit vectors along the rows, down the columns, and along the normal."""
    orientations = np.array([p.orientation for p in planes], dtype=np.float64)
    if np.abs(orientations - orientations[0]).max() > 1e-3:
        raise SeriesError("The slices of a series have different orientations.")
    row, column = orientations[0][:3], orientations[0][3:]
    if np.abs([row @ row - 1, column @ column - 1, row @ column]).max() > 1e-2:
        raise SeriesError("A slice's orientation is not given by two perpendicular unit vectors.")
    normal = np.cross(row, column)
    return row / np.linalg.norm(row), column / np.linalg.norm(column), normal / np.linalg.norm(normal)


def _step(positions: _Vector, normal: _Vector, pixel_mm: float) -> _Vector:
    """The way from each slice to the next, of positions in order; the same for all, or the slices are refused."""
    depth = (positions - positions[0]) @ normal
    gaps = np.diff(depth)
    if gaps.min() < SAME_PLACE_MM:
        raise SeriesError("Several slices of a series lie at the same place.")
    step: _Vector = (positions[-1] - positions[0]) / (len(positions) - 1)
    grid_mm = float(step @ normal)
    uneven = np.abs(depth - grid_mm * np.arange(len(positions))).max()
    if uneven > 0.1 * grid_mm or gaps.max() - gaps.min() > 0.2 * grid_mm:
        raise SeriesError(
            "The slices of a series are not evenly spaced; at least one is missing.",
            local_detail=f"gaps from {gaps.min():.3f} to {gaps.max():.3f} mm",
        )
    drift = np.linalg.norm(positions - positions[0] - np.outer(depth / grid_mm, step), axis=1).max()
    if drift > max(0.1 * pixel_mm, 0.05):
        raise SeriesError("The slices of a series are shifted against each other by no constant step.")
    if np.linalg.norm(step - grid_mm * normal) > _STEEPEST * grid_mm:
        raise SeriesError("The slices of a series are sheared by more than any gantry tilts.")
    return step


def place_planes(planes: Sequence[Plane]) -> tuple[list[int], Affine]:
    """Order of the planes along their normal, and voxel index (column, row, slice, 1) → RAS+ mm of the stack.

    The affine is sheared where slices are shifted by a constant step, as with a tilted gantry. A single plane without
    position lies as an axial slice does on a screen: I to the left, J to posterior, 1 mm where no spacing is stated.
    Raises SeriesError if planes differ in orientation or pixel spacing, some have no position (of CT, MR and PT even a
    single one), lie twice at one place, are unevenly spaced, shifted against each other, or sheared by more than 45
    degrees.
    """
    first = planes[0]
    placed = [p.position is not None and p.orientation is not None for p in planes]
    if any(p.spacing is None for p, is_placed in zip(planes, placed, strict=True) if is_placed):
        raise SeriesError("A slice states its position, but no pixel spacing.")
    if not all(placed) and (any(placed) or len(planes) > 1 or first.modality in _CROSS_SECTIONS):
        raise SeriesError("Some slices of a series state no position or orientation.")
    spacings = np.array([p.spacing or (1.0, 1.0) for p in planes], dtype=np.float64)
    if np.abs(spacings - spacings[0]).max() > 1e-3 * spacings[0].min():
        raise SeriesError("The slices of a series have two or more pixel spacings.")
    affine = np.eye(4)
    if placed[0]:
        row, column, normal = _directions(planes)
        positions = np.array([p.position for p in planes], dtype=np.float64)
        order = [int(n) for n in np.argsort(positions @ normal, kind="stable")]
        start = positions[order[0]]
        many = len(planes) > 1
        step = _step(positions[order], normal, float(spacings[0].min())) if many else normal * first.thickness_mm
    else:
        order, start, step = [0], np.zeros(3), np.array([0.0, 0.0, 1.0])
        row, column = np.array([1.0, 0.0, 0.0]), np.array([0.0, 1.0, 0.0])
    affine[:3, 0], affine[:3, 1] = row * spacings[0][1], column * spacings[0][0]
    affine[:3, 2], affine[:3, 3] = step, start
    affine[:2] *= -1  # LPS+ → RAS+
    return order, affine

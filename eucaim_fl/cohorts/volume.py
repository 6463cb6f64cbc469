"""An image with its place in the patient, and whether two images lie on the same grid."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from eucaim_fl.errors import SeriesError

__all__ = ["LARGEST_VOLUME_BYTES", "LUMINANCE", "Affine", "Volume", "corners", "is_sheared", "same_grid", "straighten"]

Affine = npt.NDArray[np.float64]

LARGEST_VOLUME_BYTES = 2**31
"""No file may make a site allocate more than this for one volume; claims are checked before decoding."""

LUMINANCE = (0.299, 0.587, 0.114)
"""Weights of red, green and blue where one value is asked for. Source: ITU-R BT.601."""


@dataclass(frozen=True, eq=False)
class Volume:
    """A single-channel image and where it lies.

    array: float32, shape (I, J, K). affine: float64, shape (4, 4), voxel index (i, j, k, 1) → millimetres in RAS+:
    x grows to the patient's right, y to anterior, z to superior, as in NIfTI. DICOM's own LPS+ is converted where
    it is read. Axes need not be perpendicular: slices of a CT with a tilted gantry follow each other along the table,
    not along their normal (`is_sheared`, `straighten`).
    Raises SeriesError if the shape isn't three-dimensional, or the affine is no invertible (4, 4) matrix.
    """

    array: npt.NDArray[np.float32]
    affine: Affine

    def __post_init__(self) -> None:
        if self.array.ndim != 3 or 0 in self.array.shape:
            raise SeriesError(f"An image with shape {self.array.shape} is no volume; it needs three axes.")
        if (
            self.affine.shape != (4, 4)
            or not np.isfinite(self.affine).all()
            or abs(np.linalg.det(self.affine[:3, :3])) < 1e-12
        ):
            raise SeriesError("The image's position in space is not given by an invertible matrix.")

    @property
    def shape(self) -> tuple[int, int, int]:
        """Number of voxels along I, J and K."""
        i, j, k = self.array.shape
        return i, j, k

    @property
    def spacing_mm(self) -> tuple[float, float, float]:
        """Distance in mm between neighbouring voxels along I, J and K."""
        i, j, k = (float(n) for n in np.linalg.norm(self.affine[:3, :3], axis=0))
        return i, j, k


def corners(shape: tuple[int, ...], affine: Affine) -> npt.NDArray[Any]:
    """Positions in mm of the eight corner voxels' centres, shape (8, 3). Equal corners mean equal grids."""
    ends = np.array([[i, j, k, 1.0] for i in (0, 1) for j in (0, 1) for k in (0, 1)])
    ends[:, :3] *= np.array(shape[:3]) - 1
    positions: npt.NDArray[Any] = (ends @ affine.T)[:, :3]
    return positions


def same_grid(a: Volume, b: Volume, tolerance_mm: float = 1e-3) -> bool:
    """Whether voxel (i, j, k) of both images is the same place, to within `tolerance_mm` everywhere."""
    if a.array.shape != b.array.shape:
        return False
    # Corners alone say nothing about the direction of an axis with one voxel.
    if np.abs(a.affine[:3, :3] - b.affine[:3, :3]).max() > max(tolerance_mm, 1e-3):
        return False
    return bool(np.abs(corners(a.array.shape, a.affine) - corners(b.array.shape, b.affine)).max() <= tolerance_mm)


def _squared(affine: Affine) -> tuple[Affine, Affine]:
    """Perpendicular steps along I, along J without I's part, and along the normal; old index → index along these."""
    directions, lengths = np.linalg.qr(affine[:3, :3])
    signs = np.sign(np.diag(lengths))
    steps = directions * np.abs(np.diag(lengths)) * signs
    return steps, np.linalg.solve(steps, affine[:3, :3])


def is_sheared(volume: Volume) -> bool:
    """Whether the axes are so far from perpendicular that some voxel lies a quarter of a voxel off a straight grid."""
    _, shear = _squared(volume.affine)
    shift = np.abs(shear - np.diag(np.diag(shear))) @ (np.array(volume.shape) - 1)
    return bool(shift.max() > 0.25)


def straighten(volume: Volume, *, nearest: bool = False) -> Volume:
    """The image on a grid of perpendicular axes, by linear interpolation; what lies outside is the image's minimum.

    Axis I and the planes I-J keep their directions, K becomes their normal with the distance between planes as its
    spacing; I and J grow until every voxel has its place. nearest: nearest neighbour instead, for labels. The input is
    not changed.
    Raises SeriesError if the result would be larger than a volume may be.

    >>> tilted = np.array([[1.0, 0, 0.5, 0], [0, 1, 0, 0], [0, 0, 2, 0], [0, 0, 0, 1]])
    >>> straight = straighten(Volume(np.ones((2, 2, 3), np.float32), tilted))
    >>> straight.shape, straight.spacing_mm
    ((3, 2, 3), (1.0, 1.0, 2.0))
    """
    from scipy.ndimage import affine_transform  # here, because whoever reads headers needs no scipy

    steps, shear = _squared(volume.affine)
    ends = corners(volume.shape, np.block([[shear, np.zeros((3, 1))], [np.zeros((1, 3)), 1.0]]))
    low, high = np.floor(ends.min(axis=0) + 1e-3), np.ceil(ends.max(axis=0) - 1e-3)
    i, j, k = (int(n) for n in high - low + 1)
    if i * j * k * 4 > LARGEST_VOLUME_BYTES:
        raise SeriesError("A sheared image is larger than a volume may be once it is straight.")
    back = np.linalg.inv(shear)
    array = affine_transform(
        volume.array,
        np.round(back, 9),  # a plane that lies a rounding error outside is not lost: grid-constant blends at the edge
        np.round(back @ low, 9),
        (i, j, k),
        output=np.float32,
        order=0 if nearest else 1,
        mode="grid-constant",
        cval=float(volume.array.min()),
    )
    affine = volume.affine.copy()
    affine[:3, :3] = steps
    affine[:3, 3] += steps @ low
    return Volume(array, affine)

"""Whether a label looks right on its image: empty, cut, tiny, on the wrong side, or beside the body.

Nothing here proves a label wrong; each code asks a person to look. The limits were set so that fewer than 2 % of right
labels are called `left_right`, on the demo hospitals and on lung nodules of LIDC-IDRI.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

import numpy as np
import numpy.typing as npt

from eucaim_fl.cohorts.volume import Volume
from eucaim_fl.errors import LabelError

__all__ = ["LABEL_PROBLEMS", "check_label"]

LABEL_PROBLEMS: Mapping[str, tuple[str, str]] = MappingProxyType(
    {
        "empty": (
            "A label holds no labelled voxel.",
            "Check that the patient has nothing to label, and that the label's names are those of the plan.",
        ),
        "touches_border": (
            "A label reaches the edge of its image; a part of it may be cut off.",
            "Check that the image shows the whole of what is labelled.",
        ),
        "tiny": (
            "A label has fewer than three voxels.",
            "Check that it was not drawn by mistake, or lost on a coarser grid.",
        ),
        "left_right": (
            "A label looks swapped between left and right.",
            "Open the image with its label in a viewer; if it is swapped, export the label again.",
        ),
        "off_body": (
            "Most of a label lies on the background, beside the body.",
            "Open the image with its label in a viewer; check that they belong together.",
        ),
    }
)
"""Code → what it says, what to do. Fixed texts: they hold nothing of the cohort."""

_TINY_VOXELS = 3
_FEWEST_VOXELS = 10  # below, an edge says nothing
_BACKGROUND_SHARE = 0.08  # of the range between the darkest and the brightest voxels
_LEAST_BACKGROUND = 0.02  # of all voxels; less, and the image shows no background
_SAMPLED_VOXELS = 200_000
_BOTH_SIDES_MM = 240.0  # narrower images may show one side only, whose middle is not the body's
_SIDE_MM = 15.0
_CLEARER_EDGE, _CLEARER_CONTRAST, _LEAST_EDGE, _LEAST_CONTRAST = 1.25, 1.5, 0.4, 0.7

Mask = npt.NDArray[np.bool_]


def _touches_border(mask: Mask) -> bool:
    """Along axes of three voxels or more; a single slice is not cut along its normal."""
    return any(bool(mask.take(end, axis=axis).any()) for axis in range(3) if mask.shape[axis] >= 3 for end in (0, -1))


def _background(array: npt.NDArray[np.float32]) -> float | None:
    """The value below which voxels are background, or None where an image shows none."""
    sample = array.reshape(-1)[:: max(1, array.size // _SAMPLED_VOXELS)]
    low, high = (float(value) for value in np.percentile(sample, [0.5, 99.5]))
    limit = low + _BACKGROUND_SHARE * (high - low)
    return limit if high > low and float((sample < limit).mean()) >= _LEAST_BACKGROUND else None


def _part(mask: Mask, margin: int) -> tuple[slice, ...]:
    ends = [np.flatnonzero(mask.any(axis=tuple({0, 1, 2} - {axis}))) for axis in range(3)]
    return tuple(slice(max(int(e[0]) - margin, 0), int(e[-1]) + margin + 1) for e in ends)


def _normals(values: npt.NDArray[Any], spacing: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Gradient per mm, shape (3, I, J, K); 0 along axes of one voxel."""
    found = np.zeros((3, *values.shape))
    for axis in range(3):
        if values.shape[axis] > 1:
            found[axis] = np.gradient(values, spacing[axis], axis=axis)
    return found


def _fit(image: Volume, mask: Mask) -> tuple[float, float]:
    """How well a mask's outline lies on an edge of the image: (edge, contrast), both from 0.

    edge: |mean sign| of the image's slope across the outline; 1 where it falls (or rises) everywhere, 0 by chance.
    contrast: difference between inside and a rim of two voxels outside, in standard deviations.
    """
    from scipy import ndimage

    part = _part(mask, 4)
    spacing = np.array(image.spacing_mm)
    values, inside = image.array[part].astype(np.float64), mask[part]
    blur = 0.7 * spacing.min() / spacing
    slope = _normals(ndimage.gaussian_filter(values, blur), spacing)
    outward = -_normals(ndimage.gaussian_filter(inside.astype(np.float64), 1.0), spacing)
    grown = ndimage.binary_dilation(inside)
    outline = grown & ~ndimage.binary_erosion(inside)
    edge = float(abs(np.sign((slope * outward).sum(axis=0))[outline].mean()))
    rim = ndimage.binary_dilation(grown) & ~inside
    if not rim.any():
        return edge, 0.0
    a, b = values[inside], values[rim]
    deviation = float(np.sqrt((a.var() + b.var()) / 2))
    return edge, float(abs(a.mean() - b.mean())) / deviation if deviation > 0 else 0.0


def _fits_better_mirrored(image: Volume, mask: Mask, axis: int) -> bool:
    """Whether the label's mirror image lies on an edge, and clearly better than the label itself."""
    mirrored = np.flip(mask, axis)
    if np.count_nonzero(mask) < _FEWEST_VOXELS or np.array_equal(mask, mirrored):
        return False
    edge, contrast = _fit(image, mirrored)
    if edge < _LEAST_EDGE or contrast < _LEAST_CONTRAST:
        return False
    own_edge, own_contrast = _fit(image, mask)
    return edge > _CLEARER_EDGE * own_edge and contrast > _CLEARER_CONTRAST * own_contrast


def _contradicts(image: Volume, mask: Mask, axis: int, laterality: str, background: float | None) -> bool:
    """Whether the label's centre lies clearly on the other side of the body than stated, where both sides are seen."""
    side = {"L": -1.0, "LEFT": -1.0, "R": 1.0, "RIGHT": 1.0}.get(laterality.strip().upper(), 0.0)
    spacing, length = image.spacing_mm[axis], image.shape[axis]
    if side == 0.0 or spacing * length < _BOTH_SIDES_MM:
        return False
    others = tuple({0, 1, 2} - {axis})
    middle = (length - 1) / 2
    if background is not None:
        seen = np.flatnonzero((image.array >= background).mean(axis=others) > _LEAST_BACKGROUND)
        if not seen.size or (seen[-1] - seen[0] + 1) * spacing < _BOTH_SIDES_MM:
            return False
        middle = (seen[0] + seen[-1]) / 2
    counts = mask.sum(axis=others)
    centre = float(counts @ np.arange(length)) / float(counts.sum())
    to_right = (centre - middle) * float(image.affine[0, axis])
    return to_right * side < -_SIDE_MM


def check_label(image: Volume, label: npt.NDArray[np.uint8], laterality: str = "") -> tuple[str, ...]:
    """Codes of what looks wrong, as in `LABEL_PROBLEMS` and in its order; () if nothing does.

    label: shape (I, J, K), as `read_label` returns it. laterality: the side that the image's header states, L or R;
    anything else says nothing.
    `left_right`: the label's outline, mirrored along the image axis closest to the patient's left-right, follows an
    edge of the image clearly better than the label's own; or its centre lies on the other side than stated, in an
    image that shows both. It can't be told for labels that are symmetric, or cross the middle.
    Raises LabelError if image and label differ in shape.
    """
    if label.shape != image.shape:
        raise LabelError(f"A label of shape {label.shape} does not fit an image of shape {image.shape}.")
    counts = np.bincount(label.reshape(-1), minlength=2)[1:]
    if not counts.any():
        return ("empty",)
    mask = label > 0
    axis = int(np.argmax(np.abs(image.affine[0, :3]) / np.array(image.spacing_mm)))
    background = _background(image.array)
    found = {
        "touches_border": _touches_border(mask),
        "tiny": bool((counts[counts > 0] < _TINY_VOXELS).any()),
        "left_right": _fits_better_mirrored(image, mask, axis)
        or _contradicts(image, mask, axis, laterality, background),
        "off_body": background is not None and float((image.array[mask] < background).mean()) > 0.5,
    }
    return tuple(code for code, wrong in found.items() if wrong)

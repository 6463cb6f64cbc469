"""One slice of a volume as a small picture: as a reader of images expects it, with the label's outline."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from eucaim_fl.cohorts.volume import Volume

__all__ = ["LARGEST_SIDE", "OUTLINES_RGB", "png_base64", "slice_picture"]

LARGEST_SIDE = 128
"""Pixels of a picture's longer side."""
OUTLINES_RGB = ((255, 176, 0), (86, 180, 233), (0, 200, 140), (240, 110, 170), (250, 240, 80), (200, 120, 60))
"""Colours of label values 1, 2, …; they come again after the last."""

_Picture = npt.NDArray[np.uint8]


def slice_picture(
    volume: Volume, label: npt.NDArray[np.uint8] | None = None, colours: Sequence[Volume] = ()
) -> _Picture:
    """One slice across the third axis as RGB, shape (height, width, 3), at most LARGEST_SIDE on a side.

    The slice with most labelled voxels, or the middle one. The patient's right is on the left of the picture, anterior
    or superior at the top; pixels are square. Grey values run from the slice's 1st to its 99th percentile.
    label: shape of the volume, 0 is background; its outline is drawn in OUTLINES_RGB. colours: red, green and blue, 0
    to 255, on the volume's grid; they are shown as they are, and not enlarged.
    """
    counts = None if label is None else np.count_nonzero(label, axis=(0, 1))
    at = int(counts.argmax()) if counts is not None and counts.any() else volume.shape[2] // 2
    mask = None if label is None else label[:, :, at]
    if colours:
        pixels = np.stack([np.clip(colour.array[:, :, at], 0, 255) for colour in colours], axis=-1)
        return _drawn(pixels, mask, volume.affine, min(LARGEST_SIDE, max(pixels.shape[:2])))
    plane = np.asarray(volume.array[:, :, at], dtype=np.float64)
    low, high = (float(v) for v in np.percentile(plane, [1, 99]))
    return _drawn(np.clip((plane - low) / ((high - low) or 1.0), 0, 1) * 255, mask, volume.affine, LARGEST_SIDE)


def _drawn(
    pixels: npt.NDArray[Any], mask: npt.NDArray[np.uint8] | None, affine: npt.NDArray[np.float64], side: int
) -> _Picture:
    """Grey (I, J) or colours (I, J, 3), 0 to 255, turned as they are shown, with the outline of the mask.

    side: pixels of the picture's longer side.
    """
    from PIL import Image

    spacing = np.linalg.norm(affine[:3, :2], axis=0)
    directions = affine[:3, :2] / spacing
    mains = [int(n) for n in np.abs(directions).argmax(axis=0)]  # of RAS+: 0 right, 1 anterior, 2 superior
    across, down = (1, 0) if mains[0] > mains[1] else (0, 1)

    def shown(array: npt.NDArray[Any]) -> npt.NDArray[Any]:
        turned = array.transpose(down, across, *range(2, array.ndim))
        for axis, index in ((0, down), (1, across)):
            if directions[mains[index], index] > 0:  # right, anterior and superior come first in a picture
                turned = np.flip(turned, axis)
        return np.ascontiguousarray(turned)

    sides_mm = (float(pixels.shape[across] * spacing[across]), float(pixels.shape[down] * spacing[down]))
    width, height = (max(1, min(side, round(side * mm / max(sides_mm)))) for mm in sides_mm)
    small = Image.fromarray(shown(pixels).round().astype(np.uint8)).resize((width, height), Image.Resampling.BILINEAR)
    picture: _Picture = np.array(small.convert("RGB"))
    if mask is not None and mask.any():
        values = np.asarray(Image.fromarray(shown(mask)).resize((width, height), Image.Resampling.NEAREST))
        edge = values > 0
        edge[1:-1, 1:-1] &= ~_surrounded(values)
        colours = np.array(OUTLINES_RGB, np.uint8)
        picture[edge] = colours[(values[edge].astype(int) - 1) % len(colours)]
    return picture


def _surrounded(values: npt.NDArray[Any]) -> npt.NDArray[np.bool_]:
    """Inner pixels whose four neighbours have the same value."""
    inner = values[1:-1, 1:-1]
    near = (values[:-2, 1:-1], values[2:, 1:-1], values[1:-1, :-2], values[1:-1, 2:])
    result: npt.NDArray[np.bool_] = np.logical_and.reduce([n == inner for n in near])
    return result


def png_base64(picture: _Picture) -> str:
    """A picture (height, width, 3) as the base64 text of a PNG file."""
    from PIL import Image

    stream = io.BytesIO()
    Image.fromarray(picture).save(stream, format="PNG")  # optimised it takes ten times as long, for a few per cent
    return base64.b64encode(stream.getvalue()).decode("ascii")

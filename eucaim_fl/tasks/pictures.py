"""Small pictures of a slice with outlines, for reports on data that may be shown."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import binary_erosion

from eucaim_fl.config import DataConfig

__all__ = ["PREDICTION_COLOUR", "TRUTH_COLOUR", "picture", "shown_slice"]

Colour = tuple[int, int, int]
TRUTH_COLOUR: Colour = (86, 180, 233)
PREDICTION_COLOUR: Colour = (255, 150, 30)
_LEAST_PIXELS = 192
_FRAME_PIXELS = 4


def shown_slice(image: NDArray[np.float32], k: int, data: DataConfig) -> NDArray[np.float32]:
    """What a picture shows of an image (C, I, J, K): of slice k its colours (3, I, J), or the first channel (I, J)."""
    return image[..., k] if data.colour else image[0, ..., k]


def picture(
    image: NDArray[np.float32],
    outlines: Sequence[tuple[NDArray[np.bool_], Colour]] = (),
    frame: Colour | None = None,
    orientation: str = "RAS",
) -> NDArray[np.uint8]:
    """A slice, enlarged by a whole factor to at least 192 pixels, with outlined masks and a frame.

    image: (I, J), shown in grey, or (3, I, J) in red, green and blue. masks: (I, J). orientation: of the array's axes,
    see `DataConfig`. Returns uint8 (H, W, 3) as radiologists look at axial slices: anterior up, the patient's right on
    the left; a photograph, whose columns and rows are L and P, as it was taken.
    """
    factor = max(1, -(-_LEAST_PIXELS // max(image.shape[-2:])))
    enlarge = np.ones((factor, factor), dtype=np.uint8)
    low, high = float(image.min()), float(image.max())
    bright = np.clip((image - low) / (high - low if high > low else 1.0), 0, 1)
    colours = bright if image.ndim == 3 else np.repeat(bright[None], 3, axis=0)
    rgb = np.stack([(np.kron(colour, enlarge) * 255).astype(np.uint8) for colour in colours], axis=2)
    for mask, colour in outlines:
        large = np.kron(mask.astype(np.uint8), enlarge).astype(bool)
        rgb[large & ~binary_erosion(large)] = colour
    if frame is not None:
        rgb[:_FRAME_PIXELS] = rgb[-_FRAME_PIXELS:] = frame
        rgb[:, :_FRAME_PIXELS] = rgb[:, -_FRAME_PIXELS:] = frame
    rows, columns = (-1 if orientation[axis] in "RA" else 1 for axis in (1, 0))
    return np.ascontiguousarray(rgb.transpose(1, 0, 2)[::rows, ::columns])

"""Small pictures of a slice with outlines, for reports on data that may be shown."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import binary_erosion

__all__ = ["PREDICTION_COLOUR", "TRUTH_COLOUR", "picture"]

Colour = tuple[int, int, int]
TRUTH_COLOUR: Colour = (86, 180, 233)
PREDICTION_COLOUR: Colour = (255, 150, 30)
_LEAST_PIXELS = 192
_FRAME_PIXELS = 4


def picture(
    image: NDArray[np.float32],
    outlines: Sequence[tuple[NDArray[np.bool_], Colour]] = (),
    frame: Colour | None = None,
) -> NDArray[np.uint8]:
    """A grey slice, enlarged by a whole factor to at least 192 pixels, with outlined masks and a frame.

    image, masks: (I, J) of an RAS array. Returns uint8 (H, W, 3) as radiologists look at axial slices: anterior up,
    the patient's right on the left.
    """
    factor = max(1, -(-_LEAST_PIXELS // max(image.shape)))
    enlarge = np.ones((factor, factor), dtype=np.uint8)
    low, high = float(image.min()), float(image.max())
    grey = np.clip((image - low) / (high - low if high > low else 1.0), 0, 1)
    rgb = np.repeat((np.kron(grey, enlarge) * 255).astype(np.uint8)[..., None], 3, axis=2)
    for mask, colour in outlines:
        large = np.kron(mask.astype(np.uint8), enlarge).astype(bool)
        rgb[large & ~binary_erosion(large)] = colour
    if frame is not None:
        rgb[:_FRAME_PIXELS] = rgb[-_FRAME_PIXELS:] = frame
        rgb[:, :_FRAME_PIXELS] = rgb[:, -_FRAME_PIXELS:] = frame
    return np.ascontiguousarray(rgb.transpose(1, 0, 2)[::-1, ::-1])

"""Text that was burned into an image's pixels, by the look of it: thin strokes of one brightness, in a row.

Letters of a line are narrow, stand out against what is around them by most of the image's range, have sharp edges, and
share a base line, a height and small gaps. Anatomy has each of these, but hardly all of them four times in a row.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

__all__ = ["TEXT_SEEN", "text_in_pixels", "text_in_volume"]

TEXT_SEEN = "deid.burned_in_seen"
"""The rule that text in pixels breaks."""
_OFTEN_WITH_TEXT = frozenset({"US", "SC", "DX", "MG", "OT", "ES", "XA", "RF", "CR"})
_SLICES, _MORE_SLICES = 3, 8

_LARGEST_SIDE = 1024
_WIDEST_STROKE = 9
_CONTRAST = 0.3
_HEIGHTS = (5, 40)
_MOST_LETTERS = 600
_LETTERS_OF_ONE_HEIGHT, _LETTERS_OF_TWO_HEIGHTS = 4, 5
_ALIKE_PEAKS = 0.2
_FAINTEST_PEAK = 0.42
_WIDEST_LETTER = 2.2

Plane = npt.NDArray[np.float32]
Boxes = npt.NDArray[np.int64]  # (n, 4): top, bottom, left, right, ends exclusive


def text_in_pixels(plane: npt.NDArray[np.number]) -> bool:
    """Whether a grey plane, shape (rows, columns), seems to show a line of text of 10 to 28 pixels, bright or dark.

    The whole range of values counts, so a plane should come as it is stored or displayed, not windowed. Of a plane
    larger than 1,024 pixels a side its four corners are looked at. A heuristic: it misses single letters, handwriting,
    faint and very large text, and may take a row of small bright things for text.
    """
    if plane.ndim != 2 or min(plane.shape) < 16:
        return False
    return any(_shows_text(part) for part in _parts(plane))


def text_in_volume(volume: npt.NDArray[np.number], modality: str = "") -> bool:
    """Whether one of a few slices of an image (I, J, K) seems to show text, K running over slices.

    Looked at are the first, the last and one between; eight where machines often write into images (ultrasound,
    captures, radiographs). modality: as DICOM states it.
    """
    wanted = _MORE_SLICES if modality in _OFTEN_WITH_TEXT else _SLICES
    chosen = sorted({round(n * (volume.shape[2] - 1) / (wanted - 1)) for n in range(wanted)})
    return any(text_in_pixels(np.ascontiguousarray(volume[:, :, k].T)) for k in chosen)


def _parts(plane: npt.NDArray[np.number]) -> list[npt.NDArray[np.number]]:
    n = _LARGEST_SIDE
    if max(plane.shape) <= n:
        return [plane]
    return [plane[rows, columns] for rows in (slice(n), slice(-n, None)) for columns in (slice(n), slice(-n, None))]


def _shows_text(plane: npt.NDArray[np.number]) -> bool:
    values = np.nan_to_num(plane.astype(np.float32), posinf=0.0, neginf=0.0)
    low, high = float(values.min()), float(values.max())
    if high <= low:
        return False
    values = (values - low) / (high - low)
    return _bright_text(values) or _bright_text(1 - values)


def _bright_text(values: Plane) -> bool:
    from scipy import ndimage  # half a second that headers alone need not pay

    opened = ndimage.maximum_filter(ndimage.minimum_filter(values, _WIDEST_STROKE), _WIDEST_STROKE)
    hat = values - opened
    strokes = hat > _CONTRAST
    if strokes.mean() > 0.25:
        return False
    labels, count = ndimage.label(strokes, np.ones((3, 3)))
    if count < _LETTERS_OF_ONE_HEIGHT:
        return False
    boxes, peaks = _letters(labels, hat, ndimage.find_objects(labels))
    return len(boxes) >= _LETTERS_OF_ONE_HEIGHT and _has_row(boxes, peaks)


def _letters(labels: npt.NDArray[np.integer], hat: Plane, found: list[tuple[slice, ...]]) -> tuple[Boxes, Plane]:
    """Boxes of components that could be letters, and how bright the bright part of each is; none if they are noise."""
    every = np.array([(r.start, r.stop, c.start, c.stop) for r, c in found], dtype=np.int64).reshape(-1, 4)
    height, width = every[:, 1] - every[:, 0], every[:, 3] - every[:, 2]
    shaped = (height >= _HEIGHTS[0]) & (height <= _HEIGHTS[1]) & (width <= _WIDEST_LETTER * height + 2)
    chosen = np.flatnonzero(shaped)
    if len(chosen) > _MOST_LETTERS:
        chosen = chosen[:0]
    peaks = np.array([np.percentile(hat[found[n]][labels[found[n]] == n + 1], 80) for n in chosen], dtype=np.float32)
    bright = peaks >= _FAINTEST_PEAK
    return every[chosen[bright]], peaks[bright]


def _has_row(boxes: Boxes, peaks: Plane) -> bool:
    """Whether enough letters share a base line and height, with gaps smaller than a letter is high."""
    top, bottom, left, right = boxes.T
    height = bottom - top
    tallest = np.maximum(height[:, None], height[None, :])
    difference = np.abs(height[:, None] - height[None, :])
    gap = left[None, :] - right[:, None]
    follows = (
        (np.abs(bottom[:, None] - bottom[None, :]) <= 1)
        & (gap >= 0)
        & (gap <= tallest)
        & (np.abs(peaks[:, None] - peaks[None, :]) <= _ALIKE_PEAKS)
    )
    order = np.argsort(left)
    capitals = follows & (difference <= np.maximum(1, 0.12 * tallest))
    if _longest_chain(capitals, order) >= _LETTERS_OF_ONE_HEIGHT:
        return True
    mixed = follows & (difference <= 0.4 * tallest)  # capitals beside small letters
    return _longest_chain(mixed, order) >= _LETTERS_OF_TWO_HEIGHTS


def _longest_chain(follows: npt.NDArray[np.bool_], order: npt.NDArray[np.integer]) -> int:
    """Letters in the longest row, where follows[a, b] says that b may stand right of a. order: from left to right."""
    length = np.ones(len(order), dtype=np.int64)
    for at in order:
        before = np.flatnonzero(follows[:, at])
        if before.size:
            length[at] = 1 + length[before].max()
    return int(length.max())

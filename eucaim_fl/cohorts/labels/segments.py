"""A DICOM segmentation as its file describes it: segments, planes of frames, and frames one at a time.

Source: DICOM PS3.3 A.51 (Segmentation IOD), C.8.20.2 (Segmentation Image), C.7.6.16 (functional groups).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from eucaim_fl.cohorts.elements import PIXEL_DATA, UNDEFINED, Element, Elements, read_elements
from eucaim_fl.cohorts.labels.nested import by_place, items, numbers_of, plain_name, text_of
from eucaim_fl.cohorts.volume import LARGEST_VOLUME_BYTES, Affine
from eucaim_fl.errors import LabelError, UnreadableFileError

__all__ = ["Plane", "Segment", "Segmentation", "read_segmentation"]

_SEGMENTS, _SHARED, _PER_FRAME = 0x00620002, 0x52009229, 0x52009230
_NUMBER, _LABEL, _TYPE, _MEANING = 0x00620004, 0x00620005, 0x0062000F, 0x00080104
_POSITION = (0x00209113, 0x00200032)
_ORIENTATION = (0x00209116, 0x00200037)
_SPACING, _STEP, _THICKNESS = (0x00289110, 0x00280030), (0x00289110, 0x00180088), (0x00289110, 0x00180050)
_SEGMENT = (0x0062000A, 0x0062000B)
_KINDS = {"BINARY", "FRACTIONAL", "LABELMAP"}


class Segment(NamedTuple):
    """number: as frames (or label map values) refer to it; label, meaning: plain names of SegmentLabel and of the
    segmented property type's code.
    """

    number: int
    label: str
    meaning: str


class Plane(NamedTuple):
    """Where one frame lies, in LPS+ mm, and which segment it holds (-1 where it doesn't say).

    position (3), orientation (6), spacing between rows and between columns. step, thickness: 0 where not stated.
    """

    segment: int
    position: tuple[float, ...]
    orientation: tuple[float, ...]
    spacing: tuple[float, ...]
    step: float
    thickness: float

    def affine(self) -> Affine:
        """Index (column, row, 0) of the frame → RAS+ mm; the third axis is the normal, 1 mm long."""
        affine = np.eye(4)
        row, column = np.array(self.orientation).reshape(2, 3)
        affine[:3, 0], affine[:3, 1] = row * self.spacing[1], column * self.spacing[0]
        affine[:3, 2], affine[:3, 3] = np.cross(row, column), self.position
        affine[:2] *= -1  # LPS+ → RAS+
        return affine


@dataclass(frozen=True, eq=False)
class Segmentation:
    """One file. maximum: MaximumFractionalValue, 0 unless the kind is FRACTIONAL. planes: one a frame."""

    path: Path
    kind: str
    rows: int
    columns: int
    maximum: int
    segments: tuple[Segment, ...]
    planes: tuple[Plane, ...]
    frame_of_reference: str
    _elements: Elements
    _bits: int

    def frames(self) -> _Frames:
        """Stored values, frame by frame. Raises UnreadableFileError if the file is truncated or can't be decoded."""
        return _Frames(self)


class _Frames:
    """Stored values of one frame at a time, shape (rows, columns); what is compressed is decoded once, as a whole."""

    def __init__(self, of: Segmentation) -> None:
        self.size, self.shape, self.bits = of.rows * of.columns, (of.rows, of.columns), of._bits
        self.decoded: npt.NDArray[Any] | None = None
        pixels, self.raw = of._elements.pixels, of._elements.raw
        if pixels is None or pixels.tag != PIXEL_DATA:
            raise _lacking(of.path, "no pixel data")
        self.start = pixels.start
        if pixels.length == UNDEFINED or self.bits not in (1, 8, 16):
            self.decoded = _decoded(of)
        elif min(pixels.length, len(self.raw) - self.start) * 8 < self.size * len(of.planes) * self.bits:
            raise UnreadableFileError("A DICOM file is missing, truncated or corrupt.", local_detail=str(of.path))
        elif not of._elements.little_endian and pixels.vr == "OW":  # words turned round, whatever lies in them
            words = np.frombuffer(self.raw, ">u2", pixels.length // 2, self.start)
            self.raw, self.start = words.astype("<u2").tobytes(), 0

    def __getitem__(self, index: int) -> npt.NDArray[Any]:
        if self.decoded is not None:
            frame: npt.NDArray[Any] = self.decoded[index]
            return frame
        first = index * self.size * self.bits
        start, stop = self.start + first // 8, self.start + -(-(first + self.size * self.bits) // 8)
        if self.bits > 8:
            return np.frombuffer(self.raw, "<u2", self.size, start).reshape(self.shape)
        stored = np.frombuffer(self.raw, np.uint8, stop - start, start)
        if self.bits == 1:  # frames are packed without gaps: one may start inside a byte
            stored = np.unpackbits(stored, bitorder="little")[first % 8 : first % 8 + self.size]
        return stored.reshape(self.shape)


def _decoded(of: Segmentation) -> npt.NDArray[Any]:
    """All frames, as numbers: the colours of a label map's palette are for the eye only."""
    from eucaim_fl.cohorts.decoding import decode, pixel_format

    try:
        form = replace(pixel_format(of._elements), photometric="MONOCHROME2")
        return decode(of._elements, form, dict).reshape(len(of.planes), of.rows, of.columns)
    except Exception as problem:  # noqa: BLE001 - a foreign file can make a decoder raise anything
        raise UnreadableFileError(
            "A DICOM file is missing, truncated or corrupt.", local_detail=f"{of.path}: {problem}"
        ) from None


def _lacking(path: Path, problem: object) -> UnreadableFileError:
    return UnreadableFileError(
        "A DICOM segmentation lacks what the standard requires.", local_detail=f"{path}: {problem}"
    )


def _plane(elements: Elements, found: dict[tuple[int, int], Element], detail: str) -> Plane:
    position, orientation, spacing, step, thickness, segment = (
        numbers_of(elements, found.get(place))
        for place in (_POSITION, _ORIENTATION, _SPACING, _STEP, _THICKNESS, _SEGMENT)
    )
    if (len(position), len(orientation), len(spacing)) != (3, 6, 2):
        raise LabelError("A DICOM segmentation states no position for its frames.", local_detail=detail)
    if not np.isfinite([*position, *orientation, *spacing, *step, *thickness, *segment]).all() or min(spacing) <= 0:
        raise ValueError("a number that is not finite, or no spacing")
    row, column = np.array(orientation).reshape(2, 3)
    if np.abs([row @ row - 1, column @ column - 1, row @ column]).max() > 1e-2:
        raise ValueError("an orientation that is not two perpendicular unit vectors")
    return Plane(
        int(segment[0]) if segment else -1,
        position,
        orientation,
        spacing,
        abs(step[0]) if step else 0.0,
        abs(thickness[0]) if thickness else 0.0,
    )


def _planes(elements: Elements, frames: int, detail: str) -> tuple[Plane, ...]:
    shared = by_place(elements.inside(_SHARED), 1)
    own = list(items(elements.inside(_PER_FRAME), 1))
    if len(own) != frames:
        raise ValueError(f"{len(own)} functional groups for {frames} frames")
    return tuple(_plane(elements, {**shared, **by_place(item, 1)}, detail) for item in own)


def _segments(elements: Elements) -> tuple[Segment, ...]:
    found = []
    for item in items(elements.inside(_SEGMENTS), 1):
        values = by_place(item, 1)
        names = (text_of(elements, values.get(place)) for place in ((0, _LABEL), (_TYPE, _MEANING)))
        found.append(Segment(int(numbers_of(elements, values[0, _NUMBER])[0]), *(plain_name(name) for name in names)))
    return tuple(found)


def read_segmentation(path: Path) -> Segmentation:
    """A DICOM segmentation's description; pixels are looked at when frames are asked for.

    Raises UnreadableFileError if the file is missing, truncated, corrupt, larger than a volume may be, or no
    segmentation; and LabelError if its frames have no position in the patient: tiles of a slide, or none stated.
    """
    elements = read_elements(path, whole=True)
    try:
        frames, rows, columns, bits, samples = (
            int((elements.numbers(tag) or (default,))[0])
            for tag, default in (
                (0x00280008, 1),
                (0x00280010, 0),
                (0x00280011, 0),
                (0x00280100, 0),
                (0x00280002, 1),
            )
        )
        kind = elements.text(0x00620001)
        maximum = int((elements.numbers(0x0062000E) or (0,))[0]) if kind == "FRACTIONAL" else 0
        if min(frames, rows, columns) < 1 or samples != 1 or kind not in _KINDS:
            raise ValueError("no segmentation")
        if kind == "FRACTIONAL" and maximum < 1:
            raise ValueError("no MaximumFractionalValue")
        if rows * columns * frames > LARGEST_VOLUME_BYTES:
            raise ValueError(f"claims {frames} frames of {rows} x {columns}")
        if 0x00480007 in elements or "TILED" in elements.text(0x00209311):
            raise LabelError("A DICOM segmentation holds tiles of a slide, not an image.", local_detail=str(path))
        return Segmentation(
            path,
            kind,
            rows,
            columns,
            maximum,
            _segments(elements),
            _planes(elements, frames, str(path)),
            elements.text(0x00200052),
            elements,
            bits,
        )
    except (ValueError, KeyError, IndexError, OverflowError) as problem:
        raise _lacking(path, problem) from None

"""A DICOM structure set as its file describes it: named structures and their closed contours, bounded in number.

Source: DICOM PS3.3 A.19 (RT Structure Set IOD), C.8.8.5 (Structure Set), C.8.8.6 (ROI Contour).
"""

from __future__ import annotations

from collections.abc import Container
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from eucaim_fl.cohorts.elements import LARGEST_HEADER_BYTES, Element, Elements, read_elements
from eucaim_fl.cohorts.labels.nested import by_place, items, numbers_of, plain_name, text_of
from eucaim_fl.errors import LabelError, UnreadableFileError

__all__ = ["MOST_CONTOURS", "MOST_POINTS", "Structure", "read_contours"]

MOST_POINTS, MOST_CONTOURS = 2_000_000, 200_000
"""Of the structures that are wanted, in one file."""
_STRUCTURES, _CONTOURS, _CONTOUR = 0x30060020, 0x30060039, 0x30060040
_ROI_NUMBER, _ROI_NAME, _ROI_FRAME = 0x30060022, 0x30060026, 0x30060024
_REFERENCED_NUMBER, _GEOMETRY, _DATA, _FRAME_OF_REFERENCE = 0x30060084, 0x30060042, 0x30060050, 0x00200052
_CLOSED = {"CLOSED_PLANAR", "CLOSEDPLANAR_XOR"}


@dataclass(frozen=True, eq=False)
class Structure:
    """One region of interest. name: as labels are written. contours: closed ones with three points or more, each of
    shape (n, 3) in RAS+ mm. ignored: how many others it has: points, open lines and what has fewer points.
    """

    name: str
    frame_of_reference: str
    contours: tuple[npt.NDArray[np.float64], ...]
    ignored: int


def _lacking(path: Path, problem: object) -> UnreadableFileError:
    return UnreadableFileError("A structure set lacks what the standard requires.", local_detail=f"{path}: {problem}")


def _names(elements: Elements) -> dict[int, tuple[str, str]]:
    """ROI number → plain name, frame of reference."""
    frames = [e for e in elements.inside(0x30060010) if e.tag == _FRAME_OF_REFERENCE and e.depth == 1]
    stated = {text_of(elements, e) for e in frames}
    only = stated.pop() if len(stated) == 1 else elements.text(_FRAME_OF_REFERENCE)
    found = {}
    for item in items(elements.inside(_STRUCTURES), 1):
        values = by_place(item, 1)
        number = int(numbers_of(elements, values[0, _ROI_NUMBER])[0])
        frame = text_of(elements, values.get((0, _ROI_FRAME))) or only
        found[number] = plain_name(text_of(elements, values.get((0, _ROI_NAME)))), frame
    return found


def _points(elements: Elements, data: Element) -> npt.NDArray[np.float64]:
    """Contour data in RAS+ mm, shape (n, 3)."""
    points = np.array(numbers_of(elements, data), dtype=np.float64).reshape(-1, 3)
    if not np.isfinite(points).all():
        raise ValueError("a point that is not finite")
    return points * (-1.0, -1.0, 1.0)  # LPS+ → RAS+


def _closed(elements: Elements, item: tuple[Element, ...]) -> tuple[list[Element], int]:
    """The data of an item's closed contours, and how many others there are."""
    data, ignored = [], 0
    for contour in items((e for e in item if e.depth >= 2), 2):
        values = by_place(contour, 2)
        kind, points = text_of(elements, values.get((0, _GEOMETRY))), values.get((0, _DATA))
        if kind in _CLOSED and points is not None and elements.value(points).count(b"\\") >= 8:
            data.append(points)
        elif kind or points is not None:
            ignored += 1
    return data, ignored


def read_contours(path: Path, wanted: Container[str]) -> tuple[tuple[Structure, ...], tuple[str, ...]]:
    """The structures of one file whose plain names are wanted, and the names of all. Other contours are not converted.

    Raises LabelError if the wanted structures have more than MOST_CONTOURS contours or MOST_POINTS points; and
    UnreadableFileError if the file is missing, truncated, corrupt, too large, or no structure set, or a coordinate is
    no finite number.
    """
    try:
        size = path.stat().st_size
    except OSError as problem:
        raise UnreadableFileError(
            "A DICOM file is missing, truncated or corrupt.", local_detail=f"{path}: {problem}"
        ) from None
    if size > LARGEST_HEADER_BYTES:
        raise UnreadableFileError("A structure set is too large.", local_detail=str(path))
    elements = read_elements(path, whole=True)
    if _STRUCTURES not in elements:
        raise _lacking(path, "no structures")
    try:
        names = _names(elements)
        found: dict[int, tuple[list[Element], int]] = {}
        for item in items(elements.inside(_CONTOURS), 1):
            values = by_place(item, 1)
            number = int(numbers_of(elements, values[0, _REFERENCED_NUMBER])[0])
            if number in names and names[number][0] in wanted:
                data, ignored = _closed(elements, item)
                known, before = found.setdefault(number, ([], 0))
                found[number] = known + data, before + ignored
        every = [data for several, _ in found.values() for data in several]
        if len(every) > MOST_CONTOURS or sum(elements.value(e).count(b"\\") + 1 for e in every) > 3 * MOST_POINTS:
            raise LabelError(
                f"A structure set has more than {MOST_CONTOURS} contours or {MOST_POINTS} points.",
                local_detail=str(path),
            )
        structures = tuple(
            Structure(
                name,
                frame,
                tuple(_points(elements, data) for data in found.get(number, ([], 0))[0]),
                found.get(number, ([], 0))[1],
            )
            for number, (name, frame) in names.items()
            if name in wanted
        )
    except (ValueError, KeyError, IndexError, OverflowError) as problem:
        raise _lacking(path, problem) from None
    return structures, tuple(sorted({name for name, _ in names.values()}))

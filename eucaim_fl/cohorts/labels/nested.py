"""Items of DICOM sequences, and their values, straight from a file's elements.

Segmentations hold ten thousand frames and structure sets a million points: one walk over the bytes reads them many
times faster than a tree of objects would, and everything is counted before it is converted.
Source: DICOM PS3.5 7.5 (nesting) and 7.1 (elements are in ascending order).
"""

from __future__ import annotations

import re
import struct
from collections.abc import Iterable, Iterator

from eucaim_fl.cohorts.elements import Element, Elements

__all__ = ["by_place", "items", "numbers_of", "plain_name", "text_of"]

_BINARY = {"US": "H", "SS": "h", "UL": "I", "SL": "i", "FL": "f", "FD": "d"}
_LONGEST_TEXT = 4096


def items(elements: Iterable[Element], depth: int) -> Iterator[tuple[Element, ...]]:
    """The items of a sequence, each with everything inside it. depth: of the items' own elements.

    A tag that is not above the one before starts a new item, since elements are in ascending order. Empty items don't
    show, so what needs one item a frame must count them.
    """
    item: list[Element] = []
    last = -1
    for element in elements:
        if element.depth == depth:
            if element.tag <= last:
                yield tuple(item)
                item = []
            last = element.tag
        item.append(element)
    if item:
        yield tuple(item)


def by_place(item: Iterable[Element], depth: int) -> dict[tuple[int, int], Element]:
    """(0, tag) → the item's own elements; (sequence's tag, tag) → those of the first items one level below."""
    found: dict[tuple[int, int], Element] = {}
    sequence = 0
    for element in item:
        if element.depth == depth:
            sequence = element.tag
            found.setdefault((0, element.tag), element)
        elif element.depth == depth + 1:
            found.setdefault((sequence, element.tag), element)
    return found


def text_of(elements: Elements, element: Element | None) -> str:
    """A value as text without padding, "" where there is none; bytes outside ASCII become U+FFFD."""
    if element is None:
        return ""
    return elements.value(element)[:_LONGEST_TEXT].decode("ascii", "replace").strip(" \0")


def numbers_of(elements: Elements, element: Element | None) -> tuple[float, ...]:
    """Values of DS, IS or a binary number; () where there is none.

    Raises ValueError if a text is no number, or a binary value has a length that doesn't fit.
    """
    raw = b"" if element is None else elements.value(element)
    if element is None or not raw:
        return ()
    code = _BINARY.get(element.vr)
    if code is None:
        text = raw.strip(b" \0")
        return tuple(float(part) for part in text.split(b"\\")) if text else ()
    if len(raw) % struct.calcsize(code):
        raise ValueError("a number of bytes that is no whole number of values")
    return struct.unpack(f"{'<' if elements.little_endian else '>'}{len(raw) // struct.calcsize(code)}{code}", raw)


def plain_name(name: str) -> str:
    """A segment's or structure's name as labels are written: lower case, one underscore for all but letters and digits.

    >>> plain_name(" Lesion (PZ)-1 ")
    'lesion_pz_1'
    """
    return re.sub(r"[^a-z0-9]+", "_", name.strip().casefold()).strip("_")

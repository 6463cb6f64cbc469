"""One pass over the bytes of a DICOM data set: where each element lies, and whether the structure holds.

Source: DICOM PS3.5 chapter 7 (data set), A.4 (encapsulated pixel data).
"""

from __future__ import annotations

import struct
from functools import lru_cache
from typing import NamedTuple

from pydicom.datadict import dictionary_VR

__all__ = ["PIXELS", "PIXEL_DATA", "UNDEFINED", "VRS", "Element", "TooShortError", "Walker", "dictionary_vr"]

PIXEL_DATA = 0x7FE00010
UNDEFINED = 0xFFFFFFFF
PIXELS = frozenset({PIXEL_DATA, 0x7FE00008, 0x7FE00009})
"""Pixel data of integers, of floats and of doubles."""
_MOST_ELEMENTS = 2_000_000
_DEEPEST = 24
_ITEM, _ITEM_END, _SEQUENCE_END = 0xFFFEE000, 0xFFFEE00D, 0xFFFEE0DD
# fmt: off
_LONG = {vr.encode(): vr for vr in [
    "OB", "OD", "OF", "OL", "OV", "OW", "SQ", "SV", "UC", "UN", "UR", "UT", "UV",
]}
_SHORT = {vr.encode(): vr for vr in [
    "AE", "AS", "AT", "CS", "DA", "DS", "DT", "FL", "FD", "IS", "LO", "LT", "PN", "SH", "SL", "SS", "ST", "TM", "UI",
    "UL", "US",
]}
# fmt: on
VRS = frozenset(_LONG) | frozenset(_SHORT)
"""All value representations, as two bytes."""


class TooShortError(Exception):
    """The bytes end before the header does."""


class Element(NamedTuple):
    """One element: where its value starts and how long it is, in the bytes that were walked.

    tag: group << 16 | element. vr: two letters, "" where the file doesn't say and the dictionary doesn't know.
    depth: 0 in the data set itself, 1 in an item of a sequence, and so on. length: 0 for sequences, whose items'
    elements follow with a greater depth; `UNDEFINED` for encapsulated pixel data.
    """

    tag: int
    vr: str
    start: int
    length: int
    depth: int


@lru_cache(maxsize=8192)
def dictionary_vr(tag: int) -> str:
    """The value representation of a standard tag; "" where the dictionary doesn't know it."""
    try:
        vr = dictionary_VR(tag)
    except KeyError:
        return "UL" if tag & 0xFFFF == 0 else ""
    return "US" if vr.startswith("US or") else vr.partition(" ")[0]


class Walker:
    """One pass over a data set. Explicit and implicit VR may be mixed inside (UN of undefined length is implicit)."""

    def __init__(self, raw: bytes, *, explicit: bool, little: bool, wanted: frozenset[int] | None = None) -> None:
        self.raw, self.end, self.wanted = raw, len(raw), wanted
        self.explicit = explicit
        order = "<" if little else ">"
        self.head = struct.Struct(order + "HH").unpack_from
        self.explicit_head = struct.Struct(order + "HH2sH").unpack_from
        self.implicit_head = struct.Struct(order + "HHI").unpack_from
        self.long = struct.Struct(order + "I").unpack_from
        self.entries: list[Element] = []

    def dataset(self, at: int, until: int, depth: int, explicit: bool, *, group: int | None = None) -> int:
        """Walk elements from `at`; returns where the data set ends. until: its end, or UNDEFINED for a delimiter."""
        if depth > _DEEPEST:
            raise ValueError(f"sequences nested deeper than {_DEEPEST}")
        raw, end, entries, last = self.raw, self.end, self.entries, min(until, self.end)
        explicit_head, implicit_head, append = self.explicit_head, self.implicit_head, entries.append
        new, short_vr = tuple.__new__, _SHORT.get  # this loop is all the time that a scan of headers takes
        wanted = self.wanted if depth == 0 else None
        while at < last:
            if at + 8 > end:
                return self.rest(at, until, depth)
            if explicit:
                high, low, letters, length = explicit_head(raw, at)
                start = at + 8
                vr = short_vr(letters)
            else:
                high, low, length = implicit_head(raw, at)
                start = at + 8
                vr = dictionary_vr(high << 16 | low)
            tag = high << 16 | low
            if high == 0xFFFE:
                if tag == _ITEM_END and until == UNDEFINED and depth:
                    return at + 8
                raise ValueError("a delimiter where none belongs")
            if group is not None and high != group:
                return at
            if vr is None:
                vr = _LONG.get(letters)
                if vr is None:
                    raise ValueError("an unknown value representation")
                if at + 12 > end:
                    raise TooShortError
                length, start = self.long(raw, at + 8)[0], at + 12
            if high == 0x7FE0 and depth == 0 and tag in PIXELS:
                append(Element(tag, vr, start, length, 0))
                return start
            if len(entries) >= _MOST_ELEMENTS:
                raise ValueError(f"more than {_MOST_ELEMENTS} elements")
            if length == UNDEFINED or (vr == "SQ" and (wanted is None or tag in wanted)):
                before = len(entries)
                at = self.nested(Element(tag, vr, start, length, depth), explicit)
                if wanted is not None and tag not in wanted:
                    del entries[before:]
                if at > last and until != UNDEFINED:
                    raise ValueError("a sequence longer than what it lies in")
                continue
            at = start + length
            if at > last:
                if until != UNDEFINED and until <= end:
                    raise ValueError("an element longer than what it lies in") if depth else TooShortError
                raise TooShortError
            if wanted is None or tag in wanted:
                append(new(Element, (tag, vr, start, length, depth)))
        if at < until and (until != UNDEFINED or depth):
            raise TooShortError
        return at

    def rest(self, at: int, until: int, depth: int) -> int:
        """The end of a data set whose last bytes are too few for an element: padding, or it is cut off."""
        if until > self.end or depth:
            raise TooShortError
        if self.raw[at:].strip(b"\0"):
            raise ValueError("bytes that are no element at the end of the file")
        return self.end

    def nested(self, element: Element, explicit: bool) -> int:
        """Walk into a sequence, or over an icon's encapsulated pixel data; returns where it ends."""
        tag, vr, start, length, depth = element
        if vr == "SQ" or vr in ("UN", ""):
            self.entries.append(Element(tag, "SQ", start, 0, depth))
            return self.sequence(start, length, depth, explicit and vr == "SQ")
        if tag not in PIXELS:
            raise ValueError("an undefined length where none belongs")
        self.entries.append(element)
        return self.fragments(start)

    def sequence(self, at: int, length: int, depth: int, explicit: bool) -> int:
        """Walk the items of a sequence; returns where it ends."""
        until = UNDEFINED if length == UNDEFINED else at + length
        while until == UNDEFINED or at < until:
            if at + 8 > self.end:
                raise TooShortError
            high, low = self.head(self.raw, at)
            tag, size = high << 16 | low, self.long(self.raw, at + 4)[0]
            at += 8
            if tag == _SEQUENCE_END and until == UNDEFINED:
                return at
            if tag != _ITEM:
                raise ValueError("something else than an item in a sequence")
            if size != UNDEFINED and until != UNDEFINED and at + size > until:
                raise ValueError("an item longer than its sequence")
            at = self.dataset(at, UNDEFINED if size == UNDEFINED else at + size, depth + 1, explicit)
        return at

    def fragments(self, at: int) -> int:
        """Skip encapsulated fragments; returns where they end."""
        while True:
            if at + 8 > self.end:
                raise TooShortError
            high, low = self.head(self.raw, at)
            tag, size = high << 16 | low, self.long(self.raw, at + 4)[0]
            at += 8
            if tag == _SEQUENCE_END:
                return at
            if tag != _ITEM or size == UNDEFINED:
                raise ValueError("something else than a fragment in encapsulated data")
            at += size

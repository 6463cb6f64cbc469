"""The elements of a DICOM file's header as places in its bytes: quick to walk, bounded, and nothing is converted.

pydicom makes an object of every element, which is right for writing and slow for looking. A scan of millions of files,
and a reader that wants twenty attributes of each slice, walk the bytes instead. What can't be walked is an error, so a
caller may go to pydicom with it.
Source: DICOM PS3.5 chapter 7 (data set), A.4 and A.5 (encapsulated, deflated); PS3.10 chapter 7 (file meta).
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

from pydicom.datadict import dictionary_VR
from pydicom.uid import UID

from eucaim_fl.cohorts.volume import LARGEST_VOLUME_BYTES
from eucaim_fl.errors import UnreadableFileError

__all__ = [
    "LARGEST_HEADER_BYTES",
    "PIXEL_DATA",
    "UNDEFINED",
    "Element",
    "Elements",
    "read_elements",
    "walk",
]

LARGEST_HEADER_BYTES = 256 * 1024 * 1024
"""Of everything before the pixel data; an enhanced object of ten thousand frames has about 30 MB."""
PIXEL_DATA = 0x7FE00010
UNDEFINED = 0xFFFFFFFF
_PIXELS = frozenset({PIXEL_DATA, 0x7FE00008, 0x7FE00009})
_MOST_ELEMENTS = 2_000_000
_DEEPEST = 24
_FIRST_BYTES = 32 * 1024
_ITEM, _ITEM_END, _SEQUENCE_END = 0xFFFEE000, 0xFFFEE00D, 0xFFFEE0DD
_LONG = frozenset({b"OB", b"OD", b"OF", b"OL", b"OV", b"OW", b"SQ", b"SV", b"UC", b"UN", b"UR", b"UT", b"UV"})
_VRS = _LONG | frozenset(b"AE AS AT CS DA DS DT FL FD IS LO LT PN SH SL SS ST TM UI UL US".split())
_IMPLICIT, _EXPLICIT = "1.2.840.10008.1.2", "1.2.840.10008.1.2.1"
_DEFLATED, _BIG = "1.2.840.10008.1.2.1.99", "1.2.840.10008.1.2.2"


class _TooShortError(Exception):
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


class Elements:
    """All elements of a data set up to its pixel data, in the order of the file. Nothing here is converted or checked
    beyond the file's structure.

    raw: the bytes that places refer to; `whole` says whether they are all of the file's (unpacked, if it was deflated).
    transfer_syntax: "" where the file has no meta information. pixels: the element that holds them, or None.
    """

    __slots__ = ("_first", "entries", "little_endian", "meta", "pixels", "raw", "transfer_syntax", "whole")

    def __init__(
        self, raw: bytes, meta: list[Element], entries: list[Element], transfer_syntax: str, whole: bool
    ) -> None:
        self.raw, self.meta, self.entries = raw, meta, entries
        self.transfer_syntax, self.whole = transfer_syntax, whole
        self.little_endian = transfer_syntax != _BIG
        self.pixels = entries[-1] if entries and entries[-1].tag in _PIXELS and entries[-1].depth == 0 else None
        self._first: dict[int, Element] | None = None

    def __contains__(self, tag: int) -> bool:
        return self.find(tag) is not None

    def find(self, tag: int) -> Element | None:
        """The element of that tag in the data set itself (not inside sequences), or None."""
        if self._first is None:
            self._first = {e.tag: e for e in reversed(self.entries) if e.depth == 0}
        return self._first.get(tag)

    def value(self, element: Element) -> bytes:
        """The bytes of an element's value, as stored (empty for sequences and encapsulated pixel data)."""
        return b"" if element.length == UNDEFINED else self.raw[element.start : element.start + element.length]

    def bytes(self, tag: int) -> bytes:
        """The stored value of a tag of the data set itself; empty where it is absent."""
        element = self.find(tag)
        return b"" if element is None else self.value(element)

    def text(self, tag: int) -> str:
        """A value as text without padding; bytes outside ASCII become U+FFFD, since names and notes aren't needed."""
        return self.bytes(tag).decode("ascii", "replace").strip(" \0")

    def texts(self, tag: int) -> tuple[str, ...]:
        """The parts of a text of several values; () where it is absent or empty."""
        text = self.text(tag)
        return tuple(part.strip(" \0") for part in text.split("\\")) if text else ()

    def numbers(self, tag: int) -> tuple[float, ...] | None:
        """Values of DS, IS, US, SS, UL, SL, FL or FD as numbers; None where absent or empty.

        Raises ValueError if a text is no number or a binary value has a length that doesn't fit.
        """
        element = self.find(tag)
        if element is None or element.length == 0:
            return None
        code = {"US": "H", "SS": "h", "UL": "I", "SL": "i", "FL": "f", "FD": "d"}.get(element.vr)
        raw = self.value(element)
        if code is None:
            text = raw.strip(b" \0")
            return tuple(float(part) for part in text.split(b"\\")) if text else None
        size = struct.calcsize(code)
        if len(raw) % size:
            raise ValueError(f"{len(raw)} bytes are no whole number of {element.vr} values")
        return struct.unpack(f"{'<' if self.little_endian else '>'}{len(raw) // size}{code}", raw)

    def inside(self, tag: int) -> Iterator[Element]:
        """Elements of all items of a sequence of the data set itself, at any depth, in the order of the file."""
        found = False
        for element in self.entries:
            if element.depth == 0:
                if found:
                    return
                found = element.tag == tag
            elif found:
                yield element


@lru_cache(maxsize=8192)
def _dictionary_vr(tag: int) -> str:
    try:
        vr = dictionary_VR(tag)
    except KeyError:
        return "UL" if tag & 0xFFFF == 0 else ""
    return "US" if vr.startswith("US or") else vr.partition(" ")[0]


class _Walker:
    """One pass over a data set. Explicit and implicit VR may be mixed inside (UN of undefined length is implicit)."""

    def __init__(self, raw: bytes, *, explicit: bool, little: bool) -> None:
        self.raw, self.end = raw, len(raw)
        self.explicit = explicit
        order = "<" if little else ">"
        self.head = struct.Struct(order + "HH").unpack_from
        self.short = struct.Struct(order + "H").unpack_from
        self.long = struct.Struct(order + "I").unpack_from
        self.entries: list[Element] = []

    def dataset(self, at: int, until: int, depth: int, explicit: bool, *, group: int | None = None) -> int:
        """Walk elements from `at`; returns where the data set ends. until: its end, or UNDEFINED for a delimiter."""
        if depth > _DEEPEST:
            raise ValueError(f"sequences nested deeper than {_DEEPEST}")
        raw, entries, last = self.raw, self.entries, min(until, self.end)
        while at < last:
            if at + 8 > self.end:
                if until > self.end or depth:
                    raise _TooShortError
                if raw[at:].strip(b"\0"):
                    raise ValueError("bytes that are no element at the end of the file")
                return self.end
            high, low = self.head(raw, at)
            tag = high << 16 | low
            if high == 0xFFFE:
                if tag == _ITEM_END and until == UNDEFINED:
                    return at + 8
                raise ValueError("a delimiter where none belongs")
            if group is not None and high != group:
                return at
            if explicit:
                letters = raw[at + 4 : at + 6]
                if letters in _LONG:
                    if at + 12 > self.end:
                        raise _TooShortError
                    length, start = self.long(raw, at + 8)[0], at + 12
                elif letters in _VRS:
                    length, start = self.short(raw, at + 6)[0], at + 8
                else:
                    raise ValueError("an unknown value representation")
                vr = letters.decode()
            else:
                length, start = self.long(raw, at + 4)[0], at + 8
                vr = _dictionary_vr(tag)
            if tag in _PIXELS and depth == 0:
                entries.append(Element(tag, vr, start, length, 0))
                return start
            if len(entries) >= _MOST_ELEMENTS:
                raise ValueError(f"more than {_MOST_ELEMENTS} elements")
            if vr == "SQ" or (length == UNDEFINED and vr in ("UN", "")):
                entries.append(Element(tag, "SQ", start, 0, depth))
                at = self.sequence(start, length, depth, explicit and vr == "SQ")
                continue
            if length == UNDEFINED and tag not in _PIXELS:
                raise ValueError("an undefined length where none belongs")
            if length == UNDEFINED:  # an icon's encapsulated pixel data
                entries.append(Element(tag, vr, start, UNDEFINED, depth))
                at = self.fragments(start)
                continue
            at = start + length
            if until != UNDEFINED and at > until:
                raise ValueError("an element longer than what it lies in") if until <= self.end else _TooShortError
            if at > self.end:
                raise _TooShortError
            entries.append(Element(tag, vr, start, length, depth))
        if at < until and until != UNDEFINED:
            raise _TooShortError
        if until == UNDEFINED and depth:
            raise _TooShortError
        return at

    def sequence(self, at: int, length: int, depth: int, explicit: bool) -> int:
        """Walk the items of a sequence; returns where it ends."""
        until = UNDEFINED if length == UNDEFINED else at + length
        while until == UNDEFINED or at < until:
            if at + 8 > self.end:
                raise _TooShortError
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
                raise _TooShortError
            high, low = self.head(self.raw, at)
            tag, size = high << 16 | low, self.long(self.raw, at + 4)[0]
            at += 8
            if tag == _SEQUENCE_END:
                return at
            if tag != _ITEM or size == UNDEFINED:
                raise ValueError("something else than a fragment in encapsulated data")
            at += size


def _inflated(raw: bytes, start: int) -> bytes:
    stream = zlib.decompressobj(wbits=-15)
    unpacked = stream.decompress(raw[start:], LARGEST_VOLUME_BYTES)
    if not stream.eof:
        raise ValueError("deflated stream ends early, or unpacks to more than a volume may have")
    return raw[:start] + unpacked


def _start_of_plain(raw: bytes) -> tuple[int, bool]:
    """Where a file without preamble starts, and whether its VRs are explicit. Raises ValueError if it is no DICOM."""
    group, letters = int.from_bytes(raw[:2], "little"), raw[4:6]
    if group not in (0x0002, 0x0004, 0x0008) or len(raw) < 16:
        raise ValueError("no DICOM file")
    return 0, letters in _VRS


def walk(raw: bytes, *, whole: bool = True) -> Elements:
    """The elements of a DICOM file's bytes up to its pixel data.

    whole: the bytes are all of the file's. If they are only its beginning, `Elements.whole` tells so, and the header
    must end inside them.
    Files without preamble are taken if they start with a group that data sets start with. All four uncompressed
    transfer syntaxes and every encapsulated one are walked alike; deflated bytes are unpacked, within bounds.
    Raises ValueError if the bytes are no DICOM file or its structure is broken; EOFError if they end too early.
    """
    try:
        return _walk(raw, whole)
    except (_TooShortError, struct.error, IndexError):
        raise EOFError("the header goes on beyond the last byte") from None


def _walk(raw: bytes, whole: bool) -> Elements:
    meta: list[Element] = []
    syntax = ""
    if raw[128:132] == b"DICM":
        at, explicit = 132, True
    else:
        at, explicit = _start_of_plain(raw)
    if raw[at : at + 2] == b"\x02\x00":
        walker = _Walker(raw, explicit=raw[at + 4 : at + 6] in _VRS, little=True)
        at = walker.dataset(at, len(raw), 0, walker.explicit, group=0x0002)
        meta = walker.entries
        found = next((e for e in meta if e.tag == 0x00020010), None)
        syntax = "" if found is None else raw[found.start : found.start + found.length].decode("ascii", "replace")
        syntax = syntax.strip(" \0")
        explicit = syntax != _IMPLICIT if syntax else raw[at + 4 : at + 6] in _VRS
    elif at == 132:
        explicit = raw[at + 4 : at + 6] in _VRS
    if syntax == _DEFLATED:
        if not whole:
            raise _TooShortError
        raw = _inflated(raw, at)
    if not syntax:
        syntax = _EXPLICIT if explicit else _IMPLICIT
    elif not UID(syntax).is_valid:
        raise ValueError("the transfer syntax is no UID")
    walker = _Walker(raw, explicit=explicit, little=syntax != _BIG)
    walker.dataset(at, UNDEFINED if not whole else len(raw), 0, explicit)
    result = Elements(raw, meta, walker.entries, syntax, whole)
    if not whole and result.pixels is None:
        raise _TooShortError
    return result


def read_elements(path: Path, *, whole: bool = False) -> Elements:
    """The header of a DICOM file; reads the first 32 KiB, and more only where the header is longer.

    whole: read the whole file, so that pixel bytes are there too.
    Raises UnreadableFileError if the file is missing, no DICOM file, broken, or larger than a volume may be.
    """
    try:
        with path.open("rb") as stream:
            size = stream.seek(0, 2)
            stream.seek(0)
            if size > LARGEST_VOLUME_BYTES:
                raise ValueError("file larger than a volume may be")
            if whole or size <= _FIRST_BYTES:
                return walk(stream.read())
            first = _FIRST_BYTES
            while first < size:
                stream.seek(0)
                try:
                    return walk(stream.read(first), whole=False)
                except EOFError:
                    if first > LARGEST_HEADER_BYTES:
                        raise
                    first *= 16
            stream.seek(0)
            return walk(stream.read())
    except (OSError, ValueError, EOFError, RecursionError) as problem:
        raise UnreadableFileError(
            "A DICOM file is missing, truncated or corrupt.", local_detail=f"{path}: {problem}"
        ) from None

"""The elements of a DICOM file's header as places in its bytes: quick to walk, bounded, and nothing is converted.

pydicom makes an object of every element, which is right for writing and slow for looking. A scan of millions of files,
and a reader that wants twenty attributes of each slice, walk the bytes instead. What can't be walked is an error, so a
caller may go to pydicom with it.
Source: DICOM PS3.5 chapter 7 (data set), A.4 and A.5 (encapsulated, deflated); PS3.10 chapter 7 (file meta).
"""

from __future__ import annotations

import re
import struct
import zlib
from collections.abc import Iterator
from pathlib import Path

from eucaim_fl.cohorts.element_walk import (
    PIXEL_DATA,
    PIXELS,
    UNDEFINED,
    VRS,
    Element,
    TooShortError,
    Walker,
    dictionary_vr,
)
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
_LEAST_UNPACKED_BYTES, _LARGEST_RATIO = 128 * 1024 * 1024, 32
_FIRST_BYTES = 32 * 1024
_BINARY = {"US": "H", "SS": "h", "UL": "I", "SL": "i", "FL": "f", "FD": "d"}
_UID = re.compile(r"[0-9.]{1,64}")
_IMPLICIT, _EXPLICIT = "1.2.840.10008.1.2", "1.2.840.10008.1.2.1"
_DEFLATED, _BIG = "1.2.840.10008.1.2.1.99", "1.2.840.10008.1.2.2"


class Elements:
    """All elements of a data set up to its pixel data, in the order of the file. Nothing here is converted or checked
    beyond the file's structure.

    raw: the bytes that places refer to; `whole` says whether they are all of the file's (unpacked, if it was deflated).
    transfer_syntax: "" where the file has no meta information. pixels: the element that holds them, or None.
    """

    __slots__ = ("_first", "_wanted", "entries", "little_endian", "meta", "pixels", "raw", "transfer_syntax", "whole")

    def __init__(
        self,
        raw: bytes,
        meta: list[Element],
        entries: list[Element],
        transfer_syntax: str,
        whole: bool,
        wanted: frozenset[int] | None = None,
    ) -> None:
        self.raw, self.meta, self.entries, self._wanted = raw, meta, entries, wanted
        self.transfer_syntax, self.whole = transfer_syntax, whole
        self.little_endian = transfer_syntax != _BIG
        self.pixels = entries[-1] if entries and entries[-1].tag in PIXELS and entries[-1].depth == 0 else None
        self._first: dict[int, Element] | None = None

    def __contains__(self, tag: int) -> bool:
        return self.find(tag) is not None

    def find(self, tag: int) -> Element | None:
        """The element of that tag in the data set itself (not inside sequences), or None.

        Raises LookupError if the header was walked for other tags only, so that nobody takes it for absent.
        """
        if self._first is None:
            self._first = {e.tag: e for e in reversed(self.entries) if e.depth == 0}
        if self._wanted is not None and tag not in self._wanted:
            raise LookupError(f"the header was not walked for {tag:08x}")
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
        code = _BINARY.get(dictionary_vr(tag) if element.vr == "UN" else element.vr)
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


def _inflated(raw: bytes, start: int) -> bytes:
    # Images shrink to a half, empty masks to a thousandth: beyond both, a small file would take long to unpack.
    most = min(LARGEST_VOLUME_BYTES, max(_LEAST_UNPACKED_BYTES, _LARGEST_RATIO * len(raw)))
    stream = zlib.decompressobj(wbits=-15)
    unpacked = stream.decompress(raw[start:], most)
    if not stream.eof:
        raise ValueError("deflated stream ends early, or unpacks to more than it should")
    return raw[:start] + unpacked


def _start_of_plain(raw: bytes) -> int:
    """Where a file without preamble starts. Raises ValueError if it is no DICOM."""
    if int.from_bytes(raw[:2], "little") not in (0x0002, 0x0004, 0x0008) or len(raw) < 16:
        raise ValueError("no DICOM file")
    return 0


def walk(raw: bytes, *, whole: bool = True, wanted: frozenset[int] | None = None) -> Elements:
    """The elements of a DICOM file's bytes up to its pixel data.

    wanted: keep these tags of the data set itself alone, and what is inside them; half the time where they are few.
    whole: the bytes are all of the file's. If they are only its beginning, `Elements.whole` tells so, and the header
    must end inside them.
    Files without preamble are taken if they start with a group that data sets start with. All four uncompressed
    transfer syntaxes and every encapsulated one are walked alike; deflated bytes are unpacked, within bounds.
    Raises ValueError if the bytes are no DICOM file or its structure is broken; EOFError if they end too early.
    """
    try:
        return _walk(raw, whole, wanted)
    except (TooShortError, struct.error, IndexError):
        raise EOFError("the header goes on beyond the last byte") from None


def _walk(raw: bytes, whole: bool, wanted: frozenset[int] | None) -> Elements:
    meta: list[Element] = []
    syntax = ""
    at = 132 if raw[128:132] == b"DICM" else _start_of_plain(raw)
    if raw[at : at + 2] == b"\x02\x00":
        walker = Walker(raw, explicit=raw[at + 4 : at + 6] in VRS, little=True)
        at = walker.dataset(at, len(raw), 0, walker.explicit, group=0x0002)
        meta = walker.entries
        found = next((e for e in meta if e.tag == 0x00020010), None)
        syntax = "" if found is None else raw[found.start : found.start + found.length].decode("ascii", "replace")
        syntax = syntax.strip(" \0")
    if syntax == _DEFLATED:
        if not whole:
            raise TooShortError
        raw = _inflated(raw, at)
    explicit = raw[at + 4 : at + 6] in VRS  # the data set itself knows better than what was written about it
    if not syntax:
        syntax = _EXPLICIT if explicit else _IMPLICIT
    elif not _UID.fullmatch(syntax):
        raise ValueError("the transfer syntax is no UID")
    walker = Walker(raw, explicit=explicit, little=syntax != _BIG, wanted=wanted)
    walker.dataset(at, UNDEFINED if not whole else len(raw), 0, explicit)
    result = Elements(raw, meta, walker.entries, syntax, whole, wanted)
    if not (meta or walker.entries):
        raise TooShortError
    if not whole and result.pixels is None:
        raise TooShortError
    return result


def read_elements(path: Path, *, whole: bool = False) -> Elements:
    """The header of a DICOM file; reads the first 32 KiB, and more only where the header is longer.

    whole: read the whole file, so that pixel bytes are there too.
    Raises UnreadableFileError if the file is missing, no DICOM file, broken, or larger than a volume may be.
    """
    try:
        if not path.is_file():  # a pipe of that name would let us wait for ever
            raise ValueError("not a file")
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
                    if first >= LARGEST_HEADER_BYTES:
                        raise
                    first = min(first * 16, LARGEST_HEADER_BYTES)
            stream.seek(0)
            return walk(stream.read())
    except (OSError, ValueError, EOFError, RecursionError) as problem:
        raise UnreadableFileError(
            "A DICOM file is missing, truncated or corrupt.", local_detail=f"{path}: {problem}"
        ) from None

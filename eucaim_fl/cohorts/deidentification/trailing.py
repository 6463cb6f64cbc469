"""Identifiers behind the pixel data, where a scan of headers doesn't look: private groups, padding, signatures."""

from __future__ import annotations

from typing import BinaryIO

from eucaim_fl.cohorts.deidentification.headers import identifiers_in_header
from eucaim_fl.cohorts.elements import UNDEFINED, Elements, walk
from eucaim_fl.errors import UnreadableFileError

__all__ = ["identifiers_after_pixels"]

_MOST_BYTES = 1024 * 1024
_MOST_FRAGMENTS = 1_000_000
_PREAMBLE = bytes(128) + b"DICM"
_PADDING = 0xFFFCFFFC
_ABOUT_THE_WHOLE = frozenset({"deid.not_marked", "deid.burned_in_unknown"})


def identifiers_after_pixels(stream: BinaryIO, elements: Elements) -> dict[str, int]:
    """Rule → how often what follows the pixel data of a DICOM file breaks it, as in `identifiers_in_header`.

    stream: the open file. elements: its header, as `read_elements` gave it. Padding that isn't empty counts as a
    private element, and bytes that are no elements as `deid.trailing`. At most 1 MiB is read; most files end with their
    pixels and cost one look at the size. Deflated files are not looked at: what follows their pixels lies inside the
    stream.
    Raises UnreadableFileError if the file can't be read.
    """
    pixels = elements.pixels
    if pixels is None or elements.transfer_syntax == "1.2.840.10008.1.2.1.99":
        return {}
    try:
        size = stream.seek(0, 2)
        end = pixels.start + pixels.length if pixels.length != UNDEFINED else _end_of_fragments(stream, pixels.start)
        if end >= size:
            return {}
        stream.seek(end)
        tail = stream.read(_MOST_BYTES)
    except (OSError, ValueError) as problem:
        raise UnreadableFileError("A DICOM file can't be read.", local_detail=repr(problem)) from None
    return _judged(tail) if tail.strip(b"\0") else {}


def _end_of_fragments(stream: BinaryIO, at: int) -> int:
    """Where encapsulated pixel data end; where the walk fails, so that the rest counts as unreadable."""
    for _ in range(_MOST_FRAGMENTS):
        stream.seek(at)
        head = stream.read(8)
        size = int.from_bytes(head[4:], "little")
        if head[:4] == b"\xfe\xff\xdd\xe0" or len(head) < 8:
            return at + 8
        if head[:4] != b"\xfe\xff\x00\xe0" or size == UNDEFINED:
            return at
        at += 8 + size
    return at


def _judged(tail: bytes) -> dict[str, int]:
    try:
        elements = walk(_PREAMBLE + tail)
    except (ValueError, EOFError):
        return {"deid.trailing": 1}
    found = {r: n for r, n in identifiers_in_header(elements).items() if r not in _ABOUT_THE_WHOLE}
    padding = sum(e.tag == _PADDING and bool(elements.value(e).strip(b"\0")) for e in elements.entries)
    if padding:
        found["deid.private"] = found.get("deid.private", 0) + padding
    return found

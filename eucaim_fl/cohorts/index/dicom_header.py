"""The header of an open DICOM file as elements, and whether the rest of the file can be whole."""

from __future__ import annotations

import io
import re
import struct
from dataclasses import dataclass
from functools import lru_cache
from typing import BinaryIO

import pydicom
from pydicom.uid import UID_dictionary

from eucaim_fl.cohorts.elements import LARGEST_HEADER_BYTES, UNDEFINED, Element, Elements, walk
from eucaim_fl.cohorts.volume import LARGEST_VOLUME_BYTES

__all__ = ["Header", "NotDicomError", "read_header"]

_NATIVE = frozenset({"1.2.840.10008.1.2", "1.2.840.10008.1.2.1", "1.2.840.10008.1.2.2"})
_DEFLATED = "1.2.840.10008.1.2.1.99"
_ITEM, _SEQUENCE_END = 0xFFFEE000, 0xFFFEE0DD
_MOST_FRAGMENTS = 20_000
_SAMPLES_STORED = {"MONOCHROME1": 1, "MONOCHROME2": 1, "PALETTE COLOR": 1, "RGB": 3, "YBR_FULL": 3, "YBR_FULL_422": 2}
_OF_PIXELS = re.compile(r"Image Storage|^Segmentation Storage|Label Map Segmentation Storage")
_SHORT_HEADER = "A file ends before its header does."
_SHORT_PIXELS = "A file ends before its pixel data does."
_NO_PIXELS = "A file of an image or label holds no pixel data."


class NotDicomError(ValueError):
    """The bytes are no DICOM file that can be read. Its text quotes nothing of them."""


@dataclass(frozen=True)
class Header:
    """elements: of the data set. sop_class: as the file's meta information states it. length: of the header in bytes.

    fault: why the file can't be whole, "" if it can.
    """

    elements: Elements
    sop_class: str
    length: int
    fault: str


def read_header(size: int, first: bytes, stream: BinaryIO) -> Header:
    """The header of a file of `size` bytes, of which `first` are the first ones; more is read only where it is longer.

    A header whose structure is odd is read by pydicom and written anew; one that ends early keeps what is there.
    Raises ValueError, of the class above, if it can't be read at all.
    """
    if not first or size > LARGEST_VOLUME_BYTES:
        raise NotDicomError("empty, or larger than a volume may be")
    raw = first
    while True:
        try:
            elements = walk(raw, whole=len(raw) >= size)
            break
        except (ValueError, RecursionError) as problem:
            return _repaired(size, stream, "", str(problem))
        except EOFError as problem:
            if len(raw) >= size:
                return _repaired(size, stream, _SHORT_HEADER, str(problem))
        if len(raw) >= LARGEST_HEADER_BYTES:
            raise NotDicomError("a header without end")
        stream.seek(0)
        known, raw = len(raw), stream.read(min(len(raw) * 16, LARGEST_HEADER_BYTES))
        if len(raw) <= known:
            raise NotDicomError("shorter than it was when it was listed")
    deflated = elements.transfer_syntax == _DEFLATED
    length = len(elements.raw) if elements.pixels is None else elements.pixels.start
    sop_class = _sop_class(elements, elements.meta)
    fault = _fault(elements, sop_class, stream, len(elements.raw) if deflated else size)
    return Header(elements, sop_class, min(size, LARGEST_HEADER_BYTES) if deflated else length, fault)


def _repaired(size: int, stream: BinaryIO, fault: str, problem: str) -> Header:
    """What pydicom can read of a header, written anew and walked."""
    try:
        stream.seek(0)
        if _DEFLATED.encode() in stream.read(1024):  # pydicom would unpack without bounds
            raise ValueError("deflated")
        stream.seek(0)
        header = pydicom.dcmread(stream, stop_before_pixels=True)
        rest = size - stream.tell()
        if len(header) < 5:
            raise ValueError("no header")
        syntax = str(header.file_meta.get("TransferSyntaxUID", ""))
        buffer = io.BytesIO()
        header.save_as(buffer, implicit_vr=False, little_endian=True)
        elements = walk(buffer.getvalue())
    except Exception as failure:  # noqa: BLE001 - a foreign file can make the decoder raise anything
        raise NotDicomError(f"{problem}; {type(failure).__name__}") from None
    elements.transfer_syntax = syntax or elements.transfer_syntax
    sop_class = _sop_class(elements, elements.meta)
    if not fault and sop_class in _image_classes():
        fault = _NO_PIXELS if rest <= 12 else _SHORT_PIXELS if rest < _needed(elements) else ""
    return Header(elements, sop_class, min(size, LARGEST_HEADER_BYTES), fault)


def _sop_class(elements: Elements, meta: list[Element]) -> str:
    found = next((e for e in meta if e.tag == 0x00020002), None)
    stated = "" if found is None else elements.value(found)[:64].decode("ascii", "replace").strip(" \0")
    return elements.text(0x00080016) or stated


@lru_cache(maxsize=1)
def _image_classes() -> frozenset[str]:
    names = {uid: entry[0] for uid, entry in UID_dictionary.items() if entry[1] == "SOP Class"}
    return frozenset(uid for uid, name in names.items() if _OF_PIXELS.search(name))


def _number(elements: Elements, tag: int, default: float) -> float:
    try:
        return (elements.numbers(tag) or (default,))[0]
    except (ValueError, struct.error):
        return default


def _needed(elements: Elements) -> float:
    """Bytes that native pixels need by what the header says; 0 where that can't be told."""
    samples = _SAMPLES_STORED.get(elements.text(0x00280004), 0)
    if elements.transfer_syntax not in _NATIVE or not samples:
        return 0
    rows, columns, bits = (_number(elements, tag, 0) for tag in (0x00280010, 0x00280011, 0x00280100))
    return rows * columns * max(1, _number(elements, 0x00280008, 1)) * samples * bits // 8


def _fault(elements: Elements, sop_class: str, stream: BinaryIO, end: int) -> str:
    """Why the pixel data can't be whole, as far as lengths tell; "" if they are."""
    pixels = elements.pixels
    if pixels is None:
        return _NO_PIXELS if sop_class in _image_classes() else ""
    if pixels.length == UNDEFINED:
        return "" if _fragments_end(stream, pixels.start, end) else _SHORT_PIXELS
    if pixels.start + pixels.length > end:
        return _SHORT_PIXELS
    return "A file's pixel data is shorter than its header says." if pixels.length < _needed(elements) else ""


def _fragments_end(stream: BinaryIO, at: int, end: int) -> bool:
    """Whether encapsulated pixel data is complete: every fragment lies inside the file, and there is at least one.

    A missing delimiter at the very end is let pass, as readers do.
    """
    for number in range(_MOST_FRAGMENTS):
        if at + 8 > end:
            return number > 1 and at == end
        stream.seek(at)
        group, element, length = struct.unpack("<HHI", stream.read(8).ljust(8, b"\0"))
        tag = group << 16 | element
        if tag == _SEQUENCE_END:
            return number > 1
        if tag != _ITEM or at + 8 + length > end:
            return False
        at += 8 + length
    return True

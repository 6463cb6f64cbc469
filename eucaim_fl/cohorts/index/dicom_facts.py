"""Facts of a DICOM file from its elements."""

from __future__ import annotations

import contextlib
import re
import struct
from collections import Counter
from collections.abc import Collection
from typing import Any, BinaryIO

from eucaim_fl.cohorts.deidentification.headers import identifiers_in_header
from eucaim_fl.cohorts.deidentification.trailing import identifiers_after_pixels
from eucaim_fl.cohorts.elements import Element, Elements
from eucaim_fl.cohorts.index import terms
from eucaim_fl.cohorts.index.dicom_header import Header, read_header
from eucaim_fl.cohorts.index.store import keyed
from eucaim_fl.errors import UnreadableFileError

__all__ = ["dicom_facts"]

_UNREADABLE = "EFL204"
_NAME_IN_PATH = "deid.name_in_path"
_DICOMDIR = "1.2.840.10008.1.3.10"
_SHARED_GROUPS, _FRAME_GROUPS = 0x52009229, 0x52009230
_UID = re.compile(r"\d+(?:\.\d+)*")
_MOST_REFERENCES = 64
_BINARY = {"US": "H", "SS": "h", "UL": "I", "SL": "i", "FL": "f", "FD": "d"}
_PRIVATE_B_VALUES = ((0x0019, 0x0C, "SIEMENS MR HEADER"), (0x0043, 0x39, "GEMS_PARM_01"), (0x2001, 0x03, "Philips"))
_WITHOUT = frozenset({"NONE", "NO", "NO CONTRAST", "WITHOUT", "0", "-"})


def dicom_facts(
    path: str, size: int, first: bytes, stream: BinaryIO, key: bytes, words: Collection[str]
) -> tuple[dict[str, Any], int]:
    """Values of `FileFacts` of a DICOM file, and the length of its header in bytes.

    path: relative POSIX path, for the rules of de-identification. first: its first bytes; more is read only where the
    header is longer. Facts that can't be read are empty. A file that ends before its pixel data does, or an image
    without any, has facts, a code and a reason. `clean`: where the path holds what the header says of the patient, its
    leading folders that don't.
    Raises ValueError if its header can't be read at all.
    """
    header = read_header(size, first, stream)
    elements = header.elements
    sop_class = elements.text(0x00080016) or header.sop_class
    if sop_class == _DICOMDIR:
        return {"kind": "other"}, 0
    nested = _nested(elements) if _FRAME_GROUPS in elements or _SHARED_GROUPS in elements else {}
    position = _vector(elements, nested, 0x00200032, 3)
    spacing = _vector(elements, nested, 0x00280030, 2)
    if spacing is None and position is None:
        spacing = _vector(elements, nested, 0x00181164, 2)
    identifiers = dict(Counter(identifiers_in_header(elements, path)) + Counter(_behind(header, stream)))
    facts: dict[str, Any] = {
        "kind": "dicom",
        "identifiers": identifiers,
        "patient_id": _patient(elements, key),
        "study_uid": _uid(elements.text(0x0020000D), key),
        "series_uid": _uid(elements.text(0x0020000E), key),
        "sop_uid": _uid(elements.text(0x00080018), key),
        "sop_class": _uid(sop_class, key),
        "transfer_syntax": _uid(elements.transfer_syntax, key),
        "modality": terms.modality(elements.text(0x00080060)),
        "body_part": terms.term(elements.text(0x00180015)),
        "laterality": _laterality(elements),
        "series_description": terms.words_of(elements.bytes(0x0008103E), words),
        "protocol": terms.words_of(elements.bytes(0x00181030), words),
        "sequence": terms.words_of(elements.bytes(0x00180024), words),
        "image_type": terms.image_type(elements.texts(0x00080008)),
        "manufacturer": terms.vendor(elements.text(0x00080070)[:64]),
        "model": terms.words_of(elements.bytes(0x00081090)[:64], ()),
        "study_date": terms.year_of(elements.text(0x00080020)),
        "frame_of_reference": _uid(elements.text(0x00200052), key),
        "rows": _whole(elements, 0x00280010),
        "columns": _whole(elements, 0x00280011),
        "frames": _whole(elements, 0x00280008),
        "samples": _whole(elements, 0x00280002),
        "photometric": terms.photometric(elements.text(0x00280004)),
        "position": position,
        "orientation": _vector(elements, nested, 0x00200037, 6),
        "spacing": spacing if spacing is not None and min(spacing) > 0 else None,
        "thickness_mm": _single(elements, nested, 0x00180050),
        "field_strength_t": _single(elements, nested, 0x00180087),
        "contrast": _contrast(elements),
        "acquisition": _whole(elements, 0x00200012),
        "temporal_position": _whole(elements, 0x00200100),
        "echo_time_ms": _single(elements, nested, 0x00180081, 0x00189082),
        "b_value": _b_value(elements, nested),
        "instance_number": _whole(elements, 0x00200013),
        "references": _references(elements, key),
    }
    if identifiers.get(_NAME_IN_PATH):
        facts["clean"] = _clean_folders(elements, path)
    if header.fault:
        facts.update(code=_UNREADABLE, reason=header.fault)
    return facts, header.length


def _behind(header: Header, stream: BinaryIO) -> dict[str, int]:
    """Identifiers after the pixel data; a file that isn't whole is set aside for that already."""
    if header.fault:
        return {}
    try:
        return identifiers_after_pixels(stream, header.elements)
    except UnreadableFileError:
        return {"deid.trailing": 1}


def _clean_folders(elements: Elements, path: str) -> str:
    folders = path.split("/")[:-1]
    while folders and identifiers_in_header(elements, "/".join(folders)).get(_NAME_IN_PATH):
        folders.pop()
    return "/".join(folders)


def _uid(text: str, key: bytes) -> str:
    """A UID, or a keyed hash of what stands in its place."""
    if not text:
        return ""
    if len(text) <= 64 and _UID.fullmatch(text):
        return text
    return "#" + keyed(key, "uid", text.encode("utf-8", "replace"))


def _patient(elements: Elements, key: bytes) -> str:
    raw = elements.bytes(0x00100020).strip(b" \0")
    return keyed(key, "patient", raw) if raw else ""


def _laterality(elements: Elements) -> str:
    text = elements.text(0x00200062) or elements.text(0x00200060)
    return text if text in ("L", "R", "B", "U") else ""


def _contrast(elements: Elements) -> bool | None:
    if elements.find(0x00180012) is not None and next(elements.inside(0x00180012), None) is not None:
        return True
    if elements.find(0x00180010) is None:
        return None
    text = elements.text(0x00180010).upper()
    return bool(text) and text not in _WITHOUT


# --- numbers ----------------------------------------------------------------------------------------------------


def _finite(values: tuple[float, ...] | None) -> tuple[float, ...] | None:
    """The values if all of them are finite and of a size that makes sense."""
    if not values:
        return None
    for value in values:
        if not -1e12 < value < 1e12:  # NaN is neither
            return None
    return values


def _numbers(elements: Elements, tag: int) -> tuple[float, ...] | None:
    try:
        return _finite(elements.numbers(tag))
    except (ValueError, struct.error):
        return None


def _decoded(elements: Elements, element: Element) -> tuple[float, ...] | None:
    """Numbers of an element inside a sequence."""
    raw, code = elements.value(element), _BINARY.get(element.vr)
    with contextlib.suppress(ValueError, struct.error):
        if code is not None:
            order = "<" if elements.little_endian else ">"
            return _finite(struct.unpack(f"{order}{len(raw) // struct.calcsize(code)}{code}", raw))
        return _finite(tuple(float(part) for part in raw[:1024].strip(b" \0").split(b"\\")))
    return None


_NESTED = frozenset(
    {0x00200032, 0x00200037, 0x00280030, 0x00180050, 0x00189082, 0x00189087, 0x00180087, 0x00180081, 0x00181164}
)


def _nested(elements: Elements) -> dict[int, list[tuple[float, ...]]]:
    """Values of the attributes that enhanced objects keep in functional groups, in order, at most one a frame."""
    found: dict[int, list[tuple[float, ...]]] = {}
    for group in (_SHARED_GROUPS, _FRAME_GROUPS):
        for element in elements.inside(group):
            if element.tag in _NESTED and (values := _decoded(elements, element)) is not None:
                found.setdefault(element.tag, []).append(values)
    return found


def _vector(
    elements: Elements, nested: dict[int, list[tuple[float, ...]]], tag: int, length: int
) -> tuple[float, ...] | None:
    """Numbers of a tag of the data set, or of its first frame; None if their number is another."""
    values = _numbers(elements, tag) or next(iter(nested.get(tag, ())), None)
    return values if values is not None and len(values) == length else None


def _single(elements: Elements, nested: dict[int, list[tuple[float, ...]]], *tags: int) -> float | None:
    """The first number of a tag; of an enhanced object only if all its frames have the same. Negative is none."""
    for tag in tags:
        values = _numbers(elements, tag)
        if values is None and (frames := nested.get(tag)):
            values = frames[0] if all(frame == frames[0] for frame in frames) else None
        if values is not None and values[0] >= 0:
            return values[0]
    return None


def _whole(elements: Elements, tag: int) -> int | None:
    values = _numbers(elements, tag)
    return int(values[0]) if values is not None and abs(values[0]) < 2**31 else None


def _b_value(elements: Elements, nested: dict[int, list[tuple[float, ...]]]) -> float | None:
    """b-value in s/mm²: the standard's attribute, else that of Siemens, GE or Philips.

    Source: DICOM PS3.3 C.8.13.5.9; private: (0019,xx0C) SIEMENS MR HEADER, (0043,xx39) GEMS_PARM_01 (first of four,
    10⁹ added by newer software), (2001,xx03) Philips Imaging DD 001.
    """
    stated = _single(elements, nested, 0x00189087)
    if stated is not None:
        return stated
    for group, low, creator in _PRIVATE_B_VALUES:
        for block in range(0x10, 0x14):
            if not elements.text(group << 16 | block).startswith(creator):
                continue
            element = elements.find(group << 16 | block << 8 | low)
            if element is None or not 0 < element.length <= 256:
                continue
            values = _decoded(elements, element)
            raw = elements.value(element)
            if values is None and len(raw) == 4:  # implicit VR doesn't say that it is a float
                values = _finite(struct.unpack("<f" if elements.little_endian else ">f", raw))
            if values is not None and values[0] >= 0:
                return values[0] % 1e9 if values[0] >= 1e9 else values[0]
    return None


def _references(elements: Elements, key: bytes) -> tuple[str, ...]:
    """SeriesInstanceUIDs inside sequences: those that a label object, a report or a derived image refers to."""
    found: dict[str, None] = {}
    for element in elements.entries:
        if element.tag == 0x0020000E and element.depth and len(found) < _MOST_REFERENCES:
            text = elements.value(element)[:128].decode("ascii", "replace").strip(" \0")
            if text:
                found[_uid(text, key)] = None
    return tuple(found)

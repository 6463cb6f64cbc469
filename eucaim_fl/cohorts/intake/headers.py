"""What an import needs to know of one instance: who and what it is, where it belongs, and what makes it the same."""

from __future__ import annotations

import hashlib
import hmac
import re
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from pydicom.uid import UID

from eucaim_fl.cohorts.elements import Elements, read_elements
from eucaim_fl.cohorts.isolation import map_isolated
from eucaim_fl.errors import ImportFailedError, UnreadableFileError

__all__ = [
    "Examined",
    "Header",
    "content_hash",
    "examine",
    "is_image_class",
    "is_uid",
    "patient_folder",
    "place_of",
    "read_header",
]

_UID = re.compile(r"[0-9]{1,64}(?:\.[0-9]{1,64}){1,31}")
_SAFE_NAME = re.compile(rb"[A-Za-z0-9_-][A-Za-z0-9_.-]{0,63}")
_LABEL_CLASSES = frozenset(
    {
        "Segmentation Storage",
        "Label Map Segmentation Storage",
        "RT Structure Set Storage",
        "Parametric Map Storage",
    }
)
_BLOCK = 1024 * 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class Header:
    """What one instance says of itself; texts as stored, empty where it says nothing. Nothing of it is validated.

    patient_id: the stored bytes, since its character set is not decoded here. data_start: where the data set begins in
    the file, behind the file meta information.
    """

    patient_id: bytes
    sex: str
    study_uid: str
    series_uid: str
    sop_uid: str
    sop_class: str
    modality: str
    body_part: str
    study_date: str
    manufacturer: str
    transfer_syntax: str
    data_start: int


def _header(elements: Elements) -> Header:
    text = elements.text
    start = 132 if elements.raw[128:132] == b"DICM" else 0
    return Header(
        patient_id=elements.bytes(0x00100020).strip(b" \0"),
        sex=text(0x00100040),
        study_uid=text(0x0020000D),
        series_uid=text(0x0020000E),
        sop_uid=text(0x00080018),
        sop_class=text(0x00080016),
        modality=text(0x00080060),
        body_part=text(0x00180015),
        study_date=text(0x00080020).replace("-", "").replace(".", ""),
        manufacturer=text(0x00080070),
        transfer_syntax=elements.transfer_syntax,
        data_start=max([start, *(e.start + e.length for e in elements.meta)]),
    )


def _described(path: str) -> dict[str, Any]:
    """What a worker process says of one file: its header as JSON."""
    values = asdict(_header(read_elements(Path(path))))
    return {**values, "patient_id": values["patient_id"].hex()}


def read_header(path: Path) -> Header:
    """The header of one file, read in a process of its own.

    Raises UnreadableFileError if it is no DICOM file, broken, too large, or ends the process that reads it.
    """
    return next(examine([path]))[1].unwrap()


@dataclass(frozen=True)
class Examined:
    """A header, or why there is none."""

    header: Header | None
    problem: str = ""

    def unwrap(self) -> Header:
        """The header. Raises UnreadableFileError if there is none."""
        if self.header is None:
            raise UnreadableFileError("A DICOM file is missing, truncated or corrupt.", local_detail=self.problem)
        return self.header


def examine(paths: Iterable[Path], *, workers: int = 1) -> Iterator[tuple[Path, Examined]]:
    """Read headers in worker processes that are bounded in time and memory; results come in the order of `paths`."""
    waiting: dict[int, Path] = {}
    early: dict[int, tuple[Path, Examined]] = {}
    following = 0

    def items() -> Iterator[str]:
        for number, path in enumerate(paths):
            waiting[number] = path
            yield str(path)

    for number, result in map_isolated(f"{__name__}:_described", items(), workers=workers, seconds=60.0):
        path = waiting.pop(number)
        try:
            values = dict(result.value)
            found = Examined(Header(**{**values, "patient_id": bytes.fromhex(values["patient_id"])}))
        except (TypeError, ValueError, KeyError):
            found = Examined(None, f"{path}: {result.reason} {result.local_detail}".strip())
        early[number] = path, found
        while following in early:
            yield early.pop(following)
            following += 1


def is_uid(text: str) -> bool:
    """Whether a text is a DICOM UID: numbers and dots, at most 64 characters.

    Leading zeros are taken: the standard forbids them, scanners write them.

    >>> is_uid("1.2.840.10008.1.2"), is_uid("1.2/../3"), is_uid(""), is_uid("1..2")
    (True, False, False, False)
    """
    return len(text) <= 64 and _UID.fullmatch(text) is not None


def is_image_class(sop_class: str) -> bool:
    """Whether a SOP class holds images, segmentations or contours. Reports, documents and states may name people.

    >>> is_image_class("1.2.840.10008.5.1.4.1.1.4"), is_image_class("1.2.840.10008.5.1.4.1.1.88.11")
    (True, False)
    """
    name = UID(sop_class).name
    return "Image Storage" in name or name in _LABEL_CLASSES


def patient_folder(patient_id: bytes, key: bytes) -> str:
    """The name of a patient's folder: the ID itself if it is safe as a name, else `EUCAIM-` and a keyed hash of it.

    Raises ImportFailedError if there is no ID: patients without one must not become one patient.
    """
    if not patient_id:
        raise ImportFailedError("An image names no patient.")
    if _SAFE_NAME.fullmatch(patient_id):
        return patient_id.decode("ascii")
    return "EUCAIM-" + hmac.digest(key, b"patient:" + patient_id, "sha256").hex()[:32]


def place_of(header: Header, key: bytes) -> PurePosixPath:
    """Where an instance belongs, relative to the cohort: `imaging_data/{patient}/{study}/{series}/{instance}.dcm`.

    Raises ImportFailedError if it names no patient, or one of its UIDs is none.
    """
    uids = (header.study_uid, header.series_uid, header.sop_uid)
    if not all(map(is_uid, uids)):
        raise ImportFailedError("An image has no valid UIDs.")
    return PurePosixPath("imaging_data", patient_folder(header.patient_id, key), *uids[:2], f"{uids[2]}.dcm")


def content_hash(path: Path, header: Header) -> str:
    """SHA-256 (hexadecimal) of an instance's data set and transfer syntax.

    File meta information stays out: who wrote the file last is written there, and every transport writes its own.
    Raises UnreadableFileError if the file can't be read.
    """
    digest = hashlib.sha256(header.transfer_syntax.encode() + b"\0")
    try:
        with path.open("rb") as stream:
            stream.seek(header.data_start)
            while block := stream.read(_BLOCK):
                digest.update(block)
    except OSError as problem:
        raise UnreadableFileError("A file can't be read.", local_detail=f"{path}: {problem}") from None
    return digest.hexdigest()

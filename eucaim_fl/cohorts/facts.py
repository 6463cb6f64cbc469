"""What the index knows: facts of one file, and of one stack of images, from headers alone. Values only."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, Protocol

__all__ = ["Catalogue", "FileFacts", "FileKind", "SeriesFacts"]

FileKind = Literal["dicom", "nifti", "other"]


@dataclass(frozen=True, slots=True, kw_only=True)
class FileFacts:
    """One file of a cohort as its header and the file system describe it.

    path: relative to the cohort's folder, POSIX. size, mtime_ns, ctime_ns, inode: its signature; while it stays, the
    file is not read again.
    content: SHA-256 (hexadecimal) over the header and samples of the rest; equal for a file that only moved.
    code, reason: why it can't be used (safe outside the hospital), empty if it can. Nothing here quotes what could name
    a person: patient_id is a keyed hash; series_description, protocol and sequence keep known imaging words only; the
    path of a file whose name breaks a rule is `#` and a keyed hash, where the site's policy blocks such files. Texts
    are empty and numbers None
    where the header doesn't say. position, orientation: LPS+ mm and cosines, as ImagePositionPatient and
    ImageOrientationPatient. spacing: between rows, between columns, mm. identifiers: rule of the de-identification
    check → how often this file breaks it. references: SeriesInstanceUIDs that a label object refers to. samples: values
    that each pixel has, 3 for colours. photometric: PhotometricInterpretation, if it is one of the standard's.
    """

    path: str
    size: int
    mtime_ns: int
    ctime_ns: int
    inode: int
    kind: FileKind = "other"
    content: str = ""
    code: str = ""
    reason: str = ""
    local_detail: str = ""
    identifiers: Mapping[str, int] = field(default_factory=dict)
    patient_id: str = ""
    study_uid: str = ""
    series_uid: str = ""
    sop_uid: str = ""
    sop_class: str = ""
    transfer_syntax: str = ""
    modality: str = ""
    body_part: str = ""
    laterality: str = ""
    series_description: str = ""
    protocol: str = ""
    sequence: str = ""
    image_type: tuple[str, ...] = ()
    manufacturer: str = ""
    model: str = ""
    study_date: str = ""
    frame_of_reference: str = ""
    rows: int | None = None
    columns: int | None = None
    frames: int | None = None
    samples: int | None = None
    photometric: str = ""
    position: tuple[float, ...] | None = None
    orientation: tuple[float, ...] | None = None
    spacing: tuple[float, ...] | None = None
    thickness_mm: float | None = None
    field_strength_t: float | None = None
    contrast: bool | None = None
    acquisition: int | None = None
    temporal_position: int | None = None
    echo_time_ms: float | None = None
    b_value: float | None = None
    instance_number: int | None = None
    references: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class SeriesFacts:
    """One stack of images (or one label object): files of one folder and series that form one volume.

    folder, files: relative to the cohort's folder, POSIX; files in canonical (sorted) order. stack: empty if the series
    is one stack, else what tells it from its sisters, such as `b=800` or `echo=2`. kind: how to read it.
    plane: of the stated orientation. spacing_mm: between rows, between columns, between slices (None where unknown).
    size: rows, columns, slices. samples, photometric: as in `FileFacts`, where all files say the same. identifiers:
    summed over files. code, reason: why it can't be used.
    """

    folder: str
    files: tuple[str, ...]
    kind: FileKind
    stack: str = ""
    patient_id: str = ""
    study_uid: str = ""
    series_uid: str = ""
    modality: str = ""
    body_part: str = ""
    laterality: str = ""
    description: str = ""
    protocol: str = ""
    sequence: str = ""
    image_type: tuple[str, ...] = ()
    manufacturer: str = ""
    model: str = ""
    study_date: str = ""
    frame_of_reference: str = ""
    transfer_syntax: str = ""
    plane: Literal["axial", "coronal", "sagittal", "oblique", ""] = ""
    size: tuple[int, int, int] = (0, 0, 0)
    samples: int | None = None
    photometric: str = ""
    spacing_mm: tuple[float | None, float | None, float | None] = (None, None, None)
    thickness_mm: float | None = None
    contrast: bool | None = None
    echo_time_ms: float | None = None
    b_value: float | None = None
    field_strength_t: float | None = None
    references: tuple[str, ...] = ()
    identifiers: Mapping[str, int] = field(default_factory=dict)
    content: str = ""
    code: str = ""
    reason: str = ""
    local_detail: str = ""


class Catalogue(Protocol):
    """What layouts ask of the index of a cohort."""

    def series(self, folder: str, *, recursive: bool = False) -> Sequence[SeriesFacts]:
        """Stacks whose files lie directly in `folder` (relative, POSIX, "" is the cohort's own), or anywhere below.

        NIfTI files are stacks of their own (one file each). Sorted by folder, series and stack. A file that can't be
        read is a stack without series UID, with its code and reason.
        """
        ...

    def folders(self, folder: str) -> Sequence[str]:
        """Names of the folders directly in `folder` that hold indexed files at any depth, sorted."""
        ...

    def file(self, path: str) -> FileFacts | None:
        """Facts of one file, or None if it isn't there."""
        ...

    def every(self) -> Iterator[SeriesFacts]:
        """All stacks of the cohort, in order, a few at a time."""
        ...

"""Facts of one file from its header, for the index. Runs in a worker process, since files are foreign."""

from __future__ import annotations

import hashlib
import io
import os
import re
import stat
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from eucaim_fl.cohorts.deidentification.names import identifiers_in_name
from eucaim_fl.cohorts.facts import FileKind
from eucaim_fl.cohorts.index.dicom_facts import dicom_facts
from eucaim_fl.cohorts.index.dicom_header import NotDicomError
from eucaim_fl.cohorts.index.nifti_facts import nifti_facts
from eucaim_fl.cohorts.index.store import keyed

__all__ = ["Reading", "kind_of_name", "masked_path", "read_facts", "read_item"]

_UNREADABLE, _NAMES_SOMEBODY = "EFL204", "EFL205"
_FIRST_BYTES = 32 * 1024
_SAMPLE_BYTES = 4096
_NIFTI_HEADER = 352
_DICOM_ENDINGS = frozenset({".dcm", ".dicom", ".dic", ".ima"})
_OTHERS = """
    " csv tsv json txt xml xlsx xls pdf png jpg jpeg tif tiff bmp gif zip gz tar 7z md html htm doc docx bval
    bvec log yaml yml py m mat npy npz h5 mha mhd nrrd nhdr raw db sqlite exe inf ini js css svg mp4 avi lnk tmp
    bak part parquet sh bat jar dll sav rds ppt pptx xsd
"""
_OTHER_ENDINGS = frozenset(f".{ending}" for ending in _OTHERS.split())
_MAGIC = {
    b"PK\x03\x04": "a ZIP archive",
    b"\xff\xd8\xff": "a JPEG image",
    b"\x89PNG": "a PNG image",
    b"%PDF": "a PDF document",
    b"\x1f\x8b": "a gzip file",
    b"{": "JSON",
    b"<": "a web page or XML",
}
_SLASH = re.compile(r"/+$")


@dataclass(frozen=True)
class Reading:
    """What all files of a scan have in common.

    root: the cohort's folder. key: of the site, for hashes. words: beyond the imaging words that descriptions keep.
    blocks: names that could name a person become hashes, and their files are not used. whole: hash all bytes of files.
    """

    root: Path
    key: bytes
    words: frozenset[str] = frozenset()
    blocks: bool = True
    whole: bool = False

    def to_json(self) -> dict[str, Any]:
        """As a JSON value."""
        return {
            "root": str(self.root),
            "key": self.key.hex(),
            "words": sorted(self.words),
            "blocks": self.blocks,
            "whole": self.whole,
        }

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> Reading:
        """The inverse of `to_json`."""
        words = frozenset(values["words"])
        return cls(Path(values["root"]), bytes.fromhex(values["key"]), words, values["blocks"], values["whole"])


def kind_of_name(name: str) -> FileKind | None:
    """What a file's name says it is; None if only its first bytes can tell."""
    lower = name.lower()
    if lower.startswith(".") or lower == "dicomdir":
        return "other"
    if lower.endswith((".nii", ".nii.gz")):
        return "nifti"
    ending = os.path.splitext(lower)[1]  # noqa: PTH122 - millions of names
    if ending in _DICOM_ENDINGS:
        return "dicom"
    return "other" if ending in _OTHER_ENDINGS else None


def masked_path(path: str, key: bytes, clean: str | None = None) -> str:
    """A path without what could name a person: its leading folders as long as none does, then `#` and a keyed hash for
    the folder that does (with all below it), and `#` and one for the file.

    clean: the leading folders that may stay, where that is known; None asks the rules for names.
    """
    parts = _SLASH.sub("", path).split("/")
    kept = len(clean.split("/")) if clean else 0
    if clean is None:
        while kept < len(parts) - 1 and not identifiers_in_name("/".join(parts[: kept + 1])):
            kept += 1
    hidden = ["/".join(parts[: kept + 1]), "/".join(parts)][len(parts) - kept < 2 :]
    hashes = ("#" + keyed(key, "path", name.encode("utf-8", "surrogateescape")) for name in hidden)
    return "/".join([*parts[:kept], *hashes])


def read_item(item: list[Any], shared: dict[str, Any]) -> dict[str, Any]:
    """`read_facts` for a worker: [path, size, …] → the values that aren't empty, as JSON."""
    values = read_facts(item[0], item[1], Reading.from_json(shared))
    return {name: value for name, value in values.items() if value not in ("", None, (), {})}


def read_facts(path: str, size: int, reading: Reading) -> dict[str, Any]:
    """Facts of one file by the names of `FileFacts`, but for its signature; those that are missing are empty.

    path, size: relative to `reading.root` (POSIX), as listed. Whatever is wrong with the file becomes a code and a
    reason. Only what is named as DICOM or NIfTI, or begins like DICOM, is read; of other files only the names count.
    `whole` is the SHA-256 of all bytes where `reading.whole` asks for it.
    """
    kind = kind_of_name(path.rpartition("/")[2])
    named = identifiers_in_name(path)
    facts: dict[str, Any] = {"kind": "other"}
    try:
        if kind != "other":
            handle = os.open(reading.root / path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
            with os.fdopen(handle, "rb", buffering=0) as stream:
                if not stat.S_ISREG(os.fstat(handle).st_mode):
                    raise OSError("no regular file")
                facts = _read(stream, path, size, kind, reading)
    except OSError as problem:
        detail = os.strerror(problem.errno) if problem.errno else ""
        facts = _broken(kind or "other", "A file is missing or may not be read.", detail)
    found = dict(facts.get("identifiers", {}))
    for rule, count in named.items():
        found[rule] = found.get(rule, 0) + count
    facts.update(path=path, identifiers=found)
    clean = facts.pop("clean", "")
    if reading.blocks and found.get("deid.name_in_path"):  # only the header could tell that the name names somebody
        hidden = masked_path(path, reading.key, clean)
        reason = "A file's name holds what its header says of the patient."
        facts.update(path=hidden, code=_NAMES_SOMEBODY, reason=reason)
    return facts


def _read(stream: io.FileIO, path: str, size: int, kind: FileKind | None, reading: Reading) -> dict[str, Any]:
    """Facts of an open file."""
    first, header = stream.read(_FIRST_BYTES), 0
    like_dicom = first[128:132] == b"DICM"
    if kind is None and not like_dicom and first[:2] not in (b"\x08\x00", b"\x02\x00"):
        return {"kind": "other"}
    try:
        if kind == "nifti":
            facts, header = _nifti(first, size, reading.root / path), min(len(first), _NIFTI_HEADER)
        else:
            facts, header = dicom_facts(path, size, first, stream, reading.key, reading.words)
    except NotDicomError as problem:
        if kind is None and not like_dicom:
            return {"kind": "other"}
        facts = _broken("dicom", _what_it_is(first), str(problem))
    if facts["kind"] == "other":
        return facts
    facts["content"] = _content(stream, first, header)
    if reading.whole:
        stream.seek(0)
        facts["whole"] = hashlib.file_digest(stream, "sha256").hexdigest()
    return facts


def _nifti(first: bytes, size: int, path: Path) -> dict[str, Any]:
    try:
        return nifti_facts(first, size, path)
    except ValueError as problem:
        return _broken("nifti", "A NIfTI file is empty, truncated or corrupt.", str(problem)[:80])


def _broken(kind: FileKind, reason: str, detail: str = "") -> dict[str, Any]:
    return {"kind": kind, "code": _UNREADABLE, "reason": reason, "local_detail": detail}


def _what_it_is(first: bytes) -> str:
    if not first:
        return "A file is empty."
    start = first[:64].lstrip(b"\xef\xbb\xbf \r\n\t")
    other = next((name for magic, name in _MAGIC.items() if start.startswith(magic)), None)
    if other is not None and first[128:132] != b"DICM":
        return f"A file named as DICOM is {other}."
    return "A DICOM file is truncated or corrupt."


def _content(stream: io.FileIO, first: bytes, header: int) -> str:
    """SHA-256 over the size, the header, and three samples of the rest. first: what has been read already."""
    size = stream.seek(0, 2)
    digest = hashlib.sha256(size.to_bytes(8, "little"))
    digest.update(first[:header])
    if header > len(first):
        stream.seek(len(first))
        left = header - len(first)
        while left > 0 and (piece := stream.read(min(left, 1 << 20))):
            digest.update(piece)
            left -= len(piece)
    if size <= len(first):
        digest.update(first[header:])
        return digest.hexdigest()
    for start in (header, (header + size) // 2, max(header, size - _SAMPLE_BYTES)):
        stream.seek(start)
        digest.update(stream.read(_SAMPLE_BYTES))
    return digest.hexdigest()

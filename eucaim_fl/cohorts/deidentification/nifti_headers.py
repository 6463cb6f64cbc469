"""Identifiers in NIfTI files: texts and extensions of the header, and names that compression keeps."""

from __future__ import annotations

import gzip
import io
import struct
import zlib
from collections import Counter
from pathlib import Path
from typing import NamedTuple

from eucaim_fl.cohorts.deidentification import judges, patterns
from eucaim_fl.cohorts.deidentification.names import identifiers_in_name, looks_like_person
from eucaim_fl.cohorts.deidentification.words import is_imaging_word, tokens
from eucaim_fl.cohorts.volume import LARGEST_VOLUME_BYTES
from eucaim_fl.errors import UnreadableFileError

__all__ = ["cleared", "identifiers_in_nifti"]

_GZIP = b"\x1f\x8b"
_MOST_HEADER = 1024 * 1024
_MOST_NAME = 4096
_TOOLS_TEXT = """
fsl spm spm8 spm12 itk nibabel niftyreg freesurfer ants afni dcm2nii dcm2niix time te phase mb c3d elastix simpleitk
monai nilearn vtk slicer matlab nifti analyze mricron mrtrix mrtrix3 plastimatch minc brainvoyager nii writer output
image created by converted from python numpy build version release estimated motion coregistered resliced none
"""
_TOOLS = frozenset(_TOOLS_TEXT.split())


class _Layout(NamedTuple):
    """Where a version of the header keeps its texts. texts: start and length; offset: of vox_offset and its format."""

    size: int
    texts: tuple[tuple[int, int], ...]
    offset: tuple[int, str]


_FIRST = _Layout(348, ((4, 10), (14, 18), (148, 80), (228, 24), (328, 16)), (108, "f"))
_SECOND = _Layout(540, ((240, 80), (320, 24), (508, 16)), (168, "q"))


def _layout(header: bytes) -> tuple[_Layout, str]:
    """The version and byte order of a header. Raises ValueError if it is none."""
    for order in "<>":
        for layout in (_FIRST, _SECOND):
            if len(header) >= layout.size and struct.unpack_from(order + "i", header)[0] == layout.size:
                return layout, order
    raise ValueError("no NIfTI header")


def _first_bytes(path: Path) -> tuple[bytes, bytes]:
    """The first bytes of the file, unpacked, and the names in the header of its compression."""
    with path.open("rb") as stream:
        raw = stream.read(_MOST_HEADER)
    if not raw.startswith(_GZIP):
        return raw, b""
    return zlib.decompressobj(wbits=31).decompress(raw, _MOST_HEADER), _names_in_gzip(raw)


def _names_in_gzip(raw: bytes) -> bytes:
    """File name and comment of a gzip member (RFC 1952), separated by a slash; empty where there are none."""
    flags, at = raw[3] if len(raw) > 10 else 0, 10
    if flags & 4:
        at += 2 + int.from_bytes(raw[at : at + 2], "little")
    names = []
    for flag in (8, 16):
        if flags & flag:
            end = raw.find(b"\0", at, at + _MOST_NAME)
            end = min(len(raw), at + _MOST_NAME) if end < 0 else end
            names.append(raw[at:end])
            at = end + 1
    return b"/".join(names)


def _is_known(token: str) -> bool:
    return token.isdecimal() or token.rstrip("0123456789") in _TOOLS or token in _TOOLS or is_imaging_word(token)


def _judge_text(text: str) -> str:
    """The rule that a text of the header breaks, or "". Names of programs and their options say nothing."""
    rest = patterns.without_opaque(" ".join(word for word in text.split() if not all(map(_is_known, tokens(word)))))
    if patterns.emails(text) or patterns.days(text) or patterns.phones(text) or patterns.long_numbers(text):
        return "deid.nifti_text"
    if looks_like_person(rest):
        return "deid.nifti_text"
    return "" if all(map(_is_known, tokens(rest))) else "deid.nifti_words"


def _extensions(header: bytes, layout: _Layout, order: str) -> int:
    """How many extensions with content follow the header."""
    start, code = layout.offset
    end = min(int(struct.unpack_from(order + code, header, start)[0]), len(header))
    at, count = layout.size + 4, 0
    if end <= at or not header[layout.size]:
        return 0
    while at + 8 <= end:
        size = struct.unpack_from(order + "i", header, at)[0]
        if size < 8:
            break
        count += bool(header[at + 8 : min(at + size, end)].strip(b"\0 "))
        at += size
    return count


def identifiers_in_nifti(path: Path) -> dict[str, int]:
    """Rule → how often the header of a NIfTI file (`.nii`, `.nii.gz`, or the `.hdr` of a pair) breaks it.

    `deid.nifti_text`: a person's shape, day, e-mail, telephone or long number in descrip, aux_file, intent_name,
    db_name or data_type; `deid.nifti_words`: other words there that are neither imaging words nor names of programs.
    `deid.nifti_extension`: extensions with content. `deid.nifti_gzip_name`: the file name or comment that gzip keeps.
    At most 1 MiB is read and unpacked.
    Raises UnreadableFileError if the file is missing, corrupt or no NIfTI file.
    """
    found: Counter[str] = Counter()
    try:
        header, name = _first_bytes(path)
        layout, order = _layout(header)
        for start, length in layout.texts:
            rule = _judge_text(judges.text_of(header[start : start + length].partition(b"\0")[0]))
            found[rule] += 1
        found["deid.nifti_extension"] += _extensions(header, layout, order)
    except (OSError, ValueError, OverflowError, struct.error, zlib.error) as problem:
        raise UnreadableFileError("A NIfTI file is missing or corrupt.", local_detail=f"{path}: {problem}") from None
    found["deid.nifti_gzip_name"] += sum(identifiers_in_name(judges.text_of(name)).values())
    return {rule: count for rule, count in found.items() if rule and count}


def cleared(path: Path, *, compressed: bool) -> bytes:
    """The bytes of a NIfTI file with empty texts and no extensions, compressed or not.

    Raises UnreadableFileError if the file is missing, corrupt, too large, or no NIfTI file in one piece.
    """
    try:
        if path.stat().st_size > LARGEST_VOLUME_BYTES:
            raise ValueError("file larger than a volume may be")
        raw = path.read_bytes()
        if raw.startswith(_GZIP):
            unpacker = zlib.decompressobj(wbits=31)
            raw = unpacker.decompress(raw, LARGEST_VOLUME_BYTES)
            if not unpacker.eof:
                raise ValueError("gzip stream ends early, or unpacks to more than a volume may have")
        layout, order = _layout(raw)
        magic = raw[344:347] if layout is _FIRST else raw[4:7]
        if magic not in (b"n+1", b"n+2"):
            raise ValueError("header and voxels are not in one file")
        start, code = layout.offset
        voxels = int(struct.unpack_from(order + code, raw, start)[0])
        if not layout.size <= voxels <= len(raw):
            raise ValueError("voxels start outside the file")
    except (OSError, ValueError, OverflowError, struct.error, zlib.error) as problem:
        raise UnreadableFileError(
            "A NIfTI file is missing or corrupt, or not in one piece.", local_detail=f"{path}: {problem}"
        ) from None
    header = bytearray(raw[: layout.size])
    for at, length in layout.texts:
        header[at : at + length] = bytes(length)
    first = layout.size + 4
    struct.pack_into(order + code, header, start, first)
    content = bytes(header) + bytes(4) + raw[voxels:]
    if not compressed:
        return content
    packed = io.BytesIO()
    with gzip.GzipFile(filename="", mode="wb", fileobj=packed, mtime=0) as stream:
        stream.write(content)
    return packed.getvalue()

"""NIfTI files as volumes: bounded, whole, and with a stated position or not at all."""

from __future__ import annotations

import zlib
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import numpy.typing as npt

from eucaim_fl.cohorts.volume import LARGEST_VOLUME_BYTES, Affine, Volume
from eucaim_fl.errors import SeriesError, UnreadableFileError

__all__ = ["read_array", "read_nifti"]

_GZIP = b"\x1f\x8b"
_HEADER_BYTES = 540
_ROOM_BYTES = 16 * 1024 * 1024  # for header extensions


def _claimed(raw: bytes) -> int:
    """Bytes that a NIfTI file has by its own header, with room for extensions and padding, from its first 540 bytes.

    Raises ValueError if the header is none, or claims more than a volume may have.
    """
    kind = _kind(raw)
    header = kind.header_class(raw[: kind.header_class.sizeof_hdr])
    shape = header.get_data_shape()
    if min(shape, default=0) < 1 or int(np.prod(shape, dtype=object)) * 4 > LARGEST_VOLUME_BYTES:
        raise ValueError(f"shape {shape} is empty or too large")
    start = float(header["vox_offset"])
    if not 0 <= start <= LARGEST_VOLUME_BYTES:
        raise ValueError("its voxels start outside the file")
    return int(start) + int(np.prod(shape, dtype=object)) * int(header.get_data_dtype().itemsize) + _ROOM_BYTES


def _kind(raw: bytes) -> Any:
    """The class of nibabel that reads these bytes."""
    return nib.Nifti2Image if int.from_bytes(raw[:4], "little") == 540 or raw[:4] == b"\0\0\2\x1c" else nib.Nifti1Image


def _content(path: Path) -> bytes:
    """The file's bytes, unpacked if they are gzip; the check sum at the end of each gzip member is verified.

    No more is unpacked than the header inside claims.
    """
    raw = path.read_bytes()
    if not raw.startswith(_GZIP):
        _claimed(raw)
        return raw
    return _unpacked(raw, _claimed(_unpacked(raw, _HEADER_BYTES, only_the_start=True)))


def _unpacked(raw: bytes, room: int, *, only_the_start: bool = False) -> bytes:
    """All members of a gzip file, or only its first `room` bytes. Raises ValueError if there is more than `room`."""
    pieces: list[bytes] = []
    while raw.startswith(_GZIP):
        member = zlib.decompressobj(wbits=31)
        pieces.append(member.decompress(raw, max(room, 1)))
        room -= len(pieces[-1])
        if only_the_start and room <= 0:
            break
        if not member.eof or room < 0:
            raise ValueError("gzip stream ends early, or unpacks to more than its header claims")
        raw = member.unused_data
    return b"".join(pieces)


def read_array(path: Path, dtype: type[Any] = np.float32) -> tuple[npt.NDArray[Any], Affine]:
    """Scaled values and affine (index → RAS+ mm) of a NIfTI-1 or NIfTI-2 file, `.nii` or `.nii.gz`.

    Returns an array of shape (I, J, K); trailing axes of length 1 are dropped, a 2-D image gets K = 1.
    Raises UnreadableFileError if the file is missing, truncated, corrupt, no NIfTI, or claims to be too large; and
    SeriesError if it holds several volumes or colours, or states no position (qform and sform codes both 0).
    Source: NIfTI-1 standard, method 2 (qform) and 3 (sform).
    """
    try:
        if path.stat().st_size > LARGEST_VOLUME_BYTES:
            raise ValueError("file larger than a volume may be")
        raw = _content(path)
        image = _kind(raw).from_bytes(raw)
        shape = tuple(int(n) for n in image.shape)
        stored = image.get_data_dtype()
        coded = int(image.header["qform_code"]) != 0 or int(image.header["sform_code"]) != 0
        fits = stored.fields is None and stored.kind in "biuf"
        values = np.asarray(image.get_fdata(dtype=dtype, caching="unchanged")) if fits else np.empty(0, dtype)
        affine = np.asarray(image.affine, dtype=np.float64)
    except Exception as problem:  # noqa: BLE001 - a foreign file can make the decoder raise anything
        raise UnreadableFileError(
            "A NIfTI file is missing, truncated or corrupt.", local_detail=f"{path}: {problem}"
        ) from None
    if not fits:
        raise SeriesError(
            "A NIfTI file holds colours or complex numbers, not one value a voxel.", local_detail=str(path)
        )
    if len(shape) < 2 or any(n != 1 for n in shape[3:]):
        raise SeriesError("A NIfTI file holds no single volume.", local_detail=f"{path}: shape {shape}")
    if not np.isfinite(affine).all():
        raise SeriesError("A NIfTI file states a position that is no number.", local_detail=str(path))
    if not coded:
        raise SeriesError(
            "A NIfTI file states no position in space (qform and sform codes are 0).",
            fix="Convert it again from the original DICOM series.",
            local_detail=str(path),
        )
    return values.reshape((*shape[:3], 1)[:3]), affine


def read_nifti(path: Path) -> Volume:
    """The image in a NIfTI file, as `read_array` reads it.

    Raises UnreadableFileError and SeriesError as `read_array` does, and SeriesError if a value is NaN or infinite.
    """
    array, affine = read_array(path)
    if not np.isfinite(array).all():
        raise SeriesError("A NIfTI file holds values that are NaN or infinite.", local_detail=str(path))
    try:
        return Volume(np.asarray(array, dtype=np.float32), affine)
    except SeriesError as problem:
        raise SeriesError(problem.message, local_detail=str(path)) from None

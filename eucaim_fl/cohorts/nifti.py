"""NIfTI files as volumes: bounded, whole, and with a stated position or not at all.

Colours (data type RGB24) are read as three volumes, or as their luminance where one value a voxel is asked for.
"""

from __future__ import annotations

import zlib
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import numpy.typing as npt

from eucaim_fl.cohorts.volume import LARGEST_VOLUME_BYTES, LUMINANCE, Affine, Volume
from eucaim_fl.errors import SeriesError, UnreadableFileError

__all__ = ["read_array", "read_colours", "read_nifti"]

_GZIP = b"\x1f\x8b"
_HEADER_BYTES = 540
_ROOM_BYTES = 16 * 1024 * 1024  # for header extensions
_COLOURS = ("R", "G", "B")  # fields of nibabel's type for DT_RGB24
_NO_NUMBERS = "A NIfTI file holds colours or complex numbers, not one value a voxel."


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


def _read(path: Path, dtype: type[Any]) -> tuple[npt.NDArray[Any], Affine]:
    """Scaled values, shape (I, J, K), or (I, J, K, 3) for colours, and the affine; errors as of `read_array`."""
    try:
        if path.stat().st_size > LARGEST_VOLUME_BYTES:
            raise ValueError("file larger than a volume may be")
        raw = _content(path)
        image = _kind(raw).from_bytes(raw)
        shape = tuple(int(n) for n in image.shape)
        stored = image.get_data_dtype()
        coded = int(image.header["qform_code"]) != 0 or int(image.header["sform_code"]) != 0
        fits = stored.names == _COLOURS or (stored.fields is None and stored.kind in "biuf")
        values = np.empty(0, dtype)
        if fits and stored.fields is not None:
            colours = np.asanyarray(image.dataobj)
            values = np.stack([colours[name] for name in _COLOURS], axis=-1).astype(dtype)
        elif fits:
            values = np.asarray(image.get_fdata(dtype=dtype, caching="unchanged"))
        affine = np.asarray(image.affine, dtype=np.float64)
    except Exception as problem:  # noqa: BLE001 - a foreign file can make the decoder raise anything
        raise UnreadableFileError(
            "A NIfTI file is missing, truncated or corrupt.", local_detail=f"{path}: {problem}"
        ) from None
    if not fits:
        raise SeriesError(_NO_NUMBERS, local_detail=str(path))
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
    kept = (*shape[:3], 1)[:3]
    return values.reshape((*kept, 3) if stored.fields is not None else kept), affine


def read_array(path: Path, dtype: type[Any] = np.float32) -> tuple[npt.NDArray[Any], Affine]:
    """Scaled values and affine (index → RAS+ mm) of a NIfTI-1 or NIfTI-2 file, `.nii` or `.nii.gz`.

    Returns an array of shape (I, J, K); trailing axes of length 1 are dropped, a 2-D image gets K = 1.
    Raises UnreadableFileError if the file is missing, truncated, corrupt, no NIfTI, or claims to be too large; and
    SeriesError if it holds several volumes or colours, or states no position (qform and sform codes both 0).
    Source: NIfTI-1 standard, method 2 (qform) and 3 (sform).
    """
    values, affine = _read(path, dtype)
    if values.ndim == 4:
        raise SeriesError(_NO_NUMBERS, local_detail=str(path))
    return values, affine


def read_colours(path: Path) -> tuple[Volume, Volume, Volume]:
    """Red, green and blue, each 0 to 255, of a NIfTI file of data type RGB24.

    Raises UnreadableFileError and SeriesError as `read_array` does, and SeriesError if the file holds no colours.
    """
    values, affine = _read(path, np.float32)
    if values.ndim != 4:
        raise SeriesError("A NIfTI file holds no colours, and the plan asks for them.", local_detail=str(path))
    red, green, blue = (_volume(np.ascontiguousarray(values[..., n]), affine, path) for n in range(len(_COLOURS)))
    return red, green, blue


def read_nifti(path: Path) -> Volume:
    """The image in a NIfTI file; colours (data type RGB24) become their luminance, 0 to 255.

    Raises UnreadableFileError and SeriesError as `read_array` does, but for colours, and SeriesError if a value is NaN
    or infinite.
    Source: ITU-R BT.601 (luminance).
    """
    values, affine = _read(path, np.float32)
    return _volume(values @ np.array(LUMINANCE, np.float32) if values.ndim == 4 else values, affine, path)


def _volume(array: npt.NDArray[np.float32], affine: Affine, path: Path) -> Volume:
    if not np.isfinite(array).all():
        raise SeriesError("A NIfTI file holds values that are NaN or infinite.", local_detail=str(path))
    try:
        return Volume(array, affine)
    except SeriesError as problem:
        raise SeriesError(problem.message, local_detail=str(path)) from None

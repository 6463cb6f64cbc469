"""Facts of a NIfTI file from the first bytes of its header. Source: nifti1.h and nifti2.h of the NIfTI standard."""

from __future__ import annotations

import math
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np

__all__ = ["nifti_facts"]

_GZIP = b"\x1f\x8b"
_HEADER_BYTES = 544
_RGB24_BITS = 24  # no other type of NIfTI has so many
_TO_LPS = np.diag([-1.0, -1.0, 1.0])


def nifti_facts(first: bytes, size: int, path: Path) -> dict[str, Any]:
    """Values of `FileFacts` of a NIfTI file: size, spacing and position as its header states them; identifiers in it.

    first, size: the first bytes of the file, packed or not, and how many bytes it has. rows and columns are the second
    and first axis, frames the others; position and orientation are in LPS+ as in DICOM, None where the file states none
    (qform and sform codes 0).
    Raises ValueError if it is no NIfTI file, or ends before its voxels do.
    """
    from eucaim_fl.cohorts.deidentification.nifti_headers import identifiers_in_nifti

    packed = first.startswith(_GZIP)
    raw = _unpacked(first) if packed else first
    dims, bits, spacing, offset, affine = _header(raw)
    shape = [max(1, n) for n in dims[1 : max(0, min(7, dims[0])) + 1]]
    if not 2 <= dims[0] <= 7 or min(dims[1 : dims[0] + 1]) < 1 or math.prod(shape) > 2**40:
        raise ValueError("no shape")
    if not packed and offset + math.prod(shape) * bits // 8 > size:
        raise ValueError("truncated")
    shape = [*shape, 1, 1][: max(3, len(shape))]
    lps = None if affine is None else _TO_LPS @ affine[:3]
    lengths = None if lps is None else np.linalg.norm(lps[:, :3], axis=0)
    stated = lps is not None and lengths is not None and np.isfinite(lps).all() and lengths.min() > 0
    place: tuple[float, ...] | None = None
    cosines: tuple[float, ...] | None = None
    if stated and lps is not None and lengths is not None:
        spacing = tuple(float(n) for n in lengths)
        place = tuple(float(x) for x in lps[:, 3])
        cosines = tuple(float(x) for x in (lps[:, :2] / lengths[:2]).T.ravel())
    measured = all(math.isfinite(x) and x > 0 for x in spacing)
    return {
        "kind": "nifti",
        "identifiers": identifiers_in_nifti(path),
        "rows": shape[1],
        "columns": shape[0],
        "frames": math.prod(shape[2:]),
        "samples": 3 if bits == _RGB24_BITS else 1,
        "photometric": "RGB" if bits == _RGB24_BITS else "",
        "position": place,
        "orientation": cosines,
        "spacing": (spacing[1], spacing[0]) if measured else None,
        "thickness_mm": spacing[2] if measured else None,
    }


def _unpacked(first: bytes) -> bytes:
    try:
        return zlib.decompressobj(wbits=31).decompress(first, _HEADER_BYTES)
    except zlib.error:
        raise ValueError("no gzip") from None


def _header(raw: bytes) -> tuple[tuple[int, ...], int, tuple[float, ...], int, np.ndarray | None]:
    """dim, bits a voxel, spacing of the first three axes, offset of the voxels, affine (3, 4) if one is stated."""
    for order in "<>":
        if raw[:4] == struct.pack(order + "i", 348) and raw[344:347] in (b"n+1", b"ni1"):
            return _version_1(raw, order)
        if raw[:4] == struct.pack(order + "i", 540) and raw[4:7] in (b"n+2", b"ni2"):
            return _version_2(raw, order)
    raise ValueError("no NIfTI")


def _version_1(raw: bytes, order: str) -> tuple[tuple[int, ...], int, tuple[float, ...], int, np.ndarray | None]:
    dims = struct.unpack_from(order + "8h", raw, 40)
    (bits,) = struct.unpack_from(order + "h", raw, 72)
    pixdim = struct.unpack_from(order + "8f", raw, 76)
    (offset,) = struct.unpack_from(order + "f", raw, 108)
    qform, sform = struct.unpack_from(order + "2h", raw, 252)
    quaternion = struct.unpack_from(order + "6f", raw, 256)
    rows = struct.unpack_from(order + "12f", raw, 280)
    start = int(offset) if math.isfinite(offset) and 0 <= offset < 2**40 else 0
    return dims, bits, pixdim[1:4], start, _affine(qform, sform, quaternion, pixdim, rows)


def _version_2(raw: bytes, order: str) -> tuple[tuple[int, ...], int, tuple[float, ...], int, np.ndarray | None]:
    if len(raw) < 540:
        raise ValueError("truncated")
    (bits,) = struct.unpack_from(order + "h", raw, 14)
    dims = struct.unpack_from(order + "8q", raw, 16)
    pixdim = struct.unpack_from(order + "8d", raw, 104)
    (offset,) = struct.unpack_from(order + "q", raw, 168)
    qform, sform = struct.unpack_from(order + "2i", raw, 344)
    quaternion = struct.unpack_from(order + "6d", raw, 352)
    rows = struct.unpack_from(order + "12d", raw, 400)
    return dims, bits, pixdim[1:4], max(0, offset), _affine(qform, sform, quaternion, pixdim, rows)


def _affine(
    qform: int, sform: int, quaternion: tuple[float, ...], pixdim: tuple[float, ...], rows: tuple[float, ...]
) -> np.ndarray | None:
    """Index → RAS+ mm, shape (3, 4): the sform if there is one, else the qform."""
    if sform > 0:
        return np.array(rows, dtype=np.float64).reshape(3, 4)
    if qform <= 0:
        return None
    b, c, d = quaternion[:3]
    a = math.sqrt(max(0.0, 1.0 - (b * b + c * c + d * d)))
    turn = np.array(
        [
            [a * a + b * b - c * c - d * d, 2 * (b * c - a * d), 2 * (b * d + a * c)],
            [2 * (b * c + a * d), a * a + c * c - b * b - d * d, 2 * (c * d - a * b)],
            [2 * (b * d - a * c), 2 * (c * d + a * b), a * a + d * d - c * c - b * b],
        ]
    )
    side = -1.0 if pixdim[0] < 0 else 1.0
    scaled = turn * np.array([pixdim[1], pixdim[2], pixdim[3] * side])
    return np.column_stack([scaled, np.array(quaternion[3:6])])

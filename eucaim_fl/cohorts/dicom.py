"""DICOM files as volumes. Geometry comes from attributes only, never from the order, names or numbers of files.

Source: DICOM PS3.3 C.7.6.2 (Image Plane), C.7.6.16.2 (functional groups), C.11.1 (Modality LUT); PS3.5 A (transfer
syntaxes).
"""

from __future__ import annotations

import io
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pydicom
from pydicom.pixels import apply_color_lut, apply_modality_lut, pixel_array

from eucaim_fl.cohorts.volume import LARGEST_VOLUME_BYTES, Volume
from eucaim_fl.errors import SeriesError, UnreadableFileError

__all__ = ["Header", "functional_group", "read_frames", "read_header", "read_series"]

Header = Any
"""A pydicom Dataset without pixel data."""

_DEFLATED, _EXPLICIT = b"1.2.840.10008.1.2.1.99", b"1.2.840.10008.1.2.1\0\0\0"
_NATIVE = {"1.2.840.10008.1.2": 8, "1.2.840.10008.1.2.1": 12}  # transfer syntax → bytes before the pixel bytes
_PIXEL_DATA = b"\xe0\x7f\x10\x00"
# fmt: off
_TAGS = [
    "ImageType", "Modality", "SeriesInstanceUID", "Rows", "Columns", "NumberOfFrames", "SamplesPerPixel",
    "PhotometricInterpretation", "PixelRepresentation", "BitsAllocated", "BitsStored", "HighBit",
    "ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing", "ImagerPixelSpacing", "SliceThickness",
    "SpacingBetweenSlices", "RescaleSlope", "RescaleIntercept", "ModalityLUTSequence",
    "SharedFunctionalGroupsSequence", "PerFrameFunctionalGroupsSequence", "ReferencedSeriesSequence",
    "SegmentSequence", "SegmentationType", "MaximumFractionalValue",
]
# fmt: on
_GREY = np.array([0.299, 0.587, 0.114], dtype=np.float32)  # luminance, ITU-R BT.601


@dataclass(frozen=True)
class _Slice:
    """One stored plane, shape (rows, columns). position and orientation are in LPS+ mm, None where not stated."""

    pixels: npt.NDArray[Any]
    position: npt.NDArray[Any] | None
    orientation: npt.NDArray[Any] | None
    spacing: tuple[float, float]
    thickness: float
    slope: float
    intercept: float
    series: str


def _unreadable(path: Path, problem: object) -> UnreadableFileError:
    return UnreadableFileError("A DICOM file is missing, truncated or corrupt.", local_detail=f"{path}: {problem}")


def _parse(path: Path) -> tuple[bytes, Header, int]:
    """The file's bytes, its header, and where the header ends."""
    if path.stat().st_size > LARGEST_VOLUME_BYTES:
        raise ValueError("file larger than a volume may be")
    raw = path.read_bytes()
    if _DEFLATED in raw[:1024]:  # unpacked here, within bounds, because pydicom would unpack without
        start = 144 + int.from_bytes(raw[140:144], "little")
        stream = zlib.decompressobj(wbits=-15)
        unpacked = stream.decompress(raw[start:], LARGEST_VOLUME_BYTES)
        if not stream.eof:
            raise ValueError("deflated stream ends early, or unpacks to more than a volume may have")
        raw = raw[:start].replace(_DEFLATED, _EXPLICIT) + unpacked
    buffer = io.BytesIO(raw)
    header = _decoded(pydicom.dcmread(buffer, stop_before_pixels=True, specific_tags=_TAGS))
    return raw, header, buffer.tell()


def _decoded(header: Header) -> Header:
    """The header with every value converted now: pydicom would do so (and fail) only where one is first looked at."""
    for _ in header.iterall():
        pass
    return header


def read_header(path: Path) -> Header:
    """The attributes that this package needs of one DICOM file, without its pixel data.

    Raises UnreadableFileError if the file is missing or is no DICOM file.
    """
    try:
        with path.open("rb") as stream:
            if _DEFLATED not in stream.read(1024):
                stream.seek(0)
                return _decoded(pydicom.dcmread(stream, stop_before_pixels=True, specific_tags=_TAGS))
        return _parse(path)[1]
    except Exception as problem:  # noqa: BLE001 - a foreign file can make the decoder raise anything
        raise _unreadable(path, problem) from None


def _native(raw: bytes, header: Header, end: int, frames: int) -> npt.NDArray[Any] | None:
    """A view of uncompressed grey pixels in the file's bytes, or None where pydicom has to decode."""
    before = _NATIVE.get(str(header.file_meta.TransferSyntaxUID))
    allocated, stored = int(header.BitsAllocated), int(header.BitsStored)
    if before is None or allocated not in (8, 16, 32) or int(header.get("SamplesPerPixel", 1)) != 1:
        return None
    if not 0 < stored <= allocated or int(header.HighBit) != stored - 1 or raw[end : end + 4] != _PIXEL_DATA:
        return None
    length = int.from_bytes(raw[end + before - 4 : end + before], "little")
    if length == 0xFFFFFFFF or header.PhotometricInterpretation not in ("MONOCHROME1", "MONOCHROME2"):
        return None
    signed = int(header.PixelRepresentation) == 1
    dtype = np.dtype(f"<{'i' if signed else 'u'}{allocated // 8}")
    shape = (frames, int(header.Rows), int(header.Columns))
    if length < int(np.prod(shape)) * dtype.itemsize:
        raise ValueError("pixel data shorter than rows x columns x frames")
    pixels = np.frombuffer(raw, dtype, int(np.prod(shape)), end + before).reshape(shape)
    if stored == allocated:
        return pixels
    spare = allocated - stored  # the bits above may hold anything, such as an old overlay
    return (pixels << spare) >> spare if signed else pixels & dtype.type((1 << stored) - 1)


def read_frames(path: Path) -> tuple[Header, npt.NDArray[Any]]:
    """Header and stored values of one DICOM file, shape (frames, rows, columns), before any rescaling.

    Colours become their luminance. The file's claims on size are checked before anything is decoded.
    Raises UnreadableFileError if the file is missing, truncated, corrupt or not an image, claims to be too large, or
    has a transfer syntax that can't be decoded here.
    """
    try:
        raw, header, end = _parse(path)
        rows, columns, frames = int(header.Rows), int(header.Columns), int(header.get("NumberOfFrames") or 1)
        samples = int(header.get("SamplesPerPixel", 1))
        if min(rows, columns, frames) < 1 or samples not in (1, 3):
            raise ValueError("not an image")
        if rows * columns * frames * samples * max(4, int(header.BitsAllocated) // 8) > LARGEST_VOLUME_BYTES:
            raise ValueError(f"claims {frames} frames of {rows} x {columns}")
        pixels = _native(raw, header, end, frames)
        if pixels is None:
            whole = pydicom.dcmread(io.BytesIO(raw))
            decoded = pixel_array(whole)
            if whole.PhotometricInterpretation == "PALETTE COLOR":
                decoded = apply_color_lut(decoded, whole)[..., :3]
            if decoded.shape[-1:] == (3,) and decoded.ndim > 2:
                decoded = decoded.astype(np.float32) @ _GREY
            pixels = decoded.reshape(frames, rows, columns)
    except Exception as problem:  # noqa: BLE001 - a foreign file can make the decoder raise anything
        raise _unreadable(path, problem) from None
    return header, pixels


def functional_group(header: Header, frame: int, sequence: str) -> Header:
    """The item of one functional group that holds for `frame` (from 0): its own, else the shared one, else None."""
    for groups, index in (("PerFrameFunctionalGroupsSequence", frame), ("SharedFunctionalGroupsSequence", 0)):
        items = header.get(groups)
        if items and index < len(items) and items[index].get(sequence):
            return items[index][sequence].value[0]
    return None


def _numbers(source: Header, *names: str) -> npt.NDArray[Any] | None:
    """The first of the named attributes that has a value, as float64."""
    for name in names:
        value = None if source is None else source.get(name)
        if value is not None and value != "":
            return np.atleast_1d(np.asarray(value, dtype=np.float64))
    return None


def _number(source: Header, name: str, default: float) -> float:
    found = _numbers(source, name)
    return default if found is None else float(found[0])


def _slices(path: Path) -> list[_Slice]:
    """The planes of one file, with what it says of their place and values."""
    header, frames = read_frames(path)
    enhanced = bool(header.get("PerFrameFunctionalGroupsSequence"))
    if len(frames) > 1 and not enhanced:
        raise SeriesError("A multi-frame image states no position for its frames.", local_detail=str(path))
    if "MOSAIC" in np.atleast_1d(header.get("ImageType") or ""):
        raise SeriesError(
            "A mosaic image holds many slices in one plane.", fix="Export it unpacked.", local_detail=str(path)
        )
    found = []
    try:
        for index, pixels in enumerate(frames):
            plane, tilt, measures, values = (
                functional_group(header, index, f"{name}Sequence") if enhanced else header
                for name in ("PlanePosition", "PlaneOrientation", "PixelMeasures", "PixelValueTransformation")
            )
            position = _numbers(plane, "ImagePositionPatient")
            slope, intercept = _number(values, "RescaleSlope", 1.0), _number(values, "RescaleIntercept", 0.0)
            if header.get("ModalityLUTSequence"):
                pixels = apply_modality_lut(pixels, header)
            elif position is None and header.get("PhotometricInterpretation") == "MONOCHROME1":
                slope, intercept = -slope, intercept + slope * (2 ** int(header.BitsStored) - 1)
            spacing = _numbers(measures, "PixelSpacing", *(() if position is not None else ("ImagerPixelSpacing",)))
            if spacing is None and position is not None:
                raise SeriesError("A slice states its position, but no pixel spacing.", local_detail=str(path))
            row_mm, column_mm = (1.0, 1.0) if spacing is None else (float(spacing[0]), float(spacing[1]))
            thickness = _number(measures, "SpacingBetweenSlices", 0.0) or _number(measures, "SliceThickness", 0.0)
            orientation = _numbers(tilt, "ImageOrientationPatient")
            given = [v for v in (position, orientation) if v is not None]
            if not np.isfinite(np.concatenate([[slope, intercept, thickness, row_mm, column_mm], *given])).all():
                raise ValueError("a number is not finite")
            if slope == 0 or row_mm <= 0 or column_mm <= 0:
                raise ValueError("rescale slope or pixel spacing is zero or negative")
            if any(v.shape != (n,) for v, n in ((position, 3), (orientation, 6)) if v is not None):
                raise ValueError("position or orientation has the wrong number of values")
            found.append(
                _Slice(
                    *(pixels, position, orientation, (row_mm, column_mm), abs(thickness) or 1.0, slope, intercept),
                    series=str(header.get("SeriesInstanceUID", "")),
                )
            )
    except SeriesError:
        raise
    except Exception as problem:  # noqa: BLE001 - attributes may be of any type and number
        raise _unreadable(path, problem) from None
    return found


def _same(values: Sequence[object], message: str, detail: str) -> None:
    if len(set(values)) > 1:
        raise SeriesError(message, local_detail=detail)


def _steps(slices: list[_Slice], detail: str) -> tuple[list[int], npt.NDArray[Any], npt.NDArray[Any]]:
    """Order along the normal, the first slice's position, and the step to the next slice (LPS+ mm)."""
    orientations = np.array([s.orientation for s in slices])
    if np.abs(orientations - orientations[0]).max() > 1e-3:
        raise SeriesError("The slices of a series have different orientations.", local_detail=detail)
    row, column = orientations[0][:3], orientations[0][3:]
    if np.abs([row @ row - 1, column @ column - 1, row @ column]).max() > 1e-2:
        raise SeriesError("A slice's orientation is not given by two perpendicular unit vectors.", local_detail=detail)
    normal = np.cross(row, column)
    normal /= np.linalg.norm(normal)
    positions = np.array([s.position for s in slices])
    depth = positions @ normal
    order = [int(i) for i in np.argsort(depth, kind="stable")]
    first = positions[order[0]]
    if len(slices) == 1:
        return order, first, normal * slices[0].thickness
    gaps = np.diff(depth[order])
    if gaps.min() < 1e-3:
        raise SeriesError("Several slices of a series lie at the same place.", local_detail=detail)
    step = (positions[order[-1]] - first) / (len(slices) - 1)
    grid_mm = float(step @ normal)
    uneven = np.abs(depth[order] - depth[order[0]] - grid_mm * np.arange(len(slices))).max()
    if uneven > 0.1 * grid_mm or gaps.max() - gaps.min() > 0.2 * grid_mm:
        raise SeriesError(
            "The slices of a series are not evenly spaced; at least one is missing.",
            local_detail=f"{detail}: gaps from {gaps.min():.3f} to {gaps.max():.3f} mm",
        )
    offsets = positions - first
    sideways = np.linalg.norm(offsets - np.outer(offsets @ normal, normal), axis=1).max()
    if sideways > 1e-2 * (depth.max() - depth.min()):
        raise SeriesError("The slices of a series are sheared, as with a tilted gantry.", local_detail=detail)
    return order, first, step


def read_series(files: Sequence[Path]) -> Volume:
    """One series as a volume in the modality's unit: stored value x rescale slope + intercept, slice by slice.

    Axis I runs along the columns of the stored planes, J along the rows, K along the normal (row x column direction),
    in the order of ImagePositionPatient projected on it. Enhanced multi-frame files work alike.
    A single image without a position (radiograph, ultrasound, photograph) becomes one slice that lies as an axial
    slice does on a screen: I to the left, J to posterior, 1 mm thick; its spacing is PixelSpacing, else
    ImagerPixelSpacing, else 1 mm; MONOCHROME1 is turned so that larger means brighter.
    Raises SeriesError if the files are none, or of several series, or their slices differ in size, orientation or
    pixel spacing, lie twice at one place, are unevenly spaced (one is missing), sheared or in a mosaic; and
    UnreadableFileError if a file is missing, truncated, corrupt or too large.
    """
    if not files:
        raise SeriesError("A series has no files.")
    detail = str(files[0].parent)
    try:
        total = sum(path.stat().st_size for path in files)
    except OSError as problem:
        raise _unreadable(files[0].parent, problem) from None
    if total > LARGEST_VOLUME_BYTES:
        raise UnreadableFileError("A series is larger than a volume may be.", local_detail=detail)
    slices = [plane for path in files for plane in _slices(path)]
    _same([s.series for s in slices], "The files of one series say that they belong to several.", detail)
    _same([s.pixels.shape for s in slices], "The slices of a series have different sizes.", detail)
    rows, columns = slices[0].pixels.shape
    spacings = np.array([s.spacing for s in slices])
    if np.abs(spacings - spacings[0]).max() > 1e-3 * spacings[0].min():
        raise SeriesError("The slices of a series have two or more pixel spacings.", local_detail=detail)
    if rows * columns * len(slices) * 4 > LARGEST_VOLUME_BYTES:
        raise UnreadableFileError("A series is larger than a volume may be.", local_detail=detail)
    placed = [s.position is not None and s.orientation is not None for s in slices]
    if all(placed):
        order, first, step = _steps(slices, detail)
        orientation = slices[0].orientation
    elif any(placed) or len(slices) > 1:
        raise SeriesError("Some slices of a series state no position or orientation.", local_detail=detail)
    else:
        order, first, step = [0], np.zeros(3), np.array([0.0, 0.0, 1.0])
        orientation = np.array([1.0, 0, 0, 0, 1, 0])
    array = np.empty((len(slices), rows, columns), dtype=np.float32)
    for target, index in zip(array, order, strict=True):
        plane = slices[index]
        precise: Any = np.float32 if plane.pixels.dtype.itemsize <= 2 else np.float64
        np.multiply(plane.pixels, precise(plane.slope), out=target, dtype=precise, casting="unsafe")
        target += np.float32(plane.intercept)
    if not np.isfinite(array).all():
        raise SeriesError("A series holds values that are NaN or infinite.", local_detail=detail)
    affine = np.eye(4)
    directions = np.asarray(orientation)
    affine[:3, 0] = directions[:3] * spacings[0][1]
    affine[:3, 1] = directions[3:] * spacings[0][0]
    affine[:3, 2] = step
    affine[:3, 3] = first
    affine[:2] *= -1  # LPS+ → RAS+
    return Volume(array.transpose(2, 1, 0), affine)

"""DICOM files as volumes. Geometry comes from attributes only, never from the order, names or numbers of files.

Headers are walked as bytes and plain pixels are taken from the file's bytes as they lie; pydicom and the decoders work
only where there is more to it.
Source: DICOM PS3.3 C.7.6.2 (Image Plane), C.7.6.16.2 (functional groups), C.11.1 (Modality LUT); PS3.5 A (transfer
syntaxes).
"""

from __future__ import annotations

import stat
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from pydicom.pixels import apply_modality_lut

from eucaim_fl.cohorts import volume
from eucaim_fl.cohorts.decoding import as_dataset, decode, decode_colours, pixel_format
from eucaim_fl.cohorts.elements import read_elements, walk
from eucaim_fl.cohorts.mosaic import unpack_mosaic
from eucaim_fl.cohorts.plane_headers import READ_TAGS, functional_group, pet_facts, read_planes
from eucaim_fl.cohorts.planes import Plane, place_planes
from eucaim_fl.cohorts.stacks import split_stacks
from eucaim_fl.cohorts.suv import suv_factors
from eucaim_fl.cohorts.volume import Affine, Volume
from eucaim_fl.errors import SeriesError, UnreadableFileError

__all__ = ["Header", "functional_group", "read_colours", "read_frames", "read_header", "read_series", "stack_names"]

Header = Any
"""A pydicom Dataset without pixel data."""

_Pixels = npt.NDArray[Any]
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
_KINDS = {
    "plane": "size, orientation or pixel spacing",
    "type": "image type",
    "b": "b-value",
    "echo": "echo time",
    "time": "temporal position",
    "acquisition": "acquisition",
    "pass": "repetition",
}


def _unreadable(path: Path, problem: object) -> UnreadableFileError:
    return UnreadableFileError("A DICOM file is missing, truncated or corrupt.", local_detail=f"{path}: {problem}")


class _File:
    """One file: its elements at once, its Dataset and its pixels when they are asked for.

    channels: 3 for red, green and blue, 1 for one value a pixel.
    """

    def __init__(self, path: Path, room: int, channels: int = 1) -> None:
        status = path.stat()
        if not stat.S_ISREG(status.st_mode):
            raise ValueError("not a file")
        if status.st_size > room:
            raise UnreadableFileError("A series is larger than a volume may be.")
        self.path, self.channels = path, channels
        self.elements = walk(path.read_bytes(), wanted=READ_TAGS)
        self.form = pixel_format(self.elements)

    @cached_property
    def dataset(self) -> Header:
        """The whole header."""
        return as_dataset(self.elements)

    @cached_property
    def frames(self) -> _Pixels:
        """Stored values, shape (frames, rows, columns), or (frames, rows, columns, 3)."""
        if self.channels == 3:
            return decode_colours(self.elements, self.form)
        return decode(self.elements, self.form, lambda: self.dataset)

    def planes(self) -> list[Plane]:
        """What the header says of each frame."""
        return read_planes(self.elements, self.form, lambda: self.dataset)


_Placed = tuple[Plane, _File]


@contextmanager
def _named(path: Path) -> Iterator[None]:
    """Whatever a foreign file makes the body raise becomes an error of ours that names the file locally."""
    try:
        yield
    except (SeriesError, UnreadableFileError) as problem:
        if problem.local_detail:
            raise
        raise type(problem)(problem.message, fix=problem.fix, local_detail=str(path)) from None
    except Exception as problem:  # noqa: BLE001 - a foreign file can make decoders raise anything
        raise _unreadable(path, problem) from None


def read_header(path: Path) -> Header:
    """The attributes that this package needs of one DICOM file, without its pixel data.

    Raises UnreadableFileError if the file is missing or is no DICOM file.
    """
    with _named(path):
        return as_dataset(read_elements(path), _TAGS)


def read_frames(path: Path) -> tuple[Header, _Pixels]:
    """Header and stored values of one DICOM file, shape (frames, rows, columns), before any rescaling.

    Colours become their luminance. The file's claims on size are checked before anything is decoded.
    Raises UnreadableFileError if the file is missing, truncated, corrupt or not an image, claims to be too large, or
    has a transfer syntax that can't be decoded here.
    """
    with _named(path):
        file = _File(path, volume.LARGEST_VOLUME_BYTES)
        return as_dataset(file.elements, _TAGS), file.frames


def _open(files: Sequence[Path], channels: int = 1) -> list[_Placed]:
    """All planes of the files of one series."""
    if not files:
        raise SeriesError("A series has no files.")
    found = []
    room = volume.LARGEST_VOLUME_BYTES
    for path in files:
        with _named(path):
            file = _File(path, room, channels)
            room -= len(file.elements.raw)
            found += [(plane, file) for plane in file.planes()]
    if len({plane.series_uid for plane, _ in found}) > 1:
        raise SeriesError("The files of one series say that they belong to several.")
    return found


def stack_names(files: Sequence[Path]) -> tuple[str, ...]:
    """Names of the stacks in the files of one series, in canonical order: what `read_series` can be asked for.

    Raises SeriesError if there are no files, or they are of several series or of a kind that forms no stack; and
    UnreadableFileError if one is missing, truncated, corrupt or too large.
    """
    return tuple(name for name, _ in split_stacks([plane for plane, _ in _open(files)]))


def _choose(placed: list[_Placed], stack: str) -> list[_Placed]:
    """The planes of one stack."""
    stacks = split_stacks([plane for plane, _ in placed])
    if len(stacks) == 1:
        return placed
    if stack:
        for name, members in stacks:
            if name == stack:
                return [placed[n] for n in members]
        raise SeriesError("A series has no such stack.", local_detail=f"{stack!r}; it has {[n for n, _ in stacks]}")
    kinds = dict.fromkeys(_KINDS[part.partition("=")[0]] for name, _ in stacks for part in name.split(",") if part)
    raise SeriesError(
        f"A series holds {len(stacks)} stacks of images, told apart by {' and '.join(kinds)}.",
        fix="Say which one is meant.",
        local_detail=", ".join(name for name, _ in stacks[:20]),
    )


def _without_copies(placed: list[_Placed]) -> list[_Placed]:
    """Each SOP instance once; copies that differ are refused."""
    by_uid: dict[tuple[Any, ...], list[_Placed]] = defaultdict(list)
    for plane, file in placed:
        by_uid[(plane.sop_uid, plane.position) if plane.sop_uid else (len(by_uid),)].append((plane, file))
    for (plane, file), *others in by_uid.values():
        for other, copy in others:
            with _named(copy.path):
                if other != plane or not np.array_equal(copy.frames, file.frames):
                    raise SeriesError("Two files are copies of the same image, but differ.")
    return [same[0] for same in by_uid.values()]


def _fill(target: npt.NDArray[np.float32], plane: Plane, file: _File, factor: float, channel: int = 0) -> None:
    """Write one plane's values, or those of one of its colours, in the modality's unit."""
    pixels = file.frames[plane.frame]
    if pixels.ndim == 3:
        pixels = pixels[..., channel]
    slope, intercept = plane.slope, plane.intercept
    low, high = file.form.ends
    if plane.has_lut:
        pixels = apply_modality_lut(pixels, file.dataset)
        slope, intercept = 1.0, 0.0
        low, high = 0, (1 << int(file.dataset.ModalityLUTSequence[0].LUTDescriptor[2])) - 1
    if plane.inverted:
        slope, intercept = -slope, intercept + slope * (low + high)
    slope, intercept = slope * factor, intercept * factor
    if pixels.dtype.itemsize > 2:  # stored values that float32 would round before the intercept makes them small
        target[...] = pixels * np.float64(slope) + intercept
    elif slope == 1:
        np.add(pixels, np.float32(intercept), out=target, dtype=np.float32, casting="unsafe")
    else:
        np.multiply(pixels, np.float32(slope), out=target, dtype=np.float32, casting="unsafe")
        target += np.float32(intercept)
    largest = abs(slope) * max(-low, high) + abs(intercept)
    if (pixels.dtype.kind == "f" or not largest < 1e38) and not np.isfinite(target).all():
        raise SeriesError("A series holds values that are NaN or infinite.")


def _stacked(placed: list[_Placed]) -> tuple[npt.NDArray[np.float32], Affine]:
    """Values, shape (channels, slices, rows, columns), and place of planes that lie on top of each other."""
    planes = [plane for plane, _ in placed]
    rows, columns, channels = planes[0].rows, planes[0].columns, placed[0][1].channels
    if len({(p.rows, p.columns) for p in planes}) > 1:
        raise SeriesError("The slices of a series have different sizes.")
    if rows * columns * len(planes) * channels * 4 > volume.LARGEST_VOLUME_BYTES:
        raise UnreadableFileError("A series is larger than a volume may be.")
    order, affine = place_planes(planes)
    factors: tuple[float, ...] = (1.0,) * len(planes)
    if planes[0].modality == "PT" and planes[0].position is not None:
        facts = {id(file): pet_facts(file.elements) for _, file in placed}
        factors = suv_factors([facts[id(file)] for _, file in placed])
    array = np.empty((channels, len(planes), rows, columns), dtype=np.float32)
    for place, index in enumerate(order):
        plane, file = placed[index]
        with _named(file.path), np.errstate(over="ignore", invalid="ignore"):  # _fill looks at the result instead
            for channel in range(channels):
                _fill(array[channel, place], plane, file, factors[index], channel)
        if file.form.frames == 1:
            file.__dict__.pop("frames", None)  # one slice at a time is enough
    return array, affine


def _read(files: Sequence[Path], stack: str, channels: int) -> list[Volume]:
    """One stack of a series: a volume for each channel."""
    detail = str(files[0].parent) if files else ""
    try:
        placed = _without_copies(_choose(_open(files, channels), stack))
        (plane, file), *others = placed
        if plane.mosaic:
            if others:
                raise SeriesError("A series holds several mosaic images that nothing tells apart.")
            with _named(file.path):
                pixels = np.empty((plane.rows, plane.columns), dtype=np.float32)
                _fill(pixels, plane, file, 1.0)
                unpacked, affine = unpack_mosaic(file.dataset, pixels)
                array = unpacked[None]
        else:
            array, affine = _stacked(placed)
    except (SeriesError, UnreadableFileError) as problem:
        if detail in problem.local_detail:
            raise
        where = f"{detail}: {problem.local_detail}".rstrip(": ")
        raise type(problem)(problem.message, fix=problem.fix, local_detail=where) from None
    return [Volume(values.transpose(2, 1, 0), affine) for values in array]


def read_series(files: Sequence[Path], *, stack: str = "") -> Volume:
    """One series, or one stack of it, as a volume in the modality's unit: stored value x slope + intercept.

    Axis I runs along the columns of the stored planes, J along the rows, K along the normal (row x column direction),
    in the order of ImagePositionPatient projected on it. A tilted gantry gives a sheared affine (`volume.straighten`).
    stack: which one, named as by `split_stacks`, where the files hold several; it doesn't matter where they hold one.
    Slices keep their own slope, intercept or modality LUT; nothing of the display (VOI) is applied. PT becomes SUV by
    body weight, RT dose gray. Enhanced multi-frame files, dose grids and Siemens mosaics work alike. Colours become
    luminance. A file that is there twice counts once.
    A single image without a position (radiograph, ultrasound, photograph) becomes one slice that lies as an axial
    slice does on a screen: I to the left, J to posterior, 1 mm thick; its spacing is PixelSpacing, else
    ImagerPixelSpacing, else 1 mm. A radiograph in MONOCHROME1 is turned so that larger means brighter.
    Raises SeriesError if there are no files, they belong to several series, hold several stacks and none was asked
    for, or that one isn't there; if copies differ, if slices lie twice at one place, are unevenly spaced (one is
    missing), shifted or without position, in a mosaic that can't be parted, or SUV can't be computed; and
    UnreadableFileError if a file is missing, truncated, corrupt or too large.
    """
    return _read(files, stack, 1)[0]


def read_colours(files: Sequence[Path], *, stack: str = "") -> tuple[Volume, Volume, Volume]:
    """Red, green and blue of one series, or of one stack of it, each 0 to 255 and laid as `read_series` lays it.

    RGB (interleaved or in planes), YBR_FULL, YBR_FULL_422 and compressed colours are read, of 8 bits a sample. Other
    than a plane alone, as photographs are, a stack needs positions.
    Raises SeriesError as `read_series` does, and if an image holds no colours, a palette, or colours of other than 8
    bits; UnreadableFileError if a file is missing, truncated, corrupt or too large.
    """
    red, green, blue = _read(files, stack, 3)
    return red, green, blue

"""Stored values of DICOM files: pixel bytes → integers, whatever the transfer syntax. Nothing is rescaled here.

Source: DICOM PS3.3 C.7.6.3 (Image Pixel), PS3.5 chapter 8 and annex A (encodings); ISO 10918-1 B.2.2 and 14495-1 C.2.2
(frame headers), ISO 15444-1 A.5.1 (SIZ).
"""

from __future__ import annotations

import io
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pydicom
from pydicom.encaps import generate_frames
from pydicom.pixels import apply_color_lut, get_decoder

from eucaim_fl.cohorts import volume
from eucaim_fl.cohorts.elements import PIXEL_DATA, UNDEFINED, Elements
from eucaim_fl.errors import SeriesError

__all__ = ["PixelFormat", "as_dataset", "decode", "decode_colours", "pixel_format"]

_Pixels = npt.NDArray[Any]
_DEFLATED, _EXPLICIT = b"1.2.840.10008.1.2.1.99", b"1.2.840.10008.1.2.1\0\0\0"
_RLE, _EXTENDED_JPEG = "1.2.840.10008.1.2.5", "1.2.840.10008.1.2.4.51"
_NATIVE = frozenset({"1.2.840.10008.1.2", "1.2.840.10008.1.2.1", "1.2.840.10008.1.2.1.99", "1.2.840.10008.1.2.2"})
_JPEG2000 = frozenset({"90", "91", "92", "93", "201", "202", "203"})  # endings of 1.2.840.10008.1.2.4.…
# Libraries made for one format come first: they are smaller, more often fuzzed, and do less behind one's back than
# GDCM, which reads nearly everything and is asked last. JPEG-LS is left to GDCM alone: pyjpegls works for ten seconds
# on a truncated frame of 64 x 64.
_DECODERS = {
    _RLE: ("pylibjpeg", "pydicom"),
    "1.2.840.10008.1.2.4.50": ("pillow", "gdcm"),
    _EXTENDED_JPEG: ("pillow", "gdcm"),
    "1.2.840.10008.1.2.4.57": ("gdcm",),
    "1.2.840.10008.1.2.4.70": ("gdcm",),
    "1.2.840.10008.1.2.4.80": ("gdcm",),
    "1.2.840.10008.1.2.4.81": ("gdcm",),
    "1.2.840.10008.1.2.4.90": ("pylibjpeg", "gdcm"),
    "1.2.840.10008.1.2.4.91": ("pylibjpeg", "gdcm"),
    "1.2.840.10008.1.2.4.201": ("pylibjpeg",),
    "1.2.840.10008.1.2.4.202": ("pylibjpeg",),
    "1.2.840.10008.1.2.4.203": ("pylibjpeg",),
}
_JPEG_OF_8_BITS = frozenset({"1.2.840.10008.1.2.4.50", _EXTENDED_JPEG})
_GREY = np.array(volume.LUMINANCE, dtype=np.float32)
_PALETTE = "PALETTE COLOR"
_SAMPLES = dict.fromkeys(("MONOCHROME1", "MONOCHROME2", _PALETTE), 1) | dict.fromkeys(
    ("RGB", "YBR_FULL", "YBR_FULL_422", "YBR_PARTIAL_420", "YBR_ICT", "YBR_RCT"), 3
)
_FLOATS = {0x7FE00008: ("FloatPixelData", 32), 0x7FE00009: ("DoubleFloatPixelData", 64)}


@dataclass(frozen=True, slots=True)
class PixelFormat:
    """What a header claims of its pixels. floating: they are IEEE numbers of `allocated` bits."""

    rows: int
    columns: int
    frames: int
    samples: int
    photometric: str
    planar: int
    allocated: int
    stored: int
    high: int
    signed: bool
    floating: bool

    @property
    def ends(self) -> tuple[int, int]:
        """The smallest and the largest value that can be stored."""
        if self.signed:
            return -(1 << (self.stored - 1)), (1 << (self.stored - 1)) - 1
        return 0, (1 << self.stored) - 1


def _integer(elements: Elements, tag: int, default: int | None = None) -> int:
    found = elements.numbers(tag)
    if found is None:
        if default is None:
            raise ValueError(f"element {tag:08x} is missing or empty")
        return default
    return int(found[0])


def pixel_format(elements: Elements) -> PixelFormat:
    """What a header claims of its pixels, within bounds.

    Raises ValueError if it is no image, its claims contradict each other, or are larger than a volume may be.
    """
    rows, columns = _integer(elements, 0x00280010), _integer(elements, 0x00280011)
    frames, samples = _integer(elements, 0x00280008, 1) or 1, _integer(elements, 0x00280002, 1)
    floating = elements.pixels is not None and elements.pixels.tag in _FLOATS
    allocated = _FLOATS[elements.pixels.tag][1] if elements.pixels and floating else _integer(elements, 0x00280100)
    stored = allocated if floating else _integer(elements, 0x00280101, allocated)
    high = stored - 1 if floating else _integer(elements, 0x00280102, stored - 1)
    if elements.pixels is None or min(rows, columns, frames) < 1 or samples not in (1, 3):
        raise ValueError("not an image")
    if rows * columns * frames * samples * max(4, allocated // 8) > volume.LARGEST_VOLUME_BYTES:
        raise ValueError(f"claims {frames} frames of {rows} x {columns}")
    if not 0 < stored <= high + 1 <= allocated or allocated not in (1, 8, 16, 32, 64):
        raise ValueError(f"bits allocated {allocated}, stored {stored}, high bit {high}")
    photometric = elements.text(0x00280004) or "MONOCHROME2"
    if _SAMPLES.get(photometric, samples) != samples:
        raise ValueError(f"{photometric} of {samples} samples")
    return PixelFormat(
        rows,
        columns,
        frames,
        samples,
        photometric,
        _integer(elements, 0x00280006, 0),
        allocated,
        stored,
        high,
        signed=_integer(elements, 0x00280103, 0) == 1,
        floating=floating,
    )


def _without_spare_bits(pixels: _Pixels, form: PixelFormat) -> _Pixels:
    """Values of the stored bits alone; the others may hold anything, such as an old overlay."""
    if form.floating or form.stored == form.allocated:
        return pixels
    above, unused = form.allocated - 1 - form.high, form.allocated - form.stored
    if form.signed:
        shifted: _Pixels = (pixels << above) >> unused
        return shifted
    masked: _Pixels = (pixels >> (form.high + 1 - form.stored)) & pixels.dtype.type((1 << form.stored) - 1)
    return masked


def _native(elements: Elements, form: PixelFormat) -> _Pixels:
    """A view of uncompressed pixels in the file's bytes, shape (frames, rows, columns), or (…, 3) for RGB."""
    pixels = elements.pixels
    if pixels is None:
        raise ValueError("not an image")
    kind = "f" if form.floating else "i" if form.signed else "u"
    order = "<" if elements.little_endian else ">"
    dtype = np.dtype(f"{order}{kind}{form.allocated // 8}")
    count = form.frames * form.rows * form.columns * form.samples
    if min(pixels.length, len(elements.raw) - pixels.start) < count * dtype.itemsize:
        raise ValueError("pixel data shorter than rows x columns x frames")
    view = np.frombuffer(elements.raw, dtype, count, pixels.start)
    if form.samples == 1:
        view = view.reshape(form.frames, form.rows, form.columns)
    elif form.planar == 0:
        view = view.reshape(form.frames, form.rows, form.columns, 3)
    elif form.planar == 1:
        view = view.reshape(form.frames, 3, form.rows, form.columns).transpose(0, 2, 3, 1)
    else:
        raise ValueError(f"planar configuration {form.planar}")
    return _without_spare_bits(view, form)


def _jpeg_size(frame: bytes) -> tuple[int, int, int]:
    """Rows, columns and components in the frame header of a JPEG or JPEG-LS stream."""
    at = 2
    while at + 10 <= len(frame):
        if frame[at] != 0xFF:
            break
        marker = frame[at + 1]
        if marker == 0xFF:  # a byte of filling
            at += 1
        elif marker == 0xF7 or (0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC)):
            return int.from_bytes(frame[at + 5 : at + 7]), int.from_bytes(frame[at + 7 : at + 9]), frame[at + 9]
        else:
            at += 2 + int.from_bytes(frame[at + 2 : at + 4])
    raise ValueError("a JPEG stream without frame header")


def _jpeg2000_size(frame: bytes) -> tuple[int, int, int]:
    """Rows, columns and components in the SIZ marker of a JPEG 2000 codestream, with or without a JP2 box around."""
    at = frame.find(b"\xff\x4f\xff\x51", 0, 4096)
    if at < 0 or at + 42 > len(frame):
        raise ValueError("a JPEG 2000 stream without size")
    right, bottom, left, top = (int.from_bytes(frame[at + n : at + n + 4]) for n in (8, 12, 16, 20))
    return bottom - top, right - left, int.from_bytes(frame[at + 40 : at + 42])


def _check_frames(data: bytes, form: PixelFormat, syntax: str, offsets: tuple[bytes, bytes] | None) -> list[bytes]:
    """The encoded frames. A stream's own size must be the header's, because decoders allocate by the stream's."""
    options = {} if offsets is None else {"extended_offsets": offsets}
    frames: list[bytes] = []
    for frame in generate_frames(data, number_of_frames=form.frames, **options):
        if len(frames) == form.frames:
            raise ValueError("more frames than the header says")
        if syntax != _RLE:
            size = _jpeg2000_size if syntax.rpartition(".")[2] in _JPEG2000 else _jpeg_size
            if size(frame) != (form.rows, form.columns, form.samples):
                raise ValueError("a compressed stream of another size than the header's")
        frames.append(frame)
    if len(frames) != form.frames:
        raise ValueError("fewer frames than the header says")
    return frames


def _jpeg_of_12_bits(frame: bytes, form: PixelFormat, syntax: str) -> _Pixels:
    """One grey frame of extended JPEG with 12 bits, which pydicom hands to no decoder."""
    import gdcm

    fragment = gdcm.Fragment()
    fragment.SetByteStringValue(frame)
    fragments = gdcm.SequenceOfFragments.New()
    fragments.AddFragment(fragment)
    element = gdcm.DataElement(gdcm.Tag(0x7FE0, 0x0010))
    element.SetValue(fragments.__ref__())
    image = gdcm.Image()
    image.SetNumberOfDimensions(2)
    image.SetDimensions((form.columns, form.rows, 1))
    image.SetDataElement(element)
    image.SetPhotometricInterpretation(gdcm.PhotometricInterpretation(gdcm.PhotometricInterpretation.MONOCHROME2))
    image.SetTransferSyntax(gdcm.TransferSyntax(gdcm.TransferSyntax.GetTSType(syntax)))
    image.SetPixelFormat(gdcm.PixelFormat(1, 16, 12, 11, int(form.signed)))
    decoded = image.GetBuffer().encode("utf-8", "surrogateescape")  # GDCM returns char* as str
    return np.frombuffer(decoded, "<i2" if form.signed else "<u2").reshape(form.rows, form.columns)


def _jpeg_in_colours(frame: bytes, form: PixelFormat) -> _Pixels:
    """One frame of JPEG of 8 bits as RGB, shape (rows, columns, 3).

    What the stream says of its own colours (JFIF, Adobe) counts before the header, as in viewers; the header's RGB
    counts where the stream is silent.
    """
    from PIL import Image

    with Image.open(io.BytesIO(frame), formats=["JPEG"]) as image:
        silent = "jfif" not in image.info and "adobe_transform" not in image.info
        if silent and form.photometric == "RGB":
            image.draft("YCbCr", image.size)  # take the samples as they are stored
        if image.size != (form.columns, form.rows) or len(image.getbands()) != 3:
            raise ValueError("a compressed stream of another size than the header's")
        return np.asarray(image)


def _by_decoder(data: bytes, elements: Elements, form: PixelFormat) -> _Pixels:
    """Pixels from the first decoder that can, colours as RGB: shape (frames, rows, columns) or (…, 3)."""
    syntax = elements.transfer_syntax
    options: dict[str, Any] = {
        "rows": form.rows,
        "columns": form.columns,
        "number_of_frames": form.frames,
        "samples_per_pixel": form.samples,
        "photometric_interpretation": form.photometric,
        "planar_configuration": form.planar,
        "bits_allocated": form.allocated,
        "bits_stored": form.stored,
        "pixel_representation": int(form.signed),
        "pixel_keyword": "PixelData",
        "pixel_vr": "OB" if elements.pixels and elements.pixels.vr == "OB" else "OW",
    }
    shape = (form.frames, form.rows, form.columns, *([3] if form.samples == 3 else []))
    encapsulated = syntax in _DECODERS
    names: tuple[str, ...] = _DECODERS.get(syntax, ("",))
    if encapsulated:
        table = (elements.bytes(0x7FE00001), elements.bytes(0x7FE00002))
        offsets = table if all(table) else None
        frames = _check_frames(data, form, syntax, offsets)
        if syntax == _EXTENDED_JPEG and form.samples == 1 and form.stored > 8:
            return np.stack([_jpeg_of_12_bits(frame, form, syntax) for frame in frames])
        if syntax in _JPEG_OF_8_BITS and form.samples == 3:
            return np.stack([_jpeg_in_colours(frame, form) for frame in frames])
        if offsets is not None:
            options["extended_offsets"] = offsets
    problems = []
    for name in names:
        try:
            decoded, _ = get_decoder(syntax).as_array(data, decoding_plugin=name, **options)
            return np.asarray(decoded).reshape(shape)
        except Exception as problem:  # noqa: BLE001 - decoders raise anything; the next one may know better
            problems.append(f"{name or 'pydicom'}: {problem}")
    raise ValueError("; ".join(problems))


def as_dataset(elements: Elements, tags: list[str] | None = None) -> Any:
    """The header as a pydicom Dataset, every value converted now (pydicom would fail only where one is looked at)."""
    raw = elements.raw
    if elements.transfer_syntax.encode() == _DEFLATED:  # the bytes were unpacked, within bounds, when they were walked
        raw = raw.replace(_DEFLATED, _EXPLICIT, 1)
    with pydicom.config.disable_value_validation():  # its warnings quote values
        header = pydicom.dcmread(io.BytesIO(raw), stop_before_pixels=True, specific_tags=tags, force=True)
        for _ in header.iterall():
            pass
    return header


def decode(elements: Elements, form: PixelFormat, header: Callable[[], Any]) -> _Pixels:
    """Stored values of all frames, shape (frames, rows, columns); colours and palettes become their luminance.

    elements: of a whole file. form: as `pixel_format` says. header: the file's Dataset, where a palette needs it.
    Raises ValueError if there are fewer pixels than the header claims, a compressed stream has another size, or no
    decoder can read it.
    Source: ITU-R BT.601 (luminance).
    """
    pixels = _decoded(elements, form)
    if form.photometric == _PALETTE:
        pixels = apply_color_lut(pixels, header())[..., :3]
    return pixels.astype(np.float32) @ _GREY if pixels.ndim == 4 else pixels


def decode_colours(elements: Elements, form: PixelFormat) -> _Pixels:
    """Red, green and blue of all frames, 0 to 255, shape (frames, rows, columns, 3).

    RGB is taken as it is stored, interleaved or in planes; YBR_FULL, YBR_FULL_422 and the spaces of JPEG 2000 are
    converted. elements, form: as `decode` takes them.
    Raises SeriesError if the image is grey, or has a palette or colours of other than 8 bits; ValueError as `decode`.
    """
    if form.photometric == _PALETTE:
        raise SeriesError(
            "An image's colours are those of a palette, and the plan asks for red, green and blue as they were taken.",
            fix="Leave such images out, or take the luminance (data.colour: false).",
        )
    if form.samples != 3:
        raise SeriesError("A DICOM image holds no colours, and the plan asks for them.")
    if (form.allocated, form.stored, form.signed, form.floating) != (8, 8, False, False):
        raise SeriesError("A DICOM image holds colours of other than 8 bits a sample.")
    return _decoded(elements, form)


def _decoded(elements: Elements, form: PixelFormat) -> _Pixels:
    """Stored values, shape (frames, rows, columns), or RGB, shape (frames, rows, columns, 3)."""
    place = elements.pixels
    if place is None:
        raise ValueError("not an image")
    compressed = elements.transfer_syntax in _DECODERS
    if not compressed and elements.transfer_syntax not in _NATIVE:
        raise ValueError(f"no decoder for the transfer syntax {elements.transfer_syntax}")
    if compressed != (place.length == UNDEFINED):
        raise ValueError("pixel data is encapsulated where it should not be, or not where it should")
    in_order = form.samples == 1 or (form.photometric == "RGB" and elements.little_endian)  # else bytes are in pairs
    if not compressed and form.allocated > 1 and in_order:
        return _native(elements, form)
    if place.tag != PIXEL_DATA:
        raise ValueError("floating point pixels that are compressed")
    end = None if compressed else place.start + place.length
    data = elements.raw[place.start : end]
    needed = math.ceil(form.frames * form.rows * form.columns * form.samples * form.allocated / 8)
    if not compressed and len(data) < needed * (2 if form.photometric == "YBR_FULL_422" else 3) // 3:
        raise ValueError("pixel data shorter than rows x columns x frames")
    pixels = _by_decoder(data, elements, form)
    if elements.transfer_syntax == _RLE and form.samples == 1:
        pixels = _without_spare_bits(pixels, form)
    return pixels

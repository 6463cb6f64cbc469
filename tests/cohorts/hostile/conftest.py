"""Files that nobody should have to read: hand-made ones, and mutations of good ones. Made anew, the same each time."""

from __future__ import annotations

import gzip
import os
import struct
import zipfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace

import nibabel as nib
import numpy as np
import pydicom
import pytest
from pydicom.uid import (
    DeflatedExplicitVRLittleEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGBaseline8Bit,
    JPEGLSLossless,
    RLELossless,
)

Write = Callable[[Path], object]


def element(tag: tuple[int, int], vr: bytes, value: bytes, length: int | None = None) -> bytes:
    """One explicit little-endian element; `length` is what it claims, if that isn't the truth."""
    size = len(value) if length is None else length
    head = struct.pack("<HH", *tag) + vr
    if vr in (b"OB", b"OW", b"SQ", b"UN", b"UT"):
        return head + b"\0\0" + struct.pack("<I", size) + value
    return head + struct.pack("<H", size) + value


def part10(*elements: bytes, syntax: str = ExplicitVRLittleEndian) -> bytes:
    """A file with preamble, the least meta information, and elements as they are given."""
    uid = syntax.encode() + b"\0" * (len(syntax) % 2)
    return b"\0" * 128 + b"DICM" + element((2, 0x10), b"UI", uid) + b"".join(elements)


def image(*more: bytes, rows: int = 4, columns: int = 4, frames: bytes = b"", pixels: bytes | None = None) -> bytes:
    """A grey CT slice of 4 × 4 voxels, as it says itself."""
    number = [element((0x28, 0x08), b"IS", frames)] if frames else []
    return part10(
        element((0x08, 0x16), b"UI", b"1.2.840.10008.5.1.4.1.1.2\0"),
        element((0x08, 0x18), b"UI", b"1.2.3.4.5.6\0"),
        element((0x08, 0x60), b"CS", b"CT"),
        element((0x20, 0x0D), b"UI", b"1.2.3.4\0"),
        element((0x20, 0x0E), b"UI", b"1.2.3.5\0"),
        element((0x28, 0x02), b"US", struct.pack("<H", 1)),
        element((0x28, 0x04), b"CS", b"MONOCHROME2 "),
        *number,
        element((0x28, 0x10), b"US", struct.pack("<H", rows)),
        element((0x28, 0x11), b"US", struct.pack("<H", columns)),
        *more,
        element((0x28, 0x100), b"US", struct.pack("<H", 16)),
        element((0x28, 0x101), b"US", struct.pack("<H", 16)),
        element((0x28, 0x102), b"US", struct.pack("<H", 15)),
        element((0x28, 0x103), b"US", struct.pack("<H", 0)),
        element((0x7FE0, 0x10), b"OW", pixels if pixels is not None else bytes(2 * rows * columns)),
    )


def encapsulated(payload: bytes, syntax: str, *, rows: int = 4, columns: int = 4) -> bytes:
    """An image whose only fragment is `payload`."""
    whole = image(rows=rows, columns=columns, pixels=b"")
    at = whole.rindex(b"\xe0\x7f\x10\x00OW")
    fragments = b"\xfe\xff\x00\xe0" + bytes(4) + b"\xfe\xff\x00\xe0" + struct.pack("<I", len(payload)) + payload
    body = whole[:at] + b"\xe0\x7f\x10\x00OB\0\0\xff\xff\xff\xff" + fragments + b"\xfe\xff\xdd\xe0" + bytes(4)
    return body.replace(part10(), part10(syntax=syntax))


def deep(levels: int) -> bytes:
    """Sequences inside sequences inside sequences, all of undefined length and none of them closed."""
    one = struct.pack("<HH", 0x0008, 0x1140) + b"SQ\0\0\xff\xff\xff\xff" + b"\xfe\xff\x00\xe0\xff\xff\xff\xff"
    return part10(one * levels)


def nifti(**fields: object) -> bytes:
    """A NIfTI-1 file of 4 × 4 × 4 voxels, with header fields overwritten."""
    made = nib.Nifti1Image(np.zeros((4, 4, 4), np.int16), np.eye(4))
    raw = bytearray(made.to_bytes())
    header = nib.Nifti1Header(bytes(raw[:348]), check=False)
    for name, value in fields.items():
        header[name] = value
    raw[:348] = header.binaryblock
    return bytes(raw)


def zeros(mebibytes: int) -> bytes:
    """A raw deflate stream of that many mebibytes of zeros; a thousandth of it, and quick to make."""
    packer = zlib.compressobj(9, wbits=-15)
    block = packer.compress(bytes(2**20)) + packer.flush(zlib.Z_FULL_FLUSH)
    return block * mebibytes + packer.flush()


def gzip_bomb() -> bytes:
    head = nifti(dim=[3, 1024, 1024, 1024, 1, 1, 1, 1])
    packer = zlib.compressobj(9, wbits=-15)
    return (
        gzip.compress(b"", mtime=0)[:10]
        + packer.compress(head)
        + packer.flush(zlib.Z_FULL_FLUSH)
        + zeros(2500)
        + bytes(8)
    )


def archive(path: Path) -> None:
    with zipfile.ZipFile(path, "w") as packed:
        packed.writestr("../../outside.dcm", b"x")


def _bytes(make: Callable[[], bytes]) -> Write:
    return lambda path: path.write_bytes(make())


JPEG_HEAD = b"\xff\xd8\xff\xc0\x00\x0b\x08\xff\xff\xff\xff\x01\x01\x11\x00"
J2K_HEAD = (
    b"\xff\x4f\xff\x51\x00\x29\x00\x00" + struct.pack(">8I", 2**31 - 1, 2**31 - 1, 0, 0, 2**31 - 1, 2**31 - 1, 0, 0)
    + b"\x00\x01\x0f\x01\x01"
)  # fmt: skip

HAND_MADE: dict[str, Write] = {
    "empty.dcm": _bytes(lambda: b""),
    "preamble-only.dcm": _bytes(lambda: bytes(128) + b"DICM"),
    "header-cut.dcm": _bytes(lambda: image()[:300]),
    "pixels-cut.dcm": _bytes(lambda: image(rows=64, columns=64)[:-4000]),
    "absurd-size.dcm": _bytes(lambda: image(rows=65535, columns=65535, frames=b"2147483646", pixels=b"1234")),
    "no-rows.dcm": _bytes(lambda: image(rows=0, columns=0, pixels=b"")),
    "frames-that-are-no-number.dcm": _bytes(lambda: image(frames=b"many")),
    "frames-that-are-negative.dcm": _bytes(lambda: image(frames=b"-5")),
    "deep-sequences.dcm": _bytes(lambda: deep(20_000)),
    "endless-sequence.dcm": _bytes(lambda: part10(struct.pack("<HH", 8, 0x1140) + b"SQ\0\0\xff\xff\xff\xff")),
    "length-beyond-the-end.dcm": _bytes(lambda: part10(element((8, 0x60), b"UT", b"CT", 0xFFFFFFFE))),
    "length-that-does-not-fit.dcm": _bytes(lambda: image(element((0x28, 0x12), b"US", b"123"))),
    "spacing-of-a-million-digits.dcm": _bytes(
        lambda: image(element((0x28, 0x30), b"UT", b"9" * 1_000_000 + b"\\1")),
    ),
    "spacing-that-is-no-number.dcm": _bytes(lambda: image(element((0x28, 0x30), b"DS", b"NaN\\-1"))),
    "a-million-elements.dcm": _bytes(lambda: part10(element((9, 0x1001), b"LO", b"") * 1_000_000)),
    "deflate-bomb.dcm": _bytes(lambda: part10(syntax=DeflatedExplicitVRLittleEndian) + zeros(2500)),
    "rle-beyond-its-end.dcm": _bytes(
        lambda: encapsulated(struct.pack("<16I", 2, 64, 2**31, *[0] * 13) + bytes(8), RLELossless)
    ),
    "rle-of-too-many-segments.dcm": _bytes(lambda: encapsulated(struct.pack("<I", 2**31) + bytes(60), RLELossless)),
    "jpeg-of-another-size.dcm": _bytes(lambda: encapsulated(JPEG_HEAD, JPEGBaseline8Bit)),
    "jpeg-2000-of-two-billion.dcm": _bytes(lambda: encapsulated(J2K_HEAD, JPEG2000Lossless)),
    "jpeg-ls-of-noise.dcm": _bytes(lambda: encapsulated(bytes(range(256)) * 4, JPEGLSLossless)),
    "a-page.dcm": _bytes(lambda: b"<!DOCTYPE html><html><body>log in first</body></html>"),
    "an-archive.dcm": archive,
    "unknown-syntax.dcm": _bytes(lambda: image().replace(part10(), part10(syntax="9.9.9.9"))),
    "syntax-that-is-no-uid.dcm": _bytes(lambda: part10(syntax="../../etc/x") + image()[156:]),
    "link-out.dcm": lambda path: path.symlink_to("/etc/passwd"),
    "link-to-itself.dcm": lambda path: path.symlink_to(path),
    "link-to-zeros.dcm": lambda path: path.symlink_to("/dev/zero"),
    "pipe.dcm": lambda path: os.mkfifo(path),
    "huge-dimensions.nii": _bytes(lambda: nifti(dim=[7, *[32767] * 7])),
    "offset-beyond-the-end.nii": _bytes(lambda: nifti(vox_offset=1e30)),
    "offset-that-is-no-number.nii": _bytes(lambda: nifti(vox_offset=float("nan"))),
    "slope-that-is-infinite.nii": _bytes(lambda: nifti(scl_slope=float("inf"))),
    "position-that-is-no-number.nii": _bytes(lambda: nifti(srow_x=[float("nan")] * 4)),
    "gzip-bomb.nii.gz": _bytes(gzip_bomb),
    "gzip-cut.nii.gz": _bytes(lambda: gzip.compress(nifti(), mtime=0)[:-20]),
}


def _good(folder: Path, tiny: SimpleNamespace) -> Iterator[bytes]:
    """Bytes of good files of many kinds, to be spoiled."""
    stored = (np.arange(2 * 64 * 64, dtype=np.uint16) * 7 % 4096).reshape(2, 64, 64)
    for number, syntax in enumerate((ExplicitVRLittleEndian, ImplicitVRLittleEndian)):
        (path, _) = tiny.series(folder / f"plain{number}", stored, syntax=syntax)
        yield path.read_bytes()
    for number, syntax in enumerate((RLELossless, JPEGLSLossless, JPEG2000Lossless)):
        ds = pydicom.dcmread(path)
        ds.compress(syntax)
        target = folder / f"packed{number}.dcm"
        ds.save_as(target, enforce_file_format=True)
        yield target.read_bytes()
    ds = pydicom.dcmread(path)
    ds.file_meta.TransferSyntaxUID = DeflatedExplicitVRLittleEndian
    ds.save_as(folder / "deflated.dcm", enforce_file_format=True)
    yield (folder / "deflated.dcm").read_bytes()
    files = tiny.series(folder / "source", stored, FrameOfReferenceUID="1.2.3.9")
    seg = tiny.seg(folder / "seg.dcm", files, {"lesion": stored > 2000})
    yield seg.read_bytes()
    yield nifti()
    yield gzip.compress(nifti(), mtime=0)


def spoil(raw: bytes, rng: np.random.Generator) -> bytes:
    """One good file with a fault of a random kind: bits, bytes, a length, a cut, a hole, a repetition."""
    data = bytearray(raw)
    kind = int(rng.integers(6))
    at = int(rng.integers(min(len(data), 4096) if rng.random() < 0.8 else len(data)))
    if kind == 0:
        for place in rng.integers(0, len(data), int(rng.integers(1, 40))):
            data[place] ^= 1 << int(rng.integers(8))
    elif kind == 1:
        data[at : at + 8] = rng.bytes(8)
    elif kind == 2:
        data[at : at + 4] = struct.pack("<I", int(rng.choice([0, 1, 0xFF, 0xFFFF, 2**31 - 1, 2**31, 2**32 - 1])))
    elif kind == 3:
        del data[at:]
    elif kind == 4:
        del data[at : at + int(rng.integers(1, 64))]
    else:
        data[at:at] = data[max(0, at - 200) : at] * int(rng.integers(1, 50))
    return bytes(data)


@pytest.fixture(scope="session")
def hand_made() -> dict[str, Write]:
    """Name → writes the file at a path."""
    return HAND_MADE


@pytest.fixture(scope="session")
def mutated(tmp_path_factory: pytest.TempPathFactory, tiny: SimpleNamespace) -> list[tuple[str, bytes]]:
    """At least 300 mutations of good files: name and bytes."""
    rng = np.random.default_rng(20261122)
    good = list(_good(tmp_path_factory.mktemp("good"), tiny))
    made = []
    for number in range(360):
        raw = good[number % len(good)]
        suffix = "dcm" if raw[128:132] == b"DICM" else "nii.gz" if raw.startswith(b"\x1f\x8b") else "nii"
        made.append((f"{number:03d}.{suffix}", spoil(raw, rng)))
    return made

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pydicom
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from pydicom.encaps import encapsulate, generate_frames
from pydicom.pixels import get_decoder
from pydicom.uid import (
    JPEG2000,
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGBaseline8Bit,
    JPEGExtended12Bit,
    JPEGLossless,
    JPEGLosslessSV1,
    JPEGLSLossless,
    JPEGLSNearLossless,
    RLELossless,
)

from eucaim_fl.cohorts import decoding, volume
from eucaim_fl.cohorts.decoding import PixelFormat, as_dataset, decode, pixel_format
from eucaim_fl.cohorts.dicom import read_frames
from eucaim_fl.cohorts.elements import walk
from eucaim_fl.cohorts.isolation import map_isolated
from eucaim_fl.errors import UnreadableFileError

GDCM_NAMES = {JPEGLossless: "JPEGLosslessProcess14", JPEGLosslessSV1: "JPEGLosslessProcess14_1",
              JPEGExtended12Bit: "JPEGExtendedProcess2_4"}  # fmt: skip

UNSIGNED = [("u1", 8), ("<u2", 12), ("<u2", 16)]


def picture(dtype: str = "<u2", bits: int = 12, seed: int = 0) -> np.ndarray:
    """Something smooth with noise on it, 48 x 40, using all of `bits`."""
    y, x = np.mgrid[:48, :40]
    waves = np.sin(x / 9) + np.cos(y / 8) + np.random.default_rng(seed).normal(0, 0.1, x.shape)
    scaled = (waves - waves.min()) / (waves.max() - waves.min()) * (2**bits - 1)
    if dtype[1] == "i":
        scaled -= 2 ** (bits - 1)
    return np.rint(scaled).astype(dtype)


def stored(tiny, folder: Path, pixels: np.ndarray, bits: int = 12, **attributes) -> Path:
    """One uncompressed file."""
    fixed = {"BitsStored": bits, "HighBit": bits - 1}
    return tiny.series(folder, pixels[None], **{**fixed, **attributes})[0]


def by_gdcm(path: Path, syntax: str) -> Path:
    """The file again, compressed by GDCM."""
    import gdcm

    reader = gdcm.ImageReader()
    reader.SetFileName(str(path))
    assert reader.Read()
    change = gdcm.ImageChangeTransferSyntax()
    change.SetTransferSyntax(gdcm.TransferSyntax(getattr(gdcm.TransferSyntax, GDCM_NAMES[syntax])))
    change.SetInput(reader.GetImage())
    assert change.Change()
    writer = gdcm.ImageWriter()
    writer.SetFileName(str(path.with_suffix(".gdcm")))
    writer.SetFile(reader.GetFile())
    writer.SetImage(change.GetOutput())
    assert writer.Write()
    return path.with_suffix(".gdcm")


def encapsulated(path: Path, syntax: str, frames: list[bytes], **attributes) -> Path:
    """The file again, with these compressed frames as its pixels."""
    ds = pydicom.dcmread(path)
    ds.file_meta.TransferSyntaxUID = syntax
    for name, value in attributes.items():
        setattr(ds, name, value)
    ds.PixelData = encapsulate(frames)
    ds["PixelData"].VR, ds["PixelData"].is_undefined_length = "OB", True
    ds.save_as(path)
    return path


def lossless_jpeg(pixels: np.ndarray, predictor: int, precision: int = 16) -> bytes:
    """ISO 10918-1 annex H, one component; every difference category has a code of five bits."""
    rows, columns = pixels.shape
    values = pixels.astype(np.int64)
    bits: list[str] = []
    for y in range(rows):
        for x in range(columns):
            left, above, corner = (
                values[y, x - 1] if x else 0,
                values[y - 1, x] if y else 0,
                values[y - 1, x - 1] if x and y else 0,
            )
            if not y:
                guess = left if x else 1 << (precision - 1)
            elif not x:
                guess = above
            else:
                guess = (left, above, corner, left + above - corner, left + ((above - corner) >> 1),
                         above + ((left - corner) >> 1), (left + above) >> 1)[predictor - 1]  # fmt: skip
            difference = int((values[y, x] - guess + 32767) % 65536) - 32767  # -32767 … 32768
            size = abs(difference).bit_length()
            bits.append(f"{size:05b}")
            if 0 < size < 17 and difference != 32768:
                bits.append(f"{difference if difference > 0 else difference + (1 << size) - 1:0{size}b}")
    text = "".join(bits)
    text += "1" * (-len(text) % 8)
    coded = bytes(int(text[n : n + 8], 2) for n in range(0, len(text), 8)).replace(b"\xff", b"\xff\0")
    tables = bytes([0, 0, 0, 0, 0, 17, *[0] * 11, *range(17)])
    head = b"\xff\xc3\x00\x0b" + bytes([precision]) + rows.to_bytes(2) + columns.to_bytes(2) + b"\x01\x01\x11\x00"
    huffman = b"\xff\xc4" + (2 + len(tables)).to_bytes(2) + tables
    scan = b"\xff\xda\x00\x08\x01\x01\x00" + bytes([predictor]) + b"\x00\x00"
    return b"\xff\xd8" + head + huffman + scan + coded + b"\xff\xd9"


class TestEveryTransferSyntax:
    @pytest.mark.parametrize(("dtype", "bits"), [("u1", 8), ("<u2", 12), ("<u2", 16), ("<i2", 16), ("<i2", 12)])
    @pytest.mark.parametrize(
        "syntax",
        [ImplicitVRLittleEndian, ExplicitVRLittleEndian, DeflatedExplicitVRLittleEndian, ExplicitVRBigEndian],
        ids=lambda uid: uid.name,
    )
    def test_uncompressed(self, tiny, tmp_path, syntax, dtype, bits):
        pixels = picture(dtype, bits)
        path = stored(tiny, tmp_path, pixels, bits)
        ds = pydicom.dcmread(path)
        big = syntax == ExplicitVRBigEndian
        ds.PixelData = (pixels.astype(pixels.dtype.newbyteorder(">")) if big else pixels).tobytes()
        ds.file_meta.TransferSyntaxUID = syntax
        pydicom.dcmwrite(path, ds, implicit_vr=syntax == ImplicitVRLittleEndian, little_endian=not big)
        assert np.array_equal(read_frames(path)[1][0], pixels)

    @pytest.mark.parametrize(
        ("syntax", "dtype", "bits"),
        [
            *[(syntax, *kind) for syntax in (RLELossless, JPEGLSLossless, JPEG2000Lossless) for kind in UNSIGNED],
            (RLELossless, "<i2", 16),  # JPEG-LS knows no signed values
            (JPEG2000Lossless, "<i2", 16),
        ],
    )
    def test_lossless(self, tiny, tmp_path, syntax, dtype, bits):
        pixels = picture(dtype, bits)
        path = stored(tiny, tmp_path, pixels, bits)
        ds = pydicom.dcmread(path)
        ds.compress(syntax)
        ds.save_as(path)
        assert np.array_equal(read_frames(path)[1][0], pixels)

    @pytest.mark.parametrize("dtype", ["<u2", "<i2"])
    @pytest.mark.parametrize("syntax", [JPEGLossless, JPEGLosslessSV1], ids=lambda uid: uid.name)
    def test_lossless_jpeg_as_gdcm_writes_it(self, tiny, tmp_path, syntax, dtype):
        pixels = picture(dtype, 16)
        assert np.array_equal(read_frames(by_gdcm(stored(tiny, tmp_path, pixels, 16), syntax))[1][0], pixels)

    @pytest.mark.parametrize("predictor", range(1, 8))
    @pytest.mark.parametrize("bits", [12, 16])
    def test_lossless_jpeg_with_every_predictor(self, tiny, tmp_path, predictor, bits):
        pixels = picture("<u2", bits, seed=predictor)
        path = stored(tiny, tmp_path, pixels, bits)
        encapsulated(path, JPEGLossless, [lossless_jpeg(pixels, predictor, bits)])
        assert np.array_equal(read_frames(path)[1][0], pixels)

    def test_jpeg_of_8_bits(self, tiny, tmp_path):
        pixels = picture("u1", 8)
        stream = io.BytesIO()
        Image.fromarray(pixels).save(stream, "JPEG", quality=98)
        path = encapsulated(stored(tiny, tmp_path, pixels, 8), JPEGBaseline8Bit, [stream.getvalue()])
        assert np.array_equal(read_frames(path)[1][0], np.asarray(Image.open(stream)))

    @pytest.mark.parametrize("frames", [1, 3])
    def test_jpeg_of_12_bits(self, tiny, tmp_path, frames):
        pixels = picture("<u2", 12)
        path = by_gdcm(stored(tiny, tmp_path, pixels), JPEGExtended12Bit)
        if frames > 1:
            stream = next(generate_frames(pydicom.dcmread(path).PixelData, number_of_frames=1))
            encapsulated(path, JPEGExtended12Bit, [stream] * frames, NumberOfFrames=frames)
        decoded = read_frames(path)[1]
        assert decoded.shape == (frames, 48, 40)
        assert np.abs(decoded.astype(int) - pixels).max() < 60  # of 4095: lossy
        assert np.abs(decoded.astype(int) - pixels).mean() < 15

    @pytest.mark.parametrize(
        ("syntax", "options"), [(JPEGLSNearLossless, {"jls_error": 3}), (JPEG2000, {"j2k_cr": [4]})]
    )
    def test_near_lossless_and_lossy(self, tiny, tmp_path, syntax, options):
        pixels = picture("<u2", 12)
        path = stored(tiny, tmp_path, pixels)
        ds = pydicom.dcmread(path)
        ds.compress(syntax, **options)
        ds.save_as(path)
        error = np.abs(read_frames(path)[1][0].astype(int) - pixels).max()
        assert 0 < error <= (3 if syntax == JPEGLSNearLossless else 400)

    @pytest.mark.parametrize("syntax", [RLELossless, JPEGLSLossless, JPEG2000Lossless], ids=lambda uid: uid.name)
    def test_all_lossless_decoders_agree(self, tiny, tmp_path, syntax):
        pixels = picture("<u2", 16)
        ds = pydicom.dcmread(stored(tiny, tmp_path, pixels, 16))
        ds.compress(syntax)
        names = {*decoding._DECODERS[syntax], *(["pyjpegls"] if syntax == JPEGLSLossless else [])}
        found = [get_decoder(syntax).as_array(ds, decoding_plugin=name)[0] for name in sorted(names)]
        assert len(found) == 2
        assert all(np.array_equal(one, pixels) for one in found)

    def test_every_syntax_that_is_listed_has_every_decoder_that_is_listed(self):
        for syntax, names in decoding._DECODERS.items():
            assert set(names) <= set(get_decoder(syntax).available_plugins), syntax

    def test_several_frames(self, tiny, tmp_path):
        frames = np.stack([picture(seed=n) for n in range(3)])
        path = stored(tiny, tmp_path, frames[0])
        ds = pydicom.dcmread(path)
        ds.NumberOfFrames, ds.PixelData = 3, frames.tobytes()
        ds.compress(JPEG2000Lossless)
        ds.save_as(path)
        assert np.array_equal(read_frames(path)[1], frames)

    def test_fragments_and_an_extended_offset_table(self, tiny, tmp_path):
        frames = np.stack([picture(seed=n) for n in range(3)])
        path = stored(tiny, tmp_path, frames[0])
        ds = pydicom.dcmread(path)
        ds.NumberOfFrames, ds.PixelData = 3, frames.tobytes()
        ds.compress(RLELossless, encapsulate_ext=True)
        assert "ExtendedOffsetTable" in ds
        ds.save_as(path)
        assert np.array_equal(read_frames(path)[1], frames)


class TestStoredBits:
    @settings(max_examples=40, deadline=None)
    @given(
        allocated=st.sampled_from([8, 16, 32]),
        signed=st.booleans(),
        data=st.data(),
    )
    def test_a_value_is_its_stored_bits_wherever_they_lie(self, allocated, signed, data):
        bits = data.draw(st.integers(1, allocated))
        high = data.draw(st.integers(bits - 1, allocated - 1))
        value = data.draw(st.integers(0, 2**allocated - 1))
        form = PixelFormat(1, 1, 1, 1, "MONOCHROME2", 0, allocated, bits, high, signed, False)
        raw = np.array([value], dtype=f"u{allocated // 8}").view(f"{'i' if signed else 'u'}{allocated // 8}")
        expected = value >> (high + 1 - bits) & ((1 << bits) - 1)
        if signed and expected >= 1 << (bits - 1):
            expected -= 1 << bits
        assert int(decoding._without_spare_bits(raw, form)[0]) == expected
        assert form.ends[0] <= expected <= form.ends[1]

    def test_an_overlay_in_the_high_bits_of_rle_is_left_out(self, tiny, tmp_path):
        pixels = picture("<u2", 12)
        path = stored(tiny, tmp_path, pixels | np.uint16(0x8000))
        ds = pydicom.dcmread(path)
        ds.compress(RLELossless)
        ds.save_as(path)
        assert np.array_equal(read_frames(path)[1][0], pixels)


class TestRefused:
    @pytest.fixture
    def path(self, tiny, tmp_path):
        return stored(tiny, tmp_path, picture())

    def read(self, path: Path) -> str:
        with pytest.raises(UnreadableFileError, match="DICOM file") as caught:
            read_frames(path)
        return caught.value.local_detail

    def elements(self, path: Path, **attributes):
        ds = pydicom.dcmread(path)
        for name, value in attributes.items():
            setattr(ds, name, value)
        ds.save_as(path)
        return walk(path.read_bytes())

    @pytest.mark.parametrize(
        ("attributes", "why"),
        [
            ({"Rows": 65535, "Columns": 65535}, "claims"),
            ({"NumberOfFrames": 2**31 - 1}, "claims"),
            ({"Rows": 0}, "not an image"),
            ({"SamplesPerPixel": 4}, "not an image"),
            ({"BitsAllocated": 12}, "bits allocated"),
            ({"BitsStored": 17}, "bits allocated"),
            ({"HighBit": 16}, "bits allocated"),
            ({"HighBit": 3}, "bits allocated"),
            ({"Rows": None}, "missing or empty"),
        ],
    )
    def test_claims_that_make_no_sense(self, path, attributes, why):
        elements = self.elements(path, **attributes)
        with pytest.raises(ValueError, match=why):
            pixel_format(elements)
        assert why in self.read(path)

    def test_more_pixels_promised_than_there_are(self, path):
        elements = self.elements(path, Rows=49)
        with pytest.raises(ValueError, match="shorter than"):
            decode(elements, pixel_format(elements), lambda: None)

    def test_a_file_cut_off_in_its_pixels(self, path):
        path.write_bytes(path.read_bytes()[:-1])
        assert "shorter than" in self.read(path)

    @pytest.mark.parametrize("syntax", [JPEG2000Lossless, JPEGLSLossless], ids=lambda uid: uid.name)
    def test_a_stream_larger_than_its_header(self, tiny, path, tmp_path, syntax):
        large = stored(tiny, tmp_path / "large", np.zeros((500, 500), np.uint16))
        ds = pydicom.dcmread(large)
        ds.compress(syntax)
        frame = next(generate_frames(ds.PixelData, number_of_frames=1))
        encapsulated(path, syntax, [frame])
        assert "another size" in self.read(path)

    @pytest.mark.parametrize("count", [1, 3])
    def test_another_number_of_frames_than_promised(self, path, count):
        frame = lossless_jpeg(picture(), 1)
        encapsulated(path, JPEGLossless, [frame] * count, NumberOfFrames=2)
        assert self.read(path)

    @pytest.mark.parametrize(
        "frame", [b"\0\0", b"\xff\xd8\xff\xd9", b"\xff\xd8\xff\xe0\x00\x00" * 9, b"nothing at all.."]
    )
    @pytest.mark.parametrize("syntax", [JPEGLossless, JPEG2000, JPEGLSLossless, RLELossless], ids=lambda uid: uid.name)
    def test_a_stream_that_is_none(self, path, syntax, frame):
        encapsulated(path, syntax, [frame])
        assert self.read(path)

    def test_a_video_is_not_decoded(self, path):
        encapsulated(path, "1.2.840.10008.1.2.4.102", [b"\0" * 64])
        assert "no decoder" in self.read(path)

    def test_pixels_that_are_not_encapsulated_where_they_should_be(self, path):
        plain, rle = b"1.2.840.10008.1.2.1\0", b"1.2.840.10008.1.2.5\0"
        path.write_bytes(path.read_bytes().replace(plain, rle))
        assert "encapsulated" in self.read(path)

    def test_a_damaged_stream_gives_as_many_pixels_or_a_reason(self, tiny, tmp_path, monkeypatch):
        (tmp_path / "damaged_work.py").write_text(
            "from pathlib import Path\n"
            "from eucaim_fl.cohorts.dicom import read_frames\n"
            "def shape(path):\n"
            "    return list(read_frames(Path(path))[1].shape)\n"
        )
        monkeypatch.syspath_prepend(str(tmp_path))
        whole, rng, paths = lossless_jpeg(picture(), 4, 12), np.random.default_rng(7), []
        for number in range(60):
            frame = bytearray(whole)
            frame[rng.integers(len(frame))] = rng.integers(256)
            paths.append(stored(tiny, tmp_path / str(number), picture()))
            encapsulated(paths[-1], JPEGLossless, [bytes(frame)])
        # A decoder may end its process over such a file, as it may at a site; that costs the file alone.
        results = dict(map_isolated("damaged_work:shape", [str(path) for path in paths], workers=2))
        assert len(results) == len(paths)
        for one in results.values():
            assert one.value == [1, 48, 40] or one.code == "EFL204"
            assert str(tmp_path) not in one.reason
        assert {one.value is None for one in results.values()} == {True, False}

    def test_a_limit_below_a_file_is_kept(self, path, monkeypatch):
        monkeypatch.setattr(volume, "LARGEST_VOLUME_BYTES", 1000)
        with pytest.raises(UnreadableFileError, match="larger than a volume"):
            read_frames(path)


class TestAsDataset:
    @pytest.mark.parametrize(
        "syntax", [ExplicitVRLittleEndian, DeflatedExplicitVRLittleEndian], ids=lambda uid: uid.name
    )
    def test_the_whole_header_or_the_tags_that_are_asked_for(self, tiny, tmp_path, syntax):
        elements = walk(tiny.series(tmp_path, picture()[None], syntax=syntax)[0].read_bytes())
        assert as_dataset(elements).PatientID == "P1"
        assert "PatientID" not in as_dataset(elements, ["Rows"])
        assert "PixelData" not in as_dataset(elements)

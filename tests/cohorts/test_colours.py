"""Colour DICOM images (photographs): the same red, green and blue as viewers show, or a clear refusal."""

from __future__ import annotations

import base64
import contextlib
import io
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
from PIL import Image, ImageDraw
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.encaps import encapsulate
from pydicom.pixels import convert_color_space
from pydicom.uid import JPEG2000Lossless, JPEGBaseline8Bit, JPEGLSLossless, RLELossless

from eucaim_fl.cohorts.case_image import has_colours, is_grey, luminance, read_case, read_case_colours
from eucaim_fl.cohorts.decoding import decode_colours, pixel_format
from eucaim_fl.cohorts.dicom import read_colours, read_series, stack_names
from eucaim_fl.cohorts.elements import walk
from eucaim_fl.cohorts.facts import SeriesFacts
from eucaim_fl.cohorts.manifest import Case
from eucaim_fl.cohorts.pixel_facts import read_pixel_facts
from eucaim_fl.cohorts.volume import Volume
from eucaim_fl.errors import SeriesError, UnreadableFileError

PLAIN = pydicom.uid.ExplicitVRLittleEndian
RGB = np.arange(6 * 8 * 3, dtype=np.uint8).reshape(6, 8, 3)  # rows, columns, samples


def smooth() -> np.ndarray:
    """A picture that JPEG loses little of: red grows to the right, green downwards."""
    rows, columns = np.mgrid[0:32, 0:48]
    return np.stack([columns * 5, rows * 7, 255 - columns * 2], axis=-1).astype(np.uint8)


def jpeg(pixels: np.ndarray, **options: Any) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "JPEG", quality=90, **options)
    return stream.getvalue()


def viewed(stream: bytes) -> np.ndarray:
    with Image.open(io.BytesIO(stream)) as picture:
        return np.asarray(picture.convert("RGB"))


def photo(
    path: Path, pixels: bytes, shape: tuple[int, int], *, syntax: str = PLAIN, compress: str = "", **attributes: Any
) -> Path:
    """A photograph. pixels: native, or the stream of one frame where the syntax is compressed; compress: what to."""
    ds = Dataset()
    ds.SOPClassUID, ds.SOPInstanceUID = "1.2.840.10008.5.1.4.1.1.77.1.4", "2.25.9"
    ds.PatientID, ds.Modality, ds.StudyInstanceUID, ds.SeriesInstanceUID = "P1", "XC", "2.25.1", "2.25.2"
    ds.InstanceNumber, (ds.Rows, ds.Columns) = 1, shape
    ds.SamplesPerPixel, ds.PhotometricInterpretation, ds.PlanarConfiguration = 3, "RGB", 0
    ds.BitsAllocated, ds.BitsStored, ds.HighBit, ds.PixelRepresentation = 8, 8, 7, 0
    for name, value in attributes.items():
        setattr(ds, name, value)
    ds.file_meta = FileMetaDataset()
    ds.file_meta.TransferSyntaxUID = syntax
    ds.PixelData = pixels if syntax == PLAIN else encapsulate([pixels])
    ds["PixelData"].VR = "OB"
    if compress:
        ds.compress(compress, generate_instance_uid=False)
    path.parent.mkdir(parents=True, exist_ok=True)
    ds.save_as(path, enforce_file_format=True)
    return path


def read(path: Path) -> np.ndarray:
    """Rows, columns, samples."""
    return np.stack([colour.array[:, :, 0].T for colour in read_colours([path])], axis=-1)


def case(path: Path, samples: int | None = 3) -> Case:
    facts = SeriesFacts(folder="", files=(path.name,), kind="dicom", samples=samples)
    return Case("P1", "", "x", (path,), "dicom", modality="XC", facts=facts)


class TestReadColours:
    def test_interleaved_samples_are_taken_as_they_lie(self, tmp_path):
        assert np.array_equal(read(photo(tmp_path / "x.dcm", RGB.tobytes(), (6, 8))), RGB)

    def test_and_those_in_planes(self, tmp_path):
        planes = RGB.transpose(2, 0, 1).tobytes()
        assert np.array_equal(read(photo(tmp_path / "x.dcm", planes, (6, 8), PlanarConfiguration=1)), RGB)

    def test_luminance_and_chroma_are_converted(self, tmp_path):
        stored = convert_color_space(RGB, "RGB", "YBR_FULL")
        path = photo(tmp_path / "x.dcm", stored.tobytes(), (6, 8), PhotometricInterpretation="YBR_FULL")
        assert np.abs(read(path) - RGB).max() <= 2  # rounded twice

    def test_chroma_of_every_second_column_counts_for_two(self, tmp_path):
        stored = bytes([100, 120, 90, 160]) * 2  # two pixels: Y Y Cb Cr
        path = photo(tmp_path / "x.dcm", stored, (1, 4), PhotometricInterpretation="YBR_FULL_422")
        wanted = convert_color_space(np.array([[[100, 90, 160], [120, 90, 160]] * 2], np.uint8), "YBR_FULL", "RGB")
        assert np.array_equal(read(path), wanted)

    @pytest.mark.parametrize("subsampling", ["4:4:4", "4:2:2", "4:2:0"])
    def test_a_jpeg_is_what_a_viewer_shows_to_the_bit(self, tmp_path, subsampling):
        stream = jpeg(smooth(), subsampling=subsampling)
        path = photo(
            tmp_path / "x.dcm", stream, (32, 48), syntax=JPEGBaseline8Bit, PhotometricInterpretation="YBR_FULL_422"
        )
        assert np.array_equal(read(path), viewed(stream))

    def test_what_a_jpeg_says_of_its_colours_counts_before_the_header(self, tmp_path):
        stream = jpeg(smooth())  # with a JFIF marker: Y, Cb, Cr
        path = photo(tmp_path / "x.dcm", stream, (32, 48), syntax=JPEGBaseline8Bit, PhotometricInterpretation="RGB")
        assert np.array_equal(read(path), viewed(stream))

    def test_the_header_counts_where_a_jpeg_is_silent(self, tmp_path):
        stream = jpeg(smooth(), subsampling=0)
        silent = stream[:2] + stream[4 + int.from_bytes(stream[4:6]) :]  # without its first segment, JFIF
        path = photo(tmp_path / "x.dcm", silent, (32, 48), syntax=JPEGBaseline8Bit, PhotometricInterpretation="RGB")
        with Image.open(io.BytesIO(silent)) as picture:
            picture.draft("YCbCr", picture.size)
            assert np.array_equal(read(path), np.asarray(picture))

    @pytest.mark.parametrize("syntax", [RLELossless, JPEGLSLossless, JPEG2000Lossless])
    def test_lossless_compression_gives_the_same(self, tmp_path, syntax):
        pixels = smooth()
        path = photo(tmp_path / "x.dcm", pixels.tobytes(), pixels.shape[:2], compress=syntax)
        assert np.array_equal(read(path), pixels)

    def test_they_lie_as_on_a_screen(self, tmp_path):
        red, green, blue = read_colours([photo(tmp_path / "x.dcm", RGB.tobytes(), (6, 8))])
        assert red.affine.tolist() == np.diag([-1.0, -1.0, 1.0, 1.0]).tolist()
        assert red.shape == green.shape == blue.shape == (8, 6, 1)

    def test_a_stated_spacing_is_kept(self, tmp_path):
        red, *_ = read_colours([photo(tmp_path / "x.dcm", RGB.tobytes(), (6, 8), PixelSpacing=["0.5", "0.25"])])
        assert red.spacing_mm == (0.25, 0.5, 1.0)

    def test_several_photographs_of_a_series_are_stacks_of_their_own(self, tmp_path):
        files = [
            photo(
                tmp_path / f"{n}.dcm", np.roll(RGB, n).tobytes(), (6, 8), SOPInstanceUID=f"2.25.{n}", InstanceNumber=n
            )
            for n in (1, 2)
        ]
        assert stack_names(files) == ("pass=1", "pass=2")
        second = read_colours(files, stack="pass=2")[0].array[:, :, 0].T
        assert np.array_equal(second, np.roll(RGB, 2)[..., 0])
        with pytest.raises(SeriesError, match="holds 2 stacks"):
            read_colours(files)


class TestRefusals:
    def test_a_grey_image(self, tmp_path):
        grey = {"SamplesPerPixel": 1, "PhotometricInterpretation": "MONOCHROME2"}
        with pytest.raises(SeriesError, match="holds no colours"):
            read_colours([photo(tmp_path / "x.dcm", bytes(48), (6, 8), **grey)])

    def test_a_palette(self, tmp_path):
        palette = {"SamplesPerPixel": 1, "PhotometricInterpretation": "PALETTE COLOR"}
        with pytest.raises(SeriesError, match="those of a palette"):
            read_colours([photo(tmp_path / "x.dcm", bytes(48), (6, 8), **palette)])

    @pytest.mark.parametrize(
        "claims",
        [
            {"BitsAllocated": 16, "BitsStored": 16, "HighBit": 15},
            {"BitsStored": 7, "HighBit": 6},
            {"PixelRepresentation": 1},
        ],
        ids=["16 bits", "7 bits", "signed"],
    )
    def test_colours_of_other_than_8_bits(self, tmp_path, claims):
        with pytest.raises(SeriesError, match="other than 8 bits"):
            read_colours([photo(tmp_path / "x.dcm", bytes(6 * 8 * 6), (6, 8), **claims)])

    def test_several_frames(self, tmp_path):
        with pytest.raises(SeriesError, match="states no position for its frames"):
            read_colours([photo(tmp_path / "x.dcm", RGB.tobytes() * 2, (6, 8), NumberOfFrames=2)])

    @pytest.mark.parametrize(
        "claims",
        [
            {"SamplesPerPixel": 1},
            {"PhotometricInterpretation": "MONOCHROME2"},
            {"SamplesPerPixel": 2},
            {"SamplesPerPixel": 4},
            {"PlanarConfiguration": 7},
            {"Rows": 7},
            {"Rows": 65535, "Columns": 65535},
        ],
        ids=str,
    )
    def test_claims_that_contradict_the_pixels_or_each_other(self, tmp_path, claims):
        with pytest.raises(UnreadableFileError, match="truncated or corrupt"):
            read_colours([photo(tmp_path / "x.dcm", RGB.tobytes(), (6, 8), **claims)])

    @pytest.mark.parametrize(
        "stream",
        [
            jpeg(smooth())[:400],
            jpeg(smooth())[:-60],
            jpeg(smooth()[:16]),
            jpeg(smooth()[..., 0]),
            b"\xff\xd8\xff\xd9",
            smooth().tobytes(),
        ],
        ids=["header only", "cut off", "another size", "grey", "nothing in it", "no JPEG"],
    )
    def test_a_stream_that_is_not_what_the_header_says(self, tmp_path, stream):
        path = photo(
            tmp_path / "x.dcm", stream, (32, 48), syntax=JPEGBaseline8Bit, PhotometricInterpretation="YBR_FULL_422"
        )
        with pytest.raises(UnreadableFileError, match="truncated or corrupt"):
            read_colours([path])

    def test_no_damaged_byte_of_a_stream_ends_in_anything_else(self, tmp_path):
        stream, rng = jpeg(smooth()), np.random.default_rng(0)
        for place in rng.integers(0, len(stream), 60):
            broken = bytearray(stream)
            broken[place] ^= 1 << int(rng.integers(8))
            path = photo(
                tmp_path / "x.dcm",
                bytes(broken),
                (32, 48),
                syntax=JPEGBaseline8Bit,
                PhotometricInterpretation="YBR_FULL_422",
            )
            with contextlib.suppress(UnreadableFileError, SeriesError):
                assert read(path).shape == (32, 48, 3)

    def test_decoding_says_the_same_without_a_file(self, tmp_path):
        elements = walk(photo(tmp_path / "x.dcm", RGB.tobytes(), (6, 8)).read_bytes())
        form = pixel_format(elements)
        assert np.array_equal(decode_colours(elements, form)[0], RGB)
        short = walk(photo(tmp_path / "y.dcm", RGB.tobytes()[:-30], (6, 8)).read_bytes())
        with pytest.raises(ValueError, match="shorter than rows x columns"):
            decode_colours(short, form)
        with pytest.raises(SeriesError, match="holds no colours"):
            decode_colours(elements, pixel_format(walk(photo(
                tmp_path / "z.dcm", bytes(48), (6, 8), SamplesPerPixel=1, PhotometricInterpretation="MONOCHROME2"
            ).read_bytes())))  # fmt: skip


class TestCaseImage:
    def test_colours_and_their_luminance_agree(self, tmp_path):
        one = case(photo(tmp_path / "x.dcm", RGB.tobytes(), (6, 8)))
        grey = luminance(read_case_colours(one))
        assert np.allclose(grey.array, read_case(one).array)
        assert np.allclose(grey.array[:, :, 0].T, RGB @ [0.299, 0.587, 0.114])

    def test_what_headers_state_of_samples_decides(self, tmp_path):
        path = tmp_path / "x.dcm"
        stated = {samples: (has_colours(case(path, samples)), is_grey(case(path, samples))) for samples in (None, 1, 3)}
        assert stated == {None: (False, False), 1: (False, True), 3: (True, False)}

    def test_a_damaged_file_or_a_grey_one_is_refused(self, tmp_path):
        broken = case(photo(tmp_path / "x.dcm", RGB.tobytes()[:-30], (6, 8)))
        with pytest.raises(UnreadableFileError, match="truncated"):
            read_case_colours(broken)
        with pytest.raises(UnreadableFileError, match="truncated"):
            read_case(broken)
        grey = photo(tmp_path / "g.dcm", bytes(48), (6, 8), SamplesPerPixel=1, PhotometricInterpretation="MONOCHROME2")
        with pytest.raises(SeriesError, match="no colours"):
            read_case_colours(case(grey))

    def test_an_image_of_several_nifti_files_is_refused(self, tmp_path):
        several = Case("P1", "", "x", (tmp_path / "a.nii", tmp_path / "b.nii"), "nifti")
        with pytest.raises(SeriesError, match="consists of several files"):
            read_case(several)
        with pytest.raises(SeriesError, match="consists of several files"):
            read_case_colours(several)


class TestPixelFacts:
    def test_colours_give_the_statistics_of_their_luminance_and_a_picture_in_colours(self, tmp_path):
        red = np.zeros((20, 30, 3), np.uint8)
        red[..., 0] = 200
        red[:10, :, 1] = 100
        facts = read_pixel_facts(case(photo(tmp_path / "x.dcm", red.tobytes(), (20, 30))))
        assert facts.shape == (30, 20, 1)
        assert (facts.minimum, facts.maximum) == pytest.approx((59.8, 118.5), abs=0.01)
        shown = np.asarray(Image.open(io.BytesIO(base64.b64decode(facts.thumbnail))))
        assert shown.shape == (20, 30, 3)
        assert shown[2, 2].tolist() == [200, 100, 0]
        assert shown[17, 27].tolist() == [200, 0, 0]

    def test_text_that_only_a_colour_shows_is_seen(self, tmp_path):
        page = Image.new("L", (160, 60), 0)
        ImageDraw.Draw(page).text((10, 20), "SMITH JOHN 1950", fill=255, font_size=16)
        ink = np.asarray(page)
        pixels = np.zeros((60, 160, 3), np.uint8)
        pixels[..., 2] = ink  # blue weighs a ninth in the luminance, and a red ground hides it there
        pixels[..., 0] = np.linspace(0, 255, 160).astype(np.uint8)
        path = photo(tmp_path / "x.dcm", pixels.tobytes(), (60, 160))
        assert read_pixel_facts(case(path)).text
        assert not read_pixel_facts(case(path, samples=None)).text

    def test_colours_that_no_plan_can_take_are_still_looked_at(self, tmp_path):
        wide = RGB.astype("<u2").tobytes()
        path = photo(tmp_path / "x.dcm", wide, (6, 8), BitsAllocated=16, BitsStored=16, HighBit=15)
        assert read_pixel_facts(case(path)).maximum == pytest.approx(float(read_series([path]).array.max()))


def test_a_volume_of_luminance_lies_where_its_colours_do():
    colours = [Volume(np.full((2, 2, 1), n, np.float32), np.diag([2.0, 3.0, 1.0, 1.0])) for n in (10, 20, 30)]
    grey = luminance(colours)
    assert grey.affine.tolist() == colours[0].affine.tolist()
    assert np.allclose(grey.array, 2.99 + 11.74 + 3.42)

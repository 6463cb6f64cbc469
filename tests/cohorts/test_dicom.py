from __future__ import annotations

import os

import highdicom as hd
import numpy as np
import pydicom
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from pydicom.dataset import Dataset
from pydicom.sequence import Sequence
from pydicom.uid import (
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ImplicitVRLittleEndian,
    JPEGLSLossless,
    RLELossless,
)

from eucaim_fl.cohorts import elements, volume
from eucaim_fl.cohorts.dicom import functional_group, read_frames, read_header, read_series, stack_names
from eucaim_fl.cohorts.volume import is_sheared
from eucaim_fl.errors import SeriesError, UnreadableFileError

STORED = np.arange(5 * 3 * 4, dtype=np.int16).reshape(5, 3, 4)
CORONAL = (1.0, 0.0, 0.0, 0.0, 0.0, -1.0)
SAGITTAL = (0.0, 1.0, 0.0, 0.0, 0.0, -1.0)
OBLIQUE = (0.8, 0.6, 0.0, -0.36, 0.48, -0.8)


def change(path, **attributes):
    """Rewrite one file with other attributes; None removes one."""
    ds = pydicom.dcmread(path)
    for name, value in attributes.items():
        if value is None:
            delattr(ds, name)
        else:
            setattr(ds, name, value)
    ds.save_as(path)


def multiframe(path, stored, origin_z, **shared):
    """An enhanced-style file: positions in functional groups only, frames in a scrambled order."""
    ds = pydicom.dcmread(path)
    for name in ("ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing"):
        delattr(ds, name)
    common, orientation, measures, values = (Dataset() for _ in range(4))
    orientation.ImageOrientationPatient = [1, 0, 0, 0, 1, 0]
    measures.PixelSpacing, measures.SliceThickness = [2, 2], 3
    values.RescaleSlope, values.RescaleIntercept = 2, -10
    common.PlaneOrientationSequence = Sequence([orientation])
    common.PixelMeasuresSequence = Sequence([measures])
    common.PixelValueTransformationSequence = Sequence([values])
    frames = []
    for z in origin_z:
        plane, item = Dataset(), Dataset()
        plane.ImagePositionPatient = [0, 0, z]
        item.PlanePositionSequence = Sequence([plane])
        frames.append(item)
    ds.SharedFunctionalGroupsSequence = Sequence([common])
    ds.PerFrameFunctionalGroupsSequence = Sequence(frames)
    ds.NumberOfFrames, ds.PixelData = len(stored), stored.tobytes()
    ds.save_as(path)
    return path


class TestGeometry:
    @pytest.mark.parametrize("orientation", [(1.0, 0, 0, 0, 1.0, 0), CORONAL, SAGITTAL, OBLIQUE])
    def test_every_voxel_lies_where_an_independent_reader_puts_it(self, tiny, tmp_path, orientation):
        files = tiny.series(tmp_path, STORED, orientation=orientation, spacing=(1.5, 0.7), step=2.5)
        mine = read_series(files)
        other = hd.get_volume_from_series([pydicom.dcmread(path) for path in files])
        to_ras = np.diag([-1.0, -1.0, 1.0, 1.0]) @ other.affine
        index = np.stack(np.meshgrid(*map(np.arange, mine.shape), indexing="ij"), axis=-1).reshape(-1, 3)
        places = index @ mine.affine[:3, :3].T + mine.affine[:3, 3]
        theirs = np.rint((places - to_ras[:3, 3]) @ np.linalg.inv(to_ras[:3, :3]).T).astype(int)
        assert np.abs(theirs @ to_ras[:3, :3].T + to_ras[:3, 3] - places).max() < 1e-9
        assert np.array_equal(mine.array[tuple(index.T)], other.array[tuple(theirs.T)])

    def test_an_axial_series_by_hand(self, tiny, tmp_path):
        volume = read_series(tiny.series(tmp_path, STORED, origin=(10, -20, 30), spacing=(2.0, 1.0), step=3.0))
        assert volume.shape == (4, 3, 5)  # columns, rows, slices
        assert np.array_equal(volume.affine, [[-1, 0, 0, -10], [0, -2, 0, 20], [0, 0, 3, 30], [0, 0, 0, 1]])
        assert volume.array[3, 1, 2] == STORED[2, 1, 3]

    @settings(max_examples=10, suppress_health_check=[HealthCheck.function_scoped_fixture])
    @given(order=st.permutations(range(5)), given_order=st.permutations(range(5)))
    def test_neither_names_nor_numbers_nor_order_of_files_matter(self, tiny, tmp_path_factory, order, given_order):
        expected = read_series(tiny.series(tmp_path_factory.mktemp("a"), STORED))
        files = tiny.series(tmp_path_factory.mktemp("b"), STORED, order=order)
        volume = read_series([files[i] for i in given_order])
        assert np.array_equal(volume.array, expected.array)
        assert np.array_equal(volume.affine, expected.affine)

    def test_positions_rounded_by_the_scanner_are_still_even(self, tiny, tmp_path):
        files = tiny.series(tmp_path, STORED, step=0.7)
        for number, z in enumerate([30.0, 30.7, 31.4, 32.1, 32.84]):
            change(files[number], ImagePositionPatient=[10, -20, z])
        assert read_series(files).spacing_mm[2] == pytest.approx(0.71)

    def test_a_tilted_gantry_shears_the_affine_and_moves_no_voxel(self, tiny, tmp_path):
        files = tiny.series(tmp_path, STORED)
        for number, path in enumerate(files):
            change(path, ImagePositionPatient=[10, -20 + number, 30 + 3 * number])
        volume = read_series(files)
        assert is_sheared(volume)
        assert np.array_equal(volume.array, STORED.transpose(2, 1, 0))
        assert np.array_equal(volume.affine, [[-2, 0, 0, -10], [0, -2, -1, 20], [0, 0, 3, 30], [0, 0, 0, 1]])

    def test_one_slice_has_its_thickness(self, tiny, tmp_path):
        assert read_series(tiny.series(tmp_path, STORED[:1], step=4.0)).spacing_mm == (2.0, 2.0, 4.0)

    def test_frames_of_an_enhanced_file_are_placed_by_their_functional_groups(self, tiny, tmp_path):
        path = tiny.series(tmp_path, STORED[:1])[0]
        volume = read_series([multiframe(path, STORED[:3], [6.0, 0.0, 3.0])])
        assert np.array_equal(volume.array[:, :, 0], STORED[1].T * 2.0 - 10)
        assert np.array_equal(volume.array[:, :, 2], STORED[0].T * 2.0 - 10)
        assert volume.spacing_mm == (2.0, 2.0, 3.0)

    def test_an_image_without_position_lies_as_on_a_screen(self, tiny, tmp_path):
        files = tiny.series(
            tmp_path,
            STORED[:1],
            modality="DX",
            ImagePositionPatient=None,
            ImageOrientationPatient=None,
            PixelSpacing=None,
        )
        volume = read_series(files)
        assert np.array_equal(volume.affine, np.diag([-1.0, -1, 1, 1]))
        change(files[0], ImagerPixelSpacing=[0.2, 0.1])
        assert read_series(files).spacing_mm == (0.1, 0.2, 1.0)

    def test_an_inverted_radiograph_is_turned_so_that_larger_is_brighter(self, tiny, tmp_path):
        files = tiny.series(
            tmp_path,
            STORED[:1].astype(np.uint8),
            modality="DX",
            ImagePositionPatient=None,
            ImageOrientationPatient=None,
            PhotometricInterpretation="MONOCHROME1",
        )
        assert read_series(files).array[0, 0, 0] == 255


class TestValues:
    def test_each_slice_has_its_own_slope_and_intercept(self, tiny, tmp_path):
        files = tiny.series(tmp_path, STORED, RescaleSlope=2, RescaleIntercept=-1000)
        change(files[1], RescaleSlope=0.5, RescaleIntercept=7)
        volume = read_series(files)
        assert np.array_equal(volume.array[:, :, 0], STORED[0].T * 2.0 - 1000)
        assert np.array_equal(volume.array[:, :, 1], STORED[1].T * 0.5 + 7)

    @pytest.mark.parametrize("dtype", [np.uint8, np.int8, np.uint16, np.int16, np.int32, np.uint32])
    def test_every_width_of_stored_values(self, tiny, tmp_path, dtype):
        stored = STORED.astype(dtype)
        stored[0, 0, 0] = np.iinfo(dtype).min
        volume = read_series(tiny.series(tmp_path, stored))
        assert np.array_equal(volume.array, stored.astype(np.float32).transpose(2, 1, 0))

    @pytest.mark.parametrize(("signed", "value", "expected"), [(0, 0xF123, 0x123), (1, 0x0FFF, -1), (1, 0xF7FF, 2047)])
    def test_bits_above_the_stored_ones_are_ignored(self, tiny, tmp_path, signed, value, expected):
        stored = np.full((2, 3, 4), value, np.uint16)
        files = tiny.series(tmp_path, stored, BitsStored=12, HighBit=11, PixelRepresentation=signed)
        assert np.unique(read_series(files).array) == expected

    @pytest.mark.parametrize("syntax", [ImplicitVRLittleEndian, DeflatedExplicitVRLittleEndian])
    def test_every_uncompressed_syntax_gives_the_same(self, tiny, tmp_path, syntax):
        volume = read_series(tiny.series(tmp_path, STORED, syntax=syntax))
        assert np.array_equal(volume.array, STORED.transpose(2, 1, 0))

    def test_big_endian_gives_the_same(self, tiny, tmp_path):
        files = tiny.series(tmp_path, STORED.byteswap(), syntax=ExplicitVRBigEndian)
        assert np.array_equal(read_series(files).array, STORED.transpose(2, 1, 0))

    @pytest.mark.parametrize("syntax", [RLELossless, JPEGLSLossless])
    def test_lossless_compression_gives_the_same_and_a_truncated_stream_is_found(self, tiny, tmp_path, syntax):
        stored = np.random.default_rng(0).integers(0, 1000, (3, 32, 32)).astype(np.uint16)
        files = tiny.series(tmp_path, stored)
        for path in files:
            ds = pydicom.dcmread(path)
            ds.compress(syntax)
            ds.save_as(path)
        assert np.array_equal(read_series(files).array, stored.transpose(2, 1, 0))
        files[1].write_bytes(files[1].read_bytes()[:-500])
        with pytest.raises(UnreadableFileError, match="truncated"):
            read_series(files)

    def test_a_photograph_becomes_its_luminance(self, tiny, tmp_path):
        files = tiny.series(
            tmp_path,
            np.zeros((1, 1, 6), np.uint8),
            modality="US",
            ImagePositionPatient=None,
            ImageOrientationPatient=None,
            Columns=2,
            SamplesPerPixel=3,
            PlanarConfiguration=0,
            PhotometricInterpretation="RGB",
        )
        change(files[0], PixelData=bytes([255, 0, 0, 255, 255, 255]))
        assert read_series(files).array[:, 0, 0] == pytest.approx([0.299 * 255, 255])


class TestReadSeriesRefuses:
    @pytest.fixture
    def files(self, tiny, tmp_path):
        return tiny.series(tmp_path / "PATIENT-X", STORED)

    @pytest.mark.parametrize("lost", [1, 2, 3])
    def test_a_missing_slice(self, files, lost):
        with pytest.raises(SeriesError, match="at least one is missing") as caught:
            read_series(files[:lost] + files[lost + 1 :])
        assert "PATIENT-X" not in str(caught.value)
        assert "PATIENT-X" in caught.value.local_detail

    def test_one_missing_slice_among_hundreds(self, tiny, tmp_path):
        files = tiny.series(tmp_path, np.zeros((200, 1, 1), np.int16), step=1.0)
        with pytest.raises(SeriesError, match="at least one is missing"):
            read_series(files[:100] + files[101:])

    def test_two_slices_at_one_place(self, files):
        change(files[1], ImagePositionPatient=[10, -20, 30])
        with pytest.raises(SeriesError, match="same place"):
            read_series(files)

    @pytest.mark.parametrize(
        "other",
        [
            {"ImageOrientationPatient": list(CORONAL)},
            {"PixelSpacing": [2.0, 1.9]},
            {"Rows": 2, "PixelData": STORED[4, :2].tobytes()},
        ],
        ids=["orientation", "spacing", "size"],
    )
    def test_a_mix_of_planes_unless_one_is_chosen(self, files, other):
        change(files[4], **other)
        with pytest.raises(SeriesError, match="2 stacks of images, told apart by size, orientation or pixel spacing"):
            read_series(files)
        assert {read_series(files, stack=name).shape[2] for name in stack_names(files)} == {1, 4}

    def test_two_series_in_one(self, files):
        change(files[2], SeriesInstanceUID="1.2.3.5")
        with pytest.raises(SeriesError, match="belong to several"):
            read_series(files)

    def test_slices_that_drift_without_a_constant_step(self, files):
        for number, path in enumerate(files):
            change(path, ImagePositionPatient=[10, -20 + number**2, 30 + 3 * number])
        with pytest.raises(SeriesError, match="no constant step"):
            read_series(files)

    def test_slices_that_lean_more_than_any_gantry(self, files):
        for number, path in enumerate(files):
            change(path, ImagePositionPatient=[10, -20 + 4 * number, 30 + 3 * number])
        with pytest.raises(SeriesError, match="more than any gantry"):
            read_series(files)

    def test_axes_that_are_not_perpendicular(self, files):
        for path in files:
            change(path, ImageOrientationPatient=[1, 0, 0, 0.6, 0.8, 0])
        with pytest.raises(SeriesError, match="perpendicular"):
            read_series(files)

    def test_a_slice_with_a_position_but_without_spacing(self, files):
        change(files[2], PixelSpacing=None)
        with pytest.raises(SeriesError, match="no pixel spacing"):
            read_series(files)

    def test_a_slice_without_position(self, files):
        change(files[2], ImagePositionPatient=None)
        with pytest.raises(SeriesError, match="state no position"):
            read_series(files)

    @pytest.mark.parametrize("modality", ["CT", "MR", "PT"])
    def test_a_cross_section_without_position_even_alone(self, tiny, tmp_path, modality):
        gone = dict.fromkeys(["ImagePositionPatient", "ImageOrientationPatient"])
        with pytest.raises(SeriesError, match="state no position"):
            read_series(tiny.series(tmp_path, STORED[:1], modality=modality, **gone))

    def test_frames_without_positions(self, tiny, tmp_path):
        path = tiny.series(tmp_path, STORED[:1])[0]
        change(path, NumberOfFrames=2, PixelData=STORED[:2].tobytes())
        with pytest.raises(SeriesError, match="multi-frame"):
            read_series([path])

    def test_a_mosaic_of_slices_in_one_plane(self, files):
        change(files[0], ImageType=["ORIGINAL", "PRIMARY", "M", "MOSAIC"])
        with pytest.raises(SeriesError, match="mosaic"):
            read_series(files[:1])

    def test_no_files(self):
        with pytest.raises(SeriesError, match="no files"):
            read_series([])

    @pytest.mark.parametrize("keep", [0, 100, 400, -1])
    def test_a_truncated_file(self, files, keep):
        files[2].write_bytes(files[2].read_bytes()[:keep])
        with pytest.raises(UnreadableFileError, match="truncated") as caught:
            read_series(files)
        assert "PATIENT-X" not in str(caught.value)
        assert str(files[2]) in caught.value.local_detail

    def test_a_missing_file(self, files):
        with pytest.raises(UnreadableFileError, match="missing"):
            read_series([*files, files[0].with_name("none.dcm")])

    def test_a_pipe_is_not_waited_for(self, files):
        files[0].unlink()
        os.mkfifo(files[0])
        with pytest.raises(UnreadableFileError, match="missing"):
            read_series(files)

    @pytest.mark.parametrize(
        "attributes",
        [
            {"RescaleSlope": 0},
            {"PixelSpacing": [0, 2]},
            {"ImagePositionPatient": [1, 2]},
            {"ImageOrientationPatient": [1, 0, 0]},
            {"PixelSpacing": [2]},
        ],
    )
    def test_attributes_that_make_no_sense(self, files, attributes):
        change(files[2], **attributes)
        with pytest.raises(UnreadableFileError, match="corrupt"):
            read_series(files)

    def test_more_than_a_volume_may_have(self, files, monkeypatch):
        monkeypatch.setattr(volume, "LARGEST_VOLUME_BYTES", files[0].stat().st_size * 2)
        with pytest.raises(UnreadableFileError, match="larger than a volume"):
            read_series(files)

    @pytest.mark.filterwarnings("ignore::UserWarning")  # pydicom grumbles before it fails
    @settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
    @given(place=st.integers(0, 2000), value=st.integers(0, 255))
    @example(place=537, value=0)  # a value representation that does not exist, met only where the value is used
    def test_a_damaged_byte_never_ends_in_anything_but_a_volume_or_a_clear_error(self, tiny, tmp_path, place, value):
        path = tiny.series(tmp_path, STORED[:1])[0]
        raw = bytearray(path.read_bytes())
        raw[place % len(raw)] = value
        path.write_bytes(bytes(raw))
        text = ""
        try:
            text = str(read_series([path]).shape)
        except (SeriesError, UnreadableFileError) as error:
            text = str(error)
        assert text
        assert str(tmp_path) not in text


class TestReadFrames:
    def test_stored_values_come_before_any_rescaling(self, tiny, tmp_path):
        path = tiny.series(tmp_path, STORED[:1], RescaleSlope=5)[0]
        header, frames = read_frames(path)
        assert np.array_equal(frames, STORED[:1])
        assert header.Modality == "CT"

    @pytest.mark.parametrize("syntax", [ImplicitVRLittleEndian, RLELossless])
    def test_an_absurd_claim_is_refused_before_decoding(self, tiny, tmp_path, syntax):
        path = tiny.series(tmp_path, STORED[:1])[0]
        change(path, Rows=65535, Columns=65535, NumberOfFrames=1000)
        with pytest.raises(UnreadableFileError, match="DICOM file") as caught:
            read_frames(path)
        assert "claims" in caught.value.local_detail

    def test_a_deflated_file_that_unpacks_to_more_than_a_volume_is_refused(self, tiny, tmp_path, monkeypatch):
        path = tiny.series(tmp_path, np.zeros((1, 500, 500), np.int16), syntax=DeflatedExplicitVRLittleEndian)[0]
        monkeypatch.setattr(elements, "LARGEST_VOLUME_BYTES", 100_000)
        with pytest.raises(UnreadableFileError, match="DICOM file"):
            read_frames(path)

    def test_a_file_without_pixels_is_no_image(self, tiny, tmp_path):
        path = tiny.series(tmp_path, STORED[:1])[0]
        change(path, PixelData=None)
        with pytest.raises(UnreadableFileError, match="DICOM file"):
            read_frames(path)


class TestReadHeader:
    @pytest.mark.parametrize("syntax", [ImplicitVRLittleEndian, DeflatedExplicitVRLittleEndian])
    def test_it_says_what_the_file_is_without_its_pixels(self, tiny, tmp_path, syntax):
        header = read_header(tiny.series(tmp_path, STORED[:1], syntax=syntax)[0])
        assert (header.Modality, header.SeriesInstanceUID) == ("CT", "1.2.3.4")
        assert "PixelData" not in header

    @pytest.mark.parametrize("content", [None, b"", b"text", bytes(300)])
    def test_a_missing_or_foreign_file_is_unreadable(self, tmp_path, content):
        if content is not None:
            (tmp_path / "x.dcm").write_bytes(content)
        with pytest.raises(UnreadableFileError, match="DICOM file"):
            read_header(tmp_path / "x.dcm")

    def test_a_frames_own_group_comes_before_the_shared_one(self, tiny, tmp_path):
        header = read_header(multiframe(tiny.series(tmp_path, STORED[:1])[0], STORED[:2], [0.0, 3.0]))
        assert functional_group(header, 1, "PlanePositionSequence").ImagePositionPatient[2] == 3
        assert functional_group(header, 1, "PixelMeasuresSequence").SliceThickness == 3
        assert functional_group(header, 1, "FrameContentSequence") is None

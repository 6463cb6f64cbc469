"""Kinds of DICOM objects and of stored values, each as one small series."""

from __future__ import annotations

import shutil

import numpy as np
import pydicom
import pytest
from pydicom.dataset import Dataset
from pydicom.sequence import Sequence

from eucaim_fl.cohorts.dicom import read_series, stack_names
from eucaim_fl.errors import SeriesError, UnreadableFileError

STORED = np.arange(4 * 3 * 4, dtype=np.uint16).reshape(4, 3, 4)
SCREEN = dict.fromkeys(["ImagePositionPatient", "ImageOrientationPatient"])


def change(path, **attributes):
    """Rewrite one file with other attributes; None removes one."""
    ds = pydicom.dcmread(path)
    for name, value in attributes.items():
        if value is None:
            delattr(ds, name)
        else:
            setattr(ds, name, value)
    ds.save_as(path)
    return path


def item(**attributes):
    """A sequence of one item."""
    ds = Dataset()
    for name, value in attributes.items():
        setattr(ds, name, value)
    return Sequence([ds])


def enhanced(path, stored, frames, **shared):
    """Rewrite one file as an enhanced object. frames: functional groups of each; shared: those of all."""
    ds = pydicom.dcmread(path)
    for name in ("ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing"):
        delattr(ds, name)
    usual = {
        "PlaneOrientationSequence": item(ImageOrientationPatient=[1, 0, 0, 0, 1, 0]),
        "PixelMeasuresSequence": item(PixelSpacing=[2, 2], SliceThickness=3),
    }
    ds.SharedFunctionalGroupsSequence = item(**usual, **shared)
    ds.PerFrameFunctionalGroupsSequence = Sequence([item(**groups)[0] for groups in frames])
    ds.NumberOfFrames, ds.PixelData = len(stored), stored.tobytes()
    ds.save_as(path)
    return path


def at(z, **groups):
    return {"PlanePositionSequence": item(ImagePositionPatient=[0, 0, z]), **groups}


class TestEnhanced:
    def test_each_frame_has_its_own_rescale(self, tiny, tmp_path):
        values = [item(RescaleSlope=slope, RescaleIntercept=-slope, RescaleType="HU") for slope in (1, 2, 3, 4)]
        frames = [at(3 * n, PixelValueTransformationSequence=value) for n, value in enumerate(values)]
        volume = read_series([enhanced(tiny.series(tmp_path, STORED[:1])[0], STORED, frames)])
        for n in range(4):
            assert np.array_equal(volume.array[:, :, n], (STORED[n].T * (n + 1.0)) - (n + 1))

    @pytest.mark.parametrize(
        ("groups", "names"),
        [
            (lambda n: {"MRDiffusionSequence": item(DiffusionBValue=float(800 * n))}, ("b=0", "b=800")),
            (lambda n: {"MREchoSequence": item(EffectiveEchoTime=2.5 * (n + 1))}, ("echo=2.5ms", "echo=5ms")),
            (lambda n: {"FrameContentSequence": item(TemporalPositionIndex=n + 1)}, ("time=1", "time=2")),
            (lambda n: {"MRImageFrameTypeSequence": item(FrameType=["D", "P", "AB"[n]])}, ("type=A", "type=B")),
            (
                lambda n: {"UnassignedPerFrameConvertedAttributesSequence": item(DiffusionBValue=50.0 * (n + 1))},
                ("b=50", "b=100"),
            ),
            (lambda n: {}, ("pass=1", "pass=2")),
        ],
        ids=["b", "echo", "time", "type", "converted", "nothing"],
    )
    def test_its_stacks_are_read_one_by_one(self, tiny, tmp_path, groups, names):
        frames = [at(3 * (n % 2), **groups(n // 2)) for n in range(4)]
        path = enhanced(tiny.series(tmp_path, STORED[:1], modality="MR")[0], STORED, frames)
        assert stack_names([path]) == names
        for number, name in enumerate(names):
            volume = read_series([path], stack=name)
            assert np.array_equal(volume.array, STORED[2 * number : 2 * number + 2].transpose(2, 1, 0))
        with pytest.raises(SeriesError, match="2 stacks of images, told apart by") as caught:
            read_series([path])
        assert names[0] in caught.value.local_detail
        assert names[0] not in str(caught.value)
        with pytest.raises(SeriesError, match="no such stack"):
            read_series([path], stack="b=7")

    def test_not_as_many_groups_as_frames(self, tiny, tmp_path):
        path = enhanced(tiny.series(tmp_path, STORED[:1])[0], STORED, [at(0), at(3)])
        with pytest.raises(UnreadableFileError, match="corrupt"):
            read_series([path])

    def test_a_segmentation_is_no_image(self, tiny, tmp_path):
        path = tiny.seg(tmp_path / "seg.dcm", tiny.series(tmp_path / "ct", STORED), {"a": STORED > 5})
        with pytest.raises(SeriesError, match="segmentation is no image"):
            read_series([path])


class TestDose:
    def write(self, tiny, folder, offsets, **attributes):
        path = tiny.series(folder, STORED[:1].astype(np.uint32), modality="RTDOSE", origin=(0, 0, 30))[0]
        return change(
            path,
            NumberOfFrames=4,
            PixelData=STORED.astype(np.uint32).tobytes(),
            GridFrameOffsetVector=offsets,
            DoseGridScaling=0.5,
            **attributes,
        )

    @pytest.mark.parametrize("offsets", [[0, 3, 6, 9], [30, 33, 36, 39]], ids=["relative", "absolute"])
    def test_frames_lie_at_their_offsets_and_are_gray(self, tiny, tmp_path, offsets):
        volume = read_series([self.write(tiny, tmp_path, offsets)])
        assert np.array_equal(volume.array, STORED.transpose(2, 1, 0) * 0.5)
        assert volume.spacing_mm == (2.0, 2.0, 3.0)
        assert volume.affine[2, 3] == 30

    def test_offsets_downwards_turn_the_slices_round(self, tiny, tmp_path):
        volume = read_series([self.write(tiny, tmp_path, [0, -3, -6, -9])])
        assert np.array_equal(volume.array[:, :, 0], STORED[3].T * 0.5)
        assert volume.affine[2, 3] == 21

    @pytest.mark.parametrize("offsets", [[0, 3, 6], [7, 10, 13, 16]])
    def test_offsets_that_make_no_sense(self, tiny, tmp_path, offsets):
        with pytest.raises(UnreadableFileError, match="corrupt"):
            read_series([self.write(tiny, tmp_path, offsets)])

    def test_a_dose_without_its_scale(self, tiny, tmp_path):
        path = change(self.write(tiny, tmp_path, [0, 3, 6, 9]), DoseGridScaling=None)
        with pytest.raises(UnreadableFileError, match="corrupt"):
            read_series([path])

    def test_a_missing_plane(self, tiny, tmp_path):
        with pytest.raises(SeriesError, match="not evenly spaced"):
            read_series([self.write(tiny, tmp_path, [0, 3, 9, 12])])


PET = {
    "Units": "BQML",
    "DecayCorrection": "START",
    "CorrectedImage": ["ATTN", "DECY"],
    "PatientWeight": 70,
    "SeriesDate": "20240301",
    "SeriesTime": "115000",
    "AcquisitionDate": "20240301",
    "AcquisitionTime": "115000",
    "RadiopharmaceuticalInformationSequence": item(
        RadionuclideTotalDose=350e6, RadionuclideHalfLife=6600, RadiopharmaceuticalStartTime="100000"
    ),
}


class TestPet:
    def test_slices_are_suv_by_weight_each_with_its_own_slope(self, tiny, tmp_path):
        files = tiny.series(tmp_path, STORED, modality="PT", RescaleSlope=1000, **PET)
        change(files[1], RescaleSlope=500)
        array = read_series(files).array
        assert np.allclose(array[:, :, 0], STORED[0].T * 1000.0 * 70_000 / 175e6, rtol=1e-6)
        assert np.allclose(array[:, :, 1], STORED[1].T * 500.0 * 70_000 / 175e6, rtol=1e-6)

    def test_a_missing_weight_is_named_without_a_path(self, tiny, tmp_path):
        files = tiny.series(tmp_path, STORED, modality="PT", **{**PET, "PatientWeight": ""})
        with pytest.raises(SeriesError, match="PatientWeight") as caught:
            read_series(files)
        assert str(tmp_path) not in str(caught.value)

    def test_two_tracers_are_refused(self, tiny, tmp_path):
        two = Sequence([*PET["RadiopharmaceuticalInformationSequence"]] * 2)
        facts = {**PET, "RadiopharmaceuticalInformationSequence": two}
        with pytest.raises(SeriesError, match="several radiopharmaceuticals"):
            read_series(tiny.series(tmp_path, STORED, modality="PT", **facts))

    def test_philips_counts_take_the_private_factor(self, tiny, tmp_path):
        files = tiny.series(tmp_path, STORED, modality="PT", Units="CNTS")
        for path in files:
            ds = pydicom.dcmread(path)
            ds.private_block(0x7053, "Philips PET Private Group", create=True).add_new(0x00, "DS", "0.5")
            ds.save_as(path)
        assert np.array_equal(read_series(files).array, STORED.transpose(2, 1, 0) * 0.5)


class TestValues:
    @pytest.mark.parametrize(("modality", "placed"), [("MG", True), ("DX", True), ("CR", False), ("OT", False)])
    @pytest.mark.parametrize(("dtype", "total"), [(np.uint16, 4095), (np.int16, -1)])
    def test_an_inverted_radiograph_is_turned(self, tiny, tmp_path, modality, placed, dtype, total):
        files = tiny.series(
            tmp_path,
            STORED[:1].astype(dtype),
            modality=modality,
            PhotometricInterpretation="MONOCHROME1",
            BitsStored=12,
            HighBit=11,
            RescaleSlope=2,
            RescaleIntercept=10,
            **({} if placed else SCREEN),
        )
        assert np.array_equal(read_series(files).array[:, :, 0], 2.0 * (total - STORED[0].T.astype(float)) + 10)

    def test_an_inverted_cross_section_is_not(self, tiny, tmp_path):
        files = tiny.series(tmp_path, STORED, modality="MR", PhotometricInterpretation="MONOCHROME1")
        assert np.array_equal(read_series(files).array, STORED.transpose(2, 1, 0))

    @pytest.mark.parametrize(
        ("photometric", "expected"), [("MONOCHROME2", [0, 10, 20]), ("MONOCHROME1", [255, 245, 235])]
    )
    def test_a_modality_lut_takes_the_place_of_the_slope(self, tiny, tmp_path, photometric, expected):
        lut = item(LUTDescriptor=[3, 0, 8], LUTData=[0, 10, 20], ModalityLUTType="US")
        lut[0]["LUTDescriptor"].VR = lut[0]["LUTData"].VR = "US"
        stored = np.array([[[0, 1, 2, 2]]], np.uint16)
        files = tiny.series(
            tmp_path, stored, modality="CR", ModalityLUTSequence=lut, PhotometricInterpretation=photometric, **SCREEN
        )
        assert read_series(files).array[:3, 0, 0].tolist() == expected

    def test_what_is_for_display_is_not_applied(self, tiny, tmp_path):
        files = tiny.series(tmp_path, STORED, WindowCenter=5, WindowWidth=2, VOILUTFunction="LINEAR")
        assert np.array_equal(read_series(files).array, STORED.transpose(2, 1, 0))

    def test_a_palette_becomes_its_luminance(self, tiny, tmp_path):
        files = tiny.series(
            tmp_path,
            np.array([[[0, 1]]], np.uint8),
            modality="US",
            PhotometricInterpretation="PALETTE COLOR",
            **SCREEN,
            **{
                f"{colour}PaletteColorLookupTable{part}": value
                for colour, entries in (("Red", [255, 0]), ("Green", [0, 255]), ("Blue", [0, 255]))
                for part, value in (("Descriptor", [2, 0, 8]), ("Data", bytes(entries)))
            },
        )
        assert read_series(files).array[:, 0, 0] == pytest.approx([0.299 * 255, 0.701 * 255])

    @pytest.mark.parametrize("keyword", ["FloatPixelData", "DoubleFloatPixelData"])
    @pytest.mark.parametrize("bad", [False, True])
    def test_floating_point_pixels_must_be_finite(self, tiny, tmp_path, keyword, bad):
        wide = keyword.startswith("Double")
        values = np.array([[1.5, -2.25, np.nan if bad else 1e10]], np.float64 if wide else np.float32)
        path = tiny.series(tmp_path, np.zeros((1, 1, 3), np.uint32))[0]
        change(path, PixelData=None, **{keyword: values.tobytes()}, BitsAllocated=64 if wide else 32)
        if bad:
            with pytest.raises(SeriesError, match="NaN or infinite"):
                read_series([path])
        else:
            assert read_series([path]).array[:, 0, 0].tolist() == [1.5, -2.25, 1e10]

    def test_a_slope_that_leads_beyond_all_numbers(self, tiny, tmp_path):
        with pytest.raises(SeriesError, match="NaN or infinite"):
            read_series(tiny.series(tmp_path, STORED, RescaleSlope=3e37))

    def test_values_of_32_bits_are_not_rounded_before_the_intercept_makes_them_small(self, tiny, tmp_path):
        stored = STORED.astype(np.uint32) + np.uint32(2**31)
        files = tiny.series(tmp_path, stored, RescaleIntercept=-(2**31))
        assert np.array_equal(read_series(files).array, STORED.transpose(2, 1, 0))

    def test_several_mosaics_that_nothing_tells_apart(self, tiny, tmp_path):
        kind = ["ORIGINAL", "PRIMARY", "M", "MOSAIC"]
        files = tiny.series(tmp_path, STORED, modality="MR", ImageType=kind, InstanceNumber=1)
        with pytest.raises(SeriesError, match="several mosaic"):
            read_series(files)

    def test_overlays_above_the_stored_bits_are_left_out(self, tiny, tmp_path):
        files = tiny.series(tmp_path, STORED | np.uint16(0xA000), BitsStored=12, HighBit=11)
        assert np.array_equal(read_series(files).array, STORED.transpose(2, 1, 0))


class TestCopies:
    def test_a_file_that_is_there_twice_counts_once(self, tiny, tmp_path):
        files = tiny.series(tmp_path, STORED)
        copy = shutil.copy(files[2], tmp_path / "again.dcm")
        assert np.array_equal(read_series([*files, copy]).array, read_series(files).array)

    @pytest.mark.parametrize(
        "other", [{"PixelData": STORED[0].tobytes()}, {"RescaleSlope": 2}], ids=["pixels", "slope"]
    )
    def test_copies_that_differ_are_refused(self, tiny, tmp_path, other):
        files = tiny.series(tmp_path, STORED)
        copy = shutil.copy(files[2], tmp_path / "again.dcm")
        change(copy, **other)
        with pytest.raises(SeriesError, match="copies of the same image, but differ"):
            read_series([*files, copy])

    def test_the_same_place_under_another_uid_is_refused_even_if_equal(self, tiny, tmp_path):
        files = tiny.series(tmp_path, STORED)
        copy = change(shutil.copy(files[2], tmp_path / "again.dcm"), SOPInstanceUID="1.2.3.99")
        with pytest.raises(SeriesError, match="same place"):
            read_series([*files, copy])


class TestStackNames:
    def test_a_series_of_two_b_values(self, tiny, tmp_path):
        low = tiny.series(tmp_path / "a", STORED, modality="MR", DiffusionBValue=0.0)
        high = tiny.series(tmp_path / "b", STORED, modality="MR", DiffusionBValue=800.0)
        for number, path in enumerate(high):
            change(path, SOPInstanceUID=f"1.2.3.5.{number}")
        assert stack_names([*low, *high]) == ("b=0", "b=800")
        assert read_series([*low, *high], stack="b=800").shape == (4, 3, 4)
        assert stack_names(low) == ("",)
        assert read_series(low, stack="b=0").shape == (4, 3, 4)  # its own files alone are one stack

    def test_no_files_are_no_series(self):
        with pytest.raises(SeriesError, match="no files"):
            stack_names([])

    def test_a_missing_file(self, tmp_path):
        with pytest.raises(UnreadableFileError, match="missing"):
            stack_names([tmp_path / "none.dcm"])

import datetime
import types
from pathlib import Path
from typing import Any

import highdicom as hd
import numpy as np
import pydicom
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydicom import Dataset

from eucaim_fl.cohorts.dicom_writer import SeriesStyle, Study, pseudonym, uid, write_segmentation, write_series
from eucaim_fl.errors import SeriesError

STUDY = Study("EUCAIM-0011", uid("a study"), 2019, "F", 63)
AFFINE = np.array([[-2.0, 0, 0, 30], [0, -3.0, 0, 40], [0, 0, 5.0, -50], [0, 0, 0, 1]])
VOLUME = np.arange(4 * 3 * 5, dtype=np.float32).reshape(4, 3, 5) * 10 - 200  # I, J, K all differ


def read(folder: Path) -> list[Dataset]:
    """Slices in the order of their position along the normal: nothing but the standard's attributes is used."""

    def place(ds: Dataset) -> float:
        cosines = np.array(ds.ImageOrientationPatient, float)
        return float(np.cross(cosines[:3], cosines[3:]) @ np.array(ds.ImagePositionPatient, float))

    return sorted((pydicom.dcmread(path) for path in folder.glob("*.dcm")), key=place)


def value_at(slices: list[Dataset], ras_mm: np.ndarray) -> float:
    """The voxel at a place in the patient, by PS3.3 C.7.6.2.1.1."""
    lps = ras_mm * [-1, -1, 1]
    for ds in slices:
        offset = lps - np.array(ds.ImagePositionPatient, float)
        cosines = np.array(ds.ImageOrientationPatient, float)
        if abs(np.cross(cosines[:3], cosines[3:]) @ offset) < 1e-3:
            column = cosines[:3] @ offset / float(ds.PixelSpacing[1])
            row = cosines[3:] @ offset / float(ds.PixelSpacing[0])
            stored = int(ds.pixel_array[round(row), round(column)])
            return stored * float(ds.get("RescaleSlope", 1)) + float(ds.get("RescaleIntercept", 0))
    raise AssertionError("no slice at this place")


def rotation(axis: int, degrees: float) -> np.ndarray:
    angle, turn = np.deg2rad(degrees), np.eye(4)
    a, b = [other for other in range(3) if other != axis]
    turn[a, a] = turn[b, b] = np.cos(angle)
    turn[a, b], turn[b, a] = -np.sin(angle), np.sin(angle)
    return turn


class TestNames:
    def test_uids_are_valid_derived_and_differ_by_purpose(self):
        assert uid("a", 1) == uid("a", 1) != uid("a", 2)
        assert pydicom.uid.UID(uid("a", 1)).is_valid
        assert uid("a").startswith("2.25.")

    def test_pseudonyms_have_the_form_of_the_profile(self):
        assert pseudonym("x", 1).startswith("EUCAIM-")
        assert pseudonym("x", 1) != pseudonym("x", 2)


class TestWriteSeries:
    @given(
        turns=st.tuples(*[st.floats(-40, 40)] * 3),
        flips=st.tuples(*[st.sampled_from([-1.0, 1.0])] * 3),
        reverse=st.booleans(),
    )
    @settings(max_examples=15, deadline=None)
    def test_every_voxel_lies_where_the_affine_says_in_any_orientation(
        self, turns: Any, flips: Any, reverse: bool, tmp_path_factory: pytest.TempPathFactory
    ):
        folder = tmp_path_factory.mktemp("series")
        affine = rotation(0, turns[0]) @ rotation(1, turns[1]) @ rotation(2, turns[2])
        affine = affine @ np.diag([2 * flips[0], 3 * flips[1], 5 * flips[2], 1])
        affine[:3, 3] = (10, -20, 30)
        write_series(folder, VOLUME, affine, STUDY, SeriesStyle("S", naming="random", reversed_numbers=reverse))
        slices = read(folder)
        for index in [(0, 0, 0), (3, 0, 1), (1, 2, 4), (2, 1, 3)]:
            place = (affine @ [*index, 1])[:3]
            assert value_at(slices, place) == pytest.approx(VOLUME[index])

    @pytest.mark.parametrize(
        "style",
        [
            SeriesStyle("S", transfer_syntax="jpeg_ls"),
            SeriesStyle("S", transfer_syntax="rle"),
            SeriesStyle("S", intercept=0.0, bits_stored=16, signed=True),
            SeriesStyle("S", intercept=0.0, bits_stored=12, signed=True, transfer_syntax="jpeg_ls"),
            SeriesStyle("S", slope=0.5, intercept=-700.0, bits_stored=16),
        ],
    )
    def test_each_way_of_storing_keeps_the_values(self, style: SeriesStyle, tmp_path: Path):
        write_series(tmp_path, VOLUME, AFFINE, STUDY, style)
        for k, ds in enumerate(read(tmp_path)):
            np.testing.assert_allclose(
                ds.pixel_array.T * float(ds.RescaleSlope) + float(ds.RescaleIntercept), VOLUME[:, :, k]
            )

    def test_values_that_the_bits_cannot_hold_are_clipped(self, tmp_path: Path):
        write_series(tmp_path, VOLUME * 0 + 1e6, AFFINE, STUDY, SeriesStyle("S"))
        assert {int(ds.pixel_array.max()) for ds in read(tmp_path)} == {4095}

    def test_the_attributes_are_those_of_a_deidentified_ct(self, tmp_path: Path):
        write_series(tmp_path, VOLUME, AFFINE, STUDY, SeriesStyle("Siemens"))
        ds = read(tmp_path)[0]
        assert ds.PixelSpacing == [3, 2]  # between rows, then between columns
        assert (ds.Rows, ds.Columns, ds.SliceThickness) == (3, 4, 5)
        assert ds.ImageOrientationPatient == [1, 0, 0, 0, 1, 0]
        assert ds.ImagePositionPatient == [-30, -40, -50]
        assert (ds.PatientID, ds.PatientIdentityRemoved, str(ds.PatientName)) == ("EUCAIM-0011", "YES", "")
        assert (ds.StudyDate, ds.PatientAge, ds.PatientSex) == ("20190101", "063Y", "F")
        assert ds.DeidentificationMethod == "EUCAIM Deidentification v5"

    def test_mr_has_no_rescale_and_its_own_class(self, tmp_path: Path):
        style = SeriesStyle("S", modality="MR", intercept=0.0)
        write_series(tmp_path, VOLUME - VOLUME.min(), AFFINE, STUDY, style)
        ds = read(tmp_path)[0]
        assert ds.SOPClassUID == pydicom.uid.MRImageStorage
        assert "RescaleSlope" not in ds

    def test_file_names_and_numbers_follow_the_style_not_the_place(self, tmp_path: Path):
        write_series(tmp_path, VOLUME, AFFINE, STUDY, SeriesStyle("S", naming="random", reversed_numbers=True))
        by_place = read(tmp_path)
        assert [ds.InstanceNumber for ds in by_place] == [5, 4, 3, 2, 1]
        by_name = [pydicom.dcmread(path).SOPInstanceUID for path in sorted(tmp_path.glob("*.dcm"))]
        assert by_name != [ds.SOPInstanceUID for ds in by_place]
        assert set(by_name) == {ds.SOPInstanceUID for ds in by_place}

    def test_the_volume_is_not_changed(self, tmp_path: Path):
        before = VOLUME.copy()
        write_series(tmp_path, VOLUME, AFFINE, STUDY, SeriesStyle("S"))
        np.testing.assert_array_equal(VOLUME, before)

    def test_a_plain_image_is_refused(self, tmp_path: Path):
        with pytest.raises(SeriesError, match="three axes, not 2"):
            write_series(tmp_path, VOLUME[0], AFFINE, STUDY, SeriesStyle("S"))

    def test_a_sheared_affine_is_refused(self, tmp_path: Path):
        sheared = AFFINE.copy()
        sheared[0, 2] = 1.0
        with pytest.raises(SeriesError, match="sheared"):
            write_series(tmp_path, VOLUME, sheared, STUDY, SeriesStyle("S"))

    def test_an_affine_without_one_axis_is_refused(self, tmp_path: Path):
        with pytest.raises(SeriesError, match="without length"):
            write_series(tmp_path, VOLUME, np.diag([1.0, 1, 0, 1]), STUDY, SeriesStyle("S"))


class TestWriteSegmentation:
    def masks(self) -> dict[str, np.ndarray]:
        first, second = np.zeros(VOLUME.shape, bool), np.zeros(VOLUME.shape, bool)
        first[1:3, 2, 1:3] = True
        second[0, 0, 4] = True
        return {"lesion": first, "vessel": second}

    def test_highdicom_reads_the_masks_back_in_the_place_they_were_drawn(self, tmp_path: Path):
        affine = rotation(0, 12) @ AFFINE
        slices = write_series(tmp_path / "ct", VOLUME, affine, STUDY, SeriesStyle("S", reversed_numbers=True))
        write_segmentation(tmp_path / "seg.dcm", slices, self.masks())
        seg = hd.seg.segread(tmp_path / "seg.dcm")
        assert [seg.get_segment_description(n).segment_label for n in (1, 2)] == ["lesion", "vessel"]
        source = [ds.SOPInstanceUID for ds in slices]
        frames = seg.get_pixels_by_source_instance(source)  # (K, J, I, segment)
        for number, mask in enumerate(self.masks().values()):
            np.testing.assert_array_equal(frames[..., number].transpose(2, 1, 0), mask)
        for frame in pydicom.dcmread(tmp_path / "seg.dcm").PerFrameFunctionalGroupsSequence:
            place = np.array(frame.PlanePositionSequence[0].ImagePositionPatient, float)
            assert min(np.abs(place - np.array(ds.ImagePositionPatient, float)).max() for ds in slices) < 1e-6

    def test_it_belongs_to_the_study_and_refers_to_the_series(self, tmp_path: Path):
        slices = write_series(tmp_path / "ct", VOLUME, AFFINE, STUDY, SeriesStyle("S", transfer_syntax="jpeg_ls"))
        write_segmentation(tmp_path / "seg.dcm", slices, self.masks())
        seg = pydicom.dcmread(tmp_path / "seg.dcm")
        assert seg.StudyInstanceUID == STUDY.study_uid
        assert seg.SeriesInstanceUID != slices[0].SeriesInstanceUID
        assert seg.ReferencedSeriesSequence[0].SeriesInstanceUID == slices[0].SeriesInstanceUID
        assert (seg.PatientID, seg.PatientIdentityRemoved, seg.ContentDate) == ("EUCAIM-0011", "YES", "20190101")

    def test_the_bytes_do_not_depend_on_when_it_is_written(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
        slices = write_series(tmp_path / "ct", VOLUME, AFFINE, STUDY, SeriesStyle("S"))
        write_segmentation(tmp_path / "1.dcm", slices, self.masks())

        class Later(datetime.datetime):
            @classmethod
            def now(cls, tz: Any = None) -> datetime.datetime:
                return datetime.datetime(2040, 5, 6, 7, 8, 9, tzinfo=tz)

        clock = types.SimpleNamespace(**{**vars(datetime), "datetime": Later})
        monkeypatch.setattr("highdicom.base.datetime", clock)
        monkeypatch.setattr("highdicom.base_content.datetime", clock)
        write_segmentation(tmp_path / "2.dcm", slices, self.masks())
        assert (tmp_path / "1.dcm").read_bytes() == (tmp_path / "2.dcm").read_bytes()

    def test_a_mask_on_another_grid_is_refused(self, tmp_path: Path):
        slices = write_series(tmp_path / "ct", VOLUME, AFFINE, STUDY, SeriesStyle("S"))
        with pytest.raises(SeriesError, match="each on the grid"):
            write_segmentation(tmp_path / "seg.dcm", slices, {"lesion": np.zeros((3, 4, 5), bool)})

    def test_no_mask_at_all_is_refused(self, tmp_path: Path):
        slices = write_series(tmp_path / "ct", VOLUME, AFFINE, STUDY, SeriesStyle("S"))
        with pytest.raises(SeriesError, match="at least one mask"):
            write_segmentation(tmp_path / "seg.dcm", slices, {})

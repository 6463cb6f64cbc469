"""Photographs become DICOM objects that the standard and its readers accept, with the pixels that came."""

from __future__ import annotations

import importlib.util
import io
import json
from pathlib import Path

import numpy as np
import pydicom
import pytest
from PIL import Image
from pydicom.encaps import generate_frames

from eucaim_fl.cohorts.deidentification.headers import identifiers_in_header
from eucaim_fl.cohorts.dicom import read_colours
from eucaim_fl.cohorts.dicom_writer import Study
from eucaim_fl.cohorts.elements import read_elements
from eucaim_fl.cohorts.photograph_writer import Encoding, write_photograph
from eucaim_fl.errors import SeriesError

STUDY = Study("EUCAIM-0123456789abcdef", "2.25.77", None, "F", 45, "SKIN")
ENCODINGS: tuple[Encoding, ...] = ("jpeg", "rgb")


def picture(size: tuple[int, int] = (9, 7), **options: object) -> bytes:
    noise = np.random.default_rng(0).integers(0, 255, (*size[::-1], 3), np.uint8)
    stream = io.BytesIO()
    Image.fromarray(noise).save(stream, "JPEG", **options)
    return stream.getvalue()


def required(sop_class: str) -> set[str]:
    """Keywords that the standard asks of every object of a class: types 1 and 2 of its mandatory modules' own level."""
    found = importlib.util.find_spec("highdicom")
    assert found is not None
    assert found.origin is not None
    tables = Path(found.origin).parent / "_standard"
    iod = json.loads((tables / "sop_class_iod_map.json").read_text())[sop_class]
    modules = json.loads((tables / "iod_module_map.json").read_text())[iod]
    attributes = json.loads((tables / "module_attribute_map.json").read_text())
    return {
        one["keyword"]
        for module in modules
        if module["usage"] == "M"
        for one in attributes[module["key"]]
        if not one["path"] and one["type"] in ("1", "2")
    }


@pytest.mark.parametrize("encoding", ENCODINGS)
class TestWritePhotograph:
    def test_a_reader_sees_the_pixels_of_the_jpeg(self, tmp_path, encoding):
        stream = picture()
        write_photograph(tmp_path / "x.dcm", stream, STUDY, encoding)
        read = np.stack([c.array[:, :, 0].T for c in read_colours([tmp_path / "x.dcm"])], axis=-1)
        assert np.array_equal(read, np.asarray(Image.open(io.BytesIO(stream))))

    def test_everything_is_there_that_the_standard_requires(self, tmp_path, encoding):
        write_photograph(tmp_path / "x.dcm", picture(), STUDY, encoding)
        ds = pydicom.dcmread(tmp_path / "x.dcm")
        wanted = required(ds.SOPClassUID)
        assert {"AcquisitionContextSequence", "ContactMethod", "RecognizableVisualFeatures"} <= wanted
        assert wanted <= {element.keyword for element in ds}
        tags = [element.tag for element in ds]
        assert tags == sorted(tags)

    def test_it_names_nobody_and_says_so(self, tmp_path, encoding):
        write_photograph(tmp_path / "x.dcm", picture(), STUDY, encoding)
        assert identifiers_in_header(read_elements(tmp_path / "x.dcm")) == {}

    def test_who_and_what_is_shown(self, tmp_path, encoding):
        series = write_photograph(tmp_path / "x.dcm", picture(), STUDY, encoding)
        ds = pydicom.dcmread(tmp_path / "x.dcm")
        assert (ds.PatientID, ds.PatientSex, ds.PatientAge) == (STUDY.patient_id, "F", "045Y")
        assert (ds.Modality, ds.BodyPartExamined, ds.AnatomicRegionSequence[0].CodeValue) == ("DMS", "SKIN", "39937001")
        assert (ds.StudyInstanceUID, ds.SeriesInstanceUID, ds.StudyDate) == ("2.25.77", series, "")
        assert (ds.LossyImageCompression, ds.ImageType) == ("01", ["DERIVED", "PRIMARY"])
        assert "ImagePositionPatient" not in ds
        assert "PixelSpacing" not in ds

    def test_what_is_unknown_is_not_stated(self, tmp_path, encoding):
        write_photograph(tmp_path / "x.dcm", picture(), Study("EUCAIM-1", "2.25.78", 2011), encoding)
        ds = pydicom.dcmread(tmp_path / "x.dcm")
        assert ds.PatientSex == ""
        assert "PatientAge" not in ds
        assert ds.StudyDate == "20110101"

    def test_equal_input_gives_equal_bytes(self, tmp_path, encoding):
        for name in "ab":
            write_photograph(tmp_path / name, picture(), STUDY, encoding)
        assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()

    @pytest.mark.parametrize(
        "stream",
        [b"no picture", picture()[:150], picture(progressive=True)],
        ids=["no picture", "ends early", "progressive"],
    )
    def test_another_stream_is_refused_and_nothing_written(self, tmp_path, encoding, stream):
        with pytest.raises(SeriesError, match="no baseline JPEG"):
            write_photograph(tmp_path / "x.dcm", stream, STUDY, encoding)
        assert not list(tmp_path.iterdir())


class TestEncodings:
    def test_a_jpeg_stream_is_kept_to_the_byte(self, tmp_path):
        stream = picture()
        write_photograph(tmp_path / "x.dcm", stream, STUDY, "jpeg")
        ds = pydicom.dcmread(tmp_path / "x.dcm")
        assert ds.file_meta.TransferSyntaxUID == "1.2.840.10008.1.2.4.50"
        assert ds.PhotometricInterpretation == "YBR_FULL_422"
        assert next(generate_frames(ds.PixelData, number_of_frames=1)).rstrip(b"\0") == stream.rstrip(b"\0")

    def test_uncompressed_pixels_have_an_even_length(self, tmp_path):
        write_photograph(tmp_path / "x.dcm", picture(), STUDY, "rgb")
        ds = pydicom.dcmread(tmp_path / "x.dcm")
        assert (ds.PhotometricInterpretation, ds.PlanarConfiguration) == ("RGB", 0)
        assert len(ds.PixelData) == 9 * 7 * 3 + 1

    def test_a_grey_jpeg_is_refused(self, tmp_path):
        stream = io.BytesIO()
        Image.new("L", (4, 4)).save(stream, "JPEG")
        with pytest.raises(SeriesError, match="no baseline JPEG"):
            write_photograph(tmp_path / "x.dcm", stream.getvalue(), STUDY, "jpeg")

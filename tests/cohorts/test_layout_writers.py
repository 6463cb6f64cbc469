import csv
import dataclasses
import io
import json
from collections.abc import Iterator
from pathlib import Path

import nibabel as nib
import numpy as np
import pydicom
import pytest
from PIL import Image

from eucaim_fl.cohorts.dicom_writer import SeriesStyle, Study, uid
from eucaim_fl.cohorts.layout_writers import (
    Disease,
    LabelledScan,
    Photograph,
    label_map,
    write_folder_photographs,
    write_nifti,
    write_nifti_csv,
    write_tier3,
    write_tier3_photographs,
    write_upv,
)
from eucaim_fl.errors import CohortError, SeriesError

AFFINE = np.array([[-2.0, 0, 0, 30], [0, -3.0, 0, 40], [0, 0, 5.0, -50], [0, 0, 0, 1]])
STYLE = SeriesStyle("Philips Medical Systems")


def scan(patient: str = "EUCAIM-1", study: int = 1, malignant: int = 1) -> LabelledScan:
    volume = np.arange(4 * 3 * 5, dtype=np.float32).reshape(4, 3, 5)
    mask = np.zeros(volume.shape, bool)
    mask[1, 2, 3] = True
    disease = Disease("BP1000105", code="CLIN1000071") if malignant else Disease("BP1000105", "COM1001086")
    who = Study(patient, uid("study", study), 2018, "M", 61)
    return LabelledScan(who, disease, volume, AFFINE, {"lesion": mask}, {"malignant": malignant})


def rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as stream:
        return list(csv.DictReader(stream))


class TestLabelMap:
    def test_labels_count_from_one_in_their_order_and_the_later_one_wins(self):
        first, second = np.array([[[True, True, False]]]), np.array([[[False, True, False]]])
        assert label_map({"organ": first, "lesion": second}).tolist() == [[[1, 2, 0]]]

    def test_no_mask_is_an_error(self):
        with pytest.raises(CohortError, match="no mask"):
            label_map({})


class TestWriteNifti:
    def test_values_and_place_come_back(self, tmp_path: Path):
        write_nifti(tmp_path / "x.nii.gz", scan().volume.astype(np.int16), AFFINE)
        image = nib.load(tmp_path / "x.nii.gz")
        np.testing.assert_array_equal(image.get_fdata(), scan().volume)
        np.testing.assert_allclose(image.affine, AFFINE)
        np.testing.assert_allclose(image.get_qform(), AFFINE, atol=1e-5)
        assert (int(image.header["sform_code"]), image.header.get_xyzt_units()[0]) == (1, "mm")

    def test_equal_input_gives_equal_bytes(self, tmp_path: Path):
        write_nifti(tmp_path / "a.nii.gz", scan().volume, AFFINE)
        write_nifti(tmp_path / "b.nii.gz", scan().volume, AFFINE)
        assert (tmp_path / "a.nii.gz").read_bytes() == (tmp_path / "b.nii.gz").read_bytes()


class TestWriteTier3:
    def test_image_and_segmentation_are_two_series_of_one_study(self, tmp_path: Path):
        write_tier3(tmp_path, "ds", [scan()], STYLE)
        study = tmp_path / "imaging_data" / "EUCAIM-1" / uid("study", 1)
        found = {}
        for series in study.iterdir():
            headers = [pydicom.dcmread(path) for path in series.glob("*.dcm")]
            assert {ds.SeriesInstanceUID for ds in headers} == {series.name}
            found[headers[0].Modality] = len(headers)
        assert found == {"CT": 5, "SEG": 1}

    def test_the_views_have_a_row_per_patient_and_a_row_per_image_series(self, tmp_path: Path):
        write_tier3(tmp_path, "ds", [scan(), scan(study=2), scan("EUCAIM-2", 3, malignant=0)], STYLE)
        first, second = rows(tmp_path / "clinical_mandatory_view.csv")
        assert (first["patient_id"], first["patient_birth_sex"], first["malignant"]) == ("EUCAIM-1", "COM1001366", "1")
        assert first["cancer_condition_age_at_diagnosis"] == "61"
        assert (first["cancer_condition_code"], second["cancer_condition_code"]) == ("CLIN1000071", "")
        imaging = rows(tmp_path / "imaging_mandatory_view.csv")
        assert [row["study_uid"] for row in imaging] == [uid("study", n) for n in (1, 2, 3)]
        for row in imaging:
            assert (tmp_path / "imaging_data" / row["patient_id"] / row["study_uid"] / row["series_uid"]).is_dir()
        assert imaging[0]["series_manufacturer"] == "Philips Medical Systems"

    def test_the_older_dialect_has_prefixes_vendor_codes_and_older_column_names(self, tmp_path: Path):
        write_tier3(tmp_path, "ds", [scan()], STYLE, older_dialect=True)
        assert rows(tmp_path / "clinical_mandatory_view.csv")[0]["patient_birth_sex"] == "EUCAIM:COM1001366"
        row = rows(tmp_path / "imaging_mandatory_view.csv")[0]
        assert row["series_body_side_code"] == "EUCAIM:BP1000105"
        assert row["series_manufacturer_name"] == "EUCAIM:IMG1000046"

    def test_every_clinical_table_has_its_rows(self, tmp_path: Path):
        write_tier3(tmp_path, "ds", [scan()], STYLE)
        tables = {path.stem: len(rows(path)) for path in (tmp_path / "clinical_data").iterdir()}
        names = ("patient", "cancer_condition", "image_study", "image_series", "segmentation_series")
        assert tables == dict.fromkeys(names, 1)

    def test_no_case_gives_tables_without_rows(self, tmp_path: Path):
        write_tier3(tmp_path, "ds", [], STYLE)
        assert rows(tmp_path / "imaging_mandatory_view.csv") == []

    def test_cases_are_taken_one_at_a_time(self, tmp_path: Path):
        written: list[int] = []

        def cases() -> Iterator[LabelledScan]:
            for number in range(2):
                written.append(len(list(tmp_path.glob("imaging_data/*/*"))))
                yield scan(study=number)

        write_tier3(tmp_path, "ds", cases(), STYLE)
        assert written == [0, 1]


def photograph(patient: str = "EUCAIM-1", jpeg: bytes | None = None) -> Photograph:
    stream = io.BytesIO()
    Image.new("RGB", (8, 6), (200, 100, 50)).save(stream, "JPEG")
    who = Study(patient, uid("study", patient), None, "F", 45, "SKIN")
    return Photograph(who, Disease("BP1"), stream.getvalue() if jpeg is None else jpeg, {"diagnosis": "nv"})


class TestWritePhotographs:
    def test_tier_3_has_a_study_and_a_row_in_both_views_for_each(self, tmp_path: Path):
        write_tier3_photographs(tmp_path, "ds", [photograph(), photograph("EUCAIM-2")], "jpeg")
        views = [rows(tmp_path / f"{name}_mandatory_view.csv") for name in ("clinical", "imaging")]
        assert [row["patient_id"] for row in views[0]] == [row["patient_id"] for row in views[1]]
        for row in views[1]:
            folder = tmp_path / "imaging_data" / row["patient_id"] / row["study_uid"] / row["series_uid"]
            assert pydicom.dcmread(folder / "IM00001.dcm").SeriesInstanceUID == row["series_uid"]
        assert (views[0][0]["diagnosis"], views[0][0]["patient_birth_sex"]) == ("nv", "COM1001370")
        assert views[1][0]["image_procedure_code"] == "DMS"

    def test_a_folder_has_a_row_with_the_series_of_each(self, tmp_path: Path):
        write_folder_photographs(tmp_path, [photograph(), photograph("EUCAIM-2")], "rgb")
        table = rows(tmp_path / "clinical.csv")
        series = [pydicom.dcmread(path).SeriesInstanceUID for path in sorted((tmp_path / "images").iterdir())]
        assert [row["series_uid"] for row in table] == series
        assert (table[0]["age"], table[0]["diagnosis"]) == ("45", "nv")

    def test_what_is_no_jpeg_is_refused(self, tmp_path: Path):
        with pytest.raises(SeriesError, match="no baseline JPEG"):
            write_tier3_photographs(tmp_path, "ds", [photograph(jpeg=b"x")], "jpeg")
        with pytest.raises(SeriesError, match="no baseline JPEG"):
            write_folder_photographs(tmp_path, [photograph(jpeg=b"x")], "rgb")


class TestWriteUpv:
    def test_a_study_of_unknown_year_states_no_day(self, tmp_path: Path):
        one = scan()
        write_upv(tmp_path, [dataclasses.replace(one, study=dataclasses.replace(one.study, year=None))], STYLE)
        inclusion = json.loads((tmp_path / "eforms.json").read_text())[0]["eForm"]["pages"][0]["page_data"]
        assert inclusion["baseline_date"]["value"] == ""
        assert {pydicom.dcmread(path).StudyDate for path in tmp_path.rglob("*.dcm")} == {""}

    def test_the_index_names_the_image_and_the_label_of_each_study(self, tmp_path: Path):
        write_upv(tmp_path, [scan("EUCAIM-ab"), scan("EUCAIM-cd", 2)], STYLE)
        entries = json.loads((tmp_path / "index.json").read_text())
        assert [entry["subjectName"] for entry in entries] == ["ab", "cd"]
        image, label = entries[0]["series"]
        assert label == {"folderName": "seg", "tags": ["SEG"]}
        assert len(list((tmp_path / entries[0]["path"] / image["folderName"]).glob("*.dcm"))) == 5
        mask = nib.load(tmp_path / entries[0]["path"] / "seg" / "lesion.nii.gz")
        assert np.argwhere(np.asanyarray(mask.dataobj)).tolist() == [[1, 2, 3]]
        np.testing.assert_allclose(mask.affine, AFFINE)

    def test_clinical_values_stand_in_the_forms(self, tmp_path: Path):
        write_upv(tmp_path, [scan("EUCAIM-ab")], STYLE)
        form = json.loads((tmp_path / "eforms.json").read_text())[0]
        inclusion, patient = form["eForm"]["pages"]
        assert inclusion["page_data"]["age_at_diagnosis"] == {"value": 61, "value_type": "integer"}
        assert patient["page_data"]["gender"]["value"] == "MALE"
        assert patient["page_data"]["malignant"] == {"value": 1, "value_type": "integer"}


class TestWriteNiftiCsv:
    def test_the_table_leads_to_images_and_labels_on_one_grid(self, tmp_path: Path):
        write_nifti_csv(tmp_path, [scan(), scan("EUCAIM-2", malignant=0)])
        first, second = rows(tmp_path / "clinical.csv")
        assert first == {
            "patient_id": "EUCAIM-1",
            "image": "images/P001.nii.gz",
            "label": "labels/P001.nii.gz",
            "age": "61",
            "sex": "COM1001366",
            "malignant": "1",
        }
        image, label = nib.load(tmp_path / second["image"]), nib.load(tmp_path / second["label"])
        assert image.shape == label.shape == (4, 3, 5)
        np.testing.assert_array_equal(image.affine, label.affine)

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pytest

from eucaim_fl.cohorts.layouts import eucaim_tier3, nifti_csv, upv_index
from eucaim_fl.errors import CohortError

STORED = np.zeros((3, 4, 5), dtype=np.int16)
MASK = {"lesion": np.ones(STORED.shape, bool)}


def write_csv(path: Path, *rows: dict[str, str]) -> None:
    with path.open("w", newline="") as stream:
        writer = csv.DictWriter(stream, rows[0])
        writer.writeheader()
        writer.writerows(rows)


@pytest.fixture
def tier3(tiny, tmp_path):
    """One patient with two image series and a SEG series that refers to the second one."""
    folder = tmp_path / "dataset"
    study = folder / "imaging_data" / "PAT1" / "1.2.3"
    tiny.series(study / "1.2.3.1", STORED, uid="1.2.3.1")
    images = tiny.series(study / "1.2.3.2", STORED, uid="1.2.3.2", modality="MR")
    tiny.seg(study / "1.2.3.77" / "seg.dcm", images, MASK)
    write_csv(
        folder / "clinical_mandatory_view.csv",
        {"patient_id": "PAT1", "patient_birth_sex": "COM1001366", "treatment_type": "ICDO3:1"},
    )
    row = {"patient_id": "PAT1", "image_procedure_code": "IMG1000022", "study_uid": "1.2.3"}
    write_csv(folder / "imaging_mandatory_view.csv", *({**row, "series_uid": f"1.2.3.{n}"} for n in (1, 2)))
    return folder


class TestEucaimTier3:
    def test_a_segmentation_belongs_to_the_series_that_it_refers_to(self, tier3):
        first, second = eucaim_tier3(tier3).cases
        assert first.label == ()
        assert first.label_format is None
        assert [path.name for path in second.label] == ["seg.dcm"]
        assert second.label_format == "dicom_seg"
        assert (second.patient, second.study, second.series) == ("PAT1", "1.2.3", "1.2.3.2")
        assert len(second.image) == 3

    def test_the_modality_is_that_of_the_header(self, tier3):
        assert [case.modality for case in eucaim_tier3(tier3).cases] == ["CT", "MR"]

    def test_codes_become_words_and_drifted_names_their_present_ones(self, tier3):
        clinical = eucaim_tier3(tier3).cases[0].clinical
        assert clinical == {"patient_id": "PAT1", "patient_birth_sex": "male", "first_treatment_type": "ICDO3:1"}

    def test_the_views_may_lie_one_level_above(self, tier3):
        for view in tier3.glob("*.csv"):
            view.rename(tier3.parent / view.name)
        assert len(eucaim_tier3(tier3).cases) == 2

    def test_a_segmentation_without_reference_belongs_to_the_only_image_of_its_study(self, tier3):
        import pydicom

        path = next(tier3.rglob("seg.dcm"))
        seg = pydicom.dcmread(path)
        del seg.ReferencedSeriesSequence
        seg.save_as(path)
        assert [case.label for case in eucaim_tier3(tier3).cases] == [(), ()]  # whose of the two?
        view = tier3 / "imaging_mandatory_view.csv"
        view.write_text("\n".join(view.read_text().splitlines()[:2]))
        assert [len(case.label) for case in eucaim_tier3(tier3).cases] == [1]

    def test_a_series_that_is_not_listed_is_not_read(self, tiny, tier3):
        tiny.series(tier3 / "imaging_data" / "PAT1" / "1.2.3" / "1.2.3.5", STORED, uid="1.2.3.5")
        assert {case.series for case in eucaim_tier3(tier3).cases} == {"1.2.3.1", "1.2.3.2"}

    @pytest.mark.parametrize("patient", ["../../other", "/etc", "..", "", "PAT\0"])
    def test_a_path_that_leads_out_is_quarantined(self, tier3, patient):
        with (tier3 / "imaging_mandatory_view.csv").open("a") as view:
            view.write(f"{patient},IMG1000022,x,y\n")
        found = eucaim_tier3(tier3)
        assert len(found.cases) == 2
        assert ["leads out" in bad.reason for bad in found.quarantined] == [True]
        assert str(tier3) not in found.quarantined[0].reason

    def test_a_link_that_leads_out_is_quarantined(self, tiny, tier3, tmp_path):
        outside = tiny.series(tmp_path / "lake", STORED, uid="1.2.3.1")[0]
        inside = next((tier3 / "imaging_data" / "PAT1" / "1.2.3" / "1.2.3.1").iterdir())
        inside.unlink()
        inside.symlink_to(outside)
        found = eucaim_tier3(tier3)
        assert ([c.series for c in found.cases], len(found.quarantined)) == (["1.2.3.2"], 1)

    def test_a_series_whose_folder_is_missing_or_empty_is_quarantined(self, tier3):
        with (tier3 / "imaging_mandatory_view.csv").open("a") as view:
            view.write("PAT1,IMG1000022,1.2.3,1.2.3.8\nPAT1,IMG1000022,1.2.3,1.2.3.9\n")
        (tier3 / "imaging_data" / "PAT1" / "1.2.3" / "1.2.3.9").mkdir()
        assert sorted(bad.code for bad in eucaim_tier3(tier3).quarantined) == ["EFL202", "EFL204"]

    def test_a_series_with_a_damaged_file_stays_a_case_with_the_modality_of_the_view(self, tier3):
        for path in (tier3 / "imaging_data" / "PAT1" / "1.2.3" / "1.2.3.1").iterdir():
            path.write_bytes(b"damaged")
        assert [case.modality for case in eucaim_tier3(tier3).cases] == ["MR", "MR"]

    @pytest.mark.parametrize(
        ("name", "text", "words"),
        [
            ("clinical_mandatory_view.csv", None, "missing"),
            ("imaging_mandatory_view.csv", "patient_id,study_uid\n", "lacks the columns series_uid"),
            ("imaging_mandatory_view.csv", 'patient_id,study_uid,series_uid\n"a,b', "no valid CSV"),
        ],
    )
    def test_a_view_that_is_missing_or_incomplete_is_an_error(self, tier3, name, text, words):
        if text is None:
            (tier3 / name).unlink()
        else:
            (tier3 / name).write_text(text)
        with pytest.raises(CohortError, match=words):
            eucaim_tier3(tier3)


@pytest.fixture
def upv(tiny, tmp_path):
    """One subject with a listed image and a listed SEG series, and one series that nobody lists."""
    study = tmp_path / "21b5" / "MR2018"
    images = tiny.series(study / "1282", STORED, modality="MR")
    tiny.seg(study / "9001" / "seg.dcm", images, MASK)
    tiny.series(study / "1300", STORED, uid="1.2.9")
    entry = {
        "studyId": "6513",
        "subjectName": "21b5",
        "path": "21b5/MR2018",
        "series": [{"folderName": "1282", "tags": ["Axial", "T2W"]}, {"folderName": "9001", "tags": ["SEG"]}],
    }
    (tmp_path / "index.json").write_text(json.dumps([entry]))
    pages = [
        {"page_name": "criteria", "page_data": {"age_at_baseline": {"value": 74, "value_type": "integer"}}},
        {"page_name": "patient_data", "page_data": {"gender": {"value": "MALE"}, "empty": {"value": None}}},
    ]
    (tmp_path / "eforms.json").write_text(json.dumps([{"subjectName": "21b5", "eForm": {"pages": pages}}]))
    return tmp_path


class TestUpvIndex:
    def test_listed_series_only_are_read_and_the_one_tagged_seg_is_the_label(self, upv):
        (case,) = upv_index(upv).cases
        assert (case.patient, case.study, case.series, case.modality) == ("21b5", "6513", "1282", "MR")
        assert [path.name for path in case.label] == ["seg.dcm"]
        assert case.label_format == "dicom_seg"

    def test_all_pages_of_the_form_become_clinical_values(self, upv):
        assert upv_index(upv).cases[0].clinical == {"age_at_diagnosis": "74", "gender": "MALE"}

    def test_a_label_may_be_a_nifti_mask(self, tiny, upv):
        (upv / "21b5" / "MR2018" / "9001" / "seg.dcm").unlink()
        tiny.nifti(upv / "21b5" / "MR2018" / "9001" / "mask.nii.gz", np.zeros((5, 4, 3), np.uint8))
        (case,) = upv_index(upv).cases
        assert case.label_format == "nifti"

    @pytest.mark.parametrize(("path", "name"), [("..", "x"), ("/etc", "x"), ("21b5", "../../.."), ("21b5", "/tmp")])  # noqa: S108
    def test_a_path_that_leads_out_is_quarantined(self, upv, path, name):
        entries = json.loads((upv / "index.json").read_text())
        entries.append({"studyId": "1", "subjectName": "evil", "path": path, "series": [{"folderName": name}]})
        (upv / "index.json").write_text(json.dumps(entries))
        found = upv_index(upv)
        assert len(found.cases) == 1
        assert [bad.patient for bad in found.quarantined] == ["evil"]
        assert "leads out" in found.quarantined[0].reason

    def test_a_study_that_is_a_link_out_of_the_cohort_is_quarantined(self, upv, tmp_path_factory):
        lake = tmp_path_factory.mktemp("lake") / "study"
        (upv / "21b5" / "MR2018").rename(lake)
        (upv / "21b5" / "MR2018").symlink_to(lake)
        found = upv_index(upv)
        assert found.cases == []
        assert {"leads out" in bad.reason for bad in found.quarantined} == {True}

    @pytest.mark.parametrize("entry", [None, 3, {}, {"subjectName": "p"}, {"series": 1}])
    def test_a_malformed_entry_is_quarantined(self, upv, entry):
        entries = json.loads((upv / "index.json").read_text())
        (upv / "index.json").write_text(json.dumps([*entries, entry]))
        found = upv_index(upv)
        assert (len(found.cases), len(found.quarantined)) == (1, 1)

    @pytest.mark.parametrize(
        ("text", "words"), [(None, "missing"), ("{", "no valid JSON"), ("{}", "no list"), ("[" * 9999, "no valid JSON")]
    )
    @pytest.mark.parametrize("name", ["index.json", "eforms.json"])
    def test_an_index_that_is_missing_or_malformed_is_an_error(self, upv, name, text, words):
        if text is None:
            (upv / name).unlink()
        else:
            (upv / name).write_text(text)
        with pytest.raises(CohortError, match=words):
            upv_index(upv)


class TestNiftiCsv:
    def test_columns_beside_the_three_are_clinical_values(self, tiny, tmp_path):
        folder = tiny.nifti_cohort(tmp_path, 1, grade="G{}".format, cancer="CLIN1000065".format)
        (case,) = nifti_csv(folder).cases
        assert case.clinical == {"grade": "G0", "cancer": "lung cancer"}
        assert (case.image, case.label) == ((folder / "P0.nii.gz",), (folder / "P0_label.nii.gz",))
        assert (case.image_format, case.label_format) == ("nifti", "nifti")

    @pytest.mark.parametrize(
        ("row", "code"),
        [
            ("P9,P9.nii.gz,", "EFL204"),
            ("P9,P0.nii.gz,P9.nii.gz", "EFL203"),
            ("P9,../P0.nii.gz,", "EFL200"),
            ("P9,/etc/passwd,", "EFL200"),
            ("P9,P0.nii.gz,../x", "EFL200"),
            ("P9,,P0.nii.gz", "EFL200"),
            (",P0.nii.gz,", "EFL200"),
        ],
    )
    def test_a_row_that_can_not_be_used_is_quarantined(self, tiny, tmp_path, row, code):
        folder = tiny.nifti_cohort(tmp_path, 1)
        with (folder / "clinical.csv").open("a") as table:
            table.write(row + "\n")
        found = nifti_csv(folder)
        assert [case.patient for case in found.cases] == ["P0"]
        assert [bad.code for bad in found.quarantined] == [code]
        assert "P0" not in found.quarantined[0].reason

    def test_a_link_that_leads_out_is_quarantined(self, tiny, tmp_path):
        folder = tiny.nifti_cohort(tmp_path, 1)
        (folder / "P0.nii.gz").rename(tmp_path / "P0.nii.gz")
        (folder / "P0.nii.gz").symlink_to(tmp_path / "P0.nii.gz")
        assert "leads out" in nifti_csv(folder).quarantined[0].reason

    def test_a_row_without_label_is_a_case_without_label(self, tiny, tmp_path):
        folder = tiny.nifti_cohort(tmp_path, 1)
        (folder / "clinical.csv").write_text("\ufeffpatient_id,image,label\nP0,P0.nii.gz,\n", encoding="utf-8")
        (case,) = nifti_csv(folder).cases
        assert (case.label, case.label_format) == ((), None)

    @pytest.mark.parametrize(
        ("content", "words"),
        [
            (None, "missing"),
            (b"", "image, patient_id"),
            (b"patient_id\nP0", "lacks the columns image"),
            (b"\xff", "read"),
        ],
    )
    def test_a_table_that_is_missing_or_incomplete_is_an_error(self, tmp_path, content, words):
        if content is not None:
            (tmp_path / "clinical.csv").write_bytes(content)
        with pytest.raises(CohortError, match=words):
            nifti_csv(tmp_path)

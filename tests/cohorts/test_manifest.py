from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from eucaim_fl.cohorts import index
from eucaim_fl.cohorts.manifest import Quarantined, read_manifest
from eucaim_fl.errors import CohortError, LabelError

pytestmark = pytest.mark.integration

STORED = np.arange(60, dtype=np.int16).reshape(3, 4, 5)
MASK = {"lesion": np.ones(STORED.shape, bool)}


@pytest.fixture
def tier3(tiny, tmp_path):
    """One patient with two CT and MR series and a SEG series that refers to the second one."""
    study = tmp_path / "cohort" / "imaging_data" / "PAT1" / "1.2.3"
    tiny.series(study / "1.2.3.1", STORED, uid="1.2.3.1")
    images = tiny.series(study / "1.2.3.2", STORED, uid="1.2.3.2", modality="MR")
    tiny.seg(study / "1.2.3.77" / "seg.dcm", images, MASK)
    (tmp_path / "cohort" / "clinical_mandatory_view.csv").write_text("patient_id,patient_birth_sex\nPAT1,COM1001366\n")
    rows = "".join(f"PAT1,IMG1000022,1.2.3,1.2.3.{n}\n" for n in (1, 2))
    (tmp_path / "cohort" / "imaging_mandatory_view.csv").write_text(
        "patient_id,image_procedure_code,study_uid,series_uid\n" + rows
    )
    return tiny.site(tmp_path, "eucaim_tier3")


def notes(manifest) -> dict[str, int]:
    return {finding.rule: finding.count for finding in manifest.notes}


class TestReadManifest:
    def test_a_missing_folder_is_named_locally_only(self, tiny, tmp_path):
        with pytest.raises(CohortError, match="folder is missing") as caught:
            read_manifest(tiny.site(tmp_path))
        assert str(tmp_path) not in str(caught.value)
        assert str(tmp_path) in caught.value.local_detail

    @pytest.mark.parametrize(
        ("layout", "name", "text"),
        [
            ("nifti_csv", "clinical.csv", "patient_id,image,label\n"),
            ("folder_csv", "clinical.csv", "patient_id\n"),
            ("upv_index", "index.json", "[]"),
            ("bids", "dataset_description.json", "{}"),
            ("xnat", "readme", ""),
        ],
    )
    def test_an_empty_cohort_is_an_error(self, tiny, tmp_path, layout, name, text):
        (tmp_path / "cohort").mkdir()
        (tmp_path / "cohort" / "eforms.json").write_text("[]")
        (tmp_path / "cohort" / name).write_text(text)
        with pytest.raises(CohortError, match="empty"):
            read_manifest(tiny.site(tmp_path, layout))

    @pytest.mark.parametrize("layout", ["nifti_csv", "eucaim_tier3", "upv_index", "folder_csv"])
    def test_a_folder_without_tables_is_an_error_before_anything_is_scanned(self, tiny, tmp_path, layout, monkeypatch):
        monkeypatch.setattr(index, "update_index", lambda *args, **more: pytest.fail("scanned"))
        (tmp_path / "cohort").mkdir()
        with pytest.raises(CohortError, match="table of the cohort is missing"):
            read_manifest(tiny.site(tmp_path, layout))

    def test_the_sites_columns_get_the_names_that_plans_use(self, tiny, tmp_path):
        tiny.nifti_cohort(tmp_path, 2, geschlecht="EUCAIM:COM1001370".format)
        manifest = read_manifest(tiny.site(tmp_path, columns={"geschlecht": "sex"}))
        assert [case.clinical for case in manifest.cases] == [{"sex": "female"}] * 2

    def test_a_column_that_becomes_sex_is_read_as_sex(self, tiny, tmp_path):
        tiny.nifti_cohort(tmp_path, 1, geschlecht="F".format, treatment_type="M".format)
        manifest = read_manifest(tiny.site(tmp_path, columns={"geschlecht": "sex", "treatment_type": "first"}))
        assert [case.clinical for case in manifest.cases] == [{"sex": "female", "first": "M"}]

    def test_a_site_may_call_a_column_by_an_older_name(self, tiny, tmp_path):
        tiny.nifti_cohort(tmp_path, 1, gender="F".format)
        manifest = read_manifest(tiny.site(tmp_path, columns={"gender": "birth_sex"}))
        assert [case.clinical for case in manifest.cases] == [{"birth_sex": "female"}]

    def test_a_column_of_the_site_file_that_is_in_no_table_is_told(self, tiny, tmp_path):
        tiny.nifti_cohort(tmp_path, 2, psa="{}".format)
        manifest = read_manifest(tiny.site(tmp_path, columns={"psa": "psa_total", "agee": "age"}))
        (note,) = manifest.notes
        assert (note.rule, note.count, note.subjects) == ("layout.columns_absent", 1, ("agee",))

    def test_cases_come_in_the_order_of_patients(self, tiny, tmp_path):
        table = tiny.nifti_cohort(tmp_path, 4) / "clinical.csv"
        head, *rows = table.read_text().splitlines()
        table.write_text("\n".join([head, *reversed(rows)]))
        assert [case.patient for case in read_manifest(tiny.site(tmp_path)).cases] == ["P0", "P1", "P2", "P3"]

    def test_an_image_of_two_patients_is_nobodys_and_one_listed_twice_counts_once(self, tiny, tmp_path):
        table = tiny.nifti_cohort(tmp_path, 2) / "clinical.csv"
        table.write_text(table.read_text() + "P1,P1.nii.gz,\nP9,./P0.nii.gz,\n")
        manifest = read_manifest(tiny.site(tmp_path))
        assert [case.patient for case in manifest.cases] == ["P1"]
        assert [bad.patient for bad in manifest.quarantined] == ["P0", "P9"]
        assert notes(manifest) == {"layout.images_of_two_patients": 2, "layout.duplicate_images": 1}

    def test_columns_with_unknown_codes_are_named_in_the_local_log_alone(self, tiny, tmp_path, caplog):
        tiny.nifti_cohort(tmp_path, 2, histology="ICDO3:0000/{}".format)
        with caplog.at_level("INFO", "eucaim_fl.site"):
            manifest = read_manifest(tiny.site(tmp_path))
        assert notes(manifest) == {"codes.unplaced": 2}
        assert "2 cells of the column 'histology'" in caplog.text
        assert "0000" not in caplog.text

    def test_progress_is_told(self, tiny, tmp_path):
        tiny.nifti_cohort(tmp_path, 2)
        seen: list[tuple[int, int | None]] = []
        read_manifest(tiny.site(tmp_path), tell=lambda done, total: seen.append((done, total)))
        assert (4, 4) in seen


class TestWithTheIndex:
    """Real files, the real index, each layout once."""

    def test_tier_3(self, tier3):
        first, second = read_manifest(tier3).cases
        assert (first.series, first.modality, first.label) == ("1.2.3.1", "CT", ())
        assert (second.series, second.modality, second.label_format) == ("1.2.3.2", "MR", "dicom_seg")
        assert [path.name for path in second.label] == ["seg.dcm"]
        assert (len(second.image), second.clinical["patient_birth_sex"]) == (3, "male")
        assert second.facts is not None
        assert second.facts.size == (4, 5, 3)

    def test_a_series_with_a_damaged_file_is_quarantined(self, tier3):
        next((tier3.cohort_folder() / "imaging_data/PAT1/1.2.3/1.2.3.1").iterdir()).write_bytes(b"damaged")
        manifest = read_manifest(tier3)
        assert [case.series for case in manifest.cases] == ["1.2.3.2"]
        assert [(bad.patient, bad.code) for bad in manifest.quarantined] == [("PAT1", "EFL204")]

    def test_a_file_that_is_a_link_out_of_the_cohort_costs_its_series(self, tiny, tier3, tmp_path):
        outside = tiny.series(tmp_path / "lake", STORED, uid="1.2.3.1")[0]
        inside = next((tier3.cohort_folder() / "imaging_data/PAT1/1.2.3/1.2.3.1").iterdir())
        inside.unlink()
        inside.symlink_to(outside)
        manifest = read_manifest(tier3)
        assert ([c.series for c in manifest.cases], len(manifest.quarantined)) == (["1.2.3.2"], 1)

    def test_what_changes_is_seen_the_next_time(self, tier3):
        assert len(read_manifest(tier3).cases[0].image) == 3
        min((tier3.cohort_folder() / "imaging_data/PAT1/1.2.3/1.2.3.1").iterdir()).unlink()
        assert len(read_manifest(tier3).cases[0].image) == 2

    def upv(self, tiny, cohort: Path, study: Path) -> None:
        images = tiny.series(study / "1282", STORED, modality="MR")
        tiny.seg(study / "9001" / "seg.dcm", images, MASK)
        tiny.series(study / "1300", STORED, uid="1.2.9")
        series = [{"folderName": "1282", "tags": ["T2W"]}, {"folderName": "9001", "tags": ["SEG"]}]
        entry = {"studyId": "6513", "subjectName": "21b5", "path": "21b5/MR2018", "series": series}
        cohort.mkdir(exist_ok=True)
        (cohort / "index.json").write_text(json.dumps([entry]))
        (cohort / "eforms.json").write_text("[]")

    def test_upv_reads_listed_series_alone(self, tiny, tmp_path):
        self.upv(tiny, tmp_path / "cohort", tmp_path / "cohort" / "21b5" / "MR2018")
        site = tiny.site(tmp_path, "upv_index")
        (case,) = read_manifest(site).cases
        assert (case.series, len(case.label)) == ("1282", 1)
        with index.open_index(site) as catalogue:
            assert catalogue.file("21b5/MR2018/1300/000.dcm") is None
            assert catalogue.file("21b5/MR2018/1282/000.dcm") is not None

    def test_upv_follows_links_into_the_data_lake_that_the_site_file_names(self, tiny, tmp_path):
        self.upv(tiny, tmp_path / "cohort", tmp_path / "lake" / "MR2018")
        (tmp_path / "cohort" / "21b5").mkdir()
        (tmp_path / "cohort" / "21b5" / "MR2018").symlink_to(tmp_path / "lake" / "MR2018")
        site = tiny.site(tmp_path, "upv_index")
        assert {"leads out" in bad.reason for bad in read_manifest(site).quarantined} == {True}
        cohort = site.cohort.model_copy(update={"links": (tmp_path / "lake",)})
        (case,) = read_manifest(site.model_copy(update={"cohort": cohort})).cases
        assert (case.patient, len(case.image), len(case.label)) == ("21b5", 3, 1)

    def test_nifti_csv(self, tiny, tmp_path):
        folder = tiny.nifti_cohort(tmp_path, 1)
        (case,) = read_manifest(tiny.site(tmp_path)).cases
        assert (case.image, case.label) == ((folder / "P0.nii.gz",), (folder / "P0_label.nii.gz",))
        assert case.facts is not None

    def test_xnat(self, tiny, tmp_path):
        scan = tmp_path / "cohort" / "S1" / "E1"
        tiny.series(scan / "4_T2" / "DICOM" / "files", STORED, uid="1.2.3.1")
        tiny.nifti(scan / "4_T2" / "SEG" / "files" / "m.nii.gz", np.zeros((5, 4, 3), np.uint8))
        (case,) = read_manifest(tiny.site(tmp_path, "xnat")).cases
        assert (case.patient, case.study, case.series, case.modality) == ("S1", "E1", "4_T2", "CT")
        assert case.label_format == "nifti"

    def test_bids(self, tiny, tmp_path):
        folder = tmp_path / "cohort" / "sub-01" / "anat"
        tiny.nifti(folder / "sub-01_T2w.nii.gz", STORED)
        tiny.nifti(folder / "sub-01_T2w_mask.nii.gz", np.zeros(STORED.shape, np.uint8))
        (tmp_path / "cohort" / "participants.tsv").write_text("participant_id\tage\nsub-01\t63\n")
        (case,) = read_manifest(tiny.site(tmp_path, "bids")).cases
        assert (case.patient, case.modality, len(case.label), case.clinical) == ("sub-01", "MR", 1, {"age": "63"})

    def test_folder_csv(self, tiny, tmp_path):
        tiny.series(tmp_path / "cohort" / "any" / "P1", STORED, uid="1.2.3.1")
        (tmp_path / "cohort" / "clinical.csv").write_text("patient_id;sex\nP1;f\n")
        (case,) = read_manifest(tiny.site(tmp_path, "folder_csv")).cases
        assert (case.patient, case.series, case.clinical) == ("P1", "1.2.3.1", {"sex": "female"})


class TestQuarantined:
    def test_its_reason_is_the_errors_safe_text(self):
        error = LabelError("No label.", fix="Draw one.", local_detail="/secret/P1")
        assert Quarantined.because("P1", error) == Quarantined("P1", "EFL203", "No label.", "/secret/P1")

from __future__ import annotations

import json

import pytest

from eucaim_fl.cohorts.layouts import Place
from eucaim_fl.cohorts.layouts.xnat import find, scan_folders
from eucaim_fl.errors import CohortError


@pytest.fixture
def found(fake, tmp_path):
    return lambda *stacks: find(Place(tmp_path), fake.catalogue(*stacks))


def labels(found):
    return {case.series: [path.name for path in case.label] for case in found.cases}


def header(path, **values):
    tags = {"modality": "00080060", "description": "0008103E", "uid": "0020000E"}
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps([{tags[k]: {"vr": "CS", "Value": [v]} for k, v in values.items()}]))


class TestScanFolders:
    def test_folders_at_the_top_may_be_scanned(self, tmp_path):
        (tmp_path / "S1").mkdir()
        (tmp_path / "clinical.csv").write_text("subject,age\nS1,63\n")
        assert scan_folders(Place(tmp_path)) == ["S1"]

    def test_a_table_without_subjects_is_an_error(self, tmp_path):
        (tmp_path / "clinical.csv").write_text("age\n63\n")
        with pytest.raises(CohortError, match="lacks the columns patient_id"):
            scan_folders(Place(tmp_path))


class TestFind:
    @pytest.mark.parametrize("inside", ["", "/DICOM/files"])
    @pytest.mark.parametrize("project", ["", "proj/"])
    def test_subject_experiment_and_scan_are_patient_study_and_series(self, fake, found, project, inside):
        (case,) = found(fake.stack(f"{project}S1/E1/4_T2{inside}", "1.4")).cases
        assert (case.patient, case.study, case.series) == ("S1", "E1", "4_T2")

    def test_scans_at_two_depths_are_an_error_since_subjects_are_not_certain(self, fake, tmp_path):
        catalogue = fake.catalogue(fake.stack("S1/E1/4_T2"), fake.stack("P/S1/E1/4_T2"))
        with pytest.raises(CohortError, match="two depths"):
            find(Place(tmp_path), catalogue)

    def test_a_table_that_can_not_be_read_is_an_error(self, fake, tmp_path):
        (tmp_path / "clinical.csv").write_bytes(b"\0")
        with pytest.raises(CohortError, match="no text"):
            find(Place(tmp_path), fake.catalogue())

    def test_what_is_no_scan_is_noted(self, fake, found):
        result = found(fake.stack("S1/E1/4_T2"), fake.stack("S1/E1/notes"), fake.stack("S1/E1/4_T2/DICOM"))
        assert len(result.cases) == 1
        assert fake.notes(result) == {"layout.files_not_placed": 6}

    @pytest.mark.parametrize(
        "place", ["S1/E1/9_SEG/m.nii.gz", "S1/E1/9_T2-mask/m.nii.gz", "S1/E1/4_T2/LABEL/files/m.nii.gz"]
    )
    def test_scans_and_resources_called_so_are_labels(self, fake, found, place):
        assert labels(found(fake.nifti("S1/E1/4_T2/NIFTI/files/i.nii.gz"), fake.nifti(place))) == {"4_T2": ["m.nii.gz"]}

    def test_a_label_of_a_scan_is_never_another_scans(self, fake, found):
        scans = [fake.nifti(f"S1/E1/{n}/NIFTI/files/i.nii.gz") for n in ("4_T2", "5_ADC")]
        label = fake.nifti("S1/E1/5_ADC/mask/files/m.nii.gz")
        assert labels(found(*scans, label)) == {"4_T2": [], "5_ADC": ["m.nii.gz"]}
        result = found(*scans, fake.nifti("S1/E1/9_SEG/m.nii.gz"))
        assert fake.notes(result) == {"layout.labels_without_image": 1}

    def test_a_nifti_resource_beside_dicom_of_the_same_scan_is_a_copy(self, fake, found):
        stacks = fake.stack("S1/E1/4_T2/DICOM/files", "1.4"), fake.nifti("S1/E1/4_T2/NIFTI/files/i.nii.gz")
        assert [case.image_format for case in found(*stacks).cases] == ["dicom"]

    def test_a_segmented_sequence_is_an_image(self, fake, found):
        assert labels(found(fake.stack("S1/E1/5_ep2d_seg", modality="MR"))) == {"5_ep2d_seg": []}

    def test_dicom_segmentations_are_found_by_their_header(self, fake, found):
        seg = fake.stack("S1/E1/7_result", modality="SEG", references=("1.4",), slices=1)
        assert labels(found(fake.stack("S1/E1/4_T2", "1.4"), seg)) == {"4_T2": ["000.dcm"]}

    def test_clinical_values_are_those_of_the_subjects_row(self, fake, tmp_path, found):
        (tmp_path / "clinical.csv").write_text("subject;sex\nS1;F\nS1;M\nS3;F\n;F\n")
        result = found(fake.stack("S1/E1/4_T2"), fake.stack("S2/E1/4_T2"))
        assert [case.clinical for case in result.cases] == [{"sex": "female"}, {}]
        assert fake.notes(result) == {
            "layout.patients_listed_twice": 1,
            "layout.patients_without_clinical": 1,
            "layout.patients_without_images": 1,
            "layout.rows_without_patient": 1,
        }


class TestSidecars:
    def test_a_dicom_json_header_says_what_a_nifti_file_is(self, fake, tmp_path, found):
        header(tmp_path / "S1/E1/4_T2/i.json", modality="MR", description="T2 TSE Müller ax", uid="1.2.4")
        (case,) = found(fake.nifti("S1/E1/4_T2/i.nii.gz")).cases
        assert (case.modality, case.facts.description, case.facts.series_uid) == ("MR", "t2 tse ax", "1.2.4")

    def test_ill_formed_values_are_left_out(self, fake, tmp_path, found):
        header(tmp_path / "S1/E1/4_T2/i.json", modality="Müller", description=7, uid="not a uid")
        (case,) = found(fake.nifti("S1/E1/4_T2/i.nii.gz")).cases
        assert (case.modality, case.facts.description, case.facts.series_uid) == ("", "", "")

    @pytest.mark.parametrize("text", ["{", "[[[", "[" * 999])
    def test_one_that_is_broken_is_noted_and_the_image_stays(self, fake, tmp_path, found, text):
        header(tmp_path / "S1/E1/4_T2/i.json")
        (tmp_path / "S1/E1/4_T2/i.json").write_text(text)
        result = found(fake.nifti("S1/E1/4_T2/i.nii.gz"))
        assert len(result.cases) == 1
        assert fake.notes(result) == {"layout.sidecars_unreadable": 1}

    @pytest.mark.parametrize("text", ["7", "[]", "{}", "[1]", '{"00080060": 3}', '{"00080060": {"Value": []}}'])
    def test_one_that_says_nothing_changes_nothing(self, fake, tmp_path, found, text):
        header(tmp_path / "S1/E1/4_T2/i.json")
        (tmp_path / "S1/E1/4_T2/i.json").write_text(text)
        assert [case.modality for case in found(fake.nifti("S1/E1/4_T2/i.nii.gz")).cases] == [""]

    def test_a_link_out_of_the_cohort_is_not_followed(self, fake, tmp_path_factory, tmp_path, found):
        outside = tmp_path_factory.mktemp("outside") / "i.json"
        header(outside, modality="MR")
        (tmp_path / "S1/E1/4_T2").mkdir(parents=True)
        (tmp_path / "S1/E1/4_T2/i.json").symlink_to(outside)
        (case,) = found(fake.nifti("S1/E1/4_T2/i.nii.gz")).cases
        assert case.modality == ""

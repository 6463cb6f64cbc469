from __future__ import annotations

import json

import pytest

from eucaim_fl.cohorts.layouts import Place
from eucaim_fl.cohorts.layouts.bids import find, scan_folders
from eucaim_fl.errors import CohortError


@pytest.fixture
def found(fake, tmp_path):
    return lambda *files: find(Place(tmp_path), fake.catalogue(*map(fake.nifti, files)))


def labels(found):
    return {case.series: [path.name for path in case.label] for case in found.cases}


class TestScanFolders:
    def test_subjects_and_derivatives_may_be_scanned(self, tmp_path):
        for name in ("sub-02", "sub-01", "derivatives", "sourcedata", "code", ".git"):
            (tmp_path / name).mkdir()
        assert scan_folders(Place(tmp_path)) == ["derivatives", "sub-01", "sub-02"]

    def test_a_table_without_participants_is_an_error(self, tmp_path):
        (tmp_path / "participants.tsv").write_text("age\n63\n")
        with pytest.raises(CohortError, match="lacks the columns patient_id"):
            scan_folders(Place(tmp_path))


class TestFind:
    def test_subject_session_and_name_are_patient_study_and_series(self, tmp_path, found):
        (case,) = found("sub-01/ses-a/anat/sub-01_ses-a_T2w.nii.gz").cases
        assert (case.patient, case.study, case.series) == ("sub-01", "ses-a", "sub-01_ses-a_T2w")
        assert case.image == (tmp_path / "sub-01/ses-a/anat/sub-01_ses-a_T2w.nii.gz",)

    @pytest.mark.parametrize(
        ("path", "modality", "word"),
        [
            ("anat/sub-01_T2w", "MR", "t2w"),
            ("dwi/sub-01_adc", "MR", "adc"),
            ("perf/sub-01_dce", "MR", "dce"),
            ("pet/sub-01_pet", "PT", "pet"),
            ("ct/sub-01_ct", "CT", "ct"),
            ("anat/sub-01_Mueller", "MR", ""),
        ],
    )
    def test_the_folder_says_the_modality_and_the_suffix_is_a_word_that_rules_find(self, found, path, modality, word):
        (case,) = found(f"sub-01/{path}.nii.gz").cases
        assert (case.modality, case.facts.description) == (modality, word)

    def test_a_sidecar_counts_more(self, tmp_path, found):
        (tmp_path / "sub-01/anat").mkdir(parents=True)
        (tmp_path / "sub-01/anat/sub-01_T2w.json").write_text(
            json.dumps({"Modality": "CT", "SeriesDescription": "tse Rossi"})
        )
        (case,) = found("sub-01/anat/sub-01_T2w.nii.gz").cases
        assert (case.modality, case.facts.modality, case.facts.description) == ("CT", "CT", "t2w tse")

    def test_participants_have_values_and_na_is_missing(self, fake, tmp_path, found):
        (tmp_path / "participants.tsv").write_text(
            "participant_id\tage\tsex\nsub-01\tn/a\tM\n02\t63\tF\nsub-03\t1\tF\n"
        )
        result = found(
            "sub-01/anat/sub-01_T2w.nii.gz", "sub-02/anat/sub-02_T2w.nii.gz", "sub-04/anat/sub-04_T2w.nii.gz"
        )
        assert [case.clinical for case in result.cases] == [{"sex": "male"}, {"age": "63", "sex": "female"}, {}]
        findings = {f.rule: f.subjects for f in result.notes.findings()}
        assert findings["layout.patients_without_clinical"] == ("sub-04",)
        assert findings["layout.patients_without_images"] == ("sub-03",)

    def test_a_table_that_can_not_be_read_is_an_error(self, fake, tmp_path):
        (tmp_path / "participants.tsv").write_bytes(b"\0")
        with pytest.raises(CohortError, match="no text"):
            find(Place(tmp_path), fake.catalogue())

    def test_what_has_no_place_is_noted(self, fake, found):
        result = found(
            "sub-01/anat/sub-01_T2w.nii.gz", "sub-01/x.nii.gz", "sub-01/other/x.nii.gz", "sourcedata/x.nii.gz"
        )
        assert len(result.cases) == 1
        assert fake.notes(result) == {"layout.files_not_placed": 3}


class TestLabels:
    IMAGES = ("sub-01/anat/sub-01_T2w.nii.gz", "sub-01/dwi/sub-01_adc.nii.gz")

    @pytest.mark.parametrize(
        "label",
        [
            "sub-01/anat/sub-01_T2w_mask.nii.gz",
            "sub-01/anat/sub-01_T2w_desc-lesion_mask.nii.gz",
            "sub-01/anat/sub-01_dseg.nii.gz",
            "derivatives/manual/sub-01/anat/sub-01_desc-lesion_mask.nii.gz",
            "derivatives/manual/sub-01/sub-01_space-T2w_desc-lesion_mask.nii.gz",
            "derivatives/manual/sub-01/sub-01_T2w_seg.nii.gz",
        ],
    )
    def test_a_label_belongs_to_the_image_that_its_name_speaks_of(self, found, label):
        assert labels(found(*self.IMAGES, label)) == {"sub-01_T2w": [label.rpartition("/")[2]], "sub-01_adc": []}

    def test_one_that_speaks_of_none_or_several_belongs_to_none(self, fake, found):
        for label in ("derivatives/m/sub-01/sub-01_mask.nii.gz", "derivatives/m/sub-01/sub-01_space-FLAIR_mask.nii.gz"):
            result = found(*self.IMAGES, label)
            assert labels(result) == {"sub-01_T2w": [], "sub-01_adc": []}
            assert fake.notes(result) == {"layout.labels_without_image": 1}

    def test_entities_that_both_have_must_be_the_same(self, found):
        images = [f"sub-01/anat/sub-01_acq-{plane}_T2w.nii.gz" for plane in ("ax", "cor")]
        result = found(*images, "derivatives/m/sub-01/anat/sub-01_acq-cor_label-tumour_mask.nii.gz")
        assert [len(case.label) for case in result.cases] == [0, 1]

    def test_a_session_keeps_its_labels(self, found):
        images = [f"sub-01/ses-{n}/anat/sub-01_ses-{n}_T2w.nii.gz" for n in (1, 2)]
        result = found(*images, "derivatives/m/sub-01/ses-2/anat/sub-01_ses-2_mask.nii.gz")
        assert [len(case.label) for case in result.cases] == [0, 1]

    def test_derived_images_are_not_used(self, fake, found):
        result = found(*self.IMAGES, "derivatives/prep/sub-01/anat/sub-01_desc-norm_T2w.nii.gz")
        assert len(result.cases) == 2
        assert fake.notes(result) == {"layout.files_not_placed": 1}


class TestSidecars:
    def test_a_modality_that_dicom_does_not_know_could_be_a_name_and_is_left_out(self, tmp_path, found):
        path = "sub-01/anat/sub-01_T2w.nii.gz"
        (tmp_path / path).parent.mkdir(parents=True)
        (tmp_path / path.replace(".nii.gz", ".json")).write_text(json.dumps({"Modality": "ROSSI"}))
        assert [case.modality for case in found(path).cases] == ["MR"]

from __future__ import annotations

import pytest

from eucaim_fl.cohorts.layouts import Place
from eucaim_fl.cohorts.layouts.tier3 import find, scan_folders
from eucaim_fl.errors import CohortError

STUDY = "imaging_data/PAT1/1.2.3"


@pytest.fixture
def tier3(fake, tmp_path):
    """One patient with two listed series."""
    folder = tmp_path / "dataset"
    fake.table(
        folder / "clinical_mandatory_view.csv",
        {"patient_id": "PAT1", "patient_birth_sex": "COM1001366", "treatment_type": "ICDO3:1"},
    )
    row = {"patient_id": "PAT1", "image_procedure_code": "IMG1000022", "study_uid": "1.2.3"}
    fake.table(folder / "imaging_mandatory_view.csv", *({**row, "series_uid": f"1.2.3.{n}"} for n in (1, 2)))
    return folder


@pytest.fixture
def stacks(fake):
    return [fake.stack(f"{STUDY}/1.2.3.{n}", modality="MR") for n in (1, 2)]


@pytest.fixture
def found(fake, tier3, stacks):
    """Finds the cases of the two series and of further stacks."""
    return lambda *further: find(Place(tier3), fake.catalogue(*stacks, *further))


def add(folder, line, view="imaging_mandatory_view.csv"):
    with (folder / view).open("a") as stream:
        stream.write(line + "\n")


class TestScanFolders:
    def test_the_image_folder_may_be_scanned(self, tier3):
        assert scan_folders(Place(tier3)) == ["imaging_data"]

    def test_views_are_asked_for_before_anything_is_scanned(self, tier3):
        (tier3 / "imaging_mandatory_view.csv").unlink()
        with pytest.raises(CohortError, match="table of the cohort is missing"):
            scan_folders(Place(tier3))


class TestFind:
    def test_listed_series_are_cases(self, found):
        assert [(c.patient, c.study, c.series, c.modality) for c in found().cases] == [
            ("PAT1", "1.2.3", "1.2.3.1", "MR"),
            ("PAT1", "1.2.3", "1.2.3.2", "MR"),
        ]

    def test_a_segmentation_beside_them_belongs_to_the_series_that_it_refers_to(self, fake, found):
        seg = fake.stack(f"{STUDY}/1.2.3.77", modality="SEG", references=("1.2.3.2",), slices=1)
        first, second = found(seg).cases
        assert (first.label, first.label_format) == ((), None)
        assert ([p.name for p in second.label], second.label_format) == (["000.dcm"], "dicom_seg")

    def test_a_segmentation_may_be_listed_too(self, fake, tier3, found):
        add(tier3, "PAT1,,1.2.3,1.2.3.77")
        seg = fake.stack(f"{STUDY}/1.2.3.77", modality="SEG", references=("1.2.3.2",))
        assert [len(case.label) for case in found(seg).cases] == [0, 3]

    def test_one_in_another_study_is_not_listed(self, fake, found):
        result = found(fake.stack("imaging_data/PAT1/9/9.1", modality="SEG", references=("1.2.3.2",)))
        assert [case.label for case in result.cases] == [(), ()]
        assert fake.notes(result)["layout.series_not_listed"] == 1

    def test_codes_become_words_and_drifted_names_their_present_ones(self, fake, found):
        result = found()
        assert result.cases[0].clinical == {
            "patient_id": "PAT1",
            "patient_birth_sex": "male",
            "first_treatment_type": "ICDO3:1",
        }
        assert fake.notes(result) == {"layout.aliases_used": 1, "codes.unplaced": 1}

    def test_the_views_may_lie_one_level_above(self, tier3, found):
        for view in tier3.glob("*.csv"):
            view.rename(tier3.parent / view.name)
        assert len(found().cases) == 2

    def test_a_header_without_modality_takes_that_of_the_view(self, fake, tier3):
        stacks = [fake.stack(f"{STUDY}/1.2.3.1", modality=""), fake.stack(f"{STUDY}/1.2.3.2", modality="CT")]
        result = find(Place(tier3), fake.catalogue(*stacks))
        assert [case.modality for case in result.cases] == ["MR", "CT"]
        assert fake.notes(result)["layout.modality_differs"] == 1

    def test_what_nobody_listed_is_not_used_and_counted(self, fake, found):
        further = [fake.stack(f"{STUDY}/1.2.3.5"), fake.stack("imaging_data/PAT9/1/2"), fake.stack("imaging_data/PAT1")]
        result = found(*further, fake.stack("elsewhere/1/2/3"))
        assert len(result.cases) == 2
        notes = fake.notes(result)
        assert (notes["layout.series_not_listed"], notes["layout.files_not_placed"]) == (2, 3)

    @pytest.mark.parametrize("patient", ["../../other", "/etc", "..", "", ".", "PAT1/1.2.3"])
    def test_a_path_that_leads_out_is_quarantined(self, tier3, found, patient):
        add(tier3, f"{patient},IMG1000022,x,y")
        result = found()
        assert len(result.cases) == 2
        assert ["leads out" in bad.reason for bad in result.quarantined] == [True]
        assert str(tier3) not in result.quarantined[0].reason

    def test_a_series_folder_that_is_a_link_out_is_quarantined(self, tier3, found, tmp_path):
        (tmp_path / "lake").mkdir()
        (tier3 / STUDY).mkdir(parents=True)
        (tier3 / STUDY / "1.2.3.1").symlink_to(tmp_path / "lake")
        result = found()
        assert [case.series for case in result.cases] == ["1.2.3.2"]
        assert "leads out" in result.quarantined[0].reason

    def test_a_series_whose_folder_is_missing_or_empty_is_quarantined(self, fake, tier3, found):
        add(tier3, "PAT1,IMG1000022,1.2.3,1.2.3.8\nPAT1,IMG1000022,1.2.3,1.2.3.9")
        (tier3 / STUDY / "1.2.3.9").mkdir(parents=True)
        result = found()
        assert sorted(bad.code for bad in result.quarantined) == ["EFL202", "EFL204"]
        assert fake.notes(result)["layout.series_missing"] == 2

    def test_a_series_listed_twice_counts_once(self, fake, tier3, found):
        add(tier3, "PAT1,IMG1000022,1.2.3,1.2.3.1")
        result = found()
        assert len(result.cases) == 2
        assert fake.notes(result)["layout.series_listed_twice"] == 1

    def test_another_uid_in_the_header_is_noted(self, fake, tier3):
        stacks = [fake.stack(f"{STUDY}/1.2.3.1", "9.9", modality="MR"), fake.stack(f"{STUDY}/1.2.3.2", modality="MR")]
        result = find(Place(tier3), fake.catalogue(*stacks))
        assert [case.series for case in result.cases] == ["1.2.3.1", "1.2.3.2"]
        assert fake.notes(result)["layout.series_uid_differs"] == 1

    def test_the_views_must_speak_of_the_same_patients(self, fake, tier3, found):
        add(tier3, "PAT2,IMG1000022,5,6")
        add(tier3, "PAT3,COM1001370,\nPAT1,COM1001370,", "clinical_mandatory_view.csv")
        result = found(fake.stack("imaging_data/PAT2/5/6", modality="MR"))
        findings = {f.rule: (f.count, f.subjects) for f in result.notes.findings()}
        assert findings["layout.patients_without_clinical"] == (1, ("PAT2",))
        assert findings["layout.patients_without_images"] == (1, ("PAT3",))
        assert findings["layout.patients_listed_twice"] == (1, ("PAT1",))
        assert {case.clinical.get("patient_birth_sex") for case in result.cases if case.patient == "PAT1"} == {"male"}

    def test_further_columns_of_a_view_are_kept_and_counted(self, fake, tier3, found):
        (tier3 / "clinical_mandatory_view.csv").write_text("patient_id,psa\nPAT1,4.2\n")
        result = found()
        assert result.cases[0].clinical["psa"] == "4.2"
        assert fake.notes(result)["layout.columns_unknown"] == 1

    @pytest.mark.parametrize(
        ("name", "text", "words"),
        [
            ("clinical_mandatory_view.csv", None, "missing"),
            ("imaging_mandatory_view.csv", "patient_id,study_uid\n", "lacks the columns series_uid"),
            ("imaging_mandatory_view.csv", 'patient_id,study_uid,series_uid\n"a,b', "no valid CSV"),
        ],
    )
    def test_a_view_that_is_missing_or_incomplete_is_an_error(self, fake, tier3, name, text, words):
        if text is None:
            (tier3 / name).unlink()
        else:
            (tier3 / name).write_text(text)
        with pytest.raises(CohortError, match=words):
            find(Place(tier3), fake.catalogue())


class TestClinicalData:
    def test_tables_are_joined_by_patient_and_the_first_row_counts(self, fake, tier3, found):
        rows = [{"patient_id": "PAT1", "radiotherapy_dose": dose} for dose in ("60", "70")]
        fake.table(tier3 / "clinical_data" / "radiotherapy.csv", *rows)
        assert found().cases[0].clinical["radiotherapy_dose"] == "60"

    def test_a_column_that_says_the_same_stays_one_and_one_that_differs_gets_the_tables_name(self, fake, tier3, found):
        row = {"patient_id": "PAT1", "patient_birth_sex": "EUCAIM:COM1001366", "first_treatment_type": "CLIN1014933"}
        fake.table(tier3 / "clinical_data" / "treatment.csv", row)
        clinical = found().cases[0].clinical
        assert clinical["first_treatment_type"] == "ICDO3:1"
        assert clinical["treatment_first_treatment_type"] == "CLIN1014933"
        assert "treatment_patient_birth_sex" not in clinical

    def test_tables_of_series_are_not_joined_and_those_without_patients_noted(self, fake, tier3, found):
        fake.table(tier3 / "clinical_data" / "image_series.csv", {"patient_id": "PAT1", "thickness": "3"})
        fake.table(tier3 / "clinical_data" / "episode_event.csv", {"episode_id": "7", "event": "x"})
        result = found()
        assert not {"thickness", "event"} & set(result.cases[0].clinical)
        assert fake.notes(result)["layout.tables_not_joined"] == 1

    def test_a_table_that_is_a_link_out_of_the_cohort_is_an_error(self, fake, tier3, tmp_path):
        (tier3 / "clinical_data").mkdir()
        (tier3 / "clinical_data" / "patient.csv").symlink_to(fake.table(tmp_path / "x.csv", {"patient_id": "PAT1"}))
        with pytest.raises(CohortError, match="link that leads out"):
            find(Place(tier3), fake.catalogue())

from __future__ import annotations

import pytest

from eucaim_fl.cohorts.layouts import Place
from eucaim_fl.cohorts.layouts.folder_csv import find, scan_folders
from eucaim_fl.errors import CohortError


@pytest.fixture
def place(tmp_path):
    return Place(tmp_path)


def owners(found):
    return [(case.patient, case.series) for case in found.cases]


class TestScanFolders:
    def test_named_folders_may_be_scanned_and_everything_if_a_row_names_none(self, fake, place):
        rows = [{"patient_id": "P1", "folder": "a"}, {"patient_id": "P2", "folder": "a/b"}]
        fake.table(place.folder / "clinical.csv", *rows)
        assert scan_folders(place) == ["a"]
        fake.table(place.folder / "clinical.csv", *rows, {"patient_id": "P3"})
        assert scan_folders(place) == [""]

    def test_a_table_that_is_missing_is_an_error(self, place):
        with pytest.raises(CohortError, match="missing"):
            scan_folders(place)


class TestFind:
    def test_all_below_a_named_folder_is_the_patients(self, fake, place):
        fake.table(place.folder / "clinical.csv", {"patient_id": "P1", "folder": "x", "sex": "M"})
        found = find(place, fake.catalogue(fake.stack("x/1", "1.1"), fake.stack("x", "1.2"), fake.stack("xy", "1.3")))
        assert owners(found) == [("P1", "1.2"), ("P1", "1.1")]
        assert found.cases[0].clinical == {"sex": "male"}
        assert fake.notes(found) == {"layout.series_not_listed": 1}

    def test_series_and_studies_may_be_named_by_their_uids(self, fake, place):
        rows = [
            {"patient_id": "P1", "folder": "", "study_uid": "", "series_uid": "1.1"},
            {"patient_id": "P2", "folder": "", "study_uid": "9", "series_uid": ""},
            {"patient_id": "P3", "folder": "y", "study_uid": "", "series_uid": "1.4"},
        ]
        fake.table(place.folder / "clinical.csv", *rows)
        stacks = [
            fake.stack("x", "1.1"),
            fake.stack("x", "1.2", study_uid="9"),
            fake.stack("x", "1.3"),
            fake.stack("y", "1.4"),
            fake.stack("y", "1.5"),
        ]
        assert owners(find(place, fake.catalogue(*stacks))) == [("P1", "1.1"), ("P2", "1.2"), ("P3", "1.4")]

    def test_else_a_folder_named_as_the_patient_holds_the_images(self, fake, place):
        fake.table(place.folder / "clinical.csv", {"patient_id": "P1"}, {"patient_id": "P2"})
        stacks = [fake.stack("2020/P1/ct", "1.1"), fake.stack("P2", "1.2"), fake.stack("P10", "1.3")]
        assert owners(find(place, fake.catalogue(*stacks))) == [("P1", "1.1"), ("P2", "1.2")]

    def test_what_two_patients_claim_is_nobodys(self, fake, place):
        fake.table(
            place.folder / "clinical.csv", {"patient_id": "P1", "folder": "a"}, {"patient_id": "P2", "folder": "a/b"}
        )
        found = find(place, fake.catalogue(fake.stack("a", "1.1"), fake.stack("a/b", "1.2")))
        assert owners(found) == [("P1", "1.1")]
        assert [bad.patient for bad in found.quarantined] == ["P1", "P2"]
        assert fake.notes(found)["layout.images_of_two_patients"] == 1

    def test_labels_are_found_by_reference_or_by_their_names(self, fake, place):
        fake.table(place.folder / "clinical.csv", {"patient_id": "P1"})
        stacks = [
            fake.stack("P1/ct", "1.1"),
            fake.stack("P1/any", "1.9", modality="RTSTRUCT", references=("1.1",), slices=1),
            fake.nifti("P1/nii/t2.nii.gz"),
            fake.nifti("P1/nii/adc.nii.gz"),
            fake.nifti("P1/nii/adc_mask.nii.gz"),
        ]
        found = find(place, fake.catalogue(*stacks))
        assert {case.series: case.label_format for case in found.cases} == {
            "1.1": "rtstruct",
            "adc": "nifti",
            "t2": None,
        }

    def test_a_mask_with_a_name_of_its_own_belongs_to_the_only_image_of_its_folder(self, fake, place):
        fake.table(place.folder / "clinical.csv", {"patient_id": "P1"})
        image, mask = fake.nifti("P1/image.nii.gz"), fake.nifti("P1/Label.nii.gz")
        (case,) = find(place, fake.catalogue(image, mask)).cases
        assert [path.name for path in case.label] == ["Label.nii.gz"]
        found = find(place, fake.catalogue(image, fake.nifti("P1/second.nii.gz"), mask))
        assert [case.label for case in found.cases] == [(), ()]

    def test_a_broken_file_is_quarantined_for_whoever_has_its_folder(self, fake, place):
        fake.table(place.folder / "clinical.csv", {"patient_id": "P1"})
        found = find(place, fake.catalogue(fake.stack("P1/ct", "1.1"), fake.broken("P1/other/x.dcm")))
        assert (owners(found), [bad.patient for bad in found.quarantined]) == ([("P1", "1.1")], ["P1"])

    def test_rows_and_folders_that_can_not_be_used_are_set_aside(self, fake, place):
        rows = [
            {"patient_id": "P1", "folder": "../x"},
            {"patient_id": "", "folder": "y"},
            {"patient_id": "P2", "folder": "z"},
        ]
        fake.table(place.folder / "clinical.csv", *rows)
        found = find(place, fake.catalogue(fake.stack("y", "1.1"), fake.broken("z/notes.txt", kind="other")))
        assert ["leads out" in bad.reason for bad in found.quarantined] == [True]
        assert fake.notes(found) == {
            "layout.files_not_placed": 1,
            "layout.patients_without_images": 2,
            "layout.rows_without_patient": 1,
            "layout.series_not_listed": 1,
        }

    def test_a_table_without_patients_is_an_error(self, fake, place):
        (place.folder / "clinical.csv").write_text("folder\nx\n")
        with pytest.raises(CohortError, match="lacks the columns patient_id"):
            find(place, fake.catalogue())

from __future__ import annotations

import pytest

from eucaim_fl.cohorts.layouts import Place
from eucaim_fl.cohorts.layouts.nifti_csv import find, scan_folders
from eucaim_fl.errors import CohortError


@pytest.fixture
def cohort(tmp_path):
    folder = tmp_path / "cohort"
    folder.mkdir()
    (folder / "clinical.csv").write_text(
        "patient_id,image,label,grade,cancer\nP0,i/P0.nii.gz,l/P0.nii,G0,CLIN1000065\n"
    )
    return folder


@pytest.fixture
def found(fake, cohort):
    def run(*further, **facts):
        stacks = {"i/P0.nii.gz": {}, "l/P0.nii": {}, **facts}
        return find(Place(cohort), fake.catalogue(*(fake.nifti(p, **f) for p, f in stacks.items()), *further))

    return run


def add(cohort, row):
    with (cohort / "clinical.csv").open("a") as table:
        table.write(row + "\n")


class TestScanFolders:
    def test_folders_of_images_and_labels_may_be_scanned(self, cohort):
        add(cohort, "P1,i/more/P1.nii.gz,../x")
        assert scan_folders(Place(cohort)) == ["i", "l"]
        add(cohort, "P2,P2.nii.gz,")
        assert scan_folders(Place(cohort)) == [""]

    def test_a_table_that_is_missing_is_an_error(self, tmp_path):
        with pytest.raises(CohortError, match="missing"):
            scan_folders(Place(tmp_path))


class TestFind:
    def test_columns_beside_the_three_are_clinical_values(self, cohort, found):
        (case,) = found().cases
        assert case.clinical == {"grade": "G0", "cancer": "lung cancer"}
        assert (case.image, case.label) == ((cohort / "i/P0.nii.gz",), (cohort / "l/P0.nii",))
        assert (case.image_format, case.label_format) == ("nifti", "nifti")
        assert case.facts.files == ("i/P0.nii.gz",)

    @pytest.mark.parametrize(
        ("row", "code"),
        [
            ("P9,P9.nii.gz,", "EFL204"),
            ("P9,i/P0.nii.gz,P9.nii.gz", "EFL203"),
            ("P9,../P0.nii.gz,", "EFL200"),
            ("P9,/etc/passwd,", "EFL200"),
            ("P9,i/P0.nii.gz,../x", "EFL200"),
            ("P9,,i/P0.nii.gz", "EFL200"),
            (",i/P0.nii.gz,", "EFL200"),
        ],
    )
    def test_a_row_that_can_not_be_used_is_quarantined(self, cohort, found, row, code):
        add(cohort, row)
        result = found()
        assert [case.patient for case in result.cases] == ["P0"]
        assert [bad.code for bad in result.quarantined] == [code]
        assert "P0" not in result.quarantined[0].reason

    @pytest.mark.parametrize("path", ["i/P0.nii.gz", "l/P0.nii"])
    def test_an_image_or_label_that_can_not_be_read_is_quarantined(self, found, path):
        result = found(**{path: {"code": "EFL204", "reason": "Broken."}})
        assert (result.cases, [bad.reason for bad in result.quarantined]) == ([], ["Broken."])

    def test_a_link_that_leads_out_is_quarantined(self, cohort, found, tmp_path):
        (tmp_path / "elsewhere").touch()
        (cohort / "i").mkdir()
        (cohort / "i" / "P0.nii.gz").symlink_to(tmp_path / "elsewhere")
        assert "leads out" in found().quarantined[0].reason

    def test_a_row_without_label_is_a_case_without_label(self, cohort, found):
        (cohort / "clinical.csv").write_text("\ufeffpatient_id;image;label\nP0;i/P0.nii.gz;\n", encoding="utf-8")
        (case,) = found().cases
        assert (case.label, case.label_format) == ((), None)

    @pytest.mark.parametrize(
        ("content", "words"),
        [
            (None, "missing"),
            (b"", "image, patient_id"),
            (b"patient_id\nP0", "lacks the columns image"),
            (b"\0", "no text"),
        ],
    )
    def test_a_table_that_is_missing_or_incomplete_is_an_error(self, fake, tmp_path, content, words):
        if content is not None:
            (tmp_path / "clinical.csv").write_bytes(content)
        with pytest.raises(CohortError, match=words):
            find(Place(tmp_path), fake.catalogue())


class TestWhatIsSaid:
    def test_a_row_without_a_patient_is_told_by_its_number_and_not_quoted(self, cohort, found):
        add(cohort, ",i/Rossi_Maria.nii.gz,,secret,")
        (one,) = found().quarantined
        assert one.local_detail.startswith("row 2 below the header")

    def test_a_file_whose_name_is_hidden_is_not_called_missing(self, cohort, found):
        (cohort / "i").mkdir()
        (cohort / "i" / "Rossi_Maria.nii.gz").write_bytes(b"")
        add(cohort, "P1,i/Rossi_Maria.nii.gz,,,")
        (one,) = found().quarantined
        assert (one.patient, one.code) == ("P1", "EFL205")

from __future__ import annotations

import logging
import subprocess
import sys
import time

import numpy as np
import pytest

from eucaim_fl.cohorts import cohort as module
from eucaim_fl.cohorts.cohort import open_cohort
from eucaim_fl.errors import CohortError

SPLITS = ("train", "validation", "test")
GRADE = {"name": "classification", "target": "grade", "classes": ("low", "high")}


@pytest.fixture
def no_decoding(monkeypatch):
    """After this, decoding or reading a table or a header again fails the test."""

    def refuse(*_: object) -> None:
        raise AssertionError("nothing should be read again")

    def start() -> None:
        monkeypatch.setattr(module, "prepare", refuse)
        monkeypatch.setattr(module, "read_manifest", refuse)
        monkeypatch.setattr("hashlib.file_digest", refuse)

    return start


class TestOpenCohort:
    def test_every_patient_is_prepared_and_in_one_split(self, tiny, tmp_path):
        tiny.nifti_cohort(tmp_path, 10)
        cohort = open_cohort(tiny.site(tmp_path), tiny.plan(orientation="LPS"))
        assert [cohort.patients(split) for split in SPLITS] == [6, 2, 2]
        names = [case.patient for split in SPLITS for case in cohort.cases(split)]
        assert sorted(names) == [f"P{i}" for i in range(10)]
        case = cohort.cases("train")[0]
        assert isinstance(case.image(), np.memmap)
        assert (case.image().shape, case.image().dtype) == ((1, 4, 5, 6), np.float32)
        assert (case.label().shape, case.label().dtype) == ((4, 5, 6), np.uint8)
        assert not case.image().flags.writeable
        assert (case.target, case.spacing_mm) == (None, (2.0, 2.0, 3.0))
        assert (case.foreground_slices, case.foreground_voxels.tolist()) == ((3,), [[1, 2, 3]])

    def test_images_of_one_patient_stay_together(self, tiny, tmp_path):
        table = tiny.nifti_cohort(tmp_path, 12) / "clinical.csv"
        head, *rows = table.read_text().splitlines()
        rows = [row.replace(f"P{i},", f"Q{i // 3},", 1) for i, row in enumerate(rows)]
        table.write_text("\n".join([head, *rows]))
        cohort = open_cohort(tiny.site(tmp_path), tiny.plan())
        assert [cohort.patients(split) for split in SPLITS] == [2, 1, 1]
        assert [len(cohort.cases(split)) for split in SPLITS] == [6, 3, 3]

    def test_classes_come_from_the_table_and_are_spread_over_the_splits(self, tiny, tmp_path):
        tiny.nifti_cohort(tmp_path, 10, grade=lambda i: "high" if i % 2 else "low")
        cohort = open_cohort(tiny.site(tmp_path), tiny.plan(GRADE))
        assert all(case.target == int(case.patient[1:]) % 2 for split in SPLITS for case in cohort.cases(split))
        assert [sum(case.target for case in cohort.cases(split)) for split in SPLITS] == [3, 1, 1]
        assert cohort.cases("train")[0].label() is None

    def test_a_dicom_cohort_with_segmentations(self, tiny, tmp_path):
        rows = ["patient_id,study_uid,series_uid,image_procedure_code"]
        mask = np.zeros((4, 5, 6), bool)
        mask[2, 3, 1] = True
        for i in range(3):
            study = tmp_path / "cohort" / "imaging_data" / f"P{i}" / "1.2.3"
            images = tiny.series(study / f"1.2.{i}", np.full((4, 5, 6), i, np.int16), uid=f"1.2.{i}")
            tiny.seg(study / "1.2.77" / "seg.dcm", images, {"Lesion": mask})
            rows.append(f"P{i},1.2.3,1.2.{i},IMG1000026")
        (tmp_path / "cohort" / "imaging_mandatory_view.csv").write_text("\n".join(rows))
        (tmp_path / "cohort" / "clinical_mandatory_view.csv").write_text("patient_id\nP0\n")
        cohort = open_cohort(tiny.site(tmp_path, "eucaim_tier3"), tiny.plan(orientation="LPS", modality="CT"))
        assert np.argwhere(cohort.cases("train")[0].label()).tolist() == [[1, 3, 2]]
        with pytest.raises(CohortError, match="No case of the cohort can be used for this plan"):
            open_cohort(tiny.site(tmp_path, "eucaim_tier3"), tiny.plan(modality="MR"))


class TestASecondRun:
    def test_neither_hashes_nor_decodes_nor_reads_tables(self, tiny, tmp_path, no_decoding):
        tiny.nifti_cohort(tmp_path, 4)
        first = open_cohort(tiny.site(tmp_path), tiny.plan())
        no_decoding()
        second = open_cohort(tiny.site(tmp_path), tiny.plan())
        assert second.fingerprint == first.fingerprint
        assert [c.patient for c in second.cases("train")] == [c.patient for c in first.cases("train")]

    def test_opens_64_patients_in_a_moment(self, tiny, tmp_path, monkeypatch):
        tiny.nifti_cohort(tmp_path, 64)
        site, plan = tiny.site(tmp_path), tiny.plan()
        open_cohort(site, plan)
        times = []
        for _ in range(5):
            start = time.perf_counter()
            open_cohort(site, plan)
            times.append(time.perf_counter() - start)
        assert min(times) < 0.05

    def test_another_split_needs_no_new_tensors(self, tiny, tmp_path, no_decoding):
        tiny.nifti_cohort(tmp_path, 6)
        open_cohort(tiny.site(tmp_path), tiny.plan())
        no_decoding()
        assert open_cohort(tiny.site(tmp_path), tiny.plan(split={"seed": 5})).patients("train") == 4

    def test_a_changed_file_is_seen(self, tiny, tmp_path):
        folder = tiny.nifti_cohort(tmp_path, 3)
        first = open_cohort(tiny.site(tmp_path), tiny.plan(intensity={"kind": "window", "low": 0, "high": 100}))
        tiny.nifti(folder / "P1.nii.gz", np.full((4, 5, 6), 50, np.int16))
        second = open_cohort(tiny.site(tmp_path), tiny.plan(intensity={"kind": "window", "low": 0, "high": 100}))
        assert second.fingerprint != first.fingerprint
        (changed,) = (case for split in SPLITS for case in second.cases(split) if case.patient == "P1")
        assert np.unique(changed.image()).tolist() == [0.5]

    def test_a_changed_table_is_seen(self, tiny, tmp_path):
        folder = tiny.nifti_cohort(tmp_path, 5)
        open_cohort(tiny.site(tmp_path), tiny.plan())
        table = folder / "clinical.csv"
        table.write_text("\n".join(table.read_text().splitlines()[:-1]))
        assert sum(open_cohort(tiny.site(tmp_path), tiny.plan()).patients(split) for split in SPLITS) == 4

    def test_a_damaged_list_of_cases_is_made_again(self, tiny, tmp_path):
        tiny.nifti_cohort(tmp_path, 3)
        first = open_cohort(tiny.site(tmp_path), tiny.plan())
        for text in ("{}", "{", "[]"):
            next((tmp_path / "cache").glob("*.memo.json")).write_text(text)
            assert open_cohort(tiny.site(tmp_path), tiny.plan()).fingerprint == first.fingerprint

    def test_starts_without_the_libraries_that_decode(self):
        code = (
            "import sys, eucaim_fl.cohorts.cohort;"
            "print([m for m in ('torch', 'monai', 'pydicom', 'nibabel', 'highdicom') if m in sys.modules])"
        )
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
        assert done.stdout.strip() == "[]"


class TestFingerprint:
    def test_it_is_that_of_the_contents_wherever_they_lie(self, tiny, tmp_path):
        tiny.nifti_cohort(tmp_path / "one", 3)
        folder = tiny.nifti_cohort(tmp_path / "two", 3)
        table = (folder / "clinical.csv").read_text()
        (folder / "clinical.csv").write_text(table.replace("\nP", "\nX", 3).replace("X0,P0", "Z9,P0"))
        prints = [open_cohort(tiny.site(tmp_path / name), tiny.plan()).fingerprint for name in ("one", "two")]
        assert prints[0] == prints[1]

    def test_it_changes_with_the_classes(self, tiny, tmp_path):
        tiny.nifti_cohort(tmp_path / "one", 3, grade=lambda _: "low")
        tiny.nifti_cohort(tmp_path / "two", 3, grade=lambda i: "high" if i else "low")
        prints = [open_cohort(tiny.site(tmp_path / name), tiny.plan(GRADE)).fingerprint for name in ("one", "two")]
        assert prints[0] != prints[1]


def truncate_image(tiny, folder):
    path = folder / "P1.nii.gz"
    path.write_bytes(path.read_bytes()[:-10])


def remove_label(tiny, folder):
    table = folder / "clinical.csv"
    table.write_text(table.read_text().replace("P1_label.nii.gz", ""))


def move_label(tiny, folder):
    tiny.nifti(folder / "P1_label.nii.gz", np.zeros((4, 5, 6), np.uint8), np.eye(4))


def lose_image(tiny, folder):
    (folder / "P1.nii.gz").unlink()


class TestQuarantine:
    @pytest.mark.parametrize(
        ("spoil", "code"),
        [(truncate_image, "EFL204"), (lose_image, "EFL204"), (remove_label, "EFL203"), (move_label, "EFL203")],
    )
    def test_a_bad_case_is_left_out_counted_and_named_locally_and_the_rest_goes_on(
        self, tiny, tmp_path, caplog, spoil, code
    ):
        spoil(tiny, tiny.nifti_cohort(tmp_path, 5))
        site, plan = tiny.site(tmp_path), tiny.plan()
        for _ in range(2):  # with a cold and with a warm cache
            with caplog.at_level(logging.WARNING, "eucaim_fl.site"):
                cohort = open_cohort(site, plan)
            assert sum(cohort.patients(split) for split in SPLITS) == 4
            (bad,) = cohort.quarantined
            assert (bad.patient, bad.code) == ("P1", code)
            assert "P1" not in bad.reason
            assert str(tmp_path) not in bad.reason
            assert "patient P1" in caplog.text
            caplog.clear()

    @pytest.mark.parametrize(
        ("spoil", "code"),
        [
            (lambda files: files[1].unlink(), "EFL202"),
            (lambda files: files[1].write_bytes(files[1].read_bytes()[:300]), "EFL204"),
            (lambda files: files[1].write_bytes(files[0].read_bytes()), "EFL202"),
        ],
    )
    def test_a_bad_dicom_series_is_left_out(self, tiny, tmp_path, spoil, code):
        rows = ["patient_id,study_uid,series_uid,grade"]
        for i in range(4):
            series = tmp_path / "cohort" / "imaging_data" / f"P{i}" / "1" / f"1.2.{i}"
            files = tiny.series(series, np.full((4, 5, 6), i, np.int16), uid=f"1.2.{i}")
            rows.append(f"P{i},1,1.2.{i},low")
        spoil(files)
        (tmp_path / "cohort" / "imaging_mandatory_view.csv").write_text("\n".join(rows))
        (tmp_path / "cohort" / "clinical_mandatory_view.csv").write_text("\n".join(rows))
        cohort = open_cohort(tiny.site(tmp_path, "eucaim_tier3"), tiny.plan(GRADE))
        assert [(bad.patient, bad.code) for bad in cohort.quarantined] == [("P3", code)]
        assert cohort.patients("train") == 1

    def test_a_patients_unlabelled_images_are_not_missed_beside_a_labelled_one(self, tiny, tmp_path):
        folder = tiny.nifti_cohort(tmp_path, 3)
        with (folder / "clinical.csv").open("a") as table:
            table.write("P0,P1.nii.gz,\n")
        cohort = open_cohort(tiny.site(tmp_path), tiny.plan())
        assert (sum(len(cohort.cases(split)) for split in SPLITS), cohort.quarantined) == (3, ())

    def test_a_missing_class_is_quarantined(self, tiny, tmp_path):
        tiny.nifti_cohort(tmp_path, 4, grade=lambda i: ["low", "high", "", "Smith"][i])
        cohort = open_cohort(tiny.site(tmp_path), tiny.plan(GRADE))
        assert [(bad.patient, bad.code) for bad in cohort.quarantined] == [("P2", "EFL203"), ("P3", "EFL203")]


class TestNothingToTrainOn:
    def test_no_usable_case_is_an_error_that_names_the_codes(self, tiny, tmp_path):
        folder = tiny.nifti_cohort(tmp_path, 2)
        for path in folder.glob("*.nii.gz"):
            path.write_bytes(b"corrupt")
        with pytest.raises(CohortError, match=r"No case of the cohort can be used \(EFL204\)") as caught:
            open_cohort(tiny.site(tmp_path), tiny.plan())
        assert str(tmp_path) not in str(caught.value)

    def test_fewer_training_patients_than_the_minimum_is_an_error(self, tiny, tmp_path):
        tiny.nifti_cohort(tmp_path, 10)  # six of them train
        assert open_cohort(tiny.site(tmp_path, minimum_patients=6), tiny.plan()).patients("train") == 6
        with pytest.raises(CohortError, match="Fewer patients would train than the site's minimum"):
            open_cohort(tiny.site(tmp_path, minimum_patients=7), tiny.plan())

    def test_a_missing_folder_and_an_empty_cohort_are_errors(self, tiny, tmp_path):
        with pytest.raises(CohortError, match="folder is missing"):
            open_cohort(tiny.site(tmp_path), tiny.plan())
        (tmp_path / "cohort").mkdir()
        (tmp_path / "cohort" / "clinical.csv").write_text("patient_id,image,label\n")
        with pytest.raises(CohortError, match="empty"):
            open_cohort(tiny.site(tmp_path), tiny.plan())

    def test_a_cache_that_can_not_be_written_is_an_error(self, tiny, tmp_path):
        tiny.nifti_cohort(tmp_path, 3)
        (tmp_path / "cache").touch()
        with pytest.raises(CohortError, match="cache can't be written"):
            open_cohort(tiny.site(tmp_path), tiny.plan())

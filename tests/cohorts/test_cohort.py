from __future__ import annotations

import dataclasses
import logging
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import nibabel as nib
import numpy as np
import pydicom
import pytest

from eucaim_fl.cohorts import cohort as module
from eucaim_fl.cohorts import preparation
from eucaim_fl.cohorts.cohort import Cohort, open_cohort
from eucaim_fl.cohorts.facts import SeriesFacts
from eucaim_fl.cohorts.manifest import Case, Manifest
from eucaim_fl.cohorts.splits import HeldOut
from eucaim_fl.errors import CohortError, ConsentError
from eucaim_fl.sitefile import DeidentificationConfig

pytestmark = pytest.mark.integration

SPLITS = ("train", "validation", "test")
GRADE = {"name": "classification", "target": "grade", "classes": ("low", "high")}


@pytest.fixture
def no_decoding(monkeypatch):
    """After this, decoding an image or reading the whole of a file again fails the test."""

    def refuse(*_: object) -> None:
        raise AssertionError("nothing should be read again")

    def start() -> None:
        monkeypatch.setattr(preparation, "prepare", refuse)
        monkeypatch.setattr(preparation, "map_isolated", refuse)
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
        assert not case.image().flags.writeable
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
        with pytest.raises(CohortError, match="Too few patients would train at this site"):
            open_cohort(tiny.site(tmp_path, "eucaim_tier3"), tiny.plan(modality="MR"))


class TestASecondRun:
    def test_neither_hashes_nor_decodes(self, tiny, tmp_path, no_decoding):
        tiny.nifti_cohort(tmp_path, 4)
        first = open_cohort(tiny.site(tmp_path), tiny.plan())
        no_decoding()
        second = open_cohort(tiny.site(tmp_path), tiny.plan())
        assert second.fingerprint == first.fingerprint
        assert [c.patient for c in second.cases("train")] == [c.patient for c in first.cases("train")]

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
            table.write("P0,other.nii.gz,\n")
        tiny.nifti(folder / "other.nii.gz", np.zeros((4, 5, 6), np.int16))
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
        with pytest.raises(CohortError, match="Too few patients would train at this site") as caught:
            open_cohort(tiny.site(tmp_path), tiny.plan())
        assert caught.value.local_detail == "0 patients would train; codes of what is set aside: EFL204"
        assert not re.search(rf"{re.escape(str(tmp_path))}|EFL204|[0-9]", str(caught.value))

    def test_what_leaves_is_the_same_text_for_nobody_and_for_one_too_few(self, tiny, tmp_path):
        tiny.nifti_cohort(tmp_path, 10)  # six of them train
        told = set()
        nobody = site_with(tiny, tmp_path, **consent(tmp_path, P99="given"))
        for site in (tiny.site(tmp_path, minimum_patients=7), tiny.site(tmp_path, minimum_patients=100), nobody):
            with pytest.raises(CohortError, match="Too few patients") as caught:
                open_cohort(site, tiny.plan())
            told.add(str(caught.value))
        assert len(told) == 1

    def test_fewer_training_patients_than_the_minimum_is_an_error(self, tiny, tmp_path):
        tiny.nifti_cohort(tmp_path, 10)  # six of them train
        assert open_cohort(tiny.site(tmp_path, minimum_patients=6), tiny.plan()).patients("train") == 6
        with pytest.raises(CohortError, match="Too few patients would train at this site"):
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


def consent(folder, **statuses):
    """A consent table beside the cohort, and the change of a site file that names it."""
    rows = [f"{patient},{status},2024-01-01,research" for patient, status in statuses.items()]
    (folder / "consent.csv").write_text("\n".join(["patient_id,status,date,purposes", *rows]) + "\n")
    return {"consent": {"table": str(folder / "consent.csv")}}


def members(cohort: Cohort) -> dict[str, set[str]]:
    return {split: {case.patient for case in cohort.cases(split)} for split in SPLITS}


def site_with(tiny, folder, **changes):
    values = tiny.site(folder).model_dump()
    return type(tiny.site(folder)).model_validate({**values, **changes})


class TestConsent:
    def everybody(self, tmp_path, *withdrawn: str):
        return consent(tmp_path, **{f"P{i}": "withdrawn" if f"P{i}" in withdrawn else "given" for i in range(10)})

    def test_a_withdrawal_moves_nobody_else_and_changes_no_fingerprint(self, tiny, tmp_path, monkeypatch):
        tiny.nifti_cohort(tmp_path, 10)
        manifest = module.read_manifest(tiny.site(tmp_path))
        monkeypatch.setattr(module, "read_manifest", lambda _: manifest)  # looking for files anew would take seconds
        whole = open_cohort(site_with(tiny, tmp_path, **self.everybody(tmp_path)), tiny.plan())
        for gone in sorted(set().union(*members(whole).values())):
            shrunk = open_cohort(site_with(tiny, tmp_path, **self.everybody(tmp_path, gone)), tiny.plan())
            assert members(shrunk) == {split: patients - {gone} for split, patients in members(whole).items()}
            assert shrunk.fingerprint == whole.fingerprint
            assert [(bad.patient, bad.code) for bad in shrunk.quarantined] == [(gone, "EFL206")]

    def test_who_never_consented_is_never_prepared_and_the_rest_is_as_if_he_had(self, tiny, tmp_path, monkeypatch):
        tiny.nifti_cohort(tmp_path / "one", 10)
        tiny.nifti_cohort(tmp_path / "two", 10)
        whole = open_cohort(tiny.site(tmp_path / "one"), tiny.plan())
        prepared = []
        real = preparation.prepare
        monkeypatch.setattr(
            preparation, "prepare", lambda case, plan: prepared.append(case.patient) or real(case, plan)
        )
        changes = consent(tmp_path, **{f"P{i}": "given" for i in range(10) if i != 4})
        shrunk = open_cohort(site_with(tiny, tmp_path / "two", **changes), tiny.plan())
        assert "P4" not in prepared
        assert len(prepared) == 9
        assert members(shrunk) == {split: patients - {"P4"} for split, patients in members(whole).items()}
        assert shrunk.fingerprint == whole.fingerprint

    def test_whose_image_can_not_be_used_counts_in_no_split_after_a_withdrawal_either(self, tiny, tmp_path):
        move_label(tiny, tiny.nifti_cohort(tmp_path, 10))
        whole = open_cohort(site_with(tiny, tmp_path, **self.everybody(tmp_path)), tiny.plan())
        shrunk = open_cohort(site_with(tiny, tmp_path, **self.everybody(tmp_path, "P1")), tiny.plan())
        assert members(shrunk) == members(whole)
        assert [(bad.patient, bad.code) for bad in shrunk.quarantined] == [("P1", "EFL206")]

    def test_a_table_that_can_not_be_trusted_opens_nothing(self, tiny, tmp_path):
        tiny.nifti_cohort(tmp_path, 3)
        with pytest.raises(ConsentError, match="until then no patient is used"):
            open_cohort(site_with(tiny, tmp_path, consent={"table": "none.csv"}), tiny.plan())

    def test_nobody_left_is_an_error(self, tiny, tmp_path):
        tiny.nifti_cohort(tmp_path, 3)
        with pytest.raises(CohortError, match="Too few patients would train at this site") as caught:
            open_cohort(site_with(tiny, tmp_path, **consent(tmp_path, P9="given")), tiny.plan())
        assert caught.value.local_detail == "0 patients would train; codes of what is set aside: EFL206"


class TestWithout:
    def test_the_others_stay_where_they_are(self, tiny, tmp_path):
        tiny.nifti_cohort(tmp_path, 10)
        whole = open_cohort(tiny.site(tmp_path), tiny.plan())
        gone = {whole.cases(split)[0].patient for split in SPLITS}
        shrunk = whole.without(gone)
        assert members(shrunk) == {split: patients - gone for split, patients in members(whole).items()}
        assert shrunk.fingerprint == whole.fingerprint
        assert members(whole.without(())) == members(whole)


class TestIdentifiers:
    @pytest.fixture
    def with_identifiers(self, monkeypatch):
        """Makes the index say of some patients' images or labels that they break a rule."""

        def start(images=(), labels=()) -> None:
            real = module.read_manifest

            def read(site):
                manifest = real(site)
                cases = [
                    dataclasses.replace(
                        case,
                        facts=dataclasses.replace(
                            case.facts or SeriesFacts(folder="", files=(), kind="nifti"),
                            identifiers={"deid.file_person": 2} if case.patient in images else {},
                        ),
                        label_identifiers={"deid.file_date": 1} if case.patient in labels else {},
                    )
                    for case in manifest.cases
                ]
                return dataclasses.replace(manifest, cases=tuple(cases))

            monkeypatch.setattr(module, "read_manifest", read)

        return start

    def test_who_can_still_be_named_by_image_or_label_is_set_aside(self, tiny, tmp_path, with_identifiers):
        tiny.nifti_cohort(tmp_path, 6)
        with_identifiers(images={"P1"}, labels={"P3"})
        cohort = open_cohort(tiny.site(tmp_path), tiny.plan())
        assert [(bad.patient, bad.code) for bad in cohort.quarantined] == [("P1", "EFL205"), ("P3", "EFL205")]
        assert cohort.quarantined[0].reason == "Files of this patient can still name a person (rule deid.file_person)."
        assert sum(cohort.patients(split) for split in SPLITS) == 4

    def test_a_name_in_the_header_of_a_label_is_found(self, tiny, tmp_path):
        rows = ["patient_id,study_uid,series_uid"]
        for i in range(4):
            study = tmp_path / "cohort" / "imaging_data" / f"P{i}" / f"1.2.{i}"
            stored = np.random.default_rng(i).integers(0, 99, (4, 5, 6)).astype(np.int16)
            images = tiny.series(study / f"1.2.{i}.1", stored, uid=f"1.2.{i}.1", StudyInstanceUID=f"1.2.{i}")
            label = tiny.seg(study / "1.2.77" / "seg.dcm", images, {"Lesion": np.ones((4, 5, 6), bool)})
            header = pydicom.dcmread(label)
            header.PatientName = "Rossi^Maria" if i == 2 else ""
            header.save_as(label)
            rows.append(f"P{i},1.2.{i},1.2.{i}.1")
        for table in ("imaging_mandatory_view.csv", "clinical_mandatory_view.csv"):
            (tmp_path / "cohort" / table).write_text("\n".join(rows))
        cohort = open_cohort(tiny.site(tmp_path, "eucaim_tier3"), tiny.plan())
        assert [(bad.patient, bad.code) for bad in cohort.quarantined] == [("P2", "EFL205")]

    def test_all_images_of_the_patient_are(self, tiny, tmp_path, with_identifiers):
        folder = tiny.nifti_cohort(tmp_path, 6)
        table = (folder / "clinical.csv").read_text()
        (folder / "clinical.csv").write_text(table.replace("\nP1,", "\nP0,"))
        with_identifiers(labels={"P0"})
        cohort = open_cohort(tiny.site(tmp_path), tiny.plan())
        assert sum(len(cohort.cases(split)) for split in SPLITS) == 4

    def test_a_policy_may_only_report(self, tiny, tmp_path, with_identifiers):
        tiny.nifti_cohort(tmp_path, 6)
        with_identifiers(images={"P1"})
        cohort = open_cohort(site_with(tiny, tmp_path, deidentification={"block": "nothing"}), tiny.plan())
        assert cohort.quarantined == ()


class TestTheSameImages:
    def test_under_two_patients_both_are_set_aside_whatever_the_headers_say(self, tiny, tmp_path):
        folder = tiny.nifti_cohort(tmp_path, 6)
        ramp = np.arange(120, dtype=np.int16).reshape(4, 5, 6)
        tiny.nifti(folder / "P1.nii.gz", ramp)
        tiny.nifti(folder / "P4.nii.gz", ramp.astype(np.int32))  # other bytes, the same values
        for _ in range(2):
            cohort = open_cohort(tiny.site(tmp_path), tiny.plan())
            assert [(bad.patient, bad.code) for bad in cohort.quarantined] == [("P1", "EFL202"), ("P4", "EFL202")]
            assert cohort.quarantined[0].reason == "The same images lie under two patients."
            assert not {"P1", "P4"} & set().union(*members(cohort).values())

    def test_twice_under_one_patient_is_no_matter(self, tiny, tmp_path):
        folder = tiny.nifti_cohort(tmp_path, 6)
        ramp = np.arange(120, dtype=np.int16).reshape(4, 5, 6)
        for name in ("P1", "P4"):
            tiny.nifti(folder / f"{name}.nii.gz", ramp)
        table = (folder / "clinical.csv").read_text()
        (folder / "clinical.csv").write_text(table.replace("\nP4,", "\nP1,"))
        assert open_cohort(tiny.site(tmp_path), tiny.plan()).quarantined == ()

    def test_who_withdrew_still_counts(self, tiny, tmp_path):
        folder = tiny.nifti_cohort(tmp_path, 6)
        ramp = np.arange(120, dtype=np.int16).reshape(4, 5, 6)
        for name in ("P1", "P4"):
            tiny.nifti(folder / f"{name}.nii.gz", ramp)
        open_cohort(tiny.site(tmp_path), tiny.plan())
        changes = consent(tmp_path, **{f"P{i}": "withdrawn" if i == 1 else "given" for i in range(6)})
        cohort = open_cohort(site_with(tiny, tmp_path, **changes), tiny.plan())
        assert [(bad.patient, bad.code) for bad in cohort.quarantined] == [("P4", "EFL202"), ("P1", "EFL206")]


class TestChannels:
    def test_a_patient_without_a_channel_is_left_out_and_counted(self, tiny, tmp_path, monkeypatch):
        cases = []
        for number in range(6):
            for word in ("t2", "adc")[: 1 if number == 5 else 2]:
                values = np.random.default_rng([number, len(word)]).normal(size=(4, 5, 6)).astype(np.float32)
                path = tiny.nifti(tmp_path / "cohort" / f"P{number}-{word}.nii", values)
                facts = SeriesFacts(folder="", files=(path.name,), kind="nifti", description=word)
                clinical = {"grade": "low"}
                cases.append(Case(f"P{number}", "s", word, (path,), "nifti", clinical=clinical, facts=facts))
        monkeypatch.setattr(module, "read_manifest", lambda site: Manifest(site.name, tuple(cases)))
        plan = tiny.plan(GRADE, channels=[{"name": "t2", "words": ["t2"]}, {"name": "adc", "words": ["adc"]}])
        cohort = open_cohort(tiny.site(tmp_path), plan)
        assert [(bad.patient, bad.reason) for bad in cohort.quarantined] == [
            ("P5", "No series of a patient fits the rule 'adc' (a wanted word missing).")
        ]
        assert {case.image().shape for split in SPLITS for case in cohort.cases(split)} == {(2, 4, 5, 6)}
        assert sum(cohort.patients(split) for split in SPLITS) == 5


class TestHeldOut:
    def test_only_who_is_held_out_is_in_the_declared_split(self, tiny, tmp_path):
        tiny.nifti_cohort(tmp_path, 10)
        held_out = HeldOut(0.4, ("test",), b"\x01" * 32)
        drawn = {f"P{i}" for i in range(10) if held_out.holds(f"P{i}")}
        assert 0 < len(drawn) < 10
        for seed in (0, 1):
            cohort = open_cohort(tiny.site(tmp_path), tiny.plan(split={"seed": seed}), held_out=held_out)
            assert {case.patient for case in cohort.cases("test")} == drawn


class TestProgress:
    def test_it_is_told_how_many_cases_are_ready(self, tiny, tmp_path):
        tiny.nifti_cohort(tmp_path, 3)
        told: list[tuple[int, int]] = []
        for _ in range(2):
            open_cohort(tiny.site(tmp_path), tiny.plan(), tell=lambda *numbers: told.append(numbers))
        assert told == [(0, 3), (1, 3), (2, 3), (3, 3), (3, 3)]


class TestTextInPixels:
    def written(self, tmp_path: Path) -> None:
        """Four patients' images, one of which has text burned in."""
        from PIL import Image, ImageDraw

        (tmp_path / "cohort").mkdir()
        rows = ["patient_id,image,label"]
        for number in range(4):
            picture = Image.new("L", (160, 160), 40 + number)
            if number == 2:
                ImageDraw.Draw(picture).text((8, 8), "ROSSI MARIA 1953", fill=250)
            plane = np.asarray(picture, dtype=np.int16).T
            label = np.zeros((160, 160, 3), np.uint8)
            label[80:90, 80:90, 1] = 1
            nib.save(nib.Nifti1Image(np.stack([plane] * 3, axis=-1), np.eye(4)), tmp_path / "cohort" / f"P{number}.nii")
            nib.save(nib.Nifti1Image(label, np.eye(4)), tmp_path / "cohort" / f"P{number}_label.nii")
            rows.append(f"P{number},P{number}.nii,P{number}_label.nii")
        (tmp_path / "cohort" / "clinical.csv").write_text("\n".join(rows) + "\n")

    def test_a_patient_whose_image_shows_text_is_not_used(self, tiny: SimpleNamespace, tmp_path: Path) -> None:
        self.written(tmp_path)
        cohort = open_cohort(tiny.site(tmp_path), tiny.plan())
        assert [(q.patient, q.code) for q in cohort.quarantined] == [("P2", "EFL205")]
        again = open_cohort(tiny.site(tmp_path), tiny.plan())
        assert again.fingerprint == cohort.fingerprint

    def test_unless_the_site_s_policy_does_not_mind(self, tiny: SimpleNamespace, tmp_path: Path) -> None:
        self.written(tmp_path)
        lenient = tiny.site(tmp_path).model_copy(update={"deidentification": DeidentificationConfig(block="nothing")})
        assert open_cohort(lenient, tiny.plan()).quarantined == ()

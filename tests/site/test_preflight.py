"""The check of a cohort: who can be used, who is set aside and why, and that nothing is sent."""

from __future__ import annotations

import json
import shutil
import socket

import nibabel
import numpy as np
import pytest

from eucaim_fl.cohorts import pixel_pass
from eucaim_fl.cohorts.cohort import open_cohort
from eucaim_fl.errors import CohortError, ConsentError, WorkerError
from eucaim_fl.site.check_report import CheckReport, to_json
from eucaim_fl.site.preflight import check, examine
from eucaim_fl.sitefile import load_site_file

pytestmark = pytest.mark.integration


def rules(report: CheckReport) -> dict[str, int]:
    return {finding.rule: finding.count for finding in report.findings}


def aside(report: CheckReport) -> dict[str, tuple[str, ...]]:
    return {group.code: group.patients for group in report.set_aside}


@pytest.mark.usefixtures("here")
class TestCheck:
    def test_a_good_cohort_can_train(self, place):
        report = check(place.site)
        assert report.can_train
        assert (len(report.usable), report.set_aside, report.obstacles) == (12, (), ())
        assert report.counts == {"images": 12, "usable_images": 12, "labelled_images": 12, "files": 24}
        assert len(report.pictures) == 12
        assert {c.name: c.missing for c in report.columns} == {"malignant": 0}
        assert not [f for f in report.findings if f.severity == "blocks"]

    def test_a_broken_file_sets_its_patient_aside_with_code_and_reason(self, place):
        place.image(3).write_bytes(b"nothing")
        report = check(place.site)
        assert aside(report) == {"EFL204": ("PATIENT-003",)}
        assert len(report.usable) == 11
        assert report.set_aside[0].do

    def test_a_patient_with_another_good_image_is_not_set_aside(self, place):
        place.rows(lambda rows: rows.append({**rows[0], "image": rows[1]["image"], "patient_id": "PATIENT-000"}))
        place.rows(lambda rows: rows.pop(1))
        place.image(1).write_bytes(b"nothing")
        report = check(place.site)
        assert "PATIENT-000" in report.usable
        assert report.set_aside == ()
        assert [(code, images) for code, _, images in report.dropped] == [("EFL204", 1)]

    def test_the_same_image_under_two_patients_blocks_both_as_a_run_does(self, place, plan_for):
        shutil.copy(place.image(0), place.image(1))
        report = check(place.site)
        assert rules(report)["quality.same_pixels"] == 2
        assert aside(report) == {"EFL200": ("PATIENT-000", "PATIENT-001")}
        cohort = open_cohort(place.site, plan_for())
        used = {case.patient for cases in cohort.splits.values() for case in cases}
        assert used == set(report.usable)

    def test_a_copy_of_a_patient_without_consent_may_not_be_used_either(self, place):
        shutil.copy(place.image(0), place.image(1))
        place.consent(*(f"PATIENT-{n:03d},given,2024-01-01," for n in range(1, 12)))
        report = check(place.site)
        assert aside(report) == {"EFL206": ("PATIENT-000",), "EFL200": ("PATIENT-001",)}

    def test_consent_is_asked(self, place):
        place.consent(*(f"PATIENT-{n:03d},given,2024-01-01," for n in range(11)), "PATIENT-002,withdrawn,2025-01-01,")
        report = check(place.site)
        assert report.consent
        assert report.withdrawn == 1
        assert sorted(p for group in report.set_aside for p in group.patients) == ["PATIENT-002", "PATIENT-011"]
        assert len({group.reason for group in report.set_aside}) == 2

    def test_too_few_patients_are_an_obstacle(self, hospital):
        report = check(load_site_file(hospital("a", minimum_patients=13)))
        assert not report.can_train
        assert "release.minimum_patients" in report.obstacles[0]
        assert rules(report)["cohort.too_few_patients"] == 12

    def test_just_enough_patients_warn_of_the_split(self, hospital):
        report = check(load_site_file(hospital("a", minimum_patients=10)))
        assert report.can_train
        assert rules(report)["cohort.few_patients"] == 12

    def test_a_cohort_of_which_nothing_is_usable_is_reported_not_raised(self, place):
        for number in range(12):
            place.image(number).write_bytes(b"nothing")
        report = check(place.site)
        assert not report.can_train
        assert rules(report)["cohort.nobody"] == 1

    def test_identifiers_in_files_set_patients_aside(self, place):
        image = nibabel.load(place.image(4))
        image.header["descrip"] = b"Rossi Maria"
        nibabel.save(image, place.image(4))
        report = check(place.site)
        assert aside(report) == {"EFL205": ("PATIENT-004",)}
        assert any(f.rule.startswith("deid.") and f.severity == "blocks" for f in report.findings)
        assert report.can_train

    def test_files_whose_names_are_hidden_are_counted_under_their_rule(self, place):
        place.image(4).rename(place.folder / "images" / "Rossi_Maria.nii.gz")
        place.rows(lambda rows: rows[4].update(image="images/Rossi_Maria.nii.gz"))
        report = check(place.site)
        assert [group.patients for group in report.set_aside] == [("PATIENT-004",)]
        (finding,) = [f for f in report.findings if f.rule == "deid.file_person"]
        assert (finding.severity, finding.count, finding.subjects) == ("blocks", 1, ())
        assert report.can_train

    def test_text_seen_in_pixels_sets_patients_aside_if_the_policy_blocks(self, place, monkeypatch):
        from eucaim_fl.cohorts.deidentification import burned_in

        bright = nibabel.load(place.image(5)).get_fdata()[:, :, 0].T.astype(np.float32)
        monkeypatch.setattr(burned_in, "text_in_pixels", lambda plane: np.array_equal(plane, bright))
        assert aside(check(place.site)) == {"EFL205": ("PATIENT-005",)}
        place.settings(deidentification={"block": "nothing"})
        report = check(place.site)
        assert report.set_aside == ()
        assert rules(report)["deid.burned_in_seen"] == 1

    def test_a_name_in_the_table_warns(self, place):
        place.rows(lambda rows: [row.update(surname="Rossi") for row in rows])
        report = check(place.site)
        (finding,) = [f for f in report.findings if f.rule == "deid.table_column"]
        assert (finding.severity, finding.count, finding.subjects) == ("warns", 1, ())
        assert report.can_train

    def test_a_patient_in_two_splits_is_worth_a_look(self, place):
        place.rows(lambda rows: [row.update(split="train") for row in rows])
        place.rows(lambda rows: rows.append({**rows[0], "split": "test", "image": rows[1]["image"]}))
        place.rows(lambda rows: rows.pop(1))
        report = check(place.site)
        (finding,) = [f for f in report.findings if f.rule == "quality.two_splits"]
        assert (finding.severity, finding.subjects) == ("warns", ("PATIENT-000",))

    def test_without_pixels_headers_and_tables_are_all(self, place):
        report = check(place.site, pixels=False)
        assert report.can_train
        assert not report.pixels_read
        assert report.pictures == ()
        assert not (place.site.cache_folder() / "check").exists()

    def test_a_second_check_reads_no_pixels_and_says_the_same(self, place):
        told: list[tuple[str, int, int | None]] = []
        first = check(place.site)
        assert check(place.site, tell=lambda *said: told.append(said)) == first
        assert ("reading pixels", 0, 0) in told
        place.image(2).write_bytes(place.image(3).read_bytes())
        told.clear()
        check(place.site, tell=lambda *said: told.append(said))
        assert ("reading pixels", 1, 1) in told

    def test_the_json_names_nobody(self, place):
        shutil.copy(place.image(0), place.image(1))
        place.image(2).write_bytes(b"nothing")
        text = json.dumps(to_json(check(place.site)))
        assert "PATIENT-" not in text
        assert str(place.folder) not in text
        assert '"patients": 2' in text

    def test_what_is_kept_names_nobody(self, place):
        check(place.site)
        kept = (place.site.cache_folder() / "check" / "pixels.sqlite").read_bytes()
        assert b"PATIENT" not in kept
        assert str(place.folder).encode() not in kept

    def test_a_missing_folder_is_an_error(self, place):
        shutil.rmtree(place.folder)
        with pytest.raises(CohortError, match="folder is missing"):
            check(place.site)

    def test_a_consent_table_that_cannot_be_trusted_is_an_error(self, place):
        place.consent("PATIENT-000,perhaps,2024-01-01,")
        with pytest.raises(ConsentError, match="consent table"):
            check(place.site)

    def test_no_process_for_reading_is_an_error(self, place, monkeypatch):
        def fails(*_: object, **__: object) -> None:
            raise WorkerError("A process for reading files could not be started.")

        monkeypatch.setattr(pixel_pass, "map_isolated", fails)
        with pytest.raises(WorkerError, match="could not be started"):
            check(place.site)


@pytest.mark.usefixtures("here")
class TestExamine:
    def test_local_details_are_kept_for_the_terminal(self, place):
        place.image(3).write_bytes(b"nothing")
        (refused,) = examine(place.site, pixels=False).refused
        assert (refused.patient, refused.code) == ("PATIENT-003", "EFL204")

    def test_its_errors_are_those_of_check(self, place):
        place.consent("PATIENT-000,perhaps,2024-01-01,")
        with pytest.raises(ConsentError, match="consent table"):
            examine(place.site)
        shutil.rmtree(place.folder)
        with pytest.raises(CohortError, match="folder is missing"):
            examine(place.site)

    def test_no_process_for_reading_is_an_error(self, place, monkeypatch):
        def fails(*_: object, **__: object) -> None:
            raise WorkerError("A process for reading files could not be started.")

        monkeypatch.setattr(pixel_pass, "map_isolated", fails)
        with pytest.raises(WorkerError, match="could not be started"):
            examine(place.site)


@pytest.mark.federated
class TestWithWorkers:
    def test_nothing_is_sent(self, place, monkeypatch):
        def refuse(*_: object) -> None:
            raise AssertionError("a connection was opened")

        for name in ("connect", "connect_ex", "sendto", "bind"):
            monkeypatch.setattr(socket.socket, name, refuse)
        monkeypatch.setattr(socket, "create_connection", refuse)
        assert check(place.site).can_train

"""Whose files break a rule: exactly these, found anew, kept nowhere."""

from __future__ import annotations

import shutil

import nibabel
import pytest

from eucaim_fl.errors import ConfigError
from eucaim_fl.site.check_report import sections
from eucaim_fl.site.locate import known_rules, locate
from eucaim_fl.site.preflight import check

pytestmark = [pytest.mark.integration, pytest.mark.usefixtures("here")]


def describe(place, number: int, text: bytes) -> None:
    image = nibabel.load(place.image(number))
    image.header["descrip"] = text
    nibabel.save(image, place.image(number))


class TestLocate:
    def test_files_with_an_identifier_are_named_and_no_others(self, place):
        describe(place, 4, b"Rossi Maria")
        describe(place, 7, b"Bianchi Carlo")
        (rule,) = [f.rule for f in check(place.site).findings if f.rule.startswith("deid.")]
        assert sorted(locate(place.site, rule)) == [str(place.image(4)), str(place.image(7))]

    def test_a_file_whose_name_names_somebody_is_found_by_its_name(self, place):
        odd = place.folder / "images" / "Rossi_Maria.nii.gz"
        shutil.copy(place.image(0), odd)
        assert list(locate(place.site, "deid.file_person")) == [str(odd)]

    def test_tables_are_named_with_their_column(self, place):
        place.rows(lambda rows: [row.update(surname="Rossi") for row in rows])
        assert list(locate(place.site, "deid.table_column")) == [f"{place.folder / 'clinical.csv'}  column surname: 1"]

    def test_patients_of_a_rule_of_quality_come_with_their_images(self, place):
        shutil.copy(place.image(0), place.image(1))
        assert list(locate(place.site, "quality.same_pixels")) == [
            f"PATIENT-000  {place.image(0)}",
            f"PATIENT-001  {place.image(1)}",
        ]

    def test_a_code_names_who_is_set_aside_and_where(self, place):
        place.image(3).write_bytes(b"nothing")
        (line,) = locate(place.site, "EFL204", pixels=False)
        assert line.startswith("PATIENT-003  A NIfTI file is empty, truncated or corrupt.")

    def test_columns_of_a_rule_about_columns_are_named(self, place):
        place.rows(lambda rows: [row.update(histology="ICDO3:0000/1") for row in rows])
        assert list(locate(place.site, "codes.unplaced")) == ["histology"]
        assert "histology" in list(locate(place.site, "quality.one_value"))

    def test_what_has_no_name_is_counted(self, place):
        place.rows(lambda rows: rows[0].update(patient_id=""))
        assert list(locate(place.site, "layout.rows_without_patient")) == ["1 cell; which ones is not known"]

    def test_what_nothing_breaks_has_no_lines(self, place):
        assert list(locate(place.site, "deid.private")) == []
        assert list(locate(place.site, "quality.constant_image")) == []

    def test_names_cannot_steer_the_terminal(self, place):
        shutil.copy(place.image(0), place.folder / "images" / "Rossi_Maria\x1b[2J.nii.gz")
        (line,) = locate(place.site, "deid.file_person")
        assert "\x1b" not in line
        assert "Rossi_Maria?[2J" in line

    def test_an_unknown_rule_names_the_nearest(self, place):
        with pytest.raises(ConfigError, match=r"deid\.private"):
            locate(place.site, "deid.privat")


class TestKnownRules:
    def test_all_that_a_check_can_say_can_be_located(self, place):
        describe(place, 4, b"Rossi Maria")
        shutil.copy(place.image(0), place.image(1))
        place.rows(lambda rows: [row.update(surname="Rossi") for row in rows])
        said = [f.rule for s in sections(check(place.site)) for f in s.findings if not f.rule.startswith("cohort.")]
        assert said
        assert set(said) <= known_rules()

    def test_unprintable_letters_are_shown_as_question_marks(self, place):
        place.rows(lambda rows: rows[0].update(image="images/\x1b[31m.nii.gz"))
        (line,) = locate(place.site, "EFL204", pixels=False)
        assert "images/?[31m.nii.gz" in line

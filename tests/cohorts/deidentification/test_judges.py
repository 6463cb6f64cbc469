from __future__ import annotations

import pytest

from eucaim_fl.cohorts.deidentification import judges


class TestPatientId:
    def test_a_eucaim_pseudonym_is_clean(self) -> None:
        assert judges.patient_id(b"EUCAIM-00a1b2c3d4e5f607 ") == ""
        assert judges.patient_id(b"") == ""

    @pytest.mark.parametrize(
        "text",
        [
            b"PAT123",
            b"ProstateX-0000",
            b"LIDC-IDRI-0001",
            b"sub-01",
            b"21b5",
            b"P1",
            b"0001",
            b"d41d8cd98f00b204",
            b"ANONYMIZED",
            b"2.25.123456789",
        ],
    )
    def test_a_code_of_a_study_is_another_pseudonym(self, text: bytes) -> None:
        assert judges.patient_id(text) == "deid.patient_pseudonym"

    @pytest.mark.parametrize(
        "text",
        [
            b"4711081",
            b"123456",
            b"12345678Z",
            b"RSSMRA80A01H501U",
            b"ROSSI",
            b"Rossi^Maria",
            b"19530312",
            b"12.03.1953",
            b"AB123456",
        ],
    )
    def test_a_number_or_name_is_none(self, text: bytes) -> None:
        assert judges.patient_id(text) == "deid.patient_number"


class TestPerson:
    @pytest.mark.parametrize(
        "text", [b"", b"^^^^", b"ANONYMIZED", b"Anonymous^Patient", b"PAT123", b"EUCAIM-0011223344"]
    )
    def test_placeholders_and_codes_name_nobody(self, text: bytes) -> None:
        assert judges.person(text) == ""

    @pytest.mark.parametrize("text", ["Rossi^Maria", "MUELLER", "Müller^Jürgen", "山田^太郎", "Li^Na"])
    def test_everything_else_is_a_name_in_any_script(self, text: str) -> None:
        assert judges.person(text.encode()) == "deid.person_name"

    def test_names_in_latin_1_are_read(self) -> None:
        assert judges.person("Müller^Jürgen".encode("latin-1")) == "deid.person_name"


class TestDate:
    @pytest.mark.parametrize(
        "value", [b"", b"20180101", b"2018", b"00010101", b"19000101", b"20180101120000.0", b"2018.01.01"]
    )
    def test_years_and_placeholders_are_clean(self, value: bytes) -> None:
        assert judges.date(value) == ""

    @pytest.mark.parametrize("value", [b"20180102", b"20180704101500", b"2018.07.04", b"20180101\\20180305", b"201807"])
    def test_days_and_months_are_not(self, value: bytes) -> None:
        assert judges.date(value) == "deid.date"

    def test_a_day_of_birth_has_a_rule_of_its_own(self) -> None:
        assert judges.birth_date(b"19530312") == "deid.birth_date"

    def test_a_time_that_is_not_midnight_counts(self) -> None:
        assert judges.time(b"000000.00 ") == ""
        assert judges.time(b"101530") == "deid.time"


class TestTexts:
    def test_descriptions_of_imaging_words_are_clean(self) -> None:
        assert judges.description(b"ep2d_diff_tra b800") == ""

    def test_other_words_are_worth_a_look(self) -> None:
        assert judges.description(b"t2 tse Rossi") == "deid.description_words"

    @pytest.mark.parametrize("text", [b"t2 12.03.1953", b"tel +49 170 1234567", b"a@b.example", b"mr 4711081553"])
    def test_the_shape_of_an_identifier_is_one(self, text: bytes) -> None:
        assert judges.description(text) == "deid.text_pattern"

    def test_removed_texts_of_imaging_words_are_advice_only(self) -> None:
        assert judges.free_text(b"CT Thorax") == "deid.text_kept"
        assert judges.free_text(b"ANONYMIZED") == ""
        assert judges.free_text(b"seen by Rossi") == "deid.free_text"
        assert judges.free_text(b"CT 12.03.1953") == "deid.free_text"


class TestOthers:
    def test_hashes_are_no_institutions_and_no_devices(self) -> None:
        assert judges.institution(b"9f86d081884c7d65") == ""
        assert judges.institution(b"Klinik am See") == "deid.institution"
        assert judges.device(b"0 ") == ""
        assert judges.device(b"MRC40512") == "deid.device"

    def test_addresses_and_details_count_unless_removed(self) -> None:
        assert judges.address(b"Via Roma 1") == "deid.address_phone"
        assert judges.detail(b"REMOVED") == ""
        assert judges.detail(b"farmer") == "deid.patient_detail"

    def test_ages_above_89_are_rare(self) -> None:
        assert judges.age(b"089Y") == judges.age(b"090Y") == ""
        assert judges.age(b"091Y") == "deid.age_over_89"
        assert judges.age(b"095M") == ""

    def test_uids_under_2_25_and_those_of_the_standard_are_clean(self) -> None:
        assert judges.uid(b"2.25.123\0") == ""
        assert judges.uid(b"1.2.840.10008.1.4.1.1\0") == ""
        assert judges.uid(b"2.25.1\\1.3.12.2.1107.5.2") == "deid.uid"

    def test_codes_of_visits_are_short_or_random(self) -> None:
        assert judges.code(b"1") == ""
        assert judges.code(b"20180704001") == "deid.patient_number"

    def test_staff_has_a_rule_of_its_own(self) -> None:
        assert judges.staff(b"House^Gregory") == "deid.staff"

    def test_long_values_are_judged_by_their_beginning(self) -> None:
        assert judges.free_text(b"Rossi " * 100_000) == "deid.free_text"

    def test_a_name_behind_many_imaging_words_is_found(self) -> None:
        assert judges.free_text(b"t2 axial " * 500 + b"Rossi") == "deid.free_text"

    def test_a_study_code_has_a_digit_but_no_long_number(self) -> None:
        assert judges.is_study_code("BreastDx-01-0001")
        assert not judges.is_study_code("Rossi")

    def test_plain_text_is_made_of_imaging_words(self) -> None:
        assert judges.plain_text("T2 TSE 3mm")
        assert not judges.plain_text("Rossi")

    def test_making_days_are_told_apart(self) -> None:
        assert judges.making_date(b"20180704") == "deid.date_made"

    def test_text_that_is_no_utf8_is_latin_1(self) -> None:
        assert judges.text_of(b"M\xfcller \0") == "Müller"

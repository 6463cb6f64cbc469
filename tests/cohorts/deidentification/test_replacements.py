from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st
from pydicom.dataset import Dataset

from eucaim_fl.cohorts.deidentification.patterns import is_pseudonym
from eucaim_fl.cohorts.deidentification.replacements import hashed_uid, patient_pseudonym, replacements, year_only

SECRET = b"s" * 32


class TestPatientPseudonym:
    @given(st.text(min_size=1).filter(lambda text: text.strip(" \0") != ""))
    def test_it_has_eucaims_form_and_is_its_own_pseudonym(self, patient: str) -> None:
        made = patient_pseudonym(SECRET, patient)
        assert is_pseudonym(made)
        assert patient_pseudonym(SECRET, made) == made

    def test_another_secret_gives_another_one(self) -> None:
        assert patient_pseudonym(SECRET, "4711") != patient_pseudonym(b"t" * 32, "4711")

    def test_padding_does_not_matter_and_nothing_stays_nothing(self) -> None:
        assert patient_pseudonym(SECRET, "4711 ") == patient_pseudonym(SECRET, "4711")
        assert patient_pseudonym(SECRET, "") == ""


class TestHashedUid:
    def test_equal_uids_stay_equal_and_valid(self) -> None:
        from pydicom.uid import UID

        made = hashed_uid(SECRET, "1.3.12.2.1107.5.2")
        assert made == hashed_uid(SECRET, "1.3.12.2.1107.5.2\0")
        assert made != hashed_uid(SECRET, "1.3.12.2.1107.5.3")
        assert made.startswith("2.25.")
        assert UID(made).is_valid

    def test_uids_of_the_standard_stay(self) -> None:
        assert hashed_uid(SECRET, "1.2.840.10008.1.2") == "1.2.840.10008.1.2"


class TestYearOnly:
    def test_a_date_becomes_1_january(self) -> None:
        assert year_only("20180704") == "20180101"
        assert year_only("2018") == "20180101"

    def test_what_has_no_year_becomes_empty(self) -> None:
        assert year_only("87") == ""


class TestReplacements:
    def test_descriptions_keep_imaging_words_without_the_patients_name(self) -> None:
        ds = Dataset()
        ds.SeriesDescription = "t2 tse Rossi brain"
        replacements(SECRET, {"brain"})[0x0008, 0x103E](ds, (0x0008, 0x103E))
        assert ds.SeriesDescription == "t2 tse"

    def test_an_element_that_is_not_there_stays_away(self) -> None:
        ds = Dataset()
        for tag, action in replacements(SECRET, ()).items():
            action(ds, tag)
        assert len(ds) == 0

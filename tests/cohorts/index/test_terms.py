from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from eucaim_fl.cohorts.index import terms


class TestTerm:
    def test_names_of_people_and_numbers_of_records_are_no_terms(self) -> None:
        for text in ("ROSSI MARIA", "Schmidt", "12345678", "1953-03-12", "x" * 40, "a@b.example", ""):
            assert terms.term(text) == ""

    def test_parts_of_the_body_are(self) -> None:
        assert [terms.term(t) for t in ("PROSTATE", " breast ", "CHEST_ABDOMEN")] == [
            "PROSTATE",
            "BREAST",
            "CHEST_ABDOMEN",
        ]

    @given(st.text())
    def test_any_text_gives_a_short_plain_one(self, text: str) -> None:
        kept = terms.term(text)
        assert len(kept) <= 32
        assert kept.isascii()


class TestImageType:
    def test_values_that_are_no_terms_are_left_out(self) -> None:
        stated = ["ORIGINAL", "PRIMARY", "M_SE", "ROSSI", "DIS2D", "csa mpr"]
        assert terms.image_type(stated) == ("ORIGINAL", "PRIMARY", "M_SE", "DIS2D", "CSA MPR")

    def test_there_are_at_most_sixteen(self) -> None:
        assert len(terms.image_type(["M"] * 1000)) == 16


class TestModality:
    def test_only_what_the_standard_lists_stays(self) -> None:
        assert [terms.modality(t) for t in ("CT", "SEG", "JONES", "ct", "")] == ["CT", "SEG", "", "", ""]


class TestPhotometric:
    def test_only_what_the_standard_lists_stays(self) -> None:
        assert [terms.photometric(t) for t in ("RGB", "YBR_FULL_422", "JONES", "rgb", "")] == [
            "RGB",
            "YBR_FULL_422",
            "",
            "",
            "",
        ]


class TestVendor:
    def test_known_ones_have_one_name_each(self) -> None:
        stated = ["SIEMENS", "Siemens Healthineers", "Philips Medical Systems", "GE MEDICAL SYSTEMS", "FUJIFILM Corp."]
        assert [terms.vendor(t) for t in stated] == ["Siemens", "Siemens", "Philips", "GE", "Fujifilm"]

    def test_all_else_is_other(self) -> None:
        assert [terms.vendor(t) for t in ("Dr. Geller", "GENDEX", "Rossi", "")] == ["other", "other", "other", ""]


class TestYearOf:
    def test_only_years_and_new_years_days_stay(self) -> None:
        stated = ["20180704", "20180101", "2018.07.04", "2018", "201807", "18000704", "04072018", "x", ""]
        assert [terms.year_of(t) for t in stated] == ["2018", "20180101", "2018", "2018", "2018", "1800", "", "", ""]


class TestWordsOf:
    def test_words_of_the_site_stay_too(self) -> None:
        assert terms.words_of(b"T2 TSE Rossi ", ()) == "t2 tse"
        assert terms.words_of(b"T2 TSE Rossi ", {"rossi"}) == "t2 tse rossi"

    def test_any_character_set_will_do(self) -> None:
        assert terms.words_of("Próstata".encode("latin-1"), {"prostata"}) == "prostata"
        assert terms.words_of("Próstata".encode(), {"prostata"}) == "prostata"

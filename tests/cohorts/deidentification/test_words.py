from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from eucaim_fl.cohorts.deidentification.words import is_imaging_word, plain_words, tokens


class TestPlainWords:
    @pytest.mark.parametrize(
        ("text", "kept"),
        [
            ("AX T2 FLAIR", "ax t2 flair"),
            ("ep2d_diff_tra_DYNDIST_MIX_ADC", "ep2d diff tra dyndist mix adc"),
            ("t2tsetra", "t2tsetra"),
            ("ep2ddifftraDYNDISTMIXCALCBVAL", "ep2ddifftradyndistmixcalcbval"),
            ("Thorax 3.0 B30f 512x512", "thorax 3 0 b30f 512x512"),
            ("b 0 50 400 800", "b 0 50 400 800"),
            ("DWI b1400 1.5T 3mm", "dwi b1400 1 5t 3mm"),
            ("Próstata T2 axial", "prostata t2 axial"),
            ("", ""),
        ],
    )
    def test_imaging_words_and_short_numbers_stay(self, text: str, kept: str) -> None:
        assert plain_words(text) == kept

    @pytest.mark.parametrize(
        ("text", "kept"),
        [
            ("T2w TSE, Sig. Rossi, 3mm", "t2w tse 3mm"),
            ("MÜLLER^HANS CT thorax", "ct thorax"),
            ("seen 12.03.1953 axial", "axial"),
            ("1953-03-12", ""),
            ("12/3/53 ADC", "adc"),
            ("tel 0650 123 4567", ""),
            ("MRN 4711081553 dwi", "dwi"),
            ("00702", ""),
            ("hans.mueller@klinik.at", "at"),
        ],
    )
    def test_names_days_and_long_numbers_are_left_out(self, text: str, kept: str) -> None:
        assert plain_words(text) == kept

    def test_words_of_the_site_stay(self) -> None:
        assert plain_words("Zürich protocol", extra={"zurich"}) == "zurich protocol"

    def test_only_the_first_1024_characters_count(self) -> None:
        assert plain_words("x" * 1024 + " axial") == ""

    @given(st.text(max_size=80))
    def test_what_is_kept_is_kept_again(self, text: str) -> None:
        once = plain_words(text)
        assert plain_words(once) == once

    @given(st.text(max_size=80))
    def test_nothing_is_kept_that_was_not_there(self, text: str) -> None:
        assert set(plain_words(text).split()) <= set(tokens(text))


class TestIsImagingWord:
    def test_a_number_of_five_digits_is_none(self) -> None:
        assert is_imaging_word("1400")
        assert not is_imaging_word("14001")
        assert not is_imaging_word("b14001")

    def test_words_may_be_numbered_and_glued(self) -> None:
        assert is_imaging_word("chest2")
        assert is_imaging_word("t2tsetra")
        assert not is_imaging_word("rossi2")

    def test_surnames_are_none(self) -> None:
        names = "rossi garcia mueller schmidt nowak jansen dupont silva kowalski papadopoulos andersson fernandez novak"
        assert [name for name in names.split() if is_imaging_word(name)] == []


class TestTokens:
    def test_accents_and_case_are_taken_away(self) -> None:
        assert tokens("Próstata_T2 (Ax)") == ["prostata", "t2", "ax"]

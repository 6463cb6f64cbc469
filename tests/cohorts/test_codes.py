from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from eucaim_fl.cohorts.codes import modality, plain_word


class TestPlainWord:
    @pytest.mark.parametrize(
        ("code", "word"),
        [
            ("COM1001366", "male"),
            ("EUCAIM:COM1001370", "female"),
            ("https://cancerimage.eu/ontology/EUCAIM#BP1000021", "prostate"),
            ("SNOMEDCT248153007", "male"),
            ("SNOMEDCT:363358000", "lung cancer"),
            ("EUCAIM:IMG1000044", "Siemens"),
        ],
    )
    def test_a_known_code_becomes_a_word_with_or_without_prefix(self, code, word):
        assert plain_word(code) == word

    @pytest.mark.parametrize("value", ["ICDO3:8140/3", "COM9999999", "74", "2020-01-01", "", "MALE"])
    def test_an_unknown_value_stays_as_it_is(self, value):
        assert plain_word(value) == value

    def test_a_bare_number_is_a_number_and_no_snomed_code(self):
        assert plain_word("248153007") == "248153007"

    @given(st.text())
    def test_no_text_makes_it_fail(self, text):
        assert isinstance(plain_word(text), str)


class TestModality:
    @pytest.mark.parametrize(
        ("code", "name"), [("IMG1000022", "MR"), ("IMG1000042", "CT"), ("EUCAIM:IMG1000037", "PT")]
    )
    def test_a_procedure_code_names_the_dicom_modality(self, code, name):
        assert modality(code) == name

    def test_an_unknown_procedure_names_none(self):
        assert modality("IMG1") == ""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from eucaim_fl.cohorts.codes import (
    COLUMN_ALIASES,
    VOCABULARY,
    WORDS,
    Placed,
    is_sex_column,
    looks_coded,
    modality,
    place,
    plain_word,
)


class TestPlace:
    @pytest.mark.parametrize(
        ("value", "word", "system"),
        [
            ("COM1001366", "male", "EUCAIM"),
            ("EUCAIM:COM1001370", "female", "EUCAIM"),
            (" EUCAIM:IMG1000044 ", "Siemens", "EUCAIM"),
            ("https://cancerimage.eu/ontology/EUCAIM#BP1000021", "prostate", "EUCAIM"),
            ("SNOMEDCT248153007", "male", "SNOMEDCT"),
            ("SNOMEDCT:363358000", "lung cancer", "SNOMEDCT"),
            ("sct:76752008", "breast", "SNOMEDCT"),
            ("http://snomed.info/id/41216001", "prostate", "SNOMEDCT"),
            ("RID10312", "MR", "RADLEX"),
            ("RADLEX:RID10321", "CT", "RADLEX"),
            ("ICDO3:8140/3", "adenocarcinoma", "ICDO3"),
            ("ICD-O-3:C61.9", "prostate", "ICDO3"),
            ("ICDO3:C34", "lung", "ICDO3"),
            ("NCIT:C16576", "female", "NCIT"),
        ],
    )
    def test_a_code_is_known_with_prefix_as_iri_and_bare_where_its_shape_says_enough(self, value, word, system):
        placed = place(value)
        assert placed is not None
        assert (placed.word, placed.system) == (word, system)

    def test_the_code_stands_without_its_prefix(self):
        assert place("ICDO3:C61.9") == Placed("prostate", "ICDO3", "C61.9")

    @pytest.mark.parametrize(
        ("value", "column", "word"),
        [
            ("8140/3", "cancer_condition_histology_morphology", "adenocarcinoma"),
            ("C61.9", "cancer_condition_topography", "prostate"),
            ("C619", "cancer_condition_topography", "prostate"),
            ("PROSTATE", "body_part", "prostate"),
            ("M", "patient_birth_sex", "male"),
            ("Female", "Gender", "female"),
            ("O", "PatientSex", "other"),
        ],
    )
    def test_some_values_are_codes_in_their_own_columns_alone(self, value, column, word):
        assert plain_word(value, column) == word
        assert place(value, "comment") is None

    @pytest.mark.parametrize(
        "value", ["248153007", "74", "2020-01-01", "", "MALE", "8140/3", "x" * 999, "COM", "10:30"]
    )
    def test_an_ordinary_value_is_no_code(self, value):
        assert place(value) is None
        assert not looks_coded(value)

    @pytest.mark.parametrize(
        "value",
        ["COM9999999", "EUCAIM:X", "ICDO3:1", "LOINC:1234-5", "RID1", "SNOMEDCT:248153008", "SNOMEDCT:254837008"],
    )
    def test_a_code_that_nobody_knows_is_seen_but_never_guessed(self, value):
        assert place(value) is None
        assert looks_coded(value)
        assert plain_word(value) == value

    @given(st.text(), st.text())
    def test_no_text_makes_it_fail(self, value, column):
        assert plain_word(value, column) == value or place(value, column) is not None
        assert place(value, column) is None or looks_coded(value, column) or place(value, column).system == "DICOM"


class TestModality:
    @pytest.mark.parametrize(
        ("code", "name"),
        [
            ("IMG1000022", "MR"),
            ("IMG1000042", "CT"),
            ("EUCAIM:IMG1000037", "PT"),
            ("MRI", "MR"),
            ("pet", "PT"),
            ("CT", "CT"),
        ],
    )
    def test_a_procedures_code_or_name_is_a_dicom_modality(self, code, name):
        assert modality(code) == name

    @pytest.mark.parametrize("code", ["IMG1", "BP1000021", "", "other"])
    def test_anything_else_names_none(self, code):
        assert modality(code) == ""


class TestVocabulary:
    def test_its_version_is_pinned(self):
        assert VOCABULARY == "2026-12"

    def test_every_code_is_placed_by_its_own_prefix(self):
        for system, words in WORDS.items():
            if system != "DICOM":
                assert {code: place(f"{system}:{code}") for code in words} == {
                    code: Placed(word, system, code) for code, word in words.items()
                }

    def test_codes_have_the_shapes_of_their_systems(self):
        shapes = {"EUCAIM": r"[A-Z]{2,4}1\d{6}", "RADLEX": r"RID\d+", "NCIT": r"C\d+", "ICDO3": r"\d{4}/\d|C\d\d"}
        for system, shape in shapes.items():
            assert all(re.fullmatch(shape, code) for code in WORDS[system])

    def test_an_alias_is_no_present_name(self):
        assert not set(COLUMN_ALIASES) & set(COLUMN_ALIASES.values())


class TestIsSexColumn:
    @pytest.mark.parametrize(("column", "expected"), [("Birth sex", True), ("gender", True), ("sex_partner", False)])
    def test_by_its_name(self, column, expected):
        assert is_sex_column(column) is expected

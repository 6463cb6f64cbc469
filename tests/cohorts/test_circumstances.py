"""What is known of a case's patient and scanner."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from eucaim_fl.cohorts.circumstances import Circumstances, circumstances_of
from eucaim_fl.cohorts.manifest import Case

CASE = Case("p", "s", "r", (Path("i.nii.gz"),), "nifti")


class TestCircumstancesOf:
    def test_sex_and_age_are_the_tables(self) -> None:
        found = circumstances_of(replace(CASE, clinical={"sex": "female", "age": "61.5"}))
        assert found == Circumstances("female", 61.5)

    def test_what_is_not_there_is_not_known(self) -> None:
        assert circumstances_of(CASE) == Circumstances()

    @pytest.mark.parametrize("age", ["", "old", "nan", "inf", "-1", "131"])
    def test_what_is_no_age_is_not_known(self, age: str) -> None:
        assert circumstances_of(replace(CASE, clinical={"age": age})).age is None

    @pytest.mark.parametrize(("unit", "known"), [("years", 7.0), ("Y", 7.0), ("", 7.0), ("months", None), ("d", None)])
    def test_an_age_in_another_unit_is_not_known(self, unit: str, known: float | None) -> None:
        assert circumstances_of(replace(CASE, clinical={"age": "7", "age_unit": unit})).age == known

    def test_the_first_column_with_a_number_counts(self) -> None:
        clinical = {"Age": "", "AGE_AT_DIAGNOSIS": "50", "age_at_imaging": "52"}
        assert circumstances_of(replace(CASE, clinical=clinical)).age == 50.0

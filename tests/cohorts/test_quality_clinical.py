"""Rules for clinical values: missing, contradictory, impossible."""

from __future__ import annotations

from pathlib import Path

import pytest

from eucaim_fl.cohorts.manifest import Case
from eucaim_fl.cohorts.quality_clinical import CLINICAL_RULES, NOT_SHOWN, clinical_columns, clinical_findings


def case(patient: str, number: int = 1, **clinical: str) -> Case:
    return Case(patient, "1", str(number), (Path("1.nii"),), "nifti", clinical=clinical)


def found(cases: list[Case]) -> dict[str, tuple[int, tuple[str, ...]]]:
    return {f.rule.removeprefix("quality."): (f.count, f.subjects) for f in clinical_findings(cases)}


def classes(**counts: int) -> list[Case]:
    names = [name for name, count in counts.items() for _ in range(count)]
    return [case(f"P{n}", grade=name) for n, name in enumerate(names)]


class TestClinicalFindings:
    def test_balanced_classes_need_no_word(self):
        assert found(classes(low=10, high=10)) == {}

    def test_a_class_of_four_is_small(self):
        assert found(classes(low=10, high=4)) == {"small_class": (1, ("grade",))}
        assert found(classes(low=10, high=5)) == {}

    def test_a_patient_in_two_splits_is_worth_a_look(self):
        cases = [case("A", 1, split="train"), case("A", 2, split="test"), case("B", split="train")]
        (finding,) = [f for f in clinical_findings(cases) if f.rule == "quality.two_splits"]
        assert (finding.severity, finding.subjects) == ("warns", ("A",))

    def test_a_patient_of_two_classes_is_contradictory(self):
        cases = [*classes(low=10, high=10), case("P0", 2, grade="high")]
        assert found(cases) == {"values_differ": (1, ("P0",))}

    def test_spaces_and_case_make_no_difference(self):
        assert found([*classes(low=10, high=10), case("P0", 2, grade=" LOW ")]) == {}

    def test_values_that_differ_for_everybody_may_differ_within_a_patient(self):
        cases = [case(f"P{n}", psa=str(n)) for n in range(20)]
        assert found([*cases, case("P0", 2, psa="99")]) == {}

    @pytest.mark.parametrize(
        ("column", "value", "odd"),
        [
            ("age", "-1", True),
            ("age", "121", True),
            ("age", "120", False),
            ("age_at_diagnosis", "500", True),
            ("cancer_condition_age_at_diagnosis", "63", False),
            ("stage", "500", False),
            ("image", "500", False),
            ("age", "unknown", False),
            ("age", "nan", False),
            ("age_unit", "500", False),
        ],
    )
    def test_an_age_lies_between_0_and_120(self, column, value, odd):
        assert ("impossible_age" in found([case("A", **{column: value})])) is odd

    def test_ages_in_months_may_be_larger(self):
        assert found([case("A", age="700", age_unit="month")]) == {}
        assert "impossible_age" in found([case("A", age="700", age_unit="year")])

    def test_more_than_a_fifth_missing_is_told(self):
        def cohort(known: int) -> list[Case]:
            return [case(f"P{n}", other=str(n), **({"psa": str(n)} if n < known else {})) for n in range(10)]

        assert found(cohort(8)) == {}
        assert found(cohort(7)) == {"missing_values": (1, ("psa",))}

    def test_a_column_of_one_value_teaches_nothing(self):
        assert found(classes(low=10)) == {"one_value": (1, ("grade",))}

    def test_one_unit_for_all_is_as_it_should_be(self):
        assert found([case(f"P{n}", age_unit="year") for n in range(10)]) == {}

    def test_texts_are_fixed(self):
        for finding in clinical_findings([case("A", age="-1", split="x"), case("A", 2, split="y")]):
            rule = CLINICAL_RULES[finding.rule.removeprefix("quality.")]
            assert (finding.severity, finding.says, finding.do) == (rule.severity, rule.says, rule.do)


class TestClinicalColumns:
    def test_a_column_counts_patients_not_images(self):
        cases = [case("A", 1, sex="F"), case("A", 2, sex="F"), case("B", sex="f"), case("C", sex=" "), case("D")]
        (column,) = clinical_columns(cases)
        assert (column.known, column.missing, column.distinct) == (2, 2, 1)
        assert column.missing_share == 0.5
        assert column.classes == (("F", 2),)

    def test_values_that_tell_patients_apart_are_no_classes(self):
        (column,) = clinical_columns([case(f"P{n}", record=f"R{n}") for n in range(6)])
        assert (column.classes, column.distinct) == ((), 6)

    @pytest.mark.parametrize(("column", "value"), [("surname", "x"), ("note", "Rossi Maria"), ("note", "a@b.org")])
    def test_values_that_could_name_a_person_are_not_shown(self, column, value):
        (found,) = clinical_columns([case(f"P{n}", **{column: value}) for n in range(6)])
        assert (found.classes, found.distinct) == ((), 1)

    def test_days_are_no_classes(self):
        cases = [case(f"P{n}", baseline_date=f"20{20 + n % 2}-01-01") for n in range(8)]
        assert clinical_columns(cases)[0].classes == ()
        assert found(cases) == {}

    def test_a_name_with_spaces_is_not_plain(self):
        plain = {c.name: c.plain for c in clinical_columns([case("A", **{"age": "1", "Rossi, Maria": "x"})])}
        assert plain == {"age": True, "Rossi, Maria": False}


class TestWhatMayBeShown:
    def test_a_class_of_a_word_that_nobody_knows_could_be_a_name(self):
        cases = [case(f"P{n}", reader=("Quintavalle", "none", "Squamous cell carcinoma")[n % 3]) for n in range(12)]
        (column,) = clinical_columns(cases)
        assert column.classes == ((NOT_SHOWN, 4), ("Squamous cell carcinoma", 4), ("none", 4))
        assert column.distinct == 3

    @pytest.mark.parametrize(
        ("name", "plain"),
        [
            ("psa_total", True),
            ("Age", True),
            ("T", True),
            ("Quintavalle", False),
            ("Rossi_Maria", False),
            ("a b", False),
        ],
    )
    def test_a_columns_name_is_given_elsewhere_only_if_it_can_be_nobodys(self, name, plain):
        (column,) = clinical_columns([case("P1", **{name: "1"})])
        assert column.plain is plain

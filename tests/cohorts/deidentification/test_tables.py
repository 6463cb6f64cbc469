from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from eucaim_fl.cohorts.deidentification.tables import identifiers_in_table, identifiers_in_values, is_identifying_column

TIER3 = (
    [
        "dataset_id",
        "patient_id",
        "patient_birth_sex",
        "cancer_condition_asserted_date",
        "series_manufacturer",
        "study_uid",
    ],
    [["ds-5", "EUCAIM-00a1b2c3d4e5f607", "COM1001366", "2020-01-01", "Siemens Healthineers", "2.25.319752742038919"]],
)


class TestIsIdentifyingColumn:
    @pytest.mark.parametrize(
        "name",
        [
            "name",
            "PatientName",
            "last_name",
            "Surname",
            "Apellidos",
            "Cognome",
            "Nachname",
            "prénom",
            "Apelido",
            "achternaam",
            "Nazwisko",
            "efternamn",
            "Eponymo",
            "birth date",
            "DateOfBirth",
            "Fecha de nacimiento",
            "Data di nascita",
            "Geburtsdatum",
            "date de naissance",
            "data_nascimento",
            "geboortedatum",
            "address",
            "Indirizzo",
            "telefono",
            "E-mail",
            "MRN",
            "DNI",
            "codice fiscale",
            "NHS number",
            "pesel",
            "Personnummer",
            "Numéro de sécurité sociale",
            "amka",
            "InstitutionName",
        ],
    )
    def test_names_in_many_languages(self, name: str) -> None:
        assert is_identifying_column(name)

    @pytest.mark.parametrize(
        "name",
        [
            "patient_id",
            "PatientID",
            "series_manufacturer_name",
            "patient_birth_sex",
            "age_at_diagnosis",
            "file_name",
            "image",
            "ProtocolName",
            "variable_name",
            "birth_weight",
            "malignant",
            "PSA",
            "hospital",
            "psa_density",
            "label",
        ],
    )
    def test_names_of_cohorts_columns(self, name: str) -> None:
        assert not is_identifying_column(name)


class TestIdentifiersInTable:
    def test_a_tier_3_table_is_clean(self) -> None:
        assert identifiers_in_table(*TIER3) == {}

    @pytest.mark.parametrize(
        ("cell", "rule"),
        [
            ("a.b@klinik.example", "table_email"),
            ("+49 170 1234567", "table_phone"),
            ("2020-05-06", "table_date"),
            ("06/05/1953", "table_date"),
            ("Rossi, Maria", "table_person"),
            ("Dr. Gregory House", "table_person"),
            ("4711081", "table_number"),
            ("12345678Z", "table_number"),
            ("DE89 3704 0044 0532 0130 00", "table_number"),
            ("patient was seen by the family doctor who reported pain in the left side for weeks", "table_text"),
        ],
    )
    def test_each_shape_of_a_cell_breaks_its_rule(self, cell: str, rule: str) -> None:
        assert identifiers_in_table(["note"], [[cell], ["1"]]) == {f"deid.{rule}": 1}

    @pytest.mark.parametrize(
        "cell",
        [
            "63",
            "7.123456789",
            "1.2.840.113619.2.55.3",
            "COM1001366",
            "EUCAIM:COM1001366",
            "SNOMEDCT248153007",
            "RID10312",
            "ICDO3:8140/3",
            "2020-01-01",
            "Siemens Healthineers",
            "Left Breast",
            "Invasive Ductal Carcinoma",
            "Gleason Score 7",
            "MALE",
            "t2w tse",
            "d41d8cd98f00b204e9800998ecf8427e",
        ],
    )
    def test_values_of_cohorts_are_clean(self, cell: str) -> None:
        assert identifiers_in_table(["value"], [[cell]]) == {}

    def test_an_empty_column_says_nothing(self) -> None:
        assert identifiers_in_table(["surname", "age"], [["", "63"], [" ", "64"]]) == {}
        assert identifiers_in_table(["surname", "age"], [["x", "63"], ["y", "64"]]) == {"deid.table_column": 1}

    def test_sizes_may_be_long_numbers(self) -> None:
        assert identifiers_in_table(["size_bytes", "dose_bq"], [["33554432", "370000000"]]) == {}

    def test_file_names_may_look_like_anything_but_days_and_numbers(self) -> None:
        assert identifiers_in_table(["image"], [["Left_Knee/Abc_Def.nii.gz"]]) == {}
        assert identifiers_in_table(["image"], [["scan_19530312.nii.gz"]]) == {"deid.table_date": 1}

    def test_rows_longer_than_the_header_are_read_to_their_end(self) -> None:
        assert identifiers_in_table(["a"], [["1", "Rossi, Maria"]]) == {"deid.table_person": 1}

    def test_real_clinical_tables(self, shared_data: Path) -> None:
        import csv

        with (shared_data / "ham10000" / "clinical.csv").open(newline="") as stream:
            header, *rows = csv.reader(stream)
        assert identifiers_in_table(header, rows) == {}
        with (shared_data / "picai" / "marksheet.csv").open(newline="") as stream:
            header, *rows = csv.reader(stream)
        assert set(identifiers_in_table(header, rows)) == {
            "deid.table_date",
            "deid.table_number",
        }  # days, study numbers

    @given(st.lists(st.lists(st.text(max_size=30), max_size=4), max_size=4))
    def test_any_cells_are_taken(self, rows: list[list[str]]) -> None:
        assert all(count > 0 for count in identifiers_in_table(["a", "name"], rows).values())


class TestIdentifiersInValues:
    def test_forms_are_read_as_columns_with_cells(self) -> None:
        form = [("age_at_diagnosis", "74"), ("baseline_date", "2018-01-01"), ("gender", "MALE")]
        assert identifiers_in_values(form) == {}
        assert identifiers_in_values([*form, ("surname", "Rossi"), ("baseline_date", "2018-05-06")]) == {
            "deid.table_column": 1,
            "deid.table_date": 1,
        }

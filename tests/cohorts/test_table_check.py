"""Identifiers in a cohort's tables and forms, by column."""

from __future__ import annotations

import json

import pytest

from eucaim_fl.cohorts.table_check import ColumnBreach, breaches_of, column_breaches, table_files, table_findings
from eucaim_fl.sitefile import ConsentConfig, DeidentificationConfig


class TestTableFiles:
    def test_tables_lie_where_layouts_have_them(self, tmp_path):
        cohort = tmp_path / "data" / "cohort"
        (cohort / "clinical_data").mkdir(parents=True)
        (cohort / "images").mkdir()
        wanted = [cohort / "clinical.csv", cohort / "eforms.json", cohort / "clinical_data" / "patient.csv"]
        wanted.append(cohort.parent / "clinical_mandatory_view.csv")
        for path in [*wanted, cohort / "images" / "a.csv", cohort.parent / "other.csv", cohort / "a.txt"]:
            path.write_text("")
        assert table_files(cohort) == tuple(sorted(wanted))

    def test_links_are_left_out(self, tmp_path):
        (tmp_path / "cohort").mkdir()
        (tmp_path / "secret.csv").write_text("a")
        (tmp_path / "cohort" / "a.csv").symlink_to(tmp_path / "secret.csv")
        assert table_files(tmp_path / "cohort") == ()


class TestBreachesOf:
    def test_days_of_the_consent_table_are_as_they_must_be_and_those_of_others_are_not(self, tiny, tmp_path):
        folder = tiny.nifti_cohort(tmp_path, 1)
        for name in ("consent.csv", "other.csv"):
            (folder / name).write_text("patient_id,status,date,purposes\nP0,withdrawn,2025-03-07,mail@example.org\n")
        site = tiny.site(tmp_path)
        site = site.model_copy(update={"consent": ConsentConfig(table="consent.csv")})
        assert {(b.file.name, b.rule) for b in breaches_of(site)} == {
            ("consent.csv", "deid.table_email"),
            ("other.csv", "deid.table_email"),
            ("other.csv", "deid.table_date"),
        }


class TestColumnBreaches:
    @pytest.fixture
    def table(self, tmp_path):
        def write(name: str, text: str) -> dict[tuple[str, str], int]:
            (tmp_path / name).write_text(text)
            return {(b.column, b.rule): b.times for b in column_breaches(tmp_path / name)}

        return write

    def test_columns_and_cells_are_counted(self, table):
        assert table("a.csv", "patient_id,surname,note\nP1,Rossi,x\nP2,Bianchi,rossi@example.org\nP3,,\n") == {
            ("surname", "deid.table_column"): 1,
            ("note", "deid.table_email"): 1,
        }

    @pytest.mark.parametrize(("name", "separator"), [("a.csv", ";"), ("a.csv", ","), ("a.csv", "\t"), ("a.tsv", "\t")])
    def test_usual_separators_are_understood(self, table, name, separator):
        text = "\n".join(separator.join(row) for row in (["patient_id", "mail"], ["P1", "a@example.org"]))
        assert ("mail", "deid.table_email") in table(name, text)

    def test_codes_of_seven_digits_are_no_record_numbers(self, table):
        text = "patient_id,sex,mrnumber\nP1,COM1001366,1234567\n"
        assert table("a.csv", text) == {("mrnumber", "deid.table_number"): 1}

    def test_forms_are_looked_at_by_key(self, table):
        form = [{"subjectName": "21b5", "eForm": {"pages": [{"page_data": {"contact": {"value": "a@example.org"}}}]}}]
        assert table("eforms.json", json.dumps(form)) == {("contact", "deid.table_email"): 1}

    @pytest.mark.parametrize("text", ["", "[[[", '"' * 1000, "[" * 100_000, "a\0b", "patient_id\nP1,extra,cells\n"])
    def test_what_cannot_be_read_breaks_nothing(self, table, text):
        assert table("a.json", text) == {}
        assert table("a.csv", text) == {}


class TestTableFindings:
    def test_they_warn_at_most_and_hold_no_name_of_a_column(self, tmp_path):
        breaches = [
            ColumnBreach(tmp_path / "a.csv", "surname", "deid.table_column", 1),
            ColumnBreach(tmp_path / "a.csv", "note", "deid.table_email", 2),
            ColumnBreach(tmp_path / "b.csv", "note", "deid.table_email", 3),
            ColumnBreach(tmp_path / "b.csv", "note", "deid.table_text", 1),
        ]
        found = table_findings(breaches, DeidentificationConfig())
        assert {(f.rule, f.severity, f.count, f.unit) for f in found} == {
            ("deid.table_column", "warns", 1, "columns"),
            ("deid.table_email", "warns", 5, "cells"),
            ("deid.table_text", "informs", 1, "cells"),
        }
        assert "note" not in str(found)

    def test_no_breach_no_finding(self):
        assert table_findings([], DeidentificationConfig()) == ()

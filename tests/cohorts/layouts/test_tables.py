from __future__ import annotations

import json
import os

import pytest
from hypothesis import given
from hypothesis import strategies as st

from eucaim_fl.cohorts.layouts import tables
from eucaim_fl.cohorts.layouts.notes import Notebook
from eucaim_fl.cohorts.layouts.tables import in_words, read_json, read_list, read_table
from eucaim_fl.errors import CohortError


@pytest.fixture
def notes():
    return Notebook()


def rules(notes):
    return {finding.rule: finding.count for finding in notes.findings()}


class TestReadTable:
    @pytest.mark.parametrize("separator", [",", ";", "\t"])
    @pytest.mark.parametrize("mark", ["", "\ufeff"])
    def test_the_header_shows_what_separates_columns(self, tmp_path, notes, separator, mark):
        path = tmp_path / "t.csv"
        path.write_text(f'{mark}patient_id{separator}note\nP1{separator}"a{separator}b"\n', encoding="utf-8")
        table = read_table(path, ["patient_id"], notes)
        assert table.rows == ({"patient_id": "P1", "note": f"a{separator}b"},)
        assert rules(notes) == {}

    def test_empty_cells_and_rows_are_left_out_and_others_stripped(self, tmp_path, notes):
        path = tmp_path / "t.csv"
        path.write_text("patient_id, a ,b\nP1, 1 ,\n,,\nP2\n")
        assert read_table(path, [], notes).rows == ({"patient_id": "P1", "a": "1"}, {"patient_id": "P2"})

    def test_a_formula_is_a_text(self, tmp_path, notes):
        path = tmp_path / "t.csv"
        path.write_text('patient_id,a\nP1,"=1+1"\n')
        assert read_table(path, [], notes).rows[0]["a"] == "=1+1"

    def test_other_encodings_are_read_as_latin_1_and_noted(self, tmp_path, notes):
        path = tmp_path / "t.csv"
        path.write_bytes("patient_id,a\nP1,Größe\n".encode("latin-1"))
        assert read_table(path, [], notes).rows[0]["a"] == "Größe"
        assert rules(notes) == {"layout.tables_not_utf8": 1}

    def test_a_row_with_too_many_cells_is_left_out_since_its_values_may_be_shifted(self, tmp_path, notes):
        path = tmp_path / "t.csv"
        path.write_text("patient_id,name,age\nP1,a,b,63\nP2,ab,63,\n")
        assert read_table(path, [], notes).rows == ({"patient_id": "P2", "name": "ab", "age": "63"},)
        assert rules(notes) == {"layout.rows_too_long": 1}

    def test_older_names_of_columns_become_the_present_ones_unless_those_are_there(self, tmp_path, notes):
        path = tmp_path / "t.csv"
        path.write_text("patient_id,treatment_type,series_body_side_code,series_body_site_code\nP1,a,b,c\n")
        assert read_table(path, [], notes).columns == (
            "patient_id",
            "first_treatment_type",
            "series_body_side_code",
            "series_body_site_code",
        )
        assert rules(notes) == {"layout.aliases_used": 1}

    @pytest.mark.parametrize(
        ("content", "words"),
        [
            (None, "missing or can't be read"),
            (b"", "lacks the columns patient_id"),
            (b"a,b\n1,2\n", "lacks the columns patient_id"),
            (b'patient_id,a\n"P1,2\n', "no valid CSV"),
            (b'patient_id,a\nP1,"a"b\n', "no valid CSV"),
            (b"patient_id,a,a\nP1,1,2\n", "two columns of the same name"),
            (b"patient_id,treatment_type,treatment_type\n", "two columns of the same name"),
            (b"patient_id" + b",x" * 5000, "two columns of the same name, or thousands"),
            ("patient_id\nP1".encode("utf-16"), "no text"),
            (b"patient_id\n" + b"x" * 200_000, "no valid CSV"),
        ],
    )
    def test_what_is_no_such_table_is_an_error_that_names_no_file(self, tmp_path, notes, content, words):
        path = tmp_path / "t.csv"
        if content is not None:
            path.write_bytes(content)
        with pytest.raises(CohortError, match=words) as caught:
            read_table(path, ["patient_id"], notes)
        assert "t.csv" not in str(caught.value)
        assert "t.csv" in caught.value.local_detail

    def test_a_table_beyond_the_limit_is_not_read(self, tmp_path, notes, monkeypatch):
        monkeypatch.setattr(tables, "LARGEST_TABLE_BYTES", 20)
        path = tmp_path / "t.csv"
        path.write_text("patient_id\n" + "P" * 10)
        with pytest.raises(CohortError, match="can't be read"):
            read_table(path, [], notes)

    @given(st.binary(max_size=200))
    def test_no_bytes_make_it_fail_in_another_way(self, content):
        import tempfile
        from pathlib import Path

        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "t.csv"
            path.write_bytes(content)
            try:
                table = read_table(path, [], Notebook())
            except CohortError:
                return
        assert all(set(row) <= set(table.columns) for row in table.rows)


class TestReadJson:
    def test_values_come_as_they_are(self, tmp_path):
        path = tmp_path / "i.json"
        path.write_text('\ufeff[{"a": 1}]', encoding="utf-8")
        assert read_json(path) == [{"a": 1}]

    @pytest.mark.parametrize(
        "text", ["{", "[" * 99_999, json.dumps([[[]]]).replace("[[]]", "[" * 40 + "]" * 40), '"\udcff"']
    )
    def test_what_is_no_json_or_too_deep_is_an_error(self, tmp_path, text):
        path = tmp_path / "i.json"
        path.write_bytes(text.encode("utf-8", "surrogateescape"))
        with pytest.raises(CohortError, match="no valid JSON"):
            read_json(path)

    def test_a_file_beyond_the_limit_or_missing_is_an_error(self, tmp_path):
        (tmp_path / "i.json").write_text("[1, 2, 3]")
        with pytest.raises(CohortError, match="can't be read"):
            read_json(tmp_path / "i.json", 5)
        with pytest.raises(CohortError, match="missing"):
            read_json(tmp_path / "other.json")


class TestReadList:
    def test_anything_but_a_list_is_an_error(self, tmp_path):
        (tmp_path / "i.json").write_text("{}")
        with pytest.raises(CohortError, match="no list"):
            read_list(tmp_path / "i.json")


class TestInWords:
    def test_codes_become_words_and_those_that_nobody_knows_are_counted_and_kept(self, notes):
        row = {"a": "COM1001366", "b": "COM9999999", "c": "63", "d": "LOINC:1-8"}
        assert in_words(row, notes) == {"a": "male", "b": "COM9999999", "c": "63", "d": "LOINC:1-8"}
        assert rules(notes) == {"codes.unplaced": 2}
        assert notes.unplaced == {"b": 1, "d": 1}

    def test_a_patient_who_is_called_like_a_code_keeps_the_name(self, notes):
        assert in_words({"patient_id": "COM1001366"}, notes) == {"patient_id": "COM1001366"}

    def test_letters_mean_sex_in_columns_of_sex_alone(self, notes):
        assert in_words({"sex": "M", "stage": "M"}, notes) == {"sex": "male", "stage": "M"}


class TestOddFiles:
    def test_a_table_that_is_a_pipe_is_not_waited_for(self, tmp_path, notes):
        os.mkfifo(tmp_path / "t.csv")
        with pytest.raises(CohortError, match="missing or can't be read"):
            read_table(tmp_path / "t.csv", [], notes)

    def test_text_that_is_no_unicode_is_refused_and_pairs_are_not(self, tmp_path):
        (tmp_path / "pair.json").write_text('["\\ud83d\\ude00"]')
        assert read_json(tmp_path / "pair.json") == ["\U0001f600"]
        for text in ('["\\ud800"]', '[{"\\uDFFF": 1}]'):
            (tmp_path / "lone.json").write_text(text)
            with pytest.raises(CohortError, match="no valid JSON"):
                read_json(tmp_path / "lone.json")

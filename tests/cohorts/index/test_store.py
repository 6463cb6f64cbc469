from __future__ import annotations

from pathlib import Path

import duckdb
import pyarrow.parquet as pq
import pytest

from eucaim_fl.cohorts.facts import FileFacts, SeriesFacts
from eucaim_fl.cohorts.index import store as stores
from eucaim_fl.cohorts.index.store import FILE_COLUMNS, SERIES_COLUMNS, Store, connect, keyed, literal, write_rows
from eucaim_fl.errors import CohortError, JournalError


class TestColumns:
    def test_every_fact_has_one(self) -> None:
        assert set(FileFacts.__slots__) <= set(FILE_COLUMNS)
        assert {*SeriesFacts.__slots__, "words"} == set(SERIES_COLUMNS)

    def test_numbers_and_lists_are_no_texts(self) -> None:
        assert FILE_COLUMNS["position"] == "list<float64>"
        assert (FILE_COLUMNS["rows"], FILE_COLUMNS["inode"], FILE_COLUMNS["contrast"]) == ("int64", "uint64", "bool")
        assert SERIES_COLUMNS["spacing_mm"] == "list<float64>"


class TestKeyed:
    def test_purposes_and_keys_do_not_mix(self) -> None:
        found = {keyed(key, purpose, b"x") for key in (b"a", b"b") for purpose in ("patient", "path")}
        assert len(found) == 4
        assert {len(one) for one in found} == {24}


class TestConnect:
    def test_only_the_indexs_folder_can_be_read(self, tmp_path: Path) -> None:
        (tmp_path / "secret.csv").write_text("a\n1\n")
        (tmp_path / "index").mkdir()
        with (
            connect(tmp_path / "index") as connection,
            pytest.raises(duckdb.PermissionException, match="disabled by configuration"),
        ):
            connection.execute("SELECT * FROM read_csv(?)", [str(tmp_path / "secret.csv")])

    def test_what_is_set_stays_set(self, tmp_path: Path) -> None:
        with (
            connect(tmp_path) as connection,
            pytest.raises(duckdb.InvalidInputException, match="locked"),
        ):
            connection.execute("SET memory_limit = '100GB'")

    def test_folders_may_have_odd_names(self, tmp_path: Path) -> None:
        folder = tmp_path / "it's [1]*"
        folder.mkdir()
        write_rows(folder / "x.parquet", [{"path": "a"}], FILE_COLUMNS)
        with connect(folder) as connection:
            connection.execute(f"CREATE VIEW x AS FROM read_parquet({literal(folder / 'x.parquet')})")
            found = connection.execute("SELECT path FROM x").fetchall()
        assert found == [("a",)]


class TestWriteRows:
    def test_what_is_missing_is_empty(self, tmp_path: Path) -> None:
        write_rows(tmp_path / "x.parquet", [{"path": "a", "rows": 3, "position": (1.0, 2.0, 3.0)}], FILE_COLUMNS)
        (row,) = pq.read_table(tmp_path / "x.parquet").to_pylist()
        assert (row["path"], row["rows"], row["position"]) == ("a", 3, [1.0, 2.0, 3.0])
        assert (row["code"], row["columns"], row["image_type"]) == ("", None, None)

    def test_no_rows_are_a_table_too(self, tmp_path: Path) -> None:
        write_rows(tmp_path / "x.parquet", [], SERIES_COLUMNS)
        assert pq.read_table(tmp_path / "x.parquet").column_names == list(SERIES_COLUMNS)


class TestStore:
    def test_a_key_is_made_once(self, tmp_path: Path) -> None:
        store = Store(tmp_path, {})
        assert store.key() == store.key() == Store(tmp_path, {"a": 1}).key()
        assert len(store.key()) == 32

    def test_a_key_that_is_damaged_is_an_error(self, tmp_path: Path) -> None:
        for content in ("xyz", "abcd", ""):
            (tmp_path / "key").write_text(content)
            with pytest.raises(CohortError, match="key"):
                Store(tmp_path, {}).key()

    def test_a_folder_that_can_not_be_made_is_an_error(self, tmp_path: Path) -> None:
        (tmp_path / "file").write_text("")
        with pytest.raises(CohortError, match="can't be written"):
            Store(tmp_path / "file" / "index", {}).create()

    def test_a_pointer_without_its_version_is_an_error(self, tmp_path: Path) -> None:
        (tmp_path / "current.json").write_text('{"number": 1, "made_with": "x"}')
        with pytest.raises(CohortError, match="damaged"):
            Store(tmp_path, {}).pointer()

    def test_no_pointer_is_no_version(self, tmp_path: Path) -> None:
        assert Store(tmp_path, {}).pointer().number == 0

    def test_settings_make_a_difference(self, tmp_path: Path) -> None:
        assert Store(tmp_path, {"a": 1}).made_with != Store(tmp_path, {"a": 2}).made_with


class TestKeyOnAFullDisk:
    def test_no_empty_key_is_left_behind(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        store = Store(tmp_path / "index", {})
        store.create()

        def full(*_: object, **__: object) -> None:
            raise JournalError("The disk is full.")

        with monkeypatch.context() as patch:
            patch.setattr(stores, "write_atomically", full)
            with pytest.raises(CohortError, match="key can't be written"):
                store.key()
        assert len(store.key()) == 32

"""A small file of records: whole transactions, readable by its owner only, clear errors."""

from __future__ import annotations

import sqlite3
from pathlib import Path

import pytest

from eucaim_fl.errors import JournalError
from eucaim_fl.site.small_store import transaction

SCHEMA = "CREATE TABLE IF NOT EXISTS seen (name TEXT)"


class TestTransaction:
    def test_what_it_wrote_is_there_for_the_next_one(self, tmp_path: Path) -> None:
        file = tmp_path / "records" / "seen.sqlite"
        with transaction(file, SCHEMA, "tests") as store:
            store.execute("INSERT INTO seen VALUES ('a')")
        with transaction(file, SCHEMA, "tests") as store:
            assert store.execute("SELECT name FROM seen").fetchall() == [("a",)]
        assert file.stat().st_mode & 0o077 == 0

    def test_nothing_stands_of_one_that_failed(self, tmp_path: Path) -> None:
        file = tmp_path / "seen.sqlite"

        def fail() -> None:
            with transaction(file, SCHEMA, "tests") as store:
                store.execute("INSERT INTO seen VALUES ('a')")
                raise ValueError("in the middle")

        with pytest.raises(ValueError, match="in the middle"):
            fail()
        with transaction(file, SCHEMA, "tests") as store:
            assert store.execute("SELECT count(*) FROM seen").fetchone() == (0,)

    def test_a_file_that_is_no_database_is_an_error_without_its_path(self, tmp_path: Path) -> None:
        file = tmp_path / "seen.sqlite"
        file.write_bytes(b"no database" * 100)
        with (
            pytest.raises(JournalError, match="record of tests can't be read") as caught,
            transaction(file, SCHEMA, "tests"),
        ):
            pass
        assert str(tmp_path) not in str(caught.value)
        assert str(tmp_path) in caught.value.local_detail

    def test_an_error_of_sqlite_in_the_body_is_one_too(self, tmp_path: Path) -> None:
        with pytest.raises(JournalError, match="record of tests"), transaction(tmp_path / "x", SCHEMA, "tests"):
            raise sqlite3.OperationalError("disk I/O error")

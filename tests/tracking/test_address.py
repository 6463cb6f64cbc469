"""Where MLflow is, and whether its database can be used."""

from __future__ import annotations

import contextlib
import sqlite3
from pathlib import Path

import pytest

from eucaim_fl.config import TrackingConfig
from eucaim_fl.errors import RunError
from eucaim_fl.tracking.address import check_database, tracking_uri, ui_command


class TestAddresses:
    def test_the_default_is_sqlite_in_the_runs_folder(self, tmp_path: Path) -> None:
        assert tracking_uri(TrackingConfig(), tmp_path) == f"sqlite:///{tmp_path}/mlflow.db"

    def test_the_command_quotes_the_address(self, tmp_path: Path) -> None:
        command = ui_command(TrackingConfig(), tmp_path / "my runs")
        assert command == f"mlflow ui --backend-store-uri 'sqlite:///{tmp_path}/my runs/mlflow.db'"

    def test_a_password_is_not_shown(self, tmp_path: Path) -> None:
        shown = ui_command(TrackingConfig(uri="postgresql://me:secret@db.example:5432/ml"), tmp_path)
        assert "secret" not in shown
        assert "me:***@db.example:5432/ml" in shown

    def test_a_tracking_server_is_opened_by_its_address(self, tmp_path: Path) -> None:
        assert ui_command(TrackingConfig(uri="https://ml.example"), tmp_path) == "https://ml.example"


class TestCheckDatabase:
    def test_one_that_another_process_holds_is_refused(self, tmp_path: Path) -> None:
        with contextlib.closing(sqlite3.connect(tmp_path / "x.db")) as database:
            database.execute("BEGIN EXCLUSIVE")
            with pytest.raises(RunError, match="database is locked"):
                check_database(f"sqlite:///{tmp_path}/x.db")

    def test_a_file_that_is_no_database_is_refused_without_naming_it(self, tmp_path: Path) -> None:
        (tmp_path / "x.db").write_bytes(b"no database at all" * 100)
        with pytest.raises(RunError, match="not a database") as caught:
            check_database(f"sqlite:///{tmp_path}/x.db")
        assert str(tmp_path) not in str(caught.value)

    @pytest.mark.parametrize("uri", ["https://ml.example", "postgresql://me@db.example/ml", "sqlite:////none/x.db"])
    def test_what_is_not_there_yet_or_no_sqlite_is_not_asked(self, uri: str) -> None:
        check_database(uri)

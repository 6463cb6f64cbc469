"""Where MLflow is, how a person looks at it, and whether its database can be used now."""

from __future__ import annotations

import contextlib
import shlex
import sqlite3
from pathlib import Path
from urllib.parse import urlsplit, urlunsplit

from eucaim_fl.config import TrackingConfig
from eucaim_fl.errors import RunError

__all__ = ["check_database", "tracking_uri", "ui_command"]

_WAIT_S = 2.0


def tracking_uri(config: TrackingConfig, runs_dir: Path) -> str:
    """Where runs are logged: the configured address, or SQLite in the runs folder; never MLflow's own default."""
    return config.uri or f"sqlite:///{(runs_dir / 'mlflow.db').absolute()}"


def ui_command(config: TrackingConfig, runs_dir: Path) -> str:
    """The command (or address) that shows the runs; a password in the address is not repeated."""
    uri = tracking_uri(config, runs_dir)
    parts = urlsplit(uri)
    if parts.password is not None:
        host = parts.netloc.rpartition("@")[2]
        uri = urlunsplit(parts._replace(netloc=f"{parts.username}:***@{host}"))
    return uri if parts.scheme in ("http", "https") else f"mlflow ui --backend-store-uri {shlex.quote(uri)}"


def check_database(uri: str) -> None:
    """Ask an SQLite database for a moment's hold, because MLflow would try for minutes; others are not asked.

    Raises RunError if another process holds it for longer than two seconds, or it can't be opened.
    """
    path = uri.removeprefix("sqlite:///")
    if path == uri or not Path(path).is_file():
        return
    try:
        with contextlib.closing(sqlite3.connect(path, timeout=_WAIT_S)) as database:
            database.execute("BEGIN IMMEDIATE")
            database.rollback()
    except sqlite3.Error as problem:
        raise RunError(
            f"The MLflow database can't be used: {problem}.",
            fix="If another program holds it, end that program.",
            local_detail=path,
        ) from None

"""What was brought in, so that nothing comes twice: a small SQLite file in the site's records, for its owner alone."""

from __future__ import annotations

import contextlib
import hmac
import os
import sqlite3
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from eucaim_fl.errors import ImportFailedError

__all__ = ["JOURNAL_NAME", "Journal", "Noted", "SeriesRow"]

JOURNAL_NAME = "imports.sqlite3"
_NOTES_AT_ONCE, _LONGEST_WAIT_S = 64, 0.5
_SCHEMA = """
CREATE TABLE IF NOT EXISTS instances (
    key BLOB PRIMARY KEY, source TEXT NOT NULL, place TEXT NOT NULL,
    content TEXT NOT NULL, size INTEGER NOT NULL, mtime_ns INTEGER NOT NULL
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS series (
    patient TEXT NOT NULL, study_uid TEXT NOT NULL, series_uid TEXT NOT NULL, modality TEXT NOT NULL,
    body_part TEXT NOT NULL, manufacturer TEXT NOT NULL, sex TEXT NOT NULL, listed INTEGER NOT NULL DEFAULT 0,
    PRIMARY KEY (patient, study_uid, series_uid)
) WITHOUT ROWID;
"""


@dataclass(frozen=True)
class Noted:
    """One instance that was brought in.

    source: content hash of what the source sent. place: relative to the cohort, POSIX. content: content hash of the
    file there (another one after de-identification); size, mtime_ns: its signature.
    """

    source: str
    place: str
    content: str
    size: int
    mtime_ns: int


@dataclass(frozen=True)
class SeriesRow:
    """What the cohort's tables say of one series. patient: the name of its folder; sex: M, F, O or empty."""

    patient: str
    study_uid: str
    series_uid: str
    modality: str = ""
    body_part: str = ""
    manufacturer: str = ""
    sex: str = ""


class Journal:
    """Notes of one site's imports; may be used from several threads. Instances are named by keyed hashes.

    Raises ImportFailedError if the file can't be opened or is damaged, in any of its methods too.
    """

    def __init__(self, records: Path, key: bytes) -> None:
        self._key = key
        self._path = records / JOURNAL_NAME
        self._lock = threading.Lock()
        self._begun, self._notes = 0.0, 0
        with self._guarded():
            records.mkdir(parents=True, exist_ok=True, mode=0o700)
            os.close(os.open(self._path, os.O_RDWR | os.O_CREAT, 0o600))
            self._path.chmod(0o600)
            self._db = sqlite3.connect(self._path, check_same_thread=False, isolation_level=None)
            self._db.execute("PRAGMA journal_mode = PERSIST")  # not WAL: the folder may lie on a network share
            self._db.execute("PRAGMA synchronous = NORMAL")
            self._db.executescript(_SCHEMA)

    @contextlib.contextmanager
    def _guarded(self) -> Iterator[None]:
        try:
            with self._lock:
                yield
        except (OSError, sqlite3.Error) as problem:
            raise ImportFailedError(
                "The journal of imports can't be used.",
                fix="Check the disk and the permissions of the site's records folder. A damaged journal may be moved "
                "away: the next import compares files instead.",
                local_detail=f"{self._path}: {problem}",
            ) from None

    def key(self, sop_uid: str, *, deidentified: bool) -> bytes:
        """The keyed hash that an instance is noted under; one that is de-identified is another one."""
        kind = b"clean:" if deidentified else b"as is:"
        return hmac.digest(self._key, kind + sop_uid.encode(), "sha256")

    def find(self, key: bytes) -> Noted | None:
        """What is noted of an instance, or None."""
        with self._guarded():
            row = self._db.execute(
                "SELECT source, place, content, size, mtime_ns FROM instances WHERE key = ?", (key,)
            ).fetchone()
        return None if row is None else Noted(*row)

    def note(self, key: bytes, noted: Noted, series: SeriesRow) -> None:
        """Write down an instance and its series.

        Some notes are written together, since each writing waits for the disk. What a killed process had not written
        yet is found out again by comparing files.
        """
        row = series
        with self._guarded():
            if not self._db.in_transaction:
                self._db.execute("BEGIN")
                self._begun, self._notes = time.monotonic(), 0
            self._notes += 1
            self._db.execute(
                "INSERT OR REPLACE INTO instances VALUES (?, ?, ?, ?, ?, ?)",
                (key, noted.source, noted.place, noted.content, noted.size, noted.mtime_ns),
            )
            self._db.execute(
                "INSERT OR IGNORE INTO series VALUES (?, ?, ?, ?, ?, ?, ?, 0)",
                (
                    *(row.patient, row.study_uid, row.series_uid),
                    *(row.modality, row.body_part, row.manufacturer, row.sex),
                ),
            )
            if self._notes >= _NOTES_AT_ONCE or time.monotonic() - self._begun > _LONGEST_WAIT_S:
                self._db.commit()

    def unlisted(self) -> list[SeriesRow]:
        """Series that the cohort's tables were not yet given, in order."""
        with self._guarded():
            rows = self._db.execute(
                "SELECT patient, study_uid, series_uid, modality, body_part, manufacturer, sex FROM series "
                "WHERE listed = 0 ORDER BY patient, study_uid, series_uid"
            ).fetchall()
        return [SeriesRow(*row) for row in rows]

    def listed(self, rows: list[SeriesRow]) -> None:
        """Note that the tables have these series now. A row that the hospital takes out later is not put in again."""
        with self._guarded():
            self._db.commit()
            self._db.executemany(
                "UPDATE series SET listed = 1 WHERE patient = ? AND study_uid = ? AND series_uid = ?",
                [(row.patient, row.study_uid, row.series_uid) for row in rows],
            )

    def close(self) -> None:
        """Write what is left, and close the file."""
        with self._guarded():
            self._db.commit()
            self._db.close()

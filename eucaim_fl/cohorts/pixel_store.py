"""What is known of stacks' pixels, kept by content: a second check reads only what changed."""

from __future__ import annotations

import contextlib
import json
import os
import sqlite3
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from eucaim_fl.cohorts.manifest import Case
from eucaim_fl.cohorts.pixel_facts import PixelFacts, from_json, to_json
from eucaim_fl.errors import CohortError

__all__ = ["STORE_VERSION", "PixelStore", "content_key"]

STORE_VERSION = 2
"""Raised when the same files would give other facts, or facts are written in another way."""
_AT_ONCE = 500


def content_key(case: Case) -> str:
    """SHA-256 (hexadecimal) over all that decides a case's pixel facts; it holds no name.

    An image counts by its indexed content, else by size, time and inode of its files; a label by the latter. A file
    that isn't there counts as such.
    """
    from eucaim_fl.cohorts.cache import combine

    image = [case.facts.content] if case.facts is not None and case.facts.content else _signatures(case.image)
    about = [str(STORE_VERSION), case.image_format, case.stack, case.modality, case.label_format or ""]
    return combine(*about, str(len(image)), *image, *_signatures(case.label))


def _signatures(files: Iterable[Path]) -> list[str]:
    found = []
    for path in files:
        try:
            now = path.stat()
            found.append(f"{now.st_size} {now.st_mtime_ns} {now.st_ino}")
        except OSError:
            found.append("missing")
    return sorted(found)


class PixelStore:
    """Facts by content in one SQLite file, readable by its owner only. Use it with `with`.

    A file that is damaged, or of another version, is made again: it holds nothing that can't be read anew. A killed
    process leaves it whole; a machine that loses power may not.
    Raises CohortError if the folder can't be made or written.
    """

    def __init__(self, folder: Path) -> None:
        self._path = folder / "pixels.sqlite"
        try:
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            try:
                self._connection = self._open()
            except sqlite3.DatabaseError:
                for end in ("", "-journal", "-wal", "-shm"):
                    self._path.with_name(self._path.name + end).unlink(missing_ok=True)
                self._connection = self._open()
        except (OSError, sqlite3.Error) as problem:
            raise self._unwritable(problem) from None

    def _open(self) -> sqlite3.Connection:
        os.close(os.open(self._path, os.O_CREAT | os.O_RDWR, 0o600))
        self._path.chmod(0o600)
        connection = sqlite3.connect(self._path, timeout=60.0)
        try:
            connection.execute("PRAGMA synchronous = OFF")  # a flush for each stack would cost more than reading it
            version = connection.execute("PRAGMA user_version").fetchone()[0]
            if version != STORE_VERSION:
                connection.execute("DROP TABLE IF EXISTS facts")
            connection.execute("CREATE TABLE IF NOT EXISTS facts (key TEXT PRIMARY KEY, value TEXT NOT NULL)")
            connection.execute(f"PRAGMA user_version = {STORE_VERSION:d}")
            connection.commit()
        except sqlite3.Error:
            connection.close()
            raise
        return connection

    def _unwritable(self, problem: Exception) -> CohortError:
        return CohortError(
            "The cache's folder can't be written.",
            fix="Check cache.folder in the site file, its permissions, and the free space.",
            local_detail=f"{self._path}: {problem}",
        )

    def __enter__(self) -> PixelStore:
        return self

    def __exit__(self, *_: object) -> None:
        self._connection.close()

    def known(self, keys: Sequence[str]) -> Iterator[tuple[str, PixelFacts]]:
        """The facts that are kept of these keys; what is damaged counts as unknown."""
        for start in range(0, len(keys), _AT_ONCE):
            part = keys[start : start + _AT_ONCE]
            marks = ",".join("?" * len(part))
            try:
                rows = self._connection.execute(
                    f"SELECT key, value FROM facts WHERE key IN ({marks})",  # noqa: S608 - question marks only
                    part,
                ).fetchall()
            except sqlite3.Error:
                continue
            for key, value in rows:
                with contextlib.suppress(ValueError, TypeError, RecursionError):
                    yield key, from_json(json.loads(value))

    def keep(self, key: str, facts: PixelFacts) -> None:
        """Keep facts under a key. Raises CohortError if they can't be written."""
        try:
            with self._connection:
                self._connection.execute(
                    "INSERT OR REPLACE INTO facts VALUES (?, ?)", (key, json.dumps(to_json(facts), allow_nan=False))
                )
        except sqlite3.Error as problem:
            raise self._unwritable(problem) from None

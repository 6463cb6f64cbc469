"""A small SQLite file of the site's own records: made when it is first needed, one writer at a time."""

from __future__ import annotations

import contextlib
import sqlite3
from collections.abc import Iterator
from pathlib import Path

from eucaim_fl.errors import JournalError

__all__ = ["transaction"]


@contextlib.contextmanager
def transaction(file: Path, schema: str, what: str) -> Iterator[sqlite3.Connection]:
    """One transaction, on the disk when the context ends; nothing of it stands if the body raises.

    schema: statements that make tables where they are missing. what: the record's name in the error.
    Raises JournalError if it can't be read or written.
    """
    connection: sqlite3.Connection | None = None
    try:
        file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        file.touch(mode=0o600, exist_ok=True)
        connection = sqlite3.connect(file, timeout=30.0)
        connection.executescript(schema)
        with connection:
            connection.execute("BEGIN IMMEDIATE")
            yield connection
    except (sqlite3.Error, OSError) as problem:
        raise JournalError(
            f"The site's record of {what} can't be read or written.",
            fix="Check the space and the permissions of the folder beside the site's cache.",
            local_detail=f"{file}: {problem}",
        ) from None
    finally:
        if connection is not None:
            connection.close()

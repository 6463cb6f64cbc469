"""The audit log's files: one SQLite database that only grows, and beside it the signed head.

The database keeps a rollback journal, no write-ahead log: at rest all records are in one file that can be copied, and
nothing that a killed process left beside it can be lost without a word. `synchronous=EXTRA` (FULL, and the folder is
flushed too) makes a record that was confirmed survive a power loss. Readers take short looks, so that they never keep
writers waiting. The triggers guard against accidents; what an attacker does is found by hashes and signatures.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import sqlite3
import time
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any

from eucaim_fl.errors import AuditError
from eucaim_fl.site.audit_chain import SCHEMA, AuditRecord

__all__ = [
    "COLUMNS",
    "DAMAGE",
    "PATIENCE_S",
    "PLAN",
    "AuditFiles",
    "altered",
    "create",
    "failure",
    "guarded",
    "locked",
    "opened",
    "record_of",
    "schema_faults",
    "text_row",
]

PATIENCE_S = 10.0
"""How long a process waits for another one that is writing."""
_POLL_S = 0.002
DAMAGE = (sqlite3.Error, UnicodeError)
"""What reading a damaged database raises; Python's module stumbles over names and messages that are no UTF-8."""
COLUMNS = "seq, time, kind, body, previous, hash, signature"
PLAN = "json_extract(body, '$.plan')"
_LONGEST_VALUE = 1024 * 1024
_KEEP = "BEGIN SELECT RAISE(ABORT, 'the audit log is append-only'); END"
_NEXT = "NEW.seq IS NOT (SELECT coalesce(max(seq), 0) + 1 FROM records)"
_STATEMENTS = (
    "CREATE TABLE about (one INTEGER PRIMARY KEY CHECK (one = 1), schema TEXT NOT NULL, site TEXT NOT NULL, "
    "key TEXT NOT NULL)",
    "CREATE TABLE records (seq INTEGER PRIMARY KEY, time TEXT NOT NULL, kind TEXT NOT NULL, body TEXT NOT NULL, "
    "previous TEXT NOT NULL, hash TEXT NOT NULL, signature TEXT NOT NULL)",
    f"CREATE INDEX records_plan ON records ({PLAN}, kind)",
    "CREATE INDEX records_kind ON records (kind)",
    "CREATE INDEX records_sent ON records (time) WHERE kind = 'sent'",
    f"CREATE INDEX records_permit ON records (json_extract(body, '$.permit'), {PLAN}) "
    "WHERE kind = 'decision' AND json_extract(body, '$.verdict') = 'allow'",
    f"CREATE TRIGGER about_update BEFORE UPDATE ON about {_KEEP}",
    f"CREATE TRIGGER about_delete BEFORE DELETE ON about {_KEEP}",
    f"CREATE TRIGGER records_update BEFORE UPDATE ON records {_KEEP}",
    f"CREATE TRIGGER records_delete BEFORE DELETE ON records {_KEEP}",
    f"CREATE TRIGGER records_insert BEFORE INSERT ON records WHEN {_NEXT} {_KEEP}",
)


class AuditFiles:
    """Names of the files in a log's folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.base = folder / "audit.sqlite"
        self.head = folder / "head.json"
        self.next_head = folder / "head.next.json"
        self.lock = folder / "lock"
        self.queue = folder / "queue"


def failure(problem: sqlite3.Error | UnicodeError | OSError, folder: Path) -> AuditError:
    """What a system's error means for the log."""
    code = getattr(problem, "sqlite_errorcode", None) or 0
    number = problem.errno if isinstance(problem, OSError) else None
    if code & 0xFF == sqlite3.SQLITE_FULL or number in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        what, fix = "The disk is full: nothing was written into the audit log.", "Free some space, then start again."
    elif code & 0xFF in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED):
        what = f"Another process has held the audit log for more than {PATIENCE_S:g} s."
        fix = "Wait for it to end."
    elif isinstance(problem, UnicodeError) or code & 0xFF in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB):
        what, fix = "The audit log is damaged.", "Run `eucaim-fl site audit verify`, and keep the files as they are."
    else:
        what = "The audit log can't be read or written."
        fix = "Check the permissions of its folder, and the disk."
    return AuditError(what, fix=fix, local_detail=f"{folder}: {problem}")


@contextlib.contextmanager
def guarded(folder: Path) -> Iterator[None]:
    """Errors of the system become AuditError. Raises AuditError if SQLite or the system fail inside."""
    try:
        yield
    except (*DAMAGE, OSError) as problem:
        raise failure(problem, folder) from None


@contextlib.contextmanager
def locked(files: AuditFiles, deadline: float) -> Iterator[None]:
    """Hold the right to write; it goes with the process, however it ends. deadline: of `time.monotonic`.

    Who waits next is decided by a lock of its own: a process that writes again and again can't push in before it.
    Raises AuditError if another process holds it for too long, or the folder can't be written.
    """
    with contextlib.ExitStack() as held:
        with guarded(files.folder):
            queue = os.open(files.queue, os.O_RDWR | os.O_CREAT, 0o600)
            held.callback(os.close, queue)
            lock = os.open(files.lock, os.O_RDWR | os.O_CREAT, 0o600)
            held.callback(os.close, lock)
        _take(queue, files, deadline)
        _take(lock, files, deadline)
        fcntl.flock(queue, fcntl.LOCK_UN)
        yield


def _take(handle: int, files: AuditFiles, deadline: float) -> None:
    while True:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return
        except OSError as problem:
            if problem.errno not in (errno.EAGAIN, errno.EACCES):
                raise failure(problem, files.folder) from None
        if time.monotonic() > deadline:
            raise AuditError(
                f"Another process has held the audit log for more than {PATIENCE_S:g} s.",
                fix="Wait for it to end.",
                local_detail=str(files.folder),
            )
        time.sleep(_POLL_S)


@contextlib.contextmanager
def opened(files: AuditFiles, *, write: bool = False) -> Iterator[sqlite3.Connection]:
    """The database; transactions are begun by hand. Without `write` nothing can be changed through it.

    A process that was killed may have left a journal; it is rolled back by whoever opens the database next and may
    write in the folder. Raises what SQLite raises.
    """
    may_write = write or (os.access(files.base, os.W_OK) and os.access(files.folder, os.W_OK))
    address = f"{files.base.absolute().as_uri()}?mode={'rw' if may_write else 'ro'}"
    connection = sqlite3.connect(address, uri=True, timeout=PATIENCE_S, isolation_level=None)
    try:
        connection.setlimit(sqlite3.SQLITE_LIMIT_LENGTH, _LONGEST_VALUE)
        connection.text_factory = _text
        if write:
            connection.execute("PRAGMA journal_mode = DELETE")
            connection.execute("PRAGMA synchronous = EXTRA")
        else:
            connection.execute("PRAGMA query_only = ON")
        yield connection
    finally:
        connection.close()


def _text(raw: bytes) -> str:
    """Bytes that are no UTF-8 become marks that no hash fits, not an error in the middle of a log."""
    return raw.decode("utf-8", "replace")


def create(connection: sqlite3.Connection, site: str, public: str) -> None:
    """Tables, indexes and triggers of an empty log, inside a transaction of the caller's."""
    for statement in _STATEMENTS:
        connection.execute(statement)
    connection.execute("INSERT INTO about VALUES (1, ?, ?, ?)", (SCHEMA, site, public))


@lru_cache(maxsize=1)
def _expected() -> frozenset[tuple[str, str, str]]:
    with contextlib.closing(sqlite3.connect(":memory:")) as empty:
        for statement in _STATEMENTS:
            empty.execute(statement)
        return frozenset(empty.execute("SELECT type, name, sql FROM sqlite_master"))


def schema_faults(connection: sqlite3.Connection) -> tuple[tuple[str, ...], bool]:
    """What differs between the database's structure and that of an audit log, and whether its tables are tables.

    What pretends to be a table (a view, a virtual table) must not be read: it can be endless.
    Raises what SQLite raises.
    """
    found = frozenset(connection.execute("SELECT type, name, sql FROM sqlite_master LIMIT 1000"))
    faults = []
    differing = {kind for kind, _, _ in found ^ _expected()}
    if "trigger" in differing:
        faults.append("The database's guards against changes were removed or altered.")
    if differing - {"trigger"}:
        faults.append("The database's tables or indexes are not those of an audit log.")
    tables = {name for kind, name, sql in found if kind == "table" and str(sql).startswith("CREATE TABLE")}
    return tuple(faults), {"about", "records"} <= tables


def text_row(record: AuditRecord, body: bytes) -> tuple[int, str, str, str, str, str, str]:
    """A record as a row; body: as canonical JSON."""
    return (
        record.seq,
        record.time,
        record.kind,
        body.decode(),
        record.previous,
        record.hash,
        record.signature,
    )


def altered(folder: Path) -> AuditError:
    """The error of a reader that finds what no log holds."""
    return AuditError(
        "The audit log was altered: a record can't be read.",
        fix="Run `eucaim-fl site audit verify`, and keep the files as they are.",
        local_detail=str(folder),
    )


def record_of(row: tuple[Any, ...], folder: Path) -> AuditRecord:
    """A row as a record. Raises AuditError if something else stands in it."""
    seq, when, kind, text, previous, digest, signature = row
    try:
        body = json.loads(text)
    except (ValueError, TypeError, RecursionError):
        body = None
    texts = all(isinstance(value, str) for value in (when, kind, previous, digest, signature))
    if not isinstance(body, dict) or not texts or not isinstance(seq, int):
        raise altered(folder)
    return AuditRecord(seq, when, kind, body, previous, digest, signature)

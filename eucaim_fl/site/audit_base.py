"""The files of a chained log (audit log, privacy ledger): a SQLite database that only grows, beside it the signed head.

`synchronous` makes a record that was confirmed survive a power loss. Readers take short looks, so that they never keep
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

from eucaim_fl.errors import EucaimError
from eucaim_fl.site.audit_chain import AuditRecord
from eucaim_fl.site.log_kind import AUDIT, PLAN, LogKind

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


class AuditFiles:
    """Names of the files in a log's folder."""

    def __init__(self, folder: Path, kind: LogKind = AUDIT) -> None:
        self.folder, self.kind = folder, kind
        self.base = folder / kind.file
        self.head = folder / "head.json"
        self.next_head = folder / "head.next.json"
        self.lock = folder / "lock"
        self.queue = folder / "queue"


def failure(problem: sqlite3.Error | UnicodeError | OSError, folder: Path, kind: LogKind = AUDIT) -> EucaimError:
    """What a system's error means for the log."""
    code = getattr(problem, "sqlite_errorcode", None) or 0
    number = problem.errno if isinstance(problem, OSError) else None
    if code & 0xFF == sqlite3.SQLITE_FULL or number in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        what = f"The disk is full: nothing was written into the {kind.name}."
        fix = "Free some space, then start again."
    elif code & 0xFF in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED):
        what = f"Another process has held the {kind.name} for more than {PATIENCE_S:g} s."
        fix = "Wait for it to end."
    elif isinstance(problem, UnicodeError) or code & 0xFF in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB):
        what, fix = f"The {kind.name} is damaged.", kind.damaged
    else:
        what = f"The {kind.name} can't be read or written."
        fix = "Check the permissions of its folder, and the disk."
    return kind.error(what, fix=fix, local_detail=f"{folder}: {problem}")


@contextlib.contextmanager
def guarded(folder: Path, kind: LogKind = AUDIT) -> Iterator[None]:
    """Errors of the system become the log's. Raises AuditError (or its like) if SQLite or the system fail inside."""
    try:
        yield
    except (*DAMAGE, OSError) as problem:
        raise failure(problem, folder, kind) from None


@contextlib.contextmanager
def locked(files: AuditFiles, deadline: float) -> Iterator[None]:
    """Hold the right to write; it goes with the process, however it ends. deadline: of `time.monotonic`.

    Who waits next is decided by a lock of its own: a process that writes again and again can't push in before it.
    Raises AuditError (or its like) if another process holds it for too long, or the folder can't be written.
    """
    with contextlib.ExitStack() as held:
        with guarded(files.folder, files.kind):
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
                raise failure(problem, files.folder, files.kind) from None
        if time.monotonic() > deadline:
            raise files.kind.error(
                f"Another process has held the {files.kind.name} for more than {PATIENCE_S:g} s.",
                fix="Wait for it to end.",
                local_detail=str(files.folder),
            )
        time.sleep(_POLL_S)


@contextlib.contextmanager
def opened(files: AuditFiles, *, write: bool = False) -> Iterator[sqlite3.Connection]:
    """The database; transactions are begun by hand. Without `write` nothing can be changed through it.

    A process that was killed may have left a journal; it is rolled back (of a write-ahead log, taken in) by whoever
    opens the database next and may write in the folder. Raises what SQLite raises.
    """
    kind = files.kind
    may_write = write or (os.access(files.base, os.W_OK) and os.access(files.folder, os.W_OK))
    address = f"{files.base.absolute().as_uri()}?mode={'rw' if may_write else 'ro'}"
    if not may_write and kind.journal == "WAL" and not files.base.with_name(f"{files.base.name}-wal").exists():
        address += "&immutable=1"  # SQLite would make files beside a database with a write-ahead log, even to read it
    connection = sqlite3.connect(address, uri=True, timeout=PATIENCE_S, isolation_level=None)
    try:
        connection.setlimit(sqlite3.SQLITE_LIMIT_LENGTH, kind.largest_value)
        connection.text_factory = _text
        if write:
            connection.execute(f"PRAGMA journal_mode = {kind.journal}")
            connection.execute(f"PRAGMA synchronous = {kind.synchronous}")
        else:
            connection.execute("PRAGMA query_only = ON")
        yield connection
    finally:
        connection.close()


def _text(raw: bytes) -> str:
    """Bytes that are no UTF-8 become marks that no hash fits, not an error in the middle of a log."""
    return raw.decode("utf-8", "replace")


def create(connection: sqlite3.Connection, site: str, public: str, kind: LogKind = AUDIT) -> None:
    """Tables, indexes and triggers of an empty log, inside a transaction of the caller's."""
    for statement in kind.statements:
        connection.execute(statement)
    connection.execute("INSERT INTO about VALUES (1, ?, ?, ?)", (kind.schema, site, public))


@lru_cache(maxsize=4)
def _expected(kind: LogKind = AUDIT) -> frozenset[tuple[str, str, str]]:
    with contextlib.closing(sqlite3.connect(":memory:")) as empty:
        for statement in kind.statements:
            empty.execute(statement)
        return frozenset(empty.execute("SELECT type, name, sql FROM sqlite_master"))


def schema_faults(connection: sqlite3.Connection, kind: LogKind = AUDIT) -> tuple[tuple[str, ...], bool]:
    """What differs between the database's structure and that of such a log, and whether its tables are tables.

    What pretends to be a table (a view, a virtual table) must not be read: it can be endless.
    Raises what SQLite raises.
    """
    found = frozenset(connection.execute("SELECT type, name, sql FROM sqlite_master LIMIT 1000"))
    faults = []
    differing = {what for what, _, _ in found ^ _expected(kind)}
    if "trigger" in differing:
        faults.append("The database's guards against changes were removed or altered.")
    if differing - {"trigger"}:
        faults.append(f"The database's tables or indexes are not those of {kind.a_name}.")
    return tuple(faults), _tables(_expected(kind)) <= _tables(found)


def _tables(structure: frozenset[tuple[str, str, str]]) -> set[str]:
    return {name for what, name, sql in structure if what == "table" and str(sql).startswith("CREATE TABLE")}


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


def altered(folder: Path, kind: LogKind = AUDIT) -> EucaimError:
    """The error of a reader that finds what no log holds."""
    return kind.error(
        f"The {kind.name} was altered: a record can't be read.", fix=kind.damaged, local_detail=str(folder)
    )


def record_of(row: tuple[Any, ...], folder: Path, kind: LogKind = AUDIT) -> AuditRecord:
    """A row as a record. Raises AuditError (or its like) if something else stands in it."""
    seq, when, word, text, previous, digest, signature = row
    try:
        body = json.loads(text)
    except (ValueError, TypeError, RecursionError):
        body = None
    texts = all(isinstance(value, str) for value in (when, word, previous, digest, signature))
    if not isinstance(body, dict) or not texts or not isinstance(seq, int):
        raise altered(folder, kind)
    return AuditRecord(seq, when, word, body, previous, digest, signature)

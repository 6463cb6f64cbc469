"""How a chained log is written: one transaction a record, under a lock, its signed head prepared before the commit.

A crash between commit and head leaves the log ahead of its head, which is fine as long as the records chain; it is
never behind.
"""

from __future__ import annotations

import contextlib
import datetime
import sqlite3
import time
from collections.abc import Callable, Iterator, Mapping

from pydantic import JsonValue

from eucaim_fl.durable import flush_folder, write_atomically
from eucaim_fl.errors import JournalError
from eucaim_fl.signing import PrivateKey, canonical_json
from eucaim_fl.site.audit_base import AuditFiles, create, guarded, locked, opened, schema_faults, text_row
from eucaim_fl.site.audit_chain import AuditRecord, Head, LogIdentity, seal_record, sign_head
from eucaim_fl.site.audit_reader import utc_text
from eucaim_fl.site.audit_verify import end_faults, head_bytes

__all__ = ["ChainWriter"]


class ChainWriter:
    """The writing end of one log. Several processes and threads may have one of the same log.

    clock: says the time of a record, aware.
    """

    def __init__(
        self, files: AuditFiles, key: PrivateKey, identity: LogIdentity, clock: Callable[[], datetime.datetime]
    ) -> None:
        self._files, self._key, self._clock = files, key, clock
        self._identity = identity
        self._seen: Head | None = None

    @contextlib.contextmanager
    def writing(self, patience_s: float) -> Iterator[sqlite3.Connection]:
        """The database inside a transaction, which no other process writes to meanwhile.

        Raises AuditError (or its like) if another process holds the log for longer, or SQLite or the system fail.
        """
        with locked(self._files, time.monotonic() + patience_s), self.transaction() as base:
            yield base

    @contextlib.contextmanager
    def transaction(self) -> Iterator[sqlite3.Connection]:
        """The same, for who holds the lock already. Raises AuditError (or its like) if SQLite or the system fail."""
        files = self._files
        with guarded(files.folder, files.kind):
            if not files.base.exists() and not files.head.exists() and self._seen is None:
                files.base.touch(mode=0o600)
            with opened(files, write=True) as base:
                base.execute("BEGIN IMMEDIATE")
                try:
                    yield base
                finally:
                    if base.in_transaction:
                        with contextlib.suppress(sqlite3.Error):
                            base.execute("ROLLBACK")

    def begin(self, base: sqlite3.Connection, depth: int) -> None:
        """Make the tables of a log that has none, check the last records and the head, and show a head if none is.

        Raises AuditError (or its like) if the log was altered, is another's, or can't be written.
        """
        files = self._files
        if base.execute("SELECT count(*) FROM sqlite_master").fetchone()[0] == 0 and not files.head.exists():
            create(base, self._identity.site, self._identity.public, files.kind)
            base.execute("COMMIT")
        end = self.checked_end(base, depth)
        if not files.head.exists():
            self._prepare_head(end)
            self._show_head()
        self._seen = end

    def add(self, base: sqlite3.Connection, end: Head, word: str, body: Mapping[str, JsonValue]) -> AuditRecord:
        """Add a record after `end`, as `checked_end` found it, and commit; word: the record's kind.

        Raises AuditError (or its like) if it can't be written; nothing is left half-written.
        """
        log, site = self._files.kind, self._identity.site
        record = seal_record(self._key, site, end, utc_text(self._clock()), word, body, log)
        row = text_row(record, canonical_json(dict(body)))
        head = Head(record.seq, record.hash)
        base.execute("INSERT INTO records VALUES (?, ?, ?, ?, ?, ?, ?)", row)
        try:
            self._prepare_head(head)  # before the commit, since a full disk must leave neither
            base.execute("COMMIT")
        except BaseException:
            with contextlib.suppress(OSError):
                self._files.next_head.unlink(missing_ok=True)
            raise
        self._seen = head
        self._show_head()
        return record

    def checked_end(self, base: sqlite3.Connection, depth: int) -> Head:
        """The head of the records, if the end of the log is sound and what this process saw is still there.

        Raises AuditError (or its like) if it is not.
        """
        kind = self._files.kind
        faults = list(schema_faults(base, kind)[0])
        if not faults:
            about = base.execute("SELECT site, key FROM about").fetchall()
            if about != [(self._identity.site, self._identity.public)]:
                raise kind.error(
                    f"The {kind.name} is that of another site or another key.",
                    fix=kind.foreign,
                    local_detail=str(self._files.folder),
                )
            found, head = end_faults(base, self._identity, head_bytes(self._files), depth)
            faults += found
            seen = self._seen
            if seen is not None and seen.count:
                kept = base.execute("SELECT hash FROM records WHERE seq = ?", (seen.count,)).fetchone()
                faults += [] if kept == (seen.hash,) else [f"Record {seen.count} was changed or removed."]
        if faults:
            raise kind.error(
                f"The {kind.name} was altered, so nothing is added to it.",
                fix=kind.advice,
                local_detail=f"{self._files.folder}: {' '.join(faults)}",
            )
        return head

    def _prepare_head(self, head: Head) -> None:
        kind = self._files.kind
        content = sign_head(self._key, self._identity.site, head, utc_text(self._clock()), kind)
        try:
            write_atomically(self._files.next_head, content)
        except JournalError as problem:
            full = "full" in problem.message
            what = "The disk is full: nothing was" if full else "Nothing can be"
            raise kind.error(
                f"{what} written into the {kind.name}.",
                fix="Free some space, then start again." if full else "Check the permissions of its folder.",
                local_detail=problem.local_detail,
            ) from None

    def _show_head(self) -> None:
        """Put the prepared head in the place of the old one; the records are on the disk by now."""
        self._files.next_head.replace(self._files.head)
        flush_folder(self._files.folder)

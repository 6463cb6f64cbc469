"""The site's audit log: what was asked, what was decided and why, what left. It can only be added to.

Each record is chained to the one before it by a hash and signed with the site's key (`audit_chain`). What can't be
written down must not happen: `append` raises, and its caller stops. Beside the database lies the signed head, so that
cutting off the end of the database alone is seen. A crash between the two leaves the log ahead of its head, which is
fine as long as the records chain; it is never behind.

Kinds and their bodies (all values are codes, numbers and hashes):
    started, stopped   version, policy_sha256, pid
    decision           plan, name, kind, round, instruction, holder, permit, permit_unverified (the plan names one,
                       but holder and permit are left empty since nobody vouches for them), purpose, verdict (allow,
                       wait, refuse), reasons, policy_sha256
    approved, refused  plan, by (the login name of who decided), stated_by (the name that person gave, if one)
    sent               plan, kind, round, digest, bytes, arrays, patients, metrics ({split: [names]}), update_norm,
                       epsilon, instruction; or, when the same bytes leave once more: plan, kind, round, digest, bytes,
                       instruction, again
    withheld           plan, kind, round, instruction, code, digest, bytes, reasons
    ignored            code, count (messages that the coordinator had not signed for this site; one record a minute)
    exported           count, format, digest, since, until
"""

from __future__ import annotations

import contextlib
import datetime
import sqlite3
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from pydantic import JsonValue

from eucaim_fl.durable import flush_folder, write_atomically
from eucaim_fl.errors import AuditError, JournalError
from eucaim_fl.signing import PrivateKey, canonical_json
from eucaim_fl.site.audit_base import (
    PATIENCE_S,
    AuditFiles,
    create,
    guarded,
    locked,
    opened,
    schema_faults,
    text_row,
)
from eucaim_fl.site.audit_chain import AuditRecord, Head, LogIdentity, seal_record, sign_head
from eucaim_fl.site.audit_reader import AuditReader, Sent, utc_text
from eucaim_fl.site.audit_verify import end_faults, head_bytes, verify_log

__all__ = ["AuditLog", "AuditReader", "AuditRecord", "Head", "Sent", "verify_log"]

_CHECKED_AT_OPENING = 100
_DO = "Run `eucaim-fl site audit verify`, keep the files as they are, and tell the coordinator."


def _now() -> datetime.datetime:
    return datetime.datetime.now(datetime.UTC)


class AuditLog(AuditReader):
    """The log with the key that writes it. Several processes and threads may hold one and append.

    clock: says the time of a record, aware.
    """

    def __init__(
        self, folder: Path, key: PrivateKey, site: str, *, clock: Callable[[], datetime.datetime] = _now
    ) -> None:
        """Open a site's log, or begin it; the last 100 records and the head are checked.

        Raises AuditError if it can't be written, is held by another process for more than 10 s, or was altered.
        """
        self._key, self._clock = key, clock
        self._seen: Head | None = None
        self._identity = LogIdentity(site, key.public)
        self._files = files = AuditFiles(folder)
        with guarded(folder):
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        with self._writing() as base:
            if base.execute("SELECT count(*) FROM sqlite_master").fetchone()[0] == 0 and not files.head.exists():
                create(base, site, key.public)
                base.execute("COMMIT")
            end = self._checked_end(base, _CHECKED_AT_OPENING)
            if not files.head.exists():
                self._prepare_head(end)
                self._show_head()
            self._seen = end
        super().__init__(folder)

    def append(self, kind: str, body: Mapping[str, JsonValue]) -> Head:
        """Add a record; when this returns, it is on the disk and the log's head names it.

        Raises AuditError if it can't be written (nothing is left half-written), is no JSON or above 64 KiB, the log is
        held by another process for more than 10 s, or its end was altered.
        """
        with self._writing() as base:
            end = self._checked_end(base, 1)
            record = seal_record(self._key, self._identity.site, end, utc_text(self._clock()), kind, body)
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
            return head

    def sign(self, purpose: str, value: JsonValue) -> str:
        """A signature by the site's key, for what is made from the log."""
        return self._key.sign(purpose, value)

    def identity(self) -> LogIdentity:
        """Whose log it is."""
        return self._identity

    @contextlib.contextmanager
    def _writing(self) -> Iterator[sqlite3.Connection]:
        """The database inside a transaction, which no other process writes to meanwhile."""
        files = self._files
        with locked(files, time.monotonic() + PATIENCE_S), guarded(files.folder):
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

    def _checked_end(self, base: sqlite3.Connection, depth: int) -> Head:
        """The head of the records, if the end of the log is sound and what this process saw is still there."""
        faults = list(schema_faults(base)[0])
        if not faults:
            about = base.execute("SELECT site, key FROM about").fetchall()
            if about != [(self._identity.site, self._identity.public)]:
                raise AuditError(
                    "The audit log is that of another site or another key.",
                    fix="A new key needs a new log: move the old one away, and keep it.",
                    local_detail=str(self._files.folder),
                )
            found, head = end_faults(base, self._identity, head_bytes(self._files), depth)
            faults += found
            seen = self._seen
            if seen is not None and seen.count:
                kept = base.execute("SELECT hash FROM records WHERE seq = ?", (seen.count,)).fetchone()
                faults += [] if kept == (seen.hash,) else [f"Record {seen.count} was changed or removed."]
        if faults:
            raise AuditError(
                "The audit log was altered, so nothing is added to it.",
                fix=_DO,
                local_detail=f"{self._files.folder}: {' '.join(faults)}",
            )
        return head

    def _prepare_head(self, head: Head) -> None:
        content = sign_head(self._key, self._identity.site, head, utc_text(self._clock()))
        try:
            write_atomically(self._files.next_head, content)
        except JournalError as problem:
            full = "full" in problem.message
            what = "The disk is full: nothing was" if full else "Nothing can be"
            raise AuditError(
                f"{what} written into the audit log.",
                fix="Free some space, then start again." if full else "Check the permissions of its folder.",
                local_detail=problem.local_detail,
            ) from None

    def _show_head(self) -> None:
        """Put the prepared head in the place of the old one; the records are on the disk by now."""
        self._files.next_head.replace(self._files.head)
        flush_folder(self._files.folder)

"""The site's audit log: what was asked, what was decided and why, what left. It can only be added to.

Each record is chained to the one before it by a hash and signed with the site's key (`audit_chain`). What can't be
written down must not happen: `append` raises, and its caller stops. Beside the database lies the signed head, so that
cutting off the end of the database alone is seen. A crash between the two leaves the log ahead of its head, which is
fine as long as the records chain; it is never behind.

Kinds and their bodies (all values are codes, numbers and hashes, but for one folder):
    started, stopped   version, policy_sha256, pid
    decision           plan, name, kind, round, instruction, holder, permit, permit_unverified (the plan names one,
                       but holder and permit are left empty since nobody vouches for them), purpose, verdict (allow,
                       wait, refuse), reasons, policy_sha256
    approved, refused  plan, by (the login name of who decided), stated_by (the name that person gave, if one)
    sent               plan, kind, round, digest, bytes, arrays, patients, metrics ({split: [names]}), update_norm,
                       epsilon, instruction; or, when the same bytes leave once more: plan, kind, round, digest, bytes,
                       instruction, again
                       (record: SHA-256 of what the site signed of frozen models, where it did)
    withheld           plan, kind, round, instruction, code, digest, bytes, reasons
    ignored            code, count (messages that the coordinator had not signed for this site; one record a minute)
    exported           count, format, digest, since, until
    ledger_replaced    ledger_count, ledger (number of records and head of the privacy ledger that was begun anew),
                       lost_count, lost (of the one that is lost, as the log knew it last; null: it did not), charges,
                       plans (how many of each everybody is charged with), folder (where ledger and record of who was
                       used were looked for), lineage_missing (that record was: a person said that no plan with noise
                       was trained without the client), by, stated_by; written before the files are moved
"""

from __future__ import annotations

import datetime
from collections.abc import Callable, Mapping
from pathlib import Path

from pydantic import JsonValue

from eucaim_fl.signing import PrivateKey
from eucaim_fl.site.audit_base import PATIENCE_S, AuditFiles, guarded
from eucaim_fl.site.audit_chain import AuditRecord, Head, LogIdentity
from eucaim_fl.site.audit_reader import AuditReader, Sent
from eucaim_fl.site.audit_verify import verify_log
from eucaim_fl.site.chain_writer import ChainWriter

__all__ = ["AuditLog", "AuditReader", "AuditRecord", "Head", "Sent", "verify_log"]

_CHECKED_AT_OPENING = 100


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
        self._identity = LogIdentity(site, key.public)
        with guarded(folder):
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._writer = ChainWriter(AuditFiles(folder), key, self._identity, lambda: self._clock())
        with self._writer.writing(PATIENCE_S) as base:
            self._writer.begin(base, _CHECKED_AT_OPENING)
        super().__init__(folder)

    def append(self, kind: str, body: Mapping[str, JsonValue]) -> Head:
        """Add a record; when this returns, it is on the disk and the log's head names it.

        Raises AuditError if it can't be written (nothing is left half-written), is no JSON or above 64 KiB, the log is
        held by another process for more than 10 s, or its end was altered.
        """
        with self._writer.writing(PATIENCE_S) as base:
            record = self._writer.add(base, self._writer.checked_end(base, 1), kind, body)
        return Head(record.seq, record.hash)

    def sign(self, purpose: str, value: JsonValue) -> str:
        """A signature by the site's key, for what is made from the log."""
        return self._key.sign(purpose, value)

    def identity(self) -> LogIdentity:
        """Whose log it is."""
        return self._identity

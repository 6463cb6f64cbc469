"""What the site's chained logs have in common, and in what they differ: name, tables, error, and how SQLite keeps them.

Two logs are chained and signed alike: the audit log (what was asked and what left) and the privacy ledger (what was
paid for). All code that knows of hashes, signatures and files takes a `LogKind`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from eucaim_fl.errors import AuditError, EucaimError

__all__ = ["AUDIT", "PLAN", "LogKind", "tables"]

PLAN = "json_extract(body, '$.plan')"
_NEXT = "NEW.seq IS NOT (SELECT coalesce(max(seq), 0) + 1 FROM records)"


@dataclass(frozen=True)
class LogKind:
    """One kind of chained log.

    schema: name and version, which the hashes cover. name: in sentences. file: of the database. error: what is raised.
    keeper: who keeps heads of it elsewhere. advice: what to do with one that was altered; damaged: with one that can't
    be read; foreign: with one of another site or key. missing: when a log comes into being. statements: that make its
    tables. journal, synchronous: as SQLite has them. largest_value: in bytes, of one value.
    """

    schema: str
    name: str
    file: str
    error: type[EucaimError]
    keeper: str
    advice: str
    damaged: str
    foreign: str
    missing: str
    statements: tuple[str, ...]
    journal: Literal["DELETE", "WAL"]
    synchronous: Literal["FULL", "EXTRA"]
    largest_value: int = 1024 * 1024

    @property
    def a_name(self) -> str:
        """The name with its article."""
        return f"{'an' if self.name[0] in 'aeiou' else 'a'} {self.name}"

    @property
    def short(self) -> str:
        """The last word of the name."""
        return self.name.split()[-1]

    @property
    def record_purpose(self) -> str:
        """For what a record's signature is; no other log's signature fits."""
        return f"{self.schema.split('-')[-1].partition('/')[0]} record"

    @property
    def head_purpose(self) -> str:
        """For what the signature of the head's file is."""
        return f"{self.schema.split('-')[-1].partition('/')[0]} head"


def tables(name: str, *, indexes: tuple[str, ...] = (), more: tuple[str, ...] = ()) -> tuple[str, ...]:
    """Statements that make the tables of a chained log, and the guards that stop accidents.

    indexes: statements between the two. more: statements of further tables and their guards, at the end.
    """
    keep = f"BEGIN SELECT RAISE(ABORT, 'the {name} is append-only'); END"
    return (
        "CREATE TABLE about (one INTEGER PRIMARY KEY CHECK (one = 1), schema TEXT NOT NULL, site TEXT NOT NULL, "
        "key TEXT NOT NULL)",
        "CREATE TABLE records (seq INTEGER PRIMARY KEY, time TEXT NOT NULL, kind TEXT NOT NULL, body TEXT NOT NULL, "
        "previous TEXT NOT NULL, hash TEXT NOT NULL, signature TEXT NOT NULL)",
        f"CREATE INDEX records_plan ON records ({PLAN}, kind)",
        *indexes,
        f"CREATE TRIGGER about_update BEFORE UPDATE ON about {keep}",
        f"CREATE TRIGGER about_delete BEFORE DELETE ON about {keep}",
        f"CREATE TRIGGER records_update BEFORE UPDATE ON records {keep}",
        f"CREATE TRIGGER records_delete BEFORE DELETE ON records {keep}",
        f"CREATE TRIGGER records_insert BEFORE INSERT ON records WHEN {_NEXT} {keep}",
        *more,
    )


AUDIT = LogKind(
    schema="eucaim-fl-audit/1",
    name="audit log",
    file="audit.sqlite",
    error=AuditError,
    keeper="the coordinator",
    advice="Run `eucaim-fl site audit verify`, keep the files as they are, and tell the coordinator.",
    damaged="Run `eucaim-fl site audit verify`, and keep the files as they are.",
    foreign="A new key needs a new log: move the old one away, and keep it.",
    missing="It is made when the site's client starts for the first time.",
    statements=tables(
        "audit log",
        indexes=(
            "CREATE INDEX records_kind ON records (kind)",
            "CREATE INDEX records_sent ON records (time) WHERE kind = 'sent'",
            f"CREATE INDEX records_permit ON records (json_extract(body, '$.permit'), {PLAN}) "
            "WHERE kind = 'decision' AND json_extract(body, '$.verdict') = 'allow'",
        ),
    ),
    journal="DELETE",
    synchronous="EXTRA",
)
"""It keeps a rollback journal, no write-ahead log: at rest all records are in one file that can be copied, and nothing
that a killed process left beside it can be lost without a word. EXTRA is FULL, and the folder is flushed too."""

"""Whether a chained log is what this site wrote: every record, their chain, the signed head, the coordinator's heads.

Whoever holds the site's key can rebuild a whole log, with hashes and signatures that fit. Only heads that somebody else
kept notice that, which is why the coordinator keeps them.
"""

from __future__ import annotations

import sqlite3
import stat
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from eucaim_fl.site.audit_base import COLUMNS, DAMAGE, AuditFiles, failure, opened, schema_faults
from eucaim_fl.site.audit_chain import ChainCheck, Head, LogIdentity, Witness, read_head
from eucaim_fl.site.log_kind import LogKind

__all__ = ["chain_faults", "end_faults", "head_bytes", "rows_after", "verify_log"]

_BATCH = 1000
_LARGEST_HEAD_BYTES = 16 * 1024
_NOT_DAMAGE = (
    sqlite3.SQLITE_BUSY,
    sqlite3.SQLITE_LOCKED,
    sqlite3.SQLITE_PERM,
    sqlite3.SQLITE_NOMEM,
    sqlite3.SQLITE_CANTOPEN,
    sqlite3.SQLITE_READONLY,  # a copy made in the middle of a write, where the journal can't be rolled back
)


def verify_log(folder: Path, public: str, heads: Sequence[Head] = (), *, site: str | None = None) -> tuple[str, ...]:
    """Everything that is wrong with a log, in plain words with the records' numbers; () if it is intact.

    public: the site's public key, from somewhere else than the log. heads: those that the coordinator kept. site: the
    name that the log must have; None takes the one that it states. Nothing is written, and a client that is at work is
    not disturbed; a record that it writes meanwhile is checked or not.
    Raises AuditError if the log can't be looked at: it is held by another process, may not be read, or was copied in
    the middle of a write to where nothing may be written.
    """
    return chain_faults(AuditFiles(folder), public, heads, site=site)


def chain_faults(
    files: AuditFiles,
    public: str | None,
    heads: Sequence[Head] = (),
    *,
    site: str | None = None,
    more: Callable[[sqlite3.Connection], Sequence[str]] | None = None,
) -> tuple[str, ...]:
    """As `verify_log`, of any chained log.

    public: None takes the key that the log states. more: faults of its own kind; asked where the tables are tables.

    Raises AuditError (or its like) if the log can't be looked at.
    """
    kind = files.kind
    try:
        missing = [
            f"The {kind.short}'s {name} is missing."
            for path, name in ((files.base, "database"), (files.head, "signed head"))
            if not _is_file(path)
        ]
        raw = head_bytes(files)  # before the records: those that are written meanwhile are ahead of it, never behind
    except OSError as problem:
        raise failure(problem, files.folder, kind) from None
    if not _is_file(files.base):
        return tuple(missing)
    faults: list[str] = []
    identity: LogIdentity | None = None
    check: ChainCheck | None = None
    strangers: tuple[str, ...] = ()
    try:
        with opened(files) as base:
            found, readable = schema_faults(base, kind)
            faults += found
            if not readable:
                return (*missing, *faults)
            identity, strange = _identity(base, kind, public, site)
            faults += strange
            strangers, fitting = _compare(base, identity, heads)
            check = ChainCheck(identity, _witnesses(raw, identity, fitting))
            for row in rows_after(base):
                check.take(row)
            faults += [] if more is None else more(base)
            sound = [str(found) for (found,) in base.execute("PRAGMA integrity_check(1)")] == ["ok"]
            faults += [] if sound else ["The database's pages or indexes are damaged or were altered."]
    except DAMAGE as problem:
        if (getattr(problem, "sqlite_errorcode", None) or 0) & 0xFF in _NOT_DAMAGE:
            raise failure(problem, files.folder, kind) from None
        after = f" after record {check.count}" if check is not None and check.count else ""
        faults.append(f"The database can't be read{after}: it is damaged, or no {kind.name}.")
    if raw is not None and identity is not None and read_head(raw, identity) is None:
        faults.append(f"The {kind.short}'s signed head was altered, or is that of another site or key.")
    return (*missing, *faults, *strangers, *(check.faults() if check is not None else ()))


def end_faults(
    base: sqlite3.Connection, identity: LogIdentity, raw_head: bytes | None, depth: int
) -> tuple[tuple[str, ...], Head]:
    """What is wrong with the last `depth` records and the signed head, and the head of the records; a cheap look.

    raw_head: content of the head's file, None if there is none. Raises what SQLite raises.
    """
    head = identity.start
    last = base.execute("SELECT max(seq) FROM records").fetchone()[0] or 0
    kept = None if raw_head is None else read_head(raw_head, identity)
    first = max(0, last - depth)
    if kept is not None:  # what is ahead of the head must chain, however much it is
        first = max(0, min(first, kept.count - 1))
    if first:
        found = base.execute("SELECT seq, hash FROM records WHERE seq = ?", (first,)).fetchone()
        if found is None:
            return (f"Record {first} is missing.",), head
        head = Head(*found)
    check = ChainCheck(identity, [] if kept is None else [Witness(kept, "head")], head if first else None)
    for row in rows_after(base, first):
        check.take(row)
    faults = list(check.faults())
    if kept is None and (last or raw_head is not None):
        short = identity.kind.short
        faults.append(f"The {short}'s signed head is missing, was altered, or is that of another site or key.")
    if last:
        head = Head(*base.execute("SELECT seq, hash FROM records WHERE seq = ?", (last,)).fetchone())
    return tuple(faults), head


def _is_file(path: Path) -> bool:
    """Whether there is a plain file; whatever else stands there is not opened."""
    try:
        return stat.S_ISREG(path.stat().st_mode)
    except FileNotFoundError:
        return False


def head_bytes(files: AuditFiles) -> bytes | None:
    """Content of the head's file, None if there is none. What the system raises is not caught."""
    if not _is_file(files.head):
        return None
    with files.head.open("rb") as stream:
        return stream.read(_LARGEST_HEAD_BYTES)


def _identity(
    base: sqlite3.Connection, kind: LogKind, public: str | None, site: str | None
) -> tuple[LogIdentity, list[str]]:
    """Whose log it must be, and where the database says something else."""
    found = base.execute("SELECT schema, site, key FROM about LIMIT 2").fetchall()
    if len(found) != 1 or not all(isinstance(value, str) for value in found[0]):
        return LogIdentity(site or "", public or "", kind), [f"The database does not say whose {kind.short} it is."]
    schema, stated, key = found[0]
    faults = []
    if schema != kind.schema:
        faults.append(f"The {kind.short} is of another version.")
    if site is not None and stated != site:
        faults.append(f"The {kind.short} says that it is another site's.")
    if public is not None and key != public:
        faults.append(f"The {kind.short} says that it is of another key.")
    return LogIdentity(site or stated, public or key, kind), faults


def _witnesses(raw: bytes | None, identity: LogIdentity, heads: Sequence[Head]) -> Iterator[Witness]:
    kept = None if raw is None else read_head(raw, identity)
    if kept is not None:
        yield Witness(kept, "head")
    for head in heads:
        yield Witness(head, "coordinator")


def _compare(
    base: sqlite3.Connection, identity: LogIdentity, heads: Sequence[Head]
) -> tuple[tuple[str, ...], list[Head]]:
    """One sentence on all heads that the log's records contradict (none if there are none), and the other heads."""
    fitting: list[Head] = []
    strange: list[int] = []
    for head in heads:
        found = base.execute("SELECT hash FROM records WHERE seq = ?", (head.count,)).fetchone()
        kept = identity.start.hash if head.count == 0 else found and found[0]
        if isinstance(kept, str) and kept != head.hash:
            strange.append(head.count)
        else:
            fitting.append(head)
    if not strange:
        return (), fitting
    if len(strange) == 1:
        what = f"Record {strange[0]} is not the one that {identity.kind.keeper} knows"
    else:
        keeper = identity.kind.keeper
        what = f"{len(strange)} of {keeper}'s {len(heads)} heads do not fit, the first at record {min(strange)}"
    return (f"{what}: the {identity.kind.short} was rebuilt or replaced.",), fitting


def rows_after(base: sqlite3.Connection, after: int | None = None) -> Iterator[tuple[object, ...]]:
    """Rows as they lie in the table, some at a time. In a table that was rebuilt, seq and rowid may differ."""
    query = f"SELECT rowid, {COLUMNS} FROM records WHERE rowid > ? ORDER BY rowid LIMIT {_BATCH}"  # noqa: S608
    place = after if after is not None else -(2**63)
    while rows := base.execute(query, (place,)).fetchall():
        for row in rows:
            yield row[1:]
        if rows[-1][0] <= place:
            raise sqlite3.DatabaseError("the rows of a damaged table lead in circles")
        place = rows[-1][0]

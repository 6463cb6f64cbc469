"""Exports of the audit log, for those who supervise a secure processing environment and for EUCAIM's traceability.

Three formats. None holds a path or anything about a patient but numbers of patients; each states the log's head at that
time and is signed by the site's key, and is itself recorded in the log.

`ehds`: JSON lines with what the logs of a secure processing environment have to tell (in the spirit of Art. 73 of
regulation (EU) 2025/327). The first line describes the export: schema, site, key, head, since, until, datasets. Then
one line a record: number, time (UTC), operation (the record's kind) and what it means in words; user (holder of the
permit), permit, purpose; plan (SHA-256 of all that was asked for) and what was asked; data (the datasets that the
site's cohort stands for); outcome and reasons; decided_by (login name at the site); left (bytes, arrays, patients,
metrics, pictures, digest, update_norm; epsilon and delta that the plan had cost by then, number and hash of the last
record of the privacy ledger; SHA-256 of signed figures of frozen models; null where nothing left); hash of the record.
The last line: sha256 of all bytes before it, and the signature over the first line's head and that sha256.

`csv`: the same, one row a record, for a spreadsheet; the last row holds sha256 and signature. A text that a spreadsheet
would take for a formula starts with an apostrophe.

`tracer`: one JSON document for EUCAIM's traceability service: a call `USE_DATASETS {userId, datasetsIds, toolName,
toolVersion}` for each plan for which something left. userId is the permit's holder, null if there was no permit;
toolVersion is that of the client that was running then, null if the log does not say.
"""

from __future__ import annotations

import contextlib
import csv
import dataclasses
import datetime
import hashlib
import io
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from eucaim_fl.durable import flush_folder, write_atomically
from eucaim_fl.errors import AuditError, JournalError
from eucaim_fl.signing import canonical_json, verify
from eucaim_fl.site.audit import AuditLog, verify_log
from eucaim_fl.site.audit_chain import AuditRecord, Head
from eucaim_fl.site.audit_reader import utc_text
from eucaim_fl.site.audit_words import Askers, Line, line_of

__all__ = ["EXPORT_SCHEMA", "ExportScope", "Format", "export", "export_is_genuine"]

EXPORT_SCHEMA = "eucaim-fl-audit-export/1"
Format = Literal["ehds", "tracer", "csv"]
_PURPOSE = "audit export"
_TOOL = "eucaim_fl"
_LONGEST_LINE = 1024 * 1024
_ASKED = ("number", "time", "operation", "meaning", "user", "permit", "purpose", "plan", "asked", "data")
_DECIDED = ("outcome", "reasons", "decided_by")
_SPENT = ("epsilon", "delta", "ledger_count", "ledger")
_LEFT = ("bytes", "arrays", "patients", "metrics", "pictures", "digest", "update_norm", *_SPENT)
_CSV_COLUMNS = (*_ASKED, *_DECIDED, *_LEFT, "hash")


@dataclass(frozen=True)
class ExportScope:
    """datasets: ids that the site's cohort stands for. since, until: aware; from `since` on, before `until`."""

    datasets: tuple[str, ...] = ()
    since: datetime.datetime | None = None
    until: datetime.datetime | None = None


def export(log: AuditLog, out: Path, form: Format, scope: ExportScope) -> Head:
    """Write an export, whole or not at all, and record it; the head that it states comes back.

    The whole log is verified first: an altered one is not signed anew. A file that is there already is replaced.
    Raises AuditError if the log is not intact or can't be written, or the file can't be written.
    """
    identity = log.identity()
    if verify_log(log.folder, identity.public, site=identity.site):
        raise AuditError(
            "The audit log was altered, so it is not exported.",
            fix="Run `eucaim-fl site audit verify`, and keep the files as they are.",
            local_detail=str(log.folder),
        )
    head = log.head()
    header: dict[str, Any] = {
        "schema": EXPORT_SCHEMA,
        "format": form,
        "site": identity.site,
        "key": identity.public,
        "head": {"count": head.count, "hash": head.hash},
        "since": None if scope.since is None else utc_text(scope.since),
        "until": None if scope.until is None else utc_text(scope.until),
        "datasets": list(scope.datasets),
    }
    digest = hashlib.sha256()
    count = 0

    def pieces() -> Iterator[bytes]:
        nonlocal count
        for piece, records in _content(log, form, scope, header):
            count += records
            digest.update(piece)
            yield piece

    waiting = out.with_name(f".{out.name}.unrecorded")
    try:
        write_atomically(waiting, pieces())
        log.append(
            "exported",
            {
                "count": count,
                "format": form,
                "digest": digest.hexdigest(),
                "since": header["since"],
                "until": header["until"],
            },
        )
        waiting.replace(out)
        flush_folder(out.parent)
    except (JournalError, OSError) as problem:
        detail = problem.local_detail if isinstance(problem, JournalError) else f"{out}: {problem.strerror}"
        raise AuditError(
            "The export can't be written.", fix="Check the folder's permissions and space.", local_detail=detail
        ) from None
    finally:
        with contextlib.suppress(OSError):
            waiting.unlink(missing_ok=True)
    return head


def export_is_genuine(path: Path, public: str) -> bool:
    """Whether a file is an export as the site with this public key wrote it; anything else is False.

    Raises AuditError if the file can't be read.
    """
    try:
        with path.open("rb") as stream:
            first = stream.readline(_LONGEST_LINE)
            if first.strip() == b"{":
                return _genuine_document(first + stream.read(64 * _LONGEST_LINE), public)
            digest, previous, line = hashlib.sha256(), b"", first
            while following := stream.readline(_LONGEST_LINE):
                digest.update(previous)
                previous, line = line, following
            digest.update(previous)
            return _genuine_lines(first, line, digest.hexdigest(), public)
    except OSError as problem:
        raise AuditError("The export can't be read.", local_detail=f"{path}: {problem.strerror}") from None


def _genuine_document(raw: bytes, public: str) -> bool:
    try:
        value = json.loads(raw)
        signature = value.pop("signature")
        return isinstance(signature, str) and verify(public, _PURPOSE, value, signature)
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
        return False


def _genuine_lines(first: bytes, last: bytes, sha256: str, public: str) -> bool:
    try:
        if first.startswith(b"{"):
            header, end = json.loads(first), json.loads(last)
            return end["sha256"] == sha256 and verify(public, _PURPOSE, _signed(header, sha256), end["signature"])
        name, stated = next(csv.reader([first.decode()]))
        mark, found, signature = next(csv.reader([last.decode()]))
        fits = name == "export" and mark == "signature" and found == sha256
        return fits and verify(public, _PURPOSE, _signed(json.loads(stated), sha256), signature.removeprefix("'"))
    except (ValueError, TypeError, KeyError, AttributeError, StopIteration, RecursionError, csv.Error):
        return False


def _signed(header: dict[str, Any], sha256: str) -> dict[str, Any]:
    return {"head": header["head"], "sha256": sha256}


def _content(log: AuditLog, form: Format, scope: ExportScope, header: dict[str, Any]) -> Iterator[tuple[bytes, int]]:
    """Pieces of the file, each with the number of records in it."""
    lines = _lines(log, scope, header["head"]["count"])
    if form == "tracer":
        document = {**header, "calls": list(_calls(log, scope, lines))}
        document["signature"] = log.sign(_PURPOSE, document)
        yield json.dumps(document, indent=2, sort_keys=True).encode() + b"\n", len(document["calls"])
        return
    digest = hashlib.sha256()
    render = _json_line if form == "ehds" else _csv_line
    start = canonical_json(header) + b"\n" if form == "ehds" else _row(["export", canonical_json(header).decode()])
    digest.update(start)
    yield start, 0
    if form == "csv":
        columns = _row(_CSV_COLUMNS)
        digest.update(columns)
        yield columns, 0
    for line in lines:
        piece = render(line, scope.datasets)
        digest.update(piece)
        yield piece, 1
    sha256 = digest.hexdigest()
    signature = log.sign(_PURPOSE, _signed(header, sha256))
    if form == "ehds":
        yield canonical_json({"sha256": sha256, "signature": signature}) + b"\n", 0
    else:
        yield _row(["signature", sha256, signature]), 0


def _records(log: AuditLog, scope: ExportScope, count: int) -> Iterator[AuditRecord]:
    """Records up to the head that the export states."""
    return log.records(since=scope.since, until=scope.until, before=count + 1)


def _lines(log: AuditLog, scope: ExportScope, count: int) -> Iterator[Line]:
    askers = Askers(log)
    return (line_of(record, askers.of(record)) for record in _records(log, scope, count))


def _calls(log: AuditLog, scope: ExportScope, lines: Iterator[Line]) -> Iterator[dict[str, Any]]:
    """One call a plan, at its first answer."""
    seen: set[str] = set()
    for line in lines:
        if line.kind != "sent" or line.plan is None or line.plan in seen:
            continue
        seen.add(line.plan)
        yield {
            "USE_DATASETS": {
                "userId": line.asker.holder,
                "datasetsIds": list(scope.datasets),
                "toolName": _TOOL,
                "toolVersion": _version(log, line.number),
            }
        }


def _version(log: AuditLog, number: int) -> str | None:
    """Version of the client that was running when a record was written."""
    started = next(log.records(kind="started", before=number, last=1), None)
    version = None if started is None else started.body.get("version")
    return version if isinstance(version, str) and len(version) <= 64 and "/" not in version else None


def _json_line(line: Line, datasets: tuple[str, ...]) -> bytes:
    return (
        canonical_json(
            {
                "number": line.number,
                "time": line.time,
                "operation": line.kind,
                "meaning": line.happened,
                "user": line.asker.holder,
                "permit": line.asker.permit,
                "purpose": line.asker.purpose,
                "plan": line.plan,
                "asked": line.asked,
                "data": list(datasets) if line.plan else [],
                "outcome": line.outcome,
                "reasons": list(line.reasons),
                "decided_by": line.by,
                "left": None if line.left is None else dataclasses.asdict(line.left),
                "hash": line.hash,
            }
        )
        + b"\n"
    )


def _csv_line(line: Line, datasets: tuple[str, ...]) -> bytes:
    left = line.left
    metrics = "; ".join(f"{split}: {' '.join(names)}" for split, names in left.metrics.items()) if left else ""
    sent: list[Any] = [None] * len(_LEFT)
    if left is not None:
        sent = [metrics if name == "metrics" else getattr(left, name) for name in _LEFT]
    return _row(
        [
            line.number,
            line.time,
            line.kind,
            line.happened,
            line.asker.holder,
            line.asker.permit,
            line.asker.purpose,
            line.plan,
            line.asked,
            " ".join(datasets) if line.plan else "",
            line.outcome,
            "; ".join(line.reasons),
            line.by,
            *sent,
            line.hash,
        ]
    )


def _row(values: Any) -> bytes:
    """One CSV row; a text that a spreadsheet would take for a formula is marked as text."""
    stream = io.StringIO()
    csv.writer(stream).writerow(
        ["" if v is None else f"'{v}" if isinstance(v, str) and v[:1] in "=+-@\t" and v else v for v in values]
    )
    return stream.getvalue().encode()

"""Bring the index up to date: list, read what is new, write a new version. Whatever stops it, nothing is read twice."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from eucaim_fl.cohorts.deidentification.names import identifiers_in_name
from eucaim_fl.cohorts.index.compaction import Compaction
from eucaim_fl.cohorts.index.headers import Reading, kind_of_name, masked_path
from eucaim_fl.cohorts.index.listing import Listed, list_files, outermost
from eucaim_fl.cohorts.index.rows import checked, folder_of
from eucaim_fl.cohorts.index.store import FILE_COLUMNS, LISTING_COLUMNS, Store, connect, keyed, literal, write_rows
from eucaim_fl.cohorts.isolation import Result, map_isolated
from eucaim_fl.durable import exclusive
from eucaim_fl.errors import CohortError, JournalError, RunFolderBusyError

if TYPE_CHECKING:
    import duckdb

    from eucaim_fl.sitefile import SiteFile

__all__ = ["IndexReport", "settings_of", "update_index"]

Tell = Callable[[str, int, int], object]
_WORK = "eucaim_fl.cohorts.index.headers:read_item"
_SECONDS, _WHOLE_SECONDS, _MEMORY = 10.0, 600.0, 10**9
_LISTING_ROWS, _PART_ROWS, _PART_S = 20_000, 4096, 30.0
_UNREADABLE, _NAMES_SOMEBODY = "EFL204", "EFL205"
_SIGNATURE = "name_key, size, mtime_ns, ctime_ns, inode"


@dataclass(frozen=True)
class IndexReport:
    """What a scan found, in files but for `series` (stacks of the whole index). files, unreadable: of the whole index.

    moved: at another path with the same content; these count neither as new nor as deleted. resumed: parts of an
    interrupted scan that did not have to be read again.
    """

    files: int
    new: int
    changed: int
    moved: int
    deleted: int
    unchanged: int
    unreadable: int
    series: int
    seconds: float
    resumed: int


def settings_of(site: SiteFile) -> dict[str, Any]:
    """What rows of the index depend on beside the files; when it changes, everything is read again."""
    return {"words": sorted(site.cohort.words), "blocks": site.deidentification.block != "nothing"}


def update_index(
    site: SiteFile,
    folders: Sequence[str] | None = None,
    *,
    tell: Tell | None = None,
    verify: bool = False,
    patience_s: float = 0.4,
) -> IndexReport:
    """Bring the index of a site's cohort up to date: files that are new or whose size, times or inode changed are read.

    folders: scan these alone (relative, POSIX); what the index knows of others stays. tell: called with a phase
    (`listing`, `reading`, `grouping`), how many are done and how many there are (0: not known yet). verify: read every
    byte of every file, and count those whose content differs from what is known as changed. patience_s: how long to
    wait for another scan of this cohort.
    Whatever a file does ends in its worker process. A scan that was interrupted, even killed, goes on behind what it
    had written; the former index holds until the new one is complete.
    Raises CohortError if the folder is missing, another scan is under way, or the index is damaged or can't be written.
    """
    import duckdb
    import pyarrow as pa

    store = Store(site.index_folder(), settings_of(site))
    store.create()
    with contextlib.ExitStack() as stack:
        try:
            stack.enter_context(exclusive(store.folder, patience_s))
        except RunFolderBusyError:
            raise CohortError(
                "Another scan of this cohort is under way.", fix="Wait for it to end.", local_detail=str(store.folder)
            ) from None
        (store.folder / ".lock").chmod(0o600)
        try:
            return _Scan(site, store, folders, tell or (lambda phase, done, total: None), verify).run()
        except JournalError as problem:
            raise CohortError(
                "The index can't be written.", fix=problem.fix, local_detail=problem.local_detail
            ) from None
        except (duckdb.Error, pa.ArrowException) as problem:  # what it says may quote rows
            raise CohortError(
                "The index is damaged, or there is no space for it.",
                fix="Check free space. If that is not it, remove the index's folder; the next scan makes it anew.",
                local_detail=f"{store.folder}: {type(problem).__name__}",
            ) from None
        except OSError as problem:
            raise CohortError(
                "The index can't be written.",
                fix="Check free space and permissions of the cache's folder, then scan again: it goes on where it was.",
                local_detail=f"{store.folder}: {problem}",
            ) from None


class _Scan:
    """One scan."""

    def __init__(self, site: SiteFile, store: Store, scope: Sequence[str] | None, tell: Tell, verify: bool) -> None:
        self._site, self._store, self._tell, self._verify = site, store, tell, verify
        self._scope = None if scope is None else outermost(scope)
        self._key = store.key()
        self._blocks = site.deidentification.block != "nothing"
        self._started = time.monotonic()

    def run(self) -> IndexReport:
        """All of it."""
        store = self._store
        before = store.pointer()
        if before.made_with != store.made_with:  # what it says was made by other rules
            before = replace(before, made_with="")
        folder = store.scan_folder("verify" if self._verify else "new")
        for name in ("listing", "direct", "series"):
            shutil.rmtree(folder / name, ignore_errors=True)
            (folder / name).mkdir(mode=0o700)
        (folder / "parts").mkdir(mode=0o700, exist_ok=True)
        write_rows(folder / "empty.parquet", [], FILE_COLUMNS)
        resumed = len(list((folder / "parts").glob("*.parquet")))
        self._list(folder)
        known = store.tables(before.number)[0] if before.made_with else folder / "empty.parquet"
        compaction = Compaction(store, folder, before, self._scope, lambda done: self._tell("grouping", done, 0))
        with connect(store.folder) as connection:
            self._read(folder, known, connection)
            counts = compaction.run(connection)
        shutil.rmtree(folder, ignore_errors=True)
        return IndexReport(**counts, seconds=round(time.monotonic() - self._started, 3), resumed=resumed)

    # --- listing ----------------------------------------------------------------------------------------------

    def _list(self, folder: Path) -> None:
        site = self._site
        skip = [site.cache_folder(), site.records_folder()]
        rows: list[dict[str, Any]] = []
        direct: list[dict[str, Any]] = []
        number = total = 0
        for listed in list_files(site.cohort_folder(), self._scope, links=site.link_folders(), skip=skip):
            row = self._listed(listed)
            rows.append(row)
            if row["kind"]:
                direct.append(row)
            if len(rows) == _LISTING_ROWS:
                self._write_listing(folder, number, rows, direct)
                number, total = number + 1, total + len(rows)
                self._tell("listing", total, 0)
                rows, direct = [], []
        self._write_listing(folder, number, rows, direct)
        self._tell("listing", total + len(rows), total + len(rows))

    def _write_listing(
        self, folder: Path, number: int, rows: list[dict[str, Any]], direct: list[dict[str, Any]]
    ) -> None:
        write_rows(folder / "listing" / f"{number:06d}.parquet", rows, LISTING_COLUMNS)
        if direct:
            write_rows(folder / "direct" / f"{number:06d}.parquet", direct, FILE_COLUMNS)

    def _listed(self, listed: Listed) -> dict[str, Any]:
        """A row of the listing. With a kind, it is all that will be known of the file; without, it is to be read."""
        path, code, reason = listed.path, listed.code, listed.reason
        raw = path.encode("utf-8", "surrogateescape")
        identifiers = identifiers_in_name(path)
        kind = kind_of_name(path.rpartition("/")[2])
        shown = path
        if identifiers and self._blocks:
            shown, code, reason = masked_path(path, self._key), _NAMES_SOMEBODY, "A file's name can name a person."
        elif not _is_utf8(path):
            shown, code, reason = masked_path(path, self._key), _UNREADABLE, "A file's name is no UTF-8 text."
        done = bool(code) or kind == "other"
        return {
            "folder": folder_of(shown),
            "name_key": keyed(self._key, "path", raw),
            "path": shown,
            "size": listed.size,
            "mtime_ns": listed.mtime_ns,
            "ctime_ns": listed.ctime_ns,
            "inode": listed.inode,
            "kind": (kind or "other") if done else "",
            "code": code,
            "reason": reason,
            "identifiers": json.dumps(identifiers, sort_keys=True) if done else "",
        }

    # --- reading ----------------------------------------------------------------------------------------------

    def _read(self, folder: Path, known: Path, connection: duckdb.DuckDBPyConnection) -> None:
        """Read what is to be read and not known yet, into parts."""
        total = self._choose(folder, known, connection)
        if not total:
            return
        site = self._site
        blocks, words = self._blocks, frozenset(site.cohort.words)
        reading = Reading(site.cohort_folder().resolve(), self._key, words, blocks, self._verify)
        waiting: dict[int, dict[str, Any]] = {}
        results = map_isolated(
            _WORK,
            self._items(folder / "todo.parquet", waiting),
            shared=reading.to_json(),
            workers=site.compute.readers or os.cpu_count() or 1,
            seconds=_WHOLE_SECONDS if self._verify else _SECONDS,
            memory_bytes=_MEMORY,
        )
        parts = _Parts(folder / "parts")
        with contextlib.closing(results):
            for done, (number, result) in enumerate(results, start=1):
                parts.add(_row(waiting.pop(number), result))
                self._tell("reading", done, total)
        parts.flush()

    def _choose(self, folder: Path, known: Path, connection: duckdb.DuckDBPyConnection) -> int:
        """Write what is to be read to `todo.parquet`, in the order of folders; returns how many files that are."""
        import pyarrow.parquet as pq

        sources = [folder / "empty.parquet", *sorted((folder / "parts").glob("*.parquet"))]
        if not self._verify:
            sources.append(known)
        known_already, todo = ", ".join(map(literal, sources)), folder / "todo.parquet"
        listing = ", ".join(map(literal, sorted((folder / "listing").glob("*.parquet"))))
        connection.execute(
            f"""COPY (
                SELECT * FROM read_parquet([{listing}])
                ANTI JOIN (SELECT {_SIGNATURE} FROM read_parquet([{known_already}])) USING ({_SIGNATURE})
                WHERE kind = '' ORDER BY folder, path
            ) TO {literal(todo)} (FORMAT parquet)"""  # noqa: S608 - columns and paths of ours
        )
        todo.chmod(0o600)
        return int(pq.ParquetFile(todo).metadata.num_rows)

    def _items(self, todo: Path, waiting: dict[int, dict[str, Any]]) -> Iterator[list[Any]]:
        import pyarrow.parquet as pq

        names = ["name_key", "path", "size", "mtime_ns", "ctime_ns", "inode"]
        number = 0
        with pq.ParquetFile(todo) as table:
            for batch in table.iter_batches(1024, columns=names):
                for row in batch.to_pylist():
                    waiting[number] = row
                    number += 1
                    yield [row[name] for name in names[1:]]


def _row(listed: dict[str, Any], result: Result) -> dict[str, Any]:
    """The row of a file: what is listed of it, and what a worker said, as far as that makes sense."""
    path = listed["path"]
    facts = None if result.code else checked(result.value)
    shown = path if facts is None else facts.get("path", path)
    if facts is None or (shown != path and not shown.rpartition("/")[2].startswith("#")):
        shown, facts = (
            path,
            {  # no local detail: what an error says may quote the file
                "kind": kind_of_name(path.rpartition("/")[2]) or "other",
                "code": result.code or _UNREADABLE,
                "reason": result.reason or "Reading a file gave no proper answer.",
            },
        )
    return {**facts, **listed, "path": shown, "folder": folder_of(shown)}


def _is_utf8(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


class _Parts:
    """Rows that become part files of some thousand rows, or of what came in half a minute."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._rows: list[dict[str, Any]] = []
        self._next = 1 + max((int(path.stem) for path in folder.glob("*.parquet")), default=0)
        self._since = time.monotonic()

    def add(self, row: dict[str, Any]) -> None:
        """Take a row."""
        self._rows.append(row)
        if len(self._rows) >= _PART_ROWS or time.monotonic() - self._since > _PART_S:
            self.flush()

    def flush(self) -> None:
        """Write what is there."""
        if self._rows:
            write_rows(self._folder / f"{self._next:06d}.parquet", self._rows, FILE_COLUMNS)
            self._next += 1
        self._rows, self._since = [], time.monotonic()

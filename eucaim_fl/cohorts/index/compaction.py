"""From parts to a new version of the index: sorted files, and the stacks of folders where something changed."""

# ruff: noqa: S608 - columns are named here, and paths are literals of ours
from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import groupby, islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from eucaim_fl.cohorts.facts import SeriesFacts
from eucaim_fl.cohorts.index.rows import FILE_NAMES, file_facts, series_row
from eucaim_fl.cohorts.index.stacking import MOST_FILES, stacks_of
from eucaim_fl.cohorts.index.store import (
    FILE_COLUMNS,
    SERIES_COLUMNS,
    Pointer,
    Store,
    literal,
    quoted,
    write_rows,
)

if TYPE_CHECKING:
    import duckdb

__all__ = ["Compaction"]

_SIGNATURE = ("name_key", "size", "mtime_ns", "ctime_ns", "inode")
_SERIES_ROWS = 8192
_OPTIONS = "(FORMAT parquet, COMPRESSION zstd, ROW_GROUP_SIZE 16384)"
_SERIES_OPTIONS = "(FORMAT parquet, COMPRESSION zstd, ROW_GROUP_SIZE 4096)"  # a row may name hundreds of files


def _same(a: str, b: str, columns: Sequence[str] = _SIGNATURE) -> str:
    return " AND ".join(f"{a}.{name} = {b}.{name}" for name in columns)


class Compaction:
    """Makes the version that follows `before` from what a scan wrote into `folder`, and lets it hold."""

    def __init__(
        self, store: Store, folder: Path, before: Pointer, scope: Sequence[str] | None, tell: Callable[[int], object]
    ) -> None:
        self._store, self._folder, self._before, self._scope, self._tell = store, folder, before, scope, tell
        self._number = before.number + 1

    def run(self, connection: duckdb.DuckDBPyConnection) -> dict[str, int]:
        """Write, publish, clean up; returns the counts of the report."""
        store = self._store
        with store.fresh_version(self._number):
            self._views(connection)
            if (unchanged := self._unchanged(connection)) is not None:
                store.clean({self._before.number})
                return unchanged
            files, series = store.tables(self._number)
            self._write_files(connection, files)
            self._changed_folders(connection)
            self._write_series(connection, series)
            counts = self._counts(connection)
        store.publish(self._number)
        store.clean({self._number, self._before.number} if self._before.made_with else {self._number})
        return counts

    def _views(self, connection: duckdb.DuckDBPyConnection) -> None:
        empty, empty_series = self._folder / "empty.parquet", self._folder / "empty_series.parquet"
        write_rows(empty_series, [], SERIES_COLUMNS)
        old, old_series = self._store.tables(self._before.number) if self._before.made_with else (empty, empty_series)
        sources = {
            "listing": sorted((self._folder / "listing").glob("*.parquet")),
            "parts": [empty, *sorted((self._folder / "parts").glob("*.parquet"))],
            "direct": [empty, *sorted((self._folder / "direct").glob("*.parquet"))],
            "old": [old],
            "old_series": [old_series],
        }
        for name, paths in sources.items():
            listed = ", ".join(literal(path) for path in paths)
            connection.execute(f"CREATE VIEW {name} AS SELECT * FROM read_parquet([{listed}])")
        inside, found = set(self._scope or ()), []
        if inside:
            folders = _each(connection.execute("SELECT DISTINCT folder FROM old"))
            found = [{"folder": folder} for (folder,) in folders if inside & _with_parents(folder)]
        write_rows(self._folder / "scope.parquet", found, {"folder": "string"})
        connection.execute(
            f"CREATE VIEW scope AS SELECT folder FROM read_parquet({literal(self._folder / 'scope.parquet')})"
        )

    def _unchanged(self, connection: duckdb.DuckDBPyConnection) -> dict[str, int] | None:
        """The counts if the version before still holds, else None."""
        if not self._before.made_with or any((self._folder / "parts").glob("*.parquet")):
            return None
        old = "old" if self._scope is None else "(SELECT * FROM old SEMI JOIN scope USING (folder))"
        alike = "l.path = k.path AND l.code = k.code AND l.reason = k.reason AND l.identifiers = k.identifiers"
        ((listed, in_scope, known, files, unreadable, series),) = connection.execute(
            f"""SELECT (SELECT count(*) FROM listing), (SELECT count(*) FROM {old}),
            (SELECT count(*) FROM listing l SEMI JOIN old k ON {_same("l", "k")} AND (l.kind = '' OR ({alike}))),
            (SELECT count(*) FROM old), (SELECT count(*) FROM old WHERE code <> ''),
            (SELECT count(*) FROM old_series)"""
        ).fetchall()
        if not listed == in_scope == known:
            return None
        none = dict.fromkeys(("new", "changed", "moved", "deleted"), 0)
        return {"files": files, **none, "unchanged": listed, "unreadable": unreadable, "series": series}

    def _write_files(self, connection: duckdb.DuckDBPyConnection, path: Path) -> None:
        columns = quoted(FILE_COLUMNS)
        outside = "SELECT k.* FROM old k ANTI JOIN scope USING (folder) ANTI JOIN listing USING (name_key)"
        to_read = "(SELECT * FROM listing WHERE kind = '')"
        connection.execute(
            f"""COPY (
                SELECT {columns} FROM (
                    SELECT k.* FROM parts k SEMI JOIN listing l ON {_same("k", "l")}
                    UNION ALL SELECT * FROM direct
                    UNION ALL SELECT k.* FROM old k SEMI JOIN {to_read} l ON {_same("k", "l")}
                        ANTI JOIN parts p ON {_same("k", "p")}
                    {f"UNION ALL {outside}" if self._scope is not None else ""}
                ) ORDER BY folder, path
            ) TO {literal(path)} {_OPTIONS}"""
        )
        connection.execute(f"CREATE VIEW new AS SELECT * FROM read_parquet({literal(path)})")

    def _changed_folders(self, connection: duckdb.DuckDBPyConnection) -> None:
        columns = quoted(("folder", "path", *_SIGNATURE, "code", "content"))
        connection.execute(
            f"""CREATE TABLE touched AS SELECT DISTINCT folder FROM (
                (SELECT {columns} FROM new EXCEPT ALL SELECT {columns} FROM old)
                UNION ALL (SELECT {columns} FROM old EXCEPT ALL SELECT {columns} FROM new)
            )"""
        )

    def _write_series(self, connection: duckdb.DuckDBPyConnection, path: Path) -> None:
        folder, number, total = self._folder / "series", 0, 0
        stacks = self._stacks(connection.cursor())
        while rows := [series_row(one) for one in islice(stacks, _SERIES_ROWS)]:
            write_rows(folder / f"{number:06d}.parquet", rows, SERIES_COLUMNS)
            number, total = number + 1, total + len(rows)
            self._tell(total)
        columns = quoted(SERIES_COLUMNS)
        parts = [self._folder / "empty_series.parquet", *sorted(folder.glob("*.parquet"))]
        connection.execute(
            f"""COPY (
                SELECT {columns} FROM read_parquet([{", ".join(literal(part) for part in parts)}])
                UNION ALL SELECT {columns} FROM old_series ANTI JOIN touched USING (folder)
                ORDER BY folder, series_uid, stack, files
            ) TO {literal(path)} {_SERIES_OPTIONS}"""
        )

    def _stacks(self, connection: duckdb.DuckDBPyConnection) -> Iterator[SeriesFacts]:
        """Stacks of all folders that were touched, a series at a time."""
        columns = quoted(FILE_NAMES, "f")
        connection.execute(
            f"""WITH f AS (
                SELECT n.* FROM new n SEMI JOIN touched USING (folder) WHERE n.kind <> 'other' OR n.code <> ''
            ), one AS (
                SELECT folder, min(series_uid) AS uid FROM f WHERE series_uid <> ''
                GROUP BY folder HAVING min(series_uid) = max(series_uid)
            )
            SELECT f.folder, CASE WHEN f.series_uid <> '' THEN f.series_uid
                WHEN f.code <> '' AND f.kind <> 'nifti' THEN coalesce(one.uid, '') ELSE '' END AS uid, {columns}
            FROM f LEFT JOIN one ON f.folder = one.folder ORDER BY 1, 2, f.path"""
        )
        for (folder, _), rows in groupby(_each(connection), key=lambda row: row[:2]):
            found = [file_facts(row[2:]) for row in islice(rows, MOST_FILES + 1)]
            yield from stacks_of(folder, found)

    def _counts(self, connection: duckdb.DuckDBPyConnection) -> dict[str, int]:
        scoped = "" if self._scope is None else "SEMI JOIN scope USING (folder)"
        differs = " OR ".join(f"n.{name} <> o.{name}" for name in (*_SIGNATURE[1:], "content"))
        differs = f"{differs} OR (n.whole <> '' AND o.whole <> '' AND n.whole <> o.whole)"

        added = "SELECT n.content FROM new n ANTI JOIN old o ON n.name_key = o.name_key"
        gone = f"SELECT o.content FROM (SELECT * FROM old {scoped}) o ANTI JOIN new n ON n.name_key = o.name_key"
        moved = _count(
            connection,
            f"""SELECT sum(least(a.number, g.number)) FROM
            (SELECT content, count(*) AS number FROM ({added}) WHERE content <> '' GROUP BY 1) a
            JOIN (SELECT content, count(*) AS number FROM ({gone}) GROUP BY 1) g USING (content)""",
        )
        both = f"FROM new n JOIN (SELECT * FROM old {scoped}) o ON n.name_key = o.name_key"
        changed = _count(connection, f"SELECT count(*) {both} WHERE {differs}")
        return {
            "files": _count(connection, "SELECT count(*) FROM new"),
            "new": _count(connection, f"SELECT count(*) FROM ({added})") - moved,
            "changed": changed,
            "moved": moved,
            "deleted": _count(connection, f"SELECT count(*) FROM ({gone})") - moved,
            "unchanged": _count(connection, f"SELECT count(*) {both}") - changed,
            "unreadable": _count(connection, "SELECT count(*) FROM new WHERE code <> ''"),
            "series": _count(
                connection, f"SELECT count(*) FROM read_parquet({literal(self._store.tables(self._number)[1])})"
            ),
        }


def _count(connection: duckdb.DuckDBPyConnection, sql: str) -> int:
    row = connection.execute(sql).fetchone()
    return int(row[0] or 0) if row else 0


def _with_parents(folder: str) -> set[str]:
    parts = folder.split("/")
    return {"", *("/".join(parts[: n + 1]) for n in range(len(parts)))}


def _each(connection: duckdb.DuckDBPyConnection) -> Iterator[tuple[Any, ...]]:
    while rows := connection.fetchmany(2048):
        yield from rows

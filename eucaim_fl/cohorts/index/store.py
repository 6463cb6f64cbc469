"""Where the index lies: a pointer to the present version, Parquet files, and DuckDB with bounds to ask them.

```
index/  current.json   which version holds, and what it was made with; written last
        key            the site's key for hashes of names and patients' identifiers; never leaves the site
        v-000001/      files.parquet, series.parquet: one version, never changed
        scan-…/        what a scan under way has read: parts of a few thousand rows
```
"""

from __future__ import annotations

import contextlib
import hashlib
import hmac
import json
import os
import secrets
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from eucaim_fl.cohorts.facts import FileFacts, SeriesFacts
from eucaim_fl.durable import flush_folder, write_atomically, write_json
from eucaim_fl.errors import CohortError, JournalError

if TYPE_CHECKING:
    import duckdb

__all__ = [
    "FILE_COLUMNS",
    "LISTING_COLUMNS",
    "SERIES_COLUMNS",
    "Pointer",
    "Store",
    "connect",
    "keyed",
    "literal",
    "quoted",
    "write_rows",
]

_SCHEMA = 2
"""Raised whenever what is read from a header changes, so that all files are read again."""
_MEMORY = "512MB"
_ARROW = {
    "int": "int64",
    "int | None": "int64",
    "float | None": "float64",
    "bool | None": "bool",
    "tuple[str, ...]": "list<string>",
    "tuple[float, ...] | None": "list<float64>",
    "tuple[int, int, int]": "list<int64>",
    "tuple[float | None, float | None, float | None]": "list<float64>",
}
"""Annotation of a field → type of Arrow; all else is text, mappings as JSON."""


def _columns(facts: type[FileFacts | SeriesFacts]) -> dict[str, str]:
    return {field.name: _ARROW.get(str(field.type), "string") for field in fields(facts)}


FILE_COLUMNS = {"folder": "string", "name_key": "string", **_columns(FileFacts), "inode": "uint64", "whole": "string"}
"""Columns of a version's files: the fields of `FileFacts`, the folder, a keyed hash of the true path, and the SHA-256
of the whole file once known."""
SERIES_COLUMNS = {**_columns(SeriesFacts), "files": "string", "words": "string"}
"""Columns of a version's stacks: the fields of `SeriesFacts` (files without their folder, joined by slashes), and the
words of description, protocol and sequence, each between spaces, so that one look finds them."""
LISTING_COLUMNS = {
    name: FILE_COLUMNS[name]
    for name in (
        "folder", "name_key", "path", "size", "mtime_ns", "ctime_ns", "inode", "kind", "code", "reason", "identifiers"
    )
}  # fmt: skip
"""Columns of a listing: what is known of a file before it is read."""


def keyed(key: bytes, purpose: str, value: bytes) -> str:
    """24 hexadecimal digits that stand for a value at this site: HMAC-SHA256 under its key. Purposes don't mix."""
    return hmac.digest(key, purpose.encode() + b"\0" + value, hashlib.sha256).hex()[:24]


def quoted(names: Iterable[str], table: str = "") -> str:
    """Names of columns for SQL, separated by commas; `table` stands before each."""
    before = f"{table}." if table else ""
    return ", ".join(f'{before}"{name}"' for name in names)


def literal(path: Path) -> str:
    """A path as a text literal of SQL."""
    return "'" + str(path).replace("'", "''") + "'"


def connect(folder: Path) -> duckdb.DuckDBPyConnection:
    """DuckDB in memory: bounded, without network or extensions, with files below `folder` alone."""
    import duckdb

    connection = duckdb.connect(
        ":memory:",
        config={
            "memory_limit": _MEMORY,
            "threads": min(4, os.cpu_count() or 1),
            "temp_directory": str(folder / "spill"),
            "autoinstall_known_extensions": False,
            "autoload_known_extensions": False,
            "allow_community_extensions": False,
        },
    )
    connection.execute(f"SET allowed_directories = [{literal(folder)}]")
    connection.execute("SET parquet_metadata_cache = true")
    connection.execute("SET enable_external_access = false")
    connection.execute("SET lock_configuration = true")
    return connection


def write_rows(path: Path, rows: Sequence[Mapping[str, Any]], columns: Mapping[str, str]) -> None:
    """Write rows as one Parquet file, whole or not at all; what a row doesn't have is empty text or null."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    lists = {"list<float64>": pa.list_(pa.float64()), "list<int64>": pa.list_(pa.int64())}
    lists["list<string>"] = pa.list_(pa.string())
    arrays = []
    for name, kind in columns.items():
        missing = "" if kind == "string" else None
        values = [row.get(name, missing) for row in rows]
        arrays.append(pa.array(values, type=lists.get(kind) or pa.type_for_alias(kind)))
    sink = pa.BufferOutputStream()
    pq.write_table(pa.Table.from_arrays(arrays, names=list(columns)), sink, compression="zstd")
    write_atomically(path, [memoryview(sink.getvalue())], survive_power_loss=False)
    path.chmod(0o600)


@dataclass(frozen=True)
class Pointer:
    """The version that holds, and a fingerprint of the settings it was made with. number 0: there is none yet."""

    number: int = 0
    made_with: str = ""


class Store:
    """The folder of one site's index.

    settings: what rows depend on beside the files; when it changes, all files are read again.
    """

    def __init__(self, folder: Path, settings: Mapping[str, Any]) -> None:
        self.folder = folder
        text = json.dumps([_SCHEMA, FILE_COLUMNS, SERIES_COLUMNS, dict(settings)], sort_keys=True)
        self.made_with = hashlib.sha256(text.encode()).hexdigest()[:16]

    def create(self) -> None:
        """Make the folder, for its owner alone.

        Raises CohortError if it can't be made or written.
        """
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            self.folder.chmod(0o700)
        except OSError as problem:
            raise CohortError(
                "The index's folder can't be written.",
                fix="Check cache.folder in the site file and its permissions.",
                local_detail=f"{self.folder}: {problem}",
            ) from None

    def key(self) -> bytes:
        """The site's key, made when first asked for.

        Raises CohortError if it is damaged or can't be written.
        """
        path = self.folder / "key"
        try:
            if not path.exists():
                write_atomically(path, secrets.token_hex(32).encode())
                path.chmod(0o600)
            key = bytes.fromhex(path.read_text("ascii"))
        except JournalError as problem:
            raise CohortError(
                "The index's key can't be written.",
                fix="Check free space and permissions of the cache's folder.",
                local_detail=problem.local_detail,
            ) from None
        except (OSError, ValueError) as problem:
            raise CohortError(
                "The index's key can't be read or written.",
                fix="Remove the index's folder; the next scan makes it anew.",
                local_detail=f"{path}: {problem}",
            ) from None
        if len(key) != 32:
            raise CohortError(
                "The index's key is damaged.",
                fix="Remove the index's folder; the next scan makes it anew.",
                local_detail=str(path),
            )
        return key

    def pointer(self) -> Pointer:
        """Which version holds.

        Raises CohortError if the pointer is damaged, or the version it names is not there.
        """
        path = self.folder / "current.json"
        try:
            values = json.loads(path.read_text("utf-8"))
            found = Pointer(int(values["number"]), str(values["made_with"]))
        except FileNotFoundError:
            return Pointer()
        except (OSError, ValueError, KeyError, TypeError) as problem:
            raise self._damaged(f"{path}: {problem}") from None
        if not all(table.is_file() for table in self.tables(found.number)):
            raise self._damaged(str(self.version(found.number)))
        return found

    def _damaged(self, detail: str) -> CohortError:
        return CohortError(
            "The index is damaged.",
            fix="Remove the index's folder; the next scan makes it anew.",
            local_detail=detail,
        )

    def version(self, number: int) -> Path:
        """The folder of a version."""
        return self.folder / f"v-{number:06d}"

    def tables(self, number: int) -> tuple[Path, Path]:
        """A version's files and stacks."""
        return self.version(number) / "files.parquet", self.version(number) / "series.parquet"

    def publish(self, number: int) -> None:
        """Let a complete version hold from now on: both tables or none, whatever happens on the way."""
        for path in self.tables(number):
            path.chmod(0o600)
            with path.open("rb") as stream:
                os.fsync(stream.fileno())
        flush_folder(self.version(number))
        write_json(self.folder / "current.json", {"number": number, "made_with": self.made_with})
        (self.folder / "current.json").chmod(0o600)

    @contextlib.contextmanager
    def fresh_version(self, number: int) -> Iterator[Path]:
        """An empty folder for a version's tables."""
        folder = self.version(number)
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(mode=0o700)
        yield folder

    def scan_folder(self, kind: str) -> Path:
        """Where a scan of that kind under the present settings keeps its parts; those of others are removed."""
        folder = self.folder / f"scan-{self.made_with}-{kind}"
        self._remove(path for path in self.folder.glob("scan-*") if path != folder)
        folder.mkdir(mode=0o700, exist_ok=True)
        self._remove(folder.glob(".*.part"))
        return folder

    def clean(self, keep: Iterable[int]) -> None:
        """Remove what no version in `keep` needs."""
        names = {self.version(number).name for number in keep}
        self._remove(path for path in self.folder.glob("v-*") if path.name not in names)
        self._remove([self.folder / "spill"])

    def _remove(self, paths: Iterable[Path]) -> None:
        for path in list(paths):
            if path.is_dir():
                shutil.rmtree(path, ignore_errors=True)
            else:
                path.unlink(missing_ok=True)

"""The index as others ask it: stacks of folders, facts of files, and queries over all of a cohort."""

# ruff: noqa: S608 - columns are named here, and values are parameters
from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from eucaim_fl.cohorts.facts import FileFacts, SeriesFacts
from eucaim_fl.cohorts.index.blocks import Blocks
from eucaim_fl.cohorts.index.query import CohortQuery, below_folder, conditions
from eucaim_fl.cohorts.index.rows import FILE_NAMES, SERIES_NAMES, file_facts, folder_of, series_facts
from eucaim_fl.cohorts.index.scan import settings_of
from eucaim_fl.cohorts.index.store import Store, connect, keyed, literal, quoted
from eucaim_fl.errors import CohortError

if TYPE_CHECKING:
    import duckdb

    from eucaim_fl.sitefile import SiteFile

__all__ = ["Index", "IndexCounts", "open_index"]

_SERIES = quoted(SERIES_NAMES)


@dataclass(frozen=True)
class IndexCounts:
    """How much there is. patients: different hashes of PatientID; modalities: stacks of each, "" where none is stated.

    unusable: stacks with a code; unreadable: files with one. size_bytes: of all files.
    """

    files: int
    size_bytes: int
    unreadable: int
    series: int
    unusable: int
    patients: int
    modalities: Mapping[str, int]


class Index:
    """One version of a site's index, open for reading; a `Catalogue`. Not to be shared between threads.

    A scan meanwhile doesn't disturb it; the version before the last one is removed, so open it anew after two scans.
    """

    def __init__(self, folder: Path, files: Path, series: Path, key: bytes) -> None:
        self._key = key
        self._series, self._files = Blocks(series, SERIES_NAMES), Blocks(files, FILE_NAMES)
        self._folders = Blocks(files, ())
        self._folder, self._tables = folder, {"files": files, "series": series}

    @cached_property
    def _connection(self) -> duckdb.DuckDBPyConnection:
        """Made with the first query: who walks through folders, as every plan does, needs none."""
        connection = connect(self._folder)
        for name, path in self._tables.items():
            connection.execute(f"CREATE VIEW {name} AS SELECT * FROM read_parquet({literal(path)})")
        return connection

    def close(self) -> None:
        """Let go of the files."""
        for one in (self._series, self._files, self._folders):
            one.close()
        if "_connection" in self.__dict__:
            self._connection.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    # --- Catalogue --------------------------------------------------------------------------------------------

    def series(self, folder: str, *, recursive: bool = False) -> Sequence[SeriesFacts]:
        """Stacks whose files lie directly in `folder`, or anywhere below; sorted by folder, series and stack."""
        return [series_facts(row) for row in self._series.rows(folder, recursive=recursive)]

    def folders(self, folder: str) -> Sequence[str]:
        """Names of the folders directly in `folder` that hold indexed files at any depth, sorted."""
        return self._folders.folders(folder)

    def file(self, path: str) -> FileFacts | None:
        """Facts of one file, or None if it isn't there. A file whose name is hidden is not found by it."""
        at = FILE_NAMES.index("path")
        return next((file_facts(row) for row in self._files.rows(folder_of(path)) if row[at] == path), None)

    def every(self) -> Iterator[SeriesFacts]:
        """All stacks of the cohort, in order, a few at a time."""
        return map(series_facts, self._series.rows("", recursive=True))

    # --- beyond it --------------------------------------------------------------------------------------------

    def files(self, folder: str = "") -> Iterator[FileFacts]:
        """Facts of all files in a folder and below, in order, a few at a time."""
        return map(file_facts, self._files.rows(folder, recursive=True))

    def query(self, query: CohortQuery) -> Iterator[SeriesFacts]:
        """Stacks that a query asks for, in order, a few at a time.

        Raises CohortError if it states a day that is none.
        """
        condition, values = conditions(query)
        for row in self._some(f"SELECT {_SERIES} FROM series WHERE {condition}", values):
            yield series_facts(row)

    def count(self, query: CohortQuery) -> tuple[int, int]:
        """How many patients and stacks a query finds.

        Raises CohortError if it states a day that is none.
        """
        condition, values = conditions(query)
        sql = f"SELECT count(DISTINCT nullif(patient_id, '')), count(*) FROM series WHERE {condition}"
        ((patients, stacks),) = self._all(sql, values)
        return int(patients), int(stacks)

    def counts(self) -> IndexCounts:
        """How much there is in the whole index."""
        ((files, size, unreadable),) = self._all("SELECT count(*), sum(size), count(*) FILTER (code <> '') FROM files")
        ((series, unusable, patients),) = self._all(
            "SELECT count(*), count(*) FILTER (code <> ''), count(DISTINCT nullif(patient_id, '')) FROM series"
        )
        modalities = dict(self._all("SELECT modality, count(*) FROM series GROUP BY 1 ORDER BY 1"))
        return IndexCounts(files, int(size or 0), unreadable, series, unusable, patients, modalities)

    def identifiers(self, folder: str = "") -> dict[str, tuple[int, int]]:
        """Rule of the de-identification check → files that break it, and how often they do, in a folder and below."""
        condition, values = below_folder(folder)
        files: Counter[str] = Counter()
        times: Counter[str] = Counter()
        sql = (
            f"SELECT identifiers, count(*) FROM files WHERE {condition} AND identifiers NOT IN ('', '{{}}') GROUP BY 1"
        )
        for text, number in self._all(sql, values):
            for rule, count in json.loads(text).items():
                files[rule] += number
                times[rule] += number * count
        return {rule: (files[rule], times[rule]) for rule in sorted(files)}

    def patient_key(self, patient_id: str) -> str:
        """What stands in the index for a PatientID."""
        text = patient_id.strip(" \0")
        return keyed(self._key, "patient", text.encode()) if text else ""

    def _all(self, sql: str, values: Sequence[Any] = ()) -> list[tuple[Any, ...]]:
        return self._connection.execute(sql, list(values)).fetchall()

    def _some(self, sql: str, values: Sequence[Any]) -> Iterator[tuple[Any, ...]]:
        with self._connection.cursor() as cursor:  # of its own, so that other questions may be asked meanwhile
            cursor.execute(sql, list(values))  # the table's order is kept: it is how DuckDB is set
            while rows := cursor.fetchmany(2048):
                yield from rows


def open_index(site: SiteFile) -> Index:
    """The index of a site's cohort as the last complete scan left it.

    Raises CohortError if there is none, it is damaged, or it was made with other settings of the site file.
    """
    store = Store(site.index_folder(), settings_of(site))
    pointer = store.pointer()
    if pointer.number == 0:
        raise CohortError(
            "The cohort has not been scanned yet.", fix="Run the site's check first.", local_detail=str(store.folder)
        )
    if pointer.made_with != store.made_with:
        raise CohortError(
            "The index was made with other settings of the site file, or by another version.",
            fix="Run the site's check again.",
            local_detail=str(store.folder),
        )
    return Index(store.folder, *store.tables(pointer.number), store.key())

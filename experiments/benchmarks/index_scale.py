"""The index at a million series; called by cohort_io.py, once for each process whose memory is measured.

    python experiments/benchmarks/index_scale.py {idc | files | queries} FOLDER

idc      the real series of the NCI Imaging Data Commons, written as an index holds them (not measured).
queries  opens that index and asks it.
files    lays out what a scan of a million files has read, 100 a series, and times bringing it into the index.
"""

from __future__ import annotations

import json
import statistics
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import duckdb

from eucaim_fl.cohorts.index import CohortQuery, open_index
from eucaim_fl.cohorts.index.compaction import Compaction
from eucaim_fl.cohorts.index.scan import settings_of
from eucaim_fl.cohorts.index.store import FILE_COLUMNS, LISTING_COLUMNS, SERIES_COLUMNS, Store, write_rows
from eucaim_fl.sitefile import SiteFile

__all__ = ["main"]

_SQL = {
    "string": "VARCHAR", "int64": "BIGINT", "uint64": "UBIGINT", "float64": "DOUBLE", "bool": "BOOLEAN",
    "list<string>": "VARCHAR[]", "list<float64>": "DOUBLE[]", "list<int64>": "BIGINT[]",
}  # fmt: skip
_FILES, _SLICES = 1_000_000, 100


def _site(folder: Path) -> SiteFile:
    return SiteFile.model_validate(
        {
            "name": "a",
            "cohort": {"layout": "folder_csv", "folder": folder / "cohort"},
            "cache": {"folder": folder / "cache"},
        }
    )


def _select(columns: Mapping[str, str], given: Mapping[str, str]) -> str:
    """A SELECT list with every column of a table: what is given as SQL, the rest empty."""
    empty = {name: "''" if kind == "string" else "NULL" for name, kind in columns.items()}
    return ", ".join(
        f'CAST({given.get(name, empty[name])} AS {_SQL[kind]}) AS "{name}"' for name, kind in columns.items()
    )


def _store(folder: Path) -> Store:
    site = _site(folder)
    store = Store(site.index_folder(), settings_of(site))
    store.create()
    store.key()
    return store


def _peak_mb() -> int:
    """Of this process alone: `getrusage` would start from the memory of the process that started this one."""
    status = Path("/proc/self/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0]) // 1024


def write_idc(folder: Path) -> dict[str, Any]:
    """Write the Imaging Data Commons' series as this index's tables."""
    import idc_index_data

    store = _store(folder)
    series = {
        "folder": "PatientID || '/' || StudyInstanceUID || '/' || SeriesInstanceUID",
        "files": "array_to_string(list_transform(range(instanceCount), lambda x: format('{:06d}.dcm', x)), '/')",
        "kind": "'dicom'",
        "patient_id": "substr(md5(PatientID), 1, 24)",
        "study_uid": "StudyInstanceUID",
        "series_uid": "SeriesInstanceUID",
        "modality": "coalesce(Modality, '')",
        "body_part": "upper(coalesce(BodyPartExamined, ''))",
        "description": "lower(coalesce(SeriesDescription, ''))",
        "words": "concat(' ', regexp_replace(lower(coalesce(SeriesDescription, '')), '[^a-z0-9]+', ' ', 'g'), ' ')",
        "manufacturer": "coalesce(Manufacturer, '')",
        "study_date": "coalesce(substr(StudyDate::varchar, 1, 4), '')",
        "plane": "'axial'",
        "size": "[512, 512, instanceCount]",
        "thickness_mm": "1 + hash(SeriesInstanceUID) % 6",
        "identifiers": "'{}'",
        "content": "md5(SeriesInstanceUID)",
    }
    files = {"folder": "folder", "path": "folder || '/' || split_part(files, '/', 1)", "name_key": "md5(folder)"}
    with store.fresh_version(1) as version, duckdb.connect() as base:
        base.execute(
            f"COPY (SELECT {_select(SERIES_COLUMNS, series)} "  # noqa: S608 - our own columns
            f"FROM read_parquet('{idc_index_data.IDC_INDEX_PARQUET_FILEPATH}') ORDER BY folder, series_uid, stack) "
            f"TO '{version}/series.parquet' (FORMAT parquet, COMPRESSION zstd, ROW_GROUP_SIZE 4096)"
        )
        base.execute(
            f"COPY (SELECT {_select(FILE_COLUMNS, files)} "  # noqa: S608 - our own columns
            f"FROM read_parquet('{version}/series.parquet') ORDER BY folder) "
            f"TO '{version}/files.parquet' (FORMAT parquet, COMPRESSION zstd, ROW_GROUP_SIZE 16384)"
        )
    store.publish(1)
    return {}


def ask(folder: Path) -> dict[str, Any]:
    """Median milliseconds of cohort queries, and the peak memory of asking."""
    questions: dict[str, CohortQuery] = {
        "MR of the prostate": CohortQuery(modality=("MR",), body_part=("PROSTATE",)),
        "MR 2010–2015, at most 5 mm": CohortQuery(modality=("MR",), studied=("2010", "2015"), thickness_mm=(0, 5)),
        "CT of the chest, 50 to 500 slices": CohortQuery(modality=("CT",), body_part=("CHEST",), slices=(50, 500)),
        "a word of the description": CohortQuery(words=("t2",)),
    }
    found: dict[str, Any] = {"milliseconds": {}, "stacks": {}}
    with open_index(_site(folder)) as index:
        found["series"] = index.counts().series
        for name, question in questions.items():
            times = []
            for _ in range(7):
                started = time.perf_counter()
                found["stacks"][name] = index.count(question)[1]
                times.append(1000 * (time.perf_counter() - started))
            found["milliseconds"][name] = round(statistics.median(times), 1)
    return {**found, "peak_mb": _peak_mb()}


def build(folder: Path) -> dict[str, Any]:
    """Seconds and peak memory of bringing a million scanned files into an index, and of finding nothing changed."""
    store = _store(folder)
    scan = store.scan_folder("new")
    for name in ("listing", "direct", "series", "parts"):
        (scan / name).mkdir(exist_ok=True)
    write_rows(scan / "empty.parquet", [], FILE_COLUMNS)
    series, patient = f"(r // {_SLICES})", f"(r // {4 * _SLICES})"
    where = f"format('EUCAIM-{{:08x}}/1.2.{{}}/1.2.840.{{}}', hash({patient}) % 4294967296, {patient}, {series})"
    listed = {
        "folder": where,
        "path": f"{where} || format('/{{:06d}}.dcm', r % {_SLICES})",
        "name_key": "substr(md5(r::varchar), 1, 24)",
        "size": "525000",
        "mtime_ns": "1700000000000000000 + r",
        "ctime_ns": "1700000000000000000 + r",
        "inode": "r",
    }
    read = {
        **listed,
        "kind": "'dicom'",
        "content": "md5(r::varchar)",
        "identifiers": "'{}'",
        "patient_id": f"substr(md5({patient}::varchar), 1, 24)",
        "study_uid": f"'1.2.' || {patient}",
        "series_uid": f"'1.2.840.' || {series}",
        "sop_uid": "'1.2.840.9.' || r",
        "modality": f"['MR', 'CT'][1 + {series} % 2]",
        "rows": "512",
        "columns": "512",
        "position": f"[0.5, 1.5, 3.0 * (r % {_SLICES})]",
        "orientation": "[1, 0, 0, 0, 1, 0]",
        "spacing": "[0.5, 0.5]",
        "thickness_mm": "3.0",
    }
    with duckdb.connect() as base:
        base.execute(
            f"COPY (SELECT {_select(LISTING_COLUMNS, listed)} FROM range({_FILES}) t(r)) "  # noqa: S608 - our own columns
            f"TO '{scan}/listing/000000.parquet' (FORMAT parquet)"
        )
        for part in range(10):
            low, high = part * _FILES // 10, (part + 1) * _FILES // 10
            base.execute(
                f"COPY (SELECT {_select(FILE_COLUMNS, read)} FROM range({low}, {high}) t(r)) "  # noqa: S608 - our own
                f"TO '{scan}/parts/{part:06d}.parquet' (FORMAT parquet, COMPRESSION zstd)"
            )
    before, found = _peak_mb(), {}
    for name in ("seconds, all new", "seconds, nothing changed"):
        started = time.perf_counter()
        Compaction(store, scan, store.pointer(), None, lambda done: None).run()
        found[name] = round(time.perf_counter() - started, 1)
        for part in [*(scan / "parts").iterdir(), *(scan / "series").iterdir()]:
            part.unlink()
    return {"files": _FILES, **found, "peak_mb": _peak_mb(), "peak_mb_before": before}


def main() -> None:
    """Measure one thing and print it as one line of JSON."""
    jobs: dict[str, Callable[[Path], dict[str, Any]]] = {"idc": write_idc, "queries": ask, "files": build}
    print(json.dumps(jobs[sys.argv[1]](Path(sys.argv[2]))))


if __name__ == "__main__":
    main()

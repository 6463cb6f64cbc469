"""Identifiers in a cohort's own tables and forms: which column of which file breaks which rule, never the values."""

from __future__ import annotations

import csv
import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

from eucaim_fl.cohorts.bounded import read_bounded
from eucaim_fl.cohorts.codes import looks_coded
from eucaim_fl.cohorts.deidentification.policy import to_findings
from eucaim_fl.cohorts.deidentification.tables import identifiers_in_table, identifiers_in_values
from eucaim_fl.cohorts.findings import Finding
from eucaim_fl.sitefile import DeidentificationConfig, SiteFile

__all__ = ["ColumnBreach", "breaches_of", "column_breaches", "table_files", "table_findings"]

_LARGEST_BYTES = 256 * 1024 * 1024
_MOST_ROWS = 1_000_000
_MOST_VALUES = 5_000_000
_DEEPEST = 32
_FOLDERS = ("", "clinical_data", "phenotype")
_VIEWS = ("clinical_mandatory_view.csv", "imaging_mandatory_view.csv")


_LAYOUT_KEYS = frozenset({"subjectName", "studyName", "folderName", "page_name"})
"""Keys of the UPV index and forms that hold pseudonyms and titles; their values are looked at, their names are not."""


class ColumnBreach(NamedTuple):
    """A column (or key) of a table that breaks a rule, and how often. file and column stay on this machine."""

    file: Path
    column: str
    rule: str
    times: int


def table_files(folder: Path) -> tuple[Path, ...]:
    """Tables and forms where the layouts have theirs: CSV, TSV and JSON in the cohort's folder, `clinical_data` and
    `phenotype`, and the tier-3 views one folder above. Links, and files larger than 256 MB, are left out.
    """
    found: set[Path] = {folder.parent / name for name in _VIEWS}
    for name in _FOLDERS:
        try:
            found.update(path for path in (folder / name).iterdir() if path.suffix.lower() in (".csv", ".tsv", ".json"))
        except OSError:
            continue
    return tuple(sorted(path for path in found if _is_table(path)))


def _is_table(path: Path) -> bool:
    try:
        return path.is_file() and not path.is_symlink() and path.stat().st_size <= _LARGEST_BYTES
    except OSError:
        return False


def breaches_of(site: SiteFile) -> tuple[ColumnBreach, ...]:
    """What breaks a rule in all tables of a site. The days in the consent table's own columns must be there: they break
    none.
    """
    folder, table = site.cohort_folder(), site.consent.table
    consent = None if table is None else folder / table
    found = [one for path in table_files(folder) for one in column_breaches(path)]
    return tuple(one for one in found if not (one.file == consent and one.rule == "deid.table_date"))


def column_breaches(path: Path) -> tuple[ColumnBreach, ...]:
    """Which columns of a table, or keys of a form, break which rule. A file that can't be read breaks none: to read it
    is the layout's business, which says so.
    """
    try:
        text = read_bounded(path, _LARGEST_BYTES).decode("utf-8-sig", errors="replace")
        found = _in_json(json.loads(text)) if path.suffix.lower() == ".json" else _in_csv(text, path)
    except (OSError, ValueError, RecursionError, csv.Error):
        return ()
    return tuple(ColumnBreach(path, column, rule, n) for column, rules in found for rule, n in sorted(rules.items()))


def _in_csv(text: str, path: Path) -> Iterator[tuple[str, Mapping[str, int]]]:
    first = text.partition("\n")[0]
    separator = "\t" if path.suffix.lower() == ".tsv" else max(",;\t", key=first.count)
    reader = csv.reader(text.splitlines(), delimiter=separator)
    header = next(reader, [])
    columns: list[list[list[str]]] = [[] for _ in header]
    for row in islice(reader, _MOST_ROWS):
        for at, cell in enumerate(row[: len(header)]):
            if cell.strip() and not looks_coded(cell, header[at]):  # a code of seven digits is no record number
                columns[at].append([cell])
    for name, cells in zip(header, columns, strict=True):
        yield name, identifiers_in_table([name], cells)


def _in_json(value: Any) -> Iterator[tuple[str, Mapping[str, int]]]:
    columns: dict[str, list[str]] = {}
    for name, cell in islice(_leaves(value, "", 0), _MOST_VALUES):
        if looks_coded(cell, name):
            continue
        columns.setdefault(name, []).append(cell)
    for name, cells in sorted(columns.items()):
        plain = "folder" if name in _LAYOUT_KEYS else name
        yield name, identifiers_in_values((plain, cell) for cell in cells)


def _leaves(value: Any, name: str, depth: int) -> Iterator[tuple[str, str]]:
    """Texts and numbers of a form under the name of the nearest key that says something: not `value`."""
    if depth > _DEEPEST:
        return
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from _leaves(inner, name if key == "value" else str(key), depth + 1)
    elif isinstance(value, list):
        for inner in value:
            yield from _leaves(inner, name, depth + 1)
    elif isinstance(value, str | int | float) and not isinstance(value, bool):
        yield name, str(value)


def table_findings(breaches: Iterable[ColumnBreach], policy: DeidentificationConfig) -> tuple[Finding, ...]:
    """One finding a rule over all tables. They warn at most: a run takes single columns of a table, and sends none."""
    counts: Counter[str] = Counter()
    for one in breaches:
        counts[one.rule] += one.times
    return tuple(
        Finding(
            f.rule,
            "informs" if f.severity == "informs" else "warns",
            counts[f.rule],
            "columns" if f.rule == "deid.table_column" else "cells",
            f.says,
            f.do,
        )
        for f in to_findings([("", counts)], policy)
    )

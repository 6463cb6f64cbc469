"""Tables and indexes of a cohort as values: bounded and strict."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from eucaim_fl.cohorts.bounded import read_bounded
from eucaim_fl.cohorts.codes import COLUMN_ALIASES, looks_coded, place
from eucaim_fl.cohorts.layouts.notes import Notebook
from eucaim_fl.errors import CohortError

__all__ = ["LARGEST_TABLE_BYTES", "Row", "Table", "in_words", "read_json", "read_list", "read_table"]

LARGEST_TABLE_BYTES = 256 * 1024 * 1024
_MOST_COLUMNS = 4096
_DEEPEST = 32
_NAMES = frozenset({"patient_id", "dataset_id", "study_uid", "series_uid", "image", "label", "folder"})

Row = dict[str, str]


@dataclass(frozen=True)
class Table:
    """Rows under canonical names of columns; empty cells are left out, and so are empty rows."""

    columns: tuple[str, ...]
    rows: tuple[Row, ...]


def _bytes(path: Path, largest: int) -> bytes:
    try:
        return read_bounded(path, largest)
    except (OSError, ValueError) as problem:
        raise CohortError(
            "A table of the cohort is missing or can't be read.",
            fix="Check cohort.layout and the cohort's tables.",
            local_detail=f"{path}: {problem}",
        ) from None


def _text(path: Path, notes: Notebook) -> str:
    content = _bytes(path, LARGEST_TABLE_BYTES)
    if b"\0" in content:
        raise CohortError("A table of the cohort is no text.", fix="Save it as UTF-8.", local_detail=str(path))
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError:
        notes.note("layout.tables_not_utf8")
        return content.decode("latin-1")


def _cells(text: str, separator: str) -> Iterator[list[str]]:
    return csv.reader(io.StringIO(text, newline=""), delimiter=separator, strict=True)


def _separator(text: str) -> str:
    """Comma, semicolon or tab: the one that makes most columns of the first line; a comma if there is but one."""
    return max(",;\t", key=lambda separator: len(next(_cells(text, separator), ())))


def _canonical(header: list[str], notes: Notebook) -> list[str]:
    """Names under which columns are read. An older name stays if the table has the present one too."""
    names = []
    for name in header:
        present = COLUMN_ALIASES.get(name, name)
        if present != name and present not in header:
            notes.note("layout.aliases_used", 1, name)
            names.append(present)
        else:
            names.append(name)
    return names


def read_table(
    path: Path, required: Iterable[str], notes: Notebook, *, aliases: Mapping[str, str] | None = None
) -> Table:
    """Rows of a CSV file; columns are separated by commas, semicolons or tabs, as its first line shows.

    required: columns that must be there, by their canonical names. aliases: further names of columns at this layout.
    Text is UTF-8 with or without mark, else Latin-1, which is noted. Cells are stripped and stay as they are otherwise.
    A row with more cells than there are columns is left out and noted.
    Raises CohortError if the file is missing, too large, no text or no valid CSV, two columns have the same name, or a
    required one is missing.
    """
    text = _text(path, notes)
    try:
        reader = _cells(text, _separator(text))
        header = [name.strip() for name in next(reader, [])]
        if aliases:
            header = [name if (new := aliases.get(name, name)) in header else new for name in header]
        names = _canonical(header, notes)
        repeated = len([name for name in names if name]) - len({name for name in names if name})
        if repeated or len(names) > _MOST_COLUMNS:
            raise CohortError(
                "A table of the cohort has two columns of the same name, or thousands of columns.",
                fix="Give every column a name of its own.",
                local_detail=str(path),
            )
        rows = []
        for cells in reader:
            if any(cell.strip() for cell in cells[len(names) :]):
                notes.note("layout.rows_too_long")
                continue
            row = {name: cell.strip() for name, cell in zip(names, cells, strict=False) if name and cell.strip()}
            if row:
                rows.append(row)
    except csv.Error as problem:
        raise CohortError("A table of the cohort is no valid CSV.", local_detail=f"{path}: {problem}") from None
    missing = sorted(set(required) - set(names))
    if missing:
        raise CohortError(
            f"A table of the cohort lacks the columns {', '.join(missing)}.",
            fix="Name them so in the table's first line, and check cohort.layout.",
            local_detail=str(path),
        )
    return Table(tuple(name for name in names if name), tuple(rows))


def read_json(path: Path, largest: int = LARGEST_TABLE_BYTES) -> Any:
    """A JSON file's value.

    Raises CohortError if it is missing, larger than `largest` bytes, no JSON, nested deeper than 32 levels, or has text
    that is no Unicode (lone surrogates), which could be neither written nor printed later.
    """
    content = _bytes(path, largest)
    try:
        value = json.loads(content.decode("utf-8-sig"))
        level: list[Any] = [value]
        for _ in range(_DEEPEST):
            level = [
                inner
                for outer in level
                if isinstance(outer, dict | list)
                for inner in (outer.values() if isinstance(outer, dict) else outer)
                if isinstance(inner, dict | list)
            ]
        if level:
            raise ValueError("nested too deeply")
        if b"\\ud" in content.lower():
            json.dumps(value, ensure_ascii=False).encode()
    except (ValueError, RecursionError) as problem:
        raise CohortError("An index of the cohort is no valid JSON.", local_detail=f"{path}: {problem}") from None
    return value


def read_list(path: Path) -> list[Any]:
    """The list that a JSON file holds.

    Raises CohortError if the file is missing, too large, no JSON, or holds no list.
    """
    value = read_json(path)
    if not isinstance(value, list):
        raise CohortError("An index of the cohort is no list.", local_detail=str(path))
    return value


def in_words(row: Mapping[str, str], notes: Notebook) -> Row:
    """A row with codes in plain words. Codes that the vocabulary doesn't know are counted and stay as they are."""
    words: Row = {}
    for column, value in row.items():
        placed = None if column in _NAMES else place(value, column)
        if placed is None and column not in _NAMES and looks_coded(value, column):
            notes.unplaced[column] += 1
        words[column] = value if placed is None else placed.word
    return words

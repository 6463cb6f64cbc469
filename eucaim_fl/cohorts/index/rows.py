"""Facts as rows of a table, and back. Paths of a stack's files are kept without their folder."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Mapping
from functools import lru_cache
from typing import Any

from eucaim_fl.cohorts.facts import FileFacts, SeriesFacts
from eucaim_fl.cohorts.index.store import FILE_COLUMNS, SERIES_COLUMNS

__all__ = ["FILE_NAMES", "SERIES_NAMES", "checked", "file_facts", "folder_of", "series_facts", "series_row"]

FILE_NAMES = tuple(field.name for field in dataclasses.fields(FileFacts))
"""Columns that `file_facts` takes, in this order."""
SERIES_NAMES = tuple(name for name in SERIES_COLUMNS if name != "words")
"""Columns that `series_facts` takes, in this order."""
_LONGEST_TEXT, _LONGEST_LIST = 4096, 100_000
_FILE_LISTS = frozenset(name for name, kind in FILE_COLUMNS.items() if kind.startswith("list"))


def folder_of(path: str) -> str:
    """The folder of a relative POSIX path; "" for the cohort's own. A path that ends in `/` is a folder's."""
    return path.rpartition("/")[0]


def checked(values: Any) -> dict[str, Any] | None:
    """What a worker said of a file as a row of `FILE_COLUMNS` without folder; None if it is anything else."""
    if not isinstance(values, dict):
        return None
    row: dict[str, Any] = {}
    for name, value in values.items():
        kind = FILE_COLUMNS.get(name)
        if kind == "string" and type(value) is str and len(value) <= _LONGEST_TEXT and value.isascii():
            row[name] = value  # most values, of millions of files
        elif name == "identifiers":
            if not isinstance(value, dict) or not all(type(n) is int for n in value.values()):
                return None
            row[name] = json.dumps(value, sort_keys=True)
        elif kind is not None and _fits(kind, value):
            row[name] = value
        else:
            return None
    return row


def _fits(kind: str, value: Any) -> bool:
    if kind == "string":
        return isinstance(value, str) and len(value) <= _LONGEST_TEXT and (value.isascii() or _is_utf8(value))
    if kind == "bool":
        return isinstance(value, bool)
    if kind in ("int64", "uint64"):
        return type(value) is int and (0 <= value < 2**64 if kind == "uint64" else -(2**63) <= value < 2**63)
    if kind == "float64":
        return type(value) in (int, float) and math.isfinite(value)
    item = kind.removeprefix("list<").removesuffix(">")
    return isinstance(value, list) and len(value) <= _LONGEST_LIST and all(_fits(item, one) for one in value)


def _is_utf8(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


@lru_cache(maxsize=1024)
def _parsed(text: str) -> dict[str, int]:
    found: dict[str, int] = json.loads(text)
    return found


def _counts(text: str | None) -> dict[str, int]:
    return dict(_parsed(text)) if text else {}


def file_facts(values: tuple[Any, ...]) -> FileFacts:
    """Facts of a row of `FILE_NAMES`."""
    row = dict(zip(FILE_NAMES, values, strict=True))
    for name in _FILE_LISTS:
        value = row[name]
        row[name] = tuple(value) if value is not None else (() if name in ("image_type", "references") else None)
    row["identifiers"] = _counts(row["identifiers"])
    return FileFacts(**row)


def series_row(facts: SeriesFacts) -> Mapping[str, Any]:
    """A stack as a row of `SERIES_COLUMNS`."""
    row = {name: getattr(facts, name) for name in SERIES_NAMES}
    skip = len(facts.folder) + 1 if facts.folder else 0
    row["files"] = "/".join(path[skip:] for path in facts.files)
    row["identifiers"] = json.dumps(dict(facts.identifiers), sort_keys=True)
    row["words"] = f" {' '.join(filter(None, (facts.description, facts.protocol, facts.sequence)))} "
    return row


def series_facts(values: tuple[Any, ...]) -> SeriesFacts:
    """Facts of a row of `SERIES_NAMES`."""
    row = dict(zip(SERIES_NAMES, values, strict=True))
    folder = f"{row['folder']}/" if row["folder"] else ""
    row["files"] = tuple(folder + name for name in row["files"].split("/"))
    for name in ("image_type", "references", "size", "spacing_mm"):
        row[name] = tuple(row[name] or ())
    row["identifiers"] = _counts(row["identifiers"])
    return SeriesFacts(**row)

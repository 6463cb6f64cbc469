"""A table that is sorted by folder, read a block at a time: what lies together is asked for together."""

from __future__ import annotations

from bisect import bisect_left
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

__all__ = ["Blocks"]

_KEPT = 4  # blocks in memory, of some thousand rows each
_AT_ONCE = 512  # rows as Python objects


class Blocks:
    """Rows of a Parquet file whose column `folder` is sorted; columns: those that rows consist of, in this order."""

    def __init__(self, path: Path, columns: Sequence[str]) -> None:
        import pyarrow.parquet as pq

        self._file = pq.ParquetFile(path)
        self._columns = list(columns)
        self._kept: OrderedDict[int, tuple[list[str], Any]] = OrderedDict()
        self._first: list[str] = []
        self._last: list[str] = []
        metadata = self._file.metadata
        for group in range(metadata.num_row_groups):
            of_group = metadata.row_group(group)
            names = [of_group.column(n).path_in_schema for n in range(of_group.num_columns)]
            known = of_group.column(names.index("folder")).statistics
            stated = known is not None and known.has_min_max
            folders = [known.min, known.max] if stated else self._load(group)[0] or [""]
            self._first.append(folders[0])
            self._last.append(folders[-1])

    def close(self) -> None:
        """Let go of the file."""
        self._kept.clear()
        self._file.close()

    def rows(self, folder: str, *, recursive: bool = False) -> Iterator[tuple[Any, ...]]:
        """Rows of a folder, or of it and all below, in the order of the file."""
        for low, high in _ranges(folder, recursive):
            for group in self._touching(low, high):
                folders, table = self._load(group)
                start, end = bisect_left(folders, low), len(folders) if high is None else bisect_left(folders, high)
                for at in range(start, end, _AT_ONCE):
                    part = table.slice(at, min(_AT_ONCE, end - at))
                    yield from zip(*(part.column(name).to_pylist() for name in self._columns), strict=True)

    def folders(self, folder: str) -> list[str]:
        """Names of folders directly in `folder` that rows lie in, at any depth; sorted."""
        before = len(folder) + 1 if folder else 0
        found: set[str] = set()
        for low, high in _ranges(folder, True):
            for group in self._touching(low, high):
                folders, _ = self._load(group)
                end = len(folders) if high is None else bisect_left(folders, high)
                for at in range(bisect_left(folders, low), end):
                    if at and folders[at] == folders[at - 1]:
                        continue
                    found.add(folders[at][before:].partition("/")[0])
        return sorted(found - {""})

    def _touching(self, low: str, high: str | None) -> range:
        """Row groups that may hold folders from `low` to below `high`."""
        end = len(self._first) if high is None else bisect_left(self._first, high)
        return range(bisect_left(self._last, low), end)

    def _load(self, group: int) -> tuple[list[str], Any]:
        if group in self._kept:
            self._kept.move_to_end(group)
            return self._kept[group]
        table = self._file.read_row_group(group, columns=list({"folder", *self._columns}), use_threads=False)
        self._kept[group] = table.column("folder").to_pylist(), table
        if len(self._kept) > _KEPT:
            self._kept.popitem(last=False)
        return self._kept[group]


def _ranges(folder: str, recursive: bool) -> list[tuple[str, str | None]]:
    """From (included) and to (excluded) of the folders that are meant; siblings such as `P1-a` lie between two."""
    if recursive and not folder:
        return [("", None)]
    own = (folder, folder + "\0")
    return [own, (f"{folder}/", f"{folder}0")] if recursive else [own]  # "0" follows "/"

"""A catalogue of stacks that exist nowhere but in the test, and makers of tables."""

from __future__ import annotations

import csv
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from eucaim_fl.cohorts.facts import FileFacts, SeriesFacts


class FakeCatalogue:
    """The stacks that it was made of, in the order of folders."""

    def __init__(self, *stacks: SeriesFacts) -> None:
        self.stacks = sorted(stacks, key=lambda s: (s.folder, s.series_uid, s.stack, s.files))

    def series(self, folder: str, *, recursive: bool = False) -> Sequence[SeriesFacts]:
        below = f"{folder}/" if folder else ""
        return [s for s in self.stacks if s.folder == folder or (recursive and s.folder.startswith(below))]

    def folders(self, folder: str) -> Sequence[str]:
        depth = len(folder.split("/")) if folder else 0
        inside = [s.folder.split("/") for s in self.series(folder, recursive=True)]
        return sorted({steps[depth] for steps in inside if len(steps) > depth})

    def file(self, path: str) -> FileFacts | None:
        return next(
            (FileFacts(path=path, size=1, mtime_ns=0, ctime_ns=0, inode=0) for s in self if path in s.files), None
        )

    def every(self) -> Iterator[SeriesFacts]:
        return iter(self.stacks)

    def __iter__(self) -> Iterator[SeriesFacts]:
        return self.every()


def make_stack(folder: str, uid: str = "", *, slices: int = 3, **facts: Any) -> SeriesFacts:
    """A DICOM stack; its modality is CT and its series the folder's name, where nothing else is said."""
    name = folder.rpartition("/")[2]
    return SeriesFacts(
        folder=folder,
        files=facts.pop("files", None) or tuple(f"{folder}/{n:03d}.dcm".lstrip("/") for n in range(slices)),
        kind=facts.pop("kind", "dicom"),
        series_uid=uid or name,
        modality=facts.pop("modality", "CT"),
        **facts,
    )


def make_nifti(path: str, **facts: Any) -> SeriesFacts:
    """A NIfTI file's stack."""
    return SeriesFacts(folder=path.rpartition("/")[0], files=(path,), kind="nifti", **facts)


def make_broken(path: str, kind: str = "dicom", **facts: Any) -> SeriesFacts:
    """A file that could not be read."""
    reason = {"code": "EFL204", "reason": "A DICOM file is missing, truncated or corrupt.", **facts}
    return SeriesFacts(folder=path.rpartition("/")[0], files=(path,), kind=kind, **reason)


def write_table(path: Path, *rows: dict[str, str], delimiter: str = ",") -> Path:
    """A CSV file with the columns of the first row."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="", encoding="utf-8") as stream:
        writer = csv.DictWriter(stream, rows[0], delimiter=delimiter, restval="")
        writer.writeheader()
        writer.writerows(rows)
    return path


def count_notes(found: Any) -> dict[str, int]:
    """Rule → count of what a layout noted."""
    return {finding.rule: finding.count for finding in found.notes.findings()}


@pytest.fixture(scope="session")
def fake() -> SimpleNamespace:
    """The makers of catalogues and tables, as one namespace."""
    return SimpleNamespace(
        catalogue=FakeCatalogue,
        stack=make_stack,
        nifti=make_nifti,
        broken=make_broken,
        table=write_table,
        notes=count_notes,
    )

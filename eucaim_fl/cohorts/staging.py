"""Generated cohorts appear whole or not at all, and never in place of files that somebody else put there."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from eucaim_fl.durable import exclusive
from eucaim_fl.errors import CohortError

__all__ = ["NOTICE", "staged"]

NOTICE = "README.txt"
"""A file of this name in each generated folder says where its content comes from."""
_SIGNATURE = "Written by eucaim_fl"


def _refuse_foreign(folder: Path) -> None:
    """Raise unless the folder is missing, holds no file, or carries our notice."""
    notice = folder / NOTICE
    if notice.is_file() and notice.read_text(encoding="utf-8", errors="replace").startswith(_SIGNATURE):
        return
    if folder.is_file() or any(not path.is_dir() for path in folder.rglob("*")):
        raise CohortError(
            "The folder for the generated cohort holds other files; nothing was changed.",
            fix="Choose another data folder, or move the files away.",
            local_detail=str(folder),
        )


@contextmanager
def staged(parent: Path, names: Sequence[str], notice: str) -> Iterator[Path]:
    """Give an empty folder to write into; when the body ends well, the folders `names` in it replace those in `parent`.

    If the body fails, or the process is killed, what was in `parent` stays; remains are cleared by the next call.
    notice: where the data come from; stands in each folder's README.txt.
    Raises CohortError if a folder to be replaced holds files that eucaim_fl did not write, or if the disk refuses.
    Raises RunFolderBusyError if another process writes the same cohorts.
    """
    for name in names:
        _refuse_foreign(parent / name)
    part = parent / f".{names[0]}.part"
    try:
        with exclusive(part):
            new, old = part / "new", part / "old"
            for folder in (new, old):
                shutil.rmtree(folder, ignore_errors=True)
                folder.mkdir()
            try:
                yield new
                for name in names:
                    (new / name / NOTICE).write_text(f"{_SIGNATURE}. {notice}\n", encoding="utf-8")
                for name in names:
                    if (parent / name).exists():
                        (parent / name).rename(old / name)
                    (new / name).rename(parent / name)
            finally:
                shutil.rmtree(part, ignore_errors=True)
    except OSError as problem:
        raise CohortError(
            "The cohort's files can't be written; nothing half-written was left behind.",
            fix="Check the free space and the permissions of the data folder.",
            local_detail=f"{parent}: {problem}",
        ) from None

"""Images from a folder: walked within bounds, filtered by their headers, copied."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path

from eucaim_fl.cohorts.intake.headers import examine
from eucaim_fl.cohorts.intake.landing import Landing, TooLargeError
from eucaim_fl.cohorts.intake.report import Outcome, Reason
from eucaim_fl.errors import ImportFailedError

__all__ = ["Tell", "import_folder", "looks_like_dicom", "walk_files"]

Tell = Callable[[int, int | None], None]
"""Is told how many instances are done, and of how many if that is known."""
_DEEPEST = 64
_BLOCK = 1024 * 1024
_HEAD_BYTES = 132


def walk_files(root: Path) -> Iterator[tuple[Path, bool]]:
    """Files of a folder and those below, in order of names, each with whether it may be read.

    A link is followed if it leads to something inside `root`; one that leads out comes with False. No folder is
    entered twice, so links in circles end. Names that start with a dot are passed over.
    Raises ImportFailedError if a folder can't be listed, or folders are nested deeper than 64.
    """
    inside = root.resolve()
    seen: set[tuple[int, int]] = set()
    pending: list[tuple[Path, int]] = [(root, 0)]
    while pending:
        folder, depth = pending.pop()
        try:
            status = folder.stat()
            if (status.st_dev, status.st_ino) in seen:
                continue
            seen.add((status.st_dev, status.st_ino))
            if depth > _DEEPEST:
                raise OSError(f"nested deeper than {_DEEPEST}")
            with os.scandir(folder) as listing:
                entries = sorted(listing, key=lambda e: e.name)
        except OSError as problem:
            raise ImportFailedError(
                "A folder of the source can't be read.",
                fix="Check its permissions.",
                local_detail=f"{folder}: {problem}",
            ) from None
        below: list[tuple[Path, int]] = []
        for entry in entries:
            path = Path(entry.path)
            if entry.name.startswith("."):
                continue
            if entry.is_symlink() and not _leads_inside(path, inside):
                yield path, False
            elif entry.is_dir():
                below.append((path, depth + 1))
            elif entry.is_file():
                yield path, True
        pending.extend(reversed(below))


def _leads_inside(path: Path, inside: Path) -> bool:
    try:
        return path.resolve(strict=True).is_relative_to(inside)
    except (OSError, RuntimeError):
        return False


def looks_like_dicom(head: bytes) -> bool:
    """Whether a file that starts so may be DICOM; tables and notes that lie beside images are no broken images."""
    return head[128:132] == b"DICM" or head[:2] in (b"\x08\x00", b"\x02\x00", b"\x00\x08")


def _may_be_dicom(path: Path) -> bool:
    try:
        with path.open("rb") as stream:
            return looks_like_dicom(stream.read(_HEAD_BYTES))
    except OSError:
        return True  # it is met again, and reported there


def import_folder(source: Path, landing: Landing, tell: Tell, *, workers: int = 2) -> None:
    """Bring in what the query asks for from a folder and those below.

    workers: processes that read headers. Files that don't start like DICOM are left; ZIP files in the folder too.
    Raises ImportFailedError if the folder is missing or can't be listed, or the cohort and it lie in each other.
    """
    if not source.is_dir():
        raise ImportFailedError("The folder to import from is missing.", local_detail=str(source))
    here, there = landing.folder.resolve(), source.resolve()
    if here.is_relative_to(there) or there.is_relative_to(here):
        raise ImportFailedError(
            "The folder to import from and the cohort's folder lie in each other.",
            fix="Import from another folder.",
            local_detail=f"{there}, {here}",
        )

    def candidates() -> Iterator[Path]:
        for path, may_be_read in walk_files(source):
            if not may_be_read:
                landing.count(Outcome("refused", Reason.LINK))
            elif not _may_be_dicom(path):
                landing.count(Outcome("left", Reason.NOT_DICOM))
            else:
                yield path

    for path, examined in examine(candidates(), workers=workers):
        if examined.header is None:
            landing.count(Outcome("refused", Reason.BROKEN))
            continue
        verdict = landing.judge(path, examined.header)
        if isinstance(verdict, Outcome):
            landing.count(verdict)
        elif landing.dry_run:
            landing.count(landing.would_come(path, verdict))
        else:
            landing.count(_bring(path, landing))
        tell(landing.tally.done(), None)


def _bring(path: Path, landing: Landing) -> Outcome:
    temporary = landing.temporary()
    try:
        with path.open("rb") as stream, landing.writing(temporary) as write:
            while block := stream.read(_BLOCK):
                write(block)
    except (OSError, TooLargeError) as problem:
        temporary.unlink(missing_ok=True)
        return Outcome("refused", Reason.BROKEN if isinstance(problem, OSError) else Reason.TOO_LARGE)
    return landing.settle(temporary)

"""Where a cohort's files may lie: what tables claim is checked before anything is opened."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path, PurePosixPath

from eucaim_fl.cohorts.deidentification.names import identifiers_in_name
from eucaim_fl.errors import CohortError, DataError, IdentifierError
from eucaim_fl.sitefile import SiteFile

__all__ = ["Place", "outermost"]


@dataclass(frozen=True)
class Place:
    """A cohort's folder, and where links inside it may lead.

    links: resolved absolute paths. words: the site's own words that descriptions of series may keep. blocks: whether
    files whose names can name a person are set aside.
    """

    folder: Path
    links: tuple[Path, ...] = ()
    words: frozenset[str] = frozenset()
    blocks: bool = True

    @classmethod
    def of(cls, site: SiteFile) -> Place:
        """The place that a site file names."""
        blocks = site.deidentification.block != "nothing"
        return cls(site.cohort_folder(), site.link_folders(), frozenset(site.cohort.words), blocks)

    @cached_property
    def _allowed(self) -> tuple[Path, ...]:
        return (self.folder.resolve(), *self.links)

    def claim(self, *parts: str) -> str:
        """The path of something that a table names, relative to the folder (POSIX). It need not exist.

        parts: each may have several steps. Links are followed, also to where they lead out of the folder, if that is
        one of the folders that links may lead to.
        Raises DataError if a part is empty or absolute, has a step `..`, or the path ends outside.
        """
        try:
            steps = [PurePosixPath(part) for part in parts]
            clean = all(parts) and not any(step.is_absolute() or ".." in step.parts for step in steps)
            relative = PurePosixPath(*steps)
            if clean and any(map(self.folder.joinpath(relative).resolve().is_relative_to, self._allowed)):
                return "" if relative == PurePosixPath() else str(relative)
        except (ValueError, OSError, RuntimeError):
            pass  # bytes that no path may have, a name too long, links in a circle
        raise DataError("A path leads out of the cohort's folder.", local_detail=f"{self.folder}: {parts}")

    def claim_names(self, *names: str, below: str = "") -> str:
        """The path of `below` and one step for each name, as `claim` gives it.

        Two different rows of names never give the same path, so a patient can't be another one by its spelling.
        Raises DataError if a name is no single step, or the path ends outside.
        """
        if any(PurePosixPath(name).parts != (name,) for name in names):
            raise DataError("A path leads out of the cohort's folder.", local_detail=f"{self.folder}: {names}")
        return self.claim(*([below] if below else []), *names)

    def path(self, relative: str) -> Path:
        """The absolute path of what `claim` gave."""
        return self.folder / relative

    def absent(self, relative: str, otherwise: DataError) -> DataError:
        """Why the index has nothing where a table says there is something: the index hides a name that can name a
        person, else `otherwise`.
        """
        if self.blocks and identifiers_in_name(relative) and self.path(relative).exists():
            return IdentifierError("A file's name can name a person.", local_detail=relative)
        return otherwise

    def files(self, folder: str, files: Iterable[str]) -> tuple[Path, ...]:
        """Absolute paths of files directly in `folder`; there may be millions, so the folder is parsed once."""
        parent, start = self.path(folder), len(folder) + 1 if folder else 0
        return tuple([parent / file[start:] for file in files])

    def subfolders(self) -> list[str]:
        """Names of the folders at the top, sorted; hidden ones are left out. Where links lead is for the index.

        Raises CohortError if the cohort's folder is missing or may not be listed.
        """
        try:
            return sorted(p.name for p in self.folder.iterdir() if not p.name.startswith(".") and p.is_dir())
        except OSError as problem:
            raise CohortError(
                "The cohort's folder is missing or may not be listed.",
                fix="Check cohort.folder in the site file, and the folder's permissions.",
                local_detail=f"{self.folder}: {problem}",
            ) from None


def outermost(folders: Iterable[str]) -> Sequence[str]:
    """The folders without those that lie in another of them, sorted; "" is the cohort's own and holds all.

    >>> outermost(["a/b", "a", "ab", "a/b/c"]), outermost(["x", ""])
    (['a', 'ab'], [''])
    """
    kept: dict[str, None] = {}
    for folder in sorted(set(folders), key=lambda f: (f.count("/") if f else -1, f)):
        steps = folder.split("/")
        if not any("/".join(steps[:n]) in kept for n in range(len(steps) + 1)):
            kept[folder] = None
    return sorted(kept)

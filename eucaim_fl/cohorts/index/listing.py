"""Which files lie in a cohort: names and signatures; nothing is opened. Links lead where the site file allows."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from eucaim_fl.errors import CohortError

__all__ = ["Listed", "list_files", "outermost"]

_UNREADABLE = "EFL204"
_DEEPEST = 64
_MOST_LINKS = 2  # one inside the other; links that lead across could make endless paths without a loop
_ASTRAY = "A link leads to a place that the site file does not allow."
_BACK = "A link leads back to a folder above it, or through too many others."
_NOWHERE = "A link leads nowhere."
_SPECIAL = "This is no file but a device, a socket or a pipe."
_CLOSED = "A folder or file may not be read."
_DEEP = f"A folder lies deeper than {_DEEPEST} others."
_Identity = tuple[int, int]


@dataclass(frozen=True, slots=True)
class Listed:
    """A file: its path relative to the cohort's folder (POSIX), size, times (ns since 1970) and inode.

    A path that ends in `/` is a folder that can't be listed. code, reason: why it must not be opened; empty if it may.
    Bytes of a name that are no UTF-8 are lone surrogates, as `os.fsdecode` makes them.
    """

    path: str
    size: int = 0
    mtime_ns: int = 0
    ctime_ns: int = 0
    inode: int = 0
    code: str = ""
    reason: str = ""


@dataclass(frozen=True, slots=True)
class _Folder:
    """A folder to list. above: identities of the folders it lies in, and its own. links: those passed on the way."""

    place: str
    path: str
    above: tuple[_Identity, ...]
    links: int

    def inside(self, name: str) -> str:
        return f"{self.path}/{name}" if self.path else name


def list_files(
    folder: Path, scope: Sequence[str] | None = None, *, links: Sequence[Path] = (), skip: Sequence[Path] = ()
) -> Iterator[Listed]:
    """Every file below `folder`, or below those of its folders that `scope` names (relative, POSIX; missing ones are
    empty), in no stated order.

    links: folders that links may lead into; any other link, a device, a pipe, a socket, and a folder that can't be
    listed are rows with a code and a reason. skip: folders that are left out, as are folders whose names start with a
    dot.
    Raises CohortError if `folder` is missing or can't be listed, or a name in `scope` is absolute or leads upwards.
    """
    try:
        root = folder.resolve(strict=True)
        home = root.stat()
        with os.scandir(root):
            pass
    except (OSError, RuntimeError) as problem:
        raise CohortError(
            "The cohort's folder is missing or may not be listed.",
            fix="Check cohort.folder in the site file, EUCAIM_FL_DATA, and the folder's permissions.",
            local_detail=f"{folder}: {problem}",
        ) from None
    walk = _Walk(root, tuple(path.resolve() for path in links), {_identity(path) for path in skip if path.is_dir()})
    if scope is None:
        yield from walk.below(_Folder(str(root), "", ((home.st_dev, home.st_ino),), 0))
        return
    for name in outermost(scope):
        yield from walk.scoped(name)


def _identity(path: Path) -> _Identity:
    status = path.stat()
    return status.st_dev, status.st_ino


def outermost(scope: Sequence[str]) -> list[str]:
    """Folders (relative, POSIX) in their plain form, sorted, without those that lie in another one.

    Raises CohortError if one is absolute or leads upwards.
    """
    names = set()
    for name in scope:
        parts = PurePosixPath(name)
        if parts.is_absolute() or ".." in parts.parts or "\0" in name:
            raise CohortError("A folder to scan leads out of the cohort.", local_detail=name)
        names.add("" if str(parts) == "." else str(parts))
    above = {name: {"" if str(p) == "." else str(p) for p in PurePosixPath(name).parents} for name in names}
    return sorted(name for name in names if not name or not above[name] & names)


class _Walk:
    """One walk over a cohort's folder."""

    def __init__(self, root: Path, links: tuple[Path, ...], skip: set[_Identity]) -> None:
        self._root, self._links, self._skip = root, links, skip

    def scoped(self, name: str) -> Iterator[Listed]:
        """Files below one folder of the cohort, however it is reached: each step is checked as in a full walk."""
        status = self._root.stat()
        at = _Folder(str(self._root), "", ((status.st_dev, status.st_ino),), 0)
        for part in PurePosixPath(name).parts:
            place = os.path.join(at.place, part)  # noqa: PTH118 - names with surrogates, many of them
            try:
                status = os.lstat(place)
            except OSError as problem:
                if problem.errno in (errno.ENOENT, errno.ENOTDIR):
                    return
                yield Listed(f"{name}/", code=_UNREADABLE, reason=_CLOSED)
                return
            following = self._step(at, part, place, status)
            if isinstance(following, Listed):
                if following.code:
                    yield Listed(f"{name}/", code=following.code, reason=following.reason)
                elif following.path == name:
                    yield following
                return
            at = following
        yield from self.below(at)

    def below(self, start: _Folder) -> Iterator[Listed]:
        """Files below a folder."""
        waiting = [start]
        while waiting:
            at = waiting.pop()
            if at.above[-1] in self._skip:
                continue
            try:
                with os.scandir(at.place) as entries:
                    for entry in entries:
                        found = self._look(at, entry)
                        if isinstance(found, Listed):
                            yield found
                        elif not entry.name.startswith("."):
                            waiting.append(found)
            except OSError:
                yield Listed(f"{at.path}/", code=_UNREADABLE, reason=_CLOSED)

    def _look(self, at: _Folder, entry: os.DirEntry[str]) -> Listed | _Folder:
        try:
            return self._step(at, entry.name, entry.path, entry.stat(follow_symlinks=False))
        except OSError:
            return Listed(at.inside(entry.name), code=_UNREADABLE, reason=_CLOSED)

    def _step(self, at: _Folder, name: str, place: str, status: os.stat_result) -> Listed | _Folder:
        """What an entry of a folder is: a file, or a folder to go on with."""
        path, links = at.inside(name), at.links
        if stat.S_ISLNK(status.st_mode):
            try:
                target = Path(place).resolve(strict=True)
                status = target.stat()
            except (OSError, RuntimeError, ValueError):
                return Listed(path, code=_UNREADABLE, reason=_NOWHERE)
            if not any(target == allowed or allowed in target.parents for allowed in self._links):
                return Listed(path, code=_UNREADABLE, reason=_ASTRAY)
            place, links = str(target), links + 1
        if stat.S_ISREG(status.st_mode):
            return Listed(path, status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino)
        if not stat.S_ISDIR(status.st_mode):
            return Listed(path, code=_UNREADABLE, reason=_SPECIAL)
        identity = status.st_dev, status.st_ino
        if identity in at.above or links > _MOST_LINKS:
            return Listed(path, code=_UNREADABLE, reason=_BACK)
        if len(at.above) > _DEEPEST:
            return Listed(f"{path}/", code=_UNREADABLE, reason=_DEEP)
        return _Folder(place, path, (*at.above, identity), links)

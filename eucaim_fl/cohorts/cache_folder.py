"""The folder of a cache: whole files, remains of killed writers, and room for what is used.

Several processes may work in one folder, of one run or of several. What one of them uses is protected from the others
by a lease: a locked file with names of entries, which ends with its process, however that ends.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import os
import re
import socket
import tempfile
import time
import weakref
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import TextIO

from eucaim_fl.errors import CohortError

__all__ = ["Folder", "Lease"]

_PARTS, _LEASES = ".parts", ".leases"
_PART_ENDS_S, _TRY_ENDS_S = 3600.0, 7 * 86_400.0
_ENTRY = re.compile(r"([0-9a-f]{64})(?:-image\.npy|-label\.npy|\.json|\.memo\.json)")
_GB = 1e9


@lru_cache(maxsize=1)
def _machine() -> str:
    """Where a process number means something: this machine, and this container of it."""
    try:
        space = str(Path("/proc/self/ns/pid").readlink())
    except OSError:
        space = ""
    return hashlib.sha256(f"{socket.gethostname()} {space}".encode()).hexdigest()[:12]


def _me() -> str:
    return f"{_machine()}-{os.getpid()}"


def _is_gone(writer: str) -> bool:
    """Whether a process named as `_me` does has ended; False where that can't be known from here."""
    machine, _, number = writer.partition("-")
    if machine != _machine() or not number.isdecimal():
        return False
    try:
        os.kill(int(number), 0)
    except ProcessLookupError:
        return True
    except (OSError, OverflowError):
        return False
    return False


class Lease:
    """Names of entries that this process uses, for other processes to see as long as the object lives."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(mode=0o700, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=folder, prefix=".")
        self._stream = os.fdopen(handle, "w")
        fcntl.flock(self._stream, fcntl.LOCK_EX)
        path = Path(name).with_name(f"{Path(name).name[1:]}.lease")
        Path(name).rename(path)  # only now does anybody look at it
        weakref.finalize(self, _release, self._stream, path, os.getpid())

    def add(self, name: str) -> None:
        """Protect an entry from now on."""
        self._stream.write(f"{name}\n")
        self._stream.flush()


def _release(stream: TextIO, path: Path, owner: int) -> None:
    with contextlib.suppress(OSError):
        if owner == os.getpid():  # in a forked child it is the parent's
            path.unlink()
        stream.close()


def _leased(folder: Path) -> set[str]:
    """Entries that living processes use. Leases of dead ones are removed."""
    names: set[str] = set()
    for path in folder.glob("*.lease"):
        with contextlib.suppress(OSError), path.open() as stream:
            try:
                fcntl.flock(stream, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except BlockingIOError:
                names.update(stream.read().split())
            else:
                path.unlink()
    return names


class Folder:
    """The files of a cache. limit_bytes: as of `Cache`; None sets no limit, and then nothing is ever removed.

    expected: entries that this opening will use. lease: protects them while a limit is set.
    Raises CohortError if the folder can't be made or written.
    """

    def __init__(self, path: Path, limit_bytes: int | None) -> None:
        self.path = path
        self.expected = 0
        self.lease: Lease | None = None
        self._limit = limit_bytes
        self._known: dict[str, tuple[int, float]] | None = None
        self._total = 0
        self._used: dict[str, int] = {}
        try:
            (path / _PARTS).mkdir(mode=0o700, parents=True, exist_ok=True)
            path.chmod(0o700)
            self._sweep()
            self.lease = None if limit_bytes is None else Lease(path / _LEASES)
        except OSError as problem:
            raise _unwritable(path, problem) from None

    # --- whole files ------------------------------------------------------------------------------------------

    def write(self, name: str, pieces: Iterable[bytes | memoryview]) -> None:
        """Write a file so that it is there whole or not at all. Raises CohortError if it can't be written."""
        temporary: str | None = None
        try:
            handle, temporary = tempfile.mkstemp(dir=self.path / _PARTS, prefix=f"{_me()}-", suffix=".part")
            with os.fdopen(handle, "wb") as stream:
                stream.writelines(pieces)
            Path(temporary).replace(self.path / name)
            temporary = None
        except OSError as problem:
            raise _unwritable(self.path, problem) from None
        finally:
            if temporary is not None:
                with contextlib.suppress(OSError):
                    Path(temporary).unlink()

    @contextmanager
    def trying(self, name: str) -> Iterator[None]:
        """Leaves a note if the process ends inside, as a foreign file may make it do.

        Raises CohortError if the note can't be written.
        """
        note = self.path / _PARTS / f"{name}.trying"
        try:
            note.write_text(_me())
        except OSError as problem:
            raise _unwritable(self.path, problem) from None
        try:
            yield
        finally:
            with contextlib.suppress(OSError):
                note.unlink()

    def was_tried_in_vain(self, name: str) -> bool:
        """Whether a process ended while it was `trying` this."""
        try:
            return _is_gone((self.path / _PARTS / f"{name}.trying").read_text())
        except (OSError, ValueError):
            return False

    def _sweep(self) -> None:
        """Remove what killed writers left behind."""
        now = time.time()
        for path in (self.path / _PARTS).iterdir():
            with contextlib.suppress(OSError):
                age = now - path.stat().st_mtime
                if path.suffix == ".part":
                    if age > _PART_ENDS_S or _is_gone("-".join(path.name.split("-")[:2])):
                        path.unlink()
                elif age > _TRY_ENDS_S:
                    path.unlink()

    # --- room -------------------------------------------------------------------------------------------------

    def use(self, name: str) -> None:
        """Protect an entry, there or yet to be made, from being removed to make room."""
        if self.lease is not None:
            self._used.setdefault(name, 0)
            try:
                self.lease.add(name)
            except OSError as problem:
                raise _unwritable(self.path, problem) from None

    def count(self, name: str) -> None:
        """An entry is there and used: note the time, and remove others if the limit is exceeded.

        Raises CohortError if the entries in use alone exceed it.
        """
        with contextlib.suppress(OSError):
            os.utime(self.path / f"{name}.json")
        if self._limit is None:
            return
        if self._known is None:
            self._known = self._scan()
            self._total = sum(size for size, _ in self._known.values())
        size = 0
        for ending in ("-image.npy", "-label.npy", ".json"):
            with contextlib.suppress(OSError):
                size += (self.path / f"{name}{ending}").stat().st_size
        self._total += size - self._known.get(name, (0, 0.0))[0]
        self._known[name] = (size, time.time())
        self._used[name] = size
        if self._total > self._limit:
            self._make_room(self._known, self._limit)

    def _scan(self) -> dict[str, tuple[int, float]]:
        """Bytes of each entry, and when it was last used."""
        found: dict[str, tuple[int, float]] = {}
        with os.scandir(self.path) as files:
            for file in files:
                match = _ENTRY.fullmatch(file.name)
                if match is None:
                    continue
                with contextlib.suppress(OSError):
                    status = file.stat(follow_symlinks=False)
                    size, last = found.get(match[1], (0, 0.0))
                    found[match[1]] = (size + status.st_size, max(last, status.st_mtime))
        return found

    def _make_room(self, known: dict[str, tuple[int, float]], limit: int) -> None:
        protected = {*self._used, *_leased(self.path / _LEASES)}
        for name in sorted(known.keys() - protected, key=lambda name: (known[name][1], name)):
            for ending in (".json", "-image.npy", "-label.npy", ".memo.json"):  # without its JSON an entry isn't there
                with contextlib.suppress(OSError):
                    (self.path / f"{name}{ending}").unlink()
            self._total -= known.pop(name)[0]
            if self._total <= limit:
                return
        counted = [size for size in self._used.values() if size]
        needed = sum(counted) / len(counted) * max(self.expected, len(counted))
        others = sum(size for name, (size, _) in known.items() if name not in self._used)
        raise CohortError(
            f"The site's cache may take {limit / _GB:.3g} GB, but this cohort needs about {needed / _GB:.3g} GB"
            + (f" beside {others / _GB:.3g} GB that other runs use." if others else "."),
            fix="Raise cache.limit_gb in the site file"
            + (", or wait until the other runs are over." if others else ", or choose a coarser grid in the recipe."),
            local_detail=str(self.path),
        )


def _unwritable(folder: Path, problem: OSError) -> CohortError:
    full = problem.errno in (errno.ENOSPC, errno.EDQUOT)
    return CohortError(
        "The disk of the site's cache is full." if full else "The site's cache can't be written.",
        fix="Free some space, or set cache.folder in the site file to another disk.",
        local_detail=f"{folder}: {problem.strerror}",
    )

"""Files that are whole or not there: atomic writes, and a lock that says who works in a folder."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import secrets
import tempfile
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from eucaim_fl.errors import JournalError, RunFolderBusyError

_UMASK = os.umask(0o077)
os.umask(_UMASK)  # asking for it means setting it; done once, before there are threads

__all__ = ["exclusive", "flush_folder", "local_key", "write_atomically", "write_json"]


def write_atomically(
    path: Path, buffers: Iterable[bytes | memoryview] | bytes, *, survive_power_loss: bool = True
) -> None:
    """Write a file so that a crash at any moment leaves the old file or the new one, never a part.

    A temporary file in the same folder is written, flushed to the disk and renamed; then the folder is flushed.
    Without `survive_power_loss` nothing is flushed: safe against a killed process, not against a dead machine.
    Raises JournalError if the disk is full or the folder can't be written; nothing is left behind then.
    """
    pieces = [buffers] if isinstance(buffers, bytes) else buffers
    temporary: str | None = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".part")
        with os.fdopen(handle, "wb") as stream:
            for piece in pieces:
                stream.write(piece)
            stream.flush()
            if survive_power_loss:
                os.fsync(stream.fileno())
        Path(temporary).chmod(0o666 & ~_UMASK)
        Path(temporary).replace(path)
        temporary = None
        if survive_power_loss:
            flush_folder(path.parent)
    except OSError as problem:
        full = problem.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
        raise JournalError(
            "The disk is full; nothing half-written was left behind."
            if full
            else "A file of the run can't be written.",
            fix="Free some space, then resume the run." if full else "Check the folder's permissions.",
            local_detail=f"{path}: {problem.strerror}",
        ) from None
    finally:
        if temporary is not None:
            with contextlib.suppress(OSError):
                Path(temporary).unlink()


def flush_folder(folder: Path) -> None:
    """Make the names in a folder durable (after a rename or a removal). Raises OSError as the system does."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def write_json(path: Path, value: Any) -> None:
    """Write JSON atomically, readable by people (indented, sorted keys). NaN is refused."""
    write_atomically(path, (json.dumps(value, indent=2, sort_keys=True, allow_nan=False) + "\n").encode())


def local_key(path: Path) -> bytes:
    """32 random bytes that this machine keeps in a file of its own (0600), made when they are first asked for.

    Two processes that ask at once get the same key.
    Raises JournalError if the file can't be read or written, or holds something else.
    """
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        if not path.exists():
            handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".part")
            try:
                with os.fdopen(handle, "wb") as stream:
                    stream.write(secrets.token_bytes(32))
                    stream.flush()
                    os.fsync(stream.fileno())
                with contextlib.suppress(FileExistsError):  # the other process was first: its key counts
                    os.link(temporary, path)
            finally:
                Path(temporary).unlink()
        key = path.read_bytes()
        if len(key) != 32:
            raise OSError(errno.EIO, "it does not hold 32 bytes")
    except OSError as problem:
        raise JournalError(
            "A key of this site can't be read or written.",
            fix="Check the permissions of the folder beside the site's cache.",
            local_detail=f"{path}: {problem.strerror}",
        ) from None
    return key


@contextlib.contextmanager
def exclusive(folder: Path, patience_s: float = 0.4) -> Iterator[None]:
    """Hold a folder for this process; the lock goes with the process, however it ends.

    patience_s: how long to wait for another holder; some only look whether it is held.
    Raises RunFolderBusyError if another process holds it, JournalError if the folder can't be written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        stream = (folder / ".lock").open("a+b")
    except OSError as problem:
        raise JournalError(
            "The folder can't be written.", fix="Check its permissions.", local_detail=f"{folder}: {problem}"
        ) from None
    with stream:
        until = time.monotonic() + patience_s
        while True:
            try:
                fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except OSError:
                if time.monotonic() > until:
                    raise RunFolderBusyError(
                        "Another process works in this run folder.",
                        fix="Wait for it to end, or start a run of its own.",
                        local_detail=str(folder),
                    ) from None
                time.sleep(0.1)
        yield

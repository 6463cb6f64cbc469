"""Whole small files, read with bounds: what a cohort's tables name or are may be a pipe, a device or far too large."""

from __future__ import annotations

import os
import stat
from pathlib import Path

__all__ = ["read_bounded"]


def read_bounded(path: Path, largest_bytes: int) -> bytes:
    """All bytes of a regular file, or of the one that a link leads to.

    A pipe, socket or device is never waited for, and never read.
    Raises OSError if it is missing, may not be read, or is no regular file; ValueError if it has more than
    `largest_bytes`, or its name is none that a file can have.
    """
    handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    with os.fdopen(handle, "rb") as stream:
        if not stat.S_ISREG(os.fstat(handle).st_mode):
            raise OSError("no regular file")
        content = stream.read(largest_bytes + 1)
    if len(content) > largest_bytes:
        raise ValueError("too large")
    return content

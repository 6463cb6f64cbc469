"""Times of events inside the measured processes: one line `name seconds` each, on the clock that all share."""

from __future__ import annotations

import os
import time
from pathlib import Path

__all__ = ["VARIABLE", "read_stamps", "stamp"]

VARIABLE = "OVERHEAD_STAMPS"
"""Environment variable with the file that stamps go to."""


def stamp(event: str) -> None:
    """Append one line; a single write, so lines of several processes don't mix."""
    handle = os.open(os.environ[VARIABLE], os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
    os.write(handle, f"{event} {time.monotonic():.6f}\n".encode())
    os.close(handle)


def read_stamps(path: Path) -> dict[str, float]:
    """Event → seconds on the monotonic clock; the earliest where several processes stamped the same."""
    found: dict[str, float] = {}
    for line in path.read_text().splitlines():
        event, seconds = line.split()
        found[event] = min(float(seconds), found.get(event, float("inf")))
    return found

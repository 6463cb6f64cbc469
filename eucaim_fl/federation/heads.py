"""What the coordinator remembers of each site's audit log: the head that came with every reply.

A site that rewrites its log can make every record fit the next; it can't make them fit the heads that lie here.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import BinaryIO

from eucaim_fl.errors import JournalError, SealError

__all__ = ["Heads", "read_heads"]


def read_heads(folder: Path, site: str) -> list[dict[str, object]]:
    """All heads of a site, oldest first; lines that a crash left half-written are skipped.

    Raises JournalError if the file can't be read.
    """
    try:
        lines = (folder / f"{site}.jsonl").read_text(encoding="utf-8").splitlines()
    except FileNotFoundError:
        return []
    except (OSError, UnicodeDecodeError) as problem:
        raise JournalError("The sites' audit heads can't be read.", local_detail=f"{folder}: {problem}") from None
    heads = []
    for line in lines:
        try:
            value = json.loads(line)
        except (ValueError, RecursionError):
            continue
        if isinstance(value, dict) and isinstance(value.get("count"), int) and isinstance(value.get("hash"), str):
            heads.append(value)
    return heads


def _last_byte(file: BinaryIO) -> bytes:
    file.seek(-1, os.SEEK_END)
    return file.read(1)


class Heads:
    """The last head of each site, kept in `<site>.jsonl`."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._last: dict[str, tuple[int, str]] = {}

    def last(self, site: str) -> tuple[int, str]:
        """Number and hash of the last record that is known of a site's log; 0 and nothing if none is.

        Raises SealError if the site's name is none, JournalError if what is known can't be read.
        """
        if not re.fullmatch(r"[a-z0-9][a-z0-9_-]{0,62}", site):
            raise SealError("The reply comes from a site without a proper name.")
        if site not in self._last:
            known = [(int(str(head["count"])), str(head["hash"])) for head in read_heads(self._folder, site)]
            self._last[site] = max(known, default=(0, ""))
        return self._last[site]

    def accept(self, site: str, count: int, digest: str) -> None:
        """Note a head that came with a reply.

        Raises SealError if the log has become shorter than it was, or has another record at its end than it had;
        JournalError if it can't be written down.
        """
        last_count, last_digest = self.last(site)
        if count < last_count or (count == last_count and last_digest not in ("", digest)):
            raise SealError(
                "The site's audit log is not the one that it was: records are gone or replaced.",
                fix="Compare `eucaim-fl site audit verify --heads` at the site with `eucaim-fl federation heads`.",
            )
        if (count, digest) == self._last[site]:
            return
        entry: Mapping[str, object] = {
            "count": count,
            "hash": digest,
            "at": datetime.now(UTC).isoformat(timespec="seconds"),
        }
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            with (self._folder / f"{site}.jsonl").open("a+b") as file:
                torn = file.tell() > 0 and _last_byte(file) != b"\n"  # what a crash left must not swallow this line
                file.write(b"\n" * torn + json.dumps(entry).encode() + b"\n")
                file.flush()
                os.fsync(file.fileno())
        except OSError as problem:
            raise JournalError(
                "The sites' audit heads can't be written.",
                fix="Check the disk and the folder's permissions.",
                local_detail=f"{self._folder}: {problem}",
            ) from None
        self._last[site] = (count, digest)

"""Images from a ZIP file. Its names are never used as paths, and what it claims of sizes is not believed."""

from __future__ import annotations

import stat
import struct
import zipfile
import zlib
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import BinaryIO

from eucaim_fl.cohorts.intake.folder import Tell, looks_like_dicom
from eucaim_fl.cohorts.intake.landing import Landing, TooLargeError
from eucaim_fl.cohorts.intake.report import Outcome, Reason
from eucaim_fl.errors import ImportFailedError

__all__ = ["ZipLimits", "import_archive", "is_hostile_name"]

_BLOCK = 1024 * 1024
_END, _END_BYTES, _LONGEST_COMMENT = b"PK\x05\x06", 22, 65535
_END64, _LOCATOR, _LOCATOR_BYTES = b"PK\x06\x06", b"PK\x06\x07", 20
_ARCHIVES = (b"PK\x03\x04", b"\x1f\x8b", b"BZh", b"\xfd7zXZ\x00", b"7z\xbc\xaf\x27\x1c", b"Rar!\x1a\x07")
_TAR_MAGIC = slice(257, 262)


class ZipLimits:
    """What a ZIP file may unpack to.

    total_bytes: of all entries. ratio: times the file's own size, once `free_bytes` are unpacked. entries, and
    directory_bytes of the list of entries, which is read at once.
    """

    def __init__(
        self,
        *,
        total_bytes: int = 2 * 10**12,
        ratio: int = 100,
        free_bytes: int = 10**9,
        entries: int = 1_000_000,
        directory_bytes: int = 200_000_000,
    ) -> None:
        self.total_bytes, self.ratio, self.free_bytes = total_bytes, ratio, free_bytes
        self.entries, self.directory_bytes = entries, directory_bytes

    def most(self, packed_bytes: int) -> int:
        """Bytes that a file of that size may unpack to."""
        return min(self.total_bytes, max(self.free_bytes, self.ratio * packed_bytes))


def is_hostile_name(name: str) -> bool:
    r"""Whether an entry's name would lead out of the folder that it is unpacked into, on any system.

    >>> [is_hostile_name(n) for n in ("a/b.dcm", "../b", "/etc/b", "C:b", "a\\..\\b", "")]
    [False, True, True, True, True, True]
    """
    windows = PureWindowsPath(name)
    parts = {*PurePosixPath(name).parts, *windows.parts}
    return not name or "\0" in name or ".." in parts or bool(windows.anchor) or PurePosixPath(name).is_absolute()


def import_archive(source: Path, landing: Landing, tell: Tell, limits: ZipLimits | None = None) -> None:
    """Bring in what the query asks for from a ZIP file.

    Entries that are links, encrypted, archives themselves, that come twice or whose names lead out are refused and
    counted; so is what is larger than an instance may be. Only stored and deflated entries are taken.
    Raises ImportFailedError if the file is missing or no ZIP file, has more entries than may be, or unpacks to more
    than it may; what came in before that stays.
    """
    limits = limits or ZipLimits()
    try:
        with source.open("rb") as raw:
            if _directory_bytes(raw) > limits.directory_bytes:
                raise zipfile.BadZipFile("the list of its entries is too long")
            with zipfile.ZipFile(raw) as archive:
                _import_entries(archive, source.stat().st_size, landing, tell, limits)
    except (OSError, zipfile.BadZipFile, NotImplementedError, struct.error, UnicodeDecodeError) as problem:
        raise ImportFailedError(
            "The ZIP file is missing, damaged, or has too many entries.",
            fix="Unpack it yourself, and import from the folder.",
            local_detail=f"{source}: {problem}",
        ) from None


def _directory_bytes(stream: BinaryIO) -> int:
    """Size of the list of entries as the end of the file states it: `ZipFile` would read it at once.

    Source: APPNOTE.TXT 6.3.10, 4.3.14 to 4.3.16.
    """
    size = stream.seek(0, 2)
    start = max(0, size - _END_BYTES - _LONGEST_COMMENT - _LOCATOR_BYTES)
    stream.seek(start)
    tail = stream.read()
    at = tail.rfind(_END)
    if at < 0 or at + _END_BYTES > len(tail):
        raise zipfile.BadZipFile("no end of a ZIP file")
    stated = int(struct.unpack_from("<I", tail, at + 12)[0])
    before = tail[max(0, at - _LOCATOR_BYTES) : at]
    if before[:4] == _LOCATOR:
        stream.seek(struct.unpack_from("<Q", before, 8)[0])
        end64 = stream.read(56)
        if end64[:4] == _END64:
            stated = max(stated, int(struct.unpack_from("<Q", end64, 40)[0]))
    return stated


def _import_entries(
    archive: zipfile.ZipFile, packed_bytes: int, landing: Landing, tell: Tell, limits: ZipLimits
) -> None:
    entries = [entry for entry in archive.infolist() if not entry.is_dir()]
    if len(entries) > limits.entries:
        raise zipfile.BadZipFile("too many entries")
    budget = limits.most(packed_bytes)
    seen: set[str] = set()
    for number, entry in enumerate(entries):
        reason = _refusal(entry, seen, landing.limit)
        seen.add(entry.filename)
        if reason:
            landing.count(Outcome("refused", reason))
        else:
            taken, outcome = _bring(archive, entry, landing, budget)
            budget -= taken
            if outcome is None:
                landing.tally.add(Outcome("left", Reason.NOT_REACHED), len(entries) - number)
                raise ImportFailedError(
                    "The ZIP file unpacks to more than it may.",
                    fix="If it is what you think it is, unpack it yourself, and import from the folder.",
                )
            landing.count(outcome)
        tell(number + 1, len(entries))


def _refusal(entry: zipfile.ZipInfo, seen: set[str], limit: int) -> str:
    if is_hostile_name(entry.filename) or is_hostile_name(entry.orig_filename):
        return Reason.HOSTILE_NAME
    if stat.S_ISLNK(entry.external_attr >> 16):
        return Reason.LINK
    if entry.filename in seen:
        return Reason.TWICE
    if entry.flag_bits & 0x1:
        return Reason.ENCRYPTED
    if entry.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        return Reason.PACKING
    return Reason.TOO_LARGE if entry.file_size > limit else ""


def _bring(
    archive: zipfile.ZipFile, entry: zipfile.ZipInfo, landing: Landing, budget: int
) -> tuple[int, Outcome | None]:
    """Bytes unpacked, and what became of the entry; None if the file's budget is used up."""
    temporary, total = landing.temporary(), 0
    try:
        with archive.open(entry) as stream, landing.writing(temporary) as write:
            block = stream.read(_BLOCK)
            if block.startswith(_ARCHIVES) or block[_TAR_MAGIC] == b"ustar":
                return len(block), Outcome("refused", Reason.NESTED)
            if not looks_like_dicom(block):
                return len(block), Outcome("left", Reason.NOT_DICOM)
            while block:
                total += len(block)
                if total > budget:
                    return total, None
                write(block)
                block = stream.read(_BLOCK)
        return total, landing.settle(temporary)
    except TooLargeError:
        return total, Outcome("refused", Reason.TOO_LARGE)
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError):
        return total, Outcome("refused", Reason.DAMAGED_ENTRY)
    finally:
        temporary.unlink(missing_ok=True)

"""Files of a MONAI bundle, a folder or a ZIP file: named ones only, of bounded size, none outside it, none unpacked."""

from __future__ import annotations

import os
import stat
import zipfile
import zlib
from pathlib import Path, PurePosixPath
from typing import Protocol

from eucaim_fl.errors import ModelRefusedError

__all__ = ["BundleFiles", "open_bundle"]

_MOST_ENTRIES = 10_000
_MARK = "configs/metadata.json"


class BundleFiles(Protocol):
    """Where a bundle's files are read from."""

    def read(self, name: str, most: int) -> bytes | None:
        """Bytes of a file by its name within the bundle; None if it is not there.

        Raises ModelRefusedError if it holds more than `most`, lies elsewhere, or can't be read.
        """


def open_bundle(path: Path) -> BundleFiles:
    """A bundle's files. path: its folder, or a ZIP file with the bundle at its top or in one folder.

    Raises ModelRefusedError if it is neither, or the ZIP file has entries with a path out of it, links, doubled or
    locked entries, or too many.
    """
    if path.is_dir():
        return _Folder(path)
    try:
        return _Zip(path)
    except (OSError, zipfile.BadZipFile, NotImplementedError, ValueError) as problem:
        raise ModelRefusedError(
            "The bundle is neither a folder nor a ZIP file that can be read.",
            fix="Give the folder with configs and models in it.",
            local_detail=f"{path}: {problem}",
        ) from None


def _too_large(name: str) -> ModelRefusedError:
    return ModelRefusedError(f"{name} of the bundle is larger than it may be.", fix="Look whether it is what it seems.")


class _Folder:
    def __init__(self, path: Path) -> None:
        self._path = path

    def read(self, name: str, most: int) -> bytes | None:
        place = self._path
        for part in PurePosixPath(name).parts:
            place = place / part
            if place.is_symlink():
                raise ModelRefusedError(
                    f"{name} of the bundle is a link.", fix="Put the file itself there.", local_detail=str(place)
                )
        try:
            handle = os.open(place, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
        except FileNotFoundError:
            return None
        except OSError as problem:
            raise ModelRefusedError(f"{name} of the bundle can't be read.", local_detail=str(problem)) from None
        with os.fdopen(handle, "rb") as stream:
            facts = os.fstat(handle)
            if not stat.S_ISREG(facts.st_mode):
                raise ModelRefusedError(f"{name} of the bundle is no file.", local_detail=str(place))
            if facts.st_size > most:
                raise _too_large(name)
            return stream.read(most + 1)


class _Zip:
    def __init__(self, path: Path) -> None:
        self._path = path
        with zipfile.ZipFile(path) as archive:
            entries = archive.infolist()
        seen: set[str] = set()
        for entry in entries:
            if problem := _hostile(entry, seen):
                raise ModelRefusedError(
                    f"The bundle's ZIP file has an entry that {problem}.",
                    fix="Unpack it yourself, look at it, and give the folder.",
                    local_detail=ascii(entry.filename)[:200],
                )
            seen.add(entry.filename)
        if len(entries) > _MOST_ENTRIES:
            raise ModelRefusedError(f"The bundle's ZIP file has more than {_MOST_ENTRIES:,} entries.")
        tops = [name.removesuffix(_MARK) for name in seen if name == _MARK or name.endswith(f"/{_MARK}")]
        self._top = min(tops, key=len, default="")
        self._names = seen

    def read(self, name: str, most: int) -> bytes | None:
        if self._top + name not in self._names:
            return None
        try:
            with zipfile.ZipFile(self._path) as archive, archive.open(self._top + name) as stream:
                raw = stream.read(most + 1)  # what is stated of its size is not believed
        except (OSError, zipfile.BadZipFile, zlib.error, EOFError, RuntimeError, NotImplementedError) as problem:
            raise ModelRefusedError(f"{name} of the bundle can't be unpacked.", local_detail=str(problem)) from None
        if len(raw) > most:
            raise _too_large(name)
        return raw


def _hostile(entry: zipfile.ZipInfo, seen: set[str]) -> str:
    """What speaks against an entry."""
    for name in (entry.filename, entry.orig_filename):
        if "\\" in name or "\0" in name or ":" in name or name.startswith("/") or ".." in PurePosixPath(name).parts:
            return "leads out of it"
    if stat.S_IFMT(entry.external_attr >> 16) not in (0, stat.S_IFREG, stat.S_IFDIR):
        return "is a link or a device"
    if entry.filename in seen:
        return "stands in it twice"
    if entry.flag_bits & 0x1:
        return "is locked by a password"
    if entry.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        return "is packed in a way that is not known"
    return ""

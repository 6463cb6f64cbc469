"""Prepared tensors on disk, keyed by content and plan, so that a second run neither hashes nor decodes.

A key is a SHA-256 over the content of a case's files and everything that decides the tensors; file names hold such
keys only. Each entry is one `.npy` a tensor and a small JSON, which is written last: an entry without it isn't there.
Every file is written beside its place and renamed, so two writers or a crash leave whole files. There is no flush to
the disk: what a power cut damages is recognised (size, time and inode, else SHA-256) and made again.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import io
import json
import os
import tempfile
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from eucaim_fl import errors
from eucaim_fl.cohorts.manifest import Case
from eucaim_fl.cohorts.preprocess import Prepared
from eucaim_fl.errors import CohortError, DataError, LabelError, SeriesError, UnreadableFileError

__all__ = ["CACHE_VERSION", "Cache", "Entry", "combine"]

CACHE_VERSION = 1
"""Raised when the same files and plan would give other tensors, or entries are written in another way."""

_Signature = list[int]


@dataclass(frozen=True, eq=False)
class Entry:
    """A prepared case on disk; see `Prepared`. label_path is None where there is no label."""

    image_path: Path
    label_path: Path | None
    spacing_mm: tuple[float, float, float]
    foreground_slices: tuple[int, ...]
    foreground_voxels: npt.NDArray[np.int64]


def combine(*parts: str) -> str:
    """SHA-256 (hexadecimal) over texts, each with its length in front, so that their borders count."""
    digest = hashlib.sha256()
    for part in parts:
        text = part.encode()
        digest.update(len(text).to_bytes(8, "little") + text)
    return digest.hexdigest()


class Cache:
    """The cache folder of one site, as one process sees it while it opens a cohort.

    Raises CohortError if the folder can't be made or written.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._signatures: dict[str, _Signature | None] = {}
        self._changed = False
        try:
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        except OSError as problem:
            raise _unwritable(folder, problem) from None
        known = self._read("index.json")
        self._digests: dict[str, list[Any]] = known if isinstance(known, dict) else {}

    def signature(self, path: str) -> _Signature | None:
        """Size, time of the last change (ns) and inode of a file or folder, or None; looked up once per opening."""
        if path not in self._signatures:
            try:
                found = os.stat(path)  # noqa: PTH116 - many thousand times; a Path each would take half the time
                self._signatures[path] = [found.st_size, found.st_mtime_ns, found.st_ino]
            except OSError:
                self._signatures[path] = None
        return self._signatures[path]

    def digest(self, path: Path) -> str:
        """SHA-256 of a file's content, remembered as long as its size, time and inode stay.

        Raises UnreadableFileError if the file can't be read.
        """
        name = str(path)
        signature = self.signature(name)
        known = self._digests.get(name)
        if signature is not None and known is not None and known[:3] == signature:
            return str(known[3])
        try:
            with path.open("rb") as stream:
                value = hashlib.file_digest(stream, "sha256").hexdigest()
        except OSError as problem:
            raise UnreadableFileError(
                "A file of the cohort can't be read.", local_detail=f"{path}: {problem.strerror}"
            ) from None
        if signature is not None:
            self._digests[name] = [*signature, value]
            self._changed = True
        return value

    def content(self, case: Case) -> str:
        """SHA-256 over the content of a case's files, whatever their names and order.

        Raises UnreadableFileError if one of them can't be read.
        """
        images = sorted(self.digest(path) for path in case.image)
        labels = sorted(self.digest(path) for path in case.label)
        return combine(case.image_format, *images, case.label_format or "", *labels)

    def obtain(self, key: str, make: Callable[[], Prepared]) -> Entry:
        """The entry of a key; made (and kept) if it is missing or damaged.

        Images and labels that form no volume are remembered too, so that their error comes at once.
        Raises what `make` raises; CohortError if the entry can't be written.
        """
        name = combine(str(CACHE_VERSION), key)
        found = self._load(name)
        if isinstance(found, DataError):
            raise found
        if found is not None:
            return found
        try:
            prepared = make()
        except (SeriesError, LabelError) as error:
            refused = {"class": type(error).__name__, "with": [error.message, error.fix, error.local_detail]}
            self._write(f"{name}.json", [json.dumps({"refused": refused}).encode()])
            raise
        about = {
            "image": self._store(f"{name}-image.npy", prepared.image),
            "label": None if prepared.label is None else self._store(f"{name}-label.npy", prepared.label),
            "spacing_mm": list(prepared.spacing_mm),
            "foreground_slices": list(prepared.foreground_slices),
            "foreground_voxels": prepared.foreground_voxels.ravel().tolist(),
        }
        self._write(f"{name}.json", [json.dumps(about).encode()])
        return self._entry(name, about)

    def recall(self, key: str) -> Any:
        """A JSON value kept under a key, or None if there is none or it is damaged."""
        return self._read(f"{combine(key)}.memo.json")

    def keep(self, key: str, value: Any) -> None:
        """Keep a JSON value under a key. Raises CohortError if it can't be written."""
        self._write(f"{combine(key)}.memo.json", [json.dumps(value).encode()])

    def save(self) -> None:
        """Write down the digests that were learnt. Raises CohortError if they can't be written."""
        if self._changed:
            self._write("index.json", [json.dumps(self._digests).encode()])
            self._changed = False

    def _read(self, name: str) -> Any:
        try:
            return json.loads((self.folder / name).read_bytes())
        except (OSError, ValueError, RecursionError):
            return None

    def _entry(self, name: str, about: dict[str, Any]) -> Entry:
        i, j, k = (float(mm) for mm in about["spacing_mm"])
        return Entry(
            self.folder / f"{name}-image.npy",
            None if about["label"] is None else self.folder / f"{name}-label.npy",
            (i, j, k),
            tuple(int(n) for n in about["foreground_slices"]),
            np.array(about["foreground_voxels"], dtype=np.int64).reshape(-1, 3),
        )

    def _load(self, name: str) -> Entry | DataError | None:
        about = self._read(f"{name}.json")
        try:
            if about is None:
                return None
            if "refused" in about:
                message, fix, detail = about["refused"]["with"]
                kind = {"SeriesError": errors.SeriesError, "LabelError": errors.LabelError}[about["refused"]["class"]]
                return kind(message, fix=fix, local_detail=detail)
            entry = self._entry(name, about)
            pairs = ((entry.image_path, about["image"]), (entry.label_path, about["label"]))
            return entry if all(self._whole(path, stored) for path, stored in pairs if path) else None
        except (KeyError, TypeError, ValueError):
            return None

    def _whole(self, path: Path, stored: dict[str, Any]) -> bool:
        """Whether a tensor's file is the one that was written, by its signature or else by its content."""
        if self.signature(str(path)) == stored["signature"]:
            return True
        try:
            with path.open("rb") as stream:
                return bool(hashlib.file_digest(stream, "sha256").hexdigest() == stored["sha256"])
        except OSError:
            return False

    def _store(self, name: str, array: npt.NDArray[Any]) -> dict[str, Any]:
        head = io.BytesIO()
        np.lib.format.write_array_header_1_0(head, np.lib.format.header_data_from_array_1_0(array))
        body = np.ascontiguousarray(array).view(np.uint8).reshape(-1).data
        self._write(name, [head.getvalue(), body])
        digest = hashlib.sha256(head.getvalue())
        digest.update(body)
        return {"signature": self.signature(str(self.folder / name)), "sha256": digest.hexdigest()}

    def _write(self, name: str, pieces: Iterable[bytes | memoryview]) -> None:
        temporary: str | None = None
        try:
            handle, temporary = tempfile.mkstemp(dir=self.folder, prefix=".", suffix=".part")
            with os.fdopen(handle, "wb") as stream:
                stream.writelines(pieces)
            Path(temporary).replace(self.folder / name)
            temporary = None
        except OSError as problem:
            raise _unwritable(self.folder, problem) from None
        finally:
            self._signatures.pop(str(self.folder / name), None)
            if temporary is not None:
                with contextlib.suppress(OSError):
                    Path(temporary).unlink()


def _unwritable(folder: Path, problem: OSError) -> CohortError:
    full = problem.errno in (errno.ENOSPC, errno.EDQUOT)
    return CohortError(
        "The disk of the site's cache is full." if full else "The site's cache can't be written.",
        fix="Free some space, or set cache.folder in the site file to another disk.",
        local_detail=f"{folder}: {problem.strerror}",
    )

"""Prepared tensors on disk, keyed by content and plan, so that a second run neither hashes nor decodes.

A key is a SHA-256 over the content of a case's files and everything that decides the tensors; file names hold such
keys only. Each entry is one `.npy` a tensor and a small JSON, which is written last: an entry without it isn't there.
Every file is written beside its place and renamed, so two writers or a crash leave whole files. There is no flush to
the disk: what a power cut damages is recognised (size, times and inode, else SHA-256) and made again.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import time
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from eucaim_fl.cohorts.cache_folder import Folder, Lease
from eucaim_fl.cohorts.manifest import Case
from eucaim_fl.cohorts.preprocess import Prepared
from eucaim_fl.errors import DataError, LabelError, SeriesError, UnreadableFileError

__all__ = ["CACHE_VERSION", "Cache", "Entry", "State", "combine"]

CACHE_VERSION = 4
"""Raised when the same files and plan would give other tensors, or entries are written in another way."""

_REFUSED_FOR_S = 86_400.0
_REFUSALS = {kind.__name__: kind for kind in (SeriesError, LabelError, UnreadableFileError)}

_Signature = list[int]


@dataclass(frozen=True, eq=False)
class Entry:
    """A prepared case on disk; see `Prepared`. label_path is None where there is no label.

    channels: SHA-256 of each channel's values, "" for one that holds a single value. lease: as long as it lives, no
    opening removes the files to make room. text: whether the image seems to hold written text.
    """

    image_path: Path
    label_path: Path | None
    spacing_mm: tuple[float, float, float]
    foreground_slices: tuple[int, ...]
    foreground_voxels: npt.NDArray[np.int64]
    channels: tuple[str, ...] = ()
    lease: Lease | None = None
    text: bool = False


@dataclass(frozen=True)
class State:
    """A case's files as the file system describes them: while it stays, the content is not read again.

    place: SHA-256 over their paths and what each is read as. signature: SHA-256 over their sizes, times and inodes.
    """

    place: str
    signature: str
    files: int = field(compare=False, default=0)
    size_bytes: int = field(compare=False, default=0)


def combine(*parts: str) -> str:
    """SHA-256 (hexadecimal) over texts, each with its length in front, so that their borders count."""
    digest = hashlib.sha256()
    for part in parts:
        text = part.encode("utf-8", "surrogateescape")  # names of files may be no UTF-8
        digest.update(len(text).to_bytes(8, "little") + text)
    return digest.hexdigest()


def _signature(path: Path | str) -> _Signature | None:
    """Size, times of the last change of content and of anything (ns), and inode of a file; None if it isn't there."""
    try:
        found = os.stat(path)  # noqa: PTH116 - many thousand times; a Path each would take half the time
    except OSError:
        return None
    return [found.st_size, found.st_mtime_ns, found.st_ctime_ns, found.st_ino]


def _digest(path: Path) -> str:
    try:
        with path.open("rb") as stream:
            return hashlib.file_digest(stream, "sha256").hexdigest()
    except OSError as problem:
        raise UnreadableFileError(
            "A file of the cohort can't be read.", local_detail=f"{path}: {problem.strerror}"
        ) from None


class Cache:
    """The cache folder of one site, as one process sees it while it opens a cohort.

    limit_bytes: beyond it, entries that were not used for longest are removed.
    Raises CohortError if the folder can't be made or written.
    """

    def __init__(self, folder: Path, limit_bytes: int | None = None) -> None:
        self.folder = folder
        self._files = Folder(folder, limit_bytes)
        known = self._read("index.json")
        self._contents: dict[str, list[str]] = known if isinstance(known, dict) else {}
        self._learnt: dict[str, list[str]] = {}

    # --- what lies in the cohort ------------------------------------------------------------------------------

    def state(self, case: Case) -> State:
        """The state of a case's files, those of further channels included. Files that are missing count too."""
        place: list[str] = []
        found: list[_Signature | None] = []
        for one in (case, *case.further):
            place += (one.image_format, one.stack, *map(str, one.image), one.label_format or "", *map(str, one.label))
            found += (_signature(path) for path in (*one.image, *one.label))
        size = sum(signature[0] for signature in found if signature is not None)
        return State(combine(*place), combine(*map(str, found)), len(found), size)

    def recall(self, state: State) -> str | None:
        """The content of a case in this state, if it is known."""
        known = self._contents.get(state.place)
        good = isinstance(known, list) and len(known) == 2 and known[0] == state.signature
        return str(known[1]) if good and known is not None else None

    def learn(self, state: State, content: str) -> None:
        """Remember the content of a case in this state."""
        self._contents[state.place] = self._learnt[state.place] = [state.signature, content]

    def content(self, case: Case) -> str:
        """SHA-256 over the content of a case's files, whatever their names and order; of further channels in order.

        Raises UnreadableFileError if one of them can't be read.
        """
        state = self.state(case)
        known = self.recall(state)
        if known is None:
            known = _content(case)
            self.learn(state, known)
        return known

    def save(self) -> None:
        """Write down the contents that were learnt, beside what others learnt meanwhile.

        Raises CohortError if they can't be written.
        """
        if self._learnt:
            known = self._read("index.json")
            merged = {**(known if isinstance(known, dict) else {}), **self._learnt}
            self._files.write("index.json", [json.dumps(merged).encode()])
            self._learnt = {}

    # --- entries ----------------------------------------------------------------------------------------------

    def find(self, key: str) -> Entry | DataError | None:
        """The entry of a key if it is there and whole; the error if it is known that there can't be one; else None.

        Raises CohortError if there is no room for what this opening uses.
        """
        name = _name(key)
        self._files.use(name)
        about = self._read(f"{name}.json")
        try:
            if about is None:
                return None
            if "refused" in about:
                return self._refusal(name, about["refused"])
            entry = self._entry(name, about)
            stored = [(entry.image_path, about["image"])]
            stored += [(entry.label_path, about["label"])] if entry.label_path is not None else []
            if not all(_is_whole(path, known) for path, known in stored):
                return None
            moved = False
            for path, known in stored:
                now = _signature(path)
                moved, known["signature"] = moved or known["signature"] != now, now
        except (KeyError, TypeError, ValueError, AttributeError):
            return None
        if moved:  # a copied cache: look at times again from now on, not at contents
            self._files.write(f"{name}.json", [json.dumps(about).encode()])
        self._files.count(name)
        return entry

    def obtain(self, key: str, make: Callable[[], Prepared]) -> Entry:
        """The entry of a key; made (and kept) if it is missing or damaged.

        Images and labels that form no volume are remembered too, so that their error comes at once.
        Raises what `make` raises; CohortError if the entry can't be written, or there is no room for it.
        """
        found = self.find(key)
        if isinstance(found, DataError):
            raise found
        if found is not None:
            return found
        name = _name(key)
        try:
            prepared = make()
        except (SeriesError, LabelError) as error:
            self.refuse(key, error)
            raise
        about = {
            "image": self._store(f"{name}-image.npy", prepared.image),
            "label": None if prepared.label is None else self._store(f"{name}-label.npy", prepared.label),
            "spacing_mm": list(prepared.spacing_mm),
            "foreground_slices": list(prepared.foreground_slices),
            "foreground_voxels": prepared.foreground_voxels.ravel().tolist(),
            "channels": [_channel_digest(channel) for channel in prepared.image],
            "text": prepared.text,
        }
        self._files.write(f"{name}.json", [json.dumps(about).encode()])
        self._files.count(name)
        return self._entry(name, about)

    def refuse(self, key: str, error: DataError, *, for_ever: bool = True) -> None:
        """Remember that a key gives no entry; for a day if it may be the machine's fault.

        Raises CohortError if it can't be written.
        """
        said = [error.message, error.fix, error.local_detail]
        refused: dict[str, Any] = {"class": type(error).__name__, "with": said}
        if not for_ever:
            refused["until"] = time.time() + _REFUSED_FOR_S
        self._files.write(f"{_name(key)}.json", [json.dumps({"refused": refused}).encode()])

    def trying(self, key: str) -> AbstractContextManager[None]:
        """A context that leaves a note if the process ends inside, as a foreign file may make it do.

        Raises CohortError if the note can't be written.
        """
        return self._files.trying(_name(key))

    def is_suspect(self, key: str) -> bool:
        """Whether a process ended while it was `trying` this, so that another had better not be risked on it."""
        return self._files.was_tried_in_vain(_name(key))

    def expect(self, entries: int) -> None:
        """How many entries this opening will use; an error about too little room estimates by it what is needed."""
        self._files.expected = entries

    def _read(self, name: str) -> Any:
        try:
            return json.loads((self.folder / name).read_bytes())
        except (OSError, ValueError, RecursionError):
            return None

    def _refusal(self, name: str, refused: Mapping[str, Any]) -> DataError | None:
        until = refused.get("until")
        if until is not None and not time.time() < float(until) < time.time() + 2 * _REFUSED_FOR_S:
            return None
        message, fix, detail = (str(text) for text in refused["with"])
        return _REFUSALS[refused["class"]](message, fix=fix, local_detail=detail)

    def _entry(self, name: str, about: Mapping[str, Any]) -> Entry:
        i, j, k = (float(mm) for mm in about["spacing_mm"])
        return Entry(
            self.folder / f"{name}-image.npy",
            None if about["label"] is None else self.folder / f"{name}-label.npy",
            (i, j, k),
            tuple(int(n) for n in about["foreground_slices"]),
            np.array(about["foreground_voxels"], dtype=np.int64).reshape(-1, 3),
            tuple(str(digest) for digest in about["channels"]),
            self._files.lease,
            bool(about["text"]),
        )

    def _store(self, name: str, array: npt.NDArray[Any]) -> dict[str, Any]:
        head = io.BytesIO()
        np.lib.format.write_array_header_1_0(head, np.lib.format.header_data_from_array_1_0(array))
        body = np.ascontiguousarray(array).view(np.uint8).reshape(-1).data
        self._files.write(name, [head.getvalue(), body])
        digest = hashlib.sha256(head.getvalue())
        digest.update(body)
        return {"signature": _signature(self.folder / name), "sha256": digest.hexdigest()}


def _is_whole(path: Path, stored: Mapping[str, Any]) -> bool:
    """Whether a tensor's file is the one that was written, by its signature or else by its content."""
    if _signature(path) == stored["signature"]:
        return True
    try:
        return bool(_digest(path) == stored["sha256"])
    except UnreadableFileError:
        return False


def _name(key: str) -> str:
    return combine(str(CACHE_VERSION), key)


def _content(case: Case) -> str:
    images, labels = (sorted(map(_digest, paths)) for paths in (case.image, case.label))
    own = combine(case.image_format, *images, case.label_format or "", *labels)
    if not case.stack and not case.further:
        return own
    return combine(own, f"stack {case.stack}", *map(_content, case.further))


def _channel_digest(channel: npt.NDArray[np.float32]) -> str:
    if channel.min() == channel.max():
        return ""
    return hashlib.sha256(np.ascontiguousarray(channel).view(np.uint8).reshape(-1).data).hexdigest()

"""What a site keeps of a plan from round to round, and the models that are its own in the end. It never leaves.

    <records>/models/<plan's SHA-256>/plan.json  round-NNNN.safetensors (see `StateStore.keep`)  final.safetensors

Files are whole or not there, carry their own digest, and only the site's user can read them. A plan that needs no state
makes no folder.
"""

from __future__ import annotations

import contextlib
import json
import logging
import re
import shutil
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path

from eucaim_fl.arrays import Array, ArrayFile, Arrays, arrays_sha256, encode_arrays
from eucaim_fl.durable import write_atomically
from eucaim_fl.errors import JournalError, StorageLimitError
from eucaim_fl.records import Past

__all__ = ["Kept", "StateStore", "joined", "kept", "part"]

_LOG = logging.getLogger("eucaim_fl.site")
_KEPT_ROUNDS = 3
_UNTOLD = Past()
_ROUND = re.compile(r"round-(\d{4,5})\.safetensors")

_PLAN = re.compile(r"[0-9a-f]{64}")
_MODELS, _FINAL = "models", "final.safetensors"
_LARGEST_PLAN_BYTES = 2**20


def joined(parts: Mapping[str, Mapping[str, Array]]) -> Arrays:
    """Several sets of arrays as one, each under its own beginning; the inverse of `part`.

    >>> import numpy as np
    >>> sorted(joined({"own": {"w": np.zeros(1)}, "control": {"w": np.zeros(1)}}))
    ['control:w', 'own:w']
    """
    return {f"{kind}:{name}": array for kind, arrays in parts.items() for name, array in arrays.items()}


def part(arrays: Mapping[str, Array], kind: str) -> Arrays:
    """One of the sets that `joined` put together; empty if it is not among them.

    >>> import numpy as np
    >>> sorted(part({"own:w": np.zeros(1), "control:w": np.zeros(1)}, "own"))
    ['w']
    """
    return {name.removeprefix(f"{kind}:"): a for name, a in arrays.items() if name.startswith(f"{kind}:")}


@dataclass(frozen=True)
class Kept:
    """What is kept of one plan. round: the newest; None if only the models of the end are there.

    parts: what is kept of that round. models: that the site has in the end, each complete; chosen: one of them, or
    empty. changed: when it was last written, in seconds since 1970.
    """

    plan_sha256: str
    name: str
    round: int | None
    parts: tuple[str, ...]
    models: tuple[str, ...]
    chosen: str
    bytes: int
    changed: float


class StateStore:
    """One plan's state at one site. folder: the site's folder for what must outlive the cache.

    One process works for a plan at a site at a time: of two runs of the same plan at once, each would remove what the
    other has kept.
    """

    def __init__(self, folder: Path, plan_sha256: str, largest_bytes: int | None = None) -> None:
        """largest_bytes: that all plans together may take; None sets no limit."""
        self._plan, self._folder, self._largest = plan_sha256, folder / _MODELS / plan_sha256, largest_bytes

    def before(self, number: int, run: str = "") -> Arrays:
        """The newest intact state of a round before that one; empty if there is none, which the local log says.

        A round that is repeated thus begins with what it began with. A damaged file is passed over. run: where it is
        given, only what was kept in this run is looked at.
        """
        return self._newest(number, run)[1]

    def start(self, number: int, past: Past, counting: Collection[str]) -> Arrays:
        """What a round begins with: the newest state before it, as `before` finds it, of the run that `past` names.

        counting: parts (see `joined`) that are taken from the last round that counted instead, where `past` names one;
        without any, or if that one is lost, which the local log says, they are left out.
        """
        newest, found = self._newest(number, past.run)
        if past.counted in (None, newest):
            return found
        of_counted = self._of(past.counted, past.run) if past.counted else {}
        others = {name: array for name, array in found.items() if name.partition(":")[0] not in counting}
        return others | {name: array for name, array in of_counted.items() if name.partition(":")[0] in counting}

    def keep(self, number: int, arrays: Mapping[str, Array], plan_json: str, past: Past = _UNTOLD) -> None:
        """Keep the state after a round, before the round's answer leaves. plan_json: the plan's canonical text.

        What is there of later rounds, or of another run, belongs to a history that was undone, and is removed. Of the
        others stay the newest three, and those with which the newest two began: the coordinator may ask once more for
        the round before, if that one is not in its journal yet.
        Raises StorageLimitError if it would take more than is allowed, JournalError if it can't be written; then
        nothing may leave.
        """
        begun = "" if past.counted is None else str(past.counted)
        try:
            self._begin(plan_json)
            for other in self._rounds():
                if other > number or (past.run and self._about(other, "run") != past.run):
                    self._path(other).unlink()
            rounds = sorted({*self._rounds(), number})
            needed = {begun if one == number else self._about(one, "counted") for one in rounds[-2:]}
            old = [self._path(one) for one in rounds[:-_KEPT_ROUNDS] if str(one) not in needed]
            about = {"round": str(number), "run": past.run, "counted": begun}
            self._write(self._path(number), arrays, about, old)
            for path in old:
                path.unlink()
        except OSError as problem:
            raise self._unwritable(problem) from None

    def check_space(self, needed: int) -> None:
        """Whether a plan may keep so many bytes here, with all that is kept of other plans.

        Raises StorageLimitError if not, JournalError if the folder can't be read.
        """
        try:
            others = sum(_sizes(self._folder.parent, without=self._folder.name).values())
        except OSError as problem:
            raise self._unwritable(problem) from None
        self._fits(others, needed)

    def _fits(self, others: int, needed: int) -> None:
        if self._largest is not None and others + needed > self._largest:
            raise StorageLimitError(
                "The site keeps as many models of its own as it may, and has no room for this plan's.",
                fix="At the site: remove what nobody uses (site models --remove-older-than), or raise "
                "records.models_gb in the site file.",
                local_detail=f"{self._folder.parent}: {others} bytes of others, {needed} more, {self._largest} allowed",
            )

    def keep_final(self, models: Mapping[str, Mapping[str, Array]], chosen: str, plan_json: str) -> None:
        """Keep the models that the site has in the end, each complete: name → arrays. chosen: its name, or empty.

        Raises StorageLimitError if they would take more than is allowed, JournalError if they can't be written.
        """
        try:
            self._begin(plan_json)
            self._write(self._folder / _FINAL, joined(models), {"round": "final", "chosen": chosen})
        except OSError as problem:
            raise self._unwritable(problem) from None

    def final(self) -> ArrayFile | None:
        """The models that the site has in the end, as `keep_final` put them together; None if there are none, or
        they are damaged."""
        path = self._folder / _FINAL
        return ArrayFile(path) if path.is_file() and self._read(path, "final") is not None else None

    def plan_json(self) -> str:
        """The plan's canonical text. Raises JournalError if it can't be read."""
        try:
            with (self._folder / "plan.json").open("rb") as stream:
                return stream.read(_LARGEST_PLAN_BYTES).decode()
        except OSError as problem:
            raise self._unwritable(problem) from None
        except UnicodeDecodeError:
            raise JournalError("A plan that this site keeps is damaged.", local_detail=str(self._folder)) from None

    def summary(self) -> Kept:
        """What is there, without a look at the arrays. Raises JournalError if the folder can't be read."""
        try:
            files = [path for path in self._folder.iterdir() if path.suffix in (".safetensors", ".json")]
            sizes = [path.stat() for path in files]
        except OSError as problem:
            raise self._unwritable(problem) from None
        newest, name, chosen = max(self._rounds(), default=None), "", ""
        parts: tuple[str, ...] = ()
        models: tuple[str, ...] = ()
        with contextlib.suppress(JournalError, ValueError, AttributeError):
            name = str(json.loads(self.plan_json()).get("name", ""))
        with contextlib.suppress(JournalError):
            parts = () if newest is None else _kinds(ArrayFile(self._path(newest)))
        with contextlib.suppress(JournalError):
            if (self._folder / _FINAL).is_file():
                final = ArrayFile(self._folder / _FINAL)
                models, chosen = _kinds(final), final.metadata.get("chosen", "")
        changed = max((one.st_mtime for one in sizes), default=0.0)
        return Kept(self._plan, name, newest, parts, models, chosen, sum(one.st_size for one in sizes), changed)

    def remove(self) -> None:
        """Delete everything that is kept of the plan. Raises JournalError if it can't be deleted."""
        try:
            shutil.rmtree(self._folder)
        except OSError as problem:
            raise self._unwritable(problem) from None

    def _path(self, number: int) -> Path:
        return self._folder / f"round-{number:04d}.safetensors"

    def _newest(self, number: int, run: str) -> tuple[int, Arrays]:
        """The round and the state that `before` finds; 0 without."""
        for earlier in sorted((n for n in self._rounds() if n < number), reverse=True):
            if run and self._about(earlier, "run") != run:
                continue
            found = self._read(self._path(earlier), str(earlier))
            if found is not None:
                return earlier, found
        if number > 1:
            _LOG.warning("Nothing is kept here of rounds before %d: what is this site's own begins anew", number)
        return 0, {}

    def _of(self, number: int, run: str) -> Arrays:
        """The state after that very round of the run; empty if it is lost, which the local log says."""
        here = self._path(number).is_file() and (not run or self._about(number, "run") == run)
        found = self._read(self._path(number), str(number)) if here else None
        if found is None:
            _LOG.warning("Nothing is kept here of round %d, the last that counted: the method begins anew", number)
        return found or {}

    def _about(self, number: int, key: str) -> str:
        """What the header of a round's file says; empty if it says nothing, or is damaged."""
        with contextlib.suppress(JournalError):
            return ArrayFile(self._path(number)).metadata.get(key, "")
        return ""

    def _rounds(self) -> list[int]:
        try:
            names = [path.name for path in self._folder.iterdir()]
        except FileNotFoundError:
            return []
        except OSError as problem:
            raise self._unwritable(problem) from None
        return [int(found[1]) for name in names if (found := _ROUND.fullmatch(name))]

    def _begin(self, plan_json: str) -> None:
        self._folder.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._folder.mkdir(mode=0o700, exist_ok=True)
        plan = self._folder / "plan.json"
        if not plan.exists():
            write_atomically(plan, plan_json.encode())
            plan.chmod(0o600)

    def _write(
        self, path: Path, arrays: Mapping[str, Array], about: Mapping[str, str], going: Collection[Path] = ()
    ) -> None:
        """going: files that are removed next, so that they take no room."""
        metadata = {**about, "plan": self._plan, "sha256": arrays_sha256(arrays)}
        if self._largest is not None:
            sizes = _sizes(self._folder.parent)
            there = sum(size for other, size in sizes.items() if other != path and other not in going)
            self._fits(there, sum(array.nbytes for array in arrays.values()))
        write_atomically(path, encode_arrays(arrays, metadata))
        path.chmod(0o600)

    def _read(self, path: Path, about: str) -> Arrays | None:
        try:
            file = ArrayFile(path)
            arrays = file.load()
            wanted = {"round": about, "plan": self._plan, "sha256": arrays_sha256(arrays)}
            if all(file.metadata.get(name) == value for name, value in wanted.items()):
                return arrays
        except JournalError:
            pass  # said below, as for a digest that does not fit
        _LOG.warning("A kept state is damaged, so it is not used: %s", path)
        return None

    def _unwritable(self, problem: OSError) -> JournalError:
        return JournalError(
            "What this site keeps of its own models can't be read or written.",
            fix="Check the space and the permissions of the folder beside the site's cache.",
            local_detail=f"{self._folder}: {problem.strerror}",
        )


def kept(folder: Path) -> tuple[Kept, ...]:
    """What a site keeps of all plans, the newest first. folder: as for `StateStore`.

    Raises JournalError if it can't be read.
    """
    try:
        names = [path.name for path in (folder / _MODELS).iterdir() if path.is_dir()]
    except FileNotFoundError:
        return ()
    except OSError as problem:
        raise JournalError("What this site keeps of its own models can't be read.", local_detail=str(problem)) from None
    found = [StateStore(folder, name).summary() for name in names if _PLAN.fullmatch(name)]
    return tuple(sorted(found, key=lambda one: (-one.changed, one.plan_sha256)))


def _sizes(models: Path, without: str = "") -> dict[Path, int]:
    """Bytes of every file that is kept, of all plans but one. Raises OSError."""
    if not models.exists():
        return {}
    found: dict[Path, int] = {}
    for folder in models.iterdir():
        if folder.is_dir() and folder.name != without:
            with contextlib.suppress(FileNotFoundError):  # a person may be removing it
                found |= {path: path.stat().st_size for path in folder.iterdir() if path.is_file()}
    return found


def _kinds(file: ArrayFile) -> tuple[str, ...]:
    return tuple(dict.fromkeys(name.partition(":")[0] for name in file.names))

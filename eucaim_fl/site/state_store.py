"""What a site keeps of a plan from round to round, and the models that are its own in the end. It never leaves.

    <records>/models/<plan's SHA-256>/plan.json
                                      <run>/round-NNNN.safetensors (see `StateStore.keep`)  final.safetensors

A run's folder has the run's name, or `unnamed` where the coordinator gives it none: no run reads what another has kept.
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
_KEPT_ROUNDS, _KEPT_RUNS = 3, 2
_UNTOLD = Past()
_ROUND = re.compile(r"round-(\d{4,5})\.safetensors")

_PLAN = re.compile(r"[0-9a-f]{64}")
_MODELS, _FINAL, _UNNAMED = "models", "final.safetensors", "unnamed"
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
    """What is kept of one plan. round: the newest of the newest run that has any; None if only models of the end are
    there.

    parts: what is kept of that round. models: that the site has in the end of the newest run that has ended, each
    complete; chosen: one of them, or empty. runs: how many something is kept of. bytes: of all of them. changed: when
    it was last written, in seconds since 1970.
    """

    plan_sha256: str
    name: str
    round: int | None
    parts: tuple[str, ...]
    models: tuple[str, ...]
    chosen: str
    runs: int
    bytes: int
    changed: float


class StateStore:
    """One plan's state at one site, run by run. folder: the site's folder for what must outlive the cache.

    Wherever a run is asked for, the empty name is that of a run that has none, which is a run like others. Something
    is kept of the newest two runs, and the models of the end of the newest one that has ended.
    """

    def __init__(self, folder: Path, plan_sha256: str, largest_bytes: int | None = None) -> None:
        """largest_bytes: that all plans together may take; None sets no limit."""
        self._plan, self._folder, self._largest = plan_sha256, folder / _MODELS / plan_sha256, largest_bytes

    def before(self, number: int, run: str = "") -> Arrays:
        """The newest intact state of a run before that round; empty if there is none, which the local log says.

        A round that is repeated thus begins with what it began with. A damaged file is passed over.
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

        What is there of later rounds of the run belongs to a history that was undone, and is removed. Of the others
        stay the newest three, and those with which the newest two began: the coordinator may ask once more for the
        round before, if that one is not in its journal yet. A run that is neither this one nor the newest beside it
        goes.
        Raises StorageLimitError if it would take more than is allowed, JournalError if it can't be written; then
        nothing may leave.
        """
        begun = "" if past.counted is None else str(past.counted)
        try:
            self._begin(plan_json)
            for other in self._rounds(past.run):
                if other > number:
                    self._path(other, past.run).unlink()
            rounds = sorted({*self._rounds(past.run), number})
            needed = {begun if one == number else self._about(one, past.run, "counted") for one in rounds[-2:]}
            old = [self._path(one, past.run) for one in rounds[:-_KEPT_ROUNDS] if str(one) not in needed]
            about = {"round": str(number), "run": past.run, "counted": begun}
            self._write(self._path(number, past.run), arrays, about, [*old, *self._outdated(past.run)])
        except OSError as problem:
            raise self._unwritable(problem) from None

    def check_space(self, needed: int, run: str = "") -> None:
        """Whether a run of the plan may keep so many bytes here, with all that stays of others.

        Raises StorageLimitError if not, JournalError if the folder can't be read.
        """
        try:
            going, sizes = self._outdated(run), _sizes(self._folder.parent)
        except OSError as problem:
            raise self._unwritable(problem) from None
        own = (self._folder, self._of_run(run))
        self._fits(sum(size for path, size in sizes.items() if path.parent not in own and path not in going), needed)

    def _fits(self, others: int, needed: int) -> None:
        if self._largest is not None and others + needed > self._largest:
            raise StorageLimitError(
                "The site keeps as many models of its own as it may, and has no room for this plan's.",
                fix="At the site: remove what nobody uses (site models --remove-older-than), or raise "
                "records.models_gb in the site file.",
                local_detail=f"{self._folder.parent}: {others} bytes of others, {needed} more, {self._largest} allowed",
            )

    def keep_final(self, models: Mapping[str, Mapping[str, Array]], chosen: str, plan_json: str, run: str = "") -> None:
        """Keep the models that the site has in the end of a run, each complete: name → arrays. chosen: its name, or
        empty.

        Raises StorageLimitError if they would take more than is allowed, JournalError if they can't be written.
        """
        try:
            self._begin(plan_json)
            about = {"round": "final", "run": run, "chosen": chosen}
            self._write(self._of_run(run) / _FINAL, joined(models), about, self._outdated(run, ends=True))
        except OSError as problem:
            raise self._unwritable(problem) from None

    def final(self, run: str | None = None) -> ArrayFile | None:
        """The models that the site has in the end of a run, as `keep_final` put them together; None if there are none,
        or they are damaged. run: its name; None is the newest one that has ended here."""
        folder = self._finished() if run is None else self._of_run(run)
        if folder is None or not (folder / _FINAL).is_file() or self._read(folder / _FINAL, "final") is None:
            return None
        return ArrayFile(folder / _FINAL)

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
            files = [path.stat() for path in self._folder.rglob("*") if path.is_file()]
            changed = max((one.st_mtime for one in files), default=self._folder.stat().st_mtime)
            runs = self._runs()
        except OSError as problem:
            raise self._unwritable(problem) from None
        newest, name, chosen = None, "", ""
        parts: tuple[str, ...] = ()
        models: tuple[str, ...] = ()
        for folder in runs:
            if rounds := self._rounds(folder.name):
                newest, parts = max(rounds), ()
                with contextlib.suppress(JournalError):
                    parts = _kinds(ArrayFile(self._path(newest, folder.name)))
        with contextlib.suppress(JournalError, ValueError, AttributeError):
            name = str(json.loads(self.plan_json()).get("name", ""))
        if (finished := self._finished()) is not None:
            with contextlib.suppress(JournalError):
                final = ArrayFile(finished / _FINAL)
                models, chosen = _kinds(final), final.metadata.get("chosen", "")
        size = sum(one.st_size for one in files)
        return Kept(self._plan, name, newest, parts, models, chosen, len(runs), size, changed)

    def remove(self) -> None:
        """Delete everything that is kept of the plan. Raises JournalError if it can't be deleted."""
        try:
            shutil.rmtree(self._folder)
        except OSError as problem:
            raise self._unwritable(problem) from None

    def _of_run(self, run: str) -> Path:
        return self._folder / (run or _UNNAMED)

    def _path(self, number: int, run: str) -> Path:
        return self._of_run(run) / f"round-{number:04d}.safetensors"

    def _runs(self) -> list[Path]:
        """The folders of all runs of which something is kept, the newest last. Raises OSError."""
        if not self._folder.exists():
            return []
        return sorted((path for path in self._folder.iterdir() if path.is_dir()), key=_written)

    def _finished(self) -> Path | None:
        """The folder of the run that was the last to end here. Raises JournalError if it can't be looked for."""
        try:
            ended = [path / _FINAL for path in self._runs() if (path / _FINAL).is_file()]
            return max(ended, key=lambda path: path.stat().st_mtime_ns).parent if ended else None
        except OSError as problem:
            raise self._unwritable(problem) from None

    def _outdated(self, run: str, *, ends: bool = False) -> list[Path]:
        """The files of runs that are neither this one nor the newest beside it; but for the newest models of an end,
        which a hospital may be using. ends: this run's are about to be these. Raises OSError."""
        others = [folder for folder in self._runs() if folder != self._of_run(run)][: -(_KEPT_RUNS - 1)]
        finished = self._of_run(run) if ends else self._finished()
        files = [path for folder in others for path in folder.iterdir()]
        return [path for path in files if not (path.name == _FINAL and path.parent == finished)]

    def _newest(self, number: int, run: str) -> tuple[int, Arrays]:
        """The round and the state that `before` finds; 0 without."""
        for earlier in sorted((n for n in self._rounds(run) if n < number), reverse=True):
            found = self._read(self._path(earlier, run), str(earlier))
            if found is not None:
                return earlier, found
        if number > 1:
            _LOG.warning("Nothing is kept here of rounds before %d: what is this site's own begins anew", number)
        return 0, {}

    def _of(self, number: int, run: str) -> Arrays:
        """The state after that very round of the run; empty if it is lost, which the local log says."""
        path = self._path(number, run)
        found = self._read(path, str(number)) if path.is_file() else None
        if found is None:
            _LOG.warning("Nothing is kept here of round %d, the last that counted: the method begins anew", number)
        return found or {}

    def _about(self, number: int, run: str, key: str) -> str:
        """What the header of a round's file says; empty if it says nothing, or is damaged."""
        with contextlib.suppress(JournalError):
            return ArrayFile(self._path(number, run)).metadata.get(key, "")
        return ""

    def _rounds(self, run: str) -> list[int]:
        try:
            names = [path.name for path in self._of_run(run).iterdir()]
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
        """going: files that are removed once the new one is there, so that they take no room."""
        metadata = {**about, "plan": self._plan, "sha256": arrays_sha256(arrays)}
        if self._largest is not None:
            sizes = _sizes(self._folder.parent)
            there = sum(size for other, size in sizes.items() if other != path and other not in going)
            self._fits(there, sum(array.nbytes for array in arrays.values()))
        path.parent.mkdir(mode=0o700, exist_ok=True)
        write_atomically(path, encode_arrays(arrays, metadata))
        path.chmod(0o600)
        for old in going:
            old.unlink(missing_ok=True)
            if not any(old.parent.iterdir()):
                old.parent.rmdir()

    def _read(self, path: Path, about: str) -> Arrays | None:
        try:
            file = ArrayFile(path)
            arrays = file.load()
            run = "" if path.parent.name == _UNNAMED else path.parent.name
            wanted = {"round": about, "run": run, "plan": self._plan, "sha256": arrays_sha256(arrays)}
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


def _sizes(models: Path) -> dict[Path, int]:
    """Bytes of every file that is kept, of all plans. Raises OSError."""
    if not models.exists():
        return {}
    found: dict[Path, int] = {}
    for folder in models.iterdir():
        with contextlib.suppress(FileNotFoundError):  # a person may be removing it
            found |= {path: path.stat().st_size for path in folder.rglob("*") if path.is_file()}
    return found


def _written(folder: Path) -> tuple[int, str]:
    """When something was last written there, for an order of runs."""
    times = [path.stat().st_mtime_ns for path in folder.iterdir()]
    return max(times, default=folder.stat().st_mtime_ns), folder.name


def _kinds(file: ArrayFile) -> tuple[str, ...]:
    return tuple(dict.fromkeys(name.partition(":")[0] for name in file.names))

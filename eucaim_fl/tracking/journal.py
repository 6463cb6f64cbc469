"""The run folder's journal: every completed round, whole or not there, and the replies of the one under way.

    journal/run.json                                             the run's own name, which a resumed run keeps
    journal/round-0000/   weights.safetensors, specs.json        the model before the first round
    journal/round-0007/   weights.safetensors, optimizer.safetensors, record.json
    models/               best.safetensors, last.safetensors, best.json
    sites/                <site>.json, <site>-pictures.safetensors   what each site announced, what it let be shown
    spool/round-0008/     <site>.safetensors                     replies that came in, until their round is complete

A round is written into a folder of its own under another name, flushed, and renamed: the rename is the commit. Arrays
of all but the last rounds are removed, records never.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import re
import secrets
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from eucaim_fl.arrays import Array, ArrayFile, Arrays, arrays_sha256, encode_arrays
from eucaim_fl.durable import flush_folder, write_atomically, write_json
from eucaim_fl.errors import JournalError
from eucaim_fl.records import ArraySpec, RoundRecord

__all__ = ["Journal", "JournalState"]

_KEEP_ROUNDS = 2
_RUN = "run.json"
_log = logging.getLogger("eucaim_fl.journal")


@dataclass(frozen=True)
class JournalState:
    """Where a run stands: `round` rounds are complete; weights and optimizer state are those after them."""

    round: int
    specs: tuple[ArraySpec, ...]
    weights: Arrays
    optimizer: Arrays
    records: tuple[RoundRecord, ...]


def _boot() -> str:
    """Changes when the machine restarts; replies spooled before that were not flushed and are not trusted."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return ""


@contextlib.contextmanager
def _written(place: Path) -> Iterator[None]:
    """Whatever the system refuses inside the block is a JournalError."""
    try:
        yield
    except OSError as problem:
        raise JournalError(
            "A round can't be written into the journal.",
            fix="Check the folder's permissions and the disk, then resume the run.",
            local_detail=f"{place}: {problem}",
        ) from None


class Journal:
    """The journal of one run folder; the caller holds the folder's lock (`durable.exclusive`)."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._rounds = folder / "journal"
        self._models = folder / "models"

    def _round(self, number: int) -> Path:
        return self._rounds / f"round-{number:04d}"

    # --- rounds -----------------------------------------------------------------------------------------------

    def begin(
        self, specs: tuple[ArraySpec, ...], weights: Mapping[str, Array], statistics: Mapping[str, Any] | None = None
    ) -> None:
        """Write the model before the first round, and give the run a name. Raises JournalError if it can't be written.

        statistics: site → what it told of its training patients, where the model was given their pooled values.
        """
        values: dict[str, Any] = {"specs.json": [asdict(s) for s in specs]}
        if statistics is not None:
            values["statistics.json"] = dict(statistics)
        if not (self._rounds / _RUN).exists():
            write_json(self._rounds / _RUN, {"run": secrets.token_hex(16)})
        self._commit(0, {"weights": weights}, values, arrays_sha256(weights))

    def run(self) -> str:
        """The run's own name, 32 hexadecimal digits that no other run has; empty if it has none, or it is damaged."""
        try:
            name = str(json.loads((self._rounds / _RUN).read_text(encoding="utf-8"))["run"])
        except (OSError, ValueError, KeyError, TypeError):
            return ""
        return name if re.fullmatch(r"[0-9a-f]{32}", name) else ""

    def statistics(self) -> dict[str, Any] | None:
        """What `begin` was given; None if the sites were not asked, or the file is damaged."""
        try:
            told = json.loads((self._round(0) / "statistics.json").read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return None
        return told if isinstance(told, dict) else None

    def best(self, record: RoundRecord) -> Arrays:
        """The weights under models/best, which must be those that arrived in that round.

        A crash may have come between the round and them; then they are taken from the round before, if it is still
        there. Raises JournalError if they are nowhere.
        """
        try:
            found = ArrayFile(self._models / "best.safetensors").load()
            if arrays_sha256(found) == record.arriving_sha256:
                return found
        except JournalError:
            pass  # said below, if the round before does not have them either
        with contextlib.suppress(JournalError):
            found = ArrayFile(self._round(record.round - 1) / "weights.safetensors").load()
            if arrays_sha256(found) == record.arriving_sha256:
                self.keep_best(record)
                return found
        raise JournalError(
            f"The best model, which arrived in round {record.round}, is not on the disk any more.",
            fix="Start a new run, or one with stopping.keep=last.",
            local_detail=str(self._models),
        )

    def commit(
        self, record: RoundRecord, weights: Mapping[str, Array], optimizer: Mapping[str, Array], better: bool
    ) -> None:
        """Make a completed round durable, then let go of what it replaces.

        better: the weights that arrived in this round are the best so far, so they are kept as `models/best`.
        Raises JournalError if the disk is full or can't be written; the round before is untouched then.
        """
        arrays = {"weights": weights, "optimizer": optimizer} if optimizer else {"weights": weights}
        self._commit(record.round, arrays, {"record.json": record.to_json()}, record.weights_sha256)
        if better:
            self.keep_best(record)
        shutil.rmtree(self.folder / "spool" / f"round-{record.round:04d}", ignore_errors=True)
        with _written(self._rounds):
            self._let_go(record.round - _KEEP_ROUNDS)

    def _let_go(self, newest: int) -> None:
        """Remove the arrays of rounds up to `newest`; their records stay."""
        for number in range(newest, 0, -1):
            stale = list(self._round(number).glob("*.safetensors"))
            if not stale:
                return
            for path in stale:
                path.unlink(missing_ok=True)

    def _commit(
        self, number: int, arrays: Mapping[str, Mapping[str, Array]], values: Mapping[str, Any], digest: str
    ) -> None:
        part = self._rounds / f".round-{number:04d}.part"
        target = self._round(number)
        try:
            with _written(target):
                for leftover in (part, target):
                    if leftover.exists():
                        shutil.rmtree(leftover)
                for name, named in arrays.items():
                    write_atomically(part / f"{name}.safetensors", encode_arrays(named))
                digests = {name: arrays_sha256(named) for name, named in arrays.items() if name != "weights"}
                for name, value in values.items():
                    write_json(part / name, value)
                write_json(part / "digests.json", {**digests, "weights": digest})
                part.rename(target)
                flush_folder(self._rounds)
        finally:
            if part.exists():
                shutil.rmtree(part, ignore_errors=True)

    def keep_best(self, record: RoundRecord) -> None:
        """Keep the weights that arrived in a round under models/best, by a link where the disk can.

        They are those of the round before, which must still be there. Raises JournalError if they are not, or can't be
        written.
        """
        source = self._round(record.round - 1) / "weights.safetensors"
        with _written(self._models):
            self._models.mkdir(parents=True, exist_ok=True)
            staged = self._models / ".best.part"
            with contextlib.suppress(FileNotFoundError):
                staged.unlink()
            try:
                os.link(source, staged)
            except OSError:
                shutil.copyfile(source, staged)
            staged.replace(self._models / "best.safetensors")
            write_json(self._models / "best.json", {"after_round": record.round - 1})

    def keep_last(self, weights: Mapping[str, Array]) -> None:
        """Write the final weights to models/last. Raises JournalError if they can't be written."""
        write_atomically(self._models / "last.safetensors", encode_arrays(weights))

    def records(self) -> tuple[RoundRecord, ...]:
        """Records of all completed rounds in order; a damaged one ends the list."""
        found: list[RoundRecord] = []
        while (path := self._round(len(found) + 1) / "record.json").exists():
            try:
                found.append(RoundRecord.from_json(json.loads(path.read_text())))
            except (OSError, ValueError, TypeError, KeyError):
                _log.warning("record of round %d is damaged", len(found) + 1)
                break
        return tuple(found)

    def load(self) -> JournalState | None:
        """The newest completed round whose arrays are whole; None if not even the initial model was written.

        Later, damaged rounds are removed, so that they are computed again.
        Raises JournalError if records exist but no arrays of any of them are whole.
        """
        specs_file = self._round(0) / "specs.json"
        if not specs_file.exists():
            return None
        try:
            specs = tuple(
                ArraySpec(s["name"], tuple(s["shape"]), s["dtype"], s["trainable"])
                for s in json.loads(specs_file.read_text())
            )
        except (OSError, ValueError, KeyError, TypeError):
            raise JournalError(
                "The journal's list of arrays is damaged.", fix="Start a new run.", local_detail=str(specs_file)
            ) from None
        records = self.records()
        for number in range(len(records), -1, -1):
            try:
                digests = json.loads((self._round(number) / "digests.json").read_text())
                loaded = {name: ArrayFile(self._round(number) / f"{name}.safetensors").load() for name in digests}
                if any(arrays_sha256(loaded[name]) != digest for name, digest in digests.items()):
                    raise JournalError("Arrays of a round are not those that were written.")
            except (OSError, ValueError, JournalError) as problem:
                _log.warning("round %d can't be used: %s", number, problem)
                continue
            for later in self._rounds.glob("round-*"):
                if later > self._round(number):
                    shutil.rmtree(later, ignore_errors=True)
            return JournalState(number, specs, loaded["weights"], loaded.get("optimizer", {}), records[:number])
        raise JournalError(
            "No completed round of this run can be read.", fix="Start a new run.", local_detail=str(self._rounds)
        )

    # --- sites ------------------------------------------------------------------------------------------------

    def keep_site(self, site: str, patients: int, quarantined: int, cohort_sha256: str) -> None:
        """Remember what a site announced. Raises JournalError if it can't be written."""
        write_json(
            self.folder / "sites" / f"{site}.json",
            {"patients": patients, "quarantined": quarantined, "cohort_sha256": cohort_sha256},
        )

    def sites(self) -> dict[str, dict[str, Any]]:
        """What each site announced: patients, quarantined, cohort_sha256."""
        return {p.stem: json.loads(p.read_text()) for p in sorted((self.folder / "sites").glob("*.json"))}

    def keep_pictures(self, site: str, pictures: Array) -> None:
        """Keep pictures, uint8 (n, H, W, 3), that a site let out. Raises JournalError if they can't be written."""
        path = self.folder / "sites" / f"{site}-pictures.safetensors"
        write_atomically(path, encode_arrays({"pictures": pictures}))

    def pictures(self) -> dict[str, Array]:
        """Pictures by site."""
        found = sorted((self.folder / "sites").glob("*-pictures.safetensors"))
        return {p.name.removesuffix("-pictures.safetensors"): ArrayFile(p).read("pictures") for p in found}

    # --- replies of the round under way -----------------------------------------------------------------------

    def _spooled(self, number: int, site: str) -> Path:
        return self.folder / "spool" / f"round-{number:04d}" / f"{site}.safetensors"

    def spool(self, number: int, site: str, arriving: str, report: str, update: Mapping[str, Array]) -> ArrayFile:
        """Write a reply as it comes in; survives a killed process. Raises JournalError if the disk is full."""
        path = self._spooled(number, site)
        metadata = {"report": report, "arriving": arriving, "boot": _boot()}
        write_atomically(path, encode_arrays(update, metadata), survive_power_loss=False)
        return ArrayFile(path)

    def spooled(self, number: int, site: str, arriving: str) -> ArrayFile | None:
        """A reply that came in before a crash, if it answers the same weights."""
        path = self._spooled(number, site)
        if not path.exists():
            return None
        try:
            file = ArrayFile(path)
        except JournalError:
            return None
        fits = file.metadata.get("arriving") == arriving and file.metadata.get("boot") == _boot()
        return file if fits and "report" in file.metadata else None

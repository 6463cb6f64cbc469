"""Finished trainings of a benchmark, kept as they end, so that a killed one goes on behind the last.

<folder>/request.json   rows/<name>-seed<seed>-<key>.json (+ .safetensors)   runs/<run folders of federations>
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from eucaim_fl.arrays import Array, encode_arrays
from eucaim_fl.benchmark.outcome import Outcome
from eucaim_fl.durable import write_atomically, write_json
from eucaim_fl.plan import FederationPlan

__all__ = ["Store"]


class Store:
    """The trainings of one benchmark's folder. A training is known by its plan, how it is made, and on which sites."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    @property
    def runs(self) -> Path:
        """Where the run folders of its federations lie."""
        return self._folder / "runs"

    def finished(self, name: str, plan: FederationPlan, how: Sequence[str]) -> list[Outcome] | None:
        """The outcomes of a training that ended; None if it did not, or its file is damaged."""
        try:
            told = json.loads(self._path(name, plan, how).with_suffix(".json").read_text(encoding="utf-8"))
            return [Outcome.from_json(one) for one in told["outcomes"]]
        except (OSError, ValueError, KeyError, TypeError):
            return None

    def keep(
        self,
        name: str,
        plan: FederationPlan,
        how: Sequence[str],
        outcomes: Sequence[Outcome],
        arrays: Mapping[str, Array],
    ) -> None:
        """Keep a training's model and outcomes. Raises JournalError if they can't be written."""
        path = self._path(name, plan, how)
        write_atomically(path.with_suffix(".safetensors"), encode_arrays(arrays))
        write_json(path.with_suffix(".json"), {"outcomes": [one.to_json() for one in outcomes]})

    def run_of(self, plan: FederationPlan) -> Path | None:
        """The folder of a federated run of this plan that was begun here."""
        for file in sorted(self.runs.glob("*/plan.json")):
            if file.read_text(encoding="utf-8") == plan.canonical_json():
                return file.parent
        return None

    def _path(self, name: str, plan: FederationPlan, how: Sequence[str]) -> Path:
        key = hashlib.sha256(json.dumps([plan.sha256(), *how]).encode()).hexdigest()[:12]
        return self._folder / "rows" / f"{name.replace(':', '_')}-seed{plan.seed}-{key}.part"

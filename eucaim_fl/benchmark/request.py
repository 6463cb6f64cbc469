"""What a benchmark was asked for, as its folder keeps it: enough to go on with it wherever it was killed."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from eucaim_fl.benchmark.expectations import Expectation, read_expectation
from eucaim_fl.benchmark.rows import Row
from eucaim_fl.config import ExperimentConfig, parse
from eucaim_fl.durable import write_json
from eucaim_fl.errors import RecipeError, RunNotFoundError
from eucaim_fl.federation.poison import Poison

__all__ = ["Request", "read_request"]

_FILE = "request.json"


@dataclass(frozen=True)
class Request:
    """command: what the user wrote. base: the recipe. rows: each with the recipe that it makes of it. data_root: the
    folder that relative cohort folders start from. checked: whether unmet expectations make the command fail."""

    command: str
    base: ExperimentConfig
    rows: tuple[tuple[Row, ExperimentConfig], ...]
    seeds: tuple[int, ...]
    expect: tuple[Expectation, ...]
    data_root: str
    checked: bool = False

    def write(self, folder: Path) -> None:
        """Keep it in the benchmark's folder. Raises JournalError if it can't be written."""
        write_json(
            folder / _FILE,
            {
                "command": self.command,
                "base": self.base.model_dump(mode="json"),
                "rows": [{"row": asdict(row), "config": config.model_dump(mode="json")} for row, config in self.rows],
                "seeds": list(self.seeds),
                "expect": [one.text for one in self.expect],
                "data_root": self.data_root,
                "checked": self.checked,
            },
        )


def read_request(folder: Path) -> Request:
    """What the benchmark of a folder was asked for.

    Raises RunNotFoundError if the folder holds none, or it can't be read.
    """
    try:
        told = json.loads((folder / _FILE).read_text(encoding="utf-8"))
        return Request(
            str(told["command"]),
            parse(ExperimentConfig, told["base"], "The benchmark's recipe"),
            tuple(
                (_row(one["row"]), parse(ExperimentConfig, one["config"], "The benchmark's recipe"))
                for one in told["rows"]
            ),
            tuple(int(seed) for seed in told["seeds"]),
            tuple(read_expectation(text) for text in told["expect"]),
            str(told["data_root"]),
            bool(told["checked"]),
        )
    except (OSError, ValueError, KeyError, TypeError, RecipeError):
        raise RunNotFoundError(
            "There is no benchmark to go on with.",
            fix="Give the folder that the command printed, e.g. resume=runs/benchmark-….",
            local_detail=str(folder),
        ) from None


def _row(told: dict[str, Any]) -> Row:
    poison = None if told["poison"] is None else Poison(**told["poison"])
    return Row(told["name"], tuple(told["overrides"]), told["trained"], poison)

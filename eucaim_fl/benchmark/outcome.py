"""What one finished training gave: its models' values, patient by patient, and what it cost."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from eucaim_fl.benchmark.rows import Row, Trained
from eucaim_fl.federation.poison import Poison

__all__ = ["Cost", "Outcome", "PatientValues", "named"]

PatientValues = dict[tuple[str, str], tuple[float, ...]]
"""(site, patient) → what is measured; see `eucaim_fl.comparison.held_out`."""


@dataclass(frozen=True)
class Cost:
    """steps: optimizer steps that went into the model. extra_steps: beyond those, for models of the sites' own.

    seconds: of the training. bytes_up, bytes_down: between the sites and the server; 0 where nobody federates.
    """

    steps: int
    extra_steps: int
    seconds: float
    bytes_up: int = 0
    bytes_down: int = 0


@dataclass(frozen=True)
class Outcome:
    """One model of one row under one seed, on the held-out patients of every site.

    name: of the model in the table: the row's, `local:SITE`, or `ROW.personal` and the like for the sites' own.
    arrays_sha256: of the model; empty where each site has its own. plan_sha256: of the plan that was trained;
    clean_sha256: of the same without a bad site.
    """

    name: str
    row: str
    trained: Trained
    seed: int
    plan_sha256: str
    clean_sha256: str
    arrays_sha256: str
    cost: Cost
    values: PatientValues
    poison: Poison | None = None

    def to_json(self) -> dict[str, Any]:
        """As plain JSON values; what is not defined is null."""
        values: dict[str, dict[str, list[float | None]]] = {}
        for (site, patient), numbers in self.values.items():
            values.setdefault(site, {})[patient] = [None if n != n else n for n in numbers]
        return {**asdict(self), "values": values}

    @classmethod
    def from_json(cls, told: Mapping[str, Any]) -> Outcome:
        """The inverse of `to_json`."""
        values = {
            (site, patient): tuple(float("nan") if n is None else float(n) for n in numbers)
            for site, patients in told["values"].items()
            for patient, numbers in patients.items()
        }
        poison = None if told["poison"] is None else Poison(**told["poison"])
        return cls(**{**told, "cost": Cost(**told["cost"]), "values": values, "poison": poison})


def named(row: Row, model: str = "") -> str:
    """What a row's model is called in the table.

    >>> named(Row("ditto", ()), "personal")
    'ditto.personal'
    """
    return f"{row.name}.{model}" if model else row.name

"""A tiny hospital with confidential data. Its memory and ledger begin anew with each test; its images stay prepared."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from eucaim_fl.arrays import Arrays
from eucaim_fl.cohorts import preparation
from eucaim_fl.config import TaskConfig
from eucaim_fl.plan import FederationPlan, make_plan
from eucaim_fl.site.ledger import Ledger, LedgerReader
from eucaim_fl.site.node import SiteNode, initial_arrays
from tests.conftest import tiny_recipe, write_hospital

__all__ = ["GAUSSIAN", "SAMPLED", "UPDATE", "Place", "length", "prepared_here", "weights"]

SAMPLED: dict[str, Any] = {
    "mechanism": "patient_dp",
    "noise_multiplier": 1.0,
    "delta": 1e-5,
    "clipping_norm": 1.0,
    "sampling_rate": 0.5,
    "gradients": "loop",
}
GAUSSIAN = {**SAMPLED, "sampling_rate": 1.0}
"""Everybody in each step: what it costs is quickly computed."""
UPDATE: dict[str, Any] = {
    "mechanism": "update_dp",
    "noise_multiplier": 2.0,
    "delta": 1e-5,
    "clipping_norm": 0.5,
}
POLICY: dict[str, Any] = {
    "schema": "eucaim-fl-policy/1",
    "patients": {"training": 10, "metric": 5},
    "metrics": {"names": ["dice", "hd95_mm"], "decimals": 3},
    "update": {"largest_norm": 1000},
    "sent_mb": {"message": 10, "plan": 100, "day": 100},
    "privacy": {"mechanism": "none"},
}


class Place:
    """Site `a`: 24 patients, of whom 14, 5 and 5 are in the splits of a plan without noise."""

    def __init__(self, root: Path, patients: int = 24) -> None:
        self.root = root
        release = {"data_is": "confidential", "minimum_patients": 2, "minimum_metric_patients": 1}
        self.site_file = write_hospital(root, "a", patients=patients, **release)
        self._written = yaml.safe_load(self.site_file.read_text())
        self.records = root / "cache" / "a.records"

    def begin(self) -> Place:
        """Forget what earlier tests did."""
        shutil.rmtree(self.records, ignore_errors=True)
        self.site_file.write_text(yaml.safe_dump(self._written))
        return self

    def settings(self, **changes: Any) -> None:
        """Change keys of the site file; those of `release` one by one."""
        values = yaml.safe_load(self.site_file.read_text())
        release = {**values["release"], **changes.pop("release", {})}
        self.site_file.write_text(yaml.safe_dump({**values, **changes, "release": release}))

    def policy(self, **changes: Any) -> None:
        """Give the site a policy."""
        (self.root / "policy.yaml").write_text(yaml.safe_dump({**POLICY, **changes}))
        self.settings(policy="policy.yaml")

    def consent(self, *withdrawn: str) -> None:
        """Everybody's consent, but for some."""
        gone = dict.fromkeys(withdrawn, "withdrawn")
        rows = [f"{p},{gone.get(p, 'given')},2024-01-01,research" for p in self.patients()]
        (self.root / "consent.csv").write_text("\n".join(["patient_id,status,date,purposes", *rows]) + "\n")
        self.settings(consent={"table": str(self.root / "consent.csv")})

    def patients(self) -> list[str]:
        return sorted(path.name.split(".")[0] for path in (self.root / "data" / "a" / "images").iterdir())

    def plan(self, task: TaskConfig | None = None, **changes: Any) -> FederationPlan:
        """A plan of two rounds of a network without batch norm; with noise of two steps each, else of four."""
        model = {"args": {"channels": [2, 4], "strides": [2], "num_res_units": 0, "norm": "instance"}}
        values: dict[str, Any] = {
            "model": model,
            "training": {"local_steps": 2 if "privacy" in changes else 4},
            **changes,
        }
        config = tiny_recipe(self.root, [self.site_file], **values)
        return make_plan(config if task is None else config.model_copy(update={"task": task}), ("a",))

    def node(self, plan: FederationPlan | None = None, **changes: Any) -> SiteNode:
        """Open the site for a plan."""
        return SiteNode(self.site_file, self.plan(**changes) if plan is None else plan)

    def reader(self) -> LedgerReader:
        return LedgerReader(self.records / "ledger")

    def ledger(self) -> Ledger:
        return Ledger(self.records / "ledger", "a")

    def damage(self, name: str) -> None:
        """Spoil a file of the site's records."""
        (self.records / name).write_bytes(b"spoilt")

    def commits(self, use: str = "train") -> list[tuple[object, object, object]]:
        """Round, split of figures, and number of patients of each charge, in their order."""
        entries = [e.body for e in self.reader().entries() if e.kind == "committed"]
        return [(body["round"], body["part"], body["count"]) for body in entries if body["use"] == use]


@contextmanager
def prepared_here(root: Path, patients: int = 24) -> Iterator[Place]:
    """A place whose images are prepared in this process, so that many tests need no others."""
    real = preparation.map_isolated
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(preparation, "map_isolated", lambda *args, **options: real(*args, **{**options, "workers": 0}))
        yield Place(root, patients)


def weights(plan: FederationPlan) -> Arrays:
    return initial_arrays(plan)[1]


def length(update: Arrays) -> float:
    """L2 norm over all floating arrays."""
    squares = [float(np.square(a, dtype=np.float64).sum()) for a in update.values() if a.dtype.kind == "f"]
    return float(np.sqrt(sum(squares)))

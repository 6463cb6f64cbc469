"""Federated equals centralised, figure by figure: no number of a result is left out, and each lies within its bound."""

from __future__ import annotations

import copy
import importlib
import math
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from eucaim_fl.plan import FederationPlan
from eucaim_fl.validation.analysis import analyse
from eucaim_fl.validation.patient_figures import validation_record
from eucaim_fl.validation.result_schema import ValidationResult
from tests.validation.frozen import CLASSES, LABELS, MASKS, SURVIVAL, THREE, any_results, frozen_plan

FOLDER = Path(__file__).resolve().parents[2] / "experiments" / "benchmarks"
OF_SCORES = [{"metric": name, "margin": 0.05} for name in ("auc", "accuracy", "sensitivity", "specificity", "brier")]
OF_MASKS = [{"metric": name, "margin": 0.05} for name in ("dice", "hd95_mm", "surface_dice", "volume_difference_ml")]
BY_SEX = [{"by": "sex"}]
TASKS: dict[str, tuple[dict[str, Any], dict[str, Any], int]] = {
    "two classes": (CLASSES, {"comparisons": OF_SCORES, "subgroups": BY_SEX, "half_widths": {"auc": 0.05}}, 120),
    "three classes": (THREE, {"comparisons": OF_SCORES[:1]}, 90),
    "labels": (LABELS, {"comparisons": OF_SCORES}, 120),
    "masks": (MASKS, {"comparisons": OF_MASKS, "subgroups": BY_SEX, "half_widths": {"dice": 0.05}}, 60),
    "organs": ({**MASKS, "labels": ["liver", "lesion"]}, {"comparisons": OF_MASKS}, 40),
    "survival": (SURVIVAL, {"subgroups": BY_SEX}, 80),
}
"""Task, what is asked besides, and how many patients."""


@pytest.fixture(scope="module")
def centralised() -> Iterator[ModuleType]:
    sys.path.insert(0, str(FOLDER))
    yield importlib.import_module("centralised")
    sys.path.remove(str(FOLDER))


def patients_of(plan: FederationPlan, size: int, seed: int) -> list[dict[str, dict[str, Any]]]:
    """Results of two models that know something, and of several labels each one's own."""
    results, rng, task = any_results(plan, size, seed), np.random.default_rng(seed), plan.task
    for one in results:
        for row in one.values():
            if task.name == "classification":
                raised = row["probabilities"] + 0.8 * rng.random() * np.eye(len(task.classes))[row["truth"]]
                row["probabilities"] = raised / raised.sum()
            elif task.name == "segmentation" and len(task.labels) > 1:
                more = {
                    f"{name}_{label}": rng.permutation([value])[0]
                    for label in task.labels
                    for name, value in row.items()
                }
                row |= {name: float(value) for name, value in more.items()}
    return results


def dealt(centralised: ModuleType, name: str, seed: int) -> tuple[FederationPlan, ValidationResult, dict[str, Any]]:
    """A plan, its result, and patients at two hospitals whom chance has sent there, in unequal numbers."""
    task, asked, size = TASKS[name]
    plan = frozen_plan(task, 2, **asked, thresholds=(0.3, 0.5), bootstrap_samples=20, bins=10)
    results, rng = patients_of(plan, size, seed), np.random.default_rng(seed)
    hospitals, records = {}, []
    where, sex = rng.choice(2, size, p=(0.35, 0.65)), rng.choice(["sex=F", "sex=M"], size)
    for k, site in enumerate(plan.sites):
        own = [patient for patient, place in zip(results[0], where, strict=True) if place == k]
        kept = [{patient: one[patient] for patient in own} for one in results]
        member = dict(
            zip(results[0], sex if plan.validation and plan.validation.subgroups else [""] * size, strict=True)
        )
        groups = {patient: frozenset({str(member[patient])} - {""}) for patient in own}
        hospitals[site] = centralised.Hospital(kept, groups)
        records.append(validation_record(site, plan, kept, groups))
    return plan, analyse(plan, records, seed=3), hospitals


@pytest.fixture(scope="module")
def found(centralised: ModuleType) -> tuple[FederationPlan, ValidationResult, dict[str, Any]]:
    return dealt(centralised, "masks", seed=1)


class TestEveryFigure:
    @pytest.mark.parametrize("name", TASKS)
    def test_every_number_is_that_of_all_patients_or_within_its_bound(self, centralised, name):
        rows = centralised.compare(*dealt(centralised, name, seed=1))
        assert [("/".join(row.path), row.federated, row.centralised) for row in rows if not row.within] == []
        # of a few patients the slope may have no end, and two hospitals say next to nothing of how hospitals differ
        unbounded = [row.path[-2:] for row in rows if row.kind != "side" and math.isinf(row.bound)]
        assert all(one[0].startswith("calibration_slope") or one[1].startswith(("tau", "i2_")) for one in unbounded)
        assert len(unbounded) < 0.01 * len(rows)

    def test_however_patients_are_dealt(self, centralised):
        for seed in range(2, 4):
            rows = centralised.compare(*dealt(centralised, "masks", seed))
            assert all(row.within for row in rows)


class TestItFails:
    """What the comparison must not overlook."""

    def altered(self, centralised, found, change) -> list[str]:
        plan, result, hospitals = found
        values = copy.deepcopy(result.model_dump())
        change(values["models"][0]["scopes"][0])
        rows = centralised.compare(plan, ValidationResult.model_validate(values), hospitals)
        return ["/".join(row.path[4:]) for row in rows if not row.within]

    def test_a_figure_that_nobody_knows_is_a_failure(self, centralised, found):
        def change(scope):
            scope["figures"]["kappa"] = scope["figures"]["dice"]

        assert self.altered(centralised, found, change)[0] == "figures/kappa/value"

    def test_so_is_one_that_is_missing(self, centralised, found):
        assert "figures/dice" in self.altered(centralised, found, lambda scope: scope["figures"].pop("dice"))

    @pytest.mark.parametrize("field", ["value", "low", "high", "patients", "sites"])
    def test_and_one_that_is_off_by_little(self, centralised, found, field):
        def change(scope):
            scope["figures"]["hd95_mm"][field] += 1 if field in ("patients", "sites") else 1e-6

        assert self.altered(centralised, found, change) == [f"figures/hd95_mm/{field}"]

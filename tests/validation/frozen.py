"""Plans that validate frozen models, and patients' results, for tests."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from eucaim_fl.plan import FederationPlan, make_plan
from tests.conftest import tiny_recipe

__all__ = ["CLASSES", "LABELS", "MASKS", "SURVIVAL", "THREE", "any_results", "frozen_plan"]

MASKS = {"name": "segmentation", "labels": ["lesion"]}
CLASSES = {"name": "classification", "target": "dx", "classes": ["no", "yes"]}
THREE = {"name": "classification", "target": "dx", "classes": ["a", "b", "c"]}
LABELS = {"name": "multilabel", "targets": ["mass", "oedema"]}
SURVIVAL = {"name": "survival", "time": "time_days", "event": "event"}


def frozen_plan(task: dict[str, Any] = CLASSES, models: int = 1, **asked: Any) -> FederationPlan:
    """A plan for the sites a and b."""
    task = {"spatial_dims": 2, **task}
    trained = tiny_recipe(Path("unused"), [Path("a.yaml")], rounds=1)
    plan = make_plan(trained, ("a", "b")).model_dump(mode="json") | {"task": task}
    contract = {
        "format": "onnx",
        "sha256": "0" * 64,
        "size_bytes": 10,
        "intended_use": "Research.",
        "data": plan["data"],
    }
    validation = {"models": [{**contract, "name": f"m{k}"} for k in range(models)], "bins": 10, **asked}
    return FederationPlan.model_validate({**plan, "validation": validation}, strict=False)


def any_results(plan: FederationPlan, patients: int, seed: int = 0, start: int = 0) -> list[dict[str, dict[str, Any]]]:
    """Results of each of the plan's models on so many patients, and hardly any value twice."""
    rng, task = np.random.default_rng(seed), plan.task
    names = [f"p{start + n:03d}" for n in range(patients)]
    truths = rng.integers(0, 10**6, size=patients)
    known = rng.choice([0.0, 1.0, np.nan], size=(patients, 2), p=[0.45, 0.45, 0.1])
    times = rng.integers(1, 50, size=patients)
    results = []
    for _ in plan.validation.models if plan.validation is not None else ():
        one: dict[str, dict[str, Any]] = {}
        for n, name in enumerate(names):
            if task.name == "classification":
                drawn = rng.dirichlet(np.ones(len(task.classes)))
                one[name] = {"probabilities": drawn, "truth": int(truths[n]) % len(task.classes)}
            elif task.name == "multilabel":
                one[name] = {"probabilities": rng.random(2), "truth": known[n]}
            elif task.name == "survival":
                one[name] = {"log_risk": float(rng.normal()), "time": float(times[n]), "event": bool(truths[n] % 2)}
            else:
                lesions, empty = int(truths[n] % 4), rng.random() < 0.1
                one[name] = {
                    "dice": np.nan if empty else float(rng.random()),
                    "hd95_mm": np.nan if empty else float(rng.gamma(2, 5)),
                    "surface_dice": float(rng.random()),
                    "found_ml": float(rng.gamma(2, 3)),
                    "true_ml": float(truths[n] % 30),
                    "lesions_true": lesions,
                    "lesions_found": int(rng.integers(0, lesions + 1)),
                    "lesions_false": int(rng.integers(0, 3)),
                }
        results.append(one)
    return results

"""What made-up hospitals tell of two frozen models, for the benchmark of a validation's cost."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from scipy.special import ndtr

from eucaim_fl.config import ExperimentConfig
from eucaim_fl.plan import FederationPlan, make_plan
from eucaim_fl.seeding import generator
from eucaim_fl.site.disclosure import least_people
from eucaim_fl.site.validation_cells import told_record
from eucaim_fl.site.validation_rounding import CellRules
from eucaim_fl.validation.groups import PatientValues, groups_of
from eucaim_fl.validation.record import ValidationRecord

__all__ = ["TASKS", "again", "plan_of", "records_of"]

TASKS: Mapping[str, dict[str, Any]] = {
    "classification": {"name": "classification", "target": "cancer", "classes": ["no", "yes"]},
    "segmentation": {"name": "segmentation", "spatial_dims": 2, "labels": ["lesion"]},
}
_NETWORKS = {"classification": "resnet", "segmentation": "unet"}
_MAKERS = ("GE", "Siemens", "Philips", "Canon", "Fujifilm")
_RULES = (
    {"by": "sex"},
    {"by": "age", "edges": (40, 55, 70)},
    {"by": "manufacturer"},
    {"by": "slice_thickness_mm", "edges": (1, 2.5, 4)},
)
_COMPARISONS = {
    "classification": [{"metric": "auc", "margin": 0.05}, {"metric": "sensitivity"}, {"metric": "brier"}],
    "segmentation": [{"metric": "dice", "margin": 0.05}, {"metric": "hd95_mm"}],
}


def plan_of(task: str, sites: int, samples: int = 2000) -> FederationPlan:
    """A plan of two models over so many sites: six thresholds, a hundred bins, groups by four rules (16 scopes that
    somebody told of). samples: of the bootstrap."""
    names = [f"hospital-{number:02d}" for number in range(1, sites + 1)]
    recipe = {
        "name": f"{task}-{sites}", "sites": names, "rounds": 1, "task": TASKS[task],
        "model": {"name": _NETWORKS[task]}, "training": {"local_steps": 1},
    }  # fmt: skip
    plan = make_plan(ExperimentConfig.model_validate(recipe), names).model_dump()
    models = [
        {"name": name, "format": "onnx", "sha256": "0" * 64, "size_bytes": 1, "data": plan["data"],
         "intended_use": "Cost of a validation."}
        for name in ("new", "old")
    ]  # fmt: skip
    asked = {
        "models": models,
        "thresholds": (0.1, 0.25, 0.4, 0.5, 0.625, 0.75),
        "bins": 100,
        "subgroups": _RULES,
        "comparisons": _COMPARISONS[task],
        "half_widths": {"auc" if task == "classification" else "dice": 0.02},
        "bootstrap_samples": samples,
    }
    return FederationPlan.model_validate({**plan, "validation": asked})


def records_of(plan: FederationPlan, seed: int = 0) -> tuple[ValidationRecord, ...]:
    """What each site tells of 200 to 799 patients, as a site with confidential data does: groups of few withheld.

    A hospital of a number has the same patients in all plans of a task.
    """
    rules = CellRules(least_people(confidential=True, training=20, metric=10, base=5))
    return tuple(_record(site, plan, rules, seed) for site in plan.sites)


def again(records: Sequence[ValidationRecord], plan: FederationPlan) -> tuple[ValidationRecord, ...]:
    """The records of a plan of more sites of the same patients, as this plan's sites tell them."""
    told = {record.site: record for record in records}
    return tuple(replace(told[site], plan_sha256=plan.sha256()) for site in plan.sites)


def _record(site: str, plan: FederationPlan, rules: CellRules, seed: int) -> ValidationRecord:
    rng = generator(seed, "validation cost", plan.task.name, site)
    patients = [f"p{number:03d}" for number in range(int(rng.integers(200, 800)))]
    groups = {patient: groups_of([_circumstances(rng)], _rules(plan)) for patient in patients}
    make = _classified if plan.task.name == "classification" else _outlined
    return told_record(site, plan, make(patients, rng), groups, rules)


def _rules(plan: FederationPlan) -> Sequence[Any]:
    return plan.validation.subgroups if plan.validation is not None else ()


def _circumstances(rng: np.random.Generator) -> PatientValues:
    return PatientValues(
        sex=str(rng.choice(["F", "M"])),
        age=float(np.clip(rng.normal(56, 16), 18, 95)),
        manufacturer=str(rng.choice(_MAKERS, p=[0.25, 0.25, 0.2, 0.15, 0.15])),
        slice_thickness_mm=float(rng.choice([0.8, 2.0, 3.0, 5.0])),
    )


def _classified(patients: Sequence[str], rng: np.random.Generator) -> list[dict[str, dict[str, Any]]]:
    """Scores Φ of normal numbers, of which both models share half the variance; four of ten have the disease."""
    truth = (rng.random(len(patients)) < 0.4).astype(int)
    ease, shift = rng.normal(0, 1, len(patients)), rng.normal(0, 0.3)
    results = []
    for gain in (1.6, 1.4):
        raw = shift + gain * (truth - 0.5) + (ease + rng.normal(0, 1, len(patients))) / np.sqrt(2)
        scores = ndtr(raw)
        results.append(
            {
                patient: {"probabilities": np.array([1 - score, score]), "truth": int(one)}
                for patient, score, one in zip(patients, scores, truth, strict=True)
            }
        )
    return results


def _outlined(patients: Sequence[str], rng: np.random.Generator) -> list[dict[str, dict[str, Any]]]:
    """Dice from a beta distribution, distances and volumes that go with it, up to five lesions."""
    volume, lesions = rng.gamma(2, 8, len(patients)), rng.integers(1, 6, len(patients))
    ease = rng.normal(0, 0.05, len(patients))
    results = []
    for middle in (0.8, 0.77):
        dice = np.clip(rng.beta(8 * middle, 8 * (1 - middle), len(patients)) + ease, 0, 1)
        found = rng.binomial(lesions, 0.5 + dice / 2)
        results.append(
            {
                patient: {
                    "dice": float(dice[n]),
                    "hd95_mm": float(rng.gamma(2, 1 + 8 * (1 - dice[n]))),
                    "surface_dice": float(np.sqrt(dice[n])),
                    "found_ml": float(volume[n] * rng.lognormal(0, 0.2)),
                    "true_ml": float(volume[n]),
                    "lesions_true": int(lesions[n]),
                    "lesions_found": int(found[n]),
                    "lesions_false": int(rng.poisson(0.5)),
                }
                for n, patient in enumerate(patients)
            }
        )
    return results

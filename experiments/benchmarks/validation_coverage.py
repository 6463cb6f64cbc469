"""How often the 95 % intervals of a validation hold the truth: simulated federations whose truth is known.

    python experiments/benchmarks/validation_coverage.py [--federations 1000] [--seed 0] [--json FILE]

Each federation has five hospitals of 30 to 150 patients, 40 % of them with the disease. Scores: Φ of a normal number,
whose mean depends on class and hospital, so that the AUC of all hospitals' patients together is known; found are the
pooled AUC (DeLong from bins of a hundredth), sensitivity and specificity at ½. Dice: beta-distributed with a mean of
each hospital's own. `alike`: all hospitals have the same distributions; `apart`: scores are shifted by hospital
(SD 0.4), diseased ones besides (SD 0.3), and mean Dice is between 0.6 and 0.85. The truth is that of these hospitals,
with as many patients of each class as they have: what pooled figures and stratified means are about. `further
hospital`: how often the prediction interval for the AUC holds that of a sixth hospital, drawn as the five were.

Everything goes through `analyse`, as a report does. To be expected: 93 to 97 %; more where hospitals are apart, since
pooled counts take differences of hospitals as chance. No data are needed.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtr

from eucaim_fl.config import ExperimentConfig
from eucaim_fl.plan import FederationPlan, make_plan
from eucaim_fl.seeding import generator
from eucaim_fl.validation.analysis import analyse
from eucaim_fl.validation.binned import bin_scores, edges_with
from eucaim_fl.validation.record import EVERYBODY, ModelFigures, ScopeRecord, ValidationRecord
from eucaim_fl.validation.result_schema import ScopeResult

FloatArray = NDArray[np.float64]
SITES = ("a", "b", "c", "d", "e")
TASKS = {
    "classification": {"name": "classification", "target": "cancer", "classes": ["no", "yes"]},
    "segmentation": {"name": "segmentation", "spatial_dims": 2, "labels": ["lesion"]},
}
NETWORKS = {"classification": "resnet", "segmentation": "unet"}


@dataclass(frozen=True)
class Hospitals:
    """Where scores and Dice of each hospital's patients lie, shape (hospitals,) each.

    without, diseased: patients of each class. low, high: mean of their normal numbers. dice: mean Dice.
    """

    without: NDArray[np.int64]
    diseased: NDArray[np.int64]
    low: FloatArray
    high: FloatArray
    dice: FloatArray

    def truths(self) -> dict[str, float]:
        """The figures of all these hospitals' patients together, had they infinitely many in the same shares."""
        of_low, of_high = self.without / self.without.sum(), self.diseased / self.diseased.sum()
        pairs = ndtr((self.high[:, None] - self.low[None]) / math.sqrt(2))
        patients = self.without + self.diseased
        return {
            "auc": float(of_high @ pairs @ of_low),
            "sensitivity@0.5": float(of_high @ ndtr(self.high)),
            "specificity@0.5": float(of_low @ ndtr(-self.low)),
            "dice": float(patients @ self.dice / patients.sum()),
        }


def plan_of(task: str) -> FederationPlan:
    """A plan of a validation of one model."""
    recipe = {
        "name": "coverage", "sites": list(SITES), "rounds": 1, "task": TASKS[task],
        "model": {"name": NETWORKS[task]}, "training": {"local_steps": 1},
    }  # fmt: skip
    plan = make_plan(ExperimentConfig.model_validate(recipe), SITES).model_dump()
    model = {
        "name": "frozen", "format": "onnx", "sha256": "0" * 64, "size_bytes": 1, "data": plan["data"],
        "intended_use": "none",
    }  # fmt: skip
    # intervals by resampling are not measured here
    return FederationPlan.model_validate({**plan, "validation": {"models": [model], "bootstrap_samples": 1}})


def hospitals(rng: np.random.Generator, *, apart: bool, count: int = len(SITES)) -> Hospitals:
    """Hospitals as the docstring of this file says."""
    patients = rng.integers(30, 151, count)
    diseased = np.rint(0.4 * patients).astype(np.int64)
    shift, gain = apart * rng.normal(0, 0.4, count), apart * rng.normal(0, 0.3, count)
    dice = rng.uniform(0.6, 0.85, count) if apart else np.full(count, 0.75)
    return Hospitals(patients - diseased, diseased, shift - 0.7, shift + gain + 0.7, dice)


def told(
    plans: Mapping[str, FederationPlan], of: Hospitals, rng: np.random.Generator
) -> dict[str, list[ValidationRecord]]:
    """What these hospitals tell of patients drawn at random, by task."""
    edges = edges_with((0.5,), 100)
    records: dict[str, list[ValidationRecord]] = {task: [] for task in plans}
    for k, site in enumerate(SITES):
        truth = np.repeat([0, 1], [of.without[k], of.diseased[k]])
        scores = ndtr(rng.normal(np.where(truth == 1, of.high[k], of.low[k])))
        counts = bin_scores(scores, truth, edges)
        dice = rng.beta(6 * of.dice[k], 6 * (1 - of.dice[k]), len(truth))
        figures = {
            "classification": ModelFigures(scores={"yes": (counts.negative, counts.positive)}),
            "segmentation": ModelFigures(
                moments={"dice": (float(len(dice)), float(dice.sum()), float((dice**2).sum()))}
            ),
        }
        for task, plan in plans.items():
            scope = ScopeRecord(EVERYBODY, len(truth), (figures[task],))
            records[task].append(ValidationRecord(site, plan.sha256(), (scope,)))
    return records


def held(found: Sequence[ScopeResult], truths: Mapping[str, float], further: float) -> dict[str, bool]:
    """Whether each interval holds what it is about."""
    answers = {}
    for scope in found:
        for name in truths.keys() & scope.figures.keys():
            figure = scope.figures[name]
            answers[name] = (
                figure.low is not None and figure.high is not None and figure.low <= truths[name] <= figure.high
            )
        for one in scope.between:
            if one.figure == "auc" and one.prediction_low is not None and one.prediction_high is not None:
                answers["further hospital"] = one.prediction_low <= further <= one.prediction_high
    return answers


def coverage(federations: int, seed: int, *, apart: bool) -> dict[str, float]:
    """The share of federations in which each interval holds the truth."""
    plans = {task: plan_of(task) for task in TASKS}
    rows = []
    for number in range(federations):
        rng = generator(seed, "coverage", int(apart), number)
        of, sixth = hospitals(rng, apart=apart), hospitals(rng, apart=apart, count=1)
        records = told(plans, of, rng)
        found = [analyse(plan, records[task], seed=seed).models[0].scopes[0] for task, plan in plans.items()]
        rows.append(held(found, of.truths(), sixth.truths()["auc"]))
    return {name: sum(row[name] for row in rows) / federations for name in sorted(rows[0])}


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print, and write."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--federations", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path, help="where the figures are written")
    options = parser.parse_args(arguments)
    found = {}
    for name in ("alike", "apart"):
        found[name] = coverage(options.federations, options.seed, apart=name == "apart")
        error = math.sqrt(0.95 * 0.05 / options.federations)
        print(f"hospitals {name}, {options.federations} federations (± {100 * error:.1f} points by chance)")
        for figure, share in found[name].items():
            print(f"  {figure:<18} {100 * share:5.1f} %")
    if options.json is not None:
        options.json.write_text(json.dumps({"federations": options.federations, "coverage": found}, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())

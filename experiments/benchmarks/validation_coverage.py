"""How often the 95 % intervals of a validation hold the truth: simulated federations whose truth is known.

    python experiments/benchmarks/validation_coverage.py [--federations 1000] [--hospitals 5] [--seed 0] [--json FILE]

Each federation has so many hospitals of 30 to 150 patients, 40 % of them with the disease. Scores: Φ of a normal
number, whose mean depends on class and hospital. Dice: beta-distributed with a mean of each hospital's own. `alike`:
all hospitals have the same distributions; `apart`: scores are shifted by hospital (SD 0.4), diseased ones besides
(SD 0.3), and mean Dice is between 0.6 and 0.85.

of these hospitals     the AUC of all their patients together (DeLong within hospitals, from bins of a hundredth),
                       sensitivity and specificity at ½ (Wilson), mean Dice (stratified). The truth is that of these
                       hospitals, with as many patients of each class as they have.
of hospitals at large  the mean over the population from which hospitals were drawn (REML, Hartung and Knapp): of Dice,
                       and of logit AUC, told as an AUC.
of a further one       how often the prediction interval holds the true figure of a hospital that is drawn as the
                       others were.

Intervals come from the functions from which a report has them, on counts and sums as sites tell them; what else a
report has (curves, calibration, resampling, sentences) is left out, so that thousands of federations take minutes. No
data are needed.
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
from scipy.special import expit, logit, ndtr

from eucaim_fl.config import ExperimentConfig
from eucaim_fl.plan import FederationPlan, make_plan
from eucaim_fl.seeding import generator
from eucaim_fl.validation.agreement import stratified_mean
from eucaim_fl.validation.analysis_between import between, main_figures
from eucaim_fl.validation.analysis_input import Asked, asked_of, moments_of, scores_of
from eucaim_fl.validation.analysis_scores import LEVEL
from eucaim_fl.validation.binned import auc_interval, bin_scores, edges_with, pooled_scores
from eucaim_fl.validation.record import ModelFigures
from eucaim_fl.validation.result_schema import BetweenSites
from eucaim_fl.validation.thresholds import at_threshold

FloatArray = NDArray[np.float64]
Limits = tuple[float | None, float | None]
LOW, HIGH = -0.7, 0.7  # means of the normal numbers of those without and with the disease
SHIFT, GAIN = 0.4, 0.3  # how far hospitals' own means lie apart: standard deviations
DICE, DICES = 0.75, (0.6, 0.85)
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
            "sensitivity": float(of_high @ ndtr(self.high)),
            "specificity": float(of_low @ ndtr(-self.low)),
            "dice": float(patients @ self.dice / patients.sum()),
        }


def at_large(*, apart: bool) -> dict[str, float]:
    """The means over all hospitals that could have been drawn: of logit AUC, as an AUC, and of Dice."""
    nodes, weights = np.polynomial.hermite_e.hermegauss(60)
    areas = ndtr((HIGH - LOW + apart * GAIN * nodes) / math.sqrt(2))
    return {
        "auc": float(expit(weights @ logit(areas) / weights.sum())),
        "dice": float(np.mean(DICES)) if apart else DICE,
    }


def plan_of(task: str, sites: Sequence[str]) -> FederationPlan:
    """A plan of a validation of one model."""
    recipe = {
        "name": "coverage", "sites": list(sites), "rounds": 1, "task": TASKS[task],
        "model": {"name": NETWORKS[task]}, "training": {"local_steps": 1},
    }  # fmt: skip
    plan = make_plan(ExperimentConfig.model_validate(recipe), tuple(sites)).model_dump()
    model = {
        "name": "frozen", "format": "onnx", "sha256": "0" * 64, "size_bytes": 1, "data": plan["data"],
        "intended_use": "none",
    }  # fmt: skip
    return FederationPlan.model_validate({**plan, "validation": {"models": [model]}})


def hospitals(rng: np.random.Generator, *, apart: bool, count: int) -> Hospitals:
    """Hospitals as the docstring of this file says."""
    patients = rng.integers(30, 151, count)
    diseased = np.rint(0.4 * patients).astype(np.int64)
    shift, gain = apart * rng.normal(0, SHIFT, count), apart * rng.normal(0, GAIN, count)
    dice = rng.uniform(*DICES, count) if apart else np.full(count, DICE)
    return Hospitals(patients - diseased, diseased, shift + LOW, shift + gain + HIGH, dice)


def told(of: Hospitals, rng: np.random.Generator) -> dict[str, dict[str, ModelFigures]]:
    """What these hospitals tell of patients drawn at random, by task and site."""
    edges = edges_with((0.5,), 100)
    figures: dict[str, dict[str, ModelFigures]] = {task: {} for task in TASKS}
    for k, site in enumerate(sites_of(len(of.dice))):
        truth = np.repeat([0, 1], [of.without[k], of.diseased[k]])
        scores = ndtr(rng.normal(np.where(truth == 1, of.high[k], of.low[k])))
        counts = bin_scores(scores, truth, edges)
        dice = rng.beta(6 * of.dice[k], 6 * (1 - of.dice[k]), len(truth))
        figures["classification"][site] = ModelFigures(scores={"yes": (counts.negative, counts.positive)})
        sums = (float(len(dice)), float(dice.sum()), float((dice**2).sum()))
        figures["segmentation"][site] = ModelFigures(moments={"dice": sums})
    return figures


def sites_of(count: int) -> tuple[str, ...]:
    """Names of so many hospitals."""
    return tuple(f"hospital_{k:02}" for k in range(count))


def limits(asked: Mapping[str, Asked], figures: Mapping[str, Mapping[str, ModelFigures]]) -> dict[str, Limits]:
    """The limits of every interval, as a report of these figures has them."""
    scores = scores_of(asked["classification"], list(figures["classification"].values()), "yes")
    pooled = pooled_scores(scores)
    decided = at_threshold(pooled, 0.5, level=LEVEL).figures
    dice = stratified_mean(moments_of(list(figures["segmentation"].values()), "dice"), LEVEL)
    area = auc_interval(pooled, LEVEL, scores)
    found: dict[str, Limits] = {
        "auc, of these hospitals": (area.low, area.high),
        "dice, of these hospitals": (dice.low, dice.high),
    }
    for name in ("sensitivity", "specificity"):
        found[f"{name}, of these hospitals"] = (decided[name].low, decided[name].high)
    for task, name in (("classification", "auc"), ("segmentation", "dice")):
        one: BetweenSites = between(asked[task], main_figures(asked[task])[0], figures[task], {})
        found[f"{name}, of hospitals at large"] = (one.low, one.high)
        found[f"{name}, of a further one"] = (one.prediction_low, one.prediction_high)
    return found


def coverage(federations: int, seed: int, *, apart: bool, count: int = 5) -> dict[str, float]:
    """The share of federations in which each interval holds the truth."""
    asked = {task: asked_of(plan_of(task, sites_of(count))) for task in TASKS}
    large = {f"{name}, of hospitals at large": value for name, value in at_large(apart=apart).items()}
    held: dict[str, int] = {}
    for number in range(federations):
        rng = generator(seed, "coverage", int(apart), number)
        of, further = hospitals(rng, apart=apart, count=count), hospitals(rng, apart=apart, count=1)
        truths = large | {f"{name}, of these hospitals": value for name, value in of.truths().items()}
        truths |= {f"{name}, of a further one": further.truths()[name] for name in ("auc", "dice")}
        for name, (low, high) in limits(asked, told(of, rng)).items():
            held[name] = held.get(name, 0) + (low is not None and high is not None and low <= truths[name] <= high)
    return {name: number / federations for name, number in held.items()}


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print, and write."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--federations", type=int, default=1000)
    parser.add_argument("--hospitals", type=int, default=5, help="of each federation; predictions need three")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path, help="where the figures are written")
    options = parser.parse_args(arguments)
    found = {}
    for name in ("alike", "apart"):
        found[name] = coverage(options.federations, options.seed, apart=name == "apart", count=options.hospitals)
        error = math.sqrt(0.95 * 0.05 / options.federations)
        many = f"{options.federations} federations of {options.hospitals}"
        print(f"hospitals {name}, {many} (± {100 * error:.1f} points by chance)")
        for figure, share in found[name].items():
            print(f"  {figure:<32} {100 * share:5.1f} %")
    if options.json is not None:
        told_of = {"federations": options.federations, "hospitals": options.hospitals, "coverage": found}
        options.json.write_text(json.dumps(told_of, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())

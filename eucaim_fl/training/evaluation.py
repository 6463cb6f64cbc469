"""A model on patients: per-patient results, and the summary that may leave a site."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import nn

from eucaim_fl.cohorts.cohort import PreparedCase
from eucaim_fl.config import TaskConfig
from eucaim_fl.plan import FederationPlan
from eucaim_fl.records import SiteMetrics, SplitName
from eucaim_fl.tasks import for_task
from eucaim_fl.validation.concordance import survival_summary
from eucaim_fl.validation.metrics import dice, hd95_mm
from eucaim_fl.validation.pooling import classification_summary, multilabel_summary, segmentation_summary

__all__ = ["PatientResults", "evaluate", "of_patients", "patient_results", "previews"]

PatientResults = dict[str, Any]
"""Patient → results: for segmentation {"dice": …, "hd95_mm": …}; for classification {"probabilities": (classes,),
"truth": class}; for a multi-label task {"probabilities": (targets,), "truth": (targets,)}, NaN where it is not known;
for survival {"log_risk": …, "time": …, "event": …}. These stay at the site."""


def _segmentation_of(case: PreparedCase, classes: NDArray[np.uint8], labels: tuple[str, ...]) -> dict[str, float]:
    truth = np.asarray(case.label())
    result: dict[str, float] = {}
    for index, name in enumerate(labels, start=1):
        here, there = classes == index, truth == index
        result[f"dice_{name}"] = dice(here, there)
        result[f"hd95_mm_{name}"] = hd95_mm(here, there, case.spacing_mm)
    for kind in ("dice", "hd95_mm"):
        values = [result[f"{kind}_{name}"] for name in labels]
        defined = [v for v in values if not np.isnan(v)]
        result[kind] = float(np.mean(defined)) if defined else float("nan")
    if len(labels) == 1:
        return {"dice": result["dice"], "hd95_mm": result["hd95_mm"]}
    return result


def _mean_of(results: Sequence[Mapping[str, float]]) -> dict[str, float]:
    keys = results[0].keys()
    out = {}
    for key in keys:
        defined = [r[key] for r in results if not np.isnan(r[key])]
        out[key] = float(np.mean(defined)) if defined else float("nan")
    return out


def patient_results(network: nn.Module, cases: Sequence[PreparedCase], plan: FederationPlan) -> PatientResults:
    """Results of every patient, in the order of first appearance; several cases of a patient are averaged.

    A metric that is not defined for a patient (an empty mask on both sides) is NaN.
    """
    network.eval()
    return of_patients(cases, for_task(plan.task).predictions(network, cases, plan), plan)


def of_patients(cases: Sequence[PreparedCase], predictions: Iterable[Any], plan: FederationPlan) -> PatientResults:
    """`patient_results` of what was predicted already. predictions: one a case, as the task's `predictions` gives."""
    collected: dict[str, list[Any]] = defaultdict(list)
    last: dict[str, PreparedCase] = {}
    for case, prediction in zip(cases, predictions, strict=True):
        if plan.task.name == "segmentation":
            collected[case.patient].append(_segmentation_of(case, prediction, plan.task.labels))
        else:
            collected[case.patient].append(prediction)
            last[case.patient] = case
    if plan.task.name == "segmentation":
        return {patient: _mean_of(results) for patient, results in collected.items()}
    return {
        patient: _of_patient(np.mean(rows, axis=0), last[patient], plan.task) for patient, rows in collected.items()
    }


def _of_patient(predicted: NDArray[np.float64], case: PreparedCase, task: TaskConfig) -> dict[str, Any]:
    """What was predicted of a patient's images, beside what is so."""
    if task.name == "survival":
        time, event = case.targets
        return {"log_risk": float(predicted[0]), "time": time, "event": event > 0}
    if task.name == "multilabel":
        return {"probabilities": predicted, "truth": np.array(case.targets, dtype=np.float64)}
    return {"probabilities": predicted, "truth": int(case.target if case.target is not None else -1)}


def evaluate(
    network: nn.Module,
    cases: Sequence[PreparedCase],
    plan: FederationPlan,
    split: SplitName,
    *,
    histograms: bool = False,
) -> SiteMetrics:
    """Summary of a model over one split's patients; see `validation.pooling` for what it holds."""
    results = list(patient_results(network, cases, plan).values())
    task = plan.task
    if task.name == "segmentation":
        return segmentation_summary(split, results)
    if task.name == "survival":
        risk, time, event = (np.array([one[name] for one in results]) for name in ("log_risk", "time", "event"))
        return survival_summary(split, risk, time, event)
    probabilities, truth = (np.stack([one[name] for one in results]) for name in ("probabilities", "truth"))
    if task.name == "multilabel":
        return multilabel_summary(split, probabilities, truth, task.targets, histograms=histograms)
    return classification_summary(split, probabilities, truth, histograms=histograms)


def previews(network: nn.Module, cases: Sequence[PreparedCase], plan: FederationPlan, count: int) -> NDArray[np.uint8]:
    """Pictures (n, H, W, 3) of the first `count` patients' predictions; all padded to one size."""
    network.eval()
    task = for_task(plan.task)
    firsts = list({case.patient: case for case in reversed(cases)}.values())[::-1][:count]
    pictures = [task.preview(case, task.predict(network, case, plan), plan.data) for case in firsts]
    height, width = (max((p.shape[axis] for p in pictures), default=1) for axis in (0, 1))
    out = np.zeros((len(pictures), height, width, 3), dtype=np.uint8)
    for slot, image in zip(out, pictures, strict=True):
        slot[: image.shape[0], : image.shape[1]] = image
    return out

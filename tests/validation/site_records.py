"""Records as sites make them of their patients, for tests of the analysis."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from eucaim_fl.config import ExperimentConfig
from eucaim_fl.plan import FederationPlan, make_plan
from eucaim_fl.validation.binned import bin_scores, edges_with
from eucaim_fl.validation.concordance import compared
from eucaim_fl.validation.metrics import confusion
from eucaim_fl.validation.pairs import delong_pair
from eucaim_fl.validation.record import EVERYBODY, ModelFigures, PairFigures, ScopeRecord, ValidationRecord

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]
Moments = tuple[float, float, float]

TASKS: dict[str, dict[str, Any]] = {
    "classification": {"name": "classification", "target": "cancer", "classes": ["no", "yes"]},
    "three": {"name": "classification", "target": "grade", "classes": ["low", "middle", "high"]},
    "multilabel": {"name": "multilabel", "targets": ["oedema", "nodule"]},
    "segmentation": {"name": "segmentation", "spatial_dims": 2, "labels": ["lesion"]},
    "organs": {"name": "segmentation", "spatial_dims": 2, "labels": ["liver", "lesion"]},
    "survival": {"name": "survival", "spatial_dims": 2, "time": "days", "event": "died"},
}
_NETWORKS = {"segmentation": "unet", "classification": "resnet", "multilabel": "resnet", "survival": "resnet"}


def plan_for(task: str, sites: Sequence[str], *, models: int = 1, **validation: Any) -> FederationPlan:
    """A plan of a validation over sites; `validation` changes its part."""
    recipe: dict[str, Any] = {
        "name": "frozen",
        "sites": list(sites),
        "rounds": 1,
        "task": TASKS[task],
        "model": {"name": _NETWORKS[TASKS[task]["name"]]},
        "training": {"local_steps": 1},
    }
    plan = make_plan(ExperimentConfig.model_validate(recipe), tuple(sites)).model_dump()
    contract = {"format": "onnx", "sha256": "0" * 64, "size_bytes": 1, "data": plan["data"], "intended_use": "test"}
    part = {"models": [{"name": f"model-{k + 1}", **contract} for k in range(models)], "bootstrap_samples": 200}
    return FederationPlan.model_validate({**plan, "validation": {**part, **validation}})


def moments(values: FloatArray) -> Moments:
    """(n, Σx, Σx²) of those values that are defined."""
    defined = values[~np.isnan(values)]
    return float(len(defined)), float(defined.sum()), float((defined**2).sum())


def decided(plan: FederationPlan, scores: FloatArray, truth: IntArray) -> ModelFigures:
    """What a model with two classes got. scores: shape (n,); truth: shape (n,), 0 or 1."""
    edges = edges_with(plan.validation.thresholds, plan.validation.bins) if plan.validation else ()
    counts = bin_scores(scores, truth, edges)
    matrix = confusion((scores > 0.5).astype(np.int64), truth, 2)
    return ModelFigures(
        scores={plan.task.classes[1]: (counts.negative, counts.positive)},  # type: ignore[union-attr]
        confusion=tuple(matrix.ravel().tolist()),
        moments={"brier": moments((scores - truth) ** 2)},
    )


def compared_models(plan: FederationPlan, first: FloatArray, second: FloatArray, truth: IntArray) -> PairFigures:
    """Two models with two classes on the same patients."""
    right = [(scores >= threshold) == (truth == 1) for scores in (first, second) for threshold in _first(plan)]
    tables = {}
    for name, members in (("with", truth == 1), ("without", truth == 0)):
        one, two = right[0][members], right[1][members]
        cells = (one & two, one & ~two, ~one & two, ~one & ~two)
        tables[f"{_first(plan)[0]:g} {name}"] = tuple(int(cell.sum()) for cell in cells)
    found = delong_pair(first, second, truth)
    errors = (first - truth) ** 2 - (second - truth) ** 2
    area = {} if np.isnan(found.variance) else {plan.task.classes[1]: (found.value, found.variance)}  # type: ignore[union-attr]
    return PairFigures(agreement=tables, differences={"brier": moments(errors)}, auc=area)  # type: ignore[arg-type]


def _first(plan: FederationPlan) -> tuple[float, ...]:
    return plan.validation.thresholds[:1] if plan.validation else ()


def measured(values: Mapping[str, FloatArray], **more: Any) -> ModelFigures:
    """What a segmentation model got: metric → value of each patient, NaN where not defined."""
    undefined = {name: int(np.isnan(column).sum()) for name, column in values.items()}
    return ModelFigures(
        moments={name: moments(column) for name, column in values.items()},
        undefined={name: count for name, count in undefined.items() if count},
        **more,
    )


def ordered(log_risk: FloatArray, time: FloatArray, event: NDArray[np.bool_]) -> ModelFigures:
    """What a survival model got."""
    events = int(event.sum())
    return ModelFigures(concordance=(len(time) - events, events, *map(float, compared(log_risk, time, event))))


def record(
    plan: FederationPlan, site: str, scopes: Mapping[str, ScopeRecord] | ScopeRecord, **more: Any
) -> ValidationRecord:
    """The record of a site; of everybody only, if one scope is given."""
    every = (scopes,) if isinstance(scopes, ScopeRecord) else tuple(scopes.values())
    return ValidationRecord(site, plan.sha256(), every, **more)


def whole(patients: int, *models: ModelFigures, pair: PairFigures | None = None) -> ScopeRecord:
    """All patients of a site."""
    return ScopeRecord(EVERYBODY, patients, models, pair)

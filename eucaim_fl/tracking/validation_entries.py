"""A finished validation as MLflow shows it: parameters of what was asked, metrics and tags of what was found.

Metrics by their keys, all of step 0; `_low` and `_high` behind a key are the limits of its interval:

    <model>/patients  <model>/auc               all patients of all sites
    <model>/<label>/auc                         of a label or class, where there are several
    <model>/site/<site>/auc                     a site's own
    <model>/between/sites/auc                   the mean over sites; `_prediction_low` and `_high`: of one more
    <model>/against/<other>/auc                 first − second; `_margin`, `_p`, `_p_adjusted`

`sensitivity@0.5` is called `sensitivity_at_0.5`, since MLflow takes no `@`; what else it does not take is `_` in a
label. What has no value is no metric: the tag `not_logged` names it with the reason. Groups of patients are in
report.json only.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from eucaim_fl.errors import DataError, JournalError
from eucaim_fl.plan import FederationPlan
from eucaim_fl.validation.analysis_input import Asked, asked_of, label_of
from eucaim_fl.validation.record import EVERYBODY
from eucaim_fl.validation.result_schema import (
    BetweenSites,
    ComparisonResult,
    Figure,
    ModelResult,
    ScopeResult,
    ValidationResult,
)

__all__ = ["Entries", "read_result", "validation_entries", "validation_params"]

_LONGEST_TAG = 4000
_UNKNOWN = "no value"
_ILLEGAL = re.compile(r"[^A-Za-z0-9_. -]")


@dataclass(frozen=True)
class Entries:
    """What is logged of a result: keys of metrics with finite values, and tags."""

    metrics: Mapping[str, float]
    tags: Mapping[str, str]


def read_result(folder: Path, plan: FederationPlan) -> ValidationResult:
    """The result in a run folder's report.json.

    Raises JournalError if it can't be read, or is of another plan.
    """
    fix = "Remove report.json and result.json, and resume the run: both are made from its journal."
    try:
        told = json.loads((folder / "report.json").read_text(encoding="utf-8"))["result"]
        result = ValidationResult.model_validate_json(json.dumps(told))
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        raise JournalError("The run's report.json can't be read.", fix=fix, local_detail=str(folder)) from None
    if result.plan_sha256 != plan.sha256():
        raise JournalError("The run's report.json is of another plan.", fix=fix, local_detail=str(folder))
    return result


def validation_params(plan: FederationPlan) -> dict[str, Any]:
    """What was asked, as nested values: the models by their roles, patients, thresholds, sites, the plan's hash.

    How a model takes its input stands in plan.json. Raises DataError if the plan trains.
    """
    if plan.validation is None:
        raise DataError("The plan asks for no validation.", fix="Take the plan of the validation's own run.")
    asked = plan.validation.model_dump(mode="json")
    models = zip(("model", "against"), asked.pop("models"), strict=False)
    return {
        "name": plan.name,
        "plan_sha256": plan.sha256(),
        "task": plan.task.model_dump(mode="json"),
        "sites": list(plan.sites),
        "seed": plan.seed,
        **{role: {k: v for k, v in one.items() if k not in ("data", "network")} for role, one in models},
        **asked,
    }


def validation_entries(plan: FederationPlan, result: ValidationResult) -> Entries:
    """Metrics and tags of a result of this plan. Raises DataError if the plan trains."""
    keys = _Keys(asked_of(plan))
    told: list[_Told] = []
    for model in result.models:
        told += _of_model(model, keys)
    names = [model.name for model in result.models]
    for one in result.comparisons:
        told += _of_comparison(one, "/against/".join(names[:2]), keys)
    metrics = {key: value for key, value, _ in told if value is not None and math.isfinite(value)}
    missing = {key: reason or _UNKNOWN for key, value, reason in told if key not in metrics}
    tags = {**_verdicts(result), **{f"comparison.{keys.of(c.figure)}": _outcome(c) for c in result.comparisons}}
    tags |= {f"label.{part}": label for label, part in keys.parts.items() if part != label}
    if missing:
        tags["not_logged"] = _listed(f"{key}: {reason}" for key, reason in missing.items())
    return Entries(metrics, {name: _clipped(words) for name, words in tags.items() if words})


# One key with its value, or with the reason why it has none.
_Told = tuple[str, float | None, str]


class _Keys:
    """Names of figures in keys of metrics."""

    def __init__(self, asked: Asked) -> None:
        self._asked = asked
        self.parts: dict[str, str] = {}
        for label in dict.fromkeys((*asked.names, *asked.moment_labels, *getattr(asked.config, "classes", ()))):
            legal = _ILLEGAL.sub("_", label).strip(" .")
            while label and (not legal or legal in self.parts.values()):
                legal += "_"
            self.parts[label] = legal

    def of(self, figure: str) -> str:
        """A figure's name as the last parts of a key.

        The label stands in front, as a part of its own: behind, it could be taken for a limit.
        """
        metric, label = label_of(self._asked, figure)
        name = _ILLEGAL.sub("_", metric.replace("@", "_at_"))
        return f"{self.parts[label]}/{name}" if self.parts.get(label) else name


def _of_model(model: ModelResult, keys: _Keys) -> Iterator[_Told]:
    whole: ScopeResult | None = next((scope for scope in model.scopes if scope.scope == EVERYBODY), None)
    if whole is None:
        return
    yield f"{model.name}/patients", float(whole.patients), ""
    yield from _of_figures(model.name, whole.figures, keys)
    for site in whole.sites:
        place = f"{model.name}/site/{site.site}"
        yield f"{place}/patients", None if site.patients is None else float(site.patients), f"withheld, {site.withheld}"
        yield from _of_figures(place, site.figures, keys)
    for one in whole.between:
        yield from _of_sites(one, f"{model.name}/between/sites/{keys.of(one.figure)}")


def _of_figures(place: str, figures: Mapping[str, Figure], keys: _Keys) -> Iterator[_Told]:
    for name, figure in figures.items():
        key = f"{place}/{keys.of(name)}"
        yield key, figure.value, figure.reason
        if figure.value is not None:
            yield f"{key}_low", figure.low, figure.reason
            yield f"{key}_high", figure.high, figure.reason


def _of_sites(one: BetweenSites, key: str) -> Iterator[_Told]:
    yield key, one.value, one.reason
    if one.value is None:
        return
    for behind, value in (("low", one.low), ("high", one.high)):
        yield f"{key}_{behind}", value, one.reason
    for behind, value in (("prediction_low", one.prediction_low), ("prediction_high", one.prediction_high)):
        yield f"{key}_{behind}", value, one.reason or "from three sites on"


def _of_comparison(one: ComparisonResult, place: str, keys: _Keys) -> Iterator[_Told]:
    key = f"{place}/{keys.of(one.figure)}"
    yield key, one.difference, one.reason
    if one.difference is None:
        return
    for behind, value in (("low", one.low), ("high", one.high), ("p", one.p), ("p_adjusted", one.p_adjusted)):
        yield f"{key}_{behind}", value, one.reason
    if one.margin is not None:
        yield f"{key}_margin", one.margin, ""


def _outcome(one: ComparisonResult) -> str:
    if one.margin is None:
        return one.sentence or one.reason or "no margin"
    return ": ".join(filter(None, (one.outcome and one.outcome.replace("_", " "), one.sentence or one.reason)))


def _verdicts(result: ValidationResult) -> dict[str, str]:
    """The first page's sentences: `verdict` says whether it works, the others behind a dot the rest."""
    found: dict[str, list[str]] = {}
    for one in result.verdicts:
        name = "verdict" if one.question == "does_it_work" else f"verdict.{one.question}"
        found.setdefault(name, []).append(one.sentence)
    names = [model.name for model in result.models]
    return {"models": " against ".join(names), **{name: " ".join(told) for name, told in found.items()}}


def _listed(words: Iterable[str]) -> str:
    """Words in a row; of more than a tag holds, the first and how many follow."""
    told = list(words)
    kept, length = [], 0
    for one in told:
        length += len(one) + 2
        if length > _LONGEST_TAG - 100:
            break
        kept.append(one)
    more = len(told) - len(kept)
    return "; ".join(kept) + (f"; {more} more, see report.json" if more else "")


def _clipped(words: str) -> str:
    return words if len(words) <= _LONGEST_TAG else f"{words[: _LONGEST_TAG - 1]}…"

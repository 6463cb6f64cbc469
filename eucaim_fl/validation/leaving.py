"""What can leave a site at most under a validation's plan: each kind of figure, how fine, and how much of it. Pure.

A site withholds and rounds further by its own rules; more than this its gate lets no record hold.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass

from eucaim_fl.errors import DataError
from eucaim_fl.plan import FederationPlan
from eucaim_fl.validation.edges import edges_with
from eucaim_fl.validation.groups import possible_groups
from eucaim_fl.validation.record import (
    EVERYBODY,
    ModelFigures,
    PairFigures,
    ScopeRecord,
    ValidationRecord,
    agreement_key,
    moment_ranges,
    score_names,
)
from eucaim_fl.validation_config import ValidationConfig

__all__ = ["KindOfFigure", "Leaving", "leaving"]

_COUNT = 2**53
_NUMBER = -1.2345678901234567e-300
_REASONS, _LONGEST_REASON = 32, 32
_PAIRS = 5
_ABOUT = 2048
"""Bytes of a report beside its record: site, plan, numbers of patients, hash of the cohort, seconds."""


@dataclass(frozen=True)
class KindOfFigure:
    """One kind of figure. finest: how fine it is at most. numbers: most of it in one scope, all models together."""

    figure: str
    finest: str
    numbers: int


@dataclass(frozen=True)
class Leaving:
    """All that one site can tell. scopes: everybody, and each group that patients can be in. numbers: most of all
    scopes together, with those of failed images. record_bytes: most of the message's text."""

    kinds: tuple[KindOfFigure, ...]
    scopes: tuple[str, ...]
    numbers: int
    record_bytes: int


def leaving(plan: FederationPlan) -> Leaving:
    """What a site can tell at most of a plan's models.

    Raises DataError for a plan that asks for no validation.
    """
    asked = plan.validation
    if asked is None:
        raise DataError("The plan asks for no validation.")
    scopes = (EVERYBODY, *(name for rule in asked.subgroups for name in possible_groups(rule)))
    largest = _largest(plan, asked, scopes)
    kinds = [KindOfFigure("number of patients", "whole; multiples of a base for confidential data", 1)]
    first, models = largest.scopes[0].models[0], len(asked.models)
    bins = len(edges_with(asked.thresholds, asked.bins)) - 1
    at = ", ".join(f"{one:g}" for one in asked.thresholds)
    if first.scores:
        kinds.append(
            KindOfFigure(
                "scores of patients with and without it",
                f"patients in each of {bins} intervals of the probability (exact at the thresholds {at})",
                models * sum(len(side) for sides in first.scores.values() for side in sides),
            )
        )
    if first.confusion:
        kinds.append(
            KindOfFigure("true against likeliest class", "patients in each cell", models * len(first.confusion))
        )
    if first.moments:
        names = ", ".join(first.moments)
        kinds.append(
            KindOfFigure(
                names,
                "number of patients, sum and sum of squares over all of them; how many have no such figure",
                models * (3 * len(first.moments) + len(first.undefined)),
            )
        )
    if first.lesions:
        kinds.append(
            KindOfFigure("lesions", "true, found and false ones over all patients", models * 4 * len(first.lesions))
        )
    if first.concordance:
        kinds.append(
            KindOfFigure(
                "order of events", "patients with and without the event; pairs over all patients", models * _PAIRS
            )
        )
    if (pair := largest.scopes[0].pair) is not None:
        numbers = 4 * len(pair.agreement) + 3 * len(pair.differences) + 2 * len(pair.auc)
        kinds.append(
            KindOfFigure("the two models on the same patients", "patients, and sums of differences over them", numbers)
        )
    numbers = len(scopes) * sum(kind.numbers for kind in kinds) + _REASONS
    return Leaving(tuple(kinds), scopes, numbers, len(json.dumps(asdict(largest))) + _ABOUT)


def _largest(plan: FederationPlan, asked: ValidationConfig, scopes: tuple[str, ...]) -> ValidationRecord:
    """A record that holds everything that the plan asks for, in numbers as long as they can be written."""
    task, names, metrics = plan.task, score_names(plan.task), tuple(moment_ranges(plan.task))
    side = (_COUNT,) * (len(edges_with(asked.thresholds, asked.bins)) - 1)
    moments = dict.fromkeys(metrics, (float(_COUNT), _NUMBER, _NUMBER))
    figures = ModelFigures(
        scores=dict.fromkeys(names, (side, side)),
        confusion=(_COUNT,) * (len(task.classes) ** 2 if task.name == "classification" else 0),
        moments=moments,
        lesions=dict.fromkeys(task.labels, (_COUNT,) * 4) if task.name == "segmentation" else {},
        concordance=(_NUMBER,) * (_PAIRS if task.name == "survival" else 0),
        undefined=dict.fromkeys(metrics, _COUNT),
    )
    pair = None
    if len(asked.models) > 1:
        places = [(threshold, name) for name in names for threshold in asked.thresholds]
        keys = [agreement_key(task, threshold, "with", name) for threshold, name in places]
        keys += [agreement_key(task, threshold, "without", name) for threshold, name in places]
        pair = PairFigures(
            agreement=dict.fromkeys(keys, (_COUNT,) * 4),
            differences=moments,
            auc=dict.fromkeys(names, (_NUMBER, _NUMBER)),
        )
    told = tuple(ScopeRecord(scope, _COUNT, (figures,) * len(asked.models), pair, "too_few") for scope in scopes)
    failed = {f"{number:0{_LONGEST_REASON}}": _COUNT for number in range(_REASONS)}
    return ValidationRecord(max(plan.sites, key=len), plan.sha256(), told, failed)

"""What a validation tells of one site: sums that add up over sites, of all its patients and of groups of them."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, cast

from eucaim_fl.config import TaskConfig
from eucaim_fl.errors import ReplyError
from eucaim_fl.plan import FederationPlan
from eucaim_fl.validation.concordance import check_concordance
from eucaim_fl.validation.edges import edges_with
from eucaim_fl.validation.groups import possible_groups
from eucaim_fl.validation_config import ValidationConfig

__all__ = [
    "EVERYBODY",
    "TOO_FEW",
    "ModelFigures",
    "PairFigures",
    "ScopeRecord",
    "ValidationRecord",
    "agreement_key",
    "check_record",
    "moment_ranges",
    "score_names",
]

EVERYBODY = "all"
"""The scope of all patients; others are named by their group, e.g. `sex=F` or `age=50-70`."""

TOO_FEW = "too_few"
"""The one reason for withholding a scope: nobody, few people, or few whom it would tell apart from others. They look
the same, since else the reason would count people."""

_LARGEST = 2.0**53  # beyond it sums are not exact
_ROUNDING = 1e-9
_DATA = ("", "confidential", "public", "synthetic")
_REASON = re.compile(r"[a-z][a-z0-9_]{0,31}")
_MOST_REASONS = 32
_MOST_PLANS = 1_000_000
_MOST_TWICE = 2.25
_FIX = "Leave this site's record out, and see that it runs the same version of the software."
_UNBOUNDED = math.inf


@dataclass(frozen=True)
class ModelFigures:
    """What one model got on the patients of a scope.

    scores: class or label → counts of patients in the bins of their probability, those without and those with it; the
    edges are `binned.edges_with(plan.validation.thresholds, plan.validation.bins)`. Of two classes only the positive
    one is there. confusion: row by row, truth by the likeliest class, of a classification. moments: metric → number of
    patients for whom it is defined, Σ and Σ² of their values: `brier`; of a segmentation `dice`, `hd95_mm`,
    `surface_dice` and `volume_difference_ml` (found − true), with `_LABEL` where there are several labels.
    lesions: label → number of true lesions, of
    those found, of false ones, and of patients they were counted in. concordance: pairs of a survival task as
    `concordance.survival_summary` counts them. undefined: metric → patients for whom it is not defined, such as Dice
    where nothing is there and nothing was found; none left out is no entry.
    """

    scores: Mapping[str, tuple[tuple[int, ...], tuple[int, ...]]] = field(default_factory=dict)
    confusion: tuple[int, ...] = ()
    moments: Mapping[str, tuple[float, float, float]] = field(default_factory=dict)
    lesions: Mapping[str, tuple[int, int, int, int]] = field(default_factory=dict)
    concordance: tuple[float, ...] = ()
    undefined: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class PairFigures:
    """Two models on the same patients: the first against the second.

    agreement: threshold as it is written in the plan (`%g`) and class (`with` or `without` the disease), see
    `agreement_key` → numbers of patients of whom both were right, only the first, only the second, neither.
    differences: metric → number, Σ and Σ²
    of first − second. auc: class or label → difference of the AUCs and its variance (DeLong), as the site computed it.
    """

    agreement: Mapping[str, tuple[int, int, int, int]] = field(default_factory=dict)
    differences: Mapping[str, tuple[float, float, float]] = field(default_factory=dict)
    auc: Mapping[str, tuple[float, float]] = field(default_factory=dict)


@dataclass(frozen=True)
class ScopeRecord:
    """Figures of one group of patients, in the order of the plan's models. patients: who has an answer of every model.
    withheld: why there are no figures; then there is no number of patients either."""

    scope: str
    patients: int
    models: tuple[ModelFigures, ...] = ()
    pair: PairFigures | None = None
    withheld: str = ""


@dataclass(frozen=True)
class ValidationRecord:
    """All that one site tells. scopes: `all` first, then the groups of the plan's rules in their order (see
    `groups.possible_groups`). failed: images of which a model gave no answer, by reason (a word in small letters).
    told_before: under how many other plans this site has let out figures of one of the plan's models, by the SHA-256 of
    its file. data_is: what the site file calls the patients' data; empty if that was not told."""

    site: str
    plan_sha256: str
    scopes: tuple[ScopeRecord, ...]
    failed: Mapping[str, int] = field(default_factory=dict)
    told_before: int = 0
    data_is: Literal["", "confidential", "public", "synthetic"] = ""


# --- names that a plan asks for ---------------------------------------------------------------------------------------


def score_names(task: TaskConfig) -> tuple[str, ...]:
    """Whose scores are counted: the positive one of two classes, all of more, each label; nobody's in other tasks."""
    if task.name == "classification":
        return task.classes[1:] if len(task.classes) == 2 else task.classes
    return task.targets if task.name == "multilabel" else ()


def moment_ranges(task: TaskConfig) -> dict[str, tuple[float, float]]:
    """Metric → the least and the most that one patient's value can be, of all whose moments a record may hold."""
    if task.name == "classification":
        return {"brier": (0.0, 1.0 if len(task.classes) == 2 else 2.0)}
    if task.name == "multilabel":
        return {f"brier_{label}": (0.0, 1.0) for label in task.targets}
    if task.name != "segmentation":
        return {}
    one = {
        "dice": (0.0, 1.0),
        "hd95_mm": (0.0, _UNBOUNDED),
        "surface_dice": (0.0, 1.0),
        "volume_difference_ml": (-_UNBOUNDED, _UNBOUNDED),
    }
    if len(task.labels) == 1:
        return one
    return one | {f"{name}_{label}": span for label in task.labels for name, span in one.items()}


def agreement_key(task: TaskConfig, threshold: float, side: Literal["with", "without"], name: str) -> str:
    """What a paired table is called. name: whose score; it is left out where there is only one.

    >>> from eucaim_fl.task_config import ClassificationConfig, MultilabelConfig
    >>> agreement_key(ClassificationConfig(target="dx", classes=("no", "yes")), 0.5, "with", "yes")
    '0.5 with'
    >>> agreement_key(MultilabelConfig(targets=("oedema", "mass")), 0.25, "without", "mass")
    '0.25 without mass'
    """
    key = f"{threshold:g} {side}"
    return key if len(score_names(task)) == 1 else f"{key} {name}"


# --- what arrives -----------------------------------------------------------------------------------------------------


def check_record(record: ValidationRecord, plan: FederationPlan) -> None:
    """Whether a record is one that a site can have told of this plan; ask it for each that arrives.

    Looked at: plan and site; a possible number of plans before; the scopes' names, order and numbers of patients;
    that withheld ones hold nothing; one set of figures a model; only names that the plan asks for, in the agreed
    length; counts that are whole and those of the scope's patients, of both models alike; that row sums of the
    confusion counts, scores and paired tables are of the same patients; sums that so many patients can have. Sites
    that round counts of people pass, since they do so for all figures of a scope alike. What patients had no answer
    can't be checked, nor whether figures are true.
    Raises ReplyError if anything is otherwise; its text quotes nothing of the record.
    """
    asked = plan.validation
    if asked is None:
        raise _wrong("A record of a validation belongs to a plan that asks for none")
    if record.plan_sha256 != plan.sha256() or record.site not in plan.sites:
        raise _wrong("The record is of another plan, or of a site that the plan does not name")
    reasons = record.failed
    if len(reasons) > _MOST_REASONS or not all(isinstance(r, str) and _REASON.fullmatch(r) for r in reasons):
        raise _wrong("A reason why images have no answer is no word of the agreed form")
    _counts(tuple(reasons.values()), "failed images")
    if _counts((record.told_before,), "earlier plans") > _MOST_PLANS or record.data_is not in _DATA:
        raise _wrong("The record says of its data, or of plans before, what can't be")
    names = [scope.scope for scope in record.scopes]
    known = [EVERYBODY, *(name for rule in asked.subgroups for name in possible_groups(rule))]
    if names[:1] != [EVERYBODY] or names != [name for name in known if name in set(names)]:
        raise _wrong("Scopes are not everybody and then groups of the plan, each once and in its order")
    for scope in record.scopes:
        _check_scope(scope, plan.task, asked)
    whole = record.scopes[0].patients
    if any(scope.patients > whole for scope in record.scopes):
        raise _wrong("A group has more patients than there are")
    for rule in asked.subgroups if plan.task.name != "multilabel" else ():
        # numbers on a base are at most half above the truth in a group, and a third below it in the whole
        told = sum(scope.patients for scope in record.scopes if scope.scope in possible_groups(rule))
        if told > _MOST_TWICE * whole:
            raise _wrong("Groups that do not overlap have more patients together than there are")


def _check_scope(scope: ScopeRecord, task: TaskConfig, asked: ValidationConfig) -> None:
    if scope.withheld not in ("", TOO_FEW):
        raise _wrong("A reason for withholding is not on the list")
    _counts((scope.patients,), "patients")
    if scope.withheld:
        if scope.patients or scope.models or scope.pair is not None:
            raise _wrong("A scope was called withheld, and told of")
        return
    if not scope.patients or len(scope.models) != len(asked.models):
        raise _wrong("A scope has no patients, or not one set of figures for each model")
    for figures in scope.models:
        _check_model(figures, scope.patients, task, asked)
    if len({tuple(_sides(one).items()) for one in scope.models}) > 1:
        raise _wrong("Two models were measured on patients of different classes")
    if len({tuple(one.concordance[:2]) for one in scope.models}) > 1:
        raise _wrong("Two models were measured on patients with different events")
    if scope.pair is not None:
        if len(asked.models) != 2:
            raise _wrong("There is a comparison, but no second model")
        _check_pair(scope.pair, scope, task, asked)


def _check_model(figures: ModelFigures, patients: int, task: TaskConfig, asked: ValidationConfig) -> None:
    _only(figures.scores, score_names(task))
    bins = len(edges_with(asked.thresholds, asked.bins)) - 1
    for sides in figures.scores.values():
        if len(sides) != 2 or any(len(side) != bins for side in sides):
            raise _wrong("Scores were counted in other bins than the plan's")
        total = _counts((*sides[0], *sides[1]), "scores")
        if total > patients or (task.name == "classification" and total != patients):
            raise _wrong("The scores are not those of the scope's patients")
    _check_confusion(figures, patients, task)
    ranges = moment_ranges(task)
    _only(figures.moments, ranges)
    _only(figures.undefined, figures.moments)
    _counts(tuple(figures.undefined.values()), "patients without a figure")
    for name, numbers in figures.moments.items():
        defined = _check_moments(numbers, patients, ranges[name])
        if task.name != "multilabel" and defined + figures.undefined.get(name, 0) != patients:
            raise _wrong("Patients with and without a figure are not those of the scope")
    _check_labels(figures, task)
    _check_lesions(figures, patients, task)
    if figures.concordance:
        if task.name != "survival":
            raise _wrong("There are pairs of a task that asks for none")
        if not all(map(_number, figures.concordance)):
            raise _wrong("A number is not finite, or absurdly large")
        check_concordance(figures.concordance, patients)


def _check_confusion(figures: ModelFigures, patients: int, task: TaskConfig) -> None:
    if not figures.confusion:
        return
    side = len(task.classes) if task.name == "classification" else 0
    if len(figures.confusion) != side * side:
        raise _wrong("The confusion counts have the wrong size")
    if _counts(figures.confusion, "confusion") != patients or task.name != "classification":
        raise _wrong("The confusion counts are not those of the scope's patients")
    for k, name in enumerate(task.classes):
        row = sum(figures.confusion[k * side : (k + 1) * side])
        if name in figures.scores and sum(figures.scores[name][1]) != row:
            raise _wrong("Confusion counts and scores are of different patients")


def _check_labels(figures: ModelFigures, task: TaskConfig) -> None:
    for label in task.targets if task.name == "multilabel" else ():
        moments = figures.moments.get(f"brier_{label}")
        missing = figures.undefined.get(f"brier_{label}", 0)
        if missing or (moments and label in figures.scores and moments[0] != sum(map(sum, figures.scores[label]))):
            raise _wrong("A label's figures are of different patients")


def _check_lesions(figures: ModelFigures, patients: int, task: TaskConfig) -> None:
    _only(figures.lesions, task.labels if task.name == "segmentation" else ())
    for counts in figures.lesions.values():
        if len(counts) != 4:
            raise _wrong("Lesions have the wrong number of counts")
        _counts(counts, "lesions")
        true, found, false, counted = counts
        if found > true or counted > patients or (not counted and (true or false)):
            raise _wrong("No patients have such lesions")


def _check_pair(pair: PairFigures, scope: ScopeRecord, task: TaskConfig, asked: ValidationConfig) -> None:
    sides = {name: side for one in scope.models for name, side in _sides(one).items()}
    places: dict[str, tuple[str, int]] = {}
    for name in score_names(task):
        for threshold in asked.thresholds:
            places[agreement_key(task, threshold, "without", name)] = name, 0
            places[agreement_key(task, threshold, "with", name)] = name, 1
    _only(pair.agreement, places)
    for key, counts in pair.agreement.items():
        name, side = places[key]
        if len(counts) != 4:
            raise _wrong("A paired table does not have four counts")
        total = _counts(counts, "a paired table")
        if total > scope.patients or (name in sides and total != sides[name][side]):
            raise _wrong("A paired table is not of the scope's patients")
    ranges = moment_ranges(task)
    _only(pair.differences, ranges)
    for name, numbers in pair.differences.items():
        low, high = ranges[name]
        _check_moments(numbers, scope.patients, (low - high, high - low))
    _only(pair.auc, score_names(task))
    for auc in pair.auc.values():
        if len(auc) != 2 or not all(map(_number, auc)) or abs(auc[0]) > 1 or not 0 <= auc[1] <= 1:
            raise _wrong("A difference of AUCs, or its variance, is out of its range")


def _check_moments(numbers: Sequence[float], patients: int, span: tuple[float, float]) -> int:
    """The number of patients, of (n, Σx, Σx²) that so many values in a range can have."""
    if len(numbers) != 3 or not all(map(_number, numbers)):
        raise _wrong("Moments are not a number, a sum and a sum of squares, all finite")
    n, total, squares = numbers
    if _counts((n,), "patients with a figure") > patients:
        raise _wrong("A figure is of more patients than there are")
    room, (low, high) = _ROUNDING * (1 + n + abs(total) + squares), span
    possible = squares >= 0 and total * total <= n * squares * (1 + _ROUNDING) + room
    possible &= not n * low > total + room and not n * high < total - room if n else total == squares == 0
    if math.isfinite(low) and math.isfinite(high):
        possible &= squares <= (low + high) * total - n * low * high + room  # all at the ends of the range
    if not possible:
        raise _wrong("No patients have such moments")
    return int(n)


def _sides(figures: ModelFigures) -> dict[str, tuple[int, int]]:
    """Score's name → patients without and with it."""
    return {name: (sum(sides[0]), sum(sides[1])) for name, sides in sorted(figures.scores.items())}


def _only(given: Mapping[str, object], asked: Mapping[str, object] | Sequence[str]) -> None:
    if not set(given) <= set(asked):
        raise _wrong("There is a figure by a name that the plan does not ask for")


def _number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= _LARGEST


def _counts(values: Sequence[object], what: str) -> int:
    """The sum of counts that are whole and not negative."""
    if set(map(type, values)) == {int}:  # as nearly all are: quicker than one by one
        whole = cast("Sequence[int]", values)
        if min(whole) >= 0 and max(whole) <= _LARGEST:
            return sum(whole)
    if not all(_number(value) and float(value).is_integer() and value >= 0 for value in values):  # type: ignore[arg-type, operator]
        raise _wrong(f"Counts of {what} are not whole numbers from 0")
    return int(sum(values))  # type: ignore[arg-type]


def _wrong(text: str) -> ReplyError:
    return ReplyError(f"{text}.", fix=_FIX)

"""`report.json` of a validation: every number of its report, with limits, or with the reason why there is none.

Figures are named `metric`, `metric@threshold` (sensitivity@0.5), and with `_LABEL` behind where a task has several
labels or classes (auc_oedema, sensitivity@0.5_oedema). No number is NaN or infinite: what is not defined is null, and
`reason` says why. A count that a site keeps to itself is null and listed as withheld; it is never zero.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import ConfigDict, Field, NonNegativeFloat, NonNegativeInt

from eucaim_fl.parsing import Config
from eucaim_fl.task_config import TaskName
from eucaim_fl.validation.pairs import Outcome

__all__ = [
    "COUNTED_IN",
    "AgreementResult",
    "Band",
    "BetweenSites",
    "CalibrationGroup",
    "ComparisonResult",
    "Curves",
    "DecisionPoint",
    "EnoughResult",
    "Figure",
    "ForestRow",
    "GroupDifference",
    "LesionCounts",
    "ModelResult",
    "PrPoint",
    "RocPoint",
    "ScopeResult",
    "SiteFigures",
    "SiteLine",
    "ThresholdCounts",
    "ValidationResult",
    "Verdict",
    "WithheldCell",
]

COUNTED_IN = (
    "Numbers of patients are those that the sites told. A site with confidential data tells every count in multiples "
    "of a base of its own (5, if its policy asks for no more), and figures follow from the counts that were told; "
    "intervals and bounds leave out what this rounding changes. Figures of fewer patients than a site's minimum are "
    "withheld."
)
"""How counts are to be read; it stands in each result."""

_Share = Annotated[float, Field(ge=0, le=1)]


class _Part(Config):
    model_config = ConfigDict(strict=True)


class Figure(_Part):
    """A figure with its interval at the result's level.

    lowest, highest: where the figure of the patients' own scores lies, which were counted in bins; null where binning
    changes nothing, or no such range is known. widest_low, widest_high: beyond which the interval of the patients' own
    scores can't reach; of AUCs only. patients: in the denominator (of a sensitivity, those with the disease); null
    where that is no number of patients. sites: that told what it is made of. reason: why something is null, or what is
    to be known about the interval.
    """

    value: float | None
    low: float | None = None
    high: float | None = None
    lowest: float | None = None
    highest: float | None = None
    widest_low: float | None = None
    widest_high: float | None = None
    patients: NonNegativeInt | None = None
    sites: NonNegativeInt = 1
    reason: str = ""


class ThresholdCounts(_Part):
    """Patients by truth and by the decision `score ≥ threshold`. label: of several; else empty."""

    label: str
    threshold: float
    true_positives: NonNegativeInt
    false_positives: NonNegativeInt
    false_negatives: NonNegativeInt
    true_negatives: NonNegativeInt


class RocPoint(_Part):
    """A point of the ROC curve: what is called positive from a threshold on; null without patients of the class."""

    threshold: float
    false_positive_rate: _Share | None
    sensitivity: _Share | None


class PrPoint(_Part):
    """A point of the curve of precision and recall; precision is null where nobody scores that high."""

    threshold: float
    recall: _Share | None
    precision: _Share | None


class Band(_Part):
    """Pointwise limits of a curve at x: of sensitivity at a false positive rate, of precision at a recall."""

    x: float
    low: float | None
    high: float | None


class CalibrationGroup(_Part):
    """Patients whose scores lie between two edges: range of their mean score, and how many have the disease."""

    low: float
    high: float
    patients: NonNegativeInt
    mean_score: float
    mean_score_lowest: float
    mean_score_highest: float
    observed: Figure


class DecisionPoint(_Part):
    """Net benefit per patient at a threshold probability, with limits; that of acting on nobody is 0."""

    threshold: float
    model: float | None
    low: float | None
    high: float | None
    everyone: float | None


class Curves(_Part):
    """What plots of one label's scores need. edges, without, with_disease: the histogram; label: empty if the only one.

    Bands are pointwise: each holds at its own x, not all of them together.
    """

    label: str
    edges: tuple[float, ...]
    without: tuple[NonNegativeInt, ...]
    with_disease: tuple[NonNegativeInt, ...]
    roc: tuple[RocPoint, ...]
    roc_band: tuple[Band, ...]
    pr: tuple[PrPoint, ...]
    pr_band: tuple[Band, ...]
    calibration: tuple[CalibrationGroup, ...]
    decision: tuple[DecisionPoint, ...]


class AgreementResult(_Part):
    """Bias and limits of agreement (found − true) of a volume, in millilitres. label: empty if the only one."""

    label: str
    unit: Literal["ml"] = "ml"
    patients: NonNegativeInt
    bias: Figure
    lower: Figure
    upper: Figure


class LesionCounts(_Part):
    """Lesions of the patients in whom they were counted. label: empty if the only one."""

    label: str
    lesions: NonNegativeInt
    found: NonNegativeInt
    false_positives: NonNegativeInt
    patients: NonNegativeInt


class SiteFigures(_Part):
    """One site's own estimates in a scope. withheld: why there are none; then patients is null."""

    site: str
    patients: NonNegativeInt | None
    withheld: str = ""
    figures: dict[str, Figure] = Field(default_factory=dict)
    thresholds: tuple[ThresholdCounts, ...] = ()
    lesions: tuple[LesionCounts, ...] = ()
    confusion: tuple[NonNegativeInt, ...] = ()
    undefined: dict[str, NonNegativeInt] = Field(default_factory=dict)


class ForestRow(_Part):
    """A site in a forest plot. weight: its share in the common estimate; null, with a reason, where it has none."""

    site: str
    patients: NonNegativeInt | None
    value: float | None
    low: float | None
    high: float | None
    weight: _Share | None
    reason: str = ""


class BetweenSites(_Part):
    """A figure over the population of hospitals, by random-effects meta-analysis (REML, Hartung-Knapp).

    scale: on which tau is, and was estimated; everything else is in the figure's unit. value: mean over hospitals, each
    counted by what is known of it and how hospitals differ (on the logit scale their median). prediction: where the
    true figure of a further hospital is to be expected; null below three sites. i2: share of the variance between
    estimates that is no chance. worst_site: with the lowest estimate (of a distance, the highest).
    """

    figure: str
    scale: Literal["logit", "plain"]
    sites: NonNegativeInt
    value: float | None
    low: float | None
    high: float | None
    prediction_low: float | None
    prediction_high: float | None
    tau: NonNegativeFloat | None
    tau_low: NonNegativeFloat | None
    tau_high: NonNegativeFloat | None
    i2: _Share | None
    i2_low: _Share | None
    i2_high: _Share | None
    q: NonNegativeFloat | None
    p_heterogeneity: _Share | None
    worst_site: str | None
    rows: tuple[ForestRow, ...]
    reason: str = ""


class WithheldCell(_Part):
    """A site that keeps a scope's figures to itself, and the reason that it tells."""

    site: str
    reason: str


class ScopeResult(_Part):
    """A model on a group of patients. patients: told by the sites together. confusion: by row of the true class."""

    scope: str
    patients: NonNegativeInt
    figures: dict[str, Figure]
    thresholds: tuple[ThresholdCounts, ...]
    curves: tuple[Curves, ...]
    volumes: tuple[AgreementResult, ...]
    lesions: tuple[LesionCounts, ...]
    confusion: tuple[NonNegativeInt, ...]
    undefined: dict[str, NonNegativeInt]
    sites: tuple[SiteFigures, ...]
    withheld: tuple[WithheldCell, ...]
    between: tuple[BetweenSites, ...]


class ModelResult(_Part):
    """Everything about one model; the scope of all patients is the first."""

    name: str
    scopes: tuple[ScopeResult, ...]


class GroupDifference(_Part):
    """A group of patients against the largest group of the same rule: group − reference.

    p_adjusted: by Holm's method over all differences of the result that have a p-value.
    """

    model: str
    rule: str
    figure: str
    group: str
    reference: str
    difference: float | None
    low: float | None
    high: float | None
    p: _Share | None
    p_adjusted: _Share | None
    reason: str = ""


class ComparisonResult(_Part):
    """The first model against the second on the same patients: first − second.

    better: which sign is better; `neither` where the figure has no direction. counts: patients of whom both were right,
    only the first, only the second, neither; of shares only. pooled_difference: of an AUC, between those of the pooled
    scores; difference is the sites' own ones combined. p: two-sided, of no difference; p_adjusted: by Holm's method
    over all comparisons. outcome, sentence: of non-inferiority, where the plan has a margin.
    """

    metric: str
    figure: str
    better: Literal["higher", "lower", "neither"]
    difference: float | None
    low: float | None
    high: float | None
    p: _Share | None
    p_adjusted: _Share | None
    pooled_difference: float | None = None
    counts: tuple[NonNegativeInt, NonNegativeInt, NonNegativeInt, NonNegativeInt] | None = None
    patients: NonNegativeInt | None = None
    sites: NonNegativeInt
    margin: float | None = None
    outcome: Outcome | None = None
    sentence: str = ""
    reason: str = ""


class EnoughResult(_Part):
    """Whether an interval is as narrow as the plan wants it, and about how many patients would make it so."""

    model: str
    figure: str
    enough: bool | None
    half_width: float | None
    wanted_half_width: float
    patients: NonNegativeInt | None
    needed: NonNegativeInt | None
    sentence: str


class SiteLine(_Part):
    """A site of the plan. patients: of all scopes' whole; null where withheld or the site told nothing.

    failed: images of which a model gave no answer, by reason.
    """

    site: str
    answered: bool
    patients: NonNegativeInt | None
    withheld: str = ""
    failed: dict[str, NonNegativeInt] = Field(default_factory=dict)


class Verdict(_Part):
    """A sentence of the first page, made from numbers alone. tone: whether it is good news, bad news, or a warning."""

    question: Literal["does_it_work", "where", "for_whom", "how_sure"]
    tone: Literal["good", "bad", "warning", "plain"]
    sentence: str


class ValidationResult(_Part):
    """All that a validation found. level: of every interval; bands and bootstraps follow from the seed."""

    schema_version: Literal[1] = 1
    plan_sha256: str
    task: TaskName
    level: float
    seed: NonNegativeInt
    counted_in: str = COUNTED_IN
    sites: tuple[SiteLine, ...]
    models: tuple[ModelResult, ...]
    differences: tuple[GroupDifference, ...]
    comparisons: tuple[ComparisonResult, ...]
    half_widths: tuple[EnoughResult, ...]
    verdicts: tuple[Verdict, ...]

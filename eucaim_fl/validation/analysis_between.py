"""A figure of several hospitals side by side: estimates, their errors, and what they say of hospitals at large."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from scipy.special import ndtri

from eucaim_fl.errors import DataError
from eucaim_fl.validation.agreement import Moments, pooled_moments, stratified_mean
from eucaim_fl.validation.analysis_input import Asked, figure_key, label_of, moments_of, scores_of
from eucaim_fl.validation.analysis_scores import LEVEL
from eucaim_fl.validation.binned import BinnedScores, auc_of, delong_error, pooled_scores
from eucaim_fl.validation.meta_analysis import MetaAnalysis, analysis_from_logit, on_logit, random_effects
from eucaim_fl.validation.record import ModelFigures
from eucaim_fl.validation.result_schema import BetweenSites, Figure, ForestRow
from eucaim_fl.validation.spread import auc_standard_error
from eucaim_fl.validation.thresholds import decided

__all__ = ["LOWER_IS_BETTER", "NO_DIRECTION", "MainFigure", "Point", "between", "main_figures", "point_of"]

LOWER_IS_BETTER = frozenset({"brier", "hd95_mm"})
NO_DIRECTION = frozenset({"volume_difference_ml"})
_SHARES = frozenset({"dice", "surface_dice", "brier"})  # means that lie between 0 and 1
_MOST_LABELS = 8  # with more, tests of each of them would find nothing

_NO_ERROR = "Its pairs tell no standard error, so it has no weight."
_TOO_FEW = "It has too few patients for a standard error."
_NO_SPREAD = "All its values are the same, from which no standard error follows."


@dataclass(frozen=True)
class MainFigure:
    """A figure by which hospitals, groups and models are compared. metric: its name without label and threshold."""

    metric: str
    label: str = ""
    threshold: float | None = None

    @property
    def key(self) -> str:
        """As the result names it."""
        return figure_key(self.metric, self.label, self.threshold)


@dataclass(frozen=True)
class Point:
    """An estimate and its standard error, in the figure's unit; patients: in its denominator."""

    value: float
    standard_error: float
    patients: int


def main_figures(asked: Asked) -> tuple[MainFigure, ...]:
    """By which hospitals and groups are compared, the most important one first.

    Classes: the AUC of each, and of an only one also sensitivity and specificity at the first threshold. Labels: the
    AUC of each. Segmentation: the Dice of each label. Survival: the c-index. At most eight labels.
    """
    if asked.task == "survival":
        return (MainFigure("c_index"),)
    if asked.task == "segmentation":
        return tuple(MainFigure("dice", label) for label in asked.moment_labels[:_MOST_LABELS])
    areas = tuple(MainFigure("auc", name) for name in asked.names[:_MOST_LABELS])
    if len(areas) > 1:
        return areas
    return (
        *areas,
        *(MainFigure(name, areas[0].label, asked.first_threshold) for name in ("sensitivity", "specificity")),
    )


def point_of(asked: Asked, main: MainFigure, sites: Sequence[ModelFigures]) -> Point | None:
    """The figure of one site, or of several sites' patients together; None where it has no standard error.

    AUC: DeLong's, within sites; where that is 0 or not defined one more patient of the smaller class is counted, who
    ranks in the middle, with Hanley and McNeil's error. Shares: √(p(1−p)/n); at 0 and 1 half a patient is counted on
    either side.
    Means: s/√n, over several sites that of `stratified_mean`. The c-index has none.
    """
    if main.metric in ("auc", "sensitivity", "specificity"):
        record = asked.labels[asked.names.index(main.label)]
        told = scores_of(asked, sites, record)
        if not told:
            return None
        scores = pooled_scores(told)
        return _area(scores, told) if main.metric == "auc" else _share(scores, main)
    names = {name for one in sites for name in one.moments}
    name = next((name for name in sorted(names) if label_of(asked, name) == (main.metric, main.label)), None)
    return None if name is None else _mean(moments_of(sites, name))


def _area(scores: BinnedScores, sites: Sequence[BinnedScores]) -> Point | None:
    without, diseased = scores.patients
    if not without or not diseased:
        return None
    area, error = float(auc_of(scores.counts)), delong_error(scores, sites).value
    if not error > 1e-9 or not 0 < area < 1:
        fewer = min(without, diseased)
        area = (area * fewer + 0.5) / (fewer + 1)
        error = auc_standard_error(area, diseased, without)
    return Point(area, error, without + diseased)


def _share(scores: BinnedScores, main: MainFigure) -> Point | None:
    tp, fp, fn, tn = decided(scores, main.threshold or 0.0)
    hit, missed = (tn, fp) if main.metric == "specificity" else (tp, fn)
    patients = hit + missed
    if not patients:
        return None
    add = 0.0 if hit and missed else 0.5
    share = (hit + add) / (patients + 2 * add)
    return Point(share, math.sqrt(share * (1 - share) / (patients + 2 * add)), patients)


def _mean(strata: Sequence[Moments]) -> Point | None:
    whole = pooled_moments(strata)
    if whole.patients < 2:
        return None
    if len(strata) == 1:
        error = math.sqrt(whole.variance / whole.patients)
    else:
        found = stratified_mean(strata, LEVEL)
        error = (found.high - found.low) / 2 / float(ndtri((1 + LEVEL) / 2))
    return Point(whole.mean, error, whole.patients) if error > 0 else None


def between(
    asked: Asked, main: MainFigure, sites: Mapping[str, ModelFigures], figures: Mapping[str, Figure]
) -> BetweenSites:
    """Random-effects meta-analysis of a figure over sites (REML, Hartung-Knapp), and the rows of its forest plot.

    sites: what each told. figures: the figure of each, with its interval. AUCs and shares are analysed on the logit
    scale. Means are on their own; of those between 0 and 1 limits are cut there. Sites without a standard error are
    shown and not counted in.
    """
    points = {site: point_of(asked, main, [one]) for site, one in sites.items()}
    on = "plain" if main.metric not in ("auc", "sensitivity", "specificity") else "logit"
    counted = [site for site, point in points.items() if point is not None and point.standard_error > 0]
    analysis, reason = None, "No site has a standard error." if figures else "No site told it."
    if main.metric == "c_index":
        reason = "The pairs that sites count tell no standard errors, so hospitals are only shown side by side."
    if counted:
        try:
            analysis, reason = _analysed([points[site] for site in counted], on), _few(len(counted))
        except DataError as fault:
            reason = fault.message
    weights = dict(zip(counted, analysis.weights if analysis else (), strict=False))
    rows = tuple(_row(site, figure, weights.get(site), main, sites) for site, figure in figures.items())
    known = [row for row in rows if row.value is not None]
    sign = -1 if main.metric in LOWER_IS_BETTER else 1
    worst = min(known, key=lambda row: (sign * (row.value or 0.0), row.site)).site if known else None
    return _result(main, on, len(counted), analysis, rows).model_copy(update={"worst_site": worst, "reason": reason})


def _analysed(points: Sequence[Point | None], on: str) -> MetaAnalysis:
    known = [(one.value, one.standard_error) for one in points if one is not None]
    if on == "plain":
        return random_effects(*zip(*known, strict=True), level=LEVEL)
    return analysis_from_logit(random_effects(*zip(*(on_logit(*one) for one in known), strict=True), level=LEVEL))


def _few(sites: int) -> str:
    if sites == 1:
        return "One site says nothing of others."
    if sites == 2:
        return "Two sites say little of others, so the interval is very wide, and there is no prediction."
    return ""


def _row(
    site: str, figure: Figure, weight: float | None, main: MainFigure, sites: Mapping[str, ModelFigures]
) -> ForestRow:
    reason = figure.reason if figure.value is None else ""
    if weight is None and not reason:
        reason = _NO_ERROR if main.metric == "c_index" else _TOO_FEW if (figure.patients or 0) < 2 else _NO_SPREAD
    return ForestRow(
        site=site,
        patients=figure.patients,
        value=figure.value,
        low=figure.low,
        high=figure.high,
        weight=None if weight is None else min(weight, 1.0),
        reason=reason,
    )


def _result(
    main: MainFigure, on: str, sites: int, found: MetaAnalysis | None, rows: tuple[ForestRow, ...]
) -> BetweenSites:
    def told(value: float | None, *, cut: bool = False) -> float | None:
        if found is None or value is None or not math.isfinite(value):
            return None
        return min(max(value, 0.0), 1.0) if cut else value

    def root(value: float | None) -> float | None:
        return None if told(value) is None else math.sqrt(value or 0.0)

    inside = main.metric in _SHARES
    return BetweenSites(
        figure=main.key,
        scale="logit" if on == "logit" else "plain",
        sites=sites,
        value=told(None if found is None else found.estimate),
        low=told(None if found is None else found.low, cut=inside),
        high=told(None if found is None else found.high, cut=inside),
        prediction_low=told(None if found is None else found.prediction_low, cut=inside),
        prediction_high=told(None if found is None else found.prediction_high, cut=inside),
        tau=root(None if found is None else found.tau2),
        tau_low=root(None if found is None else found.tau2_low),
        tau_high=root(None if found is None else found.tau2_high),
        i2=told(None if found is None else found.i2),
        i2_low=told(None if found is None else found.i2_low),
        i2_high=told(None if found is None else found.i2_high),
        q=told(None if found is None else found.q),
        p_heterogeneity=told(None if found is None else found.p_heterogeneity),
        worst_site=None,
        rows=rows,
    )

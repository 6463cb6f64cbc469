"""Figures of means, volumes, lesions, confusion counts and pairs of patients, over one site or several."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
from scipy.special import chdtri, expit, logit, ndtri

from eucaim_fl.validation.agreement import (
    bland_altman,
    mean_interval,
    pooled_moments,
    stratified_mean,
)
from eucaim_fl.validation.analysis_input import Asked, figure_key, label_of, moments_of
from eucaim_fl.validation.analysis_scores import LEVEL, figure_of, share_figure, undefined
from eucaim_fl.validation.binned import Bounded
from eucaim_fl.validation.concordance import c_index
from eucaim_fl.validation.intervals import Interval
from eucaim_fl.validation.record import ModelFigures
from eucaim_fl.validation.result_schema import AgreementResult, Figure, LesionCounts
from eucaim_fl.validation.thresholds import proportion

__all__ = [
    "VOLUME",
    "concordance_figure",
    "confusion_figures",
    "lesion_figures",
    "macro_auc",
    "mean_figures",
    "undefined_counts",
    "volumes",
]

VOLUME = "volume_difference_ml"
"""The mean of which Bland and Altman's limits are made."""

_ONE_PATIENT = "No interval: it is defined for one patient only."
_NO_SPREAD = "The interval has no width, since all values are the same; that is no proof of certainty."
_LESIONS = (
    "Lesions are counted as if they were independent. Those of one patient are alike, so the interval is rather too "
    "narrow; how much follows from no count that leaves a site."
)
_FALSE = (
    "The interval takes false findings as a Poisson count, independent of each other. Where a few patients have many "
    "of them it is too narrow."
)
_AT_MOST = "Pairs tell no more than a bound of the error of chance: the interval is wider than it need be."
_NO_PAIRS = "No two patients of a site can be compared."
_PERFECT = "No interval: all pairs are ordered alike, from which no error of chance follows."
_MACRO = "The mean over labels. The interval allows for labels whose errors go together, so it is rather too wide."


def mean_figures(asked: Asked, sites: Sequence[ModelFigures]) -> dict[str, Figure]:
    """Means over patients with t-intervals: of one site, or over several stratified by site (`stratified_mean`).

    Patients of whom a mean is not defined are not in it; `undefined` counts them.
    """
    found: dict[str, Figure] = {}
    for name in sorted({name for one in sites for name in one.moments}):
        strata = moments_of(sites, name)
        key = figure_key(*label_of(asked, name))
        whole = pooled_moments(strata)
        if not whole.patients:
            found[key] = undefined("It is defined for no patient.", sites=len(strata), patients=0)
        elif whole.patients == 1:
            alone = Interval(whole.mean, math.nan, math.nan)
            found[key] = figure_of(alone, patients=1, sites=len(strata), reason=_ONE_PATIENT)
        else:
            interval = mean_interval(whole, LEVEL) if len(strata) == 1 else stratified_mean(strata, LEVEL)
            reason = _NO_SPREAD if interval.low == interval.high else ""
            found[key] = figure_of(interval, patients=whole.patients, sites=len(strata), reason=reason)
    return found


def volumes(asked: Asked, sites: Sequence[ModelFigures]) -> tuple[AgreementResult, ...]:
    """Bias and limits of agreement of found and true volume, by label; from two patients on."""
    results = []
    for name in sorted({name for one in sites for name in one.moments}):
        metric, label = label_of(asked, name)
        strata = moments_of(sites, name)
        whole = pooled_moments(strata)
        if metric != VOLUME or whole.patients < 2:
            continue
        found = bland_altman(whole, LEVEL)
        bias, lower, upper = (
            figure_of(one, patients=found.patients, sites=len(strata)) for one in (found.bias, found.lower, found.upper)
        )
        results.append(AgreementResult(label=label, patients=found.patients, bias=bias, lower=lower, upper=upper))
    return tuple(results)


def lesion_figures(asked: Asked, sites: Sequence[ModelFigures]) -> tuple[dict[str, Figure], tuple[LesionCounts, ...]]:
    """Share of lesions that were found (Wilson), false findings per patient (exact Poisson limits), and their counts.

    Limits of a count k over n patients: χ²(α/2; 2k)/2n and χ²(1−α/2; 2k+2)/2n (Garwood 1936).
    """
    figures: dict[str, Figure] = {}
    counted = []
    for label in sorted({label for one in sites for label in one.lesions}):
        rows = [one.lesions[label] for one in sites if label in one.lesions]
        lesions, found, false, patients = (int(sum(column)) for column in zip(*rows, strict=True))
        name = "" if len(asked.moment_labels) == 1 else label
        share = share_figure(found, lesions, sites=len(rows), reason=_LESIONS)
        # lesions are no patients
        figures[figure_key("lesion_sensitivity", name)] = share.model_copy(update={"patients": None})
        if patients:
            rate = Interval(false / patients, *(limit / patients for limit in _poisson(false)))
            figure = figure_of(rate, patients=patients, sites=len(rows), reason=_FALSE)
        else:
            figure = undefined("Lesions were counted in no patient.", sites=len(rows), patients=0)
        figures[figure_key("false_positives_per_patient", name)] = figure
        counted.append(LesionCounts(label=name, lesions=lesions, found=found, false_positives=false, patients=patients))
    return figures, tuple(counted)


def confusion_figures(counts: Sequence[int], sites: int) -> dict[str, Figure]:
    """Accuracy and balanced accuracy of the likeliest class; empty without counts.

    The interval of balanced accuracy squares and adds Wilson's of each class's share, as that of two classes does.
    """
    if not counts:
        return {}
    matrix = np.reshape(counts, (math.isqrt(len(counts)), -1))
    rows, right = matrix.sum(axis=1), np.diag(matrix)
    shares = [proportion(int(one), int(n), level=LEVEL) for one, n in zip(right, rows, strict=True)]
    mean = sum(share.estimate for share in shares) / len(shares)
    down = math.hypot(*(share.estimate - share.low for share in shares)) / len(shares)
    up = math.hypot(*(share.high - share.estimate for share in shares)) / len(shares)
    patients = int(rows.sum())
    return {
        "accuracy": share_figure(int(right.sum()), patients, sites=sites),
        "balanced_accuracy": figure_of(
            Interval(mean, mean - down, mean + up), patients=patients, sites=sites, missing="A class has no patient."
        ),
    }


def macro_auc(areas: Sequence[Figure | None]) -> Figure:
    """The plain mean of several labels' AUCs, with an interval that holds however their errors go together.

    The standard deviation of a mean is at most the mean of standard deviations, so the half widths are averaged; and
    the mean of the patients' own AUCs lies between the means of the ends of their ranges.
    areas: one a label; None where nobody told it, which leaves the mean without a value.
    """
    told = [one for one in areas if one is not None]
    known = [(one.value, one.low, one.high) for one in told if one.value is not None]
    if len(known) < len(areas) or not known:
        return undefined("A label has no AUC.", sites=min((one.sites for one in told), default=0))
    value, low, high = (sum(part or 0.0 for part in column) / len(known) for column in zip(*known, strict=True))
    ends = [[one.value if end is None else end for end in (one.lowest, one.highest)] for one in told]
    lowest, highest = (sum(part or 0.0 for part in column) / len(known) for column in zip(*ends, strict=True))
    sites = min(one.sites for one in told)
    bounds = Bounded(value, min(lowest, value), max(highest, value))
    return figure_of(Interval(value, low, high), patients=None, sites=sites, bounds=bounds, reason=_MACRO)


def concordance_figure(sites: Sequence[Sequence[float]]) -> Figure | None:
    """The c-index over the pairs of all sites, stratified by site (see `pooled_c_index`); None without a site.

    sites: of each, `concordance` of its record. Pairs of one patient go together, and their counts do not tell how
    much; but a mean over pairs of n patients has at most 2/n of the variance of one pair (Hoeffding 1948, A Class of
    Statistics with Asymptotically Normal Distribution, theorem 5.2). So to first order SE² ≤ Σ_s (n_s−1)·S_s / P², with
    P comparable pairs in all and S_s = C_s·(1−c)² + T_s·(½−c)² + D_s·c² of a site's concordant, tied and discordant
    ones. The interval logit(c) ± z·SE/(c(1−c)) holds at least its level, and may be twice as wide as it need be. The
    common c stands in S_s, so that small sites in which all pairs agree count as uncertain.
    """
    if not sites:
        return None
    patients = int(math.fsum(one[0] + one[1] for one in sites))
    concordant, tied, pairs = (math.fsum(one[k] for one in sites) for k in (2, 3, 4))
    value = c_index((concordant, tied, pairs))
    if math.isnan(value):
        return undefined(_NO_PAIRS, sites=len(sites), patients=patients)
    variance = 0.0
    for censored, events, concordant_here, tied_here, pairs_here in sites:
        discordant = pairs_here - concordant_here - tied_here
        squares = concordant_here * (1 - value) ** 2 + tied_here * (0.5 - value) ** 2 + discordant * value**2
        variance += squares * (censored + events - 1) / pairs**2
    if not 0 < value < 1:
        return figure_of(Interval(value, math.nan, math.nan), patients=patients, sites=len(sites), reason=_PERFECT)
    reach = float(ndtri((1 + LEVEL) / 2)) * math.sqrt(variance) / (value * (1 - value))
    low, high = (float(expit(logit(value) + sign * reach)) for sign in (-1, 1))
    return figure_of(Interval(value, low, high), patients=patients, sites=len(sites), reason=_AT_MOST)


def undefined_counts(asked: Asked, sites: Sequence[ModelFigures]) -> dict[str, int]:
    """Patients of whom each mean is not defined, over sites."""
    parts: list[Mapping[str, int]] = [one.undefined for one in sites]
    names = sorted({name for part in parts for name in part})
    return {figure_key(*label_of(asked, name)): sum(part.get(name, 0) for part in parts) for name in names}


def _poisson(count: int) -> tuple[float, float]:
    tail = (1 - LEVEL) / 2
    low = float(chdtri(2 * count, 1 - tail)) / 2 if count else 0.0
    return low, float(chdtri(2 * count + 2, tail)) / 2

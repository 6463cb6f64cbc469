"""How well a log risk puts patients in the order in which they have an event: pairs, counted."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from eucaim_fl.errors import DataError, ReplyError
from eucaim_fl.records import SiteMetrics, SplitName

__all__ = ["c_index", "check_concordance", "compared", "most_pairs", "pooled_c_index", "survival_summary"]

FloatArray = NDArray[np.float64]
_NUMBERS = 5


def compared(log_risk: FloatArray, time: FloatArray, event: NDArray[np.bool_]) -> tuple[int, int, int]:
    """(concordant, tied, all) comparable pairs of patients.

    Two patients can be compared if it is known who had the event first: the one with the shorter time had it; at equal
    times, one had it and the other was still without. A pair is concordant if that one has the higher risk, tied if
    both have the same.
    log_risk, time: shape (n,), finite. event: shape (n,), whether it was seen.
    Raises DataError if lengths differ or a number is not finite.
    Source: Harrell et al. 1982, Evaluating the Yield of Medical Tests; Harrell, Lee and Mark 1996 (equal times).
    """
    risk, times, seen = np.asarray(log_risk), np.asarray(time), np.asarray(event, dtype=np.bool_)
    if not risk.shape == times.shape == seen.shape == (risk.size,):
        raise DataError("Risks, times and events must be one for each patient.")
    if not (np.isfinite(risk).all() and np.isfinite(times).all()):
        raise DataError("A risk or a time is not finite.")
    concordant = tied = pairs = 0
    for first in np.flatnonzero(seen):
        later = (times > times[first]) | ((times == times[first]) & ~seen)
        pairs += int(later.sum())
        concordant += int((risk[later] < risk[first]).sum())
        tied += int((risk[later] == risk[first]).sum())
    return concordant, tied, pairs


def c_index(counts: Sequence[float]) -> float:
    """Concordance index of (concordant, tied, all) comparable pairs: (concordant + tied/2) / all.

    1: the order of risks is that of events; ½: as good as chance; 0: the reverse order. NaN without pairs, so the
    caller must decide. Source: Harrell et al. 1982.

    >>> c_index((2, 1, 4))
    0.625
    """
    concordant, tied, pairs = counts
    return (concordant + tied / 2) / pairs if pairs else math.nan


def survival_summary(split: SplitName, log_risk: FloatArray, time: FloatArray, event: NDArray[np.bool_]) -> SiteMetrics:
    """What a site sends about a survival task: `c_index`, and under `concordance` (patients without the event, with it,
    concordant pairs, tied pairs, all comparable pairs).

    log_risk, time: shape (n,); event: shape (n,). A c-index that is not defined (no comparable pair) is left out.
    Raises DataError as `compared` does.
    """
    counts = compared(log_risk, time, event)
    events = int(np.count_nonzero(event))
    value = c_index(counts)
    sums = tuple(float(number) for number in (len(log_risk) - events, events, *counts))
    return SiteMetrics(split, len(log_risk), {} if math.isnan(value) else {"c_index": value}, {"concordance": sums})


def most_pairs(censored: float, events: float) -> float:
    """Comparable pairs that so many patients without and with the event can form at most.

    >>> most_pairs(2, 3)
    9.0
    """
    return events * censored + events * (events - 1) / 2


def check_concordance(numbers: Sequence[float], patients: int) -> None:
    """Whether patients can have such a `concordance`.

    Raises ReplyError for another length, a number that is negative or not whole, patients that are not those of the
    record, or more pairs than they can form.
    """
    if len(numbers) != _NUMBERS:
        raise ReplyError("The counts of 'concordance' are not five.")
    if any(number < 0 or number != int(number) for number in numbers):
        raise ReplyError("The counts of 'concordance' are no whole numbers.")
    censored, events, concordant, tied, pairs = numbers
    if censored + events != patients:
        raise ReplyError(f"The counts of 'concordance' are not those of {patients} patients.")
    if concordant + tied > pairs or pairs > most_pairs(censored, events):
        raise ReplyError(f"No {patients} patients form such pairs.")


def pooled_c_index(sites: Sequence[SiteMetrics]) -> dict[str, float]:
    """The c-index over all sites that have figures; empty where it is not defined.

    `c_index`: of the pairs of all sites together, if each of them sent its pairs. Patients of different sites form no
    pair: the index is stratified by site, and says how well patients of one hospital are put in order, whatever the
    risks of hospitals. Otherwise `c_index_site_mean`, the mean of sites' own by patients, stands instead.
    """
    told = [site for site in sites if site.values or site.sums]
    if told and all("concordance" in site.sums for site in told):
        columns: Any = zip(*(site.sums["concordance"][2:] for site in told), strict=True)
        value = c_index([math.fsum(column) for column in columns])
        return {} if math.isnan(value) else {"c_index": value}
    known = [(site.patients, site.values["c_index"]) for site in told if "c_index" in site.values]
    if not known:
        return {}
    return {"c_index_site_mean": math.fsum(n * value for n, value in known) / sum(n for n, _ in known)}

"""Agreement of two measurements, and means, from (n, Σx, Σx²) of sites; and whether an interval tells enough."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from scipy.special import ndtri, stdtrit

from eucaim_fl.errors import DataError
from eucaim_fl.validation.intervals import Interval

__all__ = [
    "Agreement",
    "Enough",
    "Moments",
    "bland_altman",
    "enough",
    "mean_interval",
    "pooled_moments",
    "stratified_mean",
]


@dataclass(frozen=True)
class Moments:
    """Number of patients, sum and sum of squares of a value of each, such as the difference of two measurements.

    The variance is a difference of sums, so it loses digits where values are far from zero for their spread.
    Raises DataError unless patients is whole and not negative, sums are finite, and some values have them.
    """

    patients: int
    total: float
    squares: float

    def __post_init__(self) -> None:
        if not float(self.patients).is_integer() or self.patients < 0:
            raise DataError("A number of patients must be whole, and not negative.")
        if not math.isfinite(self.total) or not math.isfinite(self.squares):
            raise DataError("Sums must be finite.")
        # Cauchy–Schwarz: (Σx)² ≤ n·Σx², up to rounding
        if self.squares < 0 or self.total**2 > self.patients * self.squares * (1 + 1e-9):
            raise DataError(f"No {self.patients:g} values have these sums.")

    @property
    def mean(self) -> float:
        """Σx/n; NaN without patients."""
        return self.total / self.patients if self.patients else math.nan

    @property
    def variance(self) -> float:
        """The variance among patients, with n − 1; NaN with fewer than two."""
        if self.patients < 2:
            return math.nan
        return max(0.0, self.squares - self.total * self.mean) / (self.patients - 1)


@dataclass(frozen=True)
class Agreement:
    """Bias and limits of agreement of two measurements, each with its interval; unit: that of the differences."""

    patients: int
    bias: Interval
    lower: Interval
    upper: Interval


@dataclass(frozen=True)
class Enough:
    """Whether an interval is as narrow as wanted, and if not, about how many patients would make it so.

    needed: None where no number can be told from this interval.
    """

    enough: bool
    half_width: float
    wanted_half_width: float
    patients: int
    needed: int | None

    @property
    def note(self) -> str:
        """A sentence for a report; empty if it is enough."""
        if self.enough:
            return ""
        widths = f"the interval is ±{self.half_width:.3g}, wanted is ±{self.wanted_half_width:.3g}"
        would_do = f" About {self.needed} patients would do; there are {self.patients}."
        return f"Too few patients to conclude: {widths}.{'' if self.needed is None else would_do}"


def pooled_moments(sites: Sequence[Moments]) -> Moments:
    """The sums over all sites' patients; the order of sites changes no bit.

    >>> pooled_moments([Moments(2, 3.0, 5.0), Moments(1, 3.0, 9.0)])
    Moments(patients=3, total=6.0, squares=14.0)
    """
    return Moments(
        sum(site.patients for site in sites),
        math.fsum(site.total for site in sites),
        math.fsum(site.squares for site in sites),
    )


def mean_interval(moments: Moments, level: float = 0.95) -> Interval:
    """The mean and its t-interval, patients taken as one sample; for one site, or for all pooled.

    Raises DataError with fewer than two patients, or if level is not between 0 and 1.

    >>> found = mean_interval(Moments(3, 6.0, 14.0))
    >>> round(found.low, 3), round(found.high, 3)
    (-0.484, 4.484)
    """
    _check(moments, level)
    return _t_interval(moments.mean, moments.variance / moments.patients, moments.patients - 1, level)


def stratified_mean(sites: Sequence[Moments], level: float = 0.95) -> Interval:
    """The mean over all patients, with the interval that holds for these sites: their differences are no error.

    Var = Σ_s (n_s/n)²·s_s²/n_s, with Satterthwaite's degrees of freedom. It is the pooled interval less the differences
    between sites' means. Sites of one patient are put together, or to the smallest other site, so that they have a
    variance (collapsed strata, Cochran 1977, section 5A.12: rather too large).
    Raises DataError with fewer than two patients, or if level is not between 0 and 1.
    """
    whole = pooled_moments(sites)
    _check(whole, level)
    large = sorted((site for site in sites if site.patients > 1), key=lambda site: (site.patients, site.total))
    rest = pooled_moments([site for site in sites if site.patients == 1])
    if rest.patients == 1:
        rest, large = pooled_moments([rest, large[0]]), large[1:]
    strata = [*large, rest] if rest.patients else large
    parts = [(site.patients * site.variance / whole.patients**2, site.patients - 1) for site in strata]
    variance = math.fsum(part for part, _ in parts)
    spread = math.fsum(part**2 / freedom for part, freedom in parts)
    return _t_interval(whole.mean, variance, variance**2 / spread if spread > 0 else whole.patients - 1, level)


def bland_altman(differences: Moments, level: float = 0.95, *, share: float = 0.95) -> Agreement:
    """Bias and limits of agreement of paired measurements, from n, Σd and Σd² over all sites.

    Limits: d̄ ± z·s, between which the `share` of the differences lies if they are normal (z = 1.96 for 0.95). Interval
    of the bias: t. Of each limit by itself: exact, since √n·(limit that was found less d̄)/s has a non-central t
    distribution: d̄ + s·t'(q; n−1, √n·z)/√n (Carkeet 2015, limits individually). For n in the hundreds these are the
    ±t·s·√(1/n + z²/(2(n−1))) of Bland and Altman 1999, which are too narrow on the outside for fewer.
    Raises DataError with fewer than two patients, or if level or share is not between 0 and 1.
    Source: Bland and Altman 1986, 1999; Carkeet 2015, Exact Parametric Confidence Intervals for Bland-Altman Limits of
    Agreement.
    """
    from scipy.stats import nct  # takes a second to load, and few reports need it

    bias = mean_interval(differences, level)
    if not 0 < share < 1:
        raise DataError("Limits of agreement need a share between 0 and 1.")
    z, spread, root = float(ndtri((1 + share) / 2)), math.sqrt(differences.variance), math.sqrt(differences.patients)
    tails = (1 - level) / 2, (1 + level) / 2
    inner, outer = (spread * float(nct.ppf(q, differences.patients - 1, root * z)) / root for q in tails)
    mean = bias.estimate
    return Agreement(
        differences.patients,
        bias,
        Interval(mean - z * spread, mean - outer, mean - inner),
        Interval(mean + z * spread, mean + inner, mean + outer),
    )


def enough(interval: Interval, wanted_half_width: float, patients: int) -> Enough:
    """Whether half the width of an interval is at most what was wanted, and how many patients would make it so.

    Widths fall with the square root of patients, so n·(half width / wanted)² would do, if further patients are alike
    and, for figures of both classes, as large a share of them is diseased.
    Raises DataError if the limits are not in order or NaN, wanted_half_width is not positive, or patients is negative.

    >>> enough(Interval(0.8, 0.7, 0.9), 0.05, 100).note
    'Too few patients to conclude: the interval is ±0.1, wanted is ±0.05. About 400 patients would do; there are 100.'
    """
    half = (interval.high - interval.low) / 2
    if not half >= 0 or not wanted_half_width > 0 or patients < 0:
        raise DataError("An interval needs limits in order, and what is wanted a positive half width.")
    slack = 1e-9 * wanted_half_width
    known = math.isfinite(half) and patients > 0
    needed = math.ceil(patients * (half / wanted_half_width) ** 2 * (1 - 1e-9)) if known else None
    return Enough(half <= wanted_half_width + slack, half, wanted_half_width, patients, needed)


def _check(moments: Moments, level: float) -> None:
    if moments.patients < 2:
        raise DataError("An interval needs at least two patients.")
    if not 0 < level < 1:
        raise DataError("An interval needs a level between 0 and 1.")


def _t_interval(mean: float, variance: float, freedom: float, level: float) -> Interval:
    reach = float(stdtrit(freedom, (1 + level) / 2)) * math.sqrt(variance)
    return Interval(mean, mean - reach, mean + reach)

"""Where the true figure of a further site is to be expected, given how unsure it is how far sites differ."""

from __future__ import annotations

from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray
from scipy import optimize, special

from eucaim_fl.errors import DataError

__all__ = ["predicted", "variances_at"]

FloatArray: TypeAlias = NDArray[np.float64]

_NODES = 64
_NEWTON = 60
_SHARES, _WEIGHTS = (both / 2 for both in np.polynomial.legendre.leggauss(_NODES))
_SHARES = _SHARES + 0.5


def predicted(estimates: FloatArray, variances: FloatArray, level: float = 0.95) -> tuple[float, float]:
    """Limits of the true figure of a further site, drawn as these sites were: yᵢ ~ N(μ, vᵢ + τ²), θ ~ N(μ, τ²).

    With τ² known, θ would be N(μ̂(τ²), τ² + 1/Σwᵢ), wᵢ = 1/(vᵢ + τ²). It is not known, so this is averaged over what
    the estimates say of it: Q(τ²) = Σwᵢ(yᵢ − μ̂)² has a χ² distribution with k − 1 degrees of freedom whatever τ² is, so
    each quantile c of that distribution stands for the τ² with Q(τ²) = c, and for 0 where Q(0) < c already. For sites
    that know their own figure exactly this is the usual prediction of a further normal number, with Student's t with
    k − 1 degrees of freedom. The limits are quantiles of the average, by 64 Gauss-Legendre nodes; nothing is drawn.

    estimates, variances: shape (k,), k ≥ 2, in units in which the variances are neither very large nor very small.
    Raises DataError with fewer than two sites, or if level is not in (0, 1).
    Source: the confidence distribution of τ² instead of an estimate, as Nagashima, Noma and Furukawa 2019, Prediction
    intervals for random-effects meta-analysis: a confidence distribution approach, who take that of DerSimonian and
    Laird's Q and a bootstrap; here it is that of the generalised Q, as in the interval of τ² of Viechtbauer 2007, and
    it is integrated.

    >>> low, high = predicted(np.array([-1.0, 0.0, 1.0]), np.full(3, 1e-9))
    >>> round(low, 3), round(high, 3)  # ±4.303·√(1 + 1/3), t with 2 degrees of freedom
    (-4.968, 4.968)
    """
    if len(estimates) < 2:
        raise DataError("A prediction needs at least two sites.")
    if not 0 < level < 1:
        raise DataError("The level of an interval must lie between 0 and 1.")
    between = variances_at(estimates, variances, special.chdtri(len(estimates) - 1, 1 - _SHARES))
    weights = 1 / (variances + between[:, None])
    totals = weights.sum(axis=1)
    means, spreads = weights @ estimates / totals, np.sqrt(between + 1 / totals)

    def limit(share: float) -> float:
        reach = 1 - special.ndtri(min(share, 1 - share) / 2)

        def beyond(value: float) -> float:
            return float(_WEIGHTS @ special.ndtr((value - means) / spreads)) - share

        ends = float((means - reach * spreads).min()), float((means + reach * spreads).max())
        return float(optimize.brentq(beyond, *ends, xtol=1e-10 * float(spreads.min())))

    return limit((1 - level) / 2), limit((1 + level) / 2)


def variances_at(estimates: FloatArray, variances: FloatArray, q: FloatArray) -> FloatArray:
    """The τ² ≥ 0 at which Cochran's Q has each value, 0 where Q is smaller everywhere; shape (m,) → (m,).

    Newton's method on 1/Q, which is concave in τ², so that from 0 it rises to the solution and never passes it.
    estimates, variances: shape (k,).
    """
    found = np.zeros(len(q))
    for _ in range(_NEWTON):
        weights = 1 / (variances + found[:, None])
        means = weights @ estimates / weights.sum(axis=1)
        squares = (weights * (estimates - means[:, None])) ** 2
        own = (squares / weights).sum(axis=1)
        below = own > q
        step = np.zeros(len(q))
        np.divide((own / q - 1) * own, squares.sum(axis=1), out=step, where=below)
        found += step
        if not (step > 1e-12 * (1 + found)).any():
            break
    return found

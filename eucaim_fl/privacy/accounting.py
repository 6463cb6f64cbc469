"""What mechanisms cost together: epsilon of any sequence of them at one delta, by privacy loss distributions.

The only importer of dp_accounting. Neighbouring cohorts differ by one patient, added or removed. Every number is an
upper bound: privacy losses are rounded up.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from eucaim_fl.errors import PrivacyError

__all__ = ["Mechanism", "epsilon", "merged", "noise_for", "renyi_epsilon"]

_COARSE = 100.0
"""Where the quick Rényi bound is larger, nothing is promised: it is told itself, although it is above the tight one."""
_MANY = 100_000
_SMALLEST_DELTA = 1e-9
"""With more sampled steps, or below such a delta, rounding errors of the tight computation begin to count."""
_FINENESS = 50.0
"""Privacy losses are rounded up to a grid so many times as fine as their standard deviation: the tight epsilon is then
true to about 3 in 100,000, and to some in 10,000 for rates about 0.001, where the grid may have no more points. One
grid for all would be too coarse for small rates and slow for large ones."""
_COARSEST_GRID, _LARGEST_GRID_POINTS = 2e-3, 5e4
_TAIL = 10.0
"""In standard deviations of the noise: what lies beyond has a probability of e⁻⁵⁰."""
_LEAST_EXACT_MU = 1e-5
_ORDERS = (*range(2, 65), 128, 256, 512)
"""Whole orders only: for them the divergence has a closed form; for others a series that may not converge."""
_LEAST_NOISE, _MOST_NOISE = 0.05, 1e6
_AS_NONE = 1e-100
"""So little noise hides nothing, and its square soon leaves the numbers of the machine: it counts as none."""
_MOST_COUNTED, _LEAST_RATE = 1e100, 1e-9
"""More noise, and a smaller rate, count as these, which cost more: for them the computation still has numbers."""
_NOISE_DIGITS = 4


@dataclass(frozen=True, order=True)
class Mechanism:
    """Gaussian noise on sums over patients, of whom each moves the sum by at most one sensitivity.

    noise: its standard deviation over the sensitivity. rate: probability with which each patient takes part in a step,
    independently of the others (Poisson sampling); 1: everybody does. steps: how many such sums were given away.
    """

    noise: float
    rate: float
    steps: int

    def times(self, rounds: int) -> Mechanism:
        """The same mechanism as often as that."""
        return replace(self, steps=self.steps * rounds)


def merged(mechanisms: Iterable[Mechanism]) -> tuple[Mechanism, ...]:
    """The same composition in fewest entries and canonical order: steps of equal noise and rate are added up.

    >>> merged([Mechanism(1.0, 0.1, 5), Mechanism(2.0, 1.0, 1), Mechanism(1.0, 0.1, 7), Mechanism(3.0, 1.0, 0)])
    (Mechanism(noise=1.0, rate=0.1, steps=12), Mechanism(noise=2.0, rate=1.0, steps=1))
    """
    counted: Counter[tuple[float, float]] = Counter()
    for one in mechanisms:
        counted[one.noise, one.rate] += one.steps
    return tuple(Mechanism(noise, rate, steps) for (noise, rate), steps in sorted(counted.items()) if steps)


def _counted(mechanisms: Iterable[Mechanism]) -> tuple[Mechanism, ...]:
    """Merged, in numbers that can be computed with; it costs as much, or more."""
    return merged(replace(m, noise=min(m.noise, _MOST_COUNTED), rate=max(m.rate, _LEAST_RATE)) for m in mechanisms)


def epsilon(mechanisms: Iterable[Mechanism], delta: float) -> float:
    """Epsilon of all mechanisms together at a delta; infinite if one adds no noise (or 10⁻¹⁰⁰), 0 if there is none.

    Exact where everybody takes part in every step. Else tight (privacy loss distributions) while the Rényi bound is at
    most 100, for at most 100,000 sampled steps and for a delta from 10⁻⁹; beyond, that bound, which is larger. It is
    valid whatever the sums were, also if each was chosen by what the earlier ones showed, as long as noise, rates and
    numbers of steps were fixed beforehand; where these too follow from what was seen, see `budget`.
    Source: Balle and Wang 2018, theorem 8 (exact); Koskela et al. 2020 and Doroshenko et al. 2022, Connect the Dots
    (tight); dp_accounting's PLDAccountant.
    """
    together = _counted(mechanisms)
    if not together:
        return 0.0
    if any(one.noise <= _AS_NONE for one in together):
        return math.inf
    if all(one.rate >= 1 for one in together):
        return _exact(_mu(together), delta)
    bound = _renyi(together, delta, _ORDERS)
    sampled = sum(one.steps for one in together if one.rate < 1)
    if bound > _COARSE or sampled > _MANY or delta < _SMALLEST_DELTA:
        return bound
    return min(bound, _tight(together, delta))


def renyi_epsilon(mechanisms: Iterable[Mechanism], delta: float, order: int) -> float:
    """Epsilon at a delta from the Rényi divergence of one order (2, 3, …); larger than `epsilon`, and additive inside:
    the divergences of all mechanisms add up before they are converted. A divergence that can't be told is infinite.

    Source: Mironov et al. 2019 (sampled Gaussian); Canonne et al. 2020, prop. 12 (conversion); RdpAccountant.
    """
    together = _counted(mechanisms)
    if any(one.noise <= _AS_NONE for one in together):
        return math.inf
    return _renyi(together, delta, (order,))


@lru_cache(maxsize=1024)
def _renyi(together: tuple[Mechanism, ...], delta: float, orders: tuple[int, ...]) -> float:
    from dp_accounting.rdp import compute_epsilon

    with np.errstate(over="ignore"):
        total = np.sum([one.steps * _divergences(one.noise, one.rate, orders) for one in together], axis=0)
    told = np.isfinite(total)
    if not told.any():
        return math.inf
    return float(compute_epsilon(np.array(orders)[told], total[told], delta)[0])


@lru_cache(maxsize=4096)
def _divergences(noise: float, rate: float, orders: tuple[int, ...]) -> NDArray[np.float64]:
    """Rényi divergences of one step at whole orders. Ledgers ask for the same ones in ever other sums.

    Infinite where the computation has no number, since dp_accounting takes NaN for nothing spent. Rounding can bring
    one below 0, where it is 0: dp_accounting takes any that is negative for nothing spent at all orders.
    Source: Mironov et al. 2019, section 3.3; α / (2σ²) where everybody takes part.
    """
    with np.errstate(all="ignore"):
        if rate >= 1:
            found = np.array(orders) / np.float64(2 * noise**2)
        else:
            found = np.array([_sampled_divergence(noise, rate, order) for order in orders])
    return np.where(np.isfinite(found), np.maximum(found, 0.0), np.inf)


def _sampled_divergence(noise: float, rate: float, order: int) -> float:
    """log Σₖ C(α, k) (1 − q)^(α−k) q^k e^((k²−k)/2σ²) / (α − 1), for k = 0 … α."""
    k = np.arange(order + 1)
    chosen = np.array([math.lgamma(order + 1) - math.lgamma(n + 1) - math.lgamma(order - n + 1) for n in k.tolist()])
    terms = chosen + (order - k) * math.log1p(-rate) + k * math.log(rate) + (k * k - k) / (2 * noise**2)
    return float(np.logaddexp.reduce(terms)) / (order - 1)


def _mu(together: tuple[Mechanism, ...]) -> float:
    """Sums over everybody are together one sum with less noise: the sensitivity over its standard deviation."""
    return math.sqrt(math.fsum(one.steps / one.noise**2 for one in together if one.rate >= 1))


@lru_cache(maxsize=1024)
def _exact(mu: float, delta: float) -> float:
    """Epsilon of Gaussian noise on sums over everybody; that of the least mu below it, where rounding errors win."""
    import dp_accounting

    if not math.isfinite(mu):
        return math.inf
    with np.errstate(divide="ignore"):  # a delta that is 0 to machine precision, on the way
        return float(dp_accounting.get_epsilon_gaussian(1 / max(mu, _LEAST_EXACT_MU), delta))


@lru_cache(maxsize=1024)
def _tight(together: tuple[Mechanism, ...], delta: float) -> float:
    from dp_accounting.pld import PLDAccountant

    accountant = PLDAccountant(_neighbours(), _grid(together))
    _compose(accountant, together)
    return float(accountant.get_epsilon(delta))


def _grid(together: tuple[Mechanism, ...]) -> float:
    """Distance of the points to which privacy losses are rounded up: small beside what one rounded loss varies by.

    Rounding n losses to a grid h adds at most n·h²/4 to the variance of their sum.
    """
    sampled = [one for one in together if one.rate < 1]
    variance = math.fsum(one.steps * _loss_variance(one) for one in sampled) + _mu(together) ** 2
    grid = math.sqrt(variance / (sum(one.steps for one in sampled) + 1)) / _FINENESS
    widest = max(_largest_loss(one) for one in sampled)
    return min(max(grid, widest / _LARGEST_GRID_POINTS), _COARSEST_GRID)


def _loss_variance(one: Mechanism) -> float:
    """About the variance of the privacy loss of one sampled step: q²·(e^(1/σ²) − 1), the χ² distance, while small."""
    return one.rate**2 * min(math.expm1(min(one.noise**-2, 100.0)), 1 / one.rate)


def _largest_loss(one: Mechanism) -> float:
    """The privacy loss of one sampled step that is exceeded with a probability of e⁻⁵⁰ only."""
    unsampled = _TAIL / one.noise + 0.5 / one.noise**2
    return float(np.logaddexp(math.log1p(-one.rate), math.log(one.rate) + unsampled))


def _neighbours() -> Any:
    import dp_accounting

    return dp_accounting.NeighboringRelation.ADD_OR_REMOVE_ONE


def _compose(accountant: Any, together: tuple[Mechanism, ...]) -> None:
    import dp_accounting

    for one in together:
        event: Any = dp_accounting.GaussianDpEvent(one.noise)
        if one.rate < 1:
            event = dp_accounting.PoissonSampledDpEvent(one.rate, event)
        accountant.compose(event, one.steps)


@lru_cache(maxsize=64)
def noise_for(target_epsilon: float, delta: float, rate: float, steps: int) -> float:
    """The least noise with which so many steps cost at most a target epsilon, rounded up to five significant digits
    (at most four decimal places); not below 0.05.

    Raises PrivacyError if no noise up to 10⁶ is enough.
    """
    from scipy.optimize import brentq

    def too_much(noise: float, by: Callable[[Mechanism], float]) -> float:
        return math.log(max(by(Mechanism(noise, rate, steps)), 1e-12) / target_epsilon)

    quick = partial(too_much, by=lambda one: _renyi((one,), delta, _ORDERS))
    true = partial(too_much, by=lambda one: epsilon([one], delta))
    if true(_LEAST_NOISE) <= 0:
        return _LEAST_NOISE
    high = 1.0
    while quick(high) > 0 and true(high) > 0:
        high *= 4
        if high > _MOST_NOISE:
            raise PrivacyError(
                f"No noise brings {steps} steps below epsilon {target_epsilon:g} at delta {delta:g}.",
                fix="Raise privacy.target_epsilon or privacy.delta, or ask for fewer steps.",
            )
    if quick(high) <= 0:  # the Rényi bound is above the tight one: so is the noise that it asks for, by some percent
        high = float(brentq(quick, _LEAST_NOISE, high, xtol=1e-3, rtol=1e-3)) * 1.002
    low = max(0.8 * high, _LEAST_NOISE)
    while true(low) <= 0:
        low, high = max(low / 2, _LEAST_NOISE), low
    found = float(brentq(true, low, high, xtol=1e-5, rtol=1e-5))
    return _least(lambda noise: true(noise) <= 0, found)


def _least(enough: Callable[[float], bool], found: float) -> float:
    """The least number of five significant digits, near the found one, that is enough where the next below is not."""
    digits = _NOISE_DIGITS - max(0, math.floor(math.log10(found)))
    units = math.ceil(found * 10.0**digits)
    while not enough(round(units * 10.0**-digits, digits)):
        units += 1
    while enough(round((units - 1) * 10.0**-digits, digits)):
        units -= 1
    return round(units * 10.0**-digits, digits)

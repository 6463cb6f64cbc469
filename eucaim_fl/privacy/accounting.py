"""What mechanisms cost together: epsilon of any sequence of them at one delta, by privacy loss distributions.

The only importer of dp_accounting. Neighbouring cohorts differ by one patient, added or removed. Every number is an
upper bound: dp_accounting rounds privacy losses up.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

from scipy.optimize import brentq

from eucaim_fl.errors import PrivacyError

__all__ = ["Mechanism", "epsilon", "merged", "noise_for", "renyi_epsilon"]

_COARSE = 50.0
"""Above such an epsilon nothing is promised: the Rényi bound is told, which is above the tight one and quick."""
_MANY = 20_000
"""Above so many steps too: the tight computation then needs minutes, and its own rounding adds up."""
_ORDERS = (*range(2, 65), 128, 256, 512)
"""Whole orders only: for them the divergence has a closed form; for others a series that may not converge."""
_LEAST_NOISE, _MOST_NOISE = 0.05, 1e6
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


def epsilon(mechanisms: Iterable[Mechanism], delta: float) -> float:
    """Epsilon of all mechanisms together at a delta; infinite if one adds no noise, 0 if there is none.

    Tight (privacy loss distributions) up to epsilon 50 and 20,000 steps; beyond, the larger Rényi bound. It is valid
    whatever the sums were, also if each was chosen by what the earlier ones showed, as long as noise, rates and numbers
    of steps were fixed beforehand; where these too follow from what was seen, see `budget`.
    Source: Koskela et al. 2020; Doroshenko et al. 2022, Connect the Dots; dp_accounting's PLDAccountant.
    """
    together = merged(mechanisms)
    if not together:
        return 0.0
    if any(one.noise <= 0 for one in together):
        return math.inf
    bound = _renyi(together, delta, _ORDERS)
    if bound > _COARSE or sum(one.steps for one in together) > _MANY:
        return bound
    return min(bound, _tight(together, delta))


def renyi_epsilon(mechanisms: Iterable[Mechanism], delta: float, order: int) -> float:
    """Epsilon at a delta from the Rényi divergence of one order (2, 3, …); larger than `epsilon`, and additive inside:
    the divergences of all mechanisms add up before they are converted.

    Source: Mironov et al. 2019 (sampled Gaussian); Canonne et al. 2020, prop. 12 (conversion); RdpAccountant.
    """
    together = merged(mechanisms)
    if any(one.noise <= 0 for one in together):
        return math.inf
    return _renyi(together, delta, (order,))


@lru_cache(maxsize=1024)
def _renyi(together: tuple[Mechanism, ...], delta: float, orders: tuple[int, ...]) -> float:
    from dp_accounting.rdp import RdpAccountant

    accountant = RdpAccountant(list(orders), _neighbours())
    _compose(accountant, together)
    return float(accountant.get_epsilon(delta))


@lru_cache(maxsize=1024)
def _tight(together: tuple[Mechanism, ...], delta: float) -> float:
    from dp_accounting.pld import PLDAccountant

    accountant = PLDAccountant(_neighbours())
    _compose(accountant, together)
    return float(accountant.get_epsilon(delta))


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
    """The least noise, rounded up to four decimal places, with which so many steps cost at most a target epsilon.

    Raises PrivacyError if no noise up to 10⁶ is enough.
    """

    def too_much(noise: float) -> float:
        return math.log(epsilon([Mechanism(noise, rate, steps)], delta) + 1e-12) - math.log(target_epsilon)

    high = 1.0
    while _renyi((Mechanism(high, rate, steps),), delta, _ORDERS) > target_epsilon:
        high *= 2
        if high > _MOST_NOISE:
            raise PrivacyError(
                f"No noise brings {steps} steps below epsilon {target_epsilon:g} at delta {delta:g}.",
                fix="Raise privacy.target_epsilon or privacy.delta, or ask for fewer steps.",
            )
    low = high / 2
    while low > _LEAST_NOISE and too_much(low) <= 0:
        low, high = low / 2, low
    if low <= _LEAST_NOISE and too_much(_LEAST_NOISE) <= 0:
        return _LEAST_NOISE
    low = max(low, _LEAST_NOISE)
    found = float(brentq(too_much, low, high, xtol=1e-5, rtol=1e-6))
    noise = math.ceil(found * 10**_NOISE_DIGITS) / 10**_NOISE_DIGITS
    while too_much(noise) > 0:
        noise += 10**-_NOISE_DIGITS
    return round(noise, _NOISE_DIGITS)

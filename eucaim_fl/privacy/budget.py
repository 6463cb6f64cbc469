"""Budgets: what may still be asked of a patient or a cohort, also if plans are chosen by what earlier ones showed.

A site's budget outlives plans, and who writes the next plan has seen what came of the last: noise, rates and numbers of
steps are then chosen adaptively, which `accounting.epsilon` does not cover. A privacy filter does: fix one Rényi order
before any data are touched, add up the divergences of that order, and refuse what would bring the sum above what the
budget's epsilon allows at that order. Source: Feldman and Zrnic 2021, Individual Privacy Accounting via a Rényi Filter
(theorem 3.1: also for each patient alone, who leaves when the own sum is full); Lécuyer 2021.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from eucaim_fl.privacy.accounting import Mechanism, renyi_epsilon

__all__ = ["Budget"]


@dataclass(frozen=True)
class Budget:
    """The largest epsilon at a delta of all that is ever asked."""

    epsilon: float
    delta: float

    @property
    def order(self) -> int:
        """The Rényi order at which this budget is kept; it follows from epsilon and delta alone.

        It is the order that leaves the largest ρ to mechanisms whose divergence is ρ × order (Gaussian noise on sums
        over everybody).
        """
        return _order(self.epsilon, self.delta)

    def holds(self, mechanisms: Iterable[Mechanism]) -> bool:
        """Whether all that was done, is reserved and is asked stays within the budget."""
        return self.used(mechanisms) <= self.epsilon

    def used(self, mechanisms: Iterable[Mechanism]) -> float:
        """The epsilon that counts against the budget: by Rényi divergence at its order; 0 if nothing was done."""
        together = tuple(one for one in mechanisms if one.steps)
        return renyi_epsilon(together, self.delta, self.order) if together else 0.0


@lru_cache(maxsize=64)
def _order(epsilon: float, delta: float) -> int:
    orders = np.arange(2.0, 513.0)
    conversion = np.log((orders - 1) / orders) - (np.log(delta) + np.log(orders)) / (orders - 1)
    return int(orders[np.argmax((epsilon - conversion) / orders)])

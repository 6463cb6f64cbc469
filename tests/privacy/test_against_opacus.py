"""The accountants of Opacus, by other authors and of other construction, come to the same numbers."""

from __future__ import annotations

import pytest
from opacus.accountants import PRVAccountant, RDPAccountant

from eucaim_fl.privacy.accounting import Mechanism, epsilon, renyi_epsilon

DELTA = 1e-5


def history(mechanisms: list[Mechanism]) -> list[tuple[float, float, int]]:
    return [(one.noise, one.rate, one.steps) for one in mechanisms]


@pytest.mark.parametrize(
    "mechanisms",
    [[Mechanism(1.5, 0.04, 2250)], [Mechanism(1.0, 0.1, 100), Mechanism(2.0, 0.2, 50), Mechanism(6.0, 1.0, 3)]],
    ids=["one", "three unlike"],
)
def test_the_renyi_accountant_at_the_same_orders(mechanisms: list[Mechanism]) -> None:
    accountant = RDPAccountant()
    accountant.history = history(mechanisms)
    orders = list(range(2, 40))
    ours = min(renyi_epsilon(mechanisms, DELTA, order) for order in orders)
    assert ours == pytest.approx(accountant.get_epsilon(DELTA, alphas=orders), rel=1e-9)
    assert epsilon(mechanisms, DELTA) < ours


def test_the_prv_accountant_within_the_error_that_it_is_allowed() -> None:
    mechanisms, error = [Mechanism(1.5, 0.1, 20), Mechanism(2.0, 0.2, 10)], 1e-2
    accountant = PRVAccountant()
    accountant.history = history(mechanisms)
    theirs = accountant.get_epsilon(DELTA, eps_error=error)  # an upper bound, at most twice the error above the truth
    assert theirs - 2 * error <= epsilon(mechanisms, DELTA) <= theirs
    assert epsilon(mechanisms, DELTA) == pytest.approx(theirs - error, rel=2e-4)

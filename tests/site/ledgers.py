"""Small ledgers as values for tests. Two budgets to know: of epsilon 3 at delta 1e-5, seven steps of `once` fit."""

from __future__ import annotations

from eucaim_fl.privacy.accounting import Mechanism
from eucaim_fl.privacy.budget import Budget
from eucaim_fl.site.ledger_base import LedgerHead, Purchase
from eucaim_fl.site.ledger_state import Charge, Group, Held, State

A, B = "a" * 64, "b" * 64
DELTA = 1e-5
BUDGET = Budget(3.0, DELTA)


def once(steps: int = 1) -> Mechanism:
    return Mechanism(4.0, 1.0, steps)


def purchase(plan: str = A, *, use: str = "train", secure: bool = True, purpose: str = "education") -> Purchase:
    return Purchase(plan, f"plan-{plan[0]}", purpose, "a", "train" if use == "train" else "figures", secure)


def charge(number: int, at: int, plan: str = A, patients: int = 10, use: str = "train") -> Charge:
    """The charge for round `at`, in record `number`."""
    return Charge(number, f"2026-03-01T12:{number:02d}:00.000000+00:00", purchase(plan, use=use), at, once(), patients)


def two_runs() -> State:
    """A has trained rounds 1, 2 and 2 again with ten patients; B round 1 with four of them, and holds two more."""
    charges = (charge(1, 1), charge(2, 2), charge(3, 2), charge(4, 1, B, patients=4))
    groups = (Group(6, (once(3),), (once(3),)), Group(4, (once(4),), (once(6),)))
    held = (Held(purchase(B), once(2), 4, charges[-1].time),)
    return State(LedgerHead(5, "f" * 64), "a", "ed25519:x", charges, held, groups)

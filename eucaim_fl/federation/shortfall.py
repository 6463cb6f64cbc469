"""Why a round has too few sites, and what can be done about it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

from eucaim_fl.errors import (
    ApprovalPendingError,
    GateError,
    PlanError,
    PolicyRefusalError,
    PrivacyBudgetError,
    PrivateTrainingError,
    QuorumError,
)
from eucaim_fl.records import Participation

__all__ = [
    "below_quorum",
    "budgets_end_it",
    "never_enough",
    "nothing_told",
    "refusing",
    "with_spent_budget",
    "withholding",
]

_LASTING = {PlanError.code, GateError.code, PolicyRefusalError.code, PrivateTrainingError.code}
"""Refusals that a site gives as often as it is asked, until a person there or the recipe changes something."""


def below_quorum(number: int, quorum: int, participation: Sequence[Participation], run: str) -> QuorumError:
    """The error of a round with fewer sites than its quorum: who is missing, why, and how to go on.

    participation: of all the plan's sites. run: name of the run's folder.
    """
    missing = [p for p in participation if p.status != "took_part"]
    fix = "Mend what is named here, then resume the run; completed rounds are kept."
    waits = [p.site for p in missing if p.code == ApprovalPendingError.code]
    if waits:
        fix = (
            f"People at {', '.join(waits)} have to approve the plan first; then: eucaim-fl train resume={run} "
            "(a new run waits for them as long as federation.quorum_wait_s says)"
        )
    never = [p.site for p in missing if p.code == PrivateTrainingError.code]
    if never and never_enough(participation, quorum):
        fix = (
            f"At {', '.join(never)} the plan can't be private as it stands, and waiting or resuming changes nothing: "
            "start again with another recipe, for instance with a smaller privacy.delta."
        )
    have = len(participation) - len(missing)
    what = f"Round {number}" if number else "The question before the first round"
    return QuorumError(f"{what} has {have} of the {quorum} sites that it needs. {_named(missing)}", fix=fix)


def _named(missing: Iterable[Participation]) -> str:
    return "; ".join(f"{p.site}: {' '.join(filter(None, (p.status, p.code, p.reason)))}" for p in missing)


def nothing_told(participation: Sequence[Participation], quorum: int) -> QuorumError:
    """The error of a run in which too few sites tell the sums that the plan needs: who does not, and why.

    participation: of all the plan's sites, in the question before the first round.
    """
    missing = [p for p in participation if p.status != "took_part"]
    return QuorumError(
        f"{len(participation) - len(missing)} sites tell sums over their training patients, and the quorum is "
        f"{quorum}. {_named(missing)}",
        fix="Set data.standardise and training.balance so that the plan needs none of the federation's, or ask the "
        "sites whether their policy may list them.",
    )


def withholding(participation: Participation) -> Participation:
    """What became of a site whose answer holds none of the sums that it was asked for."""
    return replace(
        participation, status="error", code=GateError.code, reason="It withholds the sums over its training patients."
    )


def refusing(states: Mapping[str, Participation]) -> tuple[str, ...]:
    """Sites that said no to a question, and will say so again. states: of those that were asked."""
    return tuple(sorted(site for site, p in states.items() if p.status == "error" and p.code in _LASTING))


def never_enough(participation: Sequence[Participation], quorum: int) -> bool:
    """Whether so many sites can't train privately as the plan asks that no waiting brings the quorum.

    participation: of all the plan's sites; one that is absent may still come.
    """
    return sum(p.code != PrivateTrainingError.code for p in participation) < quorum


def with_spent_budget(states: Mapping[str, Participation]) -> tuple[str, ...]:
    """Sites whose privacy budget does not hold the round; asking them again changes nothing."""
    return tuple(sorted(site for site, p in states.items() if p.code == PrivacyBudgetError.code))


def budgets_end_it(states: Mapping[str, Participation], connected: Iterable[str], quorum: int) -> bool:
    """Whether so many sites have spent their privacy budget that the quorum can't be reached with those connected."""
    spent = with_spent_budget(states)
    return bool(spent) and len(set(connected) - set(spent)) < quorum

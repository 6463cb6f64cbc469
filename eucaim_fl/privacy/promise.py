"""What a plan promises: its mechanism as the accountant sees it, whom it protects from whom, and at what epsilon."""

from __future__ import annotations

import math
from dataclasses import dataclass
from decimal import ROUND_CEILING, Context
from typing import Literal

from eucaim_fl.config import PrivacyConfig, TrainingConfig
from eucaim_fl.plan import FederationPlan
from eucaim_fl.privacy.accounting import Mechanism, epsilon, noise_for

__all__ = [
    "Promise",
    "epsilon_words",
    "figures_mechanism",
    "promise",
    "round_mechanism",
    "settled",
    "site_is_charged",
    "steps_of_round",
]

_UP = Context(prec=3, rounding=ROUND_CEILING)


@dataclass(frozen=True)
class Promise:
    """Epsilon at delta, over all rounds of a plan at one site.

    unit: what the presence of which is hidden: one patient (who then is in no other place of the site's cohort), or a
    site as a whole. against: from whom: the coordinator (and so everybody), or those who see the models alone.
    """

    epsilon: float
    delta: float
    unit: Literal["patient", "site"]
    against: Literal["coordinator", "readers"]


def steps_of_round(training: TrainingConfig, privacy: PrivacyConfig) -> int:
    """Optimizer steps of one round under `patient_dp`; an epoch is 1/sampling_rate of them, rounded up."""
    if training.local_steps is not None:
        return training.local_steps
    return math.ceil((training.local_epochs or 1) / (privacy.sampling_rate or 1.0))


def site_is_charged(privacy: PrivacyConfig) -> bool:
    """Whether a site adds the noise itself, and so keeps account of it."""
    return privacy.mechanism in ("patient_dp", "update_dp")


def round_mechanism(privacy: PrivacyConfig, training: TrainingConfig) -> Mechanism | None:
    """What one round of training costs; None if no noise is added.

    update_dp: another patient changes a clipped update by twice the clipping norm at most, so against that sensitivity
    the noise is half as large. central_dp: a site's absence changes the sum of clipped updates by the clipping norm.
    """
    if privacy.mechanism == "none" or privacy.noise_multiplier is None:
        return None
    if privacy.mechanism == "patient_dp":
        return Mechanism(privacy.noise_multiplier, privacy.sampling_rate or 1.0, steps_of_round(training, privacy))
    return Mechanism(privacy.noise_multiplier / (2 if privacy.mechanism == "update_dp" else 1), 1.0, 1)


def figures_mechanism(privacy: PrivacyConfig) -> Mechanism | None:
    """What one release of noised figures costs the patients behind them; None if none are released so."""
    return None if privacy.metrics_noise is None else Mechanism(privacy.metrics_noise, 1.0, 1)


def promise(plan: FederationPlan) -> Promise | None:
    """What the whole plan promises to a training patient or, with `central_dp`, to a site; None without noise."""
    once, delta = round_mechanism(plan.privacy, plan.training), plan.privacy.delta
    if once is None or delta is None:
        return None
    spent = epsilon([once.times(plan.rounds)], delta)
    if plan.privacy.mechanism == "central_dp":
        return Promise(spent, delta, "site", "readers")
    return Promise(spent, delta, "patient", "coordinator")


def epsilon_words(epsilon_told: float) -> str:
    """An epsilon for people: three significant digits, rounded up, so that none is told too small.

    epsilon_told: 0 or more. What differs in the tenth digit only is the same.

    >>> epsilon_words(2.3101), epsilon_words(7.9993), epsilon_words(8.00000000001), epsilon_words(0.0)
    ('2.32', '8', '8', '0')
    >>> epsilon_words(999.2), epsilon_words(12345.6), epsilon_words(math.inf)
    ('1,000', '12,346', 'no bound')
    """
    if not math.isfinite(epsilon_told):
        return "no bound"
    nearly = f"{epsilon_told:.9g}"
    up = float(_UP.create_decimal(nearly))
    return f"{up:.3g}" if up < 1000 else f"{math.ceil(float(nearly)):,}"


def settled(privacy: PrivacyConfig, training: TrainingConfig, rounds: int) -> PrivacyConfig:
    """The same with the noise that its target epsilon needs over so many rounds, as plans have it.

    Raises PrivacyError if no noise is enough.
    """
    if privacy.target_epsilon is None or privacy.delta is None:
        return privacy
    per_round = round_mechanism(privacy.model_copy(update={"noise_multiplier": 1.0}), training)
    if per_round is None:
        return privacy
    noise = noise_for(privacy.target_epsilon, privacy.delta, per_round.rate, per_round.steps * rounds)
    return privacy.model_copy(update={"target_epsilon": None, "noise_multiplier": noise / per_round.noise})

"""What a site's policy says to the privacy of a plan, and which budgets its ledger keeps. Pure."""

from __future__ import annotations

from eucaim_fl.config import Purpose
from eucaim_fl.plan import FederationPlan
from eucaim_fl.privacy.budget import Budget
from eucaim_fl.privacy.promise import promise, site_is_charged
from eucaim_fl.site.ledger import Limits
from eucaim_fl.site.policy import PrivacyPolicy

__all__ = ["NO_LIMITS", "limits_of", "privacy_answer"]

NO_LIMITS = Limits(plan=None, patient=None, dataset=None, purpose=None)
"""Where no policy speaks: what is spent is written down all the same."""


def privacy_answer(plan: FederationPlan, policy: PrivacyPolicy) -> tuple[bool, str]:
    """Whether the policy allows the plan's mechanism, and what the plan asks, in plain words.

    The epsilon is computed here from the plan's noise, rate and steps; nothing that a plan says of it is believed.
    Where differential privacy is required it must hold against the coordinator, so the site itself adds the noise, and
    from a secure source. Whether the budgets still hold the plan is asked of the ledger.
    """
    promised = promise(plan)
    if promised is None:
        return policy.mechanism == "none", "no noise is added: the plan promises no differential privacy"
    asks = f"{plan.privacy.mechanism} with epsilon {promised.epsilon:.4g} and delta {promised.delta:g}"
    if not site_is_charged(plan.privacy):
        asks += "; the server adds the noise, and sees the update without"
    if not plan.privacy.secure:
        asks += "; the noise follows from the plan's seed, so it hides nothing from who has the plan"
    if policy.epsilon is None or policy.delta is None:
        return policy.mechanism == "none", asks
    within = promised.epsilon <= policy.epsilon and promised.delta <= policy.delta
    return within and site_is_charged(plan.privacy) and plan.privacy.secure, asks


def limits_of(policy: PrivacyPolicy, purpose: Purpose) -> Limits:
    """The budgets that a plan for a purpose must fit into."""
    delta = policy.delta
    if delta is None:
        return NO_LIMITS

    def budget(epsilon: float | None) -> Budget | None:
        return None if epsilon is None else Budget(epsilon, delta)

    return Limits(
        plan=budget(policy.epsilon),
        patient=budget(policy.patient_epsilon),
        dataset=budget(policy.dataset_epsilon),
        purpose=budget(policy.purpose_epsilon.get(purpose)),
    )

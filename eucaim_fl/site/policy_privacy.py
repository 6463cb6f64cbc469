"""What a site's policy says to the privacy of a plan, and which budgets its ledger keeps. Pure."""

from __future__ import annotations

from eucaim_fl.config import Purpose
from eucaim_fl.plan import FederationPlan
from eucaim_fl.privacy.budget import Budget
from eucaim_fl.privacy.promise import epsilon_words, promise, site_is_charged
from eucaim_fl.site.ledger import Limits
from eucaim_fl.site.policy import PrivacyPolicy

__all__ = ["FORESEEABLE", "NO_LIMITS", "OPEN_WITH_NOISE", "foreseeable", "limits_of", "privacy_answer"]

NO_LIMITS = Limits(plan=None, patient=None, dataset=None, purpose=None)
"""Where no policy speaks: what is spent is written down all the same."""

OPEN_WITH_NOISE = (
    "whether the ledger's budgets still hold it by then (`site ledger project` says it for now), and whether delta is "
    "below 1/patients here"
)
"""What only run time tells of a plan for which this site adds noise, and is charged."""
FORESEEABLE = (
    "The plan's noise follows from a seed that the coordinator knows (privacy.secure is false), so it would protect "
    "nobody, and the data of this site are confidential."
)
"""Why a site refuses such a plan; safe to tell outside."""
_FORESEEABLE_IF = (
    "The plan's noise follows from a seed that the coordinator knows (privacy.secure is false), so it would protect "
    "nobody: only a site whose site file calls its data synthetic or public takes it."
)


def foreseeable(plan: FederationPlan, *, confidential: bool | None) -> bool:
    """Whether a plan's noise would protect nobody whom it has to: only public and synthetic data need no such noise.

    Without any noise a plan promises nothing, and what the policy says to that counts. confidential: None where nobody
    knows what the data are; they are taken to be.
    """
    return confidential is not False and plan.privacy.mechanism != "none" and not plan.privacy.secure


def privacy_answer(
    plan: FederationPlan, policy: PrivacyPolicy, *, confidential: bool | None = False
) -> tuple[bool, str, tuple[str, ...]]:
    """Whether plan and policy agree, what the plan asks in plain words, and what else the asker may be told.

    The epsilon is computed here from the plan's noise, rate and steps; nothing that a plan says of it is believed.
    Where differential privacy is required it must hold against the coordinator, so the site itself adds the noise, and
    from a secure source. Whether the budgets still hold the plan is asked of the ledger. confidential: see
    `foreseeable`.
    """
    promised = promise(plan)
    if promised is None:
        return policy.mechanism == "none", "no noise is added: the plan promises no differential privacy", ()
    asks = f"{plan.privacy.mechanism} with epsilon {epsilon_words(promised.epsilon)} and delta {promised.delta:g}"
    if not site_is_charged(plan.privacy):
        asks += "; the server adds the noise, and sees the update without"
    if not plan.privacy.secure:
        asks += "; the noise follows from the plan's seed, so it hides nothing from who has the plan"
    if foreseeable(plan, confidential=confidential):
        if confidential is None:
            asks += "; a site refuses that, unless the site file calls its data synthetic or public"
            return False, asks, (_FORESEEABLE_IF,)
        return False, f"{asks}, and the data here are confidential", (FORESEEABLE,)
    if policy.epsilon is None or policy.delta is None:
        return policy.mechanism == "none", asks, ()
    within = promised.epsilon <= policy.epsilon and promised.delta <= policy.delta
    return within and site_is_charged(plan.privacy) and plan.privacy.secure, asks, ()


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

"""Who is test data at a site under every plan with noise: drawn here with a key of its own, never by a plan's split."""

from __future__ import annotations

from eucaim_fl.cohorts.splits import HeldOut
from eucaim_fl.durable import local_key
from eucaim_fl.plan import FederationPlan
from eucaim_fl.site.policy import Policy
from eucaim_fl.sitefile import SiteFile

__all__ = ["held_out_of"]


def held_out_of(site: SiteFile, plan: FederationPlan, policy: Policy | None) -> HeldOut | None:
    """The patients whom a policy keeps out of training for a plan; None where it names none, the plan has no noise, or
    the data are not confidential.

    The key is made when it is first asked for. Raises JournalError if it can't be read or written.
    """
    share = None if policy is None else policy.privacy.held_out
    if policy is None or share is None or plan.privacy.mechanism == "none" or site.release.data_is != "confidential":
        return None
    return HeldOut(share, policy.privacy.test_data, local_key(site.records_folder() / "held_out.key"))

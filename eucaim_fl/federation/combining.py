"""The sites' updates of a round become one: by the plan's rule, or under `central_dp` clipped and noised here."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from eucaim_fl.arrays import Array, ArrayFile
from eucaim_fl.plan import FederationPlan
from eucaim_fl.privacy.stages import Normal, combined_privately
from eucaim_fl.seeding import derive_seed
from eucaim_fl.strategies.aggregation import aggregate

__all__ = ["combined"]


def combined(
    plan: FederationPlan, number: int, files: Sequence[ArrayFile], patients: Sequence[int], weights: Mapping[str, Array]
) -> Iterable[tuple[str, Array]]:
    """The common update of a round, array by array.

    files, patients: of each site, in canonical order; weights: that arrived.

    Raises what `aggregate` and `combined_privately` raise.
    """
    if plan.privacy.mechanism != "central_dp":
        return aggregate(plan.method.rule, files, [float(n) for n in patients])
    return combined_privately(files, weights, len(plan.sites), plan.privacy, _normal(plan, number)).items()


def _normal(plan: FederationPlan, number: int) -> Normal:
    import torch  # here, because it takes long

    from eucaim_fl.training.randomness import Randomness

    seed = derive_seed(plan.seed, "central noise", number)
    source = Randomness.secure() if plan.privacy.secure else Randomness.seeded(seed)
    return lambda shape: source.normal(shape, dtype=torch.float64).numpy()

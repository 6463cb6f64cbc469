"""Whether what is asked can be asked at all: a network that this site knows, a round that the plan has."""

from __future__ import annotations

from eucaim_fl.errors import PlanError, RecipeError
from eucaim_fl.models import check_input_size, check_model
from eucaim_fl.plan import FederationPlan
from eucaim_fl.seals import InstructionSeal

__all__ = ["check_network", "check_round"]


def check_network(plan: FederationPlan) -> None:
    """Look at the plan's networks; nothing is built.

    Raises PlanError if one is not on this site's list, or can't be built or fed as the plan has it.
    """
    dims = plan.task.spatial_dims
    fed = [(plan.model, plan.training.patch_voxels or plan.data.size_voxels[:dims])]
    if plan.validation is not None:
        models = plan.validation.models
        fed = [
            (one.network, one.patch_voxels or one.data.size_voxels[:dims]) for one in models if one.network is not None
        ]
    try:
        for network, size in fed:
            check_model(network, plan.task)
            check_input_size(network, plan.task, tuple(0 if n is None else n for n in size))
    except RecipeError as problem:  # its message quotes the plan
        raise PlanError(
            "The plan's network is not one that this site knows, or not one that can be built as the plan has it.",
            fix="Use the same eucaim_fl on both ends.",
            local_detail=problem.message,
        ) from None


def check_round(plan: FederationPlan, seal: InstructionSeal) -> None:
    """Look whether the plan has what is asked.

    Raises PlanError if it has no such round, or not for this kind of question.
    """
    asked = plan.needs_statistics() if seal.kind == "statistics" else seal.kind != "probe"
    if plan.validation is not None:  # nothing trains
        asked = seal.kind in ("hello", "final")
    first, last = {"round": (1, plan.rounds), "final": (plan.rounds + 1,) * 2}.get(seal.kind, (0, 0))
    if not (asked and first <= seal.round <= last):
        raise PlanError("The plan has no such round.")

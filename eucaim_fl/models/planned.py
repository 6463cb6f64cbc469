"""The network of a plan: with the plan's channels, image size and first weights, as every site builds it."""

from __future__ import annotations

import torch

from eucaim_fl.arrays import Arrays
from eucaim_fl.models.conditioned import conditioned
from eucaim_fl.models.networks import build, get_arrays
from eucaim_fl.models.parts import personal_names, shared_arrays, shared_specs
from eucaim_fl.plan import FederationPlan
from eucaim_fl.records import ArraySpec
from eucaim_fl.seeding import derive_seed

__all__ = ["first_arrays", "initial_arrays", "network_for", "network_image_size"]


def network_image_size(plan: FederationPlan) -> tuple[int, ...] | None:
    """Spatial size that the network sees: the training patch, else the plan's grid; None if neither is fixed."""
    if plan.training.patch_voxels is not None:
        return plan.training.patch_voxels
    size = plan.data.size_voxels[: plan.task.spatial_dims]
    return None if None in size else tuple(int(n) for n in size if n is not None)


def network_for(plan: FederationPlan, seed: int) -> torch.nn.Module:
    """The plan's network with fresh weights: its input has the plan's channels and image size, and the statistics that
    the plan asks for are around it (see `models.conditioned`).

    Raises RecipeError if the model doesn't fit.
    """
    channels = plan.data.number_of_channels()
    network = build(plan.model, plan.task, in_channels=channels, seed=seed, image_size=network_image_size(plan))
    return conditioned(network, plan)


def first_arrays(plan: FederationPlan) -> Arrays:
    """All arrays of the plan's network before the first round; they follow from the plan alone."""
    return get_arrays(network_for(plan, derive_seed(plan.seed, "initial weights")))


def initial_arrays(plan: FederationPlan) -> tuple[tuple[ArraySpec, ...], Arrays]:
    """The common model before the first round: what travels of `first_arrays`, without what stays at the sites.

    Raises RecipeError if the network has no arrays of the kind that the plan leaves to the sites.
    """
    network = network_for(plan, derive_seed(plan.seed, "initial weights"))
    personal = personal_names(network, plan)
    return shared_specs(network, personal), shared_arrays(get_arrays(network), personal)

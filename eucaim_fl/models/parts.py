"""Which of a network's arrays stay at the site, by the plan."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
from torch.nn.modules.batchnorm import _NormBase

from eucaim_fl.arrays import Array, Arrays
from eucaim_fl.errors import RecipeError
from eucaim_fl.models.networks import array_specs, output_channels
from eucaim_fl.plan import FederationPlan
from eucaim_fl.records import INPUT_MEAN, INPUT_STD, ArraySpec

__all__ = ["personal_names", "shared_arrays", "shared_specs"]

_NORMALISATION = (_NormBase, torch.nn.GroupNorm, torch.nn.LayerNorm)
"""`_NormBase` is what PyTorch's batch and instance normalisation have in common, on any number of axes."""


def personal_names(network: torch.nn.Module, plan: FederationPlan) -> frozenset[str]:
    """Names of the arrays that stay at the site: those of `method.personal.arrays`, and a site's own input statistics.

    `normalization`: parameters, running statistics and counters of all batch, instance, group and layer normalisation
    (FedBN). `head`: the parameters of the last layer that has some, in the order in which the network was built (local
    heads). With `data.standardise: site`, also the mean and standard deviation of its input. Empty for other plans.
    Raises RecipeError if the network has no such arrays.
    Source: Li et al. 2021, FedBN; Arivazhagan et al. 2019, Federated Learning with Personalization Layers.
    """
    kept: set[str] = set()
    if plan.method.personal.arrays == "normalization":
        kept = _normalisation(network)
    elif plan.method.personal.arrays == "head":
        kept = _head(network, output_channels(plan.task))
    if plan.data.standardise == "site":
        kept |= {name for name in _names(network).values() if name.rpartition(".")[2] in (INPUT_MEAN, INPUT_STD)}
    return frozenset(kept)


def shared_specs(network: torch.nn.Module, personal: frozenset[str]) -> tuple[ArraySpec, ...]:
    """What the arrays that travel are called and look like, in sorted order of names."""
    return tuple(spec for spec in array_specs(network) if spec.name not in personal)


def shared_arrays(arrays: Mapping[str, Array], personal: frozenset[str]) -> Arrays:
    """The arrays that travel."""
    return {name: array for name, array in arrays.items() if name not in personal}


def _names(network: torch.nn.Module) -> dict[int, str]:
    """Tensor (its identity) → the name that `networks.array_specs` gives it: the first, where it has several."""
    names: dict[int, str] = {}
    for name, tensor in network.state_dict(keep_vars=True).items():
        names.setdefault(id(tensor), name)
    return names


def _names_of(modules: Iterable[torch.nn.Module], network: torch.nn.Module) -> set[str]:
    names = _names(network)
    own = (tensor for module in modules for tensor in (*module.parameters(False), *module.buffers(False)))
    return {names[id(tensor)] for tensor in own if id(tensor) in names}


def _normalisation(network: torch.nn.Module) -> set[str]:
    found = _names_of((module for module in network.modules() if isinstance(module, _NORMALISATION)), network)
    if not found:
        raise RecipeError(
            "method.personal.arrays is normalization, but the network has no normalisation with arrays.",
            fix="Choose a model with batch, instance or group normalisation, or set method.personal.arrays to none.",
        )
    return found


def _head(network: torch.nn.Module, outputs: int) -> set[str]:
    layers = [module for module in network.modules() if next(module.parameters(False), None) is not None]
    last = layers[-1] if layers else None
    wide = getattr(last, "out_channels", getattr(last, "out_features", None))
    if last is None or wide != outputs or len(layers) < 2:
        raise RecipeError(
            "method.personal.arrays is head, but the network has no last layer apart from the rest.",
            fix="Choose another model, or set method.personal.arrays to none.",
        )
    return _names_of((last,), network)

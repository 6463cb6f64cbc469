"""A plan at one site alone, over all its rounds, by the functions that a federation runs; nothing leaves, nothing is
charged for."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from eucaim_fl.arrays import Array, Arrays
from eucaim_fl.cohorts.cache import Entry
from eucaim_fl.cohorts.cohort import PreparedCase
from eucaim_fl.cohorts.preprocess import summarize_label
from eucaim_fl.config import PrivacyConfig
from eucaim_fl.models.conditioned import conditioned
from eucaim_fl.models.networks import build, get_arrays, set_arrays
from eucaim_fl.models.private import made_private
from eucaim_fl.plan import FederationPlan
from eucaim_fl.privacy.promise import Promise, promise
from eucaim_fl.privacy.stages import Normal, clipped, noised, with_counters
from eucaim_fl.seeding import derive_seed
from eucaim_fl.training.loop import train_round
from eucaim_fl.training.objective import pull_for, state_after
from eucaim_fl.training.patients import PatientLoader
from eucaim_fl.training.private_loop import train_privately
from eucaim_fl.training.randomness import Randomness

__all__ = [
    "HeldCase",
    "claim_to_patients",
    "drawn_from",
    "hidden_update",
    "image_size",
    "network_for",
    "noiseless",
    "randomness_for",
    "train_alone",
    "unprotected",
]

Loader = Callable[[Sequence[PreparedCase], FederationPlan, Randomness], PatientLoader]
_AT_A_TIME = 1 << 14


@dataclass(frozen=True, eq=False)
class HeldCase(PreparedCase):
    """A case whose tensors are in memory and on no disk. pixels: (C, I, J, K). mask: (I, J, K) or None."""

    pixels: NDArray[np.float32]
    mask: NDArray[np.uint8] | None

    @classmethod
    def of(
        cls, patient: str, pixels: NDArray[np.float32], mask: NDArray[np.uint8] | None, target: int | None
    ) -> HeldCase:
        """The case with what training needs to know of its label."""
        slices, voxels = ((), np.zeros((0, 3), np.int64)) if mask is None else summarize_label(mask)
        return cls(patient, target, Entry(Path(), None, (1.0, 1.0, 1.0), slices, voxels), pixels, mask)

    def image(self) -> NDArray[np.float32]:
        """The image, shape (C, I, J, K)."""
        return self.pixels

    def label(self) -> NDArray[np.uint8] | None:
        """The label, shape (I, J, K); None if the plan needs none."""
        return self.mask


def unprotected(plan: FederationPlan) -> FederationPlan:
    """The same plan without any privacy mechanism."""
    return plan.model_copy(update={"privacy": PrivacyConfig()})


def noiseless(plan: FederationPlan) -> FederationPlan:
    """The same plan with its noise switched off and everything else in place: no plan that a site would accept."""
    return plan.model_copy(update={"privacy": plan.privacy.model_copy(update={"noise_multiplier": 0.0})})


def claim_to_patients(plan: FederationPlan) -> Promise | None:
    """What the plan promises to each patient against whoever sees a site's updates; None if nothing.

    `central_dp` hides a site from those who see the models, and no patient from the coordinator.
    """
    found = promise(plan)
    return found if found is not None and found.unit == "patient" else None


def image_size(plan: FederationPlan) -> tuple[int, ...]:
    """Spatial size of what the network is trained on. Raises ValueError if neither patch nor grid fixes it."""
    size = plan.training.patch_voxels or plan.data.size_voxels[: plan.task.spatial_dims]
    if None in size:
        raise ValueError("training images have no fixed size")
    return tuple(int(n) for n in size if n is not None)


def network_for(plan: FederationPlan, device: str = "cpu") -> nn.Module:
    """The plan's network with the weights that its first round begins with, which whoever has the plan knows.

    Statistics that the plan asks for have the values that they have before any site was asked.
    Raises what `build`, `conditioned` and `made_private` raise.
    """
    channels = plan.data.number_of_channels()
    seed = derive_seed(plan.seed, "initial weights")
    built = build(plan.model, plan.task, in_channels=channels, seed=seed, image_size=image_size(plan))
    network = conditioned(built, plan).to(device)
    return made_private(network) if plan.privacy.mechanism == "patient_dp" else network


def randomness_for(plan: FederationPlan, seed: int, *purpose: str | int) -> Randomness:
    """Where noise comes from: the secure source where the plan says so, as at a site, else the audit's own seed."""
    return Randomness.secure() if plan.privacy.secure else Randomness.seeded(derive_seed(seed, *purpose))


def hidden_update(update: Mapping[str, Array], plan: FederationPlan, normal: Normal) -> Arrays:
    """An update clipped and noised as `update_dp` lets it leave a site. normal: as in `privacy.stages.noised`."""
    privacy = plan.privacy
    norm, noise = privacy.clipping_norm or 0.0, privacy.noise_multiplier or 0.0
    return noised(clipped(update, norm), noise * norm, normal)


def drawn_from(randomness: Randomness) -> Normal:
    """Normal numbers of any shape from a source, drawn many at a time, for small draws cost as much as large ones."""
    stock = np.zeros(0)

    def normal(shape: tuple[int, ...]) -> NDArray[Any]:
        nonlocal stock
        wanted = math.prod(shape)
        if wanted > len(stock):
            stock = np.concatenate([stock, randomness.normal((max(wanted, _AT_A_TIME),), dtype=torch.float64).numpy()])
        given, stock = stock[:wanted], stock[wanted:]
        return given.reshape(shape)

    return normal


def train_alone(
    network: nn.Module,
    cases: Sequence[PreparedCase],
    plan: FederationPlan,
    seed: int,
    *,
    loader: Loader = PatientLoader,
    public_patients: int | None = None,
) -> None:
    """Train `network` in place over all rounds of a plan, as if this site were the only one.

    Each round begins with what the last one let leave, so what an attacker sees is what a coordinator sees. Learning
    rates and the pull of the plan's objective are those of the rounds; a server that moves weights otherwise than by
    the mean of updates is not played.
    loader: makes the loader of each round under `patient_dp`. public_patients: None takes the number of patients.
    Raises what `train_round`, `PatientLoader` and `train_privately` raise.
    """
    people = len({case.patient for case in cases}) if public_patients is None else public_patients
    state: Arrays = {}  # of the objective; with one site, what the server tells of all sites is the site's own
    for number in range(1, plan.rounds + 1):
        if plan.privacy.mechanism == "patient_dp":
            randomness = randomness_for(plan, seed, "privacy", number)
            patients = loader(cases, plan, randomness)
            patients.charge(lambda everybody, _: everybody)
            train_privately(network, patients, plan, people, randomness, number=number)
            continue
        before = get_arrays(network)
        pull = pull_for(plan.method.objective, before, state, state)
        outcome = train_round(network, cases, plan, derive_seed(seed, "training", number), rounds=(number,), pull=pull)
        if pull is not None:
            names = [name for name, parameter in network.named_parameters() if parameter.requires_grad]
            update = _difference(get_arrays(network), before)
            own = {name: update[name] for name in names}
            state = state_after(plan.method.objective, state, state, own, outcome.lr_sum)
        if plan.privacy.mechanism == "update_dp":
            source = randomness_for(plan, seed, "privacy", number)
            hidden = hidden_update(_difference(get_arrays(network), before), plan, drawn_from(source))
            kept = with_counters(hidden, before)
            set_arrays(network, {name: _moved(before[name], kept[name]) for name in before})


def _difference(after: Mapping[str, Any], before: Mapping[str, Any]) -> Arrays:
    """The update: local − arriving for floating arrays, the new value itself for all others."""
    floats = {name: np.issubdtype(array.dtype, np.floating) for name, array in after.items()}
    return {name: after[name] - before[name] if floats[name] else after[name] for name in after}


def _moved(before: Any, update: Any) -> Any:
    return (before + update).astype(before.dtype) if np.issubdtype(before.dtype, np.floating) else update

"""Model-contrastive local training, MOON: the loss, a network that shows its representation, rounds of training.

The representation z is what a network's last linear layer is given. A site's loss gets mu · ℓ(z, z_common, z_before):
near what the arriving model makes of the same images, far from what the site's own last one does. Source: Li, He and
Song 2021, Model-Contrastive Federated Learning.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from eucaim_fl.arrays import Array, ArrayFile, Arrays, encode_arrays
from eucaim_fl.cohorts.cohort import PreparedCase
from eucaim_fl.durable import write_atomically
from eucaim_fl.models.networks import get_arrays, set_arrays
from eucaim_fl.plan import FederationPlan
from eucaim_fl.seeding import derive_seed
from eucaim_fl.site.state_store import joined, part
from eucaim_fl.strategies.aggregation import aggregate
from eucaim_fl.strategies.server_optimizer import apply
from eucaim_fl.training.balance import measure_for
from eucaim_fl.training.loop import batches, learning_rates, optimizer_for

__all__ = ["TEMPERATURE", "Moon", "Watched", "contrastive", "federated", "with_head"]

TEMPERATURE = 0.5
_HEAD = 256  # numbers that the paper's projection head ends with


def contrastive(own: Tensor, common: Tensor, before: Tensor, temperature: float = TEMPERATURE) -> Tensor:
    """ℓ = −ln( e^(s(z, z_common)/T) / (e^(s(z, z_common)/T) + e^(s(z, z_before)/T)) ), s the cosine; mean over a batch.

    own, common, before: (batch, numbers), what the model in training, the arriving one and the site's last one make of
    the same images. Source: Li, He and Song 2021, eq. 3.
    """
    towards, away = (nn.functional.cosine_similarity(own, other, dim=1) for other in (common, before))
    return nn.functional.softplus((away - towards) / temperature).mean()


def _last(network: nn.Module) -> tuple[str, nn.Linear]:
    return [(name, part) for name, part in network.named_modules() if isinstance(part, nn.Linear)][-1]


def with_head(network: nn.Module, seed: int) -> nn.Module:
    """The same network, in place, with two linear layers more before its last one; new weights follow from the seed."""
    name, last = _last(network)
    wide, out = last.in_features, last.out_features
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        head = nn.Sequential(nn.Linear(wide, wide), nn.ReLU(), nn.Linear(wide, _HEAD), nn.Linear(_HEAD, out))
    network.set_submodule(name, head)
    return network


class Watched:
    """A network that tells, beside its logits, what its last linear layer was given: (batch, numbers)."""

    def __init__(self, network: nn.Module) -> None:
        self.network, self._given = network, torch.empty(0)
        _last(network)[1].register_forward_pre_hook(self._note)

    def _note(self, _layer: nn.Module, given: tuple[Tensor, ...]) -> None:
        self._given = given[0]

    def __call__(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """images: (batch, channels, *size) → logits and representation."""
        logits: Tensor = self.network(images)
        return logits, self._given


@dataclass(eq=False)
class Moon:
    """Local training of all sites, one at a time. make: a network, whatever its weights; three of them are held.

    kept: site → the weights that its last round ended with; in its first round those that arrive stand for them, and
    the contrastive loss has no gradient.
    """

    plan: FederationPlan
    mu: float
    make: Callable[[], nn.Module]
    kept: dict[str, Arrays] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._own, self._common, self._before = (Watched(self.make()) for _ in range(3))
        for watched in (self._common, self._before):  # they say what they would say at the site's end
            watched.network.eval()

    def train(self, site: str, cases: Sequence[PreparedCase], number: int, arriving: Mapping[str, Array]) -> Arrays:
        """The weights after the site's round of that number; batches, rates and optimizer are those of the product."""
        plan, network = self.plan, self._own.network
        for watched, arrays in (
            (self._own, arriving), (self._common, arriving), (self._before, self.kept.get(site, arriving)),
        ):  # fmt: skip
            set_arrays(watched.network, arrays)
        measure = measure_for(network, cases, plan)
        optimizer = optimizer_for(plan.training.optimizer, [p for p in network.parameters() if p.requires_grad])
        rates = learning_rates(plan, len(cases), (number,))
        network.train()
        seed = derive_seed(plan.seed, "training", site, number)
        for rate, (images, targets) in zip(rates, batches(cases, plan, seed, len(rates)), strict=True):
            optimizer.param_groups[0]["lr"] = rate
            optimizer.zero_grad(set_to_none=True)
            logits, own = self._own(images)
            with torch.no_grad():
                (_, common), (_, before) = self._common(images), self._before(images)
            loss = measure(logits, targets) + self.mu * contrastive(own, common, before)
            torch.autograd.backward(loss)
            optimizer.step()
        self.kept[site] = get_arrays(network)
        return self.kept[site]


def federated(
    moon: Moon, sites: Mapping[str, tuple[int, Sequence[PreparedCase]]], weights: Arrays, state: Path
) -> tuple[Arrays, list[float]]:
    """The weights after the plan's rounds, and the seconds that all sites' training took in each.

    sites: name → training patients and cases; all take part in every round. state: file where a killed loop goes on.
    """
    plan, seconds, names = moon.plan, list[float](), sorted(sites)
    if state.is_file():
        held = ArrayFile(state).load()
        weights, seconds = part(held, "/common"), part(held, "/seconds")["each"].tolist()
        moon.kept = {site: part(held, site) for site in names}
    with tempfile.TemporaryDirectory() as folder:
        spool = [Path(folder) / f"{site}.safetensors" for site in names]
        for number in range(len(seconds) + 1, plan.rounds + 1):
            began = time.perf_counter()
            for site, path in zip(names, spool, strict=True):
                trained = moon.train(site, sites[site][1], number, weights)
                write_atomically(path, encode_arrays({name: trained[name] - weights[name] for name in weights}))
            seconds.append(time.perf_counter() - began)
            common = aggregate(plan.method.rule, [ArrayFile(one) for one in spool], [sites[site][0] for site in names])
            weights, _ = apply(plan.method.server_optimizer, weights, common, {}, lambda _: True)
            own = {"/common": weights, "/seconds": {"each": np.array(seconds)}}
            write_atomically(state, encode_arrays(joined({**own, **moon.kept})))
    return weights, seconds

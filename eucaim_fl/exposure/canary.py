"""The one-run audit: canaries are put among a site's patients by fair coins, and who watches guesses which were in.

What runs is the plan's own training, with its sampling, clipping and noise. How a canary looks depends on what the plan
protects. `patient_dp`: a further patient whose gradient is always one coordinate's, as long as clipping lets it be,
sampled as all patients are. `update_dp`: an update that one patient has turned from one end to the other; clipping and
noise of all rounds are repeated for each. Else: a patient with an image of noise and a label of chance.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.optim.optimizer import register_optimizer_step_pre_hook

from eucaim_fl.cohorts.cache import Entry
from eucaim_fl.cohorts.cohort import PreparedCase
from eucaim_fl.exposure.alone import (
    HeldCase,
    drawn_from,
    hidden_update,
    image_size,
    network_for,
    randomness_for,
    train_alone,
)
from eucaim_fl.exposure.membership import examples_of, patient_losses
from eucaim_fl.exposure.one_run import Evidence, evidence, gaussian_estimate
from eucaim_fl.plan import FederationPlan
from eucaim_fl.seeding import generator
from eucaim_fl.training import private_loop
from eucaim_fl.training.patients import PatientBatch, PatientLoader

__all__ = ["Audit", "audit", "most_canaries"]

_SHARE_OF_WEIGHTS = 0.9
_SHARE_OF_DELTA = 0.5
_NOISE_PATIENTS = 100
"""With data of noise, every further canary costs training: these many are enough to see that nothing is hidden."""
_UPDATE_VALUES = 8
_SUM = "clipped_sum"
"""What private training asks for the sum of a step; it is wrapped, so that all around it is what a site runs."""
_DELTA = 1e-5
"""At which a plan that promises nothing is measured."""


@dataclass(frozen=True, eq=False)
class Audit:
    """One audit: scores (m,), which canaries were in (m,), what that proves, and the likeliest epsilon."""

    scores: NDArray[np.float64]
    included: NDArray[np.bool_]
    evidence: Evidence
    estimate: float


@dataclass(frozen=True, eq=False)
class _Canary(PreparedCase):
    """A patient without image."""

    number: int = 0


class _Loader(PatientLoader):
    """Samples canaries as all patients; instead of examples they bring their number, which no image's type is."""

    def _batch(
        self, cases: Sequence[PreparedCase], change: Callable[[Any], Any], choices: np.random.Generator
    ) -> PatientBatch:
        first = cases[0]
        if isinstance(first, _Canary):
            return PatientBatch(torch.tensor([first.number]), torch.empty(0))
        return super()._batch(cases, change, choices)


def most_canaries(plan: FederationPlan, asked: int, weights: int, patients: int) -> int:
    """How many canaries of those asked for are possible: each has a weight of its own, and delta must stay below one
    over the number of all."""
    if plan.privacy.mechanism in ("none", "central_dp"):
        return min(asked, _NOISE_PATIENTS)
    if plan.privacy.mechanism == "update_dp":
        return asked
    room = int(_SHARE_OF_DELTA / (plan.privacy.delta or _DELTA)) - patients
    return max(1, min(asked, int(_SHARE_OF_WEIGHTS * weights), room))


def audit(
    plan: FederationPlan,
    cases: Sequence[PreparedCase],
    canaries: int,
    seed: int,
    *,
    device: str = "cpu",
    known_noise: float | None = None,
) -> Audit:
    """Train once over all rounds of the plan with canaries among the patients, and see what can be told of them.

    canaries: at most that many, see `most_canaries`. known_noise: the noise multiplier that the attacker reckons with;
    None takes the plan's.
    Raises what `train_alone` raises.
    """
    network = network_for(plan, device)
    weights = sum(p.numel() for p in network.parameters() if p.requires_grad)
    people = len({case.patient for case in cases})
    m = most_canaries(plan, canaries, weights, people)
    rng = generator(seed, "canaries")
    included = rng.random(m) < 0.5
    if plan.privacy.mechanism == "patient_dp":
        noise = (plan.privacy.noise_multiplier or 0.0) if known_noise is None else known_noise
        watch = _Watch(network, plan, noise, rng.choice(weights, m, replace=False), rng.choice([-1.0, 1.0], m), people)
        entry = Entry(Path(), None, (1.0, 1.0, 1.0), (), np.zeros((0, 3), np.int64))
        extra = [_Canary(f"canary {i:06d}", None, entry, int(i)) for i in np.flatnonzero(included)]
        with watch.watching():
            train_alone(network, [*cases, *extra], plan, seed, loader=_Loader, public_patients=people)
        scores = watch.scores
    elif plan.privacy.mechanism == "update_dp":
        scores = _turned(included, plan, seed)
    else:
        scores = _noise_patients(network, cases, included, plan, rng)
    delta = plan.privacy.delta or _DELTA
    return Audit(scores, included, evidence(scores, included, delta), gaussian_estimate(scores, included, delta))


class _Watch:
    """Puts the canaries' gradients into each step's clipped sum, and keeps each canary's log likelihood ratio.

    It sees what the promise allows everybody to see: the noised gradient of every step.
    """

    def __init__(
        self,
        network: nn.Module,
        plan: FederationPlan,
        noise: float,
        places: NDArray[np.int64],
        signs: NDArray[np.float64],
        people: int,
    ) -> None:
        self._parameters = [p for p in network.parameters() if p.requires_grad]
        ends = np.cumsum([p.numel() for p in self._parameters])
        self._owner = np.searchsorted(ends, places, side="right")
        self._offset = places - np.concatenate([[0], ends])[self._owner]
        self._places, self._signs = torch.from_numpy(places), signs
        self._norm = plan.privacy.clipping_norm or 1.0
        self._rate = plan.privacy.sampling_rate or 1.0
        self._scale = self._rate * people / self._norm
        self._noise = max(noise, 1e-3)
        self.scores = np.zeros(len(places))

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Within it, private training has canaries; that of other networks is left alone."""
        real = getattr(private_loop, _SUM)

        def with_canaries(
            network: nn.Module, mode: Any, measure: Any, batch: Sequence[PatientBatch], norm: float, physical: int
        ) -> tuple[list[Tensor], NDArray[np.float64]]:
            patients = [one for one in batch if one.images.is_floating_point()]
            here = np.array([int(one.images) for one in batch if not one.images.is_floating_point()], dtype=np.int64)
            sums, norms = real(network, mode, measure, patients, norm, physical)
            return self._planted(sums, here), norms

        def see(optimizer: torch.optim.Optimizer, *_: Any) -> None:
            if any(p is self._parameters[0] for group in optimizer.param_groups for p in group["params"]):
                self._see()

        handle = register_optimizer_step_pre_hook(see)
        setattr(private_loop, _SUM, with_canaries)
        try:
            yield
        finally:
            setattr(private_loop, _SUM, real)
            handle.remove()

    def _planted(self, sums: Sequence[Tensor], here: NDArray[np.int64]) -> list[Tensor]:
        changed = list(sums)
        for index in np.unique(self._owner[here]):
            mine = here[self._owner[here] == index]
            flat = changed[index].reshape(-1).clone()
            flat[torch.from_numpy(self._offset[mine]).to(flat.device)] += torch.from_numpy(
                self._norm * self._signs[mine]
            ).to(flat)
            changed[index] = flat.view_as(sums[index])
        return changed

    def _see(self) -> None:
        grads = [torch.zeros_like(p) if p.grad is None else p.grad for p in self._parameters]
        flat = torch.cat([g.detach().reshape(-1).cpu() for g in grads])
        seen = flat[self._places].double().numpy() * self._signs * self._scale
        ratio = (seen - 0.5) / self._noise**2
        if self._rate < 1:
            ratio = np.logaddexp(np.log1p(-self._rate), np.log(self._rate) + ratio)
        self.scores += ratio


def _turned(included: NDArray[np.bool_], plan: FederationPlan, seed: int) -> NDArray[np.float64]:
    """First values of updates at one end or the other of what clipping allows, as noised in each round, added up."""
    normal = drawn_from(randomness_for(plan, seed, "canaries"))
    scores = np.zeros(len(included))
    far = 10.0 * (plan.privacy.clipping_norm or 1.0)
    for number, inside in enumerate(included):
        update = {"w": np.zeros(_UPDATE_VALUES, np.float32)}
        update["w"][0] = far if inside else -far
        scores[number] = sum(float(hidden_update(update, plan, normal)["w"][0]) for _ in range(plan.rounds))
    return scores


def _noise_patients(
    network: nn.Module,
    cases: Sequence[PreparedCase],
    included: NDArray[np.bool_],
    plan: FederationPlan,
    rng: np.random.Generator,
) -> NDArray[np.float64]:
    made = [_noise_patient(plan, rng, number) for number in range(len(included))]
    chosen = [case for case, inside in zip(made, included, strict=True) if inside]
    train_alone(network, [*cases, *chosen], plan, int(rng.integers(2**62)))
    return -patient_losses(network, examples_of([[case] for case in made], plan, 0), plan)


def _noise_patient(plan: FederationPlan, rng: np.random.Generator, number: int) -> HeldCase:
    """An image of noise on the plan's grid, with a class of chance, or a block of chance of one of the labels."""
    size = image_size(plan)
    shape = (*size, 1) if len(size) == 2 else size
    pixels = rng.random((plan.data.number_of_channels(), *shape), dtype=np.float32)
    if plan.task.name == "classification":
        return HeldCase.of(f"canary {number}", pixels, None, int(rng.integers(len(plan.task.classes))))
    if plan.task.name != "segmentation":
        raise ValueError(f"there are no canaries for {plan.task.name}")
    mask = np.zeros(shape, np.uint8)
    block = tuple(slice(int(rng.integers(max(1, n // 2))), None) for n in shape)
    half = tuple(slice(s.start, s.start + max(1, n // 3)) for s, n in zip(block, shape, strict=True))
    mask[half] = 1 + int(rng.integers(len(plan.task.labels)))
    return HeldCase.of(f"canary {number}", pixels, mask, None)

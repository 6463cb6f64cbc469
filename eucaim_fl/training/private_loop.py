"""One round of private training: clipped sums over sampled patients, noise, and Opacus' step from them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from opacus.optimizers import DPOptimizer
from torch import Tensor, nn

from eucaim_fl.errors import NotFiniteError
from eucaim_fl.models.networks import get_arrays
from eucaim_fl.models.private import made_private
from eucaim_fl.plan import FederationPlan
from eucaim_fl.privacy.accounting import Mechanism
from eucaim_fl.privacy.stages import grid
from eucaim_fl.tasks import for_task
from eucaim_fl.training.gradients import clipped_sum, mode_for
from eucaim_fl.training.loop import made_in_time, optimizer_for
from eucaim_fl.training.objective import applied, pull_for
from eucaim_fl.training.patients import PatientLoader
from eucaim_fl.training.randomness import Randomness
from eucaim_fl.training.schedule import factor

__all__ = ["train_privately"]


class _PatientOptimizer(DPOptimizer):  # type: ignore[misc]
    """Opacus' optimizer for sums that are clipped already, with noise from our own source.

    Opacus keeps the order of a step: noise, scale, hook, wrapped optimizer. Its clipping is replaced because it needs
    the gradients of a whole logical batch at once, and its noise because it comes from torch's own generators.
    """

    def __init__(
        self,
        wrapped: torch.optim.Optimizer,
        mechanism: Mechanism,
        clipping_norm: float,
        public_patients: int,
        randomness: Randomness,
    ) -> None:
        super().__init__(
            wrapped,
            noise_multiplier=mechanism.noise,
            max_grad_norm=clipping_norm,
            expected_batch_size=mechanism.rate * public_patients,
        )
        self._randomness = randomness

    @property
    def grad_samples(self) -> list[Tensor]:
        """What Opacus looks at to see whether there is anything to do; gradients of single patients are not kept."""
        return [p.summed_grad for p in self.params]

    @property
    def accumulated_iterations(self) -> int:
        """A step is one logical batch, however many pieces its sum was made of."""
        return 1

    def give(self, sums: Sequence[Tensor]) -> None:
        """The sum of clipped gradients of one step, in order of the trainable parameters."""
        for parameter, total in zip(self.params, sums, strict=True):
            parameter.summed_grad = total

    def clip_and_accumulate(self) -> None:
        """Nothing is left to clip; a step without a new sum would noise an old one again."""
        if any(p.summed_grad is None for p in self.params):
            raise RuntimeError("a private step needs a sum of clipped gradients of its own")

    def add_noise(self) -> None:
        """The only place where noise meets a sum: its deviation is noise multiplier × clipping norm."""
        deviation = self.noise_multiplier * self.max_grad_norm
        for parameter in self.params:
            parameter.grad = _noised(parameter.summed_grad, deviation, self._randomness)
            parameter.summed_grad = None


def _noised(total: Tensor, deviation: float, randomness: Randomness) -> Tensor:
    """A sum with normal noise of that deviation, in the sum's type and on its device.

    Added in float64, then rounded to the deviation's `grid`: the last bits of a plain float sum would tell of what was
    added. Source: Mironov 2012, On Significance of the Least Significant Bits for Differential Privacy.
    """
    step = grid(deviation)
    noise = randomness.normal(total.shape, dtype=torch.float64).mul_(deviation).to(total.device)
    return noise.add_(total).div_(step).round_().mul_(step).to(total.dtype)


@contextmanager
def _own_draws(device: torch.device, randomness: Randomness) -> Iterator[None]:
    """Dropout and the like draw from the given source; torch's generators are as before when the context ends."""
    seed = int(randomness.choices().integers(2**63))
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.default_generator.manual_seed(seed)
        if device.type == "cuda":
            with torch.cuda.device(device):
                torch.cuda.manual_seed(seed)
        yield


def _see_finite(parameters: Sequence[Tensor], step: int) -> None:
    if not torch.stack([p.detach().isfinite().all() for p in parameters]).all():
        raise NotFiniteError(
            f"The network is not finite after private step {step}.", fix="Lower training.optimizer.lr."
        )


def train_privately(
    network: nn.Module,
    loader: PatientLoader,
    plan: FederationPlan,
    public_patients: int,
    randomness: Randomness,
    *,
    number: int = 1,
) -> int:
    """Train `network` in place for one round on the charged patients of `loader`; returns the number of steps.

    A step's gradient is (Σ clipped gradients of the sampled patients + noise · C · N(0, 1)) / (rate · public_patients),
    with noise, rate and steps of the mechanism that was charged for and C the plan's clipping norm; then comes the pull
    of the plan's objective, which sees no data (proximal; the others keep a state at the site, and no plan has them
    with noise), and the plan's optimizer, afresh each round. A step without patients is noise alone. No loss is
    computed to be told, and nothing that was not noised stays on the network. Everything is float32, on a GPU too.
    number: of the round, by which the schedule sets the learning rate.
    public_patients: a number of training patients that may be known, at least 1; it scales steps, not privacy.
    randomness: secure where the plan says so; anything else is a defect (RuntimeError).
    Raises PrivateTrainingError if the network can't be trained so; NotFiniteError if it becomes NaN or infinite.
    Source: Abadi et al. 2016, Deep Learning with Differential Privacy, algorithm 1, by patients instead of examples.
    """
    norm = plan.privacy.clipping_norm
    if norm is None or public_patients < 1:
        raise RuntimeError("private training needs a clipping norm and a public number of patients")
    if plan.privacy.secure and not randomness.is_secure:
        raise RuntimeError("the plan promises secure randomness and was given a seed")
    made_private(network)
    device = next(network.parameters()).device
    measure, mode = for_task(plan.task).loss(plan.training), mode_for(network, plan)
    parameters = [p for p in network.parameters() if p.requires_grad]
    wrapped = optimizer_for(plan.training.optimizer, parameters)
    for group in wrapped.param_groups:
        group["lr"] *= factor(plan.training.schedule, number, plan.rounds)
    optimizer = _PatientOptimizer(wrapped, loader.mechanism, norm, public_patients, randomness)
    pull = pull_for(plan.method.objective, get_arrays(network), {}, {})
    if pull is not None:
        add = applied(pull, {name: p for name, p in network.named_parameters() if p.requires_grad})
        optimizer.attach_step_hook(lambda _: add())
    network.train()
    steps = 0
    try:
        with _own_draws(device, randomness), made_in_time(iter(loader), device) as waiting:
            for steps, batch in enumerate(waiting, start=1):
                optimizer.zero_grad(set_to_none=True)
                sums, _ = clipped_sum(network, mode, measure, batch, norm, plan.privacy.physical_batch)
                optimizer.give(sums)
                optimizer.step()
                _see_finite(parameters, steps)
    finally:
        optimizer.zero_grad(set_to_none=True)
        for parameter in parameters:
            for left in ("summed_grad", "grad_sample"):
                delattr(parameter, left)
    return steps

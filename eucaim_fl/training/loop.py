"""Local training: a number of optimizer steps from the arriving weights, for one round or several in one go."""

from __future__ import annotations

import math
import queue
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from itertools import islice
from typing import Any, Literal, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from eucaim_fl.arrays import Array, Arrays
from eucaim_fl.cohorts.cohort import PreparedCase
from eucaim_fl.config import LocalOptimizerConfig
from eucaim_fl.errors import NotFiniteError
from eucaim_fl.plan import FederationPlan
from eucaim_fl.seeding import derive_seed, generator
from eucaim_fl.tasks import for_task
from eucaim_fl.training.augmentation import augmenter
from eucaim_fl.training.balance import drawn, measure_for
from eucaim_fl.training.moments import moments_of, set_moments
from eucaim_fl.training.objective import Pull, applied
from eucaim_fl.training.schedule import factor

__all__ = [
    "TrainingOutcome",
    "autocast_type",
    "batches",
    "learning_rates",
    "made_in_time",
    "optimizer_for",
    "steps_of_a_round",
    "train_round",
]


_Item = TypeVar("_Item")
_BATCHES_AHEAD = 2
_FIRST_SCALE = 2.0**10
"""Of losses in float16. PyTorch begins with 2¹⁶, and its first steps overflow: a round may have few."""


@dataclass(frozen=True)
class TrainingOutcome:
    """loss: mean over all steps, with the value of a pull that tells it. steps: optimizer steps made.

    patients: distinct patients that the steps saw; few steps see few of them. lr_sum: the sum of the learning rates of
    all steps. moments: what the optimizer remembers (see `training.moments`), where the plan has it kept.
    """

    loss: float
    steps: int
    patients: int
    lr_sum: float
    moments: Arrays = field(default_factory=dict)


def steps_of_a_round(plan: FederationPlan, cases: int) -> int:
    """Optimizer steps of one round for a site with that many training cases; at least one.

    An epoch is as many examples as there are cases: one of every case, but where `balance.sampling` is by classes.
    """
    if plan.training.local_steps is not None:
        return plan.training.local_steps
    return max(1, math.ceil((plan.training.local_epochs or 1) * cases / plan.training.batch_size))


def learning_rates(plan: FederationPlan, cases: int, rounds: Sequence[int] = (1,)) -> list[float]:
    """The learning rate of every step of these rounds: optimizer.lr × `factor` of the step's round.

    cases: of the site, which has `steps_of_a_round` steps in each round. Raises ValueError if a round is below 1.
    """
    training, steps = plan.training, steps_of_a_round(plan, cases)
    each = [training.optimizer.lr * factor(training.schedule, number, plan.rounds) for number in rounds]
    return [rate for rate in each for _ in range(steps)]


def autocast_type(precision: Literal["float32", "bfloat16", "float16"], device: str) -> torch.dtype | None:
    """What a plan's precision means on a kind of device: the type that PyTorch may calculate in, or None for float32.

    Only a GPU (`cuda`) calculates in less: on a processor it would be slower, and every result another.
    """
    if device != "cuda" or precision == "float32":
        return None
    return torch.bfloat16 if precision == "bfloat16" else torch.float16


def _patients_seen(cases: Sequence[PreparedCase], plan: FederationPlan, seed: int, steps: int) -> int:
    """Distinct patients in the batches of that many steps: drawn once more, by the same generator."""
    everybody = len({case.patient for case in cases})
    seen: set[str] = set()
    for place in islice(_order(cases, plan, seed), steps * plan.training.batch_size):
        seen.add(cases[place].patient)
        if len(seen) == everybody:
            break
    return len(seen)


def _order(cases: Sequence[PreparedCase], plan: FederationPlan, seed: int) -> Iterator[int]:
    return drawn(cases, plan.training.balance.sampling, generator(seed, "order"))


def batches(
    cases: Sequence[PreparedCase], plan: FederationPlan, seed: int, steps: int
) -> Iterator[tuple[Tensor, Tensor]]:
    """Training batches of so many steps: images (B, C, *spatial) float32 and targets (B, …).

    Cases are drawn as `balance.sampling` says (see `drawn`), each once before any comes again by default; which slice
    or patch, and how it is changed, follows from the seed. Images of one batch must have one shape (the plan's grid or
    patch).
    """
    task = for_task(plan.task)
    order, place = _order(cases, plan, seed), generator(seed, "place")
    change = augmenter(plan.training.augmentation, plan.task.spatial_dims, seed)
    for _ in range(steps):
        images: list[NDArray[Any]] = []
        targets: list[NDArray[Any]] = []
        for number in islice(order, plan.training.batch_size):
            image, target = change(task.training_example(cases[number], plan, place))
            images.append(image)
            targets.append(target)
        yield torch.from_numpy(np.stack(images)), torch.from_numpy(np.stack(targets))


@contextmanager
def _ahead(items: Iterator[_Item]) -> Iterator[Iterator[_Item]]:
    """The same items in the same order, made in a background thread while the caller works on earlier ones.

    What the thread raises is raised to the caller in the item's place. The thread has ended when the context has.
    """
    ready: queue.Queue[_Item | BaseException | None] = queue.Queue(_BATCHES_AHEAD)
    leaving = threading.Event()

    def make() -> None:
        try:
            for item in items:
                ready.put(item)
                if leaving.is_set():
                    return
            ready.put(None)
        except BaseException as problem:  # noqa: BLE001 - raised again where the item is asked for
            ready.put(problem)

    def give() -> Iterator[_Item]:
        while (item := ready.get()) is not None:
            if isinstance(item, BaseException):
                raise item
            yield item

    thread = threading.Thread(target=make, name="batches", daemon=True)
    thread.start()
    try:
        yield give()
    finally:
        leaving.set()
        while thread.is_alive():
            try:
                ready.get_nowait()  # it may wait for room
            except queue.Empty:
                thread.join(0.005)


def made_in_time(items: Iterator[_Item], device: torch.device) -> AbstractContextManager[Iterator[_Item]]:
    """Ahead of time where a GPU leaves the processor idle; else one by one, for two threads would share a core."""
    return nullcontext(items) if device.type == "cpu" else _ahead(items)


def optimizer_for(config: LocalOptimizerConfig, parameters: list[nn.Parameter]) -> torch.optim.Optimizer:
    """A fresh optimizer as a plan has it; Adam's first moment is called momentum there."""
    if config.name == "sgd":
        return torch.optim.SGD(parameters, lr=config.lr, momentum=config.momentum, weight_decay=config.weight_decay)
    kind = torch.optim.Adam if config.name == "adam" else torch.optim.AdamW
    return kind(parameters, lr=config.lr, betas=(config.momentum, 0.999), weight_decay=config.weight_decay)


def train_round(
    network: nn.Module,
    cases: Sequence[PreparedCase],
    plan: FederationPlan,
    seed: int,
    *,
    rounds: Sequence[int] = (1,),
    pull: Pull | None = None,
    moments: Mapping[str, Array] | None = None,
) -> TrainingOutcome:
    """Train `network` in place on `cases`, from the weights it holds, for one round or for several in one go.

    rounds: their numbers, from which the learning rates follow. Over several the optimizer keeps its state and the
    cases go on in turn. moments: what it remembers of an earlier call, of whose outcome they are; None starts afresh.
    pull: what each step's gradient gets beside (see `training.objective`); the plan's own objective is not looked at.
    On a GPU, outputs and loss are calculated in `training.precision` where that is safe (PyTorch's autocast); weights,
    gradients and steps are float32. With float16 losses are scaled up for the gradients, and a step whose gradients
    overflow all the same changes nothing, yet counts.
    seed: derived from (run, site, round); dropout and the like draw from it inside a fork of torch's generator, so
    nothing outside is touched.
    Raises NotFiniteError if the loss becomes NaN or infinite; ValueError if there is no round, or one below 1;
    PlanError as `measure_for` and `applied` do; JournalError if the moments are not those of this optimizer.
    """
    device = next(network.parameters()).device
    rates = learning_rates(plan, len(cases), rounds)
    if not rates:
        raise ValueError("there is no round to train")
    measure, add = measure_for(network, cases, plan), None
    parameters = {name: p for name, p in network.named_parameters() if p.requires_grad}
    if pull is not None:
        add = applied(pull, parameters)
    optimizer = optimizer_for(plan.training.optimizer, list(parameters.values()))
    set_moments(optimizer, parameters, moments or {})
    kind = autocast_type(plan.training.precision, device.type)
    scaler = torch.amp.GradScaler(device.type, init_scale=_FIRST_SCALE, enabled=kind is torch.float16)
    total = 0.0
    network.train()
    with (
        torch.random.fork_rng(devices=[device] if device.type == "cuda" else []),
        made_in_time(batches(cases, plan, seed, len(rates)), device) as waiting,
    ):
        generator_of_device = torch.cuda if device.type == "cuda" else torch.default_generator
        generator_of_device.manual_seed(derive_seed(seed, "torch"))
        for step, (rate, (images, targets)) in enumerate(zip(rates, waiting, strict=True), start=1):
            for group in optimizer.param_groups:
                group["lr"] = rate
            optimizer.zero_grad(set_to_none=True)
            with nullcontext() if kind is None else torch.autocast(device.type, dtype=kind):
                loss = measure(network(images.to(device)), targets.to(device))
            torch.autograd.backward(scaler.scale(loss))
            scaler.unscale_(optimizer)
            penalty = 0.0 if add is None else add()
            value = float(loss.detach())
            if not math.isfinite(value + penalty):
                raise NotFiniteError(
                    f"The training loss is not finite at local step {step}.",
                    fix="Lower training.optimizer.lr or set training.gradient_clip.",
                )
            if plan.training.gradient_clip is not None:
                nn.utils.clip_grad_norm_(list(parameters.values()), plan.training.gradient_clip)
            scaler.step(optimizer)
            scaler.update()
            total += value + penalty if pull is not None and pull.told else value
    seen = _patients_seen(cases, plan, seed, len(rates))
    kept = moments_of(optimizer, parameters) if plan.training.optimizer.kept else {}
    return TrainingOutcome(total / len(rates), len(rates), seen, lr_sum=sum(rates), moments=kept)

"""One round of local training: a number of optimizer steps from the arriving weights."""

from __future__ import annotations

import math
import queue
import threading
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from eucaim_fl.cohorts.cohort import PreparedCase
from eucaim_fl.config import LocalOptimizerConfig
from eucaim_fl.errors import NotFiniteError
from eucaim_fl.plan import FederationPlan
from eucaim_fl.seeding import derive_seed, generator
from eucaim_fl.tasks import for_task
from eucaim_fl.training.augmentation import augmenter
from eucaim_fl.training.objective import penalty_for

__all__ = ["TrainingOutcome", "batches", "made_in_time", "optimizer_for", "steps_of_a_round", "train_round"]


_Item = TypeVar("_Item")
_BATCHES_AHEAD = 2


@dataclass(frozen=True)
class TrainingOutcome:
    """loss: mean over the round's steps (with the objective's penalty). steps: optimizer steps made.

    patients: distinct patients that the steps saw; few steps see few of them.
    """

    loss: float
    steps: int
    patients: int


def steps_of_a_round(plan: FederationPlan, cases: int) -> int:
    """Optimizer steps of one round for a site with that many training cases; at least one.

    An epoch is one example of every case.
    """
    if plan.training.local_steps is not None:
        return plan.training.local_steps
    return max(1, math.ceil((plan.training.local_epochs or 1) * cases / plan.training.batch_size))


def _patients_seen(cases: Sequence[PreparedCase], plan: FederationPlan, seed: int, steps: int) -> int:
    """Distinct patients in a round's batches; the same permutation as `batches` takes, which takes it from its end."""
    order = generator(seed, "order").permutation(len(cases))[::-1]
    return len({cases[int(i)].patient for i in order[: steps * plan.training.batch_size]})


def batches(
    cases: Sequence[PreparedCase], plan: FederationPlan, seed: int, steps: int
) -> Iterator[tuple[Tensor, Tensor]]:
    """Training batches of one round: images (B, C, *spatial) float32 and targets (B, …).

    Cases are visited in seeded permutations, each case once before any comes again; which slice or patch, and how it
    is changed, follows from the seed. Images of one batch must have one shape (the plan's grid or patch).
    """
    task = for_task(plan.task)
    order, place = generator(seed, "order"), generator(seed, "place")
    change = augmenter(plan.training.augmentation, plan.task.spatial_dims, seed)
    waiting: list[int] = []
    for _ in range(steps):
        images: list[NDArray[Any]] = []
        targets: list[NDArray[Any]] = []
        while len(images) < plan.training.batch_size:
            if not waiting:
                waiting = [int(i) for i in order.permutation(len(cases))]
            image, target = change(task.training_example(cases[waiting.pop()], plan, place))
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


def train_round(network: nn.Module, cases: Sequence[PreparedCase], plan: FederationPlan, seed: int) -> TrainingOutcome:
    """Train `network` in place for one round on `cases`, from the weights it holds.

    The optimizer starts afresh. seed: derived from (run, site, round); dropout and the like draw from it inside a
    fork of torch's generator, so nothing outside is touched.
    Raises NotFiniteError if the loss becomes NaN or infinite.
    """
    device = next(network.parameters()).device
    measure = for_task(plan.task).loss(plan.training)
    penalty = penalty_for(plan.method.objective)
    parameters = [p for p in network.parameters() if p.requires_grad]
    anchors = [p.detach().clone() for p in parameters] if plan.method.objective.name != "none" else list(parameters)
    optimizer = optimizer_for(plan.training.optimizer, parameters)
    steps = steps_of_a_round(plan, len(cases))
    total = 0.0
    network.train()
    with (
        torch.random.fork_rng(devices=[device] if device.type == "cuda" else []),
        made_in_time(batches(cases, plan, seed, steps), device) as waiting,
    ):
        generator_of_device = torch.cuda if device.type == "cuda" else torch.default_generator
        generator_of_device.manual_seed(derive_seed(seed, "torch"))
        for step, (images, targets) in enumerate(waiting, start=1):
            optimizer.zero_grad(set_to_none=True)
            loss = measure(network(images.to(device)), targets.to(device))
            loss.backward()
            value = float(loss.detach()) + penalty(parameters, anchors)
            if not math.isfinite(value):
                raise NotFiniteError(
                    f"The training loss is not finite at local step {step}.",
                    fix="Lower training.optimizer.lr or set training.gradient_clip.",
                )
            if plan.training.gradient_clip is not None:
                nn.utils.clip_grad_norm_(parameters, plan.training.gradient_clip)
            optimizer.step()
            total += value
    return TrainingOutcome(loss=total / steps, steps=steps, patients=_patients_seen(cases, plan, seed, steps))

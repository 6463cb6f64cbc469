"""Local objectives: what is added to the loss, as a gradient."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from eucaim_fl.config import ObjectiveConfig

__all__ = ["OBJECTIVES", "penalty_for", "proximal"]

Penalty = Callable[[Sequence[Tensor], Sequence[Tensor]], float]


@torch.no_grad()
def proximal(parameters: Sequence[Tensor], anchors: Sequence[Tensor], mu: float) -> float:
    """mu/2 · ‖w − w_global‖²: adds its gradient mu · (w − w_global) to every parameter's `.grad`, returns its value.

    parameters: trainable tensors after `backward`; anchors: the arriving global values, same order and shapes.
    A parameter without gradient is left alone. Source: Li et al. 2020, Federated Optimization in Heterogeneous
    Networks, eq. 2.
    """
    total = 0.0
    for parameter, anchor in zip(parameters, anchors, strict=True):
        if parameter.grad is None:
            continue
        difference = parameter - anchor
        parameter.grad.add_(difference, alpha=mu)
        total += float(difference.pow(2).sum())
    return 0.5 * mu * total


def _none(_parameters: Sequence[Tensor], _anchors: Sequence[Tensor], _mu: float) -> float:
    return 0.0


OBJECTIVES: dict[str, Callable[[Sequence[Tensor], Sequence[Tensor], float], float]] = {
    "none": _none,
    "proximal": proximal,
}


def penalty_for(config: ObjectiveConfig) -> Penalty:
    """The penalty of a plan's objective; call it after `backward` and before the optimizer's step."""
    penalty = OBJECTIVES[config.name]
    return lambda parameters, anchors: penalty(parameters, anchors, config.mu)

"""Local objectives: what each step's gradient gets beside the loss's own, and what a site remembers of a round for it.

Signs, with w the weights, a the arriving ones, Δ = local − arriving after a round, η the learning rate:

| objective | added to the gradient | the site's state after the round |
|---|---|---|
| proximal | mu · (w − a) | none |
| scaffold | c − cᵢ | cᵢ − c − Δ / Σ η |
| dynamic | mu · (w − a) − hᵢ | hᵢ − mu · Δ |

c (of the server) comes as the guide. States and guides are arrays by the names of trainable arrays; a name that is
missing stands for zeros, so {} is where every site begins.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from eucaim_fl.arrays import Array, Arrays
from eucaim_fl.config import ObjectiveConfig
from eucaim_fl.errors import PlanError

__all__ = ["Pull", "applied", "pull_for", "state_after"]


@dataclass(frozen=True, eq=False)
class Pull:
    """What is added to every step's gradient: mu · (w − anchor) + correction.

    anchor, correction: by names of trainable arrays, in these arrays' shapes. A parameter that the anchor does not name
    is drawn nowhere; a correction that is not named is zero.
    told: whether mu/2 · ‖w − anchor‖² is part of the loss that a round tells. The correction's ⟨correction, w⟩ never
    is: it has no lower bound, and its size means nothing.
    """

    mu: float
    anchor: Mapping[str, Array]
    correction: Mapping[str, Array]
    told: bool = True


def pull_for(
    objective: ObjectiveConfig, arriving: Mapping[str, Array], state: Mapping[str, Array], guide: Mapping[str, Array]
) -> Pull | None:
    """The pull of a plan's objective for one round; None where nothing is added.

    arriving: the weights that the round begins with. state: what `state_after` gave for the site's last round. guide:
    what the server tells all sites (SCAFFOLD's c); {} of either are zeros.
    proximal: ½ mu ‖w − w_global‖² is added to the loss and told with it. Source: Li et al. 2020, Federated Optimization
    in Heterogeneous Networks, eq. 2.
    scaffold: the gradient gets c − cᵢ; the plain loss is told. Source: Karimireddy et al. 2020, SCAFFOLD, algorithm 1,
    line 10.
    dynamic: −⟨hᵢ, w⟩ + ½ mu ‖w − w_global‖² is added to the loss; the plain loss is told. Source: Acar et al. 2021,
    Federated Learning Based on Dynamic Regularization, algorithm 1, with mu for α and hᵢ for ∇Lᵢ(θᵢ).
    """
    if objective.name == "none":
        return None
    if objective.name == "proximal":
        return Pull(objective.mu, dict(arriving), {})
    if objective.name == "scaffold":
        return Pull(0.0, {}, {n: _of(guide, n) - _of(state, n) for n in sorted({*guide, *state})}, told=False)
    return Pull(objective.mu, dict(arriving), {name: -own for name, own in state.items()}, told=False)


def state_after(
    objective: ObjectiveConfig,
    state: Mapping[str, Array],
    guide: Mapping[str, Array],
    update: Mapping[str, Array],
    lr_sum: float,
) -> Arrays:
    """What the site remembers of a round for its next one; {} for objectives that need nothing.

    state, guide: those that `pull_for` had. update: local − arriving, of the trainable arrays alone. lr_sum: the sum of
    the learning rates of the round's steps (`TrainingOutcome.lr_sum`); K · η for a constant one.
    scaffold: cᵢ⁺ = cᵢ − c − Δ / lr_sum, the mean gradient of the round's steps: exact for steps of plain SGD. With a
    sum of 0 nothing was tried, and the state stays. Source: Karimireddy et al. 2020, algorithm 1, option II of line 12.
    dynamic: hᵢ⁺ = hᵢ − mu · Δ, the gradient where the site's own objective is least. Source: Acar et al. 2021,
    algorithm 1.
    """
    if objective.name == "dynamic":
        return {name: _like(change, _of(state, name) - objective.mu * change) for name, change in update.items()}
    if objective.name != "scaffold":
        return {}
    if lr_sum <= 0:
        return dict(state)
    return {
        name: _like(change, _of(state, name) - _of(guide, name) - change / lr_sum) for name, change in update.items()
    }


def applied(pull: Pull, parameters: Mapping[str, torch.nn.Parameter]) -> Callable[[], float]:
    """A function that adds the pull to every parameter's `.grad` and returns mu/2 · ‖w − anchor‖².

    Call it after `backward` and before the optimizer's step. parameters: the trainable ones by name; one without
    gradient is left alone, and adds nothing to the value.
    Raises PlanError if an array has not its parameter's shape.
    """
    anchors = _tensors(pull.anchor, parameters) if pull.mu != 0 else {}
    corrections = _tensors(pull.correction, parameters)

    @torch.no_grad()
    def add() -> float:
        squares: list[Tensor] = []
        for name, parameter in parameters.items():
            if parameter.grad is None:
                continue
            if name in anchors:
                difference = parameter - anchors[name]
                parameter.grad.add_(difference, alpha=pull.mu)
                squares.append(difference.pow(2).sum())
            if name in corrections:
                parameter.grad.add_(corrections[name])
        return 0.5 * pull.mu * sum(torch.stack(squares).tolist()) if squares else 0.0  # one wait for the GPU, not many

    return add


def _tensors(arrays: Mapping[str, Array], parameters: Mapping[str, torch.nn.Parameter]) -> dict[str, Tensor]:
    found: dict[str, Tensor] = {}
    for name, parameter in parameters.items():
        if name not in arrays:
            continue
        if arrays[name].shape != tuple(parameter.shape):
            raise PlanError(f"What training is drawn towards has another shape than array {name}.")
        found[name] = torch.tensor(np.asarray(arrays[name]), dtype=parameter.dtype, device=parameter.device)
    return found


def _of(arrays: Mapping[str, Array], name: str) -> Array:
    return arrays.get(name, _ZERO)


_ZERO: Array = np.zeros((), np.float32)


def _like(model: Array, value: Array) -> Array:
    return np.asarray(value, dtype=model.dtype)

"""An optimizer's state as named arrays, so that a site can go on with it in the next round."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from torch import nn

from eucaim_fl.arrays import Array, Arrays
from eucaim_fl.errors import JournalError

__all__ = ["moments_of", "set_moments"]


def moments_of(optimizer: torch.optim.Optimizer, parameters: Mapping[str, nn.Parameter]) -> Arrays:
    """Copies of all that an optimizer remembers of its parameters: arrays `<slot>.<parameter>`.

    Slots are PyTorch's: `momentum_buffer` of sgd; `exp_avg`, `exp_avg_sq` and `step` (0-d) of Adam. What a parameter
    has not got yet is left out.
    """
    found: Arrays = {}
    for name, parameter in parameters.items():
        for slot, value in optimizer.state.get(parameter, {}).items():
            if isinstance(value, torch.Tensor):
                found[f"{slot}.{name}"] = np.array(value.detach().cpu().numpy(), order="C")
    return found


def set_moments(
    optimizer: torch.optim.Optimizer, parameters: Mapping[str, nn.Parameter], moments: Mapping[str, Array]
) -> None:
    """Let a fresh optimizer remember what `moments_of` gave; the inverse of it. {} leaves it fresh.

    Raises JournalError if the arrays are those of another network or optimizer.
    """
    known = set(_slots(optimizer))
    for key, array in moments.items():
        slot, _, name = key.partition(".")
        parameter = parameters.get(name)
        if slot not in known or parameter is None or array.shape not in ((), tuple(parameter.shape)):
            raise JournalError("What is kept of the optimizer belongs to another network or optimizer.")
        device = "cpu" if slot == "step" else parameter.device
        optimizer.state[parameter][slot] = torch.from_numpy(np.array(array)).to(device)


def _slots(optimizer: torch.optim.Optimizer) -> tuple[str, ...]:
    return ("momentum_buffer",) if isinstance(optimizer, torch.optim.SGD) else ("step", "exp_avg", "exp_avg_sq")

"""Server optimizers: what the server does with the common update (Reddi et al. 2021, algorithm 2).

With Δ the aggregated update of one array, η = lr, β₁, β₂, τ from the configuration, element by element:

    plain     w ← w + η·Δ                                           (η = 1: federated averaging)
    momentum  m ← β₁·m + Δ;              w ← w + η·m                (Hsu et al. 2019, FedAvgM)
    adagrad   m ← β₁·m + (1 − β₁)·Δ;     v ← v + Δ²
    adam      m as above;                v ← β₂·v + (1 − β₂)·Δ²
    yogi      m as above;                v ← v − (1 − β₂)·Δ²·sign(v − Δ²)
    the last three:                      w ← w + η·m / (√v + τ)

m starts at 0 and v at τ²; there is no bias correction, as in the paper. (Its experiments run Adagrad with β₁ = 0.)
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from eucaim_fl.arrays import Array, Arrays
from eucaim_fl.config import ServerOptimizerConfig
from eucaim_fl.errors import JournalError, ReplyError
from eucaim_fl.registry import lookup

__all__ = ["OPTIMIZERS", "Optimizer", "adagrad", "adam", "apply", "check_optimizer", "momentum", "plain", "yogi"]

FloatArray: TypeAlias = NDArray[np.float64]
State: TypeAlias = tuple[FloatArray, ...]
_CHUNK = 1 << 18  # elements worked on at a time, so that float64 copies stay small beside the arrays


def plain(config: ServerOptimizerConfig, delta: FloatArray, state: State) -> tuple[FloatArray, State]:
    """Step η·Δ; no state."""
    return config.lr * delta, ()


def momentum(config: ServerOptimizerConfig, delta: FloatArray, state: State) -> tuple[FloatArray, State]:
    """Step η·m with m ← β₁·m + Δ. state: (m,)."""
    m = config.beta1 * state[0] + delta
    return config.lr * m, (m,)


def adagrad(config: ServerOptimizerConfig, delta: FloatArray, state: State) -> tuple[FloatArray, State]:
    """Step η·m / (√v + τ) with v ← v + Δ². state: (m, v)."""
    return _adaptive(config, delta, state[0], state[1] + delta * delta)


def adam(config: ServerOptimizerConfig, delta: FloatArray, state: State) -> tuple[FloatArray, State]:
    """Step η·m / (√v + τ) with v ← β₂·v + (1 − β₂)·Δ². state: (m, v)."""
    return _adaptive(config, delta, state[0], config.beta2 * state[1] + (1 - config.beta2) * delta * delta)


def yogi(config: ServerOptimizerConfig, delta: FloatArray, state: State) -> tuple[FloatArray, State]:
    """Step η·m / (√v + τ) with v ← v − (1 − β₂)·Δ²·sign(v − Δ²). state: (m, v)."""
    square = delta * delta
    v = state[1] - (1 - config.beta2) * square * np.sign(state[1] - square)
    return _adaptive(config, delta, state[0], v)


def _adaptive(
    config: ServerOptimizerConfig, delta: FloatArray, m: FloatArray, v: FloatArray
) -> tuple[FloatArray, State]:
    m = config.beta1 * m + (1 - config.beta1) * delta
    return config.lr * m / (np.sqrt(v) + config.tau), (m, v)


@dataclass(frozen=True)
class Optimizer:
    """A row of `OPTIMIZERS`. slots: names of its state arrays, `m` (from 0) and `v` (from τ²).

    step: (config, Δ, state) → (step, new state), all float64 and of one shape; a pure function.
    """

    slots: tuple[str, ...]
    step: Callable[[ServerOptimizerConfig, FloatArray, State], tuple[FloatArray, State]]


OPTIMIZERS: dict[str, Optimizer] = {
    "plain": Optimizer((), plain),
    "momentum": Optimizer(("m",), momentum),
    "adagrad": Optimizer(("m", "v"), adagrad),
    "adam": Optimizer(("m", "v"), adam),
    "yogi": Optimizer(("m", "v"), yogi),
}


def check_optimizer(config: ServerOptimizerConfig) -> None:
    """Whether there is such an optimizer.

    Raises RecipeError that names the nearest one if there is not.
    """
    lookup(OPTIMIZERS, config.name, "server optimizer")


def apply(
    config: ServerOptimizerConfig,
    weights: Mapping[str, Array],
    update: Iterable[tuple[str, Array]],
    state: Mapping[str, Array],
    trainable: Callable[[str], bool],
) -> tuple[Arrays, Arrays]:
    """The next global weights and the next state.

    weights: global arrays. update: (name, aggregated update), each name once, as `aggregation.aggregate` yields them;
    an iterator is consumed one array at a time. state: what the last call returned, {} at first; arrays `m.<name>`
    and `v.<name>` in float64 for float64 weights, else float32. trainable: False for buffers.
    Buffers take w + Δ, integers and booleans the value sent, whatever the optimizer. Arithmetic is float64, dtypes
    and shapes are kept, the inputs are not changed, and equal inputs give equal bits.
    Raises ReplyError if names, shapes or dtypes of update and weights differ; JournalError if the state is not
    that of these weights and this optimizer; RecipeError for an unknown optimizer.
    """
    optimizer = lookup(OPTIMIZERS, config.name, "server optimizer")
    new_weights: Arrays = {}
    new_state: Arrays = {}
    for name, delta in update:
        if name not in weights or name in new_weights:
            raise ReplyError(f"The update holds '{name}', which the model has not, or twice.")
        old = weights[name]
        if delta.shape != old.shape or delta.dtype != old.dtype:
            raise ReplyError(f"The update of '{name}' differs from the model in shape or dtype.")
        if old.dtype.kind != "f":
            new_weights[name] = delta.copy()
        elif not trainable(name):
            new_weights[name] = _add(old, delta)
        else:
            slots = [_slot(config, slot, name, old, state) for slot in optimizer.slots]
            new_weights[name], following = _step(config, optimizer, old, delta, slots)
            new_state.update({f"{s}.{name}": array for s, array in zip(optimizer.slots, following, strict=True)})
    if missing := sorted(set(weights) - set(new_weights)):
        raise ReplyError(f"The update lacks '{missing[0]}'.")
    if not set(state) <= set(new_state):
        raise JournalError("The server optimizer's state belongs to another model or optimizer.")
    return new_weights, new_state


def _slot(config: ServerOptimizerConfig, slot: str, name: str, like: Array, state: Mapping[str, Array]) -> Array:
    if not state:
        dtype = np.float64 if like.dtype == np.float64 else np.float32
        return np.full(like.shape, config.tau**2 if slot == "v" else 0.0, dtype=dtype)
    found = state.get(f"{slot}.{name}")
    if found is None or found.shape != like.shape:
        raise JournalError("The server optimizer's state belongs to another model or optimizer.")
    return found


def _add(old: Array, delta: Array) -> Array:
    return np.asarray(np.add(old, delta, dtype=np.float64)).astype(old.dtype)


def _step(
    config: ServerOptimizerConfig, optimizer: Optimizer, old: Array, delta: Array, slots: list[Array]
) -> tuple[Array, list[Array]]:
    new, flat_old, flat_delta = np.empty(old.size, dtype=old.dtype), old.reshape(-1), delta.reshape(-1)
    flat_slots = [slot.reshape(-1) for slot in slots]
    new_slots = [np.empty_like(slot) for slot in flat_slots]
    for start in range(0, old.size, _CHUNK):
        piece = slice(start, start + _CHUNK)
        step, following = optimizer.step(
            config, flat_delta[piece].astype(np.float64), tuple(slot[piece].astype(np.float64) for slot in flat_slots)
        )
        new[piece] = flat_old[piece].astype(np.float64) + step
        for slot, values in zip(new_slots, following, strict=True):
            slot[piece] = values
    return new.reshape(old.shape), [slot.reshape(old.shape) for slot in new_slots]

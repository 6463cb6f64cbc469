"""The server's side of SCAFFOLD and FedDyn, from the common update alone.

With x the weights that were sent, yᵢ those that site i reached, Δᵢ = yᵢ − x, pᵢ the site's share where all sites of the
plan add up to 1, common = Σ pᵢΔᵢ / Σ pᵢ over the sites S that took part, P = Σ pᵢ over these, and lr_sum the sum of the
learning rates of a round's steps (K·η):

    scaffold  cᵢ⁺ = cᵢ − c − Δᵢ/lr_sum at a site that took part, so cᵢ⁺ − cᵢ = −c − Δᵢ/lr_sum, and
              c⁺ = c + Σ over S of pᵢ(cᵢ⁺ − cᵢ) = (1 − P)·c − P·common/lr_sum;  x⁺ = x + common
    dynamic   gᵢ⁺ = gᵢ − mu·Δᵢ at a site that took part, so h⁺ = Σ pᵢgᵢ⁺ = h − mu·P·common;  x⁺ = x + common − h⁺/mu

Sites that join later begin with 0, so of Σ pᵢcᵢ and Σ pᵢgᵢ a part Q (`stayed`) is what the sites known before count by
now: c⁺ = Q·c − P·c − P·common/lr_sum, for c is what was sent, and h⁺ = Q·h − mu·P·common.

Both start at 0. x + common is the mean of the yᵢ, so h⁺/mu is taken off that mean anew each round and does not pile up.
The server optimizer is given common (scaffold) or common − h⁺/mu (dynamic) as its update: with `plain` and lr 1 that is
the papers' step, with any other one the same correction under that optimizer.

Sources: Karimireddy et al. 2020, SCAFFOLD, algorithm 1, option II; Acar et al. 2021, Federated Learning Based on
Dynamic Regularization, algorithm 1. Both for sites that count alike; here they count by pᵢ, and so does the objective
whose minimum is reached.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping

import numpy as np

from eucaim_fl.arrays import GUIDE, Array, Arrays
from eucaim_fl.config import ObjectiveConfig
from eucaim_fl.errors import JournalError, NotFiniteError

__all__ = ["CONTROL", "control_after", "guide"]

CONTROL = "control."
"""Begins the names of the server's state arrays that belong to an objective."""
_CHUNK = 1 << 18  # elements worked on at a time, so that float64 copies stay small beside the arrays


def guide(objective: ObjectiveConfig, state: Mapping[str, Array]) -> Arrays:
    """What is sent to the sites beside the weights: c of `scaffold`, as `guide:<name>`; nothing of other objectives.

    state: as `control_after` gave it; arrays of other names are left out. {} before the first round, which sites take
    for zeros. The arrays are those of the state, not copies.
    """
    if objective.name != "scaffold":
        return {}
    return {GUIDE + name.removeprefix(CONTROL): array for name, array in state.items() if name.startswith(CONTROL)}


def control_after(
    objective: ObjectiveConfig,
    common: Iterable[tuple[str, Array]],
    state: Mapping[str, Array],
    share: float,
    lr_sum: float,
    trainable: Callable[[str], bool],
    stayed: float = 1.0,
) -> tuple[Iterator[tuple[str, Array]], Arrays]:
    """The update for the server optimizer, and the server's state after the round (see the module for the formulas).

    common: (name, common update), each name once, as `aggregation.aggregate` yields them; it is consumed one array at a
    time, as the result is. state: what the last round left, {} at first; arrays `control.<name>`, in float64 for
    float64 arrays, else float32; arrays of other names are not looked at. share: P, in (0, 1]. lr_sum: positive.
    trainable: False for buffers. stayed: Q, in [0, 1]; 1 where nobody joined. Buffers, integers and booleans pass as
    they are, and so does everything under other objectives, whose state is {}.
    The state is complete when the last array of the update was taken. Arithmetic is float64, dtypes and shapes are
    kept, the inputs are not changed, and equal inputs give equal bits.
    Raises ValueError if share or lr_sum is out of range. Taking the update raises JournalError if the state is that of
    another model, NotFiniteError if it becomes infinite.
    """
    following: Arrays = {}
    if not objective.has_state():
        return iter(common), following
    if not 0 < share <= 1 or not 0 <= stayed <= 1 or not 0 < lr_sum < float("inf"):
        raise ValueError("Shares of the sites lie between 0 and 1, and the sum of learning rates is positive.")
    own = {name: array for name, array in state.items() if name.startswith(CONTROL)}

    def corrected() -> Iterator[tuple[str, Array]]:
        for name, delta in common:
            if delta.dtype.kind != "f" or not trainable(name):
                yield name, delta
                continue
            before = _state_of(name, delta, own)
            with np.errstate(over="ignore"):  # told below, in words
                update, after = _controlled(objective, delta, before, (share, stayed), lr_sum)
            if not np.isfinite(after).all():
                raise NotFiniteError(
                    f"What the server keeps for {objective.name} is not finite any more.",
                    fix="Lower training.optimizer.lr or method.server_optimizer.lr.",
                )
            following[CONTROL + name] = after
            yield name, update
        if not set(own) <= set(following):
            raise JournalError("The state of the objective belongs to another model.")

    return corrected(), following


def _state_of(name: str, like: Array, own: Mapping[str, Array]) -> Array:
    if not own:
        return np.zeros(like.shape, dtype=np.float64 if like.dtype == np.float64 else np.float32)
    found = own.get(CONTROL + name)
    if found is None or found.shape != like.shape:
        raise JournalError("The state of the objective belongs to another model.")
    return found


def _controlled(
    objective: ObjectiveConfig, delta: Array, before: Array, shares: tuple[float, float], lr_sum: float
) -> tuple[Array, Array]:
    """One array's update and state, worked on piece by piece. shares: P and Q."""
    share, stayed = shares
    update, after = np.empty(delta.size, dtype=delta.dtype), np.empty(delta.size, dtype=before.dtype)
    flat, flat_before = delta.reshape(-1), before.reshape(-1)
    for start in range(0, delta.size, _CHUNK):
        piece = slice(start, start + _CHUNK)
        common, old = flat[piece].astype(np.float64), flat_before[piece].astype(np.float64)
        if objective.name == "scaffold":
            update[piece] = flat[piece]
            after[piece] = (stayed - share) * old - common * (share / lr_sum)
        else:
            after[piece] = stayed * old - (objective.mu * share) * common
            update[piece] = common - after[piece].astype(np.float64) / objective.mu
    return update.reshape(delta.shape), after.reshape(delta.shape)

"""How much each site counts where the rule takes a mean, from what the sites tell of a round.

With pᵢ the share of site i in the round's patients, Δᵢ its update, Fᵢ its loss and aᵢ its effective steps, the common
update is scale × Σ wᵢΔᵢ / Σ wᵢ:

    patients    wᵢ = pᵢ                                                   (McMahan et al. 2017, FedAvg)
    equal       wᵢ = 1
    normalised  wᵢ = pᵢ/aᵢ, scale = (Σ pᵢaᵢ) · Σ pᵢ/aᵢ                    (Wang et al. 2020, FedNova)
    fair        wᵢ = pᵢFᵢ^q, scale = L Σ pᵢFᵢ^q / Σ pᵢhᵢ                  (Li et al. 2020, q-FedAvg)
    agnostic    wᵢ = λᵢ, which moves towards the sites with large losses  (Mohri et al. 2019, AFL)

Fᵢ is the mean training loss of the site's steps in the round, the one that leaves the site anyway; the papers take the
loss of the arriving model. What a site tells is believed: one that overstates its loss gains weight under `fair` and
`agnostic`, as one that overstates its patients does under `patients`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, TypeAlias

import numpy as np
from numpy.typing import NDArray

from eucaim_fl.arrays import Array, Arrays
from eucaim_fl.config import ObjectiveConfig, TrainingConfig, WeightingConfig
from eucaim_fl.errors import JournalError, ReplyError
from eucaim_fl.registry import lookup

if TYPE_CHECKING:
    from eucaim_fl.strategies.aggregation import Source

__all__ = [
    "WEIGHTING",
    "WEIGHTINGS",
    "Settings",
    "Told",
    "Weighed",
    "Weighting",
    "agnostic",
    "check_weighting",
    "effective_steps",
    "equal",
    "fair",
    "normalised",
    "on_simplex",
    "patients",
    "steps_of",
    "trained_norm",
    "weigh",
]

FloatArray: TypeAlias = NDArray[np.float64]

WEIGHTING = "weighting."
"""Begins the names of the server's state arrays that belong to a weighting."""
_LAMBDA = WEIGHTING + "lambda"
_LEAST_LOSS = 1e-10
"""Losses below count as this one, for `fair` divides by them; as in the authors' experiments."""
_CHUNK = 1 << 18


@dataclass(frozen=True)
class Told:
    """What one site told of its round, or what follows from its update.

    site: its place in the plan's canonical order of sites, from 0. patients: training patients. steps: optimizer steps
    that the plan asks of it (see `steps_of`). loss: mean training loss of the round; None where it does not tell. norm:
    L2 norm of its update over the arrays that are trained (see `trained_norm`); only `fair` needs it.
    """

    site: int
    patients: int
    steps: int = 1
    loss: float | None = None
    norm: float = 0.0


@dataclass(frozen=True)
class Settings:
    """What weightings need to know of a plan and a round.

    sites: how many the plan has. lr: local learning rate in this round. momentum: of local sgd; 0 of other optimizers,
    whose steps are taken for those of plain sgd. mu: of the proximal term, 0 without one.
    """

    sites: int
    lr: float
    momentum: float = 0.0
    mu: float = 0.0

    @classmethod
    def of(cls, sites: int, objective: ObjectiveConfig, training: TrainingConfig, rate: float = 1.0) -> Settings:
        """The settings of a plan with that many sites. rate: the schedule's factor in this round."""
        optimizer = training.optimizer
        return cls(
            sites=sites,
            lr=optimizer.lr * rate,
            momentum=optimizer.momentum if optimizer.name == "sgd" else 0.0,
            mu=objective.mu if objective.name == "proximal" else 0.0,
        )


@dataclass(frozen=True)
class Weighed:
    """How a round's updates become one; weights in the order of what was told, ≥ 0 with a positive sum.

    weights, scale: the common update of trained arrays is scale × Σ wᵢΔᵢ / Σ wᵢ. buffers: weights of all other arrays
    (running means, counters), whose plain mean is taken; None takes `weights`. state: for the next round.
    """

    weights: tuple[float, ...]
    scale: float = 1.0
    buffers: tuple[float, ...] | None = None
    state: Arrays = field(default_factory=dict)


@dataclass(frozen=True)
class Weighting:
    """A row of `WEIGHTINGS`. norms: whether `Told.norm` is needed, for which all updates are read once more."""

    weigh: Callable[[WeightingConfig, Sequence[Told], Settings, Mapping[str, Array]], Weighed]
    norms: bool = False


def patients(config: WeightingConfig, told: Sequence[Told], settings: Settings, state: Mapping[str, Array]) -> Weighed:
    """By numbers of training patients: Σ nᵢΔᵢ / Σ nᵢ.

    Source: McMahan et al. 2017, Communication-Efficient Learning of Deep Networks from Decentralized Data.
    """
    return Weighed(tuple(float(one.patients) for one in told))


def equal(config: WeightingConfig, told: Sequence[Told], settings: Settings, state: Mapping[str, Array]) -> Weighed:
    """Every site alike, whatever its size: the mean of Δᵢ."""
    return Weighed((1.0,) * len(told))


def normalised(
    config: WeightingConfig, told: Sequence[Told], settings: Settings, state: Mapping[str, Array]
) -> Weighed:
    """By patients, each update divided by the site's effective steps: Δ = τ_eff Σ pᵢΔᵢ/aᵢ with τ_eff = Σ pᵢaᵢ.

    aᵢ: see `effective_steps`. So a site that made more steps gives no other direction to the model than its patients
    do. Where all make equally many this is `patients`; where rounds are epochs, steps follow from patients, so sites
    are taken to have equally many images a patient. What is not trained is averaged by patients.
    Source: Wang et al. 2020, Tackling the Objective Inconsistency Problem in Heterogeneous Federated Optimization,
    eq. 5 to 8.
    """
    shares, steps = _shares(told), _all_effective_steps(told, settings)
    weights = tuple(share / a for share, a in zip(shares, steps, strict=True))
    scale = math.fsum(share * a for share, a in zip(shares, steps, strict=True)) * math.fsum(weights)
    return Weighed(weights, scale, buffers=tuple(shares))


def fair(config: WeightingConfig, told: Sequence[Told], settings: Settings, state: Mapping[str, Array]) -> Weighed:
    """More where the loss is larger: Δ = Σ pᵢ·L·Fᵢ^q·Δᵢ / Σ pᵢhᵢ with hᵢ = q·Fᵢ^(q−1)·‖L·Δᵢ‖² + L·Fᵢ^q.

    It goes down the objective Σ pᵢFᵢ^(q+1)/(q+1); q = 0 is `patients`. L, the bound of curvature for which the paper
    takes one over the learning rate of one local step, is here one over the round's sum of learning rates: lr × the
    mean (by patients) of the sites' effective steps. So L·Δᵢ is the mean gradient on the site's way, and a round of one
    step is the paper's. The paper draws sites with probability pᵢ; here all count, with pᵢ.
    A site that does not tell its loss gets the mean of the others'; if nobody does, this is `patients`. Losses count as
    1e-10 at least.
    Source: Li et al. 2020, Fair Resource Allocation in Federated Learning, algorithm 2.
    """
    losses = _losses(told)
    if losses is None:
        return patients(config, told, settings, state)
    shares, steps = _shares(told), _all_effective_steps(told, settings)
    bound = 1.0 / (settings.lr * math.fsum(share * a for share, a in zip(shares, steps, strict=True)))
    positive = [max(loss, _LEAST_LOSS) for loss in losses]
    # all powers relative to the largest: the quotient is the same, and the sum is neither 0 nor too large
    largest = max(f for share, f in zip(shares, positive, strict=True) if share > 0)
    weights = tuple(share * (f / largest) ** config.q for share, f in zip(shares, positive, strict=True))
    damped = (
        weight * (1.0 + config.q * bound * one.norm * one.norm / f)
        for weight, one, f in zip(weights, told, positive, strict=True)
    )
    return Weighed(weights, math.fsum(weights) / math.fsum(damped))


def agnostic(config: WeightingConfig, told: Sequence[Told], settings: Settings, state: Mapping[str, Array]) -> Weighed:
    """Towards the worst mixture of sites: min over w of max over λ of Σ λᵢFᵢ(w), by λ ← Π(λ + step·F).

    λ is one share for each of the plan's sites, equal at first; Π is the projection onto shares that are not negative
    and have the same sum (`on_simplex`). Weights are λ as it was before the round; the state is λ after it. Absent
    sites keep their shares, and those present share theirs among themselves. A site that does not tell its loss gets
    the mean of the others'; if nobody does, λ stays. If those present have no share at all, they count by patients.
    state: `weighting.lambda`, float64, shape (sites,), in the plan's canonical order.
    Raises JournalError if the state is that of other sites.
    Source: Mohri et al. 2019, Agnostic Federated Learning, algorithm 1; Deng et al. 2020 (DRFA) for absent sites.
    """
    shares = np.array(state.get(_LAMBDA, np.full(settings.sites, 1.0 / settings.sites)), dtype=np.float64)
    if shares.shape != (settings.sites,) or not np.isfinite(shares).all() or (shares < 0).any():
        raise JournalError("The state of the agnostic weighting belongs to other sites.")
    present = [one.site for one in told]
    before, losses = shares[present], _losses(told)
    weights = tuple(float(share) for share in before) if before.any() else tuple(_shares(told))
    if losses is not None:
        shares[present] = on_simplex(before + config.step * np.array(losses), math.fsum(before))
    return Weighed(weights, state={_LAMBDA: shares})


WEIGHTINGS: dict[str, Weighting] = {
    "patients": Weighting(patients),
    "equal": Weighting(equal),
    "normalised": Weighting(normalised),
    "fair": Weighting(fair, norms=True),
    "agnostic": Weighting(agnostic),
}
"""Weightings by name."""


def check_weighting(config: WeightingConfig) -> None:
    """Whether there is such a weighting.

    Raises RecipeError that names the nearest one if there is not.
    """
    lookup(WEIGHTINGS, config.name, "weighting")


def weigh(
    config: WeightingConfig, told: Sequence[Told], settings: Settings, state: Mapping[str, Array] | None = None
) -> Weighed:
    """How a round's updates become one under a plan's weighting; equal inputs give equal bits, and none is changed.

    told: of each site whose update counts, in the plan's canonical order. state: what the last round's `Weighed` held,
    {} at first; arrays of other names are not looked at.
    Raises RecipeError for an unknown weighting; ReplyError if there is no site, a site is named twice or not in order,
    or nobody has patients; JournalError if the state belongs to other sites.
    """
    weighting = lookup(WEIGHTINGS, config.name, "weighting")
    places = [one.site for one in told]
    if not places or sorted(set(places)) != places or not 0 <= places[0] <= places[-1] < settings.sites:
        raise ReplyError("The sites of a round must be the plan's, each once and in its order.")
    if not any(one.patients for one in told) or any(one.patients < 0 for one in told):
        raise ReplyError("The sites of a round have no patients to weigh them by.")
    return weighting.weigh(config, told, settings, state or {})


def steps_of(training: TrainingConfig, patients: int) -> int:
    """How many optimizer steps a round's plan asks of a site with so many training patients, of one image each.

    Images are not counted, for sites tell their number of patients only.

    >>> steps_of(TrainingConfig(batch_size=8, local_epochs=2), 20)
    5
    """
    return training.local_steps or max(1, math.ceil((training.local_epochs or 1) * patients / training.batch_size))


def trained_norm(source: Source, trainable: Callable[[str], bool]) -> float:
    """L2 norm of one update over the floating arrays that are trained, read piece by piece.

    source: as `aggregation.aggregate` takes them. trainable: False for buffers.
    """
    total = 0.0
    for name in sorted(source.names):
        if not trainable(name) or source.dtype(name).kind != "f":
            continue
        for start in range(0, math.prod(source.shape(name)), _CHUNK):
            piece = source.read(name, start, _CHUNK).astype(np.float64)
            total += float(np.einsum("i,i->", piece, piece))
    return math.sqrt(total)


def effective_steps(steps: int, momentum: float = 0.0, decay: float = 0.0) -> float:
    """‖a‖₁: how many gradients, each with weight 1, an update of so many local steps amounts to.

    An update of sgd is −lr · Σ aₖgₖ. a is all ones for plain sgd; with momentum ρ the sum is
    [τ − ρ(1 − ρ^τ)/(1 − ρ)] / (1 − ρ), with a proximal term [1 − (1 − α)^τ] / α where α = decay = lr · mu, and with
    both what the recursion m ← ρm + 1 − αs, s ← s + m gives for s after τ steps. At least 1, and never above what it
    would be without decay.
    steps: τ ≥ 1. Source: Wang et al. 2020, section 4.

    >>> effective_steps(3), effective_steps(2, momentum=0.5), effective_steps(2, decay=0.5)
    (3.0, 2.5, 1.5)
    """
    with np.errstate(all="ignore"):  # a step that is too long lets s grow without bound; it is held below
        undamped, damped = (_sum_after(steps, momentum, alpha) for alpha in (0.0, decay))
    return undamped if not math.isfinite(damped) else min(max(1.0, damped), undamped)


def _sum_after(steps: int, momentum: float, decay: float) -> float:
    once = np.array([[1.0 - decay, momentum, 1.0], [-decay, momentum, 1.0], [0.0, 0.0, 1.0]])  # of (s, m, 1)
    return float(np.linalg.matrix_power(once, steps)[0, 2])


def on_simplex(values: FloatArray, total: float = 1.0) -> FloatArray:
    """The nearest vector (Euclidean) without negative values that sums to `total`: max(0, valuesᵢ − θ).

    values: float64, shape (n,), finite, n ≥ 1. total: ≥ 0. Returns shape (n,).
    Source: Duchi et al. 2008, Efficient Projections onto the ℓ1-Ball, figure 1.

    >>> on_simplex(np.array([0.5, 0.75, -1.0])).tolist()
    [0.375, 0.625, 0.0]
    """
    falling = np.sort(values)[::-1]
    thresholds = (np.cumsum(falling) - total) / np.arange(1, len(values) + 1)
    kept = np.flatnonzero(falling > thresholds)
    threshold = thresholds[kept[-1] if len(kept) else 0]  # none is kept where the total is 0
    return np.asarray(np.maximum(values - threshold, 0.0))


def _shares(told: Sequence[Told]) -> list[float]:
    everybody = sum(one.patients for one in told)
    return [one.patients / everybody for one in told]


def _losses(told: Sequence[Told]) -> list[float] | None:
    """The sites' losses, the mean of the others' where one is not told; None if nobody tells."""
    known = [one.loss for one in told if one.loss is not None and math.isfinite(one.loss)]
    if not known:
        return None
    mean = math.fsum(known) / len(known)
    return [one.loss if one.loss is not None and math.isfinite(one.loss) else mean for one in told]


def _all_effective_steps(told: Sequence[Told], settings: Settings) -> list[float]:
    return [effective_steps(one.steps, settings.momentum, settings.lr * settings.mu) for one in told]

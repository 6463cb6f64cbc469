"""A round's updates become the next global model: weighted, combined by the rule, moved by the server's optimizer.

Under `central_dp` they are clipped and noised here instead of being weighted.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from eucaim_fl.arrays import Array, ArrayFile, Arrays
from eucaim_fl.errors import NotFiniteError
from eucaim_fl.plan import FederationPlan
from eucaim_fl.privacy.stages import Normal, combined_privately
from eucaim_fl.records import ArraySpec
from eucaim_fl.seeding import derive_seed
from eucaim_fl.site.report import SiteReport
from eucaim_fl.strategies.aggregation import aggregate_weighed
from eucaim_fl.strategies.control import CONTROL, control_after, guide
from eucaim_fl.strategies.server_optimizer import apply
from eucaim_fl.strategies.weighting import WEIGHTING, WEIGHTINGS, Settings, Told, Weighed, steps_of, trained_norm, weigh
from eucaim_fl.training.schedule import factor

__all__ = ["Gathered", "combined", "guided", "next_model"]


@dataclass(frozen=True)
class Gathered:
    """One site's part in a round: its update, and what it says of it."""

    site: str
    update: ArrayFile
    report: SiteReport


def guided(plan: FederationPlan, method: Mapping[str, Array]) -> Arrays:
    """What the method tells all sites beside the weights: arrays whose names begin with `guide:`; most tell nothing.

    method: the server's state, as `next_model` left it; {} before the first round, when there is nothing to tell.
    """
    return guide(plan.method.objective, method)


def next_model(
    plan: FederationPlan,
    number: int,
    gathered: Sequence[Gathered],
    known: Mapping[str, int],
    specs: Sequence[ArraySpec],
    before: tuple[Arrays, Arrays],
) -> tuple[Arrays, Arrays]:
    """The next global model and the server's state after round `number`, from the updates of those who count.

    gathered: in canonical order of sites. known: site → training patients, of all that took part in earlier rounds:
    a method that follows every site's own state needs the share of those who are here. specs: of the model's arrays.
    before: the weights that were sent, and the state that the last call returned ({} at first): arrays of the server
    optimizer, `weighting.…` and `control.…`.
    Raises NotFiniteError if the model is not finite, and what `weigh`, `aggregate` and `apply` raise.
    """
    weights, state = before
    trainable = {spec.name for spec in specs if spec.trainable}.__contains__
    rate = factor(plan.training.schedule, number, plan.rounds)
    if plan.privacy.mechanism == "central_dp":
        weighing = Weighed((1.0,) * len(gathered))
    else:
        settings = Settings.of(len(plan.sites), plan.method.objective, plan.training, rate)
        norms = WEIGHTINGS[plan.method.weighting.name].norms
        told = [_told(plan, one, trained_norm(one.update, trainable) if norms else 0.0) for one in gathered]
        weighing = weigh(plan.method.weighting, told, settings, state)
    common = combined(plan, number, [one.update for one in gathered], weighing, (weights, trainable))
    lr_sum = plan.training.optimizer.lr * rate * (plan.training.local_steps or 1)
    share, stayed = _shares(plan, gathered, known)
    corrected, control = control_after(plan.method.objective, common, state, share, lr_sum, trainable, stayed)
    own = {name: array for name, array in state.items() if not name.startswith((WEIGHTING, CONTROL))}
    moved, following = apply(plan.method.server_optimizer, weights, corrected, own, trainable)
    if not all(np.isfinite(a).all() for a in moved.values() if np.issubdtype(a.dtype, np.floating)):
        raise NotFiniteError(
            "The combined weights are not finite.", fix="Lower method.server_optimizer.lr or training.optimizer.lr."
        )
    return moved, {**following, **weighing.state, **control}


def _told(plan: FederationPlan, one: Gathered, norm: float) -> Told:
    report = one.report
    steps = steps_of(plan.training, report.patients)
    return Told(plan.sites.index(one.site), report.patients, steps, report.train_loss, norm)


def _shares(plan: FederationPlan, gathered: Sequence[Gathered], known: Mapping[str, int]) -> tuple[float, float]:
    """What part of all sites that ever took part is here, and what part was known before, by what they count."""
    here = {one.site: one.report.patients for one in gathered}
    everybody = {**known, **here}
    if plan.method.weighting.name == "equal":
        return len(here) / len(everybody), len(known) / len(everybody)
    total = sum(everybody.values())
    return sum(here.values()) / total, sum(everybody[site] for site in known) / total


def combined(
    plan: FederationPlan,
    number: int,
    files: Sequence[ArrayFile],
    weighed: Weighed,
    model: tuple[Mapping[str, Array], Callable[[str], bool]],
) -> Iterable[tuple[str, Array]]:
    """The common update of a round, array by array.

    files: the sites' updates in canonical order. weighed: how much each counts. model: the weights that arrived, and
    which of them are trained.

    Raises what `aggregate_weighed` and `combined_privately` raise.
    """
    weights, trainable = model
    if plan.privacy.mechanism != "central_dp":
        return aggregate_weighed(plan.method.rule, files, weighed, trainable)
    return combined_privately(files, weights, len(plan.sites), plan.privacy, _normal(plan, number)).items()


def _normal(plan: FederationPlan, number: int) -> Normal:
    import torch  # here, because it takes long

    from eucaim_fl.training.randomness import Randomness

    seed = derive_seed(plan.seed, "central noise", number)
    source = Randomness.secure() if plan.privacy.secure else Randomness.seeded(seed)
    return lambda shape: source.normal(shape, dtype=torch.float64).numpy()

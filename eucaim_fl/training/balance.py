"""What is done where classes have unequal shares: weights or shifted logits in the loss, and who is drawn."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from eucaim_fl.cohorts.cohort import PreparedCase
from eucaim_fl.errors import PlanError
from eucaim_fl.plan import FederationPlan
from eucaim_fl.records import CLASS_SHARES
from eucaim_fl.tasks import for_task

__all__ = ["ClassShares", "class_weights", "drawn", "log_shares", "measure_for", "shares_for", "site_shares"]

_ROUNDING = 1e-3


@dataclass(frozen=True)
class ClassShares:
    """Each class's share of the patients; they add up to 1. least: what one without patients counts as."""

    values: tuple[float, ...]
    least: float

    def above_zero(self) -> NDArray[np.float64]:
        """The shares, of which none is zero; then they add up to a little more than 1."""
        return np.maximum(np.array(self.values, dtype=np.float64), self.least)


def class_weights(shares: ClassShares, strength: float) -> NDArray[np.float64]:
    """w_c = share_c^−strength / Σ_k share_k · share_k^−strength, so that Σ_c share_c · w_c = 1.

    Mean 1 over the patients: the loss, and with it the best learning rate, stays as large as without weights. With
    strength 1 all classes count alike. A class without patients gets the weight of its `least` share and no part in
    the mean; nobody is there to use it.

    >>> class_weights(ClassShares((0.75, 0.25), 0.01), 1.0).tolist()
    [0.6666666666666666, 2.0]
    """
    raised = shares.above_zero() ** -strength
    return np.asarray(raised / float(np.dot(shares.values, raised)), dtype=np.float64)


def log_shares(shares: ClassShares, strength: float) -> NDArray[np.float64]:
    """strength · ln share_c, which logits get in training only: what they learn beside it is for equal shares.

    A class without patients is taken as `least`: finite, and so far below the others that a site where nobody has it
    hardly pushes its logit down, which other sites would have to mend each round.
    Source: Menon et al. 2021, Long-tail learning via logit adjustment, eq. 10; of a site's own shares in a federation:
    Zhang et al. 2022, Federated Learning with Label Distribution Skew via Logits Calibration.
    """
    return np.asarray(strength * np.log(shares.above_zero()), dtype=np.float64)


def site_shares(cases: Sequence[PreparedCase], classes: int) -> ClassShares:
    """Shares of a site's own patients; one with several cases counts once, a part for each of them.

    A class that nobody has counts as half a patient (`least`): less than the one patient it may have next time, and
    not nothing, whose logarithm is infinite.
    Raises ValueError if there is no case, or one without its class.
    """
    each = Counter(case.patient for case in cases)
    patients = np.zeros(classes)
    for case in cases:
        if case.target is None:
            raise ValueError("a case without class was selected for training")
        patients[case.target] += 1 / each[case.patient]
    if not each:
        raise ValueError("a site without cases has no class shares")
    return ClassShares(tuple((patients / len(each)).tolist()), 0.5 / len(each))


def shares_for(network: nn.Module, cases: Sequence[PreparedCase], plan: FederationPlan) -> ClassShares:
    """The shares that a plan's balance goes by: of these training cases, or of the federation, as the network holds it.

    The federation's come without a number of patients, so there a class without any counts as half of the rarest other.
    Raises PlanError if the plan goes by the federation's and the network holds none, or values that are no shares.
    """
    classes = len(plan.task.classes) if plan.task.name == "classification" else 0
    if plan.training.balance.shares == "site":
        return site_shares(cases, classes)
    found = [buffer for name, buffer in network.named_buffers() if name.rpartition(".")[2] == CLASS_SHARES]
    values = found[0].detach().cpu().double().numpy() if found else np.zeros(0)
    if values.shape != (classes,) or not ((values >= 0).all() and abs(values.sum() - 1) <= _ROUNDING):
        raise PlanError(
            "The plan balances classes by their shares in the federation, and the model does not hold them.",
            fix="Ask the sites for statistics first, or set training.balance.shares to site.",
        )
    values = values / values.sum()
    return ClassShares(tuple(values.tolist()), float(values[values > 0].min()) / 2)


def measure_for(
    network: nn.Module, cases: Sequence[PreparedCase], plan: FederationPlan
) -> Callable[[Tensor, Tensor], Tensor]:
    """The loss that a plan trains with at a site: outputs and targets of a batch → one number.

    cases: the site's training cases. network: on its device; it is looked at for the federation's shares only.
    Raises PlanError as `shares_for` does.
    """
    balance, task = plan.training.balance, for_task(plan.task)
    plain: Callable[[Tensor, Tensor], Tensor] = task.loss(plan.training)
    if balance.loss == "none":
        return plain
    shares, device = shares_for(network, cases, plan), next(network.parameters()).device
    values = (class_weights if balance.loss == "weights" else log_shares)(shares, balance.strength)
    each = torch.tensor(values, dtype=torch.float32, device=device)
    if balance.loss == "weights":
        weighted: Callable[[Tensor, Tensor], Tensor] = task.loss(plan.training, each)
        return weighted
    return lambda logits, classes: plain(logits + each, classes)


def drawn(
    cases: Sequence[PreparedCase], sampling: Literal["patients", "classes"], order: np.random.Generator
) -> Iterator[int]:
    """Which case comes next, without end.

    patients: each case once in random order, before any comes again. classes: each class that there is once in random
    order, before any comes again; and of a class each case once, before any comes again. So after any number of draws
    the classes differ by at most one draw.
    """
    if sampling == "patients":
        return _in_turn(list(range(len(cases))), order)
    members: dict[int, list[int]] = defaultdict(list)
    for number, case in enumerate(cases):
        members[-1 if case.target is None else case.target].append(number)
    turns = [_in_turn(members[target], order) for target in sorted(members)]
    return (next(turns[place]) for place in _in_turn(list(range(len(turns))), order))


def _in_turn(members: Sequence[int], order: np.random.Generator) -> Iterator[int]:
    while members:
        yield from (members[int(place)] for place in order.permutation(len(members))[::-1])

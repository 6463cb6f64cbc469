"""How many patients a plan lets stand behind what leaves. Few steps see few; and some plans let one batch show alone.

A sum over a round's steps hides a patient among those of the others, if every step counts about alike. The weights that
arrive can take that away under every plan: with a ReLU network whose first step pushes each ReLU below zero, all later
gradients are exactly 0, and the first batch is all that the update shows; with a batch of one, that patient's image can
be read from it. Nobody can exclude it without noise, since nobody can tell such weights from honest ones: against a
coordinator that crafts them the batch is the number of people behind an update, whatever the steps (the policy's
`patients.batch`). What is counted here is what a plan lets a coordinator see that sends honest weights. Two things that
it chooses leave one batch alone even then, or leave it to what is told beside the weights:

- What SCAFFOLD tells the sites is added to each step's gradient. It can be chosen so that the network answers nothing
  after the first step (each ReLU is pushed below zero), and the known part taken off the update again.
- A pull with strength mu (FedProx, FedDyn, Ditto's lambda, weight decay) multiplies what was learnt by 1 − lr · mu in
  each step. With lr · mu = 1 the update is the last batch's gradient, and only while lr · mu · steps is at most 1 is
  the first step still worth more than a third of the last one.

Then one batch counts, and no more. With Adam the product is a rule of thumb: how far it steps does not follow from lr
alone.
"""

from __future__ import annotations

import math
from typing import Literal, TypeAlias

from eucaim_fl.config import TrainingConfig
from eucaim_fl.plan import FederationPlan
from eucaim_fl.records import ModelName

__all__ = ["Behind", "few_behind", "most_patients", "one_batch"]

Behind: TypeAlias = Literal["update"] | ModelName
"""What patients are behind: a round's update, or the figures of a model that a site has in the end."""

_DRAWN = ("proximal", "dynamic")
_PATIENTS = 1000
"""Where epochs are the measure, steps are counted as for so many patients: what the pull then leaves has seen as many,
however many a site has, since a pull forgets by steps."""


def one_batch(plan: FederationPlan, what: Behind) -> bool:
    """Whether a single batch can stand for all of a round's steps by the plan alone; for the common model, which is of
    all sites, never. False is no promise against crafted weights, which can do it under any plan without noise.

    update: always under SCAFFOLD; else if (mu + weight decay) · lr · steps > 1, with mu of FedProx and FedDyn.
    personal: so with Ditto's lambda for mu; fine-tuning has weight decay alone, and its own steps. local: weight decay
    alone. blended: if one of its two models is. The learning rate is the plan's, which no schedule exceeds.
    """
    personal, objective, steps = plan.method.personal, plan.method.objective, _steps(plan.training)
    if what == "update":
        mu = objective.mu if objective.name in _DRAWN else 0.0
        return objective.name == "scaffold" or _forgets(plan.training, mu, steps)
    if what == "personal" and personal.ditto is not None:
        return _forgets(plan.training, personal.ditto, steps)
    if what == "personal":
        kept = personal.arrays != "none" and one_batch(plan, "update")
        return kept or _forgets(plan.training, 0.0, personal.fine_tune_steps)
    if what == "local":
        return _forgets(plan.training, 0.0, steps)
    return what == "blended" and (one_batch(plan, "local") or one_batch(plan, personal.blended()))


def most_patients(plan: FederationPlan, what: Behind, *, confidential: bool) -> int | None:
    """At most so many patients are behind it, by the plan alone; None where the site's own number is the limit.

    That is steps · batch size, of fine-tuning by its own steps; of confidential data no more than the batch size, where
    `one_batch` says so. Public and synthetic data hide nobody, so there that does not count.
    """
    training, personal = plan.training, plan.method.personal
    if what == "common":
        return None
    if what == "blended":
        both = [most_patients(plan, one, confidential=confidential) for one in ("local", personal.blended())]
        return min((number for number in both if number is not None), default=None)
    if confidential and one_batch(plan, what):
        return training.batch_size
    steps = personal.fine_tune_steps if what == "personal" else 0
    steps = steps or training.local_steps or 0
    return steps * training.batch_size or None


def few_behind(plan: FederationPlan, least: int, *, confidential: bool) -> frozenset[ModelName]:
    """The models that a site has in the end whose figures stay there, since fewer patients than `least` are behind."""
    found = {
        model: most_patients(plan, model, confidential=confidential) for model in plan.method.personal.candidates()
    }
    return frozenset[ModelName](model for model, number in found.items() if number is not None and number < least)


def _forgets(training: TrainingConfig, mu: float, steps: int) -> bool:
    """Whether a pull of strength mu, with weight decay beside, forgets a round's first steps before its last."""
    return (mu + training.optimizer.weight_decay) * training.optimizer.lr * steps > 1


def _steps(training: TrainingConfig) -> int:
    if training.local_steps is not None:
        return training.local_steps
    return math.ceil((training.local_epochs or 1) * _PATIENTS / training.batch_size)

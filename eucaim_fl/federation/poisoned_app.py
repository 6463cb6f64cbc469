"""A site's app with one bad site: in front of the product's own, which has no switch for it. For benchmarks alone.

The app's name says what is wrong where: `eucaim_fl.federation.poisoned_app:flip:a` is the product's app at every site
but `a`, where labels are exchanged. A spoilt update replaces the one that the site's gate has let through, as somebody
would who has got hold of the site.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
from flwr.app import Context, Message
from numpy.typing import NDArray

from eucaim_fl.cohorts.cohort import Cohort, PreparedCase
from eucaim_fl.errors import EucaimError
from eucaim_fl.federation.client_app import app as honest
from eucaim_fl.federation.client_app import asked
from eucaim_fl.federation.messages import from_record, to_record
from eucaim_fl.federation.poison import Poison, poisoned_update, read_poison
from eucaim_fl.plan import FederationPlan
from eucaim_fl.seeding import derive_seed
from eucaim_fl.site.node import SiteNode

__all__ = ["client_app_of", "poisoned_cohort"]


def client_app_of(poison: Poison) -> str:
    """The path under which the worker processes find the app with this bad site.

    >>> client_app_of(Poison("flip", "a"))
    'eucaim_fl.federation.poisoned_app:flip:a'
    """
    return f"{__name__}:{poison}"


def __getattr__(name: str) -> Callable[[Message, Context], Message]:
    try:
        poison = read_poison(name)
    except EucaimError:
        raise AttributeError(name) from None
    return lambda message, context: _answer(message, context, poison)


def _answer(message: Message, context: Context, poison: Poison) -> Message:
    try:
        node, instruction = asked(message, context)
    except EucaimError:
        return honest(message, context)  # which says what is wrong, safely
    if node.site.name != poison.site or not isinstance(node, SiteNode):
        return honest(message, context)
    if poison.kind in ("flip", "turn"):
        _spoil(node, poison)
    reply = honest(message, context)
    if poison.kind in ("scale", "noise") and reply.has_content() and "update" in reply.content.array_records:
        specs = node.specs()
        update = from_record(reply.content.array_records["update"], specs)
        trainable = {spec.name for spec in specs if spec.trainable}
        seed = derive_seed(node.plan.seed, "poison", instruction.round)
        reply.content["update"] = to_record(poisoned_update(poison, update, trainable, seed))
    return reply


def _spoil(node: SiteNode, poison: Poison) -> None:
    """Put spoilt cases in the place of the site's, once."""
    if not all(isinstance(case, _Spoilt) for case in node.cohort.cases("train")):
        node.cohort = poisoned_cohort(node.cohort, node.plan, poison)


@dataclass(frozen=True, eq=False)
class _Spoilt(PreparedCase):
    """exchanged: background is foreground and the reverse. turned: by 180° in the plane of the first two axes."""

    exchanged: bool
    turned: bool

    def image(self) -> NDArray[np.float32]:
        found = super().image()
        return np.ascontiguousarray(found[:, ::-1, ::-1]) if self.turned else found

    def label(self) -> NDArray[np.uint8] | None:
        found = super().label()
        return (found == 0).astype(np.uint8) if self.exchanged and found is not None else found


def poisoned_cohort(cohort: Cohort, plan: FederationPlan, poison: Poison) -> Cohort:
    """The cohort as a bad site has it: every split is spoilt, by kind `flip` or `turn`; who is in which stays."""
    classes = len(plan.task.classes) if plan.task.name == "classification" else 0

    def spoilt(case: PreparedCase) -> PreparedCase:
        target = case.target
        if poison.kind == "flip" and classes and target is not None:
            target = classes - 1 - target
        exchanged, turned = poison.kind == "flip", poison.kind == "turn"
        return _Spoilt(case.patient, target, case.entry, exchanged, turned, targets=case.targets)

    return replace(cohort, splits={name: tuple(map(spoilt, cases)) for name, cases in cohort.splits.items()})

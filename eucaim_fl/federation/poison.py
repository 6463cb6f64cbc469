"""What a bad site does, for benchmarks: its data are spoilt, or its update is. The product itself reaches none of it.

Numpy only; `poisoned_app` puts it in front of a site's app.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np

from eucaim_fl.arrays import Array, Arrays
from eucaim_fl.config import SITE_NAME
from eucaim_fl.errors import RecipeError
from eucaim_fl.seeding import generator

__all__ = ["LONGER", "NOISE", "Poison", "PoisonKind", "poisoned_update", "read_poison"]

PoisonKind = Literal["flip", "turn", "scale", "noise"]
LONGER, NOISE = 100.0, 10.0


@dataclass(frozen=True)
class Poison:
    """One bad site, and what is wrong with it.

    flip: its labels are exchanged (classes in reverse order; background and foreground). turn: its images are turned by
    180° in the plane, its labels are not. scale: its update is 100 times as long. noise: to its update a Gaussian is
    added that is 10 times as long.
    """

    kind: PoisonKind
    site: str

    def __str__(self) -> str:
        return f"{self.kind}:{self.site}"


def read_poison(text: str) -> Poison:
    """A poison as recipes write it, KIND:SITE.

    Raises RecipeError if it has another form, or the kind is not known.

    >>> read_poison("flip:a")
    Poison(kind='flip', site='a')
    """
    word, _, site = text.partition(":")
    kind = next((one for one in get_args(PoisonKind) if one == word), None)
    if kind is None or not re.fullmatch(SITE_NAME, site):
        raise RecipeError(
            "Poison is written KIND:SITE.", fix=f"Kinds are {', '.join(get_args(PoisonKind))}; e.g. poison=flip:a."
        )
    return Poison(kind, site)


def poisoned_update(poison: Poison, update: Mapping[str, Array], trainable: Collection[str], seed: int) -> Arrays:
    """The update that the bad site sends in place of its own.

    update: local − arriving. trainable: the arrays that change; buffers and counters stay as they are. scale:
    100 · u. noise: u + 10 · ‖u‖ · g/‖g‖ with g Gaussian, norms over all trainable arrays. Other kinds spoil data, and
    return the update as it is.
    """
    changed = [name for name in sorted(update) if name in trainable]
    if poison.kind == "scale":
        return {**update, **{name: (LONGER * update[name]).astype(update[name].dtype) for name in changed}}
    if poison.kind != "noise":
        return dict(update)
    rng = generator(seed, "poison", poison.site)
    drawn = {name: rng.standard_normal(update[name].shape) for name in changed}
    length = np.sqrt(sum(float(np.square(update[name], dtype=np.float64).sum()) for name in changed))
    drawn_length = np.sqrt(sum(float(np.square(one).sum()) for one in drawn.values())) or 1.0
    factor = NOISE * length / drawn_length
    return {**update, **{name: (update[name] + factor * drawn[name]).astype(update[name].dtype) for name in changed}}

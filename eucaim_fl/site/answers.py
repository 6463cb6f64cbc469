"""What a site is about to say, before the gate has looked at it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from eucaim_fl.arrays import Array
from eucaim_fl.site.report import SiteReport

__all__ = ["Answer"]


@dataclass(frozen=True)
class Answer:
    """Its report, its update (local − arriving), its pictures; the gate comes next."""

    report: SiteReport
    update: Mapping[str, Array]
    pictures: NDArray[np.uint8] | None = None

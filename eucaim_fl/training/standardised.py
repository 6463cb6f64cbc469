"""Cases whose images are brought to mean 0 and deviation 1 by their own site's statistics, before any network."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from eucaim_fl.arrays import Array
from eucaim_fl.cohorts.cohort import PreparedCase
from eucaim_fl.records import INPUT_MEAN, INPUT_STD

__all__ = ["standardised"]


@dataclass(frozen=True, eq=False)
class _Standardised(PreparedCase):
    """mean, std: by channel, shape (C, 1, 1, 1)."""

    mean: NDArray[np.float32]
    std: NDArray[np.float32]

    def image(self) -> NDArray[np.float32]:
        found: NDArray[Any] = (super().image() - self.mean) / self.std
        return found.astype(np.float32)


def standardised(cases: Sequence[PreparedCase], told: Mapping[str, Array]) -> tuple[PreparedCase, ...]:
    """The same cases with (image − input_mean)/input_std in place of the image.

    told: `records.INPUT_MEAN` and `INPUT_STD`, shape (channels,); without them the cases stay as they are. So can
    sites' cases be trained on together that are each standardised by their own site, as `data.standardise: site` asks.
    """
    if not told:
        return tuple(cases)
    mean, std = (np.asarray(told[name], np.float32)[:, None, None, None] for name in (INPUT_MEAN, INPUT_STD))
    return tuple(_Standardised(c.patient, c.target, c.entry, mean, std, targets=c.targets) for c in cases)

"""Updates that are longer than the round's median are shortened to it, so that none can pull by its length."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, TypeAlias

import numpy as np
from numpy.typing import NDArray

from eucaim_fl.strategies.weighting import trained_norm

if TYPE_CHECKING:
    from eucaim_fl.strategies.aggregation import Source

__all__ = ["median_factors", "update_lengths"]

FloatArray: TypeAlias = NDArray[np.float64]


def update_lengths(sources: Sequence[Source], trainable: Callable[[str], bool] = lambda _: True) -> FloatArray:
    """L2 norm of each update over its floating arrays that are trained, shape (sites,); read piece by piece.

    trainable: False for buffers. Running variances may be a thousand times as long as all weights' changes, and would
    hide an update that is a hundred times too long.
    """
    return np.array([trained_norm(source, trainable) for source in sources])


def median_factors(lengths: FloatArray) -> FloatArray:
    """What each update is multiplied by: min(1, m/‖Δᵢ‖), with m the median length (of two middle ones the smaller).

    lengths: shape (sites,), at least one, finite and not negative. So a minority of sites moves the model no further
    than an honest one could; which way, it still chooses.
    Source: Sun et al. 2019, Can You Really Backdoor Federated Learning?, norm thresholding; the threshold is the
    round's own median, as in Andrew et al. 2021.

    >>> median_factors(np.array([1.0, 2.0, 400.0])).tolist()
    [1.0, 1.0, 0.005]
    """
    middle = float(np.sort(lengths)[(len(lengths) - 1) // 2])
    return np.array([1.0 if length <= middle else middle / length for length in lengths])

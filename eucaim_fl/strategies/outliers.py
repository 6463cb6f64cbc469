"""Which updates are too long to be believed: measured against the round's median, not against a mean that they move."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from statistics import median

__all__ = ["outlying"]

_ENOUGH = 3


def outlying(norms: Mapping[str, float], ratio: float, earlier: Sequence[float] = ()) -> frozenset[str]:
    """Sites whose update is longer than `ratio` times the reference; or not finite.

    norms: site → L2 norm of its update in this round. earlier: norms of updates that counted in rounds before.
    The reference is the median of this round where at least three sites answered, else that of earlier rounds; without
    either, or if it is zero, only norms that are not finite are found. A majority of false updates is not.

    >>> sorted(outlying({"a": 1.0, "b": 1.2, "c": 1000.0}, ratio=20))
    ['c']
    """
    finite = [norm for norm in norms.values() if math.isfinite(norm)]
    known = finite if len(finite) >= _ENOUGH else list(earlier)
    reference = median(known) if known else 0.0
    return frozenset(
        site for site, norm in norms.items() if not math.isfinite(norm) or (reference > 0 and norm > ratio * reference)
    )

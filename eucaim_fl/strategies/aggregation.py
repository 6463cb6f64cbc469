"""Aggregation rules: many sites' updates become one, array by array and chunk by chunk.

An update holds, for a floating array, local − global; for an integer or boolean array the new value itself. Sites
come in the caller's canonical order, so the order of arrival changes no bit. Arithmetic is float64 throughout; the
result has the dtype and shape that was sent. Updates must be finite: that is checked where they arrive.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeAlias

import numpy as np
from numpy.typing import NDArray

from eucaim_fl.arrays import Array
from eucaim_fl.config import RuleConfig
from eucaim_fl.errors import RecipeError, ReplyError
from eucaim_fl.registry import lookup
from eucaim_fl.strategies.clipping import median_factors, update_lengths
from eucaim_fl.strategies.geometric_median import geometric_coefficients
from eucaim_fl.strategies.krum import check_krum, krum_choice, krum_scores, squared_distances
from eucaim_fl.strategies.weighting import Weighed

__all__ = [
    "RULES",
    "Rule",
    "Source",
    "aggregate",
    "aggregate_weighed",
    "check_rule",
    "median",
    "trimmed_mean",
    "weighted_mean",
]

FloatArray: TypeAlias = NDArray[np.float64]

_STACK_BYTES = 32 * 2**20  # of all sites' chunks together, for the rules that need to see every site at once
_TILE = 4096  # elements that such a rule works on at a time: all sites' values of them stay in the processor's cache


class Source(Protocol):
    """One site's update, read piece by piece; `eucaim_fl.arrays.ArrayFile` is one."""

    @property
    def names(self) -> Sequence[str]:
        """Names of the arrays."""

    def dtype(self, name: str) -> np.dtype[Any]:
        """Data type of one array."""

    def shape(self, name: str) -> tuple[int, ...]:
        """Shape of one array; () for a single number."""

    def read(self, name: str, start: int, count: int) -> Array:
        """At most `count` elements from `start`, flattened in C order."""


_Trained: TypeAlias = Callable[[str], bool]

# One chunk of every site (rows of equal length) and the sites' weights become one chunk. Rows are asked for one at a
# time, so a rule that only adds never holds more than one.
_Combine: TypeAlias = Callable[[Iterable[Array], int, FloatArray], FloatArray]


def _mean_of(rows: Iterable[Array], length: int, weights: FloatArray) -> FloatArray:
    total, term = np.zeros(length), np.empty(length)
    for row, weight in zip(rows, weights, strict=True):
        np.multiply(row, weight, out=term, dtype=np.float64)
        total += term
    total /= math.fsum(weights)
    return total


def _sorted_columns(rows: Iterable[Array], length: int, sites: int) -> FloatArray:
    """Every element's values in ascending order, shape (length, sites): contiguous, since sorting is what costs."""
    columns = np.empty((length, sites))
    for site, row in enumerate(rows):
        np.add(row, 0.0, out=columns[:, site], dtype=np.float64)  # −0 becomes 0: sorting leaves their order open
    columns.sort(axis=1)
    return columns


def _median_of(rows: Iterable[Array], length: int, weights: FloatArray) -> FloatArray:
    sites = len(weights)
    columns = _sorted_columns(rows, length, sites)
    return np.asarray((columns[:, (sites - 1) // 2] + columns[:, sites // 2]) * 0.5)


def _cut(trim: float, sites: int) -> int:
    """How many values trimmed_mean drops at each end."""
    cut = math.ceil(trim * sites - 1e-9)
    if not 0 <= trim < 0.5 or 2 * cut >= sites:
        raise RecipeError(
            f"Trimming a share of {trim:g} at each end leaves none of {sites} sites.",
            fix="Lower method.rule.trim, raise federation.quorum, or take the median.",
        )
    return cut


def _trimmed_of(trim: float) -> _Combine:
    def combine(rows: Iterable[Array], length: int, weights: FloatArray) -> FloatArray:
        sites = len(weights)
        cut = _cut(trim, sites)
        columns = _sorted_columns(rows, length, sites)
        total = np.zeros(length)
        for rank in range(cut, sites - cut):  # not sum(axis=1), whose order of additions depends on the layout
            total += columns[:, rank]
        total /= sites - 2 * cut
        return total

    return combine


def weighted_mean(stack: FloatArray, weights: FloatArray) -> FloatArray:
    """Weighted mean over sites: Σ wᵢ·xᵢ / Σ wᵢ.

    stack: float64, shape (sites, n). weights: float64, shape (sites,), ≥ 0 with a positive sum. Returns shape (n,).
    Source: McMahan et al. 2017 (FedAvg), with numbers of patients for wᵢ.

    >>> weighted_mean(np.array([[0.0], [1.0]]), np.array([30.0, 10.0]))
    array([0.25])
    """
    return _mean_of(stack, stack.shape[1], weights)


def median(stack: FloatArray, weights: FloatArray) -> FloatArray:
    """Coordinate-wise median over sites; the mean of the two middle values if their number is even.

    stack: float64, shape (sites, n). Returns shape (n,). Ignores `weights` by definition: a site must not gain
    influence by claiming more patients.
    Source: Yin et al. 2018, definition 1.
    """
    return _median_of(stack, stack.shape[1], weights)


def trimmed_mean(stack: FloatArray, weights: FloatArray, trim: float) -> FloatArray:
    """Coordinate-wise trimmed mean: the mean of what is left without the k smallest and k largest values.

    stack: float64, shape (sites, n). trim: share β in [0, 0.5) of sites that may be wrong; k = ⌈β·sites⌉, rounded up
    so that a small federation is protected too (with k rounded down, β = 0.2 over four sites would cut nothing).
    Returns shape (n,). Ignores `weights` by definition, as `median` does.
    Raises RecipeError if nothing would be left.
    Source: Yin et al. 2018, definition 2.
    """
    return _trimmed_of(trim)(stack, stack.shape[1], weights)


def _pieces(shape: tuple[int, ...], length: int) -> Iterator[tuple[int, int]]:
    """Start and count of each chunk of one flattened array."""
    total = math.prod(shape)
    for start in range(0, total, length):
        yield start, min(length, total - start)


def _to_dtype(values: FloatArray, dtype: np.dtype[Any]) -> Array:
    if dtype.kind == "b":
        return values > 0.5
    if dtype.kind in "iu":
        whole, limits = np.rint(values), np.iinfo(dtype)
        # float64 can't hold the largest int64; what would round beyond it stays at the limit
        beyond = whole >= float(limits.max)
        return np.where(beyond, limits.max, np.where(beyond, 0, whole).astype(dtype))
    return values.astype(dtype)


@dataclass(frozen=True)
class Rule:
    """A row of `RULES`: first, sites may be chosen (whose weights then no longer count), then they are combined.

    combine: the element-wise rule for given settings. whole: it needs all sites' values at once. choose: indices of
    the sites to go on with, ascending. share: how much each site counts, instead of its weight. factors: what each
    site's trained arrays are multiplied by before. These three look at trained arrays only. check: raises RecipeError
    if settings can't work with that many sites.
    """

    combine: Callable[[RuleConfig], _Combine]
    whole: bool = False
    choose: Callable[[RuleConfig, Sequence[Source], _Trained], tuple[int, ...]] | None = None
    share: Callable[[RuleConfig, Sequence[Source], _Trained], FloatArray] | None = None
    factors: Callable[[RuleConfig, Sequence[Source], _Trained], FloatArray] | None = None
    check: Callable[[RuleConfig, int], object] = lambda config, sites: None

    def looks_at_trained(self) -> bool:
        """Whether what the rule decides on says nothing of buffers, so that these need a rule of their own."""
        return self.choose is not None or self.share is not None or self.factors is not None


def _check_multi_krum(config: RuleConfig, sites: int) -> None:
    check_krum(sites, config.suspects)
    if config.keep is not None and config.keep > sites - config.suspects:
        raise RecipeError(
            f"Multi-Krum would keep {config.keep} of {sites} sites although {config.suspects} are suspect.",
            fix=f"Set method.rule.keep to at most {sites - config.suspects}, or leave it out.",
        )


def _choose(config: RuleConfig, sources: Sequence[Source], trained: _Trained, keep: int | None) -> tuple[int, ...]:
    scores = krum_scores(squared_distances(sources, trained), config.suspects)
    return krum_choice(scores, len(sources) - config.suspects if keep is None else keep)


RULES: dict[str, Rule] = {
    "weighted_mean": Rule(lambda config: _mean_of),
    "clipped_mean": Rule(
        lambda config: _mean_of,
        factors=lambda config, sources, trained: median_factors(update_lengths(sources, trained)),
    ),
    "median": Rule(lambda config: _median_of, whole=True),
    "trimmed_mean": Rule(
        lambda config: _trimmed_of(config.trim), whole=True, check=lambda config, sites: _cut(config.trim, sites)
    ),
    "krum": Rule(
        lambda config: _mean_of,
        choose=lambda config, sources, trained: _choose(config, sources, trained, 1),
        check=lambda config, sites: check_krum(sites, config.suspects),
    ),
    "multi_krum": Rule(
        lambda config: _mean_of,
        choose=lambda config, sources, trained: _choose(config, sources, trained, config.keep),
        check=_check_multi_krum,
    ),
    "geometric_median": Rule(
        lambda config: _mean_of,
        share=lambda config, sources, trained: geometric_coefficients(
            squared_distances(sources, trained), config.iterations
        ),
    ),
}
"""Aggregation rules by name. Krum, Multi-Krum (the plain mean of the chosen) and the geometric median ignore weights,
as `median` does. They and the clipped mean judge by what is trained; other floating arrays (running means) get all
sites' coordinate-wise median, for nobody judged them."""


def _combine_tiles(combine: _Combine, stack: list[Array], weights: FloatArray, target: Array) -> None:
    for first in range(0, len(target), _TILE):
        tile = [row[first : first + _TILE] for row in stack]
        target[first : first + _TILE] = _to_dtype(combine(tile, len(tile[0]), weights), target.dtype)


def _combined(
    config: RuleConfig,
    sources: Sequence[Source],
    weights_of: Callable[[str], FloatArray],
    trained: _Trained,
    chunk: int,
) -> Iterator[tuple[str, Array]]:
    rule, everyone = RULES[config.name], sources
    own: FloatArray | None = None  # the rule's own weights, instead of those that were given
    if rule.choose is not None:
        sources = [sources[site] for site in rule.choose(config, sources, trained)]
        own = np.ones(len(sources))
    elif rule.share is not None:
        own = rule.share(config, sources, trained)
    factors = None if rule.factors is None else rule.factors(config, sources, trained)
    for name in sorted(sources[0].names):
        floating = sources[0].dtype(name).kind == "f"
        if rule.looks_at_trained() and floating and not trained(name):
            yield name, _array_of(name, everyone, (_median_of, True), (np.ones(len(everyone)), None), chunk)
            continue
        weighing = (weights_of(name) if own is None else own, factors if floating else None)
        yield name, _array_of(name, sources, (rule.combine(config), rule.whole), weighing, chunk)


def _array_of(
    name: str,
    sources: Sequence[Source],
    rule: tuple[_Combine, bool],
    weighing: tuple[FloatArray, FloatArray | None],
    chunk: int,
) -> Array:
    """One array of all sites as one. rule: combine, whole. weighing: weights, factors."""
    (combine, whole), (weights, factors) = rule, weighing
    dtype, shape = sources[0].dtype(name), sources[0].shape(name)
    length = min(chunk, _STACK_BYTES // (8 * len(sources))) if whole else chunk
    out = np.empty(math.prod(shape), dtype=dtype)
    for start, count in _pieces(shape, max(1, length)):
        target = out[start : start + count]
        rows = _rows(sources, (name, start, count), factors)
        if len(sources) == 1:  # one site's update stays as it is, to the bit
            target[:] = next(rows)
        elif not whole:
            target[:] = _to_dtype(combine(rows, count, weights), dtype)
        else:
            _combine_tiles(combine, list(rows), weights, target)
    return out.reshape(shape)


def _rows(sources: Sequence[Source], piece: tuple[str, int, int], factors: FloatArray | None) -> Iterator[Array]:
    """Every site's values of one piece, one site at a time."""
    for site, source in enumerate(sources):
        row = source.read(*piece)
        yield row if factors is None or factors[site] == 1.0 else row.astype(np.float64) * factors[site]


def check_rule(config: RuleConfig, sites: int) -> None:
    """Whether a rule can work with that many sites; ask it for the quorum before a run and for each round's sites.

    Raises RecipeError for an unknown rule, no site at all, or settings that are impossible with so few.
    """
    rule = lookup(RULES, config.name, "aggregation rule")
    if sites < 1:
        raise RecipeError("An aggregation rule needs at least one site.", fix="Raise federation.quorum.")
    rule.check(config, sites)


def aggregate(
    config: RuleConfig, sources: Sequence[Source], weights: Sequence[float], chunk: int = 1 << 18
) -> Iterator[tuple[str, Array]]:
    """The common update, one array at a time, names in canonical (sorted) order, dtype and shape as sent.

    sources: updates in canonical order of sites, equal in names, dtypes and shapes. weights: numbers of training
    patients, ≥ 0 with a positive sum. chunk: largest number of elements read from one site at a time. Every floating
    array counts as trained.
    Integers take the rule's value rounded half to even (exact below 2⁵³); booleans are true where the rule's value over
    0 and 1 exceeds 0.5 (a weighted majority for the weighted mean). One site alone is returned as it is.
    Peak memory: one array of the result, and two float64 chunks (weighted mean) or all sites' chunks, which shrink
    as sites grow (64 MiB with working space at most). `chunk` changes no bit of the result.
    All checks are made at the call, before the first array is asked for.
    Raises RecipeError for what `check_rule` refuses; ReplyError if updates or weights don't fit together.
    """
    checked = _checked(config, sources, weights)
    return _combined(config, sources, lambda name: checked, lambda name: True, chunk)


def aggregate_weighed(
    config: RuleConfig,
    sources: Sequence[Source],
    weighed: Weighed,
    trainable: Callable[[str], bool],
    chunk: int = 1 << 18,
) -> Iterator[tuple[str, Array]]:
    """The common update under a weighting: `aggregate` with its weights, times its scale where an array is trained.

    sources, chunk: as in `aggregate`. trainable: False for buffers; these, integers and booleans are weighed by
    `weighed.buffers` and not scaled. Rules that judge whole updates judge by what is trained, and take the median of
    buffers (see `RULES`). With `patients` and nothing but trained arrays this is `aggregate` with numbers of patients,
    to the bit.
    Raises RecipeError and ReplyError as `aggregate` does.
    """
    for_trained = _checked(config, sources, weighed.weights)
    for_others = for_trained if weighed.buffers is None else _checked(config, sources, weighed.buffers)

    def trained(name: str) -> bool:
        return sources[0].dtype(name).kind == "f" and trainable(name)

    common = _combined(config, sources, lambda name: for_trained if trained(name) else for_others, trained, chunk)
    if weighed.scale == 1.0:
        return common
    return ((name, _scaled(array, weighed.scale, chunk) if trained(name) else array) for name, array in common)


def _scaled(array: Array, scale: float, chunk: int) -> Array:
    out = np.empty(array.size, dtype=array.dtype)
    for start, count in _pieces(array.shape, max(1, chunk)):
        piece = slice(start, start + count)
        out[piece] = np.multiply(array.reshape(-1)[piece], scale, dtype=np.float64)
    return out.reshape(array.shape)


def _checked(config: RuleConfig, sources: Sequence[Source], weights: Sequence[float]) -> FloatArray:
    """Weights as an array, where rule, updates and weights go together."""
    check_rule(config, len(sources))
    if len(weights) != len(sources) or not all(0 <= w <= 2.0**53 for w in weights) or not any(weights):
        raise ReplyError("The weights of the updates must be finite, not negative and not all zero, one for each.")
    names = sorted(sources[0].names)
    for source in sources[1:]:
        if sorted(source.names) != names:
            raise ReplyError("Two updates differ in the names of their arrays.")
        for name in names:
            if source.shape(name) != sources[0].shape(name) or source.dtype(name) != sources[0].dtype(name):
                raise ReplyError(f"Two updates differ in shape or dtype of '{name}'.")
    return np.asarray(weights, dtype=np.float64)

"""Stages around an update: it is clipped, noise is added, and what comes out is a list of arrays like any other.

An update holds local − arriving for floating arrays and new values for counters (integers and booleans). Running
statistics are floating arrays: they tell of patients as weights do, and are clipped and noised with them. Whatever
follows, such as a sum over sites that nobody sees the parts of, takes the arrays after these stages.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Protocol, TypeAlias

import numpy as np
from numpy.typing import NDArray

from eucaim_fl.arrays import Array, Arrays
from eucaim_fl.config import PrivacyConfig
from eucaim_fl.errors import NotFiniteError, PrivacyError, ReplyError

__all__ = ["Normal", "UpdateFile", "clipped", "combined_privately", "grid", "noised", "with_counters"]

Normal: TypeAlias = Callable[[tuple[int, ...]], NDArray[Any]]
"""Independent standard normal numbers of a shape, other ones at each call."""
_SHORTER = 1 - 1e-12
"""By so much a clipped update is shorter than allowed: more than the rounding errors of its norm."""
_PIECE = 1 << 18
_GRID_BITS = 20
_LEAST_BITS = -1000


class UpdateFile(Protocol):
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


def grid(deviation: float) -> float:
    """The distance between the values that a sum with noise of a standard deviation may take: a power of 2.

    It is 2⁻²⁰ to 2⁻¹⁹ of the deviation, at least 2⁻¹⁰⁰⁰. Float64 noise has gaps that depend on its size, so the last
    bits of a sum with it would tell which of two neighbours was summed. Each point of this grid is reached from some
    2³⁰ different draws whatever the sum, and rounding what is noised already costs no privacy.
    Source: Mironov 2012, On Significance of the Least Significant Bits for Differential Privacy.

    >>> grid(1.0) == 2.0**-19, grid(0.75) == 2.0**-20
    (True, True)
    """
    return math.ldexp(1.0, max(math.frexp(deviation)[1] - _GRID_BITS, _LEAST_BITS))


def clipped(update: Mapping[str, Array], norm: float) -> Arrays:
    """The update, shortened to an L2 norm of at most `norm` over all its floating arrays together.

    norm: above 0. The direction stays, up to rounding, which is towards zero so that the bound holds for what is
    returned. Names, shapes and dtypes stay; counters have no place in the norm and stay as they are (`with_counters`).
    The arrays are new, the given ones are not changed.
    Raises NotFiniteError if a value is NaN or infinite, or the norm overflows.

    >>> clipped({"w": np.array([3.0, 4.0])}, 10.0)["w"], clipped({"w": np.array([3.0, 4.0])}, 1.0)["w"].round(9)
    (array([3., 4.]), array([0.6, 0.8]))
    """
    scale = _scale(sum(_squares(array) for array in update.values() if _floating(array.dtype)), norm)
    return {
        name: _shortened(array, scale) if scale < 1 and _floating(array.dtype) else array.copy()
        for name, array in update.items()
    }


def noised(update: Mapping[str, Array], deviation: float, normal: Normal) -> Arrays:
    """The update with Gaussian noise of a standard deviation on every value of its floating arrays.

    normal: is asked once for each of them, in the order of their names. Added in float64, then rounded to the
    deviation's `grid` and to the array's dtype; a deviation of 0 changes nothing. Counters stay as they are, since a
    whole number plus noise is none; what they count is not hidden, see `with_counters`. The arrays are new, the given
    ones are not changed.

    >>> noised({"w": np.array([1.0, 2.0]), "n": np.array(7)}, 0.5, np.ones)
    {'n': array(7), 'w': array([1.5, 2.5])}
    """
    return {
        name: _with_noise(update[name], deviation, normal) if _floating(update[name].dtype) else update[name].copy()
        for name in sorted(update)
    }


def with_counters(update: Mapping[str, Array], arriving: Mapping[str, Array]) -> Arrays:
    """The update, its counters put back to the values that arrived: then they tell nothing of those who trained.

    arriving: the weights that training began with. Floating arrays are taken as they are.
    Raises ReplyError if a counter did not arrive, or with another shape or dtype.

    >>> with_counters({"w": np.array(0.5), "batches": np.array(25)}, {"w": np.array(3.0), "batches": np.array(20)})
    {'w': array(0.5), 'batches': array(20)}
    """
    return {
        name: array if _floating(array.dtype) else _counter(arriving, name, array.dtype, array.shape)
        for name, array in update.items()
    }


def combined_privately(
    files: Sequence[UpdateFile], arriving: Mapping[str, Array], sites: int, privacy: PrivacyConfig, normal: Normal
) -> Arrays:
    """The common update under `central_dp`: (Σ clipped updates + noise) / sites.

    files: at most one of each site, in canonical order of sites, equal in names, dtypes and shapes. sites: how many the
    plan has; a site that did not answer counts as one that changed nothing, so that the divisor tells nobody who did.
    Every site has the same weight. The noise has noise_multiplier · clipping_norm as standard deviation, on the sum:
    a site more or less changes it by the clipping norm at most. Counters stay as they arrived.
    normal: as in `noised`; the coordinator's secure source where privacy.secure says so. Arithmetic is float64; the sum
    with noise is rounded to the deviation's `grid` before it is divided. Peak memory is that of the result and of two
    of its arrays.
    Raises PrivacyError if the plan has no such noise; ReplyError if updates don't fit together or are none or too many;
    NotFiniteError for a value that is NaN or infinite.
    Source: McMahan et al. 2018, Learning Differentially Private Recurrent Language Models (fixed-denominator mean).
    """
    norm, noise = privacy.clipping_norm, privacy.noise_multiplier
    if privacy.mechanism != "central_dp" or norm is None or noise is None:
        raise PrivacyError("The plan asks for no noise at the server.")
    if not 0 < len(files) <= sites:
        raise ReplyError(f"There are {len(files)} updates of {sites} sites.")
    for other in files[1:]:
        _check_alike(files[0], other)
    names = sorted(files[0].names)
    floating = [name for name in names if _floating(files[0].dtype(name))]
    scales = [_scale(sum(_squares(p) for n in floating for _, p in _pieces(file, n)), norm) for file in files]
    common: Arrays = {}
    for name in names:
        dtype, shape = files[0].dtype(name), files[0].shape(name)
        if name not in floating:
            common[name] = _counter(arriving, name, dtype, shape)
            continue
        total = np.zeros(math.prod(shape))
        for file, scale in zip(files, scales, strict=True):
            for start, piece in _pieces(file, name):
                total[start : start + len(piece)] += np.multiply(piece, scale, dtype=np.float64)
        common[name] = (_with_noise(total.reshape(shape), noise * norm, normal) / sites).astype(dtype)
    return common


def _floating(dtype: np.dtype[Any]) -> bool:
    return dtype.kind == "f"


def _squares(array: Array) -> float:
    flat = array.reshape(-1)
    with np.errstate(over="ignore"):  # infinite squares are refused as infinite values are
        return sum(
            float(np.sum(np.square(flat[start : start + _PIECE], dtype=np.float64)))
            for start in range(0, len(flat), _PIECE)
        )


def _scale(squares: float, norm: float) -> float:
    if not math.isfinite(squares):
        raise NotFiniteError("An update has values that are not finite.", fix="Lower training.optimizer.lr.")
    length = math.sqrt(squares)
    return 1.0 if length <= norm * _SHORTER else norm * _SHORTER / length


def _shortened(array: Array, scale: float) -> Array:
    exact = array.astype(np.float64) * scale
    rounded = exact.astype(array.dtype)
    return np.where(np.abs(rounded) > np.abs(exact), np.nextafter(rounded, array.dtype.type(0)), rounded)


def _with_noise(array: Array, deviation: float, normal: Normal) -> Array:
    if deviation == 0:
        return array.copy()
    noise = np.asarray(normal(array.shape), dtype=np.float64)
    step = grid(deviation)
    return np.asarray(np.rint((array + deviation * noise) / step) * step).astype(array.dtype)


def _counter(arriving: Mapping[str, Array], name: str, dtype: np.dtype[Any], shape: tuple[int, ...]) -> Array:
    found = arriving.get(name)
    if found is None or found.dtype != dtype or found.shape != shape:
        raise ReplyError(f"The update's array '{name}' is not like the one that arrived.")
    return found.copy()


def _check_alike(first: UpdateFile, other: UpdateFile) -> None:
    if sorted(first.names) != sorted(other.names):
        raise ReplyError("Two updates differ in the names of their arrays.")
    for name in first.names:
        if first.shape(name) != other.shape(name) or first.dtype(name) != other.dtype(name):
            raise ReplyError(f"Two updates differ in shape or dtype of '{name}'.")


def _pieces(file: UpdateFile, name: str) -> Iterator[tuple[int, Array]]:
    total = math.prod(file.shape(name))
    for start in range(0, total, _PIECE):
        yield start, file.read(name, start, _PIECE)

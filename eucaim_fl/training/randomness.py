"""Where the choices and the noise of private training come from: a secure source, or a seed for simulations."""

from __future__ import annotations

import math
import os
import ssl
from collections.abc import Callable, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from eucaim_fl.seeding import generator

__all__ = ["Randomness"]

_PAIRS_AT_A_TIME = 2**15
"""Such pieces stay in the processor's cache; torch splits them among no threads, so their number changes no bit."""
_FEW_BITS = np.uint64(2**40)
_SEED_BYTES = 64
_Words = Callable[[int], NDArray[np.uint64]]


def _secure_words(n: int) -> NDArray[np.uint64]:
    return np.frombuffer(ssl.RAND_bytes(8 * n), dtype=np.uint64)


def _seeded_words(seed: int) -> _Words:
    source = generator(seed, "randomness").bit_generator

    def words(n: int) -> NDArray[np.uint64]:
        return np.asarray(source.random_raw(n), dtype=np.uint64)

    return words


class Randomness:
    """One stream of random numbers, used up as they are asked for.

    is_secure: whether nobody can foresee or repeat it.
    """

    def __init__(self, words: _Words, *, is_secure: bool) -> None:
        """words: gives as many independent uniform 64-bit words as are asked for, others each time."""
        self._words = words
        self.is_secure = is_secure

    @classmethod
    def secure(cls) -> Randomness:
        """From OpenSSL's generator, which is seeded from the operating system and here once more; nobody can repeat it.

        It gives the same guarantee as `os.urandom` 20 times as fast, and noise needs hundreds of megabytes a step.
        Source: NIST SP 800-90A revision 1, CTR_DRBG.
        """
        ssl.RAND_add(os.urandom(_SEED_BYTES), float(_SEED_BYTES))  # so that copies of a machine go different ways
        return cls(_secure_words, is_secure=True)

    @classmethod
    def seeded(cls, seed: int) -> Randomness:
        """The same stream for the same seed: for simulations; it protects from nobody who has the seed.

        >>> Randomness.seeded(3).uniform(2).tolist() == Randomness.seeded(3).uniform(2).tolist()
        True
        """
        return cls(_seeded_words(seed), is_secure=False)

    def spawned(self) -> Randomness:
        """An independent stream of the same kind, so that two users may draw in any order, or in two threads."""
        return Randomness.secure() if self.is_secure else Randomness.seeded(int(self._words(1)[0]))

    def uniform(self, n: int) -> NDArray[np.float64]:
        """That many independent numbers, uniform over the multiples of 2⁻⁵³ in [0, 1)."""
        return np.asarray((self._words(n) >> np.uint64(11)) * 2.0**-53, dtype=np.float64)

    def normal(self, shape: Sequence[int], *, dtype: torch.dtype = torch.float32) -> Tensor:
        """Independent standard normal numbers on the CPU, computed in float64 and rounded to `dtype`.

        Which float64 came out tells what went in, so a sum with this noise is to be rounded to the grid of
        `privacy.stages.grid` before anybody sees it. Radii are fine enough that every point of that grid can be
        reached, far out too: a small uniform number has as many significant bits as a large one.
        Source: Box and Muller 1958; Mironov 2012, On Significance of the Least Significant Bits for Differential
        Privacy.
        """
        drawn = torch.empty(tuple(shape), dtype=dtype)
        for piece in torch.split(drawn.view(-1), 2 * _PAIRS_AT_A_TIME):
            piece.copy_(self._normals(len(piece)))
        return drawn

    def _normals(self, n: int) -> Tensor:
        pairs = (n + 1) // 2
        radius = torch.from_numpy(self._above_zero(pairs)).log_().mul_(-2).sqrt_()
        angle = torch.from_numpy(self.uniform(pairs)).mul_(2 * math.pi)
        drawn = torch.stack([angle.cos(), angle.sin()]).mul_(radius)
        return drawn.view(-1)[:n]

    def _above_zero(self, n: int) -> NDArray[np.float64]:
        """Uniform over (0, 1]: multiples of 2⁻⁶⁴, or of 2⁻¹¹⁷ where these would have less than 40 significant bits."""
        words = self._words(n)
        found = words.astype(np.float64)
        small = np.flatnonzero(words < _FEW_BITS)
        found[small] += self.uniform(len(small)) + 2.0**-53
        return found * 2.0**-64

    def choices(self) -> np.random.Generator:
        """A generator with a 256-bit seed from this stream: for places, changes and the order of examples."""
        return np.random.default_rng([int(word) for word in self._words(4)])

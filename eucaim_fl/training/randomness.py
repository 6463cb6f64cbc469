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
_SECURE_SUMMANDS = 4
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

        If secure, each is half the sum of four, so that which float64 came out does not tell what went in.
        Source: Box and Muller 1958; Holohan and Braghin 2021, Secure Random Sampling in Differential Privacy.
        """
        drawn = torch.empty(tuple(shape), dtype=dtype)
        for piece in torch.split(drawn.view(-1), 2 * _PAIRS_AT_A_TIME):
            piece.copy_(self._normals(len(piece)))
        return drawn

    def _normals(self, n: int) -> Tensor:
        pairs, summands = (n + 1) // 2, _SECURE_SUMMANDS if self.is_secure else 1
        total = torch.zeros(2, pairs, dtype=torch.float64)
        for _ in range(summands):
            uniform = torch.from_numpy(self.uniform(2 * pairs))
            radius = (1 - uniform[:pairs]).log_().mul_(-2).sqrt_()  # 1 − u is exact and never 0
            angle = uniform[pairs:].mul_(2 * math.pi)
            total[0].addcmul_(radius, angle.cos())
            total[1].addcmul_(radius, angle.sin())
        return total.view(-1)[:n].div_(math.sqrt(summands))

    def choices(self) -> np.random.Generator:
        """A generator with a 256-bit seed from this stream: for places, changes and the order of examples."""
        return np.random.default_rng([int(word) for word in self._words(4)])

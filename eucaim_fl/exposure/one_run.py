"""What guesses about canaries prove: lower bounds on epsilon from one run in which each was in or out by a fair coin.

Two readings of the same guesses. The *general* bound holds whatever the mechanism is, but no number of canaries can
raise it far above ln(1/delta). The *Gaussian* bound supposes that privacy losses are spread as Gaussian noise spreads
them, as those of every mechanism here are (DP-SGD nearly, see `Evidence`), and can rise further.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import brentq
from scipy.special import log_ndtr, ndtr, ndtri
from scipy.stats import binom

__all__ = [
    "SHARES",
    "Evidence",
    "correct_guesses",
    "epsilon_of_gaussian",
    "evidence",
    "gaussian_bound",
    "gaussian_estimate",
    "general_bound",
    "p_value",
]

SHARES = ((0.45, 0.45), (0.0, 0.45), (0.1, 0.1), (0.0, 0.1), (0.0, 0.03))
"""Of the canaries, which are guessed to have been out and in: those with the lowest and with the highest scores.

Fixed beforehand, and each bound pays for there being five. Who is never sampled looks like who was out, so guessing in
alone can prove more."""
_LARGEST_EPSILON = 200.0
_LARGEST_MU = 20.0
_HALVINGS = 26


@dataclass(frozen=True)
class Evidence:
    """What the guesses of one run prove.

    canaries: in all. guesses, correct: of the share that gave the largest general bound; the others are abstained from.
    general: with this confidence the mechanism is not (epsilon, delta)-DP for any epsilon below it. gaussian: nor is it
    mu-GDP for any mu whose epsilon at delta is below it. Poisson-sampled steps are a little *less* visible in what can
    be measured here than the Gaussian mechanism of equal epsilon, so a sound plan stays below both.
    """

    canaries: int
    guesses: int
    correct: int
    general: float
    gaussian: float
    delta: float
    confidence: float

    @property
    def epsilon(self) -> float:
        """The larger of both bounds: what is measured."""
        return max(self.general, self.gaussian)


def p_value(canaries: int, guesses: int, correct: int, epsilon: float, delta: float) -> float:
    """The largest chance that an (epsilon, delta)-DP mechanism lets so many guesses be right, or more.

    canaries: each was in or out by a fair coin of its own. guesses: for how many of them in or out was guessed.
    Raises ValueError unless 0 ≤ correct ≤ guesses ≤ canaries, epsilon ≥ 0 and 0 ≤ delta ≤ 1.
    Source: Steinke, Nasr and Jagielski 2023, Privacy Auditing with One (1) Training Run, theorem 5.2.

    >>> round(p_value(100, 10, 10, 0.0, 0.0) * 1024)
    1
    """
    if not 0 <= correct <= guesses <= canaries:
        raise ValueError("guesses that are right are some of the guesses, and guesses are about some of the canaries")
    if epsilon < 0 or not 0 <= delta <= 1:
        raise ValueError("epsilon is not negative, delta lies between 0 and 1")
    if correct == 0:
        return 1.0
    share = 1.0 / (1.0 + math.exp(-epsilon))
    tail = float(binom.sf(correct - 1, guesses, share))
    below = np.cumsum(binom.pmf(np.arange(correct - 1, -1, -1), guesses, share))
    slope = float(np.max(below / np.arange(1, correct + 1)))
    return min(1.0, tail + 2 * canaries * delta * slope)


def general_bound(canaries: int, guesses: int, correct: int, delta: float, confidence: float = 0.95) -> float:
    """The largest epsilon that so many right guesses rule out at a delta; 0 if they rule out none.

    >>> round(general_bound(100, 100, 100, 0.0), 2)  # ln(p / (1 - p)) with p = 0.05 ** (1 / 100)
    3.49
    """
    return _largest(lambda at: p_value(canaries, guesses, correct, at, delta) < 1 - confidence, _LARGEST_EPSILON)


def gaussian_bound(canaries: int, guesses: int, correct: int, delta: float, confidence: float = 0.95) -> float:
    """The largest epsilon at delta of a Gaussian mechanism that so many right guesses rule out; 0 if none.

    For every mechanism whose trade-off curve lies above that of mu-GDP, and every c: the mean over canaries of P(this
    guess is right, and c or more are) is at most Φ(Φ⁻¹(x) + mu), where x is the mean of P(this guess is wrong, and
    c - 1 or more are right); for turning a canary's coin turns one event into the other. The distribution that gives
    the most to the tail under all these constraints is built from its end; it exists if its mass is at most 1.
    Source: the argument of Mahloujifar, Melis and Chaudhuri 2024, Auditing f-Differential Privacy in One Run.
    """
    mu = _largest(lambda at: not _possible(canaries, guesses, correct, at, 1 - confidence), _LARGEST_MU)
    return epsilon_of_gaussian(mu, delta)


def _possible(canaries: int, guesses: int, correct: int, mu: float, tail: float) -> bool:
    """Whether a mu-GDP mechanism may give so many right guesses with at least the chance `tail`.

    right, wrong: mean over canaries of P(right or wrong, and at least c guesses are right), for c going down.
    """
    if correct == 0:
        return True
    right, wrong = correct / canaries * tail, (guesses - correct) / canaries * tail
    for c in range(correct, 0, -1):
        if (right + wrong) * canaries > guesses:
            return False
        least = float(ndtr(ndtri(right) - mu)) if right < 1 else 1.0
        if least > wrong:
            right += (c - 1) / (guesses - c + 1) * (least - wrong)
            wrong = least
    return (right + wrong) * canaries <= guesses


def epsilon_of_gaussian(mu: float, delta: float) -> float:
    """Epsilon at delta of the Gaussian mechanism whose sensitivity is mu times its noise.

    It solves δ = Φ(μ/2 - ε/μ) - e^ε Φ(-μ/2 - ε/μ); 0 where no epsilon is needed.
    Source: Balle and Wang 2018, theorem 8; Dong, Roth and Su 2022, corollary 2.13.
    """

    def above(epsilon: float) -> float:
        return float(ndtr(mu / 2 - epsilon / mu) - np.exp(epsilon + log_ndtr(-mu / 2 - epsilon / mu))) - delta

    if mu <= 0 or above(0.0) <= 0:
        return 0.0
    return float(brentq(above, 0.0, mu * mu / 2 + mu * 40 + 1))


def _largest(ruled_out: Callable[[float], bool], most: float) -> float:
    """The largest value that is ruled out, where all below it are too; 0 if none is."""
    if not ruled_out(0.0):
        return 0.0
    low, high = 0.0, most
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        low, high = (middle, high) if ruled_out(middle) else (low, middle)
    return low


def correct_guesses(scores: NDArray[np.float64], included: NDArray[np.bool_], low: int, high: int) -> int:
    """How many guesses are right if the `high` highest scores are taken for canaries that were in, `low` for out.

    scores, included: (canaries,). The middle is abstained from. Equal scores are told apart by their place.

    >>> correct_guesses(np.array([3.0, 1.0, 2.0, 0.0]), np.array([True, True, False, False]), 1, 2)
    2
    """
    order = np.argsort(scores, kind="stable")
    return int(np.count_nonzero(~included[order[:low]]) + np.count_nonzero(included[order[len(order) - high :]]))


def evidence(
    scores: NDArray[np.float64],
    included: NDArray[np.bool_],
    delta: float,
    confidence: float = 0.95,
    shares: Sequence[tuple[float, float]] = SHARES,
) -> Evidence:
    """What the scores of canaries prove about epsilon at a delta.

    scores: (m,), larger for canaries that seem to have been in. included: (m,), which were, each by a fair coin.
    The best of the shares counts; each is held to a confidence so high that all hold together (Bonferroni).
    Raises ValueError if there is no canary, a score is not a number, or the shapes differ.
    """
    scores, included = np.asarray(scores, np.float64), np.asarray(included, bool)
    if scores.ndim != 1 or scores.shape != included.shape or not len(scores):
        raise ValueError("there must be one score and one coin for each of at least one canary")
    if np.isnan(scores).any():
        raise ValueError("a canary's score is not a number")
    m, each = len(scores), 1 - (1 - confidence) / len(shares)
    ends = [(round(low * m), max(1, round(high * m))) for low, high in shares]
    tried = [low + high for low, high in ends]
    right = [correct_guesses(scores, included, low, high) for low, high in ends]
    general = [general_bound(m, r, v, delta, each) for r, v in zip(tried, right, strict=True)]
    gaussian = [gaussian_bound(m, r, v, delta, each) for r, v in zip(tried, right, strict=True)]
    best = int(np.argmax(general))
    return Evidence(m, tried[best], right[best], general[best], max(gaussian), delta, confidence)


def gaussian_estimate(scores: NDArray[np.float64], included: NDArray[np.bool_], delta: float) -> float:
    """The likeliest epsilon at a delta if scores are normal, whether or not a canary was in: no bound, and no proof.

    mu is the distance of both means over their common deviation. 0 if there are fewer than two on one side.
    Source: the estimator of Andrew et al. 2023, One-shot Empirical Privacy Estimation for Federated Learning.
    """
    inside, outside = scores[included], scores[~included]
    if min(len(inside), len(outside)) < 2:
        return 0.0
    deviation = math.sqrt((float(inside.var(ddof=1)) + float(outside.var(ddof=1))) / 2)
    apart = float(inside.mean() - outside.mean())
    if deviation <= 0:
        return _LARGEST_EPSILON if apart > 0 else 0.0
    return min(_LARGEST_EPSILON, epsilon_of_gaussian(max(0.0, apart / deviation), delta))

"""The learning rate over the rounds of a plan, as a factor of the one that the plan states."""

from __future__ import annotations

import math

from eucaim_fl.config import ScheduleConfig

__all__ = ["factor"]


def factor(schedule: ScheduleConfig, number: int, rounds: int) -> float:
    """What the learning rate of round `number` of `rounds` is multiplied by; rounds count from 1.

    In the first W = `warmup_rounds` rounds it is number / (W + 1), the same for every kind. After them, with
    t = (number − 1 − W) / (rounds − W), which is 0 in the first of these rounds and 1 after the last:
    constant: 1. linear: floor + (1 − floor) · (1 − t). cosine: floor + (1 − floor) · (1 + cos(π t)) / 2.
    A round after the last has t = 1. No round of the plan has the factor 0: what did not learn at all would have been
    trained for nothing.
    Raises ValueError if `number` or `rounds` is below 1.
    Source: cosine: Loshchilov and Hutter 2017, SGDR, eq. 5, one period; warm-up: Goyal et al. 2017, Accurate, Large
    Minibatch SGD, section 2.2.

    >>> [factor(ScheduleConfig(kind="linear", warmup_rounds=1), number, 5) for number in range(1, 6)]
    [0.5, 1.0, 0.75, 0.5, 0.25]
    """
    if number < 1 or rounds < 1:
        raise ValueError(f"rounds count from 1; this is round {number} of {rounds}")
    warmup = schedule.warmup_rounds
    if number <= warmup:
        return number / (warmup + 1)
    if schedule.kind == "constant":
        return 1.0
    passed = min(1.0, (number - 1 - warmup) / max(1, rounds - warmup))
    left = 1.0 - passed if schedule.kind == "linear" else (1.0 + math.cos(math.pi * passed)) / 2
    return schedule.floor + (1.0 - schedule.floor) * left

"""Orderings that a table must show, as a recipe writes them: `fedavg > local_mean`, `best >= pooled - 0.02 at mean`."""

from __future__ import annotations

import math
import operator
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from eucaim_fl.errors import RecipeError
from eucaim_fl.registry import suggestion

__all__ = ["Expectation", "Verdict", "check_expectations", "read_expectation"]

_COMPARE: Mapping[str, Callable[[float, float], bool]] = {
    ">": operator.gt,
    ">=": operator.ge,
    "<": operator.lt,
    "<=": operator.le,
}
_NAME = r"[a-z0-9][a-z0-9_.:-]*"
_FORM = re.compile(
    rf"(?P<left>{_NAME}) (?P<sign>>=|>|<=|<) (?P<right>{_NAME})"
    r"(?: (?P<way>[+-]) (?P<by>\d+(?:\.\d+)?))?(?: at (?P<scope>all|mean|honest))?"
)


@dataclass(frozen=True)
class Expectation:
    """left `sign` right + by, of the task's first metric at a scope.

    left, right: models of the table. scope: `all` patients, the `mean` over sources, or the `honest` sources' patients
    (those of all sites that no row poisons).
    """

    text: str
    left: str
    sign: str
    right: str
    by: float
    scope: str


@dataclass(frozen=True)
class Verdict:
    """Whether an expectation holds, and the two values."""

    text: str
    holds: bool
    left: float
    right: float


def read_expectation(text: str) -> Expectation:
    """One expectation of a recipe: `LEFT SIGN RIGHT [+ NUMBER] [at all|mean|honest]`, with single spaces.

    Raises RecipeError if it has another form.

    >>> read_expectation("fedavg >= pooled - 0.02 at mean").by
    -0.02
    """
    found = _FORM.fullmatch(text)
    if found is None:
        raise RecipeError(
            f"benchmark.expect: '{text}' is no ordering.",
            fix="Write it as: fedavg > local_mean, or: fedavg >= pooled - 0.02 at mean.",
        )
    by = float(found["by"] or 0.0)
    return Expectation(
        text, found["left"], found["sign"], found["right"], -by if found["way"] == "-" else by, found["scope"] or "all"
    )


def check_expectations(
    expectations: Sequence[Expectation], values: Mapping[str, Mapping[str, float | None]]
) -> list[Verdict]:
    """What became of each expectation. values: model → scope → value of the first metric; None where undefined.

    An expectation about an undefined value does not hold.
    Raises RecipeError for a model that the table does not have.
    """
    verdicts = []
    for one in expectations:
        for name in (one.left, one.right):
            if name not in values:
                raise RecipeError(f"benchmark.expect names no model '{name}'.", fix=suggestion(name, values))
        left, right = (values[name].get(one.scope) for name in (one.left, one.right))
        known = left is not None and right is not None
        low, high = (math.nan if v is None else v for v in (left, right))
        verdicts.append(Verdict(one.text, known and _COMPARE[one.sign](low, high + one.by), low, high))
    return verdicts

"""Which of several things a patient has, from clinical columns of 0 and 1."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence

from eucaim_fl.cohorts.manifest import Case
from eucaim_fl.errors import LabelError

__all__ = ["read_presence"]

_YES = frozenset({"1", "1.0", "yes", "y", "true", "positive", "present"})
_NO = frozenset({"0", "0.0", "no", "n", "false", "negative", "absent"})
_UNKNOWN = frozenset({"", "nan", "na", "n/a", "unknown", "missing"})
_SEVERAL = re.compile(r"[;|]")


def read_presence(case: Case, columns: Sequence[str]) -> tuple[float, ...]:
    """1, 0 or NaN (not known) for each of the clinical columns.

    1: 1, yes, true, positive or present; 0: 0, no, false, negative or absent; not known: no value, na, n/a, nan,
    unknown or missing; whatever the case. Several values (between `;` or `|`) must agree as far as they are known.
    Raises LabelError if none of the columns is known, a value is another word, or several contradict each other.
    """
    found = tuple(_value(case, column) for column in columns)
    if all(math.isnan(value) for value in found):
        raise LabelError("A patient has a value in none of the plan's targets.", local_detail=case.patient)
    return found


def _value(case: Case, column: str) -> float:
    words = {part.strip().casefold() for part in _SEVERAL.split(case.clinical.get(column, ""))} - _UNKNOWN
    if words - _YES - _NO:
        raise LabelError(
            f"A patient's value in the column '{column}' is neither yes nor no.",
            fix="Write 1 or 0, or leave it empty where it is not known.",
            local_detail=f"{case.patient}: {sorted(words)}",
        )
    if words & _YES and words & _NO:
        raise LabelError(
            f"A patient's values in the column '{column}' contradict each other.",
            fix="Keep one value a patient.",
            local_detail=case.patient,
        )
    return math.nan if not words else float(bool(words & _YES))

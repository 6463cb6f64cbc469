"""A patient's time to an event, from two clinical columns."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass

from eucaim_fl.cohorts.manifest import Case
from eucaim_fl.errors import LabelError

__all__ = ["Survival", "read_survival"]

_EVENT = frozenset({"1", "1.0", "yes", "y", "true", "dead", "deceased", "died", "death", "event"})
_CENSORED = frozenset({"0", "0.0", "no", "n", "false", "alive", "living", "censored"})
_SEVERAL = re.compile(r"[;|]")


@dataclass(frozen=True)
class Survival:
    """time: from baseline to the event or to the last contact, in the column's unit. event: it was seen."""

    time: float
    event: bool


def _parts(case: Case, column: str) -> list[str]:
    parts = [part.strip().casefold() for part in _SEVERAL.split(case.clinical.get(column, ""))]
    if not any(parts):
        raise LabelError(f"A patient has no value in the column '{column}'.", local_detail=case.patient)
    return [part for part in parts if part]


def _one(values: set[float], case: Case, column: str) -> float:
    if len(values) != 1:
        raise LabelError(
            f"A patient's values in the column '{column}' contradict each other.",
            fix="Keep one value a patient.",
            local_detail=case.patient,
        )
    return values.pop()


def _event(word: str) -> float:
    """1 or 0; NaN for anything else. `1:deceased`, as some registries write, must agree with itself."""
    found = {1.0 if part in _EVENT else 0.0 if part in _CENSORED else math.nan for part in re.split(r"\s*:\s*", word)}
    return found.pop() if len(found) == 1 else math.nan


def read_survival(case: Case, time: str, event: str) -> Survival:
    """The patient's values in the clinical columns `time` and `event`.

    time: a number that is finite and not negative. event: 1, yes, true, dead, deceased, died or event; 0, no, false,
    alive, living or censored; whatever the case. Several values (between `;` or `|`) must agree.
    Raises LabelError if a value is missing, several contradict each other, the time is no number, not finite or
    negative, or the event is no known word.
    """
    times: set[float] = set()
    for text in _parts(case, time):
        try:
            number = float(text)
        except ValueError:
            number = math.nan
        if not (math.isfinite(number) and number >= 0):
            raise LabelError(
                f"A patient's value in the column '{time}' is no time: a number that is not negative.",
                local_detail=f"{case.patient}: {text!r}",
            )
        times.add(number)
    events: set[float] = set()
    for text in _parts(case, event):
        events.add(_event(text))
        if any(math.isnan(value) for value in events):
            raise LabelError(
                f"A patient's value in the column '{event}' does not say whether the event was seen.",
                fix="Write 1 or 0, yes or no, dead or alive.",
                local_detail=f"{case.patient}: {text!r}",
            )
    return Survival(_one(times, case, time), bool(_one(events, case, event)))

"""The patients of all hospitals, joined; and what is looked at: one number of a report beside that of the patients."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

FloatArray: TypeAlias = NDArray[np.float64]
IntArray: TypeAlias = NDArray[np.int64]
Patients: TypeAlias = Mapping[str, Mapping[str, Any]]
"""Patient → what a model got on that patient, as a site keeps it."""
Path: TypeAlias = tuple[str, ...]

EVERYBODY = "all"
_CLOSE = 1e-9


@dataclass(frozen=True)
class Hospital:
    """One site's patients: what each model got on each, and the groups that each is in.

    told: of whom the site tells in each group, where these are not all of them; a group that is missing is withheld.
    """

    results: Sequence[Patients]
    groups: Mapping[str, frozenset[str]]
    told: Mapping[str, frozenset[str]] | None = None

    def members(self, scope: str) -> list[str]:
        """Patients of a group of whom the site tells, in order."""
        if self.told is not None:
            return sorted(self.told.get(scope, ()))
        return sorted(patient for patient in self.results[0] if scope == EVERYBODY or scope in self.groups[patient])


@dataclass(frozen=True)
class People:
    """Some patients of all hospitals. site: the number of each one's hospital. rows: by model, in the same order."""

    site: IntArray
    rows: tuple[tuple[Mapping[str, Any], ...], ...]

    def at(self, site: int) -> People:
        """Those of one hospital."""
        own = np.flatnonzero(self.site == site)
        return People(self.site[own], tuple(tuple(rows[k] for k in own) for rows in self.rows))

    def column(self, model: int, name: str) -> FloatArray:
        """A number of each patient, NaN where it is not defined."""
        return np.array([float(row.get(name, math.nan)) for row in self.rows[model]], dtype=np.float64)

    def scores(self, model: int, column: int, task: Any) -> Scores:
        """Probability and truth of a class or label, of those of whom it is known."""
        rows = self.rows[model]
        values = np.array([float(np.asarray(row["probabilities"])[column]) for row in rows]).reshape(-1)
        if task.name == "multilabel":
            truth = np.array([float(np.asarray(row["truth"])[column]) for row in rows]).reshape(-1)
        else:
            truth = np.array([float(int(row["truth"]) == column) for row in rows]).reshape(-1)
        known = ~np.isnan(truth)
        return Scores(values[known], truth[known].astype(np.int64), self.site[known])


@dataclass(frozen=True)
class Scores:
    """Probabilities, whether patients have it (0 or 1), and their hospitals; shape (n,) each."""

    scores: FloatArray
    truth: IntArray
    site: IntArray


def joined(hospitals: Sequence[Hospital], scope: str) -> People:
    """All patients of a group, in the order of hospitals and names."""
    site: list[int] = []
    rows: list[list[Mapping[str, Any]]] = [[] for _ in hospitals[0].results]
    for number, one in enumerate(hospitals):
        for patient in one.members(scope):
            site.append(number)
            for own, results in zip(rows, one.results, strict=True):
                own.append(results[patient])
    return People(np.array(site, dtype=np.int64), tuple(map(tuple, rows)))


@dataclass(frozen=True)
class Row:
    """One number. kind: why it may differ: `exact` (not at all, beyond rounding), `stated` (the report has the range),
    `derived` (a range from what is told, see its code), `rounded` (what is told may lie in such a range), `resampled`,
    `side` (it is an end of such a range, and the patients' own lies on the right side), `unbounded` (the report says
    that no range is known), `withheld` (nothing is told, which must be said), `unknown` (nobody knows this number: a
    failure)."""

    path: Path
    federated: Any
    centralised: Any
    bound: float
    kind: str
    within: bool

    @property
    def difference(self) -> float:
        """federated − centralised; 0 of equal things that are no numbers, NaN of others."""
        if _number(self.federated) and _number(self.centralised):
            return float(self.federated) - float(self.centralised)
        return 0.0 if self.federated == self.centralised else math.nan


def _number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def leaves(value: Any, path: Path = ()) -> Iterator[tuple[Path, Any]]:
    """Every value of a result that holds no others, and where it stands; an empty list is one."""
    if isinstance(value, Mapping) and value:
        for key, one in value.items():
            yield from leaves(one, (*path, str(key)))
    elif isinstance(value, list | tuple) and value:
        for number, one in enumerate(value):
            yield from leaves(one, (*path, str(number)))
    else:
        yield path, value


@dataclass
class Comparison:
    """What is left to be looked at, and what was. Each number is looked at once; `end` tells of those left over."""

    left: dict[Path, Any]
    rows: list[Row] = field(default_factory=list)

    def take(self, path: Path) -> Any:
        """What the report has there; KeyError if nothing, or it was looked at already."""
        return self.left.pop(path)

    def words(self, path: Path) -> None:
        """A sentence, or a name: made from numbers that are looked at elsewhere."""
        found = self.take(path)
        if not isinstance(found, str | bool) and found is not None:
            self.rows.append(Row(path, found, None, 0.0, "unknown", False))

    def exact(self, path: Path, centralised: Any) -> None:
        """Equal: numbers up to rounding, everything else wholly. A number that is not finite is null in a report."""
        self.between(path, centralised, None, None, "exact")

    def between(self, path: Path, centralised: Any, low: float | None, high: float | None, kind: str) -> None:
        """The patients' own lies from `low` to `high`; None: it is the report's. `rounded`: the report's lies there."""
        told = self.take(path)
        if isinstance(centralised, np.generic):
            centralised = centralised.item()
        if _number(centralised) and not math.isfinite(centralised):
            centralised = None
        if not _number(told) or not _number(centralised):
            empty = told in ((), [], {}) and centralised in ((), [], {})
            self.rows.append(Row(path, told, centralised, 0.0, kind, bool(told == centralised) or empty))
            return
        slack = _CLOSE * max(1.0, abs(told), abs(centralised))
        if kind == "rounded" and low is not None and high is not None:  # where the report's may lie
            room = high - centralised if told > centralised else centralised - low
            inside = low - slack <= told <= high + slack
            self.rows.append(Row(path, told, centralised, max(0.0, float(room)), kind, bool(inside)))
            return
        ends = (told if low is None else low), (told if high is None else high)
        if kind == "exact" and isinstance(told, int):
            slack = 0.0
        room = told - ends[0] if centralised < told else ends[1] - told
        inside = ends[0] - slack <= centralised <= ends[1] + slack
        self.rows.append(Row(path, told, centralised, max(0.0, float(room)), kind, bool(inside)))

    def unbounded(self, path: Path, centralised: float) -> None:
        """No range is known, and the report says so: shown, and nothing is asked of it."""
        told, value = self.take(path), centralised if math.isfinite(centralised) else None
        self.rows.append(Row(path, told, value, math.inf, "unbounded", True))

    def side(self, path: Path, centralised: float, *, below: bool) -> None:
        """An end of a range, on whose inner side the patients' own lies; null: there is no such range."""
        told = self.take(path)
        if told is not None:
            within = told <= centralised + _CLOSE if below else told >= centralised - _CLOSE
            self.rows.append(Row(path, told, centralised, math.inf, "side", bool(within)))

    def end(self) -> list[Row]:
        """All that was looked at, and a failure for each number that was not."""
        self.rows += [Row(path, value, None, 0.0, "unknown", False) for path, value in self.left.items()]
        self.left = {}
        return self.rows

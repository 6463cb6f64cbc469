"""What each figure of a report is by the patients themselves: of all of them joined, or of one hospital's."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import centralised_figures as own
import numpy as np
from centralised_between import Point, area_point, mean_point, share_point
from centralised_binning import Range, cells_of, difference_range
from centralised_pairs import areas_pair, means_pair, shares_pair
from centralised_people import FloatArray, People, Scores
from centralised_resamples import Draws
from centralised_scores import Expected, calibration_error, score_figures, share

from eucaim_fl.plan import FederationPlan

__all__ = ["SHARES", "Expecting", "Labels", "joined_name"]

_MEANS = ("dice", "hd95_mm", "surface_dice", "volume_difference_ml")
SHARES = ("accuracy", "sensitivity", "specificity")
"""Figures that are shares of patients at a threshold."""


def joined_name(name: str, label: str) -> str:
    """A figure's name with its label, as reports have it."""
    return f"{name}_{label}" if label else name


@dataclass(frozen=True)
class Labels:
    """Names, columns of probabilities, and names of means, as reports have them."""

    scores: tuple[tuple[str, int], ...]
    means: tuple[str, ...]


def _labels(task: Any) -> Labels:
    if task.name == "classification":
        names = task.classes
        return Labels((("", 1),) if len(names) == 2 else tuple((name, k) for k, name in enumerate(names)), ())
    if task.name == "multilabel":
        return Labels(tuple((name, k) for k, name in enumerate(task.targets)), ())
    if task.name == "segmentation":
        return Labels((), ("",) if len(task.labels) == 1 else ("", *task.labels))
    return Labels((), ())


class Expecting:
    """Figures of a plan's models on some patients, by name."""

    def __init__(self, plan: FederationPlan) -> None:
        self.sites, self.asked, self.task = plan.sites, plan.validation, plan.task
        self.labels = _labels(plan.task)
        even = {k / self.asked.bins for k in range(self.asked.bins + 1)}
        extra = {t for t in self.asked.thresholds if min(abs(t - edge) for edge in even) > 1e-9}
        self.edges = tuple(sorted({*even, *extra}))
        self.threshold = self.asked.thresholds[0]

    def patients(self, people: People) -> int:
        """How many are told to be there."""
        return len(people.site)

    # --- all figures ----------------------------------------------------------------------------------------------

    def figures(self, people: People, model: int, draws: Mapping[str, Draws | None]) -> dict[str, Expected]:
        found: dict[str, Expected] = {}
        areas = []
        for label, column in self.labels.scores:
            one = people.scores(model, column, self.task)
            if not len(one.truth):
                continue
            figures = score_figures(one, self.edges, self.asked.thresholds, draws.get(label))
            figures["calibration_error"] = calibration_error(one, self.edges)
            areas.append((figures["auc"], cells_of(one, self.edges).auc_range()))
            found |= {joined_name(name, label): value for name, value in figures.items()}
        if len(self.labels.scores) > 1 and found:
            found["macro_auc"] = _macro(areas, len(self.labels.scores))
        found |= self.decided(people, model) | self.means(people, model)
        if self.task.name == "survival" and (index := self.concordance(people, model)) is not None:
            found["c_index"] = index
        return found

    def telling(self, key: str, people: People, model: int) -> int:
        """Hospitals that a figure is of: those with a patient of whom it is defined."""
        if key == "macro_auc":
            return min(len(np.unique(people.scores(model, k, self.task).site)) for _, k in self.labels.scores)
        for label, column in self.labels.scores:
            if label and key.endswith(f"_{label}"):
                return len(np.unique(people.scores(model, column, self.task).site))
        if self.task.name == "segmentation" and key in self.columns():
            values = self.values(people, model, key)
            return len(np.unique(people.site[~np.isnan(values)]))
        return len(np.unique(people.site))

    def draws(self, one: Scores, make: Any, label: str, site: str) -> tuple[Draws | None, Draws | None]:
        if not len(one.truth):
            return None, None
        record = (
            {"": self.task.classes[1] if len(self.task.classes) == 2 else ""}
            if self.task.name == "classification"
            else {}
        )
        purpose = record.get(label, label)
        return tuple(  # type: ignore[return-value]
            Draws(one, self.edges, partial(make, purpose, site, int(fixed)), self.asked.bootstrap_samples, fixed)
            for fixed in (True, False)
        )

    # --- figures that are no scores' ------------------------------------------------------------------------------

    def columns(self) -> tuple[str, ...]:
        return tuple(joined_name(name, label) for label in self.labels.means for name in _MEANS)

    def values(self, people: People, model: int, key: str) -> FloatArray:
        """A mean's value of each patient."""
        if key.startswith("volume_difference_ml"):
            end = key.removeprefix("volume_difference_ml")
            return people.column(model, f"found_ml{end}") - people.column(model, f"true_ml{end}")
        if self.task.name != "segmentation":
            squares = []
            for row in people.rows[model]:
                p = np.asarray(row["probabilities"], dtype=float)
                if self.task.name == "multilabel":
                    k = self.task.targets.index(key.removeprefix("brier_"))
                    squares.append(float((p[k] - np.asarray(row["truth"], dtype=float)[k]) ** 2))
                else:
                    wanted = np.eye(len(p))[int(row["truth"])]
                    squares.append(float(((p - wanted) ** 2).sum()) / (2 if len(p) == 2 else 1))
            if self.task.name == "classification" and len(self.task.classes) == 2:
                one = people.scores(model, 1, self.task)
                squares = list((one.scores - one.truth) ** 2)
            return np.array(squares, dtype=float).reshape(-1)
        return people.column(model, key)

    def means(self, people: People, model: int) -> dict[str, Expected]:
        names: tuple[str, ...] = ()
        if not len(people.site):
            return {}
        if self.task.name == "segmentation":
            names = tuple(
                key
                for key in self.columns()
                if key.startswith("volume") or any(key in row for row in people.rows[model])
            )
        elif self.task.name == "multilabel":
            names = tuple(f"brier_{label}" for label in self.task.targets)
        elif self.task.name == "classification":
            names = ("brier",)
        found = {}
        for key in names:
            values = self.values(people, model, key)
            known = ~np.isnan(values)
            values, site = values[known], people.site[known]
            if not len(values):
                if self.task.name == "segmentation":
                    found[key] = Expected(math.nan, None, 0)
                continue
            ends = None
            if len(values) > 1:
                error, freedom = own.stratified(values, site)
                reach = float(_student(freedom)) * error
                ends = float(values.mean()) - reach, float(values.mean()) + reach
            found[key] = Expected(float(values.mean()), ends, len(values))
        return found | self.lesions(people, model)

    def lesions(self, people: People, model: int) -> dict[str, Expected]:
        found = {}
        for label, (true, hit, false, patients) in self.lesion_counts(people, model).items():
            found[joined_name("lesion_sensitivity", label)] = replace(share(hit, true), patients=None)
            low, high = own.poisson(false)
            rate = Expected(false / patients, (low / patients, high / patients), patients)
            found[joined_name("false_positives_per_patient", label)] = rate
        return found

    def lesion_counts(self, people: People, model: int) -> dict[str, tuple[int, int, int, int]]:
        if self.task.name != "segmentation":
            return {}
        found = {}
        for label in ("",) if len(self.task.labels) == 1 else self.task.labels:
            columns = [
                people.column(model, joined_name(f"lesions_{what}", label)) for what in ("true", "found", "false")
            ]
            known = ~np.isnan(columns[0])
            if known.any():
                true, hit, false = (int(one[known].sum()) for one in columns)
                found[label] = true, hit, false, int(known.sum())
        return found

    def matrix(self, people: People, model: int) -> FloatArray | None:
        if self.task.name != "classification" or not len(people.site):
            return None
        matrix = np.zeros((len(self.task.classes),) * 2, dtype=int)
        for row in people.rows[model]:
            matrix[int(row["truth"]), int(np.argmax(row["probabilities"]))] += 1
        return matrix

    def decided(self, people: People, model: int) -> dict[str, Expected]:
        matrix = self.matrix(people, model)
        if matrix is None:
            return {}
        n = int(matrix.sum())
        found = {"accuracy": share(int(np.trace(matrix)), n), "balanced_accuracy": Expected(math.nan, None, n)}
        if matrix.sum(axis=1).all():
            shares = [share(int(row[k]), int(row.sum())) for k, row in enumerate(matrix)]
            value, low, high = own.newcombe_mean([(one.value, *(one.ends or (0.0, 1.0))) for one in shares])
            found["balanced_accuracy"] = Expected(value, (low, high), n)
        return found

    def concordance(self, people: People, model: int) -> Expected | None:
        told = []
        for k in np.unique(people.site):
            here = people.at(int(k))
            risk, time, event = (here.column(model, name) for name in ("log_risk", "time", "event"))
            told.append(own.concordance(risk, time, event.astype(np.int64)))
        if not told:
            return None
        concordant, tied, pairs = (sum(one[k] for one in told) for k in range(3))
        patients = sum(one[3] for one in told)
        if not pairs:
            return Expected(math.nan, None, patients)
        c = (concordant + tied / 2) / pairs
        variance = sum(
            (n - 1) * (a * (1 - c) ** 2 + b * (0.5 - c) ** 2 + (p - a - b) * c**2) for a, b, p, n in told
        ) / pairs**2  # fmt: skip
        if not 0 < c < 1:
            return Expected(c, None, patients)
        low, high = own.auc_limits(c, math.sqrt(variance), (1, 1))
        return Expected(c, (low, high), patients)

    # --- by which hospitals, groups and models are compared --------------------------------------------------------

    def mains(self) -> list[tuple[str, str, str]]:
        """(key, metric, label) of the figures by which hospitals and groups are compared."""
        if self.task.name == "survival":
            return [("c_index", "c_index", "")]
        if self.task.name == "segmentation":
            labels = self.labels.means if len(self.labels.means) == 1 else self.labels.means[1:]
            return [(joined_name("dice", label), "dice", label) for label in labels]
        areas = [(joined_name("auc", label), "auc", label) for label, _ in self.labels.scores]
        if len(areas) > 1:
            return areas
        return [*areas, *((f"{name}@{self.threshold:g}", name, "") for name in ("sensitivity", "specificity"))]

    def point(self, main: tuple[str, str, str], people: People, model: int) -> Point | None:
        key, metric, label = main
        if metric == "c_index":
            return None
        if metric == "dice":
            return mean_point(self.values(people, model, key), people.site)
        one = people.scores(model, dict(self.labels.scores)[label], self.task)
        if not len(one.truth):
            return None
        return area_point(one, self.edges) if metric == "auc" else share_point(one, metric, self.threshold)

    def share(self, metric: str, one: Scores) -> Expected:
        right = (one.scores >= self.threshold) == (one.truth == 1)
        members = one.truth == (1 if metric == "sensitivity" else 0)
        return share(int(right[members].sum()), int(members.sum()))

    def p_of(self, points: tuple[Point | None, Point | None], shares: Any) -> float:
        a, b = points
        if a is None or b is None:
            return math.nan
        return float(2 * _tail(abs(a.value - b.value) / math.hypot(a.error, b.error)))

    def pairs(self, metric: str, people: People) -> list[tuple[str, Any, Any]]:
        if metric in ("auc", *SHARES):
            found: list[tuple[str, Any, Any]] = []
            for label, column in self.labels.scores:
                first, second = (people.scores(model, column, self.task) for model in (0, 1))
                if metric == "auc":
                    areas = [own.delong(one.scores, one.truth)[0] for one in (first, second)]
                    ranges = [cells_of(one, self.edges).auc_range() for one in (first, second)]
                    pooled = areas[0] - areas[1], difference_range(ranges[0], ranges[1])
                    found.append(
                        (joined_name("auc", label), areas_pair(people, column, self.task, len(self.sites)), pooled)
                    )
                else:
                    key = joined_name(f"{metric}@{self.threshold:g}", label)
                    found.append((key, shares_pair(first, second, metric, self.threshold), None))
            return found
        names = self.columns() or (
            ("brier",) if self.task.name == "classification" else tuple(f"brier_{label}" for label in self.task.targets)
        )
        own_names = [name for name in sorted(names) if name == metric or self.metric(name) == metric]
        differences = {name: self.values(people, 0, name) - self.values(people, 1, name) for name in own_names}
        return [
            (name, means_pair(one, people.site), None) for name, one in differences.items() if not np.isnan(one).all()
        ]

    def metric(self, name: str) -> str:
        ends = [f"_{label}" for label in (*self.labels.means, *(label for label, _ in self.labels.scores)) if label]
        return next((name.removesuffix(end) for end in ends if name.endswith(end)), name)


def _macro(areas: Sequence[tuple[Expected, Range]], labels: int) -> Expected:
    if len(areas) < labels or any(math.isnan(one.value) for one, _ in areas):
        return Expected(math.nan, None, None)

    def mean(values: Sequence[float]) -> float:
        return sum(values) / len(values)

    ends = tuple(mean([one.ends[k] for one, _ in areas if one.ends is not None]) for k in (0, 1))
    ranges = [tuple(mean([one.ranges[k][e] for one, _ in areas if one.ranges[k]]) for e in (0, 1)) for k in (1, 2)]  # type: ignore[index]
    return Expected(mean([one.value for one, _ in areas]), ends, None, (None, ranges[0], ranges[1]), binned=True)  # type: ignore[arg-type]


def _student(freedom: float) -> float:
    return float(own.stats.t.ppf(0.975, freedom))


def _tail(z: float) -> float:
    return float(own.stats.norm.sf(z))

"""Every number of a validation's report beside the same one from the patients themselves, joined.

`compare` looks at each value of a result once. A number that it does not know is a failure, so that a new figure can't
be left out. The patients' figures come from `centralised_figures.py`; how far binning may take a figure of the report
from them, from the report where it states that, else from `centralised_binning.py`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import centralised_figures as own
import numpy as np
from centralised_between import (
    Point,
    area_point,
    areas_pair,
    between,
    comparison,
    group_difference,
    mean_point,
    means_pair,
    share_point,
    shares_pair,
)
from centralised_binning import Range, cells_of, difference_range
from centralised_people import EVERYBODY, Comparison, FloatArray, Hospital, Path, People, Row, Scores, joined, leaves
from centralised_resamples import Draws
from centralised_scores import (
    Expected,
    calibration_error,
    curves,
    figure,
    score_figures,
    share,
    threshold_counts,
)

from eucaim_fl.plan import FederationPlan
from eucaim_fl.seeding import generator
from eucaim_fl.validation.result_schema import ValidationResult

__all__ = ["Hospital", "Row", "compare"]

_MEANS = ("dice", "hd95_mm", "surface_dice", "volume_difference_ml")
_SHARES = ("accuracy", "sensitivity", "specificity")


def compare(plan: FederationPlan, result: ValidationResult, hospitals: Mapping[str, Hospital]) -> list[Row]:
    """One row for each number of the result.

    hospitals: every site of the plan, by name; what they tell of must be told exactly.
    """
    return _Walk(plan, result, [hospitals[site] for site in plan.sites]).rows()


def _key(name: str, label: str) -> str:
    return f"{name}_{label}" if label else name


@dataclass(frozen=True)
class _Labels:
    """Names, columns of probabilities, and names of means, as reports have them."""

    scores: tuple[tuple[str, int], ...]
    means: tuple[str, ...]


def _labels(task: Any) -> _Labels:
    if task.name == "classification":
        names = task.classes
        return _Labels((("", 1),) if len(names) == 2 else tuple((name, k) for k, name in enumerate(names)), ())
    if task.name == "multilabel":
        return _Labels(tuple((name, k) for k, name in enumerate(task.targets)), ())
    if task.name == "segmentation":
        return _Labels((), ("",) if len(task.labels) == 1 else ("", *task.labels))
    return _Labels((), ())


class _Walk:
    def __init__(self, plan: FederationPlan, result: ValidationResult, hospitals: Sequence[Hospital]) -> None:
        self.plan, self.result, self.hospitals = plan, result, hospitals
        self.sites, self.asked, self.task = plan.sites, plan.validation, plan.task
        self.labels = _labels(plan.task)
        even = {k / self.asked.bins for k in range(self.asked.bins + 1)}
        extra = {t for t in self.asked.thresholds if min(abs(t - edge) for edge in even) > 1e-9}
        self.edges = tuple(sorted({*even, *extra}))
        self.look = Comparison(dict(leaves(result.model_dump())))
        self.threshold = self.asked.thresholds[0]
        self.mains = self._mains()

    def rows(self) -> list[Row]:
        look, result = self.look, self.result
        for name, value in (
            ("schema_version", 1), ("plan_sha256", self.plan.sha256()), ("task", self.task.name), ("level", 0.95),
        ):  # fmt: skip
            look.exact((name,), value)
        look.exact(("seed",), result.seed)
        look.words(("counted_in",))
        for k, site in enumerate(self.sites):
            at = ("sites", str(k))
            for name, value in (
                ("site", site),
                ("answered", True),
                ("patients", len(self.hospitals[k].members(EVERYBODY))),
            ):
                look.exact((*at, name), value)
            look.exact((*at, "failed"), {})
            look.words((*at, "withheld"))
        for number, model in enumerate(result.models):
            look.exact(("models", str(number), "name"), self.asked.models[number].name)
            for k, scope in enumerate(model.scopes):
                self._scope(("models", str(number), "scopes", str(k)), number, scope.scope)
        self._half_widths()
        self._differences()
        self._comparisons()
        for k in range(len(result.verdicts)):
            for name in ("question", "tone", "sentence"):
                look.words(("verdicts", str(k), name))
        for name in ("differences", "comparisons", "half_widths"):
            if not getattr(result, name):
                look.words((name,)) if look.left[(name,)] is None else look.exact((name,), ())
        return look.end()

    # --- a model on a group of patients ---------------------------------------------------------------------------

    def _people(self, scope: str) -> People:
        return joined(self.hospitals, scope)

    def _scope(self, at: Path, model: int, scope: str) -> None:
        look, people = self.look, self._people(scope)
        name = self.asked.models[model].name
        make = partial(generator, self.result.seed, "validation", name, scope)
        told = [k for k in range(len(self.sites)) if (people.site == k).any()]
        hidden = {one.site for one in self._result_scope(at).withheld}
        look.exact((*at, "scope"), scope)
        look.exact((*at, "patients"), len(people.site))
        whole = scope == EVERYBODY
        draws = {
            label: self._draws(people.scores(model, column, self.task), make, label, "")
            for label, column in self.labels.scores
        }
        expected = self._figures(people, model, {label: free for label, (_, free) in draws.items()})
        self._all_figures((*at, "figures"), expected, people, model)
        self._counts(at, people, model, together=True)
        if whole and self.labels.scores and len(people.site):
            for k, (label, column) in enumerate(self.labels.scores):
                one = people.scores(model, column, self.task)
                curves(look, (*at, "curves", str(k)), one, self.edges, draws[label])
        else:
            look.exact((*at, "curves"), ())
        by_site: dict[str, dict[str, Expected]] = {}
        shown = sorted({self.sites[k] for k in told} | hidden)
        for number, site in enumerate(shown):
            place = (*at, "sites", str(number))
            if site in hidden:
                self._hidden(place, site, people)
                continue
            here = people.at(self.sites.index(site))
            own_draws = {
                label: self._draws(here.scores(model, column, self.task), make, label, site)[1]
                for label, column in self.labels.scores
            } if whole else {}  # fmt: skip
            look.exact((*place, "site"), site)
            look.exact((*place, "patients"), len(here.site))
            look.words((*place, "withheld"))
            by_site[site] = self._figures(here, model, own_draws)
            self._all_figures((*place, "figures"), by_site[site], here, model)
            self._counts(place, here, model, together=False)
        for k, site in enumerate(sorted(hidden)):
            look.exact((*at, "withheld", str(k), "site"), site)
            look.words((*at, "withheld", str(k), "reason"))
        if not hidden:
            look.exact((*at, "withheld"), ())
        for k, main in enumerate(self.mains):
            points = {site: self._point(main, people.at(self.sites.index(site)), model) for site in by_site}
            figures = {site: found[main[0]] for site, found in by_site.items() if main[0] in found}
            cut = main[1] in ("dice", "surface_dice")
            between(look, (*at, "between", str(k)), points, figures, (main[0], main[1] in ("auc", *_SHARES), cut))

    def _result_scope(self, at: Path) -> Any:
        return self.result.models[int(at[1])].scopes[int(at[3])]

    def _hidden(self, at: Path, site: str, people: People) -> None:
        """A site that tells nothing of a group: no number of it may stand there."""
        look = self.look
        look.exact((*at, "site"), site)
        look.exact((*at, "patients"), None)
        look.words((*at, "withheld"))
        for name in ("figures", "thresholds", "lesions", "confusion", "undefined"):
            look.exact((*at, name), {} if name in ("figures", "undefined") else ())
        if (people.site == self.sites.index(site)).any():
            look.rows.append(Row(at, None, "told", 0.0, "unknown", False))

    def _draws(self, one: Scores, make: Any, label: str, site: str) -> tuple[Draws | None, Draws | None]:
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

    def _figures(self, people: People, model: int, draws: Mapping[str, Draws | None]) -> dict[str, Expected]:
        found: dict[str, Expected] = {}
        areas = []
        for label, column in self.labels.scores:
            one = people.scores(model, column, self.task)
            if not len(one.truth):
                continue
            figures = score_figures(one, self.edges, self.asked.thresholds, draws.get(label))
            figures["calibration_error"] = calibration_error(one, self.edges)
            areas.append((figures["auc"], cells_of(one, self.edges).auc_range()))
            found |= {_key(name, label): value for name, value in figures.items()}
        if len(self.labels.scores) > 1 and found:
            found["macro_auc"] = _macro(areas, len(self.labels.scores))
        found |= self._decided(people, model) | self._means(people, model)
        if self.task.name == "survival" and (index := self._concordance(people, model)) is not None:
            found["c_index"] = index
        return found

    def _all_figures(self, at: Path, expected: Mapping[str, Expected], people: People, model: int) -> None:
        if not expected:
            self.look.exact(at, {})
        for key, found in expected.items():
            if (*at, key, "value") in self.look.left:
                figure(self.look, (*at, key), found, self._telling(key, people, model))
            else:
                self.look.rows.append(Row((*at, key), None, found.value, 0.0, "unknown", False))

    def _telling(self, key: str, people: People, model: int) -> int:
        """Hospitals that a figure is of: those with a patient of whom it is defined."""
        if key == "macro_auc":
            return min(len(np.unique(people.scores(model, k, self.task).site)) for _, k in self.labels.scores)
        for label, column in self.labels.scores:
            if label and key.endswith(f"_{label}"):
                return len(np.unique(people.scores(model, column, self.task).site))
        if self.task.name == "segmentation" and key in self._columns():
            values = self._values(people, model, key)
            return len(np.unique(people.site[~np.isnan(values)]))
        return len(np.unique(people.site))

    # --- figures that are no scores' ------------------------------------------------------------------------------

    def _columns(self) -> tuple[str, ...]:
        return tuple(_key(name, label) for label in self.labels.means for name in _MEANS)

    def _values(self, people: People, model: int, key: str) -> FloatArray:
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

    def _means(self, people: People, model: int) -> dict[str, Expected]:
        names: tuple[str, ...] = ()
        if not len(people.site):
            return {}
        if self.task.name == "segmentation":
            names = tuple(
                key
                for key in self._columns()
                if key.startswith("volume") or any(key in row for row in people.rows[model])
            )
        elif self.task.name == "multilabel":
            names = tuple(f"brier_{label}" for label in self.task.targets)
        elif self.task.name == "classification":
            names = ("brier",)
        found = {}
        for key in names:
            values = self._values(people, model, key)
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
        return found | self._lesions(people, model)

    def _lesions(self, people: People, model: int) -> dict[str, Expected]:
        found = {}
        for label, (true, hit, false, patients) in self._lesion_counts(people, model).items():
            found[_key("lesion_sensitivity", label)] = replace(share(hit, true), patients=None)
            low, high = own.poisson(false)
            rate = Expected(false / patients, (low / patients, high / patients), patients)
            found[_key("false_positives_per_patient", label)] = rate
        return found

    def _lesion_counts(self, people: People, model: int) -> dict[str, tuple[int, int, int, int]]:
        if self.task.name != "segmentation":
            return {}
        found = {}
        for label in ("",) if len(self.task.labels) == 1 else self.task.labels:
            columns = [people.column(model, _key(f"lesions_{what}", label)) for what in ("true", "found", "false")]
            known = ~np.isnan(columns[0])
            if known.any():
                true, hit, false = (int(one[known].sum()) for one in columns)
                found[label] = true, hit, false, int(known.sum())
        return found

    def _matrix(self, people: People, model: int) -> FloatArray | None:
        if self.task.name != "classification" or not len(people.site):
            return None
        matrix = np.zeros((len(self.task.classes),) * 2, dtype=int)
        for row in people.rows[model]:
            matrix[int(row["truth"]), int(np.argmax(row["probabilities"]))] += 1
        return matrix

    def _decided(self, people: People, model: int) -> dict[str, Expected]:
        matrix = self._matrix(people, model)
        if matrix is None:
            return {}
        n = int(matrix.sum())
        found = {"accuracy": share(int(np.trace(matrix)), n), "balanced_accuracy": Expected(math.nan, None, n)}
        if matrix.sum(axis=1).all():
            shares = [share(int(row[k]), int(row.sum())) for k, row in enumerate(matrix)]
            value, low, high = own.newcombe_mean([(one.value, *(one.ends or (0.0, 1.0))) for one in shares])
            found["balanced_accuracy"] = Expected(value, (low, high), n)
        return found

    def _concordance(self, people: People, model: int) -> Expected | None:
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

    def _counts(self, at: Path, people: People, model: int, *, together: bool) -> None:
        """Counts at thresholds, lesions, confusion, undefined; of several sites also limits of agreement."""
        look, number = self.look, 0
        for label, column in self.labels.scores:
            one = people.scores(model, column, self.task)
            for threshold in self.asked.thresholds if len(one.truth) else ():
                threshold_counts(look, (*at, "thresholds", str(number)), label, one, threshold)
                number += 1
        if not number:
            look.exact((*at, "thresholds"), ())
        lesions = self._lesion_counts(people, model)
        for k, (label, counts) in enumerate(sorted(lesions.items())):
            look.exact((*at, "lesions", str(k), "label"), label)
            for name, count in zip(("lesions", "found", "false_positives", "patients"), counts, strict=True):
                look.exact((*at, "lesions", str(k), name), count)
        if not lesions:
            look.exact((*at, "lesions"), ())
        matrix = self._matrix(people, model)
        if matrix is None:
            look.exact((*at, "confusion"), ())
        else:
            for k, count in enumerate(matrix.ravel()):
                look.exact((*at, "confusion", str(k)), int(count))
        missing = {key: int(np.isnan(self._values(people, model, key)).sum()) for key in self._columns()}
        for key, count in missing.items():
            if count:
                look.exact((*at, "undefined", key), count)
        if not any(missing.values()):
            look.exact((*at, "undefined"), {})
        if together:
            self._volumes(at, people, model)

    def _volumes(self, at: Path, people: People, model: int) -> None:
        look, names = self.look, sorted(key for key in self._columns() if key.startswith("volume"))
        number = 0
        for key in names:
            values = self._values(people, model, key)
            known = ~np.isnan(values)
            if known.sum() < 2:
                continue
            place = (*at, "volumes", str(number))
            look.exact((*place, "label"), key.removeprefix("volume_difference_ml").removeprefix("_"))
            look.exact((*place, "unit"), "ml")
            look.exact((*place, "patients"), int(known.sum()))
            for name, (value, low, high) in own.bland_altman(values[known]).items():
                sites = len(np.unique(people.site[known]))
                figure(look, (*place, name), Expected(value, (low, high), int(known.sum())), sites)
            number += 1
        if not number:
            look.exact((*at, "volumes"), ())

    # --- groups, models, half widths ------------------------------------------------------------------------------

    def _mains(self) -> list[tuple[str, str, str]]:
        """(key, metric, label) of the figures by which hospitals and groups are compared."""
        if self.task.name == "survival":
            return [("c_index", "c_index", "")]
        if self.task.name == "segmentation":
            labels = self.labels.means if len(self.labels.means) == 1 else self.labels.means[1:]
            return [(_key("dice", label), "dice", label) for label in labels]
        areas = [(_key("auc", label), "auc", label) for label, _ in self.labels.scores]
        if len(areas) > 1:
            return areas
        return [*areas, *((f"{name}@{self.threshold:g}", name, "") for name in ("sensitivity", "specificity"))]

    def _point(self, main: tuple[str, str, str], people: People, model: int) -> Point | None:
        key, metric, label = main
        if metric == "c_index":
            return None
        if metric == "dice":
            return mean_point(self._values(people, model, key), people.site)
        one = people.scores(model, dict(self.labels.scores)[label], self.task)
        if not len(one.truth):
            return None
        return area_point(one, self.edges) if metric == "auc" else share_point(one, metric, self.threshold)

    def _half_widths(self) -> None:
        look, result = self.look, self.result
        for k, one in enumerate(result.half_widths):
            at = ("half_widths", str(k))
            told = next(model for model in result.models if model.name == one.model).scopes[0].figures.get(one.figure)
            half = None if told is None or told.low is None or told.high is None else (told.high - told.low) / 2
            metric = one.figure.partition("@")[0]
            wanted = next(
                width
                for name, width in self.asked.half_widths.items()
                if name in (one.figure, metric) or metric.startswith(f"{name}_")
            )
            look.words((*at, "model"))
            look.words((*at, "figure"))
            look.words((*at, "sentence"))
            look.exact((*at, "wanted_half_width"), wanted)
            look.exact((*at, "half_width"), half)
            look.exact((*at, "patients"), None if told is None else told.patients)
            look.exact((*at, "enough"), None if half is None else half <= wanted * (1 + 1e-9))
            needed = (
                None
                if half is None or not told or not told.patients
                else math.ceil(told.patients * (half / wanted) ** 2 * (1 - 1e-9))
            )
            look.exact((*at, "needed"), needed)

    def _differences(self) -> None:
        look, tested = self.look, []
        for k, one in enumerate(self.result.differences):
            at = ("differences", str(k))
            model = [model.name for model in self.asked.models].index(one.model)
            main = next(main for main in self.mains if main[0] == one.figure)
            groups = self._people(one.group), self._people(one.reference)
            points = self._point(main, groups[0], model), self._point(main, groups[1], model)
            shares = None
            if main[1] in _SHARES and all(points):
                column = self.labels.scores[0][1]
                shares = tuple(self._share(main[1], people.scores(model, column, self.task)) for people in groups)
            for name in ("model", "rule", "figure", "group", "reference", "reason"):
                look.words((*at, name))
            span = group_difference(look, at, points, shares)  # type: ignore[arg-type]
            if span is None:
                look.exact((*at, "p_adjusted"), None)
            else:
                tested.append((at, self._p_of(points, shares), span))
        self._adjusted(tested)

    def _share(self, metric: str, one: Scores) -> Expected:
        right = (one.scores >= self.threshold) == (one.truth == 1)
        members = one.truth == (1 if metric == "sensitivity" else 0)
        return share(int(right[members].sum()), int(members.sum()))

    def _p_of(self, points: tuple[Point | None, Point | None], shares: Any) -> float:
        a, b = points
        if a is None or b is None:
            return math.nan
        return float(2 * _tail(abs(a.value - b.value) / math.hypot(a.error, b.error)))

    def _adjusted(self, tested: Sequence[tuple[Path, float, Range]]) -> None:
        """Holm's p-values never fall when one of the p-values rises, so the ends of their ranges are those of his."""
        if not tested:
            return
        found, low, high = (
            own.holm(column) for column in ([p for _, p, _ in tested], *zip(*(s for *_, s in tested), strict=True))
        )
        for (at, _, _), value, *ends in zip(tested, found, low, high, strict=True):
            slack = 2e-5 * value
            self.look.between(
                (*at, "p_adjusted"),
                value,
                ends[0] - slack,
                ends[1] + slack,
                "derived" if ends[0] < ends[1] else "exact",
            )

    def _comparisons(self) -> None:
        look, people, tested = self.look, self._people(EVERYBODY), []
        if not self.result.comparisons:
            return
        number = 0
        for asked in self.asked.comparisons:
            for key, pair, pooled in self._pairs(asked.metric, people):
                at = ("comparisons", str(number))
                number += 1
                if pooled is None:
                    look.exact((*at, "pooled_difference"), None)
                else:
                    look.between((*at, "pooled_difference"), pooled[0], *pooled[1], "derived")
                comparison(look, at, pair, (asked.metric, key, asked.margin))
                if math.isnan(pair.p):
                    look.exact((*at, "p_adjusted"), None)
                else:
                    tested.append((at, pair.p, (pair.p, pair.p)))
        self._adjusted(tested)

    def _pairs(self, metric: str, people: People) -> list[tuple[str, Any, Any]]:
        if metric in ("auc", *_SHARES):
            found: list[tuple[str, Any, Any]] = []
            for label, column in self.labels.scores:
                first, second = (people.scores(model, column, self.task) for model in (0, 1))
                if metric == "auc":
                    areas = [own.delong(one.scores, one.truth)[0] for one in (first, second)]
                    ranges = [cells_of(one, self.edges).auc_range() for one in (first, second)]
                    pooled = areas[0] - areas[1], difference_range(ranges[0], ranges[1])
                    found.append((_key("auc", label), areas_pair(people, column, self.task, len(self.sites)), pooled))
                else:
                    key = _key(f"{metric}@{self.threshold:g}", label)
                    found.append((key, shares_pair(first, second, metric, self.threshold), None))
            return found
        names = self._columns() or (
            ("brier",) if self.task.name == "classification" else tuple(f"brier_{label}" for label in self.task.targets)
        )
        own_names = [name for name in sorted(names) if name == metric or self._metric(name) == metric]
        differences = {name: self._values(people, 0, name) - self._values(people, 1, name) for name in own_names}
        return [
            (name, means_pair(one, people.site), None) for name, one in differences.items() if not np.isnan(one).all()
        ]

    def _metric(self, name: str) -> str:
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

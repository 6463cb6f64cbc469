"""A classification's report under a hospital's policy beside the patients: what is told, and what must not be.

Where scores are not listed, counts of patients leave as multiples of a base, and means with few decimal places, a
report's figure is no longer that of the patients. How far it may lie from theirs follows from the rules alone, and is
derived here anew:

counts    n patients of a class at a site are told as the nearest multiple N of the base. Their decisions are shared
          out in N/base wholes by largest remainders: of a share of q wholes ⌊q⌋ or ⌈q⌉ are told, of each row and site;
          of two classes the nearer one, q ± ½.
means     of N patients, each within half a unit of the last decimal place. So is the mean of squares; if then it is
          below the square of the told mean, it is raised to the next unit above that, so that the variance is below a
          unit; and it is at most what values from `low` to `high` can have, (low + high)·mean − low·high, told as
          coarsely: at most |low + high| + 1 half units below.
limits    Wilson's rise with the share. So do those of balanced accuracy, mean ∓ √Σd²/k with d = |share − Wilson's|: the
          slope in a share is at least (1 − d')/k, and d' < 1 since Wilson's rise. Student's t falls with the degrees of
          freedom, (Σa)²/Σ(a²/(N − 1)) of parts a with known ends, which lie between the least and the sum of all N − 1.

Everything else must be null, and say why.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import centralised_figures as own
import numpy as np
from centralised import Walk
from centralised_expected import Expecting, Labels
from centralised_people import EVERYBODY, FloatArray, Hospital, Path, People, Row
from centralised_scores import Expected
from scipy import stats

from eucaim_fl.plan import FederationPlan
from eucaim_fl.site.validation_rounding import CellRules
from eucaim_fl.validation.result_schema import ValidationResult

__all__ = ["compare_told", "unnamed"]

_TINY = 1e-12
_SCORES = ("auc", "sensitivity", "specificity", "accuracy")


def compare_told(
    plan: FederationPlan, result: ValidationResult, hospitals: Mapping[str, Hospital], rules: CellRules
) -> list[Row]:
    """One row for each number of a classification's result under rules that list no scores, and one for each thing that
    is withheld: it must be null and say why.

    hospitals: every site of the plan, by name; `told` of whom it may tell.
    """
    ordered = [hospitals[site] for site in plan.sites]
    walk = _ToldWalk(plan, result, ordered, Coarse(plan, rules))
    return [*walk.rows(), *unnamed(result), *_few(plan, ordered, rules)]


@dataclass(frozen=True)
class _Mean:
    """Where a mean over sites, its error and its degrees of freedom lie. value: that of the patients, with its ends."""

    value: float
    ends: tuple[float, float]
    p: float
    told: tuple[float, float]
    errors: tuple[float, float]
    freedoms: tuple[float, float]

    def limits(self, sign: int) -> tuple[float, float]:
        """Where the lower (−1) or upper (1) limit lies."""
        t = [float(stats.t.ppf(0.975, one)) for one in self.freedoms]
        reach = t[1] * self.errors[0], t[0] * self.errors[1]
        return (
            (self.told[0] - reach[1], self.told[1] - reach[0])
            if sign < 0
            else (self.told[0] + reach[0], self.told[1] + reach[1])
        )

    def p_range(self) -> tuple[float, float]:
        """Where the p-value of a mean of 0 lies."""
        near = 0.0 if self.told[0] <= 0 <= self.told[1] else min(map(abs, self.told))
        far = max(map(abs, self.told))
        least = 2 * float(stats.t.sf(far / self.errors[0], self.freedoms[1])) if self.errors[0] else 0.0
        return least, 2 * float(stats.t.sf(near / self.errors[1], self.freedoms[0]))


class Coarse(Expecting):
    """Figures of a plan's models as they may be told, from the patients' own."""

    def __init__(self, plan: FederationPlan, rules: CellRules) -> None:
        super().__init__(plan)
        self.base = rules.least.base
        self.half = 0.0 if rules.digits is None else 0.5 * 10.0**-rules.digits + _TINY
        self.fields = self.mains()
        self.labels = Labels((), ())

    def rows(self, people: People, model: int) -> Iterator[tuple[int, Any, int]]:
        """Of each site and class: the class, its patients by decision, and how many patients are told."""
        for site in np.unique(people.site):
            matrix = self.matrix(people.at(int(site)), model)
            for k, row in enumerate(() if matrix is None else matrix):
                if row.sum():
                    yield k, row, math.floor(row.sum() / self.base + 0.5) * self.base

    def patients(self, people: People) -> int:
        return sum(told for _, _, told in self.rows(people, 0))

    def cells(self, people: People, model: int) -> tuple[Any, Any, Any]:
        """Least and most of each confusion count, and how many patients of each class are told."""
        side = (len(self.task.classes),) * 2
        least, most, told = np.zeros(side), np.zeros(side), np.zeros(side[0], dtype=int)
        for k, row, number in self.rows(people, model):
            wholes = row * (number // self.base) / row.sum()
            ends = (np.floor(wholes), np.ceil(wholes)) if len(row) > 2 else (wholes - 0.5, wholes + 0.5)
            least[k] += np.clip(self.base * ends[0], 0, number)
            most[k] += np.clip(self.base * ends[1], 0, number)
            told[k] += number
        return least, most, told

    def figures(self, people: People, model: int, draws: Mapping[str, Any]) -> dict[str, Expected]:
        if not len(people.site):
            return {}
        exact = self.decided(people, model)
        least, most, told = self.cells(people, model)
        n = int(told.sum())
        right = float(np.trace(least)), float(np.trace(most))
        found = {"accuracy": self._shared(exact["accuracy"], right, n)}
        balanced = exact["balanced_accuracy"]
        found["balanced_accuracy"] = Expected(math.nan, None, n)
        if told.all():
            ends = []
            for matrix in (least, most):
                shares = [
                    (matrix[k, k] / told[k], *own.wilson(float(matrix[k, k]), int(told[k]))) for k in range(len(told))
                ]
                ends.append(own.newcombe_mean(shares))
            spans = tuple((low, high) for low, high in zip(*ends, strict=True))
            found["balanced_accuracy"] = Expected(balanced.value, balanced.ends, n, spans, kind="rounded")  # type: ignore[arg-type]
        mean = self.mean(people, self.values(people, model, "brier"), (0.0, 1.0))
        found["brier"] = Expected(
            mean.value, mean.ends, n, (mean.told, mean.limits(-1), mean.limits(1)), kind="rounded"
        )
        return found

    def point(self, main: tuple[str, str, str], people: People, model: int) -> None:
        """Hospitals and groups are compared by scores, which are not told."""

    def _shared(self, exact: Expected, count: tuple[float, float], patients: int) -> Expected:
        low, high = (own.wilson(one, patients) for one in count)
        spans = (count[0] / patients, count[1] / patients), (low[0], high[0]), (low[1], high[1])
        return Expected(exact.value, exact.ends, patients, spans, kind="rounded")

    def mean(self, people: People, values: FloatArray, of: tuple[float, float]) -> _Mean:
        """Of values from `of[0]` to `of[1]`, of all these patients."""
        numbers, means, variances = [], [], []
        for site in np.unique(people.site):
            here = people.site == site
            m, q = float(values[here].mean()), float((values[here] ** 2).mean())
            ends = m - self.half, m + self.half
            squares = sorted(end**2 for end in ends)
            squares[0] = 0.0 if ends[0] <= 0 <= ends[1] else squares[0]
            low = q - (abs(sum(of)) + 1) * self.half
            numbers.append(self.patients(people.at(int(site))))
            means.append(ends)
            variances.append((max(0.0, low - squares[1]), max(q + self.half - squares[0], 2 * self.half)))
        n, mean = np.array(numbers, dtype=float), np.array(means).T
        parts = (n / n.sum()) ** 2 * np.array(variances).T / (n - 1)
        told, errors = mean @ n / n.sum(), np.sqrt(parts.sum(axis=1))
        spread = [float((one**2 / (n - 1)).sum()) for one in parts]
        bounds = float((n - 1).min()), float((n - 1).sum())
        least = errors[0] ** 4 / spread[1] if spread[1] else 0.0
        most = errors[1] ** 4 / spread[0] if spread[0] else math.inf
        freedoms = min(max(least, bounds[0]), bounds[1]), max(min(most, bounds[1]), bounds[0])
        value, (error, freedom) = float(values.mean()), own.stratified(values, people.site)
        reach, p = float(stats.t.ppf(0.975, freedom)) * error, math.nan
        if error:
            p = 2 * float(stats.t.sf(abs(value) / error, freedom))
        return _Mean(
            value, (value - reach, value + reach), p, (float(told[0]), float(told[1])),
            (float(errors[0]), float(errors[1])), freedoms,
        )  # fmt: skip


class _ToldWalk(Walk):
    """Each value of a result under a policy, looked at once."""

    own: Coarse
    kind = "rounded"

    def __init__(
        self, plan: FederationPlan, result: ValidationResult, hospitals: Sequence[Hospital], own: Coarse
    ) -> None:
        super().__init__(plan, result, hospitals, own)
        self.mains = own.fields

    def _counts(self, at: Path, people: People, model: int, *, together: bool) -> None:
        look = self.look
        for name in ("thresholds", "lesions", *(("volumes",) if together else ())):
            look.exact((*at, name), ())
        look.exact((*at, "undefined"), {})
        matrix = self.own.matrix(people, model)
        if matrix is None:
            look.exact((*at, "confusion"), ())
            return
        least, most, _ = self.own.cells(people, model)
        for k, count in enumerate(matrix.ravel()):
            ends = float(least.ravel()[k]), float(most.ravel()[k])
            look.between((*at, "confusion", str(k)), int(count), *ends, self.kind)

    def _comparisons(self) -> None:
        look, people, tested = self.look, self._people(EVERYBODY), []
        for k, asked in enumerate(self.asked.comparisons):
            at = ("comparisons", str(k))
            one = self.result.comparisons[k]
            label = f"{asked.metric}@{self.own.threshold:g}" if asked.metric in _SCORES[1:] else asked.metric
            told = asked.metric == "brier" and bool(len(people.site))
            named = {
                "metric": asked.metric, "figure": label, "better": "lower" if asked.metric == "brier" else "higher",
                "margin": asked.margin, "pooled_difference": None, "counts": None,
                "sites": len(np.unique(people.site)) if told else 0,
                "patients": self.own.patients(people) if told else None,
                "outcome": _outcome(one) if told else None,
            }  # fmt: skip
            for name, value in named.items():
                look.exact((*at, name), value)
            for name in ("sentence", "reason"):
                look.words((*at, name))
            if not told:
                for name in ("difference", "low", "high", "p", "p_adjusted"):
                    look.exact((*at, name), None)
                continue
            values = self.own.values(people, 0, "brier") - self.own.values(people, 1, "brier")
            mean = self.own.mean(people, values, (-1.0, 1.0))
            spans = {"difference": (mean.value, mean.told), "p": (mean.p, mean.p_range())}
            spans |= {"low": (mean.ends[0], mean.limits(-1)), "high": (mean.ends[1], mean.limits(1))}
            for name, (value, span) in spans.items():
                look.between((*at, name), value, *span, self.kind)
            tested.append((at, mean.p, mean.p_range()))
        self._adjusted(tested)


def _outcome(one: Any) -> str | None:
    """What the limits that stand beside it say of non-inferiority; less is better."""
    if one.margin is None or one.low is None or one.high is None:
        return None
    return "shown" if -one.high > -one.margin else "inferior_shown" if -one.low < -one.margin else "not_shown"


# --- what is withheld -------------------------------------------------------------------------------------------------

_NUMBERS = {
    "figures": ("value", "low", "high", "lowest", "highest", "widest_low", "widest_high"),
    "between": (
        "value", "low", "high", "prediction_low", "prediction_high", "tau", "tau_low", "tau_high", "i2", "i2_low",
        "i2_high", "q", "p_heterogeneity", "worst_site",
    ),
    "comparisons": ("difference", "low", "high", "p", "p_adjusted", "pooled_difference", "counts", "patients"),
    "differences": ("difference", "low", "high", "p", "p_adjusted"),
    "half_widths": ("half_width", "enough", "patients", "needed"),
}  # fmt: skip


def unnamed(result: ValidationResult) -> list[Row]:
    """One row for each thing of a result that is withheld; it is within if it says why and holds no number."""
    found = []

    def look(path: Path, one: Any, part: str, why: str) -> None:
        numbers = [getattr(one, name) for name in _NUMBERS[part]]
        if numbers[0] is None:
            silent = all(number is None for number in numbers) and not getattr(one, "rows", ())
            found.append(Row(path, None, "withheld", 0.0, "withheld", silent and bool(why.strip())))

    for m, model in enumerate(result.models):
        for s, scope in enumerate(model.scopes):
            at = ("models", str(m), "scopes", str(s))
            named = {one.site for one in scope.withheld if one.reason.strip()}
            for k, site in enumerate(scope.sites):
                if site.withheld or site.patients is None:
                    numbers = site.figures or site.thresholds or site.lesions or site.confusion or site.undefined
                    right = site.patients is None and not numbers and bool(site.withheld.strip()) and site.site in named
                    found.append(Row((*at, "sites", str(k)), None, "withheld", 0.0, "withheld", right))
                for key, one in site.figures.items():
                    look((*at, "sites", str(k), "figures", key), one, "figures", one.reason)
            for key, one in scope.figures.items():
                look((*at, "figures", key), one, "figures", one.reason)
            for k, plot in enumerate(scope.between):
                look((*at, "between", str(k)), plot, "between", plot.reason)
    for part in ("comparisons", "differences", "half_widths"):
        for k, one in enumerate(getattr(result, part)):
            look((part, str(k)), one, part, one.sentence if part == "half_widths" else one.reason)
    for k, line in enumerate(result.sites):
        if line.patients is None:
            right = bool(line.withheld.strip()) and not line.failed
            found.append(Row(("sites", str(k)), None, "withheld", 0.0, "withheld", right))
    return found


def _few(plan: FederationPlan, hospitals: Sequence[Hospital], rules: CellRules) -> list[Row]:
    """One row for each class of each group and site: of whom is told, there are enough."""
    found = []
    for site, one in zip(plan.sites, hospitals, strict=True):
        for scope, members in (one.told or {}).items():
            truths = np.array([int(one.results[0][patient]["truth"]) for patient in members], dtype=int)
            for k, count in enumerate(np.bincount(truths, minlength=len(plan.task.classes))):
                enough = count == 0 or count >= rules.least.metric
                found.append(
                    Row(("told", site, scope, plan.task.classes[k]), None, None, 0.0, "withheld", bool(enough))
                )
    return found

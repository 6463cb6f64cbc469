"""Every number of a validation's report beside the same one from the patients themselves, joined.

`compare` looks at each value of a result once. A number that it does not know is a failure, so that a new figure can't
be left out. The patients' figures come from `centralised_expected.py`; how far binning may take a figure of the report
from them, from the report where it states that, else from `centralised_binning.py`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import centralised_figures as own
import numpy as np
from centralised_between import between
from centralised_binning import Range
from centralised_expected import SHARES, Expecting
from centralised_pairs import comparison, group_difference
from centralised_people import EVERYBODY, Comparison, Hospital, Path, People, Row, joined, leaves
from centralised_scores import Expected, curves, figure, threshold_counts

from eucaim_fl.plan import FederationPlan
from eucaim_fl.seeding import generator
from eucaim_fl.validation.result_schema import ValidationResult

__all__ = ["Hospital", "Row", "Walk", "compare"]


def compare(plan: FederationPlan, result: ValidationResult, hospitals: Mapping[str, Hospital]) -> list[Row]:
    """One row for each number of the result.

    hospitals: every site of the plan, by name; what they tell of must be told exactly.
    """
    return Walk(plan, result, [hospitals[site] for site in plan.sites], Expecting(plan)).rows()


class Walk:
    """Each value of a result, looked at once. own: what is expected of it, by the patients."""

    kind = "derived"

    def __init__(
        self, plan: FederationPlan, result: ValidationResult, hospitals: Sequence[Hospital], own: Expecting
    ) -> None:
        self.plan, self.result, self.hospitals, self.own = plan, result, hospitals, own
        self.sites, self.asked, self.task = plan.sites, plan.validation, plan.task
        self.labels, self.edges, self.mains = own.labels, own.edges, own.mains()
        self.look = Comparison(dict(leaves(result.model_dump())))

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
                ("patients", self.own.patients(self._people(EVERYBODY).at(k)) or None),
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
        look.exact((*at, "patients"), self.own.patients(people))
        whole = scope == EVERYBODY
        draws = {
            label: self.own.draws(people.scores(model, column, self.task), make, label, "")
            for label, column in self.labels.scores
        }
        expected = self.own.figures(people, model, {label: free for label, (_, free) in draws.items()})
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
                label: self.own.draws(here.scores(model, column, self.task), make, label, site)[1]
                for label, column in self.labels.scores
            } if whole else {}  # fmt: skip
            look.exact((*place, "site"), site)
            look.exact((*place, "patients"), self.own.patients(here))
            look.words((*place, "withheld"))
            by_site[site] = self.own.figures(here, model, own_draws)
            self._all_figures((*place, "figures"), by_site[site], here, model)
            self._counts(place, here, model, together=False)
        for k, site in enumerate(sorted(hidden)):
            look.exact((*at, "withheld", str(k), "site"), site)
            look.words((*at, "withheld", str(k), "reason"))
        if not hidden:
            look.exact((*at, "withheld"), ())
        for k, main in enumerate(self.mains):
            points = {site: self.own.point(main, people.at(self.sites.index(site)), model) for site in by_site}
            figures = {site: found[main[0]] for site, found in by_site.items() if main[0] in found}
            cut = main[1] in ("dice", "surface_dice")
            between(look, (*at, "between", str(k)), points, figures, (main[0], main[1] in ("auc", *SHARES), cut))

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

    def _all_figures(self, at: Path, expected: Mapping[str, Expected], people: People, model: int) -> None:
        if not expected:
            self.look.exact(at, {})
        for key, found in expected.items():
            if (*at, key, "value") in self.look.left:
                figure(self.look, (*at, key), found, self.own.telling(key, people, model))
            else:
                self.look.rows.append(Row((*at, key), None, found.value, 0.0, "unknown", False))

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
        lesions = self.own.lesion_counts(people, model)
        for k, (label, counts) in enumerate(sorted(lesions.items())):
            look.exact((*at, "lesions", str(k), "label"), label)
            for name, count in zip(("lesions", "found", "false_positives", "patients"), counts, strict=True):
                look.exact((*at, "lesions", str(k), name), count)
        if not lesions:
            look.exact((*at, "lesions"), ())
        matrix = self.own.matrix(people, model)
        if matrix is None:
            look.exact((*at, "confusion"), ())
        else:
            for k, count in enumerate(matrix.ravel()):
                look.exact((*at, "confusion", str(k)), int(count))
        missing = {key: int(np.isnan(self.own.values(people, model, key)).sum()) for key in self.own.columns()}
        for key, count in missing.items():
            if count:
                look.exact((*at, "undefined", key), count)
        if not any(missing.values()):
            look.exact((*at, "undefined"), {})
        if together:
            self._volumes(at, people, model)

    def _volumes(self, at: Path, people: People, model: int) -> None:
        look, names = self.look, sorted(key for key in self.own.columns() if key.startswith("volume"))
        number = 0
        for key in names:
            values = self.own.values(people, model, key)
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
            points = self.own.point(main, groups[0], model), self.own.point(main, groups[1], model)
            shares = None
            if main[1] in SHARES and all(points):
                column = self.labels.scores[0][1]
                shares = tuple(self.own.share(main[1], people.scores(model, column, self.task)) for people in groups)
            for name in ("model", "rule", "figure", "group", "reference", "reason"):
                look.words((*at, name))
            span = group_difference(look, at, points, shares)  # type: ignore[arg-type]
            if span is None:
                look.exact((*at, "p_adjusted"), None)
            else:
                tested.append((at, self.own.p_of(points, shares), span))
        self._adjusted(tested)

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
                self.kind if ends[0] < ends[1] else "exact",
            )

    def _comparisons(self) -> None:
        look, people, tested = self.look, self._people(EVERYBODY), []
        if not self.result.comparisons:
            return
        number = 0
        for asked in self.asked.comparisons:
            for key, pair, pooled in self.own.pairs(asked.metric, people):
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

"""Sentences follow from numbers by stated rules."""

from __future__ import annotations

from typing import Any

import pytest

from eucaim_fl.validation.agreement import enough
from eucaim_fl.validation.analysis_input import asked_of
from eucaim_fl.validation.analysis_words import Findings, enough_of, figure_words, verdicts
from eucaim_fl.validation.intervals import Interval
from eucaim_fl.validation.result_schema import (
    BetweenSites,
    ComparisonResult,
    Figure,
    ForestRow,
    GroupDifference,
    ModelResult,
    ScopeResult,
    SiteFigures,
    SiteLine,
    Verdict,
    WithheldCell,
)
from tests.validation.site_records import plan_for

ASKED = asked_of(
    plan_for(
        "classification", ["a", "b"], models=2, subgroups=[{"by": "sex"}], half_widths={"auc": 0.05, "sensitivity": 0.1}
    )
)
GOOD = Figure(value=0.8, low=0.7, high=0.9, patients=100, sites=2)
LINES = (SiteLine(site="a", answered=True, patients=50), SiteLine(site="b", answered=True, patients=50))


def scope(name: str = "all", **parts: Any) -> ScopeResult:
    empty = dict.fromkeys(
        ("thresholds", "curves", "volumes", "lesions", "confusion", "sites", "withheld", "between"), ()
    )
    return ScopeResult(**{"scope": name, "patients": 100, "figures": {}, "undefined": {}, **empty, **parts})


def model(figures: dict[str, Figure], *groups: ScopeResult, **parts: Any) -> ModelResult:
    return ModelResult(name="model-1", scopes=(scope(figures=figures, **parts), *groups))


def told(question: str, found: Findings) -> list[tuple[str, str]]:
    return [(one.tone, one.sentence) for one in verdicts(found) if one.question == question]


def findings(one: ModelResult, **parts: Any) -> Findings:
    empty: dict[str, Any] = {"differences": (), "comparisons": (), "half_widths": (), "sites": LINES, "asked": ASKED}
    return Findings(models=(one,), **{**empty, **parts})


def between(p: float, prediction: tuple[float, float] | None, *values: float) -> BetweenSites:
    rows = tuple(
        ForestRow(site=name, patients=50, value=value, low=value - 0.1, high=value + 0.1, weight=0.5)
        for name, value in zip("abc", values, strict=False)
    )
    low, high = prediction or (None, None)
    return BetweenSites(
        figure="auc", scale="logit", sites=len(values), value=0.8, low=0.7, high=0.9, prediction_low=low,
        prediction_high=high, tau=0.1, tau_low=0.0, tau_high=1.0, i2=0.4, i2_low=0.0, i2_high=0.9, q=1.0,
        p_heterogeneity=p, worst_site="a", rows=rows,
    )  # fmt: skip


class TestNames:
    def test_figures_have_names_that_people_use(self) -> None:
        asked = asked_of(plan_for("multilabel", ["a"]))
        assert figure_words(asked, "auc_oedema") == "AUC of oedema"
        assert figure_words(asked, "sensitivity@0.5_nodule") == "sensitivity at 0.5 of nodule"
        assert figure_words(ASKED, "balanced_accuracy") == "balanced accuracy"


class TestEnough:
    def test_too_wide_an_interval_says_how_many_patients_would_do(self) -> None:
        wide = enough_of(ASKED, model({"auc": GOOD, "sensitivity@0.5": GOOD}))
        expected = enough(Interval(0.8, 0.7, 0.9), 0.05, 100)
        assert (wide[0].enough, wide[0].needed, wide[0].patients) == (False, expected.needed, 100)
        assert wide[0].sentence.startswith("AUC: too few patients to conclude")
        assert wide[1].enough
        assert wide[1].figure == "sensitivity@0.5"
        assert "at most the ±0.1 that was wanted" in wide[1].sentence

    def test_what_has_no_interval_is_not_called_enough(self) -> None:
        found = enough_of(ASKED, model({"auc": Figure(value=None, reason="There are not patients of both classes.")}))
        assert [one.enough for one in found] == [None, None]
        assert "both classes" in found[0].sentence
        assert "No site told" in found[1].sentence

    def test_each_label_has_its_own(self) -> None:
        asked = asked_of(plan_for("organs", ["a"], half_widths={"dice": 0.05}))
        found = enough_of(asked, model({"dice_liver": GOOD, "dice_lesion": GOOD, "surface_dice_liver": GOOD}))
        assert [one.figure for one in found] == ["dice_liver", "dice_lesion"]


class TestDoesItWork:
    @pytest.mark.parametrize(
        ("low", "high", "tone", "words"),
        [
            (0.55, 0.9, "good", "better than chance (0.5)."),
            (0.45, 0.9, "bad", "not shown to be better than chance."),
            (0.3, 0.45, "bad", "worse than chance (0.5)."),
        ],
    )
    def test_an_auc_is_held_against_chance(self, low: float, high: float, tone: str, words: str) -> None:
        figure = GOOD.model_copy(update={"value": (low + high) / 2, "low": low, "high": high})
        found = told("does_it_work", findings(model({"auc": figure})))
        assert found[0][0] == tone
        assert found[0][1].endswith(words)
        assert "over 100 patients of 2 hospitals" in found[0][1]

    def test_shares_are_told_as_they_are_and_what_is_missing_is_a_warning(self) -> None:
        found = told("does_it_work", findings(model({"auc": GOOD, "sensitivity@0.5": GOOD})))
        assert [tone for tone, _ in found] == ["good", "plain", "warning"]
        assert found[2][1] == "Specificity at 0.5 is not known: no site told it."

    def test_of_many_labels_the_mean_and_the_ends_are_told(self) -> None:
        task = {"name": "multilabel", "targets": [f"t{k}" for k in range(6)]}
        plan = plan_for("multilabel", ["a"])
        asked = asked_of(plan.model_copy(update={"task": type(plan.task).model_validate(task)}))
        figures = {f"auc_t{k}": GOOD.model_copy(update={"value": 0.7 + k / 50}) for k in range(6)}
        found = told("does_it_work", findings(model(figures | {"macro_auc": GOOD}), asked=asked))
        assert [sentence.partition(" is ")[0] for _, sentence in found] == [
            "Mean AUC over labels",
            "AUC of t0",
            "AUC of t5",
        ]

    @pytest.mark.parametrize(
        ("difference", "p", "outcome", "better", "tone"),
        [
            (0.1, 0.01, None, "higher", "good"),
            (-0.1, 0.01, None, "higher", "bad"),
            (-0.1, 0.01, None, "lower", "good"),
            (0.1, 0.01, None, "neither", "plain"),
            (0.1, 0.2, None, "higher", "plain"),
            (-0.1, 0.01, "shown", "higher", "good"),
            (0.0, 0.9, "not_shown", "higher", "warning"),
            (-0.1, 0.01, "inferior_shown", "higher", "bad"),
        ],
    )
    def test_comparisons(self, difference: float, p: float, outcome: Any, better: Any, tone: str) -> None:
        one = ComparisonResult(
            metric="auc", figure="auc", better=better, difference=difference, low=difference - 0.05,
            high=difference + 0.05, p=p, p_adjusted=p, sites=2, outcome=outcome, sentence="So it is.",
        )  # fmt: skip
        found = told("does_it_work", findings(model({"auc": GOOD}), comparisons=(one,)))[-1]
        assert found[0] == tone
        assert ("a difference is shown" in found[1]) == (p < 0.05)
        assert found[1].endswith("So it is.")

    def test_a_comparison_without_limits_is_no_verdict(self) -> None:
        one = ComparisonResult(
            metric="auc", figure="auc", better="higher", difference=None, low=None, high=None, p=None, p_adjusted=None,
            sites=0, reason="No site told it.",
        )  # fmt: skip
        found = told("does_it_work", findings(model({"auc": GOOD}), comparisons=(one,)))[-1]
        assert found == ("warning", "model-1 and model-2 can't be compared by AUC: No site told it.")


class TestWhere:
    def test_ends_are_named_and_chance_is_the_measure(self) -> None:
        apart = told("where", findings(model({}, between=(between(0.01, (0.4, 0.95), 0.7, 0.9, 0.8),))))
        assert apart[0][0] == "warning"
        assert "between 0.700 (a) and 0.900 (b) at 3 hospitals: more apart than by chance" in apart[0][1]
        assert apart[1][0] == "warning"
        assert "from 0.400 to 0.950" in apart[1][1]
        alike = told("where", findings(model({}, between=(between(0.5, (0.6, 0.95), 0.7, 0.9, 0.8),))))
        assert [tone for tone, _ in alike] == ["plain", "plain"]

    def test_two_hospitals_show_little_and_one_nothing(self) -> None:
        two = told("where", findings(model({}, between=(between(0.5, None, 0.7, 0.9),))))
        assert "two hospitals can't show" in two[0][1]
        assert len(two) == 1
        one = told("where", findings(model({}, between=(between(0.5, None, 0.7),))))
        assert one == [("warning", "Only a has a value; nothing follows for other hospitals.")]
        none = told("where", findings(model({}, between=(between(0.5, None),))))
        assert none[0][0] == "warning"


class TestForWhom:
    def difference(self, p: float | None, value: float = -0.2) -> GroupDifference:
        return GroupDifference(
            model="model-1", rule="sex", figure="auc", group="sex=F", reference="sex=M", difference=value, low=-0.3,
            high=-0.1, p=p, p_adjusted=p,
        )  # fmt: skip

    def test_differences_that_are_shown_are_named(self) -> None:
        found = told("for_whom", findings(model({}), differences=(self.difference(0.01), self.difference(0.2))))
        assert found == [("warning", "AUC is worse for female than for male (sex): by 0.2 (adjusted p = 0.010).")]
        many = told("for_whom", findings(model({}), differences=(self.difference(0.0001, 0.1),) * 6))
        assert len(many) == 5
        assert "better for female" in many[0][1]
        assert many[4][1].startswith("2 further differences")

    def test_no_difference_is_no_proof(self) -> None:
        found = told("for_whom", findings(model({}), differences=(self.difference(0.2),)))
        assert found[0][0] == "plain"
        assert "does not prove" in found[0][1]

    def test_groups_that_are_withheld_or_can_not_be_compared_are_said_to_be(self) -> None:
        both = (SiteFigures(site="a", patients=None, withheld="few"), SiteFigures(site="b", patients=50))
        hidden = scope("sex=F", withheld=(WithheldCell(site="a", reason="few"),), sites=both)
        nowhere = scope("sex=O", withheld=hidden.withheld, sites=both[:1])
        found = told("for_whom", findings(model({}, hidden, nowhere), differences=(self.difference(None),)))
        assert [tone for tone, _ in found] == ["warning", "plain"]
        assert found[1][1].startswith("Of 1 of 1 groups some hospital tells no figures")

    def test_a_plan_without_groups_says_so(self) -> None:
        plain = asked_of(plan_for("classification", ["a"]))
        assert "asked for no groups" in told("for_whom", findings(model({}), asked=plain))[0][1]


class TestHowSure:
    def test_missing_hospitals_images_and_patients_are_warnings(self) -> None:
        lines = (
            SiteLine(site="a", answered=True, patients=5, failed={"time": 2}),
            SiteLine(site="b", answered=False, patients=None),
            SiteLine(site="c", answered=True, patients=None, withheld="few"),
        )
        half_widths = enough_of(ASKED, model({"auc": GOOD, "sensitivity@0.5": GOOD}))
        found = told("how_sure", findings(model({}), sites=lines, half_widths=half_widths))
        assert [tone for tone, _ in found] == ["warning", "good", "warning", "warning", "warning"]
        assert "1 of 3 hospitals told nothing: b." in found[2][1]
        assert "no answer for 2 images" in found[4][1]

    @pytest.mark.parametrize(
        ("name", "low", "high", "words"),
        [
            ("calibration_slope", 0.5, 0.9, "too extreme"),
            ("calibration_slope", 1.1, 1.9, "too little apart"),
            ("calibration_intercept", -0.9, -0.1, "too high on the whole"),
            ("calibration_intercept", 0.1, 0.9, "too low on the whole"),
        ],
    )
    def test_probabilities_that_are_off_are_said_to_be(self, name: str, low: float, high: float, words: str) -> None:
        figure = Figure(value=(low + high) / 2, low=low, high=high)
        found = told("how_sure", findings(model({name: figure})))
        assert words in found[0][1]
        right = figure.model_copy(update={"low": -5.0, "high": 5.0})
        assert told("how_sure", findings(model({name: right}))) == []

    def test_without_a_wish_the_width_of_the_interval_is_said(self) -> None:
        ((tone, words),) = told("how_sure", findings(model({"auc": GOOD})))
        assert tone == "plain"
        assert GOOD.low is not None
        assert GOOD.high is not None
        assert f"is {GOOD.high - GOOD.low:.2g} wide" in words
        wishes = enough_of(ASKED, model({"auc": GOOD}))
        assert all(
            "wide;" not in words for _, words in told("how_sure", findings(model({"auc": GOOD}), half_widths=wishes))
        )

    def test_order_of_questions(self) -> None:
        found: tuple[Verdict, ...] = verdicts(findings(model({"auc": GOOD}, between=(between(0.5, None, 0.7, 0.8),))))
        order = ["does_it_work", "where", "for_whom", "how_sure"]
        places = [order.index(one.question) for one in found]
        assert places == sorted(places)

"""The whole analysis: the same numbers from the same records, nothing suppressed told, nothing undefined made up."""

from __future__ import annotations

import json
import random
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from eucaim_fl.errors import DataError, ReplyError
from eucaim_fl.validation.analysis import analyse
from eucaim_fl.validation.record import EVERYBODY, TOO_FEW, ModelFigures, ScopeRecord, ValidationRecord
from eucaim_fl.validation.result_schema import ValidationResult
from tests.validation.site_records import compared_models, decided, measured, ordered, plan_for, record, whole

SITES = ("a", "b", "c")
PLAN = plan_for(
    "classification",
    (*SITES, "silent"),
    models=2,
    subgroups=[{"by": "sex"}],
    comparisons=[{"metric": "auc", "margin": 0.2}],
    half_widths={"auc": 0.05, "sensitivity": 0.1},
    bootstrap_samples=60,
)


def site_record(seed: int, name: str, size: int = 60) -> ValidationRecord:
    rng = np.random.default_rng(seed)
    truth = (rng.random(size) < 0.4).astype(np.int64)
    first = 1 / (1 + np.exp(-rng.normal(size=size) - 2 * (truth - 0.5)))
    second = 1 / (1 + np.exp(-rng.normal(size=size) - (truth - 0.5)))
    women = rng.random(size) < 0.5

    def scope(of: str, members: Any) -> ScopeRecord:
        one, two, classes = first[members], second[members], truth[members]
        figures = decided(PLAN, one, classes), decided(PLAN, two, classes)
        return ScopeRecord(of, int(members.sum()), figures, compared_models(PLAN, one, two, classes))

    groups = {EVERYBODY: scope(EVERYBODY, truth >= 0), "sex=F": scope("sex=F", women), "sex=M": scope("sex=M", ~women)}
    return record(PLAN, name, groups, failed={"time": seed + 1})


RECORDS = [site_record(seed, name) for seed, name in enumerate(SITES)]
RESULT = analyse(PLAN, RECORDS, seed=5)


class TestResult:
    def test_the_same_records_in_any_order_give_the_same_bits(self) -> None:
        shuffled = random.Random(1).sample(RECORDS, 3)
        assert analyse(PLAN, shuffled, seed=5).model_dump_json() == RESULT.model_dump_json()

    def test_another_seed_moves_resampled_limits_only(self) -> None:
        other = analyse(PLAN, RECORDS, seed=6).models[0].scopes[0].figures
        moved = {name for name, figure in RESULT.models[0].scopes[0].figures.items() if other[name] != figure}
        assert moved == {"average_precision"}

    def test_its_json_can_be_read_back_and_holds_no_nan(self) -> None:
        text = RESULT.model_dump_json()
        assert ValidationResult.model_validate_json(text) == RESULT
        json.loads(text, parse_constant=lambda name: pytest.fail(f"{name} in JSON"))

    def test_every_figure_that_lacks_something_says_why(self) -> None:
        for model in RESULT.models:
            for scope in model.scopes:
                for figures in (scope.figures, *(site.figures for site in scope.sites)):
                    for name, figure in figures.items():
                        assert None not in (figure.value, figure.low, figure.high) or figure.reason, name

    def test_models_scopes_and_sites_are_all_there(self) -> None:
        assert [model.name for model in RESULT.models] == ["model-1", "model-2"]
        assert [scope.scope for scope in RESULT.models[0].scopes] == ["all", "sex=F", "sex=M"]
        assert [(site.site, site.answered, site.patients) for site in RESULT.sites] == [
            ("a", True, 60), ("b", True, 60), ("c", True, 60), ("silent", False, None),
        ]  # fmt: skip
        assert RESULT.sites[2].failed == {"time": 3}
        assert RESULT.plan_sha256 == PLAN.sha256()
        assert "in multiples of a base" in RESULT.counted_in

    def test_curves_are_of_everybody(self) -> None:
        scopes = RESULT.models[0].scopes
        assert len(scopes[0].curves) == 1
        assert len(scopes[0].curves[0].roc_band) == 51
        assert scopes[1].curves == ()

    def test_sites_stand_side_by_side_by_each_main_figure(self) -> None:
        between = RESULT.models[0].scopes[0].between
        assert [one.figure for one in between] == ["auc", "sensitivity@0.5", "specificity@0.5"]
        assert [row.site for row in between[0].rows] == list(SITES)
        own = RESULT.models[0].scopes[0].sites[1].figures["auc"]
        assert (between[0].rows[1].value, between[0].rows[1].low) == (own.value, own.low)


class TestWithheld:
    def test_a_group_is_listed_as_withheld_and_its_patients_are_told_nowhere(self) -> None:
        hidden = ScopeRecord("sex=F", 0, withheld=TOO_FEW)
        scopes = tuple(hidden if scope.scope == "sex=F" else scope for scope in RECORDS[0].scopes)
        found = analyse(PLAN, [replace(RECORDS[0], scopes=scopes), *RECORDS[1:]], seed=5).models[0].scopes[1]
        assert found.withheld[0].model_dump() == {"site": "a", "reason": TOO_FEW}
        assert (found.sites[0].patients, found.sites[0].figures) == (None, {})
        assert found.patients == sum(site.patients or 0 for site in found.sites[1:])
        assert found.figures["auc"].sites == 2

    def test_a_site_that_withholds_everything_is_no_site_of_zero_patients(self) -> None:
        silent = ValidationRecord("a", PLAN.sha256(), (ScopeRecord(EVERYBODY, 0, withheld=TOO_FEW),))
        result = analyse(PLAN, [silent, *RECORDS[1:]], seed=5)
        assert (result.sites[0].answered, result.sites[0].patients) == (True, None)
        assert any("withheld all figures: a" in one.sentence for one in result.verdicts)

    def test_with_nothing_told_every_part_is_empty_and_none_is_made_up(self) -> None:
        silent = ValidationRecord("a", PLAN.sha256(), (ScopeRecord(EVERYBODY, 0, withheld=TOO_FEW),))
        result = analyse(PLAN, [silent], seed=5)
        whole_ = result.models[0].scopes[0]
        assert whole_.figures == {}
        assert whole_.curves == ()
        assert result.comparisons[0].difference is None
        assert {one.enough for one in result.half_widths} == {None}
        assert "AUC is not known: no site told it." in [one.sentence for one in result.verdicts]

    def test_a_site_without_score_counts_still_counts_by_what_it_tells(self) -> None:
        figures = tuple(replace(one, scores={}) for one in RECORDS[0].scopes[0].models)
        scope = replace(RECORDS[0].scopes[0], models=figures, pair=None)
        found = analyse(PLAN, [replace(RECORDS[0], scopes=(scope,)), *RECORDS[1:]], seed=5).models[0].scopes[0]
        assert found.figures["auc"].sites == 2
        assert found.figures["brier"].sites == 3
        assert found.figures["brier"].patients == 180


class TestOtherTasks:
    def test_several_classes_have_a_mean_auc(self) -> None:
        plan = plan_for("three", ["a"])
        rng = np.random.default_rng(0)
        two = plan_for("classification", ["a"])
        scores = {
            name: decided(two, rng.random(30), (np.arange(30) % 3 == k).astype(np.int64)).scores["yes"]
            for k, name in enumerate(("low", "middle", "high"))
        }
        figures = ModelFigures(scores=scores, confusion=(5, 3, 2, 3, 4, 3, 2, 2, 6))
        found = analyse(plan, [record(plan, "a", whole(30, figures))], seed=0).models[0].scopes[0]
        areas = [found.figures[f"auc_{name}"].value or 0.0 for name in ("low", "middle", "high")]
        assert found.figures["macro_auc"].value == pytest.approx(sum(areas) / 3)
        assert found.figures["accuracy"].value == pytest.approx(0.5)
        assert [curve.label for curve in found.curves] == ["low", "middle", "high"]

    def test_a_label_that_nobody_told_leaves_no_mean(self) -> None:
        plan, two = plan_for("multilabel", ["a"]), plan_for("classification", ["a"])
        scores = decided(two, np.linspace(0, 1, 10), np.array([0, 1] * 5)).scores["yes"]
        figures = ModelFigures(scores={"oedema": scores})
        found = analyse(plan, [record(plan, "a", whole(10, figures))], seed=0).models[0].scopes[0]
        assert found.figures["macro_auc"].value is None
        assert found.figures["auc_oedema"].value is not None

    def test_a_segmentation_and_a_survival_have_no_curves(self) -> None:
        for task, figures in (
            ("segmentation", measured({"dice": np.array([0.5, 0.7])})),
            ("survival", ordered(np.array([1.0, 0.0]), np.array([1.0, 2.0]), np.array([True, False]))),
        ):
            plan = plan_for(task, ["a"])
            found = analyse(plan, [record(plan, "a", whole(2, figures))], seed=0)
            assert found.models[0].scopes[0].curves == ()
            assert found.task == task


class TestHostile:
    def test_records_are_checked_first(self) -> None:
        with pytest.raises(ReplyError, match="No site told"):
            analyse(PLAN, [], seed=0)
        with pytest.raises(ReplyError, match="of another plan"):
            analyse(PLAN, [replace(RECORDS[0], plan_sha256="0" * 64)], seed=0)

    def test_a_plan_that_trains_is_refused(self) -> None:
        with pytest.raises(DataError, match="no validation"):
            analyse(PLAN.model_copy(update={"validation": None}), RECORDS, seed=0)

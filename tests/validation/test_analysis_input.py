"""What sites told is checked and put in order before anything is computed."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from eucaim_fl.errors import DataError, ReplyError
from eucaim_fl.validation.analysis_input import asked_of, by_scope, figure_key, label_of, moments_of, scores_of
from eucaim_fl.validation.record import TOO_FEW, ModelFigures, PairFigures, ScopeRecord
from tests.validation.site_records import compared_models, decided, plan_for, record, whole

SCORES, TRUTH = np.array([0.1, 0.4, 0.6, 0.9]), np.array([0, 1, 0, 1])
PLAN = plan_for("classification", ["a", "b"], models=2, subgroups=[{"by": "age", "edges": [50, 70]}, {"by": "sex"}])
FIGURES = decided(PLAN, SCORES, TRUTH)
HALF = decided(PLAN, SCORES[:2], TRUTH[:2])
PAIR = compared_models(PLAN, SCORES, 1 - SCORES, TRUTH)
WHOLE = whole(4, FIGURES, FIGURES, pair=PAIR)


def with_figures(**changes: Any) -> ScopeRecord:
    return replace(WHOLE, models=(replace(FIGURES, **changes), FIGURES))


def with_pair(**changes: Any) -> ScopeRecord:
    return replace(WHOLE, pair=replace(PAIR, **changes))


class TestAsked:
    def test_labels_are_those_that_records_name(self) -> None:
        two, three = asked_of(plan_for("classification", ["a"])), asked_of(plan_for("three", ["a"]))
        assert (two.labels, two.names) == (("yes",), ("",))
        assert three.labels == three.names == ("low", "middle", "high")
        several = asked_of(plan_for("organs", ["a"]))
        assert (several.labels, several.moment_labels) == ((), ("liver", "lesion"))
        assert asked_of(plan_for("segmentation", ["a"])).moment_labels == ("",)
        assert asked_of(plan_for("multilabel", ["a"])).names == ("oedema", "nodule")

    def test_a_plan_that_trains_asks_for_nothing(self) -> None:
        training = PLAN.model_copy(update={"validation": None})
        with pytest.raises(DataError, match="no validation"):
            asked_of(training)
        with pytest.raises(DataError, match="no validation"):
            by_scope(training, [record(PLAN, "a", WHOLE)])

    def test_the_same_counts_are_checked_once_and_others_are_refused(self) -> None:
        asked = asked_of(plan_for("classification", ["a"], bins=10))
        assert asked.binned([1] * 10, [2] * 10) is asked.binned((1,) * 10, (2,) * 10)
        with pytest.raises(DataError, match="whole numbers"):
            asked.binned([-1] * 10, [2] * 10)


class TestNames:
    @pytest.mark.parametrize(
        ("task", "name", "expected"),
        [
            ("classification", "brier", ("brier", "")),
            ("classification", "brier_yes", ("brier", "")),
            ("multilabel", "brier_oedema", ("brier", "oedema")),
            ("organs", "hd95_mm_liver", ("hd95_mm", "liver")),
            ("organs", "hd95_mm", ("hd95_mm", "")),
            ("organs", "surface_dice_lesion", ("surface_dice", "lesion")),
            ("multilabel", "sensitivity@0.5_nodule", ("sensitivity@0.5", "nodule")),
        ],
    )
    def test_metric_and_label_come_apart(self, task: str, name: str, expected: tuple[str, str]) -> None:
        assert label_of(asked_of(plan_for(task, ["a"])), name) == expected

    def test_a_figure_has_one_name(self) -> None:
        assert figure_key("ppv", "", 0.05) == "ppv@0.05"
        assert figure_key("dice", "liver") == "dice_liver"


class TestScopes:
    def test_everybody_is_first_and_groups_come_as_the_plan_has_them(self) -> None:
        names = ("age<50", "age=50-70", "age>=70", "sex=F", "sex=M")
        half = replace(WHOLE, patients=2, models=(HALF, HALF), pair=None)
        scopes = {"all": WHOLE} | {name: replace(half, scope=name) for name in names}
        del scopes["age=50-70"]
        found = by_scope(PLAN, [record(PLAN, "b", scopes), record(PLAN, "a", WHOLE)])
        assert [scope.name for scope in found] == ["all", "age<50", "age>=70", "sex=F", "sex=M"]
        assert [site for site, _ in found[0].told] == ["a", "b"]
        assert found[0].patients == 8
        assert found[1].patients == 2

    def test_a_withheld_group_is_listed_and_never_counted(self) -> None:
        hidden = ScopeRecord("sex=F", 0, withheld=TOO_FEW)
        found = by_scope(PLAN, [record(PLAN, "a", {"all": WHOLE, "sex=F": hidden})])
        assert found[1].told == ()
        assert found[1].patients == 0
        assert found[1].withheld == (("a", TOO_FEW),)

    def test_what_a_site_does_not_tell_is_left_out(self) -> None:
        found = by_scope(PLAN, [record(PLAN, "a", WHOLE), record(PLAN, "b", whole(4, ModelFigures(), ModelFigures()))])
        told = [figures for _, figures in found[0].of_model(0)]
        asked = asked_of(PLAN)
        assert len(told) == 2
        assert len(scores_of(asked, told, "yes")) == len(moments_of(told, "brier")) == 1
        assert len(found[0].pairs()) == 1


class TestHostile:
    @pytest.mark.parametrize(
        "scope",
        [
            replace(WHOLE, withheld="because"),
            replace(WHOLE, models=(FIGURES,)),
            replace(WHOLE, patients=-1),
            with_figures(scores={"maybe": FIGURES.scores["yes"]}),
            with_figures(moments={"brier": (4.0, math.nan, 1.0)}),
            with_figures(confusion=(9, 9, 9, 9)),
            with_pair(auc={"yes": (0.5, math.inf)}),
        ],
    )
    def test_figures_that_no_patients_can_have_are_refused_by_the_sites_name(self, scope: ScopeRecord) -> None:
        with pytest.raises(ReplyError, match="A record of 'b' can't be used"):
            by_scope(PLAN, [record(PLAN, "a", WHOLE), record(PLAN, "b", scope)])

    def test_records_of_others_are_refused(self) -> None:
        good = record(PLAN, "a", WHOLE)
        with pytest.raises(ReplyError, match="No site told"):
            by_scope(PLAN, [])
        with pytest.raises(ReplyError, match="two records of 'a'"):
            by_scope(PLAN, [good, good])
        with pytest.raises(ReplyError, match="of a site that the plan does not name can't"):
            by_scope(PLAN, [replace(good, site="z")])
        with pytest.raises(ReplyError, match="of another plan"):
            by_scope(PLAN, [replace(good, plan_sha256="0" * 64)])

    def test_a_pair_without_anything_is_fine(self) -> None:
        found = by_scope(PLAN, [record(PLAN, "a", replace(WHOLE, pair=PairFigures()))])
        assert found[0].pairs() == [("a", PairFigures())]

"""Patients' results to a site's sums: by hand, by scikit-learn, and additive over parts of the patients."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import brier_score_loss, confusion_matrix, recall_score, roc_auc_score

from eucaim_fl.errors import DataError
from eucaim_fl.validation.binned import BinnedScores, auc_bounds, edges_with
from eucaim_fl.validation.patient_figures import (
    known,
    members_of,
    patient_values,
    scope_record,
    validation_record,
)
from eucaim_fl.validation.record import EVERYBODY, ModelFigures, ScopeRecord, check_record
from eucaim_fl.validation.thresholds import at_threshold
from tests.validation.frozen import CLASSES, LABELS, MASKS, SURVIVAL, THREE, any_results, frozen_plan

ADDITIVE = (MASKS, CLASSES, THREE, LABELS)
SEX = [{"by": "sex"}]


def plus(one: ModelFigures, other: ModelFigures) -> ModelFigures:
    """Sums of two parts of the patients together."""

    def add(a: Any, b: Any) -> Any:
        if isinstance(a, dict):
            return {
                name: add(a[name], b[name]) if name in a and name in b else a.get(name, b.get(name)) for name in a | b
            }
        return tuple(add(x, y) for x, y in zip(a, b, strict=True)) if isinstance(a, tuple) else a + b

    fields = ("scores", "confusion", "moments", "lesions", "undefined")
    return ModelFigures(**{name: add(getattr(one, name), getattr(other, name)) for name in fields})


def near(one: ModelFigures, other: ModelFigures) -> bool:
    """Whether counts are the same, and sums up to the last bits."""
    counts = all(getattr(one, name) == getattr(other, name) for name in ("scores", "confusion", "lesions", "undefined"))
    sums = {name: pytest.approx(numbers, rel=1e-12) for name, numbers in other.moments.items()}
    return counts and dict(one.moments) == sums


class TestValidationRecord:
    @settings(max_examples=40, deadline=None)
    @given(st.sampled_from(ADDITIVE), st.integers(1, 30), st.integers(1, 30), st.integers(0, 10**6))
    def test_the_sums_of_pooled_patients_are_those_of_the_parts(self, task, first, second, seed):
        plan = frozen_plan(task, models=2)
        parts = [any_results(plan, first, seed), any_results(plan, second, seed + 1, start=500)]
        pooled = [{**a, **b} for a, b in zip(*parts, strict=True)]
        one, other, both = (validation_record("a", plan, own, {}).scopes[0] for own in (*parts, pooled))
        assert both.patients == one.patients + other.patients
        for a, b, c in zip(one.models, other.models, both.models, strict=True):
            assert near(c, plus(a, b))
        pairs = [ModelFigures(lesions=scope.pair.agreement, moments=scope.pair.differences) for scope in (one, other)]
        assert near(ModelFigures(lesions=both.pair.agreement, moments=both.pair.differences), plus(*pairs))

    @settings(max_examples=30, deadline=None)
    @given(st.sampled_from((*ADDITIVE, SURVIVAL)), st.integers(1, 30), st.randoms())
    def test_the_order_of_patients_changes_no_bit(self, task, patients, random):
        plan = frozen_plan(task, models=2)
        results = any_results(plan, patients)
        names = list(results[0])
        random.shuffle(names)
        mixed = [{name: one[name] for name in names} for one in results]
        assert validation_record("a", plan, mixed, {}) == validation_record("a", plan, results, {})

    @settings(max_examples=30, deadline=None)
    @given(st.sampled_from((*ADDITIVE, SURVIVAL)), st.integers(1, 40), st.integers(0, 10**6))
    def test_it_is_one_that_a_site_can_have_told_and_groups_add_up_to_everybody(self, task, patients, seed):
        plan = frozen_plan(task, models=2, subgroups=SEX, thresholds=[0.25, 0.5])
        results = any_results(plan, patients, seed)
        groups = {name: {f"sex={'FMO'[n % 3]}"} for n, name in enumerate(results[0])}
        record = validation_record("a", plan, results, groups, {"timed_out": 2})
        check_record(record, plan)
        everybody, *each = record.scopes
        assert everybody.scope == EVERYBODY
        assert sum(one.patients for one in each) == everybody.patients == patients
        assert record.failed == {"timed_out": 2}

    def test_two_classes_by_hand(self):
        plan = frozen_plan(CLASSES, models=2, thresholds=[0.25, 0.5])
        truth, first, second = (0, 0, 1, 1), (0.2, 0.5, 0.3, 1.0), (0.6, 0.1, 0.3, 0.2)
        results = [
            {
                f"p{n}": {"probabilities": (1 - p, p), "truth": y}
                for n, (p, y) in enumerate(zip(each, truth, strict=True))
            }
            for each in (first, second)
        ]
        scope = validation_record("a", plan, results, {}).scopes[0]
        edges = edges_with([0.25, 0.5], 10)
        assert len(edges) == 12
        figures = scope.models[0]
        places = [[k for k, n in enumerate(side) for _ in range(n)] for side in figures.scores["yes"]]
        assert [[edges[k] for k in side] for side in places] == [[0.2, 0.5], [0.3, 0.9]]
        assert figures.confusion == (2, 0, 1, 1)  # of two equally likely classes the first one
        assert figures.moments["brier"] == pytest.approx((4, 0.04 + 0.25 + 0.49, 0.04**2 + 0.25**2 + 0.49**2))
        assert scope.pair.agreement == {
            "0.25 without": (0, 1, 1, 0),
            "0.25 with": (1, 1, 0, 0),
            "0.5 without": (0, 1, 1, 0),
            "0.5 with": (0, 1, 0, 1),
        }
        assert scope.pair.auc["yes"][0] == 0.75 - 0.5
        assert scope.pair.differences["brier"][:2] == pytest.approx((4, 0.78 - (0.36 + 0.01 + 0.49 + 0.64)))

    def test_two_classes_by_scikit_learn(self):
        plan = frozen_plan(CLASSES, models=2, thresholds=[0.3, 0.7], bins=50)
        results = any_results(plan, 200, seed=3)
        scope = validation_record("a", plan, results, {}).scopes[0]
        truth = np.array([one["truth"] for one in results[0].values()])
        scores = [np.array([one["probabilities"][1] for one in each.values()]) for each in results]
        for values, figures in zip(scores, scope.models, strict=True):
            assert figures.confusion == tuple(confusion_matrix(truth, values > 0.5).ravel())
            assert figures.moments["brier"][1] / 200 == pytest.approx(brier_score_loss(truth, values))
            binned = BinnedScores(edges_with([0.3, 0.7], 50), *figures.scores["yes"])
            bounds = auc_bounds(binned)
            assert bounds.lowest <= roc_auc_score(truth, values) <= bounds.highest
            for threshold in (0.3, 0.7):
                told = at_threshold(binned, threshold).figures["sensitivity"].estimate
                assert told == pytest.approx(recall_score(truth, values >= threshold))
        areas = [roc_auc_score(truth, values) for values in scores]
        assert scope.pair.auc["yes"][0] == pytest.approx(areas[0] - areas[1])

    def test_each_of_three_classes_is_counted_against_the_others(self):
        plan = frozen_plan(THREE)
        results = any_results(plan, 90, seed=1)
        figures = validation_record("a", plan, results, {}).scopes[0].models[0]
        truth = np.array([one["truth"] for one in results[0].values()])
        for k, name in enumerate("abc"):
            assert [sum(side) for side in figures.scores[name]] == [int((truth != k).sum()), int((truth == k).sum())]

    def test_a_label_is_counted_over_those_of_whom_it_is_known(self):
        plan = frozen_plan(LABELS)
        results = [
            {
                "p": {"probabilities": (0.1, 0.9), "truth": (0.0, math.nan)},
                "q": {"probabilities": (0.7, 0.2), "truth": (1.0, math.nan)},
            }
        ]
        figures = validation_record("a", plan, results, {}).scopes[0].models[0]
        assert set(figures.scores) == {"mass"}
        assert figures.moments == {"brier_mass": pytest.approx((2.0, 0.1, 0.0082))}
        assert figures.undefined == {}

    def test_a_segmentation_by_hand(self):
        plan = frozen_plan(MASKS)
        one = {"found_ml": 2.0, "true_ml": 3.0, "lesions_true": 2, "lesions_found": 1, "lesions_false": 4}
        results = [{"p": {"dice": 0.5, **one}, "q": {"dice": math.nan, **one}}]
        figures = validation_record("a", plan, results, {}).scopes[0].models[0]
        assert figures.moments == {"dice": (1.0, 0.5, 0.25), "volume_difference_ml": (2.0, -2.0, 2.0)}
        assert figures.undefined == {"dice": 1}
        assert figures.lesions == {"lesion": (4, 2, 8, 2)}

    def test_survival_pairs_by_hand(self):
        plan = frozen_plan(SURVIVAL)
        rows = {"p": (3.0, 1, True), "q": (1.0, 2, True), "r": (2.0, 3, False)}
        results = [{name: {"log_risk": risk, "time": t, "event": e} for name, (risk, t, e) in rows.items()}]
        assert validation_record("a", plan, results, {}).scopes[0].models[0].concordance == (1, 2, 2, 0, 3)

    def test_models_with_other_patients_are_refused(self):
        plan = frozen_plan(CLASSES, models=2)
        with pytest.raises(DataError, match="of the same patients"):
            validation_record("a", plan, [any_results(plan, 3)[0], any_results(plan, 4)[0]], {})

    def test_a_plan_that_trains_is_refused(self):
        plan = frozen_plan().model_copy(update={"validation": None})
        with pytest.raises(DataError, match="asks for no validation"):
            validation_record("a", plan, [], {})


class TestScopeRecord:
    def test_nobody_has_figures_of_nobody(self):
        plan = frozen_plan(MASKS)
        assert scope_record("all", plan, [{}]) == ScopeRecord("all", 0, (ModelFigures(),))

    @pytest.mark.parametrize(
        ("task", "result", "reason"),
        [
            (CLASSES, {"probabilities": (0.5, 0.5)}, "not those of the task"),
            (CLASSES, {"probabilities": (0.5, 0.5), "truth": 2}, "not those of the task"),
            (CLASSES, {"probabilities": (0.2, 0.2, 0.6), "truth": 1}, "one probability for each"),
            (CLASSES, {"probabilities": (-0.5, 1.5), "truth": 1}, "between 0 and 1"),
            (LABELS, {"probabilities": (math.nan, 1), "truth": (1, 1)}, "between 0 and 1"),
            (MASKS, {"dice": math.inf}, "infinite"),
            (MASKS, {"dice": "much"}, "not those of the task"),
            (SURVIVAL, {"log_risk": math.nan, "time": 1, "event": True}, "not finite"),
        ],
    )
    def test_results_of_something_else_are_refused_without_quoting_them(self, task, result, reason):
        with pytest.raises(DataError, match=reason) as caught:
            scope_record("all", frozen_plan(task), [{"Mary": result}])
        assert "Mary" not in str(caught.value)

    def test_other_truths_of_the_same_patients_are_refused(self):
        plan = frozen_plan(CLASSES, models=2)
        one = {"p": {"probabilities": (0.5, 0.5), "truth": 0}}
        with pytest.raises(DataError, match="other truths"):
            scope_record("all", plan, [one, {"p": {**one["p"], "truth": 1}}])


class TestMembersOf:
    PLAN = frozen_plan(subgroups=SEX)

    def test_every_scope_of_the_plan_is_there_in_order(self):
        found = members_of(["p", "q"], {"p": {"sex=M"}, "q": {"sex=M"}}, self.PLAN)
        assert list(found) == ["all", "sex=F", "sex=M", "sex=O", "sex=unknown"]
        assert found["sex=M"] == found["all"] == {"p", "q"}

    @pytest.mark.parametrize("groups", [{}, {"p": {"sex=F", "sex=M"}}])
    def test_none_or_two_groups_of_a_rule_are_refused(self, groups):
        with pytest.raises(DataError, match="exactly one group by sex"):
            members_of(["p"], groups, self.PLAN)

    def test_a_group_that_the_plan_does_not_have_is_refused(self):
        with pytest.raises(DataError, match="does not have"):
            members_of(["p"], {"p": {"sex=F", "ward=7"}}, self.PLAN)


class TestPatientValues:
    def test_a_volume_is_found_less_true(self):
        values = patient_values({"found_ml": 1.0, "true_ml": 3.5, "dice": math.nan}, frozen_plan(MASKS).task)
        assert values["volume_difference_ml"] == -2.5
        assert math.isnan(values["dice"])
        assert "hd95_mm" not in values

    def test_what_is_no_probability_is_refused(self):
        with pytest.raises(DataError, match="between 0 and 1"):
            patient_values({"probabilities": (0.9, 0.9), "truth": 1}, frozen_plan(CLASSES).task)


class TestKnown:
    def test_a_label_can_be_unknown_and_a_class_never_is(self):
        labels, classes = frozen_plan(LABELS).task, frozen_plan(CLASSES).task
        one = {"truth": (1.0, math.nan)}
        assert [known(one, name, labels) for name in ("mass", "oedema")] == [True, None]
        assert [known({"truth": k}, "yes", classes) for k in (0, 1)] == [False, True]

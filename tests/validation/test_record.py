"""What arrives of a validation is refused unless patients can have it."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from eucaim_fl.errors import ReplyError
from eucaim_fl.validation.patient_figures import validation_record
from eucaim_fl.validation.record import (
    TOO_FEW,
    ScopeRecord,
    ValidationRecord,
    agreement_key,
    check_record,
    moment_ranges,
    score_names,
)
from tests.validation.frozen import CLASSES, LABELS, MASKS, SURVIVAL, THREE, any_results, frozen_plan

PLANS = {
    name: frozen_plan(task, models=2, subgroups=[{"by": "sex"}])
    for name, task in {"masks": MASKS, "two": CLASSES, "three": THREE, "labels": LABELS, "survival": SURVIVAL}.items()
}


def record_of(name: str) -> ValidationRecord:
    plan = PLANS[name]
    results = any_results(plan, 40)
    groups = {patient: {"sex=F" if n % 2 else "sex=M"} for n, patient in enumerate(results[0])}
    return validation_record("a", plan, results, groups, {"crashed": 1})


RECORDS = {name: record_of(name) for name in PLANS}


def scope(**changes: Any) -> Callable[[ValidationRecord], ValidationRecord]:
    """The record with another first scope."""
    return lambda record: replace(record, scopes=(replace(record.scopes[0], **changes), *record.scopes[1:]))


def model(**changes: Any) -> Callable[[ValidationRecord], ValidationRecord]:
    """The record in which the first model has other figures of everybody; a function changes what is there."""

    def change(record: ValidationRecord) -> ValidationRecord:
        first, *others = record.scopes[0].models
        values = {k: v(getattr(first, k)) if callable(v) else v for k, v in changes.items()}
        return scope(models=(replace(first, **values), *others))(record)

    return change


def pair(**changes: Any) -> Callable[[ValidationRecord], ValidationRecord]:
    """The record with another comparison."""

    def change(record: ValidationRecord) -> ValidationRecord:
        given = record.scopes[0].pair
        values = {k: {**getattr(given, k), **v} for k, v in changes.items()}
        return scope(pair=replace(given, **values))(record)

    return change


def moved(counts: tuple[int, ...]) -> tuple[int, ...]:
    """As many, but the first cell has one more and the last one fewer."""
    return (counts[0] + 1, *counts[1:-1], counts[-1] - 1)


def one_more(scores: Any) -> Any:
    name, (negative, positive) = next(iter(scores.items()))
    return {**scores, name: ((negative[0] + 1, *negative[1:]), positive)}


def other_side(scores: Any) -> Any:
    """One patient of the first class or label changes sides."""
    name, (negative, positive) = next(iter(scores.items()))
    k = next(k for k, n in enumerate(negative) if n)
    less = tuple(n - (i == k) for i, n in enumerate(negative))
    return {**scores, name: (less, tuple(n + (i == k) for i, n in enumerate(positive)))}


ROW = (0.0,) * 9

WRONG: list[tuple[str, Callable[[ValidationRecord], ValidationRecord], str]] = [
    ("two", lambda r: replace(r, plan_sha256="0" * 64), "another plan"),
    ("two", lambda r: replace(r, site="elsewhere"), "another plan, or of a site"),
    ("two", lambda r: replace(r, failed={"Mary Smith": 1}), "no word of the agreed form"),
    ("two", lambda r: replace(r, failed={f"r{n}": 1 for n in range(33)}), "no word of the agreed form"),
    ("two", lambda r: replace(r, failed={"crashed": -1}), "whole numbers from 0"),
    ("two", lambda r: replace(r, failed={"crashed": True}), "whole numbers from 0"),
    ("two", lambda r: replace(r, failed={"crashed": "1"}), "whole numbers from 0"),
    ("two", lambda r: replace(r, scopes=()), "each once and in its order"),
    ("two", lambda r: replace(r, scopes=r.scopes[1:]), "each once and in its order"),
    ("two", lambda r: replace(r, scopes=r.scopes[:1] * 2), "each once and in its order"),
    ("two", lambda r: replace(r, scopes=(r.scopes[0], *r.scopes[:0:-1])), "each once and in its order"),
    ("two", lambda r: replace(r, scopes=(*r.scopes, ScopeRecord("ward=7", 1))), "each once and in its order"),
    ("two", scope(scope="sex=O"), "each once and in its order"),
    ("two", scope(withheld="because Mary"), "not on the list"),
    ("two", scope(withheld=TOO_FEW), "withheld, and told of"),
    ("two", lambda r: replace(r, scopes=(*r.scopes[:1], ScopeRecord("sex=F", 3, withheld=TOO_FEW))), "told of"),
    ("two", lambda r: replace(r, scopes=(ScopeRecord("all", 0, withheld=TOO_FEW), *r.scopes[1:])), "more patients"),
    ("two", scope(patients=0), "has no patients"),
    ("two", scope(patients=2.5), "whole numbers from 0"),
    ("two", scope(patients=math.nan), "whole numbers from 0"),
    ("two", scope(patients=2**60), "whole numbers from 0"),
    ("two", scope(models=()), "one set of figures for each model"),
    ("two", scope(patients=41), "not those of the scope's patients"),
    ("two", model(scores={"Mary": ((0,), (0,))}), "name that the plan does not ask for"),
    ("two", model(scores={"yes": ((40,), (0,))}), "other bins"),
    ("two", model(scores=one_more), "not those of the scope's patients"),
    ("two", model(scores=other_side), "of different patients"),
    ("two", model(scores=other_side, confusion=()), "different classes"),
    ("two", model(confusion=(40, 0, 0)), "wrong size"),
    ("two", model(confusion=(10, 10, 10, 9)), "not those of the scope's patients"),
    ("two", model(confusion=(40.5, -0.5, 0, 0)), "whole numbers from 0"),
    ("two", model(confusion=moved), "of different patients"),
    ("two", model(moments={"dice": (40.0, 1.0, 1.0)}), "name that the plan does not ask for"),
    ("two", model(moments={"brier": (40.0, 41.0, 50.0)}), "No patients have such moments"),
    ("two", model(moments={"brier": (40.0, 20.0, 9.0)}), "No patients have such moments"),
    ("two", model(moments={"brier": (40.0, 20.0, 21.0)}), "No patients have such moments"),
    ("two", model(moments={"brier": (40.0, math.nan, 21.0)}), "all finite"),
    ("two", model(moments={"brier": (40.0, 20.0)}), "all finite"),
    ("two", model(moments={"brier": (41.0, 20.0, 20.0)}), "more patients than there are"),
    ("two", model(moments={"brier": (39.0, 20.0, 20.0)}), "with and without a figure"),
    ("two", model(undefined={"dice": 1}), "name that the plan does not ask for"),
    ("two", model(lesions={"yes": (1, 1, 1, 1)}), "name that the plan does not ask for"),
    ("two", model(concordance=(20, 20, 1, 0, 2)), "pairs of a task that asks for none"),
    ("two", pair(agreement={"0.5 maybe": (1, 1, 1, 1)}), "name that the plan does not ask for"),
    ("two", pair(agreement={"0.5 with": (1, 1, 1)}), "four counts"),
    ("two", pair(agreement={"0.5 with": (1, 1, 1, 1)}), "not of the scope's patients"),
    ("two", pair(differences={"brier": (40.0, 41.0, 50.0)}), "No patients have such moments"),
    ("two", pair(differences={"dice": (40.0, 1.0, 1.0)}), "name that the plan does not ask for"),
    ("two", pair(auc={"yes": (1.1, 0.1)}), "out of its range"),
    ("two", pair(auc={"yes": (0.1, -0.1)}), "out of its range"),
    ("two", pair(auc={"yes": (0.1, math.nan)}), "out of its range"),
    ("two", pair(auc={"no": (0.1, 0.1)}), "name that the plan does not ask for"),
    ("three", model(scores=other_side), "of different patients"),
    ("labels", model(scores=one_more), "figures are of different patients"),
    ("labels", model(scores={"mass": ((41, *ROW), (0, *ROW))}), "not those of the scope's patients"),
    ("labels", model(undefined={"brier_mass": 1}), "figures are of different patients"),
    ("labels", model(confusion=(40, 0, 0, 0)), "wrong size"),
    ("masks", model(moments={"dice": (40.0, 20.0, 21.0)}, undefined={}), "No patients have such moments"),
    ("masks", model(moments={"hd95_mm": (40.0, -1.0, 1.0)}, undefined={}), "No patients have such moments"),
    ("masks", model(moments={"volume_difference_ml": (40.0, -40.0, 39.0)}, undefined={}), "No patients have such"),
    ("masks", model(moments={"dice": (0.0, 0.0, 1.0)}, undefined={"dice": 40}), "No patients have such moments"),
    ("masks", model(undefined={}), "with and without a figure"),
    ("masks", model(lesions={"liver": (1, 1, 1, 1)}), "name that the plan does not ask for"),
    ("masks", model(lesions={"lesion": (1, 2, 1, 1)}), "such lesions"),
    ("masks", model(lesions={"lesion": (2, 1, 1, 41)}), "such lesions"),
    ("masks", model(lesions={"lesion": (2, 1, 1, 0)}), "such lesions"),
    ("masks", model(lesions={"lesion": (2, 1, 1)}), "wrong number of counts"),
    ("masks", pair(auc={"lesion": (0.1, 0.1)}), "name that the plan does not ask for"),
    ("survival", model(concordance=(20, 20, 10, 0)), "not five"),
    ("survival", model(concordance=(20, 19, 1, 0, 2)), "not those of 40 patients"),
    ("survival", model(concordance=(20, 20, 10, 0, 1000)), "form such pairs"),
    ("survival", model(concordance=(20, 20, math.nan, 0, 10)), "not finite"),
    ("survival", model(concordance=(30, 10, 1, 0, 2)), "different events"),
]


class TestCheckRecord:
    @pytest.mark.parametrize("name", PLANS)
    def test_a_true_record_passes_and_so_does_one_of_which_all_is_withheld(self, name):
        check_record(RECORDS[name], PLANS[name])
        nothing = tuple(ScopeRecord(one.scope, 0, withheld=TOO_FEW) for one in RECORDS[name].scopes)
        check_record(replace(RECORDS[name], scopes=nothing), PLANS[name])

    @pytest.mark.parametrize(("name", "change", "reason"), WRONG, ids=[f"{n}-{k}" for k, (n, _, _) in enumerate(WRONG)])
    def test_anything_else_is_refused_and_not_quoted(self, name, change, reason):
        with pytest.raises(ReplyError, match=reason) as caught:
            check_record(change(RECORDS[name]), PLANS[name])
        assert "Mary" not in str(caught.value)

    def test_a_plan_that_asks_for_no_validation_has_no_records(self):
        with pytest.raises(ReplyError, match="asks for none"):
            check_record(RECORDS["two"], PLANS["two"].model_copy(update={"validation": None}))

    def test_a_comparison_of_one_model_is_refused(self):
        plan = frozen_plan(CLASSES)
        alone = validation_record("a", plan, any_results(plan, 40), {})
        check_record(alone, plan)
        paired = scope(pair=RECORDS["two"].scopes[0].pair)(alone)
        with pytest.raises(ReplyError, match="no second model"):
            check_record(paired, plan)

    def test_groups_that_each_hold_nearly_everybody_are_refused(self):
        record = RECORDS["survival"]
        three = [replace(record.scopes[0], scope=name) for name in ("sex=F", "sex=M", "sex=O")]
        with pytest.raises(ReplyError, match="more patients together"):
            check_record(replace(record, scopes=(record.scopes[0], *three)), PLANS["survival"])


class TestNames:
    def test_scores_are_of_the_positive_class_of_all_classes_or_of_labels(self):
        names = {name: score_names(plan.task) for name, plan in PLANS.items()}
        assert names["two"] == ("yes",)
        assert names["three"] == ("a", "b", "c")
        assert names["labels"] == ("mass", "oedema")
        assert names["masks"] == names["survival"] == ()

    def test_several_labels_have_their_names_behind_metrics(self):
        task = frozen_plan({"name": "segmentation", "labels": ["liver", "lesion"]}).task
        assert {"dice", "dice_liver", "volume_difference_ml_lesion"} <= set(moment_ranges(task))
        assert set(moment_ranges(PLANS["masks"].task)) == {"dice", "hd95_mm", "surface_dice", "volume_difference_ml"}

    def test_a_paired_table_names_the_class_where_there_are_several(self):
        assert agreement_key(PLANS["three"].task, 0.5, "with", "b") == "0.5 with b"
        assert agreement_key(PLANS["two"].task, 0.125, "without", "yes") == "0.125 without"


class TestWhatIsSaidBeside:
    @pytest.mark.parametrize("changes", [{"told_before": 3}, {"data_is": "synthetic"}, {"data_is": ""}], ids=str)
    def test_plans_before_and_the_kind_of_data_may_be_told(self, changes):
        check_record(replace(RECORDS["two"], **changes), PLANS["two"])

    @pytest.mark.parametrize(
        "changes",
        [{"told_before": -1}, {"told_before": 0.5}, {"told_before": True}, {"told_before": 2_000_000},
         {"told_before": math.nan}, {"data_is": "mine"}],
        ids=str,
    )  # fmt: skip
    def test_what_can_not_be_is_refused(self, changes):
        with pytest.raises(ReplyError, match=r"what can't be|not whole numbers"):
            check_record(replace(RECORDS["two"], **changes), PLANS["two"])

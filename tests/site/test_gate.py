"""The gate lets a good answer pass and refuses each thing that must not leave, one by one."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from eucaim_fl.arrays import Arrays
from eucaim_fl.config import ClassificationConfig, SegmentationConfig
from eucaim_fl.plan import FederationPlan
from eucaim_fl.records import ArraySpec
from eucaim_fl.site.gate import refusals
from eucaim_fl.site.node import Answer
from eucaim_fl.site.report import SiteReport
from eucaim_fl.sitefile import ReleaseConfig

SPECS = (ArraySpec("steps", (), "int64", False), ArraySpec("weight", (2, 3), "float32", True))
OPEN = ReleaseConfig(data_is="public", score_histograms=True)
STRICT = ReleaseConfig()
CLASSES = ClassificationConfig(target="malignant", classes=("no", "yes"))


def update(**changes: Any) -> Arrays:
    return {"steps": np.array(3), "weight": np.ones((2, 3), np.float32), **changes}


def answer(training: int = 10, pictures: Any = None, **metrics: Any) -> Answer:
    """An answer with an update of ten training patients, and metrics over five validation patients."""
    measured = {"split": "validation", "patients": 5, "values": {"dice": 0.5}, "sums": {"dice": (5.0, 2.5, 1.25)}}
    report = SiteReport.model_validate(
        {
            "kind": "round",
            "site": "a",
            "plan_sha256": "0" * 64,
            "cohort_sha256": "1" * 64,
            "round": 1,
            "patients": training,
            "metrics": ({**measured, **metrics},),
        }
    )
    return Answer(report, update(), pictures)


@pytest.fixture
def plan(plan_for: Callable[..., FederationPlan]) -> FederationPlan:
    return plan_for()


class TestAGoodAnswer:
    def test_it_passes(self, plan: FederationPlan) -> None:
        assert refusals(answer(), plan, SPECS, STRICT) == ()

    def test_an_answer_without_update_passes(self, plan: FederationPlan) -> None:
        assert refusals(replace(answer(), update={}), plan, SPECS, STRICT) == ()

    def test_withheld_metrics_pass(self, plan: FederationPlan) -> None:
        good = answer(values={}, sums={}, withheld="too_few_patients")
        assert refusals(good, plan, SPECS, STRICT) == ()

    def test_every_metric_of_the_tasks_passes(self, plan_for: Callable[..., FederationPlan]) -> None:
        labels = SegmentationConfig(labels=("liver", "lesion"))
        seen = {f"{kind}{end}": 0.5 for kind in ("dice", "hd95_mm") for end in ("", "_liver", "_lesion")}
        assert refusals(answer(values=seen), plan_for(labels), SPECS, STRICT) == ()
        values = {"auc": 0.5, "balanced_accuracy": 0.5, "brier": 0.1}
        sums = {"confusion": (5.0,), "scores_1_negative": (9.0,), "scores_1_positive": (4.0,), "brier": (9.0,)}
        assert refusals(answer(values=values, sums=sums), plan_for(CLASSES), SPECS, OPEN) == ()

    @pytest.mark.parametrize("data_is", ["public", "synthetic"])
    def test_pictures_of_data_that_may_be_shown_pass(self, plan: FederationPlan, data_is: Any) -> None:
        good = answer(pictures=np.zeros((1, 2, 2, 3), np.uint8))
        assert refusals(good, plan, SPECS, ReleaseConfig(data_is=data_is)) == ()


class TestTheUpdate:
    @pytest.mark.parametrize(
        ("changed", "reason"),
        [
            ({"steps": np.array(3)}, "other arrays than"),
            (update(patient_007=np.zeros(1)), "other arrays than"),
            (update(weight=np.ones((3, 2), np.float32)), "'weight' has another shape or type"),
            (update(weight=np.ones((1, 2, 3), np.float32)), "'weight' has another shape or type"),
            (update(weight=np.ones((2, 3), np.float64)), "'weight' has another shape or type"),
            (update(steps=np.array([3])), "'steps' has another shape or type"),
            (update(steps=np.array(3.0)), "'steps' has another shape or type"),
            (update(weight=np.full((2, 3), np.nan, np.float32)), "'weight' is not finite"),
            (update(weight=np.full((2, 3), -np.inf, np.float32)), "'weight' is not finite"),
        ],
    )
    def test_what_is_not_the_plans_is_refused(self, plan: FederationPlan, changed: Arrays, reason: str) -> None:
        reasons = refusals(replace(answer(), update=changed), plan, SPECS, STRICT)
        assert len(reasons) == 1
        assert reason in reasons[0]
        assert "007" not in reasons[0]


class TestPeople:
    def test_too_few_training_patients_are_refused(self, plan: FederationPlan) -> None:
        assert refusals(answer(training=9), plan, SPECS, STRICT) == ("fewer training patients than the site's minimum",)

    @pytest.mark.parametrize("patients", [1, 4])
    def test_a_metric_over_too_few_patients_is_refused(self, plan: FederationPlan, patients: int) -> None:
        reasons = refusals(answer(patients=patients), plan, SPECS, STRICT)
        assert reasons == ("a metric over fewer patients than the site's minimum",)

    @pytest.mark.parametrize("empty", [{"sums": {}}, {"values": {}}])
    def test_a_metric_without_patients_is_refused(self, plan: FederationPlan, empty: dict[str, Any]) -> None:
        bad = answer(patients=0, **empty)
        assert refusals(bad, plan, SPECS, STRICT) == ("a metric without patients",)


class TestDefined:
    def test_a_mean_that_is_defined_for_too_few_patients_is_refused(self, plan: FederationPlan) -> None:
        reasons = refusals(answer(values={"dice": 0.5}, sums={"dice": (2.0, 1.0, 0.5)}), plan, SPECS, STRICT)
        assert reasons == ("a metric that is defined for fewer patients than the site's minimum",)


class TestMetrics:
    @pytest.mark.parametrize("name", ["dice_007", "hd95_mm_john_doe", "auc", "brier"])
    @pytest.mark.parametrize("kind", ["values", "sums"])
    def test_a_name_that_the_task_does_not_have_is_refused_and_not_repeated(
        self, plan: FederationPlan, name: str, kind: str
    ) -> None:
        bad = answer(**{kind: {name: 0.5 if kind == "values" else (9.0,)}})
        assert refusals(bad, plan, SPECS, OPEN) == ("a metric that is not on the list",)

    @pytest.mark.parametrize("name", ["dice", "scores_2_positive"])
    def test_a_classification_sends_no_dice_and_no_class_that_it_does_not_have(
        self, plan_for: Callable[..., FederationPlan], name: str
    ) -> None:
        bad = answer(values={}, sums={name: (9.0,)})
        assert refusals(bad, plan_for(CLASSES), SPECS, OPEN) == ("a metric that is not on the list",)

    def test_histograms_need_the_site_files_leave(self, plan_for: Callable[..., FederationPlan]) -> None:
        shy = answer(values={}, sums={"scores_1_positive": (9.0,)})
        assert refusals(shy, plan_for(CLASSES), SPECS, OPEN) == ()
        reasons = refusals(shy, plan_for(CLASSES), SPECS, STRICT)
        assert reasons == ("score histograms, which the site file does not permit",)


class TestPictures:
    def test_those_of_confidential_data_are_refused(self, plan: FederationPlan) -> None:
        bad = answer(pictures=np.zeros((1, 2, 2, 3), np.uint8))
        assert refusals(bad, plan, SPECS, STRICT) == ("pictures of confidential data",)


class TestSeveralFaults:
    def test_all_reasons_are_given(self, plan: FederationPlan) -> None:
        bad = replace(
            answer(training=1, values={"auc": 0.5}, pictures=np.zeros((1, 2, 2, 3))), update={"x": np.zeros(1)}
        )
        assert len(refusals(bad, plan, SPECS, STRICT)) == 4

"""The gate lets a good answer pass and refuses each thing that must not leave, one by one."""

from __future__ import annotations

import math
import re
import tracemalloc
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from eucaim_fl.arrays import Arrays
from eucaim_fl.config import ClassificationConfig, SegmentationConfig
from eucaim_fl.plan import FederationPlan
from eucaim_fl.records import ArraySpec
from eucaim_fl.site.answers import Answer
from eucaim_fl.site.disclosure import WITHHELD, LeastPeople, coarse, rounded
from eucaim_fl.site.gate import default_bounds, least_of, refusals, update_norm
from eucaim_fl.site.report import SiteReport
from eucaim_fl.sitefile import ReleaseConfig

SPECS = (ArraySpec("steps", (), "int64", False), ArraySpec("weight", (2, 3), "float32", True))
OPEN = default_bounds(ReleaseConfig(data_is="public", score_histograms=True))
STRICT = default_bounds(ReleaseConfig())
CLASSES = ClassificationConfig(target="malignant", classes=("no", "yes"))
DICE = {"values": {"dice": 0.5}, "sums": {"dice": (5.0, 2.5, 1.25)}}
CLASSIFIED = {
    "patients": 20,
    "values": {"auc": 0.5, "balanced_accuracy": 0.5, "brier": 0.5},
    "sums": {
        "confusion": (5.0, 5.0, 5.0, 5.0),
        "scores_1_negative": (10.0, *(0.0,) * 100),
        "scores_1_positive": (*(0.0,) * 100, 10.0),
        "brier": (20.0, 10.0, 5.0),
    },
}
NOTHING = {"patients": 0, "values": {}, "sums": {}, "withheld": WITHHELD}
NOISE = {"noise_multiplier": 1.0, "delta": 1e-5, "clipping_norm": 1.0}
PICTURES = np.zeros((1, 2, 2, 3), np.uint8)


def update(**changes: Any) -> Arrays:
    return {"steps": np.array(3), "weight": np.ones((2, 3), np.float32), **changes}


def answer(plan: FederationPlan, training: int = 10, pictures: Any = None, **metrics: Any) -> Answer:
    """An answer with an update of ten training patients, and metrics over five validation patients."""
    measured = {"split": "validation", "patients": 5, **DICE}
    report = SiteReport.model_validate(
        {
            "kind": "round",
            "site": "a",
            "plan_sha256": plan.sha256(),
            "cohort_sha256": "1" * 64,
            "round": 1,
            "patients": training,
            "seen": training,
            "metrics": ({**measured, **metrics},),
        }
    )
    return Answer(report, update(), pictures)


def changed(good: Answer, **changes: Any) -> Answer:
    """The answer with a report that was changed without being checked."""
    return replace(good, report=good.report.model_copy(update=changes))


def of_kind(good: Answer, kind: str, **changes: Any) -> Answer:
    """The answer to another question, with records of the splits that belong to it."""
    splits = {"hello": (), "round": ("validation",), "final": ("validation", "test")}[kind]
    metrics = tuple(good.report.metrics[0].model_copy(update={"split": split}) for split in splits)
    return changed(good, kind=kind, metrics=metrics, **changes)


@pytest.fixture
def plan(plan_for: Callable[..., FederationPlan]) -> FederationPlan:
    return plan_for()


@pytest.fixture
def classification(plan_for: Callable[..., FederationPlan]) -> FederationPlan:
    return plan_for(CLASSES)


class TestAGoodAnswer:
    def test_it_passes(self, plan: FederationPlan) -> None:
        assert refusals(answer(plan), plan, SPECS, STRICT) == ()

    def test_an_answer_without_update_passes(self, plan: FederationPlan) -> None:
        assert refusals(replace(answer(plan), update={}), plan, SPECS, STRICT) == ()

    def test_withheld_metrics_pass(self, plan: FederationPlan) -> None:
        good = answer(plan, **NOTHING)
        assert refusals(good, plan, SPECS, STRICT) == ()

    def test_every_metric_of_the_tasks_passes(
        self, plan_for: Callable[..., FederationPlan], classification: FederationPlan
    ) -> None:
        labels = plan_for(SegmentationConfig(labels=("liver", "lesion")))
        seen = {f"{kind}{end}": 0.5 for kind in ("dice", "hd95_mm") for end in ("", "_liver", "_lesion")}
        assert refusals(answer(labels, values=seen), labels, SPECS, STRICT) == ()
        assert refusals(answer(classification, **CLASSIFIED), classification, SPECS, OPEN) == ()

    @pytest.mark.parametrize("data_is", ["public", "synthetic"])
    def test_pictures_of_data_that_may_be_shown_pass(self, plan: FederationPlan, data_is: Any) -> None:
        bounds = default_bounds(ReleaseConfig(data_is=data_is))
        assert refusals(answer(plan, pictures=PICTURES), plan, SPECS, bounds) == ()


class TestTheReport:
    @pytest.mark.parametrize(
        "changes",
        [
            {"site": "Doe^John"},
            {"kind": "anything at all"},
            {"patients": "ten"},
            {"patients": -1},
            {"train_loss": math.nan},
            {"cohort_sha256": "/data/cohort"},
            {"metrics": ("free text",)},
            {"seconds": "a path"},
        ],
    )
    def test_one_that_was_changed_behind_the_models_back_is_refused(
        self, plan: FederationPlan, changes: dict[str, Any]
    ) -> None:
        reasons = refusals(changed(answer(plan), **changes), plan, SPECS, OPEN)
        assert reasons == ("a report of another form than was agreed",)

    @pytest.mark.parametrize("changes", [{"site": "doe-john"}, {"plan_sha256": "2" * 64}])
    def test_one_about_another_site_or_plan_is_refused(self, plan: FederationPlan, changes: dict[str, Any]) -> None:
        assert refusals(changed(answer(plan), **changes), plan, SPECS, OPEN) == ("a report about another plan or site",)

    def test_a_reason_for_withholding_is_one_of_the_list(self, plan: FederationPlan) -> None:
        bad = answer(plan, patients=0, values={}, sums={}, withheld="john_doe_has_a_tumour")
        assert refusals(bad, plan, SPECS, OPEN) == ("a reason for withholding that is not on the list",)


class TestTheUpdate:
    @pytest.mark.parametrize(
        ("arrays", "reason"),
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
    def test_what_is_not_the_plans_is_refused(self, plan: FederationPlan, arrays: Arrays, reason: str) -> None:
        reasons = refusals(replace(answer(plan), update=arrays), plan, SPECS, STRICT)
        assert len(reasons) == 1
        assert reason in reasons[0]
        assert "007" not in reasons[0]

    @pytest.mark.parametrize("kind", ["hello", "final"])
    def test_one_that_nobody_asked_for_is_refused(self, plan: FederationPlan, kind: str) -> None:
        assert refusals(of_kind(answer(plan), kind), plan, SPECS, STRICT) == ("an update that was not asked for",)


class TestTheNorm:
    """Six ones: L2 norm √6 = 2.449…; the counter of steps does not count."""

    @pytest.mark.parametrize(("largest", "passes"), [(2.45, True), (2.44, False), (0.0, False)])
    def test_a_longer_update_is_refused(self, plan: FederationPlan, largest: float, passes: bool) -> None:
        reasons = refusals(answer(plan), plan, SPECS, replace(STRICT, largest_norm=largest))
        assert reasons == (() if passes else ("an update that is longer (L2 norm) than this site permits",))

    def test_it_is_that_of_all_arrays_together(self) -> None:
        arrays = {"a": np.array([3.0], np.float32), "b": np.array(4.0), "c": np.array([99]), "d": np.zeros((0, 2))}
        assert update_norm(arrays) == 5.0
        assert update_norm({}) == 0.0

    def test_it_needs_no_order_in_memory_and_no_copy(self) -> None:
        array = np.full((2000, 1000), 2.0, np.float32).T[:, ::2]
        tracemalloc.start()
        try:
            assert update_norm({"a": array}) == pytest.approx(2000.0)
            assert tracemalloc.get_traced_memory()[1] < 2 * 2**20
        finally:
            tracemalloc.stop()

    def test_one_that_overflows_is_refused(self, plan: FederationPlan) -> None:
        specs = (ArraySpec("weight", (2,), "float64", True),)
        huge = replace(answer(plan), update={"weight": np.full(2, 1e200)})
        assert update_norm(huge.update) == math.inf
        assert len(refusals(huge, plan, specs, STRICT)) == 1


class TestBytes:
    def test_arrays_report_and_pictures_count_together(self, plan: FederationPlan) -> None:
        full = answer(plan, pictures=PICTURES)
        size = 8 + 24 + 12 + len(full.report.model_dump_json())
        assert refusals(full, plan, SPECS, replace(OPEN, largest_bytes=size)) == ()
        reasons = refusals(full, plan, SPECS, replace(OPEN, largest_bytes=size - 1))
        assert reasons == ("more bytes than this site permits",)


class TestPeople:
    def test_too_few_training_patients_are_refused(self, plan: FederationPlan) -> None:
        reasons = refusals(answer(plan, training=5), plan, SPECS, STRICT)
        assert reasons == ("fewer training patients than the site's minimum",)

    @pytest.mark.parametrize(("minimum", "patients"), [(10, 5), (20, 15)])
    def test_a_metric_over_too_few_patients_is_refused(self, plan: FederationPlan, minimum: int, patients: int) -> None:
        bounds = replace(STRICT, minimum_metric_patients=minimum)
        reasons = refusals(answer(plan, patients=patients, sums={}), plan, SPECS, bounds)
        assert reasons == ("a metric over fewer patients than the site's minimum",)

    @pytest.mark.parametrize("empty", [{"sums": {}}, {"values": {}, "sums": {"dice": (0.0, 0.0, 0.0)}}])
    def test_a_metric_without_patients_is_refused(self, plan: FederationPlan, empty: dict[str, Any]) -> None:
        bad = answer(plan, patients=0, **empty)
        assert refusals(bad, plan, SPECS, STRICT) == ("a metric without patients",)

    def test_figures_by_class_with_a_class_of_few_are_refused(self, classification: FederationPlan) -> None:
        few = answer(classification, patients=15, values={"auc": 0.5}, sums={"confusion": (10.0, 0.0, 0.0, 5.0)})
        assert refusals(few, classification, SPECS, STRICT) == ()
        reasons = refusals(few, classification, SPECS, replace(STRICT, minimum_metric_patients=10))
        assert reasons == ("figures by class with fewer patients of a class than the site's minimum",)


class TestSeen:
    """A site may have many patients, and a round's steps few of them."""

    REASON = ("an update from steps that saw fewer patients than the site's minimum",)

    @pytest.mark.parametrize("seen", [0, 5])
    def test_an_update_of_few_patients_is_refused(self, plan: FederationPlan, seen: int) -> None:
        assert refusals(changed(answer(plan, training=500), seen=seen), plan, SPECS, STRICT) == self.REASON

    @pytest.mark.parametrize("seen", [10, 15, 500])
    def test_one_of_enough_passes(self, plan: FederationPlan, seen: int) -> None:
        assert refusals(changed(answer(plan, training=500), seen=seen), plan, SPECS, STRICT) == ()

    @pytest.mark.parametrize("kind", ["hello", "final"])
    def test_where_nothing_is_trained_nobody_is_counted(self, plan: FederationPlan, kind: str) -> None:
        told = replace(of_kind(answer(plan), kind, seen=0), update={})
        assert refusals(told, plan, SPECS, STRICT) == ()


class TestQuarantined:
    @pytest.mark.parametrize("count", [1, 4, 6, 9])
    def test_an_exact_count_is_refused(self, plan: FederationPlan, count: int) -> None:
        reasons = refusals(changed(answer(plan), quarantined=count), plan, SPECS, STRICT)
        assert reasons == ("an exact count of cases that were set aside",)

    @given(count=st.integers(0, 10_000), minimum=st.integers(1, 100))
    @settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
    def test_one_that_was_rounded_down_passes(self, plan: FederationPlan, count: int, minimum: int) -> None:
        bounds = replace(OPEN, minimum_metric_patients=minimum)
        told = changed(answer(plan, patients=0, values={}, sums={}), quarantined=coarse(count, minimum))
        assert "an exact count of cases that were set aside" not in refusals(told, plan, SPECS, bounds)


class TestDefined:
    def test_a_mean_that_is_defined_for_too_few_patients_is_refused(self, plan: FederationPlan) -> None:
        bounds = replace(STRICT, minimum_metric_patients=10)
        reasons = refusals(answer(plan, patients=10), plan, SPECS, bounds)
        assert reasons == ("a metric that is defined for fewer patients than the site's minimum",)


class TestMetrics:
    @pytest.mark.parametrize("name", ["dice_007", "hd95_mm_john_doe", "auc", "brier"])
    @pytest.mark.parametrize("kind", ["values", "sums"])
    def test_a_name_that_the_task_does_not_have_is_refused_and_not_repeated(
        self, plan: FederationPlan, name: str, kind: str
    ) -> None:
        bad = answer(plan, **{kind: {name: 0.5 if kind == "values" else (5.0, 2.5, 1.25)}})
        reasons = refusals(bad, plan, SPECS, OPEN)
        assert reasons[0] == "a metric that is not on the list"
        assert not re.search("007|doe", " ".join(reasons))

    @pytest.mark.parametrize("name", ["dice", "scores_2_positive"])
    def test_a_classification_sends_no_dice_and_no_class_that_it_does_not_have(
        self, classification: FederationPlan, name: str
    ) -> None:
        numbers = (5.0, 2.5, 1.25) if name == "dice" else (5.0, *(0.0,) * 100)
        bad = answer(classification, values={}, sums={name: numbers})
        assert refusals(bad, classification, SPECS, OPEN) == ("a metric that is not on the list",)

    def test_a_name_that_the_policy_does_not_list_is_refused(self, plan: FederationPlan) -> None:
        assert refusals(answer(plan), plan, SPECS, replace(OPEN, metrics=frozenset({"dice"}))) == ()
        for listed in (frozenset[str](), frozenset({"hd95_mm"})):
            reasons = refusals(answer(plan), plan, SPECS, replace(OPEN, metrics=listed))
            assert reasons == ("a metric that is not on the list",)

    def test_a_label_goes_with_its_metric(self, plan: FederationPlan) -> None:
        by_label = answer(plan, values={"dice_lesion": 0.5})
        assert refusals(by_label, plan, SPECS, replace(OPEN, metrics=frozenset({"dice"}))) == ()

    def test_histograms_need_the_sites_leave(self, classification: FederationPlan) -> None:
        shy = answer(classification, **CLASSIFIED)
        assert refusals(shy, classification, SPECS, OPEN) == ()
        reasons = refusals(shy, classification, SPECS, STRICT)
        assert reasons == ("score histograms, which this site does not permit",)

    @pytest.mark.parametrize(
        "sums",
        [
            {"dice": (5.0, 2.5, 1.25, *(0.123,) * 4000)},
            {"dice": (5.0, 2.5, 0.1)},
            {"dice": (6.0, 3.0, 1.5)},
            {"dice": (4.5, 2.5, 1.5)},
        ],
    )
    def test_sums_that_hold_something_else_are_refused(self, plan: FederationPlan, sums: dict[str, Any]) -> None:
        open_to_few = replace(OPEN, minimum_metric_patients=1)
        assert refusals(answer(plan, sums=sums), plan, SPECS, open_to_few) == ("figures that no patients can have",)

    def test_counts_that_are_no_counts_are_refused(self, classification: FederationPlan) -> None:
        bad = answer(classification, patients=10, values={}, sums={"confusion": (5.25, 0.0, 0.0, 4.75)})
        open_to_few = replace(OPEN, minimum_metric_patients=1)
        assert refusals(bad, classification, SPECS, open_to_few) == ("figures that no patients can have",)


class TestDecimals:
    """Of 0.5 one decimal place is enough; the rounded mean of squares 0.25 needs two."""

    REASON = ("figures with more decimal places than this site permits",)

    @pytest.mark.parametrize(
        "metrics",
        [
            {"values": {"dice": 0.5001}},
            {"sums": {"dice": (5.0, 2.5005, 1.5)}},
            {"sums": {"dice": (5.0, 2.5, 1.2505)}},
        ],
    )
    def test_more_than_the_policy_names_are_refused(self, plan: FederationPlan, metrics: dict[str, Any]) -> None:
        bounds = replace(OPEN, digits=3)
        assert refusals(answer(plan), plan, SPECS, bounds) == ()
        assert refusals(answer(plan, **metrics), plan, SPECS, bounds) == self.REASON
        assert refusals(answer(plan, **metrics), plan, SPECS, replace(bounds, digits=None)) == ()

    def test_the_training_loss_is_such_a_figure(self, plan: FederationPlan) -> None:
        told = changed(answer(plan), train_loss=0.12345)
        assert refusals(told, plan, SPECS, replace(OPEN, digits=3)) == self.REASON
        assert refusals(changed(told, train_loss=0.123), plan, SPECS, replace(OPEN, digits=3)) == ()

    @given(
        st.lists(st.floats(0, 1000), min_size=5, max_size=12),
        st.floats(-100, 100),
        st.integers(0, 6),
    )
    @settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
    def test_what_was_rounded_before_always_passes(
        self, plan: FederationPlan, values: list[float], loss: float, digits: int
    ) -> None:
        n = len(values)
        mean, squares = math.fsum(values) / n, math.fsum(v * v for v in values)
        raw = answer(plan, patients=n, values={"hd95_mm": mean}, sums={"hd95_mm": (float(n), mean * n, squares)})
        raw = changed(raw, train_loss=loss)
        told = replace(raw, report=rounded(raw.report, digits))
        assert refusals(told, plan, SPECS, replace(OPEN, digits=digits)) == ()


class TestPictures:
    def test_those_of_confidential_data_are_refused(self, plan: FederationPlan) -> None:
        bad = answer(plan, pictures=PICTURES)
        assert refusals(bad, plan, SPECS, STRICT) == ("pictures, which this site does not permit",)

    @pytest.mark.parametrize(
        "pictures",
        [
            np.zeros((1, 2, 2, 3)),
            np.zeros((4, 2, 2, 3), np.uint8),
            np.zeros((2, 2, 3), np.uint8),
            np.zeros(9, np.uint8),
        ],
    )
    def test_anything_but_three_small_ones_is_refused(self, plan: FederationPlan, pictures: Any) -> None:
        reasons = refusals(answer(plan, pictures=pictures), plan, SPECS, OPEN)
        assert reasons == ("pictures of another form than was agreed",)


class TestSeveralFaults:
    def test_all_reasons_are_given(self, plan: FederationPlan) -> None:
        bad = replace(
            answer(plan, training=5, values={"auc": 0.5}, pictures=np.zeros((1, 2, 2, 3))), update={"x": np.zeros(1)}
        )
        assert len(refusals(bad, plan, SPECS, STRICT)) == 4


class TestHowFinely:
    """Counts of confidential data leave as multiples of five, times as 1, 2, 5, 10, … s."""

    @pytest.mark.parametrize("changes", [{"patients": 11}, {"seen": 12, "patients": 15}])
    def test_exact_counts_of_patients_are_refused(self, plan: FederationPlan, changes: dict[str, Any]) -> None:
        told = changed(answer(plan), **changes)
        assert refusals(told, plan, SPECS, STRICT) == ("an exact count of patients",)
        assert refusals(told, plan, SPECS, OPEN) == ()

    def test_an_exact_count_behind_a_figure_is_refused(self, plan: FederationPlan) -> None:
        told = answer(plan, patients=6, sums={"dice": (6.0, 3.0, 1.5)})
        assert refusals(told, plan, SPECS, STRICT) == ("an exact count of patients",)
        assert refusals(told, plan, SPECS, OPEN) == ()

    def test_counts_by_class_that_are_exact_are_refused(self, classification: FederationPlan) -> None:
        exact = {"patients": 20, "values": {}, "sums": {"confusion": (7.0, 3.0, 5.0, 5.0)}}
        told = answer(classification, **exact)
        assert refusals(told, classification, SPECS, STRICT) == ("figures from exact counts of patients",)
        assert refusals(told, classification, SPECS, OPEN) == ()

    @pytest.mark.parametrize("name", ["seconds", "prepare_seconds"])
    def test_an_exact_time_is_refused(self, plan: FederationPlan, name: str) -> None:
        assert refusals(changed(answer(plan), **{name: 20.0}), plan, SPECS, STRICT) == ()
        assert refusals(changed(answer(plan), **{name: 12.5}), plan, SPECS, STRICT) == ("an exact time",)
        assert refusals(changed(answer(plan), **{name: 12.5}), plan, SPECS, OPEN) == ()

    @pytest.mark.parametrize("changes", [{"withheld": ""}, {"patients": 5}])
    def test_a_split_of_which_nothing_is_told_looks_like_all_others(
        self, plan: FederationPlan, changes: dict[str, Any]
    ) -> None:
        assert refusals(answer(plan, **NOTHING), plan, SPECS, OPEN) == ()
        reasons = refusals(answer(plan, **{**NOTHING, **changes}), plan, SPECS, OPEN)
        assert reasons == ("a split of which nothing is told, but which looks unlike others",)

    @pytest.mark.parametrize("kind", ["hello", "round", "final"])
    def test_records_are_those_of_the_splits_that_were_asked_for(self, plan: FederationPlan, kind: str) -> None:
        good = replace(of_kind(answer(plan), kind), update={})
        (validation, test) = of_kind(answer(plan), "final").report.metrics
        assert refusals(good, plan, SPECS, STRICT) == ()
        for metrics in ((), (validation,), (test,), (test, validation), (validation, validation)):
            if metrics != good.report.metrics:
                reasons = refusals(changed(good, metrics=metrics), plan, SPECS, STRICT)
                assert reasons == ("a record of other splits or models than were asked for",)


class TestDifferentialPrivacy:
    """What a plan with noise must not tell beside its update."""

    FIGURES = ("figures without noise of patients whom this site does not declare as test data",)
    TRAINING = ("a training loss, or a number of sampled patients, of a plan with differential privacy",)

    @pytest.fixture(params=["patient_dp", "update_dp", "central_dp"])
    def private(self, request: pytest.FixtureRequest, plan_for: Callable[..., FederationPlan]) -> FederationPlan:
        rate = {"sampling_rate": 0.5} if request.param == "patient_dp" else {}
        return plan_for(privacy={**NOISE, **rate, "mechanism": request.param})

    def test_an_update_without_figures_passes(self, private: FederationPlan) -> None:
        told = changed(answer(private, **NOTHING), seen=0)
        assert refusals(told, private, SPECS, STRICT) == ()

    @pytest.mark.parametrize("changes", [{"seen": 10}, {"train_loss": 0.5}])
    def test_loss_and_sampled_patients_stay(self, private: FederationPlan, changes: dict[str, Any]) -> None:
        told = changed(answer(private, **NOTHING), **{"seen": 0, **changes})
        assert refusals(told, private, SPECS, STRICT) == self.TRAINING

    def test_figures_leave_without_noise_only_of_declared_test_data(self, private: FederationPlan) -> None:
        told = changed(answer(private), seen=0)
        assert refusals(told, private, SPECS, STRICT) == self.FIGURES
        assert refusals(told, private, SPECS, replace(STRICT, test_data=frozenset({"test"}))) == self.FIGURES
        assert refusals(told, private, SPECS, replace(STRICT, test_data=frozenset({"validation"}))) == ()

    def test_figures_with_noise_leave(self, plan_for: Callable[..., FederationPlan]) -> None:
        noised = plan_for(privacy={**NOISE, "mechanism": "update_dp", "metrics_noise": 4.0})
        assert refusals(changed(answer(noised), seen=0), noised, SPECS, STRICT) == ()


class TestReasons:
    @given(
        site=st.from_regex(r"secret[a-z]{1,8}", fullmatch=True),
        value=st.floats(7.7e6, 7.8e6),
        name=st.from_regex(r"secret[a-z]{1,8}", fullmatch=True),
        patients=st.integers(77_000, 78_000),
    )
    @settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
    def test_they_hold_no_value_of_the_answer(
        self, plan: FederationPlan, site: str, value: float, name: str, patients: int
    ) -> None:
        bounds = replace(
            STRICT, minimum_patients=10**6, minimum_metric_patients=10**6, largest_norm=1.0, largest_bytes=9, digits=1
        )
        bad = answer(
            plan, training=patients, pictures=PICTURES, values={f"dice_{name}": value}, sums={name_of(name): (value,)}
        )
        bad = replace(bad, update=update(weight=np.full((2, 3), value, np.float32)))
        other = changed(bad, site=site)
        unlisted = changed(bad, metrics=(bad.report.metrics[0].model_copy(update={"withheld": name}),))
        strange = replace(bad, update={name: np.full(3, value)})
        for wrong in (bad, other, unlisted, strange):
            reasons = refusals(wrong, plan, SPECS, bounds)
            assert reasons
            assert not re.search(r"secret|77|[0-9]{2}", " ".join(reasons).replace("L2", ""))


def name_of(label: str) -> str:
    return f"hd95_mm_{label}"


class TestDefaultBounds:
    def test_they_are_the_site_files(self) -> None:
        assert (STRICT.minimum_patients, STRICT.minimum_metric_patients) == (10, 5)
        assert not STRICT.pictures
        assert not STRICT.score_histograms
        assert OPEN.pictures
        assert OPEN.score_histograms

    def test_confidential_data_have_floors_that_no_site_file_lowers(self) -> None:
        bounds = default_bounds(ReleaseConfig(minimum_patients=2, minimum_metric_patients=1, count_base=1))
        assert bounds.least == LeastPeople(training=10, metric=5, base=5, apart=5)
        assert bounds.test_data == frozenset()
        raised = default_bounds(ReleaseConfig(minimum_patients=30, minimum_metric_patients=7, count_base=10))
        assert raised.least == LeastPeople(training=30, metric=10, base=10, apart=10)

    @pytest.mark.parametrize("data_is", ["public", "synthetic"])
    def test_data_of_nobody_have_none(self, data_is: Any) -> None:
        release = ReleaseConfig(data_is=data_is, minimum_patients=2, minimum_metric_patients=1)
        assert default_bounds(release).least == LeastPeople(training=2, metric=1, base=1, apart=1)
        assert default_bounds(release).test_data == {"validation", "test"}


class TestLeastOf:
    def test_what_is_asked_for_counts_above_the_floors(self) -> None:
        assert least_of(ReleaseConfig(), 12, 3) == LeastPeople(training=12, metric=5, base=5, apart=5)
        assert least_of(ReleaseConfig(data_is="public"), 12, 3) == LeastPeople(training=12, metric=3, base=1, apart=1)

    def test_no_network_that_a_plan_may_name_is_too_large_for_them(self) -> None:
        assert STRICT.largest_bytes > 4 * 500_000_000
        assert STRICT.metrics is None
        assert STRICT.digits is None

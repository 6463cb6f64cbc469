"""Sums over training patients: what a site tells, what two questions can't tell apart, and what the gate stops."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from eucaim_fl.cohorts.cohort import PreparedCase
from eucaim_fl.config import ClassificationConfig
from eucaim_fl.errors import JournalError, ReplyError
from eucaim_fl.plan import FederationPlan
from eucaim_fl.site.answers import Answer
from eucaim_fl.site.differencing import Told
from eucaim_fl.site.disclosure import least_people, rounded
from eucaim_fl.site.gate import GateBounds, default_bounds, refusals
from eucaim_fl.site.report import SiteReport, StatisticsRecord, asked_statistics
from eucaim_fl.site.statistics import NOTHING_TOLD, check_statistics, statistics_told
from eucaim_fl.sitefile import ReleaseConfig
from eucaim_fl.training.statistics import conditioning, sums_over

CLASSES = ClassificationConfig(target="malignant", classes=("no", "yes"))
OTHERS = ClassificationConfig(target="malignant", classes=("yes", "no"))
COUNTED = {"balance": {"loss": "logits", "shares": "federation"}}
STRICT, OPEN = (
    least_people(confidential=True, training=10, metric=5),
    least_people(confidential=False, training=2, metric=1),
)
Plans = Callable[..., FederationPlan]
Case = Callable[..., PreparedCase]


@pytest.fixture
def memory(tmp_path: Path) -> Told:
    return Told(tmp_path / "records")


@pytest.fixture
def images(plan_for: Plans) -> FederationPlan:
    return plan_for(data={"standardise": "federation"})


@pytest.fixture
def both(plan_for: Plans) -> FederationPlan:
    return plan_for(CLASSES, data={"standardise": "federation"}, training=COUNTED)


@pytest.fixture
def people(prepared_case: Case) -> Callable[[Sequence[int | None]], list[PreparedCase]]:
    """Patients of given classes; the k-th one's image is k/100 throughout."""

    def make(classes: Sequence[int | None]) -> list[PreparedCase]:
        return [
            prepared_case(np.full((2, 2, 1), k / 100), patient=f"P{k:03d}", target=kind)
            for k, kind in enumerate(classes)
        ]

    return make


class TestWhatIsTold:
    def test_open_data_are_told_as_they_are(self, both: FederationPlan, memory: Told, people: Any) -> None:
        cases = people([0] * 3 + [1] * 4)
        told, sums = statistics_told(cases, both, OPEN, memory, 7), sums_over(cases, both)
        assert (told.patients, told.classes) == (7, (3, 4))
        assert told.means == pytest.approx(sums.means)
        assert told.squares == pytest.approx(sums.squares)
        assert memory.remembered() == ()

    def test_of_confidential_data_the_mean_is_that_of_all_and_the_sum_that_of_the_number_told(
        self, images: FederationPlan, memory: Told, people: Any
    ) -> None:
        cases = people([None] * 13)
        told = statistics_told(cases, images, STRICT, memory, 15)
        assert told.patients == 15
        assert told.means == pytest.approx((15 * 0.06,))
        found, exact = (conditioning([one], images) for one in (told, sums_over(cases, images)))
        assert all(found[name] == pytest.approx(exact[name]) for name in exact)

    def test_a_class_of_few_looks_as_if_there_were_none(
        self, both: FederationPlan, tmp_path: Path, people: Any
    ) -> None:
        cases = people([0] * 12 + [1] * 4)
        few = statistics_told(cases, both, STRICT, Told(tmp_path / "few"), 15)
        none = statistics_told(cases[:12], both, STRICT, Told(tmp_path / "none"), 15)
        assert few == none
        assert few.classes == (10, 0)

    def test_parts_that_are_not_asked_for_are_empty(self, plan_for: Plans, memory: Told, people: Any) -> None:
        cases = people([0] * 6 + [1] * 6)
        counted = plan_for(CLASSES, data={"standardise": "site"}, training=COUNTED)
        assert statistics_told(cases, counted, STRICT, memory, 10) == StatisticsRecord(patients=10, classes=(5, 5))
        told = statistics_told(cases, plan_for(CLASSES, data={"standardise": "federation"}), STRICT, memory, 10)
        assert told.classes == ()
        assert len(told.means) == 1

    def test_of_too_few_nothing_is_told(self, both: FederationPlan, memory: Told, people: Any) -> None:
        assert statistics_told(people([0] * 4 + [1] * 4), both, STRICT, memory, 10) == NOTHING_TOLD
        assert memory.remembered() == ()

    def test_what_can_not_be_remembered_is_not_told(self, images: FederationPlan, tmp_path: Path, people: Any) -> None:
        (tmp_path / "records").mkdir()
        (tmp_path / "records" / "told.sqlite").write_bytes(b"spoilt")
        with pytest.raises(JournalError, match="what was told"):
            statistics_told(people([None] * 12), images, STRICT, Told(tmp_path / "records"), 10)


class TestAskingTwice:
    def test_the_same_patients_are_told_of_as_often_as_plans_ask(
        self, plan_for: Plans, images: FederationPlan, memory: Told, people: Any
    ) -> None:
        cases = people([None] * 20)
        other = plan_for(data={"standardise": "federation", "intensity": {"low": 0.0, "high": 1.0}})
        assert statistics_told(cases, images, STRICT, memory, 20) == statistics_told(cases, other, STRICT, memory, 20)

    def test_a_plan_that_leaves_one_patient_out_does_not_isolate_that_patient(
        self, plan_for: Plans, images: FederationPlan, memory: Told, people: Any
    ) -> None:
        """Other rules on series choose the same patients but for one; four others are left out with that one."""
        cases = people([None] * 20)
        other = plan_for(data={"standardise": "federation", "channels": [{"name": "t1"}]})
        first = statistics_told(cases, images, STRICT, memory, 20)
        second = statistics_told(cases[1:], other, STRICT, memory, 20)
        assert second.means != first.means
        assert sorted(one.patients for one in memory.remembered()) == [15, 20]

    def test_where_too_few_others_are_left_nothing_is_told(
        self, plan_for: Plans, images: FederationPlan, memory: Told, people: Any
    ) -> None:
        cases = people([None] * 9)
        assert statistics_told(cases, images, STRICT, memory, 10) != NOTHING_TOLD
        other = plan_for(seed=7, data={"standardise": "federation"})
        assert statistics_told(cases[1:], other, STRICT, memory, 10) == NOTHING_TOLD

    def test_figures_and_sums_are_compared_with_each_other(
        self, images: FederationPlan, memory: Told, people: Any
    ) -> None:
        cases = people([None] * 20)
        memory.figures("validation", "a" * 64, {"all": {case.patient for case in cases[1:]}}, 5, 5)
        told = statistics_told(cases, images, STRICT, memory, 20)
        assert told.means == pytest.approx((20 * np.mean([k / 100 for k in range(1, 20)]),))

    def test_a_class_that_is_named_in_another_place_is_told_with_the_same_number(
        self, both: FederationPlan, plan_for: Plans, memory: Told, people: Any
    ) -> None:
        """Twelve are told as ten; when another patient joins, the nearest number would be fifteen."""
        before = statistics_told(people([0] * 12 + [1] * 12), both, STRICT, memory, 25)
        swapped = plan_for(OTHERS, data={"standardise": "federation"}, training=COUNTED)
        cases = people([1] * 12 + [0] * 12 + [1])
        assert before.classes == statistics_told(cases, swapped, STRICT, memory, 25).classes == (10, 10)


class TestRounding:
    @given(
        st.integers(1, 40),
        st.floats(-5, 5),
        st.floats(0, 3),
        st.integers(0, 6),
    )
    def test_it_keeps_moments_that_images_can_have_and_is_done_once(
        self, patients: int, mean: float, deviation: float, digits: int
    ) -> None:
        record = StatisticsRecord(
            patients=patients, means=(patients * mean,), squares=(patients * (mean**2 + deviation**2),)
        )
        once = rounded(_report(record), digits)
        assert rounded(once, digits) == once
        told = once.statistics
        assert told is not None
        assert told.means[0] / patients == pytest.approx(round(mean, digits), abs=1e-9)
        variance = told.squares[0] / patients - (told.means[0] / patients) ** 2
        assert math.sqrt(max(variance, 0.0)) == pytest.approx(deviation, abs=0.5 * 10**-digits + 1e-6)

    def test_nothing_told_stays_nothing(self) -> None:
        assert rounded(_report(NOTHING_TOLD), 3).statistics == NOTHING_TOLD


def _report(told: StatisticsRecord | None, plan_sha256: str = "1" * 64, **changes: Any) -> SiteReport:
    values = {
        "kind": "statistics",
        "site": "a",
        "plan_sha256": plan_sha256,
        "cohort_sha256": "2" * 64,
        "round": 0,
        "patients": 15,
        "statistics": told,
    }
    return SiteReport.model_validate({**values, **changes})


class TestTheGate:
    """A good answer of fifteen patients, as many as are told, and each thing that must not leave with it."""

    @pytest.fixture
    def judged(self, both: FederationPlan) -> Callable[..., tuple[str, ...]]:
        good = {"patients": 15, "means": (6.0,), "squares": (3.75,), "classes": (10, 5)}

        def judge(
            bounds: GateBounds | None = None, plan: FederationPlan = both, report: Any = None, **told: Any
        ) -> tuple[str, ...]:
            record = StatisticsRecord.model_validate({**good, **told})
            answer = Answer(_report(record, plan.sha256(), **(report or {})), {})
            return refusals(answer, plan, (), bounds or default_bounds(ReleaseConfig()))

        return judge

    def test_a_good_answer_passes_and_so_does_nothing(self, judged: Any) -> None:
        assert judged() == ()
        assert judged(patients=0, means=(), squares=(), classes=()) == ()

    @pytest.mark.parametrize(
        ("told", "reason"),
        [
            ({"means": (), "squares": ()}, "another number of channels"),
            ({"means": (6.0, 6.0), "squares": (3.75, 3.75)}, "another number of channels"),
            ({"classes": (10, 5, 0)}, "another number of channels or classes"),
            ({"patients": 20}, "over other patients"),
            ({"patients": 0}, "look unlike those of which nothing is told"),
            ({"squares": (2.3,)}, "such as no images can have"),
            ({"means": (16.0,), "squares": (18.0,)}, "such as no images can have"),
            ({"classes": (11, 5)}, "an exact count of a class"),
            ({"classes": (40, 5)}, "more patients of all classes than there are"),
        ],
        ids=lambda value: value if isinstance(value, str) else "",
    )
    def test_sums_that_are_not_those_asked_for_stay(self, judged: Any, told: dict[str, Any], reason: str) -> None:
        (found,) = judged(**told)
        assert reason in found

    def test_a_class_has_as_many_patients_as_a_figure(self, judged: Any) -> None:
        release = ReleaseConfig(minimum_metric_patients=10)
        assert judged(default_bounds(release)) == ("a class of fewer patients than the site's minimum",)

    def test_they_are_as_coarse_as_the_policy_says(self, judged: Any) -> None:
        bounds = default_bounds(ReleaseConfig())
        strict = GateBounds(**{**vars(bounds), "digits": 2})
        assert judged(strict, squares=(15 * (0.4**2 + 0.3**2),)) == ()
        assert judged(strict, squares=(3.8,)) == ("figures with more decimal places than this site permits",)

    def test_a_policy_may_list_one_and_not_the_other(self, judged: Any, both: FederationPlan) -> None:
        bounds = default_bounds(ReleaseConfig())
        for names in (frozenset({"auc"}), frozenset({"intensity_sums"})):
            assert judged(GateBounds(**{**vars(bounds), "metrics": names})) == ("a statistic that is not on the list",)
        assert judged(GateBounds(**{**vars(bounds), "metrics": frozenset(asked_statistics(both))})) == ()

    def test_nothing_else_comes_with_them(self, judged: Any) -> None:
        for extra in ({"steps": 3}, {"train_loss": 0.1}, {"seen": 15}):
            assert "an answer of another form than was asked for" in judged(report=extra)

    def test_they_come_with_no_other_answer_and_no_other_plan(self, judged: Any, plan_for: Plans) -> None:
        wanted = "statistics that were not asked for"
        assert wanted in judged(report={"kind": "hello"})
        assert wanted in judged(report={"kind": "final"})
        assert wanted in judged(plan=plan_for(CLASSES))

    def test_an_answer_without_them_is_none(self, both: FederationPlan) -> None:
        answer = Answer(_report(None, both.sha256()), {})
        bounds = default_bounds(ReleaseConfig())
        assert refusals(answer, both, (), bounds) == ("an answer of another form than was asked for",)

    def test_a_site_with_fewer_than_its_minimum_tells_none(self, judged: Any) -> None:
        found = judged(report={"patients": 5}, patients=5, means=(2.0,), squares=(1.25,), classes=(5, 0))
        assert found == ("fewer training patients than the site's minimum",)


class TestCheckStatistics:
    def test_the_coordinator_takes_only_what_a_site_lets_out(self, images: FederationPlan) -> None:
        check_statistics(_report(StatisticsRecord(patients=15, means=(6.0,), squares=(3.75,))), images)
        check_statistics(_report(NOTHING_TOLD), images)
        for told in (None, StatisticsRecord(patients=15, means=(6.0,), squares=(0.0,))):
            with pytest.raises(ReplyError, match=r"no statistics|such as no images can have"):
                check_statistics(_report(told), images)

    def test_after_zscore_values_have_a_wider_range(self, plan_for: Plans) -> None:
        plan = plan_for(data={"standardise": "federation", "intensity": {"kind": "zscore"}})
        check_statistics(_report(StatisticsRecord(patients=15, means=(-30.0,), squares=(90.0,))), plan)
        for mean, square in ((-160.0, 15 * 200.0), (0.0, 1e9)):
            with pytest.raises(ReplyError, match="such as no images can have"):
                check_statistics(_report(StatisticsRecord(patients=15, means=(mean,), squares=(square,))), plan)

    def test_a_site_can_not_count_more_patients_than_it_has(self, both: FederationPlan) -> None:
        told = StatisticsRecord(patients=15, means=(6.0,), squares=(3.75,), classes=(10_000_000, 5))
        with pytest.raises(ReplyError, match="more patients of all classes than there are"):
            check_statistics(_report(told, both.sha256()), both)


class TestTheReport:
    def test_the_audit_log_names_what_was_told(self, both: FederationPlan) -> None:
        told = _report(StatisticsRecord(patients=15, means=(6.0,), squares=(3.75,), classes=(10, 5)))
        assert told.told(both) == {"train": ["class_counts", "intensity_sums"]}
        assert _report(NOTHING_TOLD).told(both) == {}

    @pytest.mark.parametrize("value", [math.nan, math.inf, 1e16])
    def test_a_sum_is_a_number(self, value: float) -> None:
        with pytest.raises(ValueError, match="means"):
            StatisticsRecord(patients=1, means=(value,))

"""What a confidential site tells of labels and of survival: of enough people on both sides, or nothing."""

from __future__ import annotations

import csv
import math
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from eucaim_fl.config import MultilabelConfig, SurvivalConfig, TaskConfig
from eucaim_fl.plan import FederationPlan
from eucaim_fl.records import SiteMetrics
from eucaim_fl.site.answers import Answer
from eucaim_fl.site.disclosure import (
    LeastPeople,
    as_told,
    enough_by_class,
    least_people,
    not_as_told,
    on_base,
    only_listed,
    rounded,
    small_class,
    two_sided,
    withheld,
    without_few,
)
from eucaim_fl.site.gate import default_bounds, refusals
from eucaim_fl.site.report import MetricsRecord, SiteReport, allowed_metrics
from eucaim_fl.sitefile import ReleaseConfig
from eucaim_fl.validation.concordance import survival_summary
from eucaim_fl.validation.labels import by_label
from eucaim_fl.validation.pooling import check_metrics, multilabel_summary
from tests.site.confidential import Place, prepared_here, weights

Plans = Callable[..., FederationPlan]
CONFIDENTIAL = least_people(confidential=True, training=10, metric=5)
LABELS = MultilabelConfig(targets=("oedema", "rare"))
SURVIVAL = SurvivalConfig(spatial_dims=2, time="time_days", event="died")
CNN: dict[str, Any] = {
    "model": {"name": "small_cnn", "args": {"channels": [4], "strides": [2], "pooled": True, "norm": "instance"}},
    "data": {"split": {"validation": 0.5, "test": 0.1}},
}


def labelled(positives: dict[str, int], patients: int = 20, seed: int = 0) -> SiteMetrics:
    """Labels with so many who have it, of so many patients."""
    rng = np.random.default_rng(seed)
    truth = np.stack([np.arange(patients) < count for count in positives.values()], axis=1).astype(float)
    return multilabel_summary("test", rng.random(truth.shape), truth, tuple(positives), histograms=True)


def survived(events: int, patients: int = 20, seed: int = 0) -> SiteMetrics:
    rng = np.random.default_rng(seed)
    return survival_summary("test", rng.normal(size=patients), rng.random(patients), np.arange(patients) < events)


def report(metrics: SiteMetrics) -> SiteReport:
    values = {"kind": "round", "site": "a", "plan_sha256": "0" * 64, "cohort_sha256": "1" * 64, "round": 1}
    return SiteReport.model_validate({**values, "patients": 10, "metrics": (MetricsRecord.of(metrics),)})


class TestSides:
    def test_both_sides_are_needed(self) -> None:
        assert two_sided(enough_by_class({"p": 0, "q": 1}, 1))
        assert not two_sided(enough_by_class({"p": 0, "q": 0, "r": 1}, 2))

    def test_a_label_with_few_of_one_side_is_left_out_and_the_means_are_of_the_others(self) -> None:
        found = without_few(labelled({"oedema": 8, "rare": 4, "absent": 0}), 5)
        assert set(by_label(found)) == {"oedema"}
        assert found.values["auc"] == found.values["auc_oedema"]

    @pytest.mark.parametrize(("events", "small"), [(4, True), (5, False), (15, False), (16, True), (20, True)])
    def test_events_and_others_are_both_enough_or_the_index_stays(self, events: int, small: bool) -> None:
        found = survived(events)
        assert small_class(found, 5) is small
        assert (as_told(found, CONFIDENTIAL, None) == withheld("test")) is small

    def test_labels_with_no_patient_of_a_side_are_small_too(self) -> None:
        assert small_class(labelled({"absent": 0}), 5)
        assert not small_class(labelled({"oedema": 8}), 5)

    def test_what_is_listed_is_listed_for_all_labels(self) -> None:
        found = only_listed(labelled({"oedema": 8}), frozenset({"auc"}))
        assert (set(found.values), dict(found.sums)) == ({"auc", "auc_oedema"}, {})


class TestOnBase:
    def test_pairs_are_a_tenth_of_those_that_the_numbers_told_can_form(self) -> None:
        """7 of 12 had the event: 35 + 21 = 56 possible pairs, of which 31 are 0.6; told are 5 and 5, with 35."""
        given_ = SiteMetrics("test", 12, {"c_index": 0.5}, {"concordance": (5.0, 7.0, 14.0, 3.0, 31.0)})
        told = on_base(given_, 5)
        assert told.sums == {"concordance": (5.0, 5.0, 9.0, 2.0, 21.0)}
        assert told.values == {"c_index": 10 / 21}
        assert told.patients == 10

    def test_an_index_of_few_pairs_stays_one(self) -> None:
        told = on_base(SiteMetrics("test", 12, {"c_index": 1.0}, {"concordance": (6.0, 6.0, 1.0, 0.0, 1.0)}), 5)
        assert told.sums["concordance"] == (5.0, 5.0, 4.0, 0.0, 4.0)
        assert told.values == {"c_index": 1.0}

    def test_each_label_has_the_numbers_told_for_it(self) -> None:
        found = on_base(labelled({"oedema": 8, "rare": 6}), 5, {"oedema": [15, 10], "rare": [10, 5]})
        sides = {
            name: np.reshape(one.sums["confusion"], (2, 2)).sum(axis=1).tolist()
            for name, one in by_label(found).items()
        }
        assert sides == {"oedema": [15.0, 10.0], "rare": [10.0, 5.0]}
        assert found.patients == 25
        check_metrics(found)

    @settings(max_examples=30)
    @given(
        st.integers(5, 25),
        st.integers(5, 25),
        st.sampled_from([1, 2, 5]),
        st.integers(0, 99),
        st.sampled_from([2, 3, None]),
    )
    def test_what_is_told_passes_as_it_is(
        self, some: int, others: int, base: int, seed: int, digits: int | None
    ) -> None:
        least = LeastPeople(10, 5, base, 5)
        for found in (labelled({"x": some, "y": 5}, some + others, seed), survived(some, some + others, seed)):
            told = rounded(report(as_told(found, least, None)), digits)
            assert not_as_told(told, least, digits) == ()
            check_metrics(told.metrics[0].plain())

    def test_means_over_labels_tell_no_more_than_their_labels(self) -> None:
        told = rounded(report(on_base(labelled({"x": 8, "y": 6}), 5)), 2).metrics[0].values
        assert told["auc"] == round((told["auc_x"] + told["auc_y"]) / 2, 2)
        spoilt = on_base(labelled({"x": 8, "y": 6}), 5)
        spoilt = replace(spoilt, values={**spoilt.values, "auc": spoilt.values["auc"] + 1e-9})
        assert not_as_told(report(spoilt), CONFIDENTIAL, None) == ("figures from exact counts of patients",)


class TestAllowedMetrics:
    def test_they_follow_from_the_plan(self, plan_for: Plans) -> None:
        assert allowed_metrics(plan_for(SURVIVAL, **CNN)) == {"c_index", "concordance"}
        found = allowed_metrics(plan_for(LABELS, **CNN))
        assert {"auc", "auc_rare", "confusion_rare", "scores_rare_positive"} <= found
        assert "confusion" not in found
        assert set(labelled({"oedema": 8, "rare": 6}).sums) <= found


class TestTheGate:
    """Ten validation patients of a confidential site, half of them with it."""

    def reasons(self, plan: FederationPlan, sums: dict[str, tuple[float, ...]], **values: float) -> tuple[str, ...]:
        metrics = SiteMetrics("validation", 10, values, sums)
        told = report(metrics).model_copy(update={"plan_sha256": plan.sha256(), "patients": 10, "seen": 10})
        return refusals(Answer(told, {}), plan, (), default_bounds(ReleaseConfig()))

    @pytest.mark.parametrize(
        ("task", "sums"),
        [
            (LABELS, {"confusion_oedema": (5.0, 0.0, 0.0, 5.0)}),
            (SURVIVAL, {"concordance": (5.0, 5.0, 10.0, 0.0, 14.0)}),
        ],
    )
    def test_what_is_of_enough_people_passes(
        self, plan_for: Plans, task: TaskConfig, sums: dict[str, tuple[float, ...]]
    ) -> None:
        assert self.reasons(plan_for(task, **CNN), sums) == ()

    @pytest.mark.parametrize(
        ("task", "sums", "reason"),
        [
            (LABELS, {"confusion_oedema": (10.0, 0.0, 0.0, 0.0)}, "fewer patients of a class"),
            (LABELS, {"confusion_other": (5.0, 0.0, 0.0, 5.0)}, "not on the list"),
            (LABELS, {"scores_oedema_positive": (5.0, *(0.0,) * 100)}, "score histograms"),
            (LABELS, {"confusion": (5.0, 0.0, 0.0, 5.0)}, "not on the list"),
            (LABELS, {"confusion_oedema": (5.0, 0.0, 0.0, 10.0)}, "no patients can have"),
            (SURVIVAL, {"concordance": (0.0, 10.0, 45.0, 0.0, 45.0)}, "fewer patients of a class"),
            (SURVIVAL, {"concordance": (5.0, 5.0, 10.0, 0.0, 15.0)}, "exact counts"),
            (SURVIVAL, {"concordance": (5.0, 5.0, 10.0, 0.0, 36.0)}, "no patients can have"),
            (SURVIVAL, {"confusion": (5.0, 0.0, 0.0, 5.0)}, "not on the list"),
        ],
    )
    def test_what_is_not_stays(
        self, plan_for: Plans, task: TaskConfig, sums: dict[str, tuple[float, ...]], reason: str
    ) -> None:
        assert any(reason in one for one in self.reasons(plan_for(task, **CNN), sums))


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    """Of 40 patients every second has oedema; the rare thing is known of 35, and five have it."""
    with prepared_here(tmp_path_factory.mktemp("hospital"), patients=40) as place:
        table = place.root / "data" / "a" / "clinical.csv"
        rows = list(csv.DictReader(table.read_text().splitlines()))
        for number, row in enumerate(rows):
            row["oedema"], row["time_days"], row["died"] = str(number % 2), str(number * 7 % 41), str(number % 3 % 2)
            row["rare"] = "" if number % 8 == 7 else str(int(number % 8 == 0))
        with table.open("w", newline="") as stream:
            writer = csv.DictWriter(stream, fieldnames=list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)
        yield place


@pytest.fixture
def place(prepared: Place) -> Place:
    return prepared.begin()


def leaving(answer: Answer, node: Any) -> dict[str, Any]:
    assert refusals(answer, node.plan, node.specs(), node.bounds) == ()
    (told,) = answer.report.metrics
    return {**told.values, **told.sums}


@pytest.mark.integration
class TestASite:
    @pytest.mark.usefixtures("one_thread")
    def test_labels_of_enough_leave_and_others_do_not(self, place: Place) -> None:
        node = place.node(place.plan(LABELS, **CNN))
        told = leaving(node.round(1, weights(node.plan)), node)
        assert {"auc", "auc_oedema", "confusion_oedema"} <= set(told)
        assert not any("rare" in name for name in told)
        assert all(count % 5 == 0 for count in told["confusion_oedema"])

    @pytest.mark.usefixtures("one_thread")
    def test_so_does_the_index_and_again_in_the_next_round(self, place: Place) -> None:
        node = place.node(place.plan(SURVIVAL, **CNN))
        rounds = [leaving(node.round(n, weights(node.plan)), node) for n in (1, 2)]
        assert all(0 <= told["c_index"] <= 1 for told in rounds)
        assert all(number % 5 == 0 for told in rounds for number in told["concordance"][:2])

    def test_where_events_are_few_nothing_is_told(self, place: Place) -> None:
        place.settings(release={"minimum_metric_patients": 9})
        node = place.node(place.plan(SURVIVAL, **CNN))
        answer = node.round(1, weights(node.plan))
        assert refusals(answer, node.plan, node.specs(), node.bounds) == ()
        assert answer.report.metrics[0].plain() == withheld("validation")

    def test_labels_that_differ_in_few_patients_are_not_both_told_of_these(self, place: Place) -> None:
        """The same column under two names gives the same sets; one patient less would be told apart."""
        node = place.node(place.plan(MultilabelConfig(targets=("oedema", "oedema_2")), **CNN))
        cases = node.cohort.cases("validation")
        one = next(case for case in cases if case.targets[0] == 0)
        changed = [replace(case, targets=(case.targets[0],) * 2) for case in cases if case is not one]
        kept, _ = node._telling._labels([*changed, replace(one, targets=(0.0, math.nan))], "validation")
        known = [{case.patient for case in kept if not math.isnan(case.targets[column])} for column in (0, 1)]
        assert not 0 < len(known[0] ^ known[1]) < 5

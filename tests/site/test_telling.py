"""What a confidential site tells of its patients in numbers, without noise and with it; what stays looks alike."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any, ClassVar

import pytest

from eucaim_fl.cohorts.cohort import Cohort
from eucaim_fl.errors import CohortError, ConsentError, JournalError, PlanError
from eucaim_fl.plan import FederationPlan
from eucaim_fl.privacy.accounting import Mechanism
from eucaim_fl.records import SplitName
from eucaim_fl.site import telling as telling_module
from eucaim_fl.site.answers import Answer
from eucaim_fl.site.differencing import Told
from eucaim_fl.site.disclosure import withheld
from eucaim_fl.site.gate import default_bounds, refusals
from eucaim_fl.site.ledger import Purchase
from eucaim_fl.site.node import SiteNode
from eucaim_fl.site.policy_privacy import NO_LIMITS
from eucaim_fl.site.report import MetricsRecord
from eucaim_fl.site.telling import Telling
from eucaim_fl.sitefile import ReleaseConfig
from eucaim_fl.training.loop import TrainingOutcome
from eucaim_fl.training.statistics import sums_over
from tests.site.confidential import GAUSSIAN, SAMPLED, UPDATE, Place, prepared_here, weights

pytestmark = pytest.mark.integration

ALONE = {"split": {"validation": 0.4, "test": 0.1}}  # under noise each patient by itself: 13, 5 and 6
NOISED = {**GAUSSIAN, "metrics_noise": 0.1}
SPLITS: tuple[SplitName, ...] = ("train", "validation", "test")


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    with prepared_here(tmp_path_factory.mktemp("hospital")) as place:
        yield place


@pytest.fixture
def place(prepared: Place) -> Place:
    return prepared.begin()


def nothing(split: SplitName) -> MetricsRecord:
    return MetricsRecord.of(withheld(split))


def members(cohort: Cohort, split: SplitName) -> set[str]:
    return {case.patient for case in cohort.cases(split)}


def keyed(place: Place) -> None:
    """Let the site draw who is held out with a key that is the same in each run of the tests."""
    place.records.mkdir(parents=True, exist_ok=True)
    (place.records / "held_out.key").write_bytes(bytes(range(32)))


def leaves(node: SiteNode, answer: Answer) -> bool:
    return refusals(answer, node.plan, node.specs(), node.bounds) == ()


class TestFloors:
    def test_a_site_file_does_not_lower_them(self, place: Place) -> None:
        """Nine of fifteen patients would train, and the site file asks for two."""
        split = {"split": {"validation": 0.3, "test": 0.35}}
        with pytest.raises(CohortError, match="Too few patients would train at this site") as caught:
            place.node(data=split)
        assert caught.value.local_detail.startswith("9 patients would train; ")

    def test_nor_does_a_policy_which_can_raise_them(self, place: Place) -> None:
        place.policy(patients={"training": 2, "metric": 1})
        assert place.node().bounds.least == default_bounds(ReleaseConfig()).least
        place.policy(patients={"training": 15, "metric": 5})
        with pytest.raises(CohortError, match="Too few patients"):
            place.node()  # 14 train

    def test_a_policy_that_says_nothing_of_patients_lets_nobody_train(self, place: Place) -> None:
        place.policy(patients={})
        with pytest.raises(CohortError, match="Too few patients"):
            place.node()


class TestCounts:
    def test_training_patients_are_told_as_a_multiple_of_five(self, place: Place) -> None:
        node = place.node()
        assert node.cohort.patients("train") == 14
        assert node.hello().report.patients == 15

    def test_a_withdrawal_does_not_show(self, place: Place) -> None:
        place.consent()
        node = place.node()
        before = node.hello().report
        gone = sorted(members(node.cohort, "train"))[:3]
        place.consent(*gone)
        answer = node.round(1, weights(node.plan))
        assert node.cohort.patients("train") == 11
        assert (answer.report.patients, answer.report.seen) == (before.patients, before.patients) == (15, 15)
        assert answer.report.cohort_sha256 == before.cohort_sha256
        assert leaves(node, answer)

    def test_of_public_data_they_are_exact(self, place: Place) -> None:
        place.settings(release={"data_is": "public"})
        node = place.node(training={"local_steps": 2})
        answer = node.round(1, weights(node.plan))
        assert (answer.report.patients, answer.report.seen) == (14, 8)  # two steps of four cases

    @pytest.mark.parametrize(("seen", "told"), [(2, 0), (8, 0), (9, 0), (10, 10), (12, 10), (13, 15), (14, 15)])
    def test_steps_that_saw_too_few_are_not_rounded_past_the_gate(self, place: Place, seen: int, told: int) -> None:
        node = place.node()
        outcome = TrainingOutcome(0.5, 2, patients=seen, lr_sum=0.2)
        assert node._telling.training(node.cohort, outcome) == {"steps": 2, "seen": told, "train_loss": 0.5}

    def test_an_update_of_steps_that_saw_eight_stays(self, place: Place) -> None:
        node = place.node(training={"local_steps": 2})
        answer = node.round(1, weights(node.plan))
        reasons = refusals(answer, node.plan, node.specs(), node.bounds)
        assert reasons == ("an update from steps that saw fewer patients than the site's minimum",)

    def test_steps_that_follow_from_the_number_of_cases_stay(self, place: Place) -> None:
        node = place.node(training={"local_steps": None, "local_epochs": 1})
        answer = node.round(1, weights(node.plan))
        assert (answer.report.steps, answer.report.seen) == (0, 15)
        assert leaves(node, answer)

    def test_times_are_steps_of_a_clock_without_hands(self, place: Place) -> None:
        answer = place.node().round(1, weights(place.plan()))
        allowed = {1.0, 2.0, 5.0, 10.0, 20.0, 50.0, 100.0}
        assert {answer.report.seconds, answer.report.prepare_seconds} <= allowed

    def test_counters_of_cases_leave_as_they_came_where_epochs_are_the_measure(self, place: Place) -> None:
        norm = {"args": {"channels": [2, 4], "strides": [2], "num_res_units": 0, "norm": "batch"}}
        for training, kept in (({"local_steps": None, "local_epochs": 1}, True), ({"local_steps": 3}, False)):
            node = place.node(training=training, model=norm)
            arriving = weights(node.plan)
            update = node.round(1, arriving).update
            counters = [name for name in arriving if name.endswith("num_batches_tracked")]
            assert counters
            assert all((update[name] == arriving[name]).all() == kept for name in counters)


class TestAtMost:
    def test_it_follows_from_what_is_told_and_no_set_that_is_told_so_is_larger(self, place: Place) -> None:
        """What is told is at most one and a half times its base, five, off."""
        node = place.node(privacy=GAUSSIAN, data=ALONE)
        told, bound = node._telling.patients(node.cohort), node._telling.at_most(node.cohort)
        assert (node.cohort.patients("train"), told, bound) == (13, 15, 22)
        place.consent()
        place.consent(*sorted(members(node.cohort, "train"))[:3])
        fewer = place.node(node.plan)
        assert fewer.cohort.patients("train") == 10
        assert fewer._telling.at_most(fewer.cohort) == bound

    def test_of_public_data_it_is_exact(self, place: Place) -> None:
        place.settings(release={"data_is": "public"})
        node = place.node()
        assert node._telling.at_most(node.cohort) == 14


class TestSetAside:
    """A plan chooses, by its target, whose data do not fit."""

    @pytest.mark.parametrize(("privacy", "told"), [(None, 10), (GAUSSIAN, 0), (UPDATE, 0)])
    def test_a_plan_with_noise_is_told_of_nobody(self, place: Place, privacy: dict[str, Any] | None, told: int) -> None:
        node = place.node(data=ALONE) if privacy is None else place.node(privacy=privacy, data=ALONE)
        node.cohort = replace(node.cohort, quarantined=(object(),) * 13)  # type: ignore[arg-type]
        assert node._telling.set_aside(node.cohort) == told
        assert node.hello().report.quarantined == told


class TestFingerprints:
    def test_that_of_confidential_data_needs_the_site_s_own_key(self, place: Place) -> None:
        node = place.node()
        told = node.hello().report.cohort_sha256
        assert told != node.cohort.fingerprint
        assert place.node().hello().report.cohort_sha256 == told
        fingerprint = place.begin().node().hello().report.cohort_sha256  # and another key
        assert fingerprint not in (told, node.cohort.fingerprint)

    def test_two_plans_do_not_show_whether_they_choose_the_same_patients(self, place: Place) -> None:
        one, other = place.node(), place.node(seed=7)
        assert one.cohort.fingerprint == other.cohort.fingerprint
        assert one.hello().report.cohort_sha256 != other.hello().report.cohort_sha256

    def test_that_of_public_data_follows_from_the_images(self, place: Place) -> None:
        place.settings(release={"data_is": "public"})
        node = place.node()
        assert node.hello().report.cohort_sha256 == node.cohort.fingerprint


class TestTheLoss:
    def test_it_is_told_while_the_patients_stay_the_same(self, place: Place) -> None:
        node = place.node()
        for number in (1, 2):
            assert node.round(number, weights(node.plan)).report.train_loss is not None

    def test_after_a_withdrawal_it_would_tell_of_who_withdrew(self, place: Place) -> None:
        place.consent()
        node = place.node()
        node.round(1, weights(node.plan))
        place.consent(min(members(node.cohort, "train")))
        answer = node.round(2, weights(node.plan))
        assert answer.report.train_loss is None
        assert leaves(node, answer)

    @pytest.mark.parametrize("privacy", [SAMPLED, UPDATE, {**UPDATE, "mechanism": "central_dp"}])
    def test_a_plan_with_noise_tells_none_and_none_is_remembered(self, place: Place, privacy: dict[str, Any]) -> None:
        node = place.node(privacy=privacy, data=ALONE)
        assert node.round(1, weights(node.plan)).report.train_loss is None
        assert {one.kind for one in Told(place.records).remembered()} <= {"figures"}


class TestFigures:
    def test_of_enough_patients_they_leave(self, place: Place) -> None:
        node = place.node()
        answer = node.final(3, weights(node.plan))
        assert [(m.split, m.patients) for m in answer.report.metrics] == [("validation", 5), ("test", 5)]
        assert leaves(node, answer)

    def test_of_four_they_look_as_of_nobody(self, place: Place) -> None:
        place.consent()
        node = place.node()
        place.consent(min(members(node.cohort, "validation")))
        (few, _) = node.final(3, weights(node.plan)).report.metrics
        node.cohort = replace(node.cohort, splits={**node.cohort.splits, "validation": ()})
        (nobody, _) = node.final(3, weights(node.plan)).report.metrics
        assert few == nobody == nothing("validation")

    def test_nobody_is_asked_about_after_sets_that_a_higher_minimum_would_not_have_let_out(self, place: Place) -> None:
        node = place.node()
        node.round(1, weights(node.plan))
        place.settings(release={"minimum_metric_patients": 7})
        later = place.node()
        assert later.round(2, weights(later.plan)).report.metrics == (nothing("validation"),)

    def test_splits_of_another_seed_that_share_all_but_a_few_are_withheld_as_if_too_few(self, place: Place) -> None:
        """Five of the first plan's validation patients; then four of them, and one more."""
        first, second = place.node(), place.node(seed=1)
        asked = members(first.cohort, "validation")
        (told,) = first.round(1, weights(first.plan)).report.metrics
        assert told.patients == 5
        kept = sorted(asked)[1:]
        moved = [
            case
            for name in SPLITS
            for case in first.cohort.cases(name)
            if case.patient in {*kept, min(members(first.cohort, "train"))}
        ]
        second.cohort = replace(second.cohort, splits={**second.cohort.splits, "validation": tuple(moved)})
        assert len(moved) == 5
        answer = second.round(1, weights(second.plan))
        assert answer.report.metrics == (nothing("validation"),)
        assert leaves(second, answer)

    def test_a_split_without_a_common_patient_is_told_about(self, place: Place) -> None:
        first, second = place.node(), place.node(seed=1)
        first.round(1, weights(first.plan))
        other = tuple(c for c in first.cohort.cases("train"))[:5]
        second.cohort = replace(second.cohort, splits={**second.cohort.splits, "validation": other})
        assert second.round(1, weights(second.plan)).report.metrics[0].patients == 5


class TestFiguresUnderNoise:
    def test_bare_ones_stay_and_look_as_those_of_few(self, place: Place) -> None:
        node = place.node(privacy=GAUSSIAN, data=ALONE)
        answer = node.final(3, weights(node.plan))
        few = place.begin().node(data={"split": {"validation": 0.1, "test": 0.1}})  # two patients each
        assert few.final(3, weights(few.plan)).report.metrics == answer.report.metrics
        assert answer.report.metrics == (nothing("validation"), nothing("test"))
        assert leaves(node, answer)

    def test_noised_ones_leave_and_are_paid_for_each_time(self, place: Place) -> None:
        place.settings(release={"data_is": "synthetic"})  # where noise may be one that does not tell five as four
        place.policy()
        node = place.node(privacy={**NOISED, "secure": False}, data=ALONE)
        node.hello()
        for number in (1, 2):
            answer = node.round(number, weights(node.plan))
            assert set(answer.report.metrics[0].values) == {"dice", "hd95_mm"}
            assert leaves(node, answer)
        answer = node.final(3, weights(node.plan))
        assert [m.withheld for m in answer.report.metrics] == ["", ""]
        assert leaves(node, answer)
        validation, test = len(members(node.cohort, "validation")), len(members(node.cohort, "test"))
        assert place.commits("figures") == [
            (1, "validation", validation),
            (2, "validation", validation),
            (3, "validation", validation),
            (3, "test", test),
        ]
        assert place.reader().plan_mechanisms(node.plan.sha256(), "figures") == (Mechanism(0.1, 1.0, 4),)
        assert place.reader().reservations() == ()

    def test_it_is_the_patients_of_the_split_who_pay(self, place: Place) -> None:
        node = place.node(privacy=NOISED, data=ALONE)
        node.round(1, weights(node.plan))
        ledger = place.ledger()
        for patient in place.patients():
            paid = ledger.patient_mechanisms(patient)
            expected: tuple[Mechanism, ...] = ()
            if patient in members(node.cohort, "train"):
                expected = (Mechanism(1.0, 1.0, 2),)
            elif patient in members(node.cohort, "validation"):
                expected = (Mechanism(0.1, 1.0, 1),)
            assert paid == expected

    def test_the_noise_moves_them(self, place: Place) -> None:
        place.settings(release={"data_is": "synthetic"})
        place.policy()
        seeded = {**NOISED, "secure": False}
        node = place.node(privacy=seeded, data=ALONE)
        one, other = (node.round(number, weights(node.plan)).report.metrics[0] for number in (1, 2))
        again = place.node(node.plan).round(1, weights(node.plan)).report.metrics[0]
        assert one.values["hd95_mm"] == again.values["hd95_mm"] != other.values["hd95_mm"]

    def test_a_label_that_is_alone_is_not_noised_twice(self, place: Place) -> None:
        assert place.node(privacy=NOISED, data=ALONE)._telling._names() == ["dice", "hd95_mm"]
        place.policy(metrics={"names": ["dice"], "decimals": 3})
        assert place.node(privacy=NOISED, data=ALONE)._telling._names() == ["dice"]

    def test_where_the_policy_lists_none_nobody_pays(self, place: Place) -> None:
        place.policy(metrics={"names": [], "decimals": 3})
        node = place.node(privacy=NOISED, data=ALONE)
        assert node.round(1, weights(node.plan)).report.metrics == (nothing("validation"),)
        assert place.commits("figures") == []

    def test_where_the_budget_does_not_hold_them_they_look_as_those_of_few(self, place: Place) -> None:
        plan = place.plan(privacy={**NOISED, "metrics_noise": 0.05}, data=ALONE)
        place.policy(privacy={"mechanism": "dp", "epsilon": 50.0, "delta": 1e-5})
        node = place.node(plan)
        answer = node.round(1, weights(plan))
        assert answer.report.metrics == (nothing("validation"),)
        assert [use for use in ("train", "figures") if place.commits(use)] == ["train"]
        assert leaves(node, answer)

    def test_declared_test_data_leave_as_they_are(self, place: Place) -> None:
        plan = place.plan(privacy=NOISED, data=ALONE)
        place.policy(privacy={"mechanism": "none", "test_data": ["validation", "test"], "held_out": 0.4})
        keyed(place)
        node = place.node(plan)
        bare = node.final(3, weights(plan))
        assert leaves(node, bare)
        assert [m.withheld for m in bare.report.metrics] == ["", ""]
        assert place.commits("figures") == []
        assert bare.report.metrics == place.node(plan).final(3, weights(plan)).report.metrics

    def test_one_declared_split_does_not_speak_for_the_other(self, place: Place) -> None:
        plan = place.plan(privacy=GAUSSIAN, data=ALONE)
        place.policy(privacy={"mechanism": "none", "test_data": ["test"], "held_out": 0.25})
        keyed(place)
        node = place.node(plan)
        (validation, test) = node.final(3, weights(plan)).report.metrics
        assert validation == nothing("validation")
        assert test.patients == 5

    def test_figures_of_whole_noised_updates_are_bought_in_the_same_way(self, place: Place) -> None:
        node = place.node(privacy={**UPDATE, "metrics_noise": 0.1}, data=ALONE)
        node.hello()
        answer = node.round(1, weights(node.plan))
        assert leaves(node, answer)
        assert place.commits("figures") == [(1, "validation", 5)]


class TestWhoIsTestData:
    """Where the policy declares test data, the site draws who that is; a plan's seed and shares don't."""

    DECLARED: ClassVar[dict[str, Any]] = {"test_data": ["test"], "held_out": 0.25}

    def cohort(self, place: Place, seed: int, test: float = 0.3, **changes: Any) -> Cohort:
        return place.node(data={"split": {"validation": 0.1, "test": test, "seed": seed}}, **changes).cohort

    def test_who_trains_in_one_plan_is_in_no_bare_figure_of_another(self, place: Place) -> None:
        place.policy(privacy={"mechanism": "dp", "epsilon": 50.0, "delta": 1e-5, **self.DECLARED})
        keyed(place)
        asked = ((1, 0.3), (4, 0.3), (4, 0.1), (0, 0.7))
        cohorts = [self.cohort(place, seed, test, privacy=SAMPLED) for seed, test in asked]
        (told,) = {frozenset(members(cohort, "test")) for cohort in cohorts}
        assert len(told) >= 5
        assert len({frozenset(members(cohort, "train")) for cohort in cohorts}) > 1
        assert not any(told & (members(cohort, "train") | members(cohort, "validation")) for cohort in cohorts)

    def test_the_key_is_made_where_it_is_needed_and_stays(self, place: Place) -> None:
        place.policy(privacy={"mechanism": "none", **self.DECLARED, "held_out": 0.05}, patients={"training": 10})
        key = place.records / "held_out.key"
        balanced = self.cohort(place, 1)
        assert not key.exists()  # a plan without noise: its own split
        place.settings(release={"data_is": "public"})
        self.cohort(place, 1, privacy=GAUSSIAN)
        assert not key.exists()  # data that hide nobody
        place.settings(release={"data_is": "confidential"})
        first = self.cohort(place, 1, privacy=GAUSSIAN)
        made = key.read_bytes()
        again = self.cohort(place, 2, privacy=GAUSSIAN)
        assert members(first, "test") == members(again, "test")
        assert key.read_bytes() == made
        assert [balanced.patients(split) for split in SPLITS] == [15, 2, 7]

    def test_without_the_key_nothing_is_opened(self, place: Place) -> None:
        place.policy(privacy={"mechanism": "none", **self.DECLARED})
        place.records.mkdir()
        place.damage("held_out.key")
        with pytest.raises(JournalError, match="A key of this site can't be read"):
            SiteNode(place.site_file, place.plan(privacy=GAUSSIAN))


class TestWhoTrainedBefore:
    """Who is test data grew, or was drawn anew: who was charged for training is in no bare figure all the same."""

    DP: ClassVar[dict[str, Any]] = {"mechanism": "dp", "epsilon": 50.0, "delta": 1e-5, "test_data": ["test"]}

    def told_about(
        self, node: SiteNode, monkeypatch: pytest.MonkeyPatch, weighed: dict[str, Any]
    ) -> tuple[MetricsRecord, set[str]]:
        """What is told of the test patients at the end, and of whom it was measured."""
        seen: set[str] = set()
        real = telling_module.evaluate

        def watched(network: Any, cases: Any, *rest: Any, **options: Any) -> Any:
            seen.update(case.patient for case in cases)
            return real(network, cases, *rest, **options)

        monkeypatch.setattr(telling_module, "evaluate", watched)
        return node.final(3, weighed).report.metrics[1], seen

    @pytest.mark.parametrize("privacy", [GAUSSIAN, UPDATE], ids=["patients", "updates"])
    def test_a_larger_share_tells_of_nobody_who_trained(
        self, place: Place, monkeypatch: pytest.MonkeyPatch, privacy: dict[str, Any]
    ) -> None:
        """By the plan that goes on, and by another one."""
        split = {"split": {"validation": 0.02, "test": 0.3}}
        place.policy(privacy={**self.DP, "held_out": 0.25})
        keyed(place)
        before = place.node(privacy=privacy, data=split)
        before.round(1, weights(before.plan))
        trained, held = members(before.cohort, "train"), members(before.cohort, "test")
        place.policy(privacy={**self.DP, "held_out": 0.35})
        for later in (place.node(before.plan), place.node(privacy=privacy, data=split, seed=9)):
            moved = members(later.cohort, "test") & trained
            assert moved
            answer, seen = self.told_about(later, monkeypatch, weights(later.plan))
            assert held <= seen <= members(later.cohort, "test") - moved
            assert answer.withheld == ""

    def test_where_too_few_are_left_it_looks_as_if_there_were_nobody(
        self, place: Place, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        split = {"split": {"validation": 0.02, "test": 0.3}}
        place.policy(privacy={**self.DP, "held_out": 0.25})
        keyed(place)
        node = place.node(privacy=GAUSSIAN, data=split)
        test = sorted(members(node.cohort, "test"))
        what = Purchase("f" * 64, "other", "scientific_research", "a", "train", secure=True)
        place.ledger().commit(what, 1, Mechanism(9.0, 1.0, 1), test[: len(test) - 4], NO_LIMITS, 1)
        told, seen = self.told_about(node, monkeypatch, weights(node.plan))
        assert (told, seen) == (nothing("test"), set())

    def test_noise_of_the_server_hides_no_patient_and_who_trained_under_other_noise_still_is(
        self, place: Place, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        split = {"split": {"validation": 0.02, "test": 0.3}}
        place.policy(privacy={"mechanism": "none", "test_data": ["test"], "held_out": 0.3})
        keyed(place)
        node = place.node(privacy={**UPDATE, "mechanism": "central_dp"}, data=split)
        test = sorted(members(node.cohort, "test"))
        assert len(test) >= 6
        what = Purchase("f" * 64, "other", "scientific_research", "a", "train", secure=True)
        place.ledger().commit(what, 1, Mechanism(9.0, 1.0, 1), test[:1], NO_LIMITS, 1)
        _, seen = self.told_about(node, monkeypatch, weights(node.plan))
        assert seen == set(test[1:])

    def test_public_data_are_told_of_whoever_trained(self, place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
        place.settings(release={"data_is": "public"})
        node = place.node(privacy=GAUSSIAN, data=ALONE)
        test = members(node.cohort, "test")
        what = Purchase("f" * 64, "other", "scientific_research", "a", "train", secure=True)
        place.ledger().commit(what, 1, Mechanism(9.0, 1.0, 1), test, NO_LIMITS, 1)
        _, seen = self.told_about(node, monkeypatch, weights(node.plan))
        assert test <= seen


class TestStatistics:
    """Sums over the training patients, before the first round: by the rules of figures."""

    ASKED: ClassVar[dict[str, Any]] = {"data": {"standardise": "federation"}}

    def test_fourteen_are_told_as_fifteen_to_the_policy_s_decimals(self, place: Place) -> None:
        place.policy(metrics={"names": ["dice", "hd95_mm", "intensity_sums"], "decimals": 2})
        node = place.node(**self.ASKED)
        answer = node.statistics()
        assert leaves(node, answer)
        told, exact = answer.report.statistics, sums_over(node.cohort.cases("train"), node.plan)
        assert told is not None
        assert (told.patients, exact.patients) == (15, 14)
        assert told.means == (15 * round(exact.means[0] / 14, 2),)

    def test_a_policy_that_does_not_list_them_keeps_them_here(self, place: Place) -> None:
        place.policy()
        node = place.node(**self.ASKED)
        assert refusals(node.statistics(), node.plan, (), node.bounds) == ("a statistic that is not on the list",)

    def test_who_withdraws_takes_others_along(self, place: Place) -> None:
        place.consent()
        node = place.node(**self.ASKED)
        before = node.statistics().report.statistics
        place.consent(min(members(node.cohort, "train")))
        after = node.statistics().report.statistics
        assert before is not None
        assert after is not None
        assert (before.patients, after.patients) == (15, 15)
        assert sorted(one.patients for one in Told(place.records).remembered()) == [9, 14]

    def test_a_site_that_can_not_tell_says_so(self, place: Place) -> None:
        place.consent()
        other, node = place.node(), place.node(**self.ASKED)
        with pytest.raises(PlanError, match="asks for no statistics"):
            other.statistics()
        place.consent(*sorted(members(node.cohort, "train"))[:5])
        with pytest.raises(CohortError, match="Too few patients would train"):
            node.statistics()
        (place.root / "consent.csv").unlink()
        with pytest.raises(ConsentError, match="until then no patient is used"):
            node.statistics()


class TestADamagedMemory:
    def test_nothing_is_told_that_can_not_be_remembered(self, place: Place) -> None:
        node = place.node()
        telling, outcome = node._telling, TrainingOutcome(0.5, 2, patients=14, lr_sum=0.2)
        node.hello()
        place.damage("told.sqlite")
        with pytest.raises(JournalError, match="record of what was told"):
            telling.patients(node.cohort)
        with pytest.raises(JournalError, match="record of what was told"):
            telling.at_most(node.cohort)
        with pytest.raises(JournalError, match="record of what was told"):
            telling.training(node.cohort, outcome)
        with pytest.raises(JournalError, match="record of what was told"):
            telling.figures(node._network()[0], node.cohort, "validation", 1)

    def test_nor_any_sum(self, place: Place) -> None:
        node = place.node(data={"standardise": "federation"})
        node.hello()
        place.damage("told.sqlite")
        with pytest.raises(JournalError, match="record of what was told"):
            node.statistics()
        with pytest.raises(JournalError, match="record of what was told"):
            node._telling.statistics(node.cohort)

    def test_without_its_key_no_fingerprint_leaves(self, place: Place) -> None:
        node = place.node()
        node.hello()
        place.damage("lineage.key")
        with pytest.raises(JournalError, match="key of this site"):
            node._telling.fingerprint(node.cohort)


class TestPublicData:
    def test_numbers_and_figures_are_as_measured(self, place: Place) -> None:
        place.settings(release={"data_is": "synthetic"})
        node = place.node()
        plan: FederationPlan = node.plan
        telling = Telling(node.site, plan, node.bounds, None)
        assert telling.seconds(1.23456) == 1.2346
        assert telling.patients(node.cohort) == 14
        answer = node.round(1, weights(plan))
        assert answer.report.metrics[0].patients == 5
        assert not (place.records / "told.sqlite").exists()

"""A site that works for a plan with noise: reserved, charged before each step, told of nothing else, released."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from torch import nn

from eucaim_fl.arrays import arrays_sha256
from eucaim_fl.config import StoppingConfig
from eucaim_fl.errors import LedgerError, NotFiniteError, PolicyRefusalError, PrivacyBudgetError, PrivateTrainingError
from eucaim_fl.plan import FederationPlan
from eucaim_fl.privacy.accounting import Mechanism
from eucaim_fl.privacy.budget import Budget
from eucaim_fl.privacy.promise import promise
from eucaim_fl.site.gate import refusals
from eucaim_fl.site.ledger import Ledger, Limits, Purchase, Reservation
from eucaim_fl.site.node import SiteNode
from eucaim_fl.site.policy_privacy import NO_LIMITS
from eucaim_fl.site.private_work import PrivateWork
from eucaim_fl.training import private_loop
from eucaim_fl.training.loop import TrainingOutcome
from eucaim_fl.training.patients import PatientLoader
from eucaim_fl.training.randomness import Randomness
from tests.site.confidential import GAUSSIAN, SAMPLED, UPDATE, Place, length, prepared_here, weights

pytestmark = pytest.mark.integration

SPLIT = {"split": {"validation": 0.4, "test": 0.1}}  # each patient by itself: 13, 5 and 6
DELTA = 1e-5
SEEDED = {"secure": False}
LITTLE_NOISE = Mechanism(0.3, 1.0, 1)


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    with prepared_here(tmp_path_factory.mktemp("hospital")) as place:
        yield place


@pytest.fixture
def place(prepared: Place) -> Place:
    return prepared.begin()


def trained(node: SiteNode) -> frozenset[str]:
    return frozenset(case.patient for case in node.cohort.cases("train"))


def made_up(place: Place) -> None:
    """Let the data hide nobody, so that noise may follow from the seed."""
    place.settings(release={"data_is": "synthetic"})


def dp_policy(plan: FederationPlan, times: float = 1.0, **more: Any) -> dict[str, Any]:
    """A policy whose budget for a plan is so many times what the plan promises."""
    promised = promise(plan)
    assert promised is not None
    return {"mechanism": "dp", "epsilon": promised.epsilon * times, "delta": DELTA, **more}


def burdened(place: Place, patients: set[str], paid: Mechanism = LITTLE_NOISE) -> None:
    """These have paid for another plan before; if nothing is said, for one step of little noise."""
    other = Purchase("f" * 64, "other", "scientific_research", "a", "train", secure=True)
    place.ledger().commit(other, 1, paid, patients, NO_LIMITS, 1)


class TestReserved:
    def test_the_greeting_reserves_what_all_rounds_will_cost(self, place: Place) -> None:
        node = place.node(privacy=SAMPLED, data=SPLIT)
        answer = node.hello()
        (held,) = place.reader().reservations()
        assert held == Reservation(held.what, Mechanism(1.0, 0.5, 4), len(trained(node)))
        what = held.what
        assert (what.plan, what.use, what.dataset, what.secure) == (node.plan.sha256(), "train", "a", True)
        assert refusals(answer, node.plan, node.specs(), node.bounds) == ()

    def test_a_client_that_starts_again_reserves_what_is_left(self, place: Place) -> None:
        node = place.node(privacy={**GAUSSIAN, "metrics_noise": 9.0}, data=SPLIT)
        node.hello()
        node.round(1, weights(node.plan))
        place.node(node.plan).hello()
        held = {(one.what.use, one.what.part): one.mechanism.steps for one in place.reader().reservations()}
        assert held == {("train", ""): 2, ("figures", "validation"): 2, ("figures", "test"): 1}

    def test_figures_of_each_split_are_reserved_beside_each_other(self, place: Place) -> None:
        node = place.node(privacy={**GAUSSIAN, "metrics_noise": 9.0}, data=SPLIT)
        node.hello()
        held = {one.what.part: (one.mechanism, one.patients) for one in place.reader().reservations()}
        assert held[""] == (Mechanism(1.0, 1.0, 4), 13)
        assert held["validation"] == (Mechanism(9.0, 1.0, 3), 5)  # two rounds and the last look
        assert held["test"] == (Mechanism(9.0, 1.0, 1), 6)

    def test_rounds_that_measure_nothing_reserve_nothing_for_figures(self, place: Place) -> None:
        plan = place.plan(privacy={**GAUSSIAN, "metrics_noise": 9.0}, data=SPLIT, rounds=5)
        place.node(plan.model_copy(update={"stopping": StoppingConfig(validate_every=3)})).hello()
        held = {one.what.part: one.mechanism.steps for one in place.reader().reservations()}
        assert held == {"": 2 * 5, "validation": 3, "test": 1}  # the first round, the fourth, and the last look

    def test_a_split_of_which_nothing_may_be_told_reserves_nothing(self, place: Place) -> None:
        place.settings(release={"minimum_metric_patients": 6})
        place.node(privacy={**GAUSSIAN, "metrics_noise": 9.0}, data=SPLIT).hello()
        assert {one.what.part for one in place.reader().reservations()} == {"", "test"}

    def test_the_last_answer_frees_what_was_not_used(self, place: Place) -> None:
        node = place.node(privacy=GAUSSIAN, data=SPLIT)
        node.hello()
        node.round(1, weights(node.plan))
        node.final(3, weights(node.plan))
        assert place.reader().reservations() == ()
        assert place.commits() == [(1, "", 13)]

    def test_a_plan_that_the_budget_does_not_hold_is_refused_before_its_first_step(self, place: Place) -> None:
        plan = place.plan(privacy=GAUSSIAN, data=SPLIT)
        policy = dp_policy(plan)
        place.policy(privacy={**policy, "dataset_epsilon": policy["epsilon"] / 2})
        with pytest.raises(PrivacyBudgetError, match="budget for the data does not hold what is asked") as caught:
            place.node(plan).hello()
        assert not re.search("[0-9]", caught.value.message + caught.value.fix)
        assert place.reader().reservations() == ()

    def test_a_network_that_mixes_patients_is_refused_before_its_first_step(self, place: Place) -> None:
        model = {"args": {"channels": [2, 4], "strides": [2], "num_res_units": 0, "norm": "batch"}}
        with pytest.raises(PrivateTrainingError, match="batch"):
            place.node(privacy=GAUSSIAN, data=SPLIT, model=model).hello()
        assert place.reader().reservations() == ()

    def test_a_delta_that_means_nothing_for_so_few_is_refused(self, place: Place) -> None:
        node = place.node(privacy={**GAUSSIAN, "delta": 0.1}, data=SPLIT)
        with pytest.raises(PrivateTrainingError, match=r"delta is not below 1/patients"):
            node.hello()

    @pytest.mark.parametrize("most", [13, 14, 15, 22])
    def test_deltas_do_not_ask_for_the_exact_number(self, place: Place, most: int) -> None:
        """13 train, 15 are told, and 22 could be: each plan with a delta of 1/22 or more hears the same."""
        node = place.node(privacy={**GAUSSIAN, "delta": 1 / most}, data=SPLIT)
        with pytest.raises(PrivateTrainingError, match="delta"):
            node.hello()
        assert place.reader().reservations() == ()

    @pytest.mark.parametrize(("days", "freed"), [(2, False), (1, True)])
    def test_what_another_plan_left_idle_for_too_long_is_taken_back(self, place: Place, days: int, freed: bool) -> None:
        """The other one was heard of 36 hours ago, and what it holds leaves room for one half of this plan."""
        plan = place.plan(privacy=GAUSSIAN, data=SPLIT)
        policy = dp_policy(plan, reserved_days=days)
        budget = {"dataset_epsilon": Budget(policy["epsilon"], DELTA).used([Mechanism(1.0, 1.0, 6)])}
        place.policy(privacy={**policy, **budget})
        other = Purchase("e" * 64, "other", "scientific_research", "a", "train", secure=True)
        was = datetime.now(UTC) - timedelta(hours=36)
        early = Ledger(place.records / "ledger", "a", clock=lambda: was)
        early.reserve(other, Mechanism(1.0, 1.0, 4), place.patients(), NO_LIMITS, 1)
        node = place.node(plan)
        if not freed:
            with pytest.raises(PrivacyBudgetError, match="budget for the data"):
                node.hello()
        else:
            node.hello()
        assert [one.what.plan for one in place.reader().reservations()] == [plan.sha256() if freed else other.plan]
        kinds = [entry.kind for entry in place.reader().entries()]
        assert kinds == (["reserved", "released", "reserved"] if freed else ["reserved"])

    def test_one_below_all_that_could_be_meant_is_taken(self, place: Place) -> None:
        assert place.node(privacy={**GAUSSIAN, "delta": 0.999 / 22}, data=SPLIT).hello().report.patients == 15


class TestRoundsOfPatients:
    def test_the_loader_that_is_trained_on_is_paid_for_before(
        self, place: Place, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        node = place.node(privacy=SAMPLED, data=SPLIT)
        seen: list[tuple[frozenset[str], Mechanism]] = []
        real = private_loop.train_privately

        def watched(network: Any, loader: PatientLoader, *rest: Any, number: int) -> int:
            paid = {p: place.ledger().patient_mechanisms(p) for p in place.patients()}
            assert {p for p, several in paid.items() if several} == loader.patients == trained(node)
            assert {several for p, several in paid.items() if several} == {(loader.mechanism,)}
            assert rest[1] == 15  # the number of patients as it is told, not 13
            assert number == 1
            seen.append((loader.patients, loader.mechanism))
            return real(network, loader, *rest, number=number)

        monkeypatch.setattr(private_loop, "train_privately", watched)
        node.hello()
        node.round(1, weights(node.plan))
        assert [mechanism for _, mechanism in seen] == [Mechanism(1.0, 0.5, 2)]
        assert place.commits() == [(1, "", 13)]

    def test_all_that_is_told_of_it_passes_the_gate(self, place: Place) -> None:
        node = place.node(privacy=SAMPLED, data=SPLIT)
        answer = node.round(1, weights(node.plan))
        report = answer.report
        assert (report.train_loss, report.seen, report.steps, report.patients) == (None, 0, 2, 15)
        assert length(dict(answer.update)) > 0
        assert refusals(answer, node.plan, node.specs(), node.bounds) == ()

    def test_a_round_that_is_killed_after_the_charge_stays_charged(
        self, place: Place, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        node = place.node(privacy=GAUSSIAN, data=SPLIT)
        node.hello()
        with monkeypatch.context() as patch:
            patch.setattr(private_loop, "train_privately", _killed)
            with pytest.raises(KeyboardInterrupt):
                node.round(1, weights(node.plan))
        assert place.commits() == [(1, "", 13)]
        again = place.node(node.plan)
        again.hello()
        again.round(1, weights(node.plan))
        assert place.commits() == [(1, "", 13), (1, "", 13)]
        assert place.reader().plan_mechanisms(node.plan.sha256()) == (Mechanism(1.0, 1.0, 4),)

    def test_a_round_that_is_asked_for_again_is_charged_again(self, place: Place) -> None:
        node = place.node(privacy=GAUSSIAN, data=SPLIT)
        for number in (1, 1, 2):
            node.round(number, weights(node.plan))
        assert [number for number, _, _ in place.commits()] == [1, 1, 2]

    def test_training_that_diverges_was_paid_for(self, place: Place) -> None:
        loud, fast = {**GAUSSIAN, "noise_multiplier": 1e5}, {"local_steps": 2, "optimizer": {"lr": 1e38}}
        node = place.node(privacy=loud, data=SPLIT, training=fast)
        with pytest.raises(NotFiniteError, match="not finite"):
            node.round(1, weights(node.plan))
        assert place.commits() == [(1, "", 13)]


def _killed(*_: Any, **__: Any) -> int:
    raise KeyboardInterrupt


class TestRandomness:
    def update(self, place: Place, number: int = 1, **privacy: Any) -> str:
        made_up(place.begin())
        node = place.node(privacy={**SAMPLED, **SEEDED, **privacy}, data=SPLIT)
        return arrays_sha256(node.round(number, weights(node.plan)).update)

    def test_a_seed_repeats_a_round_to_the_bit(self, place: Place) -> None:
        assert self.update(place) == self.update(place) != self.update(place, 2)

    def test_a_secure_source_never_does(self, place: Place) -> None:
        assert self.update(place, secure=True) != self.update(place, secure=True)

    def test_every_round_and_use_has_a_stream_of_its_own(self, place: Place) -> None:
        made_up(place)
        plan = place.plan(privacy={**SAMPLED, **SEEDED}, data=SPLIT)
        work = place.node(plan)._private
        assert isinstance(work, PrivateWork)
        asked = [(1, "train"), (2, "train"), (1, "update"), (1, "figures validation"), (1, "figures test")]
        drawn = {float(work.randomness(number, use).uniform(1)[0]) for number, use in asked}
        assert len(drawn) == len(asked)
        assert not work.randomness(1, "train").is_secure
        secure = place.node(privacy=SAMPLED, data=SPLIT)._private
        assert secure is not None
        assert secure.randomness(1, "train").is_secure


class TestBudgets:
    def test_a_round_that_the_plan_s_budget_does_not_hold_is_not_begun(self, place: Place) -> None:
        plan = place.plan(privacy=GAUSSIAN, data=SPLIT)
        place.policy(privacy=dp_policy(plan, 1.01))  # two rounds, and no third
        node, arriving = place.node(plan), weights(plan)
        node.hello()
        for number in (1, 1):
            node.round(number, arriving)
        before, sent = place.reader().head(), arrays_sha256(arriving)
        with pytest.raises(PrivacyBudgetError, match="budget for one plan does not hold what is asked") as caught:
            node.round(2, arriving)
        assert caught.value.code == "EFL401"
        assert not re.search("[0-9]", caught.value.message + caught.value.fix)
        assert place.reader().head() == before
        assert arrays_sha256(arriving) == sent
        final = node.final(3, arriving)  # the last complete model can be looked at
        assert final.report.kind == "final"

    def test_patients_without_budget_leave_and_the_others_train(
        self, place: Place, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        plan = place.plan(privacy=GAUSSIAN, data=SPLIT)
        place.policy(privacy=dp_policy(plan, 2.0, patient_epsilon=15.0))
        node = place.node(plan)
        tired = set(sorted(trained(node))[:3])
        burdened(place, tired)
        trained_on: list[frozenset[str]] = []
        real = private_loop.train_privately

        def watched(network: Any, loader: PatientLoader, *rest: Any, number: int) -> int:
            trained_on.append(loader.patients)
            return real(network, loader, *rest, number=number)

        monkeypatch.setattr(private_loop, "train_privately", watched)
        node.hello()
        report = node.round(1, weights(plan)).report
        assert trained_on == [trained(node) - tired]
        assert place.commits()[1:] == [(1, "", 10)]
        assert report.patients == 15  # that somebody left is not told

    @pytest.mark.parametrize("privacy", [GAUSSIAN, UPDATE], ids=["patients", "updates"])
    def test_nobody_pays_for_figures_of_a_round_that_can_not_be_trained(
        self, place: Place, privacy: dict[str, Any]
    ) -> None:
        plan = place.plan(privacy={**privacy, "metrics_noise": 9.0}, data=SPLIT)
        place.policy(privacy=dp_policy(plan, 2.0, patient_epsilon=15.0))
        node = place.node(plan)
        node.hello()
        burdened(place, set(trained(node)))
        with pytest.raises(PrivacyBudgetError, match="Too few patients"):
            node.round(1, weights(plan))
        assert place.commits("figures") == []

    def test_a_round_s_delta_is_judged_by_all_who_could_be_meant(self, place: Place) -> None:
        """13 train, 15 are told and 22 could be: who is not greeted is asked no other question than who is."""
        node = place.node(privacy={**GAUSSIAN, "delta": 1 / 16}, data=SPLIT)
        with pytest.raises(PrivateTrainingError, match="delta is not below"):
            node.round(1, weights(node.plan))
        assert place.commits() == []

    def test_who_could_pay_for_one_round_but_not_for_all_is_in_none(self, place: Place) -> None:
        """Otherwise how many train in a round would follow from what a few of them have spent."""
        budget, once = Budget(14.0, DELTA), Mechanism(1.0, 1.0, 2)
        most = max(k for k in range(1, 40) if budget.holds([Mechanism(1.0, 1.0, k), once]))
        plan = place.plan(privacy=GAUSSIAN, data=SPLIT)
        place.policy(privacy={"mechanism": "dp", "epsilon": 13.9, "delta": DELTA, "patient_epsilon": 14.0})
        node = place.node(plan)
        tired = set(sorted(trained(node))[:2])
        burdened(place, tired, Mechanism(1.0, 1.0, most))
        node.hello()
        assert [one.patients for one in place.reader().reservations()] == [11]
        for number in (1, 2):
            node.round(number, weights(plan))
        assert place.commits()[1:] == [(1, "", 11), (2, "", 11)]

    def test_the_same_counts_for_figures(self, place: Place) -> None:
        """Three looks at six patients would cost more than one of them has left; one look would not."""
        plan = place.plan(privacy={**GAUSSIAN, "metrics_noise": 2.0}, data={"split": {"validation": 0.45, "test": 0.1}})
        budget, look = Budget(14.0, DELTA), Mechanism(2.0, 1.0, 1)
        most = max(k for k in range(1, 99) if budget.holds([Mechanism(2.0, 1.0, k), look]))
        place.policy(privacy={"mechanism": "dp", "epsilon": 13.9, "delta": DELTA, "patient_epsilon": 14.0})
        node = place.node(plan)
        watched = sorted({case.patient for case in node.cohort.cases("validation")})
        burdened(place, {watched[0]}, Mechanism(2.0, 1.0, most))
        node.hello()
        for number in (1, 2):
            node.round(number, weights(plan))
        assert place.commits("figures") == [(n, "validation", len(watched) - 1) for n in (1, 2)]

    def test_too_few_left_is_an_error_that_tells_no_number(self, place: Place) -> None:
        plan = place.plan(privacy=GAUSSIAN, data=SPLIT)
        place.policy(privacy=dp_policy(plan, 2.0, patient_epsilon=15.0))
        node = place.node(plan)
        node.hello()
        burdened(place, set(sorted(trained(node))[:4]))
        with pytest.raises(
            PrivacyBudgetError, match="Too few patients of this site have privacy budget left"
        ) as caught:
            node.round(1, weights(plan))
        assert caught.value.code == "EFL401"
        assert not re.search("[0-9]", caught.value.message + caught.value.fix)
        assert place.commits() == [(1, "", 4)]  # of the other plan alone


class TestThePolicyWithoutABorder:
    """Engines that start sites' clients without a border, and a person who does, keep the policy's privacy too."""

    DP: ClassVar[dict[str, Any]] = {"mechanism": "dp", "epsilon": 100.0, "delta": DELTA}

    @pytest.mark.parametrize(
        "privacy",
        [
            None,
            {**GAUSSIAN, **SEEDED},
            {**UPDATE, "mechanism": "central_dp"},
            {**GAUSSIAN, "delta": 2e-5},
            {**GAUSSIAN, "noise_multiplier": 0.05},
        ],
        ids=["no noise", "noise by a seed", "noise of the server", "a larger delta", "a larger epsilon"],
    )
    def test_a_plan_with_less_privacy_than_it_requires_is_not_opened(
        self, place: Place, privacy: dict[str, Any] | None
    ) -> None:
        place.policy(privacy=self.DP)
        plan = place.plan(data=SPLIT) if privacy is None else place.plan(privacy=privacy, data=SPLIT)
        with pytest.raises(PolicyRefusalError, match="policy refuses the plan: privacy"):
            SiteNode(place.site_file, plan)
        assert not place.records.exists()

    def test_a_policy_that_is_silent_on_privacy_allows_none(self, place: Place) -> None:
        place.policy(privacy={})
        for plan in (place.plan(), place.plan(privacy=GAUSSIAN, data=SPLIT)):
            with pytest.raises(PolicyRefusalError, match="policy refuses the plan: privacy"):
                SiteNode(place.site_file, plan)

    @pytest.mark.parametrize("with_policy", [False, True], ids=["no policy", "a policy"])
    @pytest.mark.parametrize(
        "privacy", [GAUSSIAN, UPDATE, {**UPDATE, "mechanism": "central_dp"}], ids=lambda one: str(one["mechanism"])
    )
    def test_noise_that_the_coordinator_can_foresee_is_none_for_confidential_data(
        self, place: Place, privacy: dict[str, Any], with_policy: bool
    ) -> None:
        if with_policy:
            place.policy(privacy={"mechanism": "none"})
        plan = place.plan(privacy={**privacy, **SEEDED}, data=SPLIT)
        with pytest.raises(PrivateTrainingError, match=r"a seed that the coordinator knows .*confidential") as caught:
            SiteNode(place.site_file, plan)
        assert (caught.value.code, caught.value.fix) == ("EFL403", "Set privacy.secure to true.")
        assert not place.records.exists()
        SiteNode(place.site_file, place.plan(privacy=privacy, data=SPLIT))
        for open_data in ("public", "synthetic"):
            place.settings(release={"data_is": open_data})
            SiteNode(place.site_file, plan)

    def test_what_it_requires_is_enough(self, place: Place) -> None:
        place.policy(privacy=self.DP)
        assert SiteNode(place.site_file, place.plan(privacy=GAUSSIAN, data=SPLIT)).hello().report.patients == 15


class TestByItself:
    """The same without the node around it: what it may not do, it does not do."""

    def work(self, place: Place, node: SiteNode, limits: Limits = NO_LIMITS) -> PrivateWork:
        return PrivateWork(place.node(node.plan).site, node.plan, limits, node.bounds.least, 30)

    def test_what_can_not_be_kept_is_not_prepared(self, place: Place) -> None:
        node = place.node(privacy=GAUSSIAN, data=SPLIT)
        network, little = node._network()[0], replace(NO_LIMITS, plan=Budget(0.1, DELTA))
        with pytest.raises(PrivacyBudgetError, match="budget for one plan"):
            self.work(place, node, little).prepare(network, node.cohort, frozenset(), 22)
        vague = place.node(privacy={**GAUSSIAN, "delta": 0.1}, data=SPLIT)
        with pytest.raises(PrivateTrainingError, match="delta is not below"):
            self.work(place, vague).prepare(network, vague.cohort, frozenset(), 22)
        assert place.reader().reservations() == ()

    def test_delta_is_judged_by_the_number_that_is_told(self, place: Place) -> None:
        """13 train; a plan that could ask for this number by its delta would know who came and who left."""
        node = place.node(privacy={**GAUSSIAN, "delta": 1 / 14}, data=SPLIT)
        network, work = node._network()[0], self.work(place, node)
        with pytest.raises(PrivateTrainingError, match="delta is not below"):
            work.prepare(network, node.cohort, frozenset(), 14)
        with pytest.raises(PrivateTrainingError, match="delta is not below"):
            work.charge_patients(node.cohort.cases("train"), 14, 1)
        work.prepare(network, node.cohort, frozenset(), 13)
        assert place.commits() == []
        whole = place.node(privacy={**UPDATE, "delta": 1 / 14}, data=SPLIT)
        with pytest.raises(PrivateTrainingError, match="delta is not below"):
            self.work(place, whole).charge_update(trained(whole), 14, 1)
        assert place.commits() == []
        self.work(place, whole).charge_update(trained(whole), 13, 1)
        assert place.commits() == [(1, "", 13)]

    def test_what_can_not_be_paid_is_not_done(self, place: Place) -> None:
        node = place.node(privacy={**UPDATE, "metrics_noise": 1.0}, data=SPLIT)
        work = self.work(place, node, replace(NO_LIMITS, plan=Budget(0.1, DELTA)))
        with pytest.raises(PrivacyBudgetError, match="budget for one plan"):
            work.charge_update(trained(node), 22, 1)
        sampled = self.work(place, place.node(privacy=GAUSSIAN, data=SPLIT), work._limits)
        with pytest.raises(PrivacyBudgetError, match="budget for one plan"):
            sampled.charge_patients(node.cohort.cases("train"), 22, 1)
        with pytest.raises(PrivacyBudgetError, match="budget for one plan"):
            work.pay_for_figures(node.cohort, "validation", 1)
        assert place.reader().head().count == 0

    def test_a_network_that_diverges_is_an_error(self, place: Place) -> None:
        loud, fast = {**GAUSSIAN, "noise_multiplier": 1e5}, {"local_steps": 2, "optimizer": {"lr": 1e38}}
        node = place.node(privacy=loud, data=SPLIT, training=fast)
        work, network = self.work(place, node), node._network()[0]
        paid = work.charge_patients(node.cohort.cases("train"), 22, 1)
        with pytest.raises(NotFiniteError, match="not finite"):
            work.train(network, paid, 15)

    def test_a_network_that_mixes_patients_is_not_trained(self, place: Place) -> None:
        node = place.node(privacy=GAUSSIAN, data=SPLIT)
        work = self.work(place, node)
        paid = work.charge_patients(node.cohort.cases("train"), 22, 1)
        with pytest.raises(PrivateTrainingError, match="mix the patients of a batch"):
            work.train(nn.Sequential(nn.Conv2d(1, 1, 1), nn.BatchNorm2d(1)), paid, 15)


class TestADamagedLedger:
    def test_nothing_begins_on_it(self, place: Place) -> None:
        node = place.node(privacy=GAUSSIAN, data=SPLIT)
        place.damage("ledger/ledger.sqlite")
        with pytest.raises(LedgerError, match="privacy ledger"):
            PrivateWork(node.site, node.plan, NO_LIMITS, node.bounds.least, 30)
        with pytest.raises(LedgerError, match="privacy ledger"):
            place.node(node.plan)

    def test_nothing_is_reserved_trained_told_or_freed(self, place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
        node = place.node(privacy={**GAUSSIAN, "metrics_noise": 1.0}, data=SPLIT)
        bare = place.node(privacy=GAUSSIAN, data=SPLIT)
        network, _ = node._network()
        work, arriving = node._private, weights(node.plan)
        assert work is not None
        place.damage("ledger/ledger.sqlite")
        monkeypatch.setattr(private_loop, "train_privately", _killed)
        with pytest.raises(LedgerError, match="privacy ledger"):
            node.hello()
        with pytest.raises(LedgerError, match="privacy ledger"):
            work.prepare(network, node.cohort, frozenset(), 22)
        with pytest.raises(LedgerError, match="privacy ledger"):
            bare.round(1, arriving)
        with pytest.raises(LedgerError, match="privacy ledger"):
            work.charge_patients(node.cohort.cases("train"), 22, 1)
        with pytest.raises(LedgerError, match="privacy ledger"):
            work.trained(trained(node))
        with pytest.raises(LedgerError, match="privacy ledger"):
            work.pay_for_figures(node.cohort, "validation", 1)
        with pytest.raises(LedgerError, match="privacy ledger"):
            node._telling.figures(network, node.cohort, "validation", 1)
        with pytest.raises(LedgerError, match="privacy ledger"):
            work.end()
        with pytest.raises(LedgerError, match="privacy ledger"):
            work._ledger.among_reserved(work._purchase("train"), trained(node))

    def test_a_whole_update_is_not_trained(self, place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
        node = place.node(privacy=UPDATE, data=SPLIT)
        assert node._private is not None
        place.damage("ledger/ledger.sqlite")
        monkeypatch.setattr("eucaim_fl.site.node.train_round", _killed)
        with pytest.raises(LedgerError, match="privacy ledger"):
            node._private.charge_update(trained(node), 22, 1)
        with pytest.raises(LedgerError, match="privacy ledger"):
            node.round(1, weights(node.plan))

    @pytest.mark.parametrize("privacy", [GAUSSIAN, UPDATE], ids=["patients", "updates"])
    def test_a_round_of_a_plan_that_means_nothing_is_not_trained(self, place: Place, privacy: dict[str, Any]) -> None:
        node = place.node(privacy={**privacy, "delta": 0.1}, data=SPLIT)  # nobody was greeted
        with pytest.raises(PrivateTrainingError, match="delta is not below"):
            node.round(1, weights(node.plan))
        assert place.commits() == []


def _diverged(*_: Any, **__: Any) -> None:
    raise NotFiniteError("The loss is not finite.")


def _overflown(network: nn.Module, *_: Any, **__: Any) -> TrainingOutcome:
    """The last step takes the weights out of what can be written."""
    with torch.no_grad():
        for weight in network.parameters():
            weight.fill_(torch.inf)
    return TrainingOutcome(0.5, 2, patients=13, lr_sum=0.2)


class TestWholeUpdates:
    """n values with noise of 2 · 0.5 each, on an update of length 0.5 at most: the length is near √n."""

    def test_the_length_of_what_leaves_is_that_of_the_noise(self, place: Place) -> None:
        made_up(place)
        node = place.node(privacy={**UPDATE, **SEEDED}, data=SPLIT)
        answer = node.round(1, weights(node.plan))
        values = np.concatenate([a.ravel() for a in answer.update.values() if a.dtype.kind == "f"])
        n = len(values)
        assert n > 100
        assert abs(length(dict(answer.update)) - np.sqrt(n)) < 0.5 + 4 / np.sqrt(2)
        assert abs(float(values.mean())) < (4 + 0.5) / np.sqrt(n)
        assert refusals(answer, node.plan, node.specs(), node.bounds) == ()
        assert (answer.report.train_loss, answer.report.seen, answer.report.steps) == (None, 0, 2)

    def test_the_same_seed_gives_the_same_noise_and_a_secure_source_never_does(self, place: Place) -> None:
        def update(**privacy: Any) -> str:
            made_up(place.begin())
            node = place.node(privacy={**UPDATE, **SEEDED, **privacy}, data=SPLIT)
            return arrays_sha256(node.round(1, weights(node.plan)).update)

        assert update() == update()
        assert update(secure=True) != update(secure=True)

    def test_all_patients_are_charged_against_twice_the_clipping_norm(self, place: Place) -> None:
        node = place.node(privacy=UPDATE, data=SPLIT)
        node.hello()
        assert [one.mechanism for one in place.reader().reservations()] == [Mechanism(1.0, 1.0, 2)]
        node.round(1, weights(node.plan))
        assert place.commits() == [(1, "", 13)]
        assert place.reader().plan_mechanisms(node.plan.sha256()) == (Mechanism(1.0, 1.0, 1),)

    def test_counters_leave_as_they_came(self, place: Place) -> None:
        model = {"args": {"channels": [2, 4], "strides": [2], "num_res_units": 0, "norm": "batch"}}
        node = place.node(privacy=UPDATE, data=SPLIT, model=model)
        arriving = weights(node.plan)
        update = node.round(1, arriving).update
        counters = [name for name in arriving if arriving[name].dtype.kind == "i"]
        assert counters
        assert all(np.array_equal(update[name], arriving[name]) for name in counters)

    def test_who_can_not_pay_keeps_the_update_of_all(self, place: Place) -> None:
        plan = place.plan(privacy=UPDATE, data=SPLIT)
        place.policy(privacy=dp_policy(plan, 2.0, patient_epsilon=15.0))
        node = place.node(plan)
        burdened(place, {min(trained(node))})
        for call in (node.hello, lambda: node.round(1, weights(plan))):
            with pytest.raises(PrivacyBudgetError, match="Too few patients"):
                call()
        assert place.commits() == [(1, "", 1)]
        assert place.reader().reservations() == ()

    @pytest.mark.parametrize("broken", [_diverged, _overflown])
    def test_training_that_is_not_finite_looks_like_any_other(
        self, place: Place, monkeypatch: pytest.MonkeyPatch, broken: Callable[..., Any]
    ) -> None:
        """With weights that overflow on one bright image alone, an error would say that this patient is here."""
        made_up(place)
        node = place.node(privacy={**UPDATE, **SEEDED}, data=SPLIT)
        monkeypatch.setattr("eucaim_fl.site.node.train_round", broken)
        answer = node.round(1, weights(node.plan))
        values = np.concatenate([a.ravel() for a in answer.update.values() if a.dtype.kind == "f"])
        assert np.isfinite(values).all()
        assert abs(length(dict(answer.update)) - np.sqrt(len(values))) < 4 / np.sqrt(2)  # of the noise alone
        assert refusals(answer, node.plan, node.specs(), node.bounds) == ()
        assert (answer.report.train_loss, answer.report.seen, answer.report.steps) == (None, 0, 2)
        assert place.commits() == [(1, "", 13)]

    def test_steps_that_follow_from_the_number_of_cases_are_not_told(self, place: Place) -> None:
        node = place.node(privacy=UPDATE, data=SPLIT, training={"local_steps": None, "local_epochs": 1})
        assert node.round(1, weights(node.plan)).report.steps == 0

    def test_an_update_that_is_not_finite_stays(self, place: Place) -> None:
        work = place.node(privacy=UPDATE, data=SPLIT)._private
        assert work is not None
        with pytest.raises(NotFiniteError, match="not finite"):
            work.hidden({"w": np.array([np.nan])}, {"w": np.zeros(1)}, 1)


class TestCentralNoise:
    def test_the_site_is_charged_for_nothing_and_still_keeps_its_loss(self, place: Place) -> None:
        node = place.node(privacy={**UPDATE, "mechanism": "central_dp"}, data=SPLIT)
        node.hello()
        answer = node.round(1, weights(node.plan))
        assert place.reader().reservations() == ()
        assert place.commits() == []
        assert (answer.report.train_loss, answer.report.seen) == (None, 0)
        assert refusals(answer, node.plan, node.specs(), node.bounds) == ()


class TestWithoutNoise:
    def test_there_is_no_ledger(self, place: Place) -> None:
        node = place.node()
        node.hello()
        node.round(1, weights(node.plan))
        assert not (place.records / "ledger").exists()

    def test_nothing_can_be_charged_for(self, place: Place) -> None:
        node = place.node(privacy={**UPDATE, "mechanism": "central_dp"}, data=SPLIT)
        work = node._private
        assert work is not None
        assert not work.charges_training
        with pytest.raises(PrivateTrainingError, match="no noise on figures to charge for"):
            work.pay_for_figures(node.cohort, "validation", 1)


def test_a_secure_plan_takes_no_seed(place: Place) -> None:
    node = place.node(privacy=SAMPLED, data=SPLIT)
    with pytest.raises(RuntimeError, match="secure"):
        PatientLoader(node.cohort.cases("train"), node.plan, Randomness.seeded(0))

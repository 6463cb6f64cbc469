"""Plans that let one batch stand for a round, and what a site with confidential data does with them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from eucaim_fl.config import TrainingConfig
from eucaim_fl.plan import FederationPlan
from eucaim_fl.site import personal
from eucaim_fl.site.answers import Answer
from eucaim_fl.site.concentration import _forgets, few_behind, most_patients, one_batch
from eucaim_fl.site.gate import refusals
from eucaim_fl.site.node import SiteNode
from eucaim_fl.training.loop import train_round
from tests.site.confidential import Place, prepared_here, weights

Plans = Callable[..., FederationPlan]
PLAIN: dict[str, Any] = {"name": "sgd", "lr": 0.01, "momentum": 0.0}


def planned(plan_for: Plans, method: dict[str, Any] | None = None, **training: Any) -> FederationPlan:
    """Batches of 8 with a learning rate of 0.01, 100 steps a round."""
    values = {"batch_size": 8, "local_steps": 100, "optimizer": PLAIN, **training}
    return plan_for(method=method or {}, training=values)


class TestOneBatch:
    @pytest.mark.parametrize(
        ("method", "training", "alone"),
        [
            ({}, {}, False),
            ({"objective": {"name": "proximal"}}, {}, False),  # the default, mu 0.01
            ({"objective": {"name": "proximal"}}, {"local_steps": None, "local_epochs": 5}, False),
            ({"objective": {"name": "proximal", "mu": 1.0}}, {}, False),
            ({"objective": {"name": "proximal", "mu": 1.1}}, {}, True),
            ({"objective": {"name": "proximal", "mu": 1.1}}, {"local_steps": 90}, False),
            ({"objective": {"name": "proximal", "mu": 100.0}}, {}, True),
            ({"objective": {"name": "proximal", "mu": 100.0}}, {"local_steps": None, "local_epochs": 1}, True),
            ({"objective": {"name": "proximal", "mu": 2.0}}, {"optimizer": {"name": "adam", "lr": 0.01}}, True),
            ({"objective": {"name": "dynamic", "mu": 0.1}}, {}, False),
            ({"objective": {"name": "dynamic", "mu": 100.0}}, {}, True),
            ({"objective": {"name": "none", "mu": 100.0}}, {}, False),
            ({"objective": {"name": "scaffold"}}, {"local_steps": 1}, True),
            ({}, {"optimizer": {**PLAIN, "weight_decay": 0.01}}, False),
            ({}, {"optimizer": {**PLAIN, "weight_decay": 100.0}}, True),
            ({"objective": {"name": "proximal", "mu": 0.6}}, {"optimizer": {**PLAIN, "weight_decay": 0.6}}, True),
            ({"personal": {"ditto": 100.0}}, {}, False),  # of the update: the personal model is another
        ],
    )
    def test_it_stands_for_an_update(
        self, plan_for: Plans, method: dict[str, Any], training: dict[str, Any], alone: bool
    ) -> None:
        plan = planned(plan_for, method, **training)
        assert one_batch(plan, "update") is alone
        limit = most_patients(plan, "update", confidential=True)
        assert limit == (8 if alone else None if plan.training.local_steps is None else 8 * plan.training.local_steps)

    def test_of_public_data_steps_alone_count(self, plan_for: Plans) -> None:
        plan = planned(plan_for, {"objective": {"name": "scaffold"}}, local_steps=3)
        assert most_patients(plan, "update", confidential=False) == 24
        assert most_patients(plan, "update", confidential=True) == 8

    @pytest.mark.parametrize(
        ("own", "alone"),
        [
            ({"ditto": 0.1}, set()),
            ({"ditto": 1.0}, set()),
            ({"ditto": 1.1}, {"personal"}),
            ({"ditto": 1.1, "local": True, "blend": True}, {"personal", "blended"}),
            ({"fine_tune_steps": 10**6}, set()),
            ({"local": True}, set()),
        ],
    )
    def test_it_stands_for_a_model_of_the_site_s_own(
        self, plan_for: Plans, own: dict[str, Any], alone: set[str]
    ) -> None:
        plan = planned(plan_for, {"personal": own})
        assert {model for model in plan.method.personal.candidates() if one_batch(plan, model)} == alone
        assert few_behind(plan, 10, confidential=True) == alone
        assert not few_behind(plan, 8, confidential=True)
        assert not few_behind(plan, 10, confidential=False)

    def test_weight_decay_makes_all_that_is_trained_here_forget(self, plan_for: Plans) -> None:
        own = {"fine_tune_steps": 100, "local": True, "blend": True}
        plan = planned(plan_for, {"personal": own}, optimizer={**PLAIN, "weight_decay": 1.1})
        assert few_behind(plan, 10, confidential=True) == {"personal", "local", "blended"}

    def test_layers_of_the_site_s_own_are_trained_with_the_update(self, plan_for: Plans) -> None:
        plan = planned(plan_for, {"objective": {"name": "scaffold"}, "personal": {"arrays": "head"}})
        assert one_batch(plan, "personal")

    def test_few_steps_of_fine_tuning_see_few(self, plan_for: Plans) -> None:
        plan = planned(plan_for, {"personal": {"fine_tune_steps": 2, "local": True, "blend": True}})
        assert [most_patients(plan, what, confidential=False) for what in plan.method.personal.candidates()] == [
            None, 16, 800, 16,
        ]  # fmt: skip
        assert few_behind(plan, 17, confidential=False) == {"personal", "blended"}

    def test_without_a_number_of_steps_the_site_s_own_number_is_the_limit(self, plan_for: Plans) -> None:
        plan = planned(plan_for, {"personal": {"local": True, "blend": True}}, local_steps=None, local_epochs=1)
        assert most_patients(plan, "blended", confidential=True) is None

    @given(st.floats(0.0, 10.0), st.floats(1e-6, 10.0), st.floats(0.0, 10.0), st.integers(1, 3000))
    def test_where_it_does_not_the_first_step_counts_a_third_of_the_last(
        self, mu: float, lr: float, decay: float, steps: int
    ) -> None:
        """Of what a step of plain SGD learnt, each later one leaves 1 − lr · (mu + decay)."""
        optimizer = {**PLAIN, "lr": lr, "weight_decay": decay}
        training = TrainingConfig.model_validate({"local_steps": steps, "optimizer": optimizer})
        if not _forgets(training, mu, steps):
            assert (1 - lr * (mu + decay)) ** (steps - 1) > 1 / 3


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    with prepared_here(tmp_path_factory.mktemp("concentration")) as place:
        yield place


@pytest.fixture
def place(written: Place) -> Place:
    return written.begin()


def of_a_batch(place: Place, batch: int, lr: float = 0.001, **method: Any) -> FederationPlan:
    """14 patients a round, whatever the batch."""
    training = {"batch_size": batch, "local_steps": -(-14 // batch), "optimizer": {**PLAIN, "lr": lr}}
    return place.plan(training=training, method=method)


@pytest.mark.integration
@pytest.mark.usefixtures("one_thread")
class TestConfidentialData:
    REASON = ("an update that one batch of fewer patients than the site's minimum can stand for",)

    def round(self, place: Place, plan: FederationPlan) -> tuple[str, ...]:
        node = place.node(plan)
        return refusals(node.round(1, weights(plan)), plan, node.specs(), node.bounds)

    @pytest.mark.parametrize(
        "objective",
        [{"name": "scaffold"}, {"name": "proximal", "mu": 1000.0}, {"name": "dynamic", "mu": 1000.0}],
        ids=lambda objective: objective["name"],
    )
    def test_an_update_that_one_batch_of_few_can_stand_for_does_not_leave(
        self, place: Place, objective: dict[str, Any]
    ) -> None:
        assert self.round(place, of_a_batch(place, 1, objective=objective)) == self.REASON
        assert self.round(place, of_a_batch(place, 10, objective=objective)) == ()

    def test_of_public_data_it_does(self, place: Place) -> None:
        place.settings(release={"data_is": "public"})
        assert self.round(place, of_a_batch(place, 1, objective={"name": "scaffold"})) == ()

    def test_an_ordinary_plan_passes(self, place: Place) -> None:
        assert self.round(place, of_a_batch(place, 1, objective={"name": "proximal"})) == ()

    def final(self, place: Place, plan: FederationPlan) -> tuple[SiteNode, Answer, dict[str, bool]]:
        """The last exchange, and of which models figures are told."""
        node = place.node(plan)
        answer = node.final(plan.rounds + 1, weights(plan))
        assert refusals(answer, plan, (), node.bounds) == ()
        told = {record.model: not record.withheld for record in answer.report.metrics}
        return node, answer, told

    @pytest.mark.parametrize(("steps", "told"), [(1, False), (9, False), (10, True)], ids=["one", "nine", "ten"])
    def test_figures_of_a_model_that_was_fine_tuned_on_few_stay(self, place: Place, steps: int, told: bool) -> None:
        plan = of_a_batch(place, 1, personal={"fine_tune_steps": steps, "local": True, "blend": True, "choose": True})
        _, answer, given = self.final(place, plan)
        assert given == {"common": True, "personal": told, "local": True, "blended": told}
        assert (answer.report.chosen is None) is not told

    def test_the_patients_whom_fine_tuning_saw_are_counted(self, place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
        """Steps enough by the plan, which yet saw nine patients."""
        monkeypatch.setattr(
            personal, "train_round", lambda *args, **options: replace(train_round(*args, **options), patients=9)
        )
        _, _, given = self.final(place, of_a_batch(place, 2, personal={"fine_tune_steps": 7}))
        assert given == {"common": True, "personal": False}

    def test_figures_of_a_model_that_forgets_all_but_one_batch_stay(self, place: Place) -> None:
        assert self.final(place, of_a_batch(place, 1, personal={"ditto": 1000.0}))[2]["personal"] is False
        assert self.final(place, of_a_batch(place, 1, personal={"ditto": 1.0}))[2]["personal"] is True

    def test_the_gate_does_not_believe_the_site_s_own_work(self, place: Place) -> None:
        plan = of_a_batch(place, 1, personal={"fine_tune_steps": 1})
        node, answer, _ = self.final(place, plan)
        common, test, *_ = answer.report.metrics
        own = tuple(record.model_copy(update={"model": "personal"}) for record in (common, test))
        bad = replace(answer, report=answer.report.model_copy(update={"metrics": (common, test, *own)}))
        reason = "figures of a model that was trained on fewer patients than the site's minimum"
        assert refusals(bad, plan, (), node.bounds) == (reason,)

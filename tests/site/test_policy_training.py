"""What a policy says to the training of a plan, in words that site and asker can be told."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from eucaim_fl.plan import FederationPlan
from eucaim_fl.site.policy_training import batch_answer, training_answer, work_asked

Plans = Callable[..., FederationPlan]
PLAIN: dict[str, Any] = {"name": "sgd", "lr": 0.01, "momentum": 0.0}


def planned(plan_for: Plans, method: dict[str, Any] | None = None, **training: Any) -> FederationPlan:
    """Batches of 4, 5 steps a round."""
    values = {"batch_size": 4, "local_steps": 5, "optimizer": PLAIN, **training}
    return plan_for(method=method or {}, training=values)


NOISE: dict[str, Any] = {"clipping_norm": 1.0, "noise_multiplier": 2.0, "secure": True}


class TestBatch:
    @pytest.mark.parametrize(("least", "allowed"), [(None, True), (4, True), (5, False)])
    def test_without_noise_a_batch_has_at_least_what_the_policy_asks(
        self, plan_for: Plans, least: int | None, allowed: bool
    ) -> None:
        asks = "batches of 4 images, and an update that the coordinator sees without noise"
        assert batch_answer(planned(plan_for), least) == (allowed, asks)

    @pytest.mark.parametrize(
        ("changes", "hidden"),
        [
            ({"mechanism": "update_dp"}, True),
            ({"mechanism": "update_dp", "secure": False}, False),
            ({"mechanism": "central_dp"}, False),
        ],
        ids=["secret noise", "noise from the plan's seed", "noise of the server"],
    )
    def test_noise_counts_that_the_coordinator_can_not_take_off(
        self, plan_for: Plans, changes: dict[str, Any], hidden: bool
    ) -> None:
        plan = planned(plan_for)
        plan = plan.model_copy(update={"privacy": plan.privacy.model_copy(update={**NOISE, **changes})})
        assert batch_answer(plan, 5)[0] is hidden


class TestPatients:
    @pytest.mark.parametrize(("least", "allowed"), [(None, False), (20, True), (21, False)])
    def test_steps_times_batch_are_behind_an_update(self, plan_for: Plans, least: int | None, allowed: bool) -> None:
        sentence = "t most 20 patients can be behind an update"
        reasons = (f"A{sentence}.",) if least == 21 else ()
        assert training_answer(planned(plan_for), least, confidential=True) == (allowed, f"a{sentence}", reasons)

    def test_steps_of_fine_tuning_count_too(self, plan_for: Plans) -> None:
        plan = planned(plan_for, {"personal": {"fine_tune_steps": 2}})
        allowed, asks, reasons = training_answer(plan, 9, confidential=True)
        assert not allowed
        assert asks == (
            "at most 20 patients can be behind an update; at most 8 patients can be behind the site's personal model"
        )
        assert reasons == ("At most 8 patients can be behind the site's personal model.",)
        assert training_answer(plan, 8, confidential=True)[0]

    def test_one_patient_is_one(self, plan_for: Plans) -> None:
        _, asks, _ = training_answer(planned(plan_for, batch_size=1, local_steps=1), 1, confidential=True)
        assert asks == "at most 1 patient can be behind an update"

    @pytest.mark.parametrize(
        ("method", "why"),
        [
            ({"objective": {"name": "scaffold"}}, "behind an update, since what SCAFFOLD tells the sites moves"),
            ({"objective": {"name": "proximal", "mu": 100.0}}, "behind an update, since its pull (mu, lambda or"),
            ({"personal": {"ditto": 100.0}}, "behind the site's personal model, since its pull"),
            (
                {"objective": {"name": "scaffold"}, "personal": {"arrays": "head"}},
                "behind the site's personal model, since what SCAFFOLD",
            ),
        ],
        ids=["scaffold", "proximal", "ditto", "own layers"],
    )
    def test_of_confidential_data_one_batch_counts_where_it_can_show_alone(
        self, plan_for: Plans, method: dict[str, Any], why: str
    ) -> None:
        plan = planned(plan_for, method)
        for confidential in (True, None):
            allowed, asks, reasons = training_answer(plan, 10, confidential=confidential)
            assert not allowed
            assert "of confidential data one batch, at most 4 patients, counts as behind" in asks
            assert why in asks
            assert any(why in reason and reason.startswith("Of confidential data") for reason in reasons)
            assert training_answer(plan, 4, confidential=confidential)[0]
        allowed, asks, reasons = training_answer(plan, 10, confidential=False)
        assert (allowed, reasons) == (True, ())
        assert "confidential" not in asks

    def test_epochs_visit_all_but_a_strong_pull_forgets_them(self, plan_for: Plans) -> None:
        epochs: dict[str, Any] = {"local_steps": None, "local_epochs": 1}
        allowed, asks, _ = training_answer(planned(plan_for, **epochs), 1000, confidential=True)
        assert allowed
        assert asks == "all of this site's training patients can be behind an update"
        strong = planned(plan_for, {"objective": {"name": "proximal", "mu": 1.0}}, **epochs)
        assert not training_answer(strong, 10, confidential=True)[0]
        mixed = planned(plan_for, {"personal": {"fine_tune_steps": 3}}, **epochs)
        assert training_answer(mixed, 13, confidential=True)[2] == (
            "At most 12 patients can be behind the site's personal model.",
        )

    def test_sampled_patients_are_hidden_by_noise(self, plan_for: Plans) -> None:
        noise = {"noise_multiplier": 1.0, "delta": 1e-5, "clipping_norm": 1.0, "sampling_rate": 0.1}
        plan = plan_for(privacy={"mechanism": "patient_dp", **noise}, model={"args": {"norm": "instance"}})
        assert training_answer(plan, 1000, confidential=True)[0]
        assert not training_answer(plan, None, confidential=True)[0]


class TestWork:
    @pytest.mark.parametrize(
        ("own", "more"),
        [
            ({}, ""),
            ({"ditto": 0.1}, "; each round has as many steps again, for the site's personal model"),
            (
                {"ditto": 0.1, "local": True},
                "; each round has twice as many steps again, for the site's personal and its local model",
            ),
            (
                {"fine_tune_steps": 7, "local": True},
                "; each round has as many steps again, for the site's local model; the last exchange has 7 steps of "
                "fine-tuning",
            ),
        ],
        ids=["none", "ditto", "both", "fine-tuning"],
    )
    def test_what_own_models_ask_for_is_said(self, plan_for: Plans, own: dict[str, Any], more: str) -> None:
        asks = work_asked(planned(plan_for, {"personal": own}))
        assert asks == "instructions; a round counts answers that come within 3600 s" + more

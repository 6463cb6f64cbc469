"""What can't be asked at all."""

from __future__ import annotations

from typing import Any

import pytest

from eucaim_fl.errors import PlanError
from eucaim_fl.plan import FederationPlan
from eucaim_fl.seals import InstructionSeal
from eucaim_fl.site.askable import check_network, check_round


@pytest.fixture
def training(plan_for) -> FederationPlan:
    return plan_for()


@pytest.fixture
def judging(training) -> FederationPlan:
    model = {
        "name": "lesions",
        "format": "network",
        "sha256": "a" * 64,
        "size_bytes": 10,
        "network": {"name": "unet"},
        "data": training.data.model_dump(),
        "intended_use": "Finds lesions.",
    }
    return FederationPlan.model_validate({**training.model_dump(), "rounds": 1, "validation": {"models": [model]}})


def seal(kind: Any, number: int) -> InstructionSeal:
    return InstructionSeal.model_construct(kind=kind, round=number)


class TestCheckNetwork:
    def test_known_ones_pass(self, training, judging):
        check_network(training)
        check_network(judging)

    def test_check_network_refuses_a_network_that_this_site_does_not_know(self, training):
        other = training.model_copy(update={"model": training.model.model_copy(update={"name": "mine"})})
        with pytest.raises(PlanError, match="not one that this site knows"):
            check_network(other)

    def test_a_frozen_model_must_be_known_too(self, judging):
        model = judging.validation.models[0]
        network = model.network.model_copy(update={"name": "mine"})
        asked = judging.validation.model_copy(update={"models": (model.model_copy(update={"network": network}),)})
        with pytest.raises(PlanError, match="not one that this site knows"):
            check_network(judging.model_copy(update={"validation": asked}))


class TestCheckRound:
    def test_rounds_of_the_plan_pass(self, training, judging):
        check_round(training, seal("hello", 0))
        check_round(training, seal("round", training.rounds))
        check_round(training, seal("final", training.rounds + 1))
        check_round(judging, seal("final", 2))

    @pytest.mark.parametrize(
        ("kind", "number"), [("round", 0), ("round", 999), ("final", 1), ("statistics", 0), ("hello", 1)]
    )
    def test_check_round_refuses_others(self, training, kind, number):
        with pytest.raises(PlanError, match="no such round"):
            check_round(training, seal(kind, number))

    @pytest.mark.parametrize(("kind", "number"), [("round", 1), ("statistics", 0)])
    def test_a_validation_has_no_round_to_train_in(self, judging, kind, number):
        with pytest.raises(PlanError, match="no such round"):
            check_round(judging, seal(kind, number))

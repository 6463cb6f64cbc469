"""What a policy says to frozen models: nothing is allowed that no line allows, and a validation trains nothing."""

from __future__ import annotations

from datetime import UTC, date, datetime
from typing import Any, get_args

import pytest

from eucaim_fl.plan import FederationPlan, make_plan
from eucaim_fl.site.policy import LoadedPolicy, MetricName, Policy
from eucaim_fl.site.policy_decision import Decision, Situation, decide
from eucaim_fl.site.policy_models import MODEL_KEYS, FrozenModelsPolicy, asked_figures, validation_answers
from eucaim_fl.site.policy_text import SILENT, describe
from eucaim_fl.task_config import TaskName
from eucaim_fl.validation_config import ValidationConfig

FROZEN = {"formats": ("network", "onnx"), "megabytes": 10, "memory_gb": 4, "image_seconds": 60}
OPEN: dict[str, Any] = {
    "schema": "eucaim-fl-policy/1",
    "valid_until": date(2026, 6, 1),
    "datasets": ("ds-1",),
    "asking": {"permits": "not_required"},
    "purposes": ("scientific_research",),
    "tasks": ("segmentation",),
    "networks": ("unet",),
    "frozen_models": FROZEN,
    "sites": {"at_least": 2},
    "patients": {"metric": 5},
    "metrics": {"names": ("dice", "hd95_mm", "surface_dice", "volume_difference_ml", "lesions"), "decimals": 3},
    "plans": {"day": 2, "total": 3},
    "hours": "any",
    "work": {"minutes": 10},
    "sent_mb": {"message": 1, "plan": 3, "day": 2},
    "privacy": {"mechanism": "none"},
    "approval": "automatic",
}


def judged(plan: FederationPlan, **changes: Any) -> Decision:
    policy = LoadedPolicy(Policy.model_validate({**OPEN, **changes}), "0" * 64, {})
    return decide(plan, policy, Situation(site="a", now=datetime(2026, 6, 1, 12, tzinfo=UTC)))


@pytest.fixture
def training(recipe) -> FederationPlan:
    return make_plan(recipe(["a.yaml"], rounds=1), ("a", "b"))


@pytest.fixture
def asked(training):
    """Plans that ask for one frozen model, with changes of what is asked and of the model."""

    def make(*more: dict[str, Any], limits: dict[str, float] | None = None, **model: Any) -> FederationPlan:
        first = {
            "name": "lesions",
            "format": "onnx",
            "sha256": "a" * 64,
            "size_bytes": 5_000_000,
            "data": training.data.model_dump(),
            "intended_use": "Finds lesions.",
        }
        models = [{**first, **one} for one in (model, *more)]
        asked = ValidationConfig.model_validate({"models": models, "limits": limits or {}})
        return FederationPlan.model_validate({**training.model_dump(), "validation": asked.model_dump()})

    return make


class TestValidationAnswers:
    def test_a_plan_that_trains_gets_none(self, training):
        assert validation_answers(training, Policy.model_validate(OPEN)) == {}
        told = {clause.key: clause.asks for clause in judged(training).clauses}
        assert {told[key] for key in MODEL_KEYS} == {"no frozen model"}

    def test_a_validation_needs_no_line_about_training(self, asked):
        decision = judged(asked())
        assert decision.allowed, decision.refused
        told = {clause.key: clause.asks for clause in decision.clauses}
        assert told["patients.training"] == told["update.largest_norm"] == "no training"
        assert told["frozen_models.formats"] == "lesions (onnx, SHA-256 aaaaaaaaaaaa…)"
        assert told["networks"] == "no network of this software"

    @pytest.mark.parametrize("left_out", sorted(FROZEN))
    def test_each_line_that_is_left_out_refuses(self, asked, left_out):
        frozen = {name: value for name, value in FROZEN.items() if name != left_out}
        assert [c.key for c in judged(asked(), frozen_models=frozen).refused] == [f"frozen_models.{left_out}"]

    def test_without_the_section_no_model_is_judged(self, asked):
        assert {c.key for c in judged(asked(), frozen_models={}).refused} == set(MODEL_KEYS)

    @pytest.mark.parametrize(
        ("model", "limits", "refused"),
        [
            ({"format": "torchscript"}, {}, "frozen_models.formats"),
            ({"size_bytes": 10_000_001}, {}, "frozen_models.megabytes"),
            ({}, {"memory_gb": 4.5}, "frozen_models.memory_gb"),
            ({}, {"image_seconds": 61.0}, "frozen_models.image_seconds"),
            ({"format": "network", "network": {"name": "dynunet"}}, {}, "networks"),
        ],
    )
    def test_what_is_above_a_line_is_refused_by_it(self, asked, model, limits, refused):
        assert [c.key for c in judged(asked(limits=limits, **model)).refused] == [refused]

    def test_every_model_of_a_plan_counts(self, asked):
        second = {"name": "other", "format": "exported", "size_bytes": 20_000_000}
        refused = {clause.key for clause in judged(asked(second)).refused}
        assert refused == {"frozen_models.formats", "frozen_models.megabytes"}

    def test_figures_that_the_policy_does_not_list_are_refused(self, asked):
        refused = judged(asked(), metrics={"names": ("dice",), "decimals": 3}).refused
        assert [clause.key for clause in refused] == ["metrics.names"]
        assert refused[0].asks == "dice, hd95_mm, lesions, surface_dice, volume_difference_ml"


class TestAskedFigures:
    def test_every_task_has_some_and_a_policy_can_list_them(self):
        listed = set().union(*(asked_figures(task) for task in get_args(TaskName)))
        assert listed <= set(get_args(MetricName))
        assert asked_figures("survival") == {"concordance"}


class TestWords:
    def test_every_line_is_said_or_said_to_be_silent(self):
        said = describe(Policy.model_validate(OPEN))
        assert "network, onnx" in said["frozen_models.formats"]
        assert said["frozen_models.megabytes"] == "a model's file has at most 10 million bytes"
        silent = describe(Policy.model_validate({**OPEN, "frozen_models": FrozenModelsPolicy().model_dump()}))
        assert {silent[key] for key in MODEL_KEYS} == {SILENT}

"""A network around which the statistics of its inputs and classes stand, as arrays like all others."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from eucaim_fl.config import ClassificationConfig
from eucaim_fl.errors import RecipeError
from eucaim_fl.models.conditioned import Conditioned, conditioned
from eucaim_fl.models.networks import array_specs, build, get_arrays, set_arrays
from eucaim_fl.models.planned import network_for
from eucaim_fl.models.private import made_private
from eucaim_fl.plan import FederationPlan
from eucaim_fl.records import CLASS_SHARES, INPUT_MEAN, INPUT_STD
from eucaim_fl.training.balance import measure_for

pytestmark = pytest.mark.usefixtures("one_thread")

CLASSES = ClassificationConfig(target="malignant", classes=("no", "yes"))
EXPECTED = {"balance": {"loss": "logits", "expect": "federation"}}
SMALL: dict[str, Any] = {"name": "small_cnn", "args": {"channels": [8], "strides": [2], "kernel_size": 3}}
MEAN = {INPUT_MEAN: np.array([2.0], np.float32), INPUT_STD: np.array([4.0], np.float32)}
Plans = Callable[..., FederationPlan]


def _with_a_weight(network: nn.Module) -> nn.Module:
    """A network whose place (its device) can be asked for, beside the shares that it holds."""
    return nn.Sequential(network, nn.Linear(1, 1))


class TestConditioned:
    def test_the_inner_network_sees_standardised_images(self) -> None:
        network = Conditioned(nn.Identity(), channels=2)
        set_arrays(network, {INPUT_MEAN: np.array([1, 2], np.float32), INPUT_STD: np.array([2, 4], np.float32)})
        images = torch.tensor([[3.0, 10.0]]).reshape(1, 2, 1, 1)
        assert network(images).flatten().tolist() == [1.0, 2.0]
        assert network(images[..., None]).shape == (1, 2, 1, 1, 1)

    def test_before_anything_is_known_it_changes_nothing(self) -> None:
        images = torch.rand(2, 3, 4, 4)
        network = Conditioned(nn.Flatten(), channels=3, classes=48)
        assert torch.equal(network(images), images.flatten(1))

    def test_shares_are_added_to_the_logits_where_it_predicts_only(self) -> None:
        network = Conditioned(nn.Identity(), classes=2, strength=1.0)
        set_arrays(network, {CLASS_SHARES: np.array([0.8, 0.2], np.float32)})
        logits = torch.zeros(1, 2)
        assert torch.equal(network.train()(logits), logits)
        assert torch.softmax(network.eval()(logits), 1).flatten().tolist() == pytest.approx([0.8, 0.2])

    @pytest.mark.parametrize("loss", ["logits", "weights"])
    @pytest.mark.parametrize("strength", [0.5, 1.0, 2.0])
    def test_what_training_took_out_is_added_and_no_more(self, plan_for: Plans, loss: str, strength: float) -> None:
        """Logits that make the balanced loss least over one kind of patients, of whom 8 in 10 have the first class."""
        shares = np.array([0.8, 0.2])
        balance = {"loss": loss, "strength": strength, "shares": "federation", "expect": "federation"}
        plan = plan_for(CLASSES, training={"balance": balance})
        network = conditioned(nn.Identity(), plan)
        set_arrays(network, {CLASS_SHARES: shares.astype(np.float32)})
        logits = torch.zeros(1, 2, requires_grad=True)
        measure = measure_for(_with_a_weight(network), (), plan)
        descent = torch.optim.LBFGS([logits], max_iter=200, line_search_fn="strong_wolfe")
        patients = torch.tensor([0, 0, 0, 0, 1])

        def closure() -> torch.Tensor:
            descent.zero_grad()
            loss = measure(network.train()(logits).expand(5, 2), patients)
            loss.backward()
            return loss

        descent.step(closure)
        with torch.no_grad():
            found = torch.softmax(network.eval()(logits), 1).flatten().tolist()
        assert found == pytest.approx([0.8, 0.2], abs=1e-3)

    def test_after_equal_drawing_all_of_it_is_added(self, plan_for: Plans) -> None:
        balance = {"sampling": "classes", "strength": 0.5, "expect": "federation"}
        network = conditioned(nn.Identity(), plan_for(CLASSES, training={"balance": balance})).eval()
        set_arrays(network, {CLASS_SHARES: np.array([0.8, 0.2], np.float32)})
        assert torch.softmax(network(torch.zeros(1, 2)), 1).flatten().tolist() == pytest.approx([0.8, 0.2])

    def test_they_are_held_for_training_alone_too(self) -> None:
        network = Conditioned(nn.Identity(), classes=2).eval()
        set_arrays(network, {CLASS_SHARES: np.array([0.8, 0.2], np.float32)})
        assert torch.equal(network(torch.zeros(1, 2)), torch.zeros(1, 2))
        assert network.class_shares is not None

    def test_what_is_not_held_is_no_array(self) -> None:
        assert array_specs(Conditioned(nn.Identity())) == ()
        assert [s.name for s in array_specs(Conditioned(nn.Identity(), channels=1))] == [INPUT_MEAN, INPUT_STD]
        assert not any(spec.trainable for spec in array_specs(Conditioned(nn.Identity(), channels=1, classes=2)))

    def test_shares_that_are_not_held_can_not_be_expected(self) -> None:
        with pytest.raises(ValueError, match="there are none"):
            Conditioned(nn.Identity(), strength=1.0)


class TestConditionedByAPlan:
    def test_a_plan_that_needs_nothing_keeps_its_network(self, plan_for: Plans) -> None:
        network = nn.Linear(1, 1)
        assert conditioned(network, plan_for()) is network
        balanced = plan_for(CLASSES, training={"balance": {"loss": "weights"}})
        assert conditioned(network, balanced) is network

    @pytest.mark.parametrize(
        ("changes", "held"),
        [
            ({"data": {"standardise": "federation"}}, {INPUT_MEAN: 3, INPUT_STD: 3}),
            ({"data": {"standardise": "site"}}, {INPUT_MEAN: 3, INPUT_STD: 3}),
            ({"training": {"balance": {"loss": "weights", "shares": "federation"}}}, {CLASS_SHARES: 2}),
            ({"training": EXPECTED}, {CLASS_SHARES: 2}),
        ],
    )
    def test_only_what_the_plan_needs_is_held(
        self, plan_for: Plans, changes: dict[str, Any], held: dict[str, int]
    ) -> None:
        values = {**changes, "data": {**changes.get("data", {}), "colour": True}}
        network = conditioned(nn.Linear(1, 1), plan_for(CLASSES, **values))
        buffers = {name: len(buffer) for name, buffer in network.named_buffers()}
        assert buffers == held
        assert {"network.weight", "network.bias"} <= set(get_arrays(network))
        assert isinstance(network, Conditioned)
        assert network.strength == (changes == {"training": EXPECTED})

    @pytest.mark.parametrize(
        ("task", "model"),
        [
            (None, {}),
            (CLASSES, {"model": SMALL}),
            (CLASSES, {"model": {"name": "resnet", "args": {"depth": 10, "width": 8}}}),
        ],
        ids=["unet", "small_cnn", "resnet"],
    )
    def test_networks_answer_as_they_would_to_standardised_images(
        self, plan_for: Plans, task: ClassificationConfig | None, model: dict[str, Any]
    ) -> None:
        with_it = network_for(plan_for(task, data={"standardise": "federation"}, **model), 0).eval()
        without = network_for(plan_for(task, **model), 0).eval()
        set_arrays(with_it, {**get_arrays(with_it), **MEAN})
        images = torch.rand(2, 1, 16, 16)
        with torch.no_grad():
            assert torch.equal(with_it(images), without((images - 2) / 4))
        assert {f"network.{name}" for name in get_arrays(without)} | set(MEAN) == set(get_arrays(with_it))

    @pytest.mark.parametrize(
        "model",
        [
            {"name": "voxel_classifier"},
            {"name": "scattering"},
            {"name": "small_cnn", "args": {**SMALL["args"], "centred": True}},
        ],
        ids=lambda model: str(model["name"]),
    )
    def test_networks_that_are_made_for_inputs_from_0_to_1_take_no_others(
        self, plan_for: Plans, model: dict[str, Any]
    ) -> None:
        task = None if model["name"] == "voxel_classifier" else CLASSES
        plan = plan_for(task, data={"standardise": "federation"}).model_copy(
            update={"model": plan_for().model.model_validate(model)}
        )
        network = build(plan.model, plan.task, image_size=(16, 16))
        with pytest.raises(RecipeError, match="made for inputs from 0 to 1"):
            conditioned(network, plan)
        if task is not None:
            shared = plan_for(task, training=EXPECTED)
            assert conditioned(network, shared)(torch.rand(1, 1, 16, 16)).shape == (1, 2)

    def test_it_can_be_exported_and_prepared_for_gradients_by_patient(self, plan_for: Plans) -> None:
        network = network_for(plan_for(CLASSES, data={"standardise": "site"}, training=EXPECTED, model=SMALL), 0)
        assert made_private(network) is network
        network.eval()
        images = torch.rand(2, 1, 16, 16)
        graph = torch.export.export(network, (images,)).module()
        with torch.no_grad():
            assert torch.allclose(graph(images), network(images))

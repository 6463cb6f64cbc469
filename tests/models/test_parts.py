"""Which of a network's arrays stay at a site."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from eucaim_fl.config import ClassificationConfig, ModelConfig, SegmentationConfig, TaskConfig
from eucaim_fl.errors import RecipeError
from eucaim_fl.models.networks import array_specs, outline, output_channels
from eucaim_fl.models.parts import personal_names, shared_arrays, shared_specs
from eucaim_fl.models.planned import first_arrays, initial_arrays
from eucaim_fl.plan import FederationPlan

MODELS = sorted(path.stem for path in (Path(__file__).parents[2] / "configs" / "model").glob("*.yaml"))
ONE_LAYER = ("scattering", "voxel_classifier")

PlanFor = Callable[..., FederationPlan]


def sketch(name: str) -> tuple[torch.nn.Module, TaskConfig]:
    """The network of a file of recipes without its weights, for five classes or four labels, and its task."""
    values = yaml.safe_load((Path(__file__).parents[2] / "configs" / "model" / f"{name}.yaml").read_text())
    model = ModelConfig.model_validate({key: value for key, value in values.items() if key != "defaults"})
    tasks: list[TaskConfig] = [
        SegmentationConfig(spatial_dims=2, labels=("a", "b", "c", "d")),
        ClassificationConfig(spatial_dims=2, target="kind", classes=("0", "1", "2", "3", "4")),
    ]
    try:
        return outline(model, tasks[0], image_size=(64, 64)), tasks[0]
    except RecipeError:
        return outline(model, tasks[1], image_size=(64, 64)), tasks[1]


def plan_with(plan_for: PlanFor, task: TaskConfig, **personal: Any) -> FederationPlan:
    return plan_for(task=task, method={"personal": personal})


class TestPersonalNames:
    def test_a_plan_that_leaves_nothing_to_the_sites_has_none(self, plan_for: PlanFor) -> None:
        network, task = sketch("resnet")
        assert personal_names(network, plan_with(plan_for, task)) == frozenset()

    @pytest.mark.parametrize("name", [name for name in MODELS if name not in ONE_LAYER])
    def test_the_head_is_the_layer_that_answers(self, plan_for: PlanFor, name: str) -> None:
        network, task = sketch(name)
        head = personal_names(network, plan_with(plan_for, task, arrays="head"))
        shapes = {spec.name: spec.shape for spec in array_specs(network)}
        (weight,) = (one for one in head if one.endswith("weight"))
        (bias,) = head - {weight}
        assert shapes[bias] == (output_channels(task),) == shapes[weight][:1]

    @pytest.mark.parametrize("name", ONE_LAYER)
    def test_a_network_of_one_layer_has_no_head_apart(self, plan_for: PlanFor, name: str) -> None:
        network, task = sketch(name)
        with pytest.raises(RecipeError, match="no last layer apart from the rest"):
            personal_names(network, plan_with(plan_for, task, arrays="head"))
        with pytest.raises(RecipeError, match="no normalisation with arrays"):
            personal_names(network, plan_with(plan_for, task, arrays="normalization"))

    @pytest.mark.parametrize("name", [name for name in MODELS if name not in ONE_LAYER])
    def test_normalisation_is_there_with_its_statistics_and_no_kernel(self, plan_for: PlanFor, name: str) -> None:
        network, task = sketch(name)
        kept = personal_names(network, plan_with(plan_for, task, arrays="normalization"))
        specs = {spec.name: spec for spec in array_specs(network)}
        assert kept
        assert all(len(specs[one].shape) <= 1 for one in kept)
        buffers = {spec.name for spec in specs.values() if not spec.trainable and "running" in spec.name}
        assert buffers <= kept

    def test_batch_normalisation_keeps_its_counter_too(self, plan_for: PlanFor) -> None:
        network = torch.nn.Sequential(torch.nn.Conv2d(1, 2, 3), torch.nn.BatchNorm2d(2), torch.nn.Conv2d(2, 2, 1))
        plan = plan_for(method={"personal": {"arrays": "normalization"}})
        assert personal_names(network, plan) == {
            f"1.{name}" for name in ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")
        }

    def test_statistics_of_the_site_s_own_input_stay(self, plan_for: PlanFor) -> None:
        plan = plan_for(data={"standardise": "site"})
        specs, _ = initial_arrays(plan)
        assert set(first_arrays(plan)) - {spec.name for spec in specs} == {"input_mean", "input_std"}


class TestWhatTravels:
    def test_it_is_the_rest_of_the_arrays(self, plan_for: PlanFor) -> None:
        plan = plan_for(method={"personal": {"arrays": "normalization"}})
        specs, arrays = initial_arrays(plan)
        whole = first_arrays(plan)
        assert [spec.name for spec in specs] == sorted(arrays)
        assert set(whole) - set(arrays)
        assert all((whole[name] == arrays[name]).all() for name in arrays)

    def test_nothing_is_left_out_without_names(self) -> None:
        network, _ = sketch("unet_small")
        assert shared_specs(network, frozenset()) == array_specs(network)
        assert shared_arrays({}, frozenset({"w"})) == {}

    def test_initial_arrays_refuses_a_network_without_what_the_plan_leaves_to_the_sites(
        self, plan_for: PlanFor
    ) -> None:
        plan = plan_for(model={"name": "voxel_classifier", "args": {}}, method={"personal": {"arrays": "head"}})
        with pytest.raises(RecipeError, match="no last layer apart"):
            initial_arrays(plan)

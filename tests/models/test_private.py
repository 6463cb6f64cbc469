"""Which networks keep patients apart: the recipe's words and the network itself agree."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest
import torch
from torch import nn

from eucaim_fl.config import ClassificationConfig, ModelConfig, SegmentationConfig
from eucaim_fl.errors import PrivateTrainingError, RecipeError
from eucaim_fl.models import ARGUMENTS
from eucaim_fl.models.networks import array_specs, build, outline
from eucaim_fl.models.private import check_private, made_private

SIZES = {"densenet121": 64, "efficientnet": 64, "resnet": 64, "swin_unetr": 64}
SMALL: dict[str, dict[str, Any]] = {
    "densenet121": {"init_features": 16, "growth_rate": 8},
    "resnet": {"depth": 10, "width": 8},
    "swin_unetr": {"feature_size": 12, "num_heads": [1, 1, 1, 1], "depths": [1, 1, 1, 1], "window_size": 2},
    "unet": {"channels": [8, 8], "strides": [2], "num_res_units": 0},
    "unetr": {"feature_size": 4, "hidden_size": 12, "mlp_dim": 12, "num_heads": 2},
    "vit": {"hidden_size": 12, "mlp_dim": 8, "num_layers": 2, "num_heads": 2},
}


def asked_for(name: str, **args: Any) -> tuple[ModelConfig, SegmentationConfig | ClassificationConfig]:
    task: SegmentationConfig | ClassificationConfig = (
        SegmentationConfig(spatial_dims=2, labels=("lesion",))
        if ARGUMENTS[name].task == "segmentation"
        else ClassificationConfig(spatial_dims=2, target="grade", classes=("low", "high"))
    )
    return ModelConfig(name=name, args={**SMALL.get(name, {}), **args}), task


EVERY = [
    (name, norm)
    for name, arguments in sorted(ARGUMENTS.items())
    for norm in (("default", "batch", "group", "instance") if "norm" in arguments.model_fields else ("default",))
]


class TestCheckPrivate:
    @pytest.mark.parametrize(("name", "norm"), EVERY)
    def test_it_says_of_every_network_what_the_network_says_of_itself(self, name: str, norm: str) -> None:
        model, task = asked_for(name, **({} if norm == "default" else {"norm": norm}))
        network = outline(model, task, image_size=(SIZES.get(name, 16),) * 2)
        try:
            made_private(network)
        except PrivateTrainingError:
            with pytest.raises(RecipeError, match="mixes the patients of a batch"):
                check_private(model, task)
        else:
            check_private(model, task)

    def test_it_says_what_to_set_instead_of_batch_normalisation(self) -> None:
        with pytest.raises(RecipeError, match=r"Set model\.args\.norm to group"):
            check_private(*asked_for("densenet121"))

    def test_it_names_other_networks_where_nothing_can_be_set(self) -> None:
        with pytest.raises(RecipeError, match="Choose unet, dynunet or segresnet"):
            check_private(*asked_for("attention_unet"))

    def test_arguments_that_do_not_fit_are_refused_first(self) -> None:
        with pytest.raises(RecipeError, match="is a network for segmentation"):
            check_private(asked_for("unet")[0], asked_for("vit")[1])

    def test_it_needs_no_torch(self) -> None:
        program = "import sys, eucaim_fl.models.private; assert 'torch' not in sys.modules"
        assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0


class TestMadePrivate:
    def test_batch_normalisation_is_refused_by_the_names_of_its_layers(self) -> None:
        network = nn.Sequential(*(nn.BatchNorm2d(2) for _ in range(4)))
        with pytest.raises(PrivateTrainingError, match=r"0, 1, 2 and 1 more\. Set model\.args\.norm to group"):
            made_private(network)

    def test_statistics_that_run_over_patients_are_refused_too(self) -> None:
        with pytest.raises(PrivateTrainingError, match="mix the patients of a batch: 0"):
            made_private(nn.Sequential(nn.InstanceNorm2d(2, track_running_stats=True)))

    def test_activations_stop_working_in_place(self) -> None:
        network = made_private(nn.Sequential(nn.Conv2d(1, 1, 1), nn.ReLU(inplace=True)))
        assert not any(getattr(layer, "inplace", False) for layer in network.modules())

    def test_names_shapes_and_answers_stay(self) -> None:
        model, task = asked_for("efficientnet", norm="group")
        network = build(model, task, seed=0, image_size=(32, 32)).eval()
        images = torch.randn((1, 1, 32, 32), generator=torch.Generator().manual_seed(0))
        with torch.no_grad():
            before, specs = network(images), array_specs(network)
            assert made_private(network) is network
            assert array_specs(network) == specs
            assert torch.allclose(network(images), before, rtol=1e-4, atol=1e-5)

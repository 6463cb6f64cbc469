"""The allow-list of networks and the sizes of image they take."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from eucaim_fl.config import ClassificationConfig, ModelConfig, SegmentationConfig, parse
from eucaim_fl.errors import RecipeError
from eucaim_fl.models import ARGUMENTS, check_input_size, check_model, required_divisor

CONFIGS = Path(__file__).parents[2] / "configs" / "model"

segmentation_2d = SegmentationConfig(spatial_dims=2, labels=("lesion",))
segmentation_3d = SegmentationConfig(spatial_dims=3, labels=("lesion",))
classification_2d = ClassificationConfig(spatial_dims=2, target="malignant", classes=("no", "yes"))


def task_of(name: str) -> SegmentationConfig | ClassificationConfig:
    return segmentation_3d if ARGUMENTS[name].task == "segmentation" else classification_2d


def model(name: str, **args: Any) -> ModelConfig:
    return ModelConfig(name=name, args=args)


class TestTheAllowList:
    def test_it_holds_the_promised_networks(self) -> None:
        promised = {"unet", "dynunet", "segresnet", "swin_unetr", "densenet121", "resnet", "efficientnet", "vit"}
        assert promised <= set(ARGUMENTS)

    @pytest.mark.parametrize("name", sorted(ARGUMENTS))
    def test_every_network_has_defaults_that_fit_together(self, name: str) -> None:
        assert check_model(model(name), task_of(name)) == ARGUMENTS[name]()

    def test_reading_it_imports_neither_pytorch_nor_monai(self) -> None:
        code = "import sys, eucaim_fl.models; print(sorted({'torch', 'monai'} & set(sys.modules)))"
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
        assert done.stdout.strip() == "[]"

    def test_there_is_one_recipe_file_for_each_network(self) -> None:
        assert {path.stem for path in CONFIGS.glob("*.yaml")} - {"unet_small"} == set(ARGUMENTS)

    @pytest.mark.parametrize("name", sorted(ARGUMENTS))
    def test_a_recipe_file_lists_every_argument_with_its_default(self, name: str) -> None:
        text = (CONFIGS / f"{name}.yaml").read_text()
        written = parse(ModelConfig, yaml.safe_load(text), "the file")
        assert text.startswith("# ")
        assert written.name == name
        assert written.args == ARGUMENTS[name]().model_dump(mode="json")


class TestCheckModel:
    def test_a_misspelt_network_is_told_the_nearest_one(self) -> None:
        with pytest.raises(RecipeError, match=r"no network called 'unett'\. Did you mean 'unet'"):
            check_model(model("unett"), segmentation_2d)

    def test_a_misspelt_argument_is_told_the_nearest_one(self) -> None:
        with pytest.raises(RecipeError, match=r"unknown key 'chanels'\. Did you mean 'channels'"):
            check_model(model("unet", chanels=[8, 16]), segmentation_2d)

    def test_a_classification_network_cannot_segment(self) -> None:
        with pytest.raises(RecipeError, match=r"vit is a network for classification.*segmentation: .*unet"):
            check_model(model("vit"), segmentation_2d)

    def test_a_segmentation_network_cannot_classify(self) -> None:
        with pytest.raises(RecipeError, match=r"unet is a network for segmentation.*densenet121"):
            check_model(model("unet"), classification_2d)

    @pytest.mark.parametrize(
        ("args", "fault"),
        [
            ({"channels": "16"}, r"channels: .* tuple \(got '16'\)"),
            ({"channels": [8, "16"], "strides": [2]}, r"channels\.1: .* integer \(got '16'\)"),
            ({"channels": [16] * 9, "strides": [2] * 8}, "channels: .* at most 8 items"),
            ({"channels": [16, 100_000], "strides": [2]}, r"channels\.1: .* less than or equal to 1024"),
            ({"channels": [16, 32]}, "2 channels need 1 strides, got 3"),
            ({"strides": [2, "two", 2]}, r"strides\.1: expected a whole number from 1 to 4"),
            ({"norm": {"name": "group"}}, "norm: input should be 'instance', 'batch' or 'group'"),
            ({"norm": "group"}, "norm group needs num_res_units 0"),
            ({"norm": "group", "num_res_units": 0, "channels": [4, 8], "strides": [2]}, "divisible by 8"),
            ({"act": "os.system"}, "act: input should be 'relu'"),
            ({"dropout": 1.0}, "dropout: input should be less than 1"),
            ({"dropout": True}, "dropout: input should be a valid number"),
            ({"kernel_size": 4}, "kernel_size: expected an odd number"),
        ],
    )
    def test_a_wrong_argument_is_named_with_its_place(self, args: dict[str, Any], fault: str) -> None:
        with pytest.raises(RecipeError, match=fault):
            check_model(model("unet", **args), segmentation_2d)

    @pytest.mark.parametrize(
        ("name", "args", "fault"),
        [
            ("dynunet", {"strides": [2, 2, 2, 2]}, "first of strides must be 1"),
            ("dynunet", {"filters": [8, 16]}, "one entry per level"),
            ("dynunet", {"kernel_size": [3, 3, 2, 3]}, "must be odd"),
            ("dynunet", {"kernel_size": [3, 1, 3, 3], "strides": [1, 3, 2, 2]}, "at least its level's stride less one"),
            ("dynunet", {"strides": [1, 2, [3, 1, 1], 2], "res_block": True}, "strides of at most 2"),
            ("dynunet", {"norm": "group", "filters": [8, 16, 20, 32]}, "divisible by 8"),
            ("segresnet", {"blocks_up": [1, 1]}, "blocks_up needs one entry less"),
            ("segresnet", {"init_filters": 12}, "multiple of 8"),
            ("swin_unetr", {"num_heads": [3, 6, 12, 7]}, r"num_heads\[3\] is 7, which does not divide .* 192"),
            ("swin_unetr", {"depths": [2, 2, 2]}, r"depths\.3: field required"),
            ("unetr", {"num_heads": 7}, "hidden_size 384 is not divisible by num_heads 7"),
            ("vit", {"num_heads": 5}, "hidden_size 192 is not divisible by num_heads 5"),
            ("densenet121", {"norm": "group", "growth_rate": 12}, "divisible by 8"),
            ("resnet", {"depth": 19}, "depth: input should be 10, 18, 34, 50 or 101"),
            ("efficientnet", {"variant": "b9"}, "variant: input should be 'b0'"),
            ("efficientnet", {"pretrained": True}, "unknown key 'pretrained'"),
            ("small_cnn", {"channels": [8, 16]}, "2 channels need 2 strides, got 3"),
            ("voxel_classifier", {"scales": [], "levels": []}, "nothing to look at"),
            ("voxel_classifier", {"reaches": []}, "levels need reaches"),
            ("voxel_classifier", {"reaches": [7, 4]}, "must grow from entry to entry"),
            ("voxel_classifier", {"levels": [1.5]}, r"levels\.0: input should be less than 1"),
        ],
    )
    def test_what_a_network_cannot_do_is_said_before_it_is_built(
        self, name: str, args: dict[str, Any], fault: str
    ) -> None:
        with pytest.raises(RecipeError, match=fault):
            check_model(model(name, **args), task_of(name))

    def test_strides_per_axis_must_have_as_many_values_as_the_task_has_axes(self) -> None:
        args = {"channels": [8, 16, 32], "strides": [[1, 2, 2], 2]}
        assert check_model(model("unet", **args), segmentation_3d)
        with pytest.raises(RecipeError, match="strides of unet has an entry with 3 values, but the task is 2-D"):
            check_model(model("unet", **args), segmentation_2d)


class TestRequiredDivisor:
    def test_it_is_the_product_of_the_strides_along_each_axis(self) -> None:
        args = {"channels": [8, 16, 32], "strides": [[1, 2, 2], 2]}
        assert required_divisor(model("unet", **args), segmentation_3d) == (2, 4, 4)

    def test_segresnet_halves_the_image_once_less_than_it_has_levels(self) -> None:
        assert required_divisor(model("segresnet"), segmentation_2d) == (8, 8)

    def test_swin_unetr_wants_multiples_of_32(self) -> None:
        assert required_divisor(model("swin_unetr"), segmentation_3d) == (32, 32, 32)

    def test_a_resnet_takes_any_size(self) -> None:
        assert required_divisor(model("resnet"), classification_2d) == (1, 1)

    def test_a_network_for_another_task_has_none(self) -> None:
        with pytest.raises(RecipeError, match="network for classification"):
            required_divisor(model("resnet"), segmentation_2d)


class TestCheckInputSize:
    def test_the_divisor_and_a_size_that_fits_are_named(self) -> None:
        with pytest.raises(RecipeError, match=r"divisible by 8 × 8, got 30 × 32.*to 32 × 32"):
            check_input_size(model("unet"), segmentation_2d, (30, 32))

    def test_a_size_has_as_many_axes_as_the_task(self) -> None:
        with pytest.raises(RecipeError, match="32 × 32 has 2 axes, but the task is 3-D"):
            check_input_size(model("unet"), segmentation_3d, (32, 32))

    def test_no_image_is_no_image(self) -> None:
        with pytest.raises(RecipeError, match="got 0 × 32"):
            check_input_size(model("resnet"), classification_2d, (0, 32))

    def test_a_densenet_needs_32_voxels_along_each_axis(self) -> None:
        check_input_size(model("densenet121"), classification_2d, (33, 47))
        with pytest.raises(RecipeError, match="at least 32 × 32, got 31 × 64"):
            check_input_size(model("densenet121"), classification_2d, (31, 64))

    def test_instance_normalisation_needs_more_than_one_voxel_at_the_coarsest_level(self) -> None:
        check_input_size(model("unet"), segmentation_2d, (16, 8))
        check_input_size(model("unet", norm="batch"), segmentation_2d, (8, 8))
        with pytest.raises(RecipeError, match=r"8 × 8 shrinks to a single voxel in unet.*16 × 16"):
            check_input_size(model("unet"), segmentation_2d, (8, 8))

    @pytest.mark.parametrize("name", ["attention_unet", "swin_unetr"])
    def test_also_where_the_recipe_does_not_choose_the_norm(self, name: str) -> None:
        divisor = required_divisor(model(name), segmentation_2d)
        with pytest.raises(RecipeError, match="single voxel"):
            check_input_size(model(name), segmentation_2d, divisor)

    def test_small_pictures_fit_a_resnet(self) -> None:
        check_input_size(model("resnet"), classification_2d, (28, 28))

    @given(strides=st.lists(st.integers(1, 4), min_size=1, max_size=4), height=st.integers(1, 512))
    def test_exactly_the_multiples_of_the_divisor_pass(self, strides: list[int], height: int) -> None:
        recipe = model("unet", channels=[8] * (len(strides) + 1), strides=strides)
        (divisor, width) = required_divisor(recipe, segmentation_2d)
        if height % divisor == 0:
            check_input_size(recipe, segmentation_2d, (height, 2 * width))
        else:
            with pytest.raises(RecipeError, match=f"divisible by {divisor} × {divisor}, got {height} × {2 * width}"):
                check_input_size(recipe, segmentation_2d, (height, 2 * width))

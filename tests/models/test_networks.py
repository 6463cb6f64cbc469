"""Networks by name: what they answer, and their weights as arrays."""

from __future__ import annotations

import socket
import warnings
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from eucaim_fl.arrays import Arrays, arrays_sha256
from eucaim_fl.config import ClassificationConfig, ModelConfig, SegmentationConfig
from eucaim_fl.errors import PlanError, RecipeError, ReplyError
from eucaim_fl.models import ARGUMENTS
from eucaim_fl.models.assembly import Ends, assemble
from eucaim_fl.models.classification import ResnetArguments
from eucaim_fl.models.networks import (
    array_specs,
    build,
    get_arrays,
    outline,
    output_channels,
    parameter_count,
    set_arrays,
)

SMALL: dict[str, tuple[dict[str, Any], tuple[int, int, int]]] = {
    "attention_unet": ({"channels": [4, 8], "strides": [2]}, (4, 8, 8)),
    "densenet121": ({"init_features": 8, "growth_rate": 4}, (32, 32, 32)),
    "dynunet": ({"filters": [4, 8, 8], "strides": [1, 2, 2], "kernel_size": [3, 3, 3]}, (8, 4, 8)),
    "efficientnet": ({}, (32, 32, 32)),
    "resnet": ({"depth": 10, "width": 8}, (20, 17, 16)),
    "scattering": ({"scales": 2, "shrink": 1}, (8, 9, 10)),
    "segresnet": ({"init_filters": 8, "blocks_down": [1, 1], "blocks_up": [1]}, (4, 6, 8)),
    "small_cnn": ({"channels": [8, 8], "strides": [2, 2]}, (8, 9, 10)),
    "swin_unetr": (
        {"feature_size": 12, "depths": [1, 1, 1, 1], "num_heads": [1, 1, 1, 1], "window_size": 2},
        (64, 32, 32),
    ),
    "unet": ({"channels": [4, 8, 8], "strides": [2, 2], "num_res_units": 1}, (4, 8, 8)),
    "unetr": ({"feature_size": 4, "hidden_size": 12, "mlp_dim": 12, "num_heads": 2}, (16, 32, 16)),
    "vit": ({"patch_size": 4, "hidden_size": 12, "mlp_dim": 8, "num_layers": 2, "num_heads": 2}, (8, 4, 12)),
    "voxel_classifier": ({"scales": [1], "reaches": [2, 5]}, (8, 5, 7)),
}
LONG = {
    ("densenet121", 2),
    ("densenet121", 3),
    ("efficientnet", 2),
    ("efficientnet", 3),
    ("swin_unetr", 3),
    ("unetr", 3),
}
"""Hundreds of layers, or wide ones: two thirds of the time of all."""
EVERY = [
    pytest.param(name, dims, marks=[pytest.mark.integration] if (name, dims) in LONG else [])
    for name in sorted(ARGUMENTS)
    for dims in (2, 3)
]
each_network = pytest.mark.parametrize(("name", "dims"), EVERY)


def recipe(name: str, dims: Any) -> tuple[ModelConfig, SegmentationConfig | ClassificationConfig, tuple[int, ...]]:
    args, size = SMALL[name]
    task: SegmentationConfig | ClassificationConfig = (
        SegmentationConfig(spatial_dims=dims, labels=("liver", "lesion"))
        if ARGUMENTS[name].task == "segmentation"
        else ClassificationConfig(spatial_dims=dims, target="grade", classes=("low", "middle", "high"))
    )
    return ModelConfig(name=name, args=args), task, size[:dims]


@cache
def small(name: str, dims: int) -> torch.nn.Module:
    model, task, size = recipe(name, dims)
    return build(model, task, seed=1, image_size=size)


def pooled(**args: Any) -> torch.nn.Module:
    model = ModelConfig(name="small_cnn", args={"channels": [8, 8], "strides": [2, 2], "pooled": True, **args})
    task = ClassificationConfig(spatial_dims=2, target="grade", classes=("low", "middle", "high"))
    return build(model, task, in_channels=3, seed=0, image_size=(16, 12))


def tiny_cnn(seed: int | None = 0) -> torch.nn.Module:
    model, task, size = recipe("small_cnn", 2)
    return build(model, task, seed=seed, image_size=size)


class TestEveryNetwork:
    @each_network
    def test_answers_with_three_logits_and_learns_every_parameter_that_it_sends(self, name: str, dims: int) -> None:
        model, task, size = recipe(name, dims)
        network = build(model, task, seed=1, image_size=size)
        logits = network(torch.randn((2, 1, *size), generator=torch.Generator().manual_seed(0)))
        assert logits.shape == ((2, 3, *size) if task.name == "segmentation" else (2, 3))
        assert logits.dtype == torch.float32
        logits.square().sum().backward()
        assert [n for n, p in network.named_parameters() if p.grad is None] == []

    @each_network
    def test_gives_back_the_arrays_it_was_given_to_the_bit(self, name: str, dims: int) -> None:
        network = small(name, dims)
        before = get_arrays(network)
        other = {n: (a + 1 if a.dtype.kind == "f" else a + np.array(3, a.dtype)) for n, a in before.items()}
        set_arrays(network, other)
        assert arrays_sha256(get_arrays(network)) == arrays_sha256(other)
        set_arrays(network, before)
        assert arrays_sha256(get_arrays(network)) == arrays_sha256(before)

    @each_network
    def test_starts_from_weights_that_follow_from_the_seed(self, name: str, dims: int) -> None:
        model, task, size = recipe(name, dims)
        first = arrays_sha256(get_arrays(small(name, dims)))
        torch.rand(3)
        assert arrays_sha256(get_arrays(build(model, task, seed=1, image_size=size))) == first
        assert arrays_sha256(get_arrays(build(model, task, seed=2, image_size=size))) != first

    def test_a_resnet_with_batch_normalisation_is_the_common_one_to_the_bit(self) -> None:
        from monai.networks.nets import ResNet

        def common() -> torch.nn.Module:
            with torch.random.fork_rng():
                torch.default_generator.manual_seed(7)
                return ResNet(
                    "basic", [1, 1, 1, 1], [8, 16, 32, 64], 2, 1, num_classes=3, bias_downsample=False, norm="batch"
                )

        def ours(norm: str) -> torch.nn.Module:
            arguments = ResnetArguments(depth=10, width=8, norm=norm)
            plain = {"conv1_t_size": 7, "conv1_t_stride": 1, "no_max_pool": False}
            with torch.random.fork_rng():
                torch.default_generator.manual_seed(7)
                return assemble(arguments.model_copy(update=plain), Ends(2, 1, 3))

        assert arrays_sha256(get_arrays(ours("batch"))) == arrays_sha256(get_arrays(common()))
        assert not [n for n, layer in ours("group").named_modules() if "BatchNorm" in type(layer).__name__]

    @each_network
    def test_describes_its_arrays_in_sorted_order_without_duplicates(self, name: str, dims: int) -> None:
        network = small(name, dims)
        specs, arrays = array_specs(network), get_arrays(network)
        assert [s.name for s in specs] == sorted(arrays) == list(arrays)
        assert [(s.shape, s.dtype) for s in specs] == [(a.shape, a.dtype.name) for a in arrays.values()]
        assert parameter_count(network) == sum(arrays[s.name].size for s in specs if s.trainable)
        assert all(a.flags.c_contiguous and a.flags.owndata for a in arrays.values())

    @each_network
    def test_has_an_outline_with_the_same_arrays_and_no_weights(self, name: str, dims: int) -> None:
        model, task, size = recipe(name, dims)
        sketch = outline(model, task, image_size=size)
        assert array_specs(sketch) == array_specs(small(name, dims))
        assert all(parameter.is_meta for parameter in sketch.parameters())

    @each_network
    def test_has_no_activation_that_works_in_place(self, name: str, dims: int) -> None:
        assert not any(getattr(module, "inplace", False) for module in small(name, dims).modules())


class TestOutputChannels:
    def test_segmentation_has_background_besides_its_labels(self) -> None:
        assert output_channels(SegmentationConfig(labels=("liver", "lesion"))) == 3

    def test_classification_has_its_classes(self) -> None:
        assert output_channels(ClassificationConfig(target="grade", classes=("low", "high"))) == 2


class TestBuild:
    def test_leaves_the_global_random_state_alone(self) -> None:
        torch.manual_seed(5)
        undisturbed = torch.rand(4)
        torch.manual_seed(5)
        tiny_cnn(seed=7)
        tiny_cnn(seed=None)
        assert torch.equal(torch.rand(4), undisturbed)

    def test_without_a_seed_the_weights_are_still_finite(self) -> None:
        assert all(np.isfinite(a).all() for a in get_arrays(tiny_cnn(seed=None)).values())

    def test_seed_0_is_a_seed(self) -> None:
        assert arrays_sha256(get_arrays(tiny_cnn(0))) != arrays_sha256(get_arrays(tiny_cnn(1)))

    @settings(max_examples=15, deadline=None)
    @given(seed=st.integers(0, 2**63 - 1))
    def test_any_derived_seed_gives_the_same_bits_twice(self, seed: int) -> None:
        assert arrays_sha256(get_arrays(tiny_cnn(seed))) == arrays_sha256(get_arrays(tiny_cnn(seed)))

    def test_takes_images_of_several_channels(self) -> None:
        model, task, size = recipe("unet", 3)
        network = build(model, task, in_channels=4, seed=0)
        assert network(torch.zeros((1, 4, *size))).shape == (1, 3, *size)

    def test_thick_slices_may_keep_their_number_through_the_levels(self) -> None:
        args = {"filters": [4, 4, 4], "kernel_size": [[3, 3, 1], 3, 3], "strides": [1, [2, 2, 1], [2, 2, 1]]}
        task = SegmentationConfig(labels=("lesion",))
        network = build(ModelConfig(name="dynunet", args=args), task, seed=0, image_size=(8, 8, 3))
        assert network(torch.zeros((1, 1, 8, 8, 3))).shape == (1, 2, 8, 8, 3)

    @pytest.mark.parametrize("name", ["small_cnn", "unetr", "vit"])
    def test_a_network_for_one_size_of_image_must_be_told_it(self, name: str) -> None:
        model, task, _ = recipe(name, 2)
        with pytest.raises(RecipeError, match=r"built for one image size.*training\.patch_voxels"):
            build(model, task, seed=0)

    def test_a_size_that_does_not_fit_is_refused(self) -> None:
        model, task, _ = recipe("unet", 2)
        with pytest.raises(RecipeError, match="divisible by 4 × 4"):
            build(model, task, image_size=(9, 8))

    def test_a_monster_is_refused_before_it_takes_memory(self) -> None:
        args = {"hidden_size": 2048, "mlp_dim": 8192, "num_layers": 48, "num_heads": 16}
        task = ClassificationConfig(target="grade", classes=("low", "high"))
        with pytest.raises(RecipeError, match=r"vit would have 2,\d{3},\d{3},\d{3} parameters; at most 500,000,000"):
            build(ModelConfig(name="vit", args=args), task, image_size=(64, 64))

    @pytest.mark.parametrize("name", ["densenet121", "efficientnet"])
    def test_nothing_is_downloaded(self, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
        def refuse(*_: Any) -> None:
            raise AssertionError("a connection was opened")

        monkeypatch.setattr(socket.socket, "connect", refuse)
        monkeypatch.setattr(torch.hub, "load_state_dict_from_url", refuse)
        model, task, _ = recipe(name, 2)
        assert parameter_count(build(model, task, seed=0)) > 0

    def test_the_transformer_classifier_does_not_squash_its_logits(self) -> None:
        names = [type(module).__name__ for module in small("vit", 2).modules()]
        assert "Tanh" not in names


class TestOutline:
    def test_is_refused_for_what_could_not_be_built(self) -> None:
        model, task, _ = recipe("unet", 2)
        with pytest.raises(RecipeError, match="got 3 × 3"):
            outline(model, task, image_size=(3, 3))

    def test_does_not_draw_random_numbers(self) -> None:
        model, task, _ = recipe("dynunet", 2)
        torch.manual_seed(5)
        undisturbed = torch.rand(4)
        torch.manual_seed(5)
        outline(model, task)
        assert torch.equal(torch.rand(4), undisturbed)


class TestArraySpecs:
    def test_running_means_travel_but_are_not_trained(self) -> None:
        specs = {s.name: s for s in array_specs(small("resnet", 2))}
        assert specs["bn1.weight"].trainable
        assert not specs["bn1.running_mean"].trainable
        assert (specs["bn1.num_batches_tracked"].dtype, specs["bn1.num_batches_tracked"].shape) == ("int64", ())

    def test_a_weight_with_two_names_is_sent_once(self) -> None:
        names = [s.name for s in array_specs(small("dynunet", 2))]
        assert len(small("dynunet", 2).state_dict()) == 2 * len(names) - 2  # all but the output block
        assert not any("skip_layers" in name for name in names)


class TestSetArrays:
    @pytest.fixture
    def network(self) -> torch.nn.Module:
        return tiny_cnn()

    @pytest.fixture
    def arrays(self, network: torch.nn.Module) -> Arrays:
        return get_arrays(network)

    def test_the_arrays_that_were_taken_are_copies(self, network: torch.nn.Module, arrays: Arrays) -> None:
        name = next(iter(arrays))
        arrays[name][...] = 77
        assert not (get_arrays(network)[name] == 77).any()

    def test_the_network_keeps_its_tensors_and_the_arrays_their_values(
        self, network: torch.nn.Module, arrays: Arrays
    ) -> None:
        tensors = [parameter.data_ptr() for parameter in network.parameters()]
        digest = arrays_sha256(arrays)
        set_arrays(network, arrays)
        for parameter in network.parameters():
            parameter.data.add_(1)
        assert [parameter.data_ptr() for parameter in network.parameters()] == tensors
        assert arrays_sha256(arrays) == digest

    def test_read_only_and_strided_arrays_are_taken_without_a_word(
        self, network: torch.nn.Module, arrays: Arrays
    ) -> None:
        locked = {n: np.asfortranarray(a + 1) for n, a in arrays.items()}
        for array in locked.values():
            array.flags.writeable = False
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            set_arrays(network, locked)
        assert arrays_sha256(get_arrays(network)) == arrays_sha256(locked)

    def test_a_lone_number_may_come_as_a_numpy_scalar(self) -> None:
        network = small("resnet", 2)
        arrays = get_arrays(network)
        counted = {n: a + np.array(5, a.dtype) if a.ndim == 0 else a for n, a in arrays.items()}
        set_arrays(network, counted)
        assert get_arrays(network)["bn1.num_batches_tracked"] == arrays["bn1.num_batches_tracked"] + 5
        set_arrays(network, arrays)

    def test_a_missing_array_is_named(self, network: torch.nn.Module, arrays: Arrays) -> None:
        gone = sorted(arrays)[1]
        del arrays[gone]
        with pytest.raises(PlanError, match=f"1 are missing .the first is {gone}., 0 are unknown"):
            set_arrays(network, arrays)

    def test_a_foreign_name_is_counted_but_not_repeated(self, network: torch.nn.Module, arrays: Arrays) -> None:
        arrays["/home/mary/patient-7"] = np.zeros(1)
        with pytest.raises(PlanError, match="0 are missing, 1 are unknown") as caught:
            set_arrays(network, arrays)
        assert "mary" not in str(caught.value)

    @pytest.mark.parametrize(
        "spoil",
        [
            lambda a: a[..., None],
            lambda a: a.astype(np.float64),
            lambda a: a.astype(a.dtype.newbyteorder(">")),
            lambda a: a.reshape(-1)[:1],
        ],
    )
    def test_a_wrong_shape_or_type_changes_nothing(self, network: torch.nn.Module, arrays: Arrays, spoil: Any) -> None:
        digest = arrays_sha256(arrays)
        last = sorted(arrays)[-1]
        changed = {n: a + 1 for n, a in arrays.items()} | {last: spoil(arrays[last])}
        with pytest.raises(PlanError, match=f"Array {last} should be float32 of shape"):
            set_arrays(network, changed)
        assert arrays_sha256(get_arrays(network)) == digest

    def test_the_caller_may_choose_whose_fault_it_is(self, network: torch.nn.Module) -> None:
        with pytest.raises(ReplyError, match="are missing"):
            set_arrays(network, {}, error=ReplyError)


class TestCentred:
    def test_inputs_of_a_half_become_zero_and_the_weights_are_as_many(self) -> None:
        model, task, size = recipe("small_cnn", 2)
        plain, centred = (
            build(model.model_copy(update={"args": {**model.args, "centred": wanted}}), task, seed=0, image_size=size)
            for wanted in (False, True)
        )
        images = torch.rand(2, 1, *size)
        assert parameter_count(plain) == parameter_count(centred)
        assert torch.allclose(centred(images), plain((images - 0.5) * 4), atol=1e-6)


class TestPooledCnn:
    def test_its_head_has_one_weight_a_channel_and_class(self) -> None:
        *_, head = pooled().modules()
        assert isinstance(head, torch.nn.Linear)
        assert head.weight.shape == (3, 8)

    def test_where_something_lies_does_not_matter(self) -> None:
        network = pooled(norm="batch", kernel_size=1).eval()
        image = torch.zeros(1, 3, 16, 12)
        image[..., 4:8, 4:8] = 1.0
        moved = torch.roll(image, (4, -4), (2, 3))
        assert torch.allclose(network(image), network(moved))

    def test_residual_units_are_refused(self) -> None:
        with pytest.raises(RecipeError, match="pooled has plain convolutions"):
            pooled(num_res_units=1)

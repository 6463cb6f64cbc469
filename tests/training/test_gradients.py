"""Sums of clipped gradients: every network, every mode, the same numbers; nobody counts for more than the bound."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from eucaim_fl.config import ClassificationConfig, ModelConfig, SegmentationConfig, TrainingConfig
from eucaim_fl.errors import PrivateTrainingError
from eucaim_fl.models import ARGUMENTS
from eucaim_fl.models.networks import build
from eucaim_fl.models.private import check_private, made_private
from eucaim_fl.plan import FederationPlan
from eucaim_fl.tasks import for_task
from eucaim_fl.training.gradients import GradientMode, clipped_sum, mode_for, refusal
from eucaim_fl.training.layer_gradients import LayerGradients, lengths, unsupported_layers
from eucaim_fl.training.patients import PatientBatch

Plans = Callable[..., FederationPlan]
MODES: tuple[GradientMode, ...] = ("loop", "functorch", "hooks", "ghost")
SMALL: dict[str, tuple[dict[str, Any], tuple[int, int, int]]] = {
    "densenet121": ({"init_features": 16, "growth_rate": 8, "norm": "group"}, (32, 32, 32)),
    "dynunet": (
        {"filters": [4, 8, 8], "strides": [1, 2, 2], "kernel_size": [3, 3, 3], "act": "prelu", "res_block": True},
        (8, 4, 8),
    ),
    "efficientnet": ({"norm": "group"}, (32, 32, 32)),
    "resnet": ({"depth": 10, "width": 8, "norm": "group"}, (20, 17, 16)),
    "scattering": ({"scales": 2}, (8, 12, 8)),
    "segresnet": ({"init_filters": 8, "blocks_down": [1, 1], "blocks_up": [1]}, (4, 6, 8)),
    "small_cnn": ({"channels": [8, 8], "strides": [2, 2]}, (8, 9, 10)),
    "swin_unetr": (
        {"feature_size": 12, "depths": [2, 1, 1, 1], "num_heads": [2, 1, 1, 1], "window_size": 2},
        (64, 32, 32),
    ),
    "unet": ({"channels": [4, 8, 8], "strides": [2, 2], "num_res_units": 1}, (4, 8, 8)),
    "unetr": ({"feature_size": 4, "hidden_size": 12, "mlp_dim": 12, "num_heads": 2}, (16, 32, 16)),
    "vit": ({"patch_size": 4, "hidden_size": 12, "mlp_dim": 8, "num_layers": 2, "num_heads": 2}, (8, 4, 12)),
    "voxel_classifier": ({"scales": [1], "reaches": [2, 5]}, (8, 5, 7)),
}
SHORTER = 1 - 1e-4
"""What is clipped is a little shorter than the bound, so that rounding does not carry it over."""
LONG = {("densenet121", 3), ("efficientnet", 2), ("efficientnet", 3), ("swin_unetr", 3), ("unetr", 3)}


def task_of(name: str, dims: Any) -> SegmentationConfig | ClassificationConfig:
    if ARGUMENTS[name].task == "segmentation":
        return SegmentationConfig(spatial_dims=dims, labels=("liver", "lesion"))
    return ClassificationConfig(spatial_dims=dims, target="grade", classes=("low", "middle", "high"))


def private_args(name: str) -> dict[str, Any]:
    return {"norm": "group"} if ARGUMENTS[name].model_fields.keys() & {"norm"} and name != "unet" else {}


def can_be_private(name: str) -> bool:
    return name in SMALL and "batch" not in str(refused(ModelConfig(name=name, args=SMALL[name][0]), task_of(name, 2)))


def refused(model: ModelConfig, task: SegmentationConfig | ClassificationConfig) -> Exception | None:
    try:
        check_private(model, task)
    except Exception as reason:  # noqa: BLE001 - which one, its own tests say
        return reason
    return None


SHORT = [
    (name, dims, mode)
    for name in sorted(ARGUMENTS)
    if can_be_private(name)
    for dims in (2, 3)
    if (name, dims) not in LONG
    for mode in MODES
]
EVERY = [
    *SHORT,
    *(
        pytest.param(name, dims, mode, marks=pytest.mark.integration)
        for name, dims in sorted(LONG)
        if can_be_private(name)
        for mode in MODES
    ),
]


pytestmark = pytest.mark.usefixtures("one_thread")


class Study(NamedTuple):
    """A network, what it is measured by, its patients, and each one's gradient taken alone in the plainest way."""

    network: nn.Module
    measure: Callable[[Tensor, Tensor], Tensor]
    batch: list[PatientBatch]
    gradients: list[Tensor]


def flat(tensors: Sequence[Tensor]) -> Tensor:
    return torch.cat([t.flatten() for t in tensors])


def without_chance(network: nn.Module) -> nn.Module:
    for layer in network.modules():
        if isinstance(layer, nn.modules.dropout._DropoutNd):
            layer.p = 0.0
        if hasattr(layer, "drop_connect_rate"):
            layer.drop_connect_rate = 0.0  # type: ignore[assignment]
    return network


def studied(network: nn.Module, task: Any, size: tuple[int, ...], patients: int, examples: int) -> Study:
    dtype = torch.float32 if math.prod(size) > 32**3 else torch.float64  # else rounding would blur what is compared
    network = without_chance(made_private(network)).to(dtype).train()
    drawn = torch.Generator().manual_seed(0)
    shape = (examples, 1, *size) if task.name == "segmentation" else (examples,)
    batch = [
        PatientBatch(
            torch.randn((examples, 1, *size), generator=drawn, dtype=dtype),
            torch.randint(0, 3, shape, generator=drawn),
        )
        for _ in range(patients)
    ]
    loss = "dice_ce" if task.name == "segmentation" else "cross_entropy"
    measure = for_task(task).loss(TrainingConfig(local_steps=1, loss=loss))
    gradients = []
    for one in batch:
        network.zero_grad()
        measure(network(one.images), one.targets).backward()
        gradients.append(flat([p.grad.clone() for p in network.parameters() if p.grad is not None]))
    network.zero_grad()
    return Study(network, measure, batch, gradients)


@cache
def study(name: str, dims: int) -> Study:
    """Two examples of each of three patients; one of each of two where a network takes long."""
    args, size = SMALL[name]
    task = task_of(name, dims)
    network = build(ModelConfig(name=name, args=args), task, image_size=size[:dims], seed=1)
    return studied(network, task, size[:dims], *((2, 1) if (name, dims) in LONG else (3, 2)))


def far(found: Tensor, expected: Tensor) -> float:
    return float((found - expected).norm() / expected.norm())


class TestEveryNetwork:
    def test_that_may_be_trained_privately_is_among_those_compared_here(self) -> None:
        tried = {name: refused(ModelConfig(name=name, args=private_args(name)), task_of(name, 2)) for name in ARGUMENTS}
        assert {name for name, no in tried.items() if no is None} == {name for name in SMALL if can_be_private(name)}


class TestClippedSum:
    @pytest.mark.parametrize(("name", "dims", "mode"), EVERY)
    def test_is_the_sum_of_gradients_that_were_taken_and_clipped_one_by_one(
        self, name: str, dims: int, mode: GradientMode
    ) -> None:
        network, measure, batch, gradients = study(name, dims)
        norms = [float(g.double().norm()) for g in gradients]
        bound = float(np.mean(norms))  # some are clipped, and some are not
        sums, found = clipped_sum(network, mode, measure, batch, bound, 2)
        assert found == pytest.approx(norms, rel=1e-5)
        expected = torch.stack([g * min(1.0, SHORTER * bound / n) for g, n in zip(gradients, norms, strict=True)]).sum(
            0
        )
        assert far(flat(sums), expected) < 1e-5
        assert [s.shape for s in sums] == [p.shape for p in network.parameters()]

    @pytest.mark.parametrize(("name", "dims", "mode"), SHORT)
    def test_holds_each_patients_own_gradient_within_the_bound_whoever_else_is_there(
        self, name: str, dims: int, mode: GradientMode
    ) -> None:
        network, measure, batch, gradients = study(name, dims)
        broken = batch[0]._replace(images=torch.full_like(batch[0].images, math.nan))
        sums, found = clipped_sum(network, mode, measure, [broken, batch[1]], 1e-3, 2)
        assert found[0] == math.inf
        assert float(flat(sums).norm()) <= 1e-3
        assert far(flat(sums), gradients[1] * SHORTER * 1e-3 / gradients[1].norm()) < 1e-5

    @settings(max_examples=20, deadline=None)
    @given(
        bound=st.floats(1e-3, 1e3),
        mode=st.sampled_from(MODES),
        scales=st.lists(st.floats(-1e4, 1e4), min_size=1, max_size=5),
    )
    def test_removing_a_patient_moves_it_by_no_more_than_the_bound(
        self, bound: float, mode: GradientMode, scales: list[float]
    ) -> None:
        network, measure = small(), nn.CrossEntropyLoss()
        batch = [PatientBatch(s * drawn(2, i), torch.tensor([i % 2, 1])) for i, s in enumerate(scales)]
        whole, norms = clipped_sum(network, mode, measure, batch, bound, 2)
        fewer, _ = clipped_sum(network, mode, measure, batch[1:], bound, 2)
        assert float((flat(whole) - flat(fewer)).double().norm()) <= bound * (1 + 1e-6 * len(scales))
        assert norms.shape == (len(scales),)

    @settings(max_examples=25, deadline=None)
    @given(
        strength=st.floats(0, 7),
        nearness=st.floats(-8, 0),
        bound=st.floats(1e-3, 1e3),
        mode=st.sampled_from(MODES),
        kind=st.sampled_from(["products", "made twice", "linear"]),
    )
    def test_no_weights_make_a_patient_count_for_more(
        self, strength: float, nearness: float, bound: float, mode: GradientMode, kind: str
    ) -> None:
        network, batch = cancelling(kind, 10**strength, 10**nearness)
        whole, norms = clipped_sum(network, mode, nn.CrossEntropyLoss(), batch[:1], bound, 2)
        length = float(flat(whole).double().norm())
        assert length <= bound * (1 + 1e-6)
        assert norms[0] == pytest.approx(
            clipped_sum(network, "loop", nn.CrossEntropyLoss(), batch[:1], 1, 1)[1][0], 1e-3
        )
        both, _ = clipped_sum(network, mode, nn.CrossEntropyLoss(), batch, bound, 2)
        assert float((flat(both).double() - flat(whole).double()).norm()) <= bound * (1 + 1e-6)

    @pytest.mark.parametrize("strength", [1e3, 1e4, 1e5])
    def test_places_that_nearly_cancel_do_not_hide_a_gradient_from_ghost_norms(self, strength: float) -> None:
        network, batch = cancelling("products", strength, 3e-5)
        sums, norms = clipped_sum(network, "ghost", nn.CrossEntropyLoss(), batch, 1.0, 2)
        one_by_one = clipped_sum(network, "loop", nn.CrossEntropyLoss(), batch, 1.0, 1)
        assert norms == pytest.approx(one_by_one[1], rel=1e-6)
        assert far(flat(sums), flat(one_by_one[0])) < 1e-5

    @pytest.mark.parametrize("mode", MODES)
    def test_a_gradient_of_rounding_errors_is_not_added_in_another_order_than_it_was_measured_in(
        self, mode: GradientMode
    ) -> None:
        draw = torch.Generator().manual_seed(1)
        network = nn.Sequential(nn.Conv3d(16, 64, 3, stride=3, bias=False), nn.Flatten(2))
        there = 1e5 * torch.randn(64, 6, generator=draw)
        weights, patch = torch.cat([there, -there], 1), torch.randn((1, 16, 3, 3, 3), generator=draw)
        batch = [PatientBatch((1 + n / 10) * patch.repeat(1, 1, 3, 2, 2) + 1e-8, torch.tensor([0])) for n in range(8)]
        whole, fewer = (
            clipped_sum(network, mode, lambda outputs, _: (outputs[0] * weights).sum(), some, 1.0, 8)[0]
            for some in (batch, batch[1:])
        )
        assert float((flat(whole).double() - flat(fewer).double()).norm()) <= 1 + 1e-6

    @pytest.mark.parametrize("mode", MODES)
    def test_ten_million_equal_values_are_measured_right(self, mode: GradientMode) -> None:
        network = nn.Sequential(nn.Flatten(), nn.Linear(10_000, 1000, bias=False))
        batch = [PatientBatch(torch.full((1, 1, 100, 100), 0.1), torch.tensor([0]))]
        sums, norms = clipped_sum(network, mode, lambda outputs, _: outputs.sum(), batch, 1.0, 1)
        assert norms == pytest.approx([0.1 * math.sqrt(1e7)], rel=1e-5)
        assert 0.999 < float(lengths(sums[0][None])) <= 1.0

    @pytest.mark.parametrize("mode", MODES)
    def test_a_gradient_too_long_to_be_measured_adds_nothing(self, mode: GradientMode) -> None:
        network = nn.Sequential(nn.Flatten(), nn.Linear(64, 2))
        batch = [PatientBatch(torch.full((1, 1, 8, 8), 1e17), torch.tensor([0]))] * 2
        sums, norms = clipped_sum(network, mode, lambda outputs, _: 2 * outputs.sum(), batch, 1.0, 2)
        assert norms.tolist() == [math.inf] * 2
        assert not flat(sums).any()

    @pytest.mark.parametrize("mode", MODES)
    def test_without_patients_is_zero(self, mode: GradientMode) -> None:
        network = small()
        sums, norms = clipped_sum(network, mode, nn.CrossEntropyLoss(), [], 1.0, 4)
        assert [s.shape for s in sums] == [p.shape for p in network.parameters()]
        assert not flat(sums).any()
        assert norms.shape == (0,)

    @pytest.mark.parametrize("mode", MODES)
    def test_does_not_depend_on_how_many_patients_are_in_memory(self, mode: GradientMode) -> None:
        network = small()
        found = [clipped_sum(network, mode, nn.CrossEntropyLoss(), classified(5), 0.5, n)[0] for n in (1, 3, 8)]
        assert all(far(flat(sums), flat(found[0])) < 1e-6 for sums in found[1:])

    @pytest.mark.parametrize("mode", MODES)
    def test_a_patient_with_the_same_image_ten_times_counts_once(self, mode: GradientMode) -> None:
        network, once = small(), PatientBatch(drawn(1), torch.tensor([1]))
        often = PatientBatch(once.images.repeat(10, 1, 1, 1), once.targets.repeat(10))
        found = [clipped_sum(network, mode, nn.CrossEntropyLoss(), [p], 0.5, 8)[0] for p in (once, often)]
        assert far(flat(found[1]), flat(found[0])) < 1e-5

    @pytest.mark.parametrize("mode", MODES)
    def test_leaves_gradients_weights_and_hooks_as_they_were(self, mode: GradientMode) -> None:
        network = small()
        before = flat([p.detach().clone() for p in network.parameters()])
        clipped_sum(network, mode, nn.CrossEntropyLoss(), classified(3), 1.0, 2)
        assert all(p.grad is None for p in network.parameters())
        assert torch.equal(flat([p.detach() for p in network.parameters()]), before)
        assert not any(layer._forward_hooks or layer._forward_pre_hooks for layer in network.modules())

    @pytest.mark.parametrize("mode", MODES)
    def test_takes_images_of_different_shapes(self, mode: GradientMode) -> None:
        network = nn.Sequential(nn.Conv2d(1, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2))
        batch = [PatientBatch(drawn(1, i)[..., :n], torch.tensor([0])) for i, n in enumerate((8, 8, 5))]
        sums, norms = clipped_sum(network, mode, nn.CrossEntropyLoss(), batch, 1.0, 4)
        one_by_one = [clipped_sum(network, "loop", nn.CrossEntropyLoss(), [p], 1.0, 1) for p in batch]
        assert norms == pytest.approx([float(n[0]) for _, n in one_by_one], rel=1e-5)
        assert far(flat(sums), torch.stack([flat(s) for s, _ in one_by_one]).sum(0)) < 1e-5

    @pytest.mark.parametrize("mode", MODES)
    def test_what_is_not_trained_has_no_part_in_it(self, mode: GradientMode) -> None:
        network = small()
        network[0].weight.requires_grad_(False)  # type: ignore[index,union-attr,operator]
        sums, norms = clipped_sum(network, mode, nn.CrossEntropyLoss(), classified(3), 1e9, 2)
        assert [s.shape for s in sums] == [p.shape for p in network.parameters() if p.requires_grad]
        expected = clipped_sum(network, "loop", nn.CrossEntropyLoss(), classified(3), 1e9, 1)
        assert norms == pytest.approx(expected[1], rel=1e-5)
        assert far(flat(sums), flat(expected[0])) < 1e-5

    @pytest.mark.parametrize("mode", MODES)
    def test_every_patient_has_its_own_dropout(self, mode: GradientMode) -> None:
        network = nn.Sequential(nn.Flatten(), nn.Dropout(0.5), nn.Linear(64, 2))
        same = [PatientBatch(torch.ones(1, 1, 8, 8), torch.tensor([1])) for _ in range(4)]
        with torch.random.fork_rng():
            torch.default_generator.manual_seed(0)
            _, norms = clipped_sum(network, mode, nn.CrossEntropyLoss(), same, 1.0, 4)
        assert len(set(norms.round(6))) > 1

    @pytest.mark.parametrize("mode", ["loop", "ghost"])
    def test_in_single_precision_norms_are_right_to_a_hundred_thousandth(self, mode: GradientMode) -> None:
        args, size = SMALL["densenet121"]
        network = build(ModelConfig(name="densenet121", args=args), task_of("densenet121", 2), image_size=size[:2])
        batch = [one._replace(images=one.images.float()) for one in study("densenet121", 2).batch]
        network.load_state_dict({n: t.float() for n, t in study("densenet121", 2).network.state_dict().items()})
        _, norms = clipped_sum(made_private(network), mode, nn.CrossEntropyLoss(), batch, 1.0, 4)
        assert norms == pytest.approx([float(g.norm()) for g in study("densenet121", 2).gradients], rel=1e-5)

    def test_agrees_with_opacus_where_opacus_works(self) -> None:
        from opacus.grad_sample import GradSampleModule

        network, batch = small(), classified(4, examples=1)
        sums, norms = clipped_sum(network, "ghost", nn.CrossEntropyLoss(), batch, 0.5, 4)
        wrapped = GradSampleModule(network, loss_reduction="sum")
        outputs = wrapped(torch.cat([one.images for one in batch]))
        nn.CrossEntropyLoss(reduction="sum")(outputs, torch.cat([one.targets for one in batch])).backward()
        rows = torch.cat([p.grad_sample.flatten(1) for p in network.parameters()], dim=1)  # type: ignore[operator]
        assert norms == pytest.approx(rows.norm(dim=1).numpy(), rel=1e-5)
        assert far(flat(sums), (rows * (SHORTER * 0.5 / rows.norm(dim=1)).clamp(max=1)[:, None]).sum(0)) < 1e-5


def small() -> nn.Sequential:
    with torch.random.fork_rng():
        torch.default_generator.manual_seed(3)
        return nn.Sequential(
            nn.Conv2d(1, 4, 3), nn.GroupNorm(2, 4), nn.PReLU(4), nn.Conv2d(4, 8, 1), nn.Tanh(), nn.Conv2d(8, 16, 3, 2),
            nn.PReLU(), nn.Flatten(), nn.Linear(64, 24), nn.ELU(), nn.Linear(24, 2),
        )  # fmt: skip


def cancelling(kind: str, strength: float, nearness: float) -> tuple[nn.Module, list[PatientBatch]]:
    """Weights that bring back opposite gradients of that strength to two places which see nearly the same.

    kind: norms come from products between places, or from gradients that are made a second time, or from a linear
    layer at two places. The last layer is not trained, so that nothing else is long.
    """
    draw = torch.Generator().manual_seed(0)
    side = 2 if kind == "made twice" else 8
    first: nn.Module = nn.Conv2d(1, 64, side, stride=side, bias=False)
    if kind == "made twice":  # too many places for products: there are more examples
        first = nn.Conv3d(8, 64, 3, stride=3, bias=False)
    if kind == "linear":
        first = nn.Linear(64, 64, bias=False)
    last = nn.Linear(128, 2, bias=False).requires_grad_(False)
    with torch.no_grad():
        there = torch.randn((2, 64), generator=draw)
        last.weight.copy_(strength * torch.stack([there, -there], 2 if kind != "linear" else 1).flatten(1))
        first.weight.mul_(1e-3 / strength)  # type: ignore[operator]
    shape = {"products": (1, 1, 8, 16), "made twice": (1, 8, 3, 3, 6), "linear": (1, 1, 2, 64)}[kind]
    batch = []
    for n in range(2):
        images = torch.full(shape, 1.0 + n)
        half = images[..., 1, :] if kind == "linear" else images[..., shape[-1] // 2 :]
        half += nearness * torch.randn(half.shape, generator=draw)
        batch.append(PatientBatch(images, torch.tensor([n])))
    return nn.Sequential(first, nn.Flatten(), last), batch


def drawn(n: int, seed: int = 0) -> Tensor:
    return torch.randn((n, 1, 8, 8), generator=torch.Generator().manual_seed(seed))


def classified(patients: int, examples: int = 2) -> list[PatientBatch]:
    return [PatientBatch(drawn(examples, i), torch.full((examples,), i % 2)) for i in range(patients)]


class Odd(nn.Module):
    """A layer with a parameter of its own that no formula is known for."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(1))
        self.linear = nn.Linear(64, 2)

    def forward(self, images: Tensor) -> Tensor:
        return self.linear(images.flatten(1) * self.scale)


class TestModeFor:
    def plan(self, plan_for: Plans, mode: str) -> FederationPlan:
        privacy = {
            "mechanism": "patient_dp", "noise_multiplier": 1.0, "delta": 1e-5, "clipping_norm": 1.0,
            "sampling_rate": 0.5, "gradients": mode,
        }  # fmt: skip
        return plan_for(privacy=privacy)

    def test_auto_takes_ghost_gradients(self, plan_for: Plans) -> None:
        assert mode_for(small(), self.plan(plan_for, "auto")) == "ghost"

    def test_auto_takes_one_patient_at_a_time_where_there_is_no_formula(self, plan_for: Plans) -> None:
        assert mode_for(Odd(), self.plan(plan_for, "auto")) == "loop"

    @pytest.mark.parametrize("mode", MODES)
    def test_a_mode_that_is_asked_for_is_taken(self, plan_for: Plans, mode: GradientMode) -> None:
        assert mode_for(small(), self.plan(plan_for, mode)) == mode

    def test_a_mode_that_the_network_cannot_have_is_refused_by_the_name_of_the_layer(self, plan_for: Plans) -> None:
        network = nn.Sequential(nn.Flatten(), Odd())
        with pytest.raises(PrivateTrainingError, match=r"no formula for hooks gradients of these layers: 1\. Set"):
            mode_for(network, self.plan(plan_for, "hooks"))


class TestRefusal:
    @pytest.mark.parametrize("mode", MODES[1:])
    def test_a_network_that_computes_parts_twice_can_only_loop(self, mode: GradientMode) -> None:
        args, size = SMALL["swin_unetr"]
        model = ModelConfig(name="swin_unetr", args={**args, "use_checkpoint": True})
        network = build(model, task_of("swin_unetr", 2), image_size=size[:2])
        assert "a second time to save memory" in str(refusal(network, mode))
        assert refusal(network, "loop") is None

    def test_a_network_without_formula_can_still_be_vectorised(self) -> None:
        network = Odd()
        assert refusal(network, "functorch") is None
        found = [clipped_sum(network, m, nn.CrossEntropyLoss(), classified(3), 1.0, 2) for m in ("loop", "functorch")]
        assert far(flat(found[1][0]), flat(found[0][0])) < 1e-5

    @pytest.mark.parametrize(
        "layer", [nn.Conv2d(1, 1, 3, padding="same"), nn.Conv2d(1, 1, 3, padding=1, padding_mode="reflect")]
    )
    def test_convolutions_with_other_borders_have_no_formula(self, layer: nn.Module) -> None:
        assert unsupported_layers(nn.Sequential(layer)) == ("0",)
        assert unsupported_layers(nn.Sequential(nn.Conv2d(1, 1, 3, padding=1))) == ()


class Overwriting(nn.Module):
    """Changes in place what its first layer saw."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(64, 64), nn.Linear(64, 2)

    def forward(self, images: Tensor) -> Tensor:
        seen = images.flatten(1) * 2
        return self.second(self.first(seen) + seen.relu_())  # type: ignore[no-any-return]


class Forgetful(Overwriting):
    """Loses the gradient of its first layer on the way."""

    def forward(self, images: Tensor) -> Tensor:
        return self.second(images.flatten(1) + self.first(images.flatten(1)).detach())  # type: ignore[no-any-return]


class TestLengths:
    @pytest.mark.parametrize("n", [1, 511, 512, 513, 5000])
    def test_they_are_those_of_whole_rows(self, n: int) -> None:
        rows = torch.randn((3, n), generator=torch.Generator().manual_seed(n))
        assert lengths(rows).dtype == torch.float64
        assert lengths(rows).tolist() == pytest.approx(rows.double().norm(dim=1).tolist(), rel=1e-6)
        assert lengths(rows[:, :, None]).equal(lengths(rows))

    @pytest.mark.parametrize("n", [2, 5000])
    def test_what_overflows_is_larger_than_any_gradient_may_be(self, n: int) -> None:
        found = lengths(torch.tensor([[1e20, 0.0], [3.0, 4.0]]).repeat(1, n // 2))
        assert found[0] > 1e19
        assert found[1] == pytest.approx(5 * math.sqrt(n // 2))


class TestLayerGradients:
    @pytest.mark.parametrize("keep_all", [True, False])
    def test_an_input_that_was_changed_after_its_use_is_no_ground_for_a_gradient(self, keep_all: bool) -> None:
        layers = LayerGradients(Overwriting(), 2, keep_all)
        with pytest.raises(PrivateTrainingError, match="changed in place after it was used"):
            layers.backward(drawn(2), lambda outputs: outputs.sum())

    @pytest.mark.parametrize("keep_all", [True, False])
    def test_an_output_that_leads_nowhere_is_not_taken_for_a_gradient_of_zero(self, keep_all: bool) -> None:
        layers = LayerGradients(Forgetful(), 2, keep_all)
        with pytest.raises(PrivateTrainingError, match="through which no gradient comes back"):
            layers.backward(drawn(2), lambda outputs: outputs.sum())

    def test_what_was_clipped_to_nothing_adds_nothing(self) -> None:
        network = small()
        layers = LayerGradients(network, 2, keep_all=False)
        layers.backward(drawn(2), lambda outputs: outputs.square().sum())
        totals = {p: torch.zeros_like(p) for p in network.parameters()}
        with torch.no_grad():
            assert layers.norms().shape == (2,)
            assert not layers.unsure(layers.norms()).any()
            assert layers.unsure(layers.norms() / 1e3).all()
            layers.add_scaled(torch.zeros(2), totals)
        assert not any(total.any() for total in totals.values())

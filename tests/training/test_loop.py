"""One round of local training: the same bits for the same seed, and nothing outside touched."""

from __future__ import annotations

import random
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from eucaim_fl.arrays import Arrays, arrays_sha256
from eucaim_fl.cohorts.cohort import PreparedCase
from eucaim_fl.config import ClassificationConfig, SegmentationConfig
from eucaim_fl.errors import JournalError, NotFiniteError, PlanError
from eucaim_fl.models.networks import build, get_arrays, set_arrays
from eucaim_fl.plan import FederationPlan
from eucaim_fl.training import loop
from eucaim_fl.training.loop import autocast_type, batches, learning_rates, steps_of_a_round, train_round
from eucaim_fl.training.objective import Pull, pull_for

Plans = Callable[..., FederationPlan]
Cases = Callable[..., PreparedCase]

VOLUMES = SegmentationConfig(spatial_dims=3, labels=("lesion",))
CLASSES_2D = ClassificationConfig(spatial_dims=2, target="malignant", classes=("no", "yes"))
CLASSES_3D = ClassificationConfig(spatial_dims=3, target="malignant", classes=("no", "yes"))
SMALL_CNN = {"name": "small_cnn", "args": {"channels": [8, 16], "strides": [2, 2]}}
LINEAR = {"schedule": {"kind": "linear", "warmup_rounds": 1}, "local_steps": 2}
QUIET = {"flip": 0.0, "scale_intensity": 0.0, "shift_intensity": 0.0}


class Runaway(nn.Module):
    """Says 0 for every class, while `pull` times the gradient of that moves its weights."""

    def __init__(self, pull: float = 1.0) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(2))
        self.pull = pull

    def forward(self, images: Tensor) -> Tensor:
        return images.new_zeros(len(images), 2) + (self.weight - self.weight.detach()) * self.pull


@pytest.fixture
def cases(prepared_case: Cases) -> list[PreparedCase]:
    """Five cases of 16 × 16 × 8 voxels, each with a block to find in a place of its own."""
    rng = np.random.default_rng(0)
    made = []
    for number in range(5):
        label = np.zeros((16, 16, 8), dtype=np.uint8)
        label[number * 2 : number * 2 + 6, 4:10, 2:6] = 1
        made.append(prepared_case(label + rng.normal(0, 0.1, label.shape), label, f"p{number}", number % 2))
    return made


@pytest.fixture
def numbered(prepared_case: Cases) -> list[PreparedCase]:
    """Five cases whose images hold their number everywhere."""
    return [prepared_case(np.full((4, 4, 2), n), np.zeros((4, 4, 2)), f"p{n}", n % 2) for n in range(5)]


def network_of(plan: FederationPlan, seed: int = 0) -> nn.Module:
    size = plan.training.patch_voxels or (16, 16, 8)[: plan.task.spatial_dims]
    return build(plan.model, plan.task, seed=seed, image_size=size)


def trained(plan: FederationPlan, cases: Sequence[PreparedCase], seed: int) -> Arrays:
    network = network_of(plan)
    train_round(network, cases, plan, seed, pull=pull_of(network, plan))
    return get_arrays(network)


def pull_of(network: nn.Module, plan: FederationPlan) -> Pull | None:
    """That of a plan's first round, with the weights that the network holds."""
    return pull_for(plan.method.objective, get_arrays(network), {}, {})


class TestStepsOfARound:
    def test_steps_are_steps(self, plan_for: Plans) -> None:
        assert steps_of_a_round(plan_for(training={"local_steps": 7}), cases=1000) == 7

    @pytest.mark.parametrize(("epochs", "cases", "steps"), [(1, 8, 2), (1, 9, 3), (3, 4, 3), (1, 1, 1), (2, 5, 3)])
    def test_an_epoch_is_one_example_of_every_case(self, plan_for: Plans, epochs: int, cases: int, steps: int) -> None:
        plan = plan_for(training={"local_steps": None, "local_epochs": epochs, "batch_size": 4})
        assert steps_of_a_round(plan, cases) == steps


class TestBatches:
    def visited(self, plan: FederationPlan, cases: list[PreparedCase], seed: int, steps: int) -> list[int]:
        return [int(v) for images, _ in batches(cases, plan, seed, steps) for v in images[:, 0, 0, 0]]

    @pytest.mark.parametrize("size", [1, 2, 3, 7])
    def test_every_case_comes_once_before_any_comes_again(
        self, plan_for: Plans, numbered: list[PreparedCase], size: int
    ) -> None:
        plan = plan_for(training={"batch_size": size, "augmentation": QUIET})
        order = self.visited(plan, numbered, seed=0, steps=20)
        assert len(order) == 20 * size
        for first in range(0, len(order) - 4, 5):
            assert sorted(order[first : first + 5]) == [0, 1, 2, 3, 4]

    def test_each_turn_has_an_order_of_its_own_that_follows_from_the_seed(
        self, plan_for: Plans, numbered: list[PreparedCase]
    ) -> None:
        plan = plan_for(training={"batch_size": 5, "augmentation": QUIET})
        order = self.visited(plan, numbered, seed=0, steps=6)
        assert len({tuple(order[n : n + 5]) for n in range(0, 30, 5)}) > 1
        assert order == self.visited(plan, numbered, seed=0, steps=6)
        assert order != self.visited(plan, numbered, seed=1, steps=6)

    @pytest.mark.parametrize(
        ("task", "patch", "images", "targets"),
        [
            (None, None, (4, 1, 16, 16), (4, 1, 16, 16)),
            (None, (8, 4), (4, 1, 8, 4), (4, 1, 8, 4)),
            (VOLUMES, None, (4, 1, 16, 16, 8), (4, 1, 16, 16, 8)),
            (VOLUMES, (8, 8, 4), (4, 1, 8, 8, 4), (4, 1, 8, 8, 4)),
            (CLASSES_2D, None, (4, 1, 16, 16), (4,)),
            (CLASSES_3D, (8, 8, 8), (4, 1, 8, 8, 8), (4,)),
        ],
    )
    def test_their_shapes_follow_from_task_and_patch(
        self, plan_for: Plans, cases: list[PreparedCase], task: Any, patch: Any, images: Any, targets: Any
    ) -> None:
        plan = plan_for(task, training={"patch_voxels": patch})
        found = list(batches(cases, plan, 0, 2))
        assert [(tuple(i.shape), tuple(t.shape)) for i, t in found] == [(images, targets)] * 2
        assert found[0][0].dtype == torch.float32


class TestPatientsSeen:
    @pytest.mark.parametrize("size", [1, 2, 3])
    def test_they_are_those_of_the_batches_really_drawn(self, plan_for: Plans, prepared_case: Cases, size: int) -> None:
        patients = ["p0", "p0", "p0", "p1", "p1", "p2", "p3"]
        made = [
            prepared_case(np.full((4, 4, 2), n), np.zeros((4, 4, 2)), patient) for n, patient in enumerate(patients)
        ]
        plan = plan_for(training={"batch_size": size, "augmentation": QUIET})
        counts = set()
        for seed in range(10):
            for steps in range(1, 9):
                drawn = [int(v) for images, _ in batches(made, plan, seed, steps) for v in images[:, 0, 0, 0]]
                expected = len({patients[number] for number in drawn})
                assert loop._patients_seen(made, plan, seed, steps) == expected
                counts.add(expected)
        assert counts >= {2, 3, 4}

    def test_a_round_tells_how_many(self, plan_for: Plans, cases: list[PreparedCase]) -> None:
        few = plan_for(training={"local_steps": 1, "batch_size": 2})
        assert train_round(network_of(few), cases, few, 0).patients == 2
        all_of_them = plan_for(training={"local_steps": 4, "batch_size": 2})
        assert train_round(network_of(all_of_them), cases, all_of_them, 0).patients == 5


class TestTrainRound:
    @pytest.mark.parametrize(
        ("task", "changes"),
        [
            (None, {}),
            (None, {"training": {"patch_voxels": (8, 8)}}),
            (VOLUMES, {}),
            (VOLUMES, {"training": {"patch_voxels": (8, 8, 8)}}),
            (CLASSES_2D, {"model": SMALL_CNN}),
            (CLASSES_3D, {"model": SMALL_CNN, "training": {"patch_voxels": (8, 8, 8)}}),
            (None, {"method": {"objective": {"name": "proximal", "mu": 0.1}}}),
            (None, {"training": {"optimizer": {"name": "adam", "lr": 0.01}, "gradient_clip": 1.0}}),
            (None, {"training": {"optimizer": {"name": "adamw", "lr": 0.01, "weight_decay": 0.1}}}),
        ],
    )
    def test_one_seed_gives_the_same_bits_and_another_seed_others(
        self, plan_for: Plans, cases: list[PreparedCase], task: Any, changes: dict[str, Any]
    ) -> None:
        plan = plan_for(task, **changes)
        once, again, other = (arrays_sha256(trained(plan, cases, seed)) for seed in (0, 0, 1))
        assert once == again != other

    def test_it_starts_from_the_weights_that_the_network_holds(
        self, plan_for: Plans, cases: list[PreparedCase]
    ) -> None:
        plan = plan_for()
        network = network_of(plan, seed=3)
        set_arrays(network, get_arrays(network_of(plan)))
        train_round(network, cases, plan, 0)
        assert arrays_sha256(get_arrays(network)) == arrays_sha256(trained(plan, cases, 0))

    def test_global_random_state_is_left_alone(self, plan_for: Plans, cases: list[PreparedCase]) -> None:
        def state() -> tuple[object, ...]:
            return random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()  # noqa: NPY002

        plan = plan_for(training={"augmentation": {"noise_std": 0.1, "rotate90": 0.5}})
        network = network_of(plan)
        before = state()
        train_round(network, cases, plan, 0)
        assert state() == before

    def test_dropout_draws_from_the_seed_and_not_from_outside(self, plan_for: Plans, cases: list[PreparedCase]) -> None:
        plan = plan_for()
        first = arrays_sha256(trained(plan, cases, 0))
        torch.rand(10)
        assert arrays_sha256(trained(plan, cases, 0)) == first

    def test_loss_falls_when_one_batch_is_learnt_by_heart(self, plan_for: Plans, cases: list[PreparedCase]) -> None:
        one = {"batch_size": 1, "augmentation": {"flip": 0.0}, "optimizer": {"name": "adam", "lr": 0.02}}
        plan = plan_for(
            VOLUMES, training={**one, "local_steps": 1}, model={"args": {"channels": [4, 8], "strides": [2]}}
        )
        longer = plan_for(
            VOLUMES, training={**one, "local_steps": 25}, model={"args": {"channels": [4, 8], "strides": [2]}}
        )
        network = network_of(plan)
        before = train_round(network, cases[:1], plan, 0).loss
        train_round(network, cases[:1], longer, 0)
        assert train_round(network, cases[:1], plan, 0).loss < before / 2

    def test_the_outcome_is_the_mean_loss_and_the_number_of_steps(
        self, plan_for: Plans, numbered: list[PreparedCase]
    ) -> None:
        class Still(nn.Module):
            """Says 0 for every class, whatever it is taught."""

            def __init__(self) -> None:
                super().__init__()
                self.weight = nn.Parameter(torch.ones(2))

            def forward(self, images: Tensor) -> Tensor:
                return images.new_zeros(len(images), 2) * self.weight

        outcome = train_round(Still(), numbered, plan_for(CLASSES_2D, training={"local_steps": 5}), 0)
        assert outcome.steps == 5
        assert outcome.loss == pytest.approx(np.log(2))

    def test_the_proximal_term_holds_the_weights_back(self, plan_for: Plans, cases: list[PreparedCase]) -> None:
        start = get_arrays(network_of(plan_for()))

        def distance(mu: float) -> float:
            plan = plan_for(
                training={"local_steps": 10, "optimizer": {"name": "sgd", "lr": 0.05, "momentum": 0.0}},
                method={"objective": {"name": "proximal", "mu": mu}},
            )
            weights = trained(plan, cases, 0)
            return sum(float(((weights[n] - start[n]) ** 2).sum()) for n in start if n.endswith("conv.weight"))

        assert distance(10.0) < 0.5 * distance(0.0)

    def test_the_clip_bounds_a_step(self, plan_for: Plans, cases: list[PreparedCase]) -> None:
        sgd = {"optimizer": {"name": "sgd", "lr": 1.0, "momentum": 0.0}, "local_steps": 1}
        plan = plan_for(training={**sgd, "gradient_clip": 1e-3})
        network = network_of(plan)
        before = [p.detach().clone() for p in network.parameters()]
        train_round(network, cases, plan, 0)
        moved = (
            sum(float((p.detach() - b).pow(2).sum()) for p, b in zip(network.parameters(), before, strict=True)) ** 0.5
        )
        assert moved == pytest.approx(1e-3, rel=1e-3)

    def test_a_frozen_parameter_stays(self, plan_for: Plans, cases: list[PreparedCase]) -> None:
        plan = plan_for(method={"objective": {"name": "proximal", "mu": 0.1}})
        network = network_of(plan)
        frozen = next(network.parameters()).requires_grad_(False)
        before = frozen.clone()
        train_round(network, cases, plan, 0, pull=pull_of(network, plan))
        assert torch.equal(frozen, before)

    def test_a_diverging_loss_ends_the_round(self, plan_for: Plans, cases: list[PreparedCase]) -> None:
        plan = plan_for(training={"optimizer": {"name": "sgd", "lr": 1e30}})
        with pytest.raises(NotFiniteError, match=r"not finite at local step 2.*Lower training\.optimizer\.lr"):
            train_round(network_of(plan), cases, plan, 0)

    def test_what_another_optimizer_remembers_is_refused(self, plan_for: Plans, cases: list[PreparedCase]) -> None:
        plan = plan_for(training={"optimizer": {"name": "sgd", "lr": 0.1, "kept": True}})
        with pytest.raises(JournalError, match="another network or optimizer"):
            train_round(network_of(plan), cases, plan, 0, moments={"exp_avg.w": np.zeros(1, np.float32)})

    def test_an_image_that_is_not_finite_ends_the_round(self, plan_for: Plans, prepared_case: Cases) -> None:
        case = prepared_case(np.full((16, 16, 8), np.nan), np.zeros((16, 16, 8)))
        with pytest.raises(NotFiniteError, match="not finite at local step 1"):
            train_round(network_of(plan_for()), [case], plan_for(), 0)

    def test_the_loss_has_the_penalty_in_it(self, plan_for: Plans, numbered: list[PreparedCase]) -> None:
        sgd = {"optimizer": {"name": "sgd", "lr": 1.0, "momentum": 0.0}, "local_steps": 2}
        plan = plan_for(CLASSES_2D, training=sgd)
        # the first step moves both weights by 1/2, so the second pays 1/2 · (1/4 + 1/4)
        pull = Pull(1.0, {"weight": np.zeros(2, np.float32)}, {})
        assert train_round(Runaway(), numbered[:1], plan, 0, pull=pull).loss == pytest.approx(np.log(2) + 0.25 / 2)
        untold = replace(pull, told=False)
        assert train_round(Runaway(), numbered[:1], plan, 0, pull=untold).loss == pytest.approx(np.log(2))

    def test_a_penalty_that_is_not_finite_ends_the_round(self, plan_for: Plans, numbered: list[PreparedCase]) -> None:
        plan = plan_for(CLASSES_2D, training={"optimizer": {"name": "sgd", "lr": 100.0}})
        pull = Pull(1e-3, {"weight": np.zeros(2, np.float32)}, {})
        with pytest.raises(NotFiniteError, match="not finite at local step 2"):
            train_round(Runaway(1e19), numbered[:1], plan, 0, pull=pull)

    def test_a_correction_moves_every_step(self, plan_for: Plans, numbered: list[PreparedCase]) -> None:
        sgd = {"optimizer": {"name": "sgd", "lr": 0.5, "momentum": 0.0}, "local_steps": 3}
        plan, network = plan_for(CLASSES_2D, training=sgd), Runaway(0.0)
        outcome = train_round(network, numbered, plan, 0, pull=Pull(0.0, {}, {"weight": np.float32([1.0, -2.0])}))
        assert network.weight.tolist() == [-1.5, 3.0]
        assert outcome.lr_sum == 1.5

    def test_the_plans_own_objective_is_not_looked_at(self, plan_for: Plans, cases: list[PreparedCase]) -> None:
        def bits(**changes: Any) -> str:
            plan = plan_for(**changes)
            network = network_of(plan)
            train_round(network, cases, plan, 0)
            return arrays_sha256(get_arrays(network))

        assert bits(method={"objective": {"name": "proximal", "mu": 1.0}}) == bits()

    def test_a_pull_of_another_shape_is_refused(self, plan_for: Plans, numbered: list[PreparedCase]) -> None:
        with pytest.raises(PlanError, match="another shape than array weight"):
            train_round(Runaway(), numbered, plan_for(CLASSES_2D), 0, pull=Pull(1.0, {"weight": np.zeros(3)}, {}))


class TestRounds:
    """Learning rates that follow from the rounds, and several rounds in one go."""

    def moved(self, plan: FederationPlan, cases: list[PreparedCase], rounds: Sequence[int]) -> tuple[float, float]:
        """How far a gradient of −1 takes a weight, and the sum of learning rates that is told."""
        network = Runaway(0.0)
        pull = Pull(0.0, {}, {"weight": np.float32([-1.0, 0.0])})
        outcome = train_round(network, cases, plan, 0, rounds=rounds, pull=pull)
        assert outcome.steps == len(rounds) * 2
        return float(network.weight[0].detach()), outcome.lr_sum

    def test_every_step_has_the_rate_of_its_round(self, plan_for: Plans) -> None:
        plan = plan_for(rounds=3, training={**LINEAR, "optimizer": {"lr": 0.2}})
        assert learning_rates(plan, 10, [3, 1, 2]) == pytest.approx([0.1, 0.1, 0.1, 0.1, 0.2, 0.2])

    def test_epochs_give_as_many_rates_as_they_have_steps(self, plan_for: Plans) -> None:
        plan = plan_for(training={"local_steps": None, "local_epochs": 3, "batch_size": 4})
        assert learning_rates(plan, 5, [1, 2]) == [0.1] * 8

    def test_steps_follow_the_rates(self, plan_for: Plans, numbered: list[PreparedCase]) -> None:
        sgd = {**LINEAR, "optimizer": {"name": "sgd", "lr": 1.0, "momentum": 0.0}}
        plan = plan_for(CLASSES_2D, rounds=3, training=sgd)
        for rounds, total in (([1], 1.0), ([2], 2.0), ([3], 1.0), (range(1, 4), 4.0)):
            assert self.moved(plan, numbered, rounds) == (pytest.approx(total), pytest.approx(total))

    def test_several_rounds_are_one_long_one(self, plan_for: Plans, cases: list[PreparedCase]) -> None:
        """With the optimizer's state and the turns of the cases going on, to the bit."""
        short, long = (
            plan_for(rounds=4, training={"local_steps": n, "optimizer": {"name": "adam", "lr": 0.01}}) for n in (3, 12)
        )
        one, other = network_of(short), network_of(long)
        first = train_round(one, cases, short, 0, rounds=range(1, 5))
        assert train_round(other, cases, long, 0) == first
        assert arrays_sha256(get_arrays(one)) == arrays_sha256(get_arrays(other))

    def test_no_round_is_refused(self, plan_for: Plans, numbered: list[PreparedCase]) -> None:
        with pytest.raises(ValueError, match="no round to train"):
            train_round(Runaway(), numbered, plan_for(CLASSES_2D), 0, rounds=())

    def test_rounds_count_from_1(self, plan_for: Plans, numbered: list[PreparedCase]) -> None:
        with pytest.raises(ValueError, match="rounds count from 1"):
            learning_rates(plan_for(CLASSES_2D), 5, [0])
        with pytest.raises(ValueError, match="rounds count from 1"):
            train_round(Runaway(), numbered, plan_for(CLASSES_2D), 0, rounds=[0])


class TestBalancedRounds:
    unequal = (0, 0, 0, 0, 0, 0, 0, 1)

    @pytest.fixture
    def skewed(self, prepared_case: Cases) -> list[PreparedCase]:
        return [prepared_case(np.full((4, 4, 2), n), None, f"p{n}", t) for n, t in enumerate(self.unequal)]

    def plan(self, plan_for: Plans, steps: int = 4, **balance: Any) -> FederationPlan:
        training = {"batch_size": 4, "local_steps": steps, "augmentation": QUIET, "balance": balance}
        return plan_for(CLASSES_2D, training=training)

    def test_sampling_by_classes_draws_them_equally_often(self, plan_for: Plans, skewed: list[PreparedCase]) -> None:
        plan = self.plan(plan_for, sampling="classes")
        assert [int(targets.sum()) for _, targets in batches(skewed, plan, 0, 4)] == [2, 2, 2, 2]

    @pytest.mark.parametrize("sampling", ["patients", "classes"])
    @pytest.mark.parametrize("steps", [1, 2, 3, 4])
    def test_the_patients_told_are_those_drawn(
        self, plan_for: Plans, skewed: list[PreparedCase], sampling: str, steps: int
    ) -> None:
        plan = self.plan(plan_for, steps, sampling=sampling)
        drawn = {int(v) for images, _ in batches(skewed, plan, 3, steps) for v in images[:, 0, 0, 0]}
        assert train_round(Runaway(), skewed, plan, 3).patients == len(drawn)

    @pytest.mark.parametrize("balance", [{"loss": "weights"}, {"loss": "logits"}, {"sampling": "classes"}])
    def test_each_way_evens_the_classes_out(
        self, plan_for: Plans, skewed: list[PreparedCase], balance: dict[str, Any]
    ) -> None:
        """A network that sees nothing learns the share of its classes: one eighth, or with balance one half."""

        def learnt(**asked: Any) -> float:
            network = Runaway()
            training = {
                "batch_size": 8, "local_steps": 60, "balance": asked, "optimizer": {"name": "sgd", "lr": 0.5},
            }  # fmt: skip
            train_round(network, skewed, plan_for(CLASSES_2D, training=training), 0)
            return float(network.weight.detach().softmax(0)[1])

        assert learnt(**balance) == pytest.approx(0.5, abs=0.02)

    def test_shares_that_the_network_lacks_are_said(self, plan_for: Plans, skewed: list[PreparedCase]) -> None:
        with pytest.raises(PlanError, match="the model does not hold them"):
            train_round(Runaway(), skewed, self.plan(plan_for, loss="weights", shares="federation"), 0)


class TestPrecision:
    @pytest.mark.parametrize("precision", ["float32", "bfloat16", "float16"])
    def test_a_processor_calculates_in_float32(self, precision: Any) -> None:
        assert autocast_type(precision, "cpu") is None

    def test_a_gpu_calculates_in_what_the_plan_says(self) -> None:
        found = [autocast_type(precision, "cuda") for precision in ("float32", "bfloat16", "float16")]
        assert found == [None, torch.bfloat16, torch.float16]

    def test_on_a_processor_a_plan_for_a_gpu_gives_the_same_bits(
        self, plan_for: Plans, cases: list[PreparedCase]
    ) -> None:
        half = plan_for(training={"precision": "float16"})
        assert arrays_sha256(trained(half, cases, 0)) == arrays_sha256(trained(plan_for(), cases, 0))

    @pytest.mark.parametrize("kind", [torch.bfloat16, torch.float16])
    def test_less_precise_training_is_near_and_its_weights_are_float32(
        self, plan_for: Plans, cases: list[PreparedCase], monkeypatch: pytest.MonkeyPatch, kind: torch.dtype
    ) -> None:
        """PyTorch can calculate so on a processor too, though no plan does."""
        plan = plan_for(CLASSES_2D, model=SMALL_CNN, training={"gradient_clip": 1.0})
        exact = trained(plan, cases, 0)
        seen: list[torch.dtype] = []
        monkeypatch.setattr(loop, "autocast_type", lambda precision, device: kind)
        network = network_of(plan)
        network.register_forward_hook(lambda _module, _given, out: seen.append(out.dtype))
        outcome = train_round(network, cases, plan, 0)
        near = get_arrays(network)
        assert set(seen) == {kind}
        assert np.isfinite(outcome.loss)
        assert {name: a.dtype for name, a in near.items()} == {name: a.dtype for name, a in exact.items()}
        moved = [np.abs(near[n] - exact[n]).max() for n in exact if exact[n].dtype == np.float32]
        assert 0 < max(moved) < 0.05

    def test_a_step_whose_gradients_overflow_changes_nothing_and_counts(
        self, plan_for: Plans, numbered: list[PreparedCase], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(loop, "autocast_type", lambda precision, device: torch.float16)
        sgd = {"optimizer": {"name": "sgd", "lr": 0.1, "momentum": 0.0}, "local_steps": 1, "batch_size": 1}
        network = Runaway(3e38)
        outcome = train_round(network, numbered[:1], plan_for(CLASSES_2D, training=sgd), 0)
        assert network.weight.tolist() == [0.0, 0.0]
        assert (outcome.steps, outcome.lr_sum) == (1, 0.1)


class TestAhead:
    """Batches that are made in a background thread while a GPU trains; here without one."""

    @pytest.fixture
    def always(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(loop, "made_in_time", lambda items, _device: loop._ahead(items))

    @staticmethod
    def makers() -> list[str]:
        return [thread.name for thread in threading.enumerate() if thread.name == "batches"]

    def test_the_result_is_the_same_to_the_bit(
        self, plan_for: Plans, cases: list[PreparedCase], request: pytest.FixtureRequest
    ) -> None:
        plan = plan_for(training={"local_steps": 12, "augmentation": {"noise_std": 0.1, "rotate90": 0.5}})
        before = arrays_sha256(trained(plan, cases, 0))
        request.getfixturevalue("always")
        assert arrays_sha256(trained(plan, cases, 0)) == before
        assert not self.makers()

    def test_order_and_number_stay_and_no_more_than_a_few_are_made_ahead(self) -> None:
        made: list[int] = []

        def numbers() -> Iterator[Any]:
            for number in range(20):
                made.append(number)
                yield number

        with loop._ahead(numbers()) as items:
            for count, item in enumerate(items):
                assert item == count
                assert len(made) <= count + 5
        assert made == list(range(20))

    def test_what_the_thread_raises_surfaces_and_the_thread_ends(
        self, always: None, plan_for: Plans, numbered: Any
    ) -> None:
        bare = [PreparedCase("p", None, replace(numbered[0].entry, label_path=None))]
        plan = plan_for()
        with pytest.raises(ValueError, match="case without label"):
            train_round(network_of(plan), bare, plan, 0)
        assert not self.makers()

    def test_the_thread_ends_when_training_does_not_go_on(
        self, always: None, plan_for: Plans, cases: list[PreparedCase]
    ) -> None:
        plan = plan_for(training={"local_steps": 1000, "optimizer": {"name": "sgd", "lr": 1e30}})
        with pytest.raises(NotFiniteError, match="not finite at local step 2"):
            train_round(network_of(plan), cases, plan, 0)
        assert not self.makers()

    def test_a_gpu_is_what_it_is_for(self) -> None:
        items = iter([])
        with loop.made_in_time(items, torch.device("cpu")) as same:
            assert same is items
        with loop.made_in_time(items, torch.device("cuda")) as other:
            assert other is not items

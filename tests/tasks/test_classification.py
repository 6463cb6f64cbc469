"""Classification: one class for every patient's image, from slices or volumes."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from eucaim_fl.cohorts.cohort import PreparedCase
from eucaim_fl.config import ClassificationConfig, DataConfig, TrainingConfig
from eucaim_fl.plan import FederationPlan
from eucaim_fl.tasks import classification, for_task
from eucaim_fl.tasks.pictures import PREDICTION_COLOUR, TRUTH_COLOUR

Plans = Callable[..., FederationPlan]
Cases = Callable[..., PreparedCase]
SLICES = ClassificationConfig(spatial_dims=2, target="malignant", classes=("no", "yes"))
VOLUMES = ClassificationConfig(spatial_dims=3, target="malignant", classes=("no", "yes"))


class MeanLogit(nn.Module):
    """Logits (0, mean of the image)."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(()))
        self.seen: list[tuple[int, ...]] = []

    def forward(self, images: Tensor) -> Tensor:
        self.seen.append(tuple(images.shape))
        mean = images.flatten(1).mean(dim=1) * self.weight
        return torch.stack([torch.zeros_like(mean), mean], dim=1)


@pytest.fixture
def numbered(prepared_case: Cases) -> PreparedCase:
    """A case of class 1 with three slices of the values 0, 1 and 2."""
    return prepared_case(np.broadcast_to(np.arange(3.0), (8, 6, 3)), target=1)


class TestLoss:
    def test_it_is_cross_entropy(self) -> None:
        measure = classification.loss(TrainingConfig(local_steps=1))
        assert float(measure(torch.zeros(3, 4), torch.tensor([0, 1, 3]))) == pytest.approx(math.log(4))

    def test_weights_multiply_each_examples_loss_whatever_else_is_in_the_batch(self) -> None:
        measure = classification.loss(TrainingConfig(local_steps=1), torch.tensor([0.5, 3.0]))
        for classes, weight in (([0, 0], 0.5), ([1, 1], 3.0), ([0, 1], 1.75)):
            assert float(measure(torch.zeros(2, 2), torch.tensor(classes))) == pytest.approx(weight * math.log(2))

    def test_the_right_class_costs_less(self) -> None:
        measure = classification.loss(TrainingConfig(local_steps=1))
        logits = torch.tensor([[0.0, 5.0]])
        assert measure(logits, torch.tensor([1])) < measure(logits, torch.tensor([0]))


class TestTrainingExample:
    @pytest.mark.parametrize(
        ("task", "patch", "shape"),
        [
            (SLICES, None, (1, 8, 6)),
            (SLICES, (4, 8), (1, 4, 8)),
            (VOLUMES, None, (1, 8, 6, 3)),
            (VOLUMES, (4, 4, 4), (1, 4, 4, 4)),
        ],
    )
    def test_it_is_a_piece_of_the_image_and_the_class(
        self, plan_for: Plans, numbered: PreparedCase, task: Any, patch: Any, shape: tuple[int, ...]
    ) -> None:
        plan = plan_for(task, training={"patch_voxels": patch})
        image, target = classification.training_example(numbered, plan, np.random.default_rng(0))
        assert (image.shape, image.dtype) == (shape, np.float32)
        assert (target.shape, target.dtype, int(target)) == ((), np.int64, 1)

    def test_a_2d_network_sees_every_slice_sooner_or_later(self, plan_for: Plans, numbered: PreparedCase) -> None:
        rng = np.random.default_rng(0)
        seen = {float(classification.training_example(numbered, plan_for(SLICES), rng)[0].max()) for _ in range(40)}
        assert seen == {0.0, 1.0, 2.0}

    def test_an_example_is_a_copy_that_may_be_changed(self, plan_for: Plans, numbered: PreparedCase) -> None:
        image, _ = classification.training_example(numbered, plan_for(VOLUMES), np.random.default_rng(0))
        image += 10
        assert numbered.image().max() == 2

    def test_a_case_without_class_is_our_own_mistake(self, plan_for: Plans, prepared_case: Cases) -> None:
        with pytest.raises(ValueError, match="without class"):
            classification.training_example(
                prepared_case(np.ones((4, 4, 2))), plan_for(SLICES), np.random.default_rng(0)
            )


class TestPredict:
    def test_slices_are_averaged_as_probabilities(self, plan_for: Plans, numbered: PreparedCase) -> None:
        found = classification.predict(MeanLogit(), numbered, plan_for(SLICES))
        expected = np.mean([1 / (1 + math.exp(-value)) for value in (0, 1, 2)])
        assert found == pytest.approx([1 - expected, expected], rel=1e-6)
        assert found.dtype == np.float64

    def test_a_volume_is_seen_as_a_whole(self, plan_for: Plans, numbered: PreparedCase) -> None:
        network = MeanLogit()
        found = classification.predict(network, numbered, plan_for(VOLUMES))
        assert network.seen == [(1, 1, 8, 6, 3)]
        assert found[1] == pytest.approx(1 / (1 + math.exp(-1)), rel=1e-6)

    def test_a_patch_is_taken_from_the_middle(self, plan_for: Plans, prepared_case: Cases) -> None:
        image = np.zeros((12, 12, 1))
        image[4:8, 4:8] = 1.0
        plan = plan_for(SLICES, training={"patch_voxels": (4, 4)})
        assert classification.predict(MeanLogit(), prepared_case(image), plan)[1] == pytest.approx(
            1 / (1 + math.exp(-1)), rel=1e-6
        )

    @pytest.mark.parametrize("batch", [1, 2, 8])
    def test_the_batch_of_slices_changes_nothing(self, plan_for: Plans, numbered: PreparedCase, batch: int) -> None:
        network = MeanLogit()
        plan = plan_for(SLICES, training={"inference_batch": batch})
        expected = classification.predict(MeanLogit(), numbered, plan_for(SLICES))
        assert (classification.predict(network, numbered, plan) == expected).all()
        assert max(shape[0] for shape in network.seen) == min(batch, 3)


class TestPredictions:
    @pytest.mark.parametrize("batch", [1, 3, 4, 7, 8])
    def test_cases_share_batches_and_keep_their_order(self, plan_for: Plans, prepared_case: Cases, batch: int) -> None:
        shapes = [(8, 6, 3), (8, 6, 1), (4, 4, 2), (8, 6, 3), (8, 6, 5)]
        cases = [prepared_case(np.full(shape, float(n))) for n, shape in enumerate(shapes)]
        network = MeanLogit()
        found = list(classification.predictions(network, cases, plan_for(SLICES, training={"inference_batch": batch})))
        assert [row[1] for row in found] == pytest.approx([1 / (1 + math.exp(-n)) for n in range(5)], rel=1e-6)
        assert sum(shape[0] for shape in network.seen) == 14
        assert max(shape[0] for shape in network.seen) <= batch
        if batch == 4:
            assert [shape[0] for shape in network.seen] == [4, 2, 3, 4, 1]

    def test_no_case_gives_nothing(self, plan_for: Plans) -> None:
        assert list(classification.predictions(MeanLogit(), [], plan_for(SLICES))) == []


class TestPreview:
    @pytest.mark.parametrize(("scores", "frame"), [((0.2, 0.8), TRUTH_COLOUR), ((0.8, 0.2), PREDICTION_COLOUR)])
    def test_the_frame_says_whether_the_class_is_right(
        self, numbered: PreparedCase, scores: tuple[float, float], frame: tuple[int, int, int]
    ) -> None:
        assert classification.preview(numbered, np.array(scores), DataConfig())[0, 0].tolist() == list(frame)


class TestForTask:
    def test_a_classification_leads_here(self) -> None:
        assert for_task(SLICES) is classification

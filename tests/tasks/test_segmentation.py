"""Segmentation: examples hold what they should, and predictions cover the whole case."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from eucaim_fl.cohorts.cohort import PreparedCase
from eucaim_fl.config import DataConfig, SegmentationConfig, TrainingConfig
from eucaim_fl.plan import FederationPlan
from eucaim_fl.tasks import classification, for_task, segmentation
from eucaim_fl.tasks.pictures import PREDICTION_COLOUR, TRUTH_COLOUR

Plans = Callable[..., FederationPlan]
Cases = Callable[..., PreparedCase]
SLICES = SegmentationConfig(spatial_dims=2, labels=("lesion",))
VOLUMES = SegmentationConfig(spatial_dims=3, labels=("lesion",))


class Threshold(nn.Module):
    """A network that knows: class 1 where the image is above one half."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(()))
        self.seen: list[tuple[int, ...]] = []

    def forward(self, images: Tensor) -> Tensor:
        self.seen.append(tuple(images.shape))
        return torch.cat([torch.zeros_like(images), (images - 0.5) * self.weight], dim=1)


@pytest.fixture
def ball(prepared_case: Cases) -> PreparedCase:
    """A case whose image is its label: a small block in slices 2 and 3 of six."""
    label = np.zeros((12, 10, 6), dtype=np.uint8)
    label[9:12, 1:3, 2:4] = 1
    return prepared_case(label.astype(np.float32), label)


class TestLoss:
    logits = torch.tensor([[[[0.0, 8.0]], [[8.0, 0.0]]]])  # (1, 2, 1, 2)

    @pytest.mark.parametrize("kind", [None, "dice", "dice_ce", "cross_entropy"])
    def test_the_right_classes_cost_less(self, kind: Any) -> None:
        measure = segmentation.loss(TrainingConfig(local_steps=1, loss=kind))
        right, wrong = torch.tensor([[[[1.0, 0.0]]]]), torch.tensor([[[[0.0, 1.0]]]])
        assert float(measure(self.logits, right)) < 0.01 < 0.9 < float(measure(self.logits, wrong))

    def test_cross_entropy_is_the_mean_over_voxels(self) -> None:
        measure = segmentation.loss(TrainingConfig(local_steps=1, loss="cross_entropy"))
        value = measure(torch.zeros(2, 2, 3, 3), torch.zeros(2, 1, 3, 3))
        assert float(value) == pytest.approx(math.log(2))

    def test_dice_is_that_of_the_batch_so_that_empty_slices_do_not_pull_it(self) -> None:
        measure = segmentation.loss(TrainingConfig(local_steps=1, loss="dice"))
        classes = torch.tensor([[[[1.0, 0.0]]], [[[0.0, 0.0]]]])
        logits = torch.stack([self.logits[0], torch.tensor([[[8.0, 8.0]], [[0.0, 0.0]]])])
        assert float(measure(logits, classes)) < 0.01

    def test_the_default_is_dice_plus_cross_entropy(self) -> None:
        classes = torch.tensor([[[[0.0, 1.0]]]])
        each = [
            float(segmentation.loss(TrainingConfig(local_steps=1, loss=kind))(self.logits, classes))
            for kind in ("dice", "cross_entropy")
        ]
        both = segmentation.loss(TrainingConfig(local_steps=1))(self.logits, classes)
        assert float(both) == pytest.approx(sum(each), rel=1e-5)


class TestTrainingExample:
    @pytest.mark.parametrize(
        ("task", "patch", "shape"),
        [
            (SLICES, None, (1, 12, 10)),
            (SLICES, (4, 4), (1, 4, 4)),
            (SLICES, (16, 4), (1, 16, 4)),
            (VOLUMES, None, (1, 12, 10, 6)),
            (VOLUMES, (4, 5, 6), (1, 4, 5, 6)),
            (VOLUMES, (4, 4, 8), (1, 4, 4, 8)),
        ],
    )
    @pytest.mark.parametrize("share", [0.0, 1.0])
    def test_image_and_classes_are_the_same_piece(
        self, plan_for: Plans, ball: PreparedCase, task: Any, patch: Any, shape: tuple[int, ...], share: float
    ) -> None:
        plan = plan_for(task, training={"patch_voxels": patch, "foreground_share": share})
        rng = np.random.default_rng(0)
        found = []
        for _ in range(40):
            image, classes = segmentation.training_example(ball, plan, rng)
            assert image.shape == classes.shape == shape
            assert (image.dtype, classes.dtype) == (np.float32, np.uint8)
            assert (image == classes).all()
            found.append(classes.any())
        if share == 1.0:
            assert all(found)
        elif math.prod(shape) < ball.image().size:
            assert not all(found)

    def test_a_slice_whose_voxels_were_not_sampled_still_gives_a_labelled_patch(
        self, plan_for: Plans, ball: PreparedCase
    ) -> None:
        plan = plan_for(training={"patch_voxels": (4, 4), "foreground_share": 1.0})
        voxels = ball.foreground_voxels[ball.foreground_voxels[:, 2] == 2]
        thin = replace(ball, entry=replace(ball.entry, foreground_voxels=voxels))
        rng = np.random.default_rng(0)
        assert all(segmentation.training_example(thin, plan, rng)[1].any() for _ in range(40))

    def test_a_case_without_any_labelled_voxel_is_still_used(self, plan_for: Plans, prepared_case: Cases) -> None:
        empty = prepared_case(np.ones((4, 4, 2)), np.zeros((4, 4, 2)))
        plan = plan_for(training={"foreground_share": 1.0})
        _, classes = segmentation.training_example(empty, plan, np.random.default_rng(0))
        assert not classes.any()

    def test_the_generator_alone_decides(self, plan_for: Plans, ball: PreparedCase) -> None:
        plan = plan_for(VOLUMES, training={"patch_voxels": (4, 4, 4)})

        def sequence(seed: int) -> bytes:
            rng = np.random.default_rng(seed)
            return b"".join(segmentation.training_example(ball, plan, rng)[0].tobytes() for _ in range(10))

        assert sequence(0) == sequence(0) != sequence(1)

    def test_an_example_is_a_copy_that_may_be_changed(self, plan_for: Plans, ball: PreparedCase) -> None:
        image, classes = segmentation.training_example(ball, plan_for(VOLUMES), np.random.default_rng(0))
        image += 1
        classes += 1
        assert ball.image().max() == 1
        assert np.asarray(ball.label()).max() == 1

    def test_a_case_without_label_is_our_own_mistake(self, plan_for: Plans, prepared_case: Cases) -> None:
        with pytest.raises(ValueError, match="without label"):
            segmentation.training_example(prepared_case(np.ones((4, 4, 2))), plan_for(), np.random.default_rng(0))


class TestPredict:
    @pytest.mark.parametrize(
        ("task", "patch"),
        [(SLICES, None), (SLICES, (8, 4)), (VOLUMES, None), (VOLUMES, (8, 8, 4)), (VOLUMES, (16, 4, 8))],
    )
    @pytest.mark.parametrize("batch", [1, 4])
    def test_a_network_that_knows_finds_every_voxel(
        self, plan_for: Plans, ball: PreparedCase, task: Any, patch: Any, batch: int
    ) -> None:
        plan = plan_for(task, training={"patch_voxels": patch, "inference_batch": batch})
        network = Threshold()
        classes = segmentation.predict(network, ball, plan)
        assert classes.dtype == np.uint8
        assert classes.flags.c_contiguous
        assert (classes == ball.label()).all()
        assert all(shape[0] <= batch for shape in network.seen)
        assert all(shape[2:] == (patch or shape[2:]) for shape in network.seen)

    def test_no_graph_is_kept(self, plan_for: Plans, ball: PreparedCase) -> None:
        network = Threshold()
        segmentation.predict(network, ball, plan_for())
        assert network.weight.grad is None


class TestPredictions:
    def test_they_are_those_of_each_case_in_order(
        self, plan_for: Plans, ball: PreparedCase, prepared_case: Cases
    ) -> None:
        empty = prepared_case(np.zeros((4, 4, 2)), np.zeros((4, 4, 2)))
        found = segmentation.predictions(Threshold(), [ball, empty, ball], plan_for(SLICES))
        assert [int(classes.sum()) for classes in found] == [12, 0, 12]


class TestPreview:
    def test_the_slice_with_most_label_is_shown_with_both_outlines(self, prepared_case: Cases) -> None:
        label = np.zeros((8, 8, 3), dtype=np.uint8)
        label[1:3, 1:3, 0] = 1
        label[1:5, 1:5, 2] = 1
        prediction = np.zeros_like(label)
        prediction[6:8, 6:8, 2] = 1
        shown = segmentation.preview(prepared_case(label.astype(np.float32), label), prediction, DataConfig())
        colours = {tuple(pixel) for pixel in shown.reshape(-1, 3).tolist()}
        assert colours == {(0, 0, 0), (255, 255, 255), TRUTH_COLOUR, PREDICTION_COLOUR}

    def test_without_any_label_it_is_the_middle_slice(self, prepared_case: Cases) -> None:
        image = np.zeros((8, 8, 3), dtype=np.float32)
        image[0, 0, 1] = 1
        for label in (None, np.zeros((8, 8, 3))):
            assert segmentation.preview(prepared_case(image, label), np.zeros((8, 8, 3), np.uint8), DataConfig()).any()


class TestForTask:
    def test_every_task_has_the_same_names(self, plan_for: Plans) -> None:
        assert classification.__all__ == segmentation.__all__
        assert for_task(plan_for().task) is segmentation

"""Multi-label: a yes or no for each of several columns, where some are not known."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from eucaim_fl.cohorts.cohort import PreparedCase
from eucaim_fl.config import DataConfig, MultilabelConfig, TrainingConfig
from eucaim_fl.plan import FederationPlan
from eucaim_fl.tasks import for_task, multilabel
from eucaim_fl.tasks.pictures import PREDICTION_COLOUR, TRUTH_COLOUR
from eucaim_fl.training.gradients import GradientMode, clipped_sum
from eucaim_fl.training.patients import PatientBatch

Plans = Callable[..., FederationPlan]
Cases = Callable[..., PreparedCase]
TASK = MultilabelConfig(targets=("oedema", "effusion"))
NAN = math.nan
measure = multilabel.loss(TrainingConfig(local_steps=1))


class Means(nn.Module):
    """Logits (mean of the image, 0)."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(()))

    def forward(self, images: Tensor) -> Tensor:
        mean = images.flatten(1).mean(dim=1) * self.weight
        return torch.stack([mean, torch.zeros_like(mean)], dim=1)


@pytest.fixture
def numbered(prepared_case: Cases) -> PreparedCase:
    """Three slices of the values 0, 1 and 2; the first target is there, the second is not known."""
    return replace(prepared_case(np.broadcast_to(np.arange(3.0), (8, 6, 3))), targets=(1.0, NAN))


class TestLoss:
    def test_it_is_binary_cross_entropy_over_what_is_known(self) -> None:
        """Three of four are known, with probabilities ½ (0 and 1) and e/(1 + e) (1)."""
        logits, targets = torch.tensor([[0.0, 5.0], [0.0, 1.0]]), torch.tensor([[1.0, NAN], [0.0, 1.0]])
        by_hand = (2 * math.log(2) + math.log(1 + math.exp(-1))) / 3
        assert float(measure(logits, targets)) == pytest.approx(by_hand)

    def test_what_is_not_known_has_no_gradient(self) -> None:
        logits = torch.tensor([[0.0, 5.0]], requires_grad=True)
        measure(logits, torch.tensor([[1.0, NAN]])).backward()
        assert logits.grad is not None
        assert logits.grad.tolist() == [[-0.5, 0.0]]

    def test_a_batch_of_which_nothing_is_known_is_zero_and_can_be_differentiated(self) -> None:
        logits = torch.ones(2, 2, requires_grad=True)
        total = measure(logits, torch.full((2, 2), NAN))
        total.backward()
        assert logits.grad is not None
        assert (float(total.detach()), logits.grad.abs().max().item()) == (0.0, 0.0)

    @pytest.mark.parametrize("mode", ["functorch", "hooks", "ghost"])
    def test_every_way_to_a_patients_gradient_gives_the_same(self, mode: GradientMode) -> None:
        torch.manual_seed(0)
        network = nn.Sequential(nn.Flatten(), nn.Linear(4, 2))
        known = [[[1.0, NAN], [1.0, NAN]], [[0.0, 1.0], [0.0, 1.0]], [[NAN, 0.0], [NAN, 0.0]]]
        batch = [PatientBatch(torch.randn(2, 1, 2, 2), torch.tensor(targets)) for targets in known]
        expected, norms = clipped_sum(network, "loop", measure, batch, 0.3, 8)
        found, others = clipped_sum(network, mode, measure, batch, 0.3, 8)
        assert np.allclose(norms, others, rtol=1e-5)
        assert all(torch.allclose(a, b, atol=1e-6) for a, b in zip(expected, found, strict=True))


class TestTrainingExample:
    def test_it_is_a_slice_and_what_is_known(self, plan_for: Plans, numbered: PreparedCase) -> None:
        image, targets = multilabel.training_example(numbered, plan_for(TASK), np.random.default_rng(0))
        assert (image.shape, targets.dtype, targets[0], np.isnan(targets[1])) == ((1, 8, 6), np.float32, 1, True)

    def test_a_case_without_targets_is_a_defect(self, plan_for: Plans, prepared_case: Cases) -> None:
        with pytest.raises(ValueError, match="without targets"):
            multilabel.training_example(prepared_case(np.ones((8, 6, 3))), plan_for(TASK), np.random.default_rng(0))


class TestPredict:
    def test_probabilities_are_means_over_slices(self, plan_for: Plans, numbered: PreparedCase) -> None:
        by_hand = np.mean([1 / (1 + math.exp(-z)) for z in (0, 1, 2)])
        assert for_task(TASK) is multilabel
        assert multilabel.predict(Means(), numbered, plan_for(TASK)) == pytest.approx([by_hand, 0.5])


class TestPreview:
    @pytest.mark.parametrize(("said", "colour"), [(0.9, TRUTH_COLOUR), (0.4, PREDICTION_COLOUR)])
    def test_the_frame_says_whether_all_that_is_known_is_right(
        self, numbered: PreparedCase, said: float, colour: tuple[int, int, int]
    ) -> None:
        assert tuple(multilabel.preview(numbered, np.array([said, 0.1]), DataConfig())[0, 0]) == colour

"""Survival: Cox's partial likelihood of a batch, and a log risk for each patient."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from eucaim_fl.cohorts.cohort import PreparedCase
from eucaim_fl.config import DataConfig, SurvivalConfig, TrainingConfig
from eucaim_fl.plan import FederationPlan
from eucaim_fl.tasks import for_task, survival
from eucaim_fl.training.evaluation import evaluate

Plans = Callable[..., FederationPlan]
Cases = Callable[..., PreparedCase]
TASK = SurvivalConfig(spatial_dims=2, time="time_days", event="died")
measure = survival.loss(TrainingConfig(local_steps=1))


class Mean(nn.Module):
    """Log risk: the mean of the image."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(()))

    def forward(self, images: Tensor) -> Tensor:
        return images.flatten(1).mean(dim=1, keepdim=True) * self.weight


def loss_of(risks: list[float], *patients: tuple[float, float]) -> float:
    return float(measure(torch.tensor(risks)[:, None], torch.tensor(patients)))


class TestLoss:
    def test_three_patients_by_hand(self) -> None:
        """Events at 1 (all three at risk) and 3 (alone at risk: nothing to learn); the one at 2 is censored."""
        by_hand = (math.log(math.exp(0.5) + 1 + math.exp(-1)) - 0.5) / 2
        assert loss_of([0.5, 0.0, -1.0], (1, 1), (2, 0), (3, 1)) == pytest.approx(by_hand)

    def test_at_equal_times_everybody_is_at_risk_for_each(self) -> None:
        """Breslow: both events at 1 have the same three at risk, the one who is censored then among them."""
        total = math.log(math.exp(1) + 1 + math.exp(2))
        assert loss_of([1.0, 0.0, 2.0], (1, 1), (1, 1), (1, 0)) == pytest.approx((2 * total - 1.0) / 2)

    def test_a_batch_without_events_is_zero_and_can_be_differentiated(self) -> None:
        risks = torch.ones(3, 1, requires_grad=True)
        total = measure(risks, torch.tensor([[1.0, 0.0], [2.0, 0.0], [3.0, 0.0]]))
        total.backward()
        assert risks.grad is not None
        assert (float(total.detach()), risks.grad.abs().max().item()) == (0.0, 0.0)

    def test_who_was_censored_before_an_event_is_not_at_risk_for_it(self) -> None:
        assert loss_of([0.0, 9.0], (2, 1), (1, 0)) == 0.0

    def test_large_risks_do_not_overflow(self) -> None:
        assert loss_of([1000.0, 0.0], (1, 1), (2, 1)) == pytest.approx(0.0)

    @settings(max_examples=40)
    @given(
        st.lists(st.tuples(st.floats(-3, 3), st.integers(0, 4), st.booleans()), min_size=2, max_size=8),
        st.floats(-5, 5),
    )
    def test_only_differences_of_risks_count_and_the_order_of_patients_does_not(self, rows, shift) -> None:
        risks, patients = [r for r, _, _ in rows], [(float(t), float(e)) for _, t, e in rows]
        value = loss_of(risks, *patients)
        assert value >= -1e-6
        assert loss_of([r + shift for r in risks], *patients) == pytest.approx(value, abs=1e-4)
        assert loss_of(risks[::-1], *patients[::-1]) == pytest.approx(value, abs=1e-5)


class TestTrainingExample:
    def test_it_is_a_slice_with_time_and_event(self, plan_for: Plans, prepared_case: Cases) -> None:
        case = replace(prepared_case(np.ones((8, 6, 3))), targets=(12.5, 1.0))
        image, targets = survival.training_example(case, plan_for(TASK), np.random.default_rng(0))
        assert (image.shape, targets.dtype, targets.tolist()) == ((1, 8, 6), np.float32, [12.5, 1.0])

    def test_a_case_without_them_is_a_defect(self, plan_for: Plans, prepared_case: Cases) -> None:
        with pytest.raises(ValueError, match="without time and event"):
            survival.training_example(prepared_case(np.ones((8, 6, 3))), plan_for(TASK), np.random.default_rng(0))


class TestPredict:
    def test_the_risk_is_the_mean_over_slices_and_a_picture_has_no_frame(
        self, plan_for: Plans, prepared_case: Cases
    ) -> None:
        case = replace(prepared_case(np.broadcast_to(np.arange(3.0), (8, 6, 3))), targets=(1.0, 1.0))
        risk = survival.predict(Mean(), case, plan_for(TASK))
        assert for_task(TASK) is survival
        assert risk.tolist() == [1.0]
        assert len(set(survival.preview(case, risk, DataConfig())[0, 0])) == 1  # grey

    def test_a_network_that_knows_the_order_has_a_c_index_of_one(self, plan_for: Plans, prepared_case: Cases) -> None:
        cases = [
            replace(prepared_case(np.full((4, 4, 2), -float(day)), patient=f"p{day}"), targets=(float(day), day % 2.0))
            for day in range(1, 6)
        ]
        assert evaluate(Mean(), cases, plan_for(TASK), "test").values == {"c_index": 1.0}

"""The proximal term: its gradient and its value."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from eucaim_fl.config import ObjectiveConfig
from eucaim_fl.training.objective import penalty_for, proximal


def parameter(*values: float) -> torch.nn.Parameter:
    made = torch.nn.Parameter(torch.tensor(values))
    made.grad = torch.zeros(len(values))
    return made


class TestProximal:
    def test_two_weights_by_hand(self) -> None:
        weight = parameter(3.0, 1.0)
        weight.grad = torch.tensor([10.0, 20.0])
        value = proximal([weight], [torch.tensor([1.0, 2.0])], 0.5)
        assert value == 0.5 / 2 * (2**2 + 1**2)
        assert weight.grad.tolist() == [10.0 + 0.5 * 2, 20.0 - 0.5 * 1]
        assert weight.tolist() == [3.0, 1.0]

    @given(st.integers(0, 2**32), st.floats(0.0, 10.0))
    def test_it_adds_what_autograd_finds(self, seed: int, mu: float) -> None:
        draw = torch.Generator().manual_seed(seed)
        weights = [torch.nn.Parameter(torch.randn(shape, generator=draw)) for shape in ((3, 2), (4,), ())]
        anchors = [torch.randn(w.shape, generator=draw) for w in weights]
        penalty = sum(mu / 2 * (w - a).pow(2).sum() for w, a in zip(weights, anchors, strict=True))
        expected = torch.autograd.grad(penalty, weights)
        for weight in weights:
            weight.grad = torch.zeros_like(weight)
        assert proximal(weights, anchors, mu) == pytest.approx(float(penalty.detach()), rel=1e-4, abs=1e-6)
        for weight, gradient in zip(weights, expected, strict=True):
            torch.testing.assert_close(weight.grad, gradient)

    def test_at_the_global_weights_it_is_nothing(self) -> None:
        weight = parameter(3.0)
        assert proximal([weight], [torch.tensor([3.0])], 1.0) == 0.0
        assert weight.grad.tolist() == [0.0]

    def test_a_parameter_without_gradient_is_left_alone(self) -> None:
        frozen = torch.nn.Parameter(torch.ones(1))
        assert proximal([frozen], [torch.zeros(1)], 1.0) == 0.0
        assert frozen.grad is None

    def test_anchors_must_be_as_many_as_parameters(self) -> None:
        with pytest.raises(ValueError, match="shorter"):
            proximal([parameter(1.0), parameter(1.0)], [torch.zeros(1)], 1.0)


class TestPenaltyFor:
    def test_none_adds_nothing(self) -> None:
        weight = parameter(3.0)
        assert penalty_for(ObjectiveConfig(name="none", mu=5.0))([weight], [torch.zeros(1)]) == 0.0
        assert weight.grad.tolist() == [0.0]

    def test_proximal_takes_mu_from_the_plan(self) -> None:
        weight = parameter(3.0)
        assert penalty_for(ObjectiveConfig(name="proximal", mu=2.0))([weight], [torch.zeros(1)]) == 9.0
        assert weight.grad.tolist() == [6.0]

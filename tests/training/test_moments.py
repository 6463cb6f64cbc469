"""An optimizer that goes on where it stopped."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from eucaim_fl.config import LocalOptimizerConfig
from eucaim_fl.errors import JournalError
from eucaim_fl.training.loop import optimizer_for
from eucaim_fl.training.moments import moments_of, set_moments

EACH = pytest.mark.parametrize("name", ["sgd", "adam", "adamw"])


def made(name, start=0.0):
    parameter = torch.nn.Parameter(torch.full((2, 3), start))
    config = LocalOptimizerConfig(name=name, lr=0.1)
    return optimizer_for(config, [parameter]), {"layer.w": parameter}


def stepped(optimizer, parameters, gradients):
    for gradient in gradients:
        parameters["layer.w"].grad = torch.full((2, 3), gradient)
        optimizer.step()
    return parameters["layer.w"].detach().clone()


@EACH
def test_two_rounds_with_kept_moments_are_one_long_round(name):
    once, of_once = made(name)
    whole = stepped(once, of_once, [1.0, -2.0, 0.5, 3.0])
    first, of_first = made(name)
    half = stepped(first, of_first, [1.0, -2.0])
    second, of_second = made(name)
    of_second["layer.w"].data.copy_(half)
    set_moments(second, of_second, moments_of(first, of_first))
    assert torch.equal(stepped(second, of_second, [0.5, 3.0]), whole)


@EACH
def test_what_is_given_out_does_not_change_with_later_steps(name):
    optimizer, parameters = made(name)
    stepped(optimizer, parameters, [1.0])
    moments = moments_of(optimizer, parameters)
    before = {key: array.copy() for key, array in moments.items()}
    stepped(optimizer, parameters, [5.0])
    assert all(np.array_equal(moments[key], before[key]) for key in before)


def test_a_fresh_one_remembers_nothing():
    optimizer, parameters = made("adam")
    assert moments_of(optimizer, parameters) == {}
    set_moments(optimizer, parameters, {})
    assert moments_of(optimizer, parameters) == {}


@pytest.mark.parametrize(
    "moments",
    [
        {"exp_avg.other": np.zeros((2, 3), np.float32)},
        {"exp_avg.layer.w": np.zeros((3, 2), np.float32)},
        {"momentum_buffer.layer.w": np.zeros((2, 3), np.float32)},
    ],
    ids=["name", "shape", "optimizer"],
)
def test_those_of_another_network_or_optimizer_are_refused(moments):
    optimizer, parameters = made("adam")
    with pytest.raises(JournalError, match="another network or optimizer"):
        set_moments(optimizer, parameters, moments)

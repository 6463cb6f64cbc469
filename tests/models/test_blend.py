"""Two networks as one."""

from __future__ import annotations

import torch

from eucaim_fl.models.blend import Blend


class TestBlend:
    def test_it_says_the_mean_of_what_both_say(self) -> None:
        first, second = torch.nn.Linear(3, 2), torch.nn.Linear(3, 2)
        images = torch.arange(6.0).reshape(2, 3)
        assert torch.allclose(Blend(first, second)(images), (first(images) + second(images)) / 2)

    def test_of_equal_networks_it_is_one(self) -> None:
        network = torch.nn.Linear(3, 2)
        images = torch.ones(1, 3)
        assert torch.equal(Blend(network, network)(images), network(images))

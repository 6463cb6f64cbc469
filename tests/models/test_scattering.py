"""Fixed wavelets and one linear layer: what is fixed, what is bounded, what is learned."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from eucaim_fl.models.scattering import Scattering, synthetic_images

pytestmark = pytest.mark.usefixtures("one_thread")


def stripes(size: int, period: float, axis: int) -> torch.Tensor:
    wave = 0.5 + 0.3 * torch.sin(2 * torch.pi * torch.arange(size) / period)
    return wave.expand(1, 1, size, size).clone() if axis == 1 else wave[:, None].expand(1, 1, size, size).clone()


class TestScattering:
    def test_only_the_last_layer_is_learned_and_travels(self) -> None:
        network = Scattering(3, (32, 32), 2)
        assert [name for name, p in network.named_parameters() if p.requires_grad] == ["final.weight", "final.bias"]
        assert sorted(network.state_dict()) == ["final.bias", "final.weight"]

    @pytest.mark.parametrize("size", [(32, 24), (16, 12, 8)])
    def test_an_images_features_have_length_one_or_less_whatever_it_shows(self, size: tuple[int, ...]) -> None:
        network = Scattering(1, size, 2, scales=2, shrink=1)
        seen: list[torch.Tensor] = []
        network.final.register_forward_pre_hook(lambda _module, given: seen.append(given[0]))
        for images in (torch.rand(4, 1, *size), torch.zeros(1, 1, *size), torch.full((1, 1, *size), 1e4)):
            network(images)
        assert all(float(features.norm(dim=1).max()) <= 1 + 1e-5 for features in seen)

    def test_without_scaling_each_image_the_strength_of_its_contrast_shows_and_stays_bounded(self) -> None:
        seen: list[torch.Tensor] = []
        network = Scattering(1, (16, 16), 2, scales=2, shrink=1, per_image=False)
        network.final.register_forward_pre_hook(lambda _module, given: seen.append(given[0]))
        faint = 0.5 + 0.01 * (stripes(16, 2.7, 0) - 0.5)
        network(torch.cat([faint, stripes(16, 2.7, 0), 1e4 * stripes(16, 2.7, 1)]))
        assert float(seen[0][0].norm()) < float(seen[0][1].norm()) <= 5.0
        assert float(seen[0][2].norm()) == pytest.approx(5.0, rel=0.2)

    def test_an_image_does_not_change_anothers_logits(self) -> None:
        network = Scattering(3, (16, 16), 2, scales=2)
        images = torch.rand(5, 3, 16, 16)
        assert torch.allclose(network(images)[2], network(images[2:3])[0], atol=1e-6)

    def test_a_wavelet_answers_to_waves_along_its_own_direction(self) -> None:
        network = Scattering(1, (32, 32), 2, scales=1, shrink=1)
        strengths = [network.features._strengths(stripes(32, 2.7, axis)).mean((0, 2, 3)) for axis in (0, 1)]
        assert [int(s.argmax()) for s in strengths] == [0, 1]

    def test_two_networks_have_the_same_fixed_part(self) -> None:
        one, other = (Scattering(3, (16, 16), 2, scales=2) for _ in range(2))
        other.final.load_state_dict(one.final.state_dict())
        images = torch.rand(2, 3, 16, 16)
        assert torch.equal(one(images), other(images))

    def test_brightness_is_told_apart_by_a_linear_layer(self) -> None:
        network = Scattering(1, (8, 8), 2, scales=1, shrink=1)
        images = torch.from_numpy(synthetic_images(40, 1, (8, 8), seed=5))
        dark = (images.mean((1, 2, 3)) < images.mean()).long()
        parameters = list(network.parameters())
        for _ in range(300):
            loss = torch.nn.functional.cross_entropy(network(images), dark)
            with torch.no_grad():
                for parameter, gradient in zip(parameters, torch.autograd.grad(loss, parameters), strict=True):
                    parameter -= 20.0 * gradient
        assert float((network(images).argmax(1) == dark).float().mean()) > 0.85


class TestSyntheticImages:
    def test_they_are_images_and_differ_and_follow_from_the_seed(self) -> None:
        images = synthetic_images(4, 3, (12, 10), seed=1)
        assert images.shape == (4, 3, 12, 10)
        assert images.dtype == np.float32
        assert images.min() >= 0
        assert images.max() <= 1
        assert len(np.unique(images.mean(axis=(1, 2, 3)))) == 4
        assert np.array_equal(images, synthetic_images(4, 3, (12, 10), seed=1))

    def test_the_middle_is_darker_than_the_edge(self) -> None:
        images = synthetic_images(30, 1, (16, 16))
        assert images[..., 6:10, 6:10].mean() < images[..., [0, -1], :].mean()

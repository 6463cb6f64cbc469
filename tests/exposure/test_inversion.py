"""An image comes back from a gradient, and not from one under protection."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from eucaim_fl.exposure.alone import HeldCase, network_for
from eucaim_fl.exposure.inversion import invert, likeness, observed_gradient, rebuilt, reference_plan
from tests.exposure.conftest import DP, UPDATE_DP


@pytest.fixture
def disc() -> HeldCase:
    """One patient with a bright disc of 16 × 16 pixels."""
    i, j = np.mgrid[:16, :16]
    image = ((i - 6) ** 2 + (j - 9) ** 2 < 16).astype(np.float32) * 0.8 + 0.1
    return HeldCase.of("p", image[None, ..., None], (image > 0.5).astype(np.uint8)[..., None], 1)


class TestLikeness:
    def test_an_image_is_like_itself(self):
        image = np.random.default_rng(0).random((16, 16), dtype=np.float32)
        found = likeness(image, image)
        assert (found.psnr_db, found.ssim, found.correlation) == (math.inf, pytest.approx(1), pytest.approx(1))

    def test_noise_is_not_like_an_image(self):
        rng = np.random.default_rng(0)
        found = likeness(rng.random((32, 32), dtype=np.float32), rng.random((32, 32), dtype=np.float32))
        assert found.psnr_db < 9
        assert abs(found.ssim) < 0.1
        assert abs(found.correlation) < 0.15

    def test_peak_signal_to_noise_by_hand(self):
        image = np.array([[0.0, 1.0], [0.0, 1.0]], np.float32)
        assert likeness(image, image + np.float32(0.1)).psnr_db == pytest.approx(20, abs=1e-3)

    def test_a_single_value_is_correlated_with_nothing(self):
        assert likeness(np.eye(4, dtype=np.float32), np.zeros((4, 4), np.float32)).correlation == 0.0


class TestObservedGradient:
    def test_without_protection_it_is_the_gradient(self, small_plan, disc):
        plan = small_plan(classes=True)
        seen = observed_gradient(network_for(plan), disc, plan, 0)
        network = network_for(plan)
        output = network(torch.from_numpy(disc.pixels[..., 0])[None])
        torch.nn.functional.cross_entropy(output, torch.tensor([1])).backward()
        assert all(torch.allclose(a, p.grad, atol=1e-6) for a, p in zip(seen, network.parameters(), strict=True))

    def test_under_protection_it_is_clipped_and_noised(self, small_plan, disc):
        for privacy in (DP, UPDATE_DP):
            plan = small_plan({**privacy, "noise_multiplier": 2.0, "clipping_norm": 0.5}, classes=True)
            seen = torch.cat([g.flatten() for g in observed_gradient(network_for(plan), disc, plan, 0)])
            assert float(seen.std()) == pytest.approx(1.0, rel=0.1)


class TestRebuilt:
    def test_a_linear_layer_gives_its_image_away(self):
        torch.manual_seed(0)
        network = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 4))
        truth = torch.zeros(1, 1, 8, 8)
        truth[..., 2:6, 3:5] = 1.0

        def loss(image: torch.Tensor) -> torch.Tensor:
            return torch.nn.functional.cross_entropy(network(image), torch.tensor([2]))

        gradient = torch.autograd.grad(loss(truth), list(network.parameters()))
        told: list[int] = []
        found = rebuilt(network, loss, gradient, torch.full_like(truth, 0.3), (0.0, 1.0), 120, told.append)
        assert likeness(truth[0, 0].numpy(), found[0, 0].numpy()).correlation > 0.95
        assert told[-1] == 120


class TestInvert:
    def test_the_picture_comes_back_without_protection_and_not_with_it(self, small_plan, disc):
        found = invert(small_plan(DP), disc, 0, 80, reference=True)
        assert found.reference
        assert found.original.shape == found.plain.shape == (16, 16)
        assert found.plain_likeness.correlation > 0.8
        assert found.protected_likeness is not None
        assert found.protected_likeness.correlation < 0.4

    def test_a_plan_without_protection_has_one_picture_through_its_own_network(self, small_plan, disc):
        found = invert(small_plan(classes=True), disc, 0, 80, reference=False)
        assert found.protected is found.protected_likeness is None
        assert found.plain_likeness.correlation > 0.6

    def test_a_3d_network_is_attacked_through_the_reference_alone(self, small_plan, plan_for, disc):
        plan = plan_for(
            task=None,
            training={"patch_voxels": None},
        )
        volumes = plan.model_copy(update={"task": plan.task.model_copy(update={"spatial_dims": 3})})
        with pytest.raises(ValueError, match="3-D network"):
            invert(volumes, disc, 0, 2, reference=False)
        assert invert(volumes, disc, 0, 2, reference=True).original.shape == (16, 16)


class TestReferencePlan:
    def test_privacy_stays_as_it_is(self, small_plan):
        plan = small_plan(UPDATE_DP)
        other = reference_plan(plan, (16, 16))
        assert other.privacy == plan.privacy
        assert (other.model.name, other.training.patch_voxels) == ("small_cnn", (16, 16))

"""A plan at one site alone runs what a federation runs."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from eucaim_fl.arrays import arrays_sha256
from eucaim_fl.config import ObjectiveConfig
from eucaim_fl.exposure.alone import (
    HeldCase,
    claim_to_patients,
    drawn_from,
    hidden_update,
    image_size,
    network_for,
    noiseless,
    randomness_for,
    train_alone,
    unprotected,
)
from eucaim_fl.models.networks import get_arrays
from eucaim_fl.seeding import derive_seed
from eucaim_fl.training.loop import train_round
from eucaim_fl.training.randomness import Randomness
from tests.exposure.conftest import DP, UPDATE_DP


class TestHeldCase:
    def test_it_gives_what_it_holds(self):
        mask = np.zeros((4, 4, 2), np.uint8)
        mask[1, 2, 1] = 1
        case = HeldCase.of("p", np.ones((1, 4, 4, 2), np.float32), mask, None)
        assert case.image().shape == (1, 4, 4, 2)
        assert case.label() is mask
        assert case.foreground_slices == (1,)
        assert HeldCase.of("p", np.ones((1, 4, 4, 2), np.float32), None, 1).label() is None


class TestPlans:
    def test_the_unprotected_one_has_no_mechanism_and_the_noiseless_one_all_but_the_noise(self, small_plan):
        plan = small_plan(DP)
        assert unprotected(plan).privacy.mechanism == "none"
        off = noiseless(plan).privacy
        assert (off.noise_multiplier, off.clipping_norm, off.sampling_rate) == (0.0, 1.0, 0.2)

    def test_a_server_s_noise_promises_nothing_to_patients(self, small_plan):
        at_the_server = {**UPDATE_DP, "mechanism": "central_dp"}
        assert claim_to_patients(small_plan(at_the_server)) is None
        assert claim_to_patients(small_plan()) is None

    def test_an_image_without_fixed_size_is_refused(self, small_plan):
        plan = small_plan()
        assert image_size(plan) == (16, 16)
        loose = plan.model_copy(update={"data": plan.data.model_copy(update={"size_voxels": (None, 16, None)})})
        with pytest.raises(ValueError, match="no fixed size"):
            image_size(loose)


class TestRandomness:
    def test_it_is_secure_where_the_plan_says_so(self, small_plan):
        assert randomness_for(small_plan({**DP, "secure": True}), 0, "x").is_secure
        assert not randomness_for(small_plan(DP), 0, "x").is_secure

    def test_small_draws_come_from_one_stream_and_never_twice(self):
        normal = drawn_from(Randomness.seeded(0))
        first, second = normal((3, 2)), normal((20_000,))
        assert (first.shape, second.shape) == ((3, 2), (20_000,))
        assert len(np.unique(np.concatenate([first.ravel(), second]))) == 20_006
        assert second.std() == pytest.approx(1.0, abs=0.03)


class TestHiddenUpdate:
    def test_it_is_clipped_and_noised_as_the_plan_says(self, small_plan):
        plan = small_plan({**UPDATE_DP, "noise_multiplier": 0.5, "clipping_norm": 2.0})
        hidden = hidden_update({"w": np.array([30.0, 40.0])}, plan, np.ones)
        assert hidden["w"] == pytest.approx([1.2 + 1.0, 1.6 + 1.0])


class TestTrainAlone:
    def test_without_protection_it_is_the_rounds_one_after_the_other(self, small_plan, patients):
        plan, cases = small_plan(), patients(4)
        one, other = network_for(plan), network_for(plan)
        train_alone(one, cases, plan, 5)
        for number in (1, 2):
            train_round(other, cases, plan, derive_seed(5, "training", number))
        assert arrays_sha256(get_arrays(one)) == arrays_sha256(get_arrays(other))

    def test_its_rounds_have_the_plan_s_rates_and_objective(self, small_plan, patients):
        def bits(objective="none", kind="constant"):
            plan = small_plan()
            optimizer = plan.training.optimizer.model_copy(update={"name": "sgd", "lr": 0.05, "momentum": 0.0})
            schedule = plan.training.schedule.model_copy(update={"kind": kind})
            training = plan.training.model_copy(update={"optimizer": optimizer, "schedule": schedule})
            method = plan.method.model_copy(update={"objective": ObjectiveConfig(name=objective, mu=0.5)})
            plan = plan.model_copy(update={"training": training, "method": method})
            network = network_for(plan)
            train_alone(network, patients(4), plan, 5)
            return arrays_sha256(get_arrays(network))

        assert len({bits(), bits("proximal"), bits("dynamic"), bits(kind="linear")}) == 4
        assert bits("scaffold") == bits()  # where there is one site, the common variate is its own

    def test_a_round_s_update_is_bounded_where_updates_are_hidden(self, small_plan, patients):
        plan = small_plan({**UPDATE_DP, "noise_multiplier": 0.05, "clipping_norm": 1e-3}, rounds=1)
        network = network_for(plan)
        before = get_arrays(network)
        train_alone(network, patients(4), plan, 0)
        moved = np.concatenate([(a - before[n]).ravel() for n, a in get_arrays(network).items()])
        assert 0 < np.linalg.norm(moved) < 1e-3 * (1 + 0.06 * np.sqrt(moved.size))

    def test_private_training_moves_the_network_and_repeats_with_a_seed(self, small_plan, patients):
        plan, cases = small_plan(DP), patients(6)
        trained = []
        for _ in range(2):
            network = network_for(plan)
            before = get_arrays(network)
            train_alone(network, cases, plan, 1)
            trained.append(get_arrays(network))
        assert arrays_sha256(trained[0]) == arrays_sha256(trained[1]) != arrays_sha256(before)
        assert all(np.isfinite(a).all() for a in trained[0].values())
        assert torch.is_grad_enabled()

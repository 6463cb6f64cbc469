"""The one-run audit agrees with a sound plan, and finds noise that is missing."""

from __future__ import annotations

import numpy as np
import pytest
from torch.optim import optimizer

from eucaim_fl.exposure.alone import claim_to_patients, noiseless
from eucaim_fl.exposure.canary import audit, most_canaries
from eucaim_fl.training import private_loop
from tests.exposure.conftest import DP, UPDATE_DP


class TestMostCanaries:
    def test_each_has_a_weight_of_its_own_and_delta_stays_meaningful(self, small_plan):
        plan = small_plan({**DP, "delta": 1e-3})
        assert most_canaries(plan, 100, 1000, 10) == 100
        assert most_canaries(plan, 9999, 300, 10) == 270
        assert most_canaries(plan, 9999, 10**6, 10) == 490

    def test_repeating_an_update_costs_little_and_training_on_noise_much(self, small_plan):
        assert most_canaries(small_plan(UPDATE_DP), 5000, 10, 10) == 5000
        assert most_canaries(small_plan(), 5000, 10**6, 10) == 100


class TestAuditOfPatients:
    def test_the_bound_is_below_the_promise_and_far_above_it_without_noise(self, small_plan, patients):
        plan, cases = small_plan({**DP, "noise_multiplier": 1.5}, local_steps=15), patients(8)
        claim = claim_to_patients(plan)
        assert claim is not None
        on = audit(plan, cases, 400, 0)
        off = audit(noiseless(plan), cases, 400, 0, known_noise=1.5)
        assert 0 < on.evidence.epsilon < claim.epsilon
        assert off.evidence.epsilon > 1.5 * claim.epsilon
        assert on.estimate < 1.5 * claim.epsilon < off.estimate

    def test_noise_of_another_scale_than_the_plan_s_is_found(self, small_plan, patients, monkeypatch):
        plan = small_plan({**DP, "noise_multiplier": 1.5}, local_steps=15)
        claim = claim_to_patients(plan)
        assert claim is not None

        def too_little(total, deviation, randomness):
            return real(total, deviation / 20, randomness)

        real = private_loop._noised
        monkeypatch.setattr(private_loop, "_noised", too_little)
        assert audit(plan, patients(8), 400, 0).evidence.epsilon > claim.epsilon

    def test_canaries_are_sampled_as_patients_and_each_moves_its_own_weight(self, small_plan, patients, monkeypatch):
        plan = noiseless(small_plan({**DP, "sampling_rate": 0.5, "clipping_norm": 2.0}, local_steps=40, rounds=1))
        seen = []
        real = private_loop.clipped_sum

        def without_patients(network, mode, measure, batch, norm, physical):
            sums, norms = real(network, mode, measure, [], norm, physical)
            assert all(one.images.is_floating_point() for one in batch)
            seen.append(len(batch))
            return sums, norms

        monkeypatch.setattr(private_loop, "clipped_sum", without_patients)
        found = audit(plan, patients(8), 200, 0, known_noise=1.0)
        assert private_loop.clipped_sum is without_patients
        assert np.mean(seen) == pytest.approx(4, abs=1)
        # each step gives ln(1/2 + 1/2 · e^(±1/2)): plus where it took part, minus elsewhere
        took_part, elsewhere = (np.log(0.5 + 0.5 * np.exp(s / 2)) for s in (1, -1))
        steps = (found.scores - 40 * elsewhere) / (took_part - elsewhere)
        assert np.abs(steps - steps.round()).max() < 1e-3
        assert (steps[~found.included].round() == 0).all()
        assert steps[found.included].mean() == pytest.approx(20, abs=1)

    def test_nothing_stays_wrapped_when_training_fails(self, small_plan, patients, monkeypatch):
        real = private_loop.clipped_sum
        monkeypatch.setattr(private_loop, "_see_finite", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            audit(small_plan(DP), patients(4), 50, 0)
        assert private_loop.clipped_sum is real
        assert not optimizer._global_optimizer_pre_hooks


class TestAuditOfUpdates:
    def test_the_bound_is_below_the_promise_and_far_above_it_without_noise(self, small_plan, patients):
        plan = small_plan(UPDATE_DP)
        claim = claim_to_patients(plan)
        assert claim is not None
        on, off = (audit(p, patients(2), 800, 0) for p in (plan, noiseless(plan)))
        assert 0 < on.evidence.epsilon < claim.epsilon < on.estimate * 1.3
        assert off.evidence.epsilon > 2 * claim.epsilon


class TestAuditWithoutProtection:
    @pytest.mark.parametrize("classes", [False, True], ids=["segmentation", "classification"])
    def test_patients_of_noise_are_told_apart_when_they_are_learned_by_heart(self, small_plan, patients, classes):
        plan = small_plan(classes=classes, local_steps=40, batch_size=16, optimizer={"name": "adam", "lr": 0.02})
        found = audit(plan, patients(2), 30, 0)
        assert found.scores.shape == (30,)
        assert found.scores[found.included].mean() > found.scores[~found.included].mean()

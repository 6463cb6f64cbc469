"""What a plan promises, and to whom."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from eucaim_fl.config import ExperimentConfig, PrivacyConfig, TrainingConfig
from eucaim_fl.errors import PrivacyError
from eucaim_fl.plan import FederationPlan, make_plan
from eucaim_fl.privacy.accounting import Mechanism, epsilon
from eucaim_fl.privacy.promise import (
    Promise,
    epsilon_words,
    figures_mechanism,
    promise,
    round_mechanism,
    settled,
    site_is_charged,
    steps_of_round,
)

STEPS = TrainingConfig(local_steps=25)
EPOCHS = TrainingConfig(local_epochs=2)


def privacy(mechanism: str = "patient_dp", **changes: Any) -> PrivacyConfig:
    common = {"mechanism": mechanism, "noise_multiplier": 2.0, "delta": 1e-5, "clipping_norm": 1.0}
    rate = {"sampling_rate": 0.3} if mechanism == "patient_dp" else {}
    return PrivacyConfig.model_validate({**common, **rate, **changes})


def plan_of(chosen: PrivacyConfig, rounds: int = 4) -> FederationPlan:
    return make_plan(
        ExperimentConfig.model_validate(
            {
                "name": "tiny",
                "sites": ["a", "b"],
                "rounds": rounds,
                "task": {"name": "segmentation", "labels": ["lesion"]},
                "model": {"name": "unet"},
                "training": {"local_steps": 25},
                "privacy": chosen.model_dump(),
            }
        ),
        ("a", "b"),
    )


class TestStepsOfRound:
    def test_steps_are_steps_and_an_epoch_is_as_many_as_make_everybody_take_part_once(self) -> None:
        assert steps_of_round(STEPS, privacy()) == 25
        assert steps_of_round(EPOCHS, privacy()) == 7  # 2 / 0.3, rounded up
        assert steps_of_round(EPOCHS, privacy(sampling_rate=1.0)) == 2


class TestRoundMechanism:
    def test_patients_are_sampled_in_each_step(self) -> None:
        assert round_mechanism(privacy(), STEPS) == Mechanism(2.0, 0.3, 25)

    def test_an_update_is_one_sum_that_another_patient_can_turn_round(self) -> None:
        assert round_mechanism(privacy("update_dp"), STEPS) == Mechanism(1.0, 1.0, 1)

    def test_the_sum_of_clipped_updates_changes_by_one_clipping_norm(self) -> None:
        assert round_mechanism(privacy("central_dp"), STEPS) == Mechanism(2.0, 1.0, 1)

    def test_without_noise_or_before_it_is_known_there_is_none(self) -> None:
        assert round_mechanism(PrivacyConfig(), STEPS) is None
        assert round_mechanism(privacy(noise_multiplier=None, target_epsilon=8.0), STEPS) is None


class TestFiguresMechanism:
    def test_each_release_is_one_sum_over_everybody(self) -> None:
        assert figures_mechanism(privacy(metrics_noise=8.0)) == Mechanism(8.0, 1.0, 1)
        assert figures_mechanism(privacy()) is None


class TestSiteIsCharged:
    @pytest.mark.parametrize(
        ("mechanism", "charged"),
        [("none", False), ("patient_dp", True), ("update_dp", True), ("central_dp", False)],
    )
    def test_where_the_site_itself_adds_the_noise(self, mechanism: str, charged: bool) -> None:
        assert site_is_charged(PrivacyConfig() if mechanism == "none" else privacy(mechanism)) is charged


class TestPromise:
    def test_it_is_over_all_rounds_to_a_patient(self) -> None:
        expected = epsilon([Mechanism(2.0, 0.3, 100)], 1e-5)
        assert promise(plan_of(privacy())) == Promise(expected, 1e-5, "patient", "coordinator")

    def test_a_noised_update_hides_patients_from_the_coordinator_too(self) -> None:
        expected = epsilon([Mechanism(1.0, 1.0, 4)], 1e-5)
        assert promise(plan_of(privacy("update_dp"))) == Promise(expected, 1e-5, "patient", "coordinator")

    def test_noise_at_the_server_hides_a_site_from_readers_only(self) -> None:
        expected = epsilon([Mechanism(2.0, 1.0, 4)], 1e-5)
        assert promise(plan_of(privacy("central_dp"))) == Promise(expected, 1e-5, "site", "readers")

    def test_without_noise_nothing_is_promised(self) -> None:
        assert promise(plan_of(PrivacyConfig())) is None


class TestSettled:
    @pytest.mark.parametrize("mechanism", ["patient_dp", "update_dp", "central_dp"])
    def test_the_plan_keeps_the_target_and_hardly_less(self, mechanism: str) -> None:
        asked = privacy(mechanism, noise_multiplier=None, target_epsilon=8.0)
        chosen = settled(asked, STEPS, 4)
        assert chosen == asked.model_copy(update={"target_epsilon": None, "noise_multiplier": chosen.noise_multiplier})
        kept = promise(plan_of(chosen))
        assert kept is not None
        assert 7.99 < kept.epsilon <= 8.0

    def test_what_is_settled_stays(self) -> None:
        assert settled(privacy(), STEPS, 4) == privacy()
        assert settled(PrivacyConfig(), STEPS, 4) == PrivacyConfig()

    def test_a_target_that_no_noise_reaches_is_refused(self) -> None:
        asked = privacy("update_dp", noise_multiplier=None, target_epsilon=1e-5, delta=1e-12)
        with pytest.raises(PrivacyError, match="No noise brings 10000 steps"):
            settled(asked, STEPS, 10_000)


class TestEpsilonWords:
    """The figure that people read is never below the true one."""

    @given(st.floats(min_value=1e-6, max_value=1e6))
    def test_it_is_rounded_up_by_less_than_one_in_a_hundred(self, value: float) -> None:
        told = float(epsilon_words(value).replace(",", ""))
        assert value * (1 - 1e-8) <= told <= value * 1.01 * (1 + 1e-8)

    def test_neighbours_of_a_limit_are_told_apart(self) -> None:
        assert [epsilon_words(value) for value in (7.9991, 8.0, 8.0000001)] == ["8", "8", "8.01"]

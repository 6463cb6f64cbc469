"""The likelihood-ratio attack: its statistics by hand, and a model that gives its members away."""

from __future__ import annotations

import numpy as np
import pytest

from eucaim_fl.exposure.membership import (
    area_under_curve,
    attack,
    clopper_pearson,
    confidences,
    examples_of,
    halves,
    likelihood_ratios,
    patient_losses,
    roc,
    summarised,
)
from tests.exposure.conftest import DP


class TestHalves:
    def test_every_patient_is_in_half_of_all_models(self):
        drawn = halves(7, 10, np.random.default_rng(0))
        assert drawn.shape == (10, 7)
        assert (drawn.sum(axis=0) == 5).all()
        assert len(set(drawn.sum(axis=1))) > 1

    def test_too_few_or_odd_numbers_are_refused(self):
        with pytest.raises(ValueError, match="even number"):
            halves(7, 5, np.random.default_rng(0))
        with pytest.raises(ValueError, match="two patients"):
            halves(1, 4, np.random.default_rng(0))


class TestConfidences:
    def test_they_are_the_log_odds_of_the_likelihood(self):
        assert confidences(-np.log(np.array([0.5, 0.9, 0.1]))) == pytest.approx([0.0, np.log(9), -np.log(9)])

    def test_no_loss_is_a_large_number_not_an_infinite_one(self):
        assert np.isfinite(confidences(np.array([0.0, 1e-30, 800.0]))).all()


class TestLikelihoodRatios:
    def test_who_is_fitted_as_members_are_has_a_high_one(self):
        rng = np.random.default_rng(0)
        trained_on = halves(20, 8, rng)
        scores = likelihood_ratios(3.0 * trained_on + rng.normal(size=(8, 20)), trained_on)
        assert scores[trained_on].mean() > 1 > -1 > scores[~trained_on].mean()

    def test_where_nothing_can_be_told_neither_side_is_favoured(self):
        rng = np.random.default_rng(0)
        areas = []
        for _ in range(60):
            trained_on = halves(20, 6, rng)
            scores = likelihood_ratios(rng.normal(size=(6, 20)), trained_on)
            areas.append(area_under_curve(scores[trained_on], scores[~trained_on]))
        assert np.mean(areas) == pytest.approx(0.5, abs=0.03)

    def test_a_model_is_judged_by_others_alone(self):
        rng = np.random.default_rng(0)
        trained_on = np.array([[True], [True], [False], [False]])
        values = rng.normal(size=(4, 1))
        before = likelihood_ratios(values, trained_on)
        changed = values.copy()
        changed[2] += 100.0  # the counterpart of the first model
        assert likelihood_ratios(changed, trained_on)[0] == before[0]

    def test_without_counterparts_there_is_none(self):
        assert np.isnan(likelihood_ratios(np.zeros((4, 1)), np.ones((4, 1), bool))).all()


class TestRoc:
    def test_it_goes_from_nobody_to_everybody(self):
        curve = roc(np.array([3.0, 1.0]), np.array([2.0, 0.0]))
        assert curve.tolist() == [[0, 0], [0, 0.5], [0.5, 0.5], [0.5, 1], [1, 1]]


class TestAreaUnderCurve:
    def test_equal_scores_count_half(self):
        assert area_under_curve(np.array([1.0, 2.0]), np.array([1.0])) == 0.75


class TestClopperPearson:
    def test_the_published_interval_of_two_in_ten(self):
        assert clopper_pearson(2, 10) == pytest.approx((0.0252, 0.5561), abs=1e-4)

    def test_the_ends_are_closed(self):
        assert clopper_pearson(10, 10)[1] == 1.0
        assert clopper_pearson(0, 10)[0] == 0.0

    def test_impossible_counts_are_refused(self):
        with pytest.raises(ValueError, match="trial"):
            clopper_pearson(3, 2)


class TestSummarised:
    def test_it_tells_of_small_false_positive_rates_only_with_enough_strangers(self):
        rng = np.random.default_rng(0)
        trained_on = halves(50, 8, rng)
        found = summarised(trained_on * 10.0 + rng.normal(size=trained_on.shape), trained_on)
        assert found.auc == 1.0
        assert found.trials == (200, 200)
        thousandth, hundredth, tenth = found.operating
        assert thousandth.found is None
        assert hundredth.found == tenth.found == 1.0
        assert hundredth.low == pytest.approx(0.025 ** (1 / 200))

    def test_no_more_strangers_than_asked_for_are_taken_for_members(self):
        trained_on = np.array([[True] * 20, [False] * 20])
        scores = np.array([[5.0] * 10 + [0.0] * 10, [9.0, 9.0, 3.0, *range(-17, 0)]])
        assert summarised(scores, trained_on).operating[2].found == 0.5

    def test_one_side_alone_is_refused(self):
        with pytest.raises(ValueError, match="nothing to tell apart"):
            summarised(np.zeros((2, 2)), np.ones((2, 2), bool))


class TestAttack:
    def test_a_model_that_learned_its_patients_by_heart_gives_them_away_and_a_private_one_does_not(
        self, small_plan, patients
    ):
        cases = patients(12)
        learned = {"optimizer": {"name": "adam", "lr": 0.01}, "local_steps": 60, "rounds": 1}
        told: list[tuple[int, int]] = []
        found = attack(small_plan(classes=True, **learned), cases, 6, 0, lambda done, total: told.append((done, total)))
        assert found.auc > 0.75
        assert told[-1] == (6, 6)
        hidden = attack(small_plan(DP, classes=True, **{**learned, "local_steps": 10}), cases, 4, 0)
        assert hidden.auc < 0.7

    def test_the_same_examples_are_measured_for_every_model(self, small_plan, patients):
        plan = small_plan()
        groups = [[case] for case in patients(3)]
        first, second = examples_of(groups, plan, 0), examples_of(groups, plan, 0)
        assert all((a[0] == b[0]).all() and (a[1] == b[1]).all() for a, b in zip(first, second, strict=True))
        assert first[0][0].shape == (8, 1, 16, 16)

    def test_a_loss_is_that_of_one_patient(self, small_plan, patients):
        from eucaim_fl.exposure.alone import network_for

        plan = small_plan()
        network = network_for(plan)
        both = patient_losses(network, examples_of([[case] for case in patients(2)], plan, 0), plan)
        assert both.shape == (2,)
        assert both[0] != both[1]

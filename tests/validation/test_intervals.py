"""Intervals by resampling patients within their sites."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from eucaim_fl.errors import DataError
from eucaim_fl.seeding import generator
from eucaim_fl.validation.intervals import (
    Interval,
    paired_bootstrap,
    patient_bootstrap,
    percentile_limits,
    resample_counts,
)


def rng(seed: int = 0) -> np.random.Generator:
    return generator(seed, "bootstrap")


class TestPatientBootstrap:
    def test_patients_who_agree_leave_no_doubt(self) -> None:
        assert patient_bootstrap([0.5] * 8, rng=rng()) == Interval(0.5, 0.5, 0.5)

    def test_the_interval_of_a_mean_is_near_the_one_of_the_normal_distribution(self) -> None:
        values = rng(1).normal(size=400)
        found = patient_bootstrap(values, rng=rng())
        half_width = 1.96 * values.std() / 20
        assert found.estimate == pytest.approx(values.mean())
        assert found.low == pytest.approx(values.mean() - half_width, abs=0.02)
        assert found.high == pytest.approx(values.mean() + half_width, abs=0.02)

    def test_it_covers_the_truth_about_as_often_as_it_says(self) -> None:
        draws = rng(2)
        covered = 0
        for _ in range(200):
            found = patient_bootstrap(draws.normal(size=40), samples=200, level=0.9, rng=draws)
            covered += found.low <= 0 <= found.high
        assert 165 <= covered <= 193

    def test_sites_keep_their_numbers_of_patients(self) -> None:
        values, sites = [0.0] * 5 + [1.0] * 15, ["a"] * 5 + ["b"] * 15
        assert patient_bootstrap(values, strata=sites, rng=rng()) == Interval(0.75, 0.75, 0.75)
        unstratified = patient_bootstrap(values, rng=rng())
        assert unstratified.low < 0.75 < unstratified.high

    def test_patients_without_a_value_are_left_out_with_their_site(self) -> None:
        found = patient_bootstrap([0.5, math.nan, 0.5], strata=["a", "b", "a"], rng=rng())
        assert found == Interval(0.5, 0.5, 0.5)

    def test_a_statistic_may_need_several_numbers_of_a_patient(self) -> None:
        def ratio(resamples: NDArray[np.float64]) -> NDArray[np.float64]:
            return np.asarray(resamples[..., 0].sum(axis=1) / resamples[..., 1].sum(axis=1))

        found = patient_bootstrap(np.array([[1.0, 2.0], [3.0, 6.0]]), statistic=ratio, rng=rng())
        assert found == Interval(0.5, 0.5, 0.5)

    def test_resamples_without_the_statistic_are_left_out(self) -> None:
        def mean_of_positive(resamples: NDArray[np.float64]) -> NDArray[np.float64]:
            number = (resamples > 0).sum(axis=1)
            total = np.where(resamples > 0, resamples, 0).sum(axis=1)
            return np.where(number > 0, total / np.maximum(number, 1), np.nan)

        assert patient_bootstrap([-1.0, 2.0], statistic=mean_of_positive, rng=rng()) == Interval(2.0, 2.0, 2.0)

    @settings(max_examples=30)
    @given(st.lists(st.floats(-100, 100), min_size=1, max_size=12), st.integers(0, 9))
    def test_limits_lie_within_the_values_and_repeat_with_the_seed(self, values: list[float], seed: int) -> None:
        found = patient_bootstrap(values, samples=50, rng=rng(seed))
        assert min(values) - 1e-9 <= found.low <= found.high <= max(values) + 1e-9
        assert patient_bootstrap(values, samples=50, rng=rng(seed)) == found

    def test_a_higher_level_is_wider(self) -> None:
        values = rng(3).normal(size=30)
        narrow, wide = (patient_bootstrap(values, level=level, rng=rng()) for level in (0.5, 0.99))
        assert wide.low < narrow.low < narrow.high < wide.high

    @pytest.mark.parametrize(
        ("values", "settings", "message"),
        [
            ([], {}, "no patient"),
            ([math.nan], {}, "no patient"),
            ([1.0, math.inf], {}, "infinite"),
            ([1.0, 2.0], {"strata": ["a"]}, "1 strata were given for 2"),
            ([1.0], {"level": 1.0}, "level"),
            ([1.0], {"samples": 0}, "sample"),
            ([1.0], {"statistic": lambda resamples: np.full(len(resamples), np.nan)}, "not defined"),
        ],
    )
    def test_what_has_no_interval_is_refused(self, values: list[float], settings: dict[str, Any], message: str) -> None:
        with pytest.raises(DataError, match=message):
            patient_bootstrap(values, rng=rng(), **settings)


class TestPairedBootstrap:
    def test_a_constant_gain_is_certain_however_much_patients_differ(self) -> None:
        b = rng(4).integers(0, 64, size=20) / 64
        found = paired_bootstrap(b + 0.25, b, rng=rng())
        assert (found.estimate, found.low, found.high) == pytest.approx((0.25, 0.25, 0.25))

    def test_a_patient_without_a_value_in_either_is_left_out_of_both(self) -> None:
        found = paired_bootstrap([1.0, 100.0, math.nan], [0.5, math.nan, 7.0], rng=rng())
        assert found == Interval(0.5, 0.5, 0.5)

    def test_swapping_the_methods_turns_the_sign(self) -> None:
        a, b = rng(5).normal(size=(2, 15))
        there, back = paired_bootstrap(a, b, rng=rng()), paired_bootstrap(b, a, rng=rng())
        assert there.estimate == pytest.approx(-back.estimate)
        assert (there.low, there.high) == pytest.approx((-back.high, -back.low))

    def test_sites_are_kept_as_strata(self) -> None:
        found = paired_bootstrap([1.0, 1.0, 3.0], [0.0, 0.0, 0.0], strata=[1, 1, 2], rng=rng())
        assert (found.low, found.high) == pytest.approx((5 / 3, 5 / 3))

    @pytest.mark.parametrize(("a", "b", "message"), [([1.0], [1.0, 2.0], "same patients"), ([], [], "no patient")])
    def test_what_can_not_be_compared_is_refused(self, a: list[float], b: list[float], message: str) -> None:
        with pytest.raises(DataError, match=message):
            paired_bootstrap(a, b, rng=rng())


class TestResampleCounts:
    def test_every_stratum_keeps_its_size(self) -> None:
        counts = resample_counts(["a", "b", "a", "a"], 50, np.random.default_rng(0))
        assert set(counts[:, [0, 2, 3]].sum(axis=1)) == {3.0}
        assert set(counts[:, 1]) == {1.0}

    def test_patients_are_drawn_alike(self) -> None:
        counts = resample_counts(["a"] * 5, 4000, np.random.default_rng(0))
        assert counts.mean(axis=0) == pytest.approx([1.0] * 5, abs=0.06)

    def test_nobody_is_refused(self) -> None:
        with pytest.raises(DataError, match="needs patients"):
            resample_counts([], 10, np.random.default_rng(0))


class TestPercentileLimits:
    def test_what_is_not_defined_is_left_out(self) -> None:
        assert percentile_limits(np.array([1.0, np.nan, 1.0])) == (1.0, 1.0)
        assert all(np.isnan(limit) for limit in percentile_limits(np.array([np.nan])))

"""An update is clipped, gets noise, and is a list of arrays before and after."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays_of

from eucaim_fl.arrays import Array, ArrayFile, Arrays, encode_arrays
from eucaim_fl.config import PrivacyConfig, RuleConfig
from eucaim_fl.errors import NotFiniteError, PrivacyError, ReplyError
from eucaim_fl.privacy.stages import Normal, clipped, combined_privately, grid, noised, with_counters
from eucaim_fl.strategies.aggregation import aggregate

NORM = st.floats(1e-3, 1e3)
SHAPE = arrays_of.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=4)
WEIGHTS = st.one_of(
    *(
        arrays_of.arrays(kind, SHAPE, elements=st.floats(-1e4, 1e4, width=16))
        for kind in (np.float16, np.float32, np.float64)
    )
)
COUNTERS = st.sampled_from([np.int64, np.uint8, np.bool_]).flatmap(lambda kind: arrays_of.arrays(kind, SHAPE))
UPDATES = st.dictionaries(st.text("abc.", min_size=1, max_size=4), WEIGHTS | COUNTERS, max_size=4)


def length(update: Mapping[str, Array]) -> float:
    return math.sqrt(sum(float(np.sum(a.astype(np.float64) ** 2)) for a in update.values() if a.dtype.kind == "f"))


def copied(update: Mapping[str, Array]) -> Arrays:
    return {name: array.copy() for name, array in update.items()}


def same(one: Mapping[str, Array], other: Mapping[str, Array]) -> bool:
    return one.keys() == other.keys() and all(
        one[n].dtype == other[n].dtype and one[n].shape == other[n].shape and np.array_equal(one[n], other[n])
        for n in one
    )


def normal(seed: int = 0) -> Normal:
    return np.random.default_rng(seed).standard_normal


class TestClipped:
    def test_a_short_update_stays_and_a_long_one_is_brought_to_the_bound(self) -> None:
        update = {"w": np.array([3.0, 0.0]), "b": np.array(4.0)}
        assert same(clipped(update, 6.0), update)
        shorter = clipped(update, 2.5)
        assert shorter["w"].tolist() == pytest.approx([1.5, 0.0])
        assert float(shorter["b"]) == pytest.approx(2.0)

    def test_running_statistics_count_and_counters_do_not(self) -> None:
        update = {"norm.running_mean": np.array([30.0], np.float32), "norm.num_batches_tracked": np.array(10**9)}
        found = clipped(update, 3.0)
        assert found["norm.running_mean"][0] == pytest.approx(3.0)
        assert found["norm.num_batches_tracked"] == 10**9

    @given(UPDATES, NORM)
    def test_it_is_never_longer_than_the_bound_to_the_last_bit(self, update: Arrays, norm: float) -> None:
        assert length(clipped(update, norm)) <= norm

    @given(UPDATES, NORM)
    def test_names_shapes_dtypes_and_the_given_arrays_stay(self, update: Arrays, norm: float) -> None:
        before = copied(update)
        found = clipped(update, norm)
        assert same(update, before)
        assert list(found) == list(update)
        assert all(found[n].dtype == update[n].dtype and found[n].shape == update[n].shape for n in update)
        assert all(not np.shares_memory(found[n], update[n]) for n in update if update[n].size)
        assert all(np.array_equal(found[n], update[n]) for n in update if update[n].dtype.kind != "f")

    @given(arrays_of.arrays(np.float32, (20,), elements=st.floats(-1e4, 1e4, width=16)), NORM)
    def test_its_direction_stays(self, values: Array, norm: float) -> None:
        before, after = values.astype(np.float64), clipped({"w": values}, norm)["w"].astype(np.float64)
        if (size := float(np.linalg.norm(before))) > 1e-3:
            scale = min(1.0, norm / size)
            np.testing.assert_allclose(after, scale * before, rtol=1e-6, atol=1e-12)

    @pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, 1e200])
    def test_what_is_not_finite_is_refused(self, value: float) -> None:
        with pytest.raises(NotFiniteError, match="not finite"):
            clipped({"w": np.array([1.0, value])}, 1.0)

    def test_an_update_larger_than_a_piece_is_measured_whole(self) -> None:
        assert length(clipped({"w": np.ones(600_000, np.float32)}, 100.0)) == pytest.approx(100.0, rel=1e-6)


class TestGrid:
    @given(st.floats(1e-200, 1e200))
    def test_it_is_a_power_of_two_and_about_a_millionth_of_the_deviation(self, deviation: float) -> None:
        assert math.frexp(grid(deviation))[0] == 0.5
        assert 2**-20 <= grid(deviation) / deviation <= 2**-19

    def test_no_deviation_is_too_small_for_it(self) -> None:
        assert grid(5e-324) > 0


class TestNoised:
    def test_noise_is_added_to_every_float_and_to_nothing_else(self) -> None:
        update = {"w": np.zeros((2, 3), np.float32), "n": np.array(7), "a": np.array(1.0)}
        found = noised(update, 0.5, lambda shape: np.full(shape, 2.0))
        assert same(found, {"a": np.array(2.0), "n": np.array(7), "w": np.ones((2, 3), np.float32)})

    def test_it_is_asked_for_in_the_order_of_names_so_that_it_can_be_repeated(self) -> None:
        update = {"b": np.zeros(3), "a": np.zeros(2)}
        first, again = noised(update, 1.0, normal(5)), noised(dict(reversed(update.items())), 1.0, normal(5))
        assert same(first, again)
        assert not same(first, noised(update, 1.0, normal(6)))

    @given(st.floats(-1e3, 1e3), st.floats(1e-3, 1e3), st.floats(-6, 6))
    def test_what_comes_out_lies_on_the_grid_and_next_to_the_sum(
        self, value: float, deviation: float, drawn: float
    ) -> None:
        found = noised({"w": np.array([value])}, deviation, lambda shape: np.full(shape, drawn))["w"][0]
        assert found % grid(deviation) == 0
        assert abs(found - (value + deviation * drawn)) <= grid(deviation) / 2

    def test_it_has_the_stated_deviation(self) -> None:
        found = noised({"w": np.full(200_000, 3.0, np.float32)}, 0.25, normal())["w"]
        assert found.mean() == pytest.approx(3.0, abs=0.003)
        assert found.std() == pytest.approx(0.25, rel=0.01)

    @given(UPDATES)
    def test_names_shapes_dtypes_and_the_given_arrays_stay(self, update: Arrays) -> None:
        before = copied(update)
        found = noised(update, 1.0, normal())
        assert same(update, before)
        assert list(found) == sorted(update)
        assert all(found[n].dtype == update[n].dtype and found[n].shape == update[n].shape for n in update)
        assert same(noised(update, 0.0, normal()), update)


class TestWithCounters:
    def test_counters_go_back_to_what_arrived(self) -> None:
        update = {"w": np.array([0.5], np.float32), "seen": np.array(31), "mask": np.array([True])}
        arriving = {"w": np.array([9.0], np.float32), "seen": np.array(30), "mask": np.array([False])}
        expected = {"w": update["w"], "seen": arriving["seen"], "mask": arriving["mask"]}
        assert same(with_counters(update, arriving), expected)

    @pytest.mark.parametrize("arrived", [{}, {"n": np.array([1])}, {"n": np.array(1, np.int32)}])
    def test_one_that_did_not_arrive_like_this_is_refused(self, arrived: Arrays) -> None:
        with pytest.raises(ReplyError, match="'n' is not like the one that arrived"):
            with_counters({"n": np.array(1)}, arrived)


PRIVACY = PrivacyConfig(mechanism="central_dp", noise_multiplier=0.5, delta=1e-5, clipping_norm=2.0)
ARRIVING: Arrays = {"b": np.zeros(2, np.float32), "n": np.array(4), "w": np.zeros((2, 2), np.float32)}


def zeros(shape: tuple[int, ...]) -> Array:
    return np.zeros(shape)


class TestCombinedPrivately:
    @pytest.fixture
    def spooled(self, tmp_path: Path):
        def make(**updates: Arrays) -> list[ArrayFile]:
            for site, update in updates.items():
                (tmp_path / site).write_bytes(b"".join(bytes(part) for part in encode_arrays(update)))
            return [ArrayFile(tmp_path / site) for site in sorted(updates)]

        return make

    def update(self, value: float) -> Arrays:
        return {name: np.full_like(ARRIVING[name], value) for name in ("b", "w")} | {"n": np.array(5)}

    def test_every_site_counts_alike_and_none_for_more_than_the_clipping_norm(self, spooled) -> None:
        # six floats: at value 0.1 the norm is below 2; at 1000 it is clipped to 2, which is 2/√6 each
        files = spooled(a=self.update(0.1), b=self.update(1000.0))
        found = combined_privately(files, ARRIVING, 2, PRIVACY, zeros)
        expected = (0.1 + 2 / math.sqrt(6)) / 2
        np.testing.assert_allclose(found["w"], np.full((2, 2), expected), rtol=1e-6)
        np.testing.assert_allclose(found["b"], np.full(2, expected), rtol=1e-6)

    def test_a_missing_site_is_divided_by_all_the_same(self, spooled) -> None:
        found = combined_privately(spooled(a=self.update(0.125)), ARRIVING, 4, PRIVACY, zeros)
        np.testing.assert_allclose(found["w"], np.full((2, 2), 0.03125), rtol=1e-6)

    def test_counters_stay_as_they_arrived(self, spooled) -> None:
        assert combined_privately(spooled(a=self.update(0.1)), ARRIVING, 1, PRIVACY, zeros)["n"] == 4

    def test_names_shapes_and_dtypes_are_those_of_updates(self, spooled) -> None:
        found = combined_privately(spooled(a=self.update(0.1)), ARRIVING, 1, PRIVACY, zeros)
        assert list(found) == ["b", "n", "w"]
        assert all(found[n].dtype == a.dtype and found[n].shape == a.shape for n, a in ARRIVING.items())

    def test_short_updates_without_noise_give_the_plain_mean(self, spooled) -> None:
        rng = np.random.default_rng(1)
        updates = {
            site: {"w": rng.normal(0, 0.01, 300_000).astype(np.float32), "z": np.array(0.5)} for site in ("a", "b", "c")
        }
        files = spooled(**updates)
        wide = PRIVACY.model_copy(update={"clipping_norm": 1e6, "noise_multiplier": 1e-12})  # a fine grid
        found = combined_privately(files, {}, 3, wide, zeros)
        for name, array in aggregate(RuleConfig(), files, [1.0, 1.0, 1.0]):
            np.testing.assert_allclose(found[name], array, rtol=1e-6, atol=1e-9)

    def test_the_noise_on_the_sum_is_the_multiplier_times_the_clipping_norm(self, spooled) -> None:
        files = spooled(a={"w": np.zeros(200_000, np.float32)}, b={"w": np.zeros(200_000, np.float32)})
        found = combined_privately(files, {}, 10, PRIVACY, normal())["w"]
        assert found.std() == pytest.approx(0.5 * 2.0 / 10, rel=0.01)

    def test_the_sum_with_noise_lies_on_the_grid(self, spooled) -> None:
        found = combined_privately(spooled(a=self.update(0.1)), ARRIVING, 4, PRIVACY, normal())
        on_grid = 4 * found["w"].astype(np.float64) / grid(0.5 * 2.0)
        assert np.array_equal(on_grid, np.rint(on_grid))

    def test_one_site_more_moves_the_sum_by_the_clipping_norm_at_most(self, spooled) -> None:
        files = spooled(a=self.update(3.0), b=self.update(-7.0))
        both = combined_privately(files, ARRIVING, 2, PRIVACY, normal())
        one = combined_privately(files[:1], ARRIVING, 2, PRIVACY, normal())
        moved = {name: 2 * (both[name].astype(np.float64) - one[name]) for name in ("b", "w")}
        assert length(moved) == pytest.approx(2.0, rel=1e-5)

    def test_without_such_noise_in_the_plan_it_is_refused(self, spooled) -> None:
        with pytest.raises(PrivacyError, match="no noise at the server"):
            combined_privately(spooled(a=self.update(0.1)), ARRIVING, 1, PrivacyConfig(), zeros)

    @pytest.mark.parametrize(
        ("other", "said"),
        [
            ({"w": np.zeros(2)}, "in the names"),
            ({"w": np.zeros(2), "x": np.zeros(3)}, "shape or dtype of 'x'"),
            ({"w": np.zeros(2, np.float32), "x": np.zeros(2)}, "shape or dtype of 'w'"),
        ],
    )
    def test_updates_that_do_not_fit_together_are_refused(self, spooled, other: Arrays, said: str) -> None:
        files = spooled(a={"w": np.zeros(2), "x": np.zeros(2)}, b=other)
        with pytest.raises(ReplyError, match=said):
            combined_privately(files, {}, 2, PRIVACY, zeros)

    def test_no_update_and_more_updates_than_sites_are_refused(self, spooled) -> None:
        files = spooled(a=self.update(0.1), b=self.update(0.1))
        with pytest.raises(ReplyError, match="2 updates of 1 sites"):
            combined_privately(files, ARRIVING, 1, PRIVACY, zeros)
        with pytest.raises(ReplyError, match="0 updates of 1 sites"):
            combined_privately([], ARRIVING, 1, PRIVACY, zeros)

    def test_what_is_not_finite_is_refused(self, spooled) -> None:
        with pytest.raises(NotFiniteError, match="not finite"):
            combined_privately(spooled(a=self.update(math.nan)), ARRIVING, 1, PRIVACY, zeros)

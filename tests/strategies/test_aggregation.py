"""Rules that make many sites' updates one."""

from __future__ import annotations

import tracemalloc
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from numpy.typing import NDArray

from eucaim_fl.arrays import ArrayFile, Arrays, encode_arrays
from eucaim_fl.config import RuleConfig
from eucaim_fl.errors import RecipeError, ReplyError
from eucaim_fl.strategies.aggregation import (
    RULES,
    Source,
    aggregate,
    aggregate_weighed,
    check_rule,
    median,
    trimmed_mean,
    weighted_mean,
)
from eucaim_fl.strategies.weighting import Weighed

CONFIGS = {name: RuleConfig(name=name, trim=0.2, suspects=1) for name in RULES}


class Memory:
    """An update in memory that hands out read-only pieces."""

    def __init__(self, **values: NDArray[Any]) -> None:
        self.values = values

    @property
    def names(self) -> list[str]:
        return list(self.values)

    def dtype(self, name: str) -> np.dtype[Any]:
        return self.values[name].dtype

    def shape(self, name: str) -> tuple[int, ...]:
        return self.values[name].shape

    def read(self, name: str, start: int, count: int) -> NDArray[Any]:
        piece = self.values[name].reshape(-1)[start : start + count].view()
        piece.flags.writeable = False
        return piece


def rule(name: str, **settings: Any) -> RuleConfig:
    return RuleConfig(name=name, **settings)


def column(*values: float) -> NDArray[np.float64]:
    return np.array(values, dtype=np.float64)[:, None]


def sites(*values: float) -> list[Memory]:
    return [Memory(w=np.array([value], dtype=np.float32)) for value in values]


def whole(config: RuleConfig, sources: Sequence[Source], weights: Sequence[float], chunk: int = 1 << 18) -> Arrays:
    return dict(aggregate(config, sources, weights, chunk))


def bits(found: Arrays) -> dict[str, bytes]:
    return {name: array.tobytes() for name, array in found.items()}


# Small multiples of 1/8 add up exactly in float64, so that any order of additions gives the same bits.
EXACT = st.integers(-80, 80).map(lambda n: n / 8)
STACKS = st.tuples(st.integers(5, 9), st.integers(1, 7)).flatmap(
    lambda shape: arrays(np.float64, shape, elements=EXACT)
)


@st.composite
def federations(draw: st.DrawFn) -> tuple[list[Memory], list[float]]:
    stack = draw(STACKS)
    dtype = draw(st.sampled_from([np.float32, np.float64]))
    sources = [
        Memory(
            w=row.astype(dtype),
            n=np.array(int(8 * row[0]), dtype=np.int64),
            flag=row > 0,
            scale=np.array(row[-1], dtype),
        )
        for row in stack
    ]
    weights = draw(st.lists(st.integers(1, 50), min_size=len(stack), max_size=len(stack)))
    return sources, [float(weight) for weight in weights]


class TestWeightedMean:
    def test_a_site_with_three_times_the_patients_counts_three_times(self) -> None:
        assert weighted_mean(column(0.0, 1.0), np.array([30.0, 10.0])).tolist() == [0.25]

    def test_a_site_without_patients_does_not_count(self) -> None:
        assert weighted_mean(column(2.0, 100.0), np.array([5.0, 0.0])).tolist() == [2.0]

    @given(STACKS)
    def test_equal_weights_give_the_mean(self, stack: NDArray[np.float64]) -> None:
        assert np.allclose(weighted_mean(stack, np.ones(len(stack))), stack.mean(axis=0), atol=1e-12)


class TestMedian:
    def test_one_wild_site_of_three_changes_little(self) -> None:
        assert median(column(1.0, 2.0, 1e9), np.ones(3)).tolist() == [2.0]

    def test_an_even_number_of_sites_takes_the_mean_of_the_two_in_the_middle(self) -> None:
        assert median(column(1.0, 2.0, 4.0, 9.0), np.ones(4)).tolist() == [3.0]

    def test_claiming_more_patients_gives_no_influence(self) -> None:
        assert median(column(1.0, 2.0, 9.0), np.array([1.0, 1.0, 1e6])).tolist() == [2.0]

    @given(STACKS)
    def test_it_lies_between_the_least_and_the_greatest_and_is_numpys(self, stack: NDArray[np.float64]) -> None:
        found = median(stack, np.ones(len(stack)))
        assert (found >= stack.min(axis=0)).all()
        assert (found <= stack.max(axis=0)).all()
        assert np.array_equal(found, np.median(stack, axis=0))


class TestTrimmedMean:
    def test_the_least_and_the_greatest_of_five_are_cut(self) -> None:
        assert trimmed_mean(column(-1e9, 1.0, 2.0, 6.0, 1e9), np.ones(5), 0.2).tolist() == [3.0]

    def test_a_share_of_less_than_one_site_still_cuts_one(self) -> None:
        assert trimmed_mean(column(1.0, 2.0, 4.0, 1e9), np.ones(4), 0.2).tolist() == [3.0]

    def test_trimming_nothing_is_the_plain_mean(self) -> None:
        assert trimmed_mean(column(1.0, 2.0, 6.0), np.array([9.0, 1.0, 1.0]), 0.0).tolist() == [3.0]

    def test_a_share_that_is_a_whole_number_of_sites_is_not_rounded_up(self) -> None:
        stack = np.arange(30.0)[:, None] ** 2
        assert trimmed_mean(stack, np.ones(30), 0.1).tolist() == [float(np.mean(np.arange(3, 27) ** 2.0))]

    @pytest.mark.parametrize(("number", "trim"), [(2, 0.2), (1, 0.1), (4, 0.4), (9, 0.5), (9, -0.1)])
    def test_trimming_that_leaves_no_site_is_refused(self, number: int, trim: float) -> None:
        with pytest.raises(RecipeError, match="leaves none"):
            trimmed_mean(np.zeros((number, 1)), np.ones(number), trim)

    @given(STACKS)
    def test_it_lies_between_the_least_and_the_greatest(self, stack: NDArray[np.float64]) -> None:
        found = trimmed_mean(stack, np.ones(len(stack)), 0.2)
        assert (found >= stack.min(axis=0) - 1e-12).all()
        assert (found <= stack.max(axis=0) + 1e-12).all()


class TestEveryRule:
    @pytest.mark.parametrize("name", sorted(RULES))
    @settings(max_examples=30)
    @given(federation=federations(), chunk=st.integers(1, 8))
    def test_the_chunk_changes_no_bit(
        self, name: str, federation: tuple[list[Memory], list[float]], chunk: int
    ) -> None:
        expected = whole(CONFIGS[name], *federation)
        assert bits(whole(CONFIGS[name], *federation, chunk)) == bits(expected)

    @pytest.mark.parametrize("name", ["weighted_mean", "median", "trimmed_mean"])
    @settings(max_examples=30)
    @given(federation=federations(), data=st.data())
    def test_the_order_of_sites_changes_no_bit(
        self, name: str, federation: tuple[list[Memory], list[float]], data: st.DataObject
    ) -> None:
        sources, weights = federation
        order = data.draw(st.permutations(range(len(sources))))
        shuffled = whole(CONFIGS[name], [sources[i] for i in order], [weights[i] for i in order])
        assert bits(shuffled) == bits(whole(CONFIGS[name], sources, weights))

    @pytest.mark.parametrize("name", ["krum", "multi_krum"])
    @given(order=st.permutations(range(5)))
    def test_the_order_of_sites_changes_no_choice_unless_scores_are_equal(self, name: str, order: list[int]) -> None:
        sources = sites(0.0, 1.0, 3.0, 7.0, 15.0)
        shuffled = whole(CONFIGS[name], [sources[i] for i in order], [1] * 5)
        assert bits(shuffled) == bits(whole(CONFIGS[name], sources, [1] * 5))

    @pytest.mark.parametrize("name", sorted(RULES))
    @settings(max_examples=30)
    @given(federation=federations())
    def test_names_are_sorted_and_dtypes_and_shapes_are_kept(
        self, name: str, federation: tuple[list[Memory], list[float]]
    ) -> None:
        sources, weights = federation
        found = list(aggregate(CONFIGS[name], sources, weights))
        assert [key for key, _ in found] == ["flag", "n", "scale", "w"]
        for key, array in found:
            assert array.dtype == sources[0].dtype(key)
            assert array.shape == sources[0].shape(key)

    @pytest.mark.parametrize("name", sorted(RULES))
    def test_sites_that_agree_get_what_they_sent(self, name: str) -> None:
        sources = [Memory(w=np.array([0.1, -2.5, 3e-30], np.float32), n=np.array(7), b=np.array([True, False]))] * 5
        found = whole(CONFIGS[name], sources, [10, 20, 30, 40, 50])
        assert found["w"].tobytes() == sources[0].values["w"].tobytes()
        assert found["n"].shape == ()
        assert found["n"].dtype == np.int64
        assert found["n"] == 7
        assert found["b"].tolist() == [True, False]

    @pytest.mark.parametrize("name", ["weighted_mean", "median"])
    @given(value=st.floats(allow_nan=False, allow_infinity=False), whole_number=st.integers(-(2**63), 2**63 - 1))
    def test_one_site_of_one_is_returned_to_the_bit(self, name: str, value: float, whole_number: int) -> None:
        alone = Memory(w=np.array([[value]]), n=np.array(whole_number))
        found = whole(CONFIGS[name], [alone], [3])
        assert found["w"].tobytes() == alone.values["w"].tobytes()
        assert int(found["n"]) == whole_number

    @pytest.mark.parametrize("name", sorted(RULES))
    def test_files_and_memory_give_the_same_and_the_files_stay_as_they_were(self, name: str, tmp_path: Path) -> None:
        rng = np.random.default_rng(0)
        updates = [
            {"w": rng.normal(size=(3, 5)).astype(np.float32), "n": np.array(i), "empty": np.zeros((0, 2), np.float32)}
            for i in range(5)
        ]
        for i, update in enumerate(updates):
            (tmp_path / f"{i}").write_bytes(b"".join(encode_arrays(update)))
        before = [(tmp_path / f"{i}").read_bytes() for i in range(5)]
        from_files = whole(CONFIGS[name], [ArrayFile(tmp_path / f"{i}") for i in range(5)], [1, 2, 3, 4, 5], chunk=4)
        from_memory = whole(CONFIGS[name], [Memory(**update) for update in updates], [1, 2, 3, 4, 5])
        assert from_files["empty"].shape == (0, 2)
        assert all(from_files[key].tobytes() == from_memory[key].tobytes() for key in from_memory)
        assert [(tmp_path / f"{i}").read_bytes() for i in range(5)] == before


class TestIntegersAndBooleans:
    def test_integers_take_the_rounded_weighted_mean(self) -> None:
        sources = [Memory(n=np.array([4, -4])), Memory(n=np.array([7, -7]))]
        assert whole(rule("weighted_mean"), sources, [1, 3])["n"].tolist() == [6, -6]  # 6.25

    def test_the_largest_integers_do_not_turn_negative(self) -> None:
        top = np.iinfo(np.int64).max
        sources = [Memory(n=np.array([top]), b=np.array([127], np.int8))] * 2
        found = whole(rule("weighted_mean"), sources, [1, 1])
        assert found["n"].tolist() == [top]
        assert found["b"].tolist() == [127]
        assert found["b"].dtype == np.int8

    def test_booleans_follow_the_majority_of_patients_and_a_draw_is_false(self) -> None:
        sources = [
            Memory(b=np.array([True, True])),
            Memory(b=np.array([False, False])),
            Memory(b=np.array([0, 1], bool)),
        ]
        assert whole(rule("weighted_mean"), sources, [30, 10, 20])["b"].tolist() == [False, True]

    def test_booleans_follow_the_majority_of_sites_under_the_median(self) -> None:
        sources = [Memory(b=np.array([True])), Memory(b=np.array([False])), Memory(b=np.array([False]))]
        assert whole(rule("median"), sources, [100, 1, 1])["b"].tolist() == [False]


class TestKrum:
    def test_the_outlier_is_not_chosen_and_the_update_is_one_that_was_sent(self) -> None:
        found = whole(rule("krum", suspects=1), sites(1.0, 1.125, 1.25, 1.5, 900.0), [1, 1, 1, 1, 1000])
        assert found["w"].tolist() == [1.125]

    def test_multi_krum_averages_all_but_the_suspects_without_weights(self) -> None:
        found = whole(rule("multi_krum", suspects=1), sites(1.0, 2.0, 900.0, 3.0, 4.0), [1, 1, 1000, 1, 9])
        assert found["w"].tolist() == [2.5]

    def test_multi_krum_keeps_as_many_as_it_is_told(self) -> None:
        found = whole(rule("multi_krum", suspects=1, keep=2), sites(0.0, 1.0, 1.5, 3.0, 900.0), [1] * 5)
        assert found["w"].tolist() == [1.25]


class TestGeometricMedian:
    def test_one_wild_site_of_four_changes_little_whatever_patients_it_claims(self) -> None:
        found = whole(rule("geometric_median"), sites(1.0, 2.0, 3.0, 1e9), [1, 1, 1, 1e6])
        assert 2.0 <= found["w"][0] <= 3.0

    def test_all_arrays_together_are_one_point(self) -> None:
        # a right-angled triangle over two arrays: no site is in the middle of both, and the counter follows
        sources = [
            Memory(a=np.array([0.0]), b=np.array([0.0]), n=np.array(0)),
            Memory(a=np.array([1.0]), b=np.array([0.0]), n=np.array(10)),
            Memory(a=np.array([0.0]), b=np.array([1.0]), n=np.array(10)),
        ]
        found = whole(rule("geometric_median", iterations=1000), sources, [1, 1, 1])
        assert [found["a"][0], found["b"][0]] == pytest.approx([(3 - 3**0.5) / 6] * 2, abs=1e-6)
        assert found["n"] == 4  # 10 · 2 · 0.21

    def test_the_plan_bounds_the_steps_towards_it(self) -> None:
        once = whole(rule("geometric_median", iterations=1), sites(0.0, 1.0, 8.0), [1, 1, 1])
        assert once["w"][0] == pytest.approx((1 / 2 + 8 / 5) / (1 / 3 + 1 / 2 + 1 / 5))

    @given(order=st.permutations(range(5)))
    def test_the_order_of_sites_does_not_matter(self, order: list[int]) -> None:
        sources = sites(0.0, 1.0, 3.0, 7.0, 15.0)
        shuffled = whole(rule("geometric_median"), [sources[i] for i in order], [1] * 5)
        assert shuffled["w"] == pytest.approx(whole(rule("geometric_median"), sources, [1] * 5)["w"], rel=1e-5)


class TestAggregateWeighed:
    def test_what_is_trained_is_scaled_and_the_rest_has_weights_of_its_own(self) -> None:
        sources = [
            Memory(w=np.array([4.0], np.float32), mean=np.array([4.0]), n=np.array(4)),
            Memory(w=np.array([8.0], np.float32), mean=np.array([8.0]), n=np.array(8)),
        ]
        weighed = Weighed((1.0, 1.0), scale=0.5, buffers=(1.0, 3.0))
        found = dict(aggregate_weighed(rule("weighted_mean"), sources, weighed, lambda name: name != "mean"))
        assert found["w"].tolist() == [3.0]
        assert found["w"].dtype == np.float32
        assert found["mean"].tolist() == [7.0]
        assert found["n"] == 7

    @settings(max_examples=30)
    @given(federation=federations(), chunk=st.integers(1, 8), scale=st.sampled_from([1.0, 0.3]))
    def test_by_patients_it_is_aggregate_to_the_bit_and_the_chunk_changes_none(
        self, federation: tuple[list[Memory], list[float]], chunk: int, scale: float
    ) -> None:
        sources, weights = federation

        def found(size: int) -> dict[str, bytes]:
            weighed = Weighed(tuple(weights), scale)
            return bits(dict(aggregate_weighed(rule("weighted_mean"), sources, weighed, lambda name: True, size)))

        assert found(chunk) == found(1 << 18)
        if scale == 1.0:
            assert found(chunk) == bits(whole(rule("weighted_mean"), sources, weights))

    def test_a_robust_rule_keeps_to_itself(self) -> None:
        sources, weighed = sites(1.0, 2.0, 900.0), Weighed((1.0, 1.0, 1e6), buffers=(1e6, 1.0, 1.0))
        assert dict(aggregate_weighed(rule("median"), sources, weighed, lambda name: True))["w"].tolist() == [2.0]

    def test_what_aggregate_refuses_is_refused_at_the_call(self) -> None:
        for weighed in (Weighed((1.0,)), Weighed((1.0, 1.0), buffers=(0.0, 0.0))):
            with pytest.raises(ReplyError, match="weights"):
                aggregate_weighed(rule("weighted_mean"), sites(1.0, 2.0), weighed, lambda name: True)
        with pytest.raises(RecipeError, match="at least 5 sites"):
            aggregate_weighed(rule("krum"), sites(1.0, 2.0), Weighed((1.0, 1.0)), lambda name: True)


class TestImpossibleSettings:
    def test_an_unknown_rule_names_the_nearest(self) -> None:
        with pytest.raises(RecipeError, match="'median'"):
            check_rule(rule("medain"), 3)

    def test_no_site_at_all_is_refused(self) -> None:
        with pytest.raises(RecipeError, match="at least one site"):
            check_rule(rule("median"), 0)

    @pytest.mark.parametrize("name", ["krum", "multi_krum"])
    def test_krum_needs_two_sites_more_than_twice_the_suspects_and_one(self, name: str) -> None:
        check_rule(rule(name, suspects=2), 7)
        with pytest.raises(RecipeError, match=r"at least 7 sites; there are 6\. Lower method.rule.suspects"):
            check_rule(rule(name, suspects=2), 6)

    def test_multi_krum_does_not_keep_suspects(self) -> None:
        check_rule(rule("multi_krum", keep=4), 5)
        with pytest.raises(RecipeError, match="at most 4"):
            check_rule(rule("multi_krum", keep=5), 5)

    def test_a_trim_that_leaves_none_is_refused(self) -> None:
        check_rule(rule("trimmed_mean", trim=0.3), 3)
        with pytest.raises(RecipeError, match="leaves none of 2 sites"):
            check_rule(rule("trimmed_mean", trim=0.3), 2)

    def test_aggregation_refuses_at_the_call_and_not_at_the_first_array(self) -> None:
        with pytest.raises(RecipeError, match="at least 5 sites"):
            aggregate(rule("krum"), sites(1.0, 2.0), [1, 1])


class TestUpdatesThatDoNotFit:
    @pytest.mark.parametrize("weights", [[1.0], [0.0, 0.0], [1.0, -1.0], [1.0, float("nan")], [1.0, float("inf")]])
    def test_impossible_weights_are_refused(self, weights: list[float]) -> None:
        with pytest.raises(ReplyError, match="weights"):
            aggregate(rule("weighted_mean"), sites(1.0, 2.0), weights)

    @pytest.mark.parametrize(
        ("other", "message"),
        [
            (Memory(v=np.zeros(2, np.float32)), "names"),
            (Memory(w=np.zeros(3, np.float32)), "shape or dtype of 'w'"),
            (Memory(w=np.zeros(2, np.float64)), "shape or dtype of 'w'"),
        ],
    )
    def test_different_arrays_are_refused(self, other: Memory, message: str) -> None:
        with pytest.raises(ReplyError, match=message):
            aggregate(rule("weighted_mean"), [Memory(w=np.zeros(2, np.float32)), other], [1, 1])


class Fresh(Memory):
    """Reads as a file does: every piece takes memory of its own."""

    def read(self, name: str, start: int, count: int) -> NDArray[Any]:
        return super().read(name, start, count).copy()


class TestMemory:
    @pytest.mark.parametrize(("name", "limit_mib"), [("weighted_mean", 6), ("median", 48), ("krum", 48)])
    def test_a_hundred_sites_are_never_in_memory_together(self, name: str, limit_mib: int) -> None:
        update = Fresh(w=np.zeros(1 << 17))  # 1 MiB, so 100 MiB if all were held, twice that with working space
        tracemalloc.start()
        for _ in aggregate(rule(name), [update] * 100, [1] * 100):
            pass
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak < limit_mib * 2**20

"""Updates that are too long to be believed are found, others are not, whatever the order of sites."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from eucaim_fl.strategies.outliers import outlying

NORMS = st.floats(1e-6, 1e6)


class TestByHand:
    @pytest.mark.parametrize(
        ("norms", "found"),
        [
            ({}, set()),
            ({"a": 1.0, "b": 1.0, "c": 20.0}, set()),  # twenty times the median is not more than twenty times
            ({"a": 1.0, "b": 1.0, "c": 20.1}, {"c"}),
            ({"a": 1.0, "b": 2.0, "c": 3.0, "d": 51.0}, {"d"}),  # the median of four is 2.5
            ({"a": 1.0, "b": 2.0, "c": 3.0, "d": 50.0}, set()),
            ({"a": 1.0, "b": 1.0, "c": 1e9, "d": 1e9, "e": 1.0}, {"c", "d"}),
            ({"a": 0.001, "b": 1.0, "c": 1.0}, set()),  # a short one does no harm
            ({"a": 0.0, "b": 0.0, "c": 5.0}, set()),  # nothing to measure against
            ({"a": math.nan}, {"a"}),
            ({"a": math.inf, "b": 1.0}, {"a"}),
            ({"a": math.nan, "b": 1.0, "c": 1.0, "d": 30.0}, {"a", "d"}),
        ],
    )
    def test_against_the_median_of_the_round(self, norms: dict[str, float], found: set[str]) -> None:
        assert outlying(norms, 20) == found

    @pytest.mark.parametrize(
        ("norms", "found"),
        [
            ({"a": 1.0}, set()),
            ({"a": 41.0}, {"a"}),
            ({"a": 1.0, "b": 41.0}, {"b"}),
            ({"a": 41.0, "b": 41.0}, {"a", "b"}),
            ({"a": 41.0, "b": 41.0, "c": 41.0}, set()),  # three measure themselves
            ({"a": 41.0, "b": math.nan, "c": 41.0}, {"a", "b", "c"}),  # what is not finite is no answer
        ],
    )
    def test_below_three_sites_against_earlier_rounds(self, norms: dict[str, float], found: set[str]) -> None:
        assert outlying(norms, 20, [1.0, 2.0, 3.0]) == found

    def test_two_sites_of_a_first_round_are_believed(self) -> None:
        assert outlying({"a": 1.0, "b": 1000.0}, 20) == frozenset()


class TestProperties:
    @given(st.lists(NORMS | st.just(math.nan), max_size=8), st.lists(NORMS, max_size=3), st.randoms())
    def test_the_order_of_sites_does_not_matter(self, norms: list[float], earlier: list[float], random: object) -> None:
        pairs = [(f"site-{number}", norm) for number, norm in enumerate(norms)]
        shuffled = list(pairs)
        random.shuffle(shuffled)  # type: ignore[attr-defined]
        assert outlying(dict(pairs), 20, earlier) == outlying(dict(shuffled), 20, list(reversed(earlier)))

    @given(st.lists(st.floats(1.0, 10.0), min_size=2, max_size=9), st.integers(0, 9))
    def test_one_that_is_a_thousand_times_as_long_is_found_among_three_or_more(
        self, honest: list[float], place: int
    ) -> None:
        norms = [*honest]
        norms.insert(place, 1000.0 * max(honest))
        (liar,) = outlying({str(number): norm for number, norm in enumerate(norms)}, 20)
        assert norms[int(liar)] == max(norms)

    @given(NORMS, st.lists(st.floats(1.0, 19.9), max_size=9), st.lists(st.floats(1.0, 19.9), max_size=3))
    def test_none_is_found_where_all_are_within_the_ratio(
        self, shortest: float, factors: list[float], earlier: list[float]
    ) -> None:
        norms = {str(number): shortest * factor for number, factor in enumerate(factors)}
        assert outlying(norms, 20, [shortest * factor for factor in earlier]) == frozenset()

    @given(st.dictionaries(st.text(max_size=3), st.floats(0, math.inf)), st.lists(NORMS, max_size=4))
    def test_norms_are_not_changed_and_only_sites_are_named(
        self, norms: dict[str, float], earlier: list[float]
    ) -> None:
        before = dict(norms)
        assert outlying(norms, 20, earlier) <= set(norms)
        assert norms == before

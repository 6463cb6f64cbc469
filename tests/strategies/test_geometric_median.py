"""The geometric median of updates."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from numpy.typing import NDArray

from eucaim_fl.strategies.geometric_median import geometric_coefficients

Points = NDArray[np.float64]
POINTS = st.integers(3, 9).flatmap(lambda n: arrays(np.float64, (n, 3), elements=st.floats(-10, 10, width=16)))


def distances(points: Points) -> Points:
    return np.asarray(((points[:, None] - points) ** 2).sum(axis=2))


def median_of(points: Points, iterations: int = 1000) -> Points:
    return np.asarray(geometric_coefficients(distances(points), iterations) @ points)


def total(points: Points, place: Points) -> float:
    return float(np.linalg.norm(points - place, axis=1).sum())


class TestWhereItLies:
    def test_of_a_triangle_it_is_the_point_that_sees_all_sides_alike(self) -> None:
        # Fermat's point of a right-angled isosceles triangle: (3 − √3)/6 along both legs of length 1
        triangle = np.array([[0.0, 0.0], [1.0, 0.0], [0.0, 1.0]])
        assert median_of(triangle) == pytest.approx([(3 - 3**0.5) / 6] * 2, abs=1e-6)

    def test_of_a_square_it_is_the_middle(self) -> None:
        assert median_of(np.array([[0.0, 0.0], [2.0, 0.0], [0.0, 2.0], [2.0, 2.0]])) == pytest.approx([1.0, 1.0])

    def test_of_an_odd_number_on_a_line_it_is_the_one_in_the_middle(self) -> None:
        assert median_of(np.array([[0.0], [1.0], [5.0], [6.0], [30.0]])) == pytest.approx([5.0], abs=1e-4)

    def test_of_two_it_is_their_mean(self) -> None:
        assert geometric_coefficients(np.array([[0.0, 4.0], [4.0, 0.0]])).tolist() == [0.5, 0.5]

    def test_where_more_than_half_agree_it_is_what_they_sent(self) -> None:
        points = np.array([[1.0], [7.0], [1.0], [1.0], [9.0]])
        assert geometric_coefficients(distances(points)).tolist() == [1 / 3, 0, 1 / 3, 1 / 3, 0]
        assert geometric_coefficients(np.zeros((4, 4))).tolist() == [0.25] * 4

    @settings(max_examples=50, deadline=None)
    @given(POINTS, arrays(np.float64, 3, elements=st.floats(-10, 10, width=16)))
    def test_no_other_point_has_a_smaller_sum_of_distances(self, points: Points, other: Points) -> None:
        found = total(points, median_of(points))
        candidates = [other, points.mean(axis=0), np.median(points, axis=0), *points]
        assert found <= min(total(points, place) for place in candidates) * (1 + 1e-3) + 1e-9


class TestShares:
    @settings(max_examples=50)
    @given(POINTS)
    def test_they_are_not_negative_and_add_up_to_one(self, points: Points) -> None:
        shares = geometric_coefficients(distances(points))
        assert (shares >= 0).all()
        assert shares.sum() == pytest.approx(1.0)

    @settings(max_examples=30)
    @given(POINTS, st.integers(-20, 20))
    def test_the_unit_of_the_updates_does_not_matter(self, points: Points, power: int) -> None:
        assert np.array_equal(
            geometric_coefficients(distances(points)), geometric_coefficients(distances(points * 2.0**power))
        )

    def test_one_iteration_weighs_by_the_distance_from_the_mean(self) -> None:
        # mean 3: distances 3, 2, 5
        found = geometric_coefficients(distances(np.array([[0.0], [1.0], [8.0]])), iterations=1)
        pulls = np.array([1 / 3, 1 / 2, 1 / 5])
        assert found == pytest.approx(pulls / pulls.sum())


class TestBadSites:
    @pytest.mark.parametrize("far", [1e2, 1e5, 1e9, 1e15, 1e30])
    @pytest.mark.parametrize("bad", [1, 2])
    def test_two_of_five_move_it_little_however_far_they_go(self, far: float, bad: int) -> None:
        rng = np.random.default_rng(0)
        points = rng.normal(size=(5, 20))
        spread = np.linalg.norm(points[bad:] - points[bad:].mean(axis=0), axis=1).max()
        points[:bad] = far * rng.normal(size=20)
        moved = np.linalg.norm(median_of(points) - points[bad:].mean(axis=0))
        assert moved < 2.5 * spread

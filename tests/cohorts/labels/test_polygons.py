from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageDraw
from scipy import ndimage

from eucaim_fl.cohorts.labels.polygons import fill_polygons
from eucaim_fl.errors import LabelError


def square(low: float, high: float) -> np.ndarray:
    return np.array([(low, low), (low, high), (high, high), (high, low)], float)


def even_odd(polygon: np.ndarray, r: float, c: float) -> bool:
    """One point at a time, as textbooks have it."""
    inside = False
    for (r1, c1), (r2, c2) in zip(polygon, np.roll(polygon, -1, axis=0), strict=True):
        if (r1 > r) != (r2 > r) and c < c1 + (r - r1) * (c2 - c1) / (r2 - r1):
            inside = not inside
    return inside


def distance(polygon: np.ndarray, r: float, c: float) -> float:
    """From one point to the nearest edge."""
    start, along = polygon, np.roll(polygon, -1, axis=0) - polygon
    share = np.clip(((r, c) - start) * along, -1e9, 1e9).sum(axis=1) / np.maximum((along**2).sum(axis=1), 1e-12)
    return float(np.linalg.norm(start + np.clip(share, 0, 1)[:, None] * along - (r, c), axis=1).min())


class TestFillPolygons:
    def test_a_square_between_centres_holds_exactly_its_pixels(self) -> None:
        expected = np.zeros((8, 9), bool)
        expected[2:5, 2:5] = True
        assert np.array_equal(fill_polygons([square(1.5, 4.5)], (8, 9)), expected)

    def test_a_square_through_centres_holds_them_and_rounding_changes_nothing(self) -> None:
        expected = np.zeros((8, 9), bool)
        expected[2:5, 2:5] = True
        for error in (0.0, 1e-6, -1e-6):
            assert np.array_equal(fill_polygons([square(2, 4) + error], (8, 9)), expected)

    def test_a_square_inside_a_square_is_a_hole(self) -> None:
        ring = fill_polygons([square(0.5, 6.5), square(2.5, 4.5)], (8, 8))
        assert ring.sum() == 36 - 4
        assert not ring[3:5, 3:5].any()

    def test_a_square_inside_the_hole_is_filled_again(self) -> None:
        rings = fill_polygons([square(0.5, 9.5), square(2.5, 7.5), square(4.5, 5.5)], (11, 11))
        assert rings.sum() == 81 - 25 + 1

    def test_a_keyhole_is_a_hole_whose_channel_leaves_no_trace(self) -> None:
        outer, inner = square(0.5, 6.5), square(2.5, 4.5)
        keyhole = np.concatenate([outer, outer[:1], inner[::-1], inner[-1:]])
        ring = fill_polygons([keyhole], (8, 8))
        assert np.array_equal(ring, fill_polygons([outer, inner], (8, 8)))

    def test_what_lies_beyond_the_picture_is_left_out(self) -> None:
        assert fill_polygons([square(-100.5, 1.5)], (4, 4)).sum() == 4
        assert fill_polygons([square(50, 60)], (4, 4)).sum() == 0

    @pytest.mark.parametrize("points", [0, 1, 2])
    def test_fewer_than_three_points_hold_nothing(self, points: int) -> None:
        assert not fill_polygons([np.ones((points, 2))], (4, 4)).any()

    @settings(max_examples=40, deadline=None)
    @given(st.lists(st.tuples(st.floats(-3, 13), st.floats(-3, 13)), min_size=3, max_size=12))
    def test_it_agrees_with_the_textbook_away_from_edges(self, points: list[tuple[float, float]]) -> None:
        polygon = np.array(points)
        filled = fill_polygons([polygon], (10, 11))
        for r in range(10):
            for c in range(11):
                assert distance(polygon, r, c) < 0.01 or filled[r, c] == even_odd(polygon, r, c)

    def test_it_agrees_with_another_drawing_program_within_a_pixel_of_the_edge(self) -> None:
        angle = np.linspace(0, 2 * np.pi, 90, endpoint=False)
        radius = 40 + 12 * np.cos(5 * angle)
        polygon = np.stack([60 + radius * np.sin(angle), 55 + radius * np.cos(angle)], axis=1)
        picture = Image.new("1", (1200, 1250))  # it rounds to whole pixels, so it draws ten times as large
        ImageDraw.Draw(picture).polygon([(10 * c, 10 * r) for r, c in polygon.tolist()], fill=1)
        other, own = np.asarray(picture)[::10, ::10], fill_polygons([polygon], (125, 120))
        edge = ndimage.binary_dilation(other) & ~ndimage.binary_erosion(other)
        assert not (own != other)[~edge].any()
        exact = 0.5 * abs(
            np.sum(polygon[:, 0] * np.roll(polygon[:, 1], -1) - polygon[:, 1] * np.roll(polygon[:, 0], -1))
        )
        assert own.sum() == pytest.approx(exact, rel=0.01)

    def test_edges_that_cross_the_picture_a_million_times_are_refused(self) -> None:
        zigzag = np.empty((1_000_000, 2))
        zigzag[::2], zigzag[1::2] = (-1, 0), (300, 5)
        with pytest.raises(LabelError, match="too intricate"):
            fill_polygons([zigzag], (300, 8))

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from eucaim_fl.cohorts.planes import Plane, place_planes
from eucaim_fl.errors import SeriesError

PLANE = Plane(
    rows=3, columns=4, position=(10.0, -20.0, 30.0), orientation=(1, 0, 0, 0, 1, 0), spacing=(2.0, 1.0), thickness_mm=5
)


def stack(*depths: float, **changes) -> list[Plane]:
    return [replace(PLANE, position=(10.0, -20.0, 30.0 + z), **changes) for z in depths]


class TestPlacePlanes:
    def test_an_axial_stack_by_hand(self):
        order, affine = place_planes(stack(6, 0, 3))
        assert order == [1, 2, 0]
        assert affine.tolist() == [[-1, 0, 0, -10], [0, -2, 0, 20], [0, 0, 3, 30], [0, 0, 0, 1]]

    def test_cosines_rounded_by_the_scanner_do_not_change_the_spacing(self):
        rounded = (0.7071, 0.7071, 0.0, -0.7071, 0.7071, 0.0)
        _, affine = place_planes(stack(0, 3, orientation=rounded))
        assert np.allclose(np.linalg.norm(affine[:3, :3], axis=0), [1, 2, 3], atol=1e-12)

    @given(order=st.permutations(range(6)), turn=st.floats(0, 6), tilt=st.floats(-0.5, 0.5))
    def test_every_plane_lies_where_it_says_in_any_order(self, order, turn, tilt):
        row, column = np.array([math.cos(turn), math.sin(turn), 0]), np.array([0, 0, -1.0])
        normal = np.cross(row, column)
        planes = [
            replace(PLANE, orientation=(*row, *column), position=tuple(n * 3 * (normal + tilt * column) + [1, 2, 3]))
            for n in order
        ]
        found, affine = place_planes(planes)
        for k, n in enumerate(found):
            x, y, z = planes[n].position or ()
            assert np.allclose((affine @ [0, 0, k, 1])[:3], [-x, -y, z], atol=1e-6)

    def test_a_single_plane_is_as_thick_as_it_says(self):
        assert place_planes([PLANE])[1][2, 2] == 5

    def test_a_picture_lies_as_on_a_screen(self):
        _, affine = place_planes([Plane(rows=2, columns=2, modality="US")])
        assert np.array_equal(affine, np.diag([-1.0, -1, 1, 1]))

    @pytest.mark.parametrize(
        ("planes", "why"),
        [
            (stack(0, 3, 9), "at least one is missing"),
            (stack(0, 3, 3.005), "same place"),
            (stack(0, 3, 3), "same place"),
            ([PLANE, *stack(3, spacing=(2.0, 1.1))], "pixel spacings"),
            ([PLANE, *stack(3, spacing=None)], "no pixel spacing"),
            ([PLANE, *stack(3, orientation=(0, 1, 0, 0, 0, -1))], "different orientations"),
            (stack(0, 3, orientation=(1, 0, 0, 0.6, 0.8, 0)), "perpendicular"),
            (stack(0, 3, orientation=(0, 0, 0, 0, 0, 0)), "perpendicular"),
            ([PLANE, replace(PLANE, position=None)], "no position"),
            ([replace(PLANE, position=None), replace(PLANE, position=None)], "no position"),
            ([Plane(rows=2, columns=2, modality="CT")], "no position"),
            ([replace(PLANE, position=(0, n**2 / 2, 3 * n)) for n in range(4)], "no constant step"),
            ([replace(PLANE, position=(0, 4 * n, 3 * n)) for n in range(4)], "more than any gantry"),
        ],
    )
    def test_what_is_no_stack(self, planes, why):
        with pytest.raises(SeriesError, match=why):
            place_planes(planes)


class TestPlane:
    @pytest.mark.parametrize(
        "change",
        [
            {"slope": 0.0},
            {"slope": math.inf},
            {"intercept": math.nan},
            {"spacing": (0.0, 1.0)},
            {"spacing": (1.0,)},
            {"position": (1.0, math.nan, 0.0)},
            {"position": (1.0, 2.0)},
            {"orientation": (1.0, 0.0, 0.0)},
        ],
        ids=str,
    )
    def test_numbers_that_make_no_sense(self, change):
        PLANE.check()
        with pytest.raises(ValueError, match=r"."):
            replace(PLANE, **change).check()

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from eucaim_fl.cohorts.labels.grids import Target, check_size, even_steps, resampled, turn_onto
from eucaim_fl.cohorts.volume import Volume
from eucaim_fl.errors import LabelError


def volume(shape, affine=None):
    return Volume(np.zeros(shape, np.float32), np.eye(4) if affine is None else np.asarray(affine, float))


def shifted(*by: float) -> np.ndarray:
    affine = np.eye(4)
    affine[:3, 3] = by
    return affine


def turned_about_z(degrees: float) -> np.ndarray:
    angle, affine = np.deg2rad(degrees), np.eye(4)
    affine[:2, :2] = [[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]
    return affine


class TestFrameOfReference:
    def test_another_one_is_an_error_that_keeps_both_to_itself(self):
        target = Target(volume((2, 2, 2)), "1.2.3")
        with pytest.raises(LabelError, match="another frame of reference") as caught:
            target.check_frame_of_reference("1.2.4", "file")
        assert "1.2" not in str(caught.value)

    @pytest.mark.parametrize(("own", "stated"), [("1.2", "1.2"), ("", "1.2"), ("1.2", "")])
    def test_what_is_not_known_says_nothing(self, own, stated):
        Target(volume((2, 2, 2)), own).check_frame_of_reference(stated, "file")


class TestTurnOnto:
    def test_a_part_of_the_grid_says_where_it_starts(self):
        turn = turn_onto((2, 2, 1), shifted(1, 2, 3), volume((5, 5, 5)))
        assert turn is not None
        assert (turn.first, turn.shape) == ((1, 2, 3), (2, 2, 1))

    def test_an_axis_that_runs_against_the_image_s_is_flipped(self):
        affine = np.diag([-1.0, 1, 1, 1])
        affine[0, 3] = 4
        turn = turn_onto((5, 5, 5), affine, volume((5, 5, 5)))
        assert turn is not None
        values = np.arange(125).reshape(5, 5, 5)
        assert np.array_equal(turn(values), values[::-1])

    @pytest.mark.parametrize(
        "affine", [shifted(0.2, 0, 0), np.diag([1.1, 1, 1, 1]), turned_about_z(3), 1e300 * np.eye(4)]
    )
    def test_other_voxels_are_none_of_the_image_s(self, affine):
        assert turn_onto((5, 5, 5), affine, volume((5, 5, 5))) is None


class TestEvenSteps:
    @given(
        st.lists(st.integers(0, 300), min_size=2, max_size=60, unique=True),
        st.floats(0.5, 8),
        st.floats(-500, 500),
        st.integers(0, 2**32 - 1),
    )
    def test_planes_that_are_missing_leave_gaps(self, places, step, origin, seed):
        """With some noise, as of coordinates that were stored with few digits."""
        known = sorted({*places, min(places) + 1})  # two neighbours show the step
        noise = np.random.default_rng(seed).uniform(-5e-4, 5e-4, len(known)) * step
        found = even_steps(np.array(known) * step + origin + noise, 0.0, 0.0, 0.1)
        assert found is not None
        assert found[0].tolist() == [n - known[0] for n in known]
        assert found[1] == pytest.approx(step, rel=0.05)

    def test_the_stated_step_comes_first(self):
        found = even_steps(np.array([0.0, 4.0, 8.0]), 2.0, 0.0, 0.1)
        assert found is not None
        assert found[0].tolist() == [0, 2, 4]

    def test_a_stated_step_that_does_not_fit_is_passed_over(self):
        found = even_steps(np.array([0.0, 4.0, 8.0]), 3.0, 0.0, 0.1)
        assert found is not None
        assert found == (pytest.approx([0, 1, 2]), 4.0)

    def test_one_plane_takes_what_is_left(self):
        found = even_steps(np.array([7.0]), 0.0, 2.5, 0.1)
        assert found is not None
        assert (found[0].tolist(), found[1]) == ([0], 2.5)

    @pytest.mark.parametrize("depths", [[0.0, 1.0, 2.5], [0.0, 1e7, 1e7 + 1], [0.0]])
    def test_uneven_planes_and_no_step_at_all_are_no_stack(self, depths):
        assert even_steps(np.array(depths), 0.0, 0.0, 0.1) is None


class TestResampled:
    def test_the_same_grid_gives_the_same_label(self):
        array = np.random.default_rng(0).integers(0, 4, (6, 5, 4)).astype(np.uint8)
        assert np.array_equal(resampled(array, np.eye(4), volume((6, 5, 4)), ""), array)

    def test_half_a_voxel_around_the_outer_centres_belongs_to_the_label(self):
        """A label of one thick slice, on an image of thin ones."""
        thick = np.ones((4, 4, 1), np.uint8)
        label = resampled(thick, np.diag([1.0, 1, 5, 1]), volume((4, 4, 9), shifted(0, 0, -4)), "")
        assert label.any(axis=(0, 1)).tolist() == [False, False, True, True, True, True, True, False, False]

    def test_a_ball_turned_by_a_third_of_a_right_angle_keeps_place_and_volume(self):
        grid = np.indices((41, 41, 41)) - np.array([12, 20, 20]).reshape(3, 1, 1, 1)
        ball = ((grid**2).sum(axis=0) <= 64).astype(np.uint8)
        affine = turned_about_z(30) @ shifted(-20, -20, -20)
        label = resampled(ball, affine, volume((41, 41, 41), shifted(-20, -20, -20)), "")
        assert label.sum() == pytest.approx(ball.sum(), rel=0.03)
        centre = np.argwhere(label).mean(axis=0) - 20
        assert centre == pytest.approx([-8 * np.cos(np.pi / 6), -8 * np.sin(np.pi / 6), 0], abs=0.2)

    def test_shares_are_interpolated_and_count_from_the_limit(self):
        shares = np.zeros((4, 1, 1), np.uint8)
        shares[:, 0, 0] = [0, 100, 0, 0]
        image = volume((13, 1, 1), np.diag([0.25, 1, 1, 1]))
        label = resampled(shares, np.eye(4), image, "", least=50)
        assert np.flatnonzero(label[:, 0, 0]).tolist() == [2, 3, 4, 5, 6]

    def test_an_empty_label_stays_empty_wherever_it_lies(self):
        assert not resampled(np.zeros((2, 2, 2), np.uint8), shifted(99, 0, 0), volume((3, 3, 3)), "").any()

    def test_a_voxel_that_falls_between_coarser_ones_is_lost_but_not_outside(self):
        array = np.zeros((9, 9, 9), np.uint8)
        array[1, 1, 1] = 1
        assert not resampled(array, np.eye(4), volume((3, 3, 3), np.diag([3.0, 3, 3, 1])), "").any()

    def test_a_label_beside_its_image_is_an_error(self):
        with pytest.raises(LabelError, match="outside its image"):
            resampled(np.ones((2, 2, 2), np.uint8), shifted(50, 0, 0), volume((3, 3, 3)), "")

    def test_a_flat_position_is_an_error(self):
        with pytest.raises(LabelError, match="invertible"):
            resampled(np.ones((2, 2, 2), np.uint8), np.diag([1.0, 1, 0, 1]), volume((3, 3, 3)), "")


class TestCheckSize:
    def test_a_grid_beyond_all_bounds_is_refused_before_it_is_made(self):
        with pytest.raises(LabelError, match="larger than a volume"):
            check_size((100_000, 100_000, 100_000), 1, "")
        check_size((512, 512, 512), 1, "")

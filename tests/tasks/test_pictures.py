"""Pictures show slices as radiologists look at them."""

from __future__ import annotations

import numpy as np
import pytest

from eucaim_fl.config import DataConfig
from eucaim_fl.tasks.pictures import PREDICTION_COLOUR, TRUTH_COLOUR, picture, shown_slice


def ramp() -> np.ndarray:
    return np.arange(12, dtype=np.float32).reshape(4, 3)


class TestPicture:
    def test_the_patients_right_front_is_at_the_top_left(self) -> None:
        image = np.zeros((4, 4), dtype=np.float32)
        image[3, 3] = 1.0  # RAS: furthest to the right, furthest to the front
        shown = picture(image)
        assert shown[0, 0].tolist() == [255, 255, 255]
        assert shown[0, -1].tolist() == shown[-1, 0].tolist() == [0, 0, 0]

    def test_rows_are_the_second_axis(self) -> None:
        assert picture(ramp()).shape == (144, 192, 3)

    @pytest.mark.parametrize(("side", "shown"), [(4, 192), (100, 200), (191, 382), (192, 192), (300, 300)])
    def test_it_is_enlarged_by_a_whole_factor_to_at_least_192_pixels(self, side: int, shown: int) -> None:
        assert picture(np.zeros((side, side), dtype=np.float32)).shape == (shown, shown, 3)

    @pytest.mark.parametrize(
        ("orientation", "corner"), [("RAS", (-1, -1)), ("LPS", (0, 0)), ("RPS", (0, -1)), ("LAI", (-1, 0))]
    )
    def test_the_view_is_the_same_whatever_the_order_of_the_array(
        self, orientation: str, corner: tuple[int, int]
    ) -> None:
        image = np.zeros((4, 4), dtype=np.float32)
        image[0, 0] = 1.0
        assert picture(image, orientation=orientation)[corner].tolist() == [255, 255, 255]

    def test_colours_are_shown_as_they_are(self) -> None:
        image = np.zeros((3, 4, 2), dtype=np.float32)
        image[0], image[1, 0, 0] = 1.0, 0.5
        shown = picture(image, orientation="LPS")
        assert shown.shape == (96, 192, 3)
        assert shown[0, 0].tolist() == [255, 127, 0]
        assert shown[-1, -1].tolist() == [255, 0, 0]

    def test_a_slice_is_one_channel_or_the_colours(self) -> None:
        image = np.arange(3 * 2 * 2 * 4, dtype=np.float32).reshape(3, 2, 2, 4)
        assert (shown_slice(image, 1, DataConfig()) == image[0, ..., 1]).all()
        assert (shown_slice(image, 1, DataConfig(colour=True)) == image[..., 1]).all()

    def test_the_darkest_value_is_black_and_the_brightest_white(self) -> None:
        shown = picture(ramp() - 5)
        assert (shown.min(), shown.max(), shown.dtype) == (0, 255, np.uint8)

    def test_a_flat_image_is_black(self) -> None:
        assert not picture(np.full((4, 4), 7, dtype=np.float32)).any()

    def test_a_mask_is_outlined_and_its_inside_left_alone(self) -> None:
        mask = np.zeros((4, 4), dtype=bool)
        mask[1:3, 1:3] = True
        shown = picture(np.zeros((4, 4), dtype=np.float32), [(mask, TRUTH_COLOUR)])
        assert shown[48, 48].tolist() == list(TRUTH_COLOUR)
        assert not shown[96, 96].any()
        assert not shown[0, 0].any()

    def test_a_later_outline_lies_over_an_earlier_one(self) -> None:
        mask = np.ones((4, 4), dtype=bool)
        both = [(mask, TRUTH_COLOUR), (mask, PREDICTION_COLOUR)]
        assert picture(np.zeros((4, 4), dtype=np.float32), both)[0, 0].tolist() == list(PREDICTION_COLOUR)

    def test_a_frame_goes_all_round(self) -> None:
        shown = picture(ramp(), frame=TRUTH_COLOUR)
        for edge in (shown[0], shown[-1], shown[:, 0], shown[:, -1]):
            assert (edge == TRUTH_COLOUR).all()

    def test_the_image_is_left_as_it_was(self) -> None:
        image = ramp()
        picture(image, [(image > 3, TRUTH_COLOUR)], TRUTH_COLOUR)
        assert (image == ramp()).all()

"""Cases standardised by their own site's statistics."""

from __future__ import annotations

import numpy as np

from eucaim_fl.records import INPUT_MEAN, INPUT_STD
from eucaim_fl.training.standardised import standardised


class TestStandardised:
    def test_images_lose_the_mean_and_are_divided_by_the_deviation(self, prepared_case) -> None:
        case = prepared_case(np.array([[[1.0, 3.0]]]), np.array([[[0, 1]]]), patient="q")
        told = {INPUT_MEAN: np.array([1.0], np.float32), INPUT_STD: np.array([2.0], np.float32)}
        found = standardised([case], told)[0]
        assert found.image().tolist() == [[[[0.0, 1.0]]]]
        assert found.image().dtype == np.float32
        assert (found.patient, found.foreground_slices) == ("q", case.foreground_slices)
        assert found.label() is not None

    def test_without_statistics_cases_stay(self, prepared_case) -> None:
        case = prepared_case(np.zeros((1, 1, 1)))
        assert standardised([case], {}) == (case,)

"""Probabilities of what a model said, and whether they are any."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from eucaim_fl.config import DataConfig, MultilabelConfig, SegmentationConfig, SurvivalConfig
from eucaim_fl.errors import DataError, ModelAnswerError
from eucaim_fl.inference.answers import answer_shape, check_answer, check_images, to_probabilities
from tests.inference.frozen import TASK, contract_for, images

LABELS = MultilabelConfig(targets=("a", "b"))
VOXELS = SegmentationConfig(labels=("lesion",), spatial_dims=2)
RISK = SurvivalConfig(time="time_days", event="event", spatial_dims=2)


class TestProbabilities:
    def test_softmax_runs_over_the_second_axis_and_survives_large_logits(self) -> None:
        raw = np.array([[[[1000.0]], [[1000.0]]]], np.float32)
        assert to_probabilities(raw, contract_for(b"x"), VOXELS).tolist() == [[[[0.5]], [[0.5]]]]

    def test_several_labels_are_each_for_itself(self) -> None:
        raw = np.array([[0.0, 1000.0], [-1000.0, np.log(3)]], np.float32)
        found = to_probabilities(raw, contract_for(b"x"), LABELS)
        np.testing.assert_allclose(found, [[0.5, 1], [0, 0.75]], atol=1e-7)
        assert found.dtype == np.float32

    @pytest.mark.parametrize("task", [TASK, RISK])
    def test_probabilities_and_risks_stay(self, task: Any) -> None:
        raw = np.array([[0.2, 0.8]], np.float32)
        assert to_probabilities(raw, contract_for(b"x", outputs="probabilities"), task) is raw
        assert to_probabilities(raw, contract_for(b"x"), RISK) is raw

    def test_nan_is_not_hidden(self) -> None:
        assert np.isnan(to_probabilities(np.array([[np.nan, 0]], np.float32), contract_for(b"x"), TASK)).all()


class TestAnAnswer:
    def test_it_passes_if_it_is_probabilities(self) -> None:
        check_answer(np.array([[0.25, 0.75]], np.float32), (1, 1, 8, 8), TASK)
        check_answer(np.array([[0.9, 0.9]], np.float32), (1, 1, 8, 8), LABELS)
        check_answer(np.array([[-7.0]], np.float32), (1, 1, 8, 8), RISK)
        assert answer_shape((3, 1, 8, 9), VOXELS) == (3, 2, 8, 9)

    @pytest.mark.parametrize(
        ("answer", "words"),
        [
            (np.array([[0.5, 0.5]]), "float64"),
            (np.zeros((2, 2), np.float32), "shape"),
            (np.array([[np.nan, 0.5]], np.float32), "finite"),
            (np.array([[np.inf, 0.5]], np.float32), "finite"),
            (np.array([[1.5, -0.5]], np.float32), "between 0 and 1"),
            (np.array([[0.5, 0.6]], np.float32), "added up"),
        ],
    )
    def test_else_it_says_what_is_wrong(self, answer: Any, words: str) -> None:
        with pytest.raises(ModelAnswerError, match=words):
            check_answer(answer, (1, 1, 8, 8), TASK)


class TestImages:
    def test_good_ones_pass(self) -> None:
        check_images(images(), contract_for(b"x"), TASK)
        check_images(np.zeros((1, 1, 40, 24), np.float32), contract_for(b"x"), VOXELS)  # a window of its own size

    @pytest.mark.parametrize(
        ("given", "words"),
        [
            (images().astype(np.float64), "not float32"),
            (images()[0], "4 axes"),
            (images(2, 3), "not 1 channels"),
            (images()[:0], "empty"),
            (images()[..., :7], "size"),
            (images() * np.float32(np.nan), "finite"),
            (np.broadcast_to(np.float32(0), (2**25, 1, 8, 8)), "GiB"),
        ],
    )
    def test_others_are_refused(self, given: Any, words: str) -> None:
        with pytest.raises(DataError, match=words) as caught:
            check_images(given, contract_for(b"x"), TASK)
        assert f"shape {list(given.shape)}" in caught.value.local_detail

    def test_the_size_of_a_hospitals_image_does_not_leave_it(self) -> None:
        with pytest.raises(DataError, match="size") as caught:
            check_images(np.zeros((1, 1, 123, 77), np.float32), contract_for(b"x"), TASK)
        assert "123" not in str(caught.value)
        assert "77" not in str(caught.value)

    def test_channels_are_the_contracts(self) -> None:
        colours = contract_for(b"x", data=DataConfig(colour=True, size_voxels=(8, 8, None)))
        check_images(images(1, 3), colours, TASK)

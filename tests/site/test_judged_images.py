"""An image that a model gives no answer to is counted, and the next one goes on."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from eucaim_fl.errors import (
    DataError,
    EucaimError,
    InferenceError,
    LockError,
    ModelAnswerError,
    ModelEndedError,
    ModelMemoryError,
    ModelTimeError,
)
from eucaim_fl.site.judged_images import NoAnswer, each_image, most_without_answer


class Model:
    """One that fails on images by name, and is of no use afterwards."""

    def __init__(self) -> None:
        self.closed = False

    def close(self) -> None:
        self.closed = True


@pytest.fixture
def models() -> list[Model]:
    return []


def judged(
    models: list[Model], images: Sequence[str], bad: dict[str, EucaimError], *, together: int = 1, most: int = 9
) -> list[str | NoAnswer]:
    def opened() -> Model:
        models.append(Model())
        return models[-1]

    def work(model: Model, part: Sequence[str]) -> list[str]:
        assert not model.closed
        assert len(part) <= together
        for image in part:
            if image in bad:
                raise bad[image]
        return [image.upper() for image in part]

    return each_image(opened, images, work, together=together, most=most)


class TestEachImage:
    @pytest.mark.parametrize("together", [1, 2, 3, 100])
    def test_the_others_have_their_answers_in_their_order(self, models: list[Model], together: int) -> None:
        bad = {"b": ModelTimeError("late"), "e": ModelMemoryError("much")}
        found = judged(models, "abcdef", bad, together=together)
        assert found == ["A", NoAnswer("timed_out"), "C", "D", NoAnswer("out_of_memory"), "F"]
        assert all(model.closed for model in models)

    def test_a_model_that_never_fails_is_opened_once(self, models: list[Model]) -> None:
        assert judged(models, "abcdefg", {}, together=3) == list("ABCDEFG")
        assert [model.closed for model in models] == [True]

    def test_without_images_none_is_opened(self, models: list[Model]) -> None:
        assert judged(models, "", {}) == []
        assert not models

    @pytest.mark.parametrize(
        ("problem", "reason"),
        [
            (ModelEndedError("gone"), "ended"),
            (ModelAnswerError("nonsense"), "no_probabilities"),
            (DataError("NaN"), "not_as_the_contract"),
        ],
    )
    def test_the_reason_is_told_in_a_word(self, models: list[Model], problem: EucaimError, reason: str) -> None:
        assert judged(models, "ab", {"a": problem}) == [NoAnswer(reason), "B"]

    def test_each_image_raises_the_error_of_the_one_that_is_too_many(self, models: list[Model]) -> None:
        bad = {"a": ModelTimeError("first"), "b": ModelTimeError("second")}
        assert judged(models, "ab", bad, most=2) == [NoAnswer("timed_out")] * 2
        with pytest.raises(ModelTimeError, match="second"):
            judged(models, "ab", bad, most=1)
        assert all(model.closed for model in models)

    def test_each_image_raises_whatever_kind_it_is(self) -> None:
        def work(model: Model, part: Sequence[EucaimError]) -> list[str]:
            raise part[0]

        with pytest.raises(DataError, match="not finite"):
            each_image(Model, [DataError("not finite")], work, together=1, most=0)
        with pytest.raises(InferenceError, match="it ended"):
            each_image(Model, [ModelEndedError("it ended")], work, together=1, most=0)

    def test_what_is_no_fault_of_an_image_ends_all(self, models: list[Model]) -> None:
        with pytest.raises(LockError, match="no lock"):
            judged(models, "ab", {"a": LockError("no lock")})
        assert [model.closed for model in models] == [True]


def test_few_images_that_fail_are_never_what_a_site_says_by_an_error() -> None:
    assert [most_without_answer(images, 5) for images in (0, 5, 49, 60)] == [5, 5, 5, 6]

"""A frozen model on each image of a site: where it gives no answer the image is counted, and the next one goes on.

A model that ended with the first image that it can't take would tell, by its error, that there is such an image, and
would cost a hospital's whole answer. What is left out is told: in the record by number and reason, as coarsely as
everything that counts, and in the site's own report by patient.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol, TypeVar

from eucaim_fl.errors import (
    DataError,
    EucaimError,
    ModelAnswerError,
    ModelEndedError,
    ModelMemoryError,
    ModelTimeError,
)

__all__ = ["NoAnswer", "each_image", "most_without_answer"]

_SHARE = 10
_REASONS: Mapping[type[EucaimError], str] = {
    ModelTimeError: "timed_out",
    ModelMemoryError: "out_of_memory",
    ModelEndedError: "ended",
    ModelAnswerError: "no_probabilities",
    DataError: "not_as_the_contract",
}

_Image = TypeVar("_Image")
_Found = TypeVar("_Found")


class _Opened(Protocol):
    """A model that runs; see `sandbox.Sandbox`."""

    def close(self) -> None:
        """End it."""


_Model = TypeVar("_Model", bound=_Opened)


@dataclass(frozen=True)
class NoAnswer:
    """In the place of an answer. reason: a word, as the record has it."""

    reason: str


def most_without_answer(images: int, least: int) -> int:
    """Of how many images a model may give no answer before nothing is told: a tenth, and so many that their number
    could be told. least: behind a figure; 1 of data that hide nobody.

    >>> most_without_answer(200, 5), most_without_answer(12, 5), most_without_answer(12, 1)
    (20, 5, 1)
    """
    return max(images // _SHARE, least)


def each_image(
    opened: Callable[[], _Model],
    images: Sequence[_Image],
    work: Callable[[_Model, Sequence[_Image]], Sequence[_Found]],
    *,
    together: int,
    most: int,
) -> list[_Found | NoAnswer]:
    """What a model gives for each image, in their order.

    opened: opens the model, and opens it anew after an error. work: what it finds in some images, one after the other.
    together: how many are given at once; if they fail, each is tried alone. most: without an answer; one more is too
    many.
    Raises the error of the image that is too many (an InferenceError, or a DataError of an image that does not fit the
    contract), and what `opened` raises.
    """
    found: list[_Found | NoAnswer] = []
    waiting = deque(images[start : start + together] for start in range(0, len(images), together))
    model: _Model | None = None
    failed = 0
    try:
        while waiting:
            part = waiting.popleft()
            if model is None:
                model = opened()
            try:
                found += work(model, part)
            except tuple(_REASONS) as problem:
                model.close()
                model = None
                if len(part) > 1:
                    waiting.extendleft([one] for one in reversed(part))
                    continue
                failed += 1
                if failed > most:
                    raise
                found.append(NoAnswer(next(word for kind, word in _REASONS.items() if isinstance(problem, kind))))
    finally:
        if model is not None:
            model.close()
    return found

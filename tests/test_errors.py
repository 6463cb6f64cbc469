"""One tree of errors, whose text is safe to send."""

from __future__ import annotations

import pickle

import pytest

from eucaim_fl import errors
from eucaim_fl.errors import EucaimError, SeriesError

CLASSES = [getattr(errors, name) for name in errors.__all__]


class TestTheTree:
    @pytest.mark.parametrize("kind", CLASSES, ids=lambda kind: kind.__name__)
    def test_it_is_drawn_at_the_top_of_the_module_as_it_is(self, kind: type[EucaimError]) -> None:
        lines = [line for line in (errors.__doc__ or "").splitlines() if f" {kind.__name__} " in f" {line}"]
        assert len(lines) == 1
        assert kind.code in lines[0]
        depth = len(kind.__mro__) - len(EucaimError.__mro__)
        assert lines[0].index(kind.__name__) == 4 * depth

    def test_every_code_stands_for_one_class(self) -> None:
        codes = [kind.code for kind in CLASSES]
        assert len(set(codes)) == len(codes)

    @pytest.mark.parametrize("kind", CLASSES, ids=lambda kind: kind.__name__)
    def test_a_branch_shares_its_first_digit(self, kind: type[EucaimError]) -> None:
        branch = [parent for parent in kind.__mro__ if issubclass(parent, EucaimError) and parent is not EucaimError]
        assert {parent.code[:4] for parent in branch} <= {kind.code[:4]}


class TestAnError:
    error = SeriesError("A slice is missing.", fix="Send the series again.", local_detail="/pacs/P007/ct.dcm")

    def test_its_text_says_what_is_wrong_and_what_to_do(self) -> None:
        assert str(self.error) == "A slice is missing. Send the series again."
        assert str(SeriesError("A slice is missing.")) == "A slice is missing."

    def test_its_text_holds_no_local_detail(self) -> None:
        assert "P007" not in f"{self.error} {self.error!r} {self.error.args}"

    def test_the_terminal_shows_the_whole_story(self) -> None:
        assert self.error.for_terminal().splitlines() == [
            "EFL202: A slice is missing.",
            "  where: /pacs/P007/ct.dcm",
            "  do:    Send the series again.",
        ]
        assert SeriesError("A slice is missing.").for_terminal() == "EFL202: A slice is missing."

    def test_it_survives_the_way_between_two_processes(self) -> None:
        copy = pickle.loads(pickle.dumps(self.error))  # noqa: S301 - as multiprocessing does
        assert type(copy) is SeriesError
        assert vars(copy) == vars(self.error)

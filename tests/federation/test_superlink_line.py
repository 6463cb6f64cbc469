"""Calls to a SuperLink that is away for a while, or has given up the run; the SuperLink is a fake."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import pytest

from eucaim_fl.errors import LinkError
from eucaim_fl.federation import superlink_line
from eucaim_fl.federation.superlink_line import SuperlinkLine

HOME: Any = SimpleNamespace(
    runtime_address="127.0.0.1:1", ca_file=Path("ca"), executor_secret=b"secret", folder=Path("home")
)


def refused(status: int) -> httpx.HTTPStatusError:
    answer = httpx.Response(status, request=httpx.Request("POST", "https://localhost"))
    return httpx.HTTPStatusError("no", request=answer.request, response=answer)


class FakeRun:
    made: list[FakeRun]
    problem: Exception | None = None

    def __init__(self, *_: Any) -> None:
        if FakeRun.problem is not None:
            raise FakeRun.problem
        self.alive, self.closed = True, None
        FakeRun.made.append(self)

    def close(self, *, completed: bool) -> None:
        self.closed = completed


class Calls:
    """Fails as it is told, then answers."""

    def __init__(self, *problems: Exception) -> None:
        self._problems = list(problems)

    def __call__(self) -> str:
        if self._problems:
            raise self._problems.pop(0)
        return "answer"


@pytest.fixture
def heard() -> list[str]:
    return []


@pytest.fixture
def line(monkeypatch: pytest.MonkeyPatch, heard: list[str]) -> Callable[..., SuperlinkLine]:
    FakeRun.made, FakeRun.problem = [], None
    monkeypatch.setattr(superlink_line, "FlowerRun", FakeRun)
    monkeypatch.setattr(superlink_line, "_PAUSE_S", 0.001)

    def make(patience_s: float = 5.0, renewed: Callable[[], None] = lambda: None) -> SuperlinkLine:
        return SuperlinkLine(HOME, patience_s, heard.append, renewed)

    return make


class TestCalls:
    def test_what_answers_is_passed_on_without_a_word(self, line, heard):
        assert line().call(Calls()) == "answer"
        assert heard == []

    @pytest.mark.parametrize(
        "problem",
        [
            httpx.ConnectError("gone"),
            httpx.RemoteProtocolError("disconnected"),
            refused(503),
            ValueError("torn"),
            RuntimeError("closed"),
        ],
    )
    def test_a_superlink_that_is_away_is_waited_for_and_the_person_hears_of_it(self, line, heard, problem):
        assert line().call(Calls(problem, problem)) == "answer"
        assert [text.partition(" (")[0] for text in heard] == [
            "The SuperLink does not answer",
            "The SuperLink answers again.",
        ]
        assert len(FakeRun.made) == 1

    def test_patience_ends(self, line):
        with pytest.raises(LinkError, match=r"has not answered for 0\.02 s.*resume the run"):
            line(0.02).call(Calls(*[httpx.ConnectError("gone")] * 1000))

    def test_what_is_refused_for_good_is_not_tried_again(self, line):
        with pytest.raises(LinkError, match="HTTP 422"):
            line().call(Calls(refused(422)))


class TestRuns:
    def test_without_a_superlink_there_is_no_line(self, line):
        FakeRun.problem = LinkError("The SuperLink does not answer.")
        with pytest.raises(LinkError, match="does not answer"):
            SuperlinkLine(HOME, 1.0, print, print)

    @pytest.mark.parametrize("status", [401, 403, 404, 409, 412])
    def test_a_run_that_was_given_up_is_replaced_and_what_was_under_way_is_sent_again(self, line, status):
        renewed = []
        made = line(renewed=lambda: renewed.append(made.flower))
        assert made.call(Calls(refused(status))) == "answer"
        old, new = FakeRun.made
        assert (renewed, made.flower, old.closed) == ([new], new, False)

    def test_a_run_whose_heartbeat_says_that_it_is_over_is_replaced_before_the_call(self, line):
        made = line()
        made.flower.alive = False
        assert made.call(Calls()) == "answer"
        assert len(FakeRun.made) == 2

    def test_a_superlink_that_comes_back_slowly_is_asked_for_a_run_until_it_gives_one(self, line):
        made = line()
        made.flower.alive = False
        FakeRun.problem = LinkError("The SuperLink does not answer.")

        def comes_back() -> None:
            FakeRun.problem = None

        heard: list[str] = []
        made._tell = lambda text: (heard.append(text), comes_back())
        assert made.call(Calls()) == "answer"
        assert len(heard) == 2

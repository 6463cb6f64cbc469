"""Who waits for long asks less often: a coordinator for answers, a site for work. Time is a fake."""

from __future__ import annotations

import itertools
import threading
from types import SimpleNamespace
from typing import Any

import pytest

from eucaim_fl.federation import exchange, site_client
from eucaim_fl.federation.exchange import Question, ask
from eucaim_fl.federation.flower_private import TaskIdentity
from eucaim_fl.federation.site_client import SiteClient


class Clock:
    """Stands still but for who sleeps."""

    def __init__(self) -> None:
        self.now = 0.0

    def monotonic(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds


class SilentGrid:
    """Takes instructions, notes when it is asked for answers, and has none."""

    def __init__(self, clock: Clock) -> None:
        self.clock, self.asked = clock, list[float]()

    def push_messages(self, messages: list[Any]) -> list[str]:
        return [str(number) for number, _ in enumerate(messages)]

    def pull_messages(self, identifiers: list[str]) -> list[Any]:
        self.asked.append(self.clock.now)
        return []


def pauses(times: list[float], since: float, until: float) -> list[float]:
    """How long it was between two times, of those in a span."""
    inside = [t for t in times if since <= t <= until]
    return [later - earlier for earlier, later in itertools.pairwise(inside)]


class TestACoordinator:
    @pytest.fixture
    def clock(self, monkeypatch: pytest.MonkeyPatch) -> Clock:
        clock = Clock()
        monkeypatch.setattr(exchange, "time", clock)
        for name in ("task_id", "run_id", "node_id"):
            monkeypatch.setattr(TaskIdentity, f"_{name}", 1)
        return clock

    def told(self, grid: Any, plan: Any) -> tuple[list[Any], int]:
        looks: list[int] = []
        answers = list(ask(grid, Question("hello", 0, plan), {"a": 1}, {}, lambda: looks.append(1)))
        return answers, len(looks)

    def test_it_sees_an_answer_at_most_a_twentieth_later_than_it_came(self, clock, plan_for):
        grid, plan = SilentGrid(clock), plan_for(federation={"round_deadline_s": 300.0})
        (answer,), looks = self.told(grid, plan)
        assert answer.participation.status == "deadline"
        assert all(pause == 0.25 for pause in pauses(grid.asked, 0, 5))
        assert all(pause <= 0.05 * 30 + 0.25 for pause in pauses(grid.asked, 20, 30))
        assert all(2.0 <= pause <= 2.25 for pause in pauses(grid.asked, 60, 298))
        assert grid.asked[-1] == 300.0  # once more at the very end
        assert looks == 1200  # the run's end is looked for as often as ever

    def test_a_grid_that_can_tell_is_asked_whenever_it_told(self, clock, plan_for):
        grid = SilentGrid(clock)
        grid.wait = clock.sleep  # type: ignore[attr-defined]
        self.told(grid, plan_for(federation={"round_deadline_s": 10.0, "workers": 1}))
        assert all(pause == 0.25 for pause in pauses(grid.asked, 0, 20))


class TestASite:
    def test_it_asks_every_second_and_less_often_where_it_has_heard_nothing_for_long(self, monkeypatch):
        clock, asked, stopping = Clock(), list[float](), threading.Event()
        monkeypatch.setattr(site_client, "time", clock)
        client = SiteClient.__new__(SiteClient)
        client._stopping = stopping
        handled: list[float] = []
        monkeypatch.setattr(client, "_post", lambda *_: None)
        monkeypatch.setattr(client, "_handle", lambda *_: handled.append(clock.now))

        def receive() -> Any:
            asked.append(clock.now)
            if clock.now > 320:
                stopping.set()
            return "work" if clock.now >= 200 and not handled else None

        fleet: Any = SimpleNamespace(failed=threading.Event(), receive=receive)
        desk: Any = SimpleNamespace(take_next=lambda: None, wait=clock.sleep)
        client._session(fleet, desk)
        assert set(pauses(asked, 0, 20)) == {1.0}
        assert all(1.0 < pause <= 3.0 for pause in pauses(asked, 25, 59))
        assert all(pause == pytest.approx(4.0) for pause in pauses(asked, 100, 199))
        assert all(
            pause == pytest.approx(1.0) for pause in pauses(asked, handled[0] + 1, handled[0] + 20)
        )  # something was asked of it again

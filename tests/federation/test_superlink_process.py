"""How often the SuperLink's process looks for claims that have lapsed; what starts it is Flower's own command."""

from __future__ import annotations

import pytest

from eucaim_fl.federation import superlink_process
from eucaim_fl.federation.superlink_process import main, seldom


class State:
    def __init__(self) -> None:
        self.looked = 0

    def look(self) -> None:
        self.looked += 1


class TestSeldom:
    @pytest.fixture
    def at(self, monkeypatch: pytest.MonkeyPatch) -> list[float]:
        """The time that the clock shows, in s; a test sets it."""
        now = [100.0]
        monkeypatch.setattr(superlink_process.time, "monotonic", lambda: now[0])
        return now

    def test_it_looks_at_once_and_then_once_in_a_while(self, at):
        state, look = State(), seldom(State.look, 1.0)
        for at[0] in (100.0, 100.0, 100.9, 101.0, 101.5, 102.0):
            look(state)
        assert state.looked == 3

    def test_each_object_has_its_own_time(self, at):
        one, other, look = State(), State(), seldom(State.look, 1.0)
        look(one)
        look(other)
        assert (one.looked, other.looked) == (1, 1)


class TestMain:
    def test_flower_s_own_command_runs_and_looks_seldom(self, monkeypatch):
        import flwr.superlink.cli
        from flwr.supercore.corestate.sql_corestate import SqlCoreState

        before, seen = SqlCoreState._cleanup_expired_task_tokens, []
        monkeypatch.setattr(SqlCoreState, "_cleanup_expired_task_tokens", before)  # put back at the end
        monkeypatch.setattr(
            flwr.superlink.cli, "flower_superlink", lambda: seen.append(SqlCoreState._cleanup_expired_task_tokens)
        )
        main()
        assert [look.__wrapped__ for look in seen] == [before]

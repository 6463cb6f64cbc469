"""Worker processes behind Flower's grid: they answer, die, hang, and are replaced."""

from __future__ import annotations

import json
import os
import signal
import time
from pathlib import Path

import pytest
from flwr.app import Message, RecordDict

from eucaim_fl.errors import WorkerError
from eucaim_fl.federation.local_grid import DEADLINE, LOST, LocalGrid
from eucaim_fl.federation.processes import call, warm_up

pytestmark = pytest.mark.federated
APPS = Path(__file__).parent / "apps"


@pytest.fixture
def grid(tmp_path, monkeypatch):
    """Two echoing nodes; the app does what the message's name says (see apps/echo_app.py)."""
    monkeypatch.syspath_prepend(str(APPS))
    warm_up()
    made = LocalGrid(
        {"a": tmp_path / "a.yaml", "b": tmp_path / "b.yaml"}, 2, app="echo_app:app", log_file=tmp_path / "sites.log"
    )
    yield made
    made.close()


def ask(grid, node, what):
    return Message(RecordDict(), dst_node_id=node, message_type=f"query.{what}")


def collect(grid, identifiers, patience=30.0):
    end, found = time.monotonic() + patience, {}
    while len(found) < len(identifiers) and time.monotonic() < end:
        grid.wait(0.5)
        for reply in grid.pull_messages([i for i in identifiers if i not in found]):
            found[reply.metadata.reply_to_message_id] = reply
    return found


class TestLocalGrid:
    def test_every_message_has_its_reply(self, grid):
        identifiers = list(grid.push_messages([ask(grid, node, "echo") for node in (1, 2, 1, 2)]))
        found = collect(grid, identifiers)
        assert set(found) == set(identifiers)
        assert all(not reply.has_error() for reply in found.values())

    def test_send_and_receive_is_flowers_own_call(self, grid):
        assert len(list(grid.send_and_receive([ask(grid, 1, "echo")], timeout=30))) == 1
        assert list(grid.send_and_receive([ask(grid, 1, "hang")], timeout=0.3)) == []

    def test_a_node_knows_its_own_site_file_only(self, grid):
        (reply,) = grid.send_and_receive([ask(grid, 2, "echo")], timeout=30)
        config = json.loads(reply.content.config_records["seen"]["node_config"])
        assert [Path(value).name for value in config.values()] == ["b.yaml"]

    def test_a_process_that_dies_is_answered_for_and_replaced(self, grid):
        (identifier,) = grid.push_messages([ask(grid, 1, "die")])
        assert collect(grid, [identifier])[identifier].error.code == LOST
        (again,) = grid.push_messages([ask(grid, 1, "echo")])
        assert not collect(grid, [again])[again].has_error()

    def test_a_process_that_hangs_or_is_frozen_is_ended_by_cancel(self, grid):
        for how in ("hang", "freeze"):
            (identifier,) = grid.push_messages([ask(grid, 1, how)])
            grid.wait(0.5)
            grid.cancel([identifier])
            assert list(grid.pull_messages([identifier])) == []
            (again,) = grid.push_messages([ask(grid, 1, "echo")])
            assert not collect(grid, [again])[again].has_error()

    def test_a_frozen_idle_process_does_not_block_the_coordinator(self, grid):
        list(grid.send_and_receive([ask(grid, 1, "echo"), ask(grid, 2, "echo")], timeout=30))
        for worker in grid._workers:
            os.kill(worker.process.pid, signal.SIGSTOP)
        started = time.monotonic()
        identifiers = list(grid.push_messages([ask(grid, 1, "echo"), ask(grid, 2, "echo")]))
        grid.wait(0.3)
        assert time.monotonic() - started < 5
        grid.cancel(identifiers)
        (again,) = grid.push_messages([ask(grid, 1, "echo")])
        assert not collect(grid, [again])[again].has_error()

    def test_a_worker_ignores_ctrl_c_because_the_coordinator_decides(self, grid):
        (identifier,) = grid.push_messages([ask(grid, 1, "interrupt")])
        assert not collect(grid, [identifier])[identifier].has_error()

    def test_codes_differ(self):
        assert LOST != DEADLINE


class TestCall:
    def test_a_function_is_called_in_another_process(self):
        assert call("os:getpid") != os.getpid()

    def test_its_exception_is_raised_here(self):
        with pytest.raises(ZeroDivisionError, match="zero"):
            call("operator:truediv", 1, 0)

    def test_a_process_that_ends_without_an_answer_is_an_error(self):
        with pytest.raises(WorkerError, match="without an answer"):
            call("os:_exit", 3)

"""Flower's `Grid` on this machine: sites work in parallel processes; no server, no ports, no Ray.

Differs from Flower's own grids in two calls that the coordinator uses where they exist: `wait` returns as soon as
something arrived, `cancel` ends a process that does not answer.
"""

from __future__ import annotations

import logging
import queue
import threading
import time
from collections import deque
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from multiprocessing.context import ForkServerProcess
from pathlib import Path

from flwr.app import Error, Message, RecordDict
from flwr.serverapp import Grid

from eucaim_fl.federation import wire
from eucaim_fl.federation.flower_private import Run, TaskIdentity
from eucaim_fl.federation.processes import context, start_process
from eucaim_fl.federation.worker import serve

__all__ = ["BORDER", "CLIENT_APP", "DEADLINE", "LOST", "SEAL", "LocalGrid"]

BORDER = "border"
"""In a node's configuration: what it answers is judged once more before it leaves, and noted there."""
CLIENT_APP = "eucaim_fl.federation.client_app:app"
LOST, DEADLINE, SEAL = 9001, 9002, 9003
"""Codes of the errors with which a grid answers for a process that ended, for one that was ended for its silence, and
in the place of a reply that does not come from whom it should."""
_RUN_ID = 1
_log = logging.getLogger("eucaim_fl.federation")


@dataclass
class _Worker:
    """A process, our end of its pipe, and the exchange it is in (message and the thread that carries it).

    known: nodes it has worked for, whose cohorts it has open. ready: it has loaded what it needs.
    since: when it started on its message (monotonic).
    """

    process: ForkServerProcess
    pipe: Connection
    message: Message | None = None
    carrier: threading.Thread | None = None
    ready: bool = False
    since: float = 0.0
    known: set[int] = field(default_factory=set)


class LocalGrid(Grid):
    """Nodes 1 … n are the given site files (by site name), in their order; `workers` of them are at work at a time.

    A message to a node whose process dies is answered by an error with code LOST, and another process takes its
    place. A process that neither reads nor answers blocks nobody: each exchange is carried by a thread of its own.
    A worker gets its next message when the caller waits or pulls, so unread replies are at most as many as workers.
    """

    keeps_deadlines = True
    """A message's `ttl` counts from when a process starts on it: a slow site costs its own time, not the others'."""

    def __init__(
        self,
        site_files: Mapping[str, Path],
        workers: int,
        *,
        app: str = CLIENT_APP,
        log_file: Path,
        behind_border: bool = False,
    ) -> None:
        self.names = dict(enumerate(site_files, start=1))
        self._nodes: dict[int, dict[str, str]] = {
            number: {"site-file": str(path), **({BORDER: "yes"} if behind_border else {})}
            for number, path in enumerate(site_files.values(), start=1)
        }
        self._app, self._log_file = app, log_file
        self._waiting: deque[Message] = deque()
        self._replies: dict[str, Message] = {}
        self._arrived: queue.Queue[tuple[_Worker, Message, Message | None]] = queue.Queue()
        self._sent = 0
        TaskIdentity.task_id, TaskIdentity.run_id, TaskIdentity.node_id = 1, _RUN_ID, 0
        self._run = Run.create_empty(run_id=_RUN_ID)
        self._workers = [self._new_worker() for _ in range(max(1, min(workers, len(self._nodes))))]

    def _new_worker(self) -> _Worker:
        here, there = context().Pipe()
        process = start_process(serve, there, self._app, str(self._log_file))
        there.close()
        return _Worker(process, here)

    # --- Flower's interface -----------------------------------------------------------------------------------

    def set_run(self, run: Run) -> None:
        """Set the run."""
        self._run = run

    @property
    def run(self) -> Run:
        """The run."""
        return self._run

    def create_message(
        self, content: RecordDict, message_type: str, dst_node_id: int, group_id: str, ttl: float | None = None
    ) -> Message:
        """A new instruction."""
        return Message(content, dst_node_id, message_type, group_id=group_id, ttl=ttl)

    def get_node_ids(self) -> Iterable[int]:
        """All nodes; on this machine they are always there."""
        return list(self._nodes)

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        """Queue messages; idle workers start on them at once."""
        identifiers = []
        for message in messages:
            self._sent += 1
            message.metadata.__dict__["_message_id"] = str(self._sent)
            identifiers.append(str(self._sent))
            self._waiting.append(message)
        self._dispatch()
        return identifiers

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        """Those replies that are there; each is handed out once."""
        if not self._replies:
            self.wait(0.0)
        return [self._replies.pop(i) for i in list(message_ids) if i in self._replies]

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> Iterable[Message]:
        """Push messages and wait for their replies, or for the time-out."""
        pending = set(self.push_messages(messages))
        end = None if timeout is None else time.monotonic() + timeout
        replies: list[Message] = []
        while pending and (end is None or time.monotonic() < end):
            self.wait(1.0 if end is None else max(0.0, min(1.0, end - time.monotonic())))
            for reply in self.pull_messages(pending):
                pending.discard(reply.metadata.reply_to_message_id)
                replies.append(reply)
        return replies

    # --- beyond it --------------------------------------------------------------------------------------------

    def wait(self, timeout: float) -> None:
        """Return when a reply has arrived, or after `timeout` seconds."""
        try:
            worker, message, reply = self._arrived.get(timeout=timeout) if timeout > 0 else self._arrived.get_nowait()
        except queue.Empty:
            self._end_overdue()
            return
        if worker.message is message:
            if reply is None:
                self._replace(worker, LOST, "The site's process ended before it answered.")
            else:
                worker.message = None
                self._replies[message.metadata.message_id] = reply
        self._end_overdue()
        self._dispatch()

    def _end_overdue(self) -> None:
        """End processes that are longer at a message than its `ttl` allows, and answer for them."""
        now, overdue = time.monotonic(), False
        for worker in self._workers:
            if worker.message is not None and worker.ready and now - worker.since > worker.message.metadata.ttl:
                self._replace(worker, DEADLINE, "The site did not answer in time.")
                overdue = True
        if overdue:
            self._dispatch()

    def cancel(self, message_ids: Iterable[str]) -> None:
        """Give up on messages: those not started are dropped, those at work lose their process."""
        given_up = set(message_ids)
        self._waiting = deque(m for m in self._waiting if m.metadata.message_id not in given_up)
        for worker in self._workers:
            if worker.message is not None and worker.message.metadata.message_id in given_up:
                self._replace(worker, DEADLINE, "The site did not answer in time.")
        for identifier in given_up:
            self._replies.pop(identifier, None)
        self._dispatch()

    def close(self) -> None:
        """End all workers."""
        for worker in self._workers:
            worker.process.kill()
        for worker in self._workers:
            self._end(worker)

    # --- inside -----------------------------------------------------------------------------------------------

    def _dispatch(self) -> None:
        """Give waiting messages to idle workers: if possible of a node it knows, else of one that no worker knows."""
        for worker in self._workers:
            if worker.message is not None:
                continue
            if not self._waiting:
                return
            if not worker.process.is_alive():  # it ended while idle, which is not the next site's fault
                self._replace(worker, LOST, "")
            taken = {node for other in self._workers for node in other.known}
            nodes = [m.metadata.dst_node_id for m in self._waiting]
            index = next(
                (i for i, n in enumerate(nodes) if n in worker.known),
                next((i for i, n in enumerate(nodes) if n not in taken), 0),
            )
            message = self._waiting[index]
            del self._waiting[index]
            worker.message, worker.since = message, time.monotonic()
            worker.known.add(message.metadata.dst_node_id)
            worker.carrier = threading.Thread(target=self._carry, args=(worker, worker.pipe, message), daemon=True)
            worker.carrier.start()

    def _carry(self, worker: _Worker, pipe: Connection, message: Message) -> None:
        """One exchange, in a thread of its own: send, then wait for the reply; None if the process is gone."""
        reply: Message | None = None
        try:
            if not worker.ready:
                pipe.recv_bytes()  # it says when it has loaded its libraries; that time is not the site's
                worker.since, worker.ready = time.monotonic(), True
            wire.send(pipe, message, {"node_config": self._nodes[message.metadata.dst_node_id]})
            reply, _, _ = wire.receive(pipe)
        except (EOFError, OSError):
            pass  # the process is gone
        except Exception:  # noqa: BLE001  the caller must hear of it, whatever it is
            _log.exception("a reply could not be received")
        finally:
            self._arrived.put((worker, message, reply))

    def _end(self, worker: _Worker) -> None:
        worker.process.kill()
        worker.process.join(5)
        if worker.carrier is not None:
            worker.carrier.join(5)
        worker.pipe.close()

    def _replace(self, worker: _Worker, code: int, reason: str) -> None:
        """End a worker's process, answer for it, and put a new process in its place."""
        self._end(worker)
        if worker.message is not None:
            error = Message(Error(code, reason), reply_to=worker.message)
            self._replies[worker.message.metadata.message_id] = error
        fresh = self._new_worker()
        worker.process, worker.pipe = fresh.process, fresh.pipe
        worker.message, worker.carrier, worker.known, worker.ready = None, None, set(), False

"""Functions over foreign files, each call in a worker process that may die of it.

A worker has bounded memory and time, no standard streams, and hands back JSON, so that nothing it says is ever
executed. What kills it costs the one item it was on; another process takes its place. Workers are plain child
processes, started apart from the warm server of training: they never hold torch, and may be started from anywhere.
They are kept for the next call, until `close` or the end of this process.
"""

from __future__ import annotations

import atexit
import contextlib
import importlib
import json
import os
import select
import selectors
import subprocess
import sys
import threading
import time
import weakref
from collections import deque
from collections.abc import Generator, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

from eucaim_fl.cohorts.isolation_worker import HEAD, ITEM, LARGEST_MESSAGE, LEAVING, READY, SHARED, answer
from eucaim_fl.errors import WorkerError

__all__ = ["Result", "close", "map_isolated"]

_BATCH_S = 0.1  # a worker is handed about this much work at a time
_LARGEST_BATCH = 256
_START_S = 120.0  # loading libraries from a slow disk
_STARTS = 3
_FIRST = 3.0  # a process may load libraries on its first item, on a machine that is busy: it gets this much more time
_UNREADABLE = "EFL204"
_THREADS = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "MALLOC_ARENA_MAX"), "1")


@dataclass(frozen=True, slots=True)
class Result:
    """What became of one item: a JSON value, or a code and a reason (safe outside the hospital) why there is none.

    local_detail: of this machine only; the type of an error and what it says.
    """

    value: Any = None
    code: str = ""
    reason: str = ""
    local_detail: str = ""


@dataclass(eq=False)
class _Worker:
    """A process and what it was given. since: when it started on the first of `given` (monotonic)."""

    key: tuple[str, int]
    process: subprocess.Popen[bytes]
    ready: bool = False
    leaving: bool = False
    overdue: bool = False
    answered: bool = False
    since: float = 0.0
    seconds_an_item: float = 0.0
    shared: str = ""
    fault: str = ""
    given: deque[tuple[int, str]] = field(default_factory=deque)
    outgoing: bytearray = field(default_factory=bytearray)
    incoming: bytearray = field(default_factory=bytearray)

    def pipes(self) -> tuple[int, int]:
        """Where to write, and where to read."""
        requests, replies = self.process.stdin, self.process.stdout
        return (-1, -1) if requests is None or replies is None else (requests.fileno(), replies.fileno())

    def hang_up(self) -> None:
        """Close our ends of its pipes."""
        for stream in (self.process.stdin, self.process.stdout):
            if stream is not None:
                with contextlib.suppress(OSError):
                    stream.close()

    def end(self) -> None:
        """End the process, whatever it does."""
        self.process.kill()
        self.process.wait()
        self.hang_up()


_idle: list[_Worker] = []
_living: weakref.WeakSet[_Worker] = weakref.WeakSet()
_lock = threading.RLock()  # collecting garbage while it is held may end a call that nobody wants any more


def _start(work: str, memory_bytes: int) -> _Worker:
    # -c, not -m: the module must be the one that `work` meets when it imports it.
    code = "from eucaim_fl.cohorts.isolation_worker import serve; serve()"
    path = os.pathsep.join(part for part in sys.path if part)
    process = subprocess.Popen(  # noqa: S603 - this interpreter with a fixed line
        [sys.executable, "-P", "-c", code],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        bufsize=0,
        env={**os.environ, **_THREADS, "PYTHONPATH": path},
    )
    worker = _Worker((work, memory_bytes), process, since=time.monotonic())
    _living.add(worker)
    for pipe in worker.pipes():
        os.set_blocking(pipe, False)
    _post(worker, json.dumps([work, memory_bytes]))
    return worker


def _post(worker: _Worker, message: str) -> None:
    raw = message.encode()  # json.dumps escapes everything outside ASCII, lone surrogates too
    worker.outgoing += HEAD.pack(len(raw)) + raw


def _borrow(work: str, memory_bytes: int) -> _Worker:
    with _lock:
        for worker in _idle:
            if worker.key == (work, memory_bytes):
                _idle.remove(worker)
                break
        else:
            return _start(work, memory_bytes)
    if worker.process.poll() is None:
        worker.seconds_an_item = 0.0
        return worker
    worker.end()
    return _start(work, memory_bytes)


def close() -> None:
    """End all workers that wait for a next call."""
    with _lock:
        ending, _idle[:] = list(_idle), []
    for worker in ending:
        worker.end()


def _forget() -> None:
    """In a forked child: the workers are the parent's, and must not live on because the child holds their pipes."""
    for worker in list(_living):
        worker.hang_up()
    _idle.clear()


atexit.register(close)
os.register_at_fork(after_in_child=_forget)


def map_isolated(
    work: str,
    items: Iterable[Any],
    *,
    shared: Any = None,
    workers: int = 1,
    seconds: float = 10.0,
    memory_bytes: int = 10**9,
) -> Generator[tuple[int, Result], None, None]:
    """Call a function for each item in worker processes; yields (number of the item from 0, result) as they come.

    work: `module:function`, called as `function(item)`, or `function(item, shared)` if `shared` is not None. Items,
    `shared` and what the function returns are JSON values. An `EucaimError` that it raises becomes the result's code
    and reason; any other exception, an item that takes longer than `seconds`, needs more than `memory_bytes` beyond
    what the process has after loading, or kills its process, becomes EFL204. The first item of a process may take three
    times as long, since it may load libraries.
    Items are taken as they are needed, so their number costs no memory; results may come in another order. workers=0
    calls the function in this process, without limits: for own files and tests only.
    Raises WorkerError if a worker can't be started at all, or can't import `work`. Closing the iterator ends workers
    that are busy; idle ones are kept.
    """
    if workers < 1:
        yield from _map_here(work, items, shared)
        return
    call = _Call(work, items, json.dumps(shared), seconds, memory_bytes)
    try:
        yield from call.run(workers)
    finally:
        call.end()


def _map_here(work: str, items: Iterable[Any], shared: Any) -> Iterator[tuple[int, Result]]:
    module, _, name = work.partition(":")
    function = getattr(importlib.import_module(module), name)
    for number, item in enumerate(items):
        yield number, _result(answer(function, json.dumps(item), json.dumps(shared)))


def _result(raw: bytes) -> Result:
    """What a worker said of an item. It may say anything: what doesn't fit is a failure."""
    try:
        value, code, reason, detail = json.loads(raw)
        return Result(value, str(code), str(reason), str(detail))
    except (ValueError, TypeError, RecursionError):
        return Result(None, _UNREADABLE, "Reading a file gave no proper answer.")


class _Call:
    """One call of `map_isolated`: the workers it holds, and the items that must be given out again."""

    def __init__(self, work: str, items: Iterable[Any], shared: str, seconds: float, memory_bytes: int) -> None:
        self._work, self._memory, self._shared, self._seconds = work, memory_bytes, shared, seconds
        self._items = enumerate(items)
        self._again: deque[tuple[int, str]] = deque()
        self._exhausted = False
        self._failed_starts = 0
        self._workers: list[_Worker] = []
        self._selector = selectors.DefaultSelector()

    def run(self, workers: int) -> Iterator[tuple[int, Result]]:
        """Results as they come."""
        while True:
            for worker in self._workers:
                self._refill(worker)
            while len(self._workers) < workers and (pending := self._take(1)):
                self._again.extendleft(pending)
                self._refill(self._hire())
            if not self._workers or not any(worker.given for worker in self._workers):
                return
            ready: list[_Worker] = [key.data for key, _ in self._selector.select(self._patience())]
            for worker in ready:
                yield from self._exchange(worker)
            for worker in [w for w in self._workers if w not in ready]:
                yield from self._watch(worker)

    def end(self) -> None:
        """Keep the workers that are idle, end the others."""
        for worker in self._workers:
            self._selector.unregister(worker.pipes()[1])
            if worker.given or worker.outgoing or not worker.ready:
                worker.end()
            else:
                with _lock:
                    _idle.append(worker)
        self._workers.clear()
        self._selector.close()

    # --- giving out -------------------------------------------------------------------------------------------

    def _take(self, most: int) -> list[tuple[int, str]]:
        taken: list[tuple[int, str]] = []
        while len(taken) < most:
            if self._again:
                taken.append(self._again.popleft())
                continue
            following = None if self._exhausted else next(self._items, None)
            if following is None:
                self._exhausted = True
                break
            taken.append((following[0], json.dumps(following[1])))
        return taken

    def _hire(self) -> _Worker:
        worker = _borrow(self._work, self._memory)
        self._workers.append(worker)
        self._selector.register(worker.pipes()[1], selectors.EVENT_READ, worker)
        if worker.shared != self._shared:
            _post(worker, SHARED + self._shared)
            worker.shared = self._shared
        return worker

    def _refill(self, worker: _Worker) -> None:
        """Keep a worker supplied: it has between one and two batches, so that it never waits for the next."""
        pace = worker.seconds_an_item
        batch = 1 if not pace else max(1, min(_LARGEST_BATCH, int(_BATCH_S / pace)))
        if not worker.leaving and len(worker.given) <= batch // 2:
            taken = self._take(batch)
            if taken and not worker.given:
                worker.since = time.monotonic()
            for number, item in taken:
                worker.given.append((number, item))
                _post(worker, ITEM + item)
        self._send(worker)

    def _send(self, worker: _Worker) -> None:
        while worker.outgoing:
            try:
                sent = os.write(worker.pipes()[0], memoryview(worker.outgoing)[: 1 << 16])
            except BlockingIOError:
                return
            except OSError:  # it has died; reading tells so
                worker.outgoing.clear()
                return
            del worker.outgoing[:sent]

    # --- taking back ------------------------------------------------------------------------------------------

    def _limit(self, worker: _Worker) -> float:
        """Seconds that a worker may be silent."""
        if not worker.ready:
            return _START_S
        return self._seconds if worker.answered else self._seconds * _FIRST

    def _patience(self) -> float:
        """Seconds until somebody may be overdue, or may take more of a batch that its pipe had no room for."""
        if any(worker.outgoing for worker in self._workers):
            return 0.02
        now = time.monotonic()
        limits = (w.since + self._limit(w) - now for w in self._workers if w.given)
        return max(0.0, min(limits, default=0.0)) + 0.01

    def _exchange(self, worker: _Worker) -> Iterator[tuple[int, Result]]:
        """Take what a worker has said, and see whether it lives."""
        try:
            raw = os.read(worker.pipes()[1], 1 << 20)
        except BlockingIOError:
            return
        except OSError:
            raw = b""
        worker.incoming += raw
        now, done = time.monotonic(), 0
        for message in self._messages(worker):
            if message == READY:
                worker.ready, worker.since = True, now
            elif not worker.ready:
                worker.fault = message.decode("utf-8", "replace")[:500]
            elif message == LEAVING:
                worker.leaving = True
            elif worker.given:
                done += 1
                yield worker.given.popleft()[0], _result(message)
        if done:
            self._failed_starts, worker.answered = 0, True
            pace = (now - worker.since) / done
            worker.seconds_an_item = 0.5 * (worker.seconds_an_item + pace) if worker.seconds_an_item else pace
            worker.since = time.monotonic()
        if not raw:
            yield from self._bury(worker)

    def _messages(self, worker: _Worker) -> Iterator[bytes]:
        while len(worker.incoming) >= HEAD.size:
            (length,) = HEAD.unpack_from(worker.incoming)
            if length > LARGEST_MESSAGE:  # it has gone mad: what it was on is lost with it
                worker.incoming.clear()
                worker.process.kill()
                return
            if len(worker.incoming) < HEAD.size + length:
                return
            message = bytes(worker.incoming[HEAD.size : HEAD.size + length])
            del worker.incoming[: HEAD.size + length]
            yield message

    def _watch(self, worker: _Worker) -> Iterator[tuple[int, Result]]:
        """End a worker that said nothing for too long."""
        if not worker.given or time.monotonic() - worker.since <= self._limit(worker):
            return
        unread = select.poll()
        unread.register(worker.pipes()[1], select.POLLIN)
        if not unread.poll(0):  # else we are the slow one
            worker.overdue = True
            worker.process.kill()
            yield from self._bury(worker)

    def _bury(self, worker: _Worker) -> Iterator[tuple[int, Result]]:
        """Answer for a dead worker's item; the others of its batch are given out again."""
        self._selector.unregister(worker.pipes()[1])
        self._workers.remove(worker)
        code = worker.process.wait()
        worker.end()
        if not worker.ready:
            self._failed_starts += 1
            if self._failed_starts >= _STARTS:
                raise WorkerError(
                    "A process for reading files could not be started.",
                    fix="Look whether memory is short, and whether the installation is whole.",
                    local_detail=f"{self._work}: exit status {code}; {worker.fault}",
                )
        elif worker.given and not worker.leaving:
            number, _ = worker.given.popleft()
            if worker.overdue:
                reason = f"A file took longer than {self._seconds:g} s to read."
            elif code == -9:  # the system's own answer to a lack of memory
                reason = "Reading a file needed more memory than allowed."
            else:
                reason = "Reading a file crashed its process."
            yield number, Result(None, _UNREADABLE, reason, f"exit status {code}")
        self._again.extend(worker.given)

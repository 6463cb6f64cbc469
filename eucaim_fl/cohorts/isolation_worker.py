"""The worker's side of `isolation`: bound oneself, then answer one item after the other until the pipe closes."""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import queue
import resource
import signal
import struct
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

from eucaim_fl.errors import EucaimError

__all__ = ["HEAD", "ITEM", "LARGEST_MESSAGE", "LEAVING", "READY", "SHARED", "answer", "serve"]

HEAD = struct.Struct("<I")
"""Before each message: its length in bytes."""
LARGEST_MESSAGE = 64 * 1024 * 1024
SHARED, ITEM = "S", "I"
"""First letter of what a worker is sent: what all items share, or an item."""
READY, LEAVING = b"ready", b"leaving"
"""What a worker says of itself: it has loaded what it needs; it ends after its last answer."""
_UNREADABLE = "EFL204"


def answer(function: Callable[..., Any], item: str, shared: str) -> bytes:
    """JSON of [value, code, reason, local detail] that a function gives for an item; both arguments are JSON.

    Raises MemoryError if there is too little of it.
    """
    try:
        common = json.loads(shared)
        value = function(json.loads(item)) if common is None else function(json.loads(item), common)
        return json.dumps([value, "", "", ""]).encode()
    except MemoryError:
        raise
    except EucaimError as problem:
        return json.dumps([None, problem.code, problem.message, problem.local_detail]).encode()
    except Exception as problem:  # noqa: BLE001 - a foreign file can make a reader raise anything
        detail = f"{type(problem).__name__}: {problem}"[:500]
        return json.dumps([None, _UNREADABLE, "A file could not be read.", detail]).encode()


def _limit(memory_bytes: int) -> None:
    """No core file, and no more address space than now and `memory_bytes`."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    statm = Path("/proc/self/statm")
    if statm.exists():
        most = int(statm.read_text().split()[0]) * resource.getpagesize() + memory_bytes
        with contextlib.suppress(ValueError, OSError):  # a lower limit is set already
            resource.setrlimit(resource.RLIMIT_AS, (most, most))


def _exactly(stream: BinaryIO, length: int) -> bytes:
    raw = stream.read(length)
    if len(raw) < length:
        os._exit(0)  # the parent is gone or has done with us, whatever is being read
    return raw


def _listen(stream: BinaryIO, inbox: queue.SimpleQueue[str]) -> None:
    while True:
        (length,) = HEAD.unpack(_exactly(stream, HEAD.size))
        inbox.put(_exactly(stream, length).decode())


def _say(replies: int, message: bytes) -> None:
    left = memoryview(HEAD.pack(len(message)) + message)
    while left:
        left = left[os.write(replies, left) :]


def serve() -> None:
    """Answer items from standard input on standard output, until that closes. For a process of its own."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent decides
    requests, replies = os.fdopen(os.dup(0), "rb"), os.dup(1)
    nowhere = os.open(os.devnull, os.O_RDWR)
    for standard in (0, 1, 2):  # a library that prints must not be taken for us
        os.dup2(nowhere, standard)
    inbox: queue.SimpleQueue[str] = queue.SimpleQueue()
    threading.Thread(target=_listen, args=(requests, inbox), daemon=True).start()
    work, memory_bytes = json.loads(inbox.get())
    module, _, name = work.partition(":")
    try:
        function = getattr(importlib.import_module(module), name)
    except Exception as problem:  # noqa: BLE001 - the parent raises it
        _say(replies, f"{type(problem).__name__}: {problem}".encode())
        os._exit(3)
    _limit(memory_bytes)
    sys.setrecursionlimit(1000)
    _say(replies, READY)
    shared = "null"
    nothing = json.dumps([None, _UNREADABLE, "Reading a file needed more memory than allowed.", ""]).encode()
    while True:
        message = inbox.get()
        if message.startswith(SHARED):
            shared = message[1:]
            continue
        try:
            reply = answer(function, message[1:], shared)
            if len(reply) > LARGEST_MESSAGE:
                reply = json.dumps([None, _UNREADABLE, "Reading a file gave too long an answer.", ""]).encode()
        except MemoryError:  # what is left of the heap may be in pieces: let a fresh process go on
            _say(replies, nothing)
            _say(replies, LEAVING)
            os._exit(0)
        _say(replies, reply)

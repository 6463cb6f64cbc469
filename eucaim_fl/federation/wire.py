"""Flower messages over a pipe between two processes of this machine: a JSON head, then the arrays' buffers as they are.

Nothing is pickled. Only what our messages hold is known here: array records and configuration records.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, Protocol

from flwr.app import Array, ArrayRecord, ConfigRecord, Error, Message, Metadata, RecordDict

from eucaim_fl.federation.flower_private import make_message

__all__ = ["Pipe", "receive", "send"]

_METADATA = (
    "run_id", "message_id", "src_node_id", "dst_node_id", "reply_to_message_id",
    "group_id", "created_at", "ttl", "message_type", "src_task_id", "dst_task_id",
)  # fmt: skip


class Pipe(Protocol):
    """The two calls of `multiprocessing.connection.Connection` that are used."""

    def send_bytes(self, buffer: bytes) -> None:
        """Send one buffer."""

    def recv_bytes(self) -> bytes:
        """Receive one buffer; EOFError if the other end is gone."""


def _head(message: Message) -> tuple[dict[str, Any], list[bytes]]:
    head: dict[str, Any] = {"metadata": {name: getattr(message.metadata, name) for name in _METADATA}}
    buffers: list[bytes] = []
    if message.has_error():
        head["error"] = [message.error.code, message.error.reason]
        return head, buffers
    records: dict[str, Any] = {}
    for name, record in message.content.items():
        if isinstance(record, ArrayRecord):
            records[name] = [[key, a.dtype, list(a.shape), a.stype] for key, a in record.items()]
            buffers += [a.data for a in record.values()]
        elif isinstance(record, ConfigRecord):
            records[name] = dict(record)
        else:
            raise TypeError(f"records of type {type(record).__name__} are not sent")
    head["content"] = records
    return head, buffers


def send(pipe: Pipe, message: Message, extra: Mapping[str, Any] | None = None) -> int:
    """Send a message (and a small JSON value beside it); returns the number of bytes."""
    head, buffers = _head(message)
    text = json.dumps({**head, "extra": dict(extra or {})}).encode()
    pipe.send_bytes(text)
    for buffer in buffers:
        pipe.send_bytes(buffer)
    return len(text) + sum(len(buffer) for buffer in buffers)


def receive(pipe: Pipe) -> tuple[Message, dict[str, Any], int]:
    """Receive a message with the value beside it and its size in bytes. Raises EOFError if the other end is gone."""
    text = pipe.recv_bytes()
    head = json.loads(text)
    size = len(text)
    metadata = Metadata(**head["metadata"])
    if "error" in head:
        return make_message(metadata=metadata, error=Error(*head["error"])), head["extra"], size
    content = RecordDict()
    for name, record in head["content"].items():
        if isinstance(record, dict):
            content[name] = ConfigRecord(record)
            continue
        arrays = {}
        for key, dtype, shape, stype in record:
            data = pipe.recv_bytes()
            size += len(data)
            arrays[key] = Array(dtype, tuple(shape), stype, data)
        content[name] = ArrayRecord(arrays)
    return make_message(metadata=metadata, content=content), head["extra"], size

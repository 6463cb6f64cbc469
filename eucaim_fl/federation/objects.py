"""Flower's content-addressed objects: a message ↔ a tree of hashes and the bytes behind them, within bounds.

Whoever sends a tree names the hashes; here it is checked how many there are, what they weigh, that each hash is that of
its bytes, and that the pieces make up a message.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

from flwr.app import Message, RecordDict

from eucaim_fl.errors import LinkError, PlanError, ReplyError
from eucaim_fl.federation.flower_private import (
    get_all_nested_objects,
    get_object_head_values_from_object_content,
    get_object_id,
    get_object_tree,
    inflate_object_from_contents,
    no_object_id_recompute,
    validate_object_content,
)

__all__ = ["CHUNK_BYTES", "Outgoing", "fetch", "outgoing", "send_all"]

CHUNK_BYTES = 5 * 2**20
"""Flower cuts arrays into chunks of this size."""
_AT_ONCE = 4
_OWN_OBJECTS = 64
"""Objects of one of our messages besides the chunks of its parcel: the message, its records, their arrays."""
_HEAD_BYTES = 2**16
_MALFORMED = "The message can't be put together from its parts."
Error = type[ReplyError] | type[PlanError]


@dataclass
class Outgoing:
    """A message taken apart: its tree, and the bytes of each object, made when they are asked for."""

    identifier: str
    tree: Any
    objects: dict[str, Any] = field(repr=False)

    def contents(self, wanted: set[str]) -> Iterator[tuple[str, bytes]]:
        """Bytes of the wanted objects, children before parents."""
        for identifier, thing in self.objects.items():
            if identifier in wanted:
                yield identifier, thing.deflate()


def outgoing(message: Message) -> Outgoing:
    """Take a message apart; its hash becomes its identifier."""
    with no_object_id_recompute():
        message.metadata.__dict__["_message_id"] = message.object_id
        return Outgoing(message.metadata.message_id, get_object_tree(message), get_all_nested_objects(message))


def send_all(contents: Iterator[tuple[str, bytes]], push: Callable[[str, bytes], None]) -> None:
    """Push objects, a few at a time; the first failure is raised, and what was not begun by then is not pushed."""
    with ThreadPoolExecutor(_AT_ONCE) as pool:
        pending = []
        try:
            for identifier, content in contents:
                pending.append(pool.submit(push, identifier, content))
                if len(pending) >= 2 * _AT_ONCE:  # do not hold the bytes of the whole message a second time
                    pending.pop(0).result()
            for future in pending:
                future.result()
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def _identifiers(tree: Any, most: int, error: Error) -> list[str]:
    """All hashes of a tree, in no recursion and no more than `most`."""
    found: dict[str, None] = {}
    waiting = [(tree, 0)]
    seen = 0
    while waiting:
        node, depth = waiting.pop()
        seen += 1
        if seen > most or depth > 16:
            raise error("The message has more parts than one of its kind can have.")
        if len(node.object_id) != 64:
            raise error("The message names its parts in a way that is not known.")
        found[node.object_id] = None
        waiting.extend((child, depth + 1) for child in node.children)
    return list(found)


def fetch(tree: Any, pull: Callable[[str], bytes | None], largest_bytes: int, error: Error = ReplyError) -> RecordDict:
    """The content of a message from its tree.

    pull: gives an object's bytes, None if they are not there. largest_bytes: of all objects together.
    Raises ReplyError (or `error`) if there are too many or too heavy parts, or they do not make up a message;
    LinkError if parts are not there.
    """
    most = _OWN_OBJECTS + 2 * (largest_bytes // CHUNK_BYTES + 1)
    identifiers = _identifiers(tree, most, error)
    contents: dict[str, bytes] = {}
    left = largest_bytes + _HEAD_BYTES
    with ThreadPoolExecutor(_AT_ONCE) as pool:
        for start in range(0, len(identifiers), _AT_ONCE):
            batch = identifiers[start : start + _AT_ONCE]
            for identifier, content in zip(batch, pool.map(pull, batch), strict=True):
                if content is None:
                    raise LinkError("A part of a message is missing.", fix="It is asked for again.")
                left -= len(content)
                if left < 0:
                    raise error("The message is larger than one of its kind can be.")
                if get_object_id(content) != identifier:
                    raise error("A part of the message is not what its hash says.")
                contents[identifier] = content
    return _put_together(tree.object_id, contents, largest_bytes + _HEAD_BYTES, error)


def _put_together(identifier: str, contents: dict[str, bytes], largest: int, error: Error) -> RecordDict:
    try:
        for content in contents.values():
            validate_object_content(content)
        grown = _grown(contents)
    except Exception:  # noqa: BLE001  Flower's reader fails in many ways on what is malformed
        raise error(_MALFORMED) from None
    if grown > largest:
        raise error("The message is larger than one of its kind can be.")
    try:
        message = inflate_object_from_contents(identifier, contents)
    except Exception:  # noqa: BLE001
        raise error(_MALFORMED) from None
    held = message.content if isinstance(message, Message) and message.has_content() else None
    if not isinstance(held, RecordDict):
        raise error("The message holds no content.")
    return held


def _grown(contents: Mapping[str, bytes]) -> int:
    """How many bytes all arrays will have: one may list the same chunk a million times."""
    total = 0
    for content in contents.values():
        kind, children, _ = get_object_head_values_from_object_content(content)
        if kind == "Array":
            listed = json.loads(content.partition(b"\0")[2])["arraychunk_ids"]
            total += sum(len(contents[children[number]]) for number in listed)
    return total

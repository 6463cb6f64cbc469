"""An instruction under way to a site, as the deployed grid remembers it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from flwr.app import Message, RecordDict

from eucaim_fl.seals import InstructionSeal

__all__ = ["FIRST_PROBE_S", "NotYetError", "Pending"]

FIRST_PROBE_S = 10.0
"""A site that has not answered for so long is asked how far it is."""


@dataclass
class Pending:
    """One instruction under way. sent: Flower's identifiers under which it, or a probe for it, was sent.

    site_key: the site's public key, as it was admitted when it was asked. shut_out: the SuperLink takes no message for
    the site any more. resent: how often a site said that it had never heard of it. partial: an answer that was
    announced and is not whole yet; it is looked for now and then, and nobody waits for it. known_head: of the site's
    audit log, when the instruction was sealed.
    """

    site: str
    site_key: str
    node: int
    message: Message
    packed: RecordDict
    seal: InstructionSeal
    largest_reply: int
    known_head: str = ""
    sent: set[str] = field(default_factory=set)
    probe_at: float = 0.0
    pause_s: float = field(default_factory=lambda: FIRST_PROBE_S)
    probing: str = ""
    shut_out: bool = False
    resent: int = 0
    partial: tuple[Any, Any] | None = None
    partial_since: float = 0.0
    partial_at: float = 0.0


class NotYetError(Exception):
    """A part of an answer is announced, but not there: its site may still be sending it."""

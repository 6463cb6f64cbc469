"""What the SuperLink's process runs: Flower's own, which looks for claims that have lapsed less often.

Flower looks for them with every request, up to three times, and takes its database's lock each time though there is
nothing to change: much of what a request costs, and why requests that come at once wait for each other.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Callable
from typing import Any

__all__ = ["main", "seldom"]

_PAUSE_S = 1.0
"""A claim holds for half a minute at least; that it has lapsed is noticed so much later."""


def seldom(look: Callable[[Any], None], pause_s: float) -> Callable[[Any], None]:
    """A method that looks no sooner than `pause_s` seconds after it last did, for each object by itself."""

    @functools.wraps(look)
    def looks(state: Any) -> None:
        now = time.monotonic()
        if now >= vars(state).get("_looks_again_at", now):
            vars(state)["_looks_again_at"] = now + pause_s
            look(state)

    return looks


def main() -> None:
    """Run a SuperLink with the arguments of the command line."""
    from flwr.supercore.corestate.sql_corestate import SqlCoreState
    from flwr.superlink.cli import flower_superlink

    looks = seldom(SqlCoreState._cleanup_expired_task_tokens, _PAUSE_S)
    setattr(SqlCoreState, "_cleanup_expired_task_tokens", looks)  # noqa: B010  (a method of Flower's)
    flower_superlink()

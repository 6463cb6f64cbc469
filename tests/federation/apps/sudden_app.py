"""A site's worker that ends in the middle of a round, and freezes in the middle of the last exchange."""

from __future__ import annotations

import os
import signal

from flwr.app import Context, Message


def app(message: Message, context: Context) -> Message:
    os.kill(os.getpid(), signal.SIGKILL if message.metadata.message_type == "train" else signal.SIGSTOP)
    raise AssertionError("the signal was lost")

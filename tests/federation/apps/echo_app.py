"""A site that does what the message's name says."""

from __future__ import annotations

import json
import os
import signal
import time

from flwr.app import ConfigRecord, Context, Message, RecordDict


def app(message: Message, context: Context) -> Message:
    what = message.metadata.message_type.split(".")[1]
    if what == "die":
        os.kill(os.getpid(), signal.SIGKILL)
    if what == "hang":
        time.sleep(600)
    if what == "freeze":
        os.kill(os.getpid(), signal.SIGSTOP)
    if what == "interrupt":
        os.kill(os.getpid(), signal.SIGINT)
    seen = ConfigRecord({"node_config": json.dumps(dict(context.node_config))})
    return Message(RecordDict({"seen": seen}), reply_to=message)

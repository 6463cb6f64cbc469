"""The life of one worker process: take a message, call the site's app, send the reply."""

from __future__ import annotations

import importlib
import logging
import os
from multiprocessing.connection import Connection

from flwr.app import Context, RecordDict

from eucaim_fl.federation.processes import tie_to_parent
from eucaim_fl.federation.wire import receive, send

__all__ = ["serve"]


def serve(pipe: Connection, app: str, log_file: str) -> None:
    """Answer messages until the pipe closes. app: `module:attribute` of the installed ClientApp.

    log_file: takes the log, and whatever libraries print: their warnings may quote values of a file.
    """
    tie_to_parent()
    log = os.open(log_file, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    os.dup2(log, 1)
    os.dup2(log, 2)
    os.close(log)
    handler = logging.FileHandler(log_file, delay=True)
    handler.setFormatter(logging.Formatter("%(asctime)s %(name)s %(levelname)s %(message)s"))
    logging.getLogger().addHandler(handler)
    logging.getLogger("eucaim_fl").setLevel(logging.INFO)
    module, _, name = app.partition(":")
    client = getattr(importlib.import_module(module), name)
    pipe.send_bytes(b"ready")
    while True:
        try:
            message, extra, _ = receive(pipe)
        except EOFError:
            return
        context = Context(
            run_id=message.metadata.run_id,
            node_id=message.metadata.dst_node_id,
            node_config=extra["node_config"],
            state=RecordDict(),
            run_config={},
        )
        send(pipe, client(message, context))

"""The real site app, made to fail as the file named by FAULTY_SITE says: {"site": …, "round": …, "how": …}."""

from __future__ import annotations

import json
import os
import signal
import time
from pathlib import Path

import numpy as np
from flwr.app import Context, Message

from eucaim_fl.federation.client_app import app as real
from eucaim_fl.federation.messages import to_record

FAULT_FILE = Path(__file__).with_name("fault.json")


def app(message: Message, context: Context) -> Message:
    fault = json.loads(os.environ["FAULTY_SITE"]) if "FAULTY_SITE" in os.environ else json.loads(FAULT_FILE.read_text())
    site = Path(str(context.node_config["site-file"])).stem
    here = site == fault["site"] and message.metadata.message_type == "train"
    if not here or message.metadata.group_id != str(fault["round"]):
        return real(message, context)
    how = fault["how"]
    if how == "raise":
        raise RuntimeError("/secret/path/of/PATIENT-7.dcm can't be read")
    if how == "die":
        os.kill(os.getpid(), signal.SIGKILL)
    if how == "hang":
        time.sleep(600)
    if how == "freeze":
        os.kill(os.getpid(), signal.SIGSTOP)
    reply = real(message, context)
    if how == "nan":
        arrays = {}
        for name, array in reply.content["update"].items():
            values = np.frombuffer(array.data, dtype=array.dtype).reshape(array.shape).copy()
            if values.dtype.kind == "f":
                values[...] = np.nan
            arrays[name] = values
        reply.content["update"] = to_record(arrays)
    return reply

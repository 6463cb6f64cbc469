"""The command `eucaim-fl` with a watch on it: when rounds start and, if wanted, when its steps of a round were at work.

Arguments are those of `eucaim-fl`. Stamps go to the file that DEPLOYMENT_STAMPS names, one JSON line each, by the clock
that all processes share; with DEPLOYMENT_PROFILE the functions named in STEPS are timed as well.
"""

from __future__ import annotations

import functools
import importlib
import json
import os
import sys
import threading
import time
from collections.abc import Callable, Mapping
from typing import Any

__all__ = ["PROFILE", "STAMPS", "STEPS", "stamp", "watch_steps"]

STAMPS, PROFILE = "DEPLOYMENT_STAMPS", "DEPLOYMENT_PROFILE"
_FED = "eucaim_fl.federation"
STEPS: Mapping[str, Mapping[str, str]] = {
    "train": {
        "coordinator: arrays to a record": f"{_FED}.coordinator:to_record",
        "coordinator: pack and seal": f"{_FED}.superlink_grid:SuperlinkGrid._sealed",
        "coordinator: push": f"{_FED}.superlink_grid:SuperlinkGrid._send",
        "coordinator: fetch": f"{_FED}.superlink_grid:fetch",
        "coordinator: open": f"{_FED}.superlink_grid:SuperlinkGrid._opened",
        "coordinator: judge": f"{_FED}.exchange:_judge",
        "coordinator: spool": "eucaim_fl.tracking.journal:Journal.spool",
        "coordinator: combine": f"{_FED}.coordinator:Coordinator._combine",
        "coordinator: hash the weights": f"{_FED}.coordinator:arrays_sha256",
        "coordinator: wait for the journal": f"{_FED}.coordinator:Coordinator._settle",
        "(beside) journal": "eucaim_fl.tracking.journal:Journal.commit",
    },
    "site": {
        "site: fetch": f"{_FED}.fleet:Fleet.fetch",
        "site: check, decide, hand to the worker": f"{_FED}.site_desk:Desk.take",
        "site: read the worker's answer": f"{_FED}.local_grid:LocalGrid.pull_messages",
        "site: gate": "eucaim_fl.site.border:Border.reasons_against",
        "site: pack": f"{_FED}.site_desk:pack",
        "site: digest": f"{_FED}.site_desk:digest",
        "site: audit and seal": "eucaim_fl.site.border:Border.released",
        "site: push": f"{_FED}.fleet:Fleet.reply",
    },
}
"""What a round consists of, by command: words → the function that is timed, as `module:name`."""


def stamp(**values: Any) -> None:
    """Append one line; a single write, so lines of several processes don't mix."""
    handle = os.open(os.environ[STAMPS], os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
    try:
        os.write(handle, json.dumps(values).encode() + b"\n")
    finally:
        os.close(handle)


def _timed(step: str, who: str, function: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(function)
    def timed(*args: Any, **kwargs: Any) -> Any:
        began, used = time.monotonic(), time.thread_time()
        try:
            return function(*args, **kwargs)
        finally:
            ended = time.monotonic()
            if ended - began > 0.001:  # polls that found nothing are no steps
                stamp(
                    step=step, who=who, began=began, ended=ended, cpu=time.thread_time() - used,
                    thread=threading.current_thread().name,
                )  # fmt: skip

    return timed


def watch_steps(command: str, who: str) -> None:
    """Time the steps of a command. A step whose function is not there any more is stamped as missing."""
    for step, place in STEPS.get(command, {}).items():
        module_name, _, name = place.partition(":")
        *owners, last = name.split(".")
        try:
            owner: Any = importlib.import_module(module_name)
            for part in owners:
                owner = getattr(owner, part)
            setattr(owner, last, _timed(step, who, getattr(owner, last)))
        except (ImportError, AttributeError):
            stamp(missing=step, who=who)


def _main() -> None:
    words = sys.argv[1:]
    who = words[words.index("--home") + 1].rstrip("/").rpartition("/")[2] if "--home" in words else words[0]
    if words[0] == "train":
        from eucaim_fl.federation.processes import warm_up

        warm_up()  # as the command itself does first
        from eucaim_fl.federation.progress import Listener, listening

        class _Watch(Listener):
            def round_started(self, number: int, sites: int) -> None:
                stamp(round=number, at=time.monotonic())

        context: Any = listening(_Watch())
    else:
        import contextlib

        context = contextlib.nullcontext()
    if os.environ.get(PROFILE) and words[:2] in (["site", "start"], ["train", *words[1:2]]):
        watch_steps(words[0], who)
    from eucaim_fl.cli import main

    with context:
        main()


if __name__ == "__main__":
    _main()

"""A grid without processes, and sites that answer by a formula."""

from __future__ import annotations

import itertools
import random
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flwr.app import Message, RecordDict
from flwr.serverapp import Grid
from flwr.supercore.run import Run
from flwr.supercore.task_identity import TaskIdentity

from eucaim_fl.config import ExperimentConfig
from eucaim_fl.federation.messages import from_record, read_instruction, reply_content
from eucaim_fl.plan import FederationPlan, make_plan
from eucaim_fl.records import ArraySpec
from eucaim_fl.site.report import SiteReport
from eucaim_fl.tracking.journal import Journal, JournalState

SPECS = (ArraySpec("count", (), "int64", False), ArraySpec("w", (3,), "float32", True))
WEIGHTS = {"count": np.array(0), "w": np.zeros(3, np.float32)}
Handler = Callable[[str, Message], Message | None]


class FakeGrid(Grid):
    """Calls a handler for every node when replies are pulled; None stands for silence. Replies come in random order."""

    def __init__(self, names: Iterable[str], handler: Handler, order: int = 0) -> None:
        TaskIdentity.task_id, TaskIdentity.run_id, TaskIdentity.node_id = 1, 1, 0
        self.names = dict(enumerate(names, start=1))
        self.handler, self.random, self.cancelled = handler, random.Random(order), list[str]()
        self.messages: dict[str, Message] = {}
        self._ids = itertools.count(1)
        self._run = Run.create_empty(1)

    def set_run(self, run: Run) -> None:
        self._run = run

    @property
    def run(self) -> Run:
        return self._run

    def create_message(self, content: RecordDict, message_type: str, dst_node_id: int, group_id: str, ttl: Any = None):
        return Message(content, dst_node_id, message_type, group_id=group_id, ttl=ttl)

    def get_node_ids(self) -> Iterable[int]:
        return list(self.names)

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        out = []
        for message in messages:
            identifier = str(next(self._ids))
            message.metadata.__dict__["_message_id"] = identifier
            self.messages[identifier] = message
            out.append(identifier)
        return out

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        replies, waiting = [], [i for i in message_ids if i in self.messages]
        self.random.shuffle(waiting)
        for identifier in waiting:
            message = self.messages[identifier]
            reply = self.handler(self.names[message.metadata.dst_node_id], message)
            if reply is not None:
                del self.messages[identifier]
                replies.append(reply)
        return replies

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> Iterable[Message]:
        return self.pull_messages(self.push_messages(messages))

    def wait(self, timeout: float) -> None:
        time.sleep(min(timeout, 0.01))

    def cancel(self, message_ids: Iterable[str]) -> None:
        self.cancelled += list(message_ids)
        for identifier in list(message_ids):
            self.messages.pop(identifier, None)


def report(plan: FederationPlan, kind: str, site: str, number: int, **changes: Any) -> SiteReport:
    """An honest site's report; site x has 10 patients, and its Dice is the same in every round."""
    values = {
        "kind": kind,
        "site": site,
        "plan_sha256": plan.sha256(),
        "round": number,
        "patients": 10,
        "cohort_sha256": "0" * 64,
        **changes,
    }
    if kind != "hello" and "metrics" not in changes:
        splits = ("validation",) if kind == "round" else ("validation", "test")
        values["metrics"] = tuple(
            {"split": s, "patients": 5, "values": {"dice": 0.5}, "sums": {"dice": (5.0, 2.5, 1.25)}} for s in splits
        )
    return SiteReport.model_validate(values)


def honest(
    plan: FederationPlan, steps: dict[str, float] | None = None, specs: tuple[ArraySpec, ...] = SPECS
) -> Handler:
    """Sites that move w by their own step (default: a letter's place in the alphabet) and count up."""

    def answer(site: str, message: Message) -> Message:
        instruction = read_instruction(message.content)
        kind = {"query": "hello", "train": "round", "evaluate": "final"}[message.metadata.message_type]
        update = {}
        if kind == "round":
            assert instruction.weights is not None
            arriving = from_record(instruction.weights, specs)
            step = (steps or {}).get(site, float(ord(site[0]) - 96))
            update = {name: np.zeros_like(array) for name, array in arriving.items()}
            update |= {"w": np.full(3, step, np.float32), "count": arriving["count"] + 1}
        return Message(reply_content(report(plan, kind, site, instruction.round), update, None), reply_to=message)

    return answer


@pytest.fixture
def make_federation(tmp_path: Path):
    """A plan over named sites, a journal at round 0, and the state to start from."""

    def make(names: str = "abc", folder: str = "run", **changes: Any) -> tuple[FederationPlan, Journal, JournalState]:
        values: dict[str, Any] = {
            "name": "fake",
            "rounds": 3,
            "sites": tuple(names),
            "task": {"name": "segmentation", "spatial_dims": 2, "labels": ["lesion"]},
            "model": {"name": "unet"},
            "training": {"local_steps": 1},
            "federation": {"quorum": 1, "quorum_wait_s": 0.0, "round_deadline_s": 1.0},
        }
        for key, value in changes.items():
            values[key] = {**values.get(key, {}), **value} if isinstance(value, dict) else value
        plan = make_plan(ExperimentConfig.model_validate(values), tuple(names))
        journal = Journal(tmp_path / folder)
        journal.begin(SPECS, WEIGHTS)
        return plan, journal, JournalState(0, SPECS, dict(WEIGHTS), {}, ())

    return make


@pytest.fixture
def fakes():
    """The pieces above, for tests that build their own."""
    return type("Fakes", (), {"Grid": FakeGrid, "honest": staticmethod(honest), "report": staticmethod(report),
                              "SPECS": SPECS, "WEIGHTS": WEIGHTS})  # fmt: skip

"""FedAvg as Flower ships it, over the same sites and their own training: what benchmarks compare with.

The server is `flwr.serverapp.strategy.FedAvg`; messages hold what its own guide has in them: arrays and a config to the
sites, arrays and the number of examples back. Nothing of the product's coordinator is used: no journal, no quorum, no
check of what comes.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
from flwr.app import Array as FlowerArray
from flwr.app import ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp.strategy import FedAvg

from eucaim_fl.arrays import Arrays
from eucaim_fl.errors import WorkerError
from eucaim_fl.federation.local_grid import LocalGrid
from eucaim_fl.federation.processes import call
from eucaim_fl.plan import FederationPlan, read_plan
from eucaim_fl.records import ArraySpec

__all__ = ["FlowerOutcome", "app", "train_with_flower"]

app = ClientApp()
_COUNTS = "counts"


@dataclass(frozen=True)
class FlowerOutcome:
    """The last model, how long the rounds took, and the bytes of arrays that went up and down."""

    arrays: Arrays
    seconds: float
    bytes_up: int
    bytes_down: int


@lru_cache(maxsize=64)
def _node(site_file: str, plan_json: str):  # type: ignore[no-untyped-def]  # a SiteNode, whose module brings torch
    from eucaim_fl.site.node import SiteNode

    return SiteNode(Path(site_file), read_plan(plan_json))


@app.train()
def train(message: Message, context: Context) -> Message:
    """One round at one site: from the arriving arrays to those after its local steps, and its training patients."""
    config = message.content.config_records["config"]
    node = _node(str(context.node_config["site-file"]), str(config["plan"]))
    arriving = _arrays(message.content.array_records["arrays"], node.specs())
    answer = node.round(int(str(config["server-round"])), arriving)
    after = {
        name: arriving[name] + change if np.issubdtype(change.dtype, np.floating) else change
        for name, change in answer.update.items()
    }
    content = RecordDict({"arrays": _record(after), _COUNTS: ConfigRecord({"num-examples": answer.report.patients})})
    return Message(content, reply_to=message)


def _record(arrays: Arrays) -> ArrayRecord:
    return ArrayRecord({name: FlowerArray(arrays[name]) for name in sorted(arrays)})


def _arrays(record: ArrayRecord, specs: Iterable[ArraySpec]) -> Arrays:
    """As the network has them: averaging turns whole numbers into fractions, which are rounded."""
    found: Arrays = {}
    for spec in specs:
        array = record[spec.name].numpy()
        kind = np.dtype(spec.dtype)
        found[spec.name] = (array if kind.kind == "f" else np.rint(array)).astype(kind).reshape(spec.shape)
    return found


class _Grid(LocalGrid):
    """Counts bytes, and fails where the strategy would go on without a site: then it is another comparison.

    Pipes of this machine carry no metric records, so numbers of examples travel as configuration.
    """

    bytes_up = bytes_down = 0

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> Iterable[Message]:
        """Push messages and wait for their replies.

        Raises WorkerError if a site does not answer, or with an error.
        """
        sent = list(messages)
        replies = list(super().send_and_receive(sent, timeout=timeout))
        if len(replies) < len(sent) or any(reply.has_error() for reply in replies):
            raise WorkerError(
                "A site did not answer Flower's FedAvg.",
                fix="See sites.log in the benchmark's folder, and start again.",
            )
        self.bytes_down += sum(_size(message) for message in sent)
        self.bytes_up += sum(_size(reply) for reply in replies)
        for reply in replies:
            counts = reply.content.config_records[_COUNTS]
            del reply.content[_COUNTS]
            reply.content["metrics"] = MetricRecord({"num-examples": int(str(counts["num-examples"]))})
        return replies


def _size(message: Message) -> int:
    return sum(len(array.data) for record in message.content.array_records.values() for array in record.values())


def train_with_flower(
    plan: FederationPlan, site_files: Mapping[str, Path], workers: int, log_file: Path
) -> FlowerOutcome:
    """Train a plan's network by Flower's FedAvg, weighted by training patients, all sites in each round.

    The same initial weights, local steps and schedule as the product's own rounds; no evaluation by Flower.
    Raises WorkerError if a site does not answer in a round.
    """
    logging.getLogger("flwr").setLevel(logging.ERROR)
    specs, weights = call("eucaim_fl.site.node:initial_arrays", plan)
    everyone = len(site_files)
    grid = _Grid(dict(sorted(site_files.items())), workers, app=f"{__name__}:app", log_file=log_file)
    strategy = FedAvg(fraction_train=1.0, fraction_evaluate=0.0, min_train_nodes=everyone, min_available_nodes=everyone)
    try:
        started = time.monotonic()
        result = strategy.start(
            grid,
            _record(weights),
            num_rounds=plan.rounds,
            timeout=plan.participation.round_deadline_s,
            train_config=ConfigRecord({"plan": plan.canonical_json()}),
        )
        seconds = time.monotonic() - started
    finally:
        grid.close()
    return FlowerOutcome(_arrays(result.arrays, specs), seconds, grid.bytes_up, grid.bytes_down)

"""The Flower `ClientApp` of a site: the same object on this machine, on a Ray cluster and in hospitals.

The site file's path comes from the node's own configuration (`site-file`), never from the coordinator.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
from dataclasses import replace
from functools import lru_cache
from pathlib import Path

import numpy as np
from flwr.app import Context, Message
from flwr.clientapp import ClientApp
from flwr.clientapp.typing import ClientAppCallable

import eucaim_fl.federation.preload  # noqa: F401  (so that a process of Ray, too, has it before the first message)
from eucaim_fl.arrays import GUIDE, Arrays
from eucaim_fl.errors import EucaimError, GateError, PlanError, SiteFileError
from eucaim_fl.federation.local_grid import BORDER
from eucaim_fl.federation.messages import (
    Instruction,
    from_record,
    read_instruction,
    refusal_content,
    reply_content,
)
from eucaim_fl.federation.model_files import arrived_files
from eucaim_fl.plan import read_plan
from eucaim_fl.site.answers import Answer
from eucaim_fl.site.gate import refusals
from eucaim_fl.site.judging import JudgingNode
from eucaim_fl.site.node import SiteNode
from eucaim_fl.sitefile import load_site_file

__all__ = ["SITE_FILES_VARIABLE", "app", "asked"]

SITE_FILES_VARIABLE = "EUCAIM_FL_SITE_FILES"
"""On Ray, whose nodes have no configuration of their own: a JSON list of site files, by partition number."""

_log = logging.getLogger("eucaim_fl.site")


def _site_file(context: Context) -> Path:
    own = context.node_config.get("site-file")
    if isinstance(own, str):
        return Path(own)
    partition = context.node_config.get("partition-id")
    files = json.loads(os.environ.get(SITE_FILES_VARIABLE, "[]"))
    if isinstance(partition, int) and 0 <= partition < len(files):
        return Path(files[partition])
    raise SiteFileError("This node's configuration names no site file.", fix="Set site-file in its node-config.")


@lru_cache(maxsize=256)
def _node(site_file: Path, plan_json: str, _state: tuple[str, ...]) -> SiteNode | JudgingNode:
    plan = read_plan(plan_json)
    return SiteNode(site_file, plan) if plan.validation is None else JudgingNode(site_file, plan)


def _state(site_file: Path) -> tuple[str, ...]:
    """Digests of what the hospital wrote: a change opens the cohort anew."""
    policy = load_site_file(site_file).policy_path(site_file)
    return tuple(
        hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else ""
        for path in filter(None, (site_file, policy))
    )


def _safely(message: Message, context: Context, call_next: ClientAppCallable) -> Message:
    """Outermost layer: no exception leaves but as code and safe text; the rest goes to the local log."""
    try:
        return call_next(message, context)
    except EucaimError as problem:
        _log.error("%s", problem.for_terminal())
        code, reason = problem.code, problem.message
    except MemoryError:
        _log.exception("out of memory")
        code, reason = "EFL303", "The site ran out of memory."
    except Exception:  # noqa: BLE001  whatever it is, its text must not leave
        _log.exception("unexpected failure")
        code, reason = "EFL000", "The site's client failed unexpectedly; its local log says how."
    return Message(refusal_content(code, reason, _own_name(context)), reply_to=message)


def _own_name(context: Context) -> str:
    try:
        return load_site_file(_site_file(context)).name
    except EucaimError:
        return ""


app = ClientApp(mods=[_safely])


def _answered(message: Message, context: Context, node: SiteNode | JudgingNode, answer: Answer) -> Message:
    reasons = refusals(answer, node.plan, node.specs() if answer.update else (), node.bounds)
    if reasons:
        raise GateError(f"The site's gate stopped the reply: {'; '.join(reasons)}.")
    if isinstance(node, JudgingNode) and not context.node_config.get(BORDER):
        node.remember(answer)
    return Message(reply_content(answer.report, answer.update, answer.pictures), reply_to=message)


def asked(message: Message, context: Context) -> tuple[SiteNode | JudgingNode, Instruction]:
    """The site's client for the plan of a message, which is kept from message to message, and what is asked.

    Raises PlanError or SiteFileError if either can't be read, and what `SiteNode` raises.
    """
    instruction = read_instruction(message.content)
    site_file = _site_file(context)
    return _node(site_file, instruction.plan_json, _state(site_file)), instruction


@app.query()
def hello(message: Message, context: Context) -> Message:
    """Open the cohort and say how many patients can train."""
    node, instruction = asked(message, context)
    return _answered(message, context, node, node.hello(instruction.past))


def _training(node: SiteNode | JudgingNode) -> SiteNode:
    """Raises PlanError if the plan trains nothing."""
    if isinstance(node, JudgingNode):
        raise PlanError("The plan trains nothing.", fix="Ask for its validation.")
    return node


@app.query("statistics")
def statistics(message: Message, context: Context) -> Message:
    """Before the first round: sums over the training patients."""
    node = _training(asked(message, context)[0])
    return _answered(message, context, node, node.statistics())


def _weights(node: SiteNode, instruction: Instruction) -> Arrays:
    """The arriving weights: exactly the arrays of the plan's network that travel, and under SCAFFOLD the common control
    variate beside them, which is left out where it is still zero.

    Raises PlanError if they are not, or if a control variate is not finite: it is added to every step's gradient.
    """
    record = instruction.weights
    if record is None:
        raise PlanError("The instruction holds no weights.")
    specs = node.specs()
    if node.plan.method.objective.name == "scaffold" and any(name.startswith(GUIDE) for name in record):
        guides = (replace(spec, name=GUIDE + spec.name) for spec in specs if spec.trainable)
        specs = (*specs, *guides)
    arrays = from_record(record, specs, PlanError)
    for name, array in arrays.items():
        if name.startswith(GUIDE) and not np.isfinite(array).all():
            raise PlanError(f"Array '{name}', which the method tells the sites, is not finite.")
    return arrays


@app.train()
def train(message: Message, context: Context) -> Message:
    """One exchange: evaluate the arriving weights, then train from them."""
    found, instruction = asked(message, context)
    node = _training(found)
    return _answered(
        message, context, node, node.round(instruction.round, _weights(node, instruction), instruction.past)
    )


@app.evaluate()
def evaluate(message: Message, context: Context) -> Message:
    """The last exchange: evaluate the final weights; of a validation the only one: judge frozen models."""
    node, instruction = asked(message, context)
    if isinstance(node, JudgingNode):
        files = arrived_files(instruction.weights, node.asked)
        return _answered(message, context, node, node.validate(instruction.round, files))
    return _answered(
        message, context, node, node.final(instruction.round, _weights(node, instruction), instruction.past)
    )

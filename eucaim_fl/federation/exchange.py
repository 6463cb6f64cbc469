"""One instruction to several nodes, and their answers as they come: each judged before anybody uses it."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import groupby
from typing import Any, Literal

import numpy as np
from flwr.app import ArrayRecord, Message, RecordDict
from flwr.serverapp import Grid

from eucaim_fl.errors import ReplyError, SealError
from eucaim_fl.federation.local_grid import DEADLINE, LOST, SEAL
from eucaim_fl.federation.messages import Refusal, Reply, instruction_content, read_reply
from eucaim_fl.plan import FederationPlan
from eucaim_fl.records import ArraySpec, Participation, Past
from eucaim_fl.site.disclosure import base_name
from eucaim_fl.site.gate import update_norm
from eucaim_fl.site.report import SiteReport, allowed_metrics
from eucaim_fl.site.statistics import check_statistics
from eucaim_fl.validation.choice import best_model
from eucaim_fl.validation.pooling import check_metrics
from eucaim_fl.validation.record import check_record
from eucaim_fl.validation.signed import RecordSignature, signed_by

__all__ = ["Answered", "Question", "ask"]

_POLL_S, _LONGEST_POLL_S, _LATE = 0.25, 2.0, 0.05
"""A SuperLink is asked every so often, and less often the longer an answer takes: it is seen at most 5 % later."""
_TELL_AFTER_S = 30.0
_PULL_AT_ONCE = 8
_LARGEST_CHANGE = 1e9
_LARGEST_MM = 1e6
_MEANS = ("dice", "hd95_mm", "brier")
_TYPES = {"hello": "query", "statistics": "query.statistics", "round": "train", "final": "evaluate"}


@dataclass(frozen=True)
class Question:
    """What is asked: the kind of exchange, its round, the plan, the model's arrays, the arriving weights.

    pasts: site → what it is told of the rounds before; nothing to a site that is not in it.
    """

    kind: Literal["hello", "statistics", "round", "final"]
    round: int
    plan: FederationPlan
    specs: Sequence[ArraySpec] = ()
    weights: ArrayRecord | None = None
    pasts: Mapping[str, Past] = field(default_factory=dict)


@dataclass(frozen=True)
class Answered:
    """One node's answer. target: the name it was asked under; reply: only if it counts.

    claims: the site's own name, where the answer gave one. signed: of its record of frozen models, verified.
    """

    target: str
    participation: Participation
    reply: Reply | None = None
    claims: str = ""
    signed: RecordSignature | None = None


def ask(
    grid: Grid,
    question: Question,
    targets: Mapping[str, int],
    announced: Mapping[str, tuple[int, str]],
    meanwhile: Callable[[], Any] = lambda: None,
    waiting: Callable[[list[str], float], Any] = lambda sites, seconds: None,
) -> Iterator[Answered]:
    """Send one question to all targets (name → node id), yield answers as they arrive.

    Ends when all have answered or `round_deadline_s` is over; those that did not answer are yielded as such, and a
    grid that can end a silent process does. A grid that knows its sites' keys (`site_keys`, name → public key) takes no
    record of frozen models without its site's signature.
    announced: site → training patients and cohort fingerprint, as said at hello.
    meanwhile: called about four times a second. waiting: called with those that have not answered, and the seconds
    since they were asked, after 30 s and each time that twice as long has passed.
    """
    size = sum(len(a.data) for a in question.weights.values()) if question.weights is not None else 0
    deadline_s = question.plan.participation.round_deadline_s
    targets = dict(sorted(targets.items(), key=lambda target: _counted(question, target[0])))
    messages = [
        Message(content, targets[name], _TYPES[question.kind], group_id=str(question.round), ttl=deadline_s)
        for content, names in _contents(question, targets)
        for name in names
    ]
    # A grid that itself ends what is too slow counts from when a site starts, not from when it is queued.
    patience_s = deadline_s * (len(targets) + 1) if getattr(grid, "keeps_deadlines", False) else deadline_s
    keys: Mapping[str, str] | None = getattr(grid, "site_keys", None)
    sent, tell_at_s, look_at_s = time.monotonic(), _TELL_AFTER_S, 0.0
    pending = dict(zip(grid.push_messages(messages), targets, strict=True)) if messages else {}
    del messages
    while pending and (left := patience_s - (time.monotonic() - sent)) > 0:
        _pause(grid, min(_POLL_S, left))
        waited = time.monotonic() - sent
        due = waited >= look_at_s or waited >= patience_s or hasattr(grid, "wait")
        identifiers = list(pending) if due else []
        look_at_s = waited + min(_LATE * waited, _LONGEST_POLL_S) if identifiers else look_at_s
        for start in range(0, len(identifiers), _PULL_AT_ONCE):
            for message in grid.pull_messages(identifiers[start : start + _PULL_AT_ONCE]):
                target = pending.pop(message.metadata.reply_to_message_id, None)
                if target is not None:
                    answered = _verified(_judge(target, question, announced, message), keys)
                    seconds = answered.reply.report.seconds if answered.reply else time.monotonic() - sent
                    took = replace(answered.participation, seconds=round(seconds, 3), bytes_down=size)
                    yield replace(answered, participation=took)
                    del answered
                del message
        meanwhile()
        if pending and time.monotonic() - sent >= tell_at_s:
            waiting(list(pending.values()), tell_at_s)
            tell_at_s *= 2
    if pending:
        cancel = getattr(grid, "cancel", None)
        if cancel is not None:
            cancel(list(pending))
        for target in pending.values():
            yield Answered(
                target,
                Participation(
                    target,
                    "deadline",
                    "EFL303",
                    f"No answer within {deadline_s:g} s.",
                    seconds=round(time.monotonic() - sent, 3),
                    bytes_down=size,
                ),
            )


def _counted(question: Question, target: str) -> int:
    return question.pasts.get(target, Past()).counted or 0


def _contents(question: Question, targets: Iterable[str]) -> Iterator[tuple[RecordDict, Iterator[str]]]:
    """Each content with the targets, in their order, that get it: sites that are told the same share one."""
    text = question.plan.canonical_json()
    for past, names in groupby(targets, key=lambda name: question.pasts.get(name, Past())):
        yield instruction_content(text, question.round, question.weights, past), names


def _pause(grid: Grid, seconds: float) -> None:
    """Until something may have arrived: at once where the grid can tell, else after a while."""
    wait = getattr(grid, "wait", None)
    if wait is not None:
        wait(seconds)
    else:
        time.sleep(seconds)


def _judge(target: str, question: Question, announced: Mapping[str, tuple[int, str]], message: Message) -> Answered:
    """Whether an answer counts, and if not, why."""
    if message.has_error():
        code = message.error.code
        if code == DEADLINE:
            return Answered(target, Participation(target, "deadline", "EFL303", "The site did not answer in time."))
        if code == SEAL:
            return Answered(target, Participation(target, "rejected", "EFL306", message.error.reason or ""))
        reason = (
            (message.error.reason or "") if code == LOST else f"The federation reported error {code} for this site."
        )
        return Answered(target, Participation(target, "lost", "EFL303", reason))
    try:
        reply = read_reply(message, question.specs)
        if isinstance(reply, Refusal):
            return Answered(target, Participation(target, "error", reply.code, reply.reason), claims=reply.site)
        _check(target, question, announced, reply)
    except ReplyError as problem:
        return Answered(target, Participation(target, "rejected", problem.code, problem.message))
    took_part = Participation(
        target,
        "took_part",
        patients=reply.report.patients,
        bytes_up=reply.bytes,
        update_norm=update_norm(reply.update),
        trained_norm=update_norm({s.name: reply.update[s.name] for s in question.specs if s.trainable}),
    )
    return Answered(target, took_part, reply, reply.report.site)


def _verified(answered: Answered, keys: Mapping[str, str] | None) -> Answered:
    """An answer that counted, with the signature of its record of frozen models; rejected if that does not fit."""
    reply = answered.reply
    if reply is None or reply.report.validated is None or keys is None:
        return answered
    try:
        signed = signed_by(reply.report.validated, reply.signature, keys.get(answered.target, ""))
    except SealError as problem:
        return Answered(answered.target, Participation(answered.target, "rejected", problem.code, problem.message))
    return replace(answered, signed=signed)


def _check(target: str, question: Question, announced: Mapping[str, tuple[int, str]], reply: Reply) -> None:
    """Raises ReplyError if a well-formed reply is not the answer to what was asked."""
    report = reply.report
    asked = (question.plan.sha256(), question.kind, question.round)
    if (report.plan_sha256, report.kind, report.round) != asked:
        raise ReplyError("The reply answers another plan, round or question.")
    if question.kind == "hello":
        return
    if report.site != target:
        raise ReplyError("The reply bears another site's name.")
    patients, cohort = announced.get(target, (0, ""))
    if not 1 <= report.patients <= patients or report.cohort_sha256 != cohort:  # fewer: consent may be withdrawn
        raise ReplyError("The patients are not those that the site announced: its cohort has changed.")
    if question.kind == "statistics":
        check_statistics(report, question.plan)
        return
    if question.plan.validation is not None:
        if report.validated is None or report.validated.site != target or report.metrics:
            raise ReplyError("The reply holds no record of frozen models, or more than that.")
        check_record(report.validated, question.plan)
        return
    if report.validated is not None:
        raise ReplyError("The reply judges models that nobody asked about.")
    if question.kind == "round" and not reply.update:
        raise ReplyError("The reply holds no update.")
    if question.plan.privacy.mechanism != "none" and (report.train_loss is not None or report.seen):
        raise ReplyError("The reply tells of training what a plan with differential privacy keeps at the site.")
    _check_metrics(question, report)
    for name, array in reply.update.items():
        if not np.issubdtype(array.dtype, np.floating) or not array.size:
            continue
        largest = float(np.abs(array).max())
        if not np.isfinite(largest):
            raise ReplyError(f"Array '{name}' of the update is not finite.")
        if largest > _LARGEST_CHANGE:
            raise ReplyError(f"Array '{name}' of the update changes a weight by more than {_LARGEST_CHANGE:g}.")


def _check_metrics(question: Question, report: SiteReport) -> None:
    """Raises ReplyError if metrics are not those that were asked for, or can't be true."""
    plan = question.plan
    classes = len(plan.task.classes) if plan.task.name == "classification" else None
    measured = [(metrics.split, metrics.model) for metrics in report.metrics]
    if len(set(measured)) != len(measured) or not set(measured) <= _asked_for(question):
        raise ReplyError("The reply measures other patients or models than were asked for.")
    _check_models(question, report)
    for metrics in report.metrics:
        if not {*metrics.values, *metrics.sums} <= allowed_metrics(plan):
            raise ReplyError("The reply holds metrics that the plan does not ask for.")
        if any(not 0 <= v <= (_LARGEST_MM if n.startswith("hd95") else 2) for n, v in metrics.values.items()):
            raise ReplyError("A metric of the reply is out of its range.")
        for name, sums in metrics.sums.items():
            moments, largest = base_name(name) in _MEANS, _LARGEST_MM if name.startswith("hd95") else 2
            if moments and len(sums) == 3 and sums[1] > sums[0] * largest:
                raise ReplyError("A metric of the reply is out of its range.")
        check_metrics(metrics.plain(), classes=classes)


def _check_models(question: Question, report: SiteReport) -> None:
    """Raises ReplyError if not all models of a site are measured alike, or its choice does not follow from the figures.

    A site may choose none; which one it chooses, everybody can compute from what it tells.
    """
    personal = question.plan.method.personal
    candidates = personal.candidates()
    if question.kind == "final" and len(candidates) > 1:
        for split in {metrics.split for metrics in report.metrics}:
            if {metrics.model for metrics in report.metrics if metrics.split == split} != set(candidates):
                raise ReplyError("The reply measures some of the site's models only, and the plan asks for all.")
    if report.chosen is None:
        return
    if question.kind != "final" or not personal.choose or report.chosen not in candidates:
        raise ReplyError("The reply chooses a model that the plan does not let sites choose.")
    told = [metrics.plain() for metrics in report.metrics]
    if report.chosen != best_model(question.plan.task.name, candidates, told):
        raise ReplyError("The reply chooses a model that is not the best by the figures that it tells.")


def _asked_for(question: Question) -> set[tuple[str, str]]:
    """Which patients are measured under which models in an exchange."""
    candidates = question.plan.method.personal.candidates()
    if question.kind == "final":
        return {(split, model) for split in ("validation", "test") for model in candidates}
    measured = question.kind == "round" and question.plan.stopping.validates(question.round)
    return {("validation", candidates[0])} if measured else set()

"""What lies on a site's desk: the instruction that is worked on, those that wait, and the last answer.

One instruction is worked on at a time; those of other runs wait for their turn. What was answered is answered again
with the same bytes; what is asked again under a new number (the coordinator gave the site up for lost meanwhile) is not
worked on twice either.
"""

from __future__ import annotations

import logging
import threading
import time
from concurrent.futures import Future
from dataclasses import dataclass, field, replace
from typing import Any

from flwr.app import ConfigRecord, Message, RecordDict

from eucaim_fl.arrays import GUIDE
from eucaim_fl.errors import (
    AuditError,
    EucaimError,
    GateError,
    JournalError,
    PlanError,
    PolicyRefusalError,
    ReplyError,
    SealError,
    ServiceError,
    ServiceStateError,
    WorkerError,
)
from eucaim_fl.federation.fleet import Incoming
from eucaim_fl.federation.local_grid import LocalGrid
from eucaim_fl.federation.messages import (
    Refusal,
    Reply,
    read_instruction,
    read_reply,
    refusal_content,
    reply_content,
)
from eucaim_fl.federation.model_files import arrived_files
from eucaim_fl.federation.parcel import digest, pack, unpack
from eucaim_fl.federation.site_status import StatusFile
from eucaim_fl.plan import LARGEST_MODEL_BYTES
from eucaim_fl.records import ArraySpec
from eucaim_fl.seals import InstructionSeal
from eucaim_fl.site.border import Border, Task

__all__ = ["Desk"]

_log = logging.getLogger("eucaim_fl.site")
_MOST_WAITING = 3
_MOST_AGAIN = 5
_LOOK_S = 10.0
_START_S = 180.0
_QUESTIONS = {"query": "hello", "query.statistics": "statistics", "train": "round", "evaluate": "final"}


@dataclass
class _Answered:
    """The last answer, kept until the next instruction, in case it was lost on its way.

    specs: of the arrays that were asked for; None if it was a refusal, which may not hold any more.
    """

    seal: InstructionSeal
    content: RecordDict
    specs: tuple[ArraySpec, ...] | None
    task: Task | None = None
    again: int = 0


@dataclass
class _Work:
    """What the worker is at."""

    incoming: Incoming
    task: Task
    specs: tuple[ArraySpec, ...]
    message_id: str
    started: float
    looked: float = field(default_factory=time.monotonic)


@dataclass
class _Waiting:
    """An instruction of another run than the one that is worked on."""

    incoming: Incoming
    seal: InstructionSeal
    packed: RecordDict


def _size(packed: RecordDict) -> int:
    """Bytes of a packed message: its arrays and its texts, without the seal, which comes after the count."""
    arrays = sum(len(a.data) for record in packed.array_records.values() for a in record.values())
    texts = [record for name, record in packed.config_records.items() if name != "seal"]
    return arrays + sum(len(str(value)) for record in texts for value in record.values())


def _same_question(one: InstructionSeal, other: InstructionSeal) -> bool:
    """Whether two instructions ask for the same work, whatever their numbers."""
    return (one.plan, one.kind, one.round, one.content) == (other.plan, other.kind, other.round, other.content)


class Desk:
    """Decides by the border, lets the worker work, and puts answers into the outbox. It knows no line."""

    def __init__(
        self, border: Border, status: StatusFile, worker: Future[LocalGrid], stopping: threading.Event
    ) -> None:
        """worker: a grid of one site, which may still be starting. stopping: ends waiting for its answers."""
        self._border, self._status, self._worker, self._stopping = border, status, worker, stopping
        self._work: _Work | None = None
        self._waiting: list[_Waiting] = []
        self._answered: _Answered | None = None
        self.outbox: tuple[Incoming, RecordDict] | None = None

    # --- instructions -----------------------------------------------------------------------------------------

    def take(self, incoming: Incoming, seal: InstructionSeal, packed: RecordDict) -> None:
        """Begin with an instruction; what goes wrong becomes a refusal. Raises AuditError, JournalError."""
        try:
            self._begin(incoming, seal, packed)
        except (AuditError, JournalError):
            raise
        except EucaimError as problem:
            _log.error("%s", problem.for_terminal())
            self._refuse(incoming, seal, problem)
        except Exception:  # noqa: BLE001  one instruction must not end the client, whatever is wrong with it
            _log.exception("an instruction could not be taken in")
            self._refuse(incoming, seal, ServiceError("The site's client failed over the instruction."))

    def take_next(self) -> None:
        """Begin with the next instruction that waits, if the worker is free."""
        while self._waiting and self._work is None and self.outbox is None:
            one = self._waiting.pop(0)
            if one.incoming.seconds_left > 0:
                self.take(one.incoming, one.seal, one.packed)

    def word(self, seal: InstructionSeal) -> RecordDict:
        """The answer to a probe: the answer itself, or a sealed word about how far it is. Raises AuditError."""
        if self._answered is not None and self._answered.seal.nonce == seal.nonce:
            self.outbox = None
            return self._once_more(self._answered)
        known = {one.seal.nonce for one in self._waiting} | ({self._work.task.seal.nonce} if self._work else set())
        state = "working" if seal.nonce in known else "unknown"
        content = RecordDict({"word": ConfigRecord({"state": state})})
        content["seal"] = ConfigRecord(dict(self._border.word(seal, state, digest(content))))
        return content

    def _begin(self, incoming: Incoming, seal: InstructionSeal, packed: RecordDict) -> None:
        """Decide, and hand the instruction to the worker, unless it was done, is under way, or has to wait."""
        if self._answered is not None and self._answered.seal.nonce == seal.nonce:
            self.outbox = (incoming, self._once_more(self._answered))
            return
        for one in self._waiting:
            if one.seal.nonce == seal.nonce:
                one.incoming = incoming
                return
        work = self._work
        if work is not None and work.task.seal.nonce == seal.nonce:
            work.incoming = incoming  # it was sent again; the answer goes to the last one
            return
        content = unpack(packed, PlanError)
        del content["seal"]
        if seal.kind != _QUESTIONS.get(incoming.message.metadata.message_type):
            raise SealError("The instruction is of another kind than its seal says.")
        instruction = read_instruction(content)
        holder = content.config_records["instruction"].get("holder_signature", "")
        task = self._border.admit(seal, instruction.plan_json, instruction.round, str(holder))
        self._status.instruction(seal, task.plan.name)
        if work is not None and work.task.seal.plan != seal.plan:
            self._let_wait(incoming, seal, packed)
            return
        _log.info("%s of plan %s (%s), round %d: allowed", seal.kind, task.plan.name, seal.plan[:12], seal.round)
        if work is not None and _same_question(work.task.seal, seal):
            work.incoming, work.task = incoming, replace(task, ledger_count=work.task.ledger_count)
            return
        if work is not None:
            _log.warning("the coordinator asks for something else: what was under way is given up")
            self._give_up()
        if self._answer_again(incoming, task):
            return
        record = instruction.weights
        specs = tuple(
            ArraySpec(n, tuple(a.shape), a.dtype, trainable=True)
            for n, a in (record or {}).items()
            if not n.startswith(GUIDE)
        )
        if task.plan.validation is not None and seal.kind == "final":
            arrived_files(record, task.plan.validation)
        if sum(len(a.data) for a in (record or {}).values()) > LARGEST_MODEL_BYTES:
            raise PlanError("The arriving model is larger than any that is accepted.")
        ttl = max(1.0, min(seal.deadline_s, incoming.seconds_left, task.longest_s))
        question = Message(content, 1, incoming.message.metadata.message_type, group_id=str(seal.round), ttl=ttl)
        (identifier,) = self._grid().push_messages([question])
        self._work = _Work(incoming, task, specs if seal.kind == "round" else (), identifier, time.monotonic())
        self._status.working(seal, task.plan.name)

    def _grid(self) -> LocalGrid:
        """The worker, once it has started. Raises WorkerError if it can't."""
        try:
            return self._worker.result(_START_S)
        except Exception:  # noqa: BLE001  whatever it is, the log has it and the coordinator hears of it
            _log.exception("the worker can't be started")
            raise WorkerError("The site's worker can't be started.") from None

    def _once_more(self, answered: _Answered) -> RecordDict:
        """An answer that was lost on its way, recorded anew; nothing but a refusal if it may not leave any more.

        Raises AuditError.
        """
        if answered.task is not None:
            try:
                answered.again += 1
                if answered.again > _MOST_AGAIN:
                    raise GateError("The answer was sent as often as it is sent.")
                self._border.sent_again(answered.task, digest(answered.content), _size(answered.content))
            except GateError as problem:
                content = pack(refusal_content(problem.code, problem.message, self._border.invitation.site))
                told = (digest(content), _size(content))
                stamped = self._border.withheld(answered.seal, problem, (problem.message,), told)
                content["seal"] = ConfigRecord(dict(stamped))
                self._answered = _Answered(answered.seal, content, None)
                return content
        return answered.content

    def _let_wait(self, incoming: Incoming, seal: InstructionSeal, packed: RecordDict) -> None:
        """Keep an instruction of another run for later; it takes the place of an older one of its run."""
        others = [one for one in self._waiting if one.seal.plan != seal.plan]
        if len(others) >= _MOST_WAITING:
            raise ServiceStateError("The site works for other runs now.")
        self._waiting = [*others, _Waiting(incoming, seal, packed)]

    def _answer_again(self, incoming: Incoming, task: Task) -> bool:
        """Answer from the last answer, if it was to the same question: gate, record and seal anew, but no work."""
        last = self._answered
        if last is None or last.specs is None or task.seal.kind == "hello" or not _same_question(last.seal, task.seal):
            return False
        content = unpack(last.content, ReplyError)
        del content["seal"]
        if last.task is not None:  # what the answer cost was charged when it was made
            task = replace(task, ledger_count=last.task.ledger_count)
        self._answer(
            _Work(incoming, task, last.specs, "", time.monotonic()), Message(content, reply_to=incoming.message)
        )
        return True

    def _give_up(self) -> None:
        if self._work is not None:
            self._worker.result().cancel([self._work.message_id])
        self._work = None
        self._status.working(None, "")

    # --- answers ----------------------------------------------------------------------------------------------

    def wait(self, seconds: float) -> bool:
        """Wait for the worker for a while; True if there is an answer to send. Raises AuditError."""
        if self._work is None:
            self._stopping.wait(seconds)
            return False
        worker = self._worker.result()
        self._stop_if_forbidden(self._work)
        if self._work is None:
            return self.outbox is not None
        worker.wait(seconds)
        for message in worker.pull_messages([self._work.message_id]):
            self._answer(self._work, message)
            return True
        return False

    def _stop_if_forbidden(self, work: _Work) -> None:
        """End work on a plan that was refused meanwhile. Raises AuditError."""
        if time.monotonic() < work.looked + _LOOK_S:
            return
        work.looked = time.monotonic()
        objections = self._border.objections(work.task)
        if objections:
            _log.warning("what was under way is given up: %s", "; ".join(objections))
            self._give_up()
            self._refuse(work.incoming, work.task.seal, PolicyRefusalError(f"Stopped: {'; '.join(objections)}."))

    def _answer(self, work: _Work, message: Message) -> None:
        self._work = None
        self._status.working(None, "")
        seal = work.task.seal
        try:
            reply = self._read(message, work)
        except EucaimError as problem:
            _log.error("%s", problem.for_terminal())
            self._refuse(work.incoming, seal, problem)
            return
        reasons = self._border.reasons_against(work.task, reply, work.specs)
        if reply.report.site != seal.site:
            reasons = (*reasons, "a report that bears another site's name")
        if reasons:
            stopped = GateError(f"The site's gate stopped the reply: {'; '.join(reasons)}.")
            _log.error("%s", stopped.message)
            self._refuse(work.incoming, seal, stopped, reasons)
            return
        content = pack(reply_content(reply.report, reply.update, reply.pictures, self._border.signature(reply)))
        stamped = self._border.released(work.task, reply, digest(content), _size(content))
        self._ready(work.incoming, seal, content, stamped, work)
        self._status.contributed(seal, work.task.plan.name)
        _log.info("answered %s, round %d, after %.1f s", seal.kind, seal.round, time.monotonic() - work.started)

    @staticmethod
    def _read(message: Message, work: _Work) -> Reply:
        """The worker's answer, checked like one from outside. Raises what it refused with, ReplyError, WorkerError."""
        if message.has_error():
            raise WorkerError("The site's worker ended, or did not answer in time.")
        answer = read_reply(message, work.specs)
        if isinstance(answer, Refusal):
            problem = EucaimError(answer.reason)
            problem.code = answer.code
            raise problem
        if (answer.report.kind, answer.report.round) != (work.task.seal.kind, work.task.seal.round):
            raise ReplyError("The worker answered another question.")
        return answer

    def _refuse(
        self, incoming: Incoming, seal: InstructionSeal, problem: EucaimError, reasons: tuple[str, ...] = ()
    ) -> None:
        """Answer with a code and safe text."""
        content = pack(refusal_content(problem.code, problem.message, self._border.invitation.site))
        told = (digest(content), _size(content))
        stamped = self._border.withheld(seal, problem, reasons or (problem.message,), told)
        self._ready(incoming, seal, content, stamped)
        self._status.problem(problem)

    def _ready(
        self,
        incoming: Incoming,
        seal: InstructionSeal,
        content: RecordDict,
        stamped: dict[str, Any],
        work: _Work | None = None,
    ) -> None:
        content["seal"] = ConfigRecord(dict(stamped))
        self.outbox = (incoming, content)
        self._answered = _Answered(seal, content, *((work.specs, work.task) if work else (None, None)))

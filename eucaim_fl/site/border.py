"""The one way into a site and out of it: who asks, may they, what leaves, and the record of it before it leaves.

The border holds the keys, the policy and the audit log. It sees plans and answers, never images, and loads neither
torch nor Flower; whoever carries messages hands them in as plain values.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from itertools import islice
from pathlib import Path
from typing import Any

from pydantic import JsonValue

from eucaim_fl import __version__
from eucaim_fl.durable import write_atomically
from eucaim_fl.enrolment import Invitation, read_invitation
from eucaim_fl.errors import (
    EucaimError,
    GateError,
    PolicyError,
    SealError,
    SiteFileError,
)
from eucaim_fl.permits import stated_names
from eucaim_fl.plan import FederationPlan, read_plan
from eucaim_fl.records import ArraySpec
from eucaim_fl.seals import InstructionSeal, ReplySeal, read_instruction_seal, sealed
from eucaim_fl.signing import PrivateKey
from eucaim_fl.site.askable import check_network, check_round
from eucaim_fl.site.audit import AuditLog
from eucaim_fl.site.charges import known_head, ledger_count, ledger_entry, owed
from eucaim_fl.site.differencing import Told
from eucaim_fl.site.gate import GateBounds, Outgoing, refusals, update_norm
from eucaim_fl.site.home import SiteHome
from eucaim_fl.site.nonces import Nonces
from eucaim_fl.site.policy import LoadedPolicy, load_policy
from eucaim_fl.site.policy_decision import Decision, Situation, bounds, decide
from eucaim_fl.site.sent_copy import keep_copy
from eucaim_fl.sitefile import SiteFile, load_site_file
from eucaim_fl.validation.signed import PURPOSE, record_sha256, statement

__all__ = ["Border", "Task"]

_MOST_PLANS = 1000
_SMALL_BYTES = 2**20
_IGNORED_EVERY_S = 60.0
_SECOND_LOOK_S = 0.5


@dataclass(frozen=True)
class Task:
    """An instruction that may be worked on. ledger_count: records of the privacy ledger before the work."""

    seal: InstructionSeal
    plan: FederationPlan
    loaded: LoadedPolicy
    situation: Situation
    ledger_count: int = 0

    @property
    def longest_s(self) -> float:
        """Seconds after which the site stops working on one instruction."""
        return 60.0 * (self.loaded.policy.work.minutes or 0.0)


def _now() -> datetime:
    return datetime.now(UTC)


class Border:
    """One site's border. Policy and site file are read anew for every instruction: what IT changes counts at once."""

    def __init__(self, home: SiteHome, now: Callable[[], datetime] = _now, keep_sent: Path | None = None) -> None:
        """Open the home's keys, audit log and memory.

        Raises ServiceStateError if the home is not set up, KeyFileError, EnrolmentError, SiteFileError, PolicyError,
        AuditError or SealError (the memory of instructions) if a part of it can't be used.
        """
        self.home, self._now, self._keep_sent = home.require(), now, keep_sent
        self._key = PrivateKey.load(home.site_key)
        self.invitation: Invitation = _invitation(home.federation_file)
        self.site, _ = self.read_files()
        self.audit = AuditLog(home.audit_folder, self._key, self.invitation.site, clock=now)
        self._ignored, self._ignored_at = 0, 0.0
        self._nonces = Nonces(home.folder / "state" / "nonces.json")

    def read_files(self) -> tuple[SiteFile, LoadedPolicy]:
        """The site file and the policy as they are now.

        Raises SiteFileError or PolicyError if one can't be used, or they do not belong together.
        """
        site = load_site_file(self.home.site_file)
        if site.name != self.invitation.site:
            raise SiteFileError(
                "The site file has another name than the invitation.",
                fix=f"Set name: {self.invitation.site}.",
                local_detail=str(self.home.site_file),
            )
        if site.policy_path(self.home.site_file) != self.home.policy_file.absolute():
            raise SiteFileError(
                "The site file does not name the policy of this home.",
                fix="Set policy: policy.yaml.",
                local_detail=str(self.home.site_file),
            )
        return site, load_policy(self.home.policy_file)

    def _read_twice(self) -> tuple[SiteFile, LoadedPolicy]:
        """As `read_files`; a file that an editor has half written gets a second look before work is given up."""
        try:
            return self.read_files()
        except EucaimError:
            time.sleep(_SECOND_LOOK_S)
            return self.read_files()

    def started(self, pid: int) -> None:
        """Note that the client runs. Raises AuditError."""
        _, loaded = self.read_files()
        self.audit.append("started", {"version": __version__, "policy_sha256": loaded.sha256, "pid": pid})

    def stopped(self, pid: int) -> None:
        """Note that the client ends. Raises AuditError."""
        self.audit.append("stopped", {"version": __version__, "policy_sha256": "", "pid": pid})

    def largest_incoming(self) -> int:
        """Bytes that an instruction may bring: as many as this site lets out in one message, since an update has the
        size of the model. Raises SiteFileError or PolicyError."""
        site, loaded = self.read_files()
        return bounds(loaded.policy, site.release).largest_bytes + _SMALL_BYTES

    def ignored(self, problem: EucaimError) -> None:
        """Record that a message was not from the coordinator, or not what it signed; nobody is answered.

        Whoever can reach the SuperLink can send such messages: at most one record a minute, with a count.
        Raises AuditError if it can't be recorded.
        """
        self._ignored += 1
        now = self._now().timestamp()
        if now - self._ignored_at < _IGNORED_EVERY_S:
            return
        self.audit.append("ignored", {"code": problem.code, "count": self._ignored})
        self._ignored, self._ignored_at = 0, now

    # --- in ---------------------------------------------------------------------------------------------------

    def identify(self, record: object, content: str) -> InstructionSeal:
        """Who sends an instruction, and to whom.

        record: the seal as it came; content: digest of the message that came with it.
        Raises SealError unless the coordinator of this federation signed these very bytes for this site.
        """
        seal = read_instruction_seal(record, self.invitation.coordinator_key)
        if (seal.federation, seal.site) != (self.invitation.federation, self.invitation.site):
            raise SealError("The instruction is for another site or federation.")
        if seal.content != content:
            raise SealError("The instruction was changed on its way.")
        return seal

    def admit(self, seal: InstructionSeal, plan_json: str, number: int, holder_signature: str) -> Task:
        """Decide on an instruction, by this site's policy; the decision is in the audit log when this returns.

        Raises SealError if it was played back or is about another plan than it says; PlanError if the plan is not one
        that can be run here; PolicyRefusalError, ApprovalPendingError or OutsideHoursError if the policy does not allow
        it now; SiteFileError or PolicyError if the site's files can't be used or the plan can't be kept; AuditError if
        the decision can't be recorded, JournalError if the instruction can't be noted.
        """
        now = self._now()
        self._nonces.accept(seal.nonce, seal.issued_at, int(now.timestamp()))
        plan = read_plan(plan_json)
        if plan.sha256() != seal.plan or number != seal.round:
            raise SealError("The instruction's seal is about another plan or round.")
        check_network(plan)
        check_round(plan, seal)
        self.site, loaded = self.read_files()
        times = 0 if seal.kind == "hello" else self.audit.times_asked(seal.plan, seal.kind, seal.round)
        situation = replace(self._situation(plan, holder_signature, now), times_asked=times)
        decision = decide(plan, loaded, situation)
        if not decision.refused:
            self._keep(plan)
        self._record_decision(seal, plan, loaded, decision)
        decision.raise_if_not_allowed()
        return Task(seal, plan, loaded, situation, ledger_count(self.site, plan, known_head(self.audit, plan)))

    def _situation(self, plan: FederationPlan, holder_signature: str, now: datetime) -> Situation:
        identity = plan.sha256()
        sent = self.audit.sent(identity)
        permit, _ = stated_names(plan.permit)
        return Situation(
            site=self.site.name,
            now=now,
            holder_signature=holder_signature,
            permit_plans=self.audit.permit_plans(permit) if permit else frozenset(),
            rounds_done=sent.rounds,
            bytes_sent=sent.bytes,
            bytes_sent_today=self.audit.sent_today(now),
            plans_today=self.audit.plans_allowed(now.replace(hour=0, minute=0, second=0, microsecond=0)),
            plans_ever=self.audit.plans_allowed(),
            approval=self.audit.approval(identity),
            confidential=self.site.release.data_is == "confidential",
        )

    def _keep(self, plan: FederationPlan) -> None:
        """Keep the plan's text for `policy explain` and `approve`."""
        folder = self.home.plans_folder
        path = folder / f"{plan.sha256()}.json"
        if path.exists():
            return
        try:
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            if sum(1 for _ in folder.iterdir()) >= _MOST_PLANS:
                raise PolicyError(
                    "The site keeps too many plans to take another.", fix="Remove old files from state/plans."
                )
        except OSError as problem:
            raise PolicyError("The site can't keep the plan.", local_detail=f"{folder}: {problem}") from None
        write_atomically(path, plan.canonical_json().encode())

    def _record_decision(
        self, seal: InstructionSeal, plan: FederationPlan, loaded: LoadedPolicy, decision: Decision
    ) -> None:
        verdict = "allow" if decision.allowed else "refuse" if decision.refused else "wait"
        asking = [clause for clause in decision.clauses if clause.key == "asking"]
        permit, holder = stated_names(plan.permit)
        verified = loaded.policy.asking.permits == "required" and all(clause.verdict == "allows" for clause in asking)
        self.audit.append(
            "decision",
            {
                "plan": seal.plan,
                "name": plan.name,
                "kind": seal.kind,
                "round": seal.round,
                "instruction": seal.nonce,
                "holder": holder if verified else "",
                "permit": permit if verified else "",
                "permit_unverified": plan.permit is not None and not verified,
                "purpose": plan.purpose,
                "verdict": verdict,
                "reasons": _list(clause.key for clause in (*decision.refused, *decision.waiting)),
                "policy_sha256": loaded.sha256,
            },
        )

    # --- out --------------------------------------------------------------------------------------------------

    def objections(self, task: Task) -> tuple[str, ...]:
        """What speaks against a plan by now: files, policy and decisions are looked at once more.

        Work takes hours, and a plan that was refused meanwhile, by a person or a line of the policy, gets no answer.
        Hours that are over stop no work that was begun in time; `work.minutes` does.
        Raises AuditError if the log can't be read.
        """
        return self._stands(task)[0]

    def _stands(self, task: Task) -> tuple[tuple[str, ...], GateBounds | None]:
        """What speaks against a plan by now; if nothing does, what the gate lets out, by the same reading of files."""
        try:
            self.site, loaded = self._read_twice()
        except EucaimError:
            return ("the site's own files can't be used",), None
        situation = self._situation(task.plan, task.situation.holder_signature, self._now())
        refused = decide(task.plan, loaded, situation).refused
        if refused:
            return (f"the site's policy no longer allows it: {', '.join(clause.key for clause in refused)}",), None
        return (), bounds(loaded.policy, self.site.release, situation)

    def reasons_against(self, task: Task, answer: Outgoing, specs: Sequence[ArraySpec]) -> tuple[str, ...]:
        """What speaks against an answer; specs: of the arrays that the instruction brought.

        Raises AuditError if the log can't be read.
        """
        objections, gate = self._stands(task)
        if gate is None:
            return objections
        unpaid = owed(self.site, task.plan, answer, gate, (task.seal.round, task.ledger_count))
        return (*refusals(answer, task.plan, specs, gate), *unpaid)

    def signature(self, answer: Outgoing) -> str:
        """This site's signature over what an answer tells of frozen models; empty where it tells nothing of any.

        To be asked for once nothing speaks against the answer, and before it is packed: it travels beside the report.
        """
        record = answer.report.validated
        return "" if record is None else self._key.sign(PURPOSE, statement(record))

    def released(self, task: Task, answer: Outgoing, digest: str, size: int) -> dict[str, str]:
        """Record an answer that leaves, and seal it. digest, size: of the packed message.

        Raises AuditError if it can't be recorded, JournalError if a copy was asked for and can't be kept, or the models
        whose figures leave can't be noted: then it must not leave.
        """
        record, judged = answer.report.validated, task.plan.validation
        if judged is not None and answer.report.tells_of_models():
            models = [model.sha256 for model in judged.models]
            Told(self.site.records_folder()).of_models(task.seal.plan, models)
        if self._keep_sent is not None:
            keep_copy(self._keep_sent, digest, answer)
        head = self.audit.append(
            "sent",
            {
                "plan": task.seal.plan,
                "kind": task.seal.kind,
                "round": task.seal.round,
                "instruction": task.seal.nonce,
                "digest": digest,
                "bytes": size,
                "arrays": len(answer.update),
                "patients": answer.report.patients,
                "metrics": {use: _list(names) for use, names in answer.report.told(task.plan).items()},
                "pictures": 0 if answer.pictures is None else len(answer.pictures),
                "update_norm": round(update_norm(answer.update), 6) if answer.update else None,
                **({} if record is None else {"record": record_sha256(record)}),
                **ledger_entry(self.site, task.plan),
            },
        )
        return self._seal(task.seal, "answer", digest, (head.count, head.hash))

    def sent_again(self, task: Task, digest: str, size: int) -> None:
        """Record that an answer which was lost on its way leaves once more, as it was sealed.

        Raises GateError if it may not leave any more, AuditError if it can't be recorded.
        """
        objections, gate = self._stands(task)
        if gate is None or size > gate.largest_bytes:
            told = "; ".join(objections) or "more bytes than this site permits"
            raise GateError(f"The site's gate stopped the reply: {told}.")
        about: dict[str, JsonValue] = {"plan": task.seal.plan, "kind": task.seal.kind, "round": task.seal.round}
        self.audit.append(
            "sent", {**about, "instruction": task.seal.nonce, "digest": digest, "bytes": size, "again": True}
        )

    def withheld(
        self, seal: InstructionSeal, problem: EucaimError, reasons: Sequence[str], message: tuple[str, int]
    ) -> dict[str, str]:
        """Record that only a coded reason leaves, and seal it. message: digest and size of the packed message.

        Raises AuditError if it can't be recorded.
        """
        head = self.audit.append(
            "withheld",
            {
                "plan": seal.plan,
                "kind": seal.kind,
                "round": seal.round,
                "instruction": seal.nonce,
                "code": problem.code,
                "digest": message[0],
                "bytes": message[1],
                "reasons": _list(reason[:200] for reason in reasons),
            },
        )
        return self._seal(seal, "answer", message[0], (head.count, head.hash))

    def word(self, seal: InstructionSeal, state: Any, digest: str) -> dict[str, str]:
        """A sealed word about an instruction under way (`working` or `unknown`); it says nothing else."""
        head = self.audit.head()
        return self._seal(seal, state, digest, (head.count, head.hash))

    def _seal(self, seal: InstructionSeal, state: Any, digest: str, head: tuple[int, str]) -> dict[str, str]:
        body = ReplySeal(
            federation=seal.federation,
            site=seal.site,
            plan=seal.plan,
            kind=seal.kind,
            round=seal.round,
            nonce=seal.nonce,
            state=state,
            content=digest,
            audit_count=head[0],
            audit_hash=head[1],
            audit_then=self.audit.hash_at(seal.audit_count) if seal.audit_count else "",
        )
        return sealed(body, self._key)


def _list(texts: Iterable[str]) -> list[JsonValue]:
    """At most 100 texts: a record of the log is small."""
    return list(islice(texts, 100))


def _invitation(path: Path) -> Invitation:
    """The invitation that this home was made from; that it is no longer open does not matter any more."""
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        raise SiteFileError("The federation's file can't be read.", local_detail=str(path)) from None
    return read_invitation(document, None)

"""What a site's client does with instructions, probes and a line that fails; the line and the worker are fakes."""

from __future__ import annotations

import hashlib
import os
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flwr.app import ConfigRecord, Message, RecordDict

from eucaim_fl.errors import (
    AuditError,
    EucaimError,
    JournalError,
    KeyFileError,
    LinkError,
    NotAdmittedError,
    RunFolderBusyError,
)
from eucaim_fl.federation import site_client, site_desk
from eucaim_fl.federation.fleet import Incoming
from eucaim_fl.federation.local_grid import LocalGrid
from eucaim_fl.federation.messages import instruction_content, read_reply, reply_content, to_record
from eucaim_fl.federation.parcel import digest, pack, unpack
from eucaim_fl.federation.processes import warm_up
from eucaim_fl.federation.site_client import SiteClient
from eucaim_fl.federation.site_desk import Desk
from eucaim_fl.plan import FederationPlan
from eucaim_fl.privacy.promise import round_mechanism
from eucaim_fl.seals import InstructionSeal, ReplySeal, new_nonce, read_reply_seal, sealed
from eucaim_fl.signing import PrivateKey
from eucaim_fl.site.audit import AuditLog
from eucaim_fl.site.audit_words import Asker, line_of
from eucaim_fl.site.border import Border
from eucaim_fl.site.differencing import Told
from eucaim_fl.site.disclosure import WITHHELD
from eucaim_fl.site.ledger import Ledger, Purchase
from eucaim_fl.site.policy_privacy import NO_LIMITS
from eucaim_fl.sitefile import load_site_file
from eucaim_fl.validation.record import EVERYBODY, ModelFigures, ScopeRecord, ValidationRecord
from eucaim_fl.validation.signed import RecordSignature, fits, record_sha256
from tests.federation.deployed import Deployed, one_site, wait_for

pytestmark = pytest.mark.integration

__all__ = ["one_site"]

APPS = Path(__file__).parent / "apps"
PRIVATE = {
    "mechanism": "patient_dp", "noise_multiplier": 2.0, "delta": 1e-5, "clipping_norm": 1.0, "sampling_rate": 1.0,
}  # fmt: skip
FILE = b"a frozen model"
FILE_SHA256 = hashlib.sha256(FILE).hexdigest()
_TYPES = {"hello": "query", "round": "train", "final": "evaluate", "probe": "query.probe"}


class Line:
    """What all sessions of one client share: instructions that wait, answers that came, and what is wrong with it."""

    def __init__(self, site_key: str) -> None:
        self.site_key = site_key
        self.waiting: list[Incoming] = []
        self.contents: dict[str, RecordDict | None] = {}
        self.answers: list[tuple[str, ReplySeal, RecordDict]] = []
        self.sessions: list[Session] = []
        self.problem: EucaimError | None = None
        self.hangs = threading.Event()

    def connect(self, *_: Any, **how: Any) -> Session:
        if self.problem is not None:
            raise self.problem
        session = Session(self, how)
        self.sessions.append(session)
        return session

    def states(self) -> list[str]:
        return [seal.state for _, seal, _ in self.answers]

    def answered(self, count: int) -> tuple[ReplySeal, RecordDict]:
        wait_for(lambda: len(self.answers) >= count, 10)
        return self.answers[count - 1][1:]


class Session:
    """A fake `Fleet`."""

    node_id, certificate_until = 77, "2099-01-01T00:00:00+00:00"

    def __init__(self, line: Line, how: dict[str, Any]) -> None:
        self._line, self.how = line, how
        self.failed = threading.Event()
        self.cut = threading.Event()
        self.goodbye: bool | None = None

    def _check(self) -> None:
        if self._line.hangs.is_set():
            self.cut.wait(30)
            raise LinkError("The line was cut.")
        if self._line.problem is not None:
            raise self._line.problem

    def receive(self) -> Incoming | None:
        self._check()
        return self._line.waiting.pop(0) if self._line.waiting else None

    def fetch(self, incoming: Incoming, largest_bytes: int) -> RecordDict | None:
        self._check()
        return self._line.contents[incoming.message.metadata.message_id]

    def reply(self, incoming: Incoming, content: RecordDict, seconds: float = 0.0) -> bool:
        self._check()
        seal = read_reply_seal(dict(content.config_records["seal"]), self._line.site_key)
        assert seal.content == digest(content)
        self._line.answers.append((incoming.message.metadata.message_id, seal, content))
        return True

    def abort(self) -> None:
        self.cut.set()

    def close(self, *, say_goodbye: bool = True) -> None:
        self.goodbye = say_goodbye


class Worker:
    """A fake `LocalGrid`: work goes on until the test finishes it."""

    def __init__(self) -> None:
        self.asked: list[Message] = []
        self.cancelled: list[str] = []
        self.closed = False
        self._done: dict[str, Message] = {}

    def push_messages(self, messages: list[Message]) -> list[str]:
        self.asked += messages
        return [str(len(self.asked))]

    def finish(self, content: RecordDict, number: int = -1) -> None:
        place = len(self.asked) if number < 0 else number
        self._done[str(place)] = Message(content, reply_to=self.asked[place - 1])

    def wait(self, timeout: float) -> None:
        time.sleep(min(timeout, 0.01))

    def pull_messages(self, message_ids: list[str]) -> list[Message]:
        return [self._done.pop(i) for i in message_ids if i in self._done]

    def cancel(self, message_ids: list[str]) -> None:
        self.cancelled += message_ids

    def close(self) -> None:
        self.closed = True


class Site:
    """A home, the coordinator's key, a fake line and a fake worker, and the client between them."""

    def __init__(self, federation: Deployed, fakes: Any) -> None:
        self._federation = federation
        self.fakes, self.home = fakes, self._federation.home("a")
        self.key: PrivateKey = self._federation.federation.coordinator_key
        self.line = Line(PrivateKey.load(self.home.site_key).public)
        self.worker = Worker()
        self.client: SiteClient | None = None
        self.thread: threading.Thread | None = None
        self.problem: BaseException | None = None

    def start(self) -> None:
        self.client = client = SiteClient(self.home)

        def run() -> None:
            try:
                client.run()
            except BaseException as problem:  # noqa: BLE001  the test looks at it
                self.problem = problem

        self.thread = threading.Thread(target=run, daemon=True)
        self.thread.start()

    def stop(self) -> None:
        if self.client is not None and self.thread is not None:
            self.client.stop()
            self.thread.join(20)
            assert not self.thread.is_alive()

    @property
    def status(self) -> dict[str, Any]:
        return self._federation.status("a")

    def ask(
        self, plan: FederationPlan, kind: str = "hello", number: int = 0, nonce: str = "", **changes: Any
    ) -> InstructionSeal:
        """Send an instruction or a probe."""
        content = RecordDict({"probe": ConfigRecord({"nonce": nonce})})
        if kind != "probe":
            weights = None if kind == "hello" else to_record(changes.pop("weights", self.fakes.WEIGHTS))
            content = instruction_content(plan.canonical_json(), number, weights)
        packed = pack(content) if kind != "probe" else content
        seal = InstructionSeal(
            federation="rehearsal", site="a", plan=plan.sha256(), kind=kind, round=number, nonce=nonce or new_nonce(),
            issued_at=int(time.time()), deadline_s=changes.pop("deadline_s", 60.0), content=digest(packed),
        )  # fmt: skip
        packed["seal"] = ConfigRecord(dict(sealed(seal, changes.pop("key", self.key))))
        self.send(packed, _TYPES[kind])
        return seal

    def send(self, packed: RecordDict | None, kind: str) -> None:
        message = Message(RecordDict(), 1, kind, ttl=60.0)
        message.metadata.__dict__["_message_id"] = new_nonce()
        self.line.contents[message.metadata.message_id] = packed
        self.line.waiting.append(Incoming(message, None))

    def probe(self, seal: InstructionSeal, plan: FederationPlan) -> None:
        self.ask(plan, "probe", seal.round, seal.nonce)

    def report(self, plan: FederationPlan, kind: str = "hello", number: int = 0, site: str = "a") -> RecordDict:
        """What an honest worker answers."""
        update, told = {}, {}
        if kind == "round":
            update = {"w": self.fakes.WEIGHTS["w"] + 1, "count": self.fakes.WEIGHTS["count"] + 1}
            told = {"seen": 10}
            if plan.privacy.mechanism != "none":
                told = {"metrics": ({"split": "validation", "patients": 0, "withheld": WITHHELD},)}
        return reply_content(self.fakes.report(plan, kind, site, number, **told), update, None)

    def charge(self, plan: FederationPlan) -> Ledger:
        """Pay for a plan's first round, as the worker does."""
        folder = load_site_file(self.home.site_file).records_folder() / "ledger"
        ledger, once = Ledger(folder, "a"), round_mechanism(plan.privacy, plan.training)
        assert once is not None
        what = Purchase(plan.sha256(), plan.name, plan.purpose, "a", "train", secure=True)
        ledger.commit(what, 1, once, [f"p{n}" for n in range(12)], NO_LIMITS, 1)
        return ledger

    @property
    def audit(self) -> AuditLog:
        """The log as a person at the site has it, beside the client."""
        return AuditLog(self.home.audit_folder, PrivateKey.load(self.home.site_key), "a")

    def working(self) -> Any:
        return self.status.get("working")


@pytest.fixture
def site(tmp_path: Path, one_site: Any, fakes: Any, monkeypatch: pytest.MonkeyPatch) -> Iterator[Site]:
    fakes.Grid("a", lambda *_: None)  # sets the task's identity, without which Flower makes no message
    site = Site(one_site(tmp_path / "federation"), fakes)
    monkeypatch.setattr(site_client, "Fleet", site.line.connect)
    monkeypatch.setattr(SiteClient, "_start_worker", lambda _: site.worker)
    for name, value in {"_POLL_S": 0.02, "_FIRST_PAUSE_S": 0.02, "_LONGEST_PAUSE_S": 0.05, "_TELL_S": 0.2}.items():
        monkeypatch.setattr(site_client, name, value)
    yield site
    site.stop()


@pytest.fixture
def plan(plan_for: Any) -> FederationPlan:
    return plan_for()  # type: ignore[no-any-return]


class TestFrozenModels:
    @pytest.fixture
    def judging(self, plan):
        contract = {"name": "lesions", "format": "onnx", "sha256": FILE_SHA256, "size_bytes": len(FILE),
                    "data": plan.data.model_dump(), "intended_use": "Finds lesions."}  # fmt: skip
        return FederationPlan.model_validate({**plan.model_dump(), "rounds": 1, "validation": {"models": [contract]}})

    def told(self, judging, site, **changes):
        """What an honest worker answers, and one that signs by itself."""
        figures = ModelFigures(moments={"dice": (10.0, 5.0, 2.5)})
        record = ValidationRecord("a", judging.sha256(), (ScopeRecord(EVERYBODY, 10, (figures,)),), **changes)
        report = site.fakes.report(judging, "final", "a", 2, metrics=(), validated=asdict(record))
        return record, reply_content(report, {}, None, "the worker's own")

    def test_the_very_record_that_leaves_is_signed_noted_and_logged(self, site, judging):
        site.start()
        site.ask(judging, "final", 2, weights={"file.lesions": np.frombuffer(FILE, np.uint8)})
        wait_for(lambda: site.worker.asked, 10)
        record, content = self.told(judging, site, told_before=3)
        site.worker.finish(content)
        _, packed = site.line.answered(1)
        opened = unpack(packed, EucaimError)
        del opened["seal"]
        reply = read_reply(Message(opened, reply_to=site.worker.asked[0]), ())
        assert reply.report.validated == record
        assert fits(reply.report.validated, RecordSignature(site.line.site_key, reply.signature))
        (sent,) = site.audit.records(kind="sent")
        assert sent.body["record"] == record_sha256(record)
        assert line_of(sent, Asker()).left.record == record_sha256(record)
        told = Told(load_site_file(site.home.site_file).records_folder())
        assert told.other_plans("0" * 64, [FILE_SHA256]) == 1

    def test_asked_anew_it_is_signed_alike(self, site, judging):
        site.start()
        weights = {"file.lesions": np.frombuffer(FILE, np.uint8)}
        site.ask(judging, "final", 2, weights=weights)
        wait_for(lambda: site.worker.asked, 10)
        site.worker.finish(self.told(judging, site)[1])
        first, _ = site.line.answered(1)
        site.ask(judging, "final", 2, weights=weights)
        second, _ = site.line.answered(2)
        assert second.content == first.content

    def test_what_the_gate_stops_is_neither_signed_nor_noted(self, site, judging, monkeypatch):
        signed: list[str] = []
        told = Told(load_site_file(site.home.site_file).records_folder())
        before = told.other_plans("0" * 64, [FILE_SHA256])
        judging = judging.model_copy(update={"seed": 7})  # one of which nothing has left yet
        monkeypatch.setattr(Border, "signature", lambda *_: signed.append("") or "")
        site.start()
        site.ask(judging, "final", 2, weights={"file.lesions": np.frombuffer(FILE, np.uint8)})
        wait_for(lambda: site.worker.asked, 10)
        site.worker.finish(self.told(judging, site, told_before=-1)[1])
        _, packed = site.line.answered(1)
        assert unpack(packed, EucaimError)["refusal"]["code"] == "EFL304"
        assert signed == []
        assert told.other_plans("0" * 64, [FILE_SHA256]) == before


class TestOneInstruction:
    def test_it_is_worked_on_and_answered_under_seal(self, site, plan):
        site.start()
        asked = site.ask(plan)
        wait_for(lambda: site.worker.asked, 10)
        wait_for(lambda: (site.working() or {}).get("kind") == "hello", 10)
        site.worker.finish(site.report(plan))
        seal, content = site.line.answered(1)
        assert (seal.nonce, seal.state, seal.kind, seal.plan) == (asked.nonce, "answer", "hello", plan.sha256())
        assert '"patients":10' in unpack(content, EucaimError)["report"]["json"]
        wait_for(lambda: site.working() is None, 10)
        assert site.status["last_contribution"]["plan"] == plan.sha256()

    def test_one_without_a_seal_is_neither_answered_nor_worked_on(self, site, plan):
        site.start()
        site.ask(plan, key=PrivateKey.create())
        unsealed = pack(instruction_content(plan.canonical_json(), 0))
        site.send(unsealed, "query")
        wait_for(lambda: not site.line.waiting, 10)
        site.ask(plan)
        wait_for(lambda: site.worker.asked, 10)
        assert len(site.worker.asked) == 1
        assert site.line.answers == []
        assert site.status["last_problem"]["code"] == "EFL306"

    def test_one_that_was_changed_on_its_way_is_not_worked_on(self, site, plan):
        site.start()
        site.ask(plan)
        (content,) = site.line.contents.values()
        content["instruction"]["round"] = 5
        wait_for(lambda: (site.status.get("last_problem") or {}).get("code") == "EFL306", 10)
        assert site.worker.asked == []

    def test_one_whose_run_has_ended_is_passed_over(self, site, plan):
        site.start()
        site.send(None, "query")
        site.ask(plan)
        wait_for(lambda: site.worker.asked, 10)
        assert site.status["last_problem"] is None

    def test_what_the_policy_refuses_is_answered_with_a_code(self, site, plan):
        site.home.policy_file.write_text(site.home.policy_file.read_text().replace("- segmentation\n", ""))
        site.start()
        site.ask(plan)
        seal, content = site.line.answered(1)
        assert (seal.state, content["refusal"]["code"]) == ("answer", "EFL310")
        assert site.worker.asked == []

    def test_a_kind_that_is_not_that_of_the_seal_is_refused(self, site, plan):
        site.start()
        site.ask(plan)
        site.line.waiting[-1].message.metadata.__dict__["_message_type"] = "train"
        _, content = site.line.answered(1)
        assert content["refusal"]["code"] == "EFL306"

    def test_what_nobody_foresaw_is_answered_and_ends_nothing(self, site, plan, monkeypatch):
        site.start()
        wait_for(lambda: site.line.sessions, 10)
        admit = site.client._border.admit
        monkeypatch.setattr(site.client._border, "admit", lambda *_: 1 / 0)
        site.ask(plan)
        _, content = site.line.answered(1)
        assert (content["refusal"]["code"], "division" in content["refusal"]["reason"]) == ("EFL700", False)
        monkeypatch.setattr(site.client._border, "admit", admit)
        site.ask(plan)
        wait_for(lambda: site.worker.asked, 10)

    def test_an_array_in_the_place_of_the_instruction_is_refused(self, site, plan):
        packed = pack(RecordDict({"instruction": to_record(site.fakes.WEIGHTS)}))
        seal = InstructionSeal(
            federation="rehearsal", site="a", plan=plan.sha256(), kind="hello", round=0, nonce=new_nonce(),
            issued_at=int(time.time()), deadline_s=60.0, content=digest(packed),
        )  # fmt: skip
        packed["seal"] = ConfigRecord(dict(sealed(seal, site.key)))
        site.start()
        site.send(packed, "query")
        assert site.line.answered(1)[1]["refusal"]["code"] == "EFL102"

    def test_a_report_that_bears_another_name_is_stopped_by_the_gate(self, site, plan):
        site.start()
        site.ask(plan)
        wait_for(lambda: site.worker.asked, 10)
        site.worker.finish(site.report(plan, site="b"))
        assert site.line.answered(1)[1]["refusal"]["code"] == "EFL304"


class TestSentAgain:
    def test_a_probe_hears_that_work_is_under_way(self, site, plan):
        site.start()
        asked = site.ask(plan)
        wait_for(lambda: site.worker.asked, 10)
        site.probe(asked, plan)
        seal, content = site.line.answered(1)
        assert (seal.nonce, seal.state) == (asked.nonce, "working")
        assert len(content["word"]) == 1

    def test_a_probe_brings_an_answer_that_was_lost_once_more_with_the_same_bytes(self, site, plan):
        site.start()
        asked = site.ask(plan)
        wait_for(lambda: site.worker.asked, 10)
        site.worker.finish(site.report(plan))
        site.line.answered(1)
        site.probe(asked, plan)
        seal, content = site.line.answered(2)
        assert seal.state == "answer"
        assert content is site.line.answers[0][2]
        assert len(site.worker.asked) == 1

    def test_each_time_it_leaves_is_recorded_and_there_is_an_end_to_it(self, site, plan):
        site.start()
        asked = site.ask(plan, "round", 1)
        wait_for(lambda: site.worker.asked, 10)
        site.worker.finish(site.report(plan, "round", 1))
        site.line.answered(1)
        for number in range(2, 9):
            site.probe(asked, plan) if number % 2 else site.ask(plan, "round", 1, nonce=asked.nonce)
            site.line.answered(number)
        codes = [content.config_records.get("refusal", {}).get("code") for _, _, content in site.line.answers]
        assert codes == [None] * 6 + ["EFL304"] * 2
        assert {seal.nonce for _, seal, _ in site.line.answers} == {asked.nonce}
        sent = [record.body for record in site.audit.records(kind="sent")]
        assert [body.get("again", False) for body in sent] == [False] + [True] * 5
        assert len({(body["digest"], body["bytes"]) for body in sent}) == 1
        (withheld,) = site.audit.records(kind="withheld")
        assert withheld.body["reasons"] == ["The answer was sent as often as it is sent."]
        assert len(site.worker.asked) == 1

    @pytest.mark.parametrize("probed", [True, False])
    def test_one_whose_plan_was_refused_meanwhile_does_not_leave_again(self, site, plan, probed):
        site.start()
        asked = site.ask(plan, "round", 1)
        wait_for(lambda: site.worker.asked, 10)
        site.worker.finish(site.report(plan, "round", 1))
        site.line.answered(1)
        site.audit.append("refused", {"plan": plan.sha256(), "by": "it"})
        site.probe(asked, plan) if probed else site.ask(plan, "round", 1, nonce=asked.nonce)
        seal, content = site.line.answered(2)
        assert (seal.nonce, seal.state, seal.kind) == (asked.nonce, "answer", "round")
        assert (content["refusal"]["code"], "approval" in content["refusal"]["reason"]) == ("EFL304", True)
        assert list(content.array_records) == []
        assert len(list(site.audit.records(kind="sent"))) == 1

    def test_after_a_restart_nothing_is_known(self, site, plan):
        site.start()
        asked = site.ask(plan)
        wait_for(lambda: site.worker.asked, 10)
        site.stop()
        site.start()
        site.probe(asked, plan)
        assert site.line.answered(1)[0].state == "unknown"
        site.ask(plan, nonce=asked.nonce)
        wait_for(lambda: len(site.worker.asked) == 2, 10)

    def test_the_same_instruction_is_not_worked_on_twice_and_answered_where_it_came_last(self, site, plan):
        site.start()
        asked = site.ask(plan)
        wait_for(lambda: site.worker.asked, 10)
        site.ask(plan, nonce=asked.nonce)
        last = site.line.waiting[-1].message.metadata.message_id
        wait_for(lambda: not site.line.waiting, 10)
        time.sleep(0.1)
        site.worker.finish(site.report(plan))
        site.line.answered(1)
        assert (len(site.worker.asked), site.line.answers[0][0]) == (1, last)

    def test_one_that_was_answered_is_answered_again_without_work(self, site, plan):
        site.start()
        asked = site.ask(plan)
        wait_for(lambda: site.worker.asked, 10)
        site.worker.finish(site.report(plan))
        site.line.answered(1)
        site.ask(plan, nonce=asked.nonce)
        assert site.line.answered(2)[1] is site.line.answers[0][2]
        assert len(site.worker.asked) == 1

    def test_the_same_question_under_a_new_number_takes_over_work_under_way(self, site, plan):
        site.start()
        site.ask(plan, "round", 1)
        wait_for(lambda: site.worker.asked, 10)
        again = site.ask(plan, "round", 1)
        wait_for(lambda: not site.line.waiting, 10)
        time.sleep(0.1)
        site.worker.finish(site.report(plan, "round", 1))
        assert site.line.answered(1)[0].nonce == again.nonce
        assert (len(site.worker.asked), site.worker.cancelled) == (1, [])

    def test_the_same_question_under_a_new_number_gets_the_answer_that_is_there(self, site, plan):
        site.start()
        site.ask(plan, "round", 1)
        wait_for(lambda: site.worker.asked, 10)
        site.worker.finish(site.report(plan, "round", 1))
        first, _ = site.line.answered(1)
        again = site.ask(plan, "round", 1)
        second, _ = site.line.answered(2)
        assert (second.nonce, second.content) == (again.nonce, first.content)
        assert second.audit_count > first.audit_count  # it left twice, and twice it was recorded
        assert len(site.worker.asked) == 1

    def test_an_update_that_was_paid_for_is_answered_again_and_not_paid_for_twice(self, site, plan_for):
        plan = plan_for(privacy=PRIVATE, model={"args": {"channels": [4, 8], "strides": [2], "norm": "instance"}})
        site.start()
        site.ask(plan, "round", 1)
        wait_for(lambda: site.worker.asked, 10)
        ledger = site.charge(plan)
        site.worker.finish(site.report(plan, "round", 1))
        first, content = site.line.answered(1)
        assert "refusal" not in content.config_records
        for number in (2, 3):
            again = site.ask(plan, "round", 1)
            seal, content = site.line.answered(number)
            assert (seal.nonce, seal.content) == (again.nonce, first.content)
            assert "refusal" not in content.config_records
        assert (len(site.worker.asked), ledger.head().count) == (1, 1)

    def test_one_that_was_not_paid_for_is_not_helped_by_an_older_charge(self, site, plan_for):
        plan = plan_for(privacy=PRIVATE, model={"args": {"channels": [4, 8], "strides": [2], "norm": "instance"}})
        site.charge(plan)
        site.start()
        site.ask(plan, "round", 1)
        wait_for(lambda: site.worker.asked, 10)
        site.worker.finish(site.report(plan, "round", 1))
        assert site.line.answered(1)[1]["refusal"]["code"] == "EFL304"

    def test_a_greeting_looks_at_the_cohort_each_time(self, site, plan):
        site.start()
        for number in (1, 2):
            site.ask(plan)
            wait_for(lambda number=number: len(site.worker.asked) == number, 10)
            site.worker.finish(site.report(plan))
            site.line.answered(number)

    def test_another_round_ends_what_is_under_way(self, site, plan):
        site.start()
        site.ask(plan, "round", 1)
        wait_for(lambda: site.worker.asked, 10)
        later = site.ask(plan, "round", 2)
        wait_for(lambda: len(site.worker.asked) == 2, 10)
        assert site.worker.cancelled == ["1"]
        site.worker.finish(site.report(plan, "round", 2))
        assert site.line.answered(1)[0].nonce == later.nonce


class TestStopped:
    def test_work_on_a_plan_that_a_person_refuses_ends_soon(self, site, plan, monkeypatch):
        monkeypatch.setattr(site_desk, "_LOOK_S", 0.1)
        site.start()
        asked = site.ask(plan, "round", 1)
        wait_for(lambda: site.worker.asked, 10)
        time.sleep(0.3)
        assert site.worker.cancelled == []
        site.audit.append("refused", {"plan": plan.sha256(), "by": "it"})
        seal, content = site.line.answered(1)
        assert (seal.nonce, seal.state) == (asked.nonce, "answer")
        assert (content["refusal"]["code"], "approval" in content["refusal"]["reason"]) == ("EFL310", True)
        assert site.worker.cancelled == ["1"]
        wait_for(lambda: site.working() is None, 10)
        (withheld,) = site.audit.records(kind="withheld")
        assert (withheld.body["plan"], withheld.body["code"]) == (plan.sha256(), "EFL310")

    def test_the_worker_gets_no_longer_than_the_policy_has_it(self, site, plan):
        text = site.home.policy_file.read_text()
        assert "minutes: 240" in text
        site.home.policy_file.write_text(text.replace("minutes: 240", "minutes: 0.5"))
        site.start()
        site.ask(plan)
        wait_for(lambda: site.worker.asked, 10)
        assert site.worker.asked[0].metadata.ttl == 30.0
        site.ask(plan, "round", 1, deadline_s=7.0)
        wait_for(lambda: len(site.worker.asked) == 2, 10)
        assert site.worker.asked[1].metadata.ttl == 7.0

    def test_a_question_that_came_too_often_is_refused_by_the_policy_s_key(self, site, plan):
        text = site.home.policy_file.read_text()
        assert "repeats: 100000" in text
        site.home.policy_file.write_text(text.replace("repeats: 100000", "repeats: 1"))
        site.start()
        site.ask(plan, "final", plan.rounds + 1)
        wait_for(lambda: site.worker.asked, 10)
        site.worker.finish(site.report(plan, "final", plan.rounds + 1))
        site.line.answered(1)
        site.ask(plan, "final", plan.rounds + 1)
        _, content = site.line.answered(2)
        assert (content["refusal"]["code"], "plans.repeats" in content["refusal"]["reason"]) == ("EFL310", True)

    def test_a_round_that_the_plan_does_not_have_is_refused(self, site, plan):
        site.start()
        site.ask(plan, "final", plan.rounds)
        assert site.line.answered(1)[1]["refusal"]["code"] == "EFL102"
        assert site.worker.asked == []


class TestOtherRuns:
    def test_they_are_decided_before_they_wait(self, site, plan, plan_for):
        forbidden = plan_for(seed=7, purpose="education")
        site.start()
        site.ask(plan)
        wait_for(lambda: site.worker.asked, 10)
        asked = site.ask(forbidden)
        seal, content = site.line.answered(1)
        assert (seal.nonce, content["refusal"]["code"]) == (asked.nonce, "EFL310")
        assert (len(site.worker.asked), site.worker.cancelled) == (1, [])

    def test_one_that_was_refused_while_it_waited_is_not_worked_on(self, site, plan, plan_for):
        other = plan_for(seed=7)
        site.start()
        site.ask(plan)
        wait_for(lambda: site.worker.asked, 10)
        second = site.ask(other)
        wait_for(lambda: other.sha256() in site.audit.plans_allowed(), 10)
        site.audit.append("refused", {"plan": other.sha256(), "by": "it"})
        site.worker.finish(site.report(plan))
        seal, content = site.line.answered(2)
        assert (seal.nonce, content["refusal"]["code"]) == (second.nonce, "EFL310")
        assert len(site.worker.asked) == 1

    def test_their_instructions_wait_for_their_turn(self, site, plan, plan_for):
        other = plan_for(seed=7)
        site.start()
        first = site.ask(plan)
        wait_for(lambda: site.worker.asked, 10)
        second = site.ask(other)
        site.probe(second, other)
        assert (site.line.answered(1)[0].nonce, site.line.states()) == (second.nonce, ["working"])
        assert len(site.worker.asked) == 1
        site.worker.finish(site.report(plan))
        assert site.line.answered(2)[0].nonce == first.nonce
        wait_for(lambda: len(site.worker.asked) == 2, 10)
        site.worker.finish(site.report(other))
        assert site.line.answered(3)[0].nonce == second.nonce
        assert site.worker.cancelled == []

    def test_a_later_one_of_a_run_takes_the_place_of_the_earlier(self, site, plan, plan_for):
        other = plan_for(seed=7)
        site.start()
        site.ask(plan)
        wait_for(lambda: site.worker.asked, 10)
        old, new = site.ask(other), site.ask(other, "round", 1)
        wait_for(lambda: not site.line.waiting, 10)
        site.worker.finish(site.report(plan))
        wait_for(lambda: len(site.worker.asked) == 2, 10)
        site.probe(old, other)
        assert site.line.answered(2)[0].state == "unknown"
        site.worker.finish(site.report(other, "round", 1))
        assert site.line.answered(3)[0].nonce == new.nonce

    def test_more_than_a_few_are_told_that_the_site_is_busy(self, site, plan, plan_for):
        site.start()
        site.ask(plan)
        wait_for(lambda: site.worker.asked, 10)
        for seed in range(4):
            site.ask(plan_for(seed=seed + 10))
        _, content = site.line.answered(1)
        assert content["refusal"]["code"] == "EFL702"


class TestTheLineFails:
    def test_work_goes_on_and_its_answer_goes_out_over_the_next_line(self, site, plan):
        site.start()
        asked = site.ask(plan)
        wait_for(lambda: site.worker.asked, 10)
        site.line.problem = LinkError("The cable is out.", fix="Put it in.")
        wait_for(lambda: site.status["state"] == "disconnected", 10)
        assert site.status["last_problem"] | {"at": ""} == {
            "code": "EFL305", "text": "The cable is out. Put it in.", "at": "",
        }  # fmt: skip
        site.worker.finish(site.report(plan))
        time.sleep(0.2)
        assert site.line.answers == []
        site.line.problem = None
        assert site.line.answered(1)[0].nonce == asked.nonce
        site.probe(asked, plan)
        assert site.line.answered(2)[0].state == "answer"
        assert site.status["state"] == "connected"
        assert site.line.sessions[-1].how == {"resume": True}
        assert site.line.sessions[0].goodbye is False

    def test_an_answer_that_never_gets_through_does_not_keep_the_site_from_others(self, site, plan, monkeypatch):
        site.start()
        asked = site.ask(plan)
        wait_for(lambda: site.worker.asked, 10)

        def refuse(*_: Any, **__: Any) -> None:
            raise LinkError("The coordinator can't answer now.")

        with monkeypatch.context() as broken:
            broken.setattr(Session, "reply", refuse)
            site.worker.finish(site.report(plan))
            wait_for(lambda: site.status["last_contribution"], 10)
            site.ask(plan, "round", 1)
            wait_for(lambda: len(site.worker.asked) == 2, 10)
        site.probe(asked, plan)
        assert site.line.answered(1)[0].state == "answer"

    def test_a_site_that_is_not_let_in_says_so_and_goes_on_trying(self, site):
        site.line.problem = NotAdmittedError("Not let in.")
        site.start()
        wait_for(lambda: site.status.get("state") == "not_admitted", 10)
        assert (site.status["connected"], site.status["admitted"]) == (False, False)
        site.line.problem = None
        wait_for(lambda: site.status["state"] == "connected", 10)
        assert site.status["admitted"]

    def test_what_stands_in_the_way_is_logged_once_for_as_long_as_it_is_the_same(self, site, caplog):
        def told() -> list[str]:
            return [record.getMessage() for record in caplog.records if "trying again" in record.getMessage()]

        site.line.problem = NotAdmittedError("Not let in.")
        site.start()
        time.sleep(0.5)  # several tries
        assert len(told()) == 1
        site.line.problem = LinkError("The line is dead.")
        wait_for(lambda: len(told()) == 2, 10)
        site.line.problem = None
        wait_for(lambda: site.status["state"] == "connected", 10)
        site.line.problem = LinkError("The line is dead.")
        wait_for(lambda: len(told()) == 3, 10)

    def test_a_session_that_the_coordinator_forgot_is_opened_anew(self, site):
        site.start()
        wait_for(lambda: site.line.sessions, 10)[0].failed.set()
        wait_for(lambda: len(site.line.sessions) == 2, 10)

    def test_a_broken_key_ends_the_client(self, site):
        site.line.problem = KeyFileError("The key is gone.")
        site.start()
        site.thread.join(10)
        assert isinstance(site.problem, KeyFileError)
        assert site.status["last_problem"]["code"] == "EFL107"

    def test_a_client_that_crashed_takes_up_its_session_and_one_that_stopped_long_ago_does_not(self, site):
        site.start()
        wait_for(lambda: site.status.get("state") == "connected", 10)
        told = site.home.status_file.read_text()
        site.stop()
        another = told.replace(f'"pid": {os.getpid()}', f'"pid": {os.getppid()}')
        for text, resumes in (
            (told, True),
            (told.replace('"updated": "20', '"updated": "19'), False),
            (another, False),
        ):
            site.home.status_file.write_text(text)
            client = SiteClient(site.home)
            client._remember_session()
            assert (client._known_as, client._resumes) == (77, resumes)
        site.home.status_file.write_text("{")
        client = SiteClient(site.home)
        client._remember_session()
        assert (client._known_as, client._resumes) == (None, False)


class TestTheWorkersLog:
    @pytest.mark.parametrize(("size", "moved"), [(10, False), (2**24 + 1, True)])
    def test_one_that_has_grown_large_is_put_aside_at_the_start(self, tmp_path, one_site, monkeypatch, size, moved):
        home = one_site(tmp_path / "federation").home("a")
        home.log_file.parent.mkdir(parents=True, exist_ok=True)
        with home.log_file.open("wb") as file:
            file.truncate(size)
        monkeypatch.setattr(site_client, "warm_up", lambda: None)
        monkeypatch.setattr(site_client, "LocalGrid", lambda *_, **__: None)
        SiteClient(home)._start_worker()
        assert home.log_file.with_suffix(".log.1").exists() == moved
        assert home.log_file.exists() != moved


class TestItsEnd:
    def test_it_says_goodbye_and_leaves_word(self, site, plan):
        site.start()
        wait_for(lambda: site.line.sessions, 10)
        assert (site.home.run_folder / "pid").read_text().strip() == str(os.getpid())
        site.stop()
        assert (site.problem, site.line.sessions[0].goodbye, site.worker.closed) == (None, True, True)
        assert (site.status["state"], site.status["connected"]) == ("stopped", False)
        assert not (site.home.run_folder / "pid").exists()

    def test_a_call_that_hangs_does_not_hold_it_up(self, site):
        site.start()
        wait_for(lambda: site.line.sessions, 10)
        site.line.hangs.set()
        time.sleep(0.1)
        began = time.monotonic()
        site.stop()
        assert time.monotonic() - began < 5

    def test_a_second_client_in_one_home_is_refused_and_touches_nothing(self, site):
        site.start()
        wait_for(lambda: site.status.get("state") == "connected", 10)
        with pytest.raises(RunFolderBusyError, match="Another process"):
            SiteClient(site.home).run()
        assert site.status["state"] == "connected"
        assert (site.home.run_folder / "pid").exists()

    def test_without_an_audit_log_nothing_is_done(self, site, plan, monkeypatch):
        site.start()
        wait_for(lambda: site.line.sessions, 10)

        def full(*_: Any) -> None:
            raise AuditError("The audit log can't be written.")

        monkeypatch.setattr(site.client._border.audit, "append", full)
        site.ask(plan)
        site.thread.join(10)
        with pytest.raises(AuditError, match="can't be written"):
            raise site.problem
        assert (site.worker.asked, site.line.answers) == ([], [])
        assert (site.status["state"], site.status["last_problem"]["code"]) == ("stopped", "EFL701")

    def test_an_answer_that_cannot_be_recorded_does_not_leave(self, site, plan, monkeypatch):
        site.start()
        site.ask(plan)
        wait_for(lambda: site.worker.asked, 10)

        def full(*_: Any) -> None:
            raise AuditError("The audit log can't be written.")

        monkeypatch.setattr(site.client._border.audit, "append", full)
        site.worker.finish(site.report(plan))
        site.thread.join(10)
        assert (type(site.problem), site.line.answers) == (AuditError, [])

    def test_without_its_memory_of_instructions_nothing_is_done(self, site, plan, monkeypatch):
        site.start()
        wait_for(lambda: site.line.sessions, 10)

        def full(*_: Any) -> None:
            raise JournalError("The disk is full.")

        monkeypatch.setattr(site.client._border._nonces, "accept", full)
        site.ask(plan)
        site.thread.join(10)
        with pytest.raises(JournalError, match="disk is full"):
            raise site.problem
        assert site.line.answers == []


@pytest.mark.federated
class TestTheWorkerFails:
    def test_one_that_ends_and_one_that_freezes_are_answered_for_and_replaced(self, site, plan, monkeypatch):
        monkeypatch.syspath_prepend(str(APPS))

        def start(client: SiteClient) -> LocalGrid:
            warm_up()
            return LocalGrid({"a": site.home.site_file}, 1, app="sudden_app:app", log_file=site.home.log_file)

        monkeypatch.setattr(SiteClient, "_start_worker", start)
        site.start()
        ends = site.ask(plan, "round", 1)
        wait_for(lambda: site.line.answers, 60)
        freezes = site.ask(plan, "final", plan.rounds + 1, deadline_s=1.0)
        wait_for(lambda: len(site.line.answers) == 2, 30)
        for number, asked in enumerate((ends, freezes), start=1):
            seal, content = site.line.answered(number)
            assert (seal.nonce, content["refusal"]["code"]) == (asked.nonce, "EFL303")
        assert site.status["last_problem"]["code"] == "EFL303"
        site.stop()


class TestDesk:
    """The two calls that `run` makes of it and that can end the client."""

    def desk(self, site: Site) -> Desk:
        client = SiteClient(site.home)
        worker: Future[Any] = Future()
        worker.set_result(site.worker)
        return Desk(client._border, client._status, worker, threading.Event())

    def test_it_gives_up_when_nothing_can_be_recorded(self, site, plan, monkeypatch):
        desk = self.desk(site)
        site.ask(plan)
        incoming = site.line.waiting[0]
        packed = site.line.contents[incoming.message.metadata.message_id]
        seal = desk._border.identify(dict(packed.config_records["seal"]), digest(packed))

        def fails(kind: type[EucaimError]) -> Callable[..., None]:
            def call(*_: Any) -> None:
                raise kind("The disk is full.")

            return call

        monkeypatch.setattr(desk._border._nonces, "accept", fails(JournalError))
        with pytest.raises(JournalError, match="disk is full"):
            desk.take(incoming, seal, packed)
        for name in ("append", "head"):
            monkeypatch.setattr(desk._border.audit, name, fails(AuditError))
        monkeypatch.undo()
        monkeypatch.setattr(desk._border.audit, "append", fails(AuditError))
        with pytest.raises(AuditError, match="disk is full"):
            desk.take(incoming, seal, packed)
        monkeypatch.setattr(desk._border.audit, "head", fails(AuditError))
        with pytest.raises(AuditError, match="disk is full"):
            desk.word(seal)

    def test_a_worker_that_cannot_be_started_is_told(self, site, plan):
        desk = self.desk(site)
        desk._worker = Future()
        desk._worker.set_exception(OSError("/no/such/place"))
        site.ask(plan)
        incoming = site.line.waiting[0]
        packed = site.line.contents[incoming.message.metadata.message_id]
        desk.take(incoming, desk._border.identify(dict(packed.config_records["seal"]), digest(packed)), packed)
        assert desk.outbox is not None
        assert dict(desk.outbox[1]["refusal"]) == {
            "code": "EFL303", "reason": "The site's worker can't be started.", "site": "a",
        }  # fmt: skip

    def test_it_gives_up_when_an_answer_cannot_be_recorded(self, site, plan, monkeypatch):
        desk = self.desk(site)
        site.ask(plan)
        incoming = site.line.waiting[0]
        packed = site.line.contents[incoming.message.metadata.message_id]
        desk.take(incoming, desk._border.identify(dict(packed.config_records["seal"]), digest(packed)), packed)
        site.worker.finish(site.report(plan))

        def full(*_: Any) -> None:
            raise AuditError("The disk is full.")

        monkeypatch.setattr(desk._border.audit, "append", full)
        with pytest.raises(AuditError, match="disk is full"):
            desk.wait(0.1)

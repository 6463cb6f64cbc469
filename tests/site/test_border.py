"""One way in and one way out: who asks is known, the policy decides each time, and the log comes before the seal."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
import yaml
from numpy.typing import NDArray

from eucaim_fl.enrolment import Invitation, invite, new_token
from eucaim_fl.errors import (
    ApprovalPendingError,
    AuditError,
    CohortError,
    EnrolmentError,
    EucaimError,
    GateError,
    JournalError,
    KeyFileError,
    LedgerError,
    LinkError,
    OutsideHoursError,
    PlanError,
    PolicyError,
    PolicyRefusalError,
    SealError,
    ServiceStateError,
    SiteFileError,
)
from eucaim_fl.permits import Permit, issue, sign_plan
from eucaim_fl.plan import FederationPlan, make_plan
from eucaim_fl.privacy.accounting import Mechanism, epsilon
from eucaim_fl.privacy_config import PrivacyConfig
from eucaim_fl.records import ArraySpec
from eucaim_fl.seals import InstructionSeal, new_nonce, read_reply_seal, sealed
from eucaim_fl.signing import PrivateKey, new_node_key
from eucaim_fl.site.audit import verify_log
from eucaim_fl.site.audit_words import Asker, line_of
from eucaim_fl.site.border import Border, Task
from eucaim_fl.site.home import SiteHome
from eucaim_fl.site.ledger import Ledger, LedgerHead, Purchase
from eucaim_fl.site.policy_privacy import NO_LIMITS
from eucaim_fl.site.report import SiteReport

pytestmark = pytest.mark.integration

NOON = datetime(2026, 6, 1, 12, 0, tzinfo=UTC)  # a Monday
COORDINATOR, SITE, BODY, HOLDER = (PrivateKey.create() for _ in range(4))
AUTHORITY = "-----BEGIN CERTIFICATE-----\nMAAA\n-----END CERTIFICATE-----\n"
CONTENT, REPLY_DIGEST = "c" * 64, "e" * 64
OPEN: dict[str, Any] = {
    "schema": "eucaim-fl-policy/1",
    "valid_until": "2026-12-31",
    "datasets": ["ds-1"],
    "asking": {"permits": "not_required"},
    "purposes": ["scientific_research"],
    "tasks": ["segmentation"],
    "networks": ["unet"],
    "sites": {"at_least": 2},
    "patients": {"training": 10, "metric": 5},
    "metrics": {"names": ["dice", "hd95_mm"], "decimals": 3},
    "rounds": 2,
    "plans": {"day": 20, "total": 100},
    "hours": "any",
    "work": {"minutes": 10},
    "sent_mb": {"message": 1, "plan": 3, "day": 2},
    "update": {"largest_norm": 10},
    "privacy": {"mechanism": "none"},
    "approval": "automatic",
}
SPECS = (ArraySpec("w", (3,), "float32", trainable=True),)


@dataclass
class Answer:
    """What a worker would say."""

    report: SiteReport
    update: dict[str, NDArray[Any]] = field(default_factory=dict)
    pictures: NDArray[np.uint8] | None = None


class Home:
    """A site's home that `site init` might have made, and the coordinator's side of it."""

    def __init__(self, folder: Path, plan: FederationPlan) -> None:
        self.home, self.plan, self.now = SiteHome(folder), plan, NOON
        (folder / "keys").mkdir(parents=True)
        SITE.save(self.home.site_key)
        new_node_key(self.home.node_key)
        self.site_file()
        self.policy()
        self.join()

    def join(self, **changes: Any) -> None:
        values: dict[str, Any] = {
            "federation": "prostate",
            "site": "north",
            "address": "127.0.0.1:8443",
            "ca_pem": AUTHORITY,
            "coordinator_key": COORDINATOR.public,
            "token": new_token(),
            "valid_until": NOON - timedelta(days=30),  # used long ago
            **changes,
        }
        self.home.federation_file.write_text(json.dumps(invite(Invitation(**values), COORDINATOR)))

    def site_file(self, **changes: Any) -> None:
        values = {
            "name": "north",
            "cohort": {"layout": "nifti_csv", "folder": str(self.home.folder / "cohort")},
            "cache": {"folder": str(self.home.folder / "cache")},
            "policy": "policy.yaml",
            **changes,
        }
        self.home.site_file.write_text(yaml.safe_dump(values))

    def policy(self, **changes: Any) -> None:
        self.home.policy_file.write_text(yaml.safe_dump({**OPEN, **changes}))

    def open(self) -> Border:
        return Border(self.home, lambda: self.now)

    def seal(self, **changes: Any) -> InstructionSeal:
        values = {
            "federation": "prostate",
            "site": "north",
            "plan": self.plan.sha256(),
            "kind": "round",
            "round": 1,
            "nonce": new_nonce(),
            "issued_at": int(self.now.timestamp()),
            "deadline_s": 60.0,
            "content": CONTENT,
            **changes,
        }
        return InstructionSeal(**values)

    def answer(self, **changes: Any) -> Answer:
        sums = {"dice": (10.0, 5.0, 2.5)}
        report = {
            "kind": "round",
            "site": "north",
            "plan_sha256": self.plan.sha256(),
            "round": 1,
            "patients": 10,
            "seen": 10,
            "cohort_sha256": "0" * 64,
            "metrics": ({"split": "validation", "patients": 10, "values": {"dice": 0.5}, "sums": sums},),
            **changes,
        }
        return Answer(SiteReport.model_validate(report), {"w": np.array([3, 0, 4], np.float32)})


@pytest.fixture
def plan(recipe: Callable[..., Any]) -> FederationPlan:
    return make_plan(recipe(["north.yaml"]), ("north", "south"))


@pytest.fixture
def at(tmp_path: Path, plan: FederationPlan) -> Home:
    return Home(tmp_path / "home", plan)


@pytest.fixture
def border(at: Home) -> Border:
    return at.open()


def admitted(at: Home, border: Border, **changes: Any) -> Task:
    seal = at.seal(**changes)
    return border.admit(seal, at.plan.canonical_json(), seal.round, "")


def decisions(border: Border) -> list[tuple[object, object]]:
    return [(record.body["verdict"], record.body["reasons"]) for record in border.audit.records(kind="decision")]


class TestOpening:
    def test_an_invitation_that_was_answered_long_ago_is_good(self, border: Border) -> None:
        assert (border.invitation.site, border.site.name, border.audit.head().count) == ("north", "north", 0)

    @pytest.mark.parametrize("name", ["site.yaml", "policy.yaml", "federation.json", "keys/site_key.pem"])
    def test_a_home_that_is_not_set_up_is_refused(self, at: Home, name: str) -> None:
        (at.home.folder / name).unlink()
        with pytest.raises(ServiceStateError, match="not the home of a site"):
            Border(at.home)
        with pytest.raises(ServiceStateError, match="not the home of a site"):
            at.home.require()

    def test_a_key_that_others_can_read_is_refused(self, at: Home) -> None:
        at.home.site_key.chmod(0o644)
        with pytest.raises(KeyFileError, match="read by others"):
            Border(at.home)

    @pytest.mark.parametrize("text", ["", "{", "\udcff", "[" * 100_000])
    def test_a_federation_s_file_that_is_no_json_is_refused(self, at: Home, text: str) -> None:
        at.home.federation_file.write_text(text, errors="surrogateescape")
        with pytest.raises(SiteFileError, match="can't be read"):
            Border(at.home)

    def test_an_altered_invitation_is_refused(self, at: Home) -> None:
        document = json.loads(at.home.federation_file.read_text())
        document["invitation"]["coordinator_key"] = HOLDER.public
        at.home.federation_file.write_text(json.dumps(document))
        with pytest.raises(EnrolmentError, match="does not fit"):
            Border(at.home)

    @pytest.mark.parametrize(
        ("changes", "complaint"),
        [
            ({"name": "south"}, "another name than the invitation"),
            ({"policy": None}, "does not name the policy"),
            ({"policy": "../policy.yaml"}, "does not name the policy"),
            ({"more": 1}, "unknown or wrong keys"),
        ],
    )
    def test_a_site_file_that_belongs_to_another_home_is_refused(
        self, at: Home, border: Border, changes: dict[str, Any], complaint: str
    ) -> None:
        at.site_file(**changes)
        with pytest.raises(SiteFileError, match=complaint):
            Border(at.home)
        with pytest.raises(SiteFileError, match=complaint):
            border.read_files()
        with pytest.raises(SiteFileError, match=complaint):
            admitted(at, border)
        seal = at.seal()
        with pytest.raises(SiteFileError, match=complaint):
            border.admit(seal, at.plan.canonical_json(), 1, "")
        assert decisions(border) == []

    def test_a_policy_that_can_not_be_read_is_refused(self, at: Home, border: Border) -> None:
        at.policy(rounds="many")
        with pytest.raises(PolicyError, match="rounds"):
            Border(at.home)
        with pytest.raises(PolicyError, match="rounds"):
            border.read_files()
        with pytest.raises(PolicyError, match="rounds"):
            border.admit(at.seal(), at.plan.canonical_json(), 1, "")
        assert decisions(border) == []

    def test_an_altered_log_or_memory_is_refused(self, at: Home, border: Border) -> None:
        border.started(1)
        (at.home.audit_folder / "head.json").write_text("{}")
        with pytest.raises(AuditError, match="altered"):
            Border(at.home)
        (at.home.audit_folder / "head.json").unlink()
        (at.home.audit_folder / "audit.sqlite").unlink()
        (at.home.folder / "state" / "nonces.json").write_text("{")
        with pytest.raises(SealError, match="memory of instructions"):
            Border(at.home)

    def test_start_and_end_are_noted_with_the_policy_that_counts(self, at: Home, border: Border) -> None:
        border.started(17)
        border.stopped(17)
        started, stopped = border.audit.records()
        assert (started.kind, started.body["pid"], stopped.kind) == ("started", 17, "stopped")
        assert started.body["policy_sha256"] == hashlib.sha256(at.home.policy_file.read_bytes()).hexdigest()

    def test_what_can_not_be_noted_is_an_error(self, border: Border, monkeypatch: pytest.MonkeyPatch) -> None:
        fill_disk(monkeypatch)
        with pytest.raises(AuditError, match="disk is full"):
            border.started(1)
        with pytest.raises(AuditError, match="disk is full"):
            border.stopped(1)


class TestWhatMayCome:
    def test_an_instruction_may_bring_about_as_much_as_may_leave(self, at: Home, border: Border) -> None:
        before = border.largest_incoming()
        at.policy(sent_mb={"message": 2, "plan": 3, "day": 2})
        assert border.largest_incoming() - before == 1_000_000

    def test_without_files_that_say_so_nothing_may(self, at: Home, border: Border) -> None:
        at.policy(rounds="many")
        with pytest.raises(PolicyError, match="rounds"):
            border.largest_incoming()
        at.site_file(name="south")
        with pytest.raises(SiteFileError, match="another name"):
            border.largest_incoming()

    def test_messages_of_strangers_are_counted_and_recorded_once_a_minute(self, at: Home, border: Border) -> None:
        for seconds in (0, 1, 30, 31):
            at.now = NOON + timedelta(seconds=seconds)
            border.ignored(SealError("The message bears no seal.", local_detail="/secret"))
        at.now = NOON + timedelta(seconds=61)
        border.ignored(LinkError("Too large."))
        found = [(record.kind, record.body) for record in border.audit.records()]
        assert found == [("ignored", {"code": "EFL306", "count": 1}), ("ignored", {"code": "EFL305", "count": 4})]

    def test_what_can_not_be_recorded_is_an_error(self, border: Border, monkeypatch: pytest.MonkeyPatch) -> None:
        fill_disk(monkeypatch)
        with pytest.raises(AuditError, match="disk is full"):
            border.ignored(SealError("The message bears no seal."))


def fill_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    """The audit log can't be written any more."""

    def full(*_: object) -> None:
        raise JournalError("The disk is full; nothing half-written was left behind.")

    monkeypatch.setattr("eucaim_fl.site.chain_writer.write_atomically", full)


class TestIdentify:
    def test_the_coordinator_s_instruction_for_this_site_is_known(self, at: Home, border: Border) -> None:
        seal = at.seal()
        assert border.identify(sealed(seal, COORDINATOR), CONTENT) == seal

    @pytest.mark.parametrize("changes", [{"site": "south"}, {"federation": "breast"}])
    def test_one_for_another_is_refused(self, at: Home, border: Border, changes: dict[str, Any]) -> None:
        with pytest.raises(SealError, match="another site or federation"):
            border.identify(sealed(at.seal(**changes), COORDINATOR), CONTENT)

    def test_one_whose_content_was_changed_is_refused(self, at: Home, border: Border) -> None:
        with pytest.raises(SealError, match="changed on its way"):
            border.identify(sealed(at.seal(), COORDINATOR), "0" * 64)

    @pytest.mark.parametrize("key", [SITE, HOLDER])
    def test_one_of_another_key_is_refused(self, at: Home, border: Border, key: PrivateKey) -> None:
        with pytest.raises(SealError, match="not of whom it claims"):
            border.identify(sealed(at.seal(), key), CONTENT)

    @pytest.mark.parametrize("record", [None, {}, {"body": "{}", "signature": ""}])
    def test_one_without_a_seal_is_refused(self, border: Border, record: object) -> None:
        with pytest.raises(SealError, match="seal"):
            border.identify(record, CONTENT)


class TestAdmit:
    def test_what_the_policy_allows_is_recorded_and_admitted(self, at: Home, border: Border) -> None:
        seal = at.seal()
        task = border.admit(seal, at.plan.canonical_json(), 1, "")
        assert (task.seal, task.plan) == (seal, at.plan)
        (record,) = border.audit.records()
        expected = {
            "plan": at.plan.sha256(),
            "name": "tiny",
            "kind": "round",
            "round": 1,
            "instruction": seal.nonce,
            "holder": "",
            "permit": "",
            "permit_unverified": False,
            "purpose": "scientific_research",
            "verdict": "allow",
            "reasons": [],
            "policy_sha256": task.loaded.sha256,
        }
        assert (record.kind, record.body) == ("decision", expected)

    def test_the_plan_is_kept_for_people_to_look_at(self, at: Home, border: Border) -> None:
        admitted(at, border)
        admitted(at, border, kind="final", round=3)
        (kept,) = at.home.plans_folder.iterdir()
        assert kept.name == f"{at.plan.sha256()}.json"
        assert hashlib.sha256(kept.read_bytes()).hexdigest() == at.plan.sha256()

    def test_so_many_plans_and_no_more(self, at: Home, border: Border, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("eucaim_fl.site.border._MOST_PLANS", 1)
        at.home.plans_folder.mkdir(parents=True)
        (at.home.plans_folder / "another.json").write_text("{}")
        with pytest.raises(PolicyError, match="too many plans"):
            border.admit(at.seal(), at.plan.canonical_json(), 1, "")
        assert decisions(border) == []

    @pytest.mark.parametrize(
        ("changes", "error", "verdict", "reasons"),
        [
            ({"rounds": 1, "networks": []}, PolicyRefusalError, "refuse", ["networks", "rounds"]),
            ({"approval": "manual"}, ApprovalPendingError, "wait", ["approval"]),
            (
                {"hours": [{"days": ["tue"], "start": "08:00", "end": "18:00", "zone": "UTC"}]},
                OutsideHoursError,
                "wait",
                ["hours"],
            ),
        ],
        ids=["refusal", "approval", "hours"],
    )
    def test_what_it_does_not_allow_is_recorded_each_time_and_not_admitted(
        self,
        at: Home,
        border: Border,
        changes: dict[str, Any],
        error: type[EucaimError],
        verdict: str,
        reasons: list[str],
    ) -> None:
        at.policy(**changes)
        for number in range(1, 3):
            with pytest.raises(error, match=reasons[0]):
                border.admit(at.seal(), at.plan.canonical_json(), 1, "")
            assert decisions(border) == [(verdict, reasons)] * number
        kept = (at.home.plans_folder / f"{at.plan.sha256()}.json").is_file()
        assert kept is (verdict == "wait")  # who sends what is refused anyway can't fill the folder

    def test_each_kind_of_no_is_an_error_of_its_own(self, at: Home, border: Border) -> None:
        text = at.plan.canonical_json()
        at.policy(approval="manual")
        with pytest.raises(ApprovalPendingError, match="approval"):
            border.admit(at.seal(), text, 1, "")
        at.policy(hours=[{"days": ["sun"], "start": "08:00", "end": "18:00", "zone": "UTC"}])
        with pytest.raises(OutsideHoursError, match="hours"):
            border.admit(at.seal(), text, 1, "")
        at.policy(purposes=["education"])
        with pytest.raises(PolicyRefusalError, match="purposes"):
            border.admit(at.seal(), text, 1, "")

    def test_a_changed_policy_counts_at_once(self, at: Home, border: Border) -> None:
        admitted(at, border)
        at.policy(purposes=["education"])
        with pytest.raises(PolicyRefusalError, match="purposes"):
            admitted(at, border)
        at.policy()
        admitted(at, border)
        assert [verdict for verdict, _ in decisions(border)] == ["allow", "refuse", "allow"]

    def test_a_person_s_word_counts_at_once(self, at: Home, border: Border) -> None:
        at.policy(approval="manual")
        with pytest.raises(ApprovalPendingError, match="approval"):
            admitted(at, border)
        border.audit.append("approved", {"plan": at.plan.sha256(), "by": "it"})
        admitted(at, border)
        border.audit.append("refused", {"plan": at.plan.sha256(), "by": "it"})
        with pytest.raises(PolicyRefusalError, match="approval"):
            admitted(at, border)

    def test_an_instruction_that_is_played_back_is_refused(self, at: Home, border: Border) -> None:
        seal = at.seal()
        for _ in range(3):
            border.admit(seal, at.plan.canonical_json(), 1, "")
        with pytest.raises(SealError, match="came before"):
            border.admit(seal, at.plan.canonical_json(), 1, "")
        with pytest.raises(SealError, match="came before"):
            at.open().admit(seal, at.plan.canonical_json(), 1, "")
        assert len(decisions(border)) == 3

    @pytest.mark.parametrize(("days", "complaint"), [(2, "older than a day"), (-1, "from the future")])
    def test_one_of_another_day_is_refused(self, at: Home, border: Border, days: int, complaint: str) -> None:
        seal = at.seal()
        at.now += timedelta(days=days)
        with pytest.raises(SealError, match=complaint):
            border.admit(seal, at.plan.canonical_json(), 1, "")

    def test_a_plan_or_round_that_the_seal_does_not_name_is_refused(self, at: Home, border: Border) -> None:
        other = at.plan.model_copy(update={"seed": 1})
        with pytest.raises(SealError, match="another plan or round"):
            border.admit(at.seal(), other.canonical_json(), 1, "")
        with pytest.raises(SealError, match="another plan or round"):
            border.admit(at.seal(), at.plan.canonical_json(), 2, "")
        assert decisions(border) == []

    @pytest.mark.parametrize(("kind", "number"), [("hello", 0), ("round", 1), ("round", 2), ("final", 3)])
    def test_the_plan_s_rounds_are_admitted(self, at: Home, border: Border, kind: str, number: int) -> None:
        assert admitted(at, border, kind=kind, round=number).seal.round == number

    @pytest.mark.parametrize(
        ("kind", "number"),
        [("hello", 1), ("round", 0), ("round", 3), ("round", 10**30), ("final", 0), ("final", 2), ("final", 4),
         ("probe", 1)],
    )  # fmt: skip
    def test_a_round_that_the_plan_does_not_have_is_refused(
        self, at: Home, border: Border, kind: str, number: int
    ) -> None:
        with pytest.raises(PlanError, match="no such round"):
            admitted(at, border, kind=kind, round=number)
        assert decisions(border) == []

    def test_sums_over_training_patients_are_asked_for_by_plans_that_need_them_only(
        self, tmp_path: Path, at: Home, border: Border, recipe: Callable[..., Any]
    ) -> None:
        with pytest.raises(PlanError, match="no such round"):
            admitted(at, border, kind="statistics", round=0)
        asking = make_plan(recipe(["north.yaml"], data={"standardise": "federation"}), ("north", "south"))
        other = Home(tmp_path / "other", asking)
        with pytest.raises(PolicyRefusalError, match=r"metrics\.names"):
            admitted(other, other.open(), kind="statistics", round=0)
        other.policy(metrics={"names": ["dice", "hd95_mm", "intensity_sums"], "decimals": 3})
        here = other.open()
        task = admitted(other, here, kind="statistics", round=0)
        with pytest.raises(PlanError, match="no such round"):
            admitted(other, here, kind="statistics", round=1)
        told = {"patients": 10, "means": (5.0,), "squares": (10 * (0.5**2 + 0.2**2),)}
        answer = other.answer(kind="statistics", round=0, seen=0, metrics=(), statistics=told)
        bare = Answer(answer.report)
        assert here.reasons_against(task, answer, SPECS) == ("an update that was not asked for",)
        assert here.reasons_against(task, bare, ()) == ()
        here.released(task, bare, REPLY_DIGEST, 100)
        (sent,) = here.audit.records(kind="sent")
        assert sent.body["metrics"] == {"train": ["intensity_sums"]}
        assert here.audit.sent(asking.sha256()).rounds == frozenset()
        assert line_of(sent, Asker()).asked == "to tell sums over training patients"

    @pytest.mark.parametrize(("kind", "number"), [("round", 1), ("final", 3)])
    def test_a_question_is_answered_as_often_as_the_policy_says(
        self, at: Home, border: Border, kind: str, number: int
    ) -> None:
        at.policy(plans={"day": 5, "total": 5, "repeats": 3})
        for _ in range(3):
            task = admitted(at, border, kind=kind, round=number)
        assert border.objections(task) == ()  # the third may be finished
        for again in (border, at.open()):
            with pytest.raises(PolicyRefusalError, match=r"plans\.repeats"):
                admitted(at, again, kind=kind, round=number)
        admitted(at, border, kind="round", round=2)  # another question
        for _ in range(5):
            admitted(at, border, kind="hello", round=0)  # a greeting is no answer

    def test_how_long_work_may_take_is_the_policy_s(self, at: Home, border: Border) -> None:
        at.policy(work={"minutes": 1.5})
        assert admitted(at, border).longest_s == 90.0
        at.policy(work={})
        with pytest.raises(PolicyRefusalError, match=r"work\.minutes"):
            admitted(at, border)

    def test_so_many_plans_on_a_day_and_in_all(self, at: Home, border: Border) -> None:
        at.policy(plans={"day": 1, "total": 2})
        admitted(at, border)
        admitted(at, border)  # the same one
        at.plan = at.plan.model_copy(update={"seed": 1})
        with pytest.raises(OutsideHoursError, match=r"plans\.day"):
            admitted(at, border)
        at.now += timedelta(days=1)
        admitted(at, border)
        at.now += timedelta(days=1)
        at.plan = at.plan.model_copy(update={"seed": 2})
        with pytest.raises(PolicyRefusalError, match=r"plans\.total"):
            admitted(at, border)

    def test_what_can_not_be_recorded_is_not_admitted(
        self, at: Home, border: Border, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        fill_disk(monkeypatch)
        with pytest.raises(AuditError, match="disk is full"):
            border.admit(at.seal(), at.plan.canonical_json(), 1, "")
        monkeypatch.undo()
        assert decisions(border) == []
        (at.home.audit_folder / "head.json").write_text("{}")
        with pytest.raises(AuditError, match="altered"):
            border.admit(at.seal(), at.plan.canonical_json(), 1, "")

    def test_an_instruction_that_can_not_be_noted_is_not_admitted(
        self, at: Home, border: Border, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def full(*_: object) -> None:
            raise JournalError("The disk is full; nothing half-written was left behind.")

        monkeypatch.setattr("eucaim_fl.site.nonces.write_json", full)
        with pytest.raises(JournalError, match="disk is full"):
            border.admit(at.seal(), at.plan.canonical_json(), 1, "")
        assert decisions(border) == []


def permit(**changes: Any) -> Permit:
    values: dict[str, Any] = {
        "id": "P-1",
        "issuer": "hdab",
        "holder": "university",
        "holder_key": HOLDER.public,
        "purposes": ("scientific_research",),
        "datasets": ("ds-1",),
        "valid_from": NOON - timedelta(days=1),
        "valid_until": NOON + timedelta(days=1),
    }
    return Permit.model_validate({**values, **changes})


class TestPermits:
    @pytest.fixture
    def asked(self, at: Home) -> Home:
        at.policy(asking={"permits": "required", "bodies": {"hdab": BODY.public}})
        at.plan = at.plan.model_copy(update={"permit": issue(permit(), BODY)})
        return at

    def test_one_that_covers_the_plan_is_named_in_the_decision(self, asked: Home, border: Border) -> None:
        border.admit(asked.seal(), asked.plan.canonical_json(), 1, sign_plan(asked.plan, HOLDER))
        (record,) = border.audit.records(kind="decision")
        assert (record.body["permit"], record.body["holder"]) == ("P-1", "university")
        assert record.body["permit_unverified"] is False
        assert border.audit.permit_plans("P-1") == {asked.plan.sha256()}

    def test_its_number_of_plans_is_counted_over_restarts(self, asked: Home, border: Border) -> None:
        border.admit(asked.seal(), asked.plan.canonical_json(), 1, sign_plan(asked.plan, HOLDER))
        asked.plan = asked.plan.model_copy(update={"seed": 1})
        with pytest.raises(PolicyRefusalError, match="used up here"):
            asked.open().admit(asked.seal(), asked.plan.canonical_json(), 1, sign_plan(asked.plan, HOLDER))

    def test_a_plan_that_its_holder_did_not_sign_is_refused(self, asked: Home, border: Border) -> None:
        for signature in ("", "A" * 86, sign_plan(asked.plan, COORDINATOR)):
            with pytest.raises(PolicyRefusalError, match="holder"):
                border.admit(asked.seal(), asked.plan.canonical_json(), 1, signature)

    def test_one_that_was_altered_is_refused_and_not_named_in_the_log(self, asked: Home, border: Border) -> None:
        document = issue(permit(), BODY)
        altered = {**document, "permit": {**document["permit"], "plans": 99}}  # type: ignore[dict-item]
        asked.plan = asked.plan.model_copy(update={"permit": altered})
        with pytest.raises(PolicyRefusalError, match="altered"):
            border.admit(asked.seal(), asked.plan.canonical_json(), 1, sign_plan(asked.plan, HOLDER))
        (record,) = border.audit.records(kind="decision")
        assert (record.body["permit"], record.body["holder"], record.body["reasons"]) == ("", "", ["asking"])
        assert record.body["permit_unverified"] is True

    def test_one_that_does_not_cover_the_plan_is_not_named_and_not_used_up(self, asked: Home, border: Border) -> None:
        with pytest.raises(PolicyRefusalError, match="holder"):
            border.admit(asked.seal(), asked.plan.canonical_json(), 1, "A" * 86)
        (record,) = border.audit.records(kind="decision")
        assert (record.body["permit"], record.body["holder"], record.body["permit_unverified"]) == ("", "", True)
        assert border.audit.permit_plans("P-1") == frozenset()

    def test_where_none_is_asked_for_nobody_s_name_is_taken_on_trust(self, asked: Home, border: Border) -> None:
        asked.policy()
        admitted(asked, border)
        (record,) = border.audit.records(kind="decision")
        assert (record.body["verdict"], record.body["permit_unverified"]) == ("allow", True)
        assert (record.body["permit"], record.body["holder"]) == ("", "")
        assert border.audit.permit_plans("P-1") == frozenset()

    def test_one_that_expires_while_work_is_done_lets_nothing_out(self, asked: Home, border: Border) -> None:
        task = border.admit(asked.seal(), asked.plan.canonical_json(), 1, sign_plan(asked.plan, HOLDER))
        assert border.reasons_against(task, asked.answer(), SPECS) == ()
        asked.now += timedelta(days=2)
        (reason,) = border.reasons_against(task, asked.answer(), SPECS)
        assert "no longer allows it: asking" in reason


def spoilt(plan: FederationPlan, place: tuple[Any, ...], value: object) -> str:
    """The plan's text with another value at one place, in canonical form."""
    values = json.loads(plan.canonical_json())
    inner = values
    for key in place[:-1]:
        inner = inner[key]
    inner[place[-1]] = value
    return json.dumps(values, sort_keys=True, separators=(",", ":"), ensure_ascii=False)


class TestHostilePlans:
    @pytest.mark.parametrize(
        ("place", "value"),
        [
            (("data", "folder"), "/etc"),
            (("site_file",), "/etc/passwd"),
            (("name",), "../../etc/passwd"),
            (("task", "labels", 0), "../lesion"),
            (("name",), "${oc.env:HOME}"),
            (("name",), "$HOME"),
            (("model", "name"), "${oc.env:MODEL}"),
            (("model", "_target_"), "os.system"),
            (("_target_",), "subprocess.run"),
            (("model", "args", "_target_"), "os.system"),
            (("model", "args", "channels"), [10**9, 10**9]),
            (("model", "args", "weights"), "https://127.0.0.1/weights.pt"),
            (("model", "name"), "transformers"),
            (("model", "name"), "densenet121"),  # is for another task
            (("model", "name"), "os.system"),
            (("data", "size_voxels"), [100_000, 100_000, 100_000]),
            (("data", "size_voxels"), [2**62, 16, 16]),
            (("data", "size_voxels"), [-16, -16, None]),
            (("data", "size_voxels"), [None, None, None]),
            (("training", "patch_voxels"), [2**31, 2**31]),
            (("training", "batch_size"), 2**40),
            (("training", "optimizer", "lr"), float("nan")),
            (("training", "optimizer", "lr"), float("inf")),
            (("participation", "largest_norm_ratio"), float("nan")),
            (("rounds",), 10**9),
            (("seed",), -1),
            (("sites",), ["south", "north"]),
            (("permit",), "/etc/permit.json"),
            (("purpose",), "marketing"),
            (("privacy", "mechanism"), "trust_me"),
            (("software",), "99.0"),
        ],
        ids=lambda value: str(value)[:40],
    )
    def test_they_are_refused_before_anything_else_happens(
        self, at: Home, border: Border, place: tuple[Any, ...], value: object, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        text = spoilt(at.plan, place, value)
        seal = at.seal(plan=hashlib.sha256(text.encode()).hexdigest())
        monkeypatch.setattr(Border, "read_files", lambda self: pytest.fail("the site's files were read"))
        with pytest.raises(PlanError) as caught:
            border.admit(seal, text, 1, "")
        assert "passwd" not in caught.value.message
        assert not at.home.plans_folder.exists()
        assert border.audit.head().count == 0

    @pytest.mark.parametrize("text", ["", "{}", "[]", "null", "[" * 50_000, '{"a":' * 5000, "9" * 300_000, "\ud800"])
    def test_what_is_no_plan_is_refused(self, at: Home, border: Border, text: str) -> None:
        with pytest.raises(PlanError, match="plan"):
            border.admit(at.seal(), text, 1, "")
        assert not at.home.plans_folder.exists()

    def test_the_plan_that_they_were_made_from_is_a_good_one(self, at: Home, border: Border) -> None:
        assert border.admit(at.seal(), spoilt(at.plan, ("seed",), at.plan.seed), 1, "").plan == at.plan


class TestTheGate:
    def test_a_good_answer_may_leave(self, at: Home, border: Border) -> None:
        assert border.reasons_against(admitted(at, border), at.answer(), SPECS) == ()

    @pytest.mark.parametrize(
        ("changes", "reason"),
        [
            ({"update": {"largest_norm": 4.9}}, "longer"),  # its norm is 5
            ({"metrics": {"names": ["dice", "hd95_mm"], "decimals": 0}}, "more decimal places"),
            ({"sent_mb": {"message": 0.0001, "plan": 3, "day": 2}}, "more bytes"),
        ],
    )
    def test_the_policy_s_bounds_count(self, at: Home, border: Border, changes: dict[str, Any], reason: str) -> None:
        at.policy(**changes)
        (found,) = border.reasons_against(admitted(at, border), at.answer(), SPECS)
        assert reason in found

    def test_the_policy_s_least_number_of_patients_counts(self, tmp_path: Path, recipe: Callable[..., Any]) -> None:
        plan = make_plan(recipe(["north.yaml"], training={"local_steps": 4}), ("north", "south"))  # of four cases each
        at = Home(tmp_path / "other", plan)
        border = at.open()
        at.policy(patients={"training": 15, "metric": 5})
        (found,) = border.reasons_against(admitted(at, border), at.answer(), SPECS)
        assert "fewer training patients" in found
        assert border.reasons_against(admitted(at, border), at.answer(patients=15, seen=15), SPECS) == ()

    def test_what_has_left_already_is_taken_off(self, at: Home, border: Border) -> None:
        task = admitted(at, border)
        border.released(task, at.answer(), REPLY_DIGEST, 2_000_000)
        (reason,) = border.reasons_against(task, at.answer(), SPECS)
        assert "more bytes" in reason

    def test_a_policy_that_was_changed_while_work_was_done_counts(self, at: Home, border: Border) -> None:
        task = admitted(at, border)
        at.policy(update={"largest_norm": 1})
        (reason,) = border.reasons_against(task, at.answer(), SPECS)
        assert "longer" in reason
        at.policy(purposes=["education"])
        (reason,) = border.reasons_against(task, at.answer(), SPECS)
        assert "no longer allows it: purposes" in reason

    def test_a_plan_that_a_person_refused_while_work_was_done_gets_no_answer(self, at: Home, border: Border) -> None:
        task = admitted(at, border)
        border.audit.append("refused", {"plan": at.plan.sha256(), "by": "it"})
        (reason,) = border.reasons_against(task, at.answer(), SPECS)
        assert "no longer allows it: approval" in reason

    def test_steps_that_saw_few_patients_let_nothing_out(self, at: Home, border: Border) -> None:
        (reason,) = border.reasons_against(admitted(at, border), at.answer(patients=500, seen=5), SPECS)
        assert "saw fewer patients" in reason

    def test_what_speaks_against_a_plan_by_now_can_be_asked_while_work_is_done(self, at: Home, border: Border) -> None:
        task = admitted(at, border)
        assert border.objections(task) == ()
        at.policy(purposes=["education"], rounds=1)
        assert border.objections(task) == ("the site's policy no longer allows it: purposes, rounds",)
        at.policy()
        border.audit.append("refused", {"plan": at.plan.sha256(), "by": "it"})
        assert border.objections(task) == ("the site's policy no longer allows it: approval",)
        at.site_file(name="south")
        assert border.objections(task) == ("the site's own files can't be used",)
        at.site_file()
        (at.home.audit_folder / "audit.sqlite").write_bytes(b"no database" * 1000)
        with pytest.raises(AuditError, match="damaged"):
            border.objections(task)

    def test_files_that_change_in_the_middle_of_a_look_end_nothing(
        self, at: Home, border: Border, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        task, real = admitted(at, border), border.read_files

        def once() -> Any:
            found = real()
            at.home.policy_file.write_text("half a fi")
            return found

        monkeypatch.setattr(border, "read_files", once)
        assert border.reasons_against(task, at.answer(), SPECS) == ()
        assert border.reasons_against(task, at.answer(), SPECS) == ("the site's own files can't be used",)

    def test_a_policy_that_is_half_written_gets_a_second_look(
        self, at: Home, border: Border, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        task, whole = admitted(at, border), at.home.policy_file.read_text()
        at.home.policy_file.write_text(whole[: len(whole) // 2] + "\n: [")
        monkeypatch.setattr("time.sleep", lambda _: at.home.policy_file.write_text(whole))
        assert border.objections(task) == ()

    def test_work_that_was_begun_in_time_may_end_after_hours(self, at: Home, border: Border) -> None:
        at.policy(hours=[{"days": ["mon"], "start": "08:00", "end": "12:30", "zone": "UTC"}])
        task = admitted(at, border)
        at.now += timedelta(hours=1)
        assert border.objections(task) == ()
        assert border.reasons_against(task, at.answer(), SPECS) == ()

    def test_site_files_that_can_not_be_read_any_more_let_nothing_out(self, at: Home, border: Border) -> None:
        task = admitted(at, border)
        at.home.policy_file.unlink()
        assert border.reasons_against(task, at.answer(), SPECS) == ("the site's own files can't be used",)

    def test_a_log_that_can_not_be_read_is_an_error(self, at: Home, border: Border) -> None:
        task = admitted(at, border)
        (at.home.audit_folder / "audit.sqlite").write_bytes(b"no database" * 1000)
        with pytest.raises(AuditError, match="damaged"):
            border.reasons_against(task, at.answer(), SPECS)


class TestWhatLeaves:
    def test_an_answer_is_in_the_log_and_its_seal_bears_the_log_s_head(self, at: Home, border: Border) -> None:
        task = admitted(at, border)
        seal = read_reply_seal(border.released(task, at.answer(), REPLY_DIGEST, 1234), SITE.public)
        *_, record = border.audit.records()
        assert record.kind == "sent"
        assert record.body == {
            "plan": at.plan.sha256(),
            "kind": "round",
            "round": 1,
            "instruction": task.seal.nonce,
            "digest": REPLY_DIGEST,
            "bytes": 1234,
            "arrays": 1,
            "patients": 10,
            "metrics": {"validation": ["dice"]},
            "pictures": 0,
            "update_norm": 5.0,
            "epsilon": None,
        }
        assert (seal.audit_count, seal.audit_hash) == (record.seq, record.hash)
        assert (seal.state, seal.content, seal.nonce, seal.kind) == ("answer", REPLY_DIGEST, task.seal.nonce, "round")
        assert verify_log(at.home.audit_folder, SITE.public, [border.audit.head()]) == ()

    def test_a_coded_no_is_in_the_log_too(self, at: Home, border: Border) -> None:
        problem = CohortError("Too few patients.", local_detail="/cohort/secret")
        record = border.withheld(at.seal(), problem, ("too few", "x" * 1000), (REPLY_DIGEST, 99))
        seal = read_reply_seal(record, SITE.public)
        (kept,) = border.audit.records(kind="withheld")
        assert (kept.body["code"], kept.body["reasons"]) == ("EFL201", ["too few", "x" * 200])
        assert (kept.body["digest"], kept.body["bytes"]) == (REPLY_DIGEST, 99)
        assert "secret" not in json.dumps(kept.body)
        assert (seal.audit_count, seal.audit_hash, seal.content) == (kept.seq, kept.hash, REPLY_DIGEST)

    def test_the_log_comes_before_the_seal(self, at: Home, border: Border, monkeypatch: pytest.MonkeyPatch) -> None:
        task, real, seen = admitted(at, border), PrivateKey.sign, list[bool]()

        def sign(key: PrivateKey, purpose: str, value: Any) -> str:
            if purpose == "reply":
                head = border.audit.head()
                seen.append((value["audit_count"], value["audit_hash"]) == (head.count, head.hash))
            return real(key, purpose, value)

        monkeypatch.setattr(PrivateKey, "sign", sign)
        border.released(task, at.answer(), REPLY_DIGEST, 1)
        border.withheld(task.seal, CohortError("No."), ("no",), (REPLY_DIGEST, 99))
        assert seen == [True, True]

    def test_what_can_not_be_recorded_is_not_sealed(
        self, at: Home, border: Border, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        task, real = admitted(at, border), PrivateKey.sign
        fill_disk(monkeypatch)

        def sign(key: PrivateKey, purpose: str, value: Any) -> str:
            assert purpose != "reply"
            return real(key, purpose, value)

        monkeypatch.setattr(PrivateKey, "sign", sign)
        with pytest.raises(AuditError, match="disk is full"):
            border.released(task, at.answer(), REPLY_DIGEST, 1)
        with pytest.raises(AuditError, match="disk is full"):
            border.withheld(task.seal, CohortError("No."), ("no",), (REPLY_DIGEST, 99))

    def test_where_copies_are_asked_for_nothing_leaves_without_one(self, at: Home, tmp_path: Path) -> None:
        kept = tmp_path / "sent"
        border = Border(at.home, lambda: NOON, kept)
        border.released(admitted(at, border), at.answer(), REPLY_DIGEST, 1234)
        assert [path.name for path in kept.iterdir()] == [REPLY_DIGEST]
        (tmp_path / "file").write_text("")
        strict = Border(at.home, lambda: NOON, tmp_path / "file")
        with pytest.raises(JournalError, match="can't be kept"):
            strict.released(admitted(at, strict, nonce="7" * 32), at.answer(), REPLY_DIGEST, 1234)
        assert len(list(border.audit.records(kind="sent"))) == 1

    def test_an_answer_that_leaves_once_more_is_recorded_once_more(self, at: Home, border: Border) -> None:
        task = admitted(at, border)
        border.released(task, at.answer(), REPLY_DIGEST, 1234)
        border.sent_again(task, REPLY_DIGEST, 1234)
        first, again = (record.body for record in border.audit.records(kind="sent"))
        assert "again" not in first
        assert again == {
            "plan": at.plan.sha256(),
            "kind": "round",
            "round": 1,
            "instruction": task.seal.nonce,
            "digest": REPLY_DIGEST,
            "bytes": 1234,
            "again": True,
        }
        assert border.audit.sent(at.plan.sha256()).bytes == border.audit.sent_today(NOON) == 2 * 1234
        assert border.audit.sent(at.plan.sha256()).rounds == {1}

    def test_one_that_may_not_leave_any_more_stays(self, at: Home, border: Border) -> None:
        task = admitted(at, border)
        border.released(task, at.answer(), REPLY_DIGEST, 1000)
        border.audit.append("refused", {"plan": at.plan.sha256(), "by": "it"})
        with pytest.raises(GateError, match="no longer allows it: approval"):
            border.sent_again(task, REPLY_DIGEST, 1000)
        at.home.policy_file.unlink()
        with pytest.raises(GateError, match="own files can't be used"):
            border.sent_again(task, REPLY_DIGEST, 1000)
        assert len(list(border.audit.records(kind="sent"))) == 1

    @pytest.mark.parametrize(
        "sent", [{"message": 0.9, "plan": 9, "day": 9}, {"message": 1, "plan": 1.9, "day": 9},
                 {"message": 1, "plan": 9, "day": 1.9}],
    )  # fmt: skip
    def test_the_bytes_of_message_plan_and_day_count_each_time(
        self, at: Home, border: Border, sent: dict[str, float]
    ) -> None:
        task = admitted(at, border)
        border.released(task, at.answer(), REPLY_DIGEST, 1_000_000)
        at.policy(sent_mb=sent)
        with pytest.raises(GateError, match="more bytes than this site permits"):
            border.sent_again(task, REPLY_DIGEST, 1_000_000)
        at.policy(sent_mb={"message": 1, "plan": 2, "day": 2})
        border.sent_again(task, REPLY_DIGEST, 1_000_000)

    def test_one_that_can_not_be_recorded_again_stays(
        self, at: Home, border: Border, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        task = admitted(at, border)
        fill_disk(monkeypatch)
        with pytest.raises(AuditError, match="disk is full"):
            border.sent_again(task, REPLY_DIGEST, 1000)

    def test_the_record_that_the_coordinator_knows_is_shown_to_it(self, at: Home, border: Border) -> None:
        for number in range(3):
            border.started(number)
        hashes = [record.hash for record in border.audit.records()]
        task = admitted(at, border, audit_count=2)
        for made in (
            border.released(task, at.answer(), REPLY_DIGEST, 1),
            border.withheld(task.seal, CohortError("No."), ("no",), (REPLY_DIGEST, 99)),
            border.word(task.seal.model_copy(update={"kind": "probe"}), "working", REPLY_DIGEST),
        ):
            assert read_reply_seal(made, SITE.public).audit_then == hashes[1]
        for unknown in (0, 1000, 2**53):
            seal = border.word(at.seal(kind="probe", audit_count=unknown), "unknown", REPLY_DIGEST)
            assert read_reply_seal(seal, SITE.public).audit_then == ""

    def test_figures_that_are_no_numbers_can_not_be_recorded_and_stay(self, at: Home, border: Border) -> None:
        task, answer = admitted(at, border), at.answer()
        answer.update["w"][0] = np.nan
        with pytest.raises(AuditError, match="JSON"):
            border.released(task, answer, REPLY_DIGEST, 1)

    @pytest.mark.parametrize("state", ["working", "unknown"])
    def test_a_word_in_between_says_nothing_and_adds_nothing(self, at: Home, border: Border, state: str) -> None:
        border.started(1)
        seal = read_reply_seal(border.word(at.seal(kind="probe"), state, REPLY_DIGEST), SITE.public)
        assert (seal.state, seal.kind, seal.audit_count) == (state, "probe", 1)
        assert border.audit.head().count == 1

    def test_rounds_and_bytes_count_for_the_next_decision(self, at: Home, border: Border) -> None:
        task = admitted(at, border)
        border.released(task, at.answer(), REPLY_DIGEST, 1_500_000)
        situation = admitted(at, border).situation
        assert (situation.rounds_done, situation.bytes_sent) == ({1}, 1_500_000)


class TestPrivacy:
    """An update of a plan with noise leaves only if the ledger was charged since the instruction came."""

    UNPAID = "an update that this site's privacy ledger was not charged for"

    @pytest.fixture
    def at(self, tmp_path: Path, recipe: Callable[..., Any]) -> Home:
        noise = {"mechanism": "patient_dp", "noise_multiplier": 2.0, "delta": 1e-5, "clipping_norm": 1.0}
        config = recipe(["north.yaml"], privacy={**noise, "sampling_rate": 1.0})
        home = Home(tmp_path / "home", make_plan(config, ("north", "south")))
        declared = {"test_data": ["validation"], "held_out": 0.2}
        home.policy(privacy={"mechanism": "dp", "epsilon": 8.0, "delta": 1e-5, **declared})
        return home

    def charge(
        self, at: Home, border: Border, number: int = 1, use: Literal["train", "figures"] = "train", part: str = ""
    ) -> LedgerHead:
        ledger = Ledger(border.site.records_folder() / "ledger", "north")
        what = Purchase(at.plan.sha256(), at.plan.name, at.plan.purpose, "north", use, True, part)
        once = Mechanism(4.0, 1.0, 1) if use == "figures" else Mechanism(2.0, 1.0, 3)
        ledger.commit(what, number, once, [f"p{n}" for n in range(12)], NO_LIMITS, 1)
        return ledger.head()

    def test_without_a_charge_it_stays(self, at: Home, border: Border) -> None:
        task = admitted(at, border)
        assert border.reasons_against(task, at.answer(seen=0), SPECS) == (self.UNPAID,)

    def test_with_one_it_leaves_and_the_log_says_at_what_cost(self, at: Home, border: Border) -> None:
        task = admitted(at, border)
        head = self.charge(at, border)
        assert border.reasons_against(task, at.answer(seen=0), SPECS) == ()
        border.released(task, at.answer(seen=0), REPLY_DIGEST, 1234)
        *_, record = border.audit.records()
        spent = epsilon([Mechanism(2.0, 1.0, 3)], 1e-5)
        assert record.body["epsilon"] == round(spent, 6)
        assert record.body["delta"] == 1e-5
        assert (record.body["ledger_count"], record.body["ledger"]) == (head.count, head.hash) == (1, head.hash)

    def test_one_of_another_round_or_of_an_earlier_time_does_not_count(self, at: Home, border: Border) -> None:
        self.charge(at, border)
        task = admitted(at, border)
        assert task.ledger_count == 1
        self.charge(at, border, 2)
        assert border.reasons_against(task, at.answer(seen=0), SPECS) == (self.UNPAID,)
        self.charge(at, border)
        assert border.reasons_against(task, at.answer(seen=0), SPECS) == ()

    def test_after_another_ledger_was_put_in_its_place_plans_that_charge_are_not_admitted(
        self, at: Home, border: Border
    ) -> None:
        """An old copy would give back what is spent; the audit log knows the newest head."""
        folder = border.site.records_folder() / "ledger"
        self.charge(at, border)
        shutil.copytree(folder, folder.with_name("copy"))
        task = admitted(at, border)
        self.charge(at, border)
        border.released(task, at.answer(seen=0), REPLY_DIGEST, 1234)
        assert admitted(at, border).ledger_count == 2
        shutil.rmtree(folder)
        with pytest.raises(LedgerError, match="not the one that this site's audit log knows"):
            admitted(at, border)
        shutil.copytree(folder.with_name("copy"), folder)
        with pytest.raises(LedgerError, match="not the one that this site's audit log knows"):
            admitted(at, border)

    def test_noised_figures_without_a_charge_stay(self, at: Home, border: Border) -> None:
        privacy = at.plan.privacy.model_copy(update={"metrics_noise": 4.0})
        at.plan = at.plan.model_copy(update={"privacy": privacy})
        task, dp = admitted(at, border), {"mechanism": "dp", "epsilon": 8.0, "delta": 1e-5}
        self.charge(at, border)
        answer = at.answer(seen=0)
        assert border.reasons_against(task, answer, SPECS) == (), "the policy declares them as test data"
        at.policy(privacy=dp)
        unpaid = ("figures that this site's privacy ledger was not charged for",)
        assert border.reasons_against(task, answer, SPECS) == unpaid
        self.charge(at, border, 2, "figures", "validation")
        self.charge(at, border, 1, "figures", "test")
        assert border.reasons_against(task, answer, SPECS) == unpaid
        self.charge(at, border, 1, "figures", "validation")
        assert border.reasons_against(task, answer, SPECS) == ()

    @pytest.mark.parametrize("mechanism", ["patient_dp", "update_dp", "central_dp"])
    def test_noise_that_can_be_foreseen_is_refused_for_confidential_data_before_a_person_is_asked(
        self, at: Home, mechanism: str
    ) -> None:
        noise = {"noise_multiplier": 2.0, "delta": 1e-5, "clipping_norm": 1.0, "secure": False}
        more = {"sampling_rate": 1.0} if mechanism == "patient_dp" else {}
        at.plan = at.plan.model_copy(
            update={"privacy": PrivacyConfig.model_validate({**noise, **more, "mechanism": mechanism})}
        )
        at.policy(approval="manual")  # and privacy: none
        border = at.open()
        with pytest.raises(PolicyRefusalError, match=r"refuses the plan: privacy\. .*seed that the coordinator knows"):
            admitted(at, border)
        assert decisions(border) == [("refuse", ["privacy", "approval"])]
        at.site_file(release={"data_is": "public"})
        with pytest.raises(ApprovalPendingError, match="approval"):
            admitted(at, border)

    def test_an_answer_without_an_update_owes_nothing(self, at: Home, border: Border) -> None:
        task = admitted(at, border, kind="hello", round=0)
        hello = Answer(at.answer(kind="hello", round=0, seen=0, metrics=()).report)
        assert border.reasons_against(task, hello, SPECS) == ()

    def test_what_noise_should_hide_stays_although_it_was_charged_for(self, at: Home, border: Border) -> None:
        task = admitted(at, border)
        self.charge(at, border)
        (reason,) = border.reasons_against(task, at.answer(), SPECS)
        assert "a number of sampled patients" in reason
        at.policy(privacy={"mechanism": "dp", "epsilon": 8.0, "delta": 1e-5})
        (reason,) = border.reasons_against(task, at.answer(seen=0), SPECS)
        assert "figures without noise" in reason

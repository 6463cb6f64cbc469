"""A person's word on a plan: what waits for it, which plan is meant, what the policy says besides, and who said it."""

from __future__ import annotations

import os
import pwd
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from eucaim_fl.errors import AuditError, ConfigError, PlanError
from eucaim_fl.plan import FederationPlan
from eucaim_fl.signing import PrivateKey
from eucaim_fl.site.approvals import Waiting, decide_now, find_plan, login_name, say, stated_name, waiting
from eucaim_fl.site.audit import AuditLog, AuditRecord
from eucaim_fl.site.audit_words import Asker, line_of
from eucaim_fl.site.home import SiteHome
from eucaim_fl.site.policy import load_policy

NOW = datetime(2026, 3, 1, 12, tzinfo=UTC)
A, B = "a" * 64, "b" * 64
POLICY = """schema: eucaim-fl-policy/1
valid_until: 2026-12-31
datasets: [demo]
asking: {permits: not_required}
purposes: [scientific_research]
tasks: [segmentation]
networks: any
sites: {at_least: 1}
patients: {training: 2, metric: 1}
metrics: {names: [dice, hd95_mm], decimals: 3}
rounds: 10
plans: {day: 1, total: 2}
hours: any
work: {minutes: 10}
sent_mb: {message: 10, plan: 10, day: 10}
update: {largest_norm: 100}
privacy: {mechanism: none}
approval: manual
"""


def asked(plan: str, verdict: str = "wait", reasons: tuple[str, ...] = ("approval",), at: str = "1") -> AuditRecord:
    body: dict[str, Any] = {
        "plan": plan,
        "name": f"plan-{plan[0]}",
        "purpose": "scientific_research",
        "holder": "",
        "verdict": verdict,
        "reasons": list(reasons),
    }
    return AuditRecord(1, at, "decision", body, "", "", "")


def word(plan: str, kind: str) -> AuditRecord:
    return AuditRecord(1, "2", kind, {"plan": plan, "by": "somebody"}, "", "", "")


class TestWhatWaits:
    def test_a_plan_that_waits_for_a_person_is_told_once_with_both_times(self):
        found = waiting([asked(A, at="1"), asked(A, at="2"), asked(A, at="3")])
        assert found == (Waiting(A, "plan-a", "scientific_research", "", "1", "3"),)

    @pytest.mark.parametrize("kind", ["approved", "refused"])
    def test_a_persons_word_ends_the_waiting(self, kind):
        assert [one.plan for one in waiting([asked(A), asked(B), word(A, kind)])] == [B]

    def test_one_that_waits_for_its_hours_alone_waits_for_nobody(self):
        assert waiting([asked(A, reasons=("hours",))]) == ()
        assert len(waiting([asked(A, reasons=("hours", "approval"))])) == 1

    @pytest.mark.parametrize("verdict", ["allow", "refuse"])
    def test_the_last_decision_counts(self, verdict):
        assert waiting([asked(A), asked(A, verdict, ("rounds",))]) == ()

    def test_other_records_are_passed_over(self):
        assert len(waiting([asked(A), AuditRecord(2, "2", "sent", {"plan": A}, "", "", "")])) == 1


class TestFindingAPlan:
    @pytest.fixture
    def kept(self, tmp_path: Path, plan_for: Callable[..., FederationPlan]) -> tuple[SiteHome, FederationPlan]:
        home, plan = SiteHome(tmp_path), plan_for()
        home.plans_folder.mkdir(parents=True)
        (home.plans_folder / f"{plan.sha256()}.json").write_text(plan.canonical_json())
        return home, plan

    def test_its_hash_or_the_beginning_of_it_names_it(self, kept):
        home, plan = kept
        assert find_plan(home, plan.sha256()) == plan
        assert find_plan(home, plan.sha256()[:4]) == plan

    @pytest.mark.parametrize("prefix", ["", "abc", "ABCD", "../x", "????", "a" * 65])
    def test_what_is_no_hash_is_refused(self, kept, prefix):
        with pytest.raises(PlanError, match="named by its SHA-256"):
            find_plan(kept[0], prefix)

    def test_a_plan_that_nobody_asked_for(self, kept, tmp_path):
        home, plan = kept
        other = "0000" if not plan.sha256().startswith("0000") else "1111"
        with pytest.raises(PlanError, match="No plan of that SHA-256"):
            find_plan(home, other)
        with pytest.raises(PlanError, match="No plan of that SHA-256"):
            find_plan(SiteHome(tmp_path / "nowhere"), other)

    def test_a_beginning_that_several_share(self, kept):
        home, plan = kept
        (home.plans_folder / f"{plan.sha256()[:8]}{'0' * 56}.json").write_text("")
        with pytest.raises(PlanError, match="Several plans"):
            find_plan(home, plan.sha256()[:8])

    def test_a_plan_that_was_put_in_the_place_of_another(self, kept):
        home, plan = kept
        other = home.plans_folder / f"{'c' * 64}.json"
        other.write_text(plan.canonical_json())
        with pytest.raises(PlanError, match="altered"):
            find_plan(home, "cccc")
        other.write_bytes(b"\xff")
        with pytest.raises(PlanError, match="can't be read"):
            find_plan(home, "cccc")


class TestDeciding:
    @pytest.fixture
    def audit(self, tmp_path: Path) -> AuditLog:
        return AuditLog(tmp_path / "audit", PrivateKey.create(), "a", clock=lambda: NOW)

    @pytest.fixture
    def policy(self, tmp_path: Path) -> Path:
        (tmp_path / "policy.yaml").write_text(POLICY)
        return tmp_path / "policy.yaml"

    def test_the_last_word_decides_and_all_else_stays_in_force(self, plan_for, audit, policy):
        plan, loaded = plan_for(), load_policy(policy)
        assert [c.key for c in decide_now(plan, "a", loaded, audit, NOW).waiting] == ["approval"]
        say(audit, plan.sha256(), "approved", "somebody")
        assert decide_now(plan, "a", loaded, audit, NOW).allowed
        say(audit, plan.sha256(), "refused", "somebody")
        assert [c.key for c in decide_now(plan, "a", loaded, audit, NOW).refused] == ["approval"]
        say(audit, plan.sha256(), "approved", "somebody")
        policy.write_text(POLICY.replace("rounds: 10", "rounds: 1"))
        assert [c.key for c in decide_now(plan, "a", load_policy(policy), audit, NOW).refused] == ["rounds"]

    def test_noise_from_the_seed_is_for_a_site_whose_data_hide_nobody(self, plan_for, audit, policy):
        noise = {"noise_multiplier": 8.0, "delta": 1e-5, "clipping_norm": 1.0}
        plan = plan_for(privacy={**noise, "mechanism": "update_dp", "secure": False})
        loaded = load_policy(policy)
        for log in (audit, None):
            assert [c.key for c in decide_now(plan, "a", loaded, log, NOW).refused] == ["privacy"]
            assert decide_now(plan, "a", loaded, log, NOW, confidential=False).refused == ()

    def test_what_has_left_counts(self, plan_for, audit, policy):
        plan = plan_for()
        audit.append("sent", {"plan": plan.sha256(), "kind": "round", "round": 1, "bytes": 10_000_000})
        refused = decide_now(plan, "a", load_policy(policy), audit, NOW).refused
        assert [clause.key for clause in refused] == ["sent_mb.plan"]

    def test_other_plans_that_were_allowed_count_and_this_one_once(self, plan_for, audit, policy):
        plan = plan_for()
        audit.append("decision", {"plan": plan.sha256(), "verdict": "allow"})
        audit.append("decision", {"plan": "1" * 64, "verdict": "wait"})
        assert [c.key for c in decide_now(plan, "a", load_policy(policy), audit, NOW).waiting] == ["approval"]
        audit.append("decision", {"plan": "2" * 64, "verdict": "allow"})
        decision = decide_now(plan, "a", load_policy(policy), audit, NOW)
        assert [c.key for c in decision.waiting] == ["plans.day", "approval"]
        tomorrow = decide_now(plan, "a", load_policy(policy), audit, NOW + timedelta(hours=12))
        assert [c.key for c in tomorrow.waiting] == ["approval"]
        audit.append("decision", {"plan": "3" * 64, "verdict": "allow"})
        assert [c.key for c in decide_now(plan, "a", load_policy(policy), audit, NOW).refused] == ["plans.total"]

    def test_without_a_log_nothing_is_known_of_the_plan(self, plan_for, policy):
        assert [c.key for c in decide_now(plan_for(), "a", load_policy(policy), None, NOW).waiting] == ["approval"]

    def test_the_log_keeps_who_said_it(self, audit):
        say(audit, A, "approved", "somebody")
        (record,) = audit.records(kind="approved")
        assert record.body == {"plan": A, "by": "somebody"}
        say(audit, A, "refused", "somebody", "dpo-2")
        (record,) = audit.records(kind="refused")
        assert record.body == {"plan": A, "by": "somebody", "stated_by": "dpo-2"}
        assert line_of(record, Asker()).by == "somebody (gave the name dpo-2)"

    def test_a_log_that_cannot_be_used(self, plan_for, audit, policy):
        audit.append("started", {})
        (audit.folder / "audit.sqlite").write_bytes(b"nothing")
        with pytest.raises(AuditError, match="damaged"):
            say(audit, A, "approved", "somebody")
        with pytest.raises(AuditError, match="damaged"):
            decide_now(plan_for(), "a", load_policy(policy), audit, NOW)


class TestWhoDecides:
    @pytest.mark.parametrize("name", ["dpo-2", "A", "dpo@hospital.example", "9" * 64])
    def test_a_short_name_may_be_stated(self, name):
        assert stated_name(name) == name

    @pytest.mark.parametrize("name", ["", " ", "-x", "dpo 2", "a\n", "a/b", "\x1b[2J", "é", "9" * 65])
    def test_what_is_no_short_name_is_refused_and_not_repeated(self, name):
        with pytest.raises(ConfigError, match="can't be recorded") as caught:
            stated_name(name)
        assert len(name) < 5 or name not in str(caught.value)

    def test_it_is_who_sits_at_the_terminal(self, monkeypatch):
        monkeypatch.setattr(os, "getlogin", lambda: "some\x1bbody")
        assert login_name() == "somebody"

    def test_without_a_terminal_it_is_the_user_of_the_process(self, monkeypatch):
        def none(*_: object) -> str:
            raise OSError

        monkeypatch.setattr(os, "getlogin", none)
        assert login_name() == pwd.getpwuid(os.getuid()).pw_name

        def nameless(_: int) -> None:
            raise KeyError

        monkeypatch.setattr(pwd, "getpwuid", nameless)
        assert login_name() == f"user {os.getuid()}"

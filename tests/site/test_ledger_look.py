"""Where a ledger lies and what is known of it: read from a real one, never failing for `site status`."""

from __future__ import annotations

import json
import shutil
import sqlite3
from collections.abc import Callable
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import yaml

from eucaim_fl.errors import AuditError, ConfigError, LedgerError, PolicyError, ServiceStateError, SiteFileError
from eucaim_fl.plan import FederationPlan
from eucaim_fl.signing import PrivateKey
from eucaim_fl.site.audit import AuditLog, AuditReader
from eucaim_fl.site.home import SiteHome
from eucaim_fl.site.ledger import Ledger, LedgerHead
from eucaim_fl.site.ledger_look import (
    LedgerPlace,
    audit_heads,
    exposure_of,
    ledger_faults,
    locate_ledger,
    page_of,
    privacy_status,
    sent_lines,
    whole_plan,
)
from eucaim_fl.site.ledger_state import EMPTY, charges_of, read_state
from eucaim_fl.site.policy_privacy import NO_LIMITS
from eucaim_fl.sitefile import SiteFile
from tests.site.ledgers import DELTA, A, B, once, purchase, two_runs

pytestmark = pytest.mark.integration

DP = {"mechanism": "dp", "epsilon": 3, "delta": DELTA, "patient_epsilon": 3, "dataset_epsilon": 6}


@pytest.fixture
def home(tmp_path: Path) -> SiteHome:
    """A home with a site file, a policy with budgets and a key; no ledger yet."""
    home = SiteHome(tmp_path / "home")
    home.site_key.parent.mkdir(parents=True)
    PrivateKey.create().save(home.site_key)
    site = {
        "name": "a",
        "cohort": {"layout": "nifti_csv", "folder": str(tmp_path / "cohort")},
        "cache": {"folder": str(tmp_path / "cache")},
        "policy": "policy.yaml",
    }
    home.site_file.write_text(yaml.safe_dump(site))
    write_policy(home, DP)
    return home


def write_policy(home: SiteHome, privacy: dict[str, Any], **changes: Any) -> None:
    home.policy_file.write_text(yaml.safe_dump({"schema": "eucaim-fl-policy/1", "privacy": privacy, **changes}))


def spend(home: SiteHome, plan: str = A, rounds: int = 2) -> Ledger:
    """Reserve three rounds of a plan for two patients, and charge some of them."""
    ledger = Ledger(locate_ledger(home.folder, None).folder, "a")
    ledger.reserve(purchase(plan), once(3), ["P1", "P2"], NO_LIMITS, 1)
    for number in range(1, rounds + 1):
        ledger.commit(purchase(plan), number, once(), ["P1", "P2"], NO_LIMITS, 1)
    return ledger


def alter(folder: Path) -> None:
    with sqlite3.connect(folder / "ledger.sqlite") as base:
        base.execute("DROP TRIGGER records_delete")
        base.execute("DELETE FROM records WHERE seq = 2")
    base.close()


class TestPlace:
    def test_either_a_home_or_a_site_file_is_named(self, home: SiteHome) -> None:
        for names in ((None, None), (home.folder, home.site_file)):
            with pytest.raises(ConfigError, match="Name the site's home or a site file"):
                locate_ledger(*names)
        alone = locate_ledger(None, home.site_file)
        assert (alone.home, alone.folder) == (None, locate_ledger(home.folder, None).folder)
        assert alone.policy is not None, "the site file names it"

    def test_files_that_cannot_be_used(self, home: SiteHome) -> None:
        home.policy_file.write_text("x")
        with pytest.raises(PolicyError, match="policy"):
            locate_ledger(home.folder, None)
        with pytest.raises(ServiceStateError, match="not the home of a site"):
            locate_ledger(home.folder / "other", None)
        with pytest.raises(SiteFileError, match="missing"):
            locate_ledger(None, home.folder / "other.yaml")

    def test_the_stricter_number_of_patients_counts(self, home: SiteHome) -> None:
        assert locate_ledger(home.folder, None).at_least == 10
        write_policy(home, DP, patients={"training": 40})
        assert locate_ledger(home.folder, None).at_least == 40

    def test_delta_is_the_chosen_one_else_the_policy_s_else_the_plan_s(self, home: SiteHome) -> None:
        place = locate_ledger(home.folder, None)
        assert (place.delta(1e-6, 1e-7), place.delta(None, 1e-7)) == (1e-6, DELTA)
        bare = LedgerPlace(place.site, None, None)
        assert bare.delta(None, 1e-7) == 1e-7
        with pytest.raises(ConfigError, match="no delta"):
            bare.delta(None)
        with pytest.raises(ConfigError, match="between 0 and 1"):
            bare.delta(1.5)


class TestState:
    def test_charges_reservations_and_groups_are_read(self, home: SiteHome) -> None:
        ledger = spend(home)
        ledger.commit(purchase(B), 1, once(), ["P2"], NO_LIMITS, 1)
        state = read_state(ledger.folder)
        assert [(c.number, c.round, c.patients) for c in state.charges] == [(2, 1, 2), (3, 2, 2), (4, 1, 1)]
        assert [(one.what.plan, one.mechanism, one.patients) for one in state.held] == [(A, once(), 2)]
        assert state.groups == ((1, (once(2),), (once(3),)), (1, (once(3),), (once(4),)))
        assert (state.head, state.site, state.patients) == (ledger.head(), "a", 2)
        assert charges_of(ledger.entries()) == state.charges

    def test_what_a_plan_has_reserved_can_be_left_out(self, home: SiteHome) -> None:
        ledger = spend(home)
        assert read_state(ledger.folder, apart=A).held == ()
        assert read_state(ledger.folder, apart=A).groups == ((2, (once(2),), (once(2),)),)
        assert len(read_state(ledger.folder).held) == 1, "nothing was released"

    def test_so_can_what_idle_plans_have_reserved(self, home: SiteHome) -> None:
        ledger = spend(home)
        (held,) = read_state(ledger.folder).held
        last = datetime.fromisoformat(held.last)
        assert held.last == list(ledger.entries(A))[-1].time
        assert read_state(ledger.folder, idle_since=last).held == ()
        assert read_state(ledger.folder, apart=B, idle_since=last - timedelta(seconds=1)).held == (held,)

    def test_a_ledger_that_was_altered_is_not_read(self, home: SiteHome, tmp_path: Path) -> None:
        assert read_state(tmp_path) is EMPTY
        ledger = spend(home)
        alter(ledger.folder)
        with pytest.raises(LedgerError, match="altered"):
            read_state(ledger.folder)


class TestWholePlan:
    def test_a_plan_is_named_by_its_first_characters(self) -> None:
        assert whole_plan(two_runs(), "aaa") == A
        with pytest.raises(ConfigError, match="knows no such plan"):
            whole_plan(two_runs(), "c")
        with pytest.raises(ConfigError, match="Several plans"):
            whole_plan(two_runs(), "")


class TestHeads:
    def test_the_audit_log_s_heads_are_read_once_each(self, home: SiteHome) -> None:
        log = AuditLog(home.audit_folder, PrivateKey.load(home.site_key), "a")
        paid = {"plan": A, "kind": "round", "bytes": 1, "epsilon": 1.0, "ledger_count": 3, "ledger": "f" * 64}
        for body in (paid, paid, {"plan": A, "kind": "final", "bytes": 1, "epsilon": None}):
            log.append("sent", body)
        assert audit_heads(log) == (LedgerHead(3, "f" * 64),)
        place = locate_ledger(home.folder, None)
        assert [line.left and line.left.ledger_count for line in sent_lines(place, A) or ()] == [3, 3, None]
        assert sent_lines(LedgerPlace(place.site, None, None), A) is None
        (home.audit_folder / "audit.sqlite").write_bytes(b"x" * 5000)
        with pytest.raises(AuditError, match="damaged"):
            audit_heads(AuditReader(home.audit_folder))
        with pytest.raises(AuditError, match="damaged"):
            sent_lines(place, A)


class TestFaults:
    def test_a_head_that_the_ledger_lacks_is_one(self, home: SiteHome) -> None:
        ledger = spend(home)
        place = locate_ledger(home.folder, None)
        assert ledger_faults(place, [ledger.head()]) == ()
        assert ledger_faults(place, [LedgerHead(2, "0" * 64)]) != ()
        assert ledger_faults(place, [LedgerHead(9, "0" * 64)]) != ()

    def test_a_key_or_a_ledger_that_is_gone(self, home: SiteHome) -> None:
        place = locate_ledger(home.folder, None)
        assert ledger_faults(place, []) == ()
        (fault,) = ledger_faults(place, [LedgerHead(1, "0" * 64)])
        assert "There is no ledger" in fault
        ledger = spend(home)
        (ledger.folder / "ledger.key").unlink()
        assert ledger_faults(place, [])[0] == "The ledger's key is missing."
        (ledger.folder / "ledger.key").write_text("x")
        assert "key can't be used" in ledger_faults(place, [])[0]

    def test_one_that_cannot_be_looked_at(self, home: SiteHome) -> None:
        place = locate_ledger(home.folder, None)
        place.folder.mkdir(parents=True)
        (place.folder / "head.json").mkdir()
        (place.folder / "ledger.sqlite").mkdir()
        with pytest.raises(LedgerError, match="can't be read"):
            ledger_faults(place, [])


class TestPageOf:
    def test_the_page_has_the_plan_s_charges_and_what_was_attacked(
        self, home: SiteHome, plan_for: Callable[..., FederationPlan]
    ) -> None:
        privacy = {"mechanism": "update_dp", "noise_multiplier": 8.0, "delta": 1e-6, "clipping_norm": 1.0}
        plan = plan_for(purpose="education", privacy=privacy)
        ledger = spend(home, plan.sha256(), 1)
        spend(home, B, 1)
        place = locate_ledger(home.folder, None)
        results = place.site.records_folder() / "exposure"
        results.mkdir()
        (results / f"{plan.sha256()}.json").write_text(json.dumps({"plan": plan.sha256(), "lower_bound": 0.2}))
        found = page_of(place, plan, None)
        assert (len(found.charges), found.reserved, found.limit, found.delta) == (1, 2, 3, DELTA)
        assert [whose for whose, _ in found.budgets] == ["the cohort a", "the patient of whom most counts"]
        assert found.exposure == {"plan": plan.sha256(), "lower_bound": 0.2}
        assert found.head_count == ledger.head().count
        with pytest.raises(ConfigError, match="between 0 and 1"):
            page_of(place, plan, 2.0)
        alter(ledger.folder)
        with pytest.raises(LedgerError, match="altered"):
            page_of(place, plan, None)
        shutil.rmtree(ledger.folder)
        home.audit_folder.mkdir(parents=True)
        with pytest.raises(AuditError, match="no audit log"):
            page_of(place, plan, None)

    def test_a_result_of_attacks_that_is_none(self, home: SiteHome) -> None:
        place = locate_ledger(home.folder, None)
        file = place.site.records_folder() / "exposure" / f"{A}.json"
        assert exposure_of(place, A) is None
        file.parent.mkdir(parents=True)
        for text in ("[1]", "{", json.dumps({"plan": B})):
            file.write_text(text)
            assert exposure_of(place, A) is None
        file.write_text("{}")
        assert exposure_of(place, A) == {}


class TestStatus:
    def test_what_was_spent_is_told_and_kept_until_something_changes(
        self, home: SiteHome, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        ledger = spend(home)
        found = privacy_status(home)
        assert (found["problem"], found["charges"], found["budget_is_set"]) == (None, 2, True)
        assert [(one["dataset"], one["limit"]) for one in found["datasets"]] == [("a", 6.0)]
        assert found["patients"] == {"known": 2, "at_limit": 0, "limit": 3.0}
        with monkeypatch.context() as patch:
            patch.setattr("eucaim_fl.site.ledger_look.read_state", None)
            assert privacy_status(home) == found
        ledger.commit(purchase(), 3, once(), ["P1", "P2"], NO_LIMITS, 1)
        assert privacy_status(home)["charges"] == 3
        write_policy(home, {"mechanism": "none"})
        assert privacy_status(home) | {"patients": None} == {
            "problem": None,
            "budget_is_set": False,
            "delta": None,
            "charges": 3,
            "datasets": [],
            "patients": None,
        }

    def test_nothing_fails_because_of_what_is_damaged(self, home: SiteHome) -> None:
        assert privacy_status(home)["charges"] == 0
        ledger = spend(home)
        (home.folder / "state").mkdir(exist_ok=True)
        (home.folder / "state" / "privacy_budget.json").write_text("[")
        assert privacy_status(home)["charges"] == 2
        alter(ledger.folder)
        assert privacy_status(home)["problem"].startswith("the privacy ledger is damaged. ")
        (ledger.folder / "ledger.sqlite").write_bytes(b"nonsense" * 1000)
        assert privacy_status(home)["problem"].startswith("the privacy ledger is damaged. ")
        home.site_file.unlink()
        assert privacy_status(home)["problem"] == "This is not the home of a site: a file is missing."

    def test_who_may_only_read_gets_the_same(self, home: SiteHome) -> None:
        spend(home)
        (home.folder / "state").write_text("no folder")
        assert privacy_status(home)["charges"] == 2


def test_the_ledger_lies_beside_the_cache(home: SiteHome, tmp_path: Path) -> None:
    place = locate_ledger(home.folder, None)
    assert isinstance(place.site, SiteFile)
    assert place.folder == tmp_path / "cache.records" / "ledger"

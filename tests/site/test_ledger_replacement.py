"""A ledger that is lost: the site goes on, nobody counts less than was spent, and the audit log says who decided."""

from __future__ import annotations

import itertools
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from eucaim_fl.config import StoppingConfig
from eucaim_fl.durable import exclusive
from eucaim_fl.errors import (
    AuditError,
    JournalError,
    LedgerError,
    PlanError,
    PrivacyBudgetError,
    ServiceStateError,
)
from eucaim_fl.plan import FederationPlan
from eucaim_fl.privacy.accounting import Mechanism
from eucaim_fl.privacy.budget import Budget
from eucaim_fl.signing import PrivateKey
from eucaim_fl.site.audit import AuditLog, AuditRecord
from eucaim_fl.site.audit_words import Asker, line_of
from eucaim_fl.site.charges import known_head, ledger_count
from eucaim_fl.site.home import SiteHome
from eucaim_fl.site.ledger import Ledger, Limits, Purchase, verify_ledger
from eucaim_fl.site.ledger_base import EVERYBODY, Claim, body_of, event_of
from eucaim_fl.site.ledger_look import LedgerPlace, audit_heads, ledger_faults, locate_ledger
from eucaim_fl.site.ledger_replacement import Spent, allowed, begin_anew, most_spent, what_was_spent
from eucaim_fl.site.ledger_state import read_state
from eucaim_fl.site.lineage import Lineage
from eucaim_fl.site.policy_privacy import NO_LIMITS

pytestmark = pytest.mark.integration

NOISE: dict[str, Any] = {"mechanism": "update_dp", "noise_multiplier": 8.0, "delta": 1e-5, "clipping_norm": 1.0}
ONCE = Mechanism(4.0, 1.0, 1)
PATIENTS = [f"P{number}" for number in range(12)]
BUDGET = Budget(3.0, 1e-5)
"""Holds seven rounds."""


class Site:
    """Site `a` with a home, and a plan of three rounds and one release of figures in each."""

    def __init__(self, root: Path, plan: FederationPlan) -> None:
        self.plan = plan
        self.home = SiteHome(root / "home")
        self.home.site_key.parent.mkdir(parents=True)
        self.home.plans_folder.mkdir(parents=True)
        PrivateKey.create().save(self.home.site_key)
        cohort = {"layout": "nifti_csv", "folder": str(root / "cohort")}
        written = {"name": "a", "cohort": cohort, "cache": {"folder": str(root / "cache")}}
        self.home.site_file.write_text(yaml.safe_dump(written))
        self.keep(plan)
        self.log = AuditLog(self.home.audit_folder, PrivateKey.load(self.home.site_key), "a")
        self.spent: list[Mechanism] = []

    @property
    def place(self) -> LedgerPlace:
        return locate_ledger(self.home.folder, None)

    def keep(self, plan: FederationPlan) -> Path:
        path = self.home.plans_folder / f"{plan.sha256()}.json"
        path.write_text(plan.canonical_json())
        return path

    def decide(self, kind: str, number: int, verdict: str = "allow", plan: FederationPlan | None = None) -> None:
        body = {"plan": (plan or self.plan).sha256(), "kind": kind, "round": number, "verdict": verdict}
        self.log.append("decision", body)

    def train(self, number: int, *, answered: bool = True) -> None:
        """One round, as border and worker do it."""
        self.decide("round", number)
        what = Purchase(self.plan.sha256(), self.plan.name, self.plan.purpose, "a", "train", True)
        ledger = Ledger(self.place.folder, "a")
        ledger.commit(what, number, ONCE, PATIENTS, NO_LIMITS, 1)
        self.used(number)
        if answered:
            self.answer(number, ledger)

    def answer(self, number: int, ledger: Ledger) -> None:
        """The audit log's record of an answer that left."""
        head = ledger.head()
        work = {"plan": self.plan.sha256(), "kind": "round", "round": number}
        self.log.append("sent", {**work, "ledger_count": head.count, "ledger": head.hash})

    def used(self, number: int, plan: FederationPlan | None = None, kind: str = "round") -> None:
        """The entry in the record of who was used; of a training without the client it is all that there is."""
        plan = plan or self.plan
        self.lineage.record((plan.sha256(), plan.name), (kind, number), "0" * 64, {"train": PATIENTS})

    @property
    def lineage(self) -> Lineage:
        return Lineage(self.place.site.records_folder())

    def works(self) -> int:
        """What the border asks before any work; it raises if the ledger is not the one that it knows."""
        return ledger_count(self.place.site, self.plan, known_head(self.log, self.plan))

    def lose(self) -> None:
        shutil.rmtree(self.place.folder)


@pytest.fixture
def site(tmp_path: Path, plan_for: Callable[..., FederationPlan]) -> Site:
    return Site(tmp_path, plan_for(rounds=3, privacy=NOISE))


class TestAllowed:
    def test_only_work_that_was_allowed_counts_each_time(self) -> None:
        def record(word: str, **body: Any) -> AuditRecord:
            return AuditRecord(1, "", word, body, "", "", "")

        work = {"plan": "p", "kind": "round", "round": 1, "verdict": "allow"}
        records = [
            record("decision", **work),
            record("decision", **work),
            record("decision", **{**work, "verdict": "refuse"}),
            record("decision", **{**work, "verdict": "wait"}),
            record("decision", **{**work, "kind": "hello", "round": 0}),
            record("decision", **{**work, "kind": "final", "round": 4}),
            record("sent", **work),
        ]
        assert allowed(records) == {("p", "round", 1): 2, ("p", "final", 4): 1}


class TestMostSpent:
    def test_every_allowed_round_was_trained_and_its_figures_released(
        self, plan_for: Callable[..., FederationPlan]
    ) -> None:
        noise = {**NOISE, "mechanism": "patient_dp", "sampling_rate": 0.5, "metrics_noise": 20.0}
        plan = plan_for(rounds=2, privacy=noise, training={"local_steps": 3})
        identity = plan.sha256()
        asked = {(identity, "round", 1): 2, (identity, "final", 3): 1}
        what = Purchase(identity, plan.name, plan.purpose, "a", "train", plan.privacy.secure)

        def figures(split: str) -> Purchase:
            return Purchase(identity, plan.name, plan.purpose, "a", "figures", plan.privacy.secure, split)

        assert set(most_spent(asked, {identity: plan}, "a")) == {
            Spent(what, 1, Mechanism(8.0, 0.5, 6)),
            Spent(figures("validation"), 1, Mechanism(20.0, 1.0, 2)),
            Spent(figures("validation"), 3, Mechanism(20.0, 1.0, 1)),
            Spent(figures("test"), 3, Mechanism(20.0, 1.0, 1)),
        }
        seldom = plan.model_copy(update={"stopping": StoppingConfig(validate_every=2)})
        found = most_spent({("p", "round", 2): 1, ("p", "final", 3): 1}, {"p": seldom}, "a")
        assert [(one.round, one.what.part) for one in found] == [(3, "validation"), (3, "test"), (2, "")]

    def test_plans_that_charge_nobody_cost_nothing(self, plan_for: Callable[..., FederationPlan]) -> None:
        for privacy in ({}, {**NOISE, "mechanism": "central_dp"}):
            plan = plan_for(privacy=privacy)
            assert most_spent({(plan.sha256(), "round", 1): 1}, {plan.sha256(): plan}, "a") == ()


class TestWhatWasSpent:
    def test_rounds_that_were_asked_for_again_and_never_answered_count_too(self, site: Site) -> None:
        site.train(1)
        site.train(2, answered=False)
        site.decide("round", 2)
        site.lose()
        found = what_was_spent(site.place, site.log)
        assert [(one.round, one.mechanism.steps) for one in found.spent] == [(1, 1), (2, 2)]
        assert (found.folder, found.lineage_missing) == (site.place.site.records_folder(), False)

    def test_a_ledger_that_is_there_and_intact_is_not_replaced(self, site: Site) -> None:
        with pytest.raises(LedgerError, match="not lost"):
            what_was_spent(site.place, site.log)
        site.train(1)
        with pytest.raises(LedgerError, match="not lost"):
            what_was_spent(site.place, site.log)
        (site.place.folder / "ledger.key").unlink()
        assert len(what_was_spent(site.place, site.log).spent) == 1

    def test_what_nobody_can_know_is_not_guessed(
        self, site: Site, plan_for: Callable[..., FederationPlan], tmp_path: Path
    ) -> None:
        site.train(1)
        site.lose()
        path = site.home.plans_folder / f"{site.plan.sha256()}.json"
        text = path.read_text()
        path.write_text(text[:-2])
        with pytest.raises(PlanError, match="plan"):
            what_was_spent(site.place, site.log)
        path.unlink()
        with pytest.raises(LedgerError, match="not kept any more") as caught:
            what_was_spent(site.place, site.log)
        assert caught.value.local_detail == site.plan.sha256()
        path.write_text(text)
        free, unseen = plan_for(seed=1), plan_for(seed=2, privacy=NOISE)
        site.keep(free)
        site.used(1, free)
        assert len(what_was_spent(site.place, site.log).spent) == 1
        site.keep(unseen)
        site.used(1, unseen)
        with pytest.raises(LedgerError, match="without the site's client"):
            what_was_spent(site.place, site.log)
        with pytest.raises(LedgerError, match="Without a home"):
            what_was_spent(LedgerPlace(site.place.site, None, None), site.log)

    def test_one_plan_may_have_trained_with_the_client_and_without_it(self, site: Site) -> None:
        for number in (1, 2):
            site.train(number)
        site.decide("round", 2)
        site.used(2)
        site.lose()
        assert [one.mechanism.steps for one in what_was_spent(site.place, site.log).spent] == [1, 2]
        site.used(4, kind="final")
        assert len(what_was_spent(site.place, site.log).spent) == 2, "figures without noise cost nothing"
        site.used(2)
        with pytest.raises(LedgerError, match="without the site's client"):
            what_was_spent(site.place, site.log)

    @pytest.mark.parametrize("number", [1, 3], ids=["the same round", "another round"])
    def test_a_round_that_the_log_never_allowed_is_not_hidden_by_others(self, site: Site, number: int) -> None:
        for asked in (1, 2):
            site.train(asked)
        site.used(number)
        site.lose()
        with pytest.raises(LedgerError, match="without the site's client"):
            what_was_spent(site.place, site.log)

    def test_a_record_of_who_was_used_that_lacks_answers_is_as_good_as_none(self, site: Site, tmp_path: Path) -> None:
        site.train(1)
        site.lose()
        (site.place.site.records_folder() / "lineage.sqlite").unlink()
        assert what_was_spent(site.place, site.log).lineage_missing
        site.train(2)  # begins a record anew, and a ledger
        assert what_was_spent(site.place, site.log).lineage_missing, "round 1 is not in it"
        site.used(1)
        assert not what_was_spent(site.place, site.log).lineage_missing
        values = yaml.safe_load(site.home.site_file.read_text())
        elsewhere = {**values, "cache": {"folder": str(tmp_path / "elsewhere")}}
        site.home.site_file.write_text(yaml.safe_dump(elsewhere))
        found = what_was_spent(site.place, site.log)
        assert (found.lineage_missing, found.folder) == (True, tmp_path / "elsewhere.records")

    def test_records_that_can_not_be_read_are_errors(self, site: Site) -> None:
        site.train(1)
        site.lose()
        lineage = site.place.site.records_folder() / "lineage.sqlite"
        lineage.write_bytes(b"no database" * 500)
        with pytest.raises(JournalError, match="record of runs"):
            what_was_spent(site.place, site.log)
        (site.home.audit_folder / "audit.sqlite").write_bytes(b"no database" * 500)
        with pytest.raises(AuditError, match="damaged"):
            what_was_spent(site.place, site.log)


class TestChargesToEverybody:
    def test_they_are_verified_like_others_and_no_reservation_can_be_one(self, tmp_path: Path) -> None:
        ledger = Ledger(tmp_path, "a")
        claim = Claim(Purchase("p", "", "", "a", "train", True), ONCE, EVERYBODY, 0, 1)
        ledger.charge_everybody(claim.what, 1, ONCE)
        assert verify_ledger(tmp_path, ledger.identity().public) == ()
        assert event_of("committed", body_of(claim)) == claim
        assert event_of("committed", body_of(replace(claim, count=1))) is None
        assert event_of("reserved", body_of(replace(claim, round=None))) is None

    def test_what_makes_no_sense_or_can_not_be_written_is_an_error(self, tmp_path: Path) -> None:
        ledger, what = Ledger(tmp_path, "a"), Purchase("p", "", "", "a", "train", True)
        with pytest.raises(ValueError, match="at least one step"):
            ledger.charge_everybody(what, 1, Mechanism(4.0, 1.0, 0))
        (tmp_path / "ledger.sqlite").write_bytes(b"no database" * 500)
        with pytest.raises(LedgerError, match="damaged"):
            ledger.charge_everybody(what, 1, ONCE)


class TestBeginAnew:
    def replace(self, site: Site) -> None:
        begin_anew(site.place, site.log, what_was_spent(site.place, site.log), "it", "dpo-2")

    def test_the_site_goes_on_and_nobody_counts_less(self, site: Site) -> None:
        for number in (1, 2, 2):
            site.train(number)
        lost = site.log.ledger_head()
        site.lose()
        with pytest.raises(LedgerError, match="not the one that this site's audit log knows") as caught:
            site.works()
        assert "site ledger replace" in caught.value.fix
        self.replace(site)
        ledger = Ledger(site.place.folder, "a")
        assert site.works() == ledger.head().count == 2
        assert ledger_faults(site.place, audit_heads(site.log)) == ()
        assert ledger.plan_mechanisms(site.plan.sha256()) == (Mechanism(4.0, 1.0, 3),)
        assert ledger.rounds_committed(site.plan.sha256()) == {1, 2}
        for patient in ("P0", "somebody who comes in years"):
            assert ledger.patient_mechanisms(patient) == (Mechanism(4.0, 1.0, 3),)
        assert lost is not None
        (record,) = site.log.records(kind="ledger_replaced")
        assert record.body == {
            "ledger_count": 2,
            "ledger": ledger.head().hash,
            "lost_count": lost[0],
            "lost": lost[1],
            "charges": 2,
            "plans": 1,
            "folder": str(site.place.site.records_folder()),
            "lineage_missing": False,
            "by": "it",
            "stated_by": "dpo-2",
        }

    @pytest.mark.parametrize(
        "limits",
        [Limits(BUDGET, None, None, None), Limits(None, BUDGET, None, None), Limits(None, None, BUDGET, None)],
        ids=["plan", "patient", "dataset"],
    )
    def test_every_budget_holds_what_is_left_of_it(self, site: Site, limits: Limits) -> None:
        for number in (1, 2, 3):
            site.train(number)
        folder = site.place.folder
        before = self.rounds_left(site, shutil.copytree(folder, folder.with_name("copy")), PATIENTS, limits)
        site.lose()
        self.replace(site)
        newcomers = [f"N{number}" for number in range(12)]
        assert 0 < self.rounds_left(site, folder, newcomers, limits) == before < 10

    def rounds_left(self, site: Site, folder: Path, patients: list[str], limits: Limits) -> int:
        """How many rounds more of the plan the patients can pay for."""
        what = Purchase(site.plan.sha256(), "", site.plan.purpose, "a", "train", True)
        ledger = Ledger(folder, "a")
        for number in range(20):
            try:
                ledger.preview(what, ONCE.times(number + 1), patients, limits, 12)
            except PrivacyBudgetError:
                return number
        return 20

    def test_who_trained_is_not_known_so_everybody_counts_as_such(self, site: Site) -> None:
        site.train(1)
        site.lose()
        self.replace(site)
        assert Ledger(site.place.folder, "a").trained(["P0", "new"]) == {"P0", "new"}

    def test_the_run_goes_on_and_is_charged_on_top(self, site: Site) -> None:
        site.train(1)
        site.lose()
        self.replace(site)
        site.train(2)
        assert site.works() == 2
        state = read_state(site.place.folder)
        assert state.everybody == (ONCE,)
        assert [(one.patients, one.counted) for one in state.groups] == [(12, (Mechanism(4.0, 1.0, 2),))]
        assert ledger_faults(site.place, audit_heads(site.log)) == ()

    def test_what_is_left_of_the_old_one_is_kept_and_can_not_come_back_unnoticed(self, site: Site) -> None:
        site.train(1)
        (site.place.folder / "head.json").unlink()
        self.replace(site)
        (old,) = site.place.folder.parent.glob("ledger.lost-*")
        assert (old / "ledger.sqlite").is_file()
        assert not list(site.place.folder.parent.glob("ledger.*.part"))
        site.lose()
        old.rename(site.place.folder)
        with pytest.raises(LedgerError, match="not the one that this site's audit log knows"):
            site.works()

    def test_a_second_loss_counts_the_first_ledger_s_rounds_too(self, site: Site) -> None:
        for number in (1, 2):
            site.train(number)
            site.lose()
            self.replace(site)
        assert Ledger(site.place.folder, "a").patient_mechanisms("new") == (Mechanism(4.0, 1.0, 2),)
        assert site.works() == 2

    def test_until_the_audit_log_has_it_the_site_goes_on_refusing(
        self, site: Site, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        site.train(1)
        site.lose()
        with monkeypatch.context() as patch:
            patch.setattr(AuditLog, "append", _full)
            with pytest.raises(AuditError, match="disk is full"):
                begin_anew(site.place, site.log, what_was_spent(site.place, site.log), "it")
        with pytest.raises(LedgerError, match="not the one that this site's audit log knows"):
            site.works()
        self.replace(site)
        assert site.works() == 1

    def test_killed_between_the_renames_it_refuses_until_it_was_done_once_more(
        self, site: Site, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """No answer ever left, so the audit log knew no head of the damaged ledger."""
        site.train(1, answered=False)
        (site.place.folder / "head.json").unlink()
        with monkeypatch.context() as patch:
            patch.setattr(Path, "rename", _killed_at(2, Path.rename))
            with pytest.raises(KeyboardInterrupt):
                self.replace(site)
        assert not site.place.folder.exists()
        with pytest.raises(LedgerError, match="not the one that this site's audit log knows"):
            site.works()
        self.replace(site)
        assert site.works() == 1
        assert Ledger(site.place.folder, "a").patient_mechanisms("new") == (ONCE,)

    def test_what_a_killed_call_left_is_removed(self, site: Site) -> None:
        site.train(1)
        site.lose()
        left = site.place.folder.with_name("ledger.abc123.part")
        Ledger(left, "a")
        assert (left / "ledger.key").exists()
        self.replace(site)
        assert not left.exists()

    def test_a_ledger_that_came_back_while_the_question_was_open_is_not_replaced(self, site: Site) -> None:
        site.train(1)
        copy = shutil.copytree(site.place.folder, site.place.folder.with_name("copy"))
        site.lose()
        shown = what_was_spent(site.place, site.log)
        copy.rename(site.place.folder)
        for number in (2, 3):
            site.train(number)
        with pytest.raises(LedgerError, match="not lost"):
            begin_anew(site.place, site.log, shown, "it")
        assert site.works() == 3

    def test_nor_is_more_forgotten_than_was_shown(self, site: Site) -> None:
        site.train(1)
        site.lose()
        shown = what_was_spent(site.place, site.log)
        site.decide("round", 2)
        with pytest.raises(LedgerError, match="changed since it was shown"):
            begin_anew(site.place, site.log, shown, "it")
        assert not site.place.folder.exists()

    def test_without_the_record_of_who_was_used_a_person_answers_for_it(self, site: Site) -> None:
        site.train(1)
        site.lose()
        (site.place.site.records_folder() / "lineage.sqlite").unlink()
        shown = what_was_spent(site.place, site.log)
        with pytest.raises(LedgerError, match="record of who was used is missing") as caught:
            begin_anew(site.place, site.log, shown, "it")
        assert "--no-local-runs" in caught.value.fix
        assert not site.place.folder.exists()
        begin_anew(site.place, site.log, shown, "it", no_local_runs=True)
        (record,) = site.log.records(kind="ledger_replaced")
        assert record.body["lineage_missing"] is True
        assert line_of(record, Asker()).happened.endswith("a person said that none did")

    def test_nothing_is_replaced_under_a_client_that_runs(self, site: Site) -> None:
        site.train(1)
        site.lose()
        spent = what_was_spent(site.place, site.log)
        with exclusive(site.home.run_folder), pytest.raises(ServiceStateError, match="client runs"):
            begin_anew(site.place, site.log, spent, "it")
        shutil.rmtree(site.home.run_folder)
        site.home.run_folder.write_text("no folder")
        with pytest.raises(JournalError, match="can't be written"):
            begin_anew(site.place, site.log, spent, "it")
        with pytest.raises(LedgerError, match="Without a home"):
            begin_anew(LedgerPlace(site.place.site, None, None), site.log, spent, "it")
        assert not site.place.folder.exists()


def _killed_at(number: int, real: Callable[[Path, Path], Path]) -> Callable[[Path, Path], Path]:
    """A rename that is cut short when it is called for that time, from 1."""
    calls = itertools.count(1)

    def rename(path: Path, target: Path) -> Path:
        if next(calls) == number:
            raise KeyboardInterrupt
        return real(path, target)

    return rename


def _full(*_: object) -> None:
    raise AuditError("The disk is full.")

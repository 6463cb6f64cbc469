"""What the border asks the ledger before an update leaves, and what stands of it in the audit log."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from eucaim_fl.config import PrivacyConfig
from eucaim_fl.errors import AuditError, LedgerError
from eucaim_fl.plan import FederationPlan
from eucaim_fl.privacy.accounting import Mechanism
from eucaim_fl.privacy.promise import figures_mechanism, promise, round_mechanism
from eucaim_fl.records import SplitName
from eucaim_fl.site.charges import known_head, ledger_count, ledger_entry, owed, unpaid, unpaid_figures
from eucaim_fl.site.disclosure import WITHHELD
from eucaim_fl.site.gate import GateBounds, default_bounds
from eucaim_fl.site.ledger import Ledger, Purchase
from eucaim_fl.site.policy_privacy import NO_LIMITS
from eucaim_fl.site.report import SiteReport
from eucaim_fl.sitefile import SiteFile

pytestmark = pytest.mark.integration

PATIENTS = [f"p{number}" for number in range(12)]
NOISE: dict[str, Any] = {"noise_multiplier": 2.0, "delta": 1e-5, "clipping_norm": 1.0}
REASON = ("an update that this site's privacy ledger was not charged for",)
ROUND = Mechanism(2.0, 1.0, 3)  # three steps of everybody
LEAST = 10


@pytest.fixture
def site(tmp_path: Path) -> SiteFile:
    cohort = {"layout": "nifti_csv", "folder": tmp_path / "cohort"}
    return SiteFile.model_validate({"name": "a", "cohort": cohort, "cache": {"folder": tmp_path / "cache"}})


@pytest.fixture
def plan(plan_for: Callable[..., FederationPlan]) -> FederationPlan:
    return plan_for(privacy={**NOISE, "mechanism": "patient_dp", "sampling_rate": 1.0})


def charge(
    site: SiteFile, plan: FederationPlan, number: int, use: Any = "train", part: str = "", **instead: Any
) -> tuple[int, str]:
    """Charge for a round what the plan costs, or something else; the ledger's head after it, as the log notes it."""
    once = figures_mechanism(plan.privacy) if use == "figures" else round_mechanism(plan.privacy, plan.training)
    mechanism, patients = instead.get("mechanism", once or ROUND), instead.get("patients", PATIENTS)
    what = Purchase(plan.sha256(), plan.name, plan.purpose, site.name, use, secure=True, part=part)
    ledger = Ledger(site.records_folder() / "ledger", site.name)
    ledger.commit(what, number, mechanism, patients, NO_LIMITS, 1)
    return ledger.head().count, ledger.head().hash


def damage(site: SiteFile) -> None:
    (site.records_folder() / "ledger" / "ledger.sqlite").write_bytes(b"no database")


def gate(site: SiteFile, *declared: SplitName) -> GateBounds:
    return replace(default_bounds(site.release), test_data=frozenset(declared))


class TestUnpaid:
    def test_without_a_ledger_nothing_was_paid(self, site: SiteFile, plan: FederationPlan) -> None:
        assert unpaid(site, plan, (1, 0), LEAST) == REASON

    def test_a_charge_for_this_round_since_the_instruction_came_lets_it_out(
        self, site: SiteFile, plan: FederationPlan
    ) -> None:
        before = ledger_count(site, plan, None)
        charge(site, plan, 1)
        assert unpaid(site, plan, (1, before), LEAST) == ()

    def test_an_older_charge_does_not(self, site: SiteFile, plan: FederationPlan) -> None:
        charge(site, plan, 1)
        before = ledger_count(site, plan, None)
        assert unpaid(site, plan, (1, before), LEAST) == REASON
        charge(site, plan, 1)
        assert unpaid(site, plan, (1, before), LEAST) == ()

    def test_nor_does_one_for_another_round_plan_or_use(
        self, site: SiteFile, plan: FederationPlan, plan_for: Callable[..., FederationPlan]
    ) -> None:
        charge(site, plan, 2)
        charge(site, plan, 1, "figures")
        charge(site, plan_for(seed=9, privacy={**NOISE, "mechanism": "update_dp"}), 1)
        assert unpaid(site, plan, (1, 0), LEAST) == REASON

    @pytest.mark.parametrize("privacy", [{}, {**NOISE, "mechanism": "central_dp"}])
    def test_where_the_site_adds_no_noise_there_is_nothing_to_pay(
        self, site: SiteFile, plan_for: Callable[..., FederationPlan], privacy: dict[str, Any]
    ) -> None:
        assert unpaid(site, plan_for(privacy=privacy), (1, 0), LEAST) == ()

    @pytest.mark.parametrize(
        "cheaper",
        [Mechanism(1e6, 1.0, 3), Mechanism(2.0, 1e-9, 3), Mechanism(2.0, 1.0, 2)],
        ids=["noise", "rate", "steps"],
    )
    def test_nor_does_one_of_less_than_the_plan_costs(
        self, site: SiteFile, plan: FederationPlan, cheaper: Mechanism
    ) -> None:
        charge(site, plan, 1, mechanism=cheaper)
        assert unpaid(site, plan, (1, 0), LEAST) == REASON
        charge(site, plan, 1, mechanism=ROUND)
        assert unpaid(site, plan, (1, 0), LEAST) == ()

    def test_nor_one_to_fewer_patients_than_the_site_trains_with(self, site: SiteFile, plan: FederationPlan) -> None:
        charge(site, plan, 1, patients=PATIENTS[: LEAST - 1])
        assert unpaid(site, plan, (1, 0), LEAST) == REASON
        charge(site, plan, 1, patients=PATIENTS[:LEAST])
        assert unpaid(site, plan, (1, 0), LEAST) == ()

    def test_a_ledger_that_can_not_be_read_lets_nothing_out(self, site: SiteFile, plan: FederationPlan) -> None:
        charge(site, plan, 1)
        damage(site)
        (reason,) = unpaid(site, plan, (1, 0), LEAST)
        assert "privacy ledger" in reason
        assert str(site.records_folder()) not in reason


FIGURES = ("figures that this site's privacy ledger was not charged for",)


@dataclass
class Said:
    """What a worker would say of these splits; of the last one of them nothing."""

    splits: tuple[Any, ...]
    update: dict[str, NDArray[Any]] = field(default_factory=dict)
    pictures: None = None

    @property
    def report(self) -> SiteReport:
        told = [{"split": split, "patients": 10, "values": {"dice": 0.5}} for split in self.splits[:-1]]
        last = {"split": self.splits[-1], "patients": 0, "withheld": WITHHELD}
        values = {"kind": "final", "site": "a", "plan_sha256": "0" * 64, "round": 2, "patients": 10}
        return SiteReport.model_validate({**values, "cohort_sha256": "0" * 64, "metrics": (*told, last)})


class TestFigures:
    @pytest.fixture
    def plan(self, plan_for: Callable[..., FederationPlan]) -> FederationPlan:
        return plan_for(privacy={**NOISE, "mechanism": "update_dp", "metrics_noise": 2.0})

    def test_each_split_is_charged_for_by_itself_since_the_instruction_came(
        self, site: SiteFile, plan: FederationPlan
    ) -> None:
        assert unpaid_figures(site, plan, (2, 0), 5, ["validation"]) == FIGURES, "there is no ledger yet"
        assert unpaid_figures(site, plan, (2, 0), 5, []) == ()
        before, _ = charge(site, plan, 2, "figures", "validation")
        assert unpaid_figures(site, plan, (2, 0), 5, ["validation"]) == ()
        assert unpaid_figures(site, plan, (2, before), 5, ["validation"]) == FIGURES
        assert unpaid_figures(site, plan, (1, 0), 5, ["validation"]) == FIGURES
        assert unpaid_figures(site, plan, (2, 0), 5, ["validation", "test"]) == FIGURES
        charge(site, plan, 2, "train")
        assert unpaid_figures(site, plan, (2, 0), 5, ["test"]) == FIGURES

    def test_one_of_other_noise_or_to_fewer_patients_pays_for_no_figures(
        self, site: SiteFile, plan: FederationPlan
    ) -> None:
        said = Said(("validation", "test"))
        charge(site, plan, 2, "figures", "validation", mechanism=Mechanism(1e6, 1.0, 1))
        charge(site, plan, 2, "figures", "validation", patients=PATIENTS[:4])
        assert owed(site, plan, said, gate(site), (2, 0)) == FIGURES
        charge(site, plan, 2, "figures", "validation", patients=PATIENTS[:5])
        assert owed(site, plan, said, gate(site), (2, 0)) == ()

    def test_a_plan_without_noise_on_figures_owes_nothing_for_them(
        self, site: SiteFile, plan_for: Callable[..., FederationPlan]
    ) -> None:
        for privacy in ({}, {**NOISE, "mechanism": "update_dp"}):
            assert unpaid_figures(site, plan_for(privacy=privacy), (2, 0), 5, ["validation"]) == ()

    def test_test_data_and_what_is_withheld_cost_nothing(self, site: SiteFile, plan: FederationPlan) -> None:
        assert owed(site, plan, Said(("validation", "test")), gate(site), (2, 0)) == FIGURES
        assert owed(site, plan, Said(("validation", "test")), gate(site, "validation"), (2, 0)) == ()
        assert owed(site, plan, Said(("test",)), gate(site), (2, 0)) == ()
        charge(site, plan, 2, "figures", "validation")
        assert owed(site, plan, Said(("validation", "test")), gate(site), (2, 0)) == ()

    def test_an_update_and_figures_are_looked_at_both(self, site: SiteFile, plan: FederationPlan) -> None:
        said = Said(("validation", "test"), {"w": np.zeros(1)})
        assert owed(site, plan, said, gate(site), (2, 0)) == (*REASON, *FIGURES)
        charge(site, plan, 2)
        assert owed(site, plan, said, gate(site), (2, 0)) == FIGURES
        damage(site)
        (reason,) = owed(site, plan, said, gate(site), (2, 0))
        assert "privacy ledger" in reason


class TestLedgerCount:
    def test_it_counts_records_from_none(self, site: SiteFile, plan: FederationPlan) -> None:
        assert ledger_count(site, plan, None) == 0
        charge(site, plan, 1)
        charge(site, plan, 2)
        assert ledger_count(site, plan, None) == 2

    def test_a_ledger_that_has_grown_since_it_was_noted_is_the_same_one(
        self, site: SiteFile, plan: FederationPlan
    ) -> None:
        noted = charge(site, plan, 1)
        assert ledger_count(site, plan, noted) == 1
        charge(site, plan, 2)
        assert ledger_count(site, plan, noted) == 2

    def test_an_old_copy_that_was_put_back_is_refused(self, site: SiteFile, plan: FederationPlan) -> None:
        folder = site.records_folder() / "ledger"
        old = charge(site, plan, 1)
        shutil.copytree(folder, folder.with_name("copy"))
        noted = charge(site, plan, 2)
        shutil.rmtree(folder)
        shutil.copytree(folder.with_name("copy"), folder)
        with pytest.raises(LedgerError, match="not the one that this site's audit log knows") as caught:
            ledger_count(site, plan, noted)
        assert str(folder) not in caught.value.message + caught.value.fix
        assert ledger_count(site, plan, old) == 1
        charge(site, plan, 2)  # as many records again, and another hash
        with pytest.raises(LedgerError, match="not the one that this site's audit log knows"):
            ledger_count(site, plan, noted)

    @pytest.mark.parametrize("anew", [False, True], ids=["none", "a new one"])
    def test_so_is_one_that_was_deleted(self, site: SiteFile, plan: FederationPlan, anew: bool) -> None:
        noted = charge(site, plan, 1)
        shutil.rmtree(site.records_folder() / "ledger")
        if anew:
            charge(site, plan, 1)
        with pytest.raises(LedgerError, match="not the one that this site's audit log knows"):
            ledger_count(site, plan, noted)

    def test_one_that_was_noted_while_it_was_empty_is_no_other(self, site: SiteFile, plan: FederationPlan) -> None:
        start = Ledger(site.records_folder() / "ledger", site.name).head()
        entry = ledger_entry(site, plan)
        assert (entry["ledger_count"], entry["ledger"]) == (start.count, start.hash) == (0, start.hash)
        assert ledger_count(site, plan, (0, start.hash)) == 0
        charge(site, plan, 1)
        assert ledger_count(site, plan, (0, start.hash)) == 1

    @pytest.mark.parametrize("privacy", [{}, {**NOISE, "mechanism": "central_dp"}], ids=["none", "central_dp"])
    def test_a_plan_that_charges_nobody_does_not_ask_for_one(
        self, site: SiteFile, plan: FederationPlan, plan_for: Callable[..., FederationPlan], privacy: dict[str, Any]
    ) -> None:
        noted, free = charge(site, plan, 1), plan_for(privacy=privacy)
        assert ledger_count(site, free, noted) == 0
        damage(site)
        assert ledger_count(site, free, noted) == 0
        shutil.rmtree(site.records_folder() / "ledger")
        assert ledger_count(site, free, noted) == 0

    def test_a_ledger_that_can_not_be_read_is_an_error(self, site: SiteFile, plan: FederationPlan) -> None:
        noted = charge(site, plan, 1)
        damage(site)
        for known in (None, noted):
            with pytest.raises(LedgerError, match="privacy ledger"):
                ledger_count(site, plan, known)


class TestLedgerEntry:
    def test_it_has_the_plan_s_epsilon_by_now_and_the_ledger_s_head(self, site: SiteFile, plan: FederationPlan) -> None:
        for number in (1, 2):
            charge(site, plan, number)
        head = Ledger(site.records_folder() / "ledger", site.name).head()
        promised = promise(plan)  # two rounds of three steps
        assert promised is not None
        assert ledger_entry(site, plan) == {
            "epsilon": round(promised.epsilon, 6),
            "delta": 1e-5,
            "ledger_count": 2,
            "ledger": head.hash,
        }

    def test_before_the_first_charge_nothing_is_spent(
        self, site: SiteFile, plan: FederationPlan, plan_for: Callable[..., FederationPlan]
    ) -> None:
        assert ledger_entry(site, plan) == {"epsilon": None}
        charge(site, plan_for(seed=9, privacy={**NOISE, "mechanism": "update_dp"}), 1)
        assert ledger_entry(site, plan)["epsilon"] == 0.0

    def test_figures_are_not_the_update_s_cost(self, site: SiteFile, plan: FederationPlan) -> None:
        charge(site, plan, 1, "figures")
        assert ledger_entry(site, plan)["epsilon"] == 0.0

    def test_without_noise_of_the_site_it_is_none(
        self, site: SiteFile, plan_for: Callable[..., FederationPlan]
    ) -> None:
        for privacy in ({}, {**NOISE, "mechanism": "central_dp"}):
            assert ledger_entry(site, plan_for(privacy=privacy)) == {"epsilon": None}

    def test_with_a_damaged_ledger_too(self, site: SiteFile, plan: FederationPlan) -> None:
        charge(site, plan, 1)
        damage(site)
        assert ledger_entry(site, plan) == {"epsilon": None}


class TestKnownHead:
    def test_the_audit_log_is_asked_only_for_plans_that_charge(self, site: SiteFile, plan: FederationPlan) -> None:
        class Log:
            def ledger_head(self) -> tuple[int, str]:
                return 3, "hash"

        log: Any = Log()
        free = plan.model_copy(update={"privacy": PrivacyConfig()})
        assert known_head(log, plan) == (3, "hash")
        assert known_head(log, free) is None

    def test_a_log_that_can_not_be_read_is_an_error(self, plan: FederationPlan) -> None:
        class Log:
            def ledger_head(self) -> tuple[int, str]:
                raise AuditError("The audit log is damaged.")

        log: Any = Log()
        with pytest.raises(AuditError, match="damaged"):
            known_head(log, plan)

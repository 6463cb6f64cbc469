"""`eucaim-fl site ledger` as hospital IT and a data-protection officer meet it."""

from __future__ import annotations

import csv
import io
import json
import shutil
import sqlite3
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import click
import pytest
import yaml
from click.testing import CliRunner, Result

from eucaim_fl.cli.plan_argument import read_plan_argument
from eucaim_fl.cli.site_ledger import command
from eucaim_fl.errors import ConfigError, LedgerError, PlanError, ServiceStateError
from eucaim_fl.plan import FederationPlan
from eucaim_fl.privacy.accounting import Mechanism, epsilon
from eucaim_fl.privacy.budget import Budget
from eucaim_fl.privacy.promise import epsilon_words
from eucaim_fl.signing import PrivateKey
from eucaim_fl.site.audit import AuditLog
from eucaim_fl.site.home import HOME_VARIABLE, SiteHome
from eucaim_fl.site.ledger import Ledger, Purchase
from eucaim_fl.site.lineage import Lineage
from eucaim_fl.site.policy_privacy import NO_LIMITS

pytestmark = pytest.mark.integration

DELTA = 1e-5
DP = {"mechanism": "dp", "epsilon": 3, "delta": DELTA, "patient_epsilon": 3, "dataset_epsilon": 6}
ONCE = Mechanism(4.0, 1.0, 1)
PATIENTS = [f"PATIENT-{number:03d}" for number in range(12)]


class Place:
    """A hospital with a home, a plan of four rounds that was asked for, and a ledger beside its cache."""

    def __init__(self, root: Path, plan: FederationPlan) -> None:
        self.root, self.plan = root, plan
        self.home = SiteHome(root / "home")
        self.home.site_key.parent.mkdir(parents=True)
        PrivateKey.create().save(self.home.site_key)
        self.home.site_file.write_text(
            yaml.safe_dump(
                {
                    "name": "a",
                    "cohort": {"layout": "nifti_csv", "folder": str(root / "cohort")},
                    "cache": {"folder": str(root / "cache")},
                    "policy": "policy.yaml",
                }
            )
        )
        self.policy(DP)
        self.home.plans_folder.mkdir(parents=True)
        (self.home.plans_folder / f"{plan.sha256()}.json").write_text(plan.canonical_json())
        self.folder = root / "cache.records" / "ledger"

    @property
    def sha(self) -> str:
        """The plan's."""
        return self.plan.sha256()

    def policy(self, privacy: dict[str, Any]) -> None:
        """Write the policy anew."""
        self.home.policy_file.write_text(yaml.safe_dump({"schema": "eucaim-fl-policy/1", "privacy": privacy}))

    def train(self, *rounds: int) -> Ledger:
        """Reserve the plan and charge some of its rounds; what leaves is in the audit log."""
        ledger = Ledger(self.folder, "a", clock=lambda: datetime(2026, 3, 1, 12, tzinfo=UTC))
        what = Purchase(self.sha, self.plan.name, self.plan.purpose, "a", "train", True)
        ledger.reserve(what, ONCE.times(4), PATIENTS, NO_LIMITS, 1)
        log = AuditLog(self.home.audit_folder, PrivateKey.load(self.home.site_key), "a")
        for number in rounds:
            ledger.commit(what, number, ONCE, PATIENTS, NO_LIMITS, 1)
            head = ledger.head()
            body = {"plan": self.sha, "kind": "round", "round": number, "bytes": 1000, "patients": 12, "epsilon": 1.0}
            log.append("sent", {**body, "delta": DELTA, "ledger_count": head.count, "ledger": head.hash})
        return ledger


@pytest.fixture
def place(tmp_path: Path, plan_for: Callable[..., FederationPlan], monkeypatch: pytest.MonkeyPatch) -> Place:
    monkeypatch.delenv(HOME_VARIABLE, raising=False)
    privacy = {"mechanism": "update_dp", "noise_multiplier": 8.0, "delta": DELTA, "clipping_norm": 1.0}
    return Place(tmp_path, plan_for(rounds=4, purpose="education", privacy=privacy))


def run(place: Place, *words: object, **options: Any) -> Result:
    at = () if "--site" in words else ("--home", place.home.folder)
    return CliRunner().invoke(command, [str(word) for word in (*words, *at)], catch_exceptions=False, **options)


class TestShow:
    def test_spent_and_left_stand_side_by_side_and_nobody_is_named(self, place: Place) -> None:
        place.train(1, 2, 2)
        output = run(place, "show").output
        for words in (
            "Privacy ledger of a: 4 records, last charged at 2026-03-01 12:00 UTC. Epsilon at delta 1e-05.",
            "the cohort a",
            "purpose education",
            "the patient of whom most counts",
            "Done: the epsilon of all that was charged, by the tight accountant.",
            "Counts: what counts against a budget, with what is reserved",
            "12 patients. Epsilon done: 1.7 for the one who has spent least",
            "2, 1 again",
            "1 step",
            "site ledger verify",
        ):
            assert words in output
        assert "PATIENT-" not in output

    def test_programs_get_the_figures(self, place: Place) -> None:
        place.train(1)
        told = json.loads(run(place, "show", "--json").output)
        assert told["datasets"]["a"]["done"] == pytest.approx(epsilon([ONCE], DELTA), abs=1e-6)
        assert (told["datasets"]["a"]["limit"], told["patients"]["known"], told["delta"]) == (6.0, 12, DELTA)
        (only,) = told["runs"]
        assert (only["plan"], only["rounds"], only["reserved"]) == (place.sha, 1, 3)
        assert only["reserved_until"] == "2026-03-31T12:00:00+00:00"

    def test_what_is_reserved_is_told_with_its_end(self, place: Place) -> None:
        place.policy({**DP, "reserved_days": 3650})
        place.train(1)
        assert f"({place.sha[:12]}) holds 3 steps until 2036-02-27 12:00 UTC unless" in run(place, "show").output

    def test_another_delta_and_one_plan(self, place: Place) -> None:
        place.train(1)
        output = run(place, "show", "--plan", place.sha[:6], "--delta", "1e-6").output
        assert "Epsilon at delta 1e-06." in output
        assert "the cohort" not in output
        with pytest.raises(ConfigError, match="knows no such plan"):
            run(place, "show", "--plan", "00")

    def test_before_the_first_charge(self, place: Place) -> None:
        assert "Nothing was spent: this site has no privacy ledger yet." in run(place, "show").output
        assert json.loads(run(place, "show", "--json").output)["runs"] == []

    def test_a_site_file_without_a_home_or_a_policy(self, place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
        place.train(1)
        place.policy({"mechanism": "none"})
        with pytest.raises(ConfigError, match="no delta"):
            run(place, "show", "--site", place.home.site_file)
        monkeypatch.setenv(HOME_VARIABLE, str(place.root / "elsewhere"))
        output = run(place, "show", "--site", place.home.site_file, "--delta", "1e-5").output
        assert "The policy sets no budget of a patient." in output
        assert "Epsilon at delta 1e-05." in run(place, "show", "--plan", place.sha).output, "the plan's own"
        assert "Epsilon at delta 1e-05." in run(place, "show").output, "the largest of the plans that are kept"
        (place.home.plans_folder / f"{place.sha}.json").unlink()
        with pytest.raises(ConfigError, match="--delta 1e-5"):
            run(place, "show")

    def test_a_home_that_is_not_there(self, tmp_path: Path) -> None:
        with pytest.raises(ServiceStateError, match="not the home of a site"):
            CliRunner().invoke(command, ["show", "--home", str(tmp_path / "nowhere")], catch_exceptions=False)


class TestVerify:
    def test_an_intact_ledger_agrees_with_the_audit_log(self, place: Place) -> None:
        assert "no privacy ledger yet" in run(place, "verify").output
        place.train(1, 2)
        result = run(place, "verify")
        assert (result.exit_code, result.output) == (
            0,
            "The privacy ledger of a is intact: 3 records; it agrees with 2 heads in the audit log.\n",
        )
        alone = ("--site", place.home.site_file)
        assert json.loads(run(place, "verify", "--json", *alone).output)["heads"] == 0
        for heads in (place.home.folder, place.home.audit_folder):
            assert json.loads(run(place, "verify", "--json", "--heads", heads, *alone).output)["heads"] == 2

    def test_a_ledger_that_was_altered_exits_with_2(self, place: Place) -> None:
        place.train(1, 2)
        with sqlite3.connect(place.folder / "ledger.sqlite") as base:
            base.execute("DROP TRIGGER records_delete")
            base.execute("DELETE FROM records WHERE seq = 2")
        base.close()
        result = run(place, "verify")
        assert result.exit_code == 2
        assert "NOT intact" in result.output
        assert "Record 2" in result.output
        assert json.loads(run(place, "verify", "--json").output)["intact"] is False
        with pytest.raises(LedgerError, match="altered, so it is not exported"):
            run(place, "export")

    def test_a_ledger_that_began_anew_is_found_by_the_audit_log(self, place: Place) -> None:
        place.train(1, 2)
        for path in place.folder.iterdir():
            path.unlink()
        result = run(place, "verify")
        assert (result.exit_code, "no ledger, but 2 answers" in result.output) == (2, True)
        Ledger(place.folder, "a")
        assert run(place, "verify").exit_code == 2


class TestExport:
    def test_charges_leave_without_any_patient(self, place: Place, tmp_path: Path) -> None:
        ledger = place.train(1, 2)
        told = json.loads(run(place, "export").output)
        assert (told["schema"], told["site"]) == ("eucaim-fl-ledger-export/1", "a")
        assert told["head"] == {"count": 3, "hash": ledger.head().hash}
        assert [(one["round"], one["noise"], one["patients"], one["time"]) for one in told["charges"]] == [
            (1, 4.0, 10, "2026-03-01"),
            (2, 4.0, 10, "2026-03-01"),
        ]
        out = tmp_path / "charges.csv"
        assert "2 charges written" in run(place, "export", "--format", "csv", "--out", out).output
        assert len(list(csv.DictReader(io.StringIO(out.read_text())))) == 2
        assert out.stat().st_mode & 0o777 == 0o600
        sets = {record.body["patients"] for record in ledger.entries()}
        assert not any(str(one) in json.dumps(told) + out.read_text() for one in sets)

    def test_of_public_data_it_is_exact(self, place: Place) -> None:
        place.train(1)
        values = yaml.safe_load(place.home.site_file.read_text())
        place.home.site_file.write_text(yaml.safe_dump({**values, "release": {"data_is": "public"}}))
        (one,) = json.loads(run(place, "export").output)["charges"]
        assert (one["patients"], one["time"]) == (12, "2026-03-01T12:00:00.000000+00:00")

    def test_a_file_that_is_there_is_not_replaced(self, place: Place, tmp_path: Path) -> None:
        out = tmp_path / "charges.json"
        told = json.loads(run(place, "export", "--out", out, "--json").output)
        assert told == {"file": str(out), "charges": 0}
        with pytest.raises(ConfigError, match="such a file already"):
            run(place, "export", "--out", out)


class TestProject:
    def test_a_plan_that_fits_exits_with_0(self, place: Place) -> None:
        result = run(place, "project", place.sha[:8])
        assert result.exit_code == 0, result.output
        assert f"Plan tiny, SHA-256 {place.sha}" in result.output
        assert "a training patient pays epsilon 2 at delta 1e-05: 4 rounds of noise 4" in result.output
        assert "fits: the cohort: 0 now" in result.output
        assert "The budgets hold it." in result.output

    def test_one_that_does_not_exits_with_2(self, place: Place, tmp_path: Path) -> None:
        place.policy({**DP, "epsilon": 1})
        file = tmp_path / "plan.json"
        file.write_text(json.dumps(place.plan.model_dump(mode="json"), indent=2))
        result = run(place, "project", file)
        assert result.exit_code == 2
        assert "DOES NOT FIT: this plan: 0 now, 2 with the plan, limit 1" in result.output
        told = json.loads(run(place, "project", file, "--json").output)
        assert (told["fits"], told["plan_sha256"], told["costs"][0]["times"]) == (False, place.sha, 4)

    def test_nothing_is_reserved_and_its_own_reservation_does_not_stand_in_its_way(self, place: Place) -> None:
        ledger = place.train(1, 2)
        output = run(place, "project", place.sha).output
        assert "Already charged of it: 2 rounds." in output
        assert "Nobody of 12 patients" in output
        assert (ledger.head().count, len(ledger.reservations())) == (3, 1)

    def test_of_a_plan_that_is_done_nothing_is_left_to_pay(self, place: Place) -> None:
        place.policy({**DP, "patient_epsilon": 1})
        place.train(1, 2, 3, 4)
        result = run(place, "project", place.sha)
        assert result.exit_code == 0
        assert result.output.endswith("Already charged of it: 4 rounds. Nothing of it is left to pay.\n")
        assert json.loads(run(place, "project", place.sha, "--json").output)["fits"] is True

    @pytest.mark.parametrize(("days", "counted"), [(2, True), (1, False)])
    def test_what_another_plan_left_idle_for_too_long_is_not_counted(
        self, place: Place, days: int, counted: bool
    ) -> None:
        """It was heard of 36 hours ago, and holds seven steps."""
        place.policy({**DP, "reserved_days": days})
        other = Purchase("e" * 64, "other", "education", "a", "train", True)
        early = Ledger(place.folder, "a", clock=lambda: datetime.now(UTC) - timedelta(hours=36))
        early.reserve(other, ONCE.times(7), PATIENTS, NO_LIMITS, 1)
        assert ("the cohort: 0 now" in run(place, "project", place.sha).output) != counted
        assert [record.kind for record in early.entries()] == ["reserved"], "nothing is released"

    def test_a_plan_is_a_file_or_the_beginning_of_its_digits(self, place: Place) -> None:
        assert read_plan_argument(place.sha[:6], place.home) == place.plan
        with pytest.raises(PlanError, match="can't be read"):
            read_plan_argument(place.sha[:6], None)
        with pytest.raises(PlanError, match="No plan of that SHA-256"):
            read_plan_argument("0000", place.home)


class TestRelease:
    def test_a_person_is_asked_and_the_ledger_records_it(self, place: Place) -> None:
        ledger = place.train(1)
        assert run(place, "release", place.sha[:8], input="n\n").exit_code == 1
        assert len(ledger.reservations()) == 1
        result = run(place, "release", place.sha[:8], input="y\n")
        assert (result.exit_code, "Released: 3 steps." in result.output) == (0, True)
        assert "Free 3 steps that tiny" in result.output
        assert (ledger.reservations(), [r.kind for r in ledger.entries()][-1]) == ((), "released")
        told = json.loads(run(place, "release", place.sha[:8], "--yes", "--json").output)
        assert told == {"plan": place.sha, "released_steps": 0}
        nothing = "This plan has nothing reserved; what was charged stays.\n"
        assert run(place, "release", place.sha).output == nothing
        file = place.home.plans_folder / f"{place.sha}.json"
        assert run(place, "release", file).output == nothing, "a plan is named by its file too"
        with pytest.raises(ConfigError, match="knows no such plan"):
            run(place, "release", "00")


class TestPage:
    def test_a_page_is_written_for_this_hospital(self, place: Place, tmp_path: Path) -> None:
        place.train(1, 2)
        out = tmp_path / "run.html"
        assert "Written to" in run(place, "page", place.sha[:8], "--out", out).output
        html = out.read_text()
        assert "ε 1.36" in html
        assert "to train round 2" in html
        assert "PATIENT-" not in html
        assert out.stat().st_mode & 0o777 == 0o600
        assert json.loads(run(place, "page", place.sha, "--out", out, "--json").output)["page"] == str(out)


class TestReplace:
    def lose(self, place: Place) -> None:
        log = AuditLog(place.home.audit_folder, PrivateKey.load(place.home.site_key), "a")
        for number in (1, 2):
            log.append("decision", {"plan": place.sha, "kind": "round", "round": number, "verdict": "allow"})
            Lineage(place.folder.parent).record((place.sha, ""), ("round", number), "0" * 64, {"train": PATIENTS})
        for path in place.train(1, 2).folder.iterdir():
            path.unlink()

    def test_a_person_decides_and_everybody_is_charged(self, place: Place) -> None:
        self.lose(place)
        result = run(place, "replace", input="n\n")
        assert result.exit_code == 1
        assert f"Looked in {place.folder.parent}." in result.output
        assert f"- tiny ({place.sha[:12]}): 2 rounds, epsilon 1.36" in result.output
        assert "- together: 1 plan, epsilon 1.36 at delta 1e-05" in result.output
        assert not (place.folder / "ledger.key").exists()
        result = run(place, "replace", "--by", "dpo-2", input="y\n")
        assert (result.exit_code, "has begun with 2 charges to everybody" in result.output) == (0, True)
        shown = run(place, "show").output
        assert "begun anew after a loss with charges to everybody" in shown
        assert "The ledger knows no patient yet." in shown
        run(place, "page", place.sha, "--out", place.root / "run.html")
        assert '<td class="n">everybody</td>' in (place.root / "run.html").read_text()
        assert "it agrees with 1 heads" in run(place, "verify").output

    def test_who_is_new_pays_for_what_is_left(self, place: Place) -> None:
        self.lose(place)
        assert json.loads(run(place, "replace", "--yes", "--json").stdout)["plans"] == 1
        output = run(place, "project", place.sha).output
        counts = Budget(3, DELTA).used([ONCE.times(2)])
        assert f"a patient whom the ledger does not know: {epsilon_words(counts)} now" in output

    def test_a_copy_that_is_found_while_the_question_is_open_stays(
        self, place: Place, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        place.train(1)
        copy = shutil.copytree(place.folder, place.folder.with_name("copy"))
        shutil.rmtree(place.folder)

        def meanwhile(*_: object, **__: object) -> bool:
            copy.rename(place.folder)
            return True

        monkeypatch.setattr(click, "confirm", meanwhile)
        with pytest.raises(LedgerError, match="not lost"):
            run(place, "replace", "--no-local-runs")
        assert len(Ledger(place.folder, "a").patient_mechanisms(PATIENTS[0])) == 1

    def test_without_a_record_of_who_was_used_a_question_more_is_asked(self, place: Place) -> None:
        self.lose(place)
        (place.folder.parent / "lineage.sqlite").unlink()
        with pytest.raises(ConfigError, match="--yes does not answer for it"):
            run(place, "replace", "--yes")
        result = run(place, "replace", input="n\n")
        assert (result.exit_code, "trained without the client? [y/N]" in result.output) == (1, True)
        assert not (place.folder / "ledger.key").exists()
        result = run(place, "replace", "--yes", "--no-local-runs", "--json")
        assert json.loads(result.stdout)["lineage_missing"] is True

    def test_both_questions_may_be_answered(self, place: Place) -> None:
        self.lose(place)
        (place.folder.parent / "lineage.sqlite").unlink()
        assert "has begun with 2 charges" in run(place, "replace", input="y\ny\n").output

    def test_one_that_is_there_is_not_replaced(self, place: Place) -> None:
        place.train(1)
        with pytest.raises(LedgerError, match="not lost"):
            run(place, "replace", "--yes")

"""`eucaim-fl site policy` as a data-protection officer meets it."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from click.testing import CliRunner, Result

from eucaim_fl.cli.site_policy import command
from eucaim_fl.config import ClassificationConfig
from eucaim_fl.errors import ConfigError, PlanError, PolicyError, ServiceStateError
from eucaim_fl.plan import FederationPlan, make_plan
from eucaim_fl.signing import PrivateKey
from eucaim_fl.site.audit import AuditLog
from eucaim_fl.site.home import HOME_VARIABLE, SiteHome

OPEN: dict[str, Any] = {
    "schema": "eucaim-fl-policy/1",
    "valid_until": "2199-12-31",
    "datasets": ["ds-1"],
    "asking": {"permits": "not_required"},
    "purposes": ["scientific_research"],
    "tasks": ["segmentation", "classification"],
    "targets": ["malignant"],
    "networks": "any",
    "sites": {"at_least": 2},
    "patients": {"training": 10, "metric": 5},
    "metrics": {"names": ["dice", "hd95_mm"], "decimals": 3},
    "rounds": 2,
    "plans": {"day": 1, "total": 2},
    "hours": "any",
    "work": {"minutes": 30},
    "sent_mb": {"message": 1, "plan": 3, "day": 2},
    "update": {"largest_norm": 10},
    "privacy": {"mechanism": "none"},
    "approval": "automatic",
}


@pytest.fixture(autouse=True)
def _no_home(monkeypatch):
    monkeypatch.delenv(HOME_VARIABLE, raising=False)


def run(*words: str | Path) -> Result:
    return CliRunner().invoke(command, list(map(str, words)))


@pytest.fixture
def plan(recipe) -> FederationPlan:
    return make_plan(recipe(["a.yaml"]), ("a", "b"))


@pytest.fixture
def plan_file(tmp_path, plan) -> Path:
    path = tmp_path / "plan.json"
    path.write_text(json.dumps(plan.model_dump(mode="json"), indent=2))  # as `plan show` prints it
    return path


@pytest.fixture
def policy_file(tmp_path):
    def write(**changes: Any) -> Path:
        path = tmp_path / "policy.yaml"
        path.write_text(yaml.safe_dump({**OPEN, **changes}, sort_keys=False))
        return path

    return write


class TestExplain:
    def test_a_plan_that_is_allowed_ends_with_0(self, plan_file, policy_file, plan):
        result = run("explain", plan_file, "--policy", policy_file())
        assert result.exit_code == 0, result.output
        assert plan.sha256() in result.output
        assert "Purpose: segmentation of lesion" in result.output
        assert "Allowed." in result.output
        assert "Open until run time" in result.output

    def test_of_noise_the_budgets_and_delta_stay_open(self, tmp_path, recipe, plan_file, policy_file):
        assert "- privacy:" not in run("explain", plan_file, "--policy", policy_file()).output
        noise = {"mechanism": "update_dp", "noise_multiplier": 8.0, "delta": 1e-5, "clipping_norm": 1.0}
        file = tmp_path / "noised.json"
        file.write_text(make_plan(recipe(["a.yaml"], privacy=noise), ("a", "b")).canonical_json())
        words = ("explain", file, "--policy", policy_file(privacy={"mechanism": "dp", "epsilon": 9, "delta": 1e-5}))
        output = run(*words).output
        assert "- privacy: whether the ledger's budgets still hold it by then" in output
        assert "delta is below 1/patients here" in output
        assert "privacy" in json.loads(run(*words, "--json").output)["open_until_run_time"]

    def test_a_refusal_ends_with_2_and_names_the_line(self, plan_file, policy_file):
        result = run("explain", plan_file, "--policy", policy_file(rounds=1))
        assert result.exit_code == 2
        line = policy_file(rounds=1).read_text().splitlines().index("rounds: 1") + 1
        assert f"Refused by rounds (line {line})." in result.output
        assert "a plan has at most 1 rounds. The plan: 2 rounds" in result.output

    def test_a_key_that_is_not_there_is_named_as_not_stated(self, plan_file, policy_file):
        result = run("explain", plan_file, "--policy", policy_file(update={}))
        assert "update.largest_norm (not stated)" in result.output

    def test_waiting_ends_with_2(self, plan_file, policy_file):
        result = run("explain", plan_file, "--policy", policy_file(approval="manual"))
        assert result.exit_code == 2
        assert "Waits for approval" in result.output

    def test_programs_get_every_clause(self, plan_file, policy_file, plan):
        result = run("explain", plan_file, "--policy", policy_file(rounds=1), "--json")
        told = json.loads(result.output)
        assert result.exit_code == 2
        assert (told["allowed"], told["refused"], told["plan_sha256"]) == (False, ["rounds"], plan.sha256())
        assert len(told["clauses"]) > 15
        assert "hours" in told["open_until_run_time"]

    def test_the_clauses_on_targets_plans_and_work_are_told(self, tmp_path, plan_file, policy_file, plan):
        output = run("explain", plan_file, "--policy", policy_file()).output
        assert "targets: clinical columns that a plan may learn: malignant. The plan: no clinical" in output
        assert "plans.day: at most 1 different plans are worked for on a day (UTC). The plan: with this one," in output
        assert "work.minutes: work on one instruction stops after 30 minutes" in output
        for key in ("plans.day", "plans.total", "work.minutes"):
            assert f"\n- {key}: " in output
        path = tmp_path / "address.json"
        other = ClassificationConfig(target="home_address", classes=("no", "yes"))
        path.write_text(plan.model_copy(update={"task": other}).canonical_json())
        assert "Refused by targets (line " in run("explain", path, "--policy", policy_file()).output

    def test_words_of_a_plan_do_not_steer_the_terminal(self, tmp_path, policy_file, plan):
        classes = ClassificationConfig(target="malignant", classes=("no", "\x1b[2Jyes"))
        path = tmp_path / "hostile.json"
        path.write_text(plan.model_copy(update={"task": classes}).canonical_json())
        result = run("explain", path, "--policy", policy_file())
        assert "\x1b" not in result.output
        assert "?[2Jyes" in result.output

    @pytest.mark.parametrize("content", [None, "no JSON", "[" * 100_000, "{}"])
    def test_what_is_no_plan_is_refused(self, tmp_path, policy_file, content):
        path = tmp_path / "other.json"
        if content is not None:
            path.write_text(content)
        assert isinstance(run("explain", path, "--policy", policy_file()).exception, PlanError)

    def test_without_a_policy_it_asks_for_one(self, plan_file):
        result = run("explain", plan_file)
        assert isinstance(result.exception, ConfigError)
        assert "--home" in str(result.exception)


@pytest.mark.integration
class TestExplainAtHome:
    @pytest.fixture
    def home(self, tmp_path, policy_file, plan) -> SiteHome:
        home = SiteHome(tmp_path / "home")
        home.plans_folder.mkdir(parents=True)
        policy_file(approval="manual").rename(home.policy_file)
        home.site_file.write_text(yaml.safe_dump({"name": "a", "cohort": {"layout": "nifti_csv", "folder": "x"}}))
        (home.plans_folder / f"{plan.sha256()}.json").write_text(plan.canonical_json())
        return home

    def test_a_plan_that_was_asked_for_is_found_by_its_hash(self, home, plan):
        result = run("explain", plan.sha256()[:12], "--home", home.folder)
        assert result.exit_code == 2
        assert "Waits for approval" in result.output

    def test_what_a_person_approved_counts(self, home, plan):
        log = AuditLog(home.audit_folder, PrivateKey.create(), "a")
        log.append("approved", {"plan": plan.sha256(), "by": "dpo"})
        result = run("explain", plan.sha256(), "--home", home.folder)
        assert result.exit_code == 0, result.output
        assert "a person here has approved it" in result.output

    def test_without_a_home_it_does_not_claim_to_know_what_the_data_are(self, tmp_path, recipe, policy_file):
        noise = {"mechanism": "update_dp", "noise_multiplier": 8.0, "delta": 1e-5, "clipping_norm": 1.0}
        asked = make_plan(recipe(["a.yaml"], privacy={**noise, "secure": False}), ("a", "b"))
        file = tmp_path / "seeded.json"
        file.write_text(asked.canonical_json())
        result = run("explain", file, "--policy", policy_file())
        assert result.exit_code == 2
        assert "unless the site file calls its data synthetic or public" in result.output
        assert "are confidential" not in result.output

    def test_noise_from_the_seed_is_refused_unless_the_site_file_calls_the_data_public(self, home, tmp_path, recipe):
        noise = {"noise_multiplier": 8.0, "delta": 1e-5, "clipping_norm": 1.0, "secure": False}
        file = tmp_path / "seeded.json"
        config = recipe(["a.yaml"], privacy={**noise, "mechanism": "update_dp"})
        file.write_text(make_plan(config, ("a", "b")).canonical_json())
        assert "Refused by privacy" in run("explain", file, "--home", home.folder).output
        assert "Refused by privacy" in run("explain", file, "--policy", home.policy_file).output
        site = yaml.safe_load(home.site_file.read_text())
        home.site_file.write_text(yaml.safe_dump({**site, "release": {"data_is": "public"}}))
        assert "Waits for approval" in run("explain", file, "--home", home.folder).output

    def test_what_was_decided_last_is_told(self, home, plan):
        assert "Last decided" not in run("explain", plan.sha256()[:4], "--policy", home.policy_file).output
        assert "Last decided here: nothing yet." in run("explain", plan.sha256()[:4], "--home", home.folder).output
        log = AuditLog(home.audit_folder, PrivateKey.create(), "a")
        log.append("decision", {"plan": plan.sha256(), "verdict": "refuse", "reasons": ["rounds", "hours"]})
        output = run("explain", plan.sha256()[:4], "--home", home.folder).output
        assert re.search(r"Last decided here: refused at [-0-9]+ [:0-9]+ UTC because of: rounds; hours\.", output)
        told = json.loads(run("explain", plan.sha256()[:4], "--home", home.folder, "--json").output)
        assert (told["last_decided"]["outcome"], told["last_decided"]["reasons"]) == ("refused", ["rounds", "hours"])

    def test_a_name_that_is_no_file_is_told_without_the_system_s_number(self, home):
        problem = run("explain", "plan-x.json", "--home", home.folder).exception
        assert isinstance(problem, PlanError)
        assert "Errno" not in problem.for_terminal()
        assert "first 4 digits" in str(run("explain", "abc", "--home", home.folder).exception)

    def test_plans_that_were_allowed_before_count(self, home, plan):
        log = AuditLog(home.audit_folder, PrivateKey.create(), "a")
        log.append("decision", {"plan": "1" * 64, "verdict": "allow"})
        output = run("explain", plan.sha256(), "--home", home.folder).output
        assert "Waits for plans.day (line " in output
        log.append("decision", {"plan": "2" * 64, "verdict": "allow"})
        assert "Refused by plans.total (line " in run("explain", plan.sha256(), "--home", home.folder).output

    def test_a_home_that_is_not_there(self, tmp_path, plan_file):
        problem = run("explain", plan_file, "--home", tmp_path / "nowhere").exception
        assert isinstance(problem, ServiceStateError)

    def test_a_hash_that_nobody_asked_for_is_refused(self, home):
        result = run("explain", "0" * 64, "--home", home.folder)
        assert isinstance(result.exception, PlanError)
        assert "No plan of that" in str(result.exception)

    def test_a_site_that_the_plan_does_not_name_is_told(self, home, plan):
        home.site_file.write_text(yaml.safe_dump({"name": "z", "cohort": {"layout": "nifti_csv", "folder": "x"}}))
        assert "Refused by sites.at_least" in run("explain", plan.sha256(), "--home", home.folder).output


class TestCheck:
    def test_it_says_what_the_policy_allows(self, policy_file):
        result = run("check", policy_file())
        assert result.exit_code == 0
        assert "rounds: a plan has at most 2 rounds." in result.output
        assert "The policy can be used" in result.output

    def test_programs_get_lines(self, policy_file):
        told = json.loads(run("check", policy_file(), "--json").output)
        assert {"key": "networks", "line": 14, "says": "any network"} in told["says"]
        lines = {one["key"]: one["line"] for one in told["says"]}
        text = policy_file().read_text().splitlines()
        for key in ("targets", "plans.day", "plans.total", "work.minutes"):
            assert f"{key.rpartition('.')[2]}:" in text[lines[key] - 1]

    def test_keys_that_are_open_are_named(self, policy_file):
        result = run("check", policy_file(datasets=[], update={}, targets=[], asking={"permits": "required"}))
        assert result.exit_code == 0
        words = "It reads well, but allows nothing until these are filled in: datasets, asking.bodies, update.largest_"
        assert words in result.output
        assert "can be used" not in result.output

    def test_a_wrong_policy_is_refused(self, policy_file):
        result = run("check", policy_file(rounds=0))
        assert isinstance(result.exception, PolicyError)
        assert "(rounds)" in str(result.exception)

    @pytest.mark.parametrize("word", ["explain", "check"])
    def test_every_command_has_help_with_an_example(self, word):
        assert "Example" in run(word, "--help").output

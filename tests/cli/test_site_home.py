"""What hospital IT types from the invitation on: init, check, status, approve, refuse, stop."""

from __future__ import annotations

import json
import os
import signal
import socket
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from eucaim_fl.cli import cli
from eucaim_fl.durable import exclusive
from eucaim_fl.enrolment import Invitation, invite, new_token
from eucaim_fl.errors import AuditError, ConfigError, EnrolmentError, JournalError, ServiceStateError
from eucaim_fl.plan import FederationPlan
from eucaim_fl.privacy_config import PrivacyConfig
from eucaim_fl.signing import PrivateKey, fingerprint
from eucaim_fl.site import machine
from eucaim_fl.site.audit import AuditLog
from eucaim_fl.site.enrol import CohortChoice, make_home
from eucaim_fl.site.home import HOME_VARIABLE, SiteHome
from eucaim_fl.site.network import SetupFinding
from eucaim_fl.site.overview import look
from eucaim_fl.sitefile import load_site_file

pytestmark = pytest.mark.integration

COORDINATOR = PrivateKey.create()
NOW = datetime.now(UTC)


def run(*words: str | Path, **options: Any) -> Result:
    return CliRunner().invoke(cli, ["site", *map(str, words)], **options)


@pytest.fixture(scope="module")
def document() -> dict[str, Any]:
    """An invitation for the site `a`."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "authority")])
    builder = x509.CertificateBuilder().subject_name(name).issuer_name(name).public_key(key.public_key())
    builder = builder.serial_number(1).not_valid_before(NOW).not_valid_after(NOW + timedelta(days=365))
    pem = builder.sign(key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM).decode()
    with socket.create_server(("127.0.0.1", 0)) as door:
        port = door.getsockname()[1]  # where nothing listens afterwards
    invitation = Invitation(
        federation="prostate",
        site="a",
        address=f"127.0.0.1:{port}",
        ca_pem=pem,
        coordinator_key=COORDINATOR.public,
        token=new_token(),
        valid_until=NOW + timedelta(days=14),
    )
    return invite(invitation, COORDINATOR)


@pytest.fixture
def invitation_file(document: dict[str, Any], tmp_path: Path) -> Path:
    (tmp_path / "invitation.json").write_text(json.dumps(document))
    return tmp_path / "invitation.json"


@pytest.fixture
def home(document: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> SiteHome:
    """The home of site `a`, whose policy asks a person and allows all else that a tiny plan asks."""
    monkeypatch.delenv(HOME_VARIABLE, raising=False)
    choice = CohortChoice(tmp_path / "cohort", "nifti_csv")
    make_home(tmp_path / "home", Invitation(**document["invitation"]), document, choice)
    place = SiteHome(tmp_path / "home")
    text = place.policy_file.read_text()
    for old, new in (
        ("datasets: []", "datasets: [demo]\nvalid_until: 2999-12-31"),
        ("permits: required", "permits: not_required"),
        ("at_least: 3", "at_least: 1"),
    ):
        assert old in text
        text = text.replace(old, new, 1)
    place.policy_file.write_text(text)
    return place


@pytest.fixture
def asked(home: SiteHome, plan_for: Callable[..., FederationPlan]) -> FederationPlan:
    """A plan that was asked for and waits for a person."""
    plan = plan_for()
    home.plans_folder.mkdir(parents=True)
    (home.plans_folder / f"{plan.sha256()}.json").write_text(plan.canonical_json())
    log(home).append(
        "decision",
        {
            "plan": plan.sha256(),
            "name": plan.name,
            "kind": "hello",
            "round": 0,
            "holder": "",
            "permit": "",
            "purpose": plan.purpose,
            "verdict": "wait",
            "reasons": ["approval"],
            "policy_sha256": "0" * 64,
        },
    )
    return plan


def log(home: SiteHome) -> AuditLog:
    return AuditLog(home.audit_folder, PrivateKey.load(home.site_key), "a")


def write_status(home: SiteHome, **changes: Any) -> None:
    now = datetime.now(UTC).isoformat()
    values = {
        "state": "connected",
        "site": "a",
        "federation": "prostate",
        "pid": os.getpid(),
        "since": now,
        "updated": now,
        "version": "0.1.0",
        "connected": True,
        "admitted": True,
        "last_contribution": {"plan": "f" * 64, "name": "demo", "kind": "round", "round": 3, "at": now},
    }
    home.status_file.parent.mkdir(exist_ok=True)
    home.status_file.write_text(json.dumps({**values, **changes}))


class TestInit:
    def test_it_shows_what_to_compare_and_makes_the_home(self, invitation_file, tmp_path, document):
        result = run("init", "--invite", invitation_file, "--home", tmp_path / "new", input="y\n")
        assert result.exit_code == 0, result.output
        assert fingerprint(COORDINATOR.public) in result.output
        assert document["invitation"]["address"] in result.output
        assert str(tmp_path / "new" / "a.request.json") in result.output
        made = SiteHome(tmp_path / "new").require()
        assert fingerprint(PrivateKey.load(made.site_key).public) in result.output

    def test_nothing_is_made_unless_the_fingerprints_are_the_same(self, invitation_file, tmp_path):
        result = run("init", "--invite", invitation_file, "--home", tmp_path / "new", input="n\n")
        assert result.exit_code == 1
        assert not (tmp_path / "new").exists()

    def test_without_a_home_it_is_called_after_the_site(self, invitation_file, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        monkeypatch.delenv(HOME_VARIABLE, raising=False)
        assert run("init", "--invite", invitation_file, "--yes").exit_code == 0
        assert SiteHome(tmp_path / "a").require()

    def test_a_second_one_is_an_error_that_says_what_to_do(self, invitation_file, home):
        result = run("init", "--invite", invitation_file, "--home", home.folder, "--yes")
        assert isinstance(result.exception, ServiceStateError)
        assert "move the old home away" in str(result.exception)

    def test_cohort_and_layout_belong_together(self, invitation_file, tmp_path):
        words = ("init", "--invite", invitation_file, "--home", tmp_path / "new", "--cohort", tmp_path / "cohort")
        assert "belong together" in run(*words).output
        assert "is one of eucaim_tier3" in run(*words, "--layout", "other").output
        assert run(*words, "--layout", "bids", "--yes").exit_code == 0

    def test_an_altered_invitation_is_refused(self, invitation_file, tmp_path):
        document = json.loads(invitation_file.read_text())
        document["invitation"]["site"] = "b"
        invitation_file.write_text(json.dumps(document))
        result = run("init", "--invite", invitation_file, "--home", tmp_path / "new", "--yes")
        assert isinstance(result.exception, EnrolmentError)


class TestCheck:
    def test_a_line_that_does_not_work_is_told_with_what_to_do(self, home):
        result = run("check", "--home", home.folder, "--no-cohort")
        assert result.exit_code == 2, result.output
        assert "line.refused" in result.output
        assert "blocks" in result.output
        assert "Line, home and machine:" in result.output
        assert "is shown by `eucaim-fl site status` once the client runs" in result.output

    def test_json_names_no_place(self, home, tmp_path):
        home.site_key.chmod(0o644)
        result = run("check", "--home", home.folder, "--no-cohort", "--json")
        found = {one["code"]: one["severity"] for one in json.loads(result.stdout)["home"]}
        assert found["line.refused"] == "blocks"
        assert found["home.site_key"] == "blocks"
        assert str(tmp_path) not in result.stdout

    def test_the_cohort_is_checked_too(self, home, hospital, monkeypatch):
        works = (SetupFinding("line.works", "informs", "It works."),)
        monkeypatch.setattr(machine, "check_home", lambda home, clock: works)
        site_file = hospital("a")
        result = run("check", site_file, "--home", home.folder, "--no-pixels", "--json")
        assert result.exit_code == 0, result.output
        value = json.loads(result.stdout)
        assert (value["can_train"], [one["code"] for one in value["home"]]) == (True, ["line.works"])

    def test_a_home_whose_cohort_is_not_filled_in_says_so_and_stops_there(self, invitation_file, tmp_path):
        run("init", "--invite", invitation_file, "--home", tmp_path / "new", "--yes")
        result = run("check", "--home", tmp_path / "new")
        assert result.exit_code == 2
        assert "home.cohort" in result.output
        assert result.exception is None or isinstance(result.exception, SystemExit)

    def test_a_home_that_only_the_environment_names_makes_no_check_of_another_file_connect(
        self, home, hospital, monkeypatch
    ):
        def refuse(*_: object) -> None:
            raise AssertionError("a connection was opened")

        monkeypatch.setenv(HOME_VARIABLE, str(home.folder))
        monkeypatch.setattr(socket.socket, "connect", refuse)
        result = run("check", hospital("a"), "--no-pixels", "--json")
        assert result.exit_code == 0, result.output
        assert "home" not in json.loads(result.stdout)

    def test_something_is_to_be_checked(self, home, monkeypatch):
        monkeypatch.delenv(HOME_VARIABLE, raising=False)
        assert "Name a site file" in run("check").output
        assert "--no-cohort goes with --home" in run("check", "a.yaml", "--no-cohort").output


class TestStatus:
    def test_a_client_that_never_ran(self, home):
        result = run("status", "--home", home.folder)
        assert result.exit_code == 0, result.output
        assert "it has never run here" in result.output
        assert "Waiting for a person here: nothing" in result.output
        assert f"{'Privacy budget:':<20}no budget over all plans is set, and nothing was spent yet" in result.output

    def test_a_client_that_runs_well(self, home):
        write_status(home)
        with exclusive(home.run_folder):
            result = run("status", "--home", home.folder)
            line = run("status", "--home", home.folder, "--healthy")
        assert "connected since" in result.output
        assert "round 3 of demo (ffffffffffff)" in result.output
        assert (line.exit_code, line.output) == (0, "healthy: connected, admitted and contributing\n")

    def test_a_restart_or_a_refusal_does_not_hide_what_was_asked_last(self, home, asked):
        log(home).append("sent", {"plan": asked.sha256(), "kind": "round", "round": 2, "bytes": 5})
        body = {"plan": asked.sha256(), "name": "tiny", "kind": "round", "round": 3}
        log(home).append("decision", {**body, "verdict": "refuse", "reasons": ["rounds"]})
        text = "The site's policy refuses the plan: rounds. Ask the site; it knows."
        problem = {"code": "EFL310", "text": text, "at": NOW.isoformat()}
        write_status(home, last_contribution=None, last_problem=problem)
        output = run("status", "--home", home.folder).output
        asked_line, sent_line = (line for line in output.splitlines() if line.startswith(("Last asked", "Last contr")))
        assert f"round 3 of tiny ({asked.sha256()[:12]}) at " in asked_line
        assert asked_line.endswith("UTC: refused because of: rounds")
        assert f"round 2 of tiny ({asked.sha256()[:12]}) at " in sent_line
        explain = f"`eucaim-fl site policy explain {asked.sha256()[:16]} --home {home.folder}` names the lines."
        assert f"refuses the plan: rounds. {explain}" in output
        value = json.loads(run("status", "--home", home.folder, "--json").stdout)
        assert (value["last_asked"]["outcome"], value["last_sent"]["round"]) == ("refused", 2)

    @pytest.mark.parametrize(
        ("state", "says"), [("disconnected", "unknown (not connected)"), ("not_admitted", "no"), ("connected", "yes")]
    )
    def test_admission_is_unknown_without_a_line(self, home, state, says):
        line = state == "connected"
        write_status(home, state=state, connected=line, admitted=line)
        with exclusive(home.run_folder):
            output = run("status", "--home", home.folder).output
        assert f"{'Admitted:':<20}{says}\n" in output

    def test_a_client_that_is_gone_is_not_well_whatever_it_said(self, home):
        write_status(home)
        result = run("status", "--home", home.folder, "--healthy")
        assert (result.exit_code, result.output) == (2, "The client does not run.\n")
        assert "ended without a word after" in run("status", "--home", home.folder).output
        write_status(home, state="stopped")
        assert "it was stopped at" in run("status", "--home", home.folder).output

    def test_what_waits_is_shown_with_the_command_to_type(self, home, asked):
        result = run("status", "--home", home.folder)
        prefix = asked.sha256()[:16]
        assert "Waiting for a person here: 1" in result.output
        assert f"tiny  {prefix}  purpose scientific_research, asked by nobody with a data permit" in result.output
        assert f"eucaim-fl site approve {prefix} --home {home.folder}" in result.output

    def test_what_left_is_added_up(self, home):
        for size in (400_000, 900_000):
            log(home).append("sent", {"plan": "a" * 64, "kind": "round", "round": 1, "bytes": size})
        result = run("status", "--home", home.folder)
        assert "1.3 MB in 2 messages" in result.output
        value = json.loads(run("status", "--home", home.folder, "--json").stdout)
        assert (value["bytes_sent"], value["bytes_sent_today"], value["messages_sent"]) == (1_300_000,) * 2 + (2,)
        assert (value["healthy"], value["waiting"]) == (False, [])
        assert (value["privacy_budget"]["problem"], value["privacy_budget"]["charges"]) == (None, 0)

    def test_a_damaged_ledger_is_said_and_stops_nothing(self, home):
        folder = load_site_file(home.site_file).records_folder() / "ledger"
        folder.mkdir(parents=True)
        for name in ("ledger.key", "ledger.sqlite", "head.json"):
            (folder / name).write_text("nonsense")
        result = run("status", "--home", home.folder)
        assert result.exit_code == 0, result.output
        assert f"{'Privacy budget:':<20}unknown: the privacy ledger is damaged." in result.output

    def test_a_problem_cannot_steer_the_terminal(self, home):
        problem = {"code": "EFL600", "text": "\x1b[2Jgone", "at": NOW.isoformat()}
        write_status(home, last_problem=problem, problem_since_contribution=True)
        result = run("status", "--home", home.folder)
        assert "EFL600" in result.output
        assert "\x1b" not in result.output

    def test_what_cannot_be_read_is_told(self, home, asked):
        (home.audit_folder / "audit.sqlite").write_bytes(b"nothing")
        with pytest.raises(AuditError, match="damaged"):
            look(home, NOW)
        (home.run_folder / ".lock").mkdir(parents=True)
        with pytest.raises(JournalError, match="can't be written"):
            look(home, NOW)
        home.status_file.write_text("nothing")
        with pytest.raises(ServiceStateError, match="can't be read"):
            look(home, NOW)
        home.federation_file.write_text("{}")
        with pytest.raises(EnrolmentError, match="not a signed invitation"):
            look(home, NOW)


class TestApproveAndRefuse:
    def test_a_person_sees_the_plan_and_decides(self, home, asked):
        prefix = asked.sha256()[:8]
        result = run("approve", prefix, "--home", home.folder, input="y\n")
        assert result.exit_code == 0, result.output
        assert f"Plan tiny, SHA-256 {asked.sha256()}" in result.output
        assert "Purpose: segmentation of lesion" in result.output
        assert "allows   purposes: for scientific_research only." in result.output
        assert "The policy refuses" not in result.output
        assert log(home).approval(asked.sha256()) == "approved"
        assert "Waiting for a person here: nothing" in run("status", "--home", home.folder).output

    def test_the_last_word_counts(self, home, asked):
        assert run("approve", asked.sha256(), "--home", home.folder, "--yes").exit_code == 0
        result = run("refuse", asked.sha256(), "--home", home.folder, "--yes")
        assert "A person here has approved it before" in result.output
        assert log(home).approval(asked.sha256()) == "refused"
        assert run("approve", asked.sha256(), "--home", home.folder, "--yes").exit_code == 0
        assert log(home).approval(asked.sha256()) == "approved"

    def test_nothing_is_written_unless_they_say_so(self, home, asked):
        assert run("refuse", asked.sha256(), "--home", home.folder, input="n\n").exit_code == 1
        assert log(home).approval(asked.sha256()) is None

    @pytest.mark.parametrize(("word", "kind"), [("approve", "approved"), ("refuse", "refused")])
    def test_a_name_that_a_person_gives_stands_beside_the_login_name(self, home, asked, word, kind):
        result = run(word, asked.sha256(), "--home", home.folder, "--by", "dpo-2", input="y\n")
        assert result.exit_code == 0, result.output
        (record,) = log(home).records(kind=kind)
        assert record.body["stated_by"] == "dpo-2"
        assert f"it as dpo-2 (login name {record.body['by']})?" in result.output
        shown = run("audit", "show", "--home", home.folder, "--json").stdout
        assert "(gave the name dpo-2)" in shown

    def test_a_name_that_would_not_be_shown_is_refused(self, home, asked):
        result = run("approve", asked.sha256(), "--home", home.folder, "--by", "\x1b[2J", "--yes")
        assert isinstance(result.exception, ConfigError)
        assert log(home).approval(asked.sha256()) is None

    def test_that_the_policy_refuses_anyway_is_said(self, home, asked):
        home.policy_file.write_text(home.policy_file.read_text().replace("rounds: 100", "rounds: 1"))
        result = run("approve", asked.sha256(), "--home", home.folder, "--yes")
        assert "The policy refuses this plan whatever you say here: rounds." in result.output

    def test_of_noise_from_the_seed_too_where_the_site_file_does_not_call_the_data_public(self, home, asked):
        noise = {"mechanism": "update_dp", "noise_multiplier": 8.0, "delta": 1e-5, "clipping_norm": 1.0}
        privacy = PrivacyConfig.model_validate({**noise, "secure": False})
        plan = asked.model_copy(update={"privacy": privacy})
        (home.plans_folder / f"{plan.sha256()}.json").write_text(plan.canonical_json())
        confidential, words = home.site_file.read_text(), "The policy refuses this plan whatever you say here: privacy."
        for site, refused in (
            (confidential, True),
            (confidential.replace("data_is: confidential", "data_is: public"), False),
            ("nothing", True),
        ):
            home.site_file.write_text(site)
            result = run("approve", plan.sha256(), "--home", home.folder, "--yes")
            assert result.exit_code == 0, result.output
            assert (words in result.output) == refused


class TestStart:
    @pytest.mark.parametrize("words", [(), ("--detach",)])
    def test_a_second_client_is_refused_before_anything_is_started(self, home, words, monkeypatch):
        monkeypatch.setattr(signal, "signal", lambda *_: None)
        monkeypatch.setattr(os, "umask", lambda _: 0)
        with exclusive(home.run_folder):
            (home.run_folder / "pid").write_text(str(os.getpid()))
            result = run("start", "--home", home.folder, *words)
        assert isinstance(result.exception, ServiceStateError)
        assert f"already runs (process {os.getpid()}); `eucaim-fl site stop` ends it." in str(result.exception)


class TestStop:
    def test_nothing_to_stop_is_an_error(self, home):
        result = run("stop", "--home", home.folder)
        assert isinstance(result.exception, ServiceStateError)
        assert "No client runs" in str(result.exception)

    def test_a_folder_that_is_no_home(self, tmp_path):
        result = run("stop", "--home", tmp_path)
        assert isinstance(result.exception, ServiceStateError)
        assert "not the home of a site" in str(result.exception)


class TestHelp:
    @pytest.mark.parametrize("name", ["init", "check", "status", "approve", "refuse", "stop"])
    def test_every_command_has_help_with_an_example(self, name):
        result = run(name, "--help")
        assert result.exit_code == 0
        assert "Example" in result.output
        assert name in run("--help").output

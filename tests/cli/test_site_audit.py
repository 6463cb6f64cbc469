"""`eucaim-fl site audit` as a data-protection officer meets it."""

from __future__ import annotations

import json
import shutil
import sqlite3
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from eucaim_fl.cli.site_audit import command
from eucaim_fl.errors import AuditError, ConfigError, KeyFileError, ServiceStateError
from eucaim_fl.signing import PrivateKey, fingerprint
from eucaim_fl.site.audit import AuditLog, Head
from eucaim_fl.site.home import SiteHome

PLAN = "ab" * 32


@pytest.fixture
def home(tmp_path: Path) -> SiteHome:
    """A home with a key and a log of four records."""
    home = SiteHome(tmp_path / "home")
    home.site_key.parent.mkdir(parents=True)
    key = PrivateKey.create()
    key.save(home.site_key)
    log = AuditLog(home.audit_folder, key, "north")
    asked = {"holder": "university-x", "permit": "P-1", "purpose": "scientific_research"}
    log.append("started", {"version": "0.1.0", "policy_sha256": "c" * 64, "pid": 1})
    log.append("decision", {"plan": PLAN, "kind": "round", "round": 3, "verdict": "allow", "reasons": [], **asked})
    answer = {"bytes": 1234567, "arrays": 12, "patients": 70, "digest": "d" * 64, "update_norm": 1.25}
    log.append("sent", {"plan": PLAN, "kind": "round", "round": 3, "metrics": {"validation": ["dice"]}, **answer})
    log.append("withheld", {"plan": PLAN, "kind": "final", "round": 4, "code": "EFL304", "reasons": ["too long"]})
    return home


def run(*words: object) -> Result:
    return CliRunner().invoke(command, [str(word) for word in words], catch_exceptions=False)


def kept(home: SiteHome, path: Path, site: str = "north", **changes: object) -> Path:
    heads = [{"count": r.seq, "hash": r.hash, "at": "2026-03-01T12:00:00Z"} | changes for r in _records(home)]
    path.write_text(json.dumps({"site": site, "heads": heads}))
    return path


def _records(home: SiteHome) -> list[Head]:
    log = AuditLog(home.audit_folder, PrivateKey.load(home.site_key), "north")
    return list(log.records())  # type: ignore[arg-type]


class TestShow:
    def test_it_tells_in_plain_words(self, home: SiteHome) -> None:
        output = run("show", "--home", home.folder).output
        for words in (
            "Audit log of north",
            "university-x",
            "permit P-1",
            "scientific research",
            "asked to train round 3: allowed",
            "an answer left the site (asked to train round 3)",
            "1,234,567 bytes",
            "from 70 patients",
            "validation: dice",
            "because of: EFL304; too long",
            "nothing but the reason's code",
            "The log has 4 records.",
        ):
            assert words in output

    def test_what_the_plan_had_cost_by_then_stands_beside_what_left(self, home: SiteHome) -> None:
        log = AuditLog(home.audit_folder, PrivateKey.load(home.site_key), "north")
        paid = {"epsilon": 2.3104, "delta": 1e-5, "ledger_count": 7, "ledger": "e" * 64}
        log.append("sent", {"plan": PLAN, "kind": "round", "round": 4, "bytes": 5, **paid})
        output = run("show", "--home", home.folder, "--last", 1).output
        assert "privacy spent: epsilon 2.32 at delta 1e-05" in " ".join(output.split())
        assert "privacy ledger at record 7" in " ".join(output.split())
        (told,) = json.loads(run("show", "--home", home.folder, "--last", 1, "--json").output)
        assert {key: told["left"][key] for key in paid} == paid

    def test_filters_and_json(self, home: SiteHome) -> None:
        found = json.loads(run("show", "--home", home.folder, "--plan", "abab", "--last", 2, "--json").output)
        assert [(one["number"], one["asker"]["holder"]) for one in found] == [(3, "university-x"), (4, "university-x")]
        assert json.loads(run("show", "--home", home.folder, "--since", "2999-01-01", "--json").output) == []
        assert "nothing that fits" in run("show", "--home", home.folder, "--since", "2999-01-01").output
        assert "no." in run("show", "--home", home.folder, "--plan", PLAN).output

    def test_a_plan_that_the_log_does_not_know(self, home: SiteHome) -> None:
        with pytest.raises(ConfigError, match="knows no such plan"):
            run("show", "--home", home.folder, "--plan", "ff")

    def test_a_start_that_fits_several_plans(self, home: SiteHome) -> None:
        log = AuditLog(home.audit_folder, PrivateKey.load(home.site_key), "north")
        log.append("approved", {"plan": "ac" * 32, "by": "it"})
        with pytest.raises(ConfigError, match="Several plans"):
            run("show", "--home", home.folder, "--plan", "a")
        assert "by it" in run("show", "--home", home.folder, "--plan", "ac").output

    def test_a_home_without_a_log(self, tmp_path: Path) -> None:
        with pytest.raises(AuditError, match="no audit log here"):
            run("show", "--home", tmp_path)


class TestVerify:
    def test_an_intact_log_exits_with_0_and_says_how_much_it_holds(self, home: SiteHome, tmp_path: Path) -> None:
        result = run("verify", "--home", home.folder, "--heads", kept(home, tmp_path / "heads.json"))
        assert result.exit_code == 0
        assert "The audit log of north is intact: 4 records, from 2" in result.output
        assert "agrees with 4 heads" in result.output
        assert fingerprint(PrivateKey.load(home.site_key).public) in result.output

    def test_an_altered_one_exits_with_2_and_says_what(self, home: SiteHome) -> None:
        with sqlite3.connect(home.audit_folder / "audit.sqlite") as base:
            base.execute("DROP TRIGGER records_delete")
            base.execute("DELETE FROM records WHERE seq = 2")
        base.close()
        result = run("verify", "--home", home.folder)
        assert result.exit_code == 2
        assert "Record 2 is missing." in result.output
        found = json.loads(run("verify", "--home", home.folder, "--json").output)
        assert (found["intact"], "Record 2 is missing." in found["faults"]) == (False, True)

    def test_a_home_whose_client_never_ran_has_nothing_to_find(self, home: SiteHome, tmp_path: Path) -> None:
        shutil.rmtree(home.folder / "state")
        home.site_file.write_text(
            f"name: north\ncohort: {{layout: nifti_csv, folder: x}}\ncache: {{folder: {tmp_path / 'cache'}}}\n"
        )
        for path in (home.policy_file, home.federation_file, home.node_key):
            path.touch()
        result = run("verify", "--home", home.folder)
        assert (result.exit_code, result.output) == (
            0,
            "There is no audit log here. It is made when the site's client starts for the first time.\n",
        )
        assert json.loads(run("verify", "--home", home.folder, "--json").output)["begun"] is False
        (tmp_path / "heads.json").write_text(
            json.dumps({"site": "north", "heads": [{"count": 1, "hash": "a" * 64, "at": "2026-03-01T12:00:00Z"}]})
        )
        told = run("verify", "--home", home.folder, "--heads", tmp_path / "heads.json")
        assert (told.exit_code, "NOT intact" in told.output) == (2, True), "the coordinator knows of a log"
        with pytest.raises(ServiceStateError, match="not the home of a site"):
            run("verify", "--home", tmp_path / "nowhere")

    def test_a_log_that_was_removed_is_an_alarm(self, home: SiteHome) -> None:
        shutil.rmtree(home.audit_folder)
        home.plans_folder.mkdir(parents=True)
        (home.plans_folder / f"{PLAN}.json").touch()
        home.site_file.write_text("name: north\ncohort: {layout: nifti_csv, folder: x}\n")
        for path in (home.policy_file, home.federation_file, home.node_key):
            path.touch()
        result = run("verify", "--home", home.folder)
        assert result.exit_code == 2
        assert "database is missing." in result.output

    def test_heads_that_the_log_lacks(self, home: SiteHome, tmp_path: Path) -> None:
        result = run("verify", "--home", home.folder, "--heads", kept(home, tmp_path / "heads.json", hash="0" * 64))
        assert result.exit_code == 2
        assert "4 of the coordinator's 4 heads do not fit, the first at record 1: the log was" in result.output
        assert result.output.count("coordinator") == 2, "one line in all, and whom to tell"

    def test_heads_of_another_site(self, home: SiteHome, tmp_path: Path) -> None:
        result = run("verify", "--home", home.folder, "--heads", kept(home, tmp_path / "heads.json", site="south"))
        assert result.exit_code == 2
        assert result.output == "These heads are of site south; this is the log of north.\n"

    def test_a_copy_elsewhere_with_the_public_key_alone(self, home: SiteHome, tmp_path: Path) -> None:
        copy = shutil.copytree(home.audit_folder, tmp_path / "copy")
        public = PrivateKey.load(home.site_key).public
        found = json.loads(run("verify", "--home", copy, "--key", public, "--json").output)
        assert (found["intact"], found["records"], found["site"]) == (True, 4, "north")
        assert run("verify", "--home", copy, "--key", PrivateKey.create().public).exit_code == 2
        with pytest.raises(ConfigError, match="--key is no public key"):
            run("verify", "--home", copy, "--key", "ed25519:short")
        with pytest.raises(ConfigError, match="This is a copy of the log: give --key ed25519:"):
            run("verify", "--home", copy)
        home.site_key.unlink()
        with pytest.raises(KeyFileError, match="key file"):
            run("verify", "--home", home.folder)

    @pytest.mark.parametrize(
        ("content", "match"),
        [("{", "are no JSON"), ("[" * 100_000, "are no JSON"), ("[]", "not valid"), ('{"site": "north"}', "heads")],
    )
    def test_a_file_of_heads_that_is_none(self, home: SiteHome, tmp_path: Path, content: str, match: str) -> None:
        (tmp_path / "heads.json").write_text(content)
        with pytest.raises(ConfigError, match=match):
            run("verify", "--home", home.folder, "--heads", tmp_path / "heads.json")
        with pytest.raises(ConfigError, match="heads can't be read"):
            run("verify", "--home", home.folder, "--heads", tmp_path / "nothing.json")


class TestExport:
    def test_it_writes_and_says_where_the_log_stood(self, home: SiteHome, tmp_path: Path) -> None:
        out = tmp_path / "out.jsonl"
        result = run("export", "--home", home.folder, "--format", "ehds", "--out", out, "--dataset", "ds-5")
        assert f"Written to {out}" in result.output
        assert "The log had 4 records" in result.output
        assert out.stat().st_mode & 0o777 == 0o600
        assert json.loads(out.read_text().splitlines()[0])["datasets"] == ["ds-5"]
        assert "4 records" not in run("verify", "--home", home.folder).output, "the export is in the log"

    def test_a_file_that_is_there_is_not_replaced(self, home: SiteHome, tmp_path: Path) -> None:
        (tmp_path / "out.csv").write_text("kept")
        with pytest.raises(ConfigError, match="such a file already"):
            run("export", "--home", home.folder, "--format", "csv", "--out", tmp_path / "out.csv", "--dataset", "d")
        assert (tmp_path / "out.csv").read_text() == "kept"

    def test_the_policy_says_which_datasets_there_are(self, home: SiteHome, tmp_path: Path) -> None:
        home.policy_file.write_text("schema: eucaim-fl-policy/1\ndatasets: [ds-7]\n")
        run("export", "--home", home.folder, "--format", "tracer", "--out", tmp_path / "out.json")
        (call,) = json.loads((tmp_path / "out.json").read_text())["calls"]
        assert call["USE_DATASETS"]["datasetsIds"] == ["ds-7"]

    def test_an_export_does_not_begin_a_log(self, tmp_path: Path) -> None:
        with pytest.raises(AuditError, match="no audit log here"):
            run("export", "--home", tmp_path, "--format", "csv", "--out", tmp_path / "x", "--dataset", "d")


class TestHelp:
    @pytest.mark.parametrize("name", ["show", "verify", "export"])
    def test_every_command_has_help_with_an_example(self, name: str) -> None:
        assert "Examples:" in run(name, "--help").output

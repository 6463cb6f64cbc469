"""`eucaim-fl permit`: an access body issues a permit, and others read and verify it offline."""

from __future__ import annotations

import json
import stat
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import yaml
from click.testing import CliRunner, Result

from eucaim_fl.cli import cli
from eucaim_fl.config import ExperimentConfig
from eucaim_fl.errors import KeyFileError, PermitError, PlanError
from eucaim_fl.permits import Permit, issue, read_permit
from eucaim_fl.plan import make_plan
from eucaim_fl.signing import PrivateKey, fingerprint

ISSUER, HOLDER = PrivateKey.create(), PrivateKey.create()
TODAY = datetime.now(UTC).replace(microsecond=0)
TERMS: dict[str, Any] = {
    "id": "P-1",
    "issuer": "hdab-es",
    "holder": "upv",
    "holder_key": HOLDER.public,
    "purposes": ["scientific_research"],
    "datasets": ["ds-5"],
    "networks": ["unet"],
    "valid_from": TODAY - timedelta(days=1),
    "valid_until": TODAY + timedelta(days=1),
}
OPTIONS = (
    *("--id", "P-1", "--issuer", "hdab-es", "--holder", "upv", "--holder-key", HOLDER.public),
    *("--purpose", "scientific_research", "--purpose", "statistics", "--dataset", "ds-5", "--dataset", "ds-6"),
    *("--valid-from", "2026-01-01", "--valid-until", "2026-12-31"),
)


def run(*arguments: object) -> Result:
    return CliRunner().invoke(cli, ["permit", *map(str, arguments)], catch_exceptions=False)


@pytest.fixture
def key(tmp_path: Path) -> Path:
    ISSUER.save(tmp_path / "issuer_key.pem")
    return tmp_path / "issuer_key.pem"


@pytest.fixture
def permit(tmp_path: Path) -> Path:
    return written(tmp_path / "permit.json")


def written(path: Path, **changes: Any) -> Path:
    path.write_text(json.dumps(issue(Permit.model_validate({**TERMS, **changes}), ISSUER)))
    return path


def plan_file(path: Path, permit: Any, **changes: Any) -> Path:
    recipe = {
        "name": "tiny",
        "sites": ["a"],
        "rounds": 2,
        "purpose": "scientific_research",
        "task": {"name": "segmentation", "spatial_dims": 2, "labels": ["lesion"]},
        "model": {"name": "unet"},
        "training": {"local_steps": 3},
        **changes,
    }
    path.write_text(make_plan(ExperimentConfig.model_validate(recipe), ("a",), permit).canonical_json() + "\n")
    return path


class TestKeygen:
    def test_it_makes_a_private_file_and_prints_the_public_key(self, tmp_path: Path) -> None:
        path = tmp_path / "key.pem"
        says = json.loads(run("keygen", path, "--json").output)
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        public = PrivateKey.load(path).public
        assert says == {"public_key": public, "fingerprint": fingerprint(public)}
        assert "PRIVATE" not in run("keygen", tmp_path / "other.pem").output

    def test_it_replaces_no_key(self, key: Path) -> None:
        with pytest.raises(KeyFileError, match="never replaced"):
            run("keygen", key)
        assert PrivateKey.load(key).public == ISSUER.public


class TestIssue:
    def test_options_become_a_signed_permit_that_all_may_read(self, tmp_path: Path, key: Path) -> None:
        out = tmp_path / "permit.json"
        done = run("issue", out, "--key", key, *OPTIONS, "--plans", 3, "--privacy-required")
        assert done.exit_code == 0
        assert "hdab-es allows upv" in done.output
        assert stat.S_IMODE(out.stat().st_mode) == 0o644
        permit, public = read_permit(json.loads(out.read_text()))
        assert public == ISSUER.public
        assert (permit.purposes, permit.datasets) == (("scientific_research", "statistics"), ("ds-5", "ds-6"))
        assert (permit.plans, permit.privacy_required, permit.tasks, permit.rounds) == (3, True, None, None)

    def test_a_day_at_the_end_is_the_last_one(self, tmp_path: Path, key: Path) -> None:
        done = run("issue", tmp_path / "permit.json", "--key", key, *OPTIONS, "--json")
        says = json.loads(done.output)["permit"]
        assert (says["valid_from"], says["valid_until"]) == ("2026-01-01T00:00:00Z", "2027-01-01T00:00:00Z")

    def test_a_time_counts_as_it_is(self, tmp_path: Path, key: Path) -> None:
        out = tmp_path / "permit.json"
        run("issue", out, "--key", key, *OPTIONS, "--valid-until", "2026-12-31T12:00:00+02:00")
        assert read_permit(json.loads(out.read_text()))[0].valid_until == datetime(2026, 12, 31, 10, tzinfo=UTC)

    @pytest.mark.parametrize("write", [yaml.safe_dump, lambda values: json.dumps(values, default=str)])
    def test_a_file_gives_values_and_options_go_first(self, tmp_path: Path, key: Path, write: Any) -> None:
        terms, out = tmp_path / "terms.yaml", tmp_path / "permit.json"
        terms.write_text(
            write({**TERMS, "valid_from": date(2026, 1, 1), "valid_until": date(2026, 12, 31), "rounds": 5})
        )
        run("issue", out, "--key", key, "--from", terms, "--rounds", 9)
        permit, _ = read_permit(json.loads(out.read_text()))
        assert (permit.id, permit.rounds, permit.networks) == ("P-1", 9, ("unet",))
        assert permit.valid_until == datetime(2027, 1, 1, tzinfo=UTC)

    @pytest.mark.parametrize(
        ("options", "complaint"),
        [
            (("--purpose", "marketing"), "purposes"),
            (("--network", "unit"), "no network called 'unit'.*Did you mean 'unet'"),
            (("--task", "segmentatoin"), "no task called.*Did you mean 'segmentation'"),
            (("--rounds", "0"), "rounds"),
            (("--valid-until", "2025-12-31"), "must be after"),
            (("--valid-until", "2026-12-31T12:00:00"), "timezone"),
            (("--valid-until", "9999-12-31"), "valid_until"),
            (("--valid-until", "soon"), "valid_until"),
            (("--holder-key", "ed25519:x"), "holder_key"),
        ],
    )
    def test_a_wrong_value_is_named_and_nothing_written(
        self, tmp_path: Path, key: Path, options: tuple[str, ...], complaint: str
    ) -> None:
        with pytest.raises(PermitError, match=complaint):
            run("issue", tmp_path / "permit.json", "--key", key, *OPTIONS, *options)
        assert not (tmp_path / "permit.json").exists()

    @pytest.mark.parametrize(
        ("content", "complaint"),
        [
            (b"!!python/object/apply:os.system [echo]", "not YAML"),
            (b"[" * 5_000, "not YAML"),
            (b"- a", "no mapping"),
            (b"1: a", "no mapping"),
            (b"\xff", "can't be read"),
            (b" " * 300_000, "longer than"),
            (b"idd: P-1", "unknown key 'idd'.*Did you mean 'id'"),
        ],
    )
    def test_a_wrong_file_is_refused(self, tmp_path: Path, key: Path, content: bytes, complaint: str) -> None:
        (tmp_path / "terms.yaml").write_bytes(content)
        with pytest.raises(PermitError, match=complaint):
            run("issue", tmp_path / "permit.json", "--key", key, "--from", tmp_path / "terms.yaml", *OPTIONS)

    def test_a_file_that_exists_is_not_replaced(self, permit: Path, key: Path) -> None:
        before = permit.read_text()
        with pytest.raises(PermitError, match="of this name already"):
            run("issue", permit, "--key", key, *OPTIONS)
        assert permit.read_text() == before

    def test_a_folder_that_can_not_be_written_is_named(self, tmp_path: Path, key: Path) -> None:
        (tmp_path / "file").touch()
        with pytest.raises(PermitError, match="can't be written"):
            run("issue", tmp_path / "file" / "permit.json", "--key", key, *OPTIONS)

    def test_a_key_that_others_can_read_signs_nothing(self, tmp_path: Path, key: Path) -> None:
        key.chmod(0o644)
        with pytest.raises(KeyFileError, match="chmod 600"):
            run("issue", tmp_path / "permit.json", "--key", key, *OPTIONS)
        assert not (tmp_path / "permit.json").exists()


class TestShow:
    def test_it_says_in_plain_words_what_is_allowed(self, permit: Path) -> None:
        done = run("show", permit)
        assert done.exit_code == 0
        assert "Datasets: ds-5." in done.output
        assert "within its time" in done.output
        assert "Signature: fits." in done.output
        assert fingerprint(ISSUER.public) in done.output

    @pytest.mark.parametrize(
        ("first", "last", "says"), [(-9, -1, "it has expired"), (1, 9, "not valid yet"), (-1, 1, "within its time")]
    )
    def test_it_says_whether_its_time_is_now(self, tmp_path: Path, first: int, last: int, says: str) -> None:
        changes = {"valid_from": TODAY + timedelta(days=first), "valid_until": TODAY + timedelta(days=last)}
        path = written(tmp_path / "permit.json", **changes)
        assert f"Today: {says}." in run("show", path).output
        assert json.loads(run("show", path, "--json").output)["valid_now"] == (first < 0 < last)

    def test_an_altered_one_is_shown_as_such(self, permit: Path) -> None:
        permit.write_text(permit.read_text().replace("ds-5", "ds-6"))
        done = run("show", permit)
        assert done.exit_code == 2
        assert "DOES NOT FIT" in done.output
        says = json.loads(run("show", permit, "--json").output)
        assert (says["signature_fits"], says["valid_now"]) == (False, False)

    def test_another_file_is_refused(self, tmp_path: Path) -> None:
        (tmp_path / "x.json").write_text("{}")
        with pytest.raises(PermitError, match="not a signed permit"):
            run("show", tmp_path / "x.json")


class TestVerify:
    @pytest.mark.parametrize("body", [ISSUER.public, f"hdab-es={ISSUER.public}"], ids=["key", "named-key"])
    def test_nothing_speaks_against_a_good_one(self, permit: Path, body: str) -> None:
        done = run("verify", permit, "--body", body)
        assert (done.exit_code, done.output) == (0, "Nothing speaks against this permit.\n")

    def test_another_body_is_named_as_a_reason(self, permit: Path) -> None:
        assert "bears another key" in run("verify", permit, "--body", HOLDER.public).output
        done = run("verify", permit, "--body", f"hdab-fr={HOLDER.public}")
        assert done.exit_code == 2
        assert "not among the bodies" in done.output
        assert "names another issuer" in run("verify", permit, "--body", f"hdab-fr={ISSUER.public}").output

    def test_an_expired_and_altered_one_has_both_reasons(self, tmp_path: Path) -> None:
        path = written(tmp_path / "permit.json", valid_until=TODAY - timedelta(hours=1))
        path.write_text(path.read_text().replace("ds-5", "ds-6"))
        done = run("verify", path, "--body", ISSUER.public, "--json")
        assert done.exit_code == 2
        says = json.loads(done.output)
        assert [reason.split(":")[0][:24] for reason in says["reasons"]] == [
            "The permit's signature d",
            "The permit expired at 20",
        ]

    def test_it_names_the_datasets_that_are_not_covered(self, permit: Path) -> None:
        assert run("verify", permit, "--body", ISSUER.public, "--dataset", "ds-5").exit_code == 0
        done = run("verify", permit, "--body", ISSUER.public, "--dataset", "ds-5", "--dataset", "ds-7")
        assert done.exit_code == 2
        assert "Not covered: ds-7." in done.output

    def test_a_plan_is_held_against_it(self, tmp_path: Path, permit: Path) -> None:
        document = json.loads(permit.read_text())
        plan = plan_file(tmp_path / "plan.json", document)
        assert run("verify", permit, "--body", ISSUER.public, "--plan", plan).exit_code == 0
        plan = plan_file(tmp_path / "plan.json", document, model={"name": "dynunet"}, purpose="education")
        done = run("verify", permit, "--body", ISSUER.public, "--plan", plan)
        assert done.exit_code == 2
        assert "network, dynunet" in done.output
        assert "purpose, education" in done.output

    def test_a_plan_has_to_carry_this_very_permit(self, tmp_path: Path, permit: Path) -> None:
        other = json.loads(written(tmp_path / "other.json", plans=2).read_text())
        for carried in (None, {}, other):
            plan = plan_file(tmp_path / "plan.json", carried)
            done = run("verify", permit, "--body", ISSUER.public, "--plan", plan)
            assert (done.exit_code, "does not carry this permit" in done.output) == (2, True)

    def test_what_is_no_plan_is_refused(self, tmp_path: Path, permit: Path) -> None:
        wrong = tmp_path / "plan.json"
        wrong.write_text("{")
        with pytest.raises(PlanError, match="not JSON"):
            run("verify", permit, "--body", ISSUER.public, "--plan", wrong)
        with pytest.raises(PlanError, match="can't be read"):
            run("verify", permit, "--body", ISSUER.public, "--plan", tmp_path / "none.json")

    def test_a_body_is_a_public_key(self, permit: Path) -> None:
        done = run("verify", permit, "--body", "hdab-es")
        assert done.exit_code == 2
        assert "must be a public key" in done.output


class TestHelp:
    @pytest.mark.parametrize("name", ["keygen", "issue", "show", "verify"])
    def test_every_command_has_an_example(self, name: str) -> None:
        text = run(name, "--help").output
        assert f"eucaim-fl permit {name} " in text
        assert "--json" in text

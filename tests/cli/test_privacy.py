"""`eucaim-fl privacy audit` as a researcher or hospital IT meets it."""

from __future__ import annotations

import json
import stat
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml
from click.testing import CliRunner, Result

from eucaim_fl import compose as recipes
from eucaim_fl.cli import cli
from eucaim_fl.errors import RecipeError, SiteFileError
from eucaim_fl.exposure import examination
from eucaim_fl.exposure.alone import noiseless

pytestmark = pytest.mark.integration

TINY = (
    "experiment=demo",
    "model.args.channels=[4,8]",
    "model.args.strides=[2]",
    "model.args.num_res_units=0",
    "data.size_voxels=[16,16,null]",
    "data.intensity={low: -50.0, high: 150.0}",
    "rounds=1",
    "training.local_steps=20",
)
PRIVATE = ("privacy=patient_dp", "privacy.target_epsilon=4", "privacy.sampling_rate=0.3", "++privacy.secure=false")


def run(*words: str | Path) -> Result:
    return CliRunner().invoke(cli, ["privacy", "audit", *map(str, words)])


class TestHelp:
    def test_the_command_has_help_with_an_example(self):
        result = run("--help")
        assert result.exit_code == 0
        assert "Examples" in result.output
        assert "Exit 2" in result.output
        assert "on two cores two or three minutes" in " ".join(result.output.split())


@pytest.mark.integration
class TestAudit:
    def test_a_page_for_its_owner_and_numbers_beside_it(self, hospital, tmp_path):
        page = tmp_path / "audit.html"
        result = run(*TINY, *PRIVATE, "--site", hospital("a"), "--out", page, "--attacks", "canary", "--canaries", 300)
        assert result.exit_code == 0, result.output
        assert "Promised is an epsilon of at most 4.00" in result.stdout
        assert str(page) in result.stdout
        assert stat.S_IMODE(page.stat().st_mode) == stat.S_IMODE(page.with_suffix(".json").stat().st_mode) == 0o600
        value = json.loads(page.with_suffix(".json").read_text())
        assert value["canary"]["plan"]["epsilon"] < value["claim"]["epsilon"]

    def test_json_alone_is_printed_and_a_broken_promise_exits_with_2(self, hospital, tmp_path, monkeypatch):
        def without_noise(plan: Any, *rest: Any, **options: Any) -> Any:
            return real(noiseless(plan), *rest, **{**options, "known_noise": 1.0})

        real = examination.audit
        monkeypatch.setattr(examination, "audit", without_noise)
        words = (*TINY, *PRIVATE, "--site", hospital("a"), "--out", tmp_path / "audit.html")
        result = run(*words, "--attacks", "canary", "--canaries", 300, "--json")
        assert result.exit_code == 2
        assert json.loads(result.stdout)["verdict"] == "broken"

    def test_the_recipe_s_first_site_is_taken(self, hospital, tmp_path):
        files = [hospital("b"), hospital("a")]
        sites = f"sites=[{','.join(map(str, files))}]"
        words = (*TINY, sites, "federation.quorum=1", "--out", tmp_path / "audit.html", "--attacks", "canary")
        result = run(*words, "--canaries", 20, "--quick", "--json")
        assert result.exit_code == 0, result.output
        value = json.loads(result.stdout)
        assert (value["site"], value["verdict"]) == ("a", "no_promise")
        assert value["canary"]["without_noise"] is None

    def test_the_page_never_lies_in_the_cohort(self, hospital, tmp_path):
        site_file = hospital("a")
        page = tmp_path / "data" / "a" / "audit.html"
        result = run(*TINY, "--site", site_file, "--out", page, "--attacks", "canary", "--canaries", 20)
        assert isinstance(result.exception, SiteFileError)
        assert not page.exists()


class TestHeldOut:
    @pytest.mark.parametrize("declared", [True, False], ids=["by_the_policy", "by_nobody"])
    def test_who_never_trains_at_the_site_is_not_attacked(self, tmp_path, monkeypatch, declared):
        def stop(*_: Any, held_out: Any, **__: Any) -> Any:
            seen.append(held_out)
            raise RecipeError("That is enough.")

        seen: list[Any] = []
        monkeypatch.setattr(examination, "examine", stop)
        site = {"name": "a", "cohort": {"layout": "nifti_csv", "folder": str(tmp_path)}, "policy": "policy.yaml"}
        (tmp_path / "a.yaml").write_text(yaml.safe_dump({**site, "cache": {"folder": str(tmp_path.with_name("c"))}}))
        privacy = {"test_data": ["test"], "held_out": 0.25} if declared else {}
        policy = {"schema": "eucaim-fl-policy/1", "privacy": {"mechanism": "none", **privacy}}
        (tmp_path / "policy.yaml").write_text(yaml.safe_dump(policy))
        result = run(*TINY, *PRIVATE, "--site", tmp_path / "a.yaml", "--out", tmp_path / "audit.html")
        assert isinstance(result.exception, RecipeError), result.output
        assert [one and (one.share, one.splits) for one in seen] == ([(0.25, ("test",))] if declared else [None])


class TestMistakes:
    def test_they_are_told_before_anything_runs(self, tmp_path, monkeypatch):
        monkeypatch.setattr(recipes, "resolve", lambda _: pytest.fail("the recipe was looked at"))
        assert isinstance(run("experiment=demo", "--attacks", "canery").exception, RecipeError)

    def test_a_folder_that_is_not_there_is_told_before_minutes_of_work(self, tmp_path):
        result = run("experiment=demo", "--out", tmp_path / "missing" / "audit.html")
        assert isinstance(result.exception, SiteFileError)
        assert "existing folder" in str(result.exception)

    def test_an_unknown_recipe_is_the_usual_error(self):
        assert isinstance(run("experiment=dmo").exception, RecipeError)

    def test_a_federation_of_hospitals_needs_a_site_file_named(self):
        from eucaim_fl.cli.privacy import _first

        with pytest.raises(RecipeError, match="no site file of this machine"):
            _first(SimpleNamespace(site_files={}))  # type: ignore[arg-type]

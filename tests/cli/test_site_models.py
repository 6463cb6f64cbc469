"""`eucaim-fl site models`: what is kept, in plain words; out it goes complete and on request only."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from pathlib import Path

import click
import numpy as np
import pytest
from click.testing import CliRunner

from eucaim_fl.arrays import ArrayFile
from eucaim_fl.cli.site_models import command
from eucaim_fl.errors import ConfigError
from eucaim_fl.models.networks import set_arrays
from eucaim_fl.models.planned import first_arrays, network_for
from eucaim_fl.plan import FederationPlan, read_plan
from eucaim_fl.records import Past
from eucaim_fl.site.state_store import StateStore
from eucaim_fl.sitefile import load_site_file
from eucaim_fl.validation.wording import show_bytes


@pytest.fixture
def site(hospital: Callable[..., Path], plan_for: Callable[..., FederationPlan]) -> tuple[Path, FederationPlan]:
    """A site that has been through one round of a plan with personal models, and one that has ended."""
    path = hospital("a", patients=1)
    going, ended = plan_for(name="going"), plan_for(name="ended")
    folder = load_site_file(path).records_folder()
    state = {"own:w": np.zeros(2, np.float32), "local:w": np.zeros(2, np.float32)}
    StateStore(folder, going.sha256()).keep(4, state, going.canonical_json())
    arrays = first_arrays(ended)
    models = {"common": arrays, "personal": {name: array + 1 for name, array in arrays.items()}}
    StateStore(folder, ended.sha256()).keep_final(models, "personal", ended.canonical_json())
    return path, ended


def said(*words: object, answer: str | None = None) -> str:
    outcome = CliRunner().invoke(command, [str(word) for word in words], input=answer, catch_exceptions=False)
    return outcome.output


class TestList:
    def test_it_says_what_is_kept_of_each_plan(self, site: tuple[Path, FederationPlan]) -> None:
        lines = said(site[0]).splitlines()
        (going,) = (line for line in lines if line.startswith("going ("))
        (ended,) = (line for line in lines if line.startswith("ended ("))
        assert "just written; after round 4: a local model, its own arrays of the model" in going
        assert ended.endswith("; models of the end: common, personal (chosen)")
        assert site[1].sha256()[:12] in ended

    def test_json_has_the_same(self, site: tuple[Path, FederationPlan]) -> None:
        found = {one["name"]: one for one in json.loads(said(site[0], "--json"))}
        assert (found["going"]["round"], found["going"]["models"]) == (4, [])
        assert (found["ended"]["round"], found["ended"]["chosen"]) == (None, "personal")

    def test_a_site_without_any_says_so(self, hospital: Callable[..., Path]) -> None:
        told = "This site keeps no models and no state of any plan, of at most 50.0 GB (records.models_gb).\n"
        assert said(hospital("a", patients=1)) == told

    def test_the_last_line_is_the_sum_and_what_is_allowed(self, site: tuple[Path, FederationPlan]) -> None:
        path, _ = site
        total = show_bytes(sum(one["bytes"] for one in json.loads(said(path, "--json"))))
        assert said(path).splitlines()[-1] == f"Together: {total} of 2 plans, of at most 50.0 GB (records.models_gb)."
        path.write_text(path.read_text() + "records: {models_gb: null}\n")
        assert said(path).splitlines()[-1] == f"Together: {total} of 2 plans, without a limit."


class TestExport:
    def test_a_model_comes_out_complete_with_its_plan(self, site: tuple[Path, FederationPlan], tmp_path: Path) -> None:
        path, plan = site
        told = said(path, "--export", plan.sha256()[:8], "personal", tmp_path / "out")
        assert told == f"Written to {tmp_path / 'out'}.\n"
        written = read_plan((tmp_path / "out" / "plan.json").read_text())
        file = ArrayFile(tmp_path / "out" / "model.safetensors")
        set_arrays(network_for(written, 0), file.load())
        assert (written, file.metadata["model"]) == (plan, "personal")

    @pytest.mark.parametrize(
        ("plan", "model", "says"),
        [
            ("ended", "local", "The site has no such model of this plan. It has: common, personal"),
            ("going", "local", "The site has no models of this plan's end"),
            ("ffff", "local", "This site keeps nothing of such a plan"),
            ("", "local", "This site keeps nothing of such a plan"),
        ],
    )
    def test_what_is_not_there_is_said(
        self, site: tuple[Path, FederationPlan], tmp_path: Path, plan: str, model: str, says: str
    ) -> None:
        known = {one["name"]: one["plan_sha256"] for one in json.loads(said(site[0], "--json"))}
        with pytest.raises(ConfigError, match=says):
            said(site[0], "--export", known.get(plan, plan), model, tmp_path / "out")
        assert not (tmp_path / "out").exists()

    def test_it_writes_over_nothing_and_not_into_the_cohort(
        self, site: tuple[Path, FederationPlan], tmp_path: Path
    ) -> None:
        path, plan = site
        with pytest.raises(ConfigError, match="There is such a folder already"):
            said(path, "--export", plan.sha256(), "common", tmp_path)
        inside = load_site_file(path).cohort_folder() / "out"
        with pytest.raises(ConfigError, match="does not belong into the cohort's folder"):
            said(path, "--export", plan.sha256(), "common", inside)

    def test_it_is_the_one_of_the_newest_run_that_has_ended(
        self, site: tuple[Path, FederationPlan], tmp_path: Path
    ) -> None:
        path, plan = site
        store = StateStore(load_site_file(path).records_folder(), plan.sha256())
        newer = {"personal": {name: array + 2 for name, array in first_arrays(plan).items()}}
        store.keep_final(newer, "", plan.canonical_json(), "a" * 32)
        store.keep(1, {"local:w": np.zeros(2, np.float32)}, plan.canonical_json(), Past("b" * 32))
        (line,) = (line for line in said(path).splitlines() if line.startswith("ended ("))
        assert " of 2 runs, just written; after round 1: a local model; models of the end: personal" in line
        said(path, "--export", plan.sha256(), "personal", tmp_path / "out")
        written = ArrayFile(tmp_path / "out" / "model.safetensors").load()
        assert all((written[name] == array).all() for name, array in newer["personal"].items())


class TestRemove:
    def test_it_asks_first(self, site: tuple[Path, FederationPlan]) -> None:
        path, plan = site
        outcome = CliRunner().invoke(command, [str(path), "--remove", plan.sha256()], input="n\n")
        assert "Delete all that is kept of ended" in outcome.output
        assert isinstance(outcome.exception, SystemExit | click.Abort)
        assert "ended (" in said(path)

    def test_then_all_of_the_plan_is_gone(self, site: tuple[Path, FederationPlan]) -> None:
        path, plan = site
        assert said(path, "--remove", plan.sha256()[:12], "--yes").startswith("Deleted: ")
        assert "ended (" not in said(path)
        assert "going (" in said(path)

    def test_several_commands_at_once_are_refused(self, site: tuple[Path, FederationPlan]) -> None:
        for words in (("--export", "a", "local", "out"), ("--remove-older-than", 3)):
            with pytest.raises(ConfigError, match="are commands of their own"):
                said(site[0], "--remove", "a", *words)

    @pytest.fixture
    def aged(self, site: tuple[Path, FederationPlan]) -> tuple[Path, FederationPlan]:
        """The plan that has ended was last written a hundred days ago."""
        path, plan = site
        for file in (load_site_file(path).records_folder() / "models" / plan.sha256()).rglob("*"):
            os.utime(file, (time.time() - 100 * 86_400,) * 2)
        return path, plan

    def test_old_plans_go_together_and_the_others_stay(self, aged: tuple[Path, FederationPlan]) -> None:
        path, plan = aged
        assert "100 days old" in said(path)
        assert said(path, "--remove-older-than", 101, "--yes") == "Deleted: 0 B of 0 plans.\n"
        told = said(path, "--remove-older-than", 99, answer="y\n")
        assert f"Delete all that is kept of ended ({plan.sha256()[:12]})?" in told
        assert told.rstrip().endswith(" of 1 plan.")
        assert [one["name"] for one in json.loads(said(path, "--json"))] == ["going"]

    def test_json_names_what_is_gone(self, aged: tuple[Path, FederationPlan]) -> None:
        path, plan = aged
        (gone,) = json.loads(said(path, "--remove-older-than", 99, "--yes", "--json"))
        assert gone["plan_sha256"] == plan.sha256()
        assert gone["removed_bytes"] > 0

    def test_it_asks_before_it_removes_old_ones(self, aged: tuple[Path, FederationPlan]) -> None:
        CliRunner().invoke(command, [str(aged[0]), "--remove-older-than", "99"], input="n\n")
        assert "ended (" in said(aged[0])

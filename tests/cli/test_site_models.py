"""`eucaim-fl site models`: what is kept, in plain words; out it goes complete and on request only."""

from __future__ import annotations

import json
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
from eucaim_fl.site.state_store import StateStore
from eucaim_fl.sitefile import load_site_file


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
        assert said(hospital("a", patients=1)) == "This site keeps no models and no state of any plan.\n"


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

    def test_both_at_once_are_refused(self, site: tuple[Path, FederationPlan]) -> None:
        with pytest.raises(ConfigError, match="are two commands"):
            said(site[0], "--remove", "a", "--export", "a", "local", "out")

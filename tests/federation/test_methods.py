"""Whole runs of methods with a state: the same bits however they are run, and what never leaves a site."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from eucaim_fl.arrays import ArrayFile, arrays_sha256
from eucaim_fl.compose import resolve
from eucaim_fl.errors import RecipeError
from eucaim_fl.federation.run import create_run, execute
from tests.conftest import tiny_recipe, write_hospital

pytestmark = pytest.mark.federated

STATEFUL = {
    "rounds": 3,
    "data": {"standardise": "federation"},
    "method": {
        "objective": {"name": "scaffold"},
        "personal": {"arrays": "head", "fine_tune_steps": 2, "local": True, "choose": True},
    },
    "training": {"optimizer": {"name": "sgd", "lr": 0.1, "momentum": 0.0}, "schedule": {"kind": "cosine"}},
}
"""Every place that holds a state: the server's, the sites', the statistics, models of the sites' own."""


def go(config, folder=None):
    resolved = resolve(config)
    folder = folder or create_run(config, resolved.plan, resolved.site_files)
    return execute(folder, config, resolved.site_files)[0], folder


@pytest.fixture(scope="module")
def hospitals(tmp_path_factory):
    folder = tmp_path_factory.mktemp("hospitals")
    return [write_hospital(folder, name) for name in "abc"]


@pytest.fixture(scope="module")
def reference(hospitals, tmp_path_factory):
    return go(tiny_recipe(tmp_path_factory.mktemp("reference"), hospitals, **STATEFUL))


def states(hospitals):
    """Every file of the sites' own state, by its place."""
    return {path for file in hospitals for path in file.parent.rglob("*.safetensors") if "runs" not in path.parts}


class TestState:
    def test_the_number_of_workers_changes_no_bit(self, hospitals, tmp_path, reference):
        again, _ = go(tiny_recipe(tmp_path, hospitals, **STATEFUL, federation={"workers": 1}))
        assert again["weights_sha256"] == reference[0]["weights_sha256"]
        assert again["metrics"] == reference[0]["metrics"]
        assert again["chosen"] == reference[0]["chosen"]

    def test_rounds_that_are_made_again_give_the_same_bits(self, hospitals, tmp_path, reference):
        """As after a crash: the coordinator's last rounds are gone, the sites have been there already."""
        config, folder = tiny_recipe(tmp_path, hospitals, **STATEFUL), tmp_path / "again"
        shutil.copytree(reference[1], folder)
        for number in (4, 3, 2):
            shutil.rmtree(folder / "journal" / f"round-{number:04d}")
        for name in ("result.json", "report.html"):
            (folder / name).unlink()
        again, _ = go(config, folder)
        assert again["weights_sha256"] == reference[0]["weights_sha256"]
        assert again["metrics"] == reference[0]["metrics"]
        assert again["chosen"] == reference[0]["chosen"]

    def test_personal_arrays_are_in_no_file_of_the_coordinator(self, reference):
        _, folder = reference
        specs = {spec["name"] for spec in json.loads((folder / "journal" / "round-0000" / "specs.json").read_text())}
        last = set(ArrayFile(folder / "models" / "last.safetensors").names)
        assert last == specs
        plan_names = _names_of_the_whole_network(folder)
        assert specs < plan_names

    def test_every_site_tells_which_model_it_chose_and_the_figures_of_each(self, reference):
        result, _ = reference
        assert set(result["chosen"]) == {"a", "b", "c"}
        assert set(result["chosen"].values()) <= {"personal", "local"}


def _names_of_the_whole_network(folder: Path) -> set[str]:
    from eucaim_fl.models.networks import get_arrays
    from eucaim_fl.plan import read_plan
    from eucaim_fl.site.node import network_for

    return set(get_arrays(network_for(read_plan((folder / "plan.json").read_text()), 0)))


class TestWarmStart:
    @pytest.fixture(scope="class")
    def start(self, hospitals, tmp_path_factory):
        """The weights that an earlier run ended with."""
        _, earlier = go(tiny_recipe(tmp_path_factory.mktemp("earlier"), hospitals, rounds=1))
        return earlier / "models" / "last.safetensors"

    def test_the_first_round_begins_with_the_weights_of_an_earlier_run(self, hospitals, tmp_path, start):
        config = tiny_recipe(tmp_path, hospitals, rounds=1).model_copy(update={"start": start})
        result, folder = go(config)
        record = json.loads((folder / "journal" / "round-0001" / "record.json").read_text())
        assert record["arriving_sha256"] == arrays_sha256(ArrayFile(start).load())
        assert json.loads((folder / "plan.json").read_text())["start_sha256"] == record["arriving_sha256"]
        assert result["weights_sha256"] != record["arriving_sha256"]

    def test_those_of_another_network_are_refused(self, hospitals, tmp_path, start):
        other = {"args": {"channels": [4, 12], "strides": [2], "num_res_units": 0, "norm": "batch"}}
        config = tiny_recipe(tmp_path, hospitals, rounds=1, model=other).model_copy(update={"start": start})
        with pytest.raises(RecipeError, match="not those of the plan's network"):
            go(config)

    def test_a_file_that_is_none_is_refused_before_anything_runs(self, hospitals, tmp_path):
        bad = tmp_path / "bad.safetensors"
        bad.write_bytes(b"no arrays")
        config = tiny_recipe(tmp_path, hospitals).model_copy(update={"start": bad})
        with pytest.raises(RecipeError, match="can't be read"):
            resolve(config)

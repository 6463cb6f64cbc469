"""Every YAML file that comes with the package composes and validates."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from functools import reduce
from operator import getitem
from pathlib import Path
from typing import Any

import pytest
import yaml

from eucaim_fl.compose import compose, resolve
from eucaim_fl.config import MethodConfig, PrivacyConfig, ValidationRecipe
from eucaim_fl.models import ARGUMENTS
from eucaim_fl.resources import experiment_files
from eucaim_fl.sitefile import load_site_file

pytestmark = [pytest.mark.integration, pytest.mark.usefixtures("composed_once")]

ROOT = Path(__file__).parents[1]
CONFIGS = ROOT / "configs"
GROUPS = sorted(folder.name for folder in CONFIGS.iterdir() if folder.is_dir())
CHOICES = {group: sorted(path.stem for path in (CONFIGS / group).glob("*.yaml")) for group in GROUPS}
YAML_FILES = sorted(path for name in ("configs", "experiments", "sites") for path in (ROOT / name).rglob("*.yaml"))

PLAIN = """
name: plain
sites: [a, b, c, d, lidc_a]
federation: {quorum: 5}
"""
FITTING = {
    "segmentation_2d": ["model=unet", "data=ct_2d"],
    "segmentation_3d": ["model=unet", "data=mr_prostate_3d"],
    "classification_2d": ["model=small_cnn", "data=ct_2d"],
    "classification_3d": ["model=small_cnn", "data=ct_3d"],
    "multilabel_2d": ["model=small_cnn", "data=ct_2d"],
    "multilabel_3d": ["model=small_cnn", "data=ct_3d"],
    "survival_2d": ["model=small_cnn", "data=ct_2d"],
    "survival_3d": ["model=small_cnn", "data=ct_3d"],
}
"""What goes with a task."""
SGD = "training.optimizer.name=sgd"
NEEDED = {"fednova": [SGD], "qfedavg": [SGD], "scaffold": [SGD, "training.optimizer.momentum=0.0"]}
"""What a method asks of local training."""


def combinations() -> Iterator[list[str]]:
    """Recipes that use every choice of every group: composing takes a fifth of a second, so several at a time."""
    for task in CHOICES["task"]:
        yield [f"task={task}", *FITTING[task]]
    free = {group: names for group, names in CHOICES.items() if group not in ("task", "data")}
    for number in range(max(map(len, free.values()))):
        chosen = {group: names[number % len(names)] for group, names in free.items()}
        written = yaml.safe_load((CONFIGS / "method" / f"{chosen['method']}.yaml").read_text())
        method = MethodConfig.model_validate(written)
        model = yaml.safe_load((CONFIGS / "model" / f"{chosen['model']}.yaml").read_text())
        network = model["name"]
        batch_norm = network == "attention_unet" or model["args"].get("norm") == "batch"
        mixes_patients = batch_norm and chosen["privacy"] == "patient_dp"
        if mixes_patients or not goes_with_noise(method, chosen["privacy"]):
            chosen["privacy"] = "none"
        task = f"{ARGUMENTS[network].task}_2d"
        size = "data.size_voxels=[96,96,null]"  # can be halved five times, which is enough for every network
        needed = NEEDED.get(chosen["method"], [])
        yield [f"task={task}", *(f"{group}={name}" for group, name in chosen.items()), size, *needed]


def goes_with_noise(method: MethodConfig, mechanism: str) -> bool:
    """Whether a method says nothing, and keeps nothing, that a privacy mechanism does not cover."""
    more = {"central_dp": (), "patient_dp": ("equal",)}.get(mechanism, ("equal", "normalised"))
    return (
        (method.rule.name == "weighted_mean" or mechanism != "central_dp")
        and method.weighting.name in ("patients", *more)
        and method.objective.name in ("none", "proximal")
        and method.personal.candidates() == ("common",)
    )


def with_overrides(written: dict[str, Any], group: str, overrides: list[str]) -> dict[str, Any]:
    """A group's file with those values that the command line sets, as `group.key=value` or `group.key.key=value`."""
    changed = copy.deepcopy(written)
    for override in overrides:
        path, _, value = override.partition("=")
        if path.startswith(f"{group}."):
            *groups, last = path.split(".")[1:]
            reduce(getitem, groups, changed)[last] = yaml.safe_load(value)
    return changed


@pytest.fixture(autouse=True)
def _in_a_folder_with_a_plain_recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A recipe that sets nothing that a group sets, except for a quorum that every rule accepts."""
    (tmp_path / "experiments").mkdir()
    (tmp_path / "experiments" / "plain.yaml").write_text(PLAIN)
    monkeypatch.chdir(tmp_path)


class TestConfigs:
    def test_the_groups_are_those_that_users_know(self) -> None:
        assert GROUPS == ["data", "federation", "method", "model", "privacy", "task", "tracking", "training"]

    def test_every_choice_is_used_here(self) -> None:
        used = {override for overrides in combinations() for override in overrides}
        assert {f"{group}={name}" for group, names in CHOICES.items() for name in names} <= used

    @pytest.mark.parametrize("overrides", list(combinations()), ids=" ".join)
    def test_choices_make_a_plan_with_exactly_their_values(self, overrides: list[str]) -> None:
        config = resolve(compose(["experiment=plain", *overrides])).config
        for group, name in (override.split("=") for override in overrides if "." not in override):
            composed = getattr(config, group).model_dump(mode="json")
            written = yaml.safe_load((CONFIGS / group / f"{name}.yaml").read_text())
            if group == "privacy":  # each mechanism refuses what belongs to another, so its file sets its own only
                written = PrivacyConfig.model_validate(written).model_dump(mode="json")
            written = with_overrides(written, group, overrides)
            ours = {"quorum"} & written.keys()
            assert {**composed, **dict.fromkeys(ours)} == {**written, **dict.fromkeys(ours)}

    @pytest.mark.parametrize("path", YAML_FILES, ids=lambda path: str(path.relative_to(ROOT)))
    def test_every_file_says_first_what_it_is_for(self, path: Path) -> None:
        first = path.read_text().splitlines()[0]
        assert first.startswith("# ")
        assert len(first) > 10

    def test_the_part_on_validation_lists_all_its_keys_with_their_defaults(self) -> None:
        written = yaml.safe_load((CONFIGS / "train.yaml").read_text())["validation"]
        assert written == ValidationRecipe().model_dump(mode="json")

    def test_every_file_is_one_of_those_tested_here(self) -> None:
        tested = {CONFIGS / "train.yaml", *CONFIGS.glob("*/*.yaml"), *(ROOT / "sites").glob("*.yaml")}
        assert set(YAML_FILES) == tested | set((ROOT / "experiments").glob("*.yaml"))


class TestExperiments:
    @pytest.mark.parametrize("name", sorted(experiment_files()))
    def test_every_recipe_makes_a_plan(self, name: str) -> None:
        recipe = resolve(compose([f"experiment={name}"]))
        assert recipe.plan.name == name
        assert tuple(recipe.site_files) == recipe.plan.sites

    @pytest.mark.parametrize("path", sorted((ROOT / "experiments").glob("*.yaml")), ids=lambda path: path.stem)
    def test_every_recipe_starts_with_the_command_that_runs_it(self, path: Path) -> None:
        assert f"eucaim-fl train experiment={path.stem}" in path.read_text().splitlines()[0]

    @pytest.mark.parametrize("method", ["fedprox", "fedadam", "median", "geometric_median", "feddyn", "ditto"])
    def test_the_demo_runs_with_other_methods(self, method: str) -> None:
        recipe = resolve(compose(["experiment=demo", f"method={method}"]))
        written = yaml.safe_load((CONFIGS / "method" / f"{method}.yaml").read_text())
        assert recipe.plan.method.model_dump(mode="json") == written


class TestSites:
    @pytest.mark.parametrize("path", sorted((ROOT / "sites").glob("*.yaml")), ids=lambda path: path.stem)
    def test_every_site_file_is_valid_and_bears_its_sites_name(self, path: Path) -> None:
        site = load_site_file(path)
        assert site.name == path.stem
        assert site.release.data_is in ("public", "synthetic")

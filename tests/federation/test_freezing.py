"""What words name as a model becomes a contract; and no model is judged on patients that it has seen."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from eucaim_fl.arrays import encode_arrays
from eucaim_fl.compose import resolve, resolve_validation
from eucaim_fl.config import ClassificationConfig, SplitConfig, ValidationRecipe
from eucaim_fl.errors import ConfigError, ModelRefusedError, PlanError, RecipeError, RunNotFoundError
from eucaim_fl.federation.freezing import freeze, freeze_all, seen_by
from eucaim_fl.federation.model_files import FOLDER, read_files
from eucaim_fl.federation.run import create_run
from eucaim_fl.models.planned import first_arrays
from tests.conftest import tiny_recipe
from tests.inference.frozen import linear, onnx_bytes

NOISE = {
    "mechanism": "update_dp", "noise_multiplier": 1.0, "delta": 1e-3, "clipping_norm": 1.0, "sampling_rate": None,
}  # fmt: skip
DESCRIBED = "data: {size_voxels: [8, 8, null]}\nintended_use: Tells grades apart.\n"
GRADES = {"name": "classification", "spatial_dims": 2, "target": "grade", "classes": ["low", "high"]}


def write_run(folder: Path, plan, seed: int = 0) -> Path:
    """A run's folder as far as freezing it needs one."""
    (folder / "models").mkdir(parents=True)
    (folder / "plan.json").write_text(plan.canonical_json())
    other = plan.model_copy(update={"seed": plan.seed + seed})
    (folder / "models/best.safetensors").write_bytes(b"".join(map(bytes, encode_arrays(first_arrays(other)))))
    return folder


def write_onnx(path: Path, described: str = DESCRIBED) -> Path:
    path.write_bytes(onnx_bytes(linear()))
    path.with_suffix(".yaml").write_text(described)
    return path


@pytest.fixture
def config_for(tmp_path, hospital):
    """A recipe over the hospitals a and b, with what it says of frozen models."""
    files = [hospital(name) for name in "ab"]

    def make(model=None, against=None, *, changes=None, **asked):
        places = {"model": model, "against": against}
        named = {key: str(place) for key, place in places.items() if place is not None}
        return tiny_recipe(tmp_path, files, validation={**named, **asked}, **(changes or {}))

    return make


@pytest.fixture
def trained(config_for, tmp_path):
    """The folder of a run over both hospitals, and its plan."""
    plan = resolve(config_for()).plan
    return write_run(tmp_path / "runs" / "tiny-1", plan), plan


class TestPlaces:
    def test_a_runs_folder_and_its_name_are_the_same_model(self, config_for, trained):
        by_path = freeze(str(trained[0]), config_for())
        assert by_path == freeze("tiny-1", config_for())
        assert by_path.trained_by == trained[1]
        assert by_path.model.contract.intended_use == "not stated"
        said = config_for(intended_use="Finds lesions.")
        assert freeze("tiny-1", said).model.contract.intended_use == "Finds lesions."

    def test_an_onnx_file_has_its_description_beside_it(self, config_for, tmp_path):
        config = config_for().model_copy(update={"task": ClassificationConfig.model_validate(GRADES)})
        frozen = freeze(str(write_onnx(tmp_path / "net.onnx")), config)
        assert (frozen.model.contract.name, frozen.model.contract.format) == ("net", "onnx")
        assert frozen.trained_by is None

    def test_freeze_lists_what_is_taken(self, config_for, tmp_path):
        (tmp_path / "notes.txt").write_text("no model")
        (tmp_path / "empty").mkdir()
        for place, words in (
            (tmp_path / "notes.txt", "no kind that is taken"),
            (tmp_path / "empty", "neither a run nor a MONAI bundle"),
            ("tiny-9", "no such model"),
            ("x" * 900, "no such model|can't be read"),
        ):
            with pytest.raises(RecipeError, match=words) as caught:
                freeze(str(place), config_for())
            assert ".onnx, .pt or .pt2" in caught.value.fix
            assert str(tmp_path) not in str(caught.value)

    def test_freeze_names_the_nearest_run(self, config_for, trained):
        with pytest.raises(RecipeError, match="no such model") as caught:
            freeze("tiny-2", config_for())
        assert "'tiny-1'" in caught.value.fix

    def test_freeze_says_what_is_wrong_with_a_file(self, config_for, tmp_path):
        with pytest.raises(ModelRefusedError, match="answers with"):
            freeze(str(write_onnx(tmp_path / "net.onnx")), config_for())
        (tmp_path / "alone.onnx").write_bytes(b"x")
        with pytest.raises(ConfigError, match="description can't be read"):
            freeze(str(tmp_path / "alone.onnx"), config_for())

    def test_freeze_asks_mlflow_for_references_only(self, config_for):
        with pytest.raises(RunNotFoundError, match="no reference to a model"):
            freeze("mlflow:", config_for())

    def test_a_bundles_description_may_state_name_and_data_only(self, config_for, tmp_path):
        (tmp_path / "spleen" / "configs").mkdir(parents=True)
        (tmp_path / "spleen.yaml").write_text("intended_use: other\n")
        with pytest.raises(ConfigError, match="states intended_use"):
            freeze(str(tmp_path / "spleen"), config_for())
        (tmp_path / "spleen.yaml").write_text("data: {spacing: 1}\n")
        with pytest.raises(ConfigError, match="unknown key 'spacing'"):
            freeze(str(tmp_path / "spleen"), config_for())


class TestAllModels:
    def test_freeze_all_needs_one(self, config_for):
        with pytest.raises(RecipeError, match="names no frozen model"):
            freeze_all(config_for(), ("a", "b"))

    def test_the_same_name_twice_gets_a_number(self, config_for, trained, tmp_path):
        other = write_run(tmp_path / "runs" / "tiny-2", trained[1], seed=5)
        frozen, patients = freeze_all(config_for(trained[0], other), ("a", "b"))
        assert [one.model.contract.name for one in frozen] == ["tiny", "tiny-2"]
        assert patients == "test"
        assert {one.model.contract.data.split.seed for one in frozen} == {trained[1].split_seed()}

    def test_freeze_all_refuses_the_same_file_twice(self, config_for, trained, tmp_path):
        shutil.copytree(trained[0], tmp_path / "copy")
        with pytest.raises(RecipeError, match="same file"):
            freeze_all(config_for(trained[0], tmp_path / "copy"), ("a", "b"))

    def test_freeze_all_refuses_another_task(self, config_for, trained):
        config = config_for(trained[0], changes={"task": {"labels": ["vessel"]}})
        with pytest.raises(RecipeError, match="trained for another task"):
            freeze_all(config, ("a", "b"))


class TestPatients:
    SPLIT = SplitConfig()

    def test_a_model_from_elsewhere_sees_all(self):
        assert seen_by(ValidationRecipe(), [None], self.SPLIT, ("a",)) == ("all", self.SPLIT)
        asked = ValidationRecipe(patients="test")
        assert seen_by(asked, [None], self.SPLIT, ("a",))[0] == "test"

    def test_one_that_was_trained_there_sees_whom_its_training_held_out(self, plan_for):
        plan = plan_for(seed=7, data={"split": {"test": 0.3}})
        patients, split = seen_by(ValidationRecipe(), [plan, None], self.SPLIT, ("a", "b"))
        assert (patients, split.test, split.seed) == ("test", 0.3, 7)

    def test_at_sites_that_it_has_not_seen_it_sees_all(self, plan_for):
        assert seen_by(ValidationRecipe(), [plan_for()], self.SPLIT, ("b", "c")) == ("all", self.SPLIT)

    def test_seen_by_refuses_patients_that_a_model_has_seen(self, plan_for):
        with pytest.raises(RecipeError, match=r"trained at a, .* patients that it has seen"):
            seen_by(ValidationRecipe(patients="all"), [plan_for()], self.SPLIT, ("a", "b"))

    def test_seen_by_refuses_splits_that_can_not_be_found_again(self, plan_for):
        with pytest.raises(RecipeError, match="differential privacy at a"):
            seen_by(ValidationRecipe(), [plan_for(privacy=NOISE)], self.SPLIT, ("a",))
        with pytest.raises(RecipeError, match="different splits"):
            seen_by(ValidationRecipe(), [plan_for(seed=1), plan_for(seed=2)], self.SPLIT, ("a",))


class TestThePlan:
    def test_it_judges_and_trains_nothing(self, config_for, trained):
        recipe = resolve_validation(config_for(trained[0], thresholds=[0.25], changes={"rounds": 9}))
        plan, asked = recipe.plan, recipe.plan.validation
        assert (plan.rounds, plan.privacy.mechanism, plan.start_sha256) == (1, "none", None)
        assert (asked.thresholds, asked.patients) == ((0.25,), "test")
        assert (plan.model, plan.data) == (trained[1].model, asked.models[0].data)
        assert plan.split_seed() == trained[1].split_seed()

    def test_what_a_recipe_says_of_training_changes_nothing(self, config_for, trained):
        other = {"rounds": 9, "training": {"local_steps": 99, "batch_size": 3}, "method": {"rule": {"name": "median"}}}
        hashes = {resolve_validation(config_for(trained[0], changes=one)).plan.sha256() for one in ({}, other)}
        assert len(hashes) == 1

    def test_resolve_refuses_to_train_a_frozen_model(self, config_for, trained):
        with pytest.raises(RecipeError, match="judged and not trained"):
            resolve(config_for(trained[0]))

    def test_resolve_validation_refuses_noise_and_comparisons_with_nothing(self, config_for, trained):
        with pytest.raises(RecipeError, match="privacy=update_dp has no meaning"):
            resolve_validation(config_for(trained[0], changes={"privacy": NOISE}))
        with pytest.raises(RecipeError, match="no second model"):
            resolve_validation(config_for(trained[0], comparisons=[{"metric": "dice"}]))

    def test_resolve_validation_looks_whether_sites_can_feed_the_network(self, config_for, trained, monkeypatch):
        def never(plan):
            raise PlanError("The plan's network is not one that this site knows.")

        monkeypatch.setattr("eucaim_fl.site.askable.check_network", never)
        with pytest.raises(PlanError, match="not one that this site knows"):
            resolve_validation(config_for(trained[0]))

    def test_the_run_folder_has_the_files_that_the_plan_names(self, config_for, trained):
        recipe = resolve_validation(config_for(trained[0]))
        folder = create_run(recipe.config, recipe.plan, recipe.site_files, frozen=recipe.frozen)
        assert (folder / FOLDER / "tiny").read_bytes() == recipe.frozen[0].content
        assert set(read_files(folder, recipe.plan.validation)) == {"file.tiny"}

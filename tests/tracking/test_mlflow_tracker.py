"""MLflow against a real SQLite database: a run folder is logged once, continued, and its models come back."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import logging
import sqlite3
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from eucaim_fl.arrays import arrays_sha256, encode_arrays
from eucaim_fl.config import ExperimentConfig, MethodConfig, TrackingConfig
from eucaim_fl.durable import write_atomically, write_json
from eucaim_fl.errors import RunError, RunNotFoundError
from eucaim_fl.models.networks import build, get_arrays
from eucaim_fl.plan import FederationPlan, make_plan
from eucaim_fl.records import Participation, RoundRecord, SiteMetrics
from eucaim_fl.tracking.address import tracking_uri
from eucaim_fl.tracking.mlflow_tracker import MlflowTracker, replay, round_metrics

pytestmark = pytest.mark.integration

SIZE = (16, 16)


def make() -> FederationPlan:
    config = ExperimentConfig.model_validate(
        {
            "name": "demo",
            "rounds": 2,
            "seed": 3,
            "sites": ("a", "b"),
            "task": {"name": "segmentation", "spatial_dims": 2, "labels": ("lesion",)},
            "model": {"name": "unet", "args": {"channels": [4, 8], "strides": [2]}},
            "data": {"size_voxels": (16, 16, None)},
            "training": {"local_steps": 1},
        }
    )
    return make_plan(config, ("a", "b"))


def network(seed: int) -> torch.nn.Module:
    plan = make()
    return build(plan.model, plan.task, in_channels=1, seed=seed, image_size=SIZE).eval()


def record(number: int, dice: float) -> RoundRecord:
    return RoundRecord(
        number, "a" * 64, "b" * 64,
        (Participation("a", "took_part", patients=9, seconds=1.5, bytes_up=70, bytes_down=80),
         Participation("b", "lost", "EFL303", "gone")),
        {"a": (SiteMetrics("validation", 4, {"dice": dice, "hd95_mm": float("nan")}),)},
        {"validation": {"dice": dice, "patients": 4.0}}, {"a": 0.75}, ("a",), 2.5,
    )  # fmt: skip


def start(folder: Path) -> None:
    folder.mkdir(parents=True)
    (folder / "plan.json").write_text(make().canonical_json())
    (folder / "recipe.yaml").write_text("name: demo\n")


def complete(folder: Path, number: int, dice: float) -> None:
    (folder / "journal" / f"round-{number:04d}").mkdir(parents=True)
    path = folder / "journal" / f"round-{number:04d}" / "record.json"
    path.write_text(json.dumps(record(number, dice).to_json()))


def finish(folder: Path) -> None:
    provenance = {
        "python": "3.11", "packages": {"torch": "2.13.0"}, "git": {"commit": "c0ffee", "dirty": False},
        "cohorts": {"a": "11", "b": "22"},
    }  # fmt: skip
    write_json(folder / "provenance.json", provenance)
    write_json(folder / "result.json", {"metrics": {"pooled": {"dice": 0.5}}})
    (folder / "report.html").write_text("<p>report")
    for role, seed in (("best", 1), ("last", 2)):
        write_atomically(folder / "models" / f"{role}.safetensors", encode_arrays(get_arrays(network(seed))))
    write_json(folder / "models" / "best.json", {"after_round": 1})


class Story:
    """One run: logged live for a round, stopped, resumed, finished, and then logged once more."""

    def __init__(self, runs: Path) -> None:
        self.folder, self.runs = runs / "run-1", runs
        start(self.folder)
        first = MlflowTracker(self.folder, TrackingConfig(), runs)
        first.sync()
        complete(self.folder, 1, 0.1)
        first.sync()
        first.sync("interrupted")
        self.first_id = first.run_id
        self.stopped = self.client().get_run(first.run_id).info.status
        second = MlflowTracker(self.folder, TrackingConfig(), runs)
        second.sync()
        self.resumed = self.client().get_run(first.run_id).info.status
        for number, dice in ((2, 0.4), (3, 0.5)):
            complete(self.folder, number, dice)
        second.sync()
        finish(self.folder)
        second.sync("finished")
        self.again = replay(self.folder)

    def client(self) -> Any:
        from mlflow import MlflowClient

        return MlflowClient(tracking_uri(TrackingConfig(), self.runs))

    def run(self) -> Any:
        return self.client().get_run(self.first_id)

    def history(self, name: str) -> list[tuple[int, float]]:
        return [(m.step, m.value) for m in self.client().get_metric_history(self.first_id, name)]


@pytest.fixture(scope="module")
def story(tmp_path_factory: pytest.TempPathFactory) -> Story:
    return Story(tmp_path_factory.mktemp("home") / "runs")


class TestSync:
    def test_a_resumed_run_and_a_replay_continue_the_same_mlflow_run(self, story: Story) -> None:
        assert story.again == story.first_id
        assert (story.stopped, story.resumed, story.run().info.status) == ("KILLED", "RUNNING", "FINISHED")
        experiment = story.client().get_experiment_by_name("demo")
        assert len(story.client().search_runs([experiment.experiment_id])) == 1

    def test_metrics_stand_at_the_number_of_rounds_that_made_the_model(self, story: Story) -> None:
        assert story.history("validation/pooled/dice") == [(0, 0.1), (1, 0.4), (2, 0.5)]
        assert story.history("validation/site/a/dice") == [(0, 0.1), (1, 0.4), (2, 0.5)]

    def test_losses_times_and_bytes_stand_at_their_round(self, story: Story) -> None:
        for name, value in (("train_loss/site/a", 0.75), ("seconds/site/a", 1.5), ("bytes_up/site/a", 70)):
            assert story.history(name) == [(1, value), (2, value), (3, value)]
        assert story.history("round_seconds") == [(1, 2.5), (2, 2.5), (3, 2.5)]
        assert story.history("sites") == [(1, 1), (2, 1), (3, 1)]

    def test_the_plan_is_there_as_parameters(self, story: Story) -> None:
        params = story.run().data.params
        assert params["rounds"] == "2"
        assert params["model.args.channels"] == "[4, 8]"
        assert params["method.rule.name"] == "weighted_mean"

    def test_provenance_is_there_as_tags_without_user_or_path(self, story: Story) -> None:
        tags = story.run().data.tags
        assert tags["plan_sha256"] == make().sha256()
        assert (tags["version.torch"], tags["cohort.b"]) == ("2.13.0", "22")
        assert tags["mlflow.source.git.commit"] == "c0ffee"
        assert (tags["mlflow.user"], tags["mlflow.source.name"]) == ("eucaim_fl", "eucaim-fl train")

    def test_plan_recipe_result_and_report_are_artifacts(self, story: Story) -> None:
        found = {item.path for item in story.client().list_artifacts(story.first_id)}
        assert {"plan.json", "recipe.yaml", "provenance.json", "result.json", "report.html"} <= found

    def test_everything_lies_in_the_runs_folder(self, story: Story) -> None:
        assert {path.name for path in story.runs.iterdir()} == {"run-1", "mlflow.db", "mlartifacts"}
        assert {path.name for path in story.runs.parent.iterdir()} == {"runs"}
        assert not Path("mlruns").exists()

    def test_a_database_that_was_lost_gets_the_whole_run_anew(self, story: Story, tmp_path: Path) -> None:
        config = TrackingConfig(uri=f"sqlite:///{tmp_path / 'other.db'}", experiment="elsewhere")
        memory = (story.folder / "mlflow.json").read_bytes()
        try:
            tracker = MlflowTracker(story.folder, config, tmp_path)
            tracker.sync()
            assert tracker.run_id != story.first_id
        finally:
            (story.folder / "mlflow.json").write_bytes(memory)
        from mlflow import MlflowClient

        client = MlflowClient(config.uri)
        assert len(client.get_metric_history(tracker.run_id, "round_seconds")) == 3
        assert client.get_experiment_by_name("elsewhere").artifact_location == (tmp_path / "mlartifacts").as_uri()

    def test_a_database_that_another_process_holds_is_named_within_seconds(self, tmp_path: Path) -> None:
        start(tmp_path / "run-1")
        tracker = MlflowTracker(tmp_path / "run-1", TrackingConfig(), tmp_path)
        with contextlib.closing(sqlite3.connect(tmp_path / "mlflow.db")) as database:
            database.execute("BEGIN EXCLUSIVE")
            with pytest.raises(RunError, match="database is locked"):
                tracker.sync()


class TestModels:
    def test_best_and_last_are_registered_under_the_plans_name(self, story: Story) -> None:
        client = story.client()
        for role, seed in (("best", 1), ("last", 2)):
            version = client.get_model_version_by_alias("demo", role)
            assert version.tags["role"] == role
            assert version.tags["after_round"] == str(seed)
            assert version.tags["weights_sha256"] == arrays_sha256(get_arrays(network(seed)))
            assert version.run_id == story.first_id

    def test_a_replay_registers_nothing_twice(self, story: Story) -> None:
        assert len(story.client().search_model_versions("name='demo'")) == 2

    @pytest.mark.parametrize(("role", "seed"), [("best", 1), ("last", 2)])
    def test_the_loaded_model_gives_the_bits_of_the_built_network(self, story: Story, role: str, seed: int) -> None:
        import mlflow

        mlflow.set_tracking_uri(tracking_uri(TrackingConfig(), story.runs))
        import mlflow.pytorch

        loaded = mlflow.pytorch.load_model(f"models:/demo@{role}")
        for batch in (1, 3):
            images = torch.rand(batch, 1, *SIZE, generator=torch.Generator().manual_seed(batch))
            with torch.no_grad():
                assert torch.equal(loaded(images), network(seed)(images))

    def test_signature_and_input_example_fit_the_model(self, story: Story) -> None:
        import mlflow
        from mlflow.models import Model

        mlflow.set_tracking_uri(tracking_uri(TrackingConfig(), story.runs))
        folder = mlflow.artifacts.download_artifacts("models:/demo@last")
        model = Model.load(folder)
        assert model.signature.inputs.inputs[0].shape == (-1, 1, *SIZE)
        assert model.signature.outputs.inputs[0].shape == (-1, 2, *SIZE)
        example = model.load_input_example(folder)
        assert example.shape == (2, 1, *SIZE)
        prediction = mlflow.pyfunc.load_model("models:/demo@last").predict(example)
        assert np.asarray(prediction).shape == (2, 2, *SIZE)

    def test_no_file_of_the_model_is_a_pickle(self, story: Story, monkeypatch: pytest.MonkeyPatch) -> None:
        import mlflow.pytorch

        monkeypatch.setenv("MLFLOW_ALLOW_PICKLE_DESERIALIZATION", "false")
        mlflow.set_tracking_uri(tracking_uri(TrackingConfig(), story.runs))
        assert mlflow.pytorch.load_model("models:/demo@last") is not None

    def test_a_network_that_cant_be_exported_leaves_a_finished_run(self, story: Story, tmp_path: Path) -> None:
        folder = tmp_path / "run-2"
        start(folder)
        complete(folder, 1, 0.1)
        broken = {"weight": np.zeros(3, dtype=np.float32)}
        write_atomically(folder / "models" / "best.safetensors", encode_arrays(broken))
        tracker = MlflowTracker(folder, TrackingConfig(), tmp_path)
        with pytest.raises(Exception, match=r"weight"):
            tracker.sync("finished")
        from mlflow import MlflowClient

        run = MlflowClient(tracker.uri).get_run(tracker.run_id)
        assert run.info.status == "FINISHED"
        assert run.data.metrics["round_seconds"] == 2.5


class TestReplay:
    def test_a_folder_without_a_plan_is_no_run(self, tmp_path: Path) -> None:
        with pytest.raises(RunNotFoundError, match="holds no readable plan"):
            replay(tmp_path)


class TestQuiet:
    def test_nothing_is_printed_and_telemetry_is_off(self, story: Story, capfd: pytest.CaptureFixture[str]) -> None:
        from mlflow.telemetry import get_telemetry_client

        replay(story.folder)
        assert tuple(capfd.readouterr()) == ("", "")
        assert get_telemetry_client() is None
        assert logging.getLogger("mlflow").level == logging.ERROR


class TestRoundMetrics:
    def test_values_that_are_not_finite_are_left_out(self) -> None:
        names = [name for name, _, _ in round_metrics(record(1, float("inf")))]
        assert "validation/site/a/hd95_mm" not in names
        assert "validation/pooled/dice" not in names
        assert "validation/pooled/patients" in names

    def test_other_models_have_their_name_in_the_metric_s_and_choices_are_counted(self) -> None:
        entries = tuple(
            SiteMetrics("test", 4, {"dice": dice}, {"dice": (4.0, 4 * dice, 4 * dice * dice)}, model=model)
            for model, dice in (("common", 0.5), ("local", 0.75))
        )
        last = dataclasses.replace(record(3, 0.5), metrics={"a": entries}, pooled={}, chosen={"a": "local"})
        found = {name: value for name, value, step in round_metrics(last) if step == 2}
        assert (found["test/site/a/dice"], found["test/local/a/dice"]) == (0.5, 0.75)
        assert (found["test/local/pooled/dice"], found["test/chosen/pooled/dice"]) == (0.75, 0.75)
        assert found["chosen/local"] == 1
        own = {name for name, _, _ in round_metrics(last, "local")}
        assert {"test/site/a/dice", "test/common/a/dice", "test/common/pooled/dice"} <= own


class Client:
    """Stands for MLflow's client: remembers tags, and has nothing by which a model could be logged."""

    def __init__(self) -> None:
        self.tags: dict[str, str] = {}

    def set_tag(self, _run_id: str, name: str, value: str) -> None:
        self.tags[name] = value

    def log_batch(self, _run_id: str, **_entries: Any) -> None:
        """Metrics are looked at elsewhere."""


class TestOwnModels:
    def test_choices_are_tags_and_a_model_that_is_not_whole_is_not_logged(
        self, tmp_path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        folder, client = tmp_path / "run-1", Client()
        start(folder)
        complete(folder, 3, 0.5)
        path = folder / "journal" / "round-0003" / "record.json"
        path.write_text(json.dumps(dataclasses.replace(record(3, 0.5), chosen={"a": "local"}, metrics={}).to_json()))
        method = MethodConfig.model_validate({"personal": {"arrays": "normalization", "local": True, "choose": True}})
        (folder / "plan.json").write_text(make().model_copy(update={"method": method}).canonical_json())
        finish(folder)
        tracker = MlflowTracker(folder, TrackingConfig(), tmp_path)
        tracker._log_rounds(client, "run")
        with caplog.at_level(logging.WARNING, logger="eucaim_fl.tracking"):
            tracker._log_model(client, "run", "last")
        assert client.tags == {"chosen.a": "local"}
        assert "the last model is not logged: some of its arrays stay at the sites" in caplog.text

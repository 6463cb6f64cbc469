"""A validation in MLflow, against a real SQLite database: figures once, no model, nothing that is somebody's own."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from eucaim_fl.config import TrackingConfig
from eucaim_fl.errors import JournalError
from eucaim_fl.tracking.address import tracking_uri
from eucaim_fl.tracking.mlflow_tracker import MlflowTracker, replay
from tests.tracking.finished_validation import SECRET, answer, asking, begin, finish

pytestmark = pytest.mark.integration


class Story:
    """A validation logged while it runs and when it is over, once more, and once more by a process that forgot it."""

    def __init__(self, runs: Path) -> None:
        self.runs, self.folder, self.plan = runs, runs / "run-1", asking()
        begin(self.folder, self.plan)
        tracker = MlflowTracker(self.folder, TrackingConfig(), runs)
        tracker.sync()
        answer(self.folder, self.plan)
        tracker.sync()
        finish(self.folder, self.plan)
        tracker.sync("finished")
        self.id = str(tracker.run_id)
        self.again = replay(self.folder)
        memory = json.loads((self.folder / "mlflow.json").read_text())
        (self.folder / "mlflow.json").write_text(json.dumps({"run_id": memory["run_id"]}))
        self.forgotten = replay(self.folder)
        self.report = json.loads((self.folder / "report.json").read_text())

    def client(self) -> Any:
        from mlflow import MlflowClient

        return MlflowClient(tracking_uri(TrackingConfig(), self.runs))

    def data(self) -> Any:
        return self.client().get_run(self.id).data


@pytest.fixture(scope="module")
def story(tmp_path_factory: pytest.TempPathFactory) -> Story:
    return Story(tmp_path_factory.mktemp("home") / "runs")


class TestSync:
    def test_one_run_is_finished(self, story: Story) -> None:
        assert story.again == story.forgotten == story.id
        assert story.client().get_run(story.id).info.status == "FINISHED"

    def test_figures_of_the_report_are_metrics_with_their_limits(self, story: Story) -> None:
        for model in story.report["result"]["models"]:
            whole = model["scopes"][0]
            own = {site["site"]: site["figures"] for site in whole["sites"]}
            for place, figures in {model["name"]: whole["figures"], f"{model['name']}/site/a": own["a"]}.items():
                figure = figures["auc"]
                found = [story.data().metrics[f"{place}/auc{behind}"] for behind in ("", "_low", "_high")]
                assert found == [figure["value"], figure["low"], figure["high"]]

    def test_logging_again_doubles_nothing(self, story: Story) -> None:
        for name in ("model-1/auc", "model-1/site/a/auc", "model-1/against/model-2/auc_margin", "round_seconds"):
            assert len(story.client().get_metric_history(story.id, name)) == 1, name

    def test_what_was_asked_is_there_as_parameters(self, story: Story) -> None:
        params = story.data().params
        assert params["plan_sha256"] == story.plan.sha256()
        assert (params["model.name"], params["against.name"]) == ("model-1", "model-2")
        assert (params["model.format"], params["model.sha256"]) == ("onnx", "0" * 64)
        assert (params["patients"], params["thresholds"]) == ("all", "[0.5]")
        assert params["sites"] == '["a", "b", "c"]'
        assert not [name for name in params if name.startswith(("training", "privacy", "method"))]

    def test_kind_verdict_comparison_and_gaps_are_there_as_tags(self, story: Story) -> None:
        tags = story.data().tags
        assert tags["kind"] == "validation"
        assert (tags["mlflow.user"], tags["mlflow.source.name"]) == ("eucaim_fl", "eucaim-fl validate")
        works = [v["sentence"] for v in story.report["result"]["verdicts"] if v["question"] == "does_it_work"]
        assert tags["verdict"] == " ".join(works)
        assert tags["comparison.auc"].startswith(f"{story.report['result']['comparisons'][0]['outcome']}".split("_")[0])
        assert "model-1/site/c/patients: withheld, too_few" in tags["not_logged"]

    def test_the_report_is_an_artifact_and_the_models_are_nowhere(self, story: Story) -> None:
        found = {item.path for item in story.client().list_artifacts(story.id)}
        assert found == {"plan.json", "recipe.yaml", "result.json", "report.json", "report.html"}
        files = [path for path in story.runs.rglob("*") if path.is_file() and story.folder not in path.parents]
        assert files
        assert not [path for path in files if SECRET in path.read_bytes()]
        assert story.client().search_registered_models() == []

    def test_a_damaged_report_leaves_a_run_that_is_over_and_says_so(self, story: Story, tmp_path: Path) -> None:
        folder = tmp_path / "run-2"
        begin(folder, story.plan)
        (folder / "report.json").write_text("{")
        tracker = MlflowTracker(folder, TrackingConfig(), tmp_path)
        with pytest.raises(JournalError, match=r"report\.json can't be read"):
            tracker.sync("finished")
        from mlflow import MlflowClient

        assert MlflowClient(tracker.uri).get_run(tracker.run_id).info.status == "FINISHED"

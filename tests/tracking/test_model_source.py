"""A model that a run logged in MLflow comes back as the plan and the weights that it was made from."""

from __future__ import annotations

from pathlib import Path

import mlflow
import pytest

from eucaim_fl.arrays import ArrayFile, arrays_sha256, encode_arrays
from eucaim_fl.config import TrackingConfig
from eucaim_fl.durable import write_atomically
from eucaim_fl.errors import RunError, RunNotFoundError
from eucaim_fl.models.planned import first_arrays
from eucaim_fl.plan import make_plan, read_plan
from eucaim_fl.tracking.address import tracking_uri
from eucaim_fl.tracking.mlflow_tracker import replay
from eucaim_fl.tracking.model_source import is_reference, logged_run
from tests.conftest import tiny_recipe

pytestmark = pytest.mark.integration


@pytest.fixture(scope="module")
def logged(tmp_path_factory):
    """Where MLflow is, the run's id, the plan, and the weights' digest."""
    runs = tmp_path_factory.mktemp("runs")
    plan = make_plan(tiny_recipe(runs, [Path("a.yaml")]), ("a",))
    arrays = first_arrays(plan)
    write_atomically(runs / "tiny-1" / "plan.json", plan.canonical_json().encode())
    write_atomically(runs / "tiny-1" / "models" / "best.safetensors", encode_arrays(arrays))
    (runs / "tiny-1" / "result.json").write_text("{}")
    run_id = replay(runs / "tiny-1")
    return tracking_uri(TrackingConfig(), runs), run_id, plan, arrays_sha256(arrays)


class TestLoggedRun:
    @pytest.mark.parametrize("form", ["mlflow:{}", "runs:/{}", "runs:/{}/best", "models:/tiny@best", "models:/tiny/1"])
    def test_every_reference_brings_plan_and_weights(self, logged, form):
        uri, run_id, plan, digest = logged
        with logged_run(form.format(run_id), uri, "best") as folder:
            assert read_plan((folder / "plan.json").read_text()) == plan
            assert arrays_sha256(ArrayFile(folder / "models" / "best.safetensors").load()) == digest
        assert not folder.exists()

    @pytest.mark.parametrize(
        ("reference", "words"),
        [
            ("models:/tiny@last", "no such model"),
            ("models:/other@best", "no such model"),
            ("mlflow:0123", "no such model"),
            ("models:/a/b/c/../../d", "no reference"),
            ("runs:/x/../y", "no reference"),
        ],
    )
    def test_logged_run_says_what_is_not_there(self, logged, reference, words):
        with pytest.raises(RunNotFoundError, match=words), logged_run(reference, logged[0], "best"):
            pass

    def test_logged_run_needs_what_the_graph_was_made_from(self, logged):
        client = mlflow.MlflowClient(logged[0])
        run = client.create_run(client.get_run(logged[1]).info.experiment_id)
        client.log_text(run.info.run_id, "a graph", "best/model.pt2")
        with (
            pytest.raises(RunNotFoundError, match="graph alone"),
            logged_run(f"mlflow:{run.info.run_id}", logged[0], "best"),
        ):
            pass

    def test_logged_run_makes_no_database(self, tmp_path):
        uri = f"sqlite:///{tmp_path}/mlflow.db"
        with pytest.raises(RunNotFoundError, match="no such model"), logged_run("mlflow:1", uri, "best"):
            pass
        assert not (tmp_path / "mlflow.db").exists()

    def test_logged_run_asks_no_damaged_database(self, tmp_path):
        (tmp_path / "mlflow.db").write_text("no database" * 100)
        with (
            pytest.raises(RunError, match="can't be used"),
            logged_run("mlflow:1", f"sqlite:///{tmp_path}/mlflow.db", "best"),
        ):
            pass

    def test_a_path_is_no_reference(self):
        assert not any(map(is_reference, ("runs/tiny-1", "/runs:/x", "models/best", "mlflow")))

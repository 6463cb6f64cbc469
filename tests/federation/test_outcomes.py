"""Labels and survival over two tiny hospitals, from the recipe to the report."""

from __future__ import annotations

import csv

import pytest

from eucaim_fl.compose import resolve
from eucaim_fl.federation.run import create_run, execute
from eucaim_fl.sitefile import load_site_file
from tests.conftest import tiny_recipe, write_hospital

pytestmark = pytest.mark.federated

SMALL = {"name": "small_cnn", "args": {"channels": [8], "strides": [2], "pooled": True, "norm": "group"}}
TRAINING = {"batch_size": 8, "local_steps": 12, "optimizer": {"name": "adam", "lr": 0.03, "momentum": 0.9}}


def write_with_outcomes(root, name):
    """A large ball, `malignant`, comes with an early event, seen in most; of a fifth the label isn't known."""
    file = write_hospital(root, name, patients=20)
    table = load_site_file(file).cohort_folder() / "clinical.csv"
    rows = list(csv.DictReader(table.read_text().splitlines()))
    for number, row in enumerate(rows):
        large = int(row["malignant"])
        row["time_days"], row["died"] = str(300 - 200 * large + 7 * number), str(int(number % 4 > 0))
        row["odd"] = str(number % 2)
        row["large"] = "" if number % 5 == 0 else str(large)
    with table.open("w", newline="") as stream:
        writer = csv.DictWriter(stream, fieldnames=list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return file


@pytest.fixture(scope="module")
def hospitals(tmp_path_factory):
    folder = tmp_path_factory.mktemp("hospitals")
    return [write_with_outcomes(folder, name) for name in "ab"]


def go(folder, hospitals, task, **changes):
    changes = {"model": SMALL, "training": TRAINING, **changes}
    config = tiny_recipe(folder, hospitals).model_dump(mode="json")
    config = tiny_recipe(folder, hospitals).model_validate({**config, "task": task, **changes})
    resolved = resolve(config)
    run = create_run(config, resolved.plan, resolved.site_files)
    return execute(run, config, resolved.site_files)[0], run


class TestMultilabel:
    def test_each_target_has_its_figures_at_the_sites_and_pooled(self, hospitals, tmp_path):
        task = {"name": "multilabel", "spatial_dims": 2, "targets": ["large", "odd"]}
        result, run = go(tmp_path, hospitals, task)
        for values in (result["metrics"]["pooled"], *result["metrics"]["sites"].values()):
            assert {"auc_large", "auc_odd", "balanced_accuracy", "brier_odd"} <= set(values)
        pooled = result["metrics"]["pooled"]
        assert pooled["auc"] == pytest.approx((pooled["auc_large"] + pooled["auc_odd"]) / 2)
        assert pooled["patients"] == 8.0
        assert result["best"]["validation"].keys() >= {"auc", "auc_large"}
        page = (run / "report.html").read_text()
        assert "Yes or no for each of large, odd" in page
        assert "AUC, large" in page

    def test_every_patients_gradient_can_be_clipped(self, hospitals, tmp_path):
        privacy = {"mechanism": "patient_dp", "noise_multiplier": 1.0, "delta": 1e-5, "clipping_norm": 1.0}
        task = {"name": "multilabel", "spatial_dims": 2, "targets": ["large", "odd"]}
        training = {**TRAINING, "local_steps": 2}
        privacy |= {"sampling_rate": 0.5, "secure": False}
        result, _ = go(tmp_path, hospitals, task, training=training, privacy=privacy, rounds=1)
        assert result["privacy"]["unit"] == "patient"
        assert result["rounds_trained"] == 1


class TestSurvival:
    def test_it_learns_the_order_of_events(self, hospitals, tmp_path):
        task = {"name": "survival", "spatial_dims": 2, "time": "time_days", "event": "died"}
        result, run = go(tmp_path, hospitals, task, rounds=3)
        pooled, sites = result["metrics"]["pooled"], result["metrics"]["sites"]
        assert pooled.keys() == {"patients", "c_index"}
        low, high = sorted(values["c_index"] for values in sites.values())
        assert low <= pooled["c_index"] <= high
        assert pooled["c_index"] > 0.7
        page = (run / "report.html").read_text()
        assert "Risk by time_days until died" in page
        assert "Concordance index" in page

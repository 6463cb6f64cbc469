"""A whole benchmark over two tiny hospitals: every way to train, bad sites, personal models, and going on."""

from __future__ import annotations

import json
import os

import numpy as np
import pytest

from eucaim_fl.arrays import ArrayFile
from eucaim_fl.benchmark.report import summarise
from eucaim_fl.benchmark.request import Request
from eucaim_fl.benchmark.rows import rows_of
from eucaim_fl.benchmark.training import Work, train_all
from eucaim_fl.compose import resolve
from eucaim_fl.config import ClassificationConfig, ModelConfig
from eucaim_fl.errors import WorkerError
from eucaim_fl.federation.flower_baseline import train_with_flower
from eucaim_fl.federation.progress import Listener
from tests.conftest import tiny_recipe, write_hospital

pytestmark = [pytest.mark.federated, pytest.mark.slow]  # CI trains and checks the benchmark in small

CLASSES = ClassificationConfig(target="malignant", classes=("0", "1"))
DITTO = {"personal": {"ditto": 0.1, "choose": True}}


def works_of(root, files, names):
    """The works of some rows; methods are given as changes of the tiny recipe."""
    given = {"fedavg": (), "ditto": (), "bad": ("poison=flip:b",)}
    found = []
    for row in rows_of(given, names):
        config = tiny_recipe(root, files, method=DITTO if row.name == "ditto" else {})
        config = config.model_copy(update={"task": CLASSES, "model": ModelConfig(name="small_cnn")})
        clean = resolve(config).plan.sha256()
        recipe = resolve(config.model_copy(update={"name": f"tiny-{row.name}"}) if row.poison else config)
        found.append(Work(row, recipe.config, recipe.plan, clean, recipe.site_files))
    return found


@pytest.fixture(scope="module")
def benchmark(tmp_path_factory):
    """The folder, its works, their outcomes by model, and the lines that were told."""
    root = tmp_path_factory.mktemp("benchmark")
    files = [write_hospital(root, name) for name in "ab"]
    works = works_of(root, files, ["local", "pooled", "flower_fedavg", "fedavg", "ditto", "bad"])
    told: list[str] = []
    outcomes = train_all(works, root / "folder", 2, told.append, Listener)
    return root / "folder", works, {one.name: one for one in outcomes}, told


class TestTrainAll:
    def test_every_model_is_tested_on_the_same_patients_of_every_site(self, benchmark) -> None:
        _, _, found, _ = benchmark
        assert list(found) == [
            *("local:a", "local:b", "pooled", "flower_fedavg", "fedavg"),
            *("ditto", "ditto.chosen", "ditto.personal", "bad"),
        ]
        assert len({frozenset(one.values) for one in found.values()}) == 1
        assert {site for site, _ in found["pooled"].values} == {"a", "b"}

    def test_all_make_as_many_steps_and_what_comes_beside_is_told(self, benchmark) -> None:
        _, _, found, _ = benchmark
        assert {one.cost.steps for one in found.values()} == {6}
        assert found["ditto.personal"].cost.extra_steps == 6
        assert found["ditto"].cost.extra_steps == found["fedavg"].cost.extra_steps == 0
        assert found["fedavg"].cost.bytes_up > 0 == found["pooled"].cost.bytes_up

    def test_flowers_own_averaging_agrees_with_ours_to_rounding(self, benchmark) -> None:
        folder, _, _, _ = benchmark
        ours, flowers = (
            ArrayFile(next((folder / "rows").glob(f"{name}-*.safetensors"))).load()
            for name in ("fedavg", "flower_fedavg")
        )
        assert ours.keys() == flowers.keys()
        for name, array in ours.items():
            assert flowers[name].dtype == array.dtype
            assert np.allclose(flowers[name], array, rtol=1e-4, atol=1e-5), name

    def test_a_bad_site_spoils_the_model_and_the_clean_run_knows_nothing_of_it(self, benchmark) -> None:
        _, works, found, _ = benchmark
        assert found["bad"].clean_sha256 == found["fedavg"].plan_sha256 != found["bad"].plan_sha256
        digests = {found[name].arrays_sha256 for name in ("fedavg", "bad")}
        assert len(digests) == 2
        assert {work.row.name for work in works if work.row.poison} == {"bad"}

    def test_personal_models_are_each_sites_own(self, benchmark) -> None:
        _, _, found, _ = benchmark
        assert found["ditto.personal"].arrays_sha256 == ""
        assert found["ditto.personal"].values != found["ditto"].values

    def test_a_table_is_made_of_it(self, benchmark) -> None:
        _, works, found, _ = benchmark
        request = Request("x", works[0].config, tuple((w.row, w.config) for w in works), (0,), (), "")
        table = summarise(request, list(found.values()))
        assert json.dumps(table, allow_nan=False)
        assert {d["model"] for d in table["poisoned"]} == {"bad"}
        assert {d["against"] for d in table["poisoned"]} == {"fedavg"}

    def test_a_finished_benchmark_trains_nothing_again(self, benchmark) -> None:
        folder, works, found, _ = benchmark
        told: list[str] = []
        again = train_all(works, folder, 2, told.append, Listener)
        assert told == []
        assert repr(again) == repr(list(found.values()))

    def test_a_training_whose_file_is_gone_is_made_again_with_the_same_model(self, benchmark) -> None:
        folder, works, found, _ = benchmark
        next((folder / "rows").glob("local_a-*.json")).unlink()
        told: list[str] = []
        again = train_all(works, folder, 2, told.append, Listener)
        assert [line.split(" done")[0] for line in told] == ["seed 0: local:a"]
        assert again[0].arrays_sha256 == found["local:a"].arrays_sha256


class TestTrainWithFlower:
    def test_a_site_that_does_not_answer_ends_it(self, benchmark, tmp_path) -> None:
        _, works, _, _ = benchmark
        gone = {"a": works[0].site_files["a"], "b": tmp_path / "gone.yaml"}
        with pytest.raises(WorkerError, match="did not answer"):
            train_with_flower(works[0].plan, gone, min(2, os.cpu_count() or 1), tmp_path / "log")

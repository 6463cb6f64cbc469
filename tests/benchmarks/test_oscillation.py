"""The benchmark of how federated averaging swings: rows, what is measured, and going on; its figures mean nothing."""

from __future__ import annotations

import importlib.util
import io
import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from PIL import Image

from eucaim_fl.cohorts.ham10000 import IMAGES, SITES, SPLITS, TABLE, write_ham10000
from eucaim_fl.compose import compose, resolve
from eucaim_fl.records import RoundRecord
from eucaim_fl.validation.pooling import classification_summary, pool

SCRIPT = Path(__file__).resolve().parents[2] / "experiments" / "benchmarks" / "oscillation.py"


@pytest.fixture(scope="module")
def oscillation() -> ModuleType:
    spec = importlib.util.spec_from_file_location("oscillation", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def record(number: int, probabilities: dict[str, list[float]]) -> RoundRecord:
    """A round in which sites measured patients of whom every second one is malignant."""
    metrics = {}
    for site, values in probabilities.items():
        yes, truth = np.array(values), np.arange(len(values)) % 2
        metrics[site] = (classification_summary("validation", np.stack([1 - yes, yes], 1), truth, histograms=True),)
    pooled = {"validation": pool([one for own in metrics.values() for one in own])}
    return RoundRecord(number, "", "", (), metrics, pooled, {}, tuple(metrics), 1.0)


def result(row: str, seed: int, change: float | None) -> dict[str, Any]:
    """A run whose pooled AUC changes so much, and all else not at all."""
    still = {"change": 0.0, "range": 0.0}
    swings = None if change is None else {"change": change, "range": 2 * change}
    own = dict.fromkeys(("auc", "brier", "mean_probability"), still)
    return {
        "row": row, "seed": seed, "test_auc": {"all": 0.9, "mean": 0.8, "by_site": {"a": 0.8}},
        "swing": {"auc": swings, "brier": still, "sites": {"a": own}},
        "curve": [{"sites": {"a": {"patients": 20, "malignant": 3}}}],
    }  # fmt: skip


class TestRows:
    def test_every_row_is_a_plan_of_its_own_with_as_many_steps_measured_as_often(self, oscillation: ModuleType) -> None:
        plans = {name: resolve(compose(oscillation.words_of(name, 40, 0))).plan for name in oscillation.ROWS}
        assert {plan.rounds * (plan.training.local_steps or 0) for plan in plans.values()} == {480}
        assert {plan.stopping.validate_every * (plan.training.local_steps or 0) for plan in plans.values()} == {12}
        assert len({plan.sha256() for plan in plans.values()}) == len(plans)
        assert {plan.sites for plan in plans.values()} == {tuple(sorted(SITES)), SPLITS["chance"]}

    def test_the_first_row_is_plain_averaging_and_the_others_change_what_they_say(
        self, oscillation: ModuleType
    ) -> None:
        plans = {name: resolve(compose(oscillation.words_of(name, 40, 1))).plan for name in ("fedavg", "classes")}
        first = plans["fedavg"]
        assert first.method.personal.candidates() == ("common",)
        assert (first.method.weighting.name, first.method.rule.name) == ("patients", "weighted_mean")
        assert (first.method.server_optimizer.name, first.method.server_optimizer.lr) == ("plain", 1.0)
        assert first.method.objective.name == "none"
        assert (first.training.optimizer.name, first.training.optimizer.kept) == ("adam", False)
        assert first.training.schedule.kind == "constant"
        assert first.model.args["norm"] == "batch"
        told, other = first.model_dump(), plans["classes"].model_dump()
        other["training"]["balance"]["sampling"] = "patients"
        assert told == other

    def test_an_unknown_row_is_refused_with_the_nearest_name(
        self, oscillation: ModuleType, capsys: pytest.CaptureFixture[str], tmp_path: Path
    ) -> None:
        assert oscillation.main(["--rows", "fedbm", "--folder", str(tmp_path)]) == 2
        assert "fedbn" in capsys.readouterr().err

    def test_without_cohorts_it_says_how_to_write_them(
        self,
        oscillation: ModuleType,
        monkeypatch: pytest.MonkeyPatch,
        capsys: pytest.CaptureFixture[str],
        tmp_path: Path,
    ) -> None:
        monkeypatch.setenv("EUCAIM_FL_DATA", str(tmp_path))
        assert oscillation.main(["--rows", "chance", "--folder", str(tmp_path / "new")]) == 2
        assert "--split chance" in capsys.readouterr().err
        assert not (tmp_path / "new").exists()


class TestCurve:
    def test_it_has_what_each_site_measured_and_the_pooled_figures(self, oscillation: ModuleType) -> None:
        found = oscillation.curve(
            [
                record(1, {"a": [0.1, 0.9, 0.2, 0.6], "b": [0.5, 0.4]}),
                RoundRecord(2, "", "", (), {}, {}, {}, (), 1.0),  # nobody measured
                record(3, {"a": [0.1, 0.9, 0.2, 0.6], "b": [0.3]}),
            ]
        )
        assert [point["after"] for point in found] == [0, 2]
        a, b = found[0]["sites"]["a"], found[0]["sites"]["b"]
        assert (a["auc"], a["patients"], a["malignant"]) == (1.0, 4, 2)
        assert a["mean_probability"] == pytest.approx(0.45)
        assert b["auc"] == 0.0
        assert b["brier"] == pytest.approx((0.25 + 0.36) / 2)
        assert found[0]["auc"] == pytest.approx(8 / 9)
        assert found[1]["sites"]["b"]["auc"] is None


class TestSwing:
    def test_only_the_second_half_counts(self, oscillation: ModuleType) -> None:
        assert oscillation.swing([0.0, 9.0, 0.5, 0.6, 0.4]) == {
            "change": pytest.approx(0.15), "range": pytest.approx(0.2),
        }  # fmt: skip
        assert oscillation.swing([0.0, 9.0, 0.5, 0.6])["range"] == pytest.approx(8.5)

    @pytest.mark.parametrize("values", [[], [1.0], [1.0, 1.0, None, 1.0, 1.0], [None, None]])
    def test_what_is_not_defined_has_none(self, oscillation: ModuleType, values: list[float | None]) -> None:
        assert oscillation.swing(values) is None

    def test_a_summary_is_of_all_patients_and_of_each_site(self, oscillation: ModuleType) -> None:
        rounds = [{"a": [0.1, 0.9, 0.2, 0.6], "b": [0.5, low]} for low in (0.4, 0.4, 0.4, 0.9)]
        found = oscillation.summary(oscillation.curve([record(n, one) for n, one in enumerate(rounds, start=1)]))
        assert found["sites"]["a"]["auc"] == {"change": 0.0, "range": 0.0}
        assert found["sites"]["b"]["auc"] == {"change": 0.5, "range": 1.0}
        assert found["sites"]["b"]["mean_probability"]["change"] == pytest.approx(0.125)
        assert found["auc"]["range"] == pytest.approx(1 / 9)


class TestTables:
    def test_rows_are_means_over_seeds_and_shares_of_the_first_row(self, oscillation: ModuleType) -> None:
        runs = [result("fedavg", 0, 0.02), result("fedavg", 1, 0.04), result("group", 0, 0.015), result("x", 0, None)]
        lines = oscillation.tables(runs).splitlines()
        assert lines[2].startswith("| fedavg | 2 | 0.0300 ± 0.0141 | 1.00 × | 0.060 ± 0.028 | 0.0000 ± 0.0000 |")
        assert lines[3].startswith("| group | 1 | 0.0150 | 0.50 × | 0.030 |")
        assert lines[4].startswith("| x | 1 | – | – | – |")
        assert "| row | a (3 of 20 malignant) |" in lines
        assert lines[-1] == "| x | 0.0000; 0.0000; 0.800 |"

    def test_without_the_first_row_nothing_is_compared(self, oscillation: ModuleType) -> None:
        assert "| group | 1 | 0.0150 | – | 0.030 |" in oscillation.tables([result("group", 0, 0.015)])


def _write_data_set(folder: Path) -> Path:
    """Three hundred images of noise a source, every third malignant: sites tell of no class of fewer than five."""
    folder.mkdir()
    rows, rng = ["image_id,lesion_id,source,dx,age,sex"], np.random.default_rng(0)
    with zipfile.ZipFile(folder / IMAGES, "w") as archive:
        for number in range(1200):
            stream = io.BytesIO()
            Image.fromarray(rng.integers(0, 255, (64, 64, 3), dtype=np.uint8)).save(stream, "JPEG")
            archive.writestr(f"I{number}.jpg", stream.getvalue())
            source = list(SITES.values())[number % 4]
            rows.append(f"I{number},L{number},{source},{'mel' if number % 3 == 0 else 'nv'},50.0,male")
    (folder / TABLE).write_text("\n".join(rows) + "\n")
    return folder


@pytest.mark.slow
@pytest.mark.federated
class TestScript:
    def test_it_trains_measures_and_goes_on_behind_what_is_done(self, tmp_path: Path) -> None:
        source = _write_data_set(tmp_path / "in")
        for split in SPLITS:
            write_ham10000(source, tmp_path / "data", split=split)

        def run(rows: str) -> subprocess.CompletedProcess[str]:
            return subprocess.run(
                [sys.executable, str(SCRIPT), "--seeds", "0", "--rounds", "2", "--rows", rows, "--folder", "new/out"],
                cwd=tmp_path,
                env={**os.environ, "EUCAIM_FL_DATA": str(tmp_path / "data")},
                capture_output=True,
                text=True,
                check=False,
            )

        assert run("fedavg").returncode == 0
        done = run("fedavg,short_rounds,fedbn,chance")
        assert done.returncode == 0, done.stderr
        assert "seed 0: fedavg" not in done.stderr
        assert "seed 0: chance done" in done.stderr
        runs = json.loads((tmp_path / "new/out/oscillation.json").read_text())["runs"]
        assert [one["row"] for one in runs] == ["fedavg", "short_rounds", "fedbn", "chance"]
        assert [[point["after"] for point in one["curve"]] for one in runs] == [
            [0, 1, 2],
            [0, 3, 6],
            [0, 1, 2],
            [0, 1, 2],
        ]
        for one in runs:
            assert 0 <= one["swing"]["auc"]["change"] <= one["swing"]["auc"]["range"] <= 1
            assert 0 <= one["test_auc"]["all"] <= 1
            assert len(one["test_auc"]["by_site"]) == 4
        assert done.stdout == (tmp_path / "new/out/oscillation.md").read_text()

"""The table of quality against privacy: what is counted, compared and averaged."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from eucaim_fl.config import ExperimentConfig
from eucaim_fl.errors import RecipeError
from eucaim_fl.plan import make_plan
from eucaim_fl.site.node import initial_arrays

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def script() -> Any:
    spec = importlib.util.spec_from_file_location("dp_utility", ROOT / "experiments" / "dp_utility.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["dp_utility"] = module
    spec.loader.exec_module(module)
    return module


def result(
    method: str, epsilon: float | None, seed: int, pooled: float | None, **by_site: float | None
) -> dict[str, Any]:
    return {
        "data": "skin", "method": method, "epsilon": epsilon, "seed": seed, "pooled": pooled, "by_site": by_site,
    }  # fmt: skip


class TestCells:
    def test_the_first_seed_is_complete_before_the_second(self, script: Any) -> None:
        found = script.cells(["ham10000"], ["plain", "ours"], [8.0, 1.0], [0, 1])
        assert [(c.method, c.epsilon, c.seed) for c in found] == [
            ("plain", None, 0), ("ours", 8.0, 0), ("ours", 1.0, 0),
            ("plain", None, 1), ("ours", 8.0, 1), ("ours", 1.0, 1),
        ]  # fmt: skip

    def test_every_cell_has_a_file_of_its_own(self, script: Any, tmp_path: Path) -> None:
        found = script.cells(list(script.DATA), script.METHODS, [8.0, 3.0, 1.0], [0, 1, 2])
        assert len({cell.path(tmp_path) for cell in found}) == len(found) == 3 * 3 * 7

    def test_every_data_set_has_a_recipe_with_and_without_privacy(self, script: Any) -> None:
        assert {f"{name}{end}" for name in script.DATA for end in ("", "_private")} <= {
            path.stem for path in (ROOT / "experiments").glob("*.yaml")
        }


class TestScores:
    def test_auc_is_taken_by_site_and_over_all(self, script: Any) -> None:
        given = {("a", "p"): (0.1, 0.0), ("a", "q"): (0.9, 1.0), ("b", "p"): (0.5, 0.0), ("b", "q"): (0.3, 1.0)}
        values = {who: (1 - score, score, truth) for who, (score, truth) in given.items()}
        found = script.scores(values, "classification")
        assert found["by_site"] == {"a": 1.0, "b": 0.0}
        assert found["pooled"] == 0.75
        assert found["patients"] == {"a": 2, "b": 2}

    def test_a_site_of_one_class_has_no_auc(self, script: Any) -> None:
        found = script.scores({("a", "p"): (0.9, 0.1, 0.0), ("b", "q"): (0.1, 0.9, 1.0)}, "classification")
        assert found["by_site"] == {"a": None, "b": None}
        assert found["pooled"] == 1.0

    def test_dice_is_a_mean_over_patients_who_have_one(self, script: Any) -> None:
        values = {("a", "p"): (0.5, 3.0), ("a", "q"): (np.nan, np.nan), ("b", "p"): (0.7, 2.0)}
        found = script.scores(values, "segmentation")
        assert found["pooled"] == pytest.approx(0.6)
        assert found["by_site"] == {"a": 0.5, "b": 0.7}


class TestTable:
    def test_rows_are_means_over_seeds_and_their_distance_to_plain(self, script: Any) -> None:
        text = script.table([
            result("plain", None, 0, 0.9, a=0.8),
            result("plain", None, 1, 0.8, a=None),
            result("ours", 8.0, 0, 0.88, a=0.7),
            result("ours", 8.0, 1, 0.78, a=0.9),
        ])  # fmt: skip
        assert "| plain | – | 2 | 0.850 ± 0.071 |  | 0.800 |" in text
        assert "| ours | 8 | 2 | 0.830 ± 0.071 | -0.020 | 0.800 ± 0.141 |" in text

    def test_only_seeds_that_both_have_are_compared(self, script: Any) -> None:
        text = script.table([
            result("plain", None, 0, 0.9, a=0.8), result("ours", 8.0, 0, 0.8, a=0.8), result("ours", 8.0, 1, 0.1, a=0.8)
        ])  # fmt: skip
        assert "| -0.100 |" in text


class TestFederated:
    def test_weights_are_those_of_a_weighted_mean_of_what_sites_trained(self, script: Any) -> None:
        recipe = ExperimentConfig.model_validate(
            {
                "name": "x", "sites": ["a", "b"], "rounds": 2, "training": {"local_steps": 1},
                "task": {"name": "classification", "spatial_dims": 2, "target": "t", "classes": ["0", "1"]},
                "model": {"name": "small_cnn", "args": {"channels": [8], "strides": [2]}},
                "data": {"size_voxels": [8, 8, 1]},
            }
        )  # fmt: skip
        plan = make_plan(recipe, ("a", "b"))

        def adds(value: float) -> Any:
            def train(network: torch.nn.Module, _round: int) -> None:
                with torch.no_grad():
                    for parameter in network.parameters():
                        parameter += value

            return train

        weights = script.federated(plan, {"a": (30, adds(1.0)), "b": (10, adds(5.0))})
        _, before = initial_arrays(plan)
        assert all(np.allclose(weights[name] - before[name], 2 * 2.0, atol=1e-5) for name in before)


class TestMain:
    def test_without_cohorts_it_says_what_to_do_and_leaves_no_result(
        self, script: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        def no_cohort(*_: object) -> None:
            raise RecipeError("There is no cohort.", fix="Prepare it.")

        monkeypatch.setattr(script, "_do", no_cohort)
        assert script.main(["--folder", str(tmp_path), "--seeds", "0"]) == 2
        assert "Prepare it." in capsys.readouterr().err
        assert list(tmp_path.iterdir()) == []

    def test_what_is_there_is_not_done_again(
        self, script: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        monkeypatch.setattr(script, "_do", lambda *_: pytest.fail("it was done already"))
        script.write_json(
            tmp_path / "ham10000-plain-none-0.json", {**result("plain", None, 0, 0.9, a=0.8), "data": "x"}
        )
        chosen = ["--data", "ham10000", "--method", "plain", "--seeds", "0"]
        assert script.main([*chosen, "--folder", str(tmp_path)]) == 0
        assert "| plain | – | 1 | 0.900 |" in capsys.readouterr().out

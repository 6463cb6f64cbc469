"""The benchmark of what privacy costs works and compares like with like; its figures here mean nothing."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

SCRIPT = Path(__file__).resolve().parents[2] / "experiments" / "benchmarks" / "dp_cost.py"


@pytest.fixture(scope="module")
def dp_cost() -> ModuleType:
    spec = importlib.util.spec_from_file_location("dp_cost", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


class TestCompare:
    def test_ratios_are_of_medians_and_ways_that_failed_have_none(self, dp_cost: ModuleType) -> None:
        found = dp_cost.compare(
            {
                "plain": {"seconds": [1.0, 2.0, 9.0], "peak": 100},
                "ghost": {"seconds": [3.0, 3.0, 1.0], "peak": 120},
                "hooks": {"failed": "why"},
            }
        )
        assert found == {
            "plain": {"seconds": 2.0, "peak": 100, "time": 1.0, "memory": 1.0},
            "ghost": {"seconds": 3.0, "peak": 120, "time": 1.5, "memory": 1.2},
        }


@pytest.mark.slow
class TestScript:
    def test_it_measures_every_way_and_writes_both_table_and_json(self, tmp_path: Path) -> None:
        command = [sys.executable, str(SCRIPT), "--quick", "--only", "small_cnn-2d", "--only", "segresnet-3d"]
        done = subprocess.run(
            [*command, "--json", "new/cost.json"], cwd=tmp_path, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr
        found = json.loads((tmp_path / "new" / "cost.json").read_text())["networks"]
        assert set(found) == {"small_cnn-2d", "segresnet-3d"}
        ours = {"plain", "loop", "functorch", "hooks", "ghost"}
        assert ours <= set(found["segresnet-3d"]["compared"])
        assert set(found["small_cnn-2d"]["compared"]) == ours | {"opacus hooks", "opacus ghost"}
        for entry in found["small_cnn-2d"]["compared"].values():
            assert entry["seconds"] > 0
            assert entry["peak"] > 0
        assert "opacus ghost" in done.stdout

"""The benchmark of overhead works and compares like with like; its figures here mean nothing."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

SCRIPT = Path(__file__).resolve().parents[2] / "experiments" / "benchmarks" / "overhead.py"


@pytest.fixture(scope="module")
def overhead() -> ModuleType:
    spec = importlib.util.spec_from_file_location("overhead", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["overhead"] = module  # dataclasses look themselves up there
    spec.loader.exec_module(module)
    return module


class TestCompare:
    def test_ratios_are_of_medians_and_extremes_of_pairs(self, overhead: ModuleType) -> None:
        ours = [overhead.Times(first_step=3.0, rounds=r, process=10.0) for r in (2.0, 4.0, 9.0)]
        bare = [overhead.Times(first_step=2.5, rounds=r, process=8.0) for r in (2.0, 2.0, 3.0)]
        found = overhead.compare(ours, bare)
        assert found["rounds"] == {
            "ours_s": 4.0, "bare_s": 2.0, "ratio": 2.0, "later_s": 2.0, "ratio_low": 1.0, "ratio_high": 3.0,
        }  # fmt: skip
        assert found["first_step"]["later_s"] == 0.5
        assert found["process"]["ratio"] == 1.25


@pytest.mark.slow
@pytest.mark.federated
class TestScript:
    def test_it_measures_and_writes_both_table_and_json(self, tmp_path: Path) -> None:
        command = [sys.executable, str(SCRIPT), "--quick", "--only", "start-up", "--only", "memory"]
        done = subprocess.run(
            [*command, "--json", "new/overhead.json"], cwd=tmp_path, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr
        found = json.loads((tmp_path / "new" / "overhead.json").read_text())["measurements"]
        assert set(found) == {"start-up", "memory"}
        start_up = found["start-up"]
        assert start_up["weights_apart"] < 1e-3  # the bare loop made the very same steps
        for times in (start_up["times"]["none"][0], start_up["times"]["bare"][0]):
            assert 0 < times["first_step"] < times["process"]
        assert "first step, 3 sites" in done.stdout
        mean = next(case for case in found["memory"]["cases"] if case["method"] == "weighted mean")
        assert 1.9 < mean["peak_in_models"] < 4  # the old and the new model at least
        assert "peak, weighted mean" in done.stdout

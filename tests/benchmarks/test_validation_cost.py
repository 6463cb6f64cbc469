"""The benchmark of a validation's cost works from end to end; its figures here mean nothing."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).resolve().parents[2] / "experiments" / "benchmarks" / "validation_cost.py"


@pytest.mark.slow
class TestScript:
    def test_it_measures_every_part_and_writes_both_tables_and_json(self, tmp_path: Path) -> None:
        command = [sys.executable, str(SCRIPT), "--quick", "--json", "new/cost.json"]
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        found = json.loads((tmp_path / "new" / "cost.json").read_text())
        assert {row["task"] for row in found["report"]} == {"classification", "segmentation"}
        for row in found["report"]:
            assert row["whole"]["cpu_s"] > row["stages"]["analyse"]["cpu_s"] > 0
            assert row["bytes"]["page"] > 1000
        assert {(row["task"], row["format"]) for row in found["site"]} == {
            ("classification", "onnx"),
            ("classification", "network"),
            ("segmentation", "network"),
        }
        for row in found["site"]:
            assert (
                row["stages"]["the whole answer"]["wall_s"]
                >= row["stages"]["… inference, in the locked process"]["wall_s"]
            )
            assert 0 < row["bytes"]["leaves"] <= row["bytes"]["as_sent"]
            assert row["locked_mb"] > 0
        assert found["file"]["bytes"] == 10**6
        assert "A report" in done.stdout

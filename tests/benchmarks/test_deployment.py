"""The benchmark of a deployed federation: its arithmetic, and that it works; its figures here mean nothing."""

from __future__ import annotations

import importlib
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

FOLDER = Path(__file__).resolve().parents[2] / "experiments" / "benchmarks"


@pytest.fixture(scope="module")
def deployment() -> Iterator[ModuleType]:
    sys.path.insert(0, str(FOLDER))
    yield importlib.import_module("deployment")
    sys.path.remove(str(FOLDER))


def round_of(number: int, *seconds: float, status: str = "took_part") -> dict[str, Any]:
    return {"round": number, "participation": [{"seconds": s, "status": status} for s in seconds]}


class TestOverheads:
    def test_the_slowest_sites_own_seconds_are_taken_away(self, deployment: ModuleType) -> None:
        starts = {1: 0.0, 2: 5.0, 3: 8.0, 4: 12.0}
        records = [round_of(1, 1.0, 2.0), round_of(2, 0.5, 1.0), round_of(3, 3.0, 1.0), round_of(4, 1.0)]
        assert deployment.overheads(starts, records, left_out=1) == [2.0, 1.0]

    def test_a_site_that_did_not_answer_is_not_the_slowest(self, deployment: ModuleType) -> None:
        record = round_of(1, 1.0)
        record["participation"] += round_of(1, 9.0, status="deadline")["participation"]
        assert deployment.overheads({1: 0.0, 2: 10.0}, [record], left_out=0) == [9.0]


class TestShares:
    def test_calls_are_added_up_by_round_and_the_first_rounds_do_not_count(self, deployment: ModuleType) -> None:
        starts = {1: 0.0, 2: 10.0, 3: 20.0, 4: 30.0}
        events = [
            {"step": "push", "began": b, "ended": b + s, "cpu": 0.5} for b, s in ((1, 9), (11, 1), (12, 3), (21, 2))
        ]
        found = deployment.shares(events, starts, left_out=1)
        assert found == {"push": {"call_s": 2.0, "round_s": 3.0, "cpu_s": 0.75}}

    def test_a_step_that_only_the_first_rounds_had_is_left_out(self, deployment: ModuleType) -> None:
        events = [{"step": "push", "began": 1.0, "ended": 2.0, "cpu": 0.0}]
        assert deployment.shares(events, {1: 0.0, 2: 5.0, 3: 9.0}, left_out=1) == {}


class TestSteps:
    def test_every_timed_function_is_still_there(self, deployment: ModuleType) -> None:
        steps = importlib.import_module("deployment_process").STEPS
        for place in (place for steps_of in steps.values() for place in steps_of.values()):
            module, _, name = place.partition(":")
            thing: Any = importlib.import_module(module)
            for part in name.split("."):
                thing = getattr(thing, part)
            assert callable(thing), place


@pytest.mark.slow
@pytest.mark.federated
class TestScript:
    def test_it_measures_and_says_where_a_rounds_time_goes(self, tmp_path: Path) -> None:
        command = [sys.executable, str(FOLDER / "deployment.py"), "--quick", "--profile", "--only", "small"]
        done = subprocess.run(
            [*command, "--folder", str(tmp_path / "work"), "--json", str(tmp_path / "new" / "found.json")],
            capture_output=True,
            text=True,
            check=False,
            timeout=400,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        found = json.loads((tmp_path / "new" / "found.json").read_text())["small"]
        assert found["rounds"] == 1
        assert found["overhead_s"]["median"] > 0
        assert found["not_timed"] == []
        assert set(found["memory_mib"]) >= {"superlink", "proxy", "supervisor", "train", "border", "worker"}
        assert {"coordinator: push", "site: fetch", "site: push", "coordinator: fetch"} <= set(found["steps"])
        assert "overhead a round" in done.stdout

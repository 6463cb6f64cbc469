"""The kill suite of a deployed federation: what it draws, how it judges, and that it goes on where it ended."""

from __future__ import annotations

import importlib
import json
import os
import random
import resource
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

FOLDER = Path(__file__).resolve().parents[2] / "experiments" / "benchmarks"
SITES = ["s0", "s1", "s2"]


@pytest.fixture(scope="module")
def faults() -> Iterator[ModuleType]:
    sys.path.insert(0, str(FOLDER))
    yield importlib.import_module("federation_faults")
    sys.path.remove(str(FOLDER))


@pytest.fixture(scope="module")
def suite(faults: ModuleType) -> ModuleType:
    return importlib.import_module("kill_federation")


def record(**changes: Any) -> dict[str, Any]:
    values = {
        "seed": 0, "run": 0, "outcome": "same", "faults": ["kill train at 0.50"], "done": [{"fault": "kill train"}],
        "silent_s": 10.0, "seconds": 30.0, "undisturbed_s": 20.0, "undisturbed_silent_s": 8.0,
    }  # fmt: skip
    return {**values, **changes}


class TestDraw:
    def test_the_same_seed_draws_the_same_faults(self, faults: ModuleType) -> None:
        first = [faults.draw(random.Random(f"0/{n}"), SITES, tracking=True) for n in range(20)]
        again = [faults.draw(random.Random(f"0/{n}"), SITES, tracking=True) for n in range(20)]
        assert first == again

    def test_there_are_one_to_three_in_order_and_all_kinds_come_up(self, faults: ModuleType) -> None:
        drawn = [faults.draw(random.Random(n), SITES, tracking=True) for n in range(300)]
        assert {len(one) for one in drawn} == {1, 2, 3}
        assert all(list(one) == sorted(one, key=lambda fault: fault.at) for one in drawn)
        every = [fault for one in drawn for fault in one]
        assert {fault.what for fault in every} == {"kill", "freeze", "disk_full", "lock"}
        assert {fault.whom.partition(":")[0] for fault in every} == {
            "client", "worker", "worker_server", "superlink", "proxy", "train", "supervisor", "tracking",
        }  # fmt: skip
        assert all(0 < fault.at <= 1 for fault in every)
        assert all((fault.seconds == 0) == (fault.what == "kill") for fault in every)
        assert {f.whom.partition(":")[2] for f in every if f.whom.startswith("client")} == set(SITES)

    def test_no_database_is_locked_where_none_is_used(self, faults: ModuleType) -> None:
        drawn = [faults.draw(random.Random(n), SITES, tracking=False) for n in range(100)]
        assert all(fault.what != "lock" for one in drawn for fault in one)


@pytest.fixture
def sleeper() -> Iterator[subprocess.Popen[str]]:
    """A process that appends to a file whenever it is told a name, and says whether it could."""
    program = (
        "import sys\n"
        "for line in sys.stdin:\n"
        "    try:\n"
        "        with open(line.strip(), 'ab') as file: file.write(b'x' * 5000)\n"
        "        print('written', flush=True)\n"
        "    except OSError as problem:\n"
        "        print(problem.errno, flush=True)\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    yield process
    process.kill()
    process.communicate()


def state_of(pid: int) -> str:
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]


@pytest.mark.integration
class TestFaults:
    def doing(self, faults: ModuleType, pid: int, tmp_path: Path, what: str, whom: str, seconds: float) -> Any:
        rehearsal = SimpleNamespace(federation=SimpleNamespace(folder=tmp_path), clients={}, servers=None)
        ongoing = faults.Faults(rehearsal, tmp_path / "mlflow.db", lambda: pid)
        ongoing.begin((faults.Fault(0.0, what, whom, seconds),), 1.0)
        return ongoing

    def test_a_frozen_process_goes_on_afterwards_and_its_time_is_noted(
        self, faults: ModuleType, sleeper: subprocess.Popen[str], tmp_path: Path
    ) -> None:
        ongoing = self.doing(faults, sleeper.pid, tmp_path, "freeze", "train", 0.5)
        time.sleep(0.25)
        assert state_of(sleeper.pid) == "T"
        ongoing.join()
        assert ongoing.over
        assert state_of(sleeper.pid) != "T"
        ((begin, end),) = ongoing.frozen_train
        assert 0.4 < end - begin < 1.5

    def test_on_a_full_disk_no_file_grows_until_there_is_room_again(
        self, faults: ModuleType, sleeper: subprocess.Popen[str], tmp_path: Path
    ) -> None:
        assert sleeper.stdin is not None
        assert sleeper.stdout is not None
        before = resource.prlimit(sleeper.pid, resource.RLIMIT_FSIZE)
        ongoing = self.doing(faults, sleeper.pid, tmp_path, "disk_full", "train", 0.8)
        time.sleep(0.2)
        answers = []
        for pause in (0.0, 1.0):
            time.sleep(pause)
            sleeper.stdin.write(f"{tmp_path / 'file'}\n")
            sleeper.stdin.flush()
            answers.append(sleeper.stdout.readline().strip())
        ongoing.join()
        assert answers == ["27", "written"]  # EFBIG
        assert resource.prlimit(sleeper.pid, resource.RLIMIT_FSIZE) == before

    def test_a_killed_process_is_dead(self, faults: ModuleType, sleeper: subprocess.Popen[str], tmp_path: Path) -> None:
        self.doing(faults, sleeper.pid, tmp_path, "kill", "train", 0.0).join()
        assert sleeper.wait(5) == -9

    def test_a_locked_database_takes_no_line_of_others(self, faults: ModuleType, tmp_path: Path) -> None:
        with sqlite3.connect(tmp_path / "mlflow.db") as database:
            database.execute("create table runs (name text)")
        ongoing = self.doing(faults, os.getpid(), tmp_path, "lock", "tracking", 0.5)
        time.sleep(0.25)
        other = sqlite3.connect(tmp_path / "mlflow.db", timeout=0)
        with pytest.raises(sqlite3.OperationalError, match="locked"):
            other.execute("insert into runs values ('mine')")
        ongoing.join()
        other.execute("insert into runs values ('mine')")
        other.close()

    def test_what_was_cancelled_does_not_happen(
        self, faults: ModuleType, sleeper: subprocess.Popen[str], tmp_path: Path
    ) -> None:
        rehearsal = SimpleNamespace(federation=SimpleNamespace(folder=tmp_path), clients={}, servers=None)
        ongoing = faults.Faults(rehearsal, tmp_path / "mlflow.db", lambda: sleeper.pid)
        ongoing.begin((faults.Fault(1.0, "kill", "train"),), 60.0)
        ongoing.cancel()
        ongoing.join()
        assert sleeper.poll() is None
        assert ongoing.done == []


class TestLongestSilence:
    def test_it_is_the_longest_gap(self, suite: ModuleType) -> None:
        assert suite.longest_silence([1.0, 2.0, 7.0, 8.0]) == 5.0

    def test_time_in_which_the_speaker_was_frozen_does_not_count(self, suite: ModuleType) -> None:
        assert suite.longest_silence([0.0, 10.0, 13.0], [(2.0, 9.0)]) == 3.0

    def test_one_moment_is_no_silence(self, suite: ModuleType) -> None:
        assert suite.longest_silence([1.0]) == 0.0


class TestOutcome:
    def test_the_same_weights_without_a_word(self, suite: ModuleType) -> None:
        assert suite.outcome("abc", "abc", [], 0) == "same"

    def test_the_same_weights_after_an_end_with_a_reason(self, suite: ModuleType) -> None:
        assert suite.outcome("abc", "abc", ["EFL301: below quorum"], 0) == "resumable"

    @pytest.mark.parametrize(("weights", "unexplained"), [("abd", 0), (None, 0), ("abc", 1)])
    def test_other_weights_none_or_an_end_without_a_reason(
        self, suite: ModuleType, weights: str | None, unexplained: int
    ) -> None:
        assert suite.outcome(weights, "abc", [], unexplained) == "failed"


class TestSummary:
    def test_shares_silence_and_what_failed(self, suite: ModuleType) -> None:
        told = suite.summary(
            [
                record(),
                record(run=1, silent_s=44.0, outcome="resumable"),
                record(run=2, seconds=90.0, outcome="failed", done=[{"fault": "kill proxy at 0.30"}]),
            ]
        )
        assert "3 runs, 3 faults: same 1 (33 %), resumable 1 (33 %), failed 1 (33 %)" in told
        assert "longest silence of train: 44 s (median of the runs 10 s; undisturbed 8 s" in told
        assert "median 30 s, longest 90 s (undisturbed 20 s)" in told
        assert "FAILED run 2: kill proxy at 0.30" in told

    def test_no_runs(self, suite: ModuleType) -> None:
        assert suite.summary([]) == "no runs"


@pytest.mark.integration
class TestScript:
    def run(self, *words: str, timeout_s: float = 30.0) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, str(FOLDER / "kill_federation.py"), *words]
        return subprocess.run(command, capture_output=True, text=True, check=False, timeout=timeout_s)

    def test_results_of_this_seed_are_reported_and_half_written_lines_skipped(self, tmp_path: Path) -> None:
        results = tmp_path / "results.jsonl"
        lines = [record(), record(run=1), record(seed=5, run=2, outcome="failed")]
        results.write_text("".join(json.dumps(line) + "\n" for line in lines) + '{"seed": 0, "ru')
        done = self.run("--report", "--results", str(results))
        assert done.returncode == 0, done.stderr
        assert "2 runs, 2 faults: same 2 (100 %)" in done.stdout

    def test_a_failed_run_makes_it_fail(self, tmp_path: Path) -> None:
        results = tmp_path / "results.jsonl"
        results.write_text(json.dumps(record(outcome="failed")) + "\n")
        assert self.run("--report", "--results", str(results)).returncode == 1

    def test_when_all_runs_are_there_nothing_is_started(self, tmp_path: Path) -> None:
        results = tmp_path / "results.jsonl"
        results.write_text(json.dumps(record()) + "\n")
        done = self.run("--runs", "1", "--results", str(results), timeout_s=20.0)
        assert done.returncode == 0
        assert "1 runs" in done.stdout

    @pytest.mark.slow
    @pytest.mark.federated
    def test_a_disturbed_run_ends_with_the_weights_of_the_undisturbed_one(self, tmp_path: Path) -> None:
        results = tmp_path / "results.jsonl"
        done = self.run("--only", "15", "--results", str(results), "--folder", str(tmp_path / "work"), timeout_s=600.0)
        assert done.returncode == 0, done.stdout + done.stderr
        (line,) = results.read_text().splitlines()
        found = json.loads(line)
        assert found["run"] == 15
        assert found["outcome"] in ("same", "resumable")
        assert found["done"]
        assert len(found["weights_sha256"]) == 64

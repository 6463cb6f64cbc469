"""Tracking in its own process: it never holds up or ends a run, and goes when the run goes."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import sqlite3
import subprocess
import sys
import time
from pathlib import Path

import pytest

from eucaim_fl.config import ExperimentConfig, TrackingConfig
from eucaim_fl.plan import make_plan
from eucaim_fl.records import Participation, RoundRecord
from eucaim_fl.tracking.address import tracking_uri
from eucaim_fl.tracking.mlflow_tracker import replay
from eucaim_fl.tracking.sidecar import Event, Retries, Sidecar

pytestmark = pytest.mark.federated
CONTEXT = multiprocessing.get_context("forkserver")
NOWHERE = TrackingConfig(uri="nosuchscheme://x")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    config = ExperimentConfig.model_validate(
        {
            "name": "demo",
            "sites": ("a",),
            "task": {"name": "segmentation", "labels": ("lesion",)},
            "model": {"name": "unet"},
            "training": {"local_steps": 1},
        }
    )
    folder = tmp_path / "runs" / "run-1"
    folder.mkdir(parents=True)
    (folder / "plan.json").write_text(make_plan(config, ("a",)).canonical_json())
    return folder


def complete(folder: Path, number: int) -> None:
    record = RoundRecord(number, "a", "b", (Participation("a", "took_part"),), {}, {}, {"a": 0.5}, ("a",), 1.0)
    place = folder / "journal" / f"round-{number:04d}"
    place.mkdir(parents=True)
    (place / "record.json").write_text(json.dumps(record.to_json()))


def losses(folder: Path, run_id: str | None) -> list[tuple[int, float]]:
    """Straight from the database, so that this process needs no MLflow."""
    with sqlite3.connect(folder.parent / "mlflow.db") as database:
        query = "SELECT step, value FROM metrics WHERE run_uuid = ? AND key = 'train_loss/site/a' ORDER BY step"
        return database.execute(query, (run_id,)).fetchall()


def gone(pid: int, within_s: float = 10.0) -> bool:
    end = time.monotonic() + within_s
    while time.monotonic() < end:
        try:
            if Path(f"/proc/{pid}/stat").read_text().split()[2] == "Z":
                return True
        except FileNotFoundError:
            return True
        time.sleep(0.05)
    return False


class TestSidecar:
    @pytest.mark.long
    def test_rounds_are_logged_while_the_run_goes_on_and_the_rest_at_its_end(self, folder: Path) -> None:
        sidecar = Sidecar(folder, TrackingConfig(), folder.parent, context=CONTEXT)
        sidecar.start()
        for number in (1, 2):
            complete(folder, number)
            sidecar.send(Event("running"))
        (folder / "result.json").write_text("{}")
        sidecar.send(Event("finished"))
        outcome = sidecar.close(timeout_s=120)
        assert (outcome.ok, outcome.message) == (True, "")
        assert losses(folder, outcome.run_id) == [(1, 0.5), (2, 0.5)]
        assert str(folder.parent / "mlflow.db") in outcome.ui_command

    @pytest.mark.long
    def test_a_locked_database_costs_nothing_but_the_tracking_and_can_be_made_up_for(self, folder: Path) -> None:
        replay(folder)
        complete(folder, 1)
        (folder / "result.json").write_text("{}")
        database = sqlite3.connect(tracking_uri(TrackingConfig(), folder.parent).removeprefix("sqlite:///"))
        database.execute("BEGIN EXCLUSIVE")
        sidecar = Sidecar(folder, TrackingConfig(), folder.parent, context=CONTEXT, retries=Retries(2, 0.05))
        sidecar.start()
        sidecar.send(Event("finished"))
        outcome = sidecar.close(timeout_s=60)
        database.rollback()
        database.close()
        assert not outcome.ok
        assert "database is locked" in outcome.message
        assert "can be logged again" in outcome.message
        assert losses(folder, replay(folder)) == [(1, 0.5)]

    def test_an_address_that_does_not_work_is_reported_with_its_reason(self, folder: Path) -> None:
        sidecar = Sidecar(folder, NOWHERE, folder.parent, context=CONTEXT, retries=Retries(2, 0.01))
        sidecar.start()
        outcome = sidecar.close(timeout_s=60)
        assert not outcome.ok
        assert "see tracking.log in the run folder" in outcome.message
        assert "nosuchscheme" in (folder / "tracking.log").read_text()

    def test_a_folder_that_is_no_run_is_reported(self, tmp_path: Path) -> None:
        sidecar = Sidecar(tmp_path, TrackingConfig(), tmp_path, context=CONTEXT, retries=Retries(1, 0.01))
        sidecar.start()
        outcome = sidecar.close(timeout_s=60)
        assert not outcome.ok
        assert "holds no readable plan" in outcome.message

    def test_one_that_hangs_is_ended_after_the_time_limit(self, folder: Path) -> None:
        sidecar = Sidecar(folder, TrackingConfig(), folder.parent, context=CONTEXT)
        sidecar.start()
        (child,) = multiprocessing.active_children()
        assert child.pid is not None
        os.kill(child.pid, signal.SIGSTOP)
        began = time.monotonic()
        outcome = sidecar.close(timeout_s=0.2)
        assert time.monotonic() - began < 5
        assert not outcome.ok
        assert "did not finish within 0.2 s" in outcome.message
        assert gone(child.pid)

    def test_one_that_was_killed_is_reported_and_telling_it_news_does_no_harm(self, folder: Path) -> None:
        sidecar = Sidecar(folder, TrackingConfig(), folder.parent, context=CONTEXT)
        sidecar.start()
        (child,) = multiprocessing.active_children()
        child.kill()
        child.join()
        sidecar.send(Event("running"))
        outcome = sidecar.close(timeout_s=30)
        assert not outcome.ok
        assert "ended unexpectedly" in outcome.message

    def test_one_that_was_never_started_is_reported(self, folder: Path) -> None:
        sidecar = Sidecar(folder, TrackingConfig(), folder.parent, context=CONTEXT)
        sidecar.send(Event("running"))
        outcome = sidecar.close()
        assert (outcome.ok, outcome.run_id) == (False, None)
        assert "not started" in outcome.message

    def test_it_goes_when_the_runs_process_is_killed(self, folder: Path) -> None:
        script = f"""
import multiprocessing, os, signal
from pathlib import Path
from eucaim_fl.config import TrackingConfig
from eucaim_fl.tracking.sidecar import Sidecar
if __name__ == "__main__":
    folder = Path({str(folder)!r})
    sidecar = Sidecar(folder, TrackingConfig(), folder.parent, context=multiprocessing.get_context("forkserver"))
    sidecar.start()
    print(multiprocessing.active_children()[0].pid, flush=True)
    while not (folder / "tracking.log").exists():
        pass
    os.kill(os.getpid(), signal.SIGKILL)
"""
        place = folder.parent / "script.py"
        place.write_text(script)
        done = subprocess.run([sys.executable, place], capture_output=True, text=True, timeout=60)
        assert done.returncode == -signal.SIGKILL
        assert gone(int(done.stdout))

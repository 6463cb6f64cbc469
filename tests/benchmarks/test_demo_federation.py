"""The demo of a federation: what it tells, that it gives the weights of a run without servers, and leaves nothing."""

from __future__ import annotations

import importlib.util
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from eucaim_fl.cohorts.synthetic import write_demo
from eucaim_fl.errors import ServiceStateError
from eucaim_fl.federation.home import FEDERATIONS_VARIABLE

SCRIPT = Path(__file__).resolve().parents[2] / "experiments" / "demo_federation.py"


@pytest.fixture(scope="module")
def demo() -> ModuleType:
    spec = importlib.util.spec_from_file_location("demo_federation", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def line(**left: Any) -> dict[str, Any]:
    """A line of `site audit show --json` about something that left."""
    values = {"bytes": 10, "arrays": 0, "patients": None, "metrics": {}, "pictures": 0}
    return {"kind": "sent", "left": {**values, **left}}


class TestLeftSite:
    def test_messages_bytes_metrics_and_people_are_added_up(self, demo: ModuleType) -> None:
        told = demo.left_site(
            [
                {"kind": "decision", "left": None},
                line(bytes=1_000, arrays=38, patients=14, metrics={"validation": ["dice"]}),
                line(bytes=2_000, arrays=38, patients=13, metrics={"validation": ["hd95_mm"]}),
                line(bytes=5, patients=13, metrics={"test": ["dice"]}, pictures=2),
            ]
        )
        assert told[0] == "3 messages, 3,005 bytes in all"
        assert told[1].startswith("2 updates of 38 arrays")
        assert "metrics of test patients: dice" in told
        assert "metrics of validation patients: dice, hd95_mm" in told
        assert any(text.startswith("training patients behind it: 13 or 14") for text in told)
        assert any(text.startswith("2 example pictures") for text in told)

    def test_what_was_withheld_is_told(self, demo: ModuleType) -> None:
        withheld = line()
        withheld["kind"] = "withheld"
        assert demo.left_site([withheld])[-1] == "1 times only a coded reason"


class TestFolder:
    def test_a_folder_with_something_else_is_left_alone(self, demo: ModuleType, tmp_path: Path) -> None:
        (tmp_path / "thesis.txt").write_text("years of work")
        with pytest.raises(ServiceStateError, match="something else"):
            demo._fresh(tmp_path)
        assert (tmp_path / "thesis.txt").exists()

    def test_what_an_earlier_demo_left_is_removed(self, demo: ModuleType, tmp_path: Path) -> None:
        (tmp_path / "federations" / "hospitals").mkdir(parents=True)
        (tmp_path / "a.invite.json").write_text("{}")
        (tmp_path / ".lock").touch()
        demo._fresh(tmp_path)
        assert [path.name for path in tmp_path.iterdir()] == [".lock"]


class TestWithoutNginx:
    def test_it_says_how_to_install_it_and_ends_with_2(
        self,
        demo: ModuleType,
        monkeypatch: pytest.MonkeyPatch,
        tmp_path: Path,
        capsys: pytest.CaptureFixture[str],
    ) -> None:
        monkeypatch.setenv("PATH", str(tmp_path))
        monkeypatch.setattr("eucaim_fl.federation.proxy._PLACES", ())
        monkeypatch.setattr(sys, "argv", ["demo_federation.py", "--folder", str(tmp_path / "new")])
        assert demo.main() == 2
        assert "apt-get install nginx" in capsys.readouterr().err
        assert not (tmp_path / "new").exists()


def processes_of(folder: Path) -> list[str]:
    """Command lines of living processes that bear the demo's folder in their command line or environment."""
    mark = f"{FEDERATIONS_VARIABLE}={folder}".encode()
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            words, told = (entry / "cmdline").read_bytes(), (entry / "environ").read_bytes()
        except OSError:
            continue
        if words and (mark in told or b"nginx: " in words) and str(folder).encode() in words + told:
            found.append(words.replace(b"\0", b" ").decode())
    return found


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("data")
    write_demo(root / "demo", patients=24)
    return root


@pytest.fixture(scope="module")
def few(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Hospitals of too few patients to train, for a demo that never comes so far."""
    root = tmp_path_factory.mktemp("few")
    write_demo(root / "demo", patients=3)
    return root


def start(folder: Path, data: Path, *words: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, str(SCRIPT), "--folder", str(folder), *words],
        cwd=folder.parent,
        env={**os.environ, "EUCAIM_FL_DATA": str(data)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def read_until(process: subprocess.Popen[str], text: str) -> None:
    assert process.stdout is not None
    for printed in process.stdout:
        if text in printed:
            return
    pytest.fail(f"it ended without a line with {text!r}")


def ended(process: subprocess.Popen[str], number: signal.Signals, folder: Path) -> None:
    """Send a signal to a demo in the middle of its work: it ends, and leaves no process."""
    until = time.monotonic() + 20.0
    while len(processes_of(folder)) < 5 and time.monotonic() < until:
        time.sleep(0.05)  # what was started is seen a moment later
    assert len(processes_of(folder)) >= 5
    process.send_signal(number)
    told, _ = process.communicate(timeout=60)
    assert process.returncode == 130, told
    assert "no process is left" in told
    assert processes_of(folder) == []


@pytest.mark.federated
class TestScript:
    @pytest.mark.slow
    def test_it_trains_shows_what_left_and_gives_the_weights_of_a_run_without_servers(
        self, tmp_path: Path, data: Path
    ) -> None:
        folder = tmp_path / "demo"
        process = start(folder, data, "--rounds", "1", "--steps", "2")
        told, _ = process.communicate(timeout=300)
        assert process.returncode == 0, told
        assert "coordinator $ eucaim-fl federation init hospitals" in told
        assert told.count("is intact") == 3
        assert told.count("it agrees with 3 heads of the coordinator") == 3
        assert "1 updates of 38 arrays of weights" in told
        assert "the same to the bit" in told
        assert str(folder / "homes") not in told  # as a person would type it there
        assert processes_of(folder) == []

    @pytest.mark.slow
    def test_stopped_while_it_starts_it_leaves_no_process(self, tmp_path: Path, few: Path) -> None:
        folder = tmp_path / "demo"
        process = start(folder, few)
        read_until(process, "site start --home homes/c")
        ended(process, signal.SIGTERM, folder)

    @pytest.mark.slow
    def test_after_a_failure_it_leaves_no_process(self, tmp_path: Path, data: Path) -> None:
        folder = tmp_path / "demo"
        process = start(folder, data, "--rounds", "0")
        told, _ = process.communicate(timeout=200)
        assert process.returncode == 2, told
        assert "EFL" in told
        assert processes_of(folder) == []

    @pytest.mark.slow
    def test_one_that_was_killed_is_ended_by_the_next_which_ends_itself_on_ctrl_c(
        self, tmp_path: Path, data: Path
    ) -> None:
        folder = tmp_path / "demo"
        process = start(folder, data)
        read_until(process, "SuperLink: answers")
        process.kill()
        process.communicate(timeout=10)
        deadline = time.monotonic() + 5
        while len(processes_of(folder)) < 4 and time.monotonic() < deadline:
            time.sleep(0.1)
        assert len(processes_of(folder)) >= 4
        again = start(folder, data, "--rounds", "50")
        read_until(again, "Ending what an earlier demo left behind")
        read_until(again, "rounds over 3 sites")
        ended(again, signal.SIGINT, folder)

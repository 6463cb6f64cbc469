"""A client is known by the lock it holds, and nobody else is ever signalled."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from eucaim_fl.durable import exclusive
from eucaim_fl.errors import JournalError, ServiceStateError
from eucaim_fl.site.home import SiteHome
from eucaim_fl.site.running import client_pid, ever_started, is_running, stop_client

CLIENT = """
import fcntl, os, signal, sys, time
folder, ends = sys.argv[1:]
lock = open(folder + "/.lock", "a+b")
fcntl.flock(lock, fcntl.LOCK_EX)
signal.signal(signal.SIGTERM, (lambda *_: sys.exit(0)) if ends == "ends" else signal.SIG_IGN)
open(folder + "/pid", "w").write(f"{os.getpid()}\\n")
print("ready", flush=True)
time.sleep(60)
"""


@pytest.fixture
def home(tmp_path: Path) -> SiteHome:
    home = SiteHome(tmp_path)
    home.run_folder.mkdir(parents=True)
    return home


@pytest.fixture
def client(home: SiteHome) -> Iterator[Callable[[str], subprocess.Popen[str]]]:
    """Starts a process that holds the home's lock as a client does; it is ended with the test."""
    started: list[subprocess.Popen[str]] = []

    def start(ends: str) -> subprocess.Popen[str]:
        words = [sys.executable, "-S", "-c", CLIENT, str(home.run_folder), ends]
        process = subprocess.Popen(words, stdout=subprocess.PIPE, text=True)
        started.append(process)
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        return process

    yield start
    for process in started:
        process.kill()
        process.communicate()


class TestWhetherItEverRan:
    @pytest.fixture
    def fresh(self, tmp_path: Path) -> SiteHome:
        """A home as `site init` leaves it."""
        home = SiteHome(tmp_path / "home")
        home.site_key.parent.mkdir(parents=True)
        for path in (home.policy_file, home.federation_file, home.node_key, home.site_key):
            path.touch()
        cohort = "cohort: {layout: nifti_csv, folder: x}"
        home.site_file.write_text(f"name: a\n{cohort}\ncache: {{folder: {tmp_path / 'cache'}}}\n")
        return home

    def test_a_home_that_was_only_made(self, fresh: SiteHome) -> None:
        assert not ever_started(fresh)
        fresh.audit_folder.mkdir(parents=True)
        assert not ever_started(fresh), "a folder alone is no trace"

    @pytest.mark.parametrize("name", ["nonces.json", "plans/0.json", "worker.log", "status.json", "client.log"])
    def test_whatever_a_client_leaves_is_a_trace(self, fresh: SiteHome, name: str) -> None:
        path = fresh.folder / "state" / name
        path.parent.mkdir(parents=True)
        path.touch()
        assert ever_started(fresh)

    def test_so_is_a_ledger(self, fresh: SiteHome, tmp_path: Path) -> None:
        ledger = tmp_path / "cache.records" / "ledger"
        ledger.mkdir(parents=True)
        (ledger / "ledger.key").touch()
        assert ever_started(fresh)

    @pytest.mark.parametrize("name", ["site.yaml", "federation.json", "keys/site_key.pem"])
    def test_where_a_part_is_gone_nobody_can_say_that_it_never_ran(self, fresh: SiteHome, name: str) -> None:
        (fresh.folder / name).unlink()
        assert ever_started(fresh)
        with pytest.raises(ServiceStateError, match="not the home of a site"):
            fresh.require()
        if name == "site.yaml":
            with pytest.raises(ServiceStateError, match="not the home of a site"):
                fresh.require_site_file()
        else:
            assert fresh.require_site_file() is fresh


class TestWhetherItRuns:
    def test_a_home_where_nothing_ever_ran(self, tmp_path):
        home = SiteHome(tmp_path / "home")
        assert not is_running(home)
        assert client_pid(home) is None
        assert not home.folder.exists()

    def test_the_lock_says_so(self, home):
        (home.run_folder / "pid").write_text(f"{os.getpid()}\n")
        with exclusive(home.run_folder):
            assert is_running(home)
            assert client_pid(home) == os.getpid()
        assert not is_running(home)

    def test_a_number_that_a_killed_client_left_behind_is_nobodys(self, home):
        (home.run_folder / ".lock").touch()
        (home.run_folder / "pid").write_text(f"{os.getpid()}\n")  # this process has the number, but not the lock
        assert client_pid(home) is None

    @pytest.mark.parametrize("text", ["", "0", "1", "-5", "12 13", "word", "9" * 31])
    def test_a_file_that_names_no_process(self, home, text):
        (home.run_folder / "pid").write_text(text)
        with exclusive(home.run_folder):
            assert client_pid(home) is None

    def test_a_lock_that_cannot_be_asked(self, home):
        (home.run_folder / ".lock").mkdir()
        with pytest.raises(JournalError, match="can't be written"):
            is_running(home)


@pytest.mark.federated
class TestStopping:
    def test_a_client_that_ends_is_waited_for(self, home, client):
        process = client("ends")
        assert stop_client(home, 10) == process.pid
        assert process.wait(5) == 0

    def test_one_that_does_not_end_is_told(self, home, client):
        process = client("stays")
        with pytest.raises(ServiceStateError, match="has not yet"):
            stop_client(home, 0.2)
        assert process.poll() is None

    def test_a_client_that_does_not_run(self, home, tmp_path):
        with pytest.raises(ServiceStateError, match="No client runs"):
            stop_client(home, 1)
        with pytest.raises(ServiceStateError, match="No client runs"):
            stop_client(SiteHome(tmp_path / "nowhere"), 1)

    def test_a_process_that_does_not_hold_the_lock_is_never_hit(self, home, client):
        holder = client("ends")
        bystander = subprocess.Popen([sys.executable, "-S", "-c", "import time; time.sleep(60)"])
        try:
            (home.run_folder / "pid").write_text(f"{bystander.pid}\n")
            with pytest.raises(ServiceStateError, match="can't be asked to end"):
                stop_client(home, 0.1)
            time.sleep(0.1)
            assert bystander.poll() is None
            assert holder.poll() is None
        finally:
            bystander.kill()
            bystander.wait()

    def test_a_lock_that_cannot_be_asked(self, home):
        (home.run_folder / ".lock").mkdir()
        with pytest.raises(JournalError, match="can't be written"):
            stop_client(home, 0.1)

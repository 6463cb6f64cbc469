"""A whole federation on one machine, made and run by the commands that people type."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import yaml

from eucaim_fl.errors import ServiceError
from eucaim_fl.federation import rehearsal
from eucaim_fl.federation.rehearsal import POLICY, Rehearsal, free_ports
from eucaim_fl.site.policy import load_policy
from tests.federation.deployed import LOOSE, has_nginx, wait_for

pytestmark = pytest.mark.integration


@pytest.fixture
def rehearsed(tmp_path: Path, hospital: Any) -> Rehearsal:
    """One site; nothing is made yet."""
    return Rehearsal(tmp_path / "rehearsal", [hospital("b"), hospital("a")], LOOSE)


def instead(rehearsed: Rehearsal, code: str) -> None:
    """Let commands run a piece of Python instead."""
    rehearsed.folder.mkdir(exist_ok=True)
    rehearsed.command = (sys.executable, "-c", code)


class TestPorts:
    def test_they_differ_and_are_free(self):
        ports = free_ports(5)
        assert len(set(ports)) == 5
        for port in ports:
            with socket.socket() as probe:
                probe.bind(("127.0.0.1", port))


class TestPolicy:
    def test_it_is_one_that_sites_can_load(self, tmp_path):
        (tmp_path / "policy.yaml").write_text(yaml.safe_dump(dict(POLICY)))
        assert load_policy(tmp_path / "policy.yaml").policy.approval == "automatic"


class TestPlaces:
    def test_sites_are_called_as_in_their_files_and_come_in_their_order(self, rehearsed):
        assert rehearsed.sites == ["a", "b"]
        assert rehearsed.home("a").folder == rehearsed.folder / "homes" / "a"
        assert rehearsed.federation.folder == rehearsed.folder / "federations" / "rehearsal"
        assert rehearsed.log("a") == rehearsed.folder / "logs" / "a.log"

    def test_a_client_that_never_ran_has_said_nothing(self, rehearsed):
        assert rehearsed.status("a") == {}
        rehearsed.home("a").status_file.parent.mkdir(parents=True)
        rehearsed.home("a").status_file.write_text("{")
        assert rehearsed.status("a") == {}

    def test_a_sites_files_name_absolute_places(self, rehearsed):
        rehearsed.home("a").folder.mkdir(parents=True)
        rehearsed.write_files("a", POLICY)
        written = yaml.safe_load(rehearsed.home("a").site_file.read_text())
        assert Path(written["cohort"]["folder"]).is_dir()
        assert (written["policy"], written["name"]) == ("policy.yaml", "a")


class TestCommands:
    def test_one_that_fails_is_told_with_what_it_printed(self, rehearsed):
        instead(rehearsed, "import sys; sys.exit('the disk is full')")
        with pytest.raises(ServiceError, match="`train x=1` failed with exit code 1") as failed:
            rehearsed.run("train", "x=1")
        assert "the disk is full" in failed.value.local_detail
        assert rehearsed.run("train", check=False).returncode == 1

    def test_one_that_takes_too_long_is_ended(self, rehearsed):
        instead(rehearsed, "import time; time.sleep(60)")
        with pytest.raises(ServiceError, match=r"took more than 0\.5 s"):
            rehearsed.run("train", timeout_s=0.5)

    def test_a_failure_while_it_is_set_up_is_told(self, rehearsed):
        instead(rehearsed, "import sys; sys.exit(2)")
        with pytest.raises(ServiceError, match="`federation init` failed"):
            rehearsed.set_up()
        with pytest.raises(ServiceError, match="`federation init` failed"):
            rehearsed.make_federation()
        with pytest.raises(ServiceError, match="`federation invite` failed"):
            rehearsed.enrol("a")
        with pytest.raises(ServiceError, match="`train --json` failed"):
            rehearsed.train()

    def test_servers_that_end_or_never_answer_are_told(self, rehearsed):
        instead(rehearsed, "print('no port')")
        with pytest.raises(ServiceError, match="ended at once") as failed:
            rehearsed.start()
        assert "no port" in failed.value.local_detail
        instead(rehearsed, "import time; time.sleep(60)")
        with rehearsed, pytest.raises(ServiceError, match="did not start in time"):
            rehearsed.start_servers(timeout_s=0.5)

    def test_a_client_that_ends_or_never_connects_is_told(self, rehearsed):
        instead(rehearsed, "print('no line')")
        rehearsed.start_site("a")
        with pytest.raises(ServiceError, match="client of site a ended at once") as failed:
            rehearsed.wait_connected(["a"])
        assert "no line" in failed.value.local_detail
        instead(rehearsed, "import time; time.sleep(60)")
        with rehearsed:
            rehearsed.start_site("a")
            with pytest.raises(ServiceError, match="Not connected in time: a"):
                rehearsed.wait_connected(["a"], timeout_s=0.3)

    def test_what_the_last_client_said_does_not_count(self, rehearsed):
        instead(rehearsed, "import time; time.sleep(60)")
        status = rehearsed.home("a").status_file
        status.parent.mkdir(parents=True)
        status.write_text(json.dumps({"connected": True, "pid": 1}))
        with rehearsed:
            rehearsed.start_site("a")
            with pytest.raises(ServiceError, match="Not connected in time"):
                rehearsed.wait_connected(["a"], timeout_s=0.3)


class TestTheEnd:
    def test_everything_that_was_started_is_gone_with_its_children(self, rehearsed):
        child = "import subprocess, sys; subprocess.run([sys.executable, '-c', 'import time; time.sleep(99)'])"
        instead(rehearsed, child)
        rehearsed.start_site("a")
        wait_for(lambda: len(rehearsed.processes()) == 2, 10)
        rehearsed.stop()
        assert len(rehearsed.processes()) == 1
        rehearsed.end_all(patience_s=0.2)
        wait_for(lambda: not rehearsed.processes(), 10)

    def test_what_does_not_end_when_it_is_asked_is_killed(self, rehearsed, monkeypatch):
        monkeypatch.setattr(rehearsal, "_PATIENCE_S", 0.5)
        instead(rehearsed, "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); time.sleep(99)")
        with rehearsed:
            rehearsed.start_site("a")
            wait_for(rehearsed.processes, 10)
            time.sleep(0.5)
        assert rehearsed.processes() == {}

    def test_a_process_of_somebody_else_is_not_counted(self, rehearsed):
        other = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"], env=os.environ)
        try:
            assert other.pid not in rehearsed.processes()
        finally:
            other.kill()
            other.wait()


@pytest.mark.federated
@pytest.mark.skipif(not has_nginx() and "EUCAIM_FL_REQUIRE_NGINX" not in os.environ, reason="nginx is not installed")
class TestTheCommandsThatPeopleType:
    def test_one_site_is_invited_admitted_connected_and_everything_ends(self, tmp_path, hospital):
        with Rehearsal(tmp_path / "rehearsal", [hospital("a")], LOOSE) as rehearsed:
            rehearsed.set_up()
            assert list(rehearsed.federation.sites()) == ["a"]
            rehearsed.start()
            assert rehearsed.status("a")["state"] == "connected"
            rehearsed.run("site", "status", "--healthy", "--home", str(rehearsed.home("a").folder))
            started = rehearsed.processes()
            assert sum("nginx" in words for words in started.values()) >= 2
        assert rehearsed.processes() == {}
        assert rehearsed.status("a")["state"] == "stopped"

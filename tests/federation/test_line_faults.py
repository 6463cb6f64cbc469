"""Processes end, freeze and come back in the middle of a run; the result is that of a run that nothing disturbs."""

from __future__ import annotations

import json
import os
import shutil
import signal
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from eucaim_fl.errors import QuorumError
from eucaim_fl.federation.certificates import issue_server
from eucaim_fl.federation.supervisor import reload
from tests.federation.deployed import Deployed, deployed, wait_for

__all__ = ["deployed"]
pytestmark = pytest.mark.federated
SLOW: dict[str, Any] = {"rounds": 3, "training": {"local_steps": 200}}


@pytest.fixture
def well(deployed: Deployed) -> Iterator[Deployed]:
    """Whatever a test did, both sites are connected afterwards."""
    yield deployed
    for site in deployed.sites:
        if deployed.clients[site].poll() is not None:
            deployed.start_site(site)
    deployed.wait_connected(deployed.sites, 60)


def took_part(result: dict[str, Any]) -> list[set[str]]:
    """Who took part, for each round."""
    return [
        {entry["site"] for entry in one["sites"] if entry["status"] == "took_part"} for one in result["participation"]
    ]


def problem(deployed: Deployed, site: str) -> str:
    """Code and text of a client's last problem."""
    told = deployed.status(site).get("last_problem") or {}
    return f"{told.get('code')} {told.get('text')}"


@pytest.mark.long
class TestOneRunThroughAllOfThem:
    def test_killed_stopped_and_frozen_clients_and_killed_servers_change_no_bit(self, well):
        undisturbed = well.expected(**SLOW)
        run = well.begin(**SLOW)
        wait_for(lambda: well.working("a", 1))
        well.kill("a")
        began = time.monotonic()
        well.clients["b"].terminate()
        well.clients["b"].wait(20)
        assert time.monotonic() - began < 20
        assert well.status("b")["state"] == "stopped"
        for site in well.sites:
            well.start_site(site)

        wait_for(lambda: well.working("b", 2), 120)
        os.kill(well.clients["b"].pid, signal.SIGSTOP)
        os.kill(well.server("superlink"), signal.SIGKILL)
        time.sleep(5)
        os.kill(well.clients["b"].pid, signal.SIGCONT)

        wait_for(lambda: well.working("a", 3) or well.working("b", 3), 120)
        os.kill(well.server("proxy"), signal.SIGKILL)

        result = run.result(180)
        assert result["weights_sha256"] == undisturbed
        assert took_part(result) == [{"a", "b"}] * 4
        assert any("does not answer" in line for line in run.lines)


@pytest.mark.long
class TestCertificate:
    def test_one_that_has_expired_is_told_by_the_sites_status_and_a_new_one_ends_it(self, well):
        home = well.federation
        good = home.server_file.read_bytes()
        authority = (home.ca_key.read_bytes(), home.ca_file.read_bytes())
        old = issue_server(authority, ("localhost",), datetime.now(UTC) - timedelta(minutes=1), days=0)
        try:
            home.server_file.write_bytes(b"".join(old))
            reload(home)
            wait_for(lambda: "certificate has expired" in problem(well, "a"), 60)
            assert problem(well, "a").startswith("EFL305")
            assert not well.status("a")["connected"]
            said = well.run("site", "status", "--home", str(well.home("a").folder)).stdout
            assert "certificate has expired" in said
        finally:
            home.server_file.write_bytes(good)
            reload(home)
        well.wait_connected(["a", "b"], 60)


@pytest.mark.long
class TestTwoClientsWithOneKey:
    @pytest.fixture
    def copy(self, well: Deployed) -> Iterator[str]:
        """A copy of the home of `a`, as a second client would have it."""
        shutil.copytree(well.home("a").folder, well.home("copy").folder, ignore=shutil.ignore_patterns("running"))
        yield "copy"  # its cache is that of `a`, which is harmless: the cohort is the same
        client = well.clients.pop("copy", None)
        if client is not None:
            client.terminate()
            client.wait(20)
        shutil.rmtree(well.home("copy").folder)

    def test_the_second_is_kept_out_and_says_why_and_the_first_goes_on(self, well, copy):
        well.start_site(copy)
        wait_for(lambda: "connected already" in problem(well, copy))
        assert "a copy of this home" in problem(well, copy)
        assert well.begin().result()["weights_sha256"] == well.expected()
        assert well.status(copy)["state"] == "disconnected"

    def test_one_that_gets_in_can_spoil_a_round_but_no_result(self, well, copy):
        status = well.home(copy).status_file
        told = json.loads(status.read_text())
        status.write_text(json.dumps(told | {"pid": 2**22 + 1, "updated": datetime.now(UTC).isoformat()}))
        well.start_site(copy)
        well.wait_connected([copy])
        stopped = ""
        try:
            result = well.begin(federation={"quorum_wait_s": 10.0}).result()
            assert result["weights_sha256"] == well.expected()
        except QuorumError as problem:
            stopped = str(problem)
        assert not stopped or "EFL306" in stopped  # it can be resumed once there is one client again


class TestRemoved:
    def test_a_site_that_is_removed_says_so_and_is_not_let_in_again(self, well):
        home = well.let_in("gone")
        well.start_site("gone")
        try:
            well.wait_connected(["gone"])
            assert well.status("gone")["admitted"]
            well.shut_out("gone")
            wait_for(lambda: well.status("gone")["state"] == "not_admitted", 30)
            assert "EFL307" in problem(well, "gone")
            assert "removed" in problem(well, "gone")
            assert not well.status("gone")["admitted"]
            assert well.clients["gone"].poll() is None
        finally:
            client = well.clients.pop("gone")
            client.terminate()
            client.wait(20)
        assert not (home.run_folder / "pid").exists()

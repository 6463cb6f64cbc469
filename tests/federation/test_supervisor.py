"""A federation's servers in one command: started, watched, started again, stopped. With real nginx and SuperLink."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import ssl
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import httpx
import pytest

from eucaim_fl.errors import EnrolmentError, ServiceError, ServiceStateError
from eucaim_fl.federation import supervisor
from eucaim_fl.federation.admission import admit
from eucaim_fl.federation.flower_private import (
    ActivateNodeRequest,
    ControlHttpClient,
    DeactivateNodeRequest,
    FleetHttpClient,
    NodeAuthHttpInterceptor,
    RegisterNodeRequest,
    RuntimeVersionHttpInterceptor,
    StartRunRequest,
    UnregisterNodeRequest,
)
from eucaim_fl.federation.home import AdmittedSite, FederationHome, Settings, create, held, write_server_certificate
from eucaim_fl.federation.nodes import node_ids
from eucaim_fl.federation.overview import overview
from eucaim_fl.federation.servers import Program, proxy_answers, superlink_answers
from eucaim_fl.federation.supervisor import Running, pause, reload, running, start_detached, stop, supervise
from eucaim_fl.signing import PrivateKey, load_node_key, new_node_key

NOW = datetime.now(UTC)
NGINX = shutil.which("nginx", path=f"{os.environ.get('PATH', '')}:/usr/sbin:/usr/local/sbin")
NEEDED = bool(os.environ.get("CI") or os.environ.get("EUCAIM_FL_REQUIRE_NGINX"))
with_nginx = pytest.mark.skipif(NGINX is None and not NEEDED, reason="nginx is not installed")


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def new_home(folder: Path) -> FederationHome:
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("EUCAIM_FL_FEDERATIONS", str(folder))
        port = free_port()
        listen = f"127.0.0.1:{port}"
        made = Settings(
            name="liver", host="localhost", port=port, listen=listen, superlink_port=free_port(), made_at=NOW
        )
        return create(made, NOW)


@pytest.fixture
def home(tmp_path) -> FederationHome:
    return new_home(tmp_path)


def eventually(true: Callable[[], object], within_s: float = 40.0) -> None:
    until = time.monotonic() + within_s
    while not true():
        assert time.monotonic() < until
        time.sleep(0.1)


def pid(home: FederationHome, name: str) -> int:
    return int((home.state_folder / f"{name}.pid").read_text())


def log(home: FederationHome) -> str:
    return (home.state_folder / "federation.log").read_text()


class TestPause:
    def test_it_doubles_from_one_second_to_half_a_minute(self):
        assert [pause(n) for n in range(1, 8)] == [1, 2, 4, 8, 16, 30, 30]


class TestRefusals:
    def test_a_second_one_is_refused(self, home):
        with held(home.state_folder, "first"):
            with pytest.raises(ServiceStateError, match="already runs"):
                supervise(home, print)
            with pytest.raises(ServiceStateError, match="already runs"):
                start_detached(home)

    def test_without_nginx_nothing_starts(self, home, monkeypatch):
        def none() -> Path:
            raise ServiceStateError("nginx is not installed", fix="Install it.")

        monkeypatch.setattr(supervisor, "find_nginx", none)
        with pytest.raises(ServiceStateError, match="nginx is not installed"):
            supervise(home, print)
        assert running(home) is None

    def test_what_nginx_refuses_starts_nothing(self, home, monkeypatch):
        monkeypatch.setattr(supervisor, "find_nginx", lambda: Path("/bin/false"))
        with pytest.raises(ServiceError, match="nginx refuses"):
            supervise(home, print)

    def test_what_does_not_run_can_not_be_stopped(self, home):
        with pytest.raises(ServiceStateError, match="does not run"):
            stop(home)
        assert not reload(home)

    def test_what_does_not_stop_is_told(self, home, monkeypatch):
        monkeypatch.setattr(supervisor, "running", lambda _: Running(pid=0, since=""))
        with pytest.raises(ServiceError, match="does not stop"):
            stop(home, patience_s=0.0)

    def test_a_record_of_one_that_was_killed_is_not_believed(self, home):
        (home.state_folder / "supervisor.json").write_text(f'{{"pid": {os.getpid()}, "since": "x"}}')
        assert running(home) is None


@pytest.mark.federated
class TestBackground:
    def test_one_that_can_not_start_says_why(self, home):
        with (
            socket.create_server(("127.0.0.1", home.settings.superlink_port)),
            pytest.raises(ServiceError, match="did not start") as told,
        ):
            start_detached(home)
        assert "in use" in told.value.local_detail or "nginx" in told.value.local_detail

    @with_nginx
    def test_one_that_takes_too_long_goes_on(self, home):
        with pytest.raises(ServiceError, match="does not answer after"):
            start_detached(home, patience_s=0.0)
        eventually(lambda: running(home))
        stop(home)


@pytest.fixture(scope="module")
def up(tmp_path_factory: pytest.TempPathFactory) -> Iterator[FederationHome]:
    home = new_home(tmp_path_factory.mktemp("up"))
    site = AdmittedSite(
        site="a",
        node_key=new_node_key(home.folder.parent / "a.pem"),
        site_key=PrivateKey.create().public,
        admitted_at=NOW,
    )
    admit(home, site)
    start_detached(home)
    try:
        yield home
    finally:
        if running(home) is not None:
            stop(home)


@pytest.mark.federated
@with_nginx
class TestRunning:
    def test_both_answer_and_the_admitted_are_let_in(self, up):
        found = overview(up, NOW)
        assert (found.good, found.running, found.superlink_answers, found.proxy_answers) == (True,) * 4
        eventually(lambda: "a" in node_ids(up))
        assert [(s.site, s.connected, s.state) for s in overview(up, NOW).sites] == [("a", False, "registered")]
        assert "the SuperLink lets in: a" in log(up)

    def test_a_sites_client_reaches_nine_calls_of_the_superlink_and_nothing_else(self, up):
        private, public = load_node_key(up.folder.parent / "a.pem")
        tls = ssl.create_default_context(cafile=str(up.ca_file))
        every = [RuntimeVersionHttpInterceptor("SuperNode"), NodeAuthHttpInterceptor(private, private.public_key())]
        url = f"https://{up.settings.address}"
        eventually(lambda: "a" in node_ids(up))
        fleet = FleetHttpClient(url, interceptors=every, verify=tls)
        control = ControlHttpClient(url, interceptors=every, verify=tls)
        try:
            wanted = ActivateNodeRequest(public_key=public, heartbeat_interval=30.0)
            number = fleet.ActivateNode(wanted).node_id
            assert number == node_ids(up)["a"]
            assert overview(up, NOW).sites[0].connected
            with pytest.raises(httpx.HTTPStatusError, match="403 Forbidden"):
                control.StartRun(StartRunRequest())
            with pytest.raises(httpx.HTTPStatusError, match="403 Forbidden"):
                control.RegisterNode(RegisterNodeRequest(public_key=public))
            with pytest.raises(httpx.HTTPStatusError, match="403 Forbidden"):
                control.UnregisterNode(UnregisterNodeRequest(node_id=number))
            assert fleet.DeactivateNode(DeactivateNodeRequest(node_id=number)) is not None
        finally:
            fleet.close()
            control.close()
        assert overview(up, NOW).sites[0].state == "offline"
        assert "403 in=" in log(up)

    def test_a_renewed_certificate_is_shown_without_a_restart(self, up):
        before = pid(up, "proxy")
        write_server_certificate(up, up.settings, NOW - timedelta(days=340))
        assert reload(up)
        eventually(lambda: "WARNING: the certificate ends in" in log(up))
        assert pid(up, "proxy") == before
        assert proxy_answers(up)
        assert overview(up, NOW).renewal_is_due
        write_server_certificate(up, up.settings, NOW)
        assert reload(up)

    @pytest.mark.parametrize("name", ["proxy", "superlink"])
    def test_one_that_is_killed_is_started_again(self, up, name):
        before = pid(up, name)
        restarts = (running(up) or Running(pid=0, since="")).restarts
        os.kill(before, signal.SIGKILL)
        eventually(lambda: pid(up, name) != before)
        eventually(lambda: proxy_answers(up) and superlink_answers(up))
        assert f"{name} ended (signal 9); it is started again in 1 s" in log(up)
        assert (running(up) or Running(pid=0, since="")).restarts == restarts + 1
        assert "a" in node_ids(up)

    def test_kill_9_of_the_supervisor_leaves_nothing_that_blocks_the_next_start(self, up):
        found = running(up)
        assert found is not None
        os.kill(found.pid, signal.SIGKILL)
        eventually(lambda: running(up) is None)
        again = start_detached(up)
        assert again.pid != found.pid
        assert overview(up, NOW).good

    def test_stopping_ends_everything(self, up):
        numbers = [pid(up, name) for name in ("proxy", "superlink")]
        stop(up)
        assert running(up) is None
        assert not proxy_answers(up)
        assert not superlink_answers(up)
        for number in numbers:
            assert not Path(f"/proc/{number}").exists()
        assert log(up).endswith("stopped\n")
        assert "\x1b" not in log(up)
        assert overview(up, NOW).sites[0].state == "unknown"


@pytest.mark.federated
class TestFrozen:
    def test_one_that_lives_but_has_not_answered_for_a_minute_is_ended_and_started_again(self, home):
        said: list[str] = []
        watching = supervisor._Supervisor(home, said.append)
        program = Program("p", (sys.executable, "-c", "import time; time.sleep(60)"), {}, home.state_folder / "p.pid")
        server = supervisor._Server(program, lambda _: False)
        watching._start(server, time.monotonic())
        process = server.process
        assert process is not None
        watching._ask(server)
        assert process.poll() is None
        server.last_answer -= 61
        watching._ask(server)
        assert process.returncode == -signal.SIGKILL
        assert server.process is None
        assert said[-1] == "p has not answered for 60 s; it is started again in 1 s"


@pytest.mark.federated
@with_nginx
def test_in_the_foreground_ctrl_c_ends_it(home):
    process = subprocess.Popen(
        [sys.executable, "-m", "eucaim_fl.federation.supervisor", str(home.folder)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert process.stdout is not None
    for line in process.stdout:
        if "started proxy" in line:
            break
    process.send_signal(signal.SIGINT)
    rest, _ = process.communicate(timeout=30)
    assert process.returncode == 0
    assert rest.endswith("stopped\n")


class TestOverview:
    def test_without_servers_it_says_what_the_records_know(self, home):
        found = overview(home, NOW + timedelta(days=340))
        assert (found.good, found.running, found.sites, found.invitations) == (False, False, (), {})
        assert found.certificate_days_left == 24
        assert found.renewal_is_due

    def test_a_damaged_home_is_an_error(self, home):
        (home.folder / "federation.json").write_text("{")
        with pytest.raises(ServiceStateError, match="damaged"):
            overview(home, NOW)

    def test_a_damaged_record_of_an_invitation_is_an_error(self, home):
        (home.invitations_folder / "a.json").write_text("{")
        with pytest.raises(EnrolmentError, match="damaged"):
            overview(home, NOW)

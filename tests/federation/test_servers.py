"""How the two servers are called, tied to who started them, and asked whether they answer."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from datetime import UTC, datetime
from pathlib import Path

import pytest

from eucaim_fl.errors import ServiceError, ServiceStateError
from eucaim_fl.federation.home import FederationHome, Settings, create
from eucaim_fl.federation.servers import (
    Program,
    check_proxy_configuration,
    clear_leftover,
    launch,
    programs,
    proxy_answers,
    require_free_ports,
    superlink_answers,
)

NOW = datetime.now(UTC)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


@pytest.fixture
def home(tmp_path, monkeypatch) -> FederationHome:
    monkeypatch.setenv("EUCAIM_FL_FEDERATIONS", str(tmp_path / "federations"))
    port = free_port()
    made = Settings(
        name="liver",
        host="localhost",
        port=port,
        listen=f"127.0.0.1:{port}",
        superlink_port=free_port(),
        made_at=NOW,
    )
    return create(made, NOW)


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def gone(pid: int, within_s: float = 10.0) -> bool:
    until = time.monotonic() + within_s
    while alive(pid) and time.monotonic() < until:
        time.sleep(0.02)
    return not alive(pid)


def sleeper(home: FederationHome, code: str = "import time; time.sleep(60)") -> Program:
    """A program whose command line names the home."""
    return Program("sleeper", (sys.executable, "-c", code, str(home.folder)), {}, home.state_folder / "sleeper.pid")


class TestPrograms:
    def test_the_superlink_is_on_loopback_with_node_keys_and_installs_nothing(self, home):
        superlink, _ = programs(home, Path("/nginx"))
        assert {"--host=127.0.0.1", "--enable-supernode-auth", "--isolation=process"} <= set(superlink.command)
        assert "--disable-runtime-dependency-installation" in superlink.command
        assert not {"--insecure", "--simulation"} & set(superlink.command)
        assert superlink.environment["FLWR_TELEMETRY_ENABLED"] == "0"
        assert superlink.environment["FLWR_DISABLE_UPDATE_CHECK"] == "1"
        assert superlink.environment["FLWR_HOME"].startswith(str(home.state_folder))

    def test_no_secret_stands_on_a_command_line(self, home):
        words = " ".join(word for program in programs(home, Path("/nginx")) for word in program.command)
        assert home.executor_secret.decode() not in words

    def test_nginx_uses_no_file_of_the_system(self, home):
        _, proxy = programs(home, Path("/nginx"))
        assert proxy.command == ("/nginx", "-p", f"{home.folder}/", "-e", "stderr", "-c", "proxy/nginx.conf")


class TestPorts:
    def test_free_ones_are_no_fault(self, home):
        require_free_ports(home.settings)

    @pytest.mark.parametrize(("which", "says"), [("listen_port", "proxy"), ("superlink_port", "SuperLink")])
    def test_one_in_use_is_named(self, home, which, says):
        port = getattr(home.settings, which)
        with (
            socket.create_server(("127.0.0.1", port)),
            pytest.raises(ServiceStateError, match=f"{says} can't listen: port {port} is in use"),
        ):
            require_free_ports(home.settings)

    def test_an_address_of_another_machine_is_named(self, home):
        elsewhere = home.settings.model_copy(update={"listen": "192.0.2.1:8443"})
        with pytest.raises(ServiceStateError, match="no such address"):
            require_free_ports(elsewhere)


class TestAnswers:
    def test_nobody_there_is_no_answer(self, home):
        assert not superlink_answers(home)
        assert not proxy_answers(home)

    def test_somebody_without_our_certificate_is_no_answer(self, home):
        with socket.create_server(("127.0.0.1", home.settings.superlink_port)) as other:
            other.settimeout(5)
            answering = "import socket,sys; s=socket.create_connection(('127.0.0.1',int(sys.argv[1]))); s.close()"
            subprocess.run([sys.executable, "-c", answering, str(home.settings.superlink_port)], check=True)
            other.accept()[0].close()
            other.close()
            assert not superlink_answers(home)

    def test_a_configuration_that_nginx_refuses_is_an_error(self, home):
        with pytest.raises(ServiceError, match="nginx refuses"):
            check_proxy_configuration(Path("/bin/false"), home)
        with pytest.raises(ServiceError, match="nginx refuses"):
            check_proxy_configuration(Path("/no/nginx"), home)


@pytest.mark.federated
class TestLaunch:
    def test_it_ends_with_who_started_it_however_that_ends(self, home, tmp_path):
        starter = f"""
import sys, time
from pathlib import Path
from eucaim_fl.federation.servers import Program, launch
program = Program("p", (sys.executable, "-c", "import time; time.sleep(60)"), {{}}, Path({str(tmp_path / "pid")!r}))
print(launch(program).pid, flush=True)
time.sleep(60)
"""
        with subprocess.Popen([sys.executable, "-c", starter], stdout=subprocess.PIPE, text=True) as parent:
            assert parent.stdout is not None
            pid = int(parent.stdout.readline())
            assert alive(pid)
            parent.send_signal(signal.SIGKILL)
        assert gone(pid)

    def test_what_it_writes_is_for_its_owner_alone_and_flowers_variables_do_not_reach_it(self, home, monkeypatch):
        monkeypatch.setenv("FLWR_OIDC_ENABLED", "1")
        target = home.state_folder / "made"
        code = f"import os; open({str(target)!r}, 'w').write(str(sorted(n for n in os.environ if n[:5] == 'FLWR_')))"
        program = Program("p", (sys.executable, "-c", code), {"FLWR_HOME": "x"}, home.state_folder / "p.pid")
        process = launch(program)
        assert process.communicate()[0] == b""
        assert target.read_text() == "['FLWR_HOME']"
        assert target.stat().st_mode & 0o777 == 0o600

    def test_its_number_is_kept(self, home):
        program = sleeper(home)
        process = launch(program)
        try:
            assert program.pid_file.read_text() == str(process.pid)
            assert os.getpgid(process.pid) == process.pid
        finally:
            process.kill()
            process.communicate()


@pytest.mark.federated
class TestLeftovers:
    def start(self, program: Program) -> subprocess.Popen[str]:
        code = "print('up', flush=True); import signal, time; signal.signal(15, signal.SIG_IGN); time.sleep(60)"
        process = subprocess.Popen(
            [program.command[0], "-c", code, *program.command[3:]],
            stdout=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        assert process.stdout is not None
        assert process.stdout.readline() == "up\n"
        program.pid_file.write_text(str(process.pid))
        return process

    def test_one_that_does_not_end_by_itself_is_ended(self, home):
        program = sleeper(home)
        process = self.start(program)
        try:
            threading.Thread(target=process.wait).start()  # as init does for what has lost its parent
            assert clear_leftover(program, home)
            assert process.wait(10) == -signal.SIGKILL
            assert not program.pid_file.exists()
        finally:
            process.kill()
            process.communicate()

    def test_a_process_that_has_nothing_to_do_with_this_home_is_left_alone(self, home):
        program = Program("x", (sys.executable, "-c", "", "/another/home"), {}, home.state_folder / "x.pid")
        process = self.start(program)
        try:
            assert not clear_leftover(program, home)
            assert process.poll() is None
        finally:
            process.kill()
            process.communicate()

    @pytest.mark.parametrize("text", [None, "", "x", "999999999"])
    def test_a_number_that_says_nothing_ends_nothing(self, home, text):
        program = sleeper(home)
        if text is not None:
            program.pid_file.write_text(text)
        assert not clear_leftover(program, home)


def test_the_tie_is_no_part_of_this_packages_import_path():
    """The launcher starts without site packages: it costs hundredths of a second, and reads no file of a user's."""
    source = Path(sys.modules[launch.__module__].__file__ or "").read_text()
    assert re.search(r'\[sys\.executable, "-I", "-S", "-c", _TIED', source)

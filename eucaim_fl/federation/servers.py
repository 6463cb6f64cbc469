"""The two servers of a federation, SuperLink and proxy, as processes: how they are called, and whether they answer.

`supervisor` keeps them running.
"""

from __future__ import annotations

import contextlib
import errno
import http.client
import os
import signal
import socket
import ssl
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from eucaim_fl.errors import ServiceError, ServiceStateError
from eucaim_fl.federation import proxy
from eucaim_fl.federation.home import FederationHome, Settings

__all__ = [
    "Program",
    "check_proxy_configuration",
    "clear_leftover",
    "launch",
    "programs",
    "proxy_answers",
    "require_free_ports",
    "superlink_answers",
]

_ANSWER_S = 5.0
_TIED = (
    "import ctypes, os, sys\n"
    "try:\n"
    "    ctypes.CDLL(None).prctl(1, 15)\n"  # PR_SET_PDEATHSIG: SIGTERM when the supervisor is gone; kept by exec
    "except (AttributeError, OSError):\n"  # no Linux: leftovers are cleared at the next start
    "    pass\n"
    "if os.getppid() != int(sys.argv[1]):\n"  # it ended before the call above
    "    sys.exit(1)\n"
    "os.execv(sys.argv[2], sys.argv[2:])\n"
)


@dataclass(frozen=True)
class Program:
    """A server of a federation: its name in logs, its command line, and what is added to the environment."""

    name: str
    command: tuple[str, ...]
    environment: Mapping[str, str]
    pid_file: Path


def programs(home: FederationHome, nginx: Path) -> tuple[Program, Program]:
    """SuperLink and proxy of a federation, in the order in which they start."""
    state = home.state_folder
    superlink = Program(
        "superlink",
        (
            sys.executable,
            "-P",
            "-c",
            "from eucaim_fl.federation.superlink_process import main; main()",
            "--host=127.0.0.1",
            f"--port={home.settings.superlink_port}",
            f"--ssl-ca-certfile={home.ca_file}",
            f"--ssl-certfile={home.superlink_file}",
            f"--ssl-keyfile={home.superlink_file}",
            "--enable-supernode-auth",
            "--isolation=process",
            f"--superexec-auth-secret-file={home.executor_secret_file}",
            "--disable-runtime-dependency-installation",
            f"--database={state / 'superlink.db'}",
        ),
        {
            "FLWR_HOME": str(state / "flwr_home"),
            "FLWR_TELEMETRY_ENABLED": "0",
            "FLWR_DISABLE_UPDATE_CHECK": "1",
            "PYTHONUNBUFFERED": "1",
        },
        state / "superlink.pid",
    )
    return superlink, Program("proxy", proxy.command(nginx, home), {}, state / "proxy.pid")


def launch(program: Program) -> subprocess.Popen[bytes]:
    """Start a server in a session of its own, tied to this process; its output comes through a pipe.

    Call it from the main thread: the tie is to the thread that starts it. Its number is kept in the pid file.
    """
    kept = {name: value for name, value in os.environ.items() if not name.startswith("FLWR_")}
    process = subprocess.Popen(  # noqa: S603  (own words)
        [sys.executable, "-I", "-S", "-c", _TIED, str(os.getpid()), *program.command],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        env={**kept, **program.environment},
        cwd="/",
        umask=0o077,
        start_new_session=True,
    )
    with contextlib.suppress(OSError):  # a full disk: the number is for clearing up only
        program.pid_file.write_text(str(process.pid), encoding="ascii")
        program.pid_file.chmod(0o600)
    return process


def clear_leftover(program: Program, home: FederationHome) -> bool:
    """End what is left of a server that an earlier supervisor started and that does not end by itself.

    Only a group of processes is ended whose number was recorded and one of whose command lines names this home.
    Returns whether there was one.
    """
    try:
        group = int(program.pid_file.read_text(encoding="ascii"))
    except (OSError, ValueError):
        return False
    ours = any(
        _group_of(entry) == group and str(home.folder).encode() in _words(entry)
        for entry in Path("/proc").glob("[0-9]*")
    )
    if ours:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(group, signal.SIGKILL)
            _await_end(group)
    program.pid_file.unlink(missing_ok=True)
    return ours


def _await_end(group: int) -> None:
    until = time.monotonic() + _ANSWER_S
    while time.monotonic() < until:
        os.killpg(group, 0)  # raises ProcessLookupError once the last one is gone
        time.sleep(0.05)


def _group_of(entry: Path) -> int:
    try:
        return os.getpgid(int(entry.name))
    except OSError:
        return -1


def _words(entry: Path) -> bytes:
    try:
        return (entry / "cmdline").read_bytes()
    except OSError:
        return b""


def require_free_ports(settings: Settings) -> None:
    """Raises ServiceStateError that names the port if the proxy or the SuperLink could not listen on theirs."""
    host, _, _ = settings.listen.rpartition(":")
    for what, address, port in (
        ("proxy", host.strip("[]"), settings.listen_port),
        ("SuperLink", "127.0.0.1", settings.superlink_port),
    ):
        family = socket.AF_INET6 if ":" in address else socket.AF_INET
        try:
            with socket.socket(family, socket.SOCK_STREAM) as probe:
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                probe.bind((address, port))
        except OSError as problem:
            reason = {
                errno.EADDRINUSE: f"port {port} is in use",
                errno.EACCES: f"port {port} needs rights that this user does not have",
                errno.EADDRNOTAVAIL: "this machine has no such address",
            }.get(problem.errno or 0, "the address can't be used")
            raise ServiceStateError(
                f"The {what} can't listen: {reason}.",
                fix="Stop what listens there (`ss -ltnp` names it), or change the address in federation.json.",
                local_detail=f"{address}:{port}: {problem.strerror}",
            ) from None


def check_proxy_configuration(nginx: Path, home: FederationHome) -> None:
    """Let nginx judge its configuration. Raises ServiceError with its words as local detail if it refuses it."""
    try:
        done = subprocess.run(  # noqa: S603  (own words)
            proxy.command(nginx, home, "-t", "-q"),
            capture_output=True,
            text=True,
            timeout=30,
            check=False,
        )
        said = "" if done.returncode == 0 else done.stderr.strip() or f"exit code {done.returncode}"
    except (OSError, subprocess.TimeoutExpired) as problem:
        said = str(problem)
    if said:
        raise ServiceError(
            "nginx refuses the proxy's configuration.",
            fix="Is it 1.19.5 or newer, with its TLS module? Are the files of the federation readable?",
            local_detail=said[-2000:],
        )


def superlink_answers(home: FederationHome) -> bool:
    """Whether the SuperLink is healthy, asked over TLS on loopback."""
    return _status(home, ("127.0.0.1", home.settings.superlink_port), "GET", "/health") == 200


def proxy_answers(home: FederationHome) -> bool:
    """Whether the proxy completes a TLS 1.3 handshake and answers as a site's preflight expects."""
    settings = home.settings
    host = settings.listen.rpartition(":")[0].strip("[]")
    reached = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)  # noqa: S104  (compared only)
    return _status(home, (reached, settings.listen_port), "HEAD", "/") == 204


class _Connection(http.client.HTTPSConnection):
    """To an address of this machine, whose certificate is for localhost."""

    def __init__(self, address: tuple[str, int], context: ssl.SSLContext) -> None:
        super().__init__(*address, timeout=_ANSWER_S, context=context)
        self._own: tuple[tuple[str, int], ssl.SSLContext] = (address, context)

    def connect(self) -> None:
        address, context = self._own
        plain = socket.create_connection(address, _ANSWER_S)
        try:
            self.sock: Any = context.wrap_socket(plain, server_hostname="localhost")
        except BaseException:
            plain.close()
            raise


def _status(home: FederationHome, address: tuple[str, int], method: str, path: str) -> int | None:
    """HTTP status of an answer; None if there is none."""
    try:
        context = ssl.create_default_context(cafile=str(home.ca_file))
        context.minimum_version = ssl.TLSVersion.TLSv1_3
        connection = _Connection(address, context)
        with contextlib.closing(connection):
            connection.request(method, path)
            return connection.getresponse().status
    except (OSError, http.client.HTTPException):
        return None

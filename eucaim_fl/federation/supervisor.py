"""What `federation start` runs: it starts SuperLink and proxy, watches them, restarts what dies, and stops both.

`python -m eucaim_fl.federation.supervisor FOLDER` is the same in the background.
"""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from types import FrameType

from eucaim_fl.durable import exclusive
from eucaim_fl.errors import EucaimError, JournalError, RunFolderBusyError, ServiceError, ServiceStateError
from eucaim_fl.federation import servers
from eucaim_fl.federation.certificates import days_left, renewal_is_due
from eucaim_fl.federation.home import FederationHome, held, parse_file, write_private_json
from eucaim_fl.federation.proxy import find_nginx, write_configuration
from eucaim_fl.parsing import Config
from eucaim_fl.signing import certificate_facts

__all__ = ["Running", "pause", "reload", "running", "say_with_time", "start_detached", "stop", "supervise"]

_LOOK_S, _ASK_S = 0.2, 10.0
_FROZEN_S = 60.0
_STEADY_S = 60.0
_LONGEST_PAUSE_S = 30.0
_STOP_S = 10.0
_READY_S = 90.0
_LONGEST_LINE = 4000
Say = Callable[[str], None]


class Running(Config):
    """state/supervisor.json: who keeps the servers running, since when (ISO, UTC), and whether both have answered."""

    pid: int
    since: str
    ready: bool = False
    restarts: int = 0


def pause(failures: int) -> float:
    """Seconds before a server that died is started again: 1, 2, 4 … 30.

    >>> [pause(n) for n in (1, 2, 3, 9)]
    [1.0, 2.0, 4.0, 30.0]
    """
    return float(min(2.0 ** max(0, failures - 1), _LONGEST_PAUSE_S))


@dataclass
class _Server:
    """One server: its process, how often it failed in a row, and when it answered last (monotonic seconds)."""

    program: servers.Program
    answers: Callable[[FederationHome], bool]
    process: subprocess.Popen[bytes] | None = None
    failures: int = 0
    started: float = 0.0
    next_start: float = 0.0
    last_answer: float = 0.0
    next_question: float = 0.0
    healthy: bool = False
    reader: threading.Thread | None = field(default=None, repr=False)


class _Supervisor:
    def __init__(self, home: FederationHome, say: Say) -> None:
        self._home, self._say = home, say
        self._record = Running(pid=os.getpid(), since=datetime.now(UTC).isoformat(timespec="seconds"))
        self._told: int | None = None
        self._next_telling = 0.0
        self._reload = threading.Event()
        self._stopped = threading.Event()
        self._servers: list[_Server] = []

    def run(self) -> None:
        home = self._home
        nginx = find_nginx()
        write_configuration(home)
        superlink, proxy = servers.programs(home, nginx)
        for program in (superlink, proxy):
            if servers.clear_leftover(program, home):
                self._say(f"ended what was left of an earlier {program.name}")
        servers.check_proxy_configuration(nginx, home)
        servers.require_free_ports(home.settings)
        self._servers = [_Server(superlink, servers.superlink_answers), _Server(proxy, servers.proxy_answers)]
        self._note()
        try:
            with self._signals():
                while not self._stopped.wait(_LOOK_S):
                    self._look(time.monotonic())
                self._say("stopping")
        finally:
            for server in reversed(self._servers):  # the proxy first: no call meets a SuperLink that is going
                self._end(server)
            (home.state_folder / "supervisor.json").unlink(missing_ok=True)
            self._say("stopped")

    @contextlib.contextmanager
    def _signals(self) -> Iterator[None]:
        def stop(_number: int, _frame: FrameType | None) -> None:
            self._stopped.set()

        def again(_number: int, _frame: FrameType | None) -> None:
            self._reload.set()

        before = {
            number: signal.signal(number, handler)
            for number, handler in (
                (signal.SIGTERM, stop),
                (signal.SIGINT, stop),
                (signal.SIGHUP, stop),
                (signal.SIGUSR1, again),
            )
        }
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _note(self, **changes: object) -> None:
        self._record = self._record.model_copy(update=changes)
        with contextlib.suppress(JournalError):  # a full disk must not end the servers
            write_private_json(self._home.state_folder / "supervisor.json", self._record.model_dump(mode="json"))

    def _look(self, now: float) -> None:
        for server in self._servers:
            if server.process is None:
                if now >= server.next_start:
                    self._start(server, now)
            elif (code := server.process.poll()) is not None:
                self._died(server, now, f"ended ({_ending(code)})")
            elif now >= server.next_question:
                self._ask(server)
        if all(server.healthy for server in self._servers):
            if not self._record.ready:
                self._note(ready=True)
                self._say(f"both servers answer; sites connect to {self._home.settings.address}")
                self._warn_of_expiry()
            self._tell_changes(now)
        if self._reload.is_set():
            self._reload.clear()
            proxy = self._servers[-1].process
            if proxy is not None and proxy.poll() is None:
                proxy.send_signal(signal.SIGHUP)
                self._say("the proxy reads its certificate again")
                self._warn_of_expiry()

    def _start(self, server: _Server, now: float) -> None:
        server.process = servers.launch(server.program)
        server.started = server.last_answer = now
        server.next_question = now
        server.healthy = False
        server.reader = threading.Thread(target=self._read, args=(server.process, server.program.name), daemon=True)
        server.reader.start()
        self._say(f"started {server.program.name} (process {server.process.pid})")

    def _read(self, process: subprocess.Popen[bytes], name: str) -> None:
        assert process.stdout is not None  # noqa: S101  (it was started with a pipe)
        while line := process.stdout.readline(_LONGEST_LINE):
            self._say(f"{name} | {_plain(line)}")

    def _ask(self, server: _Server) -> None:
        good = server.answers(self._home)
        now = time.monotonic()
        if good:
            server.last_answer = now
            if not server.healthy:
                self._say(f"{server.program.name} answers")
                if server.program.name == "superlink":
                    self._told = None  # a new one may have lost its list
            if now - server.started > _STEADY_S:
                server.failures = 0
        elif now - server.last_answer > _FROZEN_S:
            self._died(server, now, f"has not answered for {_FROZEN_S:.0f} s")
            return
        elif server.healthy:
            self._say(f"{server.program.name} does not answer")
        server.healthy = good
        server.next_question = now + (_ASK_S if good else 0.5)

    def _died(self, server: _Server, now: float, why: str) -> None:
        """End what is left of it (workers of a proxy outlive their master), and start it again after a pause."""
        self._kill(server)
        server.failures += 1
        wait = pause(server.failures)
        server.process, server.healthy, server.next_start = None, False, now + wait
        self._note(restarts=self._record.restarts + 1)
        self._say(f"{server.program.name} {why}; it is started again in {wait:.0f} s")

    def _kill(self, server: _Server) -> None:
        if server.process is not None:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(server.process.pid, signal.SIGKILL)
            server.process.wait()

    def _end(self, server: _Server) -> None:
        if server.process is None:
            return
        server.process.terminate()
        try:
            server.process.wait(_STOP_S)
        except subprocess.TimeoutExpired:
            self._say(f"{server.program.name} did not end by itself within {_STOP_S:.0f} s")
        self._kill(server)
        if server.reader is not None:
            server.reader.join(1.0)
        server.program.pid_file.unlink(missing_ok=True)
        server.process = None

    def _tell_changes(self, now: float) -> None:
        """Tell the SuperLink who is admitted: at its start, and when the records have changed."""
        state = self._home.sites_folder.stat().st_mtime_ns
        if state == self._told or now < self._next_telling:
            return
        from eucaim_fl.federation.nodes import synchronise

        try:
            done = synchronise(self._home)
        except EucaimError as problem:
            self._say(f"the SuperLink can't be told yet who is admitted: {problem.message}")
            self._next_telling = now + _ASK_S
            return
        self._told = state  # if the telling itself changed a record, it is done once more
        for names, what in ((done.register, "lets in"), (done.impossible, "can't let in, since their key was removed")):
            if names:
                self._say(f"the SuperLink {what}: {', '.join(names)}")
        if done.unregister:
            self._say(f"the SuperLink shuts out {len(done.unregister)} that are not admitted")

    def _warn_of_expiry(self) -> None:
        end = certificate_facts(self._home.server_file.read_bytes()).not_after
        now = datetime.now(UTC)
        if renewal_is_due(end, now):
            left = days_left(end, now)
            when = f"ends in {left} days" if left >= 0 else "has ended: no site can connect"
            self._say(f"WARNING: the certificate {when}; run: eucaim-fl federation renew {self._home.name}")


def _plain(line: bytes) -> str:
    """A line of a server's log without colours, and without what else would act on a terminal."""
    text = re.sub(r"\x1b\[[0-9;]*m", "", line.decode(errors="replace")).rstrip()
    return "".join(letter if letter.isprintable() or letter == "\t" else "?" for letter in text)


def _ending(code: int) -> str:
    return f"exit code {code}" if code >= 0 else f"signal {-code}"


def supervise(home: FederationHome, say: Say) -> None:
    """Keep both servers of a federation running until SIGTERM or Ctrl-C; everything is ended when it returns.

    say: takes each line of the log. Call it in the main thread.
    Raises ServiceStateError if the federation already runs, nginx is missing or a port is taken; ServiceError if nginx
    refuses its configuration.
    """
    with held(home.state_folder, f"The federation '{home.name}' already runs."):
        _Supervisor(home, say).run()


def running(home: FederationHome) -> Running | None:
    """Who keeps the servers running; None if nobody does."""
    try:
        with exclusive(home.state_folder):
            return None
    except RunFolderBusyError:
        with contextlib.suppress(ServiceStateError):
            return parse_file(Running, home.state_folder / "supervisor.json")
        return Running(pid=0, since="")  # it has just begun, or is just ending


def reload(home: FederationHome) -> bool:
    """Let a running proxy read its certificate again; returns whether there is one."""
    found = running(home)
    if found is None or not found.pid:
        return False
    with contextlib.suppress(ProcessLookupError):
        os.kill(found.pid, signal.SIGUSR1)
    return True


def stop(home: FederationHome, patience_s: float = 40.0) -> None:
    """Stop a running federation and wait until it has ended.

    Raises ServiceStateError if it does not run, ServiceError if it does not end in time.
    """
    found = running(home)
    if found is None:
        raise ServiceStateError(f"The federation '{home.name}' does not run.")
    until = time.monotonic() + patience_s
    asked = 0
    while found is not None:
        if found.pid and found.pid != asked:
            with contextlib.suppress(ProcessLookupError):
                os.kill(found.pid, signal.SIGTERM)
            asked = found.pid
        if time.monotonic() > until:
            raise ServiceError(
                "The federation does not stop.",
                fix=f"Look at its log; `kill -9 {found.pid}` ends it and its servers at once.",
            )
        time.sleep(_LOOK_S)
        found = running(home)


def start_detached(home: FederationHome, patience_s: float = _READY_S) -> Running:
    """Start a federation in the background, its log in state/federation.log; returns once both servers answer.

    Raises ServiceStateError if it already runs, ServiceError if it ends or does not answer in time.
    """
    if running(home) is not None:
        raise ServiceStateError(f"The federation '{home.name}' already runs.")
    path = home.state_folder / "federation.log"
    log = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    place = os.fstat(log).st_size
    try:
        process = subprocess.Popen(  # noqa: S603  (own words)
            [sys.executable, "-m", "eucaim_fl.federation.supervisor", str(home.folder)],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
    finally:
        os.close(log)
    until = time.monotonic() + patience_s
    while time.monotonic() < until:
        if process.poll() is not None:
            with path.open("rb") as stream:
                stream.seek(place)
                said = stream.read().decode(errors="replace").strip()
            raise ServiceError(
                "The federation did not start.", fix="Its log says why.", local_detail=f"{path}\n{said[-2000:]}"
            )
        found = running(home)
        if found is not None and found.pid == process.pid and found.ready:
            return found
        time.sleep(_LOOK_S)
    raise ServiceError(
        f"The federation does not answer after {patience_s:.0f} s; it goes on trying.",
        fix="Its log says why; `eucaim-fl federation stop NAME` ends it.",
        local_detail=str(path),
    )


def say_with_time(text: str) -> None:
    """Write a line to standard output, after the time (UTC). Where nobody takes it, it is lost, and nothing stops."""
    with contextlib.suppress(OSError, ValueError):
        sys.stdout.write(f"{datetime.now(UTC):%Y-%m-%dT%H:%M:%SZ} {text}\n")
        sys.stdout.flush()


def _main() -> int:
    try:
        supervise(FederationHome(Path(sys.argv[1])), say_with_time)
    except EucaimError as problem:
        say_with_time(problem.for_terminal())
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(_main())

"""A whole federation on one machine: coordinator, proxy and sites as processes of their own, over TLS on loopback.

For trying out a deployment before hospitals are asked, for the demo, and for tests and measurements of the very
commands that people type: everything here is done through the command line.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import yaml

from eucaim_fl.config import TASKS
from eucaim_fl.durable import write_atomically
from eucaim_fl.errors import ServiceError
from eucaim_fl.federation.home import FEDERATIONS_VARIABLE, FederationHome
from eucaim_fl.site.home import SiteHome
from eucaim_fl.sitefile import load_site_file

__all__ = ["POLICY", "Rehearsal", "free_ports"]

_COMMAND_S = 120.0
_PATIENCE_S = 20.0
POLICY: Mapping[str, Any] = {
    "schema": "eucaim-fl-policy/1",
    "valid_until": "2099-12-31",
    "datasets": ["rehearsal"],
    "asking": {"permits": "not_required", "bodies": {}},
    "purposes": ["scientific_research"],
    "tasks": list(TASKS),
    "targets": "any",
    "networks": "any",
    "sites": {"at_least": 1},
    "patients": {"training": 10, "metric": 3},
    "metrics": {
        "names": [
            *("dice", "hd95_mm", "auc", "balanced_accuracy", "brier", "confusion", "scores", "c_index", "concordance"),
            *("intensity_sums", "class_counts"),
        ],
        "decimals": 4,
    },
    "pictures": True,
    "score_histograms": True,
    "rounds": 1000,
    "plans": {"day": 100_000, "total": 100_000, "repeats": 100_000},
    "hours": "any",
    "work": {"minutes": 240},
    "sent_mb": {"message": 1000, "plan": 100_000, "day": 100_000},
    "update": {"largest_norm": 1000},
    "privacy": {"mechanism": "none"},
    "approval": "automatic",
}
"""A policy for rehearsals with data that nobody has to protect: it asks for no permit and approves by itself."""


def free_ports(count: int) -> list[int]:
    """Ports of loopback that nobody listens on at this moment."""
    sockets = [socket.socket() for _ in range(count)]
    try:
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [int(one.getsockname()[1]) for one in sockets]
    finally:
        for one in sockets:
            one.close()


class Rehearsal:
    """Use as a context manager: what was started is stopped at its end, by process number.

    Everything lies under `folder`: federations/, homes/<site>, runs/.
    """

    def __init__(
        self,
        folder: Path,
        site_files: Iterable[Path],
        policy: Mapping[str, Any] = POLICY,
        *,
        name: str = "rehearsal",
        environment: Mapping[str, str] | None = None,
    ) -> None:
        """site_files: of sites that this machine has the cohorts of; their names become the sites' names.

        policy: of every site, as plain values. environment: for all processes, beside this process's own.
        """
        self.folder, self.name = folder.absolute(), name
        self._files = {load_site_file(path).name: path for path in site_files}
        self._policy = dict(policy)
        self.environment = {
            **os.environ,
            **(environment or {}),
            FEDERATIONS_VARIABLE: str(self.folder / "federations"),
            "PYTHONUNBUFFERED": "1",
        }
        self.port, self.superlink_port = free_ports(2)
        self.command: Sequence[str] = (sys.executable, "-m", "eucaim_fl")
        self.servers: subprocess.Popen[bytes] | None = None
        self.clients: dict[str, subprocess.Popen[bytes]] = {}

    # --- what is there ----------------------------------------------------------------------------------------

    @property
    def federation(self) -> FederationHome:
        """The coordinator's folder."""
        return FederationHome(self.folder / "federations" / self.name)

    @property
    def sites(self) -> list[str]:
        """Names of the sites, in canonical order."""
        return sorted(self._files)

    def home(self, site: str) -> SiteHome:
        """A site's home."""
        return SiteHome(self.folder / "homes" / site)

    def log(self, what: str) -> Path:
        """Where a process's output goes: `federation`, or a site's name."""
        return self.folder / "logs" / f"{what}.log"

    def status(self, site: str) -> dict[str, Any]:
        """What a site's client last said of itself; empty before it did."""
        try:
            value: dict[str, Any] = json.loads(self.home(site).status_file.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return {}
        return value

    def processes(self) -> dict[int, str]:
        """Every process of this rehearsal that lives, also children of children: number → command line.

        They are known by the folder of federations in their environment; the proxy, which hides its own, by its
        command line and its session.
        """
        mark = f"{FEDERATIONS_VARIABLE}={self.folder / 'federations'}".encode()
        found: dict[int, str] = {}
        sessions: dict[int, set[int]] = {}
        for entry in Path("/proc").glob("[0-9]*"):
            pid = int(entry.name)
            try:
                words = (entry / "cmdline").read_bytes()
                marked = mark in (entry / "environ").read_bytes().split(b"\0")
                session = os.getsid(pid)
            except OSError:
                continue  # it has ended, or is another user's
            if pid == os.getpid() or not words:  # a process that ended and was not waited for yet has no words
                continue
            text = words.replace(b"\0", b" ").decode(errors="replace").strip()
            if marked or (b"nginx" in words and str(self.federation.folder).encode() in words):
                found[pid] = text
            elif text.startswith("nginx:"):
                sessions.setdefault(session, set()).add(pid)
        return found | {pid: "nginx: worker" for pid in found for pid in sessions.get(pid, ())}

    # --- doing ------------------------------------------------------------------------------------------------

    def run(
        self, *arguments: str, timeout_s: float = _COMMAND_S, check: bool = True
    ) -> subprocess.CompletedProcess[str]:
        """Run `eucaim-fl` with arguments to its end.

        Raises ServiceError with what it printed if it fails and `check` is set, or takes too long.
        """
        try:
            done = subprocess.run(  # noqa: S603  our own interpreter and module
                [*self.command, *arguments],
                cwd=self.folder,
                env=self.environment,
                capture_output=True,
                text=True,
                timeout=timeout_s,
                check=False,
            )
        except subprocess.TimeoutExpired:
            raise ServiceError(f"`{' '.join(arguments[:2])}` took more than {timeout_s:g} s.") from None
        if check and done.returncode != 0:
            raise ServiceError(
                f"`{' '.join(arguments[:2])}` failed with exit code {done.returncode}.",
                local_detail=(done.stderr or done.stdout)[-2000:],
            )
        return done

    def spawn(self, log: str, *arguments: str) -> subprocess.Popen[bytes]:
        """Start `eucaim-fl` with arguments in a session of its own; its output is added to a log."""
        path = self.log(log)
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("ab") as stream:
            return subprocess.Popen(  # noqa: S603  our own interpreter and module
                [*self.command, *arguments],
                cwd=self.folder,
                env=self.environment,
                stdin=subprocess.DEVNULL,
                stdout=stream,
                stderr=stream,
                start_new_session=True,
            )

    def set_up(self) -> None:
        """Make the federation, invite every site, make its home, and admit it. Raises ServiceError."""
        self.make_federation()
        for site in self.sites:
            self.enrol(site)

    def make_federation(self) -> None:
        """Make the coordinator's folder. Raises ServiceError."""
        self.folder.mkdir(parents=True, exist_ok=True)
        self.run(
            "federation", "init", self.name, "--host", "localhost", "--listen", f"127.0.0.1:{self.port}",
            "--superlink-port", str(self.superlink_port),
        )  # fmt: skip

    def enrol(self, site: str) -> None:
        """Invite a site, make its home from its site file, and admit it. Raises ServiceError."""
        invitation = self.folder / f"{site}.invite.json"
        home = self.home(site)
        home.folder.parent.mkdir(parents=True, exist_ok=True)
        self.run("federation", "invite", self.name, site, "--out", str(invitation))
        self.run("site", "init", "--invite", str(invitation), "--home", str(home.folder), "--yes")
        self.write_files(site, self._policy)
        (request,) = home.folder.glob("*.request.json")
        self.run("federation", "admit", self.name, str(request), "--yes")

    def write_files(self, site: str, policy: Mapping[str, Any]) -> None:
        """Write a site's policy, and its site file with absolute places, into its home."""
        source, home = self._files[site], self.home(site)
        values = yaml.safe_load(source.read_text(encoding="utf-8"))
        known = load_site_file(source)
        values["cohort"]["folder"] = str(known.cohort_folder())
        values["cache"] = {**values.get("cache", {}), "folder": str(home.folder / "cache")}
        values["policy"] = "policy.yaml"
        write_atomically(home.site_file, yaml.safe_dump(values, sort_keys=False).encode())
        write_atomically(home.policy_file, yaml.safe_dump(dict(policy), sort_keys=False).encode())

    def start(self, sites: Sequence[str] | None = None, timeout_s: float = 60.0) -> None:
        """Start the servers and the sites' clients, and wait until all are connected. Raises ServiceError."""
        self.start_servers(timeout_s)
        for site in self.sites if sites is None else sites:
            self.start_site(site)
        self.wait_connected(self.sites if sites is None else sites, timeout_s)

    def start_servers(self, timeout_s: float = 60.0) -> None:
        """Start SuperLink and proxy, and wait until both answer. Raises ServiceError."""
        self.servers = self.spawn("federation", "federation", "start", self.name)
        until = time.monotonic() + timeout_s
        while time.monotonic() < until:
            if self.servers.poll() is not None:
                raise ServiceError("The servers ended at once.", local_detail=self._tail("federation"))
            if self._answers(self.port) and self._answers(self.superlink_port):
                return
            time.sleep(0.2)
        raise ServiceError("The servers did not start in time.", local_detail=self._tail("federation"))

    @staticmethod
    def _answers(port: int) -> bool:
        with socket.socket() as probe:
            probe.settimeout(1.0)
            return probe.connect_ex(("127.0.0.1", port)) == 0

    def start_site(self, site: str) -> None:
        """Start a site's client."""
        self.clients[site] = self.spawn(site, "site", "start", "--home", str(self.home(site).folder))

    def wait_connected(self, sites: Sequence[str], timeout_s: float = 60.0) -> None:
        """Wait until the clients that run now are connected. Raises ServiceError."""
        until = time.monotonic() + timeout_s
        while time.monotonic() < until:
            states = {site: self.status(site) for site in sites}
            if all(s.get("connected") and s.get("pid") == self.clients[site].pid for site, s in states.items()):
                return
            for site in sites:
                if self.clients[site].poll() is not None:
                    raise ServiceError(f"The client of site {site} ended at once.", local_detail=self._tail(site))
            time.sleep(0.2)
        late = [site for site in sites if not self.status(site).get("connected")]
        detail = self._tail(late[0]) if late else ""
        raise ServiceError(f"Not connected in time: {', '.join(late)}.", local_detail=detail)

    def train(self, *overrides: str, timeout_s: float = 600.0) -> dict[str, Any]:
        """Train over the federation; returns the content of result.json. Raises ServiceError."""
        done = self.run(
            "train", "--json", f"federation={self.name}", f"runs_dir={self.folder / 'runs'}", *overrides,
            timeout_s=timeout_s,
        )  # fmt: skip
        result: dict[str, Any] = json.loads(done.stdout)
        return result

    def _tail(self, what: str) -> str:
        try:
            return self.log(what).read_text(encoding="utf-8", errors="replace")[-3000:]
        except OSError:
            return ""

    # --- ending -----------------------------------------------------------------------------------------------

    def stop(self) -> None:
        """Stop everything that was started, in order; what does not end in time is killed with its children."""
        for process in [*self.clients.values(), *([self.servers] if self.servers else [])]:
            if process.poll() is None:
                process.send_signal(signal.SIGTERM)
        for process in [*self.clients.values(), *([self.servers] if self.servers else [])]:
            try:
                process.wait(_PATIENCE_S)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait(5)
        self.clients, self.servers = {}, None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            self.stop()
        finally:
            self.end_all()

    def end_all(self, patience_s: float = 10.0) -> None:
        """Wait until every process has ended, and kill those that have not after `patience_s`."""
        until = time.monotonic() + patience_s
        while (left := self.processes()) and time.monotonic() < until:
            time.sleep(0.1)
        for pid in left:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)

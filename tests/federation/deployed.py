"""A federation of two tiny hospitals over a real SuperLink and nginx, shared by the tests of the line.

Coordinator and homes are made by function calls: what the command line does is the business of `test_rehearsal`.
"""

from __future__ import annotations

import json
import os
import shutil
import threading
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from eucaim_fl.compose import resolve
from eucaim_fl.config import ExperimentConfig
from eucaim_fl.enrolment import read_invitation
from eucaim_fl.errors import ServiceStateError
from eucaim_fl.federation import admission
from eucaim_fl.federation.home import FEDERATIONS_VARIABLE, Settings, create
from eucaim_fl.federation.nodes import synchronise
from eucaim_fl.federation.progress import Listener
from eucaim_fl.federation.proxy import find_nginx
from eucaim_fl.federation.rehearsal import POLICY, Rehearsal
from eucaim_fl.federation.run import create_run, execute
from eucaim_fl.site.enrol import CohortChoice, make_home
from eucaim_fl.site.home import SiteHome
from tests.conftest import tiny_recipe, write_hospital
from tests.groups import at_the_end

__all__ = ["LOOSE", "Deployed", "Run", "deployed", "one_site", "wait_for"]

LOOSE: dict[str, Any] = {
    **POLICY,
    "patients": {"training": 2, "metric": 1},
    "metrics": {
        "names": [*POLICY["metrics"]["names"], "surface_dice", "volume_difference_ml", "lesions"],
        "decimals": POLICY["metrics"]["decimals"],
    },
    "frozen_models": {"formats": ["network", "onnx"], "megabytes": 100, "memory_gb": 8, "image_seconds": 60},
}


def has_nginx() -> bool:
    try:
        find_nginx()
    except ServiceStateError:
        return False
    return True


def wait_for(what: Callable[[], Any], within_s: float = 60.0) -> Any:
    """The first true value of a function, asked again and again."""
    until = time.monotonic() + within_s
    while not (value := what()):
        assert time.monotonic() < until, "it did not come in time"
        time.sleep(0.02)
    return value


def patiently(call: Callable[[], object]) -> None:
    """Make a call that the supervisor, which tells the SuperLink of changes, may be in the way of."""
    until = time.monotonic() + 20
    while True:
        try:
            call()
        except ServiceStateError:
            assert time.monotonic() < until
        else:
            return


class Run(threading.Thread):
    """A run in a thread of this process; `result` waits for its end."""

    def __init__(self, folder: Path, config: ExperimentConfig, files: dict[str, Path]) -> None:
        super().__init__(daemon=True)
        self.folder, self.lines = folder, list[str]()
        self._work = (folder, config, files)
        self._result: dict[str, Any] | None = None
        self._problem: Exception | None = None
        self.start()

    def run(self) -> None:
        heard = self.lines

        class Ears(Listener):
            def line(self, text: str) -> None:
                heard.append(text)

        try:
            self._result, _ = execute(*self._work, Ears())
        except Exception as problem:  # noqa: BLE001  raised where the result is asked for
            self._problem = problem

    def result(self, within_s: float = 120.0) -> dict[str, Any]:
        self.join(within_s)
        if self._problem is not None:
            raise self._problem
        assert self._result is not None, "the run did not end in time"
        return self._result


class Deployed(Rehearsal):
    """A rehearsal whose homes are made without the command line, and runs of a very small network over it."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._expected: dict[str, str] = {}

    def make_federation(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        now = datetime.now(UTC)
        before = os.environ.get(FEDERATIONS_VARIABLE)
        os.environ[FEDERATIONS_VARIABLE] = self.environment[FEDERATIONS_VARIABLE]
        try:
            create(
                Settings(
                    name=self.name,
                    host="localhost",
                    port=self.port,
                    listen=f"127.0.0.1:{self.port}",
                    superlink_port=self.superlink_port,
                    made_at=now,
                ),
                now,
            )
        finally:
            if before is None:
                del os.environ[FEDERATIONS_VARIABLE]
            else:
                os.environ[FEDERATIONS_VARIABLE] = before

    def enrol(self, site: str) -> None:
        now = datetime.now(UTC)
        document = admission.invite(self.federation, site, now)
        home = self.home(site)
        path = make_home(home.folder, read_invitation(document, now), document, CohortChoice())
        self.write_files(site, LOOSE)
        admission.admit(self.federation, admission.requested(self.federation, json.loads(path.read_text()), now))

    def let_in(self, site: str) -> SiteHome:
        """Admit a site that has no cohort and no client, and tell the SuperLink at once; returns its home."""
        now = datetime.now(UTC)
        document = admission.invite(self.federation, site, now)
        path = make_home(self.home(site).folder, read_invitation(document, now), document, CohortChoice())
        request = admission.requested(self.federation, json.loads(path.read_text()), now)
        patiently(lambda: admission.admit(self.federation, request))
        patiently(lambda: synchronise(self.federation))
        return self.home(site)

    def shut_out(self, site: str) -> None:
        """Remove a site, and tell the SuperLink at once."""
        patiently(lambda: admission.remove(self.federation, site, datetime.now(UTC)))
        patiently(lambda: synchronise(self.federation))

    def recipe(self, engine: str = "superlink", **changes: Any) -> ExperimentConfig:
        """Two rounds over all sites; nobody may be missing, and they are waited for."""
        federation: dict[str, Any] = {"quorum": len(self.sites), "quorum_wait_s": 60.0, "round_deadline_s": 120.0}
        if engine == "superlink":
            federation |= {"engine": "superlink", "home": self.federation.folder}
        federation |= changes.pop("federation", {})
        return tiny_recipe(self.folder, list(self._files.values()), federation=federation, **changes)

    def expected(self, **changes: Any) -> str:
        """The weights that a run has on one machine; computed once for each plan."""
        plan = resolve(self.recipe("local", **changes)).plan.sha256()
        if plan not in self._expected:
            self._expected[plan] = str(self.begin("local", **changes).result()["weights_sha256"])
        return self._expected[plan]

    def begin(self, engine: str = "superlink", **changes: Any) -> Run:
        """Begin a run in the background."""
        config = self.recipe(engine, **changes)
        resolved = resolve(config)
        return Run(create_run(config, resolved.plan, resolved.site_files), config, dict(resolved.site_files))

    def working(self, site: str, number: int) -> Any:
        """What the client of a site says of its work on a round, if it is at it."""
        work = self.status(site).get("working") or {}
        return work if (work.get("kind"), work.get("round")) == ("round", number) else None

    def kill(self, site: str) -> None:
        """End a site's client as a crash would."""
        self.clients[site].kill()
        self.clients[site].wait(10)

    def server(self, name: str) -> int:
        """The number of the process of a server: superlink or proxy."""
        return int((self.federation.state_folder / f"{name}.pid").read_text())

    def restart(self, site: str) -> None:
        """Start a site's client again, once the last one has ended."""
        self.clients[site].wait(30)
        self.start_site(site)
        self.wait_connected([site])


@pytest.fixture(scope="module")
def one_site(tmp_path_factory: pytest.TempPathFactory) -> Callable[[Path], Deployed]:
    """Makes copies of a federation with the site `a`, where no server and no client runs."""
    root = tmp_path_factory.mktemp("one-site")
    files = [write_hospital(root, "a")]
    made = Deployed(root / "made", files, LOOSE)
    made.set_up()

    def copy(folder: Path) -> Deployed:
        shutil.copytree(made.folder, folder)
        return Deployed(folder, files, LOOSE)

    return copy


_SHARED = pytest.StashKey[Deployed]()


@pytest.fixture(scope="session")
def deployed(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Deployed:
    """Sites `a` and `b`, connected. One for all modules: started when a test asks, stopped after the last."""
    kept = request.config.stash
    if _SHARED not in kept:
        if not has_nginx():
            if "EUCAIM_FL_REQUIRE_NGINX" in os.environ:
                pytest.fail("nginx has to be there, and is not")
            pytest.skip("nginx is not installed")
        root = tmp_path_factory.mktemp("deployed")
        made = Deployed(root, [write_hospital(root, name) for name in "ab"], LOOSE)
        at_the_end(request.config, lambda: made.__exit__(None, None, None))
        made.set_up()
        made.start()
        kept[_SHARED] = made
    return kept[_SHARED]

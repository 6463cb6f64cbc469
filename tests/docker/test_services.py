"""Coordinator and site as the images start them, end to end: enrolled, healthy, stopped, under any uid."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import yaml

pytestmark = pytest.mark.federated
ROOT = Path(__file__).parents[2]


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def within(seconds: float, holds: Callable[[], bool]) -> bool:
    """Whether something becomes true in time. To ask costs a process that may take a second of what is waited for."""
    until = time.monotonic() + seconds
    while not (found := holds()) and time.monotonic() < until:
        time.sleep(2)
    return found


@pytest.fixture
def services(boxes, tmp_path: Path) -> Iterator[Callable]:
    """Starts a box's service; whatever still runs at the end is killed."""
    begun: list[subprocess.Popen[bytes]] = []

    def start(box, words: list[str], log: str) -> subprocess.Popen[bytes]:
        begun.append(box.start(words, tmp_path / log))
        return begun[-1]

    yield start
    for process in begun:
        process.kill()  # and with it everything in its box
        process.wait()


@pytest.mark.usefixtures("nginx")
class TestAFederation:
    @pytest.fixture
    def nginx(self) -> None:
        if shutil.which("nginx", path="/usr/sbin:/usr/bin:/usr/local/sbin") is None:
            if os.environ.get("CI") or os.environ.get("EUCAIM_FL_REQUIRE_NGINX") == "1":
                pytest.fail("nginx is missing, and this test must run here")
            pytest.skip("nginx is not installed (nginx-light)")

    @pytest.fixture
    def coordinator(self, boxes, services):
        """The box of a coordinator whose servers run, and its process."""
        box = boxes["coordinator"]
        box.network = "host"  # a box's own loopback would hide it from the site's box
        port = free_port()
        words = ["init", "hospitals", "--host", f"127.0.0.1:{port}", "--listen", f"127.0.0.1:{port}"]
        made = box.run(["eucaim-fl", "federation", *words, "--superlink-port", str(free_port())])
        assert made.returncode == 0, made.stderr
        process = services(box, box.image.command, "coordinator.log")
        return box, process

    def test_a_site_is_enrolled_is_healthy_while_it_is_connected_and_both_end_on_sigterm(
        self, boxes, services, coordinator, tmp_path: Path
    ) -> None:
        box, servers = coordinator
        assert within(90, lambda: box.inside(servers, box.image.health).returncode == 0)

        federations = box.write["/home/federations"]
        words = ["invite", "hospitals", "a", "--out", "/home/federations/a.invite.json"]
        assert box.inside(servers, ["eucaim-fl", "federation", *words]).returncode == 0

        site = boxes["site"]
        site.network, site.read = "host", {"/invite.json": federations / "a.invite.json"}
        words = ["init", "--invite", "/invite.json", "--home", "/home/site", "--yes"]
        made = site.run(["eucaim-fl", "site", *words])
        assert made.returncode == 0, made.stderr
        home = site.write["/home/site"]
        for key in (home / "keys").iterdir():
            assert key.stat().st_mode & 0o077 == 0

        client = services(site, site.image.command, "site.log")
        time.sleep(3)
        waiting = site.inside(client, site.image.health)
        assert (waiting.returncode, client.poll()) == (2, None), "not admitted: it waits, and is not healthy"

        shutil.copy2(home / "a.request.json", federations)
        os.chown(federations / "a.request.json", (home / "a.request.json").stat().st_uid, -1)
        words = ["admit", "hospitals", "/home/federations/a.request.json", "--yes"]
        assert box.inside(servers, ["eucaim-fl", "federation", *words]).returncode == 0
        assert within(60, lambda: site.inside(client, site.image.health).returncode == 0)
        assert "healthy" in site.inside(client, site.image.health).stdout

        assert box.stop(servers) == 0
        assert within(90, lambda: site.inside(client, site.image.health).returncode == 2), "not healthy without a line"
        assert site.stop(client) == 0
        for log in ("coordinator.log", "site.log"):
            text = (tmp_path / log).read_text()
            assert "Traceback" not in text
            assert "Read-only file system" not in text
            assert "Permission denied" not in text


class TestMlflow:
    def test_the_service_of_the_compose_file_answers_and_ends_on_sigterm(self, boxes, services, tmp_path: Path) -> None:
        service = yaml.safe_load((ROOT / "docker/compose.yaml").read_text())["services"]["mlflow"]
        box = boxes["coordinator"]
        process = services(box, [*service["entrypoint"], *service["command"]], "mlflow.log")
        kind, *check = service["healthcheck"]["test"]
        assert kind == "CMD"
        assert within(120, lambda: box.inside(process, check).returncode == 0), (tmp_path / "mlflow.log").read_text()
        assert (box.write["/runs"] / "mlflow.db").is_file()
        assert box.stop(process, 60) == 0

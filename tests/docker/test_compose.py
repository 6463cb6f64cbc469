"""The compose file: every service is confined, and a site reaches the coordinator's one port only."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

pytestmark = pytest.mark.integration

ROOT = Path(__file__).parents[2]
FILE = ROOT / "docker/compose.yaml"
COMPOSE = yaml.safe_load(FILE.read_text())
SERVICES = COMPOSE["services"]
SITES = sorted(name for name in SERVICES if name.startswith("site-"))
EACH = pytest.mark.parametrize("name", sorted(SERVICES))


def linted(file: Path, *command: object) -> subprocess.CompletedProcess[str]:
    program, *options = command
    words = [Path(sys.executable).with_name(str(program)), *options, file]
    return subprocess.run(words, capture_output=True, text=True)


RULES = ("compose-lint", "--config", ROOT / "docker/compose-lint.yaml", "--strict-config", "--fail-on", "low")
SCHEMA = ("check-jsonschema", "--builtin-schema", "vendor.compose-spec")


class TestLinters:
    def test_it_is_a_compose_file(self) -> None:
        done = linted(FILE, *SCHEMA)
        assert done.returncode == 0, done.stdout

    def test_nothing_in_it_is_dangerous(self) -> None:
        done = linted(FILE, *RULES)
        assert done.returncode == 0, done.stdout

    def test_they_would_say_so(self, tmp_path: Path) -> None:
        bad = tmp_path / "compose.yaml"
        bad.write_text("services: {a: {image: 'x:1', privileged: true}}")
        assert linted(bad, *RULES).returncode == 1
        bad.write_text("services: {a: {image: 'x:1', read_olny: true}}")
        assert linted(bad, *SCHEMA).returncode == 1


@EACH
class TestEveryService:
    def test_it_is_confined(self, name: str) -> None:
        service = SERVICES[name]
        assert service["read_only"] is True
        assert service["cap_drop"] == ["ALL"]
        assert service["security_opt"] == ["no-new-privileges:true"]
        assert service["user"] == "${EUCAIM_FL_UID:-1000}:0"
        assert service["init"] is True
        assert service["pids_limit"] > 0
        assert {"mem_limit", "cpus", "stop_grace_period"} <= set(service)
        assert not {"privileged", "cap_add", "devices", "pid", "ipc", "env_file"} & set(service)

    def test_its_logs_do_not_fill_the_disk(self, name: str) -> None:
        assert SERVICES[name]["logging"]["options"] == {"max-size": "10m", "max-file": "5"}

    def test_it_writes_to_named_volumes_and_tmp(self, name: str) -> None:
        assert [place.partition(":")[0] for place in SERVICES[name]["tmpfs"]] == ["/tmp"]  # noqa: S108
        for mount in SERVICES[name].get("volumes", []):
            assert mount.split(":")[0] in COMPOSE["volumes"], "no folder of this machine"


@pytest.mark.parametrize("name", ["coordinator", *SITES])
def test_every_volume_of_an_image_has_a_name(name: str, images) -> None:
    image = images["site" if name in SITES else name]
    assert set(image.volumes) <= {mount.split(":")[1] for mount in SERVICES[name]["volumes"]}


class TestWhoReachesWhom:
    def test_each_site_has_a_line_of_its_own_to_the_coordinator(self) -> None:
        assert len(SITES) == 3
        lines = [tuple(SERVICES[name]["networks"]) for name in SITES]
        assert len(set(lines)) == len(SITES)
        for (line,) in lines:
            assert COMPOSE["networks"][line] == {"internal": True}
            assert line in SERVICES["coordinator"]["networks"]

    def test_sites_offer_no_port_and_the_coordinator_one(self) -> None:
        assert not any({"ports", "expose"} & set(SERVICES[name]) for name in SITES)
        assert SERVICES["coordinator"]["ports"] == ["${EUCAIM_FL_BIND:-127.0.0.1}:8443:8443"]

    def test_mlflow_shares_files_with_the_coordinator_but_no_network(self) -> None:
        assert not set(SERVICES["mlflow"]["networks"]) & set(SERVICES["coordinator"]["networks"])
        assert SERVICES["mlflow"]["ports"] == ["127.0.0.1:5000:5000"]

    def test_sites_share_nothing_but_the_demo_cohorts_which_they_only_read(self) -> None:
        mounts = {name: set(SERVICES[name]["volumes"]) for name in SITES}
        assert set.intersection(*mounts.values()) == {"cohorts:/data:ro"}
        assert all(len(one) == 2 for one in mounts.values())
        assert len(set.union(*mounts.values())) == 1 + len(SITES)


def test_every_variable_has_a_default_which_the_example_shows() -> None:
    used = dict(re.findall(r"\$\{(\w+):-([^}]*)\}", FILE.read_text()))
    assert len(re.findall(r"\$\{", FILE.read_text())) == len(re.findall(r"\$\{\w+:-", FILE.read_text()))
    lines = (ROOT / "docker/.env.example").read_text().splitlines()
    shown = dict(line.partition("#")[0].strip().split("=", 1) for line in lines if line[:1].isalpha())
    assert shown == used


def test_images_are_those_of_this_version(images) -> None:
    for name, service in SERVICES.items():
        kind = "coordinator" if name in ("coordinator", "mlflow") else "site"
        version = next(rest for rest in images[kind].final.all("ARG") if rest.startswith("VERSION=")).split("=")[1]
        assert service["image"] == f"eucaim-fl-{kind}:${{EUCAIM_FL_VERSION:-{version}}}"

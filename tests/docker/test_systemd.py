"""The systemd units: valid, hardened, and made of commands that exist."""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
from pathlib import Path

import pytest

pytestmark = pytest.mark.integration

FOLDER = Path(__file__).parents[2] / "docker/systemd"
UNITS = sorted(path.name for path in FOLDER.glob("*.service"))
EACH = pytest.mark.parametrize("name", UNITS)
HARDENED = {
    "NoNewPrivileges": "yes",
    "ProtectSystem": "strict",
    "ProtectHome": "yes",
    "PrivateTmp": "yes",
    "PrivateDevices": "yes",
    "CapabilityBoundingSet": "",
    "AmbientCapabilities": "",
    "RestrictNamespaces": "yes",
    "RestrictSUIDSGID": "yes",
    "SystemCallFilter": "@system-service",
    "UMask": "0077",
    "LimitCORE": "0",
}


def read(name: str) -> dict[str, list[str]]:
    """Every setting of a unit, with all its values."""
    found: dict[str, list[str]] = {}
    for line in (FOLDER / name).read_text().splitlines():
        if line and line[0] not in "#[":
            key, _, value = line.partition("=")
            found.setdefault(key, []).append(value)
    return found


def test_there_is_one_for_each_service() -> None:
    assert UNITS == ["eucaim-fl-federation.service", "eucaim-fl-site.service"]


@EACH
class TestAUnit:
    def test_systemd_accepts_it(self, name: str, tmp_path: Path) -> None:
        if shutil.which("systemd-analyze") is None:
            pytest.skip("this machine has no systemd-analyze")
        text = (FOLDER / name).read_text()
        (tmp_path / name).write_text(text.replace("/opt/eucaim-fl/bin/eucaim-fl", "/bin/true"))
        words = ["systemd-analyze", "verify", "--man=no", tmp_path / name]
        done = subprocess.run(words, capture_output=True, text=True)
        own = [line for line in done.stderr.splitlines() if name in line]
        assert (done.returncode, own) == (0, [])

    def test_systemd_calls_its_exposure_low(self, name: str) -> None:
        if shutil.which("systemd-analyze") is None:
            pytest.skip("this machine has no systemd-analyze")
        words = ["systemd-analyze", "security", "--offline=true", "--threshold=20", "--no-pager", FOLDER / name]
        done = subprocess.run(words, capture_output=True, text=True)
        if "unrecognized option" in done.stderr:
            pytest.skip("this systemd-analyze can't judge files (before 250)")
        assert done.returncode == 0, done.stdout[-300:]

    def test_it_is_hardened(self, name: str) -> None:
        unit = read(name)
        assert {key: unit[key][-1] for key in HARDENED} == HARDENED

    def test_it_ends_cleanly_and_does_not_start_for_ever(self, name: str) -> None:
        unit = read(name)
        assert unit["Type"] == ["exec"], "the commands tell nobody that they are ready"
        assert unit["KillMode"] == ["mixed"]
        assert unit["KillSignal"] == ["SIGTERM"]
        assert unit["Restart"] == ["on-failure"]
        assert unit["RestartPreventExitStatus"] == ["2"]
        assert int(unit["TimeoutStopSec"][0]) >= 60
        assert int(unit["StartLimitBurst"][0]) * int(unit["RestartSec"][0]) < int(unit["StartLimitIntervalSec"][0])

    def test_it_shows_how_addresses_are_limited_and_leaves_the_choice(self, name: str) -> None:
        text = (FOLDER / name).read_text()
        assert re.search(r"^#IPAddressDeny=any$", text, re.M)
        assert re.search(r"^#IPAddressAllow=localhost ", text, re.M)
        assert re.search(r"^#MemoryMax=", text, re.M)

    def test_it_runs_what_the_image_runs_on_folders_that_it_may_write(self, name: str, images) -> None:
        unit = read(name)
        kind = "site" if "site" in name else "coordinator"
        program, *words = shlex.split(unit["ExecStart"][0])
        assert program == "/opt/eucaim-fl/bin/eucaim-fl"
        home = {"site": "/var/lib/eucaim-fl/site", "coordinator": "/var/lib/eucaim-fl/federations"}[kind]
        assert [word.replace(home, "/home/site") for word in words] == images[kind].final.words("CMD")
        assert home in unit["ReadWritePaths"][0].split()
        (set_,) = [value for value in unit["Environment"] if value.startswith("EUCAIM_FL_")]
        key, _, value = set_.partition("=")
        assert value == home
        assert key in images[kind].environment

"""Imports point down, each heavy library has one door, and a command starts without the heavy ones."""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.integration

ROOT = Path(__file__).parents[1]
SETTINGS: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]
LAYERS = next(contract["layers"] for contract in SETTINGS["contracts"] if contract["type"] == "layers")
DOORS = {
    contract["name"]: contract
    for contract in SETTINGS["contracts"]
    if contract["type"] == "forbidden" and contract["name"].startswith("Only ")
}
PARTS = {
    f"eucaim_fl.{path.stem}"
    for path in (ROOT / "eucaim_fl").iterdir()
    if path.name != "__init__.py" and (path.suffix == ".py" or (path / "__init__.py").is_file())
}


class TestContracts:
    def test_they_hold(self) -> None:
        command = Path(sys.executable).with_name("lint-imports")
        done = subprocess.run(
            [command, "--no-cache", "--no-logo"], cwd=ROOT, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stdout + done.stderr

    def test_every_module_has_its_layer(self) -> None:
        assert sorted(name.strip() for layer in LAYERS for name in layer.split("|")) == sorted(PARTS)

    @pytest.mark.parametrize("name", sorted(DOORS))
    def test_a_heavy_library_has_the_doors_that_the_contract_names(self, name: str) -> None:
        closed = set(DOORS[name]["source_modules"])
        assert closed <= PARTS
        named = name.removeprefix("Only ").partition(" touch")[0].split(" and ")
        assert sorted(PARTS - closed) == sorted(self.part(door) for door in named)

    def part(self, door: str) -> str:
        """The part of the package that a door is, or the one whose module it is."""
        if f"eucaim_fl.{door}" in PARTS:
            return f"eucaim_fl.{door}"
        (module,) = (ROOT / "eucaim_fl").glob(f"*/{door}.py")
        return f"eucaim_fl.{module.parent.name}"

    def test_cryptography_is_imported_by_signing_and_certificates_alone(self) -> None:
        importers = {
            str(path.relative_to(ROOT / "eucaim_fl"))
            for path in (ROOT / "eucaim_fl").rglob("*.py")
            if re.search(r"^\s*(from|import) cryptography\b", path.read_text(), re.MULTILINE)
        }
        assert importers == {"signing.py", "federation/certificates.py"}


class TestStartingUp:
    def loaded(self, *modules: str) -> set[str]:
        code = f"import sys, {', '.join(modules)}; print(*{{name.split('.')[0] for name in sys.modules}})"
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
        return set(done.stdout.split())

    def test_a_command_and_the_coordinator_do_not_wait_for_what_only_sites_and_reports_need(self) -> None:
        loaded = self.loaded("eucaim_fl.cli", "eucaim_fl.compose", "eucaim_fl.federation.coordinator")
        assert {"eucaim_fl", "hydra", "flwr"} <= loaded
        heavy = {"torch", "monai", "mlflow", "matplotlib", "scipy", "sklearn", "pandas", "ray"}
        assert not loaded & (heavy | {"pydicom", "highdicom", "nibabel"})

    def test_rules_of_aggregation_need_numpy_only(self) -> None:
        loaded = self.loaded("eucaim_fl.strategies.aggregation", "eucaim_fl.strategies.server_optimizer")
        assert not loaded & {"torch", "monai", "flwr", "hydra", "mlflow", "scipy"}

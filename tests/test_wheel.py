"""An installed wheel works in an empty folder, far from the checkout."""

from __future__ import annotations

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

pytestmark = pytest.mark.integration

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    subprocess.run(
        [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "-w", folder, ROOT],
        check=True,
    )
    (built,) = folder.glob("eucaim_fl-*.whl")
    return built


def test_it_holds_recipes_groups_and_site_files_and_no_tests(wheel: Path):
    names = zipfile.ZipFile(wheel).namelist()
    for wanted in ("configs/train.yaml", "configs/method/fedavg.yaml", "experiments/demo.yaml", "sites/a.yaml"):
        assert f"eucaim_fl/_resources/{wanted}" in names
    assert "eucaim_fl/validation/templates/report.html.j2" in names
    assert not any(name.startswith(("tests", "data", "runs")) for name in names)


@pytest.mark.federated
def test_the_demo_runs_from_it_in_an_empty_folder(wheel: Path, tmp_path: Path):
    site = tmp_path / "site"
    zipfile.ZipFile(wheel).extractall(site)
    empty = tmp_path / "empty"
    empty.mkdir()
    script = "import eucaim_fl, sys; print(eucaim_fl.__file__, file=sys.stderr); from eucaim_fl.cli import main; main()"
    words = [
        "train",
        "experiment=demo",
        "rounds=1",
        "training.local_steps=3",
        "tracking=none",
        "runs_dir=here",
        "sites=[a,b]",
    ]
    done = subprocess.run(
        [sys.executable, "-c", script, *words],
        cwd=empty,
        env={**os.environ, "PYTHONPATH": str(site)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr.startswith(str(site))
    assert Path(done.stdout.strip().splitlines()[-1]).parent == empty / "here"
    assert {p.name for p in empty.iterdir()} == {"data", "here"}

"""An installed wheel works in an empty folder, far from the checkout."""

from __future__ import annotations

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from tests.conftest import write_hospital

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


def test_it_holds_every_file_of_the_package_as_it_is_here(wheel: Path):
    """So what the other tests prove of the checkout holds of what is installed."""
    here = {path.relative_to(ROOT).as_posix(): path for path in (ROOT / "eucaim_fl").rglob("*") if path.is_file()}
    for folder in ("configs", "experiments", "sites"):
        files = [path for path in (ROOT / folder).rglob("*") if path.is_file()]
        here |= {f"eucaim_fl/_resources/{path.relative_to(ROOT).as_posix()}": path for path in files}
    here = {name: path for name, path in here.items() if "__pycache__" not in name}
    with zipfile.ZipFile(wheel) as archive:
        inside = {name for name in archive.namelist() if ".dist-info/" not in name}
        assert inside == set(here)
        assert [name for name, path in here.items() if archive.read(name) != path.read_bytes()] == []


@pytest.fixture(scope="module")
def site(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of packages with the wheel's."""
    folder = tmp_path_factory.mktemp("site")
    zipfile.ZipFile(wheel).extractall(folder)
    return folder


def run(site: Path, at: Path, *words: str) -> str:
    """The last line of a command of the installed package, in a folder that is made for it."""
    at.mkdir()
    script = "import eucaim_fl, sys; print(eucaim_fl.__file__, file=sys.stderr); from eucaim_fl.cli import main; main()"
    done = subprocess.run(
        [sys.executable, "-c", script, *words],
        cwd=at,
        env={**os.environ, "PYTHONPATH": str(site)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr.startswith(str(site))
    return done.stdout.strip().splitlines()[-1]


@pytest.mark.long
@pytest.mark.federated
def test_a_recipe_of_it_trains_in_an_empty_folder(site: Path, tmp_path: Path):
    """The demo's recipe, choices and network, over hospitals of a few voxels."""
    hospitals = [write_hospital(tmp_path, name) for name in "ab"]
    words = ["experiment=demo", "prepare=null", "rounds=1", "training.local_steps=2", "tracking=none", "runs_dir=here"]
    empty = tmp_path / "empty"
    said = run(site, empty, "train", *words, f"sites=[{','.join(map(str, hospitals))}]")
    assert Path(said).parent == empty / "here"
    assert {p.name for p in empty.iterdir()} == {"here"}


@pytest.mark.federated
@pytest.mark.slow
def test_the_demo_runs_from_it_in_an_empty_folder(site: Path, tmp_path: Path):
    words = ["experiment=demo", "rounds=1", "training.local_steps=3", "tracking=none", "runs_dir=here", "sites=[a,b]"]
    empty = tmp_path / "empty"
    assert Path(run(site, empty, "train", *words)).parent == empty / "here"
    assert {p.name for p in empty.iterdir()} == {"data", "here"}

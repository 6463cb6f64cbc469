"""Provenance: what a result came from, without naming people, hosts or folders."""

from __future__ import annotations

import getpass
import json
import platform
import socket
import subprocess
from pathlib import Path

import numpy as np
import pytest

import eucaim_fl
from eucaim_fl.config import ExperimentConfig
from eucaim_fl.plan import FederationPlan, make_plan
from eucaim_fl.tracking import provenance
from eucaim_fl.tracking.provenance import collect

pytestmark = pytest.mark.integration


@pytest.fixture
def plan() -> FederationPlan:
    config = ExperimentConfig.model_validate(
        {
            "name": "lesions",
            "seed": 7,
            "sites": ("a", "b"),
            "task": {"name": "segmentation", "labels": ("lesion",)},
            "model": {"name": "unet"},
            "training": {"local_steps": 1},
        }
    )
    return make_plan(config, ("a", "b"))


def checkout(folder: Path, *words: str) -> str:
    who = ["-c", "user.name=x", "-c", "user.email=x@example.org"]
    return subprocess.run(["git", *who, *words], cwd=folder, check=True, capture_output=True, text=True).stdout.strip()


class TestCollect:
    def test_it_holds_versions_seed_plan_machine_and_cohorts(self, plan: FederationPlan) -> None:
        found = collect(plan, cohort_fingerprints={"b": "22", "a": "11"})
        assert found["python"] == platform.python_version()
        assert found["packages"]["numpy"] == np.__version__
        assert found["packages"]["eucaim-fl"] == eucaim_fl.__version__
        assert {"torch", "monai", "flwr", "mlflow"} <= set(found["packages"])
        assert (found["seed"], found["plan_sha256"]) == (7, plan.sha256())
        assert list(found["cohorts"].items()) == [("a", "11"), ("b", "22")]
        assert found["machine"]["cores"] >= 1
        assert found["machine"]["cpu"]

    def test_it_is_plain_json(self, plan: FederationPlan) -> None:
        found = collect(plan, cohort_fingerprints={})
        assert json.loads(json.dumps(found, allow_nan=False)) == found

    def test_it_names_no_user_host_or_folder(self, plan: FederationPlan) -> None:
        text = json.dumps(collect(plan, cohort_fingerprints={}))
        assert str(Path.home()) not in text
        assert str(Path(eucaim_fl.__file__).parent) not in text
        assert socket.gethostname() not in text
        assert f'"{getpass.getuser()}"' not in text


class TestGit:
    @pytest.fixture
    def package(self, tmp_path: Path) -> Path:
        package = tmp_path / "package"
        package.mkdir()
        (package / "__init__.py").write_text("one = 1\n")
        checkout(tmp_path, "init", "-q")
        return package

    def test_a_committed_package_gives_its_commit(self, package: Path) -> None:
        checkout(package, "add", ".")
        checkout(package, "commit", "-q", "-m", "first")
        assert provenance._git(package) == {"commit": checkout(package, "rev-parse", "HEAD"), "dirty": False}

    def test_a_changed_file_makes_it_dirty(self, package: Path) -> None:
        checkout(package, "add", ".")
        checkout(package, "commit", "-q", "-m", "first")
        (package / "__init__.py").write_text("one = 2\n")
        state = provenance._git(package)
        assert state is not None
        assert state["dirty"] is True

    def test_a_package_that_a_checkout_around_it_does_not_track_has_no_commit(self, package: Path) -> None:
        assert provenance._git(package) is None

    def test_without_git_there_is_no_commit_and_no_error(self, package: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("PATH", "")
        assert provenance._git(package) is None

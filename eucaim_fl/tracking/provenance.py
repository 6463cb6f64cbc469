"""Where a result came from: software, code, machine, plan and data, without naming people, hosts or folders."""

from __future__ import annotations

import os
import platform
import subprocess
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import TypedDict

import eucaim_fl
from eucaim_fl.plan import FederationPlan

__all__ = ["GitState", "Machine", "Provenance", "collect"]

_PACKAGES = (
    "eucaim-fl", "flwr", "highdicom", "hydra-core", "matplotlib", "mlflow", "monai", "nibabel", "numpy", "pydantic",
    "pydicom", "safetensors", "scikit-learn", "scipy", "torch",
)  # fmt: skip
_GIT_SECONDS = 5.0


class GitState(TypedDict):
    """The checkout that the package runs from. dirty: tracked files differ from the commit."""

    commit: str
    dirty: bool


class Machine(TypedDict):
    """What the coordinator ran on. cores: those that this process may use."""

    system: str
    architecture: str
    cpu: str
    cores: int


class Provenance(TypedDict):
    """JSON values only. git: None if the package is installed rather than checked out. cohorts: site → fingerprint."""

    python: str
    packages: dict[str, str]
    git: GitState | None
    seed: int
    plan_sha256: str
    machine: Machine
    cohorts: dict[str, str]


def collect(plan: FederationPlan, *, cohort_fingerprints: Mapping[str, str]) -> Provenance:
    """Versions, commit, seed, plan hash, machine and cohort fingerprints of a run.

    cohort_fingerprints: site → digest that the site made of its cohort; must itself hold no identifier.
    Versions come from installed metadata, so nothing heavy is imported; packages that are not installed are left out.
    The result holds no user name, host name or path.
    """
    return {
        "python": platform.python_version(),
        "packages": _versions(),
        "git": _git(Path(eucaim_fl.__file__).parent),
        "seed": plan.seed,
        "plan_sha256": plan.sha256(),
        "machine": {
            "system": f"{platform.system()} {platform.release()}",
            "architecture": platform.machine(),
            "cpu": _cpu(),
            "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1,
        },
        "cohorts": dict(sorted(cohort_fingerprints.items())),
    }


def _versions() -> dict[str, str]:
    found: dict[str, str] = {}
    for name in _PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    found.setdefault("eucaim-fl", eucaim_fl.__version__)
    return dict(sorted(found.items()))


def _git(package: Path) -> GitState | None:
    """State of the checkout that tracks the package's own files; None for any other repository around it."""

    def ask(*words: str) -> str:
        done = subprocess.run(  # noqa: S603  fixed words, no shell
            ["git", "-C", str(package), *words],  # noqa: S607  git is wherever the user has it
            capture_output=True,
            text=True,
            timeout=_GIT_SECONDS,
            check=True,
            env={**os.environ, "GIT_OPTIONAL_LOCKS": "0"},
        )
        return done.stdout.strip()

    try:
        ask("ls-files", "--error-unmatch", "__init__.py")  # a virtual environment may lie inside a foreign checkout
        return {
            "commit": ask("rev-parse", "HEAD"),
            "dirty": bool(ask("status", "--porcelain", "--untracked-files=no", "--", ".")),
        }
    except (OSError, subprocess.SubprocessError):
        return None


def _cpu() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        lines = []
    names = (line.split(":", 1)[1].strip() for line in lines if line.startswith("model name") and ":" in line)
    return next(names, "") or platform.processor() or platform.machine()

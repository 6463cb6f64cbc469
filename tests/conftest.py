"""Tiny hospitals for tests: NIfTI volumes of a few voxels with a bright ball to find."""

from __future__ import annotations

import csv
import gc
import logging
import os
import signal
from collections.abc import Callable, Iterator
from itertools import count
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
import yaml
from hypothesis import settings
from numpy.typing import NDArray
from xdist.scheduler import LoadScopeScheduling

from eucaim_fl.cohorts.cache import Entry
from eucaim_fl.cohorts.cohort import PreparedCase
from eucaim_fl.cohorts.monai_parts import load
from eucaim_fl.cohorts.preprocess import summarize_label
from eucaim_fl.config import ExperimentConfig, TaskConfig
from eucaim_fl.plan import FederationPlan, make_plan
from eucaim_fl.training.eager import without_compiler
from tests.groups import TOGETHER, end_all, group_of

SIZE = (16, 16, 4)

if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:  # as a shell starts what runs in the background
    signal.signal(signal.SIGINT, signal.default_int_handler)
settings.register_profile("eucaim_fl", deadline=None)  # how long an example takes says nothing on a busy machine
settings.register_profile("quick", deadline=None, max_examples=25)  # for `make unit`; `make test` tries them all
settings.load_profile("eucaim_fl")


def write_hospital(root: Path, name: str, patients: int = 12, seed: int = 0, **release: Any) -> Path:
    """A cohort of NIfTI files with a plain CSV under root/data/<name>, and its site file; returns the site file."""
    folder = root / "data" / name
    (folder / "images").mkdir(parents=True)
    (folder / "labels").mkdir()
    rng = np.random.default_rng([seed, sum(name.encode())])
    rows = []
    grid = np.stack(np.meshgrid(*(np.arange(n) for n in SIZE), indexing="ij"), axis=-1)
    for number in range(patients):
        identifier = f"PATIENT-{number:03d}"
        centre = np.array([rng.integers(5, 11), rng.integers(5, 11), rng.integers(1, 3)])
        distance = np.linalg.norm((grid - centre) * [1, 1, 2], axis=-1)
        mask = distance < rng.uniform(2.5, 4.0)
        image = rng.normal(0, 20, SIZE) + 100 * mask
        affine = np.diag([2.0, 2.0, 4.0, 1.0])
        for kind, array in (("images", image.astype(np.float32)), ("labels", mask.astype(np.uint8))):
            nibabel.save(nibabel.Nifti1Image(array, affine), folder / kind / f"{identifier}.nii.gz")
        rows.append(
            {
                "patient_id": identifier,
                "image": f"images/{identifier}.nii.gz",
                "label": f"labels/{identifier}.nii.gz",
                "malignant": str(int(mask.sum() > 60)),
            }
        )
    with (folder / "clinical.csv").open("w", newline="") as stream:
        writer = csv.DictWriter(stream, fieldnames=list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    site_file = root / f"{name}.yaml"
    site_file.write_text(
        yaml.safe_dump(
            {
                "name": name,
                "cohort": {"layout": "nifti_csv", "folder": str(folder)},
                "cache": {"folder": str(root / "cache" / name)},
                "release": {
                    "data_is": "synthetic",
                    "minimum_patients": 2,
                    "minimum_metric_patients": 1,
                    "score_histograms": True,
                    **release,
                },
            }
        )
    )
    return site_file


def tiny_recipe(root: Path, site_files: list[Path], **changes: Any) -> ExperimentConfig:
    """A recipe that trains a very small 2-D U-Net on tiny hospitals in a second or two."""
    values: dict[str, Any] = {
        "name": "tiny",
        "seed": 0,
        "rounds": 2,
        "sites": [str(path) for path in site_files],
        "task": {"name": "segmentation", "spatial_dims": 2, "labels": ["lesion"]},
        "model": {
            "name": "unet",
            "args": {"channels": [4, 8], "strides": [2], "num_res_units": 0, "norm": "batch", "dropout": 0.1},
        },
        "data": {"size_voxels": [16, 16, None], "intensity": {"kind": "window", "low": -50.0, "high": 150.0}},
        "training": {"batch_size": 4, "local_steps": 3, "optimizer": {"name": "sgd", "lr": 0.1}},
        "federation": {"quorum": 1, "quorum_wait_s": 0.0, "workers": 2},
        "tracking": {"enabled": False},
        "runs_dir": str(root / "runs"),
    }
    for key, value in changes.items():
        values[key] = (
            {**values[key], **value} if isinstance(value, dict) and isinstance(values.get(key), dict) else value
        )
    return ExperimentConfig.model_validate(values)


@pytest.fixture
def one_thread() -> Iterator[None]:
    """PyTorch with one thread, as at sites; threads that wait for each other take longer than small layers do."""
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def composed_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Hydra composes everything twice, the first time only to learn whether a recipe itself asks for a sweep.

    None of ours does, and what becomes of sweeps is tested in `test_compose`: for tests of many recipes.
    """
    from hydra._internal.hydra import Hydra

    monkeypatch.setattr(Hydra, "get_mode", lambda *_, **__: None)


@pytest.fixture
def hospital(tmp_path: Path) -> Callable[..., Path]:
    """Writes one tiny hospital under the test's folder and returns its site file."""
    return lambda name, **options: write_hospital(tmp_path, name, **options)


@pytest.fixture
def recipe(tmp_path: Path) -> Callable[..., ExperimentConfig]:
    """Makes a recipe over site files."""
    return lambda site_files, **changes: tiny_recipe(tmp_path, site_files, **changes)


@pytest.fixture
def plan_for(tmp_path: Path) -> Callable[..., FederationPlan]:
    """Makes the plan of a tiny recipe for site `a` without any file; `task` is replaced as a whole."""

    def make(task: TaskConfig | None = None, **changes: Any) -> FederationPlan:
        config = tiny_recipe(tmp_path, [Path("a.yaml")], **changes)
        return make_plan(config if task is None else config.model_copy(update={"task": task}), ("a",))

    return make


@pytest.fixture
def prepared_case(tmp_path: Path) -> Callable[..., PreparedCase]:
    """Writes one prepared case: image (I, J, K), label of the same shape or None."""
    numbers = count()

    def make(
        image: NDArray[Any], label: NDArray[Any] | None = None, patient: str = "p", target: int | None = None
    ) -> PreparedCase:
        stem = tmp_path / f"case-{next(numbers)}"
        np.save(f"{stem}-image.npy", np.asarray(image, np.float32)[None])
        path = None
        slices, voxels = (), np.zeros((0, 3), np.int64)
        if label is not None:
            path = Path(f"{stem}-label.npy")
            np.save(path, np.asarray(label, np.uint8))
            slices, voxels = summarize_label(np.asarray(label, np.uint8))
        return PreparedCase(patient, target, Entry(Path(f"{stem}-image.npy"), path, (2.0, 2.0, 4.0), slices, voxels))

    return make


class _Scheduling(LoadScopeScheduling):
    def _split_scope(self, nodeid: str) -> str:
        return group_of(nodeid)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> LoadScopeScheduling:
    """Groups of tests are handed out in the order in which they are collected."""
    config.option.loadscopereorder = False
    return _Scheduling(config, log)


def pytest_configure(config: pytest.Config) -> None:
    """A process of many that run the whole suite will need MONAI; it loads it as the product's processes do.

    As there, who trains loads no compiler, and libraries' own threads are held at one a process: the processes share
    the machine's cores.
    What is imported stays: to look through it for garbage, again and again, is two fifths of the time to collect tests.
    """
    gc.disable()
    without_compiler()
    if hasattr(config, "workerinput"):
        os.environ.setdefault("OMP_NUM_THREADS", "1")
        load("monai.networks.nets", "monai.inferers", "monai.losses", "monai.transforms", "monai.data")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """A test that asks for real data is no unit test. What starts processes goes first: so all workers end together."""
    for item in items:
        if {"shared_data", "conformance"} & set(getattr(item, "fixturenames", ())):
            item.add_marker("realdata")
    heavy = {group_of(item.nodeid) for item in items if item.get_closest_marker("federated")}
    rank = {group: number for number, group in enumerate([*TOGETHER, *sorted(heavy - set(TOGETHER))])}
    items.sort(key=lambda item: rank.get(group_of(item.nodeid), len(rank)))


@pytest.hookimpl(trylast=True)
def pytest_unconfigure() -> None:
    """Libraries count at the end what is left of theirs; behind pytest, which looks for garbage once more."""
    gc.unfreeze()


def pytest_collection_finish() -> None:
    """Garbage is looked for from here on, but not in what was imported; and the libraries' loggers are like all others.

    pytest puts its own handler, six times a test, on each logger that does not hand on to the root: PyTorch has fifty.
    """
    gc.collect()
    gc.freeze()
    gc.enable()
    for name, logger in logging.root.manager.loggerDict.items():
        if isinstance(logger, logging.Logger) and name.partition(".")[0] in ("torch", "monai"):
            logger.propagate = True


@pytest.hookimpl(trylast=True)
def pytest_runtest_teardown(item: pytest.Item, nextitem: pytest.Item | None) -> None:
    """What a group of tests has started ends with its last one."""
    if nextitem is None or group_of(nextitem.nodeid) != group_of(item.nodeid):
        end_all(item.config)

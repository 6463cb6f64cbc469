"""What the benchmark works on: synthetic hospitals on disk, a recipe for them, and the same job for the bare loop."""

from __future__ import annotations

import csv
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import yaml

from eucaim_fl.cohorts.cohort import open_cohort
from eucaim_fl.plan import FederationPlan
from eucaim_fl.seeding import derive_seed
from eucaim_fl.sitefile import load_site_file

__all__ = ["NETWORKS", "Job", "write_bare_job", "write_hospitals", "write_recipe"]

NETWORKS: Mapping[str, dict[str, Any]] = {
    "cnn-0.1M": {"name": "small_cnn", "args": {"channels": [32, 64, 128], "strides": [2, 2, 2]}},
    "cnn-7M": {"name": "small_cnn", "args": {"channels": [72, 144, 288, 576, 1024], "strides": [2, 2, 2, 2, 2]}},
    "densenet121": {"name": "densenet121", "args": {}},
    "cnn-25M": {
        "name": "small_cnn",
        "args": {"channels": [64, 256, 1024, 1024, 1024, 384], "strides": [2, 2, 2, 2, 1, 1]},
    },
}


@dataclass(frozen=True)
class Job:
    """One training. images: training images a site, one a patient; as many quarters validate and test.

    An epoch a round; `images` is a multiple of `batch`. pixels: along both edges.
    """

    network: str
    sites: int
    workers: int
    rounds: int = 5
    images: int = 64
    batch: int = 16
    pixels: int = 64
    site_files: tuple[Path, ...] = field(default=(), repr=False)

    @property
    def held_out(self) -> int:
        """Validation images, and again as many test images."""
        return max(2, self.images // 4)


def write_hospitals(root: Path, job: Job) -> tuple[Path, ...]:
    """Site files of `job.sites` hospitals: NIfTI with a CSV, one slice a patient, every other slice brighter."""
    found = []
    for number in range(job.sites):
        name = f"s{number:03d}"
        folder = root / "data" / name
        folder.mkdir(parents=True)
        rng = np.random.default_rng([2026, number])
        rows = []
        for patient in range(job.images + 2 * job.held_out):
            pixels = rng.normal(20.0 * (patient % 2), 40.0, (job.pixels, job.pixels, 1)).astype(np.float32)
            nibabel.save(nibabel.Nifti1Image(pixels, np.diag([1.0, 1.0, 5.0, 1.0])), folder / f"p{patient:03d}.nii")
            rows.append([f"p{patient:03d}", f"p{patient:03d}.nii", patient % 2])
        with (folder / "clinical.csv").open("w", newline="") as stream:
            csv.writer(stream).writerows([["patient_id", "image", "malignant"], *rows])
        site = {
            "name": name,
            "cohort": {"layout": "nifti_csv", "folder": str(folder)},
            "cache": {"folder": str(root / "cache" / name)},
            "release": {
                "data_is": "synthetic",
                "minimum_patients": 1,
                "minimum_metric_patients": 1,
                "score_histograms": True,
            },
        }
        path = root / f"{name}.yaml"
        path.write_text(yaml.safe_dump(site))
        found.append(path)
    return tuple(found)


def write_recipe(folder: Path, job: Job) -> str:
    """Write the recipe into the `experiments/` of a working folder; returns its name."""
    network, share = NETWORKS[job.network], job.held_out / (job.images + 2 * job.held_out)
    recipe = {
        "defaults": [{"override /task": "classification_2d"}, {"override /model": network["name"]}],
        "name": f"{job.network.replace('.', '-').lower()}-{job.sites}",
        "sites": [str(path) for path in job.site_files],
        "rounds": job.rounds,
        "model": {"args": network["args"]},
        "data": {
            "modality": None,
            "spacing_mm": [None, None, None],
            "size_voxels": [job.pixels, job.pixels, None],
            "split": {"validation": share, "test": share},
        },
        "training": {
            "batch_size": job.batch,
            "local_steps": None,
            "local_epochs": 1,
            "inference_batch": job.batch,
            "optimizer": {"name": "sgd", "lr": 0.01, "momentum": 0.9, "weight_decay": 0.0},
            "augmentation": {"flip": 0.0, "scale_intensity": 0.0, "shift_intensity": 0.0},
        },
        "federation": {"workers": job.workers},
    }
    (folder / "experiments").mkdir(exist_ok=True)
    (folder / "experiments" / f"{recipe['name']}.yaml").write_text(yaml.safe_dump(recipe, sort_keys=False))
    return str(recipe["name"])


def _cases(plan: FederationPlan, path: Path) -> dict[str, list[tuple[str, int | None]]]:
    splits = open_cohort(load_site_file(path), plan).splits
    return {name: [(str(case.entry.image_path), case.target) for case in cases] for name, cases in splits.items()}


def write_bare_job(path: Path, plan: FederationPlan, job: Job) -> None:
    """The plan in the bare loop's words: paths of cached tensors, and the seeds that training derives from the plan."""
    sites: Sequence[dict[str, Any]] = [
        {
            **_cases(plan, file),
            "order_seeds": [
                derive_seed(derive_seed(plan.seed, "training", name, number), "order")
                for number in range(1, plan.rounds + 1)
            ],
        }
        for name, file in zip(plan.sites, job.site_files, strict=True)
    ]
    if any(len(site["train"]) % job.batch for site in sites):
        raise ValueError("the bare loop wants whole batches")
    values = {
        "network": NETWORKS[job.network],
        "initial_seed": derive_seed(plan.seed, "initial weights"),
        "pixels": job.pixels,
        "rounds": plan.rounds,
        "workers": job.workers,
        "batch": plan.training.batch_size,
        "lr": plan.training.optimizer.lr,
        "momentum": plan.training.optimizer.momentum,
        "sites": sites,
    }
    path.write_text(json.dumps(values))

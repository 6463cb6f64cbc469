"""Several channels: whatever is cut or turned, they stay together; pictures show the first."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from eucaim_fl.cohorts.cache import Entry
from eucaim_fl.cohorts.cohort import PreparedCase
from eucaim_fl.cohorts.preprocess import summarize_label
from eucaim_fl.config import AugmentationConfig, ClassificationConfig, DataConfig, SegmentationConfig
from eucaim_fl.plan import FederationPlan
from eucaim_fl.tasks import for_task
from eucaim_fl.training.augmentation import augmenter

Plans = Callable[..., FederationPlan]

TASKS = [
    SegmentationConfig(spatial_dims=2, labels=("lesion",)),
    SegmentationConfig(spatial_dims=3, labels=("lesion",)),
    ClassificationConfig(spatial_dims=2, target="malignant", classes=("no", "yes")),
    ClassificationConfig(spatial_dims=3, target="malignant", classes=("no", "yes")),
]


@pytest.fixture
def case(tmp_path: Path) -> PreparedCase:
    """16 x 12 x 8 voxels of noise; the second channel is the first one plus 100."""
    first = np.random.default_rng(0).normal(size=(16, 12, 8)).astype(np.float32)
    label = (first > 1).astype(np.uint8)
    np.save(tmp_path / "image.npy", np.stack([first, first + 100]))
    np.save(tmp_path / "label.npy", label)
    entry = Entry(tmp_path / "image.npy", tmp_path / "label.npy", (1.0, 1.0, 1.0), *summarize_label(label))
    return PreparedCase("p", 1, entry)


class Mean(torch.nn.Module):
    """Two logits: 0 and the mean over channels, for every voxel or for the whole image."""

    def __init__(self, voxels: bool) -> None:
        super().__init__()
        self.voxels = voxels
        self.weight = torch.nn.Parameter(torch.ones(1))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        assert images.shape[1] == 2
        mean = images.mean(dim=1) * self.weight
        logits = torch.stack([torch.zeros_like(mean), mean], dim=1)
        return logits if self.voxels else logits.flatten(2).mean(2)


class TestSeveralChannels:
    @pytest.mark.parametrize("task", TASKS, ids=lambda t: f"{t.name}-{t.spatial_dims}")
    @pytest.mark.parametrize("patched", [False, True])
    def test_an_example_holds_the_same_place_of_each(
        self, plan_for: Plans, case: PreparedCase, task: Any, patched: bool
    ) -> None:
        plan = plan_for(task, training={"patch_voxels": (8, 16, 4)[: task.spatial_dims] if patched else None})
        change = augmenter(AugmentationConfig(flip=0.5), task.spatial_dims, 0)
        for seed in range(5):
            image, _ = change(for_task(task).training_example(case, plan, np.random.default_rng(seed)))
            assert image.shape == (2, *((8, 16, 4) if patched else (16, 12, 8))[: task.spatial_dims])
            here = image[1] != 0  # what is padded is 0 in both
            assert here.any()
            assert np.allclose(image[1][here], image[0][here] + 100, atol=1e-4)
            assert not image[0][~here].any()

    @pytest.mark.parametrize("task", TASKS, ids=lambda t: f"{t.name}-{t.spatial_dims}")
    @pytest.mark.parametrize("patched", [False, True])
    def test_the_network_sees_all_of_them(self, plan_for: Plans, case: PreparedCase, task: Any, patched: bool) -> None:
        plan = plan_for(task, training={"patch_voxels": (8, 8, 4)[: task.spatial_dims] if patched else None})
        found = for_task(task).predict(Mean(task.name == "segmentation"), case, plan)
        if task.name == "segmentation":  # the mean of both is above 0 everywhere, that of the first alone is not
            assert found.shape == (16, 12, 8)
            assert found.all()
        else:
            assert found[1] > 0.99

    @pytest.mark.parametrize("task", TASKS[::2], ids=lambda t: t.name)
    def test_pictures_show_the_first(self, case: PreparedCase, task: Any, tmp_path: Path) -> None:
        def picture() -> np.ndarray:
            prediction = np.zeros((16, 12, 8), np.uint8) if task.name == "segmentation" else np.array([0.0, 1.0])
            return np.array(for_task(task).preview(case, prediction, DataConfig()))

        before = picture()
        values = np.load(tmp_path / "image.npy")
        other = Entry(tmp_path / "other.npy", case.entry.label_path, (1.0, 1.0, 1.0), (), case.entry.foreground_voxels)
        np.save(tmp_path / "other.npy", values[:1])
        case = PreparedCase("p", 1, other)
        assert np.array_equal(picture(), before)

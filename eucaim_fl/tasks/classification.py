"""Classification: one class for every patient's image, read from a clinical column."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from eucaim_fl.cohorts.cohort import PreparedCase
from eucaim_fl.config import TrainingConfig
from eucaim_fl.plan import FederationPlan
from eucaim_fl.tasks.pictures import PREDICTION_COLOUR, TRUTH_COLOUR, picture
from eucaim_fl.tasks.sampling import crop, patch_start

__all__ = ["loss", "predict", "preview", "training_example"]


def loss(training: TrainingConfig) -> Callable[[Tensor, Tensor], Tensor]:
    """Cross entropy: logits (B, classes) and class indices (B,) → one number."""
    cross_entropy = nn.CrossEntropyLoss()
    return lambda logits, classes: cross_entropy(logits, classes.long())


def training_example(
    case: PreparedCase, plan: FederationPlan, rng: np.random.Generator
) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """One image (1, *spatial) and its class (); a 2-D network gets a random slice along the third axis."""
    if case.target is None:
        raise ValueError("a case without class was selected for training")
    image: NDArray[Any] = case.image()
    if plan.task.spatial_dims == 2:
        image = image[..., int(rng.integers(image.shape[-1]))]
    size = plan.training.patch_voxels
    if size is not None:
        shape = image.shape[1:]
        image = crop(image, patch_start([int(rng.integers(n)) for n in shape], size, shape), size)
    return np.array(image, dtype=np.float32), np.array(case.target, dtype=np.int64)


@torch.no_grad()
def predict(network: nn.Module, case: PreparedCase, plan: FederationPlan) -> NDArray[np.float64]:
    """Probabilities (classes,) of a whole case; for a 2-D network the mean over all slices along the third axis.

    A plan with patches is predicted on the central patch.
    """
    training = plan.training
    image = torch.from_numpy(np.array(case.image(), dtype=np.float32))
    inputs = image.permute(3, 0, 1, 2) if plan.task.spatial_dims == 2 else image[None]
    if training.patch_voxels is not None:
        shape = tuple(inputs.shape[2:])
        start = patch_start([n // 2 for n in shape], training.patch_voxels, shape)
        inputs = torch.from_numpy(np.array(crop(inputs.numpy(), start, training.patch_voxels)))
    inputs = inputs.to(next(network.parameters()).device)
    rows = [torch.softmax(network(batch).double(), dim=1) for batch in torch.split(inputs, training.inference_batch)]
    return torch.cat(rows).mean(dim=0).cpu().numpy()


def preview(case: PreparedCase, prediction: NDArray[np.float64]) -> NDArray[np.uint8]:
    """The middle slice as a grey picture (H, W, 3) with a frame: green if the likeliest class is right, else orange."""
    image = np.asarray(case.image())[0]
    right = int(np.argmax(prediction)) == case.target
    return picture(image[..., image.shape[2] // 2], frame=TRUTH_COLOUR if right else PREDICTION_COLOUR)

"""Classification: one class for every patient's image, read from a clinical column."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from eucaim_fl.cohorts.cohort import PreparedCase
from eucaim_fl.config import DataConfig, TrainingConfig
from eucaim_fl.plan import FederationPlan
from eucaim_fl.tasks.whole_images import framed, image_example, image_rows

__all__ = ["loss", "predict", "predictions", "preview", "training_example"]


def loss(training: TrainingConfig, weights: Tensor | None = None) -> Callable[[Tensor, Tensor], Tensor]:
    """Cross entropy: logits (B, classes) and class indices (B,) → one number, the mean over the batch.

    weights: (classes,); each example's loss is multiplied by its class's. The mean is over the examples, not over their
    weights, which would take the weights away again from batches of one class.
    """
    if weights is None:
        cross_entropy = nn.CrossEntropyLoss()
        return lambda logits, classes: cross_entropy(logits, classes.long())
    each = nn.CrossEntropyLoss(reduction="none")
    return lambda logits, classes: (each(logits, classes.long()) * weights[classes.long()]).mean()


def training_example(
    case: PreparedCase, plan: FederationPlan, rng: np.random.Generator
) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """One image (C, *spatial) and its class (); a 2-D network gets a random slice along the third axis."""
    if case.target is None:
        raise ValueError("a case without class was selected for training")
    return image_example(case, plan, rng), np.array(case.target, dtype=np.int64)


def predictions(
    network: nn.Module, cases: Iterable[PreparedCase], plan: FederationPlan
) -> Iterator[NDArray[np.float64]]:
    """Probabilities (classes,) of each whole case, in order; see `image_rows`."""
    return image_rows(network, cases, plan, lambda logits: torch.softmax(logits, dim=1))


def predict(network: nn.Module, case: PreparedCase, plan: FederationPlan) -> NDArray[np.float64]:
    """Probabilities (classes,) of one whole case; see `predictions`."""
    return next(predictions(network, [case], plan))


def preview(case: PreparedCase, prediction: NDArray[np.float64], data: DataConfig) -> NDArray[np.uint8]:
    """The first channel's middle slice as a grey picture (H, W, 3) with a frame.

    The frame is blue if the likeliest class is right, else orange.
    """
    return framed(case, data, right=int(np.argmax(prediction)) == case.target)

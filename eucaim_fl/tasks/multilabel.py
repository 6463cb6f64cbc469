"""Multi-label: a yes or no for each of several clinical columns, of every patient's image."""

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


def loss(training: TrainingConfig) -> Callable[[Tensor, Tensor], Tensor]:
    """Binary cross entropy over what is known: logits (B, T) and targets (B, T) of 0, 1 or NaN → one number.

    −1/|K| · Σ_{(i,t) ∈ K} y·ln σ(z) + (1 − y)·ln(1 − σ(z)), K all pairs of example and target whose truth is known; 0
    (with a gradient of 0) where none is.
    """
    each = nn.BCEWithLogitsLoss(reduction="none")

    def measure(logits: Tensor, targets: Tensor) -> Tensor:
        logits, known = logits.float(), ~targets.isnan()
        losses = each(logits, targets.float().nan_to_num(0.0)) * known
        total: Tensor = losses.sum() / known.sum().clamp(min=1)
        return total

    return measure


def training_example(
    case: PreparedCase, plan: FederationPlan, rng: np.random.Generator
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """One image (C, *spatial) and its targets (T,), NaN where one is not known; see `image_example`."""
    if not case.targets:
        raise ValueError("a case without targets was selected for training")
    return image_example(case, plan, rng), np.array(case.targets, dtype=np.float32)


def predictions(
    network: nn.Module, cases: Iterable[PreparedCase], plan: FederationPlan
) -> Iterator[NDArray[np.float64]]:
    """Probability of each target (T,) of each whole case, in order; they need not sum to 1. See `image_rows`."""
    return image_rows(network, cases, plan, torch.sigmoid)


def predict(network: nn.Module, case: PreparedCase, plan: FederationPlan) -> NDArray[np.float64]:
    """Probability of each target (T,) of one whole case; see `predictions`."""
    return next(predictions(network, [case], plan))


def preview(case: PreparedCase, prediction: NDArray[np.float64], data: DataConfig) -> NDArray[np.uint8]:
    """The first channel's middle slice as a grey picture (H, W, 3) with a frame.

    The frame is blue if all targets that are known are right (above ½ for yes), else orange.
    """
    truth = np.array(case.targets)
    known = ~np.isnan(truth)
    return framed(case, data, right=bool(((prediction > 0.5) == (truth == 1))[known].all()))

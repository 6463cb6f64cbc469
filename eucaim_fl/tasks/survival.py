"""Survival: a log risk for every patient's image, from the time to an event that not everybody was seen to have."""

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
    """Cox's negative log partial likelihood of a batch: log risks (B, 1), and time and event (B, 2) → one number.

    −1/|E| · Σ_{i ∈ E} (ηᵢ − ln Σ_{j: tⱼ ≥ tᵢ} exp ηⱼ), E the examples whose event was seen, with Breslow's treatment of
    equal times; 0 (with a gradient of 0) where E is empty, and where nobody is compared. Risk sets are those of the
    batch, so of one site: patients of different hospitals are never compared, as in a Cox model stratified by hospital.
    A larger batch compares more patients.
    Source: Cox 1972, Regression Models and Life-Tables; Breslow 1974; of batches: Katzman et al. 2018, DeepSurv, eq. 4.
    """

    def measure(log_risks: Tensor, targets: Tensor) -> Tensor:
        risk, time, seen = log_risks[:, 0].float(), targets[:, 0], targets[:, 1] > 0
        at_risk = time[None, :] >= time[:, None]
        among = torch.where(at_risk, risk[None, :], -torch.inf).logsumexp(dim=1)
        total: Tensor = ((among - risk) * seen).sum() / seen.sum().clamp(min=1)
        return total

    return measure


def training_example(
    case: PreparedCase, plan: FederationPlan, rng: np.random.Generator
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """One image (C, *spatial) and its time and event (2,); see `image_example`."""
    if not case.targets:
        raise ValueError("a case without time and event was selected for training")
    return image_example(case, plan, rng), np.array(case.targets, dtype=np.float32)


def predictions(
    network: nn.Module, cases: Iterable[PreparedCase], plan: FederationPlan
) -> Iterator[NDArray[np.float64]]:
    """Log risk (1,) of each whole case, in order; only its order among patients means something. See `image_rows`."""
    return image_rows(network, cases, plan, lambda logits: logits)


def predict(network: nn.Module, case: PreparedCase, plan: FederationPlan) -> NDArray[np.float64]:
    """Log risk (1,) of one whole case; see `predictions`."""
    return next(predictions(network, [case], plan))


def preview(case: PreparedCase, prediction: NDArray[np.float64], data: DataConfig) -> NDArray[np.uint8]:
    """The first channel's middle slice as a grey picture (H, W, 3): of one patient alone no risk is right or wrong."""
    return framed(case, data, right=None)

"""Small plans and patients for attacks that take a second."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from eucaim_fl.config import ClassificationConfig
from eucaim_fl.exposure.alone import HeldCase
from eucaim_fl.plan import FederationPlan

DP = {
    "mechanism": "patient_dp",
    "noise_multiplier": 1.0,
    "delta": 1e-5,
    "clipping_norm": 1.0,
    "sampling_rate": 0.2,
    "secure": False,
}
UPDATE_DP = {
    "mechanism": "update_dp",
    "noise_multiplier": 4.0,
    "delta": 1e-5,
    "clipping_norm": 1.0,
    "secure": False,
}
QUIET = {"flip": 0.0, "scale_intensity": 0.0, "shift_intensity": 0.0}


@pytest.fixture(autouse=True)
def _always_one_thread(one_thread: None) -> None:
    """As at sites."""


@pytest.fixture
def small_plan(plan_for: Callable[..., FederationPlan]) -> Callable[..., FederationPlan]:
    """A plan that trains a tiny U-Net on slices of 16 × 16, or with `classes=True` a classifier of them."""

    def make(privacy: dict[str, Any] | None = None, *, classes: bool = False, **training: Any) -> FederationPlan:
        args: dict[str, Any] = {"channels": [4, 8], "strides": [2], "num_res_units": 0, "norm": "instance"}
        model: dict[str, Any] = {"name": "unet", "args": args}
        task = None
        if classes:
            task = ClassificationConfig(spatial_dims=2, target="malignant", classes=("no", "yes"))
            model = {"name": "small_cnn", "args": {"channels": [8, 16], "strides": [2, 2], "norm": "group"}}
        changes: dict[str, Any] = {} if privacy is None else {"privacy": privacy}
        rounds = training.pop("rounds", 2)
        return plan_for(task, model=model, training={"augmentation": QUIET, **training}, rounds=rounds, **changes)

    return make


@pytest.fixture
def patients() -> Callable[..., list[HeldCase]]:
    """Patients with one slice of noise each, a block as label, and a class of chance."""

    def make(number: int, seed: int = 0) -> list[HeldCase]:
        rng = np.random.default_rng(seed)
        made = []
        for index in range(number):
            mask = np.zeros((16, 16, 1), np.uint8)
            mask[index % 8 : index % 8 + 6, 4:10] = 1
            pixels = rng.random((1, 16, 16, 1), dtype=np.float32)
            made.append(HeldCase.of(f"p{index}", pixels, mask, int(rng.integers(2))))
        return made

    return make

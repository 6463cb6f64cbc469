"""What a network of several channels looks like to whoever loads it from MLflow."""

from __future__ import annotations

import contextlib
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from eucaim_fl.config import ExperimentConfig
from eucaim_fl.models.networks import get_arrays
from eucaim_fl.plan import make_plan
from eucaim_fl.site.node import network_for
from eucaim_fl.tracking import model_export


class TestLogNetwork:
    @pytest.mark.parametrize("channels", [1, 2])
    def test_its_input_has_the_channels_of_the_plan(self, channels: int, monkeypatch: pytest.MonkeyPatch) -> None:
        import mlflow.pytorch  # here: all processes of a run collect this file, and one runs it

        config = ExperimentConfig.model_validate(
            {
                "name": "demo",
                "sites": ("a",),
                "task": {"name": "segmentation", "spatial_dims": 2, "labels": ("lesion",)},
                "model": {"name": "unet", "args": {"channels": [4, 8], "strides": [2]}},
                "data": {
                    "size_voxels": (16, 16, None),
                    "channels": [{"name": f"c{number}"} for number in range(channels)],
                },
                "training": {"local_steps": 1},
            }
        )
        plan, logged = make_plan(config, ("a",)), dict[str, Any]()
        nothing = SimpleNamespace(
            set_tracking_uri=lambda _: None,
            set_registry_uri=lambda _: None,
            active_run=lambda: None,
            start_run=lambda **_: contextlib.nullcontext(),
        )
        monkeypatch.setattr(model_export, "quiet_mlflow", lambda: nothing)
        monkeypatch.setattr(mlflow.pytorch, "log_model", lambda network, **given: logged.update(given, network=network))
        arrays = get_arrays(network_for(plan, 3))
        model_export.log_network("", "", "best", plan, arrays, "a" * 64, step=1)
        assert logged["input_example"].shape == (2, channels, 16, 16)
        assert logged["signature"].inputs.inputs[0].shape == (-1, channels, 16, 16)
        assert all(np.array_equal(array, arrays[name]) for name, array in get_arrays(logged["network"]).items())

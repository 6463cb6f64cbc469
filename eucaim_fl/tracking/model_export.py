"""The model as MLflow keeps it: an exported graph with signature and input example, and the files it was made from."""

from __future__ import annotations

import logging
import os
import tempfile
import warnings
from importlib import metadata
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from eucaim_fl.arrays import Arrays, encode_arrays
from eucaim_fl.plan import FederationPlan
from eucaim_fl.seeding import generator

__all__ = ["PLAN_FILE", "SOURCE_TAGS", "WEIGHTS_FILE", "log_network", "quiet_mlflow", "warm_up"]

PLAN_FILE, WEIGHTS_FILE = "plan.json", "weights.safetensors"
"""Logged with the graph: what it was made from, so that the model can be frozen again without running the graph."""

SOURCE_TAGS = {"mlflow.user": "eucaim_fl", "mlflow.source.name": "eucaim-fl train", "mlflow.source.type": "LOCAL"}
"""Stand where MLflow would write the user's name and the script's path."""

_REQUIREMENTS = ("mlflow", "numpy", "torch")
_FALLBACK_SIZE = {2: (128, 128), 3: (64, 64, 64)}
_QUIET = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "DO_NOT_TRACK": "true",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    "MLFLOW_PRINT_MODEL_URLS_ON_CREATION": "false",
    "MLFLOW_RECORD_ENV_VARS_IN_MODEL_LOGGING": "false",
    "GIT_PYTHON_REFRESH": "quiet",
}


def quiet_mlflow() -> ModuleType:
    """MLflow, silent and without telemetry, also if MONAI imported it before."""
    for name, value in _QUIET.items():
        os.environ.setdefault(name, value)
    import mlflow
    from mlflow.telemetry import set_telemetry_client

    set_telemetry_client()
    for name in ("mlflow", "alembic"):
        logging.getLogger(name).setLevel(logging.ERROR)
    return mlflow  # type: ignore[no-any-return]


def log_network(
    uri: str, run_id: str, role: str, plan: FederationPlan, arrays: Arrays, digest: str, *, step: int
) -> Any:
    """Log the network as an exported graph (`pt2`), which loads without running code that came with the file.

    role: its name in the run. digest: of its weights. step: rounds that made it. Returns MLflow's `ModelInfo`.
    Beside it lie the plan and the weights. The graph takes any batch size and the plan's own image size (where images
    keep theirs: 128 × 128 or 64 × 64 × 64).
    """
    import torch
    from mlflow.models import ModelSignature
    from mlflow.pytorch import log_model
    from mlflow.types import Schema, TensorSpec

    from eucaim_fl.models.networks import set_arrays
    from eucaim_fl.models.planned import network_for, network_image_size

    size = network_image_size(plan)
    network = network_for(plan, 0)
    set_arrays(network, arrays)
    network.eval()
    spatial = size or _FALLBACK_SIZE[plan.task.spatial_dims]
    example = _example(plan.seed, (plan.data.number_of_channels(), *spatial))
    with torch.no_grad():
        output = network(torch.from_numpy(example)).numpy()
    float32 = np.dtype("float32")
    signature = ModelSignature(
        inputs=Schema([TensorSpec(float32, (-1, *example.shape[1:]), name=None)]),
        outputs=Schema([TensorSpec(float32, (-1, *output.shape[1:]), name=None)]),
    )
    mlflow = quiet_mlflow()
    mlflow.set_tracking_uri(uri)
    mlflow.set_registry_uri(uri)
    with (
        tempfile.TemporaryDirectory(prefix="eucaim-fl-model-") as place,
        warnings.catch_warnings(),
        mlflow.start_run(run_id=run_id, nested=mlflow.active_run() is not None),
    ):
        warnings.simplefilter("ignore")  # the exporter's remarks about MONAI's own code
        return log_model(
            network,
            name=role,
            signature=signature,
            input_example=example,
            serialization_format="pt2",
            # Given, not inferred: inference starts a process that imports everything.
            pip_requirements=[f"{name}=={metadata.version(name).split('+')[0]}" for name in _REQUIREMENTS],
            tags={**SOURCE_TAGS, "weights_sha256": digest},
            step=step,
            validate_serving_input=False,
            extra_files=_sources(Path(place), plan, arrays),
        )


def _sources(folder: Path, plan: FederationPlan, arrays: Arrays) -> list[str]:
    """Plan and weights as files, for MLflow to copy."""
    (folder / PLAN_FILE).write_text(plan.canonical_json(), encoding="utf-8")
    with (folder / WEIGHTS_FILE).open("wb") as stream:
        for part in encode_arrays(arrays):
            stream.write(part)
    return [str(folder / PLAN_FILE), str(folder / WEIGHTS_FILE)]


def warm_up() -> None:
    """Load what `log_network` needs, seconds of imports, by exporting a network of nothing."""
    import mlflow.pytorch  # noqa: F401
    import torch

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.export.export(torch.nn.Identity(), (torch.zeros(1),))


def _example(seed: int, shape: tuple[int, ...]) -> NDArray[np.float32]:
    """Two images (channels, *spatial) of quarter steps from 0 to 1: exact in float32, short in the JSON of MLflow.

    Two, because a batch of one would be exported as the only batch size.
    """
    rng = generator(seed, "input example")
    return (rng.integers(0, 5, size=(2, *shape)) / 4).astype(np.float32)

"""A model that a run of this software logged in MLflow, fetched as the files it was made from; none of it is loaded."""

from __future__ import annotations

import re
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

from eucaim_fl.errors import RunNotFoundError
from eucaim_fl.tracking.address import check_database
from eucaim_fl.tracking.model_export import PLAN_FILE, WEIGHTS_FILE, quiet_mlflow

__all__ = ["is_reference", "logged_run"]

_RUN = re.compile(r"(?:mlflow:|runs:/)(?P<run>[0-9a-zA-Z_-]{1,256})(?:/(?P<name>[\w-]{1,64}))?")
_MODEL = re.compile(r"models:/[^/@\x00-\x1f]{1,256}(?:@[\w-]{1,128}|/[\w-]{1,128})?")


def is_reference(words: str) -> bool:
    """Whether somebody means a model in MLflow: `mlflow:RUN_ID`, `runs:/RUN_ID/NAME`, `models:/NAME@ALIAS`.

    >>> is_reference("models:/demo@best"), is_reference("runs/demo")
    (True, False)
    """
    return words.startswith(("mlflow:", "runs:/", "models:/"))


@contextmanager
def logged_run(reference: str, uri: str, which: Literal["best", "last"]) -> Iterator[Path]:
    """A folder with what a model of a run needs: plan.json and models/<which>.safetensors; gone after the block.

    uri: of MLflow. which: the model, where the reference names only a run.
    Raises RunNotFoundError if the reference can't be read, MLflow has no such model, or it was not logged by this
    software with the files that it was made from; RunError if MLflow's database can't be used.
    """
    artifact = _artifact(reference, which)
    check_database(uri)
    if (database := uri.removeprefix("sqlite:///")) != uri and not Path(database).exists():  # MLflow would make one
        raise _no_such_model(artifact)
    mlflow = quiet_mlflow()
    with tempfile.TemporaryDirectory(prefix="eucaim-fl-model-") as place:
        mlflow.set_tracking_uri(uri)
        mlflow.set_registry_uri(uri)
        try:
            found = Path(
                mlflow.artifacts.download_artifacts(artifact, dst_path=str(Path(place) / "logged"), tracking_uri=uri)
            )
        except (mlflow.exceptions.MlflowException, OSError) as problem:
            raise _no_such_model(f"{artifact}: {str(problem) or type(problem).__name__}".splitlines()[0]) from None
        plan, weights = (next(iter(sorted(found.rglob(name))), None) for name in (PLAN_FILE, WEIGHTS_FILE))
        if plan is None or weights is None:
            raise RunNotFoundError(
                "MLflow has the model as a graph alone, without plan and weights.",
                fix="Give the run's folder, or log the run again with this version.",
                local_detail=artifact,
            )
        folder = Path(place) / "run"
        (folder / "models").mkdir(parents=True)
        shutil.move(plan, folder / "plan.json")
        shutil.move(weights, folder / "models" / f"{which}.safetensors")
        yield folder


def _no_such_model(where: str) -> RunNotFoundError:
    return RunNotFoundError(
        "MLflow has no such model.",
        fix="Give mlflow:RUN_ID, models:/NAME@best, or the run's folder; tracking.uri says which MLflow.",
        local_detail=where,
    )


def _artifact(reference: str, which: str) -> str:
    run = _RUN.fullmatch(reference)
    if run is not None:
        return f"runs:/{run['run']}/{run['name'] or which}"
    if _MODEL.fullmatch(reference):
        return reference
    raise RunNotFoundError(
        "This is no reference to a model in MLflow.",
        fix="Give mlflow:RUN_ID, runs:/RUN_ID/best, models:/NAME@best or models:/NAME/VERSION.",
        local_detail=reference,
    )

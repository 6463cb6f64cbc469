"""What the process that runs a model is asked for, before it is handed images."""

from __future__ import annotations

from pydantic import NonNegativeInt

from eucaim_fl.config import TaskConfig
from eucaim_fl.parsing import Config
from eucaim_fl.validation_config import InferenceLimits, ModelContract

__all__ = ["Request"]


class Request(Config):
    """A model to run. file: number of the open, sealed file that holds its bytes. native: programs are allowed."""

    contract: ModelContract
    task: TaskConfig
    limits: InferenceLimits
    native: bool
    file: NonNegativeInt

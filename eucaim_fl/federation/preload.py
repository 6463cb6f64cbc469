"""Imported once into the server that workers are forked from, so that every worker has it when it starts.

Beside MONAI: what the index of a cohort loads when it is opened (pyarrow asks pandas whether a list is one of its
columns), in every worker for itself; PyTorch's compiler, which the first optimizer step would load, is not needed. No
worker looks for garbage among all that, which takes time and makes copies of the memory that they share.
"""

from __future__ import annotations

import atexit
import gc
import importlib

from eucaim_fl.cohorts.monai_parts import load
from eucaim_fl.training.eager import without_compiler

__all__: list[str] = []

gc.disable()
without_compiler()
load("monai.networks.nets", "monai.inferers", "monai.losses", "monai.transforms", "monai.data")
for _module in (
    *("duckdb", "pyarrow.parquet", "pandas"),
    *("eucaim_fl.federation.client_app", "eucaim_fl.federation.worker"),
):
    importlib.import_module(_module)
gc.freeze()
gc.enable()
atexit.register(gc.unfreeze)  # libraries count at the end what is left of theirs

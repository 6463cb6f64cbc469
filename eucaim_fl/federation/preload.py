"""Imported once into the server that workers are forked from, so that every worker has it when it starts.

MONAI imports MLflow for a handler that nobody here uses, a second of every start; sites never track, so it is hidden
meanwhile (the tracking process imports it by itself). What PyTorch would load at the first optimizer step, in every
worker for itself, is loaded here.
"""

from __future__ import annotations

import importlib
import sys

__all__: list[str] = []

_HIDDEN = "mlflow"


def _import_monai() -> None:
    hide = _HIDDEN not in sys.modules
    if hide:
        sys.modules[_HIDDEN] = None  # type: ignore[assignment]  # Python's own way to say: not there
    try:
        importlib.import_module("monai.networks.nets")
    finally:
        if hide:
            del sys.modules[_HIDDEN]


_import_monai()
for _module in ("torch._dynamo", "torch._inductor.config"):
    importlib.import_module(_module)

"""Imported once into the server that workers are forked from, so that every worker has it when it starts.

MONAI imports MLflow for a handler, pandas for tables and Matplotlib for pictures, none of which a worker uses: more
than a second of every start. They are hidden meanwhile; who needs one later imports it as ever. What PyTorch would
load at the first optimizer step, in every worker for itself, is loaded here.
"""

from __future__ import annotations

import importlib
import sys

__all__: list[str] = []

_HIDDEN = ("mlflow", "matplotlib", "pandas")


def _import_monai() -> None:
    hidden = [name for name in _HIDDEN if name not in sys.modules]
    for name in hidden:
        sys.modules[name] = None  # type: ignore[assignment]  # Python's own way to say: not there
    try:
        importlib.import_module("monai.networks.nets")
    finally:
        for name in hidden:
            del sys.modules[name]


_import_monai()
for _module in ("torch._dynamo", "torch._inductor.config"):
    importlib.import_module(_module)

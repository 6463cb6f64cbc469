"""MONAI without what nobody here uses.

At its import MONAI loads all its modules and runs most of them twice, and with them MLflow for a handler, pandas for
tables, Matplotlib for pictures and more: seconds of the start of every process that works on images.
"""

from __future__ import annotations

import gc
import importlib
import pkgutil
import sys
from collections.abc import Iterator
from typing import Any

__all__ = ["load"]

_HIDDEN = ("mlflow", "matplotlib", "pandas", "sklearn", "scipy.signal", "itk", "IPython")
_FIRST = "monai.apps"  # MONAI's parts import each other in a circle, which MONAI itself enters here too


def _nothing(*_: Any, **__: Any) -> Iterator[pkgutil.ModuleInfo]:
    return iter(())


def load(*parts: str) -> None:
    """Import parts of MONAI by their full names, and only what they need.

    Meanwhile MONAI finds no modules of its own to load beforehand, and large libraries that it can do without are
    hidden; who needs one of either later imports it as ever. For the start of a process, before it has threads. If
    MONAI is loaded already nothing is hidden from it that it has.
    """
    hidden = [name for name in _HIDDEN if name not in sys.modules]
    for name in hidden:
        sys.modules[name] = None  # type: ignore[assignment]  # Python's own way to say: not there
    walk, pkgutil.walk_packages = pkgutil.walk_packages, _nothing
    collects = gc.isenabled()
    gc.disable()  # modules are no garbage; to look for some among them is a quarter of the time
    try:
        for part in (_FIRST, *parts):
            importlib.import_module(part)
    finally:
        pkgutil.walk_packages = walk
        for name in hidden:
            del sys.modules[name]
        if collects:
            gc.enable()

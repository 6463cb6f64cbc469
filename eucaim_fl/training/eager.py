"""PyTorch without its compiler, which nobody here uses.

At the first step of an optimizer PyTorch loads its compiler, only to tell it that the step is none of its business:
eight hundred modules, with symbolic algebra among them, two fifths of the time that a process needs until it can train.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import MutableSequence, Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from types import ModuleType
from typing import Any

__all__ = ["without_compiler"]

_NAME = "torch._dynamo"  # PyTorch itself looks for it among the modules that are loaded


def without_compiler() -> None:
    """What PyTorch asks of its compiler in code that is not compiled is answered without it, in this process.

    The answers are the compiler's own: a function that it shall leave alone is left alone, a break in a graph that
    nobody records is nothing. Whoever asks for more (`torch.compile`, `torch.export`) gets the compiler as ever. For
    the start of a process, before or after it loads PyTorch; if the compiler is there already nothing changes.
    """
    if _NAME not in sys.modules:
        sys.modules[_NAME] = _Absent(_NAME)
        sys.meta_path.insert(0, _Parts())


class _Absent(ModuleType):
    """In the compiler's place until more is asked for than these two."""

    __path__: MutableSequence[str] = []  # noqa: RUF012  (of a package without files)

    @staticmethod
    def disable(fn: Any = None, *_: Any, **__: Any) -> Any:
        return (lambda function: function) if fn is None else fn

    @staticmethod
    def graph_break(*_: Any, **__: Any) -> None:
        return None

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):  # whoever goes through all modules for their files asks for no compiler
            raise AttributeError(name)
        return getattr(_compiler(), name)


class _Parts(MetaPathFinder):
    """Finds the compiler's parts when the first of them is imported: by then the compiler itself has to be there."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if not fullname.startswith(_NAME + "."):
            return None
        there = _compiler().__path__
        if fullname in sys.modules:  # the compiler needs this part itself
            return ModuleSpec(fullname, _Loaded(sys.modules[fullname]))
        return PathFinder.find_spec(fullname, there, target)


class _Loaded(Loader):
    """A module that is there already, as it is."""

    def __init__(self, module: ModuleType) -> None:
        self._module, self._spec = module, module.__spec__

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        return self._module

    def exec_module(self, module: ModuleType) -> None:
        module.__spec__ = self._spec


def _compiler() -> ModuleType:
    """The compiler, loaded now unless it is there."""
    if isinstance(sys.modules.get(_NAME), _Absent):
        sys.meta_path[:] = [finder for finder in sys.meta_path if not isinstance(finder, _Parts)]
        del sys.modules[_NAME]
    return importlib.import_module(_NAME)

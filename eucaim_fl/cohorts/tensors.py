"""Tensors of the cache as they are asked for again and again: small ones stay in memory, large ones are mapped."""

from __future__ import annotations

from collections import OrderedDict
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

__all__ = ["Tensors", "tensor"]

_SMALL_BYTES = 2**18
"""Opening and mapping a file takes as long as copying a quarter of a megabyte."""
_KEPT_BYTES = 2**28


class Tensors:
    """Small tensors by their file, the last used ones: at most so many bytes of them in each process."""

    def __init__(self, kept_bytes: int = _KEPT_BYTES, small_bytes: int = _SMALL_BYTES) -> None:
        self._kept: OrderedDict[Path, npt.NDArray[Any]] = OrderedDict()
        self._most, self._small, self._bytes = kept_bytes, small_bytes, 0

    def read(self, path: Path) -> npt.NDArray[Any]:
        """The tensor of a file, read-only; the file must never change. Raises OSError or ValueError as numpy does."""
        found = self._kept.get(path)
        if found is not None:
            self._kept.move_to_end(path)
            return found
        if path.stat().st_size > self._small:
            return _mapped(path)
        array: npt.NDArray[Any] = np.load(path, allow_pickle=False)
        array.flags.writeable = False
        self._kept[path] = array
        self._bytes += array.nbytes
        while self._bytes > self._most:
            self._bytes -= self._kept.popitem(last=False)[1].nbytes
        return array


@lru_cache(maxsize=256)
def _mapped(path: Path) -> npt.NDArray[Any]:
    """A large tensor. A map holds a file open, so only the last few hundred are kept; processes share the pages."""
    mapped: npt.NDArray[Any] = np.load(path, mmap_mode="r", allow_pickle=False)
    return mapped


_TENSORS = Tensors()


def tensor(path: Path) -> npt.NDArray[Any]:
    """The tensor of a file of the cache, read-only; see `Tensors`."""
    return _TENSORS.read(path)

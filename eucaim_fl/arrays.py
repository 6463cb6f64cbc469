"""Named arrays: their canonical order, bytes and digest, and their files (safetensors)."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from eucaim_fl.errors import JournalError

__all__ = ["GUIDE", "Array", "ArrayFile", "Arrays", "arrays_sha256", "decode_arrays", "encode_arrays", "without_guide"]

Array: TypeAlias = NDArray[Any]
Arrays: TypeAlias = dict[str, Array]

GUIDE = "guide:"
"""Begins the names of arrays that travel beside the weights, to the sites only: what a method tells them of all others'
training. No network's array has a colon in its name."""

_TO_SAFETENSORS = {
    "float64": "F64", "float32": "F32", "float16": "F16", "int64": "I64", "int32": "I32",
    "int16": "I16", "int8": "I8", "uint8": "U8", "bool": "BOOL",
}  # fmt: skip
_FROM_SAFETENSORS = {code: np.dtype(name) for name, code in _TO_SAFETENSORS.items()}
_LARGEST_HEADER_BYTES = 16 * 2**20


def arrays_sha256(arrays: Mapping[str, Array]) -> str:
    """SHA-256 over names, dtypes, shapes and little-endian C-order bytes, names in sorted order."""
    digest = hashlib.sha256()
    for name in sorted(arrays):
        array = np.ascontiguousarray(arrays[name]).astype(arrays[name].dtype.newbyteorder("<"), copy=False)
        head = json.dumps([name, array.dtype.name, list(arrays[name].shape)]).encode()
        digest.update(len(head).to_bytes(8, "little") + head)
        digest.update(array.tobytes() if array.ndim == 0 else array.reshape(-1).view(np.uint8).data)
    return digest.hexdigest()


def without_guide(arrays: Mapping[str, Array]) -> Arrays:
    """The model's own arrays among those that travel to a site.

    >>> sorted(without_guide({"w": np.zeros(1), "guide:w": np.ones(1)}))
    ['w']
    """
    return {name: array for name, array in arrays.items() if not name.startswith(GUIDE)}


def encode_arrays(arrays: Mapping[str, Array], metadata: Mapping[str, str] | None = None) -> list[bytes | memoryview]:
    """A safetensors file as a list of buffers to be written one after the other (no second copy of the arrays).

    arrays: any shape, 0-d included; names are stored in sorted order.
    Raises JournalError for a dtype that the format (or this project) does not have.
    """
    header: dict[str, Any] = {"__metadata__": dict(metadata)} if metadata else {}
    buffers: list[bytes | memoryview] = []
    offset = 0
    for name in sorted(arrays):
        array = arrays[name]
        if array.dtype.name not in _TO_SAFETENSORS:
            raise JournalError(f"Arrays of type {array.dtype.name} can't be stored.")
        flat = np.ascontiguousarray(array).reshape(-1).astype(array.dtype.newbyteorder("<"), copy=False)
        header[name] = {
            "dtype": _TO_SAFETENSORS[array.dtype.name],
            "shape": list(array.shape),
            "data_offsets": [offset, offset + flat.nbytes],
        }
        offset += flat.nbytes
        buffers.append(flat.view(np.uint8).data)
    head = json.dumps(header, separators=(",", ":")).encode()
    head += b" " * (-len(head) % 8)
    return [len(head).to_bytes(8, "little") + head, *buffers]


def _checked(entry: Mapping[str, Any]) -> tuple[np.dtype[Any], tuple[int, ...], int, int]:
    """Type, shape, first and last byte of one array as a header has them; everything in it is hostile until checked."""
    dtype, shape, (first, last) = _FROM_SAFETENSORS[entry["dtype"]], tuple(entry["shape"]), entry["data_offsets"]
    if not all(type(number) is int and number >= 0 for number in (*shape, first, last)):
        raise ValueError("a size or a place is no whole number")
    np.broadcast_to(dtype.type(0), shape)  # takes no memory; refuses a shape that no array can have
    if last - first != math.prod(shape) * dtype.itemsize:
        raise ValueError("an array's size contradicts its shape")
    return dtype, shape, first, last


_Places: TypeAlias = dict[str, tuple[np.dtype[Any], tuple[int, ...], int]]


def _places(header: dict[str, Any], size: int) -> tuple[dict[str, str], _Places]:
    """Metadata, and type, shape and first byte of each array, of a header over `size` bytes; raises if it lies."""
    metadata: dict[str, str] = dict(header.pop("__metadata__", {}))
    if not all(isinstance(value, str) for value in metadata.values()):
        raise ValueError("metadata must be text")
    entries: _Places = {}
    end = 0
    for place, name, dtype, shape in sorted(
        ((first, last), name, dtype, shape)
        for name, entry in header.items()
        for dtype, shape, first, last in [_checked(entry)]
    ):
        if place[0] != end:
            raise ValueError("arrays overlap or leave a gap")
        entries[name], end = (dtype, shape, place[0]), place[1]
    if end != size:
        raise ValueError("the arrays are not all that the file holds")
    return metadata, entries


def decode_arrays(raw: bytes | memoryview) -> Arrays:
    """Read-only views of all arrays of a safetensors file that is in memory already; the inverse of `encode_arrays`.

    Raises JournalError if the header is damaged, or its arrays are not what the file holds, one after the other.
    """
    try:
        body = 8 + int.from_bytes(raw[:8], "little")
        if not 8 <= body <= min(_LARGEST_HEADER_BYTES + 8, len(raw)):
            raise ValueError("header longer than the file")
        _, entries = _places(json.loads(bytes(raw[8:body])), len(raw) - body)
        return {
            name: np.frombuffer(raw, dtype, math.prod(shape), body + first).reshape(shape)
            if math.prod(shape)
            else np.zeros(shape, dtype)
            for name, (dtype, shape, first) in sorted(entries.items())
        }
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as problem:
        raise JournalError("A file of arrays is damaged.", fix="Ask for it again.", local_detail=str(problem)) from None


class ArrayFile:
    """A safetensors file whose arrays are read on demand, in whole or piece by piece, never all at once.

    Raises JournalError if the header is damaged, or its arrays are not what the file holds, one after the other.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            with path.open("rb") as stream:
                length = int.from_bytes(stream.read(8), "little")
                size = path.stat().st_size
                if length > min(_LARGEST_HEADER_BYTES, max(size - 8, 0)):
                    raise ValueError("header longer than the file")
                header = json.loads(stream.read(length))
            self._start = 8 + length
            self.metadata, self._entries = _places(header, size - self._start)
        except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as problem:
            raise JournalError(
                "A file of arrays is damaged.",
                fix="Remove it; the round it belongs to is computed again on resume.",
                local_detail=f"{path}: {problem}",
            ) from None

    @property
    def names(self) -> list[str]:
        """Names in canonical (sorted) order."""
        return sorted(self._entries)

    def dtype(self, name: str) -> np.dtype[Any]:
        """Data type of one array."""
        return self._entries[name][0]

    def shape(self, name: str) -> tuple[int, ...]:
        """Shape of one array; () for a single number."""
        return self._entries[name][1]

    def read(self, name: str, start: int = 0, count: int | None = None) -> Array:
        """Elements start … start+count of one array, flattened in C order; all of it in its shape if count is None.

        Raises JournalError if the file ends early.
        """
        dtype, shape, first = self._entries[name]
        total = int(np.prod(shape, dtype=np.int64))
        length = total if count is None else max(0, min(count, total - start))
        with self.path.open("rb") as stream:
            stream.seek(self._start + first + start * dtype.itemsize)
            flat = np.fromfile(stream, dtype=dtype, count=length)
        if flat.size != length:
            raise JournalError("A file of arrays ends early.", local_detail=str(self.path))
        return flat.reshape(shape) if count is None else flat

    def items(self) -> Iterator[tuple[str, Array]]:
        """All arrays, one at a time, in canonical order."""
        for name in self.names:
            yield name, self.read(name)

    def load(self) -> Arrays:
        """All arrays at once."""
        return dict(self.items())

"""How our messages travel through a SuperLink: all arrays of a message in one buffer, with an index.

Flower sends every array as objects of its own, one request each; a network of 700 arrays would cost 1,400 requests a
site and round. In a parcel they are one byte array (which Flower cuts into chunks of 5 MiB) and one index. The form is
checked against the buffer's real length before anything is built from it.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, RecordDict

from eucaim_fl.errors import PlanError, ReplyError
from eucaim_fl.signing import canonical_json

__all__ = ["MOST_ARRAYS", "digest", "pack", "unpack"]

MOST_ARRAYS = 10_000
_LONGEST_TEXT = 8 * 2**20
_MOST_RECORDS = 16
_LONGEST_NAME = 512
_MOST_DIMENSIONS = 8
_ITEM_BYTES = {
    name: np.dtype(name).itemsize
    for name in ("float64", "float32", "float16", "int64", "int32", "int16", "int8", "uint8", "bool")
}
_PARCEL, _BYTES, _INDEX = "parcel", "bytes", "parcel-index"
Error = type[ReplyError] | type[PlanError]


def pack(content: RecordDict) -> RecordDict:
    """Array records of a message → one buffer and its index; configuration records stay as they are."""
    packed = RecordDict()
    index: list[list[object]] = []
    pieces: list[bytes] = []
    for name in sorted(content):
        record = content[name]
        if isinstance(record, ArrayRecord):
            for key, array in record.items():
                index.append([name, key, array.dtype, list(array.shape), array.stype, len(array.data)])
                pieces.append(array.data)
        else:
            packed[name] = record
    packed[_INDEX] = ConfigRecord({"json": json.dumps(index, separators=(",", ":"))})
    if pieces:
        buffer = b"".join(pieces)
        packed[_PARCEL] = ArrayRecord({_BYTES: Array("uint8", (len(buffer),), "eucaim.raw", buffer)})
    return packed


def digest(packed: RecordDict, *, without: str = "seal") -> str:
    """SHA-256 over everything in a packed message but the seal that will hold it.

    Raises ReplyError if the message holds what a packed message never does.
    """
    records = _config_records(packed, ReplyError)
    plain = {name: _plain(record, ReplyError) for name, record in records.items() if name != without}
    total = hashlib.sha256()
    try:
        total.update(canonical_json(plain))
    except ValueError:  # half a surrogate pair
        raise ReplyError("The message holds a text that is not Unicode.") from None
    total.update(b"\n")
    total.update(_buffer(packed, ReplyError))
    return total.hexdigest()


def _config_records(packed: RecordDict, error: Error) -> dict[str, ConfigRecord]:
    """The records beside the arrays; several names may stand for one and the same, so they are counted first."""
    if len(packed) > _MOST_RECORDS or packed.metric_records:
        raise error("The message holds records of a kind that is not accepted.")
    return dict(packed.config_records)


def _plain(record: ConfigRecord, error: Error) -> dict[str, str | int]:
    values: dict[str, str | int] = {}
    left = _LONGEST_TEXT
    for key, value in record.items():
        if not isinstance(value, str | int) or isinstance(value, bool):
            raise error("The message holds values of a kind that is not accepted.")
        left -= len(key) + (len(value) if isinstance(value, str) else 0)
        if left < 0:
            raise error("The message holds a text that is too long.")
        values[key] = value
    return values


def _buffer(packed: RecordDict, error: Error) -> bytes:
    records = packed.array_records
    if not records:
        return b""
    if set(records) != {_PARCEL} or set(records[_PARCEL]) != {_BYTES}:
        raise error("The message holds arrays outside its parcel.")
    array = records[_PARCEL][_BYTES]
    if array.dtype != "uint8" or tuple(array.shape) != (len(array.data),):
        raise error("The parcel has another size than it says.")
    return array.data


def unpack(packed: RecordDict, error: Error) -> RecordDict:
    """The inverse of `pack`; what arrives is hostile until it went through here.

    Raises ReplyError (or `error`) for metric records, arrays outside the parcel, an index that is none, names twice,
    types of arrays that never travel, sizes that do not fit the shapes, or bytes that no array claims.
    """
    plain = {name: _plain(record, error) for name, record in _config_records(packed, error).items()}
    buffer = _buffer(packed, error)
    index = _read_index(plain.pop(_INDEX, {}), error)
    content = RecordDict({name: ConfigRecord(dict(values)) for name, values in plain.items()})
    arrays: dict[str, dict[str, Array]] = {}
    offset = 0
    for entry in index:
        name, key, dtype, shape, stype, size = _entry(entry, error)
        if offset + size > len(buffer) or key in arrays.setdefault(name, {}) or name in content:
            raise error("The parcel's index does not fit its bytes.")
        arrays[name][key] = Array(dtype, shape, stype, buffer[offset : offset + size])  # an only one is not copied
        offset += size
    if offset != len(buffer):
        raise error("The parcel holds bytes that belong to no array.")
    for name, record_arrays in arrays.items():
        content[name] = ArrayRecord(record_arrays)
    return content


def _read_index(record: Mapping[str, object], error: Error) -> list[object]:
    text = record.get("json")
    if not isinstance(text, str) or len(record) != 1:
        raise error("The parcel has no index.")
    try:
        index = json.loads(text)
    except (ValueError, RecursionError):
        raise error("The parcel's index is not JSON.") from None
    if not isinstance(index, list) or len(index) > MOST_ARRAYS:
        raise error("The parcel's index is not one, or too long.")
    return index


def _entry(entry: object, error: Error) -> tuple[str, str, str, tuple[int, ...], str, int]:
    if not isinstance(entry, list) or len(entry) != 6:
        raise error("The parcel's index is malformed.")
    name, key, dtype, shape, stype, size = entry
    texts = all(isinstance(t, str) and 0 < len(t) <= _LONGEST_NAME for t in (name, key, dtype, stype))
    if not texts or not isinstance(shape, list) or len(shape) > _MOST_DIMENSIONS:
        raise error("The parcel's index is malformed.")
    if any(type(n) is not int or not 0 <= n < 2**40 for n in (*shape, size)):
        raise error("The parcel's index is malformed.")
    if dtype not in _ITEM_BYTES:
        raise error("The parcel holds an array of an unknown type.")
    if math.prod(shape) * _ITEM_BYTES[dtype] != size:
        raise error("An array of the parcel has another size than its shape says.")
    return name, key, dtype, tuple(shape), stype, size

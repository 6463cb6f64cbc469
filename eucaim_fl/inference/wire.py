"""Messages between a site's process and the one that runs a model: a short JSON header, and plain numbers behind it."""

from __future__ import annotations

import json
import struct
from typing import Any

__all__ = ["HEAD", "LARGEST_HEADER", "header_bytes", "read_head", "read_header"]

HEAD = struct.Struct("<4sIQ")
"""Before each message: a mark, bytes of its header, bytes behind the header."""
LARGEST_HEADER = 256 * 1024
_MARK = b"EFL8"


def header_bytes(header: dict[str, Any], payload_bytes: int = 0) -> bytes:
    """A message up to its payload."""
    text = json.dumps(header, separators=(",", ":"), allow_nan=False).encode()
    return HEAD.pack(_MARK, len(text), payload_bytes) + text


def read_head(raw: bytes, most: int) -> tuple[int, int]:
    """Bytes of a message's header, and of its payload, which may be up to `most`. Raises ValueError if it is none."""
    mark, header, payload = HEAD.unpack(raw)
    if mark != _MARK or not 0 < header <= LARGEST_HEADER or payload > most:
        raise ValueError("no message")
    return header, payload


def read_header(raw: bytes) -> dict[str, Any]:
    """A message's header. Raises ValueError if it is no JSON object."""
    try:
        found = json.loads(raw)
    except RecursionError:
        raise ValueError("nested too deep") from None
    if not isinstance(found, dict):
        raise ValueError("no header")
    return found

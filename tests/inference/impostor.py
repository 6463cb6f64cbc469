"""A process that says something else than a model's should, for tests: `impostor.py WHAT`."""

from __future__ import annotations

import os
import sys
import time

import numpy as np

from eucaim_fl.inference.lock import REQUIRED
from eucaim_fl.inference.wire import HEAD, header_bytes, read_head


def receive() -> None:
    """Take one message, and forget it."""
    header, payload = read_head(exactly(HEAD.size), 2**40)
    exactly(header + payload)


def exactly(length: int) -> bytes:
    """So many bytes of standard input."""
    found = b""
    while len(found) < length:
        found += os.read(0, length - len(found)) or sys.exit(0)
    return found


def say(header: dict[str, object], payload: bytes = b"") -> None:
    """Send a message."""
    os.write(1, header_bytes(header, len(payload)) + payload)


def main() -> None:
    """Do as the first argument says."""
    what = sys.argv[1]
    receive()
    if what == "silent":
        time.sleep(60)
    if what == "leaves":
        sys.exit(3)
    if what == "not ready":
        say({"error": "EFL000", "detail": "/home/clinic/x"})
    if what == "unlocked":
        say({"ready": ["namespaces"]})
    if what == "words":
        say({"error": "EFL801", "text": "It is /home/clinic/P007.nii\n\x1b[2J" + "x" * 5000, "fix": "Mend it."})
    say({"ready": list(REQUIRED)})
    if what == "shut":
        say({"opened": "perhaps"})
    say({"opened": True})
    receive()
    good = np.full((2, 2), 0.5, np.float32)
    said: dict[str, bytes] = {
        "noise": b"GET / HTTP/1.1\r\n\r\n" * 4,
        "endless header": HEAD.pack(b"EFL8", 2**31, 0),
        "endless answer": HEAD.pack(b"EFL8", 2, 2**60) + b"{}",
        "no JSON": HEAD.pack(b"EFL8", 4, 0) + b"{{{{",
        "no object": HEAD.pack(b"EFL8", 2, 0) + b"[]",
        "deep": header_bytes({}) and HEAD.pack(b"EFL8", 200_000, 0) + b"[" * 200_000,
        "other shape": header_bytes({"shape": [4, 1]}, good.nbytes) + good.tobytes(),
        "too short": header_bytes({"shape": [2, 2]}, 4) + good.tobytes()[:4],
        "no numbers": header_bytes({"shape": [2, 2]}, 16) + np.full((2, 2), np.nan, np.float32).tobytes(),
        "sum": header_bytes({"shape": [2, 2]}, 16) + (good + np.float32(0.2)).tobytes(),
        "range": header_bytes({"shape": [2, 2]}, 16) + np.array([[2, -1], [0, 1]], np.float32).tobytes(),
        "patient": header_bytes({"error": "EFL805", "text": "P007 has it", "detail": "P007"}),
        "good": header_bytes({"shape": [2, 2]}, 16) + good.tobytes(),
    }
    os.write(1, said[what])
    time.sleep(60)


if __name__ == "__main__":
    main()

"""The process that runs a frozen model: it closes itself off, loads libraries, locks itself in, and only then opens it.

It says `ready` with the layers that hold, `opened`, and then answers images until its standard input closes. What goes
wrong is a kind of error and, while it has seen no image, a sentence; afterwards the kind alone.
"""

from __future__ import annotations

import contextlib
import gc
import os
import shutil
import signal
import sys
from pathlib import Path
from typing import Any

from eucaim_fl.errors import EucaimError, ModelMemoryError
from eucaim_fl.inference.lock import close_off, limit_memory, lock
from eucaim_fl.inference.wire import HEAD, header_bytes, read_head, read_header

__all__ = ["serve"]

_LARGEST_PAYLOAD = 2**40  # the parent is believed
_LEAST_BYTES = 32 * 2**20
_LIBRARIES_BYTES = 2**30
"""What libraries may still take after they were imported."""
_NOT_NEEDED = (
    "mlflow", "matplotlib", "pandas", "sklearn", "skimage", "nibabel", "pydicom", "PIL", "itk", "pyarrow", "requests",
    "ignite", "tensorboard", "transformers", "scipy",
)  # fmt: skip
"""What MONAI loads where it finds it, and no network of ours computes with: time to start, and much to attack."""


def serve() -> None:
    """Run one model for the process that started this one, whose id is the first argument. Does not return."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent decides
    requests, replies = os.dup(0), os.dup(1)
    nowhere = os.open(os.devnull, os.O_RDWR)
    for standard in (0, 1, 2):  # a library that prints must not be taken for us
        os.dup2(nowhere, standard)
    seen_images = False
    gc.disable()  # modules are no garbage; to look for some among them is a sixth of the time to load them
    with contextlib.suppress(OSError):  # where memory ends, the kernel is to end this process and not the site's
        Path("/proc/self/oom_score_adj").write_text("1000", encoding="ascii")
    try:
        layers = close_off(int(sys.argv[1]))
        model = _open(requests, replies, layers)
        while True:
            header, payload = _receive(requests)
            images = _floats(payload, header["shape"])
            seen_images = True
            answer = model(images)
            _send(replies, {"shape": list(answer.shape)}, memoryview(answer).cast("B"))
    except MemoryError:
        _send(replies, {"error": ModelMemoryError.code})
    except EucaimError as problem:
        told = {} if seen_images else {"text": problem.message, "fix": problem.fix, "detail": problem.local_detail}
        _send(replies, {"error": problem.code, **{name: text[:1000] for name, text in told.items()}})
    except Exception as problem:  # noqa: BLE001 - the parent says it
        detail = "" if seen_images else f"{type(problem).__name__}: {problem}"[:1000]
        _send(replies, {"error": EucaimError.code, "detail": detail})
    os._exit(0)


def _open(requests: int, replies: int, layers: list[str]) -> Any:
    """Libraries, then the lock, then the model."""
    import mmap

    header, _ = _receive(requests)
    from eucaim_fl.inference.request import Request
    from eucaim_fl.inference.runtime import prepare

    asked = Request.model_validate(header)
    modules: dict[str, Any] = sys.modules
    for name in _NOT_NEEDED:
        modules.setdefault(name, None)  # Python's word for: there is none
    contract, limits = asked.contract, asked.limits
    memory = int(limits.memory_gb * 2**30)
    if contract.format == "network":  # built and tried by the contract's arguments, before the lock
        from eucaim_fl.cohorts.monai_parts import load

        load("monai.networks.nets")
        import eucaim_fl.models.networks  # noqa: F401

        limit_memory(memory + _LIBRARIES_BYTES)
    opener = prepare(contract, asked.task, limits.threads, native=asked.native)
    file = mmap.mmap(asked.file, contract.size_bytes, prot=mmap.PROT_READ)
    if contract.format == "network":  # its weights have their place already
        memory -= contract.size_bytes
    if memory < _LEAST_BYTES:
        raise ModelMemoryError(
            "The model's weights alone take the memory that it may.", fix="Raise validation.limits.memory_gb."
        )
    for leftover in Path.cwd().iterdir():  # what libraries have put there while they loaded
        shutil.rmtree(leftover) if leftover.is_dir() else leftover.unlink()
    os.environ.clear()
    sys.path.clear()
    gc.freeze()
    gc.enable()
    held = lock(memory, layers)
    _send(replies, {"ready": held})
    model = opener(memoryview(file))
    _send(replies, {"opened": True})
    return model


def _floats(payload: bytearray, shape: list[int]) -> Any:
    import numpy as np

    return np.frombuffer(payload, np.float32).reshape(shape)


def _receive(requests: int) -> tuple[dict[str, Any], bytearray]:
    header, payload = read_head(bytes(_exactly(requests, HEAD.size)), _LARGEST_PAYLOAD)
    return read_header(bytes(_exactly(requests, header))), _exactly(requests, payload)


def _exactly(requests: int, length: int) -> bytearray:
    found = bytearray(length)
    left = memoryview(found)
    while left:
        count = os.readv(requests, [left])
        if not count:
            os._exit(0)  # the parent has done with us
        left = left[count:]
    return found


def _send(replies: int, header: dict[str, Any], payload: memoryview | None = None) -> None:
    for part in (memoryview(header_bytes(header, len(payload or b""))), payload or memoryview(b"")):
        left = part
        while left:
            left = left[os.write(replies, left) :]

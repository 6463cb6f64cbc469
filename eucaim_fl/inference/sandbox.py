"""A frozen model in a process of its own that is locked in: images go in, probabilities come out, nothing else does.

What the process may do is in `lock`; how long it may take is watched from here, and it is ended by force. It ends with
this process too. What it says is checked here once more, for by then it may be the model that speaks.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import select
import shutil
import subprocess
import sys
import tempfile
import time
import weakref
from collections.abc import Generator, Iterator
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeAlias

import numpy as np

from eucaim_fl.config import TaskConfig
from eucaim_fl.errors import (
    InferenceError,
    LockError,
    ModelAnswerError,
    ModelEndedError,
    ModelMemoryError,
    ModelRefusedError,
    ModelTimeError,
)
from eucaim_fl.inference.answers import Images, answer_shape, check_answer, check_images
from eucaim_fl.inference.lock import REQUIRED, can_lock
from eucaim_fl.inference.request import Request
from eucaim_fl.inference.wire import HEAD, header_bytes, read_head, read_header
from eucaim_fl.validation_config import NATIVE_FORMATS, InferenceLimits, ModelContract

__all__ = ["Sandbox", "open_model"]

_File: TypeAlias = bytes | memoryview | Path
_START_S = 300.0  # loading libraries from a slow disk, on a machine that is busy
_OPEN_S = 120.0
_PIPE_BYTES = 2**20
_BLOCK = 2**20
_ERRORS = {kind.code: kind for kind in (ModelRefusedError, ModelAnswerError, ModelMemoryError, LockError)}
_SAID = {
    ModelRefusedError.code: (
        "The model can't be opened.",
        "Try it on your own machine first, by the same contract; there you see all that is wrong.",
    ),
    ModelAnswerError.code: (
        "The model gave no probabilities for an image.",
        "Check the contract's outputs, channels, size and intensity, and try it on your own machine first.",
    ),
    ModelMemoryError.code: (
        "The model asked for more memory than it may.",
        "Raise validation.limits.memory_gb, or use a smaller model or window.",
    ),
    LockError.code: (
        "This machine's kernel does not let a process be locked in, so frozen models are not opened on it.",
        "Use a kernel with seccomp, and a container runtime that does not forbid it.",
    ),
}


def open_model(
    contract: ModelContract,
    task: TaskConfig,
    model: _File,
    limits: InferenceLimits | None = None,
    *,
    native: bool = False,
) -> Sandbox:
    """A frozen model, opened by its contract in a locked process; use it in a `with`, whose end ends the process.

    model: its bytes, or the file that holds them. native: whether TorchScript and exported programs may be run. The
    process ends, too, with the thread that called this.
    Raises ModelRefusedError for bytes that are not the contract's (size, SHA-256), a program without `native`, and what
    the format's checks refuse; ModelTimeError, ModelMemoryError or ModelEndedError if opening it fails so; LockError if
    this machine can't lock it in; OSError if the file can't be read.
    """
    if contract.format in NATIVE_FORMATS and not native:
        raise ModelRefusedError(
            f"{contract.name} is a program ({contract.format}), and programs are not allowed here.",
            fix="Bring it as one of this software's networks or as ONNX, or have the site's policy allow native code.",
        )
    if not can_lock():
        raise LockError(*_SAID[LockError.code][:1], fix="Run it on Linux with an x86-64 or aarch64 processor.")
    return Sandbox(contract, task, model, limits or InferenceLimits(), native)


class Sandbox:
    """A model that runs elsewhere; made by `open_model`. layers: names of the layers that hold its process.

    For one thread at a time. After an error other than one about the images the model is closed.
    """

    layers: tuple[str, ...]

    def __init__(
        self, contract: ModelContract, task: TaskConfig, model: _File, limits: InferenceLimits, native: bool
    ) -> None:
        self._contract, self._task, self._limits = contract, task, limits
        self._folder = tempfile.mkdtemp(prefix="model-")
        self._process: subprocess.Popen[bytes] | None = None
        self._seen_images = False
        self._left: float | None = None
        try:
            file = _sealed(model, contract)
            try:
                self._process = _start(self._folder, file, limits.threads)
            finally:
                os.close(file)
            self._end = weakref.finalize(self, _finish, self._process, self._folder)
            request = Request(contract=contract, task=task, limits=limits, native=native, file=file)
            ready, _ = self._exchange(header_bytes(request.model_dump(mode="json")), None, _START_S, 0)
            layers = ready.get("ready")
            if not isinstance(layers, list) or not set(REQUIRED) <= set(map(str, layers)):
                raise LockError(*_SAID[LockError.code][:1], fix=_SAID[LockError.code][1])
            self.layers = tuple(map(str, layers))
            opened, _ = self._exchange(b"", None, _OPEN_S + limits.image_seconds, 0)
            if opened.get("opened") is not True:
                raise self._nonsense()
        except BaseException:
            _finish(self._process, self._folder)
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, problem: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """End the process, whatever it does, and remove its folder; again does nothing."""
        self._end()

    def allow(self, images: int) -> None:
        """From now on all answers together may take the limit for one image so many times.

        For images that are given in parts, as windows or slices: else each part would have an image's time.
        """
        self._left = self._limits.image_seconds * images

    def predict(self, images: Images) -> Images:
        """Probabilities of images: softmax over classes, sigmoid for several labels; survival's log risk as it is.

        images: float32, finite, shape (n, channels, *spatial). Returns float32 of shape (n, outputs), for segmentation
        (n, outputs, *spatial), background first.
        Raises DataError for images that don't fit the contract; ModelTimeError after n times the limit for one image,
        or what `allow` has left of it; ModelMemoryError, ModelEndedError, or ModelAnswerError for an answer that is no
        probabilities.
        """
        check_images(images, self._contract, self._task)
        shape = answer_shape(images.shape, self._task)
        most = 4 * int(np.prod(shape, dtype=np.int64))
        plain = np.ascontiguousarray(images)
        message = header_bytes({"shape": list(plain.shape)}, plain.nbytes)
        self._seen_images = True
        try:
            seconds, started = self._limits.image_seconds * len(images), time.monotonic()
            if self._left is not None:
                seconds = min(seconds, self._left)
            header, payload = self._exchange(message, plain.reshape(-1).view(np.uint8).data, seconds, most)
            if self._left is not None:
                self._left -= time.monotonic() - started
            if header.get("shape") != list(shape) or len(payload) != most:
                raise self._nonsense()
            answer = np.frombuffer(payload, np.float32).reshape(shape)
            check_answer(answer, images.shape, self._task)
        except BaseException:
            self.close()
            raise
        return answer

    # --- the pipes --------------------------------------------------------------------------------------------

    def _nonsense(self) -> InferenceError:
        return ModelAnswerError(
            "The model's process answered something else than it was asked for.",
            fix="Don't use this model before its maker has explained it.",
        )

    def _exchange(
        self, message: bytes, images: memoryview | None, seconds: float, most: int
    ) -> tuple[dict[str, Any], bytearray]:
        """Send a message, and return the next one that comes: its header, and up to `most` bytes behind it."""
        process, until = self._process, time.monotonic() + seconds
        if process is None or process.stdin is None or process.stdout is None or not self._end.alive:
            raise ModelEndedError("The model is closed.", fix="Open it again.")
        sending = [part for part in (memoryview(message), images) if part is not None and len(part)]
        reading = _reading(most)
        wanted = next(reading)
        got = 0
        while True:
            poll = select.poll()
            poll.register(process.stdout.fileno(), select.POLLIN)
            if sending:
                poll.register(process.stdin.fileno(), select.POLLOUT)
            left = until - time.monotonic()
            events = dict(poll.poll(max(0, left) * 1000)) if left > 0 else {}
            if not events:
                raise self._late(seconds)
            if process.stdin.fileno() in events:
                try:
                    count = os.write(process.stdin.fileno(), sending[0])
                except BlockingIOError:
                    count = 0
                except OSError:  # it has ended; reading tells how
                    sending.clear()
                    count = 0
                if sending:
                    sending[0] = sending[0][count:]
                    sending = [part for part in sending if len(part)]
            if process.stdout.fileno() not in events:
                continue
            count = os.readv(process.stdout.fileno(), [memoryview(wanted)[got:]])
            if not count:
                raise self._ended()
            got += count
            if got < len(wanted):
                continue
            try:
                wanted, got = reading.send(wanted), 0
            except StopIteration as done:
                header, payload = done.value
                if "error" in header:
                    raise self._told(header) from None
                return header, payload
            except ValueError:
                raise self._nonsense() from None

    def _late(self, seconds: float) -> InferenceError:
        limit = f"{seconds:g} s that it had"
        if self._seen_images:  # how many there were at once is the site's business
            limit = f"{self._limits.image_seconds:g} s that it has for an image"
        return ModelTimeError(
            f"The model took longer than the {limit}.",
            fix="Raise validation.limits.image_seconds, or use a smaller model or window.",
        )

    def _ended(self) -> InferenceError:
        code = None
        if self._process is not None:
            with contextlib.suppress(subprocess.TimeoutExpired):
                code = self._process.wait(1)
        if code == -9:
            return ModelMemoryError(*_SAID[ModelMemoryError.code][:1], fix=_SAID[ModelMemoryError.code][1])
        return ModelEndedError(
            "The model's process ended before it answered.",
            fix="Try the model on your own machine first; there you see why.",
            local_detail=f"exit status {code}",
        )

    def _told(self, header: dict[str, Any]) -> InferenceError:
        """The error that the process told of. Its words count only where they can't be a program's."""
        code, text, fix, detail = (str(header.get(name, "")) for name in ("error", "text", "fix", "detail"))
        if self._seen_images:  # it could be they that are told
            text = fix = detail = ""
        kind = _ERRORS.get(code)
        if kind is None:
            return ModelEndedError(
                "The model's process could not go on.",
                fix="Look whether the installation is whole, and try the model on your own machine first.",
                local_detail=_cleaned(detail),
            )
        words, advice = _SAID[code]
        if text and self._contract.format not in NATIVE_FORMATS:
            words, advice = _cleaned(text), _cleaned(fix)
        return kind(words, fix=advice, local_detail=_cleaned(detail))


def _reading(most: int) -> Generator[bytearray, bytearray, tuple[dict[str, Any], bytearray]]:
    """Buffers to be filled one after the other; ends with a header and what stood behind it, or with ValueError."""
    head = yield bytearray(HEAD.size)
    header_length, payload_length = read_head(bytes(head), most)
    header = read_header(bytes((yield bytearray(header_length))))
    payload = (yield bytearray(payload_length)) if payload_length else bytearray()
    return header, payload


def _cleaned(text: str) -> str:
    """A sentence from the process, without what a path needs."""
    return "".join(c for c in text[:600] if 32 <= ord(c) < 127 and c not in "/\\")


def _sealed(model: _File, contract: ModelContract) -> int:
    """An open file in memory with the model's bytes, which nobody can change any more."""
    fix = "Ask for the file that the contract was made from."
    file = os.memfd_create("model", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    try:
        digest, size = hashlib.sha256(), 0
        for block in _blocks(model):
            size += len(block)
            if size > contract.size_bytes:
                break
            digest.update(block)
            left = memoryview(block)
            while left:
                left = left[os.write(file, left) :]
        if size != contract.size_bytes:
            raise ModelRefusedError("The model's file has not the size that its contract says.", fix=fix)
        if digest.hexdigest() != contract.sha256:
            raise ModelRefusedError("The model's file is not the one that its contract describes (SHA-256).", fix=fix)
        seals = fcntl.F_SEAL_WRITE | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL
        fcntl.fcntl(file, fcntl.F_ADD_SEALS, seals)
    except BaseException:
        os.close(file)
        raise
    return file


def _blocks(model: _File) -> Iterator[bytes | memoryview]:
    if not isinstance(model, Path):
        yield model
        return
    with model.open("rb") as stream:
        while block := stream.read(_BLOCK):
            yield block


def _start(folder: str, file: int, threads: int) -> subprocess.Popen[bytes]:
    path = os.pathsep.join(str(Path(part).absolute()) for part in sys.path if part)
    numbers = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), str(threads))
    kept = {name: os.environ[name] for name in ("LD_LIBRARY_PATH",) if name in os.environ}
    process = subprocess.Popen(  # noqa: S603 - this interpreter with a fixed line
        [sys.executable, "-P", "-c", "from eucaim_fl.inference.process import serve; serve()", str(os.getpid())],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        bufsize=0,
        cwd=folder,
        pass_fds=(file,),
        start_new_session=True,
        env={
            "PYTHONPATH": path,
            "PYTHONDONTWRITEBYTECODE": "1",
            "HOME": folder,
            "TMPDIR": folder,
            "MPLCONFIGDIR": folder,
            "LC_ALL": "C.UTF-8",
            "LOGNAME": "model",  # libraries ask whose cache to use
            "MALLOC_ARENA_MAX": "2",
            "ORT_DISABLE_TELEMETRY": "1",
            "TORCH_FORCE_WEIGHTS_ONLY_LOAD": "1",
            **numbers,
            **kept,
        },
    )
    for pipe in (process.stdin, process.stdout):
        if pipe is not None:
            os.set_blocking(pipe.fileno(), False)
            with contextlib.suppress(OSError):
                fcntl.fcntl(pipe.fileno(), fcntl.F_SETPIPE_SZ, _PIPE_BYTES)
    return process


def _finish(process: subprocess.Popen[bytes] | None, folder: str) -> None:
    """End a model's process by force, and remove its folder."""
    if process is not None:
        process.kill()
        process.wait()
        for pipe in (process.stdin, process.stdout):
            if pipe is not None:
                pipe.close()
    shutil.rmtree(folder, ignore_errors=True)

"""A frozen model opened by its contract, and its answers to images. Foreign bytes: call it in a locked process.

`prepare` loads libraries, builds what our own code builds, and computes once, so that nothing has to be read from the
disk any more; what it returns opens the bytes. Nothing here trusts these: networks are built by our registry and get
arrays of known names, shapes and types; ONNX files are looked through first and run by onnxruntime on the CPU.
TorchScript and exported programs are programs of whoever made them, and run only where the caller allows native code.
`torch.export.load` unpickles objects that the archive calls pickled and evaluates its symbolic shapes as Python
expressions (sympy); so archives with pickled parts are refused here, all other loading is held to plain tensors, and
what is left is what the lock is for.
"""

from __future__ import annotations

import io
import json
import os
import sys
import zipfile
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any, TypeAlias

import numpy as np

from eucaim_fl.config import TaskConfig
from eucaim_fl.errors import (
    EucaimError,
    JournalError,
    ModelAnswerError,
    ModelMemoryError,
    ModelRefusedError,
    RecipeError,
)
from eucaim_fl.inference.answers import Images, check_answer, to_probabilities
from eucaim_fl.inference.onnx_file import read_onnx
from eucaim_fl.validation_config import NATIVE_FORMATS, ModelContract

__all__ = ["Model", "Opener", "planned_network", "prepare"]

Model: TypeAlias = Callable[[Images], Images]
"""Images (n, channels, *spatial) → checked probabilities (n, outputs) or (n, outputs, *spatial)."""
Opener: TypeAlias = Callable[[memoryview], Model]
"""Bytes of a model's file → the model."""

_OUT_OF_MEMORY = ("alloc", "not enough memory", "out of memory", "cannot allocate", "mmap")
_LARGEST_ARCHIVE_NOTE = 16 * 2**20


def prepare(contract: ModelContract, task: TaskConfig, threads: int = 1, *, native: bool = False) -> Opener:
    """Load what a format needs, and answer with what opens the bytes. threads: of the libraries.

    The opener and the model raise ModelRefusedError for bytes that are not what the contract says, ModelAnswerError for
    answers that are no probabilities, ModelMemoryError where memory ends.
    Raises ModelRefusedError for a program where `native` is false, and for a network that can't be built.
    """
    if contract.format in NATIVE_FORMATS and not native:
        raise ModelRefusedError(
            f"{contract.name} is a program ({contract.format}), and programs are not allowed here.",
            fix="Bring it as one of this software's networks or as ONNX, or have the site's policy allow native code.",
        )
    prepared = _PREPARED[contract.format](contract, task, threads)

    def open_bytes(raw: memoryview) -> Model:
        run = _guarded(lambda: prepared(raw), ModelRefusedError("The model's file can't be opened.", fix=_EXPORT_AGAIN))

        def answer(images: Images) -> Images:
            failed = ModelAnswerError("The model gave an error in place of an answer.", fix=_SIZES)
            raw_answer = _guarded(lambda: run(images), failed)
            probabilities = to_probabilities(raw_answer, contract, task)
            check_answer(probabilities, images.shape, task)
            return np.clip(probabilities, 0, 1) if task.name != "survival" else probabilities

        return answer

    return open_bytes


_EXPORT_AGAIN = "Export it again with a current version of its software, and try it on your own machine first."
_SIZES = "Check that it takes images of the contract's channels and size, and try it on your own machine first."


def _guarded(work: Callable[[], Any], failed: EucaimError) -> Any:
    """What some work on a foreign model gives. Whatever goes wrong is ours to word."""
    try:
        with _no_gradients():
            return work()
    except EucaimError:
        raise
    except MemoryError:
        raise _too_much_memory() from None
    except Exception as problem:  # noqa: BLE001 - a foreign model can make a library raise anything
        text = f"{type(problem).__name__}: {problem}"
        if any(sign in text.lower() for sign in _OUT_OF_MEMORY):  # TorchScript quotes the program first
            raise _too_much_memory() from None
        failed.local_detail = text[:500]
        raise failed from None


def _too_much_memory() -> ModelMemoryError:
    return ModelMemoryError(
        "The model asked for more memory than it may.", fix="Raise validation.limits.memory_gb, or use a smaller model."
    )


def _as_float32(answer: Any) -> Images:
    """A library's answer as a float32 array; ModelAnswerError for anything else."""
    array = answer.detach().numpy() if hasattr(answer, "detach") else answer
    if not isinstance(array, np.ndarray) or array.dtype != np.float32:
        raise ModelAnswerError(
            "What the model answered is not one float32 array.", fix="Export it so that it answers with one tensor."
        )
    return np.ascontiguousarray(array)


def _torch(threads: int) -> Any:
    import torch

    torch.set_num_threads(threads)
    return torch


def _no_gradients() -> AbstractContextManager[Any]:
    """What a model's work is done in: nothing is remembered for training, in this process alone and for so long."""
    torch = sys.modules.get("torch")
    return nullcontext() if torch is None else torch.no_grad()


# --- this software's networks --------------------------------------------------------------------------------------


def _network(contract: ModelContract, task: TaskConfig, threads: int) -> Callable[[memoryview], Model]:
    torch = _torch(threads)
    from eucaim_fl.arrays import decode_arrays
    from eucaim_fl.models.networks import set_arrays

    def built() -> Any:
        made = planned_network(contract, task).eval()
        made(torch.zeros((1, contract.data.number_of_channels(), *_small_size(contract, task))))
        return made

    network = _guarded(built, ModelRefusedError("The contract's network can't be built.", fix=_SIZES))

    def run(images: Images) -> Images:
        return _as_float32(network(torch.from_numpy(images)))

    def open_bytes(raw: memoryview) -> Model:
        try:
            arrays = decode_arrays(raw)
        except JournalError as problem:
            raise ModelRefusedError(
                "The model's file is no safetensors file.", fix=_EXPORT_AGAIN, local_detail=problem.local_detail
            ) from None
        set_arrays(network, arrays, error=ModelRefusedError)
        return run

    return open_bytes


def planned_network(contract: ModelContract, task: TaskConfig) -> Any:
    """The network that a contract names, with weights of no meaning. Raises ModelRefusedError if it can't be built."""
    from eucaim_fl.models.conditioned import Conditioned
    from eucaim_fl.models.networks import build

    channels, size = contract.data.number_of_channels(), contract.image_voxels(task.spatial_dims)
    if contract.network is None:
        raise ModelRefusedError("The contract names no network.", fix="Give network: name and args.")
    try:
        network = build(contract.network, task, in_channels=channels, image_size=size)
    except RecipeError as problem:
        raise ModelRefusedError(
            f"The contract's network can't be built: {problem.message}",
            fix=problem.fix,
            local_detail=problem.local_detail,
        ) from None
    if not contract.standardised and contract.class_shares is None:
        return network
    return Conditioned(
        network,
        channels=channels if contract.standardised else 0,
        classes=task.outputs() if contract.class_shares is not None else 0,
        strength=contract.class_shares or 0.0,
    )


def _small_size(contract: ModelContract, task: TaskConfig) -> tuple[int, ...]:
    """The smallest image that a network surely takes."""
    from eucaim_fl.models.arguments import check_model

    if contract.network is None:
        return (1,) * task.spatial_dims
    arguments = check_model(contract.network, task)
    size = contract.image_voxels(task.spatial_dims)
    if arguments.fixed_size and size is not None:
        return size
    return tuple(max(arguments.least, 2 * n) for n in arguments.reduction(task.spatial_dims))


# --- ONNX ----------------------------------------------------------------------------------------------------------


def _onnx(contract: ModelContract, task: TaskConfig, threads: int) -> Callable[[memoryview], Model]:
    os.environ["ORT_DISABLE_TELEMETRY"] = "1"  # from 1.29 on it tells its maker of every session, with a device's id
    import onnx
    import onnxruntime
    from onnx import helper

    onnxruntime.set_default_logger_severity(4)

    def session(raw: bytes) -> Any:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
        options.enable_cpu_mem_arena = False  # it takes memory by doubling, and meets a limit long before its need does
        options.enable_mem_pattern = False
        options.use_deterministic_compute = True
        options.log_severity_level = 4
        options.add_session_config_entry("session.load_model_format", "ONNX")  # not what the bytes look like
        return onnxruntime.InferenceSession(raw, options, providers=["CPUExecutionProvider"])

    value = [helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, [1]) for name in "xy"]
    graph = helper.make_graph([helper.make_node("Sigmoid", ["x"], ["y"])], "first", value[:1], value[1:])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    session(model.SerializeToString()).run(["y"], {"x": np.zeros(1, np.float32)})

    def open_bytes(raw: memoryview) -> Model:
        whole = bytes(raw)
        facts = read_onnx(whole, contract, task)
        opened = session(whole)

        def run(images: Images) -> Images:
            if facts.batch is None:
                return _as_float32(opened.run([facts.output_name], {facts.input_name: images})[0])
            single = [opened.run([facts.output_name], {facts.input_name: one[None]})[0] for one in images]
            return np.concatenate([_as_float32(one) for one in single])

        return run

    return open_bytes


# --- programs ------------------------------------------------------------------------------------------------------


def _torchscript(contract: ModelContract, task: TaskConfig, threads: int) -> Callable[[memoryview], Model]:
    torch = _torch(threads)
    first = io.BytesIO()
    torch.jit.save(torch.jit.trace(torch.nn.Conv2d(1, 1, 3), torch.zeros(1, 1, 8, 8)), first)
    torch.jit.load(io.BytesIO(first.getvalue()), map_location="cpu")(torch.zeros(1, 1, 8, 8))

    def open_bytes(raw: memoryview) -> Model:
        program = torch.jit.load(io.BytesIO(raw), map_location="cpu").eval()
        return lambda images: _as_float32(program(torch.from_numpy(images)))

    return open_bytes


def _exported(contract: ModelContract, task: TaskConfig, threads: int) -> Callable[[memoryview], Model]:
    torch = _torch(threads)
    first = io.BytesIO()
    batch = {0: torch.export.Dim("batch")}
    torch.export.save(
        torch.export.export(torch.nn.Conv2d(1, 1, 3), (torch.zeros(2, 1, 8, 8),), dynamic_shapes=(batch,)), first
    )
    torch.export.load(io.BytesIO(first.getvalue())).module()(torch.zeros(1, 1, 8, 8))

    def open_bytes(raw: memoryview) -> Model:
        _refuse_pickles(raw)
        program = torch.export.load(io.BytesIO(raw)).module()
        return lambda images: _as_float32(program(torch.from_numpy(images)))

    return open_bytes


def _refuse_pickles(raw: memoryview) -> None:
    """See that an archive of `torch.export.save` calls none of its parts pickled, and is of the current layout."""
    notes = 0
    with zipfile.ZipFile(io.BytesIO(raw)) as archive:
        for entry in archive.infolist():
            parts = entry.filename.split("/")
            if len(parts) < 2 or parts[-1].startswith("serialized_") or "extra" in parts[:-1]:
                raise ModelRefusedError("The exported program is of an old layout.", fix=_EXPORT_AGAIN)
            if parts[-1].endswith("_config.json"):
                if entry.file_size > _LARGEST_ARCHIVE_NOTE:
                    raise ModelRefusedError("The exported program's list of weights is too long.", fix=_EXPORT_AGAIN)
                notes += 1
                if _calls_pickled(json.loads(archive.read(entry))):
                    raise ModelRefusedError(
                        "The exported program holds pickled objects.",
                        fix="Export it with plain tensors only, or as ONNX.",
                    )
    if not notes:
        raise ModelRefusedError("The exported program does not say how its weights are kept.", fix=_EXPORT_AGAIN)


def _calls_pickled(note: Any) -> bool:
    entries: Mapping[str, Any] = note.get("config", {}) if isinstance(note, dict) else {}
    return any(
        not isinstance(entry, dict)
        or entry.get("use_pickle") is not False
        or "custom_obj" in str(entry.get("path_name"))
        for entry in entries.values()
    )


_PREPARED: Mapping[str, Callable[[ModelContract, TaskConfig, int], Callable[[memoryview], Model]]] = {
    "network": _network,
    "onnx": _onnx,
    "torchscript": _torchscript,
    "exported": _exported,
}

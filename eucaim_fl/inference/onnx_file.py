"""An ONNX file before anything runs it: a plain graph of standard operators with all it needs, fit for a task."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from eucaim_fl.config import TaskConfig
from eucaim_fl.errors import ModelRefusedError
from eucaim_fl.validation_config import LARGEST_MODEL_FILE, ModelContract

__all__ = ["DEEPEST", "LARGEST_NODES", "OPSETS", "OnnxFacts", "read_onnx"]

LARGEST_NODES = 100_000
"""Operators of a graph, those of the bodies of loops and branches included."""
DEEPEST = 8
"""How deep the bodies of loops and branches may lie in each other."""
OPSETS = range(7, 26)
"""Versions of the standard operators."""

_DOMAINS = ("", "ai.onnx")
_LEARNING = "ai.onnx.ml"
_LEARNING_OPSETS = range(1, 6)
_IR_VERSIONS = range(3, 14)
_FLOAT = 1
_EXTERNAL = 1
_OTHER_FORMAT = b"ORTM"  # at bytes 4 to 8: onnxruntime then takes the file for one of its own format


@dataclass(frozen=True)
class OnnxFacts:
    """What there is to know of a file that may be run.

    batch: images that it takes at once; None takes any number. spatial: voxels along each axis, None where any.
    """

    opset: int
    nodes: int
    input_name: str
    output_name: str
    batch: int | None
    spatial: tuple[int | None, ...]


def _refuse(what: str, fix: str) -> ModelRefusedError:
    return ModelRefusedError(f"The ONNX file {what}.", fix=fix)


def read_onnx(raw: bytes, contract: ModelContract, task: TaskConfig) -> OnnxFacts:
    """Look through an ONNX file without running any of it. raw: its bytes.

    It must be a file of this format alone: a graph of standard operators (domains ai.onnx and ai.onnx.ml) of a
    supported version, bodies of loops and branches included; without functions, training information or data in other
    files; with one float32 input (batch, channels, *spatial) and one float32 output, (batch, outputs) or for
    segmentation (batch, outputs, *spatial).
    Sizes that it leaves open are checked when it answers. A loop that never ends is not found here.
    Raises ModelRefusedError that says what is wrong, and what to do.
    """
    if not 0 < len(raw) <= LARGEST_MODEL_FILE:
        raise _refuse("is empty or too large", "ONNX files hold at most 2 GiB.")
    if raw[4:8] == _OTHER_FORMAT:
        raise _refuse("would be run as a file of another format (ORT), which nobody looks through", "Bring plain ONNX.")
    import onnx

    model = onnx.ModelProto()
    try:
        model.ParseFromString(raw)
    except MemoryError:
        raise
    except Exception:  # noqa: BLE001 - protobuf's own error, of a package that only onnx asks for
        raise _refuse("can't be read", "Export the model again, and look whether onnx.checker accepts it.") from None
    opset = _check_versions(model)
    if len(model.functions) or len(model.training_info):
        raise _refuse(
            "holds functions or training information", "Inline functions (onnx.inliner), and export for inference."
        )
    nodes = 0
    for node in _nodes(model.graph):
        nodes += 1
        if node.domain not in (*_DOMAINS, _LEARNING):
            raise _refuse(
                f"has an operator {_name(node.op_type)} of the domain {_name(node.domain)}",
                "Only standard operators (ai.onnx, ai.onnx.ml) are run; export the model without custom ones.",
            )
        if nodes > LARGEST_NODES:
            raise _refuse(f"has more than {LARGEST_NODES:,} operators", "Simplify it.")
    entrance = _entrance(model.graph, contract, task)
    if len(model.graph.output) != 1:
        raise _refuse(f"has {len(model.graph.output)} outputs, not one", "Export the answer alone.")
    _check_exit(model.graph.output[0], contract, task)
    batch, *spatial = entrance[1]
    return OnnxFacts(opset, nodes, entrance[0], str(model.graph.output[0].name), batch, tuple(spatial))


def _name(text: str) -> str:
    """A name from the file as it may be shown."""
    return "".join(c if c.isascii() and (c.isalnum() or c in "._-") else "?" for c in text[:64]) or "(none)"


def _check_versions(model: Any) -> int:
    """Version of the standard operators."""
    if model.ir_version not in _IR_VERSIONS:
        raise _refuse(f"is of IR version {model.ir_version}", f"Versions {_span(_IR_VERSIONS)} are read.")
    stated: dict[str, int] = {}
    for entry in model.opset_import:
        domain = "" if entry.domain in _DOMAINS else entry.domain
        if domain in stated:
            raise _refuse("states the version of a domain twice", "Export it again.")
        stated[domain] = entry.version
    for domain, version in stated.items():
        known = {"": OPSETS, _LEARNING: _LEARNING_OPSETS}.get(domain)
        if known is None:
            raise _refuse(
                f"imports operators of the domain {_name(domain)}",
                "Only standard operators (ai.onnx, ai.onnx.ml) are run; export the model without custom ones.",
            )
        if version not in known:
            raise _refuse(
                f"needs version {version} of {domain or 'ai.onnx'}",
                f"Versions {_span(known)} are run; convert it (onnx.version_converter) or export it again.",
            )
    if "" not in stated:
        raise _refuse("does not state the version of its operators", "Export it again.")
    return stated[""]


def _span(versions: range) -> str:
    return f"{versions[0]} to {versions[-1]}"


def _nodes(graph: Any) -> Iterator[Any]:
    """All operators, bodies included; on the way all stored tensors are seen to lie in the file."""
    waiting = [(graph, 1)]
    while waiting:
        here, depth = waiting.pop()
        if depth > DEEPEST:
            raise _refuse(f"has loops or branches nested deeper than {DEEPEST}", "Simplify it.")
        for tensor in here.initializer:
            _check_inside(tensor)
        for sparse in here.sparse_initializer:
            _check_inside(sparse.values)
            _check_inside(sparse.indices)
        for node in here.node:
            yield node
            for attribute in node.attribute:
                for tensor in (attribute.t, *attribute.tensors):
                    _check_inside(tensor)
                for sparse in (attribute.sparse_tensor, *attribute.sparse_tensors):
                    _check_inside(sparse.values)
                    _check_inside(sparse.indices)
                if attribute.HasField("g"):
                    waiting.append((attribute.g, depth + 1))
                waiting += [(body, depth + 1) for body in attribute.graphs]


def _check_inside(tensor: Any) -> None:
    if tensor.data_location == _EXTERNAL or len(tensor.external_data):
        raise _refuse(
            "keeps weights in another file", "Store all in one: onnx.save(model, path, save_as_external_data=False)."
        )


def _sizes(value: Any) -> list[int | None] | None:
    """Sizes along the axes of a float32 tensor, None where open; None at all if no number of axes is stated."""
    kind = value.type
    if kind.WhichOneof("value") != "tensor_type" or kind.tensor_type.elem_type != _FLOAT:
        raise _refuse("takes or gives something else than float32 tensors", "Export it with float32 at both ends.")
    if not kind.tensor_type.HasField("shape"):
        return None
    return [d.dim_value if d.WhichOneof("value") == "dim_value" else None for d in kind.tensor_type.shape.dim]


def _entrance(graph: Any, contract: ModelContract, task: TaskConfig) -> tuple[str, list[int | None]]:
    """Name of the one input, and its batch and spatial sizes."""
    stored = {tensor.name for tensor in graph.initializer}
    free = [value for value in graph.input if value.name not in stored]
    if len(free) != 1:
        raise _refuse(f"has {len(free)} inputs, not one", "Export it with the image as its only input.")
    sizes, channels = _sizes(free[0]), contract.data.number_of_channels()
    if sizes is None or len(sizes) != 2 + task.spatial_dims:
        axes = "an unknown number of" if sizes is None else f"{len(sizes)}"
        raise _refuse(
            f"takes {axes} axes, not {2 + task.spatial_dims}: batch, channels and {task.spatial_dims} of space",
            "Export it so, or correct the task's spatial_dims.",
        )
    batch, given, *spatial = sizes
    if given not in (None, channels):
        raise _refuse(f"takes {given} channels, its contract has {channels}", "Correct data.channels or data.colour.")
    if batch not in (None, 1):
        raise _refuse(f"takes {batch} images at once", "Export it with a free batch, or for one image.")
    fixed = contract.image_voxels(task.spatial_dims)
    if fixed is not None and any(n not in (None, m) for n, m in zip(spatial, fixed, strict=False)):
        raise _refuse(
            f"takes images of {spatial}, its contract has {list(fixed)}", "Correct patch_voxels or data.size_voxels."
        )
    return str(free[0].name), [batch, *spatial]


def _check_exit(value: Any, contract: ModelContract, task: TaskConfig) -> None:
    sizes = _sizes(value)
    if sizes is None:
        return
    axes = 2 + (task.spatial_dims if task.name == "segmentation" else 0)
    if len(sizes) != axes:
        raise _refuse(f"answers with {len(sizes)} axes, a {task.name} has {axes}", "Export the answer in that shape.")
    if sizes[1] not in (None, task.outputs()):
        raise _refuse(
            f"answers {sizes[1]} values, the task has {task.outputs()}"
            + (" (background first)" if task.name == "segmentation" else ""),
            "Correct the task's classes, targets or labels, or export the model with one value for each.",
        )

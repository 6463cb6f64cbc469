"""Small frozen models for tests, good ones and bad ones, and contracts for them."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper

from eucaim_fl.config import ClassificationConfig, DataConfig
from eucaim_fl.validation_config import ModelContract

__all__ = ["TASK", "contract_for", "images", "linear", "onnx_bytes", "onnx_model", "tensor"]

TASK = ClassificationConfig(target="grade", classes=("low", "high"))


def contract_for(raw: bytes, kind: str = "onnx", **changes: Any) -> ModelContract:
    """A contract for one-channel images of 8 × 8."""
    fields: dict[str, Any] = {
        "name": "model",
        "format": kind,
        "sha256": hashlib.sha256(raw).hexdigest(),
        "size_bytes": len(raw),
        "data": DataConfig(size_voxels=(8, 8, None)),
        "intended_use": "a test",
    }
    return ModelContract(**{**fields, **changes})


def images(number: int = 2, channels: int = 1) -> NDArray[np.float32]:
    """Images of 8 × 8, shape (number, channels, 8, 8)."""
    return np.random.default_rng(7).random((number, channels, 8, 8), dtype=np.float32)


def tensor(name: str, array: Any) -> onnx.TensorProto:
    """A stored tensor."""
    return onnx.numpy_helper.from_array(np.asarray(array), name)


def onnx_model(
    nodes: Sequence[onnx.NodeProto],
    stored: Sequence[onnx.TensorProto] = (),
    *,
    shape: Sequence[Any] = ("n", 1, 8, 8),
    answer: Sequence[Any] | None = ("n", 2),
    opset: int = 17,
) -> onnx.ModelProto:
    """A graph from `x` to `y`."""
    graph = helper.make_graph(
        list(nodes),
        "graph",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, answer)],
        list(stored),
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)


def linear(*after: onnx.NodeProto, name: str = "y", stored: Sequence[onnx.TensorProto] = (), **ends: Any) -> Any:
    """One linear layer, seen as `name`, and what comes after it."""
    weights = np.random.default_rng(3).normal(size=(64, 2)).astype(np.float32)
    first = [helper.make_node("Flatten", ["x"], ["f"]), helper.make_node("MatMul", ["f", "w"], [name])]
    return onnx_model([*first, *after], [tensor("w", weights), *stored], **ends)


def onnx_bytes(model: Any) -> bytes:
    """A file's bytes."""
    return bytes(model.SerializeToString())

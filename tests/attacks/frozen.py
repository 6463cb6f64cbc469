"""Frozen models that are hostile, and plans that bring them to a site."""

from __future__ import annotations

import hashlib
import os
import pickle
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper

from eucaim_fl.plan import FederationPlan
from tests.inference.frozen import onnx_bytes, onnx_model, tensor

__all__ = ["MARK", "Ran", "contract", "endless", "fifty_gigabytes", "masks", "outside", "validating"]

MARK = "a-model-that-must-not-stay-on-any-disk"
"""Stands in every ONNX file that is made here."""


def contract(plan: FederationPlan, content: bytes, kind: str = "onnx", **changes: Any) -> dict[str, Any]:
    """What a maker says of a file: a model on the plan's own grid."""
    return {
        "name": "hostile",
        "format": kind,
        "sha256": hashlib.sha256(content).hexdigest(),
        "size_bytes": len(content),
        "network": plan.model.model_dump() if kind == "network" else None,
        "data": plan.data.model_dump(),
        "intended_use": "Finds lesions, for research.",
        **changes,
    }


def validating(plan: FederationPlan, *models: dict[str, Any], **asked: Any) -> FederationPlan:
    """The plan that brings models; asked: other keys of its part `validation`."""
    values = {**plan.model_dump(mode="json"), "rounds": 1, "validation": {"models": list(models), **asked}}
    return FederationPlan.model_validate(values, strict=False)


def masks(*after: onnx.NodeProto, stored: Sequence[onnx.TensorProto] = ()) -> bytes:
    """A graph for slices of any size: two numbers for each pixel, background and lesion; and what comes after these."""
    weights = tensor("w", np.array([[[[-1.0]]], [[[1.0]]]], np.float32))
    bias = tensor("b", np.array([0.7, -0.7], np.float32))
    first = helper.make_node("Conv", ["x", "w", "b"], ["f2" if after else "y"])
    size = ("n", 1, "h", "v"), ("n", 2, "h", "v")
    model = onnx_model([first, *after], [weights, bias, *stored], shape=size[0], answer=size[1])
    model.doc_string = MARK
    return onnx_bytes(model)


def outside(place: str) -> bytes:
    """Weights that lie in another file."""
    tensor_there = tensor("k", np.zeros((1, 2, 1, 1), np.float32))
    tensor_there.ClearField("raw_data")
    tensor_there.data_location = TensorProto.EXTERNAL
    entry = tensor_there.external_data.add()
    entry.key, entry.value = "location", place
    return masks(helper.make_node("Add", ["f2", "k"], ["y"]), stored=[tensor_there])


def endless() -> bytes:
    """A loop of 2⁶² steps."""
    kinds = (("i", TensorProto.INT64, []), ("c", TensorProto.BOOL, []), ("a", TensorProto.FLOAT, None))
    done = (("c2", TensorProto.BOOL, []), ("a2", TensorProto.FLOAT, None))
    body = helper.make_graph(
        [helper.make_node("Identity", ["c"], ["c2"]), helper.make_node("Add", ["a", "one"], ["a2"])],
        "body",
        [helper.make_tensor_value_info(*kind) for kind in kinds],
        [helper.make_tensor_value_info(*kind) for kind in done],
        [tensor("one", np.ones(1, np.float32))],
    )
    steps = tensor("steps", np.array(2**62, np.int64))
    loop = helper.make_node("Loop", ["steps", "t", "f2"], ["y"], body=body)
    return masks(loop, stored=[steps, tensor("t", np.array(True))])


def fifty_gigabytes() -> bytes:
    """A tensor of 6,250,000 times what a slice's answer takes."""
    nodes = [
        helper.make_node("Shape", ["f2"], ["s"]),
        helper.make_node("Mul", ["s", "k"], ["s2"]),
        helper.make_node("Expand", ["one", "s2"], ["big"]),
        helper.make_node("ReduceSum", ["big"], ["r"]),
        helper.make_node("Add", ["f2", "r"], ["y"]),
    ]
    times = tensor("k", np.array([1, 100, 250, 250], np.int64))
    return masks(*nodes, stored=[times, tensor("one", np.ones((1, 1, 1, 1), np.float32))])


class Ran:
    """Unpickling it leaves a trace."""

    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.trace),)

    def pickled(self) -> bytes:
        """As a file of weights would hold it."""
        return pickle.dumps({"weights": self})

"""An ONNX file is looked through before anything runs it."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from eucaim_fl.config import DataConfig, SegmentationConfig
from eucaim_fl.errors import ModelRefusedError
from eucaim_fl.inference import onnx_file
from eucaim_fl.inference.onnx_file import read_onnx
from tests.inference.frozen import TASK, contract_for, linear, onnx_bytes, onnx_model, tensor

NODE = helper.make_node("Identity", ["f2"], ["y"])


def refused(model: Any, words: str, task: Any = TASK, **changes: Any) -> None:
    raw = model if isinstance(model, bytes) else onnx_bytes(model)
    with pytest.raises(ModelRefusedError, match=words) as caught:
        read_onnx(raw, contract_for(raw, **changes), task)
    assert caught.value.fix


def in_a_branch(node: onnx.NodeProto, stored: Any = ()) -> Any:
    """A model that has a node only within the branch of an If."""
    body = helper.make_graph([node], "b", [], [helper.make_tensor_value_info("y2", TensorProto.FLOAT, None)], stored)
    branch = helper.make_node("If", ["t"], ["y"], then_branch=body, else_branch=body)
    return linear(branch, name="f2", stored=[tensor("t", True)])


class TestAGoodFile:
    def test_its_ends_are_told(self) -> None:
        raw = onnx_bytes(linear())
        facts = read_onnx(raw, contract_for(raw), TASK)
        assert (facts.opset, facts.nodes, facts.batch, facts.spatial) == (17, 2, None, (8, 8))
        assert (facts.input_name, facts.output_name) == ("x", "y")

    def test_a_segmentation_may_leave_its_sizes_open(self) -> None:
        weights = tensor("w", np.ones((2, 1, 1, 1), np.float32))
        node = helper.make_node("Conv", ["x", "w"], ["y"])
        raw = onnx_bytes(onnx_model([node], [weights], shape=("n", 1, "h", "v"), answer=("n", 2, "h", "v")))
        facts = read_onnx(raw, contract_for(raw), SegmentationConfig(labels=("lesion",), spatial_dims=2))
        assert facts.spatial == (None, None)

    def test_weights_that_are_listed_among_the_inputs_are_none(self) -> None:
        model = linear()
        model.graph.input.append(helper.make_tensor_value_info("w", TensorProto.FLOAT, [64, 2]))
        raw = onnx_bytes(model)
        assert read_onnx(raw, contract_for(raw), TASK).input_name == "x"


class TestAttacks:
    def test_a_file_of_two_formats(self) -> None:
        """Fields that no reader of ONNX knows, and a mark by which onnxruntime takes the rest for another format."""
        two = b"\x78\x00\x82\x01\x4fRTM" + bytes(76) + onnx_bytes(linear())
        assert onnx.load_from_string(two) is not None
        refused(two, "another format")

    def test_an_operator_of_a_domain_of_its_own(self) -> None:
        refused(linear(helper.make_node("Run", ["f2"], ["y"], domain="com.evil"), name="f2"), "com.evil")
        refused(in_a_branch(helper.make_node("Run", ["f2"], ["y2"], domain="com.evil")), "com.evil")
        model = linear()
        model.opset_import.append(helper.make_opsetid("com.evil\n/etc", 1))
        refused(model, r"com\.evil\?\?etc")

    def test_weights_in_another_file(self) -> None:
        outside = tensor("k", np.zeros(2, np.float32))
        outside.ClearField("raw_data")
        outside.data_location = TensorProto.EXTERNAL
        entry = outside.external_data.add()
        entry.key, entry.value = "location", "../../etc/passwd"
        add = helper.make_node("Add", ["f2", "k"], ["y"])
        refused(linear(add, name="f2", stored=[outside]), "another file")
        refused(in_a_branch(helper.make_node("Add", ["f2", "k"], ["y2"]), [outside]), "another file")
        constant = helper.make_node("Constant", [], ["k"], value=outside)
        refused(linear(constant, add, name="f2"), "another file")
        outside.data_location = TensorProto.DEFAULT
        refused(linear(add, name="f2", stored=[outside]), "another file")

    def test_functions_and_training_information(self) -> None:
        model = linear()
        model.functions.append(
            helper.make_function("com.evil", "F", ["a"], ["b"], [helper.make_node("Abs", ["a"], ["b"])], [])
        )
        refused(model, "functions")
        model = linear()
        model.training_info.add()
        refused(model, "training information")

    @pytest.mark.parametrize("raw", [b"", b"PK\x03\x04 no protobuf", b"\xff" * 50, onnx_bytes(linear())[:-7]])
    def test_what_is_no_onnx(self, raw: bytes) -> None:
        with pytest.raises(ModelRefusedError, match=r"can't be read|empty"):
            read_onnx(raw, contract_for(raw or b"x"), TASK)

    def test_too_many_operators(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(onnx_file, "LARGEST_NODES", 1)
        refused(linear(), "more than 1 operators")

    def test_branches_within_branches(self) -> None:
        node = helper.make_node("Identity", ["f2"], ["y2"])
        for _ in range(onnx_file.DEEPEST + 1):
            out = helper.make_tensor_value_info("y2", TensorProto.FLOAT, None)
            body = helper.make_graph([node], "b", [], [out])
            node = helper.make_node("If", ["t"], ["y2"], then_branch=body, else_branch=body)
        refused(in_a_branch(node), "nested deeper")


class TestWhatDoesNotFit:
    @pytest.mark.parametrize(
        ("model", "words"),
        [
            (linear(opset=6), "version 6"),
            (linear(shape=("n", 3, 8, 8)), "3 channels"),
            (linear(shape=("n", 1, 8)), "3 axes"),
            (linear(shape=("n", 1, 9, 9)), "contract has"),
            (linear(shape=(4, 1, 8, 8)), "4 images"),
            (linear(answer=("n", 3)), "3 values"),
            (linear(answer=("n", 2, 8, 8)), "4 axes"),
        ],
    )
    def test_it_is_named(self, model: Any, words: str) -> None:
        refused(model, words)

    def test_two_ends_too_many(self) -> None:
        model = linear()
        model.graph.output.append(helper.make_tensor_value_info("f", TensorProto.FLOAT, ["n", 64]))
        refused(model, "2 outputs")
        model = linear()
        model.graph.input.append(helper.make_tensor_value_info("z", TensorProto.FLOAT, [1]))
        refused(model, "2 inputs")

    def test_other_numbers(self) -> None:
        model = linear()
        model.graph.input[0].type.tensor_type.elem_type = TensorProto.DOUBLE
        refused(model, "float32")

    def test_the_versions_must_be_stated_once(self) -> None:
        model = linear()
        model.opset_import.append(helper.make_opsetid("ai.onnx", 17))
        refused(model, "twice")
        del model.opset_import[:]
        refused(model, "does not state")
        model = linear()
        model.ir_version = 99
        refused(model, "IR version 99")

    def test_colours_are_three_channels(self) -> None:
        refused(linear(), "its contract has 3", data=DataConfig(colour=True))

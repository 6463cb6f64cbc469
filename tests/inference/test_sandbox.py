"""A frozen model in its own process: images in, probabilities out, and an end to whatever else it does."""

from __future__ import annotations

import gc
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from itertools import repeat
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from onnx import TensorProto, helper

from eucaim_fl.config import DataConfig, ModelConfig, SegmentationConfig
from eucaim_fl.errors import (
    DataError,
    LockError,
    ModelAnswerError,
    ModelEndedError,
    ModelMemoryError,
    ModelRefusedError,
    ModelTimeError,
)
from eucaim_fl.inference import sandbox
from eucaim_fl.inference.lock import REQUIRED
from eucaim_fl.inference.runtime import prepare
from eucaim_fl.inference.sandbox import open_model
from eucaim_fl.validation_config import InferenceLimits
from tests.inference.frozen import TASK, contract_for, images, linear, onnx_bytes, tensor

pytestmark = pytest.mark.federated

GOOD = onnx_bytes(linear())
LOGITS = ("n", "classes")


def alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    state = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0]
    return state != "Z"


@pytest.fixture(autouse=True)
def _own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Nothing is left behind, whatever a test does."""
    place = tmp_path / "temporary"
    place.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(place))
    yield
    if any(place.iterdir()):  # what an error still holds goes with it; to look through everything takes its time
        gc.collect()
    assert not list(place.iterdir())


class TestAGoodModel:
    def test_it_answers_as_it_does_without_a_lock_and_is_gone_afterwards(self, tmp_path: Path) -> None:
        path = tmp_path / "model.onnx"
        path.write_bytes(GOOD)
        contract = contract_for(GOOD)
        here = prepare(contract, TASK)(memoryview(GOOD))
        with open_model(contract, TASK, path) as model:
            for number in (1, 5):
                np.testing.assert_array_equal(model.predict(images(number)), here(images(number)))
            assert set(REQUIRED) <= set(model.layers)
            process = model._process.pid
            assert alive(process)
            assert not list(Path(model._folder).iterdir())
            with pytest.raises(DataError, match="channels"):  # our mistake, not the model's: it goes on
                model.predict(images(1, 3))
            assert model.predict(images()).shape == (2, 2)
        assert not alive(process)
        with pytest.raises(ModelEndedError, match="closed"):
            model.predict(images())
        model.close()

    def test_one_that_takes_one_image_at_a_time_is_asked_so(self) -> None:
        raw = onnx_bytes(linear(shape=(1, 1, 8, 8), answer=(1, 2)))
        with open_model(contract_for(raw), TASK, raw) as one, open_model(contract_for(GOOD), TASK, GOOD) as many:
            np.testing.assert_allclose(one.predict(images(3)), many.predict(images(3)), rtol=1e-6)

    def test_it_sees_none_of_our_environment_and_ends_before_us_where_memory_ends(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("CLINIC_ONLY", "x")
        with open_model(contract_for(GOOD), TASK, GOOD) as model:
            seen = Path(f"/proc/{model._process.pid}/environ").read_bytes()
            assert Path(f"/proc/{model._process.pid}/oom_score_adj").read_text() == "1000\n"
        assert b"CLINIC_ONLY" not in seen

    def test_it_ends_with_its_parent(self) -> None:
        code = (
            "import sys, time; sys.path.insert(0, sys.argv[1])\n"
            "from tests.inference.frozen import *\n"
            "from eucaim_fl.inference.sandbox import open_model\n"
            "raw = onnx_bytes(linear()); model = open_model(contract_for(raw), TASK, raw)\n"
            "print(model._process.pid, model._folder, flush=True); time.sleep(60)"
        )
        root = str(Path(__file__).parents[2])
        parent = subprocess.Popen([sys.executable, "-c", code, root], stdout=subprocess.PIPE, text=True)
        assert parent.stdout is not None
        process, folder = parent.stdout.readline().split()
        assert alive(int(process))
        parent.kill()
        parent.wait()
        parent.stdout.close()
        until = time.monotonic() + 10
        while alive(int(process)) and time.monotonic() < until:
            time.sleep(0.05)
        assert not alive(int(process))
        assert not list(Path(folder).iterdir())
        Path(folder).rmdir()


class TestWhatIsRefused:
    def test_other_bytes_than_the_contracts(self) -> None:
        for raw, words in ((GOOD + b"\0", "size"), (GOOD[:-1], "size"), (GOOD[:-1] + b"\0", "SHA-256")):
            with pytest.raises(ModelRefusedError, match=words):
                open_model(contract_for(GOOD), TASK, raw)

    def test_a_program_without_the_permission(self) -> None:
        for kind in ("torchscript", "exported"):
            with pytest.raises(ModelRefusedError, match="programs are not allowed"):
                open_model(contract_for(GOOD, kind), TASK, GOOD)
            with pytest.raises(ModelRefusedError, match="programs are not allowed"):
                prepare(contract_for(GOOD, kind), TASK)

    def test_a_file_that_is_not_there(self, tmp_path: Path) -> None:
        with pytest.raises(OSError, match="No such file"):
            open_model(contract_for(GOOD), TASK, tmp_path / "none")

    def test_what_the_formats_checks_refuse_with_their_words(self) -> None:
        raw = onnx_bytes(linear(helper.make_node("Run", ["f2"], ["y"], domain="com.evil"), name="f2"))
        with pytest.raises(ModelRefusedError, match=r"com\.evil") as caught:
            open_model(contract_for(raw), TASK, raw)
        assert "custom" in caught.value.fix

    def test_a_graph_that_onnxruntime_does_not_take(self) -> None:
        raw = onnx_bytes(linear(helper.make_node("NoSuchOperator", ["f2"], ["y"]), name="f2"))
        with pytest.raises(ModelRefusedError, match="can't be opened") as caught:
            open_model(contract_for(raw), TASK, raw)
        assert "NoSuchOperator" in caught.value.local_detail

    def test_another_kind_of_machine(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(sandbox, "can_lock", lambda: False)
        with pytest.raises(LockError, match="locked in"):
            open_model(contract_for(GOOD), TASK, GOOD)


class TestAttacks:
    def test_a_loop_without_an_end_is_killed_at_the_limit(self) -> None:
        shapeless = helper.make_tensor_value_info("a", TensorProto.FLOAT, None)
        condition = helper.make_tensor_value_info("c", TensorProto.BOOL, [])
        body = helper.make_graph(
            [helper.make_node("Identity", ["c"], ["c2"]), helper.make_node("Add", ["a", "one"], ["a2"])],
            "body",
            [helper.make_tensor_value_info("i", TensorProto.INT64, []), condition, shapeless],
            [
                helper.make_tensor_value_info("c2", TensorProto.BOOL, []),
                helper.make_tensor_value_info("a2", TensorProto.FLOAT, None),
            ],
            [tensor("one", np.ones(1, np.float32))],
        )
        loop = helper.make_node("Loop", ["", "t", "f2"], ["y"], body=body)
        raw = onnx_bytes(linear(loop, name="f2", stored=[tensor("t", True)]))
        with open_model(contract_for(raw), TASK, raw, InferenceLimits(image_seconds=0.5)) as model:
            process, start = model._process.pid, time.monotonic()
            with pytest.raises(ModelTimeError, match=r"longer than the 0\.5 s .* for an image"):
                model.predict(images(2))
            assert 1 <= time.monotonic() - start < 10
            assert not alive(process)

    def test_the_parts_of_an_image_share_its_time(self) -> None:
        with open_model(contract_for(GOOD), TASK, GOOD, InferenceLimits(image_seconds=0.2)) as model:
            model.allow(1)
            model.predict(images(1))
            time.sleep(0.3)  # what the site does in between does not count
            model.predict(images(1))
            start = time.monotonic()
            with pytest.raises(ModelTimeError, match="for an image"):
                list(map(model.predict, repeat(images(1))))
            assert time.monotonic() - start < 20

    @pytest.mark.parametrize("operator", ["ConstantOfShape", "Expand", "Tile"])
    def test_fifty_gigabytes_are_not_given(self, operator: str) -> None:
        if operator == "ConstantOfShape":
            big = [helper.make_node("ConstantOfShape", ["s2"], ["big"])]
        elif operator == "Expand":
            big = [helper.make_node("Expand", ["one", "s2"], ["big"])]
        else:
            big = [helper.make_node("Tile", ["f2", "k"], ["big"])]
        nodes = [
            helper.make_node("Shape", ["f2"], ["s"]),
            helper.make_node("Mul", ["s", "k"], ["s2"]),
            *big,
            helper.make_node("ReduceSum", ["big"], ["r"]),
            helper.make_node("Add", ["f2", "r"], ["y"]),
        ]
        times = [15_000, 12_500] if operator == "Tile" else [50_000, 70_000]  # onnxruntime itself tiles up to 4 GiB
        stored = [tensor("k", np.array(times)), tensor("one", np.ones((1, 1), np.float32))]
        raw = onnx_bytes(linear(*nodes, name="f2", stored=stored))  # 100,000 × 140,000 float32 for two images
        with open_model(contract_for(raw), TASK, raw, InferenceLimits(memory_gb=1)) as model:
            process = model._process.pid
            with pytest.raises(ModelMemoryError, match="memory"):
                model.predict(images(2))
            assert not alive(process)

    def test_weights_that_fill_the_limit_are_not_opened(self) -> None:
        with pytest.raises(ModelMemoryError, match="memory"):
            open_model(contract_for(GOOD), TASK, GOOD, InferenceLimits(memory_gb=0.01))

    def test_a_network_that_fills_the_machine_is_stopped_though_our_own_code_tries_it(self) -> None:
        """4,096 places look at each other with 64 heads: 4 GiB a layer, before any weight has come."""
        args = {"feature_size": 4, "hidden_size": 64, "mlp_dim": 8, "num_heads": 64}
        network, size = ModelConfig(name="unetr", args=args), (256, 256, 256)
        contract = contract_for(b"x", "network", network=network, data=DataConfig(size_voxels=size))
        with pytest.raises(ModelMemoryError, match="asked for more memory"):
            open_model(contract, SegmentationConfig(labels=("a",)), b"x", InferenceLimits(memory_gb=0.1))

    def test_answers_that_are_none(self) -> None:
        log = linear(helper.make_node("Log", ["f2"], ["y"]), name="f2")
        wide = linear(helper.make_node("Concat", ["f2", "f2"], ["y"], axis=1), name="f2", answer=LOGITS)
        failing = linear(
            helper.make_node("Reshape", ["f2", "five"], ["y"]),
            name="f2",
            stored=[tensor("five", np.array([5, 5]))],
            answer=LOGITS,
        )
        for made, outputs in ((log, "logits"), (wide, "logits"), (linear(), "probabilities"), (failing, "logits")):
            raw = onnx_bytes(made)
            with open_model(contract_for(raw, outputs=outputs), TASK, raw) as model:
                with pytest.raises(ModelAnswerError, match="no probabilities") as caught:
                    model.predict(-images())
                assert not caught.value.local_detail  # it has seen images by then

    def test_a_process_that_is_ended_from_outside(self) -> None:
        for number, kind in ((signal.SIGTERM, ModelEndedError), (signal.SIGKILL, ModelMemoryError)):
            with open_model(contract_for(GOOD), TASK, GOOD) as model:
                os.kill(model._process.pid, number)
                with pytest.raises(kind, match=r"ended|memory"):
                    model.predict(images())


@pytest.fixture
def disguise(monkeypatch: pytest.MonkeyPatch) -> Any:
    """From now on a model's process is somebody else's."""

    def become(what: str) -> None:
        def start(folder: str, file: int, threads: int) -> subprocess.Popen[bytes]:
            path = os.pathsep.join([str(Path(__file__).parents[2]), *filter(None, sys.path)])
            process = subprocess.Popen(
                [sys.executable, "-P", str(Path(__file__).with_name("impostor.py")), what],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                bufsize=0,
                cwd=folder,
                env={"PYTHONPATH": path},
            )
            assert process.stdin is not None
            assert process.stdout is not None
            os.set_blocking(process.stdin.fileno(), False)
            os.set_blocking(process.stdout.fileno(), False)
            return process

        monkeypatch.setattr(sandbox, "_start", start)

    return become


@pytest.fixture
def impostor(disguise: Any) -> Any:
    """Opens a model whose process is somebody else's."""

    def opened(what: str) -> Any:
        disguise(what)
        return open_model(contract_for(GOOD), TASK, GOOD)

    return opened


class TestAProcessThatIsNotBelieved:
    def test_one_that_keeps_to_the_rules_is(self, impostor: Any) -> None:
        with impostor("good") as model:
            assert model.predict(images()).tolist() == [[0.5, 0.5], [0.5, 0.5]]

    @pytest.mark.parametrize(
        "what",
        [
            *("noise", "endless header", "endless answer", "no JSON", "no object", "deep", "other shape", "too short"),
            *("no numbers", "sum", "range"),
        ],
    )
    def test_nonsense_is_named(self, impostor: Any, what: str) -> None:
        with impostor(what) as model, pytest.raises(ModelAnswerError, match=r"something else|answered is"):
            model.predict(images())

    def test_one_that_is_not_locked_in_gets_no_model(self, impostor: Any) -> None:
        with pytest.raises(LockError, match="locked in"):
            impostor("unlocked").predict(images())

    def test_one_that_is_silent_is_late(self, disguise: Any, monkeypatch: pytest.MonkeyPatch) -> None:
        disguise("silent")
        monkeypatch.setattr(sandbox, "_START_S", 1.0)
        with pytest.raises(ModelTimeError, match="longer than the 1 s"):
            open_model(contract_for(GOOD), TASK, GOOD)

    def test_one_that_leaves(self, disguise: Any) -> None:
        disguise("leaves")
        with pytest.raises(ModelEndedError, match="ended") as caught:
            open_model(contract_for(GOOD), TASK, GOOD)
        assert caught.value.local_detail == "exit status 3"

    def test_its_words_hold_no_path_and_no_control_signs(self, impostor: Any) -> None:
        with pytest.raises(ModelRefusedError, match="It is homeclinicP007") as caught:
            impostor("words")
        assert len(str(caught.value)) < 1300
        assert "\x1b" not in str(caught.value)
        with pytest.raises(ModelEndedError, match="could not go on") as ended:
            impostor("not ready")
        assert "/" not in ended.value.local_detail

    def test_after_an_image_its_words_do_not_count(self, impostor: Any) -> None:
        with impostor("patient") as model:
            with pytest.raises(ModelAnswerError, match="no probabilities") as caught:
                model.predict(images())
            assert "P007" not in caught.value.for_terminal()

    def test_neither_yes_nor_no_is_nonsense(self, impostor: Any) -> None:
        with pytest.raises(ModelAnswerError, match="something else"):
            impostor("shut")

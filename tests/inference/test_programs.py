"""Networks and programs of PyTorch in the locked process: what they answer, and what programs try in vain."""

from __future__ import annotations

import io
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from eucaim_fl.arrays import encode_arrays
from eucaim_fl.config import DataConfig, ModelConfig, SegmentationConfig
from eucaim_fl.errors import ModelAnswerError, ModelMemoryError, ModelRefusedError
from eucaim_fl.inference.runtime import prepare
from eucaim_fl.inference.sandbox import open_model
from eucaim_fl.models.networks import build, get_arrays
from tests.inference.frozen import TASK, contract_for, images

pytestmark = pytest.mark.federated


class Reader(torch.nn.Module):
    """Two bytes of a file of the hospital, added to what it answers."""

    def __init__(self, path: str) -> None:
        super().__init__()
        self.path: str = path

    def forward(self, given: torch.Tensor) -> torch.Tensor:
        taken = torch.from_file(self.path, False, 2, dtype=torch.uint8).to(torch.float32)
        return given.flatten(1)[:, :2] * 0 + taken


class Greedy(torch.nn.Module):
    """Fifty gigabytes for an image."""

    def forward(self, given: torch.Tensor) -> torch.Tensor:
        return given.flatten(1)[:, :2] + torch.ones(12_500_000_000).sum()


def scripted(module: torch.nn.Module) -> bytes:
    buffer = io.BytesIO()
    torch.jit.save(torch.jit.script(module), buffer)
    return buffer.getvalue()


def exported(module: torch.nn.Module) -> bytes:
    buffer = io.BytesIO()
    free = ({0: torch.export.Dim("n")},)
    torch.export.save(torch.export.export(module, (torch.zeros(2, 1, 8, 8),), dynamic_shapes=free), buffer)
    return buffer.getvalue()


def plain() -> torch.nn.Module:
    torch.manual_seed(1)
    return torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 2)).eval()


class TestANetworkOfOurs:
    def test_it_answers_as_without_a_lock_on_grids_of_any_size(self) -> None:
        task = SegmentationConfig(labels=("lesion",))
        model = ModelConfig(name="unet", args={"channels": [4, 8], "strides": [2]})
        raw = b"".join(map(bytes, encode_arrays(get_arrays(build(model, task, seed=1)))))
        contract = contract_for(raw, "network", network=model, data=DataConfig(), patch_voxels=(16, 16, 16))
        here = prepare(contract, task)(memoryview(raw))
        with open_model(contract, task, raw) as opened:
            for size in ((16, 16, 16), (24, 16, 32)):
                given = np.random.default_rng(2).random((2, 1, *size), dtype=np.float32)
                answer = opened.predict(given)
                assert answer.shape == (2, 2, *size)
                np.testing.assert_allclose(answer, here(given), atol=1e-6)


class TestTorchScript:
    def test_it_answers_where_programs_are_allowed(self) -> None:
        raw = scripted(plain())
        with open_model(contract_for(raw, "torchscript"), TASK, raw, native=True) as model:
            expected = torch.softmax(plain()(torch.from_numpy(images())), 1).detach().numpy()
            np.testing.assert_allclose(model.predict(images()), expected, atol=1e-6)

    def test_one_that_reads_a_file_gets_nothing(self, tmp_path: Path) -> None:
        secret = tmp_path / "patient"
        secret.write_bytes(b"\x07\x09")
        raw = scripted(Reader(str(secret)))
        bare: Any = torch.jit.load(io.BytesIO(raw))
        assert bare(torch.from_numpy(images(1))).tolist() == [[7.0, 9.0]]  # where nothing holds it, it reads
        with (
            open_model(contract_for(raw, "torchscript"), TASK, raw, native=True) as model,
            pytest.raises(ModelAnswerError, match="no probabilities"),
        ):
            model.predict(images())

    def test_one_that_takes_fifty_gigabytes_gets_none(self) -> None:
        raw = scripted(Greedy())
        with (
            open_model(contract_for(raw, "torchscript"), TASK, raw, native=True) as model,
            pytest.raises(ModelMemoryError, match="memory"),
        ):
            model.predict(images(1))


class TestAnExportedProgram:
    def test_it_answers_where_programs_are_allowed(self) -> None:
        raw = exported(plain())
        with open_model(contract_for(raw, "exported"), TASK, raw, native=True) as model:
            expected = torch.softmax(plain()(torch.from_numpy(images())), 1).detach().numpy()
            np.testing.assert_allclose(model.predict(images()), expected, atol=1e-6)

    def test_what_it_calls_pickled_is_not_unpickled(self) -> None:
        raw = exported(plain())
        changed = io.BytesIO()
        with zipfile.ZipFile(io.BytesIO(raw)) as old, zipfile.ZipFile(changed, "w") as new:
            for entry in old.infolist():
                content = old.read(entry)
                if entry.filename.endswith("_config.json"):
                    content = content.replace(b'"use_pickle": false', b'"use_pickle": true')
                new.writestr(entry.filename, content)
        opener = prepare(contract_for(raw, "exported"), TASK, native=True)
        opener(memoryview(raw))
        with pytest.raises(ModelRefusedError, match="pickled"):
            opener(memoryview(changed.getvalue()))
        empty = io.BytesIO()
        with zipfile.ZipFile(empty, "w") as archive:
            archive.writestr("version", "7.2")
        for other, words in ((empty.getvalue(), "old layout"), (b"PK", "can't be opened")):
            with pytest.raises(ModelRefusedError, match=words):
                opener(memoryview(other))

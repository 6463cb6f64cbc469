"""Networks are trained without PyTorch's compiler, with the same bits; who wants it still gets it."""

from __future__ import annotations

import subprocess
import sys

import pytest

pytestmark = pytest.mark.integration  # each loads PyTorch in a process of its own

STEPS = """
import hashlib, sys
import torch
from eucaim_fl.training.eager import without_compiler
def train():
    digest = hashlib.sha256()
    for kind in (torch.optim.SGD, torch.optim.Adam, torch.optim.AdamW):
        torch.manual_seed(0)
        network = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.BatchNorm1d(4), torch.nn.Linear(4, 1))
        optimizer = kind(network.parameters(), lr=0.1)
        for _ in range(3):
            optimizer.zero_grad()
            network(torch.randn(5, 3)).square().sum().backward()
            optimizer.step()
        optimizer.load_state_dict(optimizer.state_dict())
        for array in network.state_dict().values():
            digest.update(array.numpy().tobytes())
    return digest.hexdigest()
"""
ALONE = (
    STEPS
    + """
without_compiler()
without_compiler()
mine = train()
print("sympy" in sys.modules, [name for name in sys.modules if name.startswith("torch._dynamo.")])
import torch._dynamo.config as config
from torch._dynamo.eval_frame import innermost_fn
print(config is torch._dynamo.config is sys.modules[config.__name__], config.__spec__.loader is config.__loader__)
print(innermost_fn is torch._dynamo.eval_frame.innermost_fn, type(torch._dynamo).__name__)
print(train() == mine)
print(torch.export.export(torch.nn.Linear(3, 1), (torch.ones(2, 3),)).module()(torch.ones(2, 3)).shape)
without_compiler()
print(type(sys.modules["torch._dynamo"]).__name__, mine)
"""
)
ATTRIBUTE = """
from eucaim_fl.training.eager import without_compiler
without_compiler()
import inspect, sys
import torch
inspect.getmodule(sys._getframe())
print(type(torch._dynamo).__name__)
torch._dynamo.graph_break("no graph")
print(torch._dynamo.disable(len) is len, torch._dynamo.disable(recursive=False)(len) is len)
print(torch.compile(lambda x: 2 * x, backend="eager")(torch.ones(1)).item(), type(torch._dynamo).__name__)
"""


def said(code: str) -> list[str]:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return done.stdout.splitlines()


class TestWithoutCompiler:
    def test_optimizers_do_not_load_it_and_its_parts_come_once_when_they_are_imported(self) -> None:
        *before, last = said(ALONE)
        assert before == [
            "False []",
            "True True",
            "True module",
            "True",
            "torch.Size([2, 1])",
        ]
        (plain,) = said(STEPS + "print(train())")
        assert last == f"module {plain}"

    @pytest.mark.long
    def test_whoever_compiles_gets_it(self) -> None:
        assert said(ATTRIBUTE) == ["_Absent", "True True", "2.0 module"]

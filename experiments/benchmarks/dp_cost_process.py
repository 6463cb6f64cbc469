"""Steps of one way to train one network, in a process of its own, each when it is asked for.

python dp_cost_process.py '{"network": …, "way": …}' < one line for each step, an empty one at the end

Prints a line of JSON for each: seconds, of a step or of the noise; the last one has the peak memory.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from eucaim_fl.config import ClassificationConfig, ModelConfig, SegmentationConfig, TrainingConfig
from eucaim_fl.models.networks import build
from eucaim_fl.models.private import made_private
from eucaim_fl.tasks import for_task
from eucaim_fl.training.gradients import clipped_sum
from eucaim_fl.training.patients import PatientBatch
from eucaim_fl.training.randomness import Randomness

__all__: list[str] = []

_CLIPPING_NORM = 1.0
_LR = 1e-3


def _status(entry: str) -> int:
    """A line of this process's /proc status in bytes."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{entry}:"))


class _Step:
    """Gradients of one batch, and the plain step after them, the same for every way."""

    def __init__(self, job: dict[str, Any]) -> None:
        size, patients = tuple(job["size"]), job["patients"]
        self.job = job
        task: Any
        if job["task"] == "classification":
            task = ClassificationConfig(spatial_dims=len(size), target="grade", classes=("low", "high"))
        else:
            task = SegmentationConfig(spatial_dims=len(size), labels=("lesion",))
        model = ModelConfig(name=job["network"], args=job["args"])
        self.network = made_private(build(model, task, image_size=size, seed=0)).train()
        drawn = torch.Generator().manual_seed(1)
        shape = (patients, 1, *size) if job["task"] == "segmentation" else (patients,)
        self.images = torch.randn((patients, 1, *size), generator=drawn)
        self.targets = torch.randint(0, 2, shape, generator=drawn)
        loss = "dice_ce" if job["task"] == "segmentation" else "cross_entropy"
        self.measure = for_task(task).loss(TrainingConfig(local_steps=1, loss=loss))
        self.parameters = [p for p in self.network.parameters() if p.requires_grad]
        self.wrapped: Any = None
        self.gradients: Callable[[], Sequence[Tensor]] = {
            "plain": self.plain, "opacus hooks": self.opacus_hooks, "opacus ghost": self.opacus_ghost,
        }.get(job["way"], self.ours)  # fmt: skip

    def plain(self) -> Sequence[Tensor]:
        """One gradient of the whole batch, as without privacy."""
        return torch.autograd.grad(self.measure(self.network(self.images), self.targets), self.parameters)

    def ours(self) -> Sequence[Tensor]:
        """The sum of clipped gradients."""
        batch = [PatientBatch(i[None], t[None]) for i, t in zip(self.images, self.targets, strict=True)]
        physical = self.job["physical_batch"]
        return clipped_sum(self.network, self.job["way"], self.measure, batch, _CLIPPING_NORM, physical)[0]

    def _losses(self, network: nn.Module) -> Tensor:
        pairs = zip(network(self.images).split(1), self.targets.split(1), strict=True)
        return torch.stack([self.measure(outputs, targets) for outputs, targets in pairs])

    def opacus_hooks(self) -> Sequence[Tensor]:
        """Opacus as it comes: gradients of all patients, then what its optimizer makes of them."""
        if self.wrapped is None:
            from opacus.grad_sample import GradSampleModule

            self.wrapped = GradSampleModule(self.network, loss_reduction="sum")
        self.wrapped.zero_grad(set_to_none=True)
        self._losses(self.wrapped).sum().backward()
        rows = [p.grad_sample for p in self.parameters]
        norms = torch.stack([r.flatten(1).norm(dim=1) for r in rows]).norm(dim=0)
        factors = (_CLIPPING_NORM / (norms + 1e-6)).clamp(max=1.0)
        sums = [torch.einsum("i,i...", factors, r) for r in rows]
        self.wrapped.zero_grad(set_to_none=True)
        return sums

    def opacus_ghost(self) -> Sequence[Tensor]:
        """Opacus' ghost clipping as it comes: norms in one backward pass, the clipped sum in a second."""
        if self.wrapped is None:
            from opacus.grad_sample import GradSampleModuleFastGradientClipping

            self.wrapped = GradSampleModuleFastGradientClipping(
                self.network, loss_reduction="sum", max_grad_norm=_CLIPPING_NORM, use_ghost_clipping=True
            )
        losses = self._losses(self.wrapped)
        losses.sum().backward(retain_graph=True)
        self.wrapped.zero_grad(set_to_none=True)
        self.wrapped.disable_hooks()
        (self.wrapped.get_clipping_coef() * losses).sum().backward()
        self.wrapped.enable_hooks()
        return [p.grad for p in self.parameters if p.grad is not None]

    def __call__(self) -> None:
        found = self.gradients()
        with torch.no_grad():
            torch._foreach_add_(self.parameters, list(found), alpha=-_LR)


def main(job: dict[str, Any]) -> None:
    """Baseline: after the imports, before the network is in memory. Measured: the network, and the steps."""
    torch.set_num_threads(1)
    if job["way"] != "plain":
        import opacus.grad_sample  # noqa: F401 - belongs to the imports, not to the step
    baseline = _status("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # the high-water mark starts again from here
    step = _Step(job)
    parameters = sum(p.numel() for p in step.parameters)
    step()  # the first one is slower
    print(json.dumps({"parameters": parameters}), flush=True)
    while sys.stdin.readline().strip():
        started = time.perf_counter()
        step()
        print(json.dumps({"seconds": time.perf_counter() - started}), flush=True)
    peak = _status("VmHWM") - baseline
    randomness = Randomness.secure()
    started = time.perf_counter()
    for parameter in step.parameters:
        randomness.normal(parameter.shape, dtype=torch.float64)
    print(json.dumps({"peak": peak, "noise": time.perf_counter() - started}), flush=True)


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))

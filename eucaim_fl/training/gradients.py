"""The sum of patients' clipped gradients, four ways to one result."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import groupby
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from eucaim_fl.errors import PrivateTrainingError
from eucaim_fl.plan import FederationPlan
from eucaim_fl.training.layer_gradients import LayerGradients, lengths, unsupported_layers
from eucaim_fl.training.patients import PatientBatch

__all__ = ["GradientMode", "clipped_sum", "mode_for", "refusal"]

GradientMode = Literal["loop", "functorch", "hooks", "ghost"]
Measure = Callable[[Tensor, Tensor], Tensor]
_SLACK = 1e-4
"""A clipped gradient is this much shorter than the bound, relatively, so that rounding does not carry it over."""
_LARGEST = 1e18
"""A longer gradient counts as not finite: its squares come near the end of float32, its factor near the other."""


def refusal(network: nn.Module, mode: GradientMode) -> str | None:
    """Why a network can't be trained in a mode; None if it can. Every network that keeps patients apart can loop."""
    if mode == "loop":
        return None
    if any(getattr(layer, "use_checkpoint", False) is True for layer in network.modules()):
        return f"The network computes parts a second time to save memory, which {mode} gradients don't allow for."
    missing = unsupported_layers(network) if mode != "functorch" else ()
    return f"There is no formula for {mode} gradients of these layers: {', '.join(missing[:3])}." if missing else None


def mode_for(network: nn.Module, plan: FederationPlan) -> GradientMode:
    """How this plan's gradients are computed: what it asks for, or for `auto` ghost, or loop where ghost can't.

    Measured on one thread of a CPU with the logical batch in memory, against the same step without privacy and
    without noise (`experiments/benchmarks/dp_cost.py`): ghost takes 1.1 to 1.6 times as long and at most 1.3 times the
    memory on a small CNN, a DenseNet121, a 3-D UNet and a 3-D SegResNet, and is the only way below 2 and 1.5 on all
    four. Hooks and functorch keep a gradient a patient: 2.7 and 3.3 times the memory on the DenseNet121. Loop takes
    half of the memory and 2 to 6 times as long, for PyTorch has slow convolutions for a batch of one. Opacus' own hooks
    and ghost clipping take 2.3 and 2.8 times as long on the DenseNet121. No GPU was measured.
    Raises PrivateTrainingError if the network can't be trained in the mode that the plan asks for.
    """
    asked = plan.privacy.gradients
    if asked == "auto":
        return "loop" if refusal(network, "ghost") else "ghost"
    if reason := refusal(network, asked):
        raise PrivateTrainingError(reason, fix="Set privacy.gradients to auto or loop.")
    return asked


def clipped_sum(
    network: nn.Module,
    mode: GradientMode,
    measure: Measure,
    batch: Sequence[PatientBatch],
    clipping_norm: float,
    physical_batch: int,
) -> tuple[list[Tensor], NDArray[np.float64]]:
    """Σ over patients of g · min(1, clipping_norm / ‖g‖), g the gradient of a patient's loss; and the norms ‖g‖.

    network: on its device, in training mode, as `made_private` left it; no `.grad` is touched. measure: outputs and
    targets of one patient's examples → mean loss. batch: patients of one multiplicity; may be empty, then the sum is
    zero. physical_batch: patients in memory at a time (loop: always one); it changes the result by rounding only.
    Returns the sum in the order of trainable parameters, and the norms before clipping in the order of patients,
    which must not leave the site. A patient whose gradient is not finite, or longer than 10¹⁸, adds nothing and has the
    norm inf: any other rule would let one patient spoil the sum without bound.
    The modes: `loop` one backward pass a patient; `functorch` one vectorised over patients; `hooks` layer by layer,
    keeping each patient's gradient; `ghost` layer by layer, keeping only norms where that takes less memory.
    The bound holds whatever the weights: a patient whose ghost gradient is lost in rounding is taken by `loop`, where
    what is added is the very tensor that was measured.
    Source: Abadi et al. 2016, Deep Learning with Differential Privacy, algorithm 1.
    """
    parameters = [p for p in network.parameters() if p.requires_grad]
    totals = [torch.zeros_like(p, requires_grad=False) for p in parameters]
    device = parameters[0].device
    norms: list[Tensor] = []
    for images, targets in _chunks(batch, 1 if mode == "loop" else physical_batch):
        images, targets = images.to(device), targets.to(device)
        if mode == "loop":
            norms.append(_loop(network, measure, images[0], targets[0], clipping_norm, totals))
        elif mode == "functorch":
            norms.append(_vectorised(network, measure, images, targets, clipping_norm, totals))
        else:
            layers = LayerGradients(network, len(images), keep_all=mode == "hooks")
            layers.backward(images.flatten(0, 1), lambda out, to=targets: _total(measure, out, to))  # type: ignore[misc]
            with torch.no_grad():
                norms.append(_finite(layers.norms()))
                unsure = layers.unsure(norms[-1])
                factors = _factors(norms[-1], clipping_norm).masked_fill(unsure, 0)
                layers.add_scaled(factors, dict(zip(parameters, totals, strict=True)))
            del layers
            for n in unsure.nonzero().flatten().tolist():
                norms[-1][n] = _loop(network, measure, images[n], targets[n], clipping_norm, totals)[0]
    found = torch.cat(norms).cpu().numpy() if norms else np.zeros(0)
    return totals, found


def _chunks(batch: Sequence[PatientBatch], size: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Images (P, K, C, *spatial) and targets (P, K, …) of at most `size` patients with images of one shape."""
    for _, alike in groupby(batch, key=lambda one: one.images.shape):
        group = list(alike)
        for start in range(0, len(group), size):
            chunk = group[start : start + size]
            yield torch.stack([one.images for one in chunk]), torch.stack([one.targets for one in chunk])


def _total(measure: Measure, outputs: Tensor, targets: Tensor) -> Tensor:
    """The sum of the patients' losses, each over that patient's examples alone. outputs (P · K, …)."""
    each = [measure(o, t) for o, t in zip(outputs.view(*targets.shape[:2], *outputs.shape[1:]), targets, strict=True)]
    return torch.stack(each).sum()


def _finite(norms: Tensor) -> Tensor:
    return torch.where(norms <= _LARGEST, norms, torch.inf)


def _factors(norms: Tensor, clipping_norm: float) -> Tensor:
    """What each patient's gradient is multiplied by; 0 for one that is not finite."""
    return (clipping_norm * (1 - _SLACK) / norms).clamp(max=1.0)


def _loop(
    network: nn.Module,
    measure: Measure,
    images: Tensor,
    targets: Tensor,
    clipping_norm: float,
    totals: Sequence[Tensor],
) -> Tensor:
    parameters = [p for p in network.parameters() if p.requires_grad]
    found = torch.autograd.grad(measure(network(images), targets), parameters, allow_unused=True)
    used = [(g, total) for g, total in zip(found, totals, strict=True) if g is not None]
    grads = [g for g, _ in used]
    norm = _finite(torch.linalg.vector_norm(torch.cat([lengths(g[None]) for g in grads]))[None])
    if bool(norm.isfinite()):
        torch._foreach_add_([total for _, total in used], grads, alpha=float(_factors(norm, clipping_norm)))
    return norm


def _vectorised(
    network: nn.Module,
    measure: Measure,
    images: Tensor,
    targets: Tensor,
    clipping_norm: float,
    totals: Sequence[Tensor],
) -> Tensor:
    """A copy of the parameters for each patient; the loss is taken outside of `vmap`, where not every loss can be."""
    parameters = [p for p in network.parameters() if p.requires_grad]
    copies = {p: p.detach().expand(len(images), *p.shape).requires_grad_() for p in parameters}
    # Each place once: DynUNet holds the same layers under two names, and PyTorch would exchange those twice.
    places = {
        f"{path}.{name}".lstrip("."): copies[p]
        for path, layer in network.named_modules()
        for name, p in layer.named_parameters(recurse=False)
        if p in copies
    }

    def one(own: dict[str, Tensor], examples: Tensor) -> Tensor:
        outputs: Tensor = torch.func.functional_call(network, own, (examples,), tie_weights=False)
        return outputs

    outputs = torch.func.vmap(one, randomness="different")(places, images)
    loss = _total(measure, outputs.flatten(0, 1), targets)
    found = torch.autograd.grad(loss, list(copies.values()), allow_unused=True)
    used = [(g.flatten(1), total) for g, total in zip(found, totals, strict=True) if g is not None]
    norms = _finite(torch.linalg.vector_norm(torch.stack([lengths(rows) for rows, _ in used]), dim=0))
    factors = _factors(norms, clipping_norm).to(used[0][0].dtype)
    left_out = (factors == 0)[:, None]
    some = bool(left_out.any())
    for rows, total in used:
        total.view(-1).add_(factors @ (rows.masked_fill(left_out, 0) if some else rows))
    return norms

"""Gradient inversion: from what one training step lets be seen, rebuild the image that it was made of.

The attack of Geiping et al. 2020 (Inverting Gradients) by cosine similarity and total variation, with signed Adam. The
attacker has the best case: one patient alone in the step, one image, its label known, no augmentation.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter
from torch import Tensor, nn
from torch.optim.optimizer import register_optimizer_step_pre_hook

from eucaim_fl.cohorts.cohort import PreparedCase
from eucaim_fl.config import AugmentationConfig, BalanceConfig, ClassificationConfig, ModelConfig
from eucaim_fl.exposure.alone import HeldCase, drawn_from, hidden_update, network_for, randomness_for, unprotected
from eucaim_fl.plan import FederationPlan
from eucaim_fl.seeding import generator
from eucaim_fl.tasks import for_task
from eucaim_fl.tasks.sampling import crop, patch_start
from eucaim_fl.training.balance import measure_for
from eucaim_fl.training.loop import train_round
from eucaim_fl.training.patients import PatientLoader
from eucaim_fl.training.private_loop import train_privately

__all__ = ["Inversion", "Likeness", "invert", "likeness", "observed_gradient", "rebuilt", "reference_plan"]

_REFERENCE_SIDE = 64
_TOTAL_VARIATION = 1e-2
_STEP = 0.1
_NO_CHANGE = AugmentationConfig(flip=0.0, rotate90=0.0, scale_intensity=0.0, shift_intensity=0.0, noise_std=0.0)


@dataclass(frozen=True)
class Likeness:
    """How like an image a rebuilt one is. psnr_db: peak signal to noise. ssim, correlation: 1 is equal, 0 unrelated."""

    psnr_db: float
    ssim: float
    correlation: float


@dataclass(frozen=True, eq=False)
class Inversion:
    """One image (H, W), and what was rebuilt from a step without and, if the plan protects patients, with protection.

    reference: made with the small reference classifier, not with the plan's own network.
    """

    original: NDArray[np.float32]
    plain: NDArray[np.float32]
    plain_likeness: Likeness
    protected: NDArray[np.float32] | None = None
    protected_likeness: Likeness | None = None
    reference: bool = False


def likeness(original: NDArray[np.float32], other: NDArray[np.float32]) -> Likeness:
    """How like an image (H, W) another of the same shape is; PSNR is infinite for equal ones.

    A correlation with an image of a single value is 0. Source: SSIM by Wang et al. 2004, Gaussian window of 1.5 pixels.
    """
    a, b = original.astype(np.float64), other.astype(np.float64)
    span = float(a.max() - a.min()) or 1.0
    error = float(np.mean((a - b) ** 2))
    psnr = math.inf if error == 0 else 10 * math.log10(span**2 / error)
    varies = a.std() > 0 and b.std() > 0
    return Likeness(psnr, _ssim(a, b, span), float(np.corrcoef(a.ravel(), b.ravel())[0, 1]) if varies else 0.0)


def _ssim(a: NDArray[np.float64], b: NDArray[np.float64], span: float) -> float:
    def smooth(image: NDArray[np.float64]) -> NDArray[np.float64]:
        return np.asarray(gaussian_filter(image, 1.5, truncate=3.5))

    c1, c2 = (0.01 * span) ** 2, (0.03 * span) ** 2
    mean_a, mean_b = smooth(a), smooth(b)
    var_a, var_b = smooth(a * a) - mean_a**2, smooth(b * b) - mean_b**2
    both = smooth(a * b) - mean_a * mean_b
    local = (2 * mean_a * mean_b + c1) * (2 * both + c2) / ((mean_a**2 + mean_b**2 + c1) * (var_a + var_b + c2))
    return float(local.mean())


def reference_plan(plan: FederationPlan, size: tuple[int, int]) -> FederationPlan:
    """The same plan with a small 2-D classifier for images of that size: a network known to give images away.

    Its last layer is linear in the features of every place; privacy, optimizer and all else stay.
    """
    balance = BalanceConfig()  # the reference has classes of its own
    training = plan.training.model_copy(update={"patch_voxels": size, "loss": None, "balance": balance})
    args = {"channels": [16, 32, 64], "strides": [2, 2, 2], "act": "prelu", "norm": "group"}
    return plan.model_copy(
        update={
            "task": ClassificationConfig(spatial_dims=2, target="reference", classes=("no", "yes")),
            "model": ModelConfig(name="small_cnn", args=args),
            "training": training,
            "privacy": plan.privacy.model_copy(update={"gradients": "auto"}),
        }
    )


def observed_gradient(network: nn.Module, case: HeldCase, plan: FederationPlan, seed: int) -> list[Tensor]:
    """What one step of the plan's own training on one patient lets be seen, in order of trainable parameters.

    Without protection that is the gradient; with `patient_dp` the clipped and noised one; with `update_dp` the gradient
    as the site's clipping and noise leave it. The network is trained by that step.
    Raises what `train_round` and `train_privately` raise.
    """
    training = {"batch_size": 1, "local_steps": 1, "local_epochs": None, "augmentation": _NO_CHANGE}
    step = plan.training.model_copy(update={**training, "gradient_clip": None})
    single = plan.model_copy(update={"training": step})
    parameters = [p for p in network.parameters() if p.requires_grad]
    with _seen(parameters) as seen:
        if plan.privacy.mechanism == "patient_dp":
            alone = plan.privacy.model_copy(update={"sampling_rate": 1.0, "multiplicity": 1})
            single = single.model_copy(update={"privacy": alone})
            randomness = randomness_for(plan, seed, "inversion")
            loader = PatientLoader([case], single, randomness)
            loader.charge(lambda everybody, _: everybody)
            train_privately(network, loader, single, 1, randomness)
        else:
            train_round(network, [case], single, seed)
    if plan.privacy.mechanism != "update_dp":
        return seen
    arrays = {f"{i:06d}": g.cpu().numpy() for i, g in enumerate(seen)}
    hidden = hidden_update(arrays, plan, drawn_from(randomness_for(plan, seed, "inversion")))
    return [torch.from_numpy(np.ascontiguousarray(hidden[name])).to(seen[0].device) for name in sorted(hidden)]


@contextmanager
def _seen(parameters: Sequence[Tensor]) -> Iterator[list[Tensor]]:
    """The gradients that the optimizer gets at its first step; filled when it makes it."""
    gradients: list[Tensor] = []

    def see(optimizer: torch.optim.Optimizer, *_: Any) -> None:
        ready = any(p.grad is not None for p in parameters)
        if ready and not gradients and any(p is parameters[0] for g in optimizer.param_groups for p in g["params"]):
            gradients.extend(torch.zeros_like(p) if p.grad is None else p.grad.detach().clone() for p in parameters)

    handle = register_optimizer_step_pre_hook(see)
    try:
        yield gradients
    finally:
        handle.remove()


def rebuilt(
    network: nn.Module,
    loss: Callable[[Tensor], Tensor],
    gradient: Sequence[Tensor],
    start: Tensor,
    bounds: tuple[float, float],
    iterations: int,
    tell: Callable[[int], object] = lambda done: None,
) -> Tensor:
    """The image (1, C, *spatial) whose gradient points where the observed one does, and which is smooth.

    loss: image → loss of the network's output against the known label. start: where the search begins. bounds: the
    least and largest value of an image.
    """
    parameters = [p for p in network.parameters() if p.requires_grad]
    length = torch.sqrt(torch.stack([(g**2).sum() for g in gradient]).sum()).clamp_min(1e-12)
    image = start.clone().requires_grad_()
    optimizer = torch.optim.Adam([image], lr=_STEP * (bounds[1] - bounds[0]))
    falls = [int(iterations * share) for share in (0.375, 0.625, 0.875)]
    schedule = torch.optim.lr_scheduler.MultiStepLR(optimizer, falls, 0.1)
    for number in range(iterations):
        found = torch.autograd.grad(loss(image), parameters, create_graph=True, allow_unused=True)
        pairs = [(f, g) for f, g in zip(found, gradient, strict=True) if f is not None]
        along = torch.stack([(f * g).sum() for f, g in pairs]).sum()
        own = torch.sqrt(torch.stack([(f**2).sum() for f, _ in pairs]).sum() + 1e-24)
        far = 1 - along / (own * length) + _TOTAL_VARIATION * _total_variation(image) / (bounds[1] - bounds[0])
        (image.grad,) = torch.autograd.grad(far, [image])
        image.grad.sign_()
        optimizer.step()
        schedule.step()
        with torch.no_grad():
            image.clamp_(*bounds)
        tell(number + 1)
    return image.detach()


def _total_variation(image: Tensor) -> Tensor:
    axes = range(2, image.ndim)
    return torch.stack([image.diff(dim=axis).abs().mean() for axis in axes]).sum()


def invert(
    plan: FederationPlan,
    case: PreparedCase,
    seed: int,
    iterations: int,
    *,
    reference: bool,
    device: str = "cpu",
    tell: Callable[[int, int], object] = lambda done, total: None,
) -> Inversion:
    """Attack one image of a patient, without and with the plan's protection, from the first round's weights.

    reference: by the small reference classifier, on a piece of at most 64 × 64 pixels; else by the plan's network,
    which must be 2-D (ValueError). tell: called with iterations done and of all.
    """
    example = for_task(plan.task).training_example(case, plan, generator(seed, "example"))
    if reference:
        held, plan = _piece(example, plan)
    elif plan.task.spatial_dims == 2:
        held = _held(example, plan)
    else:
        raise ValueError("a 3-D network is attacked through the reference classifier")
    protects = plan.privacy.mechanism in ("patient_dp", "update_dp")
    total = iterations * (2 if protects else 1)
    plain = _attacked(unprotected(plan), held, seed, iterations, device, lambda done: tell(done, total))
    original = held.pixels[0, :, :, 0]
    if not protects:
        return Inversion(original, plain, likeness(original, plain), reference=reference)
    hidden = _attacked(plan, held, seed, iterations, device, lambda done: tell(iterations + done, total))
    return Inversion(
        original, plain, likeness(original, plain), hidden, likeness(original, hidden), reference=reference
    )


def _held(example: tuple[NDArray[Any], NDArray[Any]], plan: FederationPlan) -> HeldCase:
    """A training example as a case that gives this example alone."""
    image, target = example
    if plan.task.name == "classification":
        return HeldCase.of("one", np.asarray(image, np.float32)[..., None], None, int(target))
    return HeldCase.of(
        "one", np.asarray(image, np.float32)[..., None], np.asarray(target[0], np.uint8)[..., None], None
    )


def _piece(example: tuple[NDArray[Any], NDArray[Any]], plan: FederationPlan) -> tuple[HeldCase, FederationPlan]:
    """A piece of one channel of an example around its label's middle, and the reference plan for its size."""
    image, target = example
    flat = image if image.ndim == 3 else image[..., image.shape[-1] // 2]
    marked = (
        np.zeros(flat.shape[1:]) if target.ndim == 0 else np.asarray(target[0]).reshape(*flat.shape[1:], -1).any(-1)
    )
    where = np.argwhere(marked)
    centre = [int(v) for v in where.mean(axis=0)] if len(where) else [n // 2 for n in flat.shape[1:]]
    size = tuple(min(_REFERENCE_SIDE, n) // 8 * 8 or n for n in flat.shape[1:])
    piece = crop(flat, patch_start(centre, size, flat.shape[1:]), size)
    return HeldCase.of("one", np.asarray(piece, np.float32)[..., None], None, 1), reference_plan(
        plan, (size[0], size[1])
    )


def _attacked(
    plan: FederationPlan, held: HeldCase, seed: int, iterations: int, device: str, tell: Callable[[int], object]
) -> NDArray[np.float32]:
    gradient = observed_gradient(network_for(plan, device), held, plan, seed)
    network = network_for(plan, device).train()
    for layer in network.modules():
        if isinstance(layer, torch.nn.modules.dropout._DropoutNd):
            layer.eval()
    measure = measure_for(network, [held], plan)
    pixels = held.pixels[..., 0]
    label = np.array(held.target) if held.mask is None else held.mask[None, ..., 0]
    target = torch.from_numpy(np.array(label))[None].to(device)
    bounds = (-3.0, 3.0) if plan.data.intensity.kind == "zscore" else (0.0, 1.0)
    noise = torch.from_numpy(generator(seed, "start").random((1, *pixels.shape), dtype=np.float32))
    start = (bounds[0] + (bounds[1] - bounds[0]) * (0.2 + 0.05 * noise)).to(device)
    image = rebuilt(network, lambda x: measure(network(x), target), gradient, start, bounds, iterations, tell)
    return np.asarray(image[0, 0].cpu().numpy(), np.float32)

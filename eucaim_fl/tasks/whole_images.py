"""What tasks about whole images have in common: one example a case, and one row of numbers for each case."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from eucaim_fl.cohorts.cohort import PreparedCase
from eucaim_fl.config import DataConfig
from eucaim_fl.plan import FederationPlan
from eucaim_fl.tasks.pictures import PREDICTION_COLOUR, TRUTH_COLOUR, picture, shown_slice
from eucaim_fl.tasks.sampling import crop, patch_start

__all__ = ["framed", "image_example", "image_rows"]


def image_example(case: PreparedCase, plan: FederationPlan, rng: np.random.Generator) -> NDArray[np.float32]:
    """One image (C, *spatial) of a case; a 2-D network gets a random slice along the third axis, a plan with patches a
    random patch."""
    image: NDArray[Any] = case.image()
    if plan.task.spatial_dims == 2:
        image = image[..., int(rng.integers(image.shape[-1]))]
    size = plan.training.patch_voxels
    if size is not None:
        shape = image.shape[1:]
        image = crop(image, patch_start([int(rng.integers(n)) for n in shape], size, shape), size)
    return np.array(image, dtype=np.float32)


def _inputs(case: PreparedCase, plan: FederationPlan) -> NDArray[np.float32]:
    """What the network sees of a case: (slices, C, *spatial) for a 2-D network, else (1, C, *spatial)."""
    image = case.image()
    inputs = np.moveaxis(image, 3, 0) if plan.task.spatial_dims == 2 else image[None]
    size = plan.training.patch_voxels
    if size is None:
        return inputs
    shape = inputs.shape[2:]
    return crop(inputs, patch_start([n // 2 for n in shape], size, shape), size)


@torch.no_grad()
def _rows(
    network: nn.Module, group: Sequence[NDArray[np.float32]], largest: int, said: Callable[[Tensor], Tensor]
) -> Iterator[NDArray[np.float64]]:
    """The row of each case of a group with inputs of one shape."""
    inputs = torch.from_numpy(np.concatenate(group).astype(np.float32)).to(next(network.parameters()).device)
    logits = torch.cat([network(batch) for batch in torch.split(inputs, largest)])
    rows = said(logits.double()).cpu().numpy()
    first = 0
    for one in group:
        yield rows[first : first + len(one)].mean(axis=0)
        first += len(one)


def image_rows(
    network: nn.Module, cases: Iterable[PreparedCase], plan: FederationPlan, said: Callable[[Tensor], Tensor]
) -> Iterator[NDArray[np.float64]]:
    """What a network says of each whole case, in order, shape (outputs,); for a 2-D network the mean over all slices.

    said: logits (n, outputs), float64 → what they say. A plan with patches is predicted on the central patch. Small
    cases share a batch of at most `training.inference_batch` images: one image at a time takes up to five times as
    long.
    """
    largest, group = plan.training.inference_batch, list[NDArray[np.float32]]()
    for case in cases:
        inputs = _inputs(case, plan)
        full = sum(len(one) for one in group) + len(inputs) > largest
        if group and (full or inputs.shape[1:] != group[0].shape[1:]):
            yield from _rows(network, group, largest, said)
            group = []
        group.append(inputs)
    if group:
        yield from _rows(network, group, largest, said)


def framed(case: PreparedCase, data: DataConfig, *, right: bool | None) -> NDArray[np.uint8]:
    """The middle slice as a picture (H, W, 3), in colours if the plan reads such; with a blue frame if the prediction
    is right, an orange one if it is not, and none where it can't be said."""
    image = np.asarray(case.image())
    frame = None if right is None else TRUTH_COLOUR if right else PREDICTION_COLOUR
    return picture(shown_slice(image, image.shape[3] // 2, data), frame=frame, orientation=data.orientation)

"""A segmentation network with nothing to learn but its last layer: fixed features of each voxel, one linear layer.

Noise for privacy grows with the number of weights; some tens learn under noise what many thousands can't.
Source: Sommer et al. 2011, ilastik (a voxel's class from smoothed intensities and edge strengths); Soille 2003,
Morphological Image Analysis (openings); Tramèr and Boneh 2021, Differentially Private Learning Needs Better Features.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache
from itertools import pairwise
from typing import cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from eucaim_fl.models.scattering import synthetic_images

__all__ = ["VoxelClassifier"]

_BLUR, _SOFTNESS = 0.7, 0.04  # voxels, before a level is asked for; intensity from half to three quarters of a member
_EXAMPLES = {2: (16, (64, 64)), 3: (8, (32, 32, 32))}  # by axes: synthetic images, and their size
_LEAST_DEVIATION, _LARGEST = 0.05, 5.0

Array = NDArray[np.float32]


def _continued(values: Tensor, axis: int, by: int) -> Tensor:
    """Longer by so many voxels at both ends of an axis, which repeat the ends."""
    shape = [-1] * values.dim()
    shape[axis] = by
    first, last = (values.narrow(axis, place, 1).expand(shape) for place in (0, values.shape[axis] - 1))
    return torch.cat([first, values, last], dim=axis)


def _highest(values: Tensor, axis: int, width: int) -> Tensor:
    """Maximum over `width` voxels along an axis, of each full window; shorter by `width` − 1."""
    span = 1
    while span < width:
        step = min(span, width - span)
        left = values.shape[axis] - step
        values = torch.maximum(values.narrow(axis, 0, left), values.narrow(axis, step, left))
        span += step
    return values


def _dilated(maps: Tensor, radius: int) -> Tensor:
    """Maximum over the cube of that radius, maps (B, C, *size)."""
    for axis in range(2, maps.dim()):
        maps = _highest(_continued(maps, axis, radius), axis, 2 * radius + 1)
    return maps


def _opened(maps: Tensor, radius: int) -> Tensor:
    """What is left where a cube of that radius fits in."""
    return _dilated(-_dilated(-maps, radius), radius)


def _enclosed(outside: Tensor, axis: int, reach: int) -> Tensor:
    """How far outside one gets both ways along an axis, within so many voxels: the lesser of two maxima."""
    size = outside.shape[axis]
    windows = _highest(_continued(outside, axis, reach), axis, reach + 1)
    return torch.minimum(windows.narrow(axis, 0, size), windows.narrow(axis, reach, size))


def _along(maps: Tensor, kernel: Sequence[float], axis: int) -> Tensor:
    """Correlation with an odd kernel along one axis; edges are continued."""
    size, wide = maps.shape[axis], _continued(maps, axis, len(kernel) // 2)
    total = kernel[0] * wide.narrow(axis, 0, size)
    for place, weight in enumerate(kernel[1:], start=1):
        total = total + weight * wide.narrow(axis, place, size)
    return total


def _smoothed(maps: Tensor, deviation: float) -> Tensor:
    """Gaussian of a standard deviation in voxels, cut at two and a half of it."""
    radius = math.ceil(2.5 * deviation)
    bell = [math.exp(-(place**2) / (2 * deviation**2)) for place in range(-radius, radius + 1)]
    for axis in range(2, maps.dim()):
        maps = _along(maps, [weight / sum(bell) for weight in bell], axis)
    return maps


def _edges(maps: Tensor) -> Tensor:
    """Length of the gradient, by central differences."""
    squares = [_along(maps, (-0.5, 0.0, 0.5), axis).square() for axis in range(2, maps.dim())]
    return torch.stack(squares).sum(0).sqrt()


def _bodies(images: Tensor, level: float, reaches: Sequence[int], *, bright: bool) -> list[Tensor]:
    """Whether a voxel is beyond a level, and whether what it is part of ends within each reach.

    A lump ends along all axes, a vessel or a wall along some: so the axis along which it is enclosed least, and that
    along which it is most. Then what is enclosed along all axes within the middle and the longest reach, where it is
    thicker than 2 voxels, and the members around where it is thicker than 4.
    """
    beyond = (_smoothed(images, _BLUR) - level) / _SOFTNESS
    member = torch.sigmoid(beyond if bright else -beyond)
    found, lumps = [member], []
    for reach in reaches:
        along = torch.stack([_enclosed(1 - member, axis, reach) for axis in range(2, images.dim())])
        lumps.append(along.amin(0) * member)
        found += [lumps[-1], along.amax(0) * member]
    for place in sorted({(len(lumps) - 1) // 2, len(lumps) - 1}):
        found += [_opened(lumps[place], 1), torch.minimum(member, _dilated(_opened(lumps[place], 2), 2))]
    return found


def _features(
    images: Tensor, scales: Sequence[int], levels: Sequence[float], reaches: Sequence[int], *, bright: bool
) -> Tensor:
    """(B, C, *size) → (B, n, *size): smoothed intensities and their differences, edges, and bodies at each level."""
    found: list[Tensor] = []
    smoothed = [_smoothed(images, scale) for scale in scales]
    found += [finer - coarser for finer, coarser in pairwise(smoothed)]
    found += [*smoothed[-1:], *(_edges(one) for one in smoothed)]
    for level in levels:
        found += _bodies(images, level, reaches, bright=bright)
    return torch.cat(found, dim=1)


@lru_cache(maxsize=8)
def _scale(
    dims: int, scales: tuple[int, ...], levels: tuple[float, ...], reaches: tuple[int, ...], bright: bool
) -> tuple[Array, Array]:
    """Mean and deviation of each feature of one channel over the voxels of synthetic images, to three digits, so that
    all machines agree."""
    number, size = _EXAMPLES[dims]
    images = torch.from_numpy(synthetic_images(number, 1, size))
    with torch.no_grad():
        found = _features(images, scales, levels, reaches, bright=bright).transpose(0, 1).flatten(1).double().numpy()
    three = np.vectorize(lambda value: float(f"{value:.2e}"))
    mean, deviation = found.mean(axis=1), np.maximum(found.std(axis=1), _LEAST_DEVIATION)
    return three(mean).astype(np.float32), three(deviation).astype(np.float32)


class VoxelClassifier(nn.Module):
    """Logits (B, out, *size) from images (B, channels, *size) in [0, 1]: a linear layer on fixed features of a voxel.

    scales: standard deviations, in voxels, at which intensities and edges are looked at. levels: intensities that part
    bodies from what is around them; reaches: distances in voxels within which a body may end. bright: bodies are above
    the levels, else below. Any size will do; edges are continued, and what moves in the image moves in the logits.
    A feature is centred and scaled by what it is on synthetic images, so no patient's image sets a constant, and held
    within ± 5.
    """

    def __init__(
        self,
        dims: int,
        channels: int,
        out: int,
        scales: tuple[int, ...] = (1, 2, 4),
        levels: tuple[float, ...] = (0.5,),
        reaches: tuple[int, ...] = (4, 7, 11, 16),
        *,
        bright: bool = True,
    ) -> None:
        super().__init__()
        self.scales, self.levels, self.reaches, self.bright = scales, levels, reaches, bright
        constants = _scale(dims, scales, levels, reaches, bright)
        for name, values in zip(("mean", "deviation"), constants, strict=True):
            shaped = np.repeat(values, channels).reshape(-1, *[1] * dims)
            self.register_buffer(name, torch.from_numpy(shaped), persistent=False)
        convolution = nn.Conv2d if dims == 2 else nn.Conv3d
        self.final = convolution(len(constants[0]) * channels, out, kernel_size=1)

    def forward(self, images: Tensor) -> Tensor:
        """See the class."""
        with torch.no_grad():
            found = _features(images, self.scales, self.levels, self.reaches, bright=self.bright)
            found = (found - cast("Tensor", self.mean)) / cast("Tensor", self.deviation)
            found = found.clamp(-_LARGEST, _LARGEST)
        logits: Tensor = self.final(found)
        return logits

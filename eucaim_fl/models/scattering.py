"""A network with nothing to learn but its last layer: fixed wavelets, their strength, and one linear layer on it.

Noise for privacy grows with the number of weights; a few hundred learn under noise what many thousands can't.
Source: Bruna and Mallat 2013, Invariant Scattering Convolution Networks; Tramèr and Boneh 2021, Differentially Private
Learning Needs Better Features (or Much More Data).
"""

from __future__ import annotations

import math
from functools import lru_cache
from itertools import combinations
from typing import cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

__all__ = ["Scattering", "synthetic_images"]

_KERNEL, _FREQUENCY, _WIDTH, _ELONGATION = 7, 2.36, 1.04, 2.0  # voxels; radian a voxel; standard deviation; ratio
_CENTRE, _SURROUND = 0.35, 0.6  # of half an image, standard deviations of the two windows
_EXAMPLES = 64
_LARGEST = 5.0
_MIXED = ((1 / 3, 1 / 3, 1 / 3), (1 / 2, 0.0, -1 / 2), (1 / 4, -1 / 2, 1 / 4))
"""Of three channels: the mean, and two differences. Source: Ohta et al. 1980, Color Information for Segmentation."""

Array = NDArray[np.float32]


def _directions(dims: int) -> list[NDArray[np.float64]]:
    """Unit vectors along each axis and each diagonal of two axes: 4 in the plane, 9 in space."""
    unit = np.eye(dims)
    diagonals = [unit[i] + sign * unit[j] for i, j in combinations(range(dims), 2) for sign in (1, -1)]
    return [*unit, *(d / np.linalg.norm(d) for d in diagonals)]


def _wavelets(dims: int) -> Array:
    """Gabor wavelets without mean, shape (2 · directions, 1, *kernel): real and imaginary part of each direction."""
    grid = np.stack(np.meshgrid(*[np.arange(_KERNEL) - _KERNEL // 2] * dims, indexing="ij"), axis=-1).astype(float)
    parts = []
    for direction in _directions(dims):
        along = grid @ direction
        across = (grid**2).sum(-1) - along**2
        bell = np.exp(-(along**2 + across / _ELONGATION**2) / (2 * _WIDTH**2))
        wave = bell * np.exp(1j * _FREQUENCY * along)
        wave -= bell * (wave.sum() / bell.sum())
        wave /= np.abs(wave).sum()
        parts += [wave.real, wave.imag]
    return np.stack(parts)[:, None].astype(np.float32)


def _windows(size: tuple[int, ...]) -> Array:
    """Weights of an image's centre and of its surround, each of sum 1, shape (2, *size)."""
    axes = [(np.arange(n) + 0.5) / n * 2 - 1 for n in size]
    square = sum(axis**2 for axis in np.meshgrid(*axes, indexing="ij"))
    centre = np.exp(-square / (2 * _CENTRE**2))
    surround = 1 - np.exp(-square / (2 * _SURROUND**2))
    return np.stack([window / window.sum() for window in (centre, surround)]).astype(np.float32)


def synthetic_images(number: int, channels: int, size: tuple[int, ...], seed: int = 0) -> Array:
    """Made-up images in [0, 1], shape (number, channels, *size): a dark body on a brighter ground, both with texture.

    Textures have a spectrum that falls with frequency, as natural images have; bodies differ in place, size, contrast
    and sharpness. They stand for nobody: what is measured on them costs no privacy.
    """
    rng = np.random.default_rng(seed)
    frequencies = np.meshgrid(*[np.fft.fftfreq(n) for n in size], indexing="ij")
    radius = np.sqrt(np.sum(np.square(frequencies), axis=0))
    radius.flat[0] = 1.0
    axes = np.stack(np.meshgrid(*[(np.arange(n) + 0.5) / n * 2 - 1 for n in size], indexing="ij"), axis=-1)
    column = (channels, *[1] * len(size))

    def texture(fall: float, count: int) -> NDArray[np.float64]:
        noise = np.fft.fftn(rng.standard_normal((count, *size)), axes=range(1, 1 + len(size))) / radius**fall
        noise.reshape(count, -1)[:, 0] = 0.0
        made = np.fft.ifftn(noise, axes=range(1, 1 + len(size))).real
        return np.asarray(made / made.reshape(count, -1).std(axis=1).reshape(count, *[1] * len(size)))

    images = []
    for _ in range(number):
        fall, common = rng.uniform(1.0, 2.0), texture(1.5, 1)
        image = rng.uniform(0.4, 0.85) + 0.08 * rng.standard_normal(column) + np.zeros((channels, *size))
        image += rng.uniform(0.01, 0.06) * common + rng.uniform(0.003, 0.015) * texture(fall, channels)
        stretched = (axes - rng.uniform(-0.15, 0.15, len(size))) * rng.uniform(0.7, 1.4, len(size))
        distance = np.linalg.norm(stretched, axis=-1)
        inside = distance - rng.uniform(0.25, 0.7) * (1 + 0.15 * common[0])
        body = 1 / (1 + np.exp(np.clip(inside * rng.uniform(5, 25), -50, 50)))
        depth = rng.uniform(0.05, 0.45) + 0.06 * rng.standard_normal(column) + rng.uniform(0, 0.08) * texture(fall, 1)
        images.append(np.clip(image - body * depth, 0, 1))
    return np.stack(images).astype(np.float32)


class _Features(nn.Module):
    """Images (B, C, *size) → (B, n): per channel means at centre and surround, deviation, and strengths of wavelets.

    At each scale, which halves the image, the modulus of each wavelet's answer is averaged at centre and surround, and
    its own wavelets' answers one scale further over the whole image.
    """

    def __init__(self, channels: int, size: tuple[int, ...], scales: int, shrink: int) -> None:
        super().__init__()
        self.dims, self.scales, self.shrink = len(size), scales, shrink
        self.register_buffer("wavelets", torch.from_numpy(_wavelets(self.dims)), persistent=False)
        mixed = np.array(_MIXED, np.float32) if channels == len(_MIXED) else np.eye(channels, dtype=np.float32)
        self.register_buffer("mixed", torch.from_numpy(mixed), persistent=False)
        for scale in range(scales):
            here = tuple(max(1, n // shrink // 2**scale) for n in size)
            self.register_buffer(f"windows_{scale}", torch.from_numpy(_windows(here)), persistent=False)

    def _halved(self, images: Tensor, by: int = 2) -> Tensor:
        pool = functional.avg_pool2d if self.dims == 2 else functional.avg_pool3d
        return pool(images, by)

    def _strengths(self, images: Tensor) -> Tensor:
        """(B, C, *size) → (B, C · directions, *size): modulus of each wavelet's answer; edges are continued."""
        batch, channels, *size = images.shape
        flat = images.reshape(batch * channels, 1, *size)
        padded = functional.pad(flat, (_KERNEL // 2,) * (2 * self.dims), mode="replicate")
        convolve = functional.conv2d if self.dims == 2 else functional.conv3d
        answers: Tensor = convolve(padded, cast("Tensor", self.wavelets))
        moduli = answers.reshape(batch * channels, -1, 2, *size).square().sum(2).add(1e-8).sqrt()
        return moduli.reshape(batch, -1, *size)

    def _averaged(self, maps: Tensor, scale: int) -> Tensor:
        windows = cast("Tensor", getattr(self, f"windows_{scale}"))
        return (maps.flatten(2) @ windows.flatten(1).T).flatten(1)

    def forward(self, images: Tensor) -> Tensor:
        """See the class."""
        low = torch.einsum("ij,bj...->bi...", cast("Tensor", self.mixed), images)
        low = self._halved(low, self.shrink) if self.shrink > 1 else low
        found = [self._averaged(low, 0), low.flatten(2).var(2, correction=0).add(1e-8).sqrt()]
        for scale in range(self.scales):
            strengths = self._strengths(low)
            found.append(self._averaged(strengths, scale))
            if scale + 1 < self.scales:
                found.append(self._strengths(self._halved(strengths)).flatten(2).mean(2))
                low = self._halved(low)
        return torch.cat(found, dim=1)


@lru_cache(maxsize=4)
def _scale(channels: int, size: tuple[int, ...], scales: int, shrink: int) -> tuple[Array, Array]:
    """Mean and deviation of each feature over synthetic images, to three digits, so that all machines agree."""
    features = _Features(channels, size, scales, shrink)
    with torch.no_grad():
        parts = torch.split(torch.from_numpy(synthetic_images(_EXAMPLES, channels, size)), 16)
        found = torch.cat([features(part) for part in parts]).double().numpy()
    three = np.vectorize(lambda value: float(f"{value:.2e}"))
    return three(found.mean(axis=0)).astype(np.float32), three(found.std(axis=0) + 1e-6).astype(np.float32)


class Scattering(nn.Module):
    """Logits (B, out) from images (B, channels, *size) in [0, 1]: a linear layer on fixed features.

    scales: how often the image is halved, plus one. shrink: the image is averaged over so many voxels first.
    A feature is centred and scaled by what it is on synthetic images, so no patient's image sets a constant, and held
    within ± 5. With `per_image`, an image's features are then centred and scaled together: that helps where images
    differ in brightness and contrast, and costs where just these tell the classes apart. n features are divided by √n.
    """

    def __init__(
        self,
        channels: int,
        size: tuple[int, ...],
        out: int,
        scales: int = 3,
        shrink: int = 2,
        *,
        per_image: bool = True,
    ) -> None:
        super().__init__()
        self.per_image = per_image
        self.features = _Features(channels, size, scales, shrink)
        mean, deviation = _scale(channels, size, scales, shrink)
        self.register_buffer("mean", torch.from_numpy(mean.copy()), persistent=False)
        self.register_buffer("deviation", torch.from_numpy(deviation.copy()), persistent=False)
        self.final = nn.Linear(len(mean), out)

    def forward(self, images: Tensor) -> Tensor:
        """See the class."""
        with torch.no_grad():
            found = (self.features(images) - cast("Tensor", self.mean)) / cast("Tensor", self.deviation)
            found = found.clamp(-_LARGEST, _LARGEST)
            if self.per_image:
                found = functional.layer_norm(found, found.shape[1:])
            found = found / math.sqrt(found.shape[1])
        logits: Tensor = self.final(found)
        return logits

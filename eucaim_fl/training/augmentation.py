"""Random changes of training examples, with a derived seed: the changes and the draws of MONAI's transforms.

They are made here on plain arrays, because MONAI's bookkeeping takes far longer than a change where images are small:
with colour images of 64 × 64 it was a third of the time that a small network's training took.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.random import RandomState
from numpy.typing import NDArray

from eucaim_fl.config import AugmentationConfig
from eucaim_fl.seeding import derive_seed

__all__ = ["augmenter"]

Example = tuple[NDArray[np.float32], NDArray[Any]]
_Change = Callable[[NDArray[Any]], NDArray[Any]]
_Draw = Callable[[tuple[int, ...]], _Change | None]
"""What is done to the next example, for an image of that shape; None for nothing."""

_SEEDS = 2**32
_NOISE_SHARE = 0.5


def augmenter(config: AugmentationConfig, spatial_dims: int, seed: int) -> Callable[[Example], Example]:
    """A function that changes one example after the other, the same sequence for the same seed.

    Examples are image (C, *spatial), all channels changed alike but for noise, and label: an array of the same grid
    (1, *spatial), changed alike, or a class () that stays. flip: each axis with that probability. rotate90: a quarter
    turn or several in the first two axes. scale_intensity, shift_intensity: the image × (1 + u), and + u, with u
    uniform in ± the value. noise_std: in one image of two, Gaussian noise whose standard deviation is uniform up to the
    value. The result is C-contiguous; the given example stays as it was.
    The bits are those of MONAI's RandFlipd, RandRotate90d, RandScaleIntensityd, RandShiftIntensityd and
    RandGaussianNoised in a Compose with that seed.
    """
    sources = RandomState(derive_seed(seed, "augmentation") % _SEEDS)
    both: list[_Draw] = []
    image_only: list[_Draw] = []

    def own_seed() -> int:
        return int(sources.randint(_SEEDS, dtype="uint32"))

    if config.flip > 0:
        both += [_flip(axis + 1, config.flip, own_seed()) for axis in range(spatial_dims)]
    if config.rotate90 > 0:
        both.append(_rotate90(config.rotate90, own_seed()))
    if config.scale_intensity > 0:
        image_only.append(_scale(config.scale_intensity, own_seed()))
    if config.shift_intensity > 0:
        image_only.append(_shift(config.shift_intensity, own_seed()))
    if config.noise_std > 0:
        image_only.append(_noise(config.noise_std, own_seed()))
    if not both and not image_only:
        return lambda example: example

    def change(example: Example) -> Example:
        image, label = example
        on_grid = label.ndim == image.ndim
        for draw in both:
            if (made := draw(image.shape)) is not None:
                image, label = made(image), made(label) if on_grid else label
        for draw in image_only:
            if (made := draw(image.shape)) is not None:
                image = made(image)
        return np.ascontiguousarray(image), np.ascontiguousarray(label) if on_grid else label

    return change


def _flip(axis: int, share: float, seed: int) -> _Draw:
    source = RandomState(seed)

    def draw(_shape: tuple[int, ...]) -> _Change | None:
        return (lambda array: np.flip(array, axis)) if source.rand() < share else None

    return draw


def _rotate90(share: float, seed: int) -> _Draw:
    source = RandomState(seed)

    def draw(_shape: tuple[int, ...]) -> _Change | None:
        turns = int(source.randint(3)) + 1
        return (lambda array: np.rot90(array, turns, (1, 2))) if source.rand() < share else None

    return draw


def _always_drawn(value: float, seed: int) -> Callable[[], float]:
    """Uniform in ± value. MONAI asks first whether anything is done at all, which here it always is."""
    source = RandomState(seed)

    def number() -> float:
        source.rand()
        return source.uniform(-value, value)

    return number


def _scale(value: float, seed: int) -> _Draw:
    drawn = _always_drawn(value, seed)

    def draw(_shape: tuple[int, ...]) -> _Change:
        factor = 1 + drawn()
        return lambda image: image * factor

    return draw


def _shift(value: float, seed: int) -> _Draw:
    drawn = _always_drawn(value, seed)

    def draw(_shape: tuple[int, ...]) -> _Change:
        offset = drawn()
        return lambda image: image + offset

    return draw


def _noise(largest: float, seed: int) -> _Draw:
    whether, source = RandomState(seed), RandomState(seed)

    def draw(shape: tuple[int, ...]) -> _Change | None:
        if whether.rand() >= _NOISE_SHARE:
            return None
        source.rand()
        noise = source.normal(0.0, source.uniform(0, largest), size=shape).astype(np.float32)
        return lambda image: image + noise

    return draw

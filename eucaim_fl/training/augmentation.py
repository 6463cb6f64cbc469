"""Random changes of training examples, through MONAI's transforms with a derived seed."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from monai.data.meta_obj import get_track_meta, set_track_meta
from monai.transforms.compose import Compose
from monai.transforms.intensity.dictionary import RandGaussianNoised, RandScaleIntensityd, RandShiftIntensityd
from monai.transforms.spatial.dictionary import RandFlipd, RandRotate90d
from numpy.typing import NDArray

from eucaim_fl.config import AugmentationConfig
from eucaim_fl.seeding import derive_seed

__all__ = ["augmenter"]

Example = tuple[NDArray[np.float32], NDArray[Any]]


def augmenter(config: AugmentationConfig, spatial_dims: int, seed: int) -> Callable[[Example], Example]:
    """A function that changes one example after the other, the same sequence for the same seed.

    Examples are image (C, *spatial), all channels changed alike but for noise, and label: an array of the same grid
    (1, *spatial), changed alike, or a class () that stays. flip: each axis with that probability. rotate90: a quarter
    turn in the first two axes. scale_intensity, shift_intensity: uniform in ± the value. noise_std: largest
    standard deviation of Gaussian noise.
    """
    both, image = ["image", "label"], ["image"]
    steps: list[Any] = []
    if config.flip > 0:
        steps += [
            RandFlipd(keys=both, prob=config.flip, spatial_axis=axis, allow_missing_keys=True)
            for axis in range(spatial_dims)
        ]
    if config.rotate90 > 0:
        steps.append(RandRotate90d(keys=both, prob=config.rotate90, spatial_axes=(0, 1), allow_missing_keys=True))
    if config.scale_intensity > 0:
        steps.append(RandScaleIntensityd(keys=image, factors=config.scale_intensity, prob=1.0))
    if config.shift_intensity > 0:
        steps.append(RandShiftIntensityd(keys=image, offsets=config.shift_intensity, prob=1.0))
    if config.noise_std > 0:
        steps.append(RandGaussianNoised(keys=image, prob=0.5, mean=0.0, std=config.noise_std))
    if not steps:
        return lambda example: example
    chain = Compose(steps)
    chain.set_random_state(seed=derive_seed(seed, "augmentation") % 2**32)

    def change(example: Example) -> Example:
        pixels, label = example
        on_grid = label.ndim == pixels.ndim
        tracked = get_track_meta()
        set_track_meta(False)  # plain tensors are quicker; reading cohorts in this process needs the others
        try:
            out = chain({"image": pixels, "label": label} if on_grid else {"image": pixels})
        finally:
            set_track_meta(tracked)
        changed = np.ascontiguousarray(np.asarray(out["image"], dtype=np.float32))
        return changed, np.ascontiguousarray(np.asarray(out["label"])) if on_grid else label

    return change

"""Augmentation changes image and label alike, the same way for the same seed."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from monai.data.meta_obj import get_track_meta, set_track_meta
from monai.transforms.compose import Compose
from monai.transforms.intensity.dictionary import RandGaussianNoised, RandScaleIntensityd, RandShiftIntensityd
from monai.transforms.spatial.dictionary import RandFlipd, RandRotate90d

from eucaim_fl.config import AugmentationConfig
from eucaim_fl.seeding import derive_seed
from eucaim_fl.training.augmentation import augmenter

NOTHING = {"flip": 0.0, "rotate90": 0.0, "scale_intensity": 0.0, "shift_intensity": 0.0, "noise_std": 0.0}
EVERYTHING = {"flip": 0.5, "rotate90": 0.5, "scale_intensity": 0.1, "shift_intensity": 0.1, "noise_std": 0.1}


def make(spatial_dims: int = 2, seed: int = 0, **changes: float) -> Callable[[Any], Any]:
    return augmenter(AugmentationConfig.model_validate({**NOTHING, **changes}), spatial_dims, seed)


def example(spatial_dims: int = 2) -> tuple[np.ndarray, np.ndarray]:
    image = np.arange(4**spatial_dims, dtype=np.float32).reshape(1, *(4,) * spatial_dims)
    return image, (image > 5).astype(np.uint8)


def monai_chain(config: AugmentationConfig, spatial_dims: int, seed: int) -> Callable[[Any], Any]:
    """The same changes by MONAI's own transforms."""
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
    chain = Compose(steps)
    chain.set_random_state(seed=derive_seed(seed, "augmentation") % 2**32)

    def change(given: Any) -> Any:
        out = chain({"image": given[0], "label": given[1]} if given[1].ndim else {"image": given[0]})
        return np.asarray(out["image"]), np.asarray(out["label"]) if given[1].ndim else given[1]

    return change


class TestAugmenter:
    @pytest.mark.parametrize("spatial_dims", [2, 3])
    @pytest.mark.parametrize("only", [None, "flip", "rotate90", "scale_intensity", "shift_intensity", "noise_std"])
    @pytest.mark.parametrize("labelled", [True, False])
    def test_its_bits_are_those_of_monais_transforms(self, spatial_dims: int, only: str | None, labelled: bool) -> None:
        values = EVERYTHING if only is None else {**NOTHING, only: 0.5}
        config, draw = AugmentationConfig.model_validate(values), np.random.default_rng(0)
        own, theirs = augmenter(config, spatial_dims, 7), monai_chain(config, spatial_dims, 7)
        for _ in range(20):
            shape = (5, 5, 3)[:spatial_dims]
            label = draw.integers(0, 3, (1, *shape)).astype(np.uint8) if labelled else np.array(1)
            given = draw.normal(0, 100, (3, *shape)).astype(np.float32), label
            for found, expected in zip(own(given), theirs(given), strict=True):
                assert found.dtype == expected.dtype
                assert found.shape == expected.shape
                assert found.flags.c_contiguous
                assert found.tobytes() == expected.tobytes()

    def test_nothing_asked_nothing_changed(self) -> None:
        given = example()
        assert make()(given) is given

    @pytest.mark.parametrize("spatial_dims", [2, 3])
    def test_a_certain_flip_turns_every_axis(self, spatial_dims: int) -> None:
        image, label = example(spatial_dims)
        changed, mask = make(spatial_dims, flip=1.0)((image, label))
        axes = tuple(range(1, spatial_dims + 1))
        assert (changed == np.flip(image, axes)).all()
        assert (mask == np.flip(label, axes)).all()

    def test_a_certain_quarter_turn_is_in_the_first_two_axes(self) -> None:
        image, _ = example(3)
        changed, _ = make(3, rotate90=1.0)(example(3))
        assert any((changed == np.rot90(image, turns, (1, 2))).all() for turns in (1, 2, 3))

    @pytest.mark.parametrize("spatial_dims", [2, 3])
    def test_the_label_goes_with_the_image(self, spatial_dims: int) -> None:
        change = make(spatial_dims, flip=0.5, rotate90=0.5)
        seen = set()
        for _ in range(30):
            image, label = change(example(spatial_dims))
            assert ((image > 5) == label).all()
            assert (image.dtype, label.dtype) == (np.float32, np.uint8)
            seen.add(image.tobytes())
        assert len(seen) > 4

    def test_intensities_of_the_label_stay(self) -> None:
        image, label = example()
        changed, mask = make(scale_intensity=0.5, shift_intensity=0.5, noise_std=0.5)((image, label))
        assert (mask == label).all()
        assert (changed != image).any()

    def test_a_shift_lies_within_its_bounds(self) -> None:
        change = make(shift_intensity=0.25)
        shifts = [float((change(example())[0] - example()[0]).mean()) for _ in range(50)]
        assert 0.1 < max(map(abs, shifts)) <= 0.25 + 1e-6
        assert min(shifts) < 0 < max(shifts)

    def test_a_scale_lies_within_its_bounds(self) -> None:
        change = make(scale_intensity=0.25)
        scales = [float(change(example())[0][0, 3, 3]) / 15 for _ in range(50)]
        assert 0.75 - 1e-6 <= min(scales) < 1 < max(scales) <= 1.25 + 1e-6

    def test_a_class_stays_what_it_is(self) -> None:
        target = np.array(1)
        image, same = make(**EVERYTHING)((example()[0], target))
        assert same is target
        assert image.shape == (1, 4, 4)

    @pytest.mark.parametrize("spatial_dims", [2, 3])
    def test_one_seed_gives_one_sequence(self, spatial_dims: int) -> None:
        def sequence(seed: int) -> bytes:
            change = make(spatial_dims, seed, **EVERYTHING)
            return b"".join(change(example(spatial_dims))[0].tobytes() for _ in range(10))

        assert sequence(0) == sequence(0) != sequence(1)

    def test_the_given_example_is_left_as_it_was(self) -> None:
        image, label = example()
        change = make(**EVERYTHING)
        for _ in range(10):
            change((image, label))
        assert (image == example()[0]).all()
        assert (label == example()[1]).all()

    def test_global_state_is_left_alone(self) -> None:
        def state() -> tuple[object, ...]:
            return (
                get_track_meta(),
                random.getstate(),
                np.random.get_state()[1].tolist(),  # noqa: NPY002
                torch.get_rng_state().tolist(),
            )

        set_track_meta(True)
        before = state()
        change = make(**EVERYTHING)
        for _ in range(5):
            change(example())
        assert state() == before

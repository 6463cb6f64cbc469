from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageDraw, ImageFont

from eucaim_fl.cohorts.deidentification.burned_in import text_in_pixels
from eucaim_fl.seeding import generator

LINES = ("ROSSI MARIA 12.03.1953", "Name: Mueller Hans", "ID 12345678", "DOB 1953-03-12", "Garcia Lopez Ana")


def anatomy(seed: int, side: int = 256) -> np.ndarray:
    """Smooth blobs with noise on a dark ground, in [0, 1]."""
    rng = generator(seed, "anatomy")
    rows, columns = np.mgrid[:side, :side] / side
    image = np.zeros((side, side))
    for _ in range(12):
        y, x, radius, value = (
            rng.uniform(0.2, 0.8),
            rng.uniform(0.2, 0.8),
            rng.uniform(0.02, 0.25),
            rng.uniform(0.1, 0.5),
        )
        image += value * (np.hypot(rows - y, columns - x) < radius)
    return np.clip(image + rng.normal(0, 0.02, image.shape), 0, 1)


def with_text(image: np.ndarray, text: str, size: int, corner: int, *, default: bool, dark: bool) -> np.ndarray:
    font = ImageFont.load_default() if default else ImageFont.load_default(size=size)
    mask = Image.new("L", image.shape[::-1], 0)
    draw = ImageDraw.Draw(mask)
    _, _, width, height = draw.textbbox((0, 0), text, font=font)
    place = (4 if corner % 2 == 0 else image.shape[1] - width - 4, 4 if corner < 2 else image.shape[0] - height - 4)
    draw.text(place, text, fill=255, font=font)
    weight = np.asarray(mask) / 255
    ground = 1 - image if dark else image
    return ground * (1 - weight) + (0.0 if dark else 1.0) * weight


class TestTextInPixels:
    @pytest.mark.parametrize("dark", [False, True])
    @pytest.mark.parametrize("default", [False, True])
    def test_text_in_corners_is_found(self, default: bool, dark: bool) -> None:
        hits = [
            text_in_pixels(with_text(anatomy(n), LINES[n % 5], 10 + n % 9, n % 4, default=default, dark=dark))
            for n in range(20)
        ]
        assert sum(hits) >= 18

    @pytest.mark.parametrize("size", [10, 14, 20, 28])
    def test_each_size_is_found(self, size: int) -> None:
        hits = [
            text_in_pixels(with_text(anatomy(n, 512), LINES[n], size, n % 4, default=False, dark=False))
            for n in range(5)
        ]
        assert sum(hits) >= 4

    def test_the_units_of_the_image_do_not_matter(self) -> None:
        drawn = with_text(anatomy(1), LINES[0], 14, 0, default=False, dark=False)
        assert text_in_pixels((drawn * 4095).astype(np.int16) - 1024)

    def test_anatomy_is_no_text(self) -> None:
        assert sum(text_in_pixels(anatomy(n)) for n in range(60)) == 0

    @pytest.mark.parametrize(
        "plane",
        [np.zeros((64, 64)), np.zeros((3, 3)), np.full((64, 64), np.nan), np.zeros((4, 64, 64)), np.eye(64)],
        ids=["empty", "tiny", "nan", "three axes", "line"],
    )
    def test_planes_without_anything_are_no_text(self, plane: np.ndarray) -> None:
        assert not text_in_pixels(plane)

    def test_noise_is_no_text(self) -> None:
        assert not text_in_pixels(generator(0, "noise").normal(size=(256, 256)))

    def test_the_corners_of_large_planes_are_looked_at(self) -> None:
        large = np.zeros((2200, 1800))
        large[-256:, -256:] = with_text(anatomy(1), LINES[0], 14, 3, default=False, dark=False)
        assert text_in_pixels(large)

    def test_real_images_give_few_false_alarms(self, shared_data: Path) -> None:
        import pydicom

        files = sorted((shared_data / "prostatex").rglob("*.dcm"))[::4]
        alarms = sum(text_in_pixels(pydicom.dcmread(file).pixel_array) for file in files)
        with np.load(shared_data / "lidc_nodules" / "lidc_nodules_51.npz") as archive:
            cubes = archive["images"][::3]
        alarms += sum(text_in_pixels(cube[:, :, 25].astype(np.float32)) for cube in cubes)
        assert alarms <= 0.02 * (len(files) + len(cubes))

"""A made-up abdomen in HU with liver lesions, defined in patient space, so that any scan geometry can sample it.

Nothing in it is measured from a patient. Coordinates are RAS+ mm with the origin in the middle of the body: the liver
lies at positive x (the patient's right), the spine at negative y (posterior).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

__all__ = ["Acquisition", "Tissue", "Truth", "image_abdomen"]

Field = NDArray[np.float32]
_EDGE_MM = 2.5  # width over which one tissue passes into the next
_AIR, _FAT, _MUSCLE, _BONE, _WATER = -1000.0, -100.0, 55.0, 320.0, 10.0


@dataclass(frozen=True)
class Tissue:
    """What contrast medium makes of the organs, in HU. lesion and vessel: difference to the liver, low and high."""

    liver: float
    spleen: float
    aorta: float
    vessel: float
    lesion: tuple[float, float]


@dataclass(frozen=True)
class Acquisition:
    """What the scanner does to the picture. blur_mm: kernel's standard deviation; noise_hu: standard deviation."""

    blur_mm: float
    noise_hu: float


@dataclass(frozen=True)
class Truth:
    """The image in HU (I, J, K), the mask of all lesions on the same grid, and the largest lesion's radius."""

    image: Field
    lesions: NDArray[np.bool_]
    largest_radius_mm: float


@dataclass(frozen=True)
class _Lesion:
    centre: NDArray[np.float64]
    radius_mm: float
    stretch: NDArray[np.float64]
    waves: NDArray[np.float64]  # (n, 5): direction (3), number of lobes, height as a share of the radius
    contrast_hu: float
    core_hu: float


def _ellipsoid(points: Field, centre: tuple[float, float, float], axes: tuple[float, float, float]) -> Field:
    """About the signed distance in mm to an ellipsoid, negative inside. points: (3, I, J, K)."""
    c, a = (np.array(values, np.float32).reshape(3, 1, 1, 1) for values in (centre, axes))
    distance: Field = (np.sqrt((((points - c) / a) ** 2).sum(axis=0)) - 1) * min(axes)
    return distance


def _tube(points: Field, start: NDArray[np.float64], end: NDArray[np.float64], radius: float) -> Field:
    """Signed distance to a capsule."""
    axis = (end - start).astype(np.float32)
    offset = points - start.astype(np.float32).reshape(3, 1, 1, 1)
    along = np.clip(np.tensordot(axis, offset, axes=1) / float(axis @ axis), 0, 1)
    distance: Field = np.sqrt(((offset - axis.reshape(3, 1, 1, 1) * along) ** 2).sum(axis=0)) - radius
    return distance


def _paint(image: Field, distance: Field, value: float | Field) -> None:
    """Lay tissue of `value` HU over the image where the distance is negative, with a soft edge; in place."""
    share = np.clip(0.5 - distance / _EDGE_MM, 0, 1)
    image += share * (value - image)


def _smooth_noise(
    rng: np.random.Generator, shape: tuple[int, ...], spacing: NDArray[np.float64], width_mm: float
) -> Field:
    """Noise of standard deviation 1 whose grain is `width_mm` wide."""
    noise = ndimage.gaussian_filter(rng.standard_normal(shape, dtype=np.float32), width_mm / spacing)
    scaled: Field = noise / max(float(noise.std()), 1e-6)
    return scaled


def _lesion_distance(points: Field, lesion: _Lesion) -> Field:
    """About the signed distance to a lobulated ellipsoid."""
    offset = (points - lesion.centre.astype(np.float32).reshape(3, 1, 1, 1)) / lesion.stretch.astype(
        np.float32
    ).reshape(3, 1, 1, 1)
    length = np.sqrt((offset**2).sum(axis=0))
    direction = offset / np.maximum(length, 1e-3)
    bumps = np.zeros_like(length)
    for *axis, lobes, height in lesion.waves:
        bumps += height * np.cos(lobes * np.tensordot(np.array(axis, np.float32), direction, axes=1))
    distance: Field = length - lesion.radius_mm * (1 + bumps)
    return distance


def _draw_lesions(
    rng: np.random.Generator, points: Field, liver: Field, tissue: Tissue, malignant: bool
) -> list[_Lesion]:
    """One to three lesions that lie inside the liver and inside the scan, apart from each other.

    Malignant ones are larger, lobulated and have a core of their own; benign ones are small and smooth.
    """
    low, high = (14.0, 20.0) if malignant else (10.0, 14.0)
    inner = points.reshape(3, -1)[:, liver.reshape(-1) < -4]
    top, bottom = inner[2].max(), inner[2].min()
    lesions: list[_Lesion] = []
    for number in range(int(rng.integers(1, 4))):
        for _ in range(200):
            radius = float(rng.uniform(low, high)) * (1.0 if number == 0 else 0.85)
            centre = inner[:, rng.integers(inner.shape[1])].astype(np.float64)
            depth = -liver[tuple(np.unravel_index(_nearest(points, centre), liver.shape))]
            apart = all(np.linalg.norm(centre - other.centre) > radius + other.radius_mm + 6 for other in lesions)
            if apart and depth > radius * 0.75 and bottom + 0.8 * radius < centre[2] < top - 0.8 * radius:
                break
        else:
            continue
        directions = rng.standard_normal((3, 3))
        directions /= np.linalg.norm(directions, axis=1, keepdims=True)
        heights = rng.uniform(0.05, 0.10, (3, 1)) if malignant else rng.uniform(0.0, 0.03, (3, 1))
        contrast = float(rng.uniform(*tissue.lesion))
        lesions.append(
            _Lesion(
                centre=centre,
                radius_mm=radius,
                stretch=rng.uniform(0.85, 1.15, 3),
                waves=np.hstack([directions, rng.integers(3, 7, (3, 1)), heights]),
                contrast_hu=contrast,
                core_hu=0.4 * contrast if malignant else 0.0,
            )
        )
    return lesions


def _nearest(points: Field, centre: NDArray[np.float64]) -> int:
    return int(((points - centre.astype(np.float32).reshape(3, 1, 1, 1)) ** 2).sum(axis=0).argmin())


def _body(rng: np.random.Generator, points: Field, spacing: NDArray[np.float64], tissue: Tissue, size: float) -> Field:
    """Everything but the liver: skin, fat rim, muscles, spine, ribs, bowel, spleen, stomach, kidneys, great vessels."""
    shape = points.shape[1:]
    wide, deep, fat = 118 * size, 86 * size, float(rng.uniform(7, 15))
    image = np.full(shape, _AIR, np.float32)
    _paint(image, _ellipsoid(points, (0, 0, 0), (wide, deep, 1e4)), _FAT)
    _paint(image, _ellipsoid(points, (0, -2, 0), (wide - fat, deep - fat, 1e4)), _MUSCLE)
    cavity = _ellipsoid(points, (0, 2, 0), (wide - fat - 11, deep - fat - 11, 1e4))
    angle = np.arctan2(points[1], points[0] * deep / wide)
    rib = 0.5 * np.cos(9 * angle + points[2] / 9) + 0.5 * np.sin(points[2] / 7 + 3 * np.abs(angle))
    _paint(image, np.maximum(np.abs(cavity - 5) - 3.5, (0.45 - rib) * 12), 0.8 * _BONE)
    bowel = _smooth_noise(rng, shape, spacing, 11)
    _paint(image, cavity, np.where(bowel > 0.1, 30.0 + 8 * bowel, _FAT + 8 * bowel).astype(np.float32))
    for x in (-46.0, 46.0):  # the muscles beside the spine
        _paint(image, _ellipsoid(points, (x * 0.75 * size, -58 * size, 0), (26, 15, 1e4)), _MUSCLE)
    back = -46 * size
    _paint(image, _ellipsoid(points, (0, back, 0), (20, 16, 1e4)), _BONE)
    disc = 0.5 + 0.5 * np.cos(2 * np.pi * points[2] / 32)
    _paint(image, _ellipsoid(points, (0, back, 0), (17, 13, 1e4)), (190 - 90 * disc**6).astype(np.float32))
    _paint(image, _ellipsoid(points, (0, back - 30, 0), (5, 14, 1e4)), _BONE)
    _paint(image, _ellipsoid(points, (0, back - 21, 0), (9, 7, 1e4)), _WATER + 20)
    kidney = 0.6 * tissue.aorta + 15
    for x in (-56.0, 56.0):
        _paint(image, _ellipsoid(points, (x * size, -38 * size, -48), (21, 18, 44)), kidney)
        _paint(image, _ellipsoid(points, (x * size * 0.9, -36 * size, -48), (8, 9, 26)), _FAT / 2)
    _paint(image, _ellipsoid(points, (-76 * size, -22 * size, 22), (19, 34, 42)), tissue.spleen)
    _paint(image, _ellipsoid(points, (-48 * size, 28 * size, 18), (33, 24, 46)), _MUSCLE)
    _paint(image, _ellipsoid(points, (-48 * size, 28 * size, 18), (29, 20, 42)), _WATER)
    _paint(image, _ellipsoid(points, (-48 * size, 40 * size, 22), (20, 7, 26)), -850)
    _paint(image, _ellipsoid(points, (-9, back + 27, 0), (9, 9, 1e4)), tissue.aorta)
    _paint(image, _ellipsoid(points, (15, back + 28, 0), (10, 8, 1e4)), tissue.liver + 0.5 * tissue.vessel)
    return image


def image_abdomen(
    rng: np.random.Generator,
    shape: tuple[int, int, int],
    affine: NDArray[np.float64],
    tissue: Tissue,
    acquisition: Acquisition,
    *,
    malignant: bool,
) -> Truth:
    """One patient's abdomen as one scanner sees it.

    shape, affine: the scan's grid (I, J, K), index → RAS+ mm. malignant: the kind of the lesions, all alike.
    Returns an image with at least one lesion; intensities between −1024 and 3071 HU.
    """
    spacing = np.linalg.norm(affine[:3, :3], axis=0)
    index = np.indices(shape, dtype=np.float32).reshape(3, -1)
    points = (affine[:3, :3].astype(np.float32) @ index + affine[:3, 3:].astype(np.float32)).reshape(3, *shape)
    size = float(rng.uniform(0.92, 1.05))
    image = _body(rng, points, spacing, tissue, size)
    shift = rng.uniform(-4, 4, 3)
    liver = np.minimum(
        _ellipsoid(points, (52 * size + shift[0], 6 + shift[1], 18 + shift[2]), (48, 56 * size, 78)),
        _ellipsoid(points, (8 + shift[0], 34 * size + shift[1], 26), (46, 24, 48)),
    )
    liver = np.maximum(liver, _ellipsoid(points, (0, 2, 0), (103 * size - 9, 71 * size - 9, 1e4)))
    texture = _smooth_noise(rng, shape, spacing, 7)
    liver_hu = tissue.liver + float(rng.normal(0, 5))
    _paint(image, liver, liver_hu + 5 * texture)
    hilum = np.array([26.0, 2.0, 10.0]) + shift
    for _ in range(6):
        end = hilum + rng.standard_normal(3) * np.array([28, 24, 36])
        vessel = np.maximum(_tube(points, hilum, end, float(rng.uniform(2.2, 3.6))), liver + 2)
        _paint(image, vessel, liver_hu + tissue.vessel)
    mask = np.zeros(shape, bool)
    lesions = _draw_lesions(rng, points, liver, tissue, malignant)
    for lesion in lesions:
        distance = _lesion_distance(points, lesion)
        value = liver_hu + lesion.contrast_hu + 6 * texture
        value = value + lesion.core_hu * np.clip(-(distance + 0.45 * lesion.radius_mm) / 3, 0, 1)
        _paint(image, distance, value.astype(np.float32))
        mask |= distance < 0
    image = ndimage.gaussian_filter(image, acquisition.blur_mm / spacing * np.array([1, 1, 0]))
    noise = _smooth_noise(rng, shape, spacing, 0.8 * acquisition.blur_mm)
    noisy: Field = np.clip(image + acquisition.noise_hu * noise, -1024, 3071).astype(np.float32)
    return Truth(noisy, mask, max((lesion.radius_mm for lesion in lesions), default=0.0))

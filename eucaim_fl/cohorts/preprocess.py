"""A case as the plan wants it: oriented, resampled, normalised, cropped or padded, through MONAI's transforms.

Everything here depends on the case's files and on `preprocessing_key(plan)` only, so results can be kept.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from eucaim_fl.cohorts.manifest import Case
from eucaim_fl.cohorts.volume import LARGEST_VOLUME_BYTES, Volume
from eucaim_fl.config import DataConfig, IntensityConfig
from eucaim_fl.errors import SeriesError
from eucaim_fl.plan import FederationPlan

__all__ = ["FOREGROUND_SAMPLES", "Prepared", "prepare", "preprocessing_key", "summarize_label"]

FOREGROUND_SAMPLES = 256
"""Largest number of labelled voxels kept per case for drawing patches around them."""


@dataclass(frozen=True, eq=False)
class Prepared:
    """One case on the plan's grid.

    image: float32, shape (1, I, J, K), axes as in `data.orientation`. label: uint8, shape (I, J, K), or None.
    target: class index in classification, else None. spacing_mm: along I, J, K.
    foreground_slices: the K that hold a label. foreground_voxels: int64, shape (n, 3), a fixed sample of labelled
    voxels with equal shares for each label value.
    """

    image: npt.NDArray[np.float32]
    label: npt.NDArray[np.uint8] | None
    target: int | None
    spacing_mm: tuple[float, float, float]
    foreground_slices: tuple[int, ...] = ()
    foreground_voxels: npt.NDArray[np.int64] = field(default_factory=lambda: np.zeros((0, 3), np.int64))


def preprocessing_key(plan: FederationPlan) -> str:
    """SHA-256 over the parts of a plan that decide what `prepare` makes of a file: grid, intensities, label names.

    The split, the modality (which selects cases) and the classes (which come from tables) change no tensor.
    """
    parts: dict[str, Any] = plan.data.model_dump(mode="json", exclude={"split", "modality"})
    parts["labels"] = list(plan.task.labels) if plan.task.name == "segmentation" else None
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def summarize_label(label: npt.NDArray[np.uint8]) -> tuple[tuple[int, ...], npt.NDArray[np.int64]]:
    """The slices (along K) that hold a label, and at most FOREGROUND_SAMPLES labelled voxels, shape (n, 3).

    Voxels are taken at equal distances in memory order, the same number for each label value as far as there are any.
    """
    present = [int(value) for value in np.unique(label) if value]
    samples = [np.zeros((0, 3), np.int64)]
    for value in present:
        where = np.argwhere(label == value)
        count = min(len(where), FOREGROUND_SAMPLES // len(present))
        samples.append(where[np.arange(count) * len(where) // max(count, 1)])
    slices = np.flatnonzero(label.any(axis=(0, 1)))
    return tuple(int(k) for k in slices), np.concatenate(samples)


def _check_size(volume: Volume, data: DataConfig) -> None:
    """Refuse a grid that would not fit, before anything is allocated. Axes may swap, so the finest spacing counts."""
    ratio = 1.0
    for wanted in data.spacing_mm:
        ratio *= 1.0 if wanted is None else max(max(volume.spacing_mm) / wanted, 1.0)
    if ratio * volume.array.size * 4 > LARGEST_VOLUME_BYTES:
        raise SeriesError(
            "An image would become too large at the plan's spacing.", fix="Choose a coarser data.spacing_mm."
        )


def _normalise(image: Any, intensity: IntensityConfig) -> Any:
    """Intensities as `IntensityConfig` says. An image of one value becomes 0 (percentile, zscore)."""
    from monai.transforms import NormalizeIntensity, ScaleIntensityRange

    low, high = intensity.low, intensity.high
    if intensity.kind == "zscore":
        values = image.numpy()[image.numpy() != 0].astype(np.float64)
        mean, deviation = (float(values.mean()), float(values.std())) if values.size else (0.0, 0.0)
        return NormalizeIntensity(subtrahend=mean, divisor=deviation or 1.0)(image)
    if intensity.kind == "percentile":
        low, high = (float(v) for v in np.percentile(image.numpy(), [low, high]))
        if high <= low:
            return image * 0.0
    return ScaleIntensityRange(a_min=low, a_max=high, b_min=0.0, b_max=1.0, clip=True)(image)


def _read(case: Case) -> Volume:
    if case.image_format == "dicom":
        from eucaim_fl.cohorts.dicom import read_series

        return read_series(case.image)
    from eucaim_fl.cohorts.nifti import read_nifti

    if len(case.image) != 1:
        raise SeriesError("A NIfTI image consists of several files.", local_detail=str(case.image[0].parent))
    return read_nifti(case.image[0])


def prepare(case: Case, plan: FederationPlan) -> Prepared:
    """Read one case and bring it to the plan's grid and intensities.

    In this order: orientation (axes permuted and flipped), spacing (image linear, label nearest neighbour; axes with
    null keep their own), intensities, crop or pad around the centre. What is padded is 0 after `window` and
    `percentile`, the image's minimum after `zscore`, and background in the label.
    Raises SeriesError, LabelError or UnreadableFileError if the files form no volume, the label doesn't fit, or a file
    can't be read; SeriesError also if the result would be too large.
    """
    from eucaim_fl.cohorts.labels import read_class, read_label

    task = plan.task
    target = read_class(case, task) if task.name == "classification" else None
    volume = _read(case)
    label = read_label(case, volume, task.labels) if task.name == "segmentation" else None
    _check_size(volume, plan.data)

    import torch
    from monai.data import MetaTensor
    from monai.transforms import Orientation, ResizeWithPadOrCrop, Spacing

    data = plan.data
    affine = torch.from_numpy(volume.affine.copy())
    image = MetaTensor(torch.from_numpy(np.ascontiguousarray(volume.array))[None], affine=affine)
    mask = None if label is None else MetaTensor(torch.from_numpy(label)[None], affine=affine)
    orient = Orientation(axcodes=data.orientation, labels=(("L", "R"), ("P", "A"), ("I", "S")))
    # MONAI keeps an axis' own spacing where it is asked for a spacing that isn't positive.
    wanted = [-1.0 if mm is None else mm for mm in data.spacing_mm]
    resample = Spacing(pixdim=wanted) if max(wanted) > 0 else None
    image, mask = orient(image), None if mask is None else orient(mask)
    if resample is not None:
        image = resample(image, mode="bilinear")
        mask = None if mask is None else resample(mask, mode="nearest")
    spacing = np.linalg.norm(np.asarray(image.affine, dtype=np.float64)[:3, :3], axis=0)
    image = _normalise(image, data.intensity)
    if any(n is not None for n in data.size_voxels):
        size = [n or own for n, own in zip(data.size_voxels, image.shape[1:], strict=True)]
        filling = float(image.min()) if data.intensity.kind == "zscore" else 0.0
        image = ResizeWithPadOrCrop(spatial_size=size, value=filling)(image)
        mask = None if mask is None else ResizeWithPadOrCrop(spatial_size=size)(mask)
    pixels = np.ascontiguousarray(image.numpy(), dtype=np.float32)
    i, j, k = (round(float(mm), 6) for mm in spacing)
    if mask is None:
        return Prepared(pixels, None, target, (i, j, k))
    final = np.ascontiguousarray(mask.numpy()[0].round(), dtype=np.uint8)
    return Prepared(pixels, final, target, (i, j, k), *summarize_label(final))

"""A case as the plan wants it: oriented, resampled, normalised, cropped or padded, through MONAI's transforms.

Everything here depends on the case's files and on `preprocessing_key(plan)` only, so results can be kept.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, cast

import numpy as np
import numpy.typing as npt

from eucaim_fl.cohorts.case_image import read_case, read_case_colours
from eucaim_fl.cohorts.deidentification.burned_in import text_in_volume
from eucaim_fl.cohorts.manifest import Case
from eucaim_fl.cohorts.volume import LARGEST_VOLUME_BYTES, Affine, Volume
from eucaim_fl.config import DataConfig, IntensityConfig
from eucaim_fl.errors import SeriesError
from eucaim_fl.plan import FederationPlan

__all__ = ["FOREGROUND_SAMPLES", "Prepared", "onto_grid", "prepare", "preprocessing_key", "summarize_label"]

FOREGROUND_SAMPLES = 256
"""Largest number of labelled voxels kept per case for drawing patches around them."""

BoolArray = npt.NDArray[np.bool_]
_LEAST_OVERLAP = 0.5


@dataclass(frozen=True, eq=False)
class Prepared:
    """One case on the plan's grid.

    image: float32, shape (C, I, J, K), channels in the plan's order, axes as in `data.orientation`.
    label: uint8, shape (I, J, K), or None.
    target: class index in classification, else None. spacing_mm: along I, J, K.
    foreground_slices: the K that hold a label. foreground_voxels: int64, shape (n, 3), a fixed sample of labelled
    voxels with equal shares for each label value. text: whether a channel's image seems to hold written text.
    """

    image: npt.NDArray[np.float32]
    label: npt.NDArray[np.uint8] | None
    target: int | None
    spacing_mm: tuple[float, float, float]
    foreground_slices: tuple[int, ...] = ()
    foreground_voxels: npt.NDArray[np.int64] = field(default_factory=lambda: np.zeros((0, 3), np.int64))
    text: bool = False


def preprocessing_key(plan: FederationPlan) -> str:
    """SHA-256 over the parts of a plan that decide what `prepare` makes of files.

    These are grid, intensities, number of channels and colour; in segmentation also the labels' names and whether
    labels may be resampled. The split, the classes (which come from tables), the modality and the channels' rules
    (which choose the files) change no tensor of the same files.
    """
    grid = {"orientation", "spacing_mm", "size_voxels", "intensity"}
    parts: dict[str, Any] = plan.data.model_dump(mode="json", include=grid)
    parts["channels"] = plan.data.number_of_channels()
    if plan.data.colour:
        parts["colour"] = True
    if plan.task.name == "segmentation":
        parts["labels"] = list(plan.task.labels)
        parts["labels_on_other_grid"] = plan.data.labels_on_other_grid
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
    ratio = float(data.number_of_channels())
    for wanted in data.spacing_mm:
        ratio *= 1.0 if wanted is None else max(max(volume.spacing_mm) / wanted, 1.0)
    if ratio * volume.array.size * 4 > LARGEST_VOLUME_BYTES:
        raise SeriesError(
            "An image would become too large at the plan's spacing.", fix="Choose a coarser data.spacing_mm."
        )


def _scaling(values: npt.NDArray[np.float32], intensity: IntensityConfig) -> Callable[[Any], Any]:
    """What brings intensities to where `IntensityConfig` wants them, by the statistics of `values`.

    An image of one value becomes 0 (percentile, zscore).
    """
    from monai.transforms import NormalizeIntensity, ScaleIntensityRange

    low, high = intensity.low, intensity.high
    if intensity.kind == "zscore":
        counted = values[values != 0].astype(np.float64)
        mean, deviation = (float(counted.mean()), float(counted.std())) if counted.size else (0.0, 0.0)
        return cast("Callable[[Any], Any]", NormalizeIntensity(subtrahend=mean, divisor=deviation or 1.0))
    if intensity.kind == "percentile":
        low, high = (float(v) for v in np.percentile(values, [low, high]))
        if high <= low:
            return lambda image: image * 0.0
    return cast("Callable[[Any], Any]", ScaleIntensityRange(a_min=low, a_max=high, b_min=0.0, b_max=1.0, clip=True))


def _upright(case: Case, volume: Volume, plan: FederationPlan) -> tuple[Volume, npt.NDArray[np.uint8] | None]:
    """The first channel's image and its label, if the task has one; slices that lean are put upright."""
    from eucaim_fl.cohorts.labels import read_label
    from eucaim_fl.cohorts.labels.grids import resampled
    from eucaim_fl.cohorts.volume import is_sheared, straighten

    label = None
    if plan.task.name == "segmentation":
        resample = plan.data.labels_on_other_grid == "resample"
        label = read_label(case, volume, plan.task.labels, resample=resample)
    if not is_sheared(volume):
        return volume, label
    upright = straighten(volume)
    if label is not None:
        label = resampled(label, volume.affine, upright, str(case.image[0].parent))
    return upright, label


def _same_frame_of_reference(case: Case, other: Case) -> None:
    stated = {c.facts.frame_of_reference for c in (case, other) if c.facts is not None} - {""}
    if len(stated) > 1:
        raise SeriesError(
            "The channels of a patient have different frames of reference, so their positions can't be compared.",
            fix="Register them before, or leave one out.",
            local_detail=f"series {case.series} and {other.series}",
        )


def onto_grid(volume: Volume, shape: Sequence[int], affine: Affine) -> tuple[npt.NDArray[np.float32], BoolArray]:
    """An image on another grid by stated position: values (interpolated linearly), and where the image covers the grid.

    shape, affine: of the grid, index → RAS+ mm. A voxel is covered if its centre lies in a voxel of the image, so up to
    half of one beyond the outer centres; there, and where nothing is covered, the value at the edge is continued.
    """
    from scipy import ndimage

    to_image = np.linalg.inv(volume.affine) @ affine
    place: dict[str, Any] = {"matrix": to_image[:3, :3], "offset": to_image[:3, 3], "output_shape": tuple(shape)}
    values = ndimage.affine_transform(volume.array, order=1, mode="nearest", output=np.float32, **place)
    inside = ndimage.affine_transform(
        np.ones(volume.shape, np.uint8), order=0, mode="grid-constant", cval=0, output=np.uint8, **place
    )
    return values, inside.astype(bool)


def _channel(
    case: Case, volume: Volume, like: Any, kept: BoolArray, data: DataConfig
) -> tuple[npt.NDArray[np.float32], bool]:
    """A further channel, (I, J, K), on the grid of `like`, a MetaTensor (1, I, J, K), and whether it shows text.

    volume: its image, as read from `case`. kept: what isn't padding.
    """
    import torch

    values, covered = onto_grid(volume, like.shape[1:], np.asarray(like.affine, dtype=np.float64))
    if np.count_nonzero(covered & kept) < _LEAST_OVERLAP * np.count_nonzero(kept):
        raise SeriesError(
            "The channels of a patient show different places: one covers less than half of the first.",
            local_detail=f"series {case.series}",
        )
    scale = _scaling(volume.array, data.intensity)
    filling = float(scale(torch.from_numpy(volume.array)).min()) if data.intensity.kind == "zscore" else 0.0
    scaled: npt.NDArray[np.float32] = np.asarray(scale(torch.from_numpy(values)).numpy(), dtype=np.float32)
    return np.where(covered, scaled, np.float32(filling)), text_in_volume(volume.array, case.modality)


def prepare(case: Case, plan: FederationPlan) -> Prepared:
    """Read one case and bring it to the plan's grid and intensities.

    The first channel in this order: orientation (axes permuted and flipped), spacing (image linear, label nearest
    neighbour; axes with null keep their own), intensities, crop or pad around the centre. What is padded is 0 after
    `window` and `percentile`, the image's minimum after `zscore`, and background in the label.
    Further channels (other series, or an image's green and blue) are interpolated linearly onto the resulting grid by
    their stated position; their intensities are scaled by the statistics of their own whole image, and what they do not
    cover is filled like padding.
    An image of slices that lean (gantry tilt) is put upright first, and its label with it (nearest neighbour).
    Raises SeriesError, LabelError or UnreadableFileError if the files form no volume, the label doesn't fit, or a file
    can't be read; SeriesError also if the result would be too large, a channel is missing, states another frame of
    reference than the first, or covers less than half of what the plan keeps of it.
    """
    from eucaim_fl.cohorts.labels import read_class

    data = plan.data
    if len(case.further) != max(0, len(data.channels) - 1):
        raise SeriesError("A channel of a patient is missing.", local_detail=case.series)
    for other in case.further:
        _same_frame_of_reference(case, other)
    target = read_class(case, plan.task) if plan.task.name == "classification" else None
    first_image, *colours = read_case_colours(case) if data.colour else (read_case(case),)
    volume, label = _upright(case, first_image, plan)
    _check_size(volume, data)
    seen = text_in_volume(volume.array, case.modality)

    import torch
    from monai.data import MetaTensor
    from monai.transforms import Orientation, ResizeWithPadOrCrop, Spacing

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
    image = _scaling(image.numpy(), data.intensity)(image)
    kept = torch.ones(image.shape, dtype=torch.uint8)
    size = tuple(n or own for n, own in zip(data.size_voxels, image.shape[1:], strict=True))
    if size != tuple(image.shape[1:]):
        filling = float(image.min()) if data.intensity.kind == "zscore" else 0.0
        image = ResizeWithPadOrCrop(spatial_size=size, value=filling)(image)
        mask = None if mask is None else ResizeWithPadOrCrop(spatial_size=size)(mask)
        kept = ResizeWithPadOrCrop(spatial_size=size)(kept) if data.number_of_channels() > 1 else kept
    first = np.ascontiguousarray(image.numpy(), dtype=np.float32)
    own = np.asarray(kept[0]).astype(bool)
    others = [_channel(case, colour, image, own, data) for colour in colours]
    others += [_channel(other, read_case(other), image, own, data) for other in case.further]
    pixels = np.concatenate([first, *(channel[None] for channel, _ in others)]) if others else first
    text = seen or any(shows for _, shows in others)
    i, j, k = (round(float(mm), 6) for mm in spacing)
    if mask is None:
        return Prepared(pixels, None, target, (i, j, k), text=text)
    final = np.ascontiguousarray(mask.numpy()[0].round(), dtype=np.uint8)
    return Prepared(pixels, final, target, (i, j, k), *summarize_label(final), text=text)

"""One patient's results of a segmentation, from masks: overlap, surfaces, volumes, lesions."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from eucaim_fl.errors import DataError
from eucaim_fl.validation.lesions import lesion_counts, volume_ml
from eucaim_fl.validation.metrics import dice
from eucaim_fl.validation.surface import surface_figures

__all__ = ["mask_results", "merged_images"]

_MEANS = ("dice", "hd95_mm", "surface_dice")


def mask_results(
    found: NDArray[np.integer[Any]],
    truth: NDArray[np.integer[Any]],
    spacing_mm: tuple[float, float, float],
    labels: Sequence[str],
    *,
    tolerance_mm: float,
    overlap: float,
) -> dict[str, float]:
    """What `patient_figures.Results` holds of one image of a segmentation.

    found, truth: shape (I, J, K), same grid, 0 background and 1, 2, … the labels in their order. spacing_mm: of I, J
    and K. tolerance_mm: of the surface Dice. overlap: IoU from which a lesion counts as found.
    Of several labels each value has `_LABEL` behind it; without a label stand the means over labels for which Dice,
    HD95 and surface Dice are defined, and the sums of volumes and lesions.
    Raises DataError if shapes differ, or spacing, tolerance or overlap are out of their range.
    """
    if found.shape != truth.shape:
        raise DataError(f"A mask of shape {found.shape} can't be compared with one of shape {truth.shape}.")
    each = []
    for number, _ in enumerate(labels, start=1):
        here, there = found == number, truth == number
        lesions = lesion_counts(here, there, overlap)
        hd95_mm, surface_dice = surface_figures(here, there, spacing_mm, tolerance_mm)
        each.append(
            {
                "dice": dice(here, there),
                "hd95_mm": hd95_mm,
                "surface_dice": surface_dice,
                "found_ml": volume_ml(here, spacing_mm),
                "true_ml": volume_ml(there, spacing_mm),
                "lesions_true": float(lesions.true),
                "lesions_found": float(lesions.found),
                "lesions_false": float(lesions.false),
            }
        )
    if len(labels) == 1:
        return each[0]
    named = {f"{name}_{label}": value for label, one in zip(labels, each, strict=True) for name, value in one.items()}
    return merged_images(each) | named


def merged_images(images: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """One patient's results from those of the patient's images: means of Dice, HD95 and surface Dice over the images in
    which they are defined, NaN where in none; sums of volumes and lesions.

    >>> merged_images([{"dice": 0.5, "true_ml": 1.0}, {"dice": float("nan"), "true_ml": 2.0}])
    {'dice': 0.5, 'true_ml': 3.0}
    """
    found = {}
    for name in images[0] if images else ():
        column = [one[name] for one in images]
        if name.startswith(_MEANS):
            defined = [value for value in column if not math.isnan(value)]
            found[name] = math.fsum(defined) / len(defined) if defined else math.nan
        else:
            found[name] = math.fsum(column)
    return found

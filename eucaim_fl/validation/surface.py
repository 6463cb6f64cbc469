"""How far two surfaces lie from each other, and how much of them lies within a tolerance."""

from __future__ import annotations

import math
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from eucaim_fl.errors import DataError
from eucaim_fl.validation.metrics import hd95_of, surface_distances

__all__ = ["surface_dice", "surface_figures"]

BoolArray: TypeAlias = NDArray[np.bool_]
FloatArray: TypeAlias = NDArray[np.float64]


def surface_dice(pred: BoolArray, truth: BoolArray, spacing_mm: tuple[float, ...], tolerance_mm: float) -> float:
    """Normalised surface Dice: (|∂P within τ of ∂T| + |∂T within τ of ∂P|) / (|∂P| + |∂T|).

    Surfaces are surface voxels, each of which counts the same, and distances those between their centres, as in
    `metrics.hd95_mm`. (Nikolov et al. weigh pieces of a mesh by their area; on grids whose voxels are far from cubes
    the two differ.) A distance of exactly the tolerance is within it.
    pred, truth: bool, shape (I, J, K) or (I, J), same grid. spacing_mm: voxel size in mm along the same axes.
    tolerance_mm: τ, by how much experts differ.
    Returns a value in [0, 1]; NaN when both are empty, so the caller must count that as not defined; 0 when one is.
    Raises DataError if the shapes differ, spacing is not one positive number per axis, or the tolerance is negative or
    not finite.
    Source: Nikolov et al. 2018 (arXiv 1809.04430) and 2021, Clinically Applicable Segmentation of Head and Neck Anatomy
    for Radiotherapy; empty masks as in Metrics Reloaded (Maier-Hein et al. 2024).

    >>> line = np.zeros((1, 6), bool)
    >>> a, b = line.copy(), line.copy()
    >>> a[0, :3], b[0, :4] = True, True
    >>> round(surface_dice(a, b, (1.0, 1.0), 0.5), 6), surface_dice(a, b, (1.0, 1.0), 1.0)
    (0.857143, 1.0)
    """
    return surface_figures(pred, truth, spacing_mm, tolerance_mm)[1]


def surface_figures(
    pred: BoolArray, truth: BoolArray, spacing_mm: tuple[float, ...], tolerance_mm: float
) -> tuple[float, float]:
    """HD95 in mm as `metrics.hd95_mm` has it, and `surface_dice`, from surfaces and distances that are found once.

    Raises DataError as `surface_dice` does.
    """
    if not (math.isfinite(tolerance_mm) and tolerance_mm >= 0):
        raise DataError("The tolerance of a surface must be a number of mm from 0.")
    to_truth, to_pred = surface_distances(pred, truth, spacing_mm)
    diagonal = math.hypot(*(size * mm for size, mm in zip(pred.shape, spacing_mm, strict=True)))
    return hd95_of(to_truth, to_pred, diagonal), _within(to_truth, to_pred, tolerance_mm)


def _within(to_truth: FloatArray, to_pred: FloatArray, tolerance_mm: float) -> float:
    if not len(to_truth) and not len(to_pred):
        return math.nan
    reach = tolerance_mm * (1 + 1e-9)
    within = int(np.count_nonzero(to_truth <= reach)) + int(np.count_nonzero(to_pred <= reach))
    return within / (len(to_truth) + len(to_pred))

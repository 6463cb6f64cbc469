"""Lesions of one image: its connected parts, how many were found, how many were not there, and their volume."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage, sparse
from scipy.sparse.csgraph import maximum_bipartite_matching

from eucaim_fl.errors import DataError

__all__ = ["LesionCounts", "components", "lesion_counts", "volume_ml"]

BoolArray: TypeAlias = NDArray[np.bool_]


@dataclass(frozen=True)
class LesionCounts:
    """Numbers of lesions of one image. true: in the reference. found: of these. false: predicted, but not there."""

    true: int
    found: int
    false: int

    @property
    def sensitivity(self) -> float:
        """found / true; NaN without a true lesion, so the caller must decide."""
        return self.found / self.true if self.true else math.nan


def components(mask: BoolArray) -> tuple[NDArray[np.int32], int]:
    """The connected parts of a mask: 0 outside, 1 … n in them, of the mask's shape; and n.

    Voxels are neighbours by face, edge and corner (26 of them in 3-D, 8 in 2-D), as lesions are counted in the field.
    mask: bool, shape (I, J, K) or (I, J).
    Source: Metrics Reloaded (Maier-Hein et al. 2024), object detection from masks; the connectivity is that of LUNA16
    and of the BraTS and autoPET lesion-wise measures.

    >>> components(np.array([[True, False, False], [False, True, False], [False, False, False]]))[1]
    1
    """
    numbered, count = ndimage.label(mask, structure=np.ones((3,) * mask.ndim))
    return np.asarray(numbered, dtype=np.int32), int(count)


def lesion_counts(pred: BoolArray, truth: BoolArray, overlap: float) -> LesionCounts:
    """True lesions, those found, and false ones: connected parts, matched one to one where IoU = |P∩T| / |P∪T| is large
    enough.

    Of all ways to match, one with most pairs counts, so no predicted part finds two lesions and of two parts over one
    lesion the second is false. Nothing is matched without a common voxel.
    pred, truth: bool, shape (I, J, K) or (I, J), same grid. overlap: least intersection over union, in (0, 1].
    Raises DataError if the shapes differ or overlap is not in (0, 1].
    Source: Metrics Reloaded (Maier-Hein et al. 2024): mask IoU as localisation criterion, assignment by Hungarian
    matching (Kuhn 1955), surplus predictions as false positives.

    >>> truth = np.array([[True, True, False, False, True]])
    >>> lesion_counts(np.array([[True, False, False, True, False]]), truth, 0.5)
    LesionCounts(true=2, found=1, false=1)
    >>> lesion_counts(np.array([[True, False, True, False, False]]), truth, 0.6)
    LesionCounts(true=2, found=0, false=2)
    """
    if pred.shape != truth.shape:
        raise DataError(f"A mask of shape {pred.shape} can't be compared with one of shape {truth.shape}.")
    if not 0 < overlap <= 1:
        raise DataError("The overlap from which a lesion counts as found must be above 0 and at most 1.")
    (predicted, n), (real, m) = components(pred), components(truth)
    if not n or not m:
        return LesionCounts(m, 0, n)
    sizes = np.bincount(predicted.ravel(), minlength=n + 1), np.bincount(real.ravel(), minlength=m + 1)
    both = (predicted > 0) & (real > 0)
    pairs, common = np.unique(predicted[both].astype(np.int64) * (m + 1) + real[both], return_counts=True)
    rows, columns = np.divmod(pairs, m + 1)
    union = sizes[0][rows] + sizes[1][columns] - common
    enough = common >= overlap * union * (1 - 1e-12)
    ones = np.ones(int(enough.sum()), dtype=np.int8)
    graph = sparse.csr_array((ones, (rows[enough] - 1, columns[enough] - 1)), shape=(n, m))
    found = int((maximum_bipartite_matching(graph, perm_type="column") >= 0).sum())
    return LesionCounts(m, found, n - found)


def volume_ml(mask: BoolArray, spacing_mm: tuple[float, ...]) -> float:
    """Volume of a mask in ml: its voxels times the product of the spacing, over 1000.

    mask: bool, shape (I, J, K). spacing_mm: voxel size in mm along the same axes.
    Raises DataError if spacing is not one positive number per axis.

    >>> volume_ml(np.ones((10, 10, 5), bool), (1.0, 1.0, 2.0))
    1.0
    """
    if len(spacing_mm) != mask.ndim or not all(math.isfinite(s) and s > 0 for s in spacing_mm):
        raise DataError("Spacing must be one positive number for each axis of the mask.")
    return int(np.count_nonzero(mask)) * math.prod(spacing_mm) / 1000

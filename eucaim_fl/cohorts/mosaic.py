"""Siemens mosaics: all slices of one volume side by side in one plane.

Source: nibabel.nicom (theory of the mosaic's position, reading of the private CSA header).
"""

from __future__ import annotations

import math
import warnings
from typing import Any

import numpy as np
import numpy.typing as npt

from eucaim_fl.cohorts.volume import Affine
from eucaim_fl.errors import SeriesError

__all__ = ["unpack_mosaic"]


def unpack_mosaic(header: Any, pixels: npt.NDArray[Any]) -> tuple[npt.NDArray[Any], Affine]:
    """Slices of one mosaic, shape (slices, rows, columns), and voxel index (column, row, slice, 1) → RAS+ mm.

    header: its Dataset with the private elements. pixels: the stored plane. Empty tiles at the end are left out.
    Raises SeriesError if the private header that says how many slices there are, and which way they follow each
    other, is missing or doesn't fit the plane.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # nibabel says of itself that it is experimental; test_mosaic has the proof
            from nibabel.nicom.dicomwrappers import MosaicWrapper

            wrapper = MosaicWrapper(header)
            count, affine = int(wrapper.n_mosaic), np.array(wrapper.affine, dtype=np.float64)
        tiles = math.isqrt(count - 1) + 1 if count > 0 else 0
        if not tiles or pixels.shape[0] % tiles or pixels.shape[1] % tiles or affine.shape != (4, 4):
            raise ValueError(f"{count} slices in a plane of {pixels.shape}")
    except Exception as problem:  # noqa: BLE001 - the private header may hold anything
        raise SeriesError(
            "A mosaic image holds many slices in one plane, and its private header does not say how to part them.",
            fix="Export it unpacked, with one file a slice, or keep the scanner's private elements.",
            local_detail=str(problem),
        ) from None
    rows, columns = pixels.shape[0] // tiles, pixels.shape[1] // tiles
    parted = pixels.reshape(tiles, rows, tiles, columns).transpose(0, 2, 1, 3).reshape(-1, rows, columns)
    affine = affine[:, [1, 0, 2, 3]]  # nibabel's index is (row, column, slice)
    affine[:2] *= -1  # LPS+ → RAS+
    return parted[:count], affine

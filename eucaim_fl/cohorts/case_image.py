"""The image of a case: one volume, or red, green and blue, from DICOM or NIfTI."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from eucaim_fl.cohorts.manifest import Case
from eucaim_fl.cohorts.volume import LUMINANCE, Volume
from eucaim_fl.errors import SeriesError

__all__ = ["has_colours", "is_grey", "luminance", "read_case", "read_case_colours"]


def has_colours(case: Case) -> bool:
    """Whether the headers of a case's image state red, green and blue (or their like) for each pixel."""
    return case.facts is not None and case.facts.samples == 3


def is_grey(case: Case) -> bool:
    """Whether the headers of a case's image state one value a pixel (which may be a colour's number in a palette)."""
    return case.facts is not None and case.facts.samples == 1


def luminance(colours: Sequence[Volume]) -> Volume:
    """0.299 R + 0.587 G + 0.114 B, on the grid of the first."""
    weights = np.array(LUMINANCE, np.float32)
    grey = sum(weight * colour.array for weight, colour in zip(weights, colours, strict=True))
    return Volume(np.asarray(grey, dtype=np.float32), colours[0].affine)


def read_case(case: Case) -> Volume:
    """A case's image, colours as their luminance.

    Raises SeriesError or UnreadableFileError as `dicom.read_series` and `nifti.read_nifti` do, and SeriesError if it is
    of several NIfTI files.
    """
    if case.image_format == "dicom":
        from eucaim_fl.cohorts.dicom import read_series

        return read_series(case.image, stack=case.stack)
    from eucaim_fl.cohorts.nifti import read_nifti

    return read_nifti(_only_file(case))


def read_case_colours(case: Case) -> tuple[Volume, Volume, Volume]:
    """Red, green and blue of a case's image, each 0 to 255.

    Raises SeriesError or UnreadableFileError as `dicom.read_colours` and `nifti.read_colours` do, and SeriesError if it
    is of several NIfTI files.
    """
    if case.image_format == "dicom":
        from eucaim_fl.cohorts.dicom import read_colours

        return read_colours(case.image, stack=case.stack)
    from eucaim_fl.cohorts.nifti import read_colours as read_nifti_colours

    return read_nifti_colours(_only_file(case))


def _only_file(case: Case) -> Path:
    if len(case.image) != 1:
        raise SeriesError("A NIfTI image consists of several files.", local_detail=str(case.image[0].parent))
    return case.image[0]

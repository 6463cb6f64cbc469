"""A case's label on its image's grid, whatever format it is stored in."""

from __future__ import annotations

from collections.abc import Sequence

from eucaim_fl.cohorts.labels.grids import LabelArray, Target
from eucaim_fl.cohorts.labels.masks import read_mask
from eucaim_fl.cohorts.labels.rtstruct import read_structures
from eucaim_fl.cohorts.labels.seg import read_seg
from eucaim_fl.cohorts.manifest import Case
from eucaim_fl.cohorts.volume import Volume
from eucaim_fl.errors import LabelError

__all__ = ["read_label"]

_READERS = {"dicom_seg": read_seg, "rtstruct": read_structures, "nifti": read_mask}


def read_label(case: Case, image: Volume, labels: Sequence[str], *, resample: bool = False) -> LabelArray:
    """The case's label on its image's grid: uint8, shape (I, J, K); 0 is background, i is `labels[i - 1]`.

    DICOM SEG: segments go by their SegmentLabel, regardless of case; where none fits, by the meaning of their property
    type's code. RTSTRUCT: structures go by their ROIName; a voxel belongs to one if its centre lies inside its
    contours. What has other names is left out; where two overlap, the later one in `labels` wins; fractional segments
    count from half of their maximum. NIfTI: value i is label i.
    Axes that are permuted or flipped against the image's are turned. resample: a label on other voxels is brought to
    the image's by its stated position, each voxel taking what lies at its centre (nearest neighbour; fractional
    segments are interpolated linearly); what lies outside the image is cut off. A label without any voxel is all 0.
    Raises LabelError if there is no label, its frame of reference is not the image's (where both are known), its grid
    is not the image's (without `resample`), it lies outside the image, a value is not known, or no segment is; and
    UnreadableFileError if a file is missing, truncated or corrupt.
    """
    if not case.label or case.label_format is None:
        raise LabelError("A patient's image has no label.", local_detail=f"{case.patient} {case.series}")
    frame_of_reference = "" if case.facts is None else case.facts.frame_of_reference
    return _READERS[case.label_format](case.label, Target(image, frame_of_reference, resample), labels)

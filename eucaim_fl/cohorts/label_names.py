"""Which labels a case's label files hold, whatever they are called: for a look at a cohort without a plan."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import numpy.typing as npt

from eucaim_fl.cohorts.manifest import Case
from eucaim_fl.cohorts.volume import Volume
from eucaim_fl.errors import LabelError

__all__ = ["MOST_NAMES", "label_names", "read_every_label"]

MOST_NAMES = 255
"""Label values of one case at most; further ones are left out."""


def label_names(case: Case) -> tuple[str, ...]:
    """Plain names of the segments or structures in a case's label files, in the order of the files, each once.

    A NIfTI mask has no names: `segment_1` and so on up to its largest value, at least one.
    Raises LabelError if there is no label, or none in it has a name; and UnreadableFileError if a file is missing,
    truncated or corrupt.
    """
    if not case.label or case.label_format is None:
        raise LabelError("A patient's image has no label.", local_detail=f"{case.patient} {case.series}")
    found = tuple(dict.fromkeys(filter(None, _names(case))))[:MOST_NAMES]
    if not found:
        raise LabelError("Nothing in a label has a name.", local_detail=str(case.label[0]))
    return found


def _names(case: Case) -> Iterable[str]:
    if case.label_format == "dicom_seg":
        from eucaim_fl.cohorts.labels.segments import read_segmentation

        return [s.label or s.meaning for path in case.label for s in read_segmentation(path).segments]
    if case.label_format == "rtstruct":
        from eucaim_fl.cohorts.labels.contours import read_contours

        return [name for path in case.label for name in read_contours(path, ())[1]]
    from eucaim_fl.cohorts.nifti import read_array

    largest = max(float(np.fmax.reduce(read_array(path)[0], axis=None)) for path in case.label)
    largest = 1.0 if np.isnan(largest) else largest
    return [f"segment_{value}" for value in range(1, 1 + int(np.clip(largest, 1, MOST_NAMES)))]


def read_every_label(case: Case, image: Volume) -> tuple[tuple[str, ...], npt.NDArray[np.uint8]]:
    """Names, and the label on the image's grid: uint8, shape (I, J, K), value i is name i - 1; later ones win.

    A structure that can't be used (points, open lines) leaves the others as they are.
    Raises LabelError if none can be used, or as `label_names` does; UnreadableFileError if a file can't be read.
    """
    from eucaim_fl.cohorts.labels import read_label

    names = label_names(case)
    try:
        return names, read_label(case, image, names)
    except LabelError:
        if len(names) == 1 or case.label_format == "nifti":
            raise
    result: npt.NDArray[np.uint8] | None = None
    problem: LabelError | None = None
    for value, name in enumerate(names, start=1):
        try:
            one = read_label(case, image, (name,))
        except LabelError as error:
            problem = error
            continue
        result = np.zeros(image.shape, np.uint8) if result is None else result
        result[one > 0] = value
    if result is None:
        raise problem or LabelError("Nothing in a label can be used.", local_detail=str(case.label[0]))
    return names, result

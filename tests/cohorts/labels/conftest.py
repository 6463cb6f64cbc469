"""Structure sets, altered segmentations, and the real files that labels are compared with."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pydicom
import pytest
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian, RTStructureSetStorage
from pydicom.valuerep import format_number_as_ds

from eucaim_fl.cohorts.facts import SeriesFacts
from eucaim_fl.cohorts.manifest import Case
from eucaim_fl.cohorts.volume import Volume


def write_structures(
    path: Path,
    structures: Mapping[str, Sequence[np.ndarray]],
    *,
    frame: str = "1.2.3.9",
    kinds: Sequence[str] = ("CLOSED_PLANAR",),
    syntax: str = ExplicitVRLittleEndian,
) -> Path:
    """RT structure set: name → contours, each (n, 3) in LPS+ mm. kinds: geometric types, used in turn."""
    ds = Dataset()
    ds.SOPClassUID, ds.SOPInstanceUID = RTStructureSetStorage, "1.2.3.88.1"
    ds.PatientID, ds.PatientName, ds.StudyInstanceUID, ds.SeriesInstanceUID = "P1", "", "1.2.3", "1.2.3.88"
    ds.Modality, ds.StructureSetLabel = "RTSTRUCT", "demo"
    ds.StructureSetROISequence, ds.ROIContourSequence = [], []
    for number, (name, contours) in enumerate(structures.items(), start=1):
        roi = Dataset()
        roi.ROINumber, roi.ReferencedFrameOfReferenceUID, roi.ROIName = number, frame, name
        ds.StructureSetROISequence.append(roi)
        drawn = Dataset()
        drawn.ReferencedROINumber, drawn.ROIDisplayColor = number, [255, 0, 0]
        if len(contours):
            drawn.ContourSequence = []
        for index, points in enumerate(contours):
            contour = Dataset()
            contour.ContourGeometricType = kinds[index % len(kinds)]
            contour.NumberOfContourPoints = len(points)
            contour.ContourData = [format_number_as_ds(float(x)) for x in np.asarray(points).reshape(-1)]
            drawn.ContourSequence.append(contour)
        ds.ROIContourSequence.append(drawn)
    ds.file_meta = FileMetaDataset()
    ds.file_meta.MediaStorageSOPClassUID, ds.file_meta.MediaStorageSOPInstanceUID = ds.SOPClassUID, ds.SOPInstanceUID
    ds.file_meta.TransferSyntaxUID = syntax
    path.parent.mkdir(parents=True, exist_ok=True)
    ds.save_as(path, enforce_file_format=True)
    return path


def to_lps(image: Volume, indices: Sequence[Sequence[float]]) -> np.ndarray:
    """Image indices (n, 3) as LPS+ mm."""
    placed = np.asarray(indices, float) @ image.affine[:3, :3].T + image.affine[:3, 3]
    return placed * (-1, -1, 1)


def rectangle(image: Volume, slice_: float, i: tuple[float, float], j: tuple[float, float]) -> np.ndarray:
    """A rectangle in a slice of constant K, in LPS+ mm; i, j: first and last index of its corners."""
    return to_lps(image, [(i[0], j[0], slice_), (i[1], j[0], slice_), (i[1], j[1], slice_), (i[0], j[1], slice_)])


def alter(path: Path, change: Callable[[Dataset], None], *, to: Path | None = None) -> Path:
    """The file again, with its data set changed."""
    ds = pydicom.dcmread(path)
    change(ds)
    ds.save_as(to or path)
    return to or path


def make_case(
    label: Sequence[Path] = (), label_format: Any = None, *, frame: str | None = None, **clinical: str
) -> Case:
    facts = None if frame is None else SeriesFacts(folder="", files=(), kind="dicom", frame_of_reference=frame)
    return Case("P1", "S", "X", (), "dicom", tuple(label), label_format, clinical, facts=facts)


def volume(shape: tuple[int, int, int], affine: np.ndarray | None = None) -> Volume:
    """An empty image; without an affine, 1 mm voxels with the origin in the first one."""
    return Volume(np.zeros(shape, np.float32), np.eye(4) if affine is None else np.asarray(affine, float))


@pytest.fixture(scope="session")
def made() -> SimpleNamespace:
    """The makers of this folder, as one namespace."""
    return SimpleNamespace(
        structures=write_structures,
        to_lps=to_lps,
        rectangle=rectangle,
        alter=alter,
        case=make_case,
        volume=volume,
    )


@pytest.fixture(scope="session")
def conformance() -> Path:
    """Real DICOM files of several makers, kept outside the repository."""
    root = os.environ.get("EUCAIM_FL_SHARED_DATA") or Path(__file__).parents[4] / "shared" / "data"
    folder = Path(root) / "dicom_conformance"
    if not folder.is_dir():
        pytest.skip("the shared data set dicom_conformance is not here")
    return folder

"""Tiny cohorts in real formats: a few slices of a few voxels, made anew for each test."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import nibabel as nib
import numpy as np
import pydicom
import pytest
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, MRImageStorage

from eucaim_fl.plan import FederationPlan
from eucaim_fl.sitefile import SiteFile

AXIAL = (1.0, 0.0, 0.0, 0.0, 1.0, 0.0)
RAS_MM = np.diag([-2.0, -2.0, 3.0, 1.0])


def write_series(
    folder: Path,
    stored: np.ndarray,
    *,
    orientation: Sequence[float] = AXIAL,
    origin: Sequence[float] = (10.0, -20.0, 30.0),
    spacing: tuple[float, float] = (2.0, 2.0),
    step: float = 3.0,
    uid: str = "1.2.3.4",
    modality: str = "CT",
    order: Sequence[int] | None = None,
    syntax: str = ExplicitVRLittleEndian,
    **attributes: Any,
) -> list[Path]:
    """One file a slice. stored: integers, shape (slices, rows, columns); slice 0 lies at `origin` (LPS+ mm).

    order: names of files run in this order of slices. attributes: any others, for every slice.
    """
    folder.mkdir(parents=True, exist_ok=True)
    normal = np.cross(orientation[:3], orientation[3:])
    files = []
    for number, index in enumerate(order or range(len(stored))):
        ds = Dataset()
        ds.SOPClassUID = CTImageStorage if modality == "CT" else MRImageStorage
        ds.SOPInstanceUID = f"{uid}.{index + 1}"
        ds.PatientID, ds.PatientName, ds.PatientBirthDate, ds.PatientSex = "P1", "", "", ""
        ds.StudyInstanceUID, ds.StudyID, ds.StudyDate, ds.StudyTime = "1.2.3", "1", "", ""
        ds.AccessionNumber, ds.ReferringPhysicianName = "", ""
        ds.SeriesInstanceUID, ds.SeriesNumber, ds.InstanceNumber = uid, 1, number + 1
        ds.FrameOfReferenceUID, ds.PositionReferenceIndicator = "1.2.3.9", ""
        ds.Modality, ds.Manufacturer = modality, "demo"
        ds.Rows, ds.Columns = stored.shape[1:]
        ds.SamplesPerPixel, ds.PhotometricInterpretation = 1, "MONOCHROME2"
        ds.BitsAllocated = ds.BitsStored = stored.dtype.itemsize * 8
        ds.HighBit, ds.PixelRepresentation = ds.BitsStored - 1, int(stored.dtype.kind == "i")
        ds.ImageOrientationPatient = list(orientation)
        ds.ImagePositionPatient = [float(x) for x in np.asarray(origin) + index * step * normal]
        ds.PixelSpacing, ds.SliceThickness = list(spacing), step
        for name, value in attributes.items():
            if value is None:
                delattr(ds, name)
            else:
                setattr(ds, name, value)
        ds.PixelData = stored[index].tobytes()
        ds["PixelData"].VR = "OW"
        ds.file_meta = FileMetaDataset()
        ds.file_meta.MediaStorageSOPClassUID, ds.file_meta.MediaStorageSOPInstanceUID = (
            ds.SOPClassUID,
            ds.SOPInstanceUID,
        )
        ds.file_meta.TransferSyntaxUID = syntax
        path = folder / f"{number:03d}.dcm"
        ds.save_as(path, enforce_file_format=True)
        files.append(path)
    return files


def write_seg(path: Path, images: Sequence[Path], masks: dict[str, np.ndarray], **options: Any) -> Path:
    """DICOM SEG over image files; masks: segment label → shape (len(images), rows, columns).

    pixels: a highdicom Volume of one segment in the place of the masks. options: any others of `Segmentation`.
    """
    import highdicom as hd  # slow to import, and few tests need it
    from pydicom.sr.codedict import codes

    sources = [pydicom.dcmread(p) for p in images]
    described = [
        hd.seg.SegmentDescription(
            segment_number=number,
            segment_label=label,
            segmented_property_category=codes.SCT.Tissue,
            segmented_property_type=codes.SCT.Tissue,
            algorithm_type=hd.seg.SegmentAlgorithmTypeValues.MANUAL,
        )
        for number, label in enumerate(masks, start=1)
    ]
    pixels = options.pop("pixels", None) or np.stack(list(masks.values()), axis=-1)
    seg = hd.seg.Segmentation(
        source_images=sources,
        pixel_array=pixels,
        segment_descriptions=described,
        series_instance_uid="1.2.3.77",
        series_number=7,
        sop_instance_uid="1.2.3.77.1",
        instance_number=1,
        manufacturer="demo",
        manufacturer_model_name="demo",
        software_versions="1",
        device_serial_number="1",
        **{"segmentation_type": hd.seg.SegmentationTypeValues.BINARY, **options},
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    seg.save_as(path)
    return path


def write_nifti(path: Path, array: np.ndarray, affine: np.ndarray = RAS_MM) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image(array, affine), path)
    return path


def make_plan(task: dict[str, Any] | None = None, **data: Any) -> FederationPlan:
    """A plan that differs from the defaults in its task and data only."""
    return FederationPlan.model_validate(
        {
            "software": "0.1",
            "name": "test",
            "seed": 0,
            "rounds": 1,
            "sites": ("a",),
            "task": task or {"name": "segmentation", "labels": ("lesion",)},
            "model": {"name": "unet"},
            "data": data,
            "training": {"local_steps": 1},
            "method": {},
            "privacy": {},
            "stopping": {},
            "purpose": "scientific_research",
            "permit": None,
            "participation": {
                "quorum": 1,
                "round_deadline_s": 1.0,
                "quorum_wait_s": 0.0,
                "largest_norm_ratio": 5.0,
            },
        }
    )


def make_site(folder: Path, layout: str = "nifti_csv", **changes: Any) -> SiteFile:
    """A site over `folder`/cohort with its cache in `folder`/cache."""
    return SiteFile.model_validate(
        {
            "name": "a",
            "cohort": {"layout": layout, "folder": folder / "cohort", "columns": changes.pop("columns", {})},
            "cache": {"folder": folder / "cache"},
            "release": {"minimum_patients": changes.pop("minimum_patients", 1)},
        }
    )


def write_nifti_cohort(folder: Path, patients: int, **columns: Callable[[int], str]) -> Path:
    """`folder`/cohort with one 4 x 5 x 6 image and a one-voxel label for each of P0, P1, …"""
    names = ["patient_id", "image", "label", *columns]
    lines = [",".join(names)]
    for number in range(patients):
        image = np.full((4, 5, 6), number, dtype=np.int16)
        label = np.zeros((4, 5, 6), dtype=np.uint8)
        label[1, 2, 3] = 1
        write_nifti(folder / "cohort" / f"P{number}.nii.gz", image)
        write_nifti(folder / "cohort" / f"P{number}_label.nii.gz", label)
        extra = [make(number) for make in columns.values()]
        lines.append(",".join([f"P{number}", f"P{number}.nii.gz", f"P{number}_label.nii.gz", *extra]))
    (folder / "cohort" / "clinical.csv").write_text("\n".join(lines) + "\n")
    return folder / "cohort"


@pytest.fixture(scope="session")
def tiny() -> SimpleNamespace:
    """The makers of tiny files, as one namespace."""
    return SimpleNamespace(
        series=write_series,
        seg=write_seg,
        nifti=write_nifti,
        plan=make_plan,
        site=make_site,
        nifti_cohort=write_nifti_cohort,
        affine=RAS_MM,
    )

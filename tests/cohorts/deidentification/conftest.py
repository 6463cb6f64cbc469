"""Headers in memory: a clean one after EUCAIM's profile, and what a test plants into it."""

from __future__ import annotations

import io
import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian, MRImageStorage

from eucaim_fl.cohorts.deidentification.headers import identifiers_in_header
from eucaim_fl.cohorts.elements import walk

REPOSITORY = Path(__file__).parents[3]
PSEUDONYM = "EUCAIM-00a1b2c3d4e5f607"


def clean_dataset(**attributes: Any) -> Dataset:
    """An MR slice as EUCAIM's de-identification leaves it; `attributes` are set on top."""
    ds = Dataset()
    ds.SOPClassUID, ds.SOPInstanceUID = MRImageStorage, "2.25.11"
    ds.StudyInstanceUID, ds.SeriesInstanceUID, ds.FrameOfReferenceUID = "2.25.12", "2.25.13", "2.25.14"
    ds.PatientID, ds.PatientName, ds.PatientBirthDate, ds.PatientSex, ds.PatientAge = PSEUDONYM, "", "", "F", "063Y"
    ds.StudyDate, ds.StudyTime, ds.StudyID, ds.AccessionNumber = "20180101", "", "", ""
    ds.ReferringPhysicianName = ""
    ds.Modality, ds.Manufacturer, ds.SeriesDescription = "MR", "SIEMENS", "t2_tse_tra"
    ds.PatientIdentityRemoved = "YES"
    ds.Rows, ds.Columns, ds.SamplesPerPixel, ds.PhotometricInterpretation = 4, 4, 1, "MONOCHROME2"
    ds.BitsAllocated, ds.BitsStored, ds.HighBit, ds.PixelRepresentation = 16, 16, 15, 0
    for name, value in attributes.items():
        setattr(ds, name, value)
    ds.PixelData = bytes(range(32))
    ds["PixelData"].VR = "OW"
    ds.file_meta = FileMetaDataset()
    ds.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    return ds


def content(dataset: Dataset) -> bytes:
    stream = io.BytesIO()
    dataset.save_as(stream, enforce_file_format=True)
    return stream.getvalue()


def write(path: Path, dataset: Dataset) -> Path:
    path.write_bytes(content(dataset))
    return path


def found(dataset: Dataset | None = None, path: str = "", **attributes: Any) -> dict[str, int]:
    """What the check finds in a clean header with these attributes."""
    return identifiers_in_header(walk(content(clean_dataset(**attributes) if dataset is None else dataset)), path)


@pytest.fixture(scope="session")
def header() -> SimpleNamespace:
    """The makers of headers, as one namespace."""
    return SimpleNamespace(clean=clean_dataset, content=content, write=write, found=found, pseudonym=PSEUDONYM)


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of small real data sets; tests that need it are skipped where it is absent."""
    folder = Path(os.environ.get("EUCAIM_FL_SHARED_DATA") or REPOSITORY.parent / "shared" / "data")
    if not folder.is_dir():
        pytest.skip("the shared data sets are not on this machine (EUCAIM_FL_SHARED_DATA)")
    return folder

"""Volumes to DICOM files: CT and MR series, and segmentations, as a de-identified EUCAIM node holds them.

Volumes are arrays (I, J, K) with a 4×4 affine from index to RAS+ mm (the NIfTI convention). DICOM's patient space is
LPS+, so x and y change sign. I runs along the columns of a slice, J along its rows, K over slices.
Source: DICOM PS3.3 C.7.6.2 (Image Plane), A.3 (CT), A.4 (MR), A.51 (Segmentation); PS3.15 Annex E.
"""

from __future__ import annotations

import hashlib
import uuid
from collections.abc import Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from pydicom import Dataset
from pydicom.dataset import FileMetaDataset
from pydicom.uid import (
    CTImageStorage,
    ExplicitVRLittleEndian,
    JPEGLSLossless,
    MRImageStorage,
    RLELossless,
)
from pydicom.valuerep import format_number_as_ds

from eucaim_fl.errors import SeriesError
from eucaim_fl.seeding import generator

__all__ = ["SeriesStyle", "Study", "pseudonym", "uid", "write_segmentation", "write_series"]

_COMPRESSED = {"jpeg_ls": JPEGLSLossless, "rle": RLELossless}
_LPS = np.array([-1.0, -1.0, 1.0])
_ORTHOGONAL_TOLERANCE = 1e-4  # of a cosine; what viewers accept as a right angle


def uid(*purpose: str | int) -> str:
    """A DICOM UID under 2.25 (a UUID as a decimal number), derived from its purpose only."""
    digest = hashlib.sha256("\x1f".join(str(part) for part in purpose).encode()).digest()
    return f"2.25.{uuid.UUID(bytes=digest[:16], version=4).int}"


def pseudonym(*purpose: str | int) -> str:
    """A patient's identifier as EUCAIM's de-identification writes it: `EUCAIM-<hash>`."""
    return "EUCAIM-" + hashlib.sha256("\x1f".join(str(part) for part in purpose).encode()).hexdigest()[:16]


@dataclass(frozen=True)
class Study:
    """One imaging study of one patient.

    year, age (years): None if unknown. sex: "" if unknown. body_part: DICOM term.
    """

    patient_id: str
    study_uid: str
    year: int | None
    sex: Literal["M", "F", ""] = ""
    age: int | None = None
    body_part: str = "ABDOMEN"

    @property
    def day(self) -> str:
        """The date that DICOM states of it: 1 January of its year, "" if unknown."""
        return "" if self.year is None else f"{self.year}0101"


@dataclass(frozen=True)
class SeriesStyle:
    """How one scanner and archive write a series.

    slope, intercept: stored = (value − intercept) / slope. bits_stored: 12 or 16, of 16 allocated.
    naming: `numbered` after InstanceNumber, `random` numbers, or `uid` after the SOP instance.
    reversed_numbers: InstanceNumber runs against K.
    window: centre and width, in the unit of the volume.
    """

    manufacturer: str
    modality: Literal["CT", "MR"] = "CT"
    slope: float = 1.0
    intercept: float = -1024.0
    bits_stored: Literal[12, 16] = 12
    signed: bool = False
    transfer_syntax: Literal["explicit", "jpeg_ls", "rle"] = "explicit"
    naming: Literal["numbered", "random", "uid"] = "numbered"
    reversed_numbers: bool = False
    window: tuple[float, float] = (40.0, 400.0)
    description: str = "Axial"


def _plane(affine: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """Spacing (3,), direction cosines in LPS (3 × 3, one column an axis), origin in LPS (3,)."""
    axes = affine[:3, :3] * _LPS[:, None]
    spacing = np.linalg.norm(axes, axis=0)
    if not np.isfinite(affine).all() or spacing.min() <= 0:
        raise SeriesError("The affine has an axis without length.")
    cosines = axes / spacing
    if np.abs(cosines.T @ cosines - np.eye(3)).max() > _ORTHOGONAL_TOLERANCE:
        raise SeriesError("The affine is sheared; a DICOM series of plain slices can't hold that.")
    return spacing, cosines, affine[:3, 3] * _LPS


def _stored(volume: NDArray[np.floating], style: SeriesStyle) -> NDArray[np.int16] | NDArray[np.uint16]:
    """Stored values, (K, rows, columns); values that the bits can't hold are clipped, as scanners do."""
    low = -(2 ** (style.bits_stored - 1)) if style.signed else 0
    values = np.rint((volume.astype(np.float64) - style.intercept) / style.slope)
    clipped = np.clip(values, low, low + 2**style.bits_stored - 1).transpose(2, 1, 0)
    return clipped.astype(np.int16) if style.signed else clipped.astype(np.uint16)


def _common(study: Study, style: SeriesStyle, series_uid: str, series_number: int) -> Dataset:
    """What all slices of a series share."""
    ct = style.modality == "CT"
    ds = Dataset()
    ds.SpecificCharacterSet = "ISO_IR 192"
    ds.ImageType = ["ORIGINAL", "PRIMARY", "AXIAL" if ct else "OTHER"]
    ds.SOPClassUID = CTImageStorage if ct else MRImageStorage
    ds.StudyDate = ds.SeriesDate = ds.ContentDate = study.day
    ds.StudyTime = ds.SeriesTime = ds.ContentTime = "000000"
    ds.AccessionNumber = ds.ReferringPhysicianName = ds.StudyID = ds.PatientBirthDate = ""
    ds.Modality = style.modality
    ds.Manufacturer = style.manufacturer
    ds.SeriesDescription = style.description
    ds.PatientName, ds.PatientID = "", study.patient_id
    ds.PatientSex = study.sex
    ds.PatientAge = "" if study.age is None else f"{study.age:03d}Y"
    ds.PatientIdentityRemoved = "YES"
    ds.DeidentificationMethod = "EUCAIM Deidentification v5"
    ds.LongitudinalTemporalInformationModified = "MODIFIED"
    ds.BodyPartExamined = study.body_part
    ds.PatientPosition = "HFS"
    ds.StudyInstanceUID = study.study_uid
    ds.SeriesInstanceUID = series_uid
    ds.SeriesNumber = series_number
    ds.AcquisitionNumber = 1
    ds.FrameOfReferenceUID = uid("frame of reference", study.study_uid)
    ds.PositionReferenceIndicator = ""
    if ct:
        ds.KVP = 120
        ds.RescaleType = "HU"
    else:
        ds.ScanningSequence, ds.SequenceVariant, ds.ScanOptions, ds.MRAcquisitionType = "SE", "SK", "", "2D"
        ds.RepetitionTime, ds.EchoTime, ds.EchoTrainLength = 4000, 100, 16
    if ct or (style.slope, style.intercept) != (1.0, 0.0):
        ds.RescaleSlope, ds.RescaleIntercept = style.slope, style.intercept
    ds.SamplesPerPixel = 1
    ds.PhotometricInterpretation = "MONOCHROME2"
    ds.BitsAllocated, ds.BitsStored, ds.HighBit = 16, style.bits_stored, style.bits_stored - 1
    ds.PixelRepresentation = int(style.signed)
    ds.WindowCenter, ds.WindowWidth = style.window
    return ds


def _ds(values: Sequence[float] | NDArray[np.float64]) -> list[str]:
    """Decimal strings of at most 16 characters; values within rounding of 0 become 0."""
    return [format_number_as_ds(0.0 if abs(float(value)) < 1e-9 else float(value)) for value in values]


def write_series(
    folder: Path,
    volume: NDArray[np.floating],
    affine: NDArray[np.float64],
    study: Study,
    style: SeriesStyle,
    *,
    series_number: int = 1,
) -> list[Dataset]:
    """Write a volume as one DICOM file per slice; every identifier derives from the study's UID and series number.

    volume: (I, J, K), in HU for CT; what the style's bits can't hold is clipped. affine: index → RAS+ mm.
    Returns the slices' attributes in the order of K, without pixels, as the source of segmentations.
    Raises SeriesError if the volume is not three-dimensional, or the affine is sheared or degenerate.
    """
    if volume.ndim != 3 or 0 in volume.shape:
        raise SeriesError(f"A series is written from a volume of three axes, not {volume.ndim}.")
    spacing, cosines, origin = _plane(affine)
    normal = np.cross(cosines[:, 0], cosines[:, 1])
    pixels = _stored(volume, style)
    series_uid = uid("series", study.study_uid, series_number)
    common = _common(study, style, series_uid, series_number)
    common.Rows, common.Columns = pixels.shape[1:]
    common.PixelSpacing = _ds([spacing[1], spacing[0]])  # between rows first: PS3.3 10.7.1.3
    common.SliceThickness = _ds([spacing[2]])[0]
    if style.modality == "MR":
        common.SpacingBetweenSlices = common.SliceThickness
    common.ImageOrientationPatient = _ds([*cosines[:, 0], *cosines[:, 1]])
    count = len(pixels)
    names = generator(0, "slice names", series_uid).permutation(np.arange(10**4, 10**4 + 10 * count))[:count]
    folder.mkdir(parents=True, exist_ok=True)
    slices = []
    for k, frame in enumerate(pixels):
        ds = deepcopy(common)
        position = origin + k * spacing[2] * cosines[:, 2]
        number = count - k if style.reversed_numbers else k + 1
        ds.SOPInstanceUID = uid("instance", series_uid, k)
        ds.InstanceNumber = number
        ds.ImagePositionPatient = _ds(position)
        ds.SliceLocation = _ds([float(normal @ position)])[0]
        slices.append(ds)
        whole = Dataset(ds)
        whole.file_meta = FileMetaDataset()
        whole.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
        whole.PixelData = np.ascontiguousarray(frame).astype(frame.dtype.newbyteorder("<"), copy=False).tobytes()
        if style.transfer_syntax != "explicit":
            whole.compress(_COMPRESSED[style.transfer_syntax], generate_instance_uid=False)
        name = {"numbered": f"IM{number:05d}", "random": str(names[k]), "uid": ds.SOPInstanceUID}[style.naming]
        whole.save_as(folder / f"{name}.dcm", enforce_file_format=True)
    return slices


def write_segmentation(
    path: Path, sources: Sequence[Dataset], masks: Mapping[str, NDArray[np.bool_]], *, series_number: int = 2
) -> None:
    """Write masks as one binary DICOM SEG, one segment per label in the mapping's order, over `write_series`' slices.

    masks: label → bool (I, J, K), the grid of the series; the label becomes the SegmentLabel. Frames without any
    voxel are left out, as the standard allows.
    Raises SeriesError if a mask's grid is not that of the slices, or there is no mask.
    """
    import highdicom as hd  # a second of start-up that readers of the demo need not pay

    first = sources[0]
    grid = (first.Columns, first.Rows, len(sources))
    if not masks or any(mask.shape != grid for mask in masks.values()):
        raise SeriesError("A segmentation needs at least one mask, each on the grid of its series.")
    number_uid = (first.StudyInstanceUID, series_number)
    segments = [
        hd.seg.SegmentDescription(
            segment_number=number,
            segment_label=label,
            segmented_property_category=hd.sr.CodedConcept("49755003", "SCT", "Morphologically Abnormal Structure"),
            segmented_property_type=hd.sr.CodedConcept("4147007", "SCT", "Mass"),
            algorithm_type=hd.seg.SegmentAlgorithmTypeValues.MANUAL,
        )
        for number, label in enumerate(masks, start=1)
    ]
    seg = hd.seg.Segmentation(
        source_images=list(sources),
        pixel_array=np.stack([mask.transpose(2, 1, 0) for mask in masks.values()], axis=-1).astype(np.uint8),
        segmentation_type=hd.seg.SegmentationTypeValues.BINARY,
        segment_descriptions=segments,
        series_instance_uid=uid("series", *number_uid),
        series_number=series_number,
        sop_instance_uid=uid("instance", *number_uid),
        instance_number=1,
        manufacturer="eucaim_fl",
        manufacturer_model_name="eucaim_fl",
        software_versions="1",
        device_serial_number="0",
        content_label="SEGMENTATION",
        transfer_syntax_uid=ExplicitVRLittleEndian,
    )
    # highdicom stamps the time of writing and random UIDs; equal input must give equal bytes.
    seg.ContentDate = seg.InstanceCreationDate = seg.SeriesDate = first.StudyDate
    seg.ContentTime = seg.InstanceCreationTime = seg.SeriesTime = "000000"
    for item in seg.ContributingEquipmentSequence:
        if "ContributionDateTime" in item:
            item.ContributionDateTime = f"{first.StudyDate}000000"
    dimensions = uid("dimensions", *number_uid)
    for item in [*seg.DimensionOrganizationSequence, *seg.DimensionIndexSequence]:
        item.DimensionOrganizationUID = dimensions
    seg.PatientIdentityRemoved = "YES"
    seg.DeidentificationMethod = first.DeidentificationMethod
    seg.LongitudinalTemporalInformationModified = "MODIFIED"
    seg.BodyPartExamined = first.BodyPartExamined
    path.parent.mkdir(parents=True, exist_ok=True)
    seg.save_as(path, enforce_file_format=True)

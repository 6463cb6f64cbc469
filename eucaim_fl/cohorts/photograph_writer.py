"""Colour photographs to DICOM files: dermoscopic images, as a de-identified EUCAIM node holds them.

What nobody states (date, polarisation, contact, magnification, scale, ICC profile) stays empty or absent. The standard
wants equipment with model, serial number and version: that is this package, which made the objects.
Source: DICOM PS3.3 Dermoscopic Photography Image IOD (supplement 221), C.7.6.3 (Image Pixel), C.8.12.1 (VL Image);
PS3.5 8.2.1 (JPEG: YBR_FULL_422 is stated whatever the stream's own sampling is); PS3.15 Annex E.
"""

from __future__ import annotations

import io
from functools import cache
from pathlib import Path
from typing import Literal

from pydicom import Dataset
from pydicom.dataset import FileMetaDataset
from pydicom.encaps import encapsulate
from pydicom.filebase import DicomBytesIO
from pydicom.filewriter import write_data_element, write_file_meta_info
from pydicom.uid import ExplicitVRLittleEndian, JPEGBaseline8Bit

from eucaim_fl.cohorts.dicom_writer import Study, uid
from eucaim_fl.errors import SeriesError

__all__ = ["PHOTOGRAPHS", "Encoding", "write_photograph"]

Encoding = Literal["jpeg", "rgb"]
"""`jpeg`: the stream as it came, encapsulated; `rgb`: decoded, uncompressed, interleaved."""

PHOTOGRAPHS = "DMS"
"""Modality of dermoscopic photographs."""
_DERMOSCOPIC_PHOTOGRAPHY = "1.2.840.10008.5.1.4.1.1.77.1.7"


def _code(value: str, scheme: str, meaning: str) -> Dataset:
    item = Dataset()
    item.CodeValue, item.CodingSchemeDesignator, item.CodeMeaning = value, scheme, meaning
    return item


def _encoded(ds: Dataset) -> dict[int, bytes]:
    """Tag → the element's bytes, explicit VR little endian."""
    found = {}
    for element in ds:
        stream = DicomBytesIO()
        stream.is_little_endian, stream.is_implicit_VR = True, False
        write_data_element(stream, element, ["utf8"])
        found[int(element.tag)] = stream.getvalue()
    return found


@cache
def _always() -> dict[int, bytes]:
    """The elements that all photographs have alike: two thirds of them, and of the time that writing takes."""
    ds = Dataset()
    ds.SpecificCharacterSet = "ISO_IR 192"
    ds.ImageType = ["DERIVED", "PRIMARY"]
    ds.SOPClassUID = _DERMOSCOPIC_PHOTOGRAPHY
    ds.AccessionNumber = ds.ReferringPhysicianName = ds.StudyID = ds.PatientBirthDate = ds.PatientName = ""
    ds.Modality = PHOTOGRAPHS
    ds.Manufacturer = ds.ManufacturerModelName = "eucaim_fl"
    ds.DeviceSerialNumber, ds.SoftwareVersions = "0", "1"
    ds.DerivationCodeSequence = [
        _code("113085", "DCM", "Spatial resampling"),
        _code("113040", "DCM", "Lossy Compression"),
    ]
    ds.AnatomicRegionSequence = [_code("39937001", "SCT", "Skin")]
    ds.PatientIdentityRemoved = "YES"
    ds.DeidentificationMethod = "EUCAIM Deidentification v5"
    ds.LightSourcePolarization = ds.ContactMethod = ""
    ds.EmitterColorTemperature = ds.OpticalMagnificationFactor = None
    ds.SeriesNumber = ds.InstanceNumber = 1
    ds.PatientOrientation = ""
    ds.BurnedInAnnotation = ds.RecognizableVisualFeatures = "NO"
    ds.AcquisitionContextSequence = []
    ds.SamplesPerPixel, ds.PlanarConfiguration = 3, 0
    ds.BitsAllocated, ds.BitsStored, ds.HighBit, ds.PixelRepresentation = 8, 8, 7, 0
    ds.LossyImageCompression, ds.LossyImageCompressionMethod = "01", "ISO_10918_1"
    return _encoded(ds)


def _header(study: Study, series_uid: str) -> Dataset:
    """What else doesn't follow from the pixels."""
    ds = Dataset()
    ds.SOPInstanceUID = uid("instance", series_uid, 0)
    ds.StudyInstanceUID, ds.SeriesInstanceUID = study.study_uid, series_uid
    ds.StudyDate = ds.ContentDate = study.day
    ds.StudyTime = ds.ContentTime = "" if study.year is None else "000000"
    ds.LongitudinalTemporalInformationModified = "REMOVED" if study.year is None else "MODIFIED"
    ds.PatientID, ds.PatientSex, ds.BodyPartExamined = study.patient_id, study.sex, study.body_part
    if study.age is not None:
        ds.PatientAge = f"{study.age:03d}Y"
    return ds


def write_photograph(path: Path, jpeg: bytes, study: Study, encoding: Encoding) -> str:
    """Write one dermoscopic photograph that came as a JPEG; returns the series' UID, which derives from the study's.

    jpeg: baseline, of 8 bits and three components, already made smaller than it was taken. With both encodings a reader
    sees the very pixels that a JPEG decoder gives: no second loss. The file states that it was compressed with loss, by
    how much, and that identifiers were removed.
    Raises SeriesError if the stream is no such JPEG, or ends early.
    """
    from PIL import Image

    try:
        with Image.open(io.BytesIO(jpeg), formats=["JPEG"]) as picture:
            width, height = picture.size
            rgb = picture.tobytes()
            if picture.mode != "RGB" or picture.info.get("progressive"):
                raise ValueError("another kind of JPEG")
    except (OSError, ValueError, Image.DecompressionBombError) as problem:
        raise SeriesError("A photograph is no baseline JPEG in colours.", local_detail=f"{path}: {problem}") from None
    series_uid = uid("series", study.study_uid, 1)
    ds = _header(study, series_uid)
    ds.PhotometricInterpretation = "YBR_FULL_422" if encoding == "jpeg" else "RGB"
    ds.Rows, ds.Columns = height, width
    ds.LossyImageCompressionRatio = f"{len(rgb) / len(jpeg):.4g}"
    ds.PixelData = encapsulate([jpeg]) if encoding == "jpeg" else rgb + bytes(len(rgb) % 2)
    ds["PixelData"].VR = "OB"
    ds["PixelData"].is_undefined_length = encoding == "jpeg"
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID = _DERMOSCOPIC_PHOTOGRAPHY, ds.SOPInstanceUID
    meta.TransferSyntaxUID = JPEGBaseline8Bit if encoding == "jpeg" else ExplicitVRLittleEndian
    start = DicomBytesIO()
    write_file_meta_info(start, meta)
    elements = sorted({**_always(), **_encoded(ds)}.items())
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"".join([bytes(128), b"DICM", start.getvalue(), *(raw for _, raw in elements)]))
    return series_uid

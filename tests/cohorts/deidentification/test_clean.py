from __future__ import annotations

import contextlib
from pathlib import Path
from types import SimpleNamespace

import nibabel as nib
import numpy as np
import pydicom
import pytest
from pydicom.dataset import Dataset
from pydicom.sequence import Sequence
from pydicom.uid import EncapsulatedPDFStorage, SecondaryCaptureImageStorage

from eucaim_fl.cohorts.deidentification.clean import METHOD, deidentify_file, deidentify_nifti
from eucaim_fl.cohorts.deidentification.headers import identifiers_in_header
from eucaim_fl.cohorts.deidentification.nifti_headers import identifiers_in_nifti
from eucaim_fl.cohorts.deidentification.patterns import is_pseudonym
from eucaim_fl.cohorts.deidentification.rules import kind_of
from eucaim_fl.cohorts.elements import read_elements
from eucaim_fl.errors import EucaimError, IdentifierError, ImportFailedError, UnreadableFileError
from eucaim_fl.sitefile import DeidentificationConfig

SECRET = b"s" * 32
DIRTY = {
    "PatientName": "Rossi^Maria",
    "PatientID": "4711081",
    "PatientBirthDate": "19530312",
    "StudyDate": "20180704",
    "AcquisitionDateTime": "20180704101530.5",
    "AcquisitionTime": "101530",
    "StudyTime": "101500",
    "InstitutionName": "Klinik am See",
    "OperatorsName": "Bond^James",
    "StationName": "MRC40512",
    "DeviceSerialNumber": "40512",
    "StudyDescription": "MR of Rossi",
    "SeriesDescription": "t2_tse_tra Rossi 3mm",
    "PatientComments": "lives alone",
    "PatientAddress": "Via Roma 1",
    "PatientAge": "095Y",
    "PatientWeight": "70",
    "Manufacturer": "SIEMENS Rossi",
    "EchoTime": "101",
    "StudyInstanceUID": "1.3.12.2.1107.5.2",
}


def cleaned(header: SimpleNamespace, folder: Path, dataset: Dataset) -> Dataset:
    deidentify_file(header.write(folder / "a.dcm", dataset), folder / "b.dcm", SECRET)
    return pydicom.dcmread(folder / "b.dcm")


def advice(path: Path) -> dict[str, int]:
    """What the eucaim profile finds in a file."""
    found = identifiers_in_header(read_elements(path))
    return {rule: count for rule, count in found.items() if kind_of(rule, DeidentificationConfig())}


class TestDeidentifyFile:
    def test_the_copy_passes_the_check_and_keeps_what_eucaim_keeps(
        self, header: SimpleNamespace, tmp_path: Path
    ) -> None:
        ds = cleaned(header, tmp_path, header.clean(**DIRTY))
        assert advice(tmp_path / "b.dcm") == {}
        assert is_pseudonym(ds.PatientID)
        assert (ds.PatientName, ds.PatientBirthDate, ds.PatientAge, ds.PatientSex) == ("", "", "090Y", "F")
        assert (ds.StudyDate, ds.AcquisitionDateTime) == ("20180101", "20180101101530.5")
        assert (ds.AcquisitionTime, ds.StudyTime) == ("101530", "000000")
        assert (ds.SeriesDescription, ds.Manufacturer, ds.EchoTime) == ("t2 tse tra 3mm", "siemens", 101)
        assert (ds.PatientWeight, ds.Modality) == (70, "MR")
        assert (ds.PatientIdentityRemoved, ds.DeidentificationMethod) == ("YES", METHOD)
        assert "StudyDescription" not in ds
        assert "StationName" not in ds

    def test_no_planted_value_is_left_in_any_byte(self, header: SimpleNamespace, tmp_path: Path) -> None:
        ds = header.clean(**DIRTY)
        ds.preamble = b"Rossi".ljust(128, b"\0")
        ds.file_meta.SourceApplicationEntityTitle = "ROSSI_AE"
        ds.private_block(0x0009, "ROSSI", create=True).add_new(0x01, "LO", "Rossi")
        ds.add_new(0x60003000, "OW", b"Rossi1")
        ds.add_new(0xFFFCFFFC, "OB", b"Rossi1")
        cleaned(header, tmp_path, ds)
        raw = (tmp_path / "b.dcm").read_bytes().lower()
        for value in ("rossi", "4711081", "19530312", "0704", "klinik", "bond", "40512", "via roma", "alone", "1.3.12"):
            assert value.encode() not in raw, value

    def test_nested_items_are_cleaned_too(self, header: SimpleNamespace, tmp_path: Path) -> None:
        inner, outer = Dataset(), Dataset()
        inner.PatientName, inner.StudyDate, inner.ReferencedSOPInstanceUID = "Rossi^Maria", "20180704", "1.3.12.7"
        inner.private_block(0x0009, "ACME", create=True).add_new(0x01, "LO", "Rossi")
        outer.ReferencedSOPInstanceUID, outer.ReferencedSeriesSequence = "1.3.12.8", Sequence([inner])
        ds = cleaned(header, tmp_path, header.clean(ReferencedImageSequence=Sequence([outer])))
        assert advice(tmp_path / "b.dcm") == {}
        item = ds.ReferencedImageSequence[0]
        assert item.ReferencedSOPInstanceUID.startswith("2.25.")
        assert item.ReferencedSeriesSequence[0].StudyDate == "20180101"

    def test_references_still_fit(self, header: SimpleNamespace, tmp_path: Path) -> None:
        item = Dataset()
        item.ReferencedSOPInstanceUID = "1.3.12.7"
        image = cleaned(header, tmp_path, header.clean(SOPInstanceUID="1.3.12.7"))
        label = cleaned(header, tmp_path, header.clean(SourceImageSequence=Sequence([item])))
        assert label.SourceImageSequence[0].ReferencedSOPInstanceUID == image.SOPInstanceUID
        assert image.file_meta.MediaStorageSOPInstanceUID == image.SOPInstanceUID

    def test_safe_private_elements_stay(self, header: SimpleNamespace, tmp_path: Path) -> None:
        ds = header.clean()
        ds.private_block(0x0019, "SIEMENS MR HEADER", create=True).add_new(0x0C, "IS", "800")
        ds.private_block(0x0019, "ACME", create=True).add_new(0x0C, "IS", "800")
        after = cleaned(header, tmp_path, ds)
        assert after[0x0019, 0x100C].value == 800
        assert (0x0019, 0x110C) not in after
        assert (0x0019, 0x0011) not in after

    def test_pixels_and_transfer_syntax_are_unchanged(self, header: SimpleNamespace, tmp_path: Path) -> None:
        before = header.clean(**DIRTY)
        pixels = before.PixelData
        after = cleaned(header, tmp_path, before)
        assert after.PixelData == pixels
        assert after.file_meta.TransferSyntaxUID == "1.2.840.10008.1.2.1"

    def test_a_clean_copy_of_a_clean_copy_names_the_same_patient(self, header: SimpleNamespace, tmp_path: Path) -> None:
        once = cleaned(header, tmp_path, header.clean(**DIRTY))
        deidentify_file(tmp_path / "b.dcm", tmp_path / "c.dcm", SECRET)
        assert pydicom.dcmread(tmp_path / "c.dcm").PatientID == once.PatientID

    @pytest.mark.parametrize(
        ("changes", "reason"),
        [
            ({"BurnedInAnnotation": "YES"}, "text is burned into its pixels"),
            ({"SOPClassUID": SecondaryCaptureImageStorage}, "doesn't say"),
            ({"Modality": "US"}, "doesn't say"),
            ({"ImageType": ["DERIVED", "SECONDARY", "SCREEN SAVE"]}, "doesn't say"),
            ({"EncapsulatedDocument": b"%PDF", "SOPClassUID": EncapsulatedPDFStorage}, "document is enclosed"),
        ],
    )
    def test_what_sits_in_pixels_or_documents_is_refused(
        self, header: SimpleNamespace, tmp_path: Path, changes: dict[str, object], reason: str
    ) -> None:
        source = header.write(tmp_path / "Rossi.dcm", header.clean(**changes))
        with pytest.raises(IdentifierError, match=reason) as caught:
            deidentify_file(source, tmp_path / "b.dcm", SECRET)
        assert "Rossi" not in str(caught.value)
        assert not (tmp_path / "b.dcm").exists()

    def test_a_capture_that_denies_text_but_shows_it_is_refused(self, header: SimpleNamespace, tmp_path: Path) -> None:
        from PIL import Image, ImageDraw, ImageFont

        picture = Image.new("L", (256, 128), 0)
        ImageDraw.Draw(picture).text((4, 4), "ROSSI MARIA 1953", fill=255, font=ImageFont.load_default(size=16))
        ds = header.clean(Modality="US", BurnedInAnnotation="NO", Rows=128, Columns=256)
        ds.PixelData = np.asarray(picture).astype("<u2").tobytes()
        with pytest.raises(IdentifierError, match="seen in the pixels"):
            deidentify_file(header.write(tmp_path / "a.dcm", ds), tmp_path / "b.dcm", SECRET)

    def test_an_overlay_inside_the_pixels_is_refused(self, header: SimpleNamespace, tmp_path: Path) -> None:
        ds = header.clean()
        ds.add_new(0x60000102, "US", 12)
        with pytest.raises(IdentifierError, match="overlay lies inside"):
            deidentify_file(header.write(tmp_path / "a.dcm", ds), tmp_path / "b.dcm", SECRET)

    def test_a_short_secret_is_refused(self, header: SimpleNamespace, tmp_path: Path) -> None:
        with pytest.raises(IdentifierError, match="secret for pseudonyms is shorter"):
            deidentify_file(header.write(tmp_path / "a.dcm", header.clean()), tmp_path / "b.dcm", b"short")

    @pytest.mark.parametrize("raw", [b"", b"no dicom", bytes(128) + b"DICM" + b"\x08\0\x05\0CS\xff\xff"])
    def test_a_broken_file_is_refused(self, tmp_path: Path, raw: bytes) -> None:
        (tmp_path / "Rossi.dcm").write_bytes(raw)
        with pytest.raises(UnreadableFileError, match="missing, corrupt") as caught:
            deidentify_file(tmp_path / "Rossi.dcm", tmp_path / "b.dcm", SECRET)
        assert "Rossi" not in str(caught.value)

    def test_a_folder_that_is_a_file_takes_no_copy(self, header: SimpleNamespace, tmp_path: Path) -> None:
        source = header.write(tmp_path / "a.dcm", header.clean())
        with pytest.raises(ImportFailedError, match="can't be written"):
            deidentify_file(source, source / "b.dcm", SECRET)

    def test_files_of_many_vendors_come_out_clean_or_are_refused(self, shared_data: Path, tmp_path: Path) -> None:
        files = [*sorted((shared_data / "prostatex").rglob("*.dcm"))[::20]]
        files += [p for p in sorted((shared_data / "dicom_conformance").rglob("*.dcm")) if p.stat().st_size < 10**6][
            ::4
        ]
        copies: list[Path] = []
        for file in files:
            with contextlib.suppress(EucaimError):
                deidentify_file(file, tmp_path / f"{len(copies)}.dcm", SECRET)
                copies.append(file)
        for number, file in enumerate(copies):
            copy = tmp_path / f"{number}.dcm"
            assert advice(copy) == {}, file
            assert pydicom.dcmread(file, force=True).get("PixelData") == pydicom.dcmread(copy).get("PixelData")
        assert len(copies) > 0.7 * len(files)


class TestDeidentifyNifti:
    def test_the_copy_passes_the_check_and_keeps_the_image(self, tmp_path: Path) -> None:
        image = nib.Nifti1Image(np.arange(24, dtype=np.int16).reshape(2, 3, 4), np.eye(4))
        image.header["descrip"] = "Rossi^Maria"
        nib.save(image, tmp_path / "a.nii.gz")
        deidentify_nifti(tmp_path / "a.nii.gz", tmp_path / "b.nii.gz")
        assert identifiers_in_nifti(tmp_path / "b.nii.gz") == {}
        assert np.array_equal(np.asarray(nib.load(tmp_path / "b.nii.gz").dataobj), np.asarray(image.dataobj))

    def test_a_broken_file_is_refused(self, tmp_path: Path) -> None:
        (tmp_path / "a.nii").write_bytes(b"nothing")
        with pytest.raises(UnreadableFileError, match="missing or corrupt"):
            deidentify_nifti(tmp_path / "a.nii", tmp_path / "b.nii")

    def test_a_folder_that_is_a_file_takes_no_copy(self, tmp_path: Path) -> None:
        nib.save(nib.Nifti1Image(np.zeros((2, 2, 2), np.uint8), np.eye(4)), tmp_path / "a.nii")
        with pytest.raises(ImportFailedError, match="can't be written"):
            deidentify_nifti(tmp_path / "a.nii", tmp_path / "a.nii" / "b.nii")

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path, PurePosixPath

import pydicom
import pytest
from hypothesis import given
from hypothesis import strategies as st

from eucaim_fl.cohorts.intake.headers import (
    Examined,
    Header,
    content_hash,
    examine,
    is_image_class,
    is_uid,
    patient_folder,
    place_of,
    read_header,
)
from eucaim_fl.errors import ImportFailedError, UnreadableFileError

KEY = bytes(32)


@pytest.fixture
def image(series: Callable[..., list[Path]]) -> Path:
    return series("P1", 1, slices=1, Manufacturer="SIEMENS")[0]


class TestReadHeader:
    def test_it_says_who_and_what_an_image_is(self, image: Path) -> None:
        header, whole = read_header(image), pydicom.dcmread(image)
        assert (header.patient_id, header.modality, header.body_part) == (b"P1", "MR", "PROSTATE")
        assert (header.study_date, header.manufacturer) == ("20190607", "SIEMENS")
        assert (header.study_uid, header.series_uid, header.sop_uid, header.sop_class, header.transfer_syntax) == (
            *(whole.StudyInstanceUID, whole.SeriesInstanceUID, whole.SOPInstanceUID, whole.SOPClassUID),
            whole.file_meta.TransferSyntaxUID,
        )
        assert header.data_start == 144 + int.from_bytes(image.read_bytes()[140:144], "little")

    def test_a_file_that_is_none_is_refused(self, tmp_path: Path) -> None:
        (tmp_path / "note.dcm").write_text("no image")
        with pytest.raises(UnreadableFileError, match="corrupt") as caught:
            read_header(tmp_path / "note.dcm")
        assert "note" not in str(caught.value)


class TestExamined:
    def test_what_is_not_there_is_an_error(self) -> None:
        with pytest.raises(UnreadableFileError, match="corrupt"):
            Examined(None, "why").unwrap()


class TestExamine:
    def test_each_file_has_its_own_answer_in_the_order_of_files(
        self, series: Callable[..., list[Path]], tmp_path: Path
    ) -> None:
        files = series("P1", 1, slices=5)
        files[2].write_bytes(files[2].read_bytes()[:300])
        asked = [*files, tmp_path / "absent"]
        answers = list(examine(asked, workers=2))
        assert [path for path, _ in answers] == asked
        found = dict(answers)
        assert [found[f].header is not None for f in files] == [True, True, False, True, True]
        assert found[tmp_path / "absent"].header is None


class TestContentHash:
    def test_it_is_of_the_data_set_not_of_the_meta_information(self, image: Path, tmp_path: Path) -> None:
        whole = pydicom.dcmread(image)
        whole.file_meta.ImplementationVersionName = "OTHER"
        whole.save_as(tmp_path / "b.dcm")
        assert (tmp_path / "b.dcm").read_bytes() != image.read_bytes()
        other = tmp_path / "b.dcm"
        assert content_hash(other, read_header(other)) == content_hash(image, read_header(image))

    def test_one_other_pixel_is_other_content(self, image: Path) -> None:
        header = read_header(image)
        before = content_hash(image, header)
        image.write_bytes(image.read_bytes()[:-1] + b"\x7e")
        assert content_hash(image, header) != before

    def test_the_same_bytes_in_another_transfer_syntax_are_other_content(self, image: Path) -> None:
        header = read_header(image)
        assert content_hash(image, header) != content_hash(image, replace(header, transfer_syntax="1.2"))

    def test_a_file_that_is_gone_cant_be_compared(self, image: Path) -> None:
        header = read_header(image)
        image.unlink()
        with pytest.raises(UnreadableFileError, match="can't be read"):
            content_hash(image, header)


class TestIsUid:
    @pytest.mark.parametrize("text", ["1.2.840.10008.1.2", "2.25.1", "1.02.3", "1." + "9" * 62])
    def test_uids(self, text: str) -> None:
        assert is_uid(text)

    @pytest.mark.parametrize(
        "text", ["", "1", "1.", ".1", "1..2", "../1.2", "1.2/3", "1.2\n", "1.2\0", "1." + "9" * 63, "١.٢"]
    )
    def test_others(self, text: str) -> None:
        assert not is_uid(text)


class TestIsImageClass:
    @pytest.mark.parametrize(
        "name",
        ["CTImageStorage", "EnhancedMRImageStorage", "SegmentationStorage", "RTStructureSetStorage",
         "DigitalMammographyXRayImageStorageForPresentation", "SecondaryCaptureImageStorage"],
    )  # fmt: skip
    def test_images_and_labels_are(self, name: str) -> None:
        assert is_image_class(getattr(pydicom.uid, name))

    @pytest.mark.parametrize(
        "name",
        ["EncapsulatedPDFStorage", "BasicTextSRStorage", "GrayscaleSoftcopyPresentationStateStorage", "RTDoseStorage"],
    )
    def test_what_may_speak_of_people_is_not(self, name: str) -> None:
        assert not is_image_class(getattr(pydicom.uid, name))

    def test_what_nobody_knows_is_not(self) -> None:
        assert not is_image_class("1.2.3")
        assert not is_image_class("")


class TestPatientFolder:
    def test_a_safe_identifier_is_its_own_folder(self) -> None:
        assert patient_folder(b"ProstateX-0001_a.b", KEY) == "ProstateX-0001_a.b"

    @pytest.mark.parametrize("stored", [b".hidden", b"..", b"a/b", b"a b", b"M\xfcller", b"x" * 65, b"a\\b", b"a\nb"])
    def test_any_other_becomes_a_pseudonym(self, stored: bytes) -> None:
        name = patient_folder(stored, KEY)
        assert name.startswith("EUCAIM-")
        assert len(name) == 39

    def test_pseudonyms_differ_between_patients_and_between_sites(self) -> None:
        assert len({patient_folder(p, k) for p in (b"\xc4 1", b"\xd6 1") for k in (KEY, b"1" * 32)}) == 4

    @given(st.binary(min_size=1, max_size=80))
    def test_no_identifier_leads_anywhere(self, stored: bytes) -> None:
        name = patient_folder(stored, KEY)
        assert PurePosixPath("a", name).parts == ("a", name)
        assert not name.startswith(".")

    def test_patients_without_identifier_do_not_become_one_patient(self) -> None:
        with pytest.raises(ImportFailedError, match="names no patient"):
            patient_folder(b"", KEY)


class TestPlaceOf:
    def test_the_arrangement_is_that_of_tier_3(self, image: Path) -> None:
        header = read_header(image)
        assert str(place_of(header, KEY)) == (
            f"imaging_data/P1/{header.study_uid}/{header.series_uid}/{header.sop_uid}.dcm"
        )

    @pytest.mark.parametrize("field", ["study_uid", "series_uid", "sop_uid"])
    def test_an_identifier_that_is_no_uid_is_no_place(self, image: Path, field: str) -> None:
        header: Header = replace(read_header(image), **{field: "../../x"})
        with pytest.raises(ImportFailedError, match="no valid UIDs"):
            place_of(header, KEY)

    def test_an_image_without_patient_has_no_place(self, image: Path) -> None:
        with pytest.raises(ImportFailedError, match="names no patient"):
            place_of(replace(read_header(image), patient_id=b""), KEY)

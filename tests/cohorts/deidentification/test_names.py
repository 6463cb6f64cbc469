from __future__ import annotations

import hashlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from eucaim_fl.cohorts.deidentification.names import (
    identifiers_in_name,
    looks_like_person,
    masked,
    masked_detail,
)

HASH = hashlib.sha256(b"x").hexdigest()


class TestIdentifiersInName:
    @pytest.mark.parametrize(
        "path",
        [
            "imaging_data/EUCAIM-00a1b2c3d4e5f607/2.25.3298007357/1.2.840.113619.2.55.3/IM00001.dcm",
            "EUCAIM-1234567890123456/1.dcm",
            "PAT1/x.dcm",
            "PATIENT-003/t2_tse_tra/0001.dcm",
            "ProstateX-0000/4.000000-t2tsetra-00702/1-01.dcm",
            "LIDC-IDRI-0001/3000566.000000-NA-03192/1-001.dcm",
            "sub-01/ses-01/anat/sub-01_T1w.nii.gz",
            "21b5/MR2018/1282/1.dcm",
            "2018/20180101/2018-01-01/01.01.2018/01_JAN_2018/a.dcm",
            "2018/01/01/a.dcm",
            "3f2b8c1e-1234-4abc-9def-001122334455/index.json",
            f"{HASH}.dcm",
            "d41d8cd98f00b204.nii",
            "ISIC_0024306.jpg",
            "IM0000012",
            "E2345S3I45",
            "clinical_mandatory_view.csv",
            "Siemens_Skyra/Axial T2 TSE/SegmentationMask.nii.gz",
            "MR prostaat kanker/README.md",
            "MR.1.2.840.113619.2.55.12345678.dcm",
            "1.3.12.2.1107.5.2.32.35135.2010081310443848.dcm",
            "",
        ],
    )
    def test_names_that_say_nothing_of_a_person(self, path: str) -> None:
        assert identifiers_in_name(path) == {}

    @pytest.mark.parametrize(
        ("path", "rule"),
        [
            ("07-07-2011/1.dcm", "file_date"),
            ("ProstateX-0000/07-07-2011/4.000000-t2tsetra-00702/1.dcm", "file_date"),
            ("scan_19530312.dcm", "file_date"),
            ("20180704123456.dcm", "file_date"),
            ("1953-03-12.dcm", "file_date"),
            ("12.03.1953.dcm", "file_date"),
            ("12Mar1953", "file_date"),
            ("12_maerz/3-12-1953", "file_date"),
            ("2018/07/04/a.dcm", "file_date"),
            ("hans.mueller@klinik.de/1.dcm", "file_email"),
            ("12345678/1.dcm", "file_number"),
            ("12345678Z.dcm", "file_number"),
            ("MRN_4711081.dcm", "file_number"),
            ("RSSMRA80A01H501U.dcm", "file_number"),
            ("+49 170 1234567.dcm", "file_phone"),
            ("0650 1234567.dcm", "file_phone"),
            ("Rossi_Maria/1.dcm", "file_person"),
            ("MUELLER^HANS.dcm", "file_person"),
            ("mueller^hans.dcm", "file_person"),
            ("Müller, Jürgen.dcm", "file_person"),
            ("Παπαδόπουλος_Νίκος.dcm", "file_person"),
            ("RossiMaria.dcm", "file_person"),
            ("CT_thorax_Garcia-Lopez.nii.gz", "file_person"),
        ],
    )
    def test_names_that_can_name_a_person(self, path: str, rule: str) -> None:
        assert identifiers_in_name(path) == {f"deid.{rule}": 1}

    def test_every_folder_counts(self) -> None:
        assert identifiers_in_name("Rossi_Maria/Bianchi_Luca/12345678.dcm") == {
            "deid.file_person": 2,
            "deid.file_number": 1,
        }

    @given(st.text(max_size=60))
    def test_any_name_is_taken(self, path: str) -> None:
        assert all(count > 0 for count in identifiers_in_name(path).values())


class TestLooksLikePerson:
    def test_one_word_alone_can_not_be_told_from_a_code(self) -> None:
        assert not looks_like_person("Rossi")

    def test_words_that_stand_apart_are_no_name(self) -> None:
        assert not looks_like_person("Rossi T2 axial Maria")

    def test_words_of_medicine_are_no_name(self) -> None:
        assert not looks_like_person("Invasive Ductal Carcinoma, Left Breast")


class TestMasked:
    def test_a_name_without_finding_is_shown(self) -> None:
        assert masked("IM0001.dcm") == "IM0001.dcm"

    def test_a_name_with_a_finding_is_a_hash(self) -> None:
        digest = hashlib.sha256(b"Rossi_Maria.dcm").hexdigest()
        assert masked("Rossi_Maria.dcm") == f"#{digest[:8]}"

    def test_a_mask_is_itself_no_finding(self) -> None:
        assert masked(masked("Rossi_Maria.dcm")) == masked("Rossi_Maria.dcm")


class TestMaskedDetail:
    def test_steps_of_paths_that_name_somebody_are_masked_and_the_rest_stays(self) -> None:
        text = masked_detail("/srv/cohort: ('EUCAIM-00a1b2c3d4e5f607', '../Rossi_Maria'): 19530312")
        assert text.startswith("/srv/cohort: ('EUCAIM-00a1b2c3d4e5f607', '../#")
        assert "Rossi" not in text
        assert "19530312" not in text

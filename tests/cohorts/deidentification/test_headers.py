from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydicom.dataset import Dataset
from pydicom.sequence import Sequence
from pydicom.uid import SecondaryCaptureImageStorage

from eucaim_fl.cohorts.deidentification.headers import identifiers_in_header
from eucaim_fl.cohorts.deidentification.rules import RULES
from eucaim_fl.cohorts.elements import read_elements, walk


def item(**attributes: str) -> Sequence:
    ds = Dataset()
    for name, value in attributes.items():
        setattr(ds, name, value)
    return Sequence([ds])


class TestIdentifiersInHeader:
    def test_a_header_after_eucaims_profile_is_clean(self, header: SimpleNamespace) -> None:
        assert header.found() == {}

    @pytest.mark.parametrize(
        ("keyword", "value", "rule"),
        [
            ("PatientName", "Rossi^Maria", "person_name"),
            ("OtherPatientNames", "Rossi^Maria", "person_name"),
            ("PatientMotherBirthName", "Bianchi", "person_name"),
            ("ResponsiblePerson", "Rossi^Luca", "person_name"),
            ("PatientID", "4711081", "patient_number"),
            ("OtherPatientIDs", "4711081", "patient_number"),
            ("AccessionNumber", "A20180704123", "patient_number"),
            ("IssuerOfPatientID", "Klinik", "institution"),
            ("PatientBirthDate", "19530312", "birth_date"),
            ("StudyDate", "20180704", "date"),
            ("AcquisitionDateTime", "20180704101500", "date"),
            ("PatientAddress", "Via Roma 1", "address_phone"),
            ("PatientTelephoneNumbers", "0650 1234567", "address_phone"),
            ("InstitutionName", "Klinik am See", "institution"),
            ("InstitutionalDepartmentName", "Radiologie", "institution"),
            ("ReferringPhysicianName", "House^Gregory", "staff"),
            ("OperatorsName", "Bond^James", "staff"),
            ("StationName", "MRC40512", "device"),
            ("DeviceSerialNumber", "40512", "device"),
            ("StudyDescription", "MR seen by Rossi", "free_text"),
            ("PatientComments", "diabetes, lives alone", "free_text"),
            ("AdditionalPatientHistory", "fell from a horse", "free_text"),
            ("ImageComments", "call wife", "free_text"),
            ("StudyDescription", "MR prostate", "text_kept"),
            ("SeriesDescription", "t2 Rossi", "description_words"),
            ("SeriesDescription", "t2 +49 170 1234567", "text_pattern"),
            ("ProtocolName", "t2 12.03.1953", "text_pattern"),
            ("Manufacturer", "ask hans@klinik.example", "text_pattern"),
            ("Occupation", "farmer", "patient_detail"),
            ("PatientAge", "095Y", "age_over_89"),
            ("SeriesTime", "101530", "time"),
            ("StudyInstanceUID", "1.3.12.2.1107.5.2", "uid"),
            ("PatientID", "ProstateX-0000", "patient_pseudonym"),
            ("BurnedInAnnotation", "YES", "burned_in"),
            ("PatientIdentityRemoved", "NO", "not_marked"),
        ],
    )
    def test_each_kind_of_element_breaks_its_rule(
        self, header: SimpleNamespace, keyword: str, value: str, rule: str
    ) -> None:
        assert header.found(**{keyword: value}) == {f"deid.{rule}": 1}

    @pytest.mark.parametrize("depth", [1, 3, 8])
    def test_what_lies_in_nested_sequences_counts_like_any_other(self, header: SimpleNamespace, depth: int) -> None:
        inner = item(PatientName="Rossi^Maria", StudyDate="20180704")
        for _ in range(depth - 1):
            inner = item(ReferencedSeriesSequence=inner)
        assert header.found(ReferencedStudySequence=inner) == {"deid.person_name": 1, "deid.date": 1}

    def test_code_sequences_that_name_institutions_and_staff_count(self, header: SimpleNamespace) -> None:
        found = header.found(
            InstitutionCodeSequence=item(CodeMeaning="Klinik am See"),
            OperatorIdentificationSequence=item(PersonAddress="Via Roma 1"),
        )
        assert found == {"deid.institution": 1, "deid.staff": 1, "deid.address_phone": 1}

    def test_an_empty_code_sequence_says_nothing(self, header: SimpleNamespace) -> None:
        assert header.found(InstitutionCodeSequence=Sequence([])) == {}

    def test_private_elements_with_values_are_counted_one_by_one(self, header: SimpleNamespace) -> None:
        ds = header.clean()
        block = ds.private_block(0x0009, "ACME", create=True)
        block.add_new(0x01, "LO", "Rossi")
        block.add_new(0x02, "LO", "")
        block.add_new(0x03, "SQ", item(PatientName="Rossi^Maria"))
        assert header.found(ds) == {"deid.private": 1, "deid.person_name": 1}

    def test_private_elements_of_physics_are_safe_under_their_own_creator_only(self, header: SimpleNamespace) -> None:
        safe, other = header.clean(), header.clean()
        safe.private_block(0x0019, "SIEMENS MR HEADER", create=True).add_new(0x0C, "IS", "800")
        other.private_block(0x0019, "ACME", create=True).add_new(0x0C, "IS", "800")
        assert header.found(safe) == {}
        assert header.found(other) == {"deid.private": 1}

    def test_overlays_and_curves_count_once_a_group(self, header: SimpleNamespace) -> None:
        ds = header.clean()
        ds.add_new(0x60003000, "OW", b"\1\2")
        ds.add_new(0x60000010, "US", 4)
        ds.add_new(0x60023000, "OW", b"\1\2")
        ds.add_new(0x50003000, "OW", b"\1\2")
        assert header.found(ds) == {"deid.overlay_curve": 3}

    def test_titles_and_private_information_of_the_meta_group_count(self, header: SimpleNamespace) -> None:
        ds = header.clean()
        ds.file_meta.SourceApplicationEntityTitle = "KLINIK_MR1"
        assert header.found(ds) == {"deid.device": 1}

    def test_days_of_making_are_advice_in_objects_that_are_made_later(self, header: SimpleNamespace) -> None:
        assert header.found(Modality="SEG", ContentDate="20240704") == {"deid.date_made": 1}
        assert header.found(Modality="SEG", StudyDate="20240704") == {"deid.date": 1}
        assert header.found(Modality="MR", ContentDate="20240704") == {"deid.date": 1}

    def test_shifted_days_have_a_rule_of_their_own(self, header: SimpleNamespace) -> None:
        found = header.found(StudyDate="20110707", LongitudinalTemporalInformationModified="MODIFIED")
        assert found == {"deid.date_shifted": 1}

    def test_captures_that_say_nothing_of_burned_in_text_are_worth_a_look(self, header: SimpleNamespace) -> None:
        assert header.found(SOPClassUID=SecondaryCaptureImageStorage) == {"deid.burned_in_unknown": 1}
        assert header.found(Modality="US") == {"deid.burned_in_unknown": 1}
        assert header.found(Modality="US", BurnedInAnnotation="NO") == {}

    def test_the_patients_own_name_is_found_in_any_other_text(self, header: SimpleNamespace) -> None:
        found = header.found(PatientName="Rossi^Maria", Manufacturer="scanner of ROSSI")
        assert found == {"deid.person_name": 1, "deid.text_pattern": 1}

    def test_a_word_that_only_contains_the_name_is_another_word(self, header: SimpleNamespace) -> None:
        assert header.found(PatientName="Ang^Xyz", Manufacturer="rangefinder") == {"deid.person_name": 1}

    def test_the_date_of_birth_is_found_in_any_other_text(self, header: SimpleNamespace) -> None:
        found = header.found(PatientBirthDate="19530312", SoftwareVersions="v19530312")
        assert found == {"deid.birth_date": 1, "deid.text_pattern": 1}

    @pytest.mark.parametrize("path", ["rossi/1.dcm", "x/4711081/1.dcm", "19530312.dcm"])
    def test_the_patients_values_are_found_in_the_path(self, header: SimpleNamespace, path: str) -> None:
        own = {"PatientName": "Rossi^Maria", "PatientID": "4711081", "PatientBirthDate": "19530312"}
        assert header.found(path=path, **own)["deid.name_in_path"] == 1
        assert "deid.name_in_path" not in header.found(path="a/1.dcm", **own)

    def test_a_pseudonym_in_the_path_is_what_it_is_for(self, header: SimpleNamespace) -> None:
        assert header.found(path=f"imaging_data/{header.pseudonym}/1.dcm") == {}

    def test_headers_in_implicit_little_endian_are_judged_alike(self, header: SimpleNamespace) -> None:
        ds = header.clean(PatientName="Rossi^Maria")
        ds.file_meta.TransferSyntaxUID = "1.2.840.10008.1.2"
        assert header.found(ds) == {"deid.person_name": 1}

    @given(data=st.data())
    def test_it_takes_any_bytes_that_can_be_walked(self, header: SimpleNamespace, data: st.DataObject) -> None:
        raw = bytearray(header.content(header.clean(PatientName="Rossi^Maria")))
        for _ in range(data.draw(st.integers(0, 8))):
            raw[data.draw(st.integers(132, len(raw) - 1))] = data.draw(st.integers(0, 255))
        try:
            elements = walk(bytes(raw))
        except (ValueError, EOFError):
            return
        assert set(identifiers_in_header(elements, "a/b.dcm")) <= set(RULES)

    def test_the_prostate_patient_was_shifted_but_not_cut_to_years(self, shared_data: Path) -> None:
        file = min((shared_data / "prostatex" / "ProstateX-0000").rglob("*.dcm"))
        found = identifiers_in_header(read_elements(file))
        assert {"deid.date_shifted", "deid.private", "deid.uid", "deid.patient_pseudonym"} <= set(found)
        assert not {"deid.person_name", "deid.birth_date", "deid.institution", "deid.staff"} & set(found)

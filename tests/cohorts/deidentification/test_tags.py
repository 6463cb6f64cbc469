from __future__ import annotations

from pydicom.datadict import dictionary_VR, tag_for_keyword

from eucaim_fl.cohorts.deidentification import judges
from eucaim_fl.cohorts.deidentification.tags import SAFE_PRIVATE, SEQUENCES, judges_by_tag, uid_tags


class TestJudgesByTag:
    def test_every_text_date_name_and_uid_of_the_table_has_a_judge(self) -> None:
        from dicomanonymizer.dicomfields_selector import dicom_anonymization_database_selector

        listed = dicom_anonymization_database_selector("dicomfields_2024b")["ALL_TAGS"]
        looked_at = {"PN", "LO", "SH", "ST", "LT", "UT", "UC", "UR", "DA", "DT", "TM", "AE"}
        tags = [tag[0] << 16 | tag[1] for tag in listed if len(tag) == 2]
        assert [hex(t) for t in tags if dictionary_VR(t) in looked_at and t not in judges_by_tag()] == []
        assert [hex(t) for t in tags if dictionary_VR(t) == "UI" and t not in judges_by_tag()] == []

    def test_the_best_known_elements_have_the_right_judge(self) -> None:
        expected = {
            "PatientName": judges.person,
            "PatientID": judges.patient_id,
            "PatientBirthDate": judges.birth_date,
            "AccessionNumber": judges.code,
            "InstitutionName": judges.institution,
            "OperatorsName": judges.staff,
            "StationName": judges.device,
            "StudyDescription": judges.free_text,
            "SeriesDescription": judges.description,
            "StudyDate": judges.date,
            "ContentDate": judges.making_date,
            "SOPInstanceUID": judges.uid,
            "PatientAddress": judges.address,
        }
        for keyword, judge in expected.items():
            assert judges_by_tag()[int(tag_for_keyword(keyword) or 0)] is judge, keyword

    def test_no_judge_looks_at_a_sequence(self) -> None:
        assert [hex(t) for t in judges_by_tag() if dictionary_VR(t) == "SQ"] == []
        assert all(dictionary_VR(tag) == "SQ" for tag in SEQUENCES)


class TestOtherTables:
    def test_uids_to_replace_are_those_of_instances(self) -> None:
        assert 0x00080018 in uid_tags()
        assert 0x00080016 not in uid_tags()

    def test_safe_private_elements_lie_in_odd_groups(self) -> None:
        assert all(group % 2 == 1 and low <= 0xFF for group, low in SAFE_PRIVATE)

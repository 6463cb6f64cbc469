"""Which judge looks at which element: DICOM's table of attributes to protect, grouped into this check's rules.

Source: DICOM PS3.15 2024b table E.1-1, as the package dicom-anonymizer holds it.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache

from eucaim_fl.cohorts.deidentification import judges
from eucaim_fl.cohorts.deidentification.judges import Judge

__all__ = ["BY_VR", "DERIVED", "SAFE_PRIVATE", "SEQUENCES", "judges_by_tag", "uid_tags"]

DERIVED = frozenset({"SEG", "RTSTRUCT", "SR", "PR", "KO", "REG", "M3D"})
"""Modalities of objects that are made after the images, on a day that isn't one of the patient's care."""

SAFE_PRIVATE: Mapping[tuple[int, int], str] = {
    (0x0019, 0x0A): "SIEMENS MR HEADER",  # images in a mosaic
    (0x0019, 0x0C): "SIEMENS MR HEADER",  # b-value
    (0x0019, 0x0D): "SIEMENS MR HEADER",
    (0x0019, 0x0E): "SIEMENS MR HEADER",  # gradient direction
    (0x0019, 0x27): "SIEMENS MR HEADER",
    (0x2001, 0x03): "Philips Imaging DD 001",  # b-value
    (0x2001, 0x04): "Philips Imaging DD 001",
    (0x2005, 0x0D): "Philips MR Imaging DD 001",  # scale intercept
    (0x2005, 0x0E): "Philips MR Imaging DD 001",  # scale slope
    (0x0043, 0x39): "GEMS_PARM_01",  # b-value
    (0x7053, 0x00): "Philips PET Private Group",  # SUV factor
    (0x7053, 0x09): "Philips PET Private Group",
    (0x0065, 0x09): "Image Private Header",  # b-value of United Imaging
}
"""(group, low byte of the element) → creator, of private elements that hold physics alone (PS3.15 table E.3.10-1)."""

_CODES = """00080050 00101000 00101090 00120040 00120042 00120050 00120071 00120082 00200010 00380010 00380060
00400009 00400253 0040050A 00400512 00400551 004006FA 00401001 00402016 00402017 0050001B 40080040
40080200 00101050 00120010 00120020 22000002 22000005"""
_ISSUERS = """00100021 00120022 00120032 00120041 00120043 00120055 00120073 00320012 00380011 00380061 40080042
40080202 00080080 00080081 00081040 00120030 00120031 00120060 00120081 00102299 00321020 00321033
0038001E 00380300 00380400 00400011 00400243 00401005 00402009 0040A027 00404036 04000563 04000564"""
_ADDRESSES = """00080092 00080094 00101040 00102154 00102155 00102150 00102152 00401102 00401103 00401104 00402010
00402011 0040A353 0040A354 4008011A 00160072 00160074 00160076 0016007A 00160084 00160086 0016008B
0016008C"""
_DETAILS = """00101080 00101081 00102160 00102180 001021F0 001021A0 00102000 00102110 00380050 00380500 00401004
00402001"""
_DEVICES = """00020016 00020017 00020018 00020026 00020028 00080054 00080055 00081000 00081010 00181000 00181004
00181005 00181007 00181008 00181009 0018700A 00189367 00189371 00189373 0018937B 00203401 00321021
00400001 00400010 00400241 00400242 00741234 00741236 21000070 21000140 30080105 300A00B2 300A0216
3010001B 3010002D 30100043 00160051 00500020 00500021 00181003"""
_STAFF_NAMES = """00080090 0008009C 00081048 00081050 00081060 00081070 00321032 00400006 00401010 00402008 00404037
0040A075 0040A123 0040A307 0040A352 00700084 300600A6 300E0008 40080102 4008010A 4008010C 40080114
40080119 00880910 0016004D"""
_MAKING = """00080012 00080015 00080021 00080023 00080106 0018A002 00700082 0040A030 0040A032 0040A033 0040A082
30060008 04000562 00189701"""
_BIRTH = "00100030 00100033"
_DESCRIBED_GROUPS = frozenset({0x0018, 0x0020, 0x0028, 0x003A, 0x0062, 0x006A, 0x0072, 0x3002, 0x3006, 0x300A, 0x3010})
_DESCRIBED = """0008103E 00081088 00082111 0018A003 00400254 00400007 00120021 00120051 00120072 0040A160 00181400
00080201 00400600 0040051A"""
_COMMENTS = "00184000 00204000 00209158 00284000 00189424 30100061 3010005A 3010007A 3010007B 3010007F"
_TEXT = frozenset({"LO", "SH", "ST", "LT", "UT", "UC", "UR"})

SEQUENCES: Mapping[int, str] = {
    **dict.fromkeys((0x00080082, 0x00081041, 0x0040A07C, 0x00404027, 0x00404030), "deid.institution"),
    **dict.fromkeys(
        (
            *(0x00080096, 0x0008009D, 0x00081049, 0x00081052, 0x00081062, 0x00081072, 0x0040000B, 0x00401011),
            *(0x00404034, 0x00404035, 0x0040A088, 0x0040A358, 0x00700086, 0x3006004D, 0x3006004E, 0x40080111),
            0x00401101,
        ),
        "deid.staff",
    ),
    **dict.fromkeys((0x0018100A, 0x00404025, 0x00404028), "deid.device"),
    **dict.fromkeys((0x00100050, 0x00100101, 0x00100102, 0x00101100), "deid.patient_detail"),
}
"""Sequences whose items name something by codes, whatever elements they are made of."""

BY_VR: Mapping[str, Judge] = {"PN": judges.person, "DA": judges.date, "DT": judges.date}
"""Judges of elements that no table lists."""


def _tags(text: str) -> list[int]:
    return [int(tag, 16) for tag in text.split()]


@lru_cache(maxsize=1)
def _listed() -> dict[int, str]:
    """Tag → its list in table E.1-1 (D, Z, X, U and their combinations); repeating groups are left to the caller."""
    from dicomanonymizer.dicomfields_selector import dicom_anonymization_database_selector

    table = dicom_anonymization_database_selector("dicomfields_2024b")
    return {
        tag[0] << 16 | tag[1]: name
        for name, tags in table.items()
        if name != "ALL_TAGS"
        for tag in tags
        if len(tag) == 2
    }


@lru_cache(maxsize=1)
def uid_tags() -> frozenset[int]:
    """Tags of UIDs that must be replaced alike in all files of a patient."""
    from pydicom.datadict import dictionary_VR

    return frozenset(tag for tag in _listed() if dictionary_VR(tag) == "UI")


@lru_cache(maxsize=1)
def judges_by_tag() -> dict[int, Judge]:
    """Judge of each element of the table, and of a few more that can hold identifiers (AE titles)."""
    from pydicom.datadict import dictionary_VR

    by_vr: dict[str, Judge] = {
        "PN": judges.person,
        "DA": judges.date,
        "DT": judges.date,
        "TM": judges.time,
        "AE": judges.device,
    }
    found: dict[int, Judge] = {}
    for tag in _listed():
        vr = dictionary_VR(tag)
        if vr in _TEXT:
            found[tag] = judges.description if tag >> 16 in _DESCRIBED_GROUPS else judges.free_text
        elif vr in by_vr:
            found[tag] = by_vr[vr]
    for tags, judge in (
        (_DESCRIBED, judges.description), (_COMMENTS, judges.free_text), (_CODES, judges.code),
        (_ISSUERS, judges.institution), (_ADDRESSES, judges.address), (_DETAILS, judges.detail),
        (_DEVICES, judges.device), (_STAFF_NAMES, judges.staff), (_MAKING, judges.making_date),
        (_BIRTH, judges.birth_date),
    ):  # fmt: skip
        found.update(dict.fromkeys(_tags(tags), judge))
    found.update(dict.fromkeys(uid_tags(), judges.uid))
    found[0x00100020] = judges.patient_id
    found[0x00101010] = judges.age
    return found

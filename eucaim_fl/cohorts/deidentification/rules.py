"""The rules of the de-identification check: what each one means, what to do, and how grave it is in each profile."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from eucaim_fl.sitefile import DeidentificationConfig

__all__ = ["RULES", "Kind", "Rule", "kind_of"]

Kind = Literal["identifier", "advice", ""]


@dataclass(frozen=True)
class Rule:
    """One rule. basic, eucaim: whether the profile takes it for an identifier, an advice, or ("") not at all.

    says, do: fixed texts for reports. source: where the demand comes from.
    """

    name: str
    basic: Kind
    eucaim: Kind
    says: str
    do: str
    source: str


_ATTRIBUTES = "DICOM PS3.15 table E.1-1"
_EUCAIM = "EUCAIM de-identification profile v5"
_GDPR = "GDPR article 4(1)"
_CLEAN = "De-identify these files (`site import --deidentify` writes clean copies), or remove them from the cohort."
_RENAME = "Rename these files and folders after the pseudonyms of their patients, or number them."
_TABLE = "Remove this column or these values from the cohort's tables."
_HEADER = "Clear these header fields, or write the images anew as NIfTI without them."


def _identifier(name: str, says: str, do: str = _CLEAN, source: str = _ATTRIBUTES) -> Rule:
    return Rule(name, "identifier", "identifier", says, do, source)


def _advice(name: str, says: str, do: str, source: str = _ATTRIBUTES) -> Rule:
    return Rule(name, "advice", "advice", says, do, source)


_ALL = (
    _identifier("deid.person_name", "Names of persons stand in headers."),
    _identifier("deid.patient_number", "Headers hold patient, visit or order numbers that are no pseudonyms."),
    _identifier("deid.birth_date", "Days of birth stand in headers."),
    _identifier("deid.address_phone", "Addresses, telephone numbers or places stand in headers."),
    _identifier("deid.staff", "Names of physicians or operators stand in headers."),
    _identifier("deid.institution", "Names of hospitals or departments stand in headers."),
    _identifier("deid.free_text", "Free text that the profile removes stands in headers, with words beyond imaging."),
    _identifier("deid.text_pattern", "Texts of headers hold an e-mail address, a day, a telephone or long number, "
                "or the patient's own name or date of birth."),
    _identifier("deid.name_in_path", "The patient's name, number or date of birth stands in the path of the file.",
                _RENAME),
    _identifier("deid.private", "Private elements with values stand in headers."),
    _identifier("deid.overlay_curve", "Overlays or curves are left in files; they may show names."),
    _identifier("deid.burned_in", "Files say of themselves that text is burned into their pixels.",
                "Remove these images, or mask the text and state BurnedInAnnotation NO.", "DICOM PS3.15 E.3.1"),
    _identifier("deid.burned_in_seen", "Something like text was seen in pixels.",
                "Look at these images; remove them or mask the text.", "DICOM PS3.15 E.3.1"),
    _identifier("deid.device", "Names or serial numbers of machines stand in headers."),
    Rule("deid.date", "identifier", "identifier", "Dates in headers say more than the year.",
         "Cut all dates to 1 January of their year.", _EUCAIM),
    Rule("deid.date_shifted", "advice", "identifier", "Dates in headers are days, although the files say that "
         "dates were modified.", "Cut all dates to 1 January of their year; shifted days won't do.", _EUCAIM),
    _advice("deid.date_made", "Segmentations and reports tell the day on which they were made.",
            "Cut these dates to 1 January of their year."),
    Rule("deid.time", "advice", "", "Times of day stand in headers.", "Remove times, or keep only their differences.",
         _ATTRIBUTES),
    Rule("deid.uid", "", "advice", "UIDs are not under the root 2.25; they may be those of the hospital's archive.",
         "Replace UIDs by hashes under 2.25, alike in all files of a patient.", _EUCAIM),
    Rule("deid.patient_pseudonym", "", "advice", "PatientID is a code, but no EUCAIM pseudonym.",
         "Write PatientID as EUCAIM-<hash>.", _EUCAIM),
    _advice("deid.patient_detail", "Headers tell of patients more than age and sex, such as occupation or allergies.",
            "Remove these elements."),
    _advice("deid.age_over_89", "Ages above 89 years stand in headers.", "Cut such ages to 90 years.",
            "GDPR recital 26; HIPAA 164.514(b)(2)(i)(C)"),
    _advice("deid.text_kept", "Texts that the profile removes are still there; they hold imaging words only.",
            "Remove these texts."),
    _advice("deid.description_words", "Descriptions hold words that are no imaging words.",
            "Look at the descriptions. Words that are harmless at this site belong into cohort.words of the site file.",
            _EUCAIM),
    _advice("deid.burned_in_unknown", "Captured or ultrasound images don't say whether text is burned in.",
            "Look at them, and state BurnedInAnnotation.", "DICOM PS3.15 E.3.1"),
    _advice("deid.trailing", "Bytes that are no elements follow the pixel data.",
            "Write these files anew without them."),
    _advice("deid.not_marked", "Files don't state that identifiers were removed (PatientIdentityRemoved).",
            "State PatientIdentityRemoved YES when de-identifying.", "DICOM PS3.15 E.1.1"),
    _identifier("deid.file_person", "Names of files or folders look like names of persons.", _RENAME, _GDPR),
    _identifier("deid.file_email", "Names of files or folders hold e-mail addresses.", _RENAME, _GDPR),
    _identifier("deid.file_phone", "Names of files or folders hold telephone numbers.", _RENAME, _GDPR),
    _identifier("deid.file_number", "Names of files or folders hold numbers of 7 to 15 digits, such as record or "
                "national numbers.", _RENAME, _GDPR),
    _identifier("deid.file_date", "Names of files or folders hold days of a calendar.", _RENAME, _EUCAIM),
    _identifier("deid.nifti_text", "Headers of NIfTI files hold names of persons, days, addresses or long numbers.",
                _HEADER, _EUCAIM),
    _advice("deid.nifti_words", "Headers of NIfTI files hold words that are no imaging words.", _HEADER,
            _EUCAIM),
    _identifier("deid.nifti_extension", "NIfTI files carry extensions with DICOM elements, comments or other data.",
                _HEADER, _EUCAIM),
    _identifier("deid.nifti_gzip_name", "Compressed files hold a file name or comment that could name a person.",
                "Compress these files again without name (gzip -n).", "RFC 1952"),
    _identifier("deid.table_column", "A column of a table is called like an identifier and holds values.", _TABLE,
                _GDPR),
    _identifier("deid.table_email", "Cells of a table hold e-mail addresses.", _TABLE, _GDPR),
    _identifier("deid.table_phone", "Cells of a table hold telephone numbers.", _TABLE, _GDPR),
    _identifier("deid.table_date", "Cells of a table hold days of a calendar; only 1 January is allowed.",
                _TABLE, _EUCAIM),
    _identifier("deid.table_person", "Cells of a table look like names of persons.", _TABLE, _GDPR),
    _identifier("deid.table_number", "Cells of a table hold numbers of 7 digits or more, or bank accounts.", _TABLE,
                _GDPR),
    _advice("deid.table_text", "Cells of a table hold long free text.",
            "Read these texts, and remove what names a person.",
            _GDPR),
)  # fmt: skip

RULES: Mapping[str, Rule] = {rule.name: rule for rule in _ALL}
"""All rules by name, in the order in which they are named as the reason for setting a patient aside."""

_UNKNOWN = _identifier(
    "deid.unknown", "A rule that this version doesn't know was broken.", "Scan the cohort again.", ""
)


def kind_of(rule: str, policy: DeidentificationConfig) -> Kind:
    """How grave a rule is in the policy's profile; a rule that isn't in the table counts as an identifier."""
    known = RULES.get(rule, _UNKNOWN)
    return known.eucaim if policy.profile == "eucaim" else known.basic

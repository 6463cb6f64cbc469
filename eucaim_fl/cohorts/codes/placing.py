"""A table's coded value in plain words, or the fact that nobody knows the code. Nothing is ever guessed."""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import lru_cache

from eucaim_fl.cohorts.codes.vocabulary import MODALITY_TERMS, PREFIXES, SEX_WORDS, WORDS

__all__ = ["Placed", "is_sex_column", "looks_coded", "modality", "place", "plain_word"]

_LONGEST = 256
_EUCAIM = re.compile(r"(?:COM|CLIN|BP|IMG|SPEC)\d{4,10}")
_RADLEX = re.compile(r"RID\d{1,7}")
_MORPHOLOGY = re.compile(r"\d{4}/\d")
_TOPOGRAPHY = re.compile(r"(C\d{2})(?:\.?\d)?")
_SNOMED = re.compile(r"\d{6,18}")
_GLUED = re.compile(r"(SNOMEDCT|SCT|ICDO3)[ _-]?(\d.*|C\d.*)")
_IRIS = (
    ("cancerimage.eu/ontology/eucaim", "EUCAIM"),
    ("snomed.info/", "SNOMEDCT"),
    ("radlex.org/", "RADLEX"),
)
_SEX_COLUMNS = frozenset(
    {"sex", "gender", "patient_sex", "patientsex", "patient_gender", "birth_sex", "patient_birth_sex", "sex_at_birth"}
)
_BODY_COLUMNS = ("body", "topography", "organ")

# Verhoeff's check digit, the last one of every SNOMED CT identifier: the dihedral group D5 and a permutation of it.
_PERMUTATION = (1, 5, 7, 6, 2, 8, 3, 0, 9, 4)


@dataclass(frozen=True)
class Placed:
    """A known value. system: EUCAIM, SNOMEDCT, RADLEX, ICDO3, NCIT or DICOM. code: without prefix."""

    word: str
    system: str
    code: str


def _times(a: int, b: int) -> int:
    """Product in D5; 0 to 4 are turns, 5 to 9 reflections."""
    if a < 5:
        return (a + b) % 5 if b < 5 else 5 + (a + b) % 5
    return 5 + (a - b) % 5 if b < 5 else (a - b) % 5


def _has_check_digit(digits: str) -> bool:
    check = 0
    for place_from_right, digit in enumerate(reversed(digits)):
        value = int(digit)
        for _ in range(place_from_right % 8):
            value = _PERMUTATION[value]
        check = _times(check, value)
    return check == 0


def _folded(column: str) -> str:
    return re.sub(r"[\s-]+", "_", column.strip().lower())


def is_sex_column(column: str) -> bool:
    """Whether a column holds patients' sex, by its name."""
    return _folded(column) in _SEX_COLUMNS


def _split(text: str, column: str) -> tuple[str, str] | None:
    """Code system and code of what looks like a code; None for any other text."""
    if text.lower().startswith(("http://", "https://")):
        system = next((name for part, name in _IRIS if part in text.lower()), "")
        return system, re.split(r"[#/]", text)[-1]
    prefix, colon, code = text.partition(":")
    if colon and prefix.strip().upper() in PREFIXES:
        return PREFIXES[prefix.strip().upper()], code.strip()
    if glued := _GLUED.fullmatch(text):
        return PREFIXES[glued[1]], glued[2]
    if _EUCAIM.fullmatch(text):
        return "EUCAIM", text
    if _RADLEX.fullmatch(text):
        return "RADLEX", text
    name = _folded(column)
    if _MORPHOLOGY.fullmatch(text) and ("morphology" in name or "histology" in name):
        return "ICDO3", text
    if _TOPOGRAPHY.fullmatch(text) and "topography" in name:
        return "ICDO3", text
    return None


def _known(system: str, code: str) -> Placed | None:
    words = WORDS.get(system, {})
    if system == "SNOMEDCT" and not (_SNOMED.fullmatch(code) and code.isascii() and _has_check_digit(code)):
        return None
    if code in words:
        return Placed(words[code], system, code)
    # of a place in the body the vocabulary has the whole organ: C61.9 and C34.1 are the prostate and a lung
    if system == "ICDO3" and (organ := _TOPOGRAPHY.fullmatch(code)) and organ[1] in words:
        return Placed(words[organ[1]], system, code)
    return None


@lru_cache(maxsize=65536)
def place(value: str, column: str = "") -> Placed | None:
    """What the vocabulary knows of a cell's value; None if it is no code, or one that nobody placed.

    Codes may be prefixed (`EUCAIM:COM1001366`, `SNOMEDCT248153007`), whole IRIs, or bare where their shape says what
    they are (COM1001366, RID10312); a bare number is a number. Bare ICD-O-3 codes count in columns of morphology,
    histology and topography, DICOM's body parts in those of body, organ and topography, and letters or words for sex
    (M, FEMALE) in those of sex alone. SNOMED CT codes must have a right check digit.

    >>> place("ICDO3:8140/3")
    Placed(word='adenocarcinoma', system='ICDO3', code='8140/3')
    >>> place("M", "patient_birth_sex").word, place("M", "t_stage")
    ('male', None)
    """
    text = value.strip()
    if not text or len(text) > _LONGEST:
        return None
    parts = _split(text, column)
    if parts is not None:
        return _known(*parts)
    if is_sex_column(column) and text.upper() in SEX_WORDS:
        return Placed(SEX_WORDS[text.upper()], "DICOM", text)
    if text in WORDS["DICOM"] and any(part in _folded(column) for part in _BODY_COLUMNS):
        return Placed(WORDS["DICOM"][text], "DICOM", text)
    return None


def looks_coded(value: str, column: str = "") -> bool:
    """Whether a cell's value has a code's prefix or shape, known or not.

    >>> looks_coded("COM9999999"), looks_coded("LOINC:1-8"), looks_coded("74"), looks_coded("10:30")
    (True, True, False, False)
    """
    text = value.strip()
    return 0 < len(text) <= _LONGEST and _split(text, column) is not None


def plain_word(value: str, column: str = "") -> str:
    """A coded value in plain words; a value that is no known code comes back as it is.

    >>> plain_word("EUCAIM:COM1001366"), plain_word("C61.9", "topography"), plain_word("63")
    ('male', 'prostate', '63')
    """
    placed = place(value, column)
    return value if placed is None else placed.word


def modality(code: str) -> str:
    """The DICOM modality of an imaging procedure's code or name, or an empty text if it is unknown.

    >>> modality("EUCAIM:IMG1000026"), modality("MRI"), modality("IMG9")
    ('CT', 'MR', '')
    """
    placed = place(code)
    word = code.strip().upper() if placed is None else placed.word
    return MODALITY_TERMS.get(word, "")

"""What the index keeps of a header's texts: terms that everybody uses, nothing that only one patient could have."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable
from functools import lru_cache

from eucaim_fl.cohorts.deidentification.words import plain_words, tokens

__all__ = ["image_type", "modality", "photometric", "term", "vendor", "words_of", "year_of"]

_LONGEST = 1024
_TERM = re.compile(r"[A-Z0-9 _./-]{1,32}")
_DAY = re.compile(r"((?:18|19|20|21)\d\d)\.?(\d\d)?\.?(\d\d)?")
# fmt: off
_VENDORS = [
    "accuray", "agfa", "barco", "biograph", "bruker", "canon", "carestream", "dexela", "elekta", "esaote", "fuji",
    "general electric", "ge", "giotto", "hitachi", "hologic", "icad", "ims", "kodak", "konica", "lorad", "mediso",
    "mevis", "mim", "mindray", "neusoft", "philips", "picker", "planmed", "qiicr", "samsung", "sectra", "siemens",
    "shimadzu", "toshiba", "trex", "uih", "united imaging", "varian", "villa", "visage", "vital images",
]
_NAMES = {"general electric": "GE", "ge": "GE", "fuji": "Fujifilm", "uih": "United Imaging", "ims": "IMS",
          "mim": "MIM", "qiicr": "QIICR", "icad": "iCAD"}
_MODALITY_CODES = """
    ANN AR ASMT AU BDUS BI BMD CFM CR CT CTPROTOCOL DG DMS DOC DX ECG EEG EMG EOG EPS ES FID GM HC HD IO IOL IVOCT IVUS
    KER KO LEN LS M3D MG MR NM OAM OCT OP OPM OPR OPT OPTBSV OPTENF OPV OSS OT PA PLAN POS PR PT PX REG RESP RF RG
    RTDOSE RTIMAGE RTINTENT RTPLAN RTRAD RTRECORD RTSEGANN RTSTRUCT RWV SEG SM SMR SR SRF STAIN TEXTUREMAP TG US VA XA
    XAPROTOCOL XC
"""
_TYPE_WORDS = """
    average csa default diff2d dis3d dixon fat fieldmap fil inphase ip m mag magnitude mean mfsplit min mip moco mosaic
    mpr nd none norm op opp outphase p pha phase post proj projection r real se sh som4 som5 som7 spi spr st sub
    subtraction t1 t2 ud um uncompressed vfa vrt w water
"""
_PHOTOMETRIC = frozenset({
    "MONOCHROME1", "MONOCHROME2", "PALETTE COLOR", "RGB", "YBR_FULL", "YBR_FULL_422", "YBR_PARTIAL_420", "YBR_ICT",
    "YBR_RCT", "XYB",
})
# fmt: on
_MODALITIES, _TYPES = frozenset(_MODALITY_CODES.split()), frozenset(_TYPE_WORDS.split())


def words_of(raw: bytes, extra: Collection[str]) -> str:
    """The imaging words of a stored text (see `plain_words`). Text that is no UTF-8 is taken as Latin-1."""
    return _words(raw[:_LONGEST].strip(b" \0"), frozenset(extra))


@lru_cache(maxsize=4096)
def _words(raw: bytes, extra: frozenset[str]) -> str:
    try:
        text = raw.decode("utf-8")
    except UnicodeDecodeError:
        text = raw.decode("latin-1")
    return plain_words(text, extra)


@lru_cache(maxsize=4096)
def term(text: str) -> str:
    """A short term in capitals if each word of it is an imaging word, else "".

    >>> term("Prostate"), term("Mary Smith")
    ('PROSTATE', '')
    """
    value = text.strip().upper()
    if not _TERM.fullmatch(value):
        return ""
    words = tokens(value)
    return value if words and plain_words(value).split() == words else ""


def image_type(values: Iterable[str]) -> tuple[str, ...]:
    """Those values of ImageType that are terms, in their order, at most 16."""
    return tuple(kept for value in list(values)[:16] if (kept := _type(value)))


@lru_cache(maxsize=4096)
def _type(value: str) -> str:
    words = tokens(value) if _TERM.fullmatch(value.upper()) else []
    known = all(word in _TYPES or term(word) for word in words)
    return value.upper() if words and known else ""


def modality(text: str) -> str:
    """A modality of DICOM (PS3.3 C.7.3.1.1.1), or "" if it is none."""
    return text if text in _MODALITIES else ""


def photometric(text: str) -> str:
    """A photometric interpretation of DICOM (PS3.3 C.7.6.3.1.2), or "" if it is none."""
    return text if text in _PHOTOMETRIC else ""


@lru_cache(maxsize=4096)
def vendor(text: str) -> str:
    """The usual name of a manufacturer; "other" if it isn't known, "" if none is stated.

    >>> vendor("GE MEDICAL SYSTEMS"), vendor("Siemens Healthineers"), vendor("Dr. Smith"), vendor("")
    ('GE', 'Siemens', 'other', '')
    """
    words = " ".join(tokens(text))
    if not words:
        return ""
    found = next((name for name in _VENDORS if f" {words} ".find(f" {name}") >= 0 and _fits(name, words)), None)
    return "other" if found is None else _NAMES.get(found, found.title())


def _fits(name: str, words: str) -> bool:
    """Short names must be whole words: `ge` is no part of `gendex`."""
    return len(name) > 4 or f" {name} " in f" {words} " or (name == "fuji" and "fujifilm" in words)


def year_of(date: str) -> str:
    """The year of a DICOM date, `YYYY`; with month and day only where they are 1 January, as de-identified dates are.

    "" if it is no date.

    >>> year_of("20180704"), year_of("20180101"), year_of("2018.07.04"), year_of("unknown")
    ('2018', '20180101', '2018', '')
    """
    found = _DAY.fullmatch(date.strip())
    if found is None:
        return ""
    return f"{found[1]}0101" if found[2] == "01" and found[3] == "01" else found[1]

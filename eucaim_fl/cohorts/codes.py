"""EUCAIM's coded clinical values in plain words.

Source: the codes of the EUCAIM ontology (https://cancerimage.eu/ontology/EUCAIM#…), and the SNOMED CT, RadLex and
NCIt codes that federated search uses for the same things.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

__all__ = ["MODALITIES", "PLAIN_WORDS", "modality", "plain_word"]

MODALITIES: Mapping[str, str] = MappingProxyType(
    {
        "IMG1000022": "MR",
        "IMG1000038": "MR",
        "IMG1000026": "CT",
        "IMG1000042": "CT",
        "IMG1000030": "MG",
        "IMG1000037": "PT",
        "IMG1000035": "US",
        "IMG1000028": "DX",
        "RID10312": "MR",
        "RID10321": "CT",
        "RID10337": "PT",
    }
)
"""Code of an imaging procedure → DICOM modality (PS3.3 C.7.3.1.1.1)."""

PLAIN_WORDS: Mapping[str, str] = MappingProxyType(
    {
        # sex; the two last are those of older tools
        "COM1001366": "male",
        "COM1001370": "female",
        "COM1001288": "unspecified",
        "COM1001289": "unknown",
        "COM1000180": "male",
        "COM1000177": "female",
        "248153007": "male",
        "248152002": "female",
        # population
        "COM1001087": "patient with cancer",
        "COM1001086": "non-malignant lesion",
        "COM1002624": "screening",
        "COM1002625": "control",
        # units
        "COM1000151": "year",
        "COM1000154": "month",
        "COM1000155": "week",
        "COM1000153": "day",
        # cancer
        "CLIN1000060": "breast cancer",
        "CLIN1000065": "lung cancer",
        "CLIN1000075": "prostate cancer",
        "CLIN1000057": "colon cancer",
        "CLIN1000077": "rectum cancer",
        "CLIN1000071": "liver cancer",
        "CLIN1000079": "pancreas cancer",
        "254837009": "breast cancer",
        "363358000": "lung cancer",
        "399068003": "prostate cancer",
        "363406005": "colon cancer",
        # organ
        "BP1000136": "breast",
        "BP1000113": "lung",
        "BP1000021": "prostate",
        "BP1000257": "colon",
        "BP1000130": "rectum",
        "BP1000105": "liver",
        "BP1000051": "brain",
        "BP1000067": "chest",
        "BP1000092": "pelvis",
        "76752008": "breast",
        "39607008": "lung",
        "41216001": "prostate",
        "71854001": "colon",
        "12921003": "pelvis",
        # vendor
        "IMG1000044": "Siemens",
        "IMG1000045": "Toshiba",
        "IMG1000046": "Philips",
        "IMG1000047": "GE",
        "IMG1000050": "Canon",
        "IMG1000060": "Fujifilm",
        "IMG1000064": "Hologic",
        # tier
        "SPEC1000009": "tier 1",
        "SPEC1000011": "tier 2",
        "SPEC1000010": "tier 3",
        # who segmented
        "COM1000003": "manual",
        "COM1000005": "semi-automatic",
        "COM1000008": "automatic",
        **MODALITIES,
    }
)
"""Bare code → plain word."""

_NUMERIC_SCHEMES = ("SNOMEDCT", "SCT")  # their codes are bare numbers, so they count only with their prefix


def _bare(value: str) -> str:
    """The code without the scheme in front of it; an empty text if it is a bare number without a scheme."""
    text = value.strip().rpartition("#")[2]
    _, colon, code = text.rpartition(":")
    if colon:
        return code.strip()
    for prefix in _NUMERIC_SCHEMES:
        if text.startswith(prefix):
            return text.removeprefix(prefix)
    return "" if text.isdigit() else text


def plain_word(value: str) -> str:
    """A coded value in plain words; a value that is no known code comes back as it is.

    Codes may be bare (COM1001366), prefixed (EUCAIM:COM1001366, SNOMEDCT248153007) or whole IRIs.

    >>> plain_word("EUCAIM:COM1001366"), plain_word("ICDO3:8140/3"), plain_word("63")
    ('male', 'ICDO3:8140/3', '63')
    """
    return PLAIN_WORDS.get(_bare(value), value)


def modality(code: str) -> str:
    """The DICOM modality of an imaging procedure's code, or an empty text if the code is unknown.

    >>> modality("EUCAIM:IMG1000026"), modality("IMG9")
    ('CT', '')
    """
    return MODALITIES.get(_bare(code), "")

"""Coded clinical values in plain words, by one vocabulary of a pinned version.

Source: the codes of the EUCAIM ontology (https://cancerimage.eu/ontology/EUCAIM#…), the SNOMED CT and RadLex codes that
federated search uses for the same things, ICD-O-3, and DICOM's own terms.
"""

from __future__ import annotations

from eucaim_fl.cohorts.codes.placing import (
    Placed,
    is_sex_column,
    looks_coded,
    modality,
    place,
    plain_word,
)
from eucaim_fl.cohorts.codes.vocabulary import COLUMN_ALIASES, VOCABULARY, WORDS

__all__ = [
    "COLUMN_ALIASES",
    "VOCABULARY",
    "WORDS",
    "Placed",
    "is_sex_column",
    "looks_coded",
    "modality",
    "place",
    "plain_word",
]

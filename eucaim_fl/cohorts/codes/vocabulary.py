"""The vocabulary: pinned data in `vocabulary.json`, loaded once."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

__all__ = ["COLUMN_ALIASES", "MODALITY_TERMS", "PREFIXES", "SEX_WORDS", "VOCABULARY", "WORDS"]

_DATA: dict[str, Any] = json.loads(Path(__file__).with_name("vocabulary.json").read_text(encoding="utf-8"))

VOCABULARY: str = _DATA["version"]
"""Version of the vocabulary. Equal versions read equal tables into equal words."""
WORDS: Mapping[str, Mapping[str, str]] = MappingProxyType(
    {system: MappingProxyType(words) for system, words in _DATA["words"].items()}
)
"""Code system → code → plain word."""
PREFIXES: Mapping[str, str] = MappingProxyType(_DATA["prefixes"])
"""What may stand before a code (upper case) → code system, whether or not the vocabulary has words of it."""
MODALITY_TERMS: Mapping[str, str] = MappingProxyType(_DATA["modalities"])
"""What tables call a modality → DICOM modality (PS3.3 C.7.3.1.1.1)."""
SEX_WORDS: Mapping[str, str] = MappingProxyType(_DATA["sex"])
"""What tables write in columns of sex (upper case) → plain word."""
COLUMN_ALIASES: Mapping[str, str] = MappingProxyType(_DATA["columns"])
"""Names of columns that other versions of EUCAIM's tables use → names of the present ones."""

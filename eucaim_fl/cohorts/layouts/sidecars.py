"""What JSON files beside NIfTI images say of them: modality, description and series, and nothing else."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from eucaim_fl.cohorts.deidentification.words import plain_words
from eucaim_fl.cohorts.facts import SeriesFacts
from eucaim_fl.cohorts.index.terms import modality as known_modality
from eucaim_fl.cohorts.layouts.notes import Notebook
from eucaim_fl.cohorts.layouts.places import Place
from eucaim_fl.cohorts.layouts.tables import read_json
from eucaim_fl.errors import CohortError, DataError

__all__ = ["described_by_bids", "described_by_dicom_json", "stem"]

_LARGEST_BYTES = 16 * 1024 * 1024
_UID = re.compile(r"[0-9][0-9.]{0,63}")


def stem(path: str) -> str:
    """A NIfTI file's name without folders and ending.

    >>> stem("a/b/T2w.nii.gz"), stem("x.nii")
    ('T2w', 'x')
    """
    return re.sub(r"\.nii(\.gz)?$", "", path.rpartition("/")[2], flags=re.IGNORECASE)


def _sidecar(place: Place, stack: SeriesFacts, notes: Notebook) -> dict[str, Any]:
    """The mapping in the JSON file of the same name, or (of a list of one) in it; {} where there is none."""
    folder, slash, _ = stack.files[0].rpartition("/")
    try:
        relative = place.claim(f"{folder}{slash}{stem(stack.files[0])}.json")
        if not place.path(relative).is_file():
            return {}
        value = read_json(place.path(relative), _LARGEST_BYTES)
    except (CohortError, DataError):
        notes.note("layout.sidecars_unreadable")
        return {}
    if isinstance(value, list) and len(value) == 1:
        value = value[0]
    return value if isinstance(value, dict) else {}


def _text(value: Any) -> str:
    return value.strip() if isinstance(value, str) else ""


def _replaced(place: Place, stack: SeriesFacts, modality: str, description: str, series_uid: str) -> SeriesFacts:
    """The stack with what is well-formed of these texts."""
    words = plain_words(" ".join(filter(None, (stack.description, description))), place.words)
    return replace(
        stack,
        modality=known_modality(modality) or stack.modality,
        description=" ".join(dict.fromkeys(words.split())),
        series_uid=series_uid if _UID.fullmatch(series_uid) else stack.series_uid,
    )


def _attribute(header: dict[str, Any]) -> Callable[[str], str]:
    """First value of a tag (eight hexadecimal digits) of DICOM JSON."""

    def first(tag: str) -> str:
        element = header.get(tag)
        values = element.get("Value") if isinstance(element, dict) else None
        return _text(values[0]) if isinstance(values, list) and values else ""

    return first


def described_by_dicom_json(place: Place, stack: SeriesFacts, notes: Notebook) -> SeriesFacts:
    """The stack with Modality, SeriesDescription (imaging words) and SeriesInstanceUID of the DICOM JSON beside it.

    Source: DICOM PS3.18 annex F.
    """
    header = _sidecar(place, stack, notes)
    if not header:
        return stack
    first = _attribute(header)
    return _replaced(place, stack, first("00080060"), first("0008103E"), first("0020000E"))


def described_by_bids(place: Place, stack: SeriesFacts, notes: Notebook) -> SeriesFacts:
    """The stack with Modality, SeriesDescription and SeriesInstanceUID of the BIDS sidecar beside it.

    Source: BIDS 1.10, sidecar JSON.
    """
    header = _sidecar(place, stack, notes)
    if not header:
        return stack
    names = ("Modality", "SeriesDescription", "SeriesInstanceUID")
    modality, description, uid = (_text(header.get(name)) for name in names)
    return _replaced(place, stack, modality, description, uid)

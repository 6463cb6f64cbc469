"""What the EUCAIM profile puts in the place of a header's values: one action for each kind of element.

An action takes a data set and a tag, as the package dicom-anonymizer calls them, and changes that element.
"""

from __future__ import annotations

import hashlib
import hmac
import uuid
from collections.abc import Callable, Collection
from typing import Any

from pydicom.dataset import Dataset
from pydicom.multival import MultiValue

from eucaim_fl.cohorts.deidentification import judges
from eucaim_fl.cohorts.deidentification.patterns import is_pseudonym
from eucaim_fl.cohorts.deidentification.tags import judges_by_tag
from eucaim_fl.cohorts.deidentification.words import plain_words

__all__ = ["Action", "hashed_uid", "patient_pseudonym", "replacements", "year_only"]

Action = Callable[[Dataset, tuple[int, int]], None]

_KEPT = frozenset({0x00100040, 0x00101010, 0x00101020, 0x00101030, 0x00102203})  # sex, age, size and weight (for SUV)
_KEPT_TIMES = frozenset({0x00080031, 0x00080032, 0x00181072, 0x00181073})
_KEPT_TIMES_OF_DAYS = frozenset({0x0008002A, 0x00181078, 0x00181079, 0x00189074, 0x00189151})
_REMOVED_KINDS = frozenset(
    {
        *(judges.free_text, judges.address, judges.detail, judges.code),
        *(judges.staff, judges.institution, judges.device),
    }
)
_REMOVED_SEQUENCES = frozenset({0x0040A073, 0x00401101, 0x00340001})
_KEPT_SEQUENCES = frozenset({0x00081140, 0x00082112, 0x00081111, 0x0040A730, 0x00700001})


def _hash(secret: bytes, *parts: str) -> bytes:
    return hmac.new(secret, "\x1f".join(parts).encode("utf-8", "surrogateescape"), hashlib.sha256).digest()


def patient_pseudonym(secret: bytes, patient_id: str) -> str:
    """`EUCAIM-<16 hexadecimal digits>` from a keyed hash; empty stays empty, and a EUCAIM pseudonym stays itself."""
    text = patient_id.strip(" \0")
    return text if not text or is_pseudonym(text) else f"EUCAIM-{_hash(secret, 'patient', text).hex()[:16]}"


def hashed_uid(secret: bytes, uid: str) -> str:
    """A UID under 2.25 from a keyed hash, the same for the same UID; UIDs of the standard and empty ones stay."""
    text = uid.strip(" \0")
    if not text or text.startswith("1.2.840.10008."):
        return text
    return f"2.25.{uuid.UUID(bytes=_hash(secret, 'uid', text)[:16], version=4).int}"


def _keep(dataset: Dataset, tag: tuple[int, int]) -> None:
    """Leave the element as it is."""


def _remove(dataset: Dataset, tag: tuple[int, int]) -> None:
    """Remove the element, whatever it is."""
    if tag in dataset:
        del dataset[tag]


def _set(change: Callable[[str], Any]) -> Action:
    """An action that changes each text of an element; an empty one stays."""

    def act(dataset: Dataset, tag: tuple[int, int]) -> None:
        element = dataset.get(tag)
        if element is None or element.is_empty:
            return
        value = element.value
        many = isinstance(value, MultiValue)
        element.value = [change(str(v)) for v in value] if many else change(str(value))

    return act


def year_only(text: str) -> str:
    """A DA or DT cut to 1 January of its year; what has no year of four digits becomes empty."""
    return f"{text[:4]}0101" if text[:4].isdecimal() and len(text) >= 4 else ""


def _year_and_time(text: str) -> str:
    return f"{year_only(text)}{text[8:]}" if year_only(text) else ""


def _age(text: str) -> str:
    return "090Y" if judges.age(text.encode()) else text


def replacements(secret: bytes, names: Collection[str]) -> dict[tuple[int, int], Action]:
    """Actions by tag, beyond and instead of the basic profile's.

    EUCAIM keeps descriptions (their imaging words), years, age, sex and all references. Kept as well: the times that
    uptake and dynamics need, size and weight.

    names: words of the patient's name, lower case; they stay in no text.
    """

    def words(text: str) -> str:
        kept = plain_words(text)
        return " ".join(word for word in kept.split() if word not in names)[:64]

    actions: dict[tuple[int, int], Action] = {}
    for tag, judge in judges_by_tag().items():
        pair = (tag >> 16, tag & 0xFFFF)
        if judge is judges.uid:
            actions[pair] = _set(lambda text: hashed_uid(secret, text))
        elif judge is judges.description:
            actions[pair] = _set(words)
        elif judge in (judges.date, judges.making_date):
            actions[pair] = _set(_year_and_time if tag in _KEPT_TIMES_OF_DAYS else year_only)
        elif judge is judges.birth_date:
            actions[pair] = _set(lambda text: "")
        elif judge is judges.time:
            actions[pair] = _keep if tag in _KEPT_TIMES else _set(lambda text: "000000")
        elif judge in _REMOVED_KINDS:
            actions[pair] = _remove
    for tag in (0x00080050, 0x00080090, 0x00100010, 0x00200010):  # accession, referring physician, patient, study ID
        actions[tag >> 16, tag & 0xFFFF] = _set(lambda text: "")
    for tag in (0x00181000, 0x0040A123, 0x00700084, 0x0040A075, 0x00400512, 0x00400551):  # must have a value in places
        actions.pop((tag >> 16, tag & 0xFFFF), None)
    for tag in _KEPT | _KEPT_SEQUENCES:
        actions[tag >> 16, tag & 0xFFFF] = _keep
    for tag in _REMOVED_SEQUENCES:
        actions[tag >> 16, tag & 0xFFFF] = _remove
    actions[0x0010, 0x1010] = _set(_age)
    actions[0x0010, 0x0020] = _set(lambda text: patient_pseudonym(secret, text))
    actions[0x0008, 0x0080] = _set(lambda text: _hash(secret, "institution", text).hex()[:32])
    actions[0x0008, 0x0082] = _remove
    actions[0x0040, 0x0555] = _remove  # the context of acquisition is free text in practice
    return actions

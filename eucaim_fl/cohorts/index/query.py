"""Which stacks of a cohort one wants, as SQL with parameters: no value ever becomes part of the text."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from eucaim_fl.cohorts.facts import FileKind
from eucaim_fl.errors import CohortError

__all__ = ["CohortQuery", "below_folder", "conditions"]


@dataclass(frozen=True, kw_only=True)
class CohortQuery:
    """Stacks that fit everything that is stated; what is empty or None does not matter.

    folders: anywhere below one of these (relative, POSIX). patients: keyed hashes, as `Index.patient_key` makes them.
    studied: first and last day or year of the study, `YYYY` or `YYYYMMDD`; the index knows years only (and 1 January),
    so a stack fits if any day of its year does. words: all of these stand in description, protocol or sequence.
    thickness_mm, b_value, slices: least and largest value allowed. usable: without (or with) a reason not to be used.
    """

    folders: tuple[str, ...] = ()
    patients: tuple[str, ...] = ()
    studies: tuple[str, ...] = ()
    series: tuple[str, ...] = ()
    kind: FileKind | None = None
    modality: tuple[str, ...] = ()
    body_part: tuple[str, ...] = ()
    studied: tuple[str, str] | None = None
    words: tuple[str, ...] = ()
    manufacturer: tuple[str, ...] = ()
    plane: Literal["axial", "coronal", "sagittal", "oblique"] | None = None
    thickness_mm: tuple[float, float] | None = None
    b_value: tuple[float, float] | None = None
    slices: tuple[int, int] | None = None
    contrast: bool | None = None
    usable: bool | None = None


def conditions(query: CohortQuery) -> tuple[str, list[Any]]:
    """The condition of a query, and its parameters in order.

    Raises CohortError if a day is neither `YYYY` nor `YYYYMMDD`.
    """
    parts: list[str] = []
    values: list[Any] = []

    def add(condition: str, *parameters: Any) -> None:
        parts.append(condition)
        values.extend(parameters)

    if query.folders:
        below = [below_folder(folder) for folder in query.folders]
        add("(" + " OR ".join(text for text, _ in below) + ")", *(value for _, given in below for value in given))
    listed: dict[str, Sequence[str]] = {
        "patient_id": query.patients,
        "study_uid": query.studies,
        "series_uid": query.series,
        "modality": query.modality,
        "body_part": [part.upper() for part in query.body_part],
        "manufacturer": query.manufacturer,
    }
    for column, wanted in listed.items():
        if wanted:
            add(f"{column} IN ({', '.join('?' * len(wanted))})", *wanted)
    for column, value in {"kind": query.kind, "plane": query.plane, "contrast": query.contrast}.items():
        if value is not None:
            add(f"{column} = ?", value)
    for column, limits in {
        "thickness_mm": query.thickness_mm,
        "b_value": query.b_value,
        "size[3]": query.slices,
    }.items():
        if limits is not None:
            add(f"{column} BETWEEN ? AND ?", *limits)
    if query.studied is not None:
        first, last = (_day(text) for text in query.studied)
        add(
            "study_date <> '' AND rpad(study_date, 8, '9') >= ? AND rpad(study_date, 8, '0') <= ?",
            first,
            last.ljust(8, "9"),
        )
    for word in query.words:
        add("contains(words, ?)", f" {word.lower()} ")
    if query.usable is not None:
        add("code = ''" if query.usable else "code <> ''")
    return " AND ".join(parts) or "true", values


def below_folder(folder: str) -> tuple[str, list[str]]:
    """The condition that a row lies in a folder or anywhere below it, and its parameters."""
    if not folder:
        return "true", []
    return "(folder = ? OR (folder >= ? AND folder < ?))", [folder, f"{folder}/", f"{folder}0"]  # "0" follows "/"


def _day(text: str) -> str:
    if len(text) not in (4, 8) or not text.isdecimal() or not text.isascii():
        raise CohortError("A day of a query is neither YYYY nor YYYYMMDD.")
    return text

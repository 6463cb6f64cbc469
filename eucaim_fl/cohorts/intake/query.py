"""Which images a hospital wants to bring in: what to ask an archive for, and what to leave where it is."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import date
from pathlib import Path

from eucaim_fl.cohorts.intake.headers import Header
from eucaim_fl.errors import ImportFailedError

__all__ = ["CohortQuery", "read_patients"]

_LABELS = frozenset({"SEG", "RTSTRUCT"})
_LARGEST_LIST_BYTES = 16 * 1024 * 1024
_WILD = frozenset("*?\\")
_PATHS = ("/", "./", "../", "~")


@dataclass(frozen=True, kw_only=True)
class CohortQuery:
    """What an image must state to be brought in; an empty condition asks for nothing.

    modalities, body_parts: one of these (DICOM terms; letter case doesn't matter). from_date, to_date: study date, both
    days included. patients: PatientIDs as the source writes them. Label objects (SEG, RTSTRUCT) state no body part as a
    rule, so an absent one counts for them.
    Raises ImportFailedError if the dates are in the wrong order, or a condition holds a wildcard.
    """

    modalities: tuple[str, ...] = ()
    body_parts: tuple[str, ...] = ()
    from_date: date | None = None
    to_date: date | None = None
    patients: frozenset[str] = frozenset()

    def __post_init__(self) -> None:
        if self.from_date and self.to_date and self.from_date > self.to_date:
            raise ImportFailedError("The query's first day is after its last day.", fix="Exchange the two dates.")
        if any(_WILD & set(value) for value in (*self.modalities, *self.body_parts, *self.patients)):
            raise ImportFailedError(
                "The query holds a wildcard or a backslash.", fix="Write modalities, body parts and patients in full."
            )

    def asks_for(self, header: Header) -> bool:
        """Whether an image with this header is wanted. What a header doesn't state fits no condition on it."""
        if self.modalities and header.modality.upper() not in {m.upper() for m in self.modalities}:
            return False
        part = header.body_part.upper()
        exempt = not part and header.modality.upper() in _LABELS
        if self.body_parts and not exempt and part not in {b.upper() for b in self.body_parts}:
            return False
        if self.patients and not any(p.encode(code) == header.patient_id for p in self.patients for code in _codes(p)):
            return False
        return self._in_time(header.study_date)

    def _in_time(self, stated: str) -> bool:
        if self.from_date is None and self.to_date is None:
            return True
        try:
            day = date.fromisoformat(stated) if len(stated) == 8 and stated.isdigit() else None
        except ValueError:
            day = None
        if day is None:
            return False
        return (self.from_date or day) <= day <= (self.to_date or day)

    def filters(self) -> tuple[dict[str, str], ...]:
        """The query as matching keys of QIDO-RS, one set a request; their answers together are what is wanted.

        Body parts aren't asked for: archives answer differently where a series doesn't state one, and label objects
        would be lost. `asks_for` decides on what comes.
        Source: DICOM PS3.18 10.6.1.2.1; PS3.4 C.2.2.2.5 (ranges of dates).
        """
        common: dict[str, str] = {}
        if self.from_date or self.to_date:
            first, last = (f"{d:%Y%m%d}" if d else "" for d in (self.from_date, self.to_date))
            common["StudyDate"] = f"{first}-{last}"
        return tuple(
            {**common, **({"PatientID": p} if p else {}), **({"Modality": m.upper()} if m else {})}
            for p in sorted(self.patients) or [""]
            for m in self.modalities or ("",)
        )


def _codes(text: str) -> tuple[str, ...]:
    return ("ascii",) if text.isascii() else ("utf-8", *(["latin-1"] if all(ord(c) < 256 for c in text) else []))


def read_patients(values: Iterable[str]) -> frozenset[str]:
    """PatientIDs from the command line: each value is a text file with one ID a line, or IDs separated by commas.

    Raises ImportFailedError if a file is missing (a value that begins as a path or ends in .txt or .csv names
    one), can't be read, is too large, or holds no ID.
    """
    found: set[str] = set()
    for value in values:
        path = Path(value)
        try:
            is_file = path.is_file()
            if not is_file and (value.startswith(_PATHS) or path.suffix.lower() in (".txt", ".csv")):
                raise ValueError("no such file")
            if is_file and path.stat().st_size > _LARGEST_LIST_BYTES:
                raise ValueError("too large")
            pieces = path.read_text(encoding="utf-8-sig").splitlines() if is_file else value.split(",")
        except (OSError, ValueError) as problem:
            raise ImportFailedError(
                "The list of patients can't be read.",
                fix="It is a text file in UTF-8 with one PatientID a line.",
                local_detail=f"{value}: {problem}",
            ) from None
        named = {piece.strip() for piece in pieces} - {""}
        if not named:
            raise ImportFailedError("The list of patients is empty.", fix="Name one PatientID a line.")
        found |= named
    return frozenset(found)

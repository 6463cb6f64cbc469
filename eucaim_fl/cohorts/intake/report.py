"""What became of every instance that a source offered. Counts and fixed reasons; no name, identifier or path."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from eucaim_fl.errors import EucaimError

__all__ = ["ImportReport", "Outcome", "Reason", "Tally"]

Status = Literal["brought_in", "already_there", "refused", "left"]


class Reason:
    """Why an instance was refused or left. The texts are the same for ever: scripts may look for them."""

    BROKEN = "no readable DICOM file"
    NOT_DICOM = "no DICOM file"
    NOT_AN_IMAGE = "neither image, segmentation nor contours"
    NOT_ASKED_FOR = "not asked for by the query"
    NO_PATIENT = "names no patient"
    NO_UIDS = "has no valid UIDs"
    OTHER_CONTENT = "another content is here under the same instance UID"
    CHANGED = "the file here was changed since it was brought in"
    LEADS_OUT = "its place leads out of the cohort"
    TOO_LARGE = "larger than an instance may be"
    NOT_CLEANED = "could not be de-identified"
    WRONG_ANSWER = "the archive sent something else than was asked for"
    NOT_SENT = "the archive does not hand it over"
    NOT_REACHED = "not reached before the import ended"
    CONTRADICTION = "its message and its data set name different instances"
    LINK = "a link that leads out of the source"
    HOSTILE_NAME = "an entry whose name leads out of the archive"
    TWICE = "an entry that comes twice"
    NESTED = "an archive inside the archive"
    ENCRYPTED = "an encrypted entry"
    PACKING = "an entry packed in a way that is not taken"
    DAMAGED_ENTRY = "a damaged entry"


@dataclass(frozen=True)
class Outcome:
    """What became of one instance. reason: one of `Reason` for what was refused or left; empty otherwise."""

    status: Status
    reason: str = ""
    size: int = 0


@dataclass(frozen=True, kw_only=True)
class ImportReport:
    """One import, in instances: found = already_there + brought_in + refused + left.

    brought_in: in a dry run, those that would have been. brought_in_bytes: as they lie in the cohort. patients, series:
    how many the instances brought in belong to. refused, left: reason → count. new_rows: added to the cohort's tables.
    problem: what ended the import early, or None.
    """

    found: int
    already_there: int
    brought_in: int
    brought_in_bytes: int
    patients: int
    series: int
    refused: Mapping[str, int] = field(default_factory=dict)
    left: Mapping[str, int] = field(default_factory=dict)
    new_rows: int = 0
    dry_run: bool = False
    problem: EucaimError | None = None

    def as_dict(self) -> dict[str, Any]:
        """The report as plain values for JSON; of a problem its code and safe text."""
        values = {name: getattr(self, name) for name in self.__dataclass_fields__}
        values["refused"], values["left"] = dict(self.refused), dict(self.left)
        values["problem"] = None if self.problem is None else {"code": self.problem.code, "says": str(self.problem)}
        return values

    def lines(self) -> list[str]:
        """The report in plain lines."""
        verb = "would be brought in" if self.dry_run else "brought in"
        rows = [
            f"found          {self.found}",
            f"already there  {self.already_there}",
            f"{verb:<14} {self.brought_in}{self._whose()}",
        ]
        for title, counts in (("refused", self.refused), ("left", self.left)):
            rows.append(f"{title:<14} {sum(counts.values())}")
            rows.extend(f"  {count:>8}  {reason}" for reason, count in sorted(counts.items()))
        if self.new_rows:
            rows.append(f"{self.new_rows} rows added to the cohort's tables; clinical values are for you to fill in.")
        if not self.found and self.problem is None:
            rows.append("Nothing there fits what was asked for. Check patients, dates, modality and body part.")
        return rows

    def _whose(self) -> str:
        """Patients, series and size, as far as they are known: a dry run may not open the files."""
        known = [
            f"{count} {name if count == 1 else plural}"
            for count, name, plural in ((self.patients, "patient", "patients"), (self.series, "series", "series"))
            if count
        ]
        known += [f"{self.brought_in_bytes / 1e6:.1f} MB"] if self.brought_in_bytes else []
        return f" ({', '.join(known)})" if known else ""


class Tally:
    """Counts outcomes while an import runs, from any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._counts: Counter[tuple[str, str]] = Counter()
        self._bytes = 0
        self._patients: set[str] = set()
        self._series: set[str] = set()

    def add(self, outcome: Outcome, count: int = 1) -> None:
        """Count `count` instances with the same outcome."""
        if count:
            with self._lock:
                self._counts[outcome.status, outcome.reason] += count
                self._bytes += outcome.size if outcome.status == "brought_in" else 0

    def belongs(self, patient: str, series: str) -> None:
        """Note whose an instance is that was brought in; an empty text is not counted."""
        with self._lock:
            self._patients |= {patient} - {""}
            self._series |= {series} - {""}

    def done(self) -> int:
        """How many instances were counted so far."""
        with self._lock:
            return sum(self._counts.values())

    def report(self, *, new_rows: int = 0, dry_run: bool = False, problem: EucaimError | None = None) -> ImportReport:
        """The counts so far."""
        with self._lock:
            by = {
                status: {r: n for (s, r), n in sorted(self._counts.items()) if s == status}
                for status in ("brought_in", "already_there", "refused", "left")
            }
            total = {status: sum(counts.values()) for status, counts in by.items()}
            return ImportReport(
                found=sum(total.values()),
                already_there=total["already_there"],
                brought_in=total["brought_in"],
                brought_in_bytes=self._bytes,
                patients=len(self._patients),
                series=len(self._series),
                refused=by["refused"],
                left=by["left"],
                new_rows=new_rows,
                dry_run=dry_run,
                problem=problem,
            )

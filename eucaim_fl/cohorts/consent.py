"""Who may be used: the site's consent table, read anew whenever it changed. In doubt, nobody may."""

from __future__ import annotations

import csv
import datetime
import io
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path

from eucaim_fl.cohorts.bounded import read_bounded
from eucaim_fl.cohorts.manifest import Quarantined
from eucaim_fl.errors import ConsentError
from eucaim_fl.sitefile import SiteFile

__all__ = ["Consent", "consent_from", "read_consent"]

_COLUMNS = ("patient_id", "status", "date", "purposes")
_LARGEST_TABLE_BYTES = 256 * 1024 * 1024
_STATUSES = ("given", "withdrawn")


@dataclass(frozen=True)
class Consent:
    """What a consent table says today.

    required: False where the site keeps no table; then every patient may be used. given: patients who may be used.
    withdrawn: patient → day (YYYY-MM-DD) of the withdrawal that is in force.
    """

    required: bool
    given: frozenset[str] = frozenset()
    withdrawn: Mapping[str, str] = field(default_factory=dict)

    def allows(self, patient: str) -> bool:
        """Whether a patient may be used."""
        return not self.required or patient in self.given

    def refused(self, patients: Iterable[str]) -> tuple[Quarantined, ...]:
        """The record of each patient who may not be used, in the order of names."""
        return tuple(
            Quarantined(patient, ConsentError.code, self._reason(patient))
            for patient in sorted(set(patients))
            if not self.allows(patient)
        )

    def _reason(self, patient: str) -> str:
        if patient in self.withdrawn:
            return "The patient has withdrawn consent."
        return "There is no consent of the patient for this site's purposes."


def consent_from(rows: Sequence[Mapping[str, str]], purposes: Sequence[str], today: datetime.date) -> Consent:
    """What the rows of a consent table mean on a day.

    rows: patient_id, status (given or withdrawn), date (YYYY-MM-DD), purposes (separated by semicolons; only of
    `given`). Of several rows of a patient the latest decides, and of two on one day the withdrawal. A consent dated
    after `today` does not count yet; a withdrawal counts at once, whatever its date. purposes: one of these must have
    been consented to; empty takes any.
    Raises ConsentError if a row lacks a patient, a known status or a date: a table that can't be trusted allows nobody.

    >>> rows = [{"patient_id": "P1", "status": "given", "date": "2024-01-01", "purposes": "research"},
    ...         {"patient_id": "P1", "status": "withdrawn", "date": "2025-03-01", "purposes": ""}]
    >>> consent_from(rows, ["research"], datetime.date(2026, 1, 1)).withdrawn
    {'P1': '2025-03-01'}
    """
    wanted = {purpose.strip().casefold() for purpose in purposes}
    latest: dict[str, tuple[datetime.date, bool, bool]] = {}
    for number, row in enumerate(rows, start=2):
        patient, status = row.get("patient_id", "").strip(), row.get("status", "").strip().casefold()
        try:
            day = datetime.date.fromisoformat(row.get("date", "").strip())
        except ValueError:
            day = None
        if not patient or status not in _STATUSES or day is None:
            raise ConsentError(
                "A row of the consent table lacks a patient, a status (given, withdrawn) or a date (YYYY-MM-DD).",
                fix="Mend the row that the local log names; until then no patient is used.",
                local_detail=f"line {number}",
            )
        if status == "given" and day > today:
            continue
        agreed = {part.strip().casefold() for part in row.get("purposes", "").split(";") if part.strip()}
        entry = (day, status == "withdrawn", not wanted or bool(wanted & agreed))
        latest[patient] = max(latest.get(patient, entry), entry)
    return Consent(
        True,
        frozenset(patient for patient, (_, gone, fits) in latest.items() if not gone and fits),
        {patient: day.isoformat() for patient, (day, gone, _) in sorted(latest.items()) if gone},
    )


def read_consent(site: SiteFile) -> Consent:
    """The site's consent table as it is now; parsed again only when the file or the day has changed.

    Raises ConsentError if the table is missing, too large, no CSV with the columns patient_id, status, date and
    purposes, or a row can't be understood.
    """
    if site.consent.table is None:
        return Consent(False)
    path = site.cohort_folder() / site.consent.table
    try:
        now = path.stat()
    except (OSError, ValueError) as problem:
        raise _unreadable(path, problem) from None
    signature = (now.st_size, now.st_mtime_ns, now.st_ctime_ns, now.st_ino)
    return _read(path, signature, site.consent.purposes, datetime.datetime.now(datetime.UTC).date())


def _unreadable(path: Path, problem: object) -> ConsentError:
    return ConsentError(
        "The consent table is missing or can't be read.",
        fix="Check consent.table in the site file; until then no patient is used.",
        local_detail=f"{path}: {problem}",
    )


@lru_cache(maxsize=16)
def _read(path: Path, signature: tuple[int, ...], purposes: tuple[str, ...], today: datetime.date) -> Consent:
    try:
        content = read_bounded(path, _LARGEST_TABLE_BYTES)
        reader = csv.DictReader(io.StringIO(content.decode("utf-8-sig"), newline=""), strict=True)
        names = [name.strip() for name in reader.fieldnames or ()]
        if not set(_COLUMNS) <= set(names) or len(set(names)) != len(names):
            raise ValueError(f"its columns must be {', '.join(_COLUMNS)}")
        rows = [
            {key.strip(): value or "" for key, value in row.items() if key is not None and not isinstance(value, list)}
            for row in reader
        ]
    except (OSError, ValueError, csv.Error) as problem:
        raise _unreadable(path, problem) from None
    try:
        return consent_from(rows, purposes, today)
    except ConsentError as problem:
        raise ConsentError(problem.message, fix=problem.fix, local_detail=f"{path}: {problem.local_detail}") from None

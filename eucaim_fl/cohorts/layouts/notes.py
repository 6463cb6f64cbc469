"""What a layout found: cases, what is set aside, and notes that count and never quote."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

from eucaim_fl.cohorts.facts import SeriesFacts
from eucaim_fl.cohorts.findings import Finding, Severity
from eucaim_fl.cohorts.manifest import Case, Quarantined

__all__ = ["RULES", "Findings", "Notebook", "Rule"]

_Unit = Literal["patients", "series", "files", "values", "columns", "cells", "cohort"]


class Rule(NamedTuple):
    """Fixed texts of one rule; see `Finding`."""

    severity: Severity
    unit: _Unit
    says: str
    do: str


_TABLES = "Correct the table."
RULES: Mapping[str, Rule] = {
    "codes.unplaced": Rule(
        "informs",
        "cells",
        "Values that look like codes are not in the vocabulary; they were kept as they are.",
        "Check these columns for typing errors, or tell the project which codes are missing.",
    ),
    "layout.aliases_used": Rule(
        "informs",
        "columns",
        "Columns have names of another version of the tables; they were read under the present names.",
        "Nothing must be done.",
    ),
    "layout.columns_absent": Rule(
        "warns",
        "columns",
        "Columns that cohort.columns of the site file names are in no table, or empty.",
        "Correct their names in the site file or in the table; plans find no values under the new names.",
    ),
    "layout.columns_unknown": Rule(
        "informs",
        "columns",
        "Columns that the layout doesn't know were kept as clinical values.",
        "Nothing must be done, if their names are right.",
    ),
    "layout.duplicate_images": Rule(
        "informs", "series", "Images were listed more than once for the same patient; once counts.", _TABLES
    ),
    "layout.files_not_placed": Rule(
        "informs",
        "files",
        "Files are no images, or lie where the layout has no place for them; they are not used.",
        "Move them where they belong, or leave them.",
    ),
    "layout.images_of_two_patients": Rule(
        "warns", "series", "Images belong to two patients by the tables or folders; they are not used.", _TABLES
    ),
    "layout.labels_in_two_formats": Rule(
        "informs",
        "series",
        "Images have both DICOM SEG and RTSTRUCT; the DICOM SEG is taken.",
        "Remove the ones that should not count.",
    ),
    "layout.labels_unreadable": Rule(
        "warns",
        "series",
        "Series marked as labels are neither DICOM SEG, RTSTRUCT nor NIfTI; they are not used.",
        "Check their tags or names.",
    ),
    "layout.labels_without_image": Rule(
        "warns",
        "series",
        "Labels don't say which image they belong to, or that image isn't there; they are not used.",
        "Add the missing images, or write the labels with references to them.",
    ),
    "layout.modality_differs": Rule(
        "warns",
        "series",
        "The table names another modality than the images' headers; the headers count.",
        "Find out which is right, and correct the table or export the images again.",
    ),
    "layout.patients_listed_twice": Rule(
        "informs", "patients", "Patients have several rows in a clinical table; the first row counts.", _TABLES
    ),
    "layout.patients_without_clinical": Rule(
        "warns", "patients", "Patients with images have no row in the clinical table.", "Add their rows."
    ),
    "layout.patients_without_images": Rule(
        "warns", "patients", "Patients of the clinical table have no image.", "Add their images, or remove their rows."
    ),
    "layout.rows_too_long": Rule(
        "warns",
        "cells",
        "Rows of a table have more cells than there are columns; they were left out, as values may be shifted.",
        "Put quotation marks around values that hold the separator.",
    ),
    "layout.rows_without_patient": Rule(
        "warns", "cells", "Rows of a table name no patient, study or image; they were left out.", _TABLES
    ),
    "layout.series_listed_twice": Rule("informs", "series", "Series are listed twice in a table.", _TABLES),
    "layout.series_missing": Rule(
        "warns", "series", "Series that a table lists are not there.", "Add the images, or remove the rows."
    ),
    "layout.series_not_listed": Rule(
        "informs", "series", "Series that no table lists were not used.", "List them if they should be used."
    ),
    "layout.series_uid_differs": Rule(
        "informs", "series", "The table names another series UID than the images' headers.", _TABLES
    ),
    "layout.sidecars_unreadable": Rule(
        "warns", "files", "JSON files beside NIfTI images can't be read; they were left out.", "Correct or remove them."
    ),
    "layout.tables_not_joined": Rule(
        "informs", "files", "Further clinical tables have no patient_id; their values were left out.", _TABLES
    ),
    "layout.tables_not_utf8": Rule(
        "warns", "files", "Tables are not in UTF-8; they were read as Latin-1.", "Save them as UTF-8."
    ),
}
"""Every note that a layout can make."""


class Notebook:
    """Counts of notes while a layout works."""

    def __init__(self) -> None:
        self._counts: Counter[str] = Counter()
        self._subjects: defaultdict[str, set[str]] = defaultdict(set)
        self.unplaced: Counter[str] = Counter()
        """Column → cells whose code nobody could place. Names of columns stay on this machine."""

    def note(self, rule: str, count: int = 1, subject: str = "") -> None:
        """Add `count` to a rule. subject: the patient or column that it concerns; rules about patients count each once.

        Raises KeyError if there is no such rule.
        """
        if rule not in RULES:
            raise KeyError(rule)
        if count:
            self._counts[rule] += count
            if subject:
                self._subjects[rule].add(subject)

    def findings(self) -> tuple[Finding, ...]:
        """One finding a rule, sorted by rule."""
        counts = self._counts + Counter({"codes.unplaced": self.unplaced.total()})
        subjects = {**self._subjects, "codes.unplaced": set(self.unplaced)}
        patients = {rule: len(who) for rule, who in self._subjects.items() if RULES[rule].unit == "patients"}
        return tuple(
            Finding(
                rule, RULES[rule].severity, count, RULES[rule].unit, RULES[rule].says, RULES[rule].do,
                tuple(sorted(subjects.get(rule, ()))),
            )
            for rule, count in sorted({**counts, **patients}.items())
            if count
        )  # fmt: skip


@dataclass(frozen=True)
class Findings:
    """What a layout found, in any order."""

    cases: list[Case] = field(default_factory=list)
    quarantined: list[Quarantined] = field(default_factory=list)
    notes: Notebook = field(default_factory=Notebook)

    def set_aside(self, patient: str, stack: SeriesFacts) -> None:
        """Quarantine a stack that the index calls unusable."""
        where = stack.local_detail or f"{stack.folder} {stack.stack}".strip()
        self.quarantined.append(Quarantined(patient, stack.code, stack.reason, where))

"""What lies in a cohort: its cases, and what could not be used and why. No pixel is read here."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from eucaim_fl.cohorts.codes import COLUMN_ALIASES, is_sex_column, plain_word
from eucaim_fl.cohorts.deidentification.names import masked
from eucaim_fl.cohorts.facts import SeriesFacts
from eucaim_fl.cohorts.findings import Finding
from eucaim_fl.errors import CohortError, DataError, EucaimError
from eucaim_fl.sitefile import SiteFile

if TYPE_CHECKING:
    from eucaim_fl.cohorts.layouts.notes import Notebook

__all__ = ["Case", "ImageFormat", "LabelFormat", "Manifest", "Quarantined", "read_manifest"]

ImageFormat = Literal["dicom", "nifti"]
LabelFormat = Literal["dicom_seg", "rtstruct", "nifti"]
_LOG = logging.getLogger("eucaim_fl.site")
_OTHER_SCAN_S = 600.0
"""A check by hand, or another run's process, may be reading the same files at this moment; then there is less to do."""


@dataclass(frozen=True)
class Case:
    """One image of one patient, with its label and the patient's clinical values in plain words.

    image, label: files that lie inside the cohort's folder. label is () and label_format None if there is none.
    modality: DICOM modality (CT, MR, …); empty for NIfTI, or where it is not stated.
    facts: what the index knows of the image's stack; None where there is none. stack: as in `SeriesFacts`.
    further: images of the other channels, in the plan's order, once a plan has chosen them.
    label_identifiers: of the label's files, as `SeriesFacts.identifiers`.
    """

    patient: str
    study: str
    series: str
    image: tuple[Path, ...]
    image_format: ImageFormat
    label: tuple[Path, ...] = ()
    label_format: LabelFormat | None = None
    clinical: Mapping[str, str] = field(default_factory=dict)
    modality: str = ""
    stack: str = ""
    facts: SeriesFacts | None = None
    further: tuple[Case, ...] = ()
    label_identifiers: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class Quarantined:
    """A case that is not used. `code` and `reason` are safe outside the hospital; `local_detail` is not."""

    patient: str
    code: str
    reason: str
    local_detail: str = ""

    @classmethod
    def because(cls, patient: str, error: EucaimError) -> Quarantined:
        """The record of a patient's case that met an error."""
        return cls(patient, error.code, error.message, error.local_detail)


@dataclass(frozen=True)
class Manifest:
    """Cases of a site in canonical order (patient, study, series, stack).

    notes: what the layout noticed on the way, in counts: codes without a place, columns, series that are missing or
    that nobody listed, labels without an image.
    """

    site: str
    cases: tuple[Case, ...]
    quarantined: tuple[Quarantined, ...] = ()
    notes: tuple[Finding, ...] = ()


def read_manifest(site: SiteFile, *, tell: Callable[[int, int | None], None] | None = None) -> Manifest:
    """Bring the index of a site's cohort up to date, and find its cases by its layout.

    A case that can't be used (missing or broken files, paths that lead out of the cohort, an image of two patients) is
    quarantined; the others go on. tell: gets the number of files listed or read, and of all that are to be read once
    that is known.
    Raises CohortError if the folder or its tables are missing or can't be read, or if there is no case in it at all.
    """
    from eucaim_fl.cohorts.index import open_index, update_index
    from eucaim_fl.cohorts.layouts import LAYOUTS, Place  # here, because layouts builds on the classes above

    folder = site.cohort_folder()
    if not folder.is_dir():
        raise CohortError(
            "The cohort's folder is missing.",
            fix="Check cohort.folder in the site file, and EUCAIM_FL_DATA.",
            local_detail=str(folder),
        )
    layout, place = LAYOUTS[site.cohort.layout], Place.of(site)

    def told(phase: str, done: int, total: int) -> None:
        if tell is not None and phase != "grouping":
            tell(done, total or None)

    update_index(site, layout.scan_folders(place), tell=told, patience_s=_OTHER_SCAN_S)
    with open_index(site) as catalogue:
        found = layout.find(place, catalogue)
    if not found.cases and not found.quarantined:
        raise CohortError(
            "The cohort is empty.", fix="Check cohort.layout and cohort.folder.", local_detail=str(folder)
        )
    for column, cells in sorted(found.notes.unplaced.items()):
        _LOG.info("Codes without a place: %d cells of the column %.80r.", cells, masked(column))
    for column in _absent(found.cases, site.cohort.columns):
        found.notes.note("layout.columns_absent", 1, column)
    cases, shared = _one_patient_each(found.cases, found.notes)
    return Manifest(
        site.name,
        tuple(sorted((_renamed(case, site.cohort.columns) for case in cases), key=_order)),
        tuple(sorted([*found.quarantined, *shared], key=lambda q: (q.patient, q.code, q.local_detail))),
        found.notes.findings(),
    )


def _order(case: Case) -> tuple[str, ...]:
    return case.patient, case.study, case.series, case.stack, "" if case.facts is None else case.facts.series_uid


def _one_patient_each(cases: Sequence[Case], notes: Notebook) -> tuple[list[Case], list[Quarantined]]:
    """Cases of which each image is one patient's and stands there once; what two patients share is set aside.

    Otherwise the same person could be in training and in test.
    """
    owners: dict[Path, set[str]] = {}
    for case in cases:
        owners.setdefault(case.image[0], set()).add(case.patient)
    kept: dict[Path, Case] = {}
    shared = []
    for case in cases:
        if len(owners[case.image[0]]) > 1:
            notes.note("layout.images_of_two_patients", 1, case.patient)
            error = DataError("An image is listed for two patients.", local_detail=str(case.image[0]))
            shared.append(Quarantined.because(case.patient, error))
        elif kept.setdefault(case.image[0], case) is not case:
            notes.note("layout.duplicate_images", 1, case.patient)
    return list(kept.values()), shared


def _absent(cases: Sequence[Case], columns: Iterable[str]) -> list[str]:
    """Columns that the site file names, by their older names too, and that no case has a value in."""
    there = {name for case in cases for name in case.clinical}
    return [name for name in columns if name not in there and COLUMN_ALIASES.get(name, name) not in there]


def _renamed(case: Case, columns: Mapping[str, str]) -> Case:
    """The case with clinical columns under the names that plans use; a site may call them by an older name too."""
    present = {COLUMN_ALIASES.get(name, name): new for name, new in columns.items()}
    clinical = {}
    for column, value in case.clinical.items():
        new = columns.get(column, present.get(column, column))
        clinical[new] = plain_word(value, new) if new != column and is_sex_column(new) else value
    return replace(case, clinical=clinical)

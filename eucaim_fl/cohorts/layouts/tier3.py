"""EUCAIM's tier-3 layout: two CSV views, and `imaging_data/{patient_id}/{study_uid}/{series_uid}/*.dcm`.

The views may lie one level above the folder. Images are the series that the imaging view lists; DICOM SEG and RTSTRUCT
series are found beside them by the modality in their header. Tables in `clinical_data/` are joined by patient.
Source: EUCAIM common data model, tier-3 views.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

from eucaim_fl.cohorts.codes import looks_coded, modality
from eucaim_fl.cohorts.facts import Catalogue, SeriesFacts
from eucaim_fl.cohorts.layouts.matching import Member, match, with_modality
from eucaim_fl.cohorts.layouts.notes import Findings, Notebook
from eucaim_fl.cohorts.layouts.places import Place
from eucaim_fl.cohorts.layouts.tables import Row, Table, in_words, read_table
from eucaim_fl.cohorts.manifest import Quarantined
from eucaim_fl.errors import CohortError, DataError, SeriesError, UnreadableFileError

__all__ = ["find", "scan_folders"]

_IMAGES = "imaging_data"
_VIEWS = {
    "clinical_mandatory_view.csv": ("patient_id",),
    "imaging_mandatory_view.csv": ("patient_id", "study_uid", "series_uid"),
}
_TABLES = (
    "patient", "cancer_condition", "procedure", "episode", "episode_event", "treatment", "surgical_procedure",
    "radiotherapy",
)  # fmt: skip
_NOT_OF_PATIENTS = frozenset({"image_study", "image_series", "image_modality", "segmentation_series", "segment"})
_KNOWN_COLUMNS = frozenset({
    "dataset_id", "patient_id", "patient_birth_sex", "patient_ethnicity", "patient_diagnostic_category",
    "cancer_condition_age_at_diagnosis", "cancer_condition_age_unit", "cancer_condition_code",
    "cancer_condition_asserted_date", "cancer_condition_type", "cancer_condition_topography",
    "cancer_condition_histology_morphology", "evidence_procedure_code", "first_treatment_type",
    "first_treatment_offset_from_diagnosis", "first_treatment_offset_unit", "image_procedure_code", "study_uid",
    "series_uid", "series_manufacturer", "series_body_site_code",
})  # fmt: skip

_Key = tuple[str, str]
_Listed = dict[str, dict[_Key, str]]


def _views(place: Place, notes: Notebook) -> tuple[Table, Table]:
    """The two views, from the folder or one level above."""
    clinical, imaging = (
        read_table(
            next((p for p in (place.folder / name, place.folder.parent / name) if p.is_file()), place.folder / name),
            required,
            notes,
        )
        for name, required in _VIEWS.items()
    )
    return clinical, imaging


def scan_folders(place: Place) -> Sequence[str]:
    """Folders that the tables allow to be scanned: `imaging_data`.

    Raises CohortError if a view is missing, unreadable, or lacks a column that identifies patient, study or series.
    """
    _views(place, Notebook())
    return [place.claim(_IMAGES)]


def _first_rows(table: Table, notes: Notebook) -> dict[str, Row]:
    """Each patient's first row, in plain words."""
    first: dict[str, Row] = {}
    for row in table.rows:
        patient = row.get("patient_id", "")
        if not patient:
            notes.note("layout.rows_without_patient")
        elif patient in first:
            notes.note("layout.patients_listed_twice", 1, patient)
        else:
            first[patient] = in_words(row, notes)
    return first


def _unknown(columns: set[str], notes: Notebook) -> None:
    for column in columns - _KNOWN_COLUMNS:
        notes.note("layout.columns_unknown", 1, column)


def _join(clinical: dict[str, Row], table: str, rows: dict[str, Row], known: set[str]) -> set[str]:
    """Add a table's columns to the patients' values; returns the names that they got.

    A column that is there already is left out if it says the same of everybody, else it gets the table's name in front.
    """
    columns = {column for row in rows.values() for column in row if column != "patient_id"}
    names = {}
    for column in columns:
        if column not in known:
            names[column] = column
        elif any(clinical.get(patient, {}).get(column) != row.get(column) for patient, row in rows.items()):
            names[column] = f"{table}_{column}"
    for patient, row in rows.items():
        target = clinical.setdefault(patient, {})
        target.update({names[column]: value for column, value in row.items() if column in names})
    return set(names.values())


def _clinical(place: Place, view: Table, notes: Notebook) -> tuple[dict[str, Row], set[str]]:
    """Values of every patient, and the patients of the mandatory view."""
    clinical = _first_rows(view, notes)
    patients = set(clinical)
    known = set(view.columns)
    _unknown(known, notes)
    found = {p.stem: p for p in _csv_files(place) if p.stem not in _NOT_OF_PATIENTS}
    for name in sorted(found, key=lambda n: (_TABLES.index(n) if n in _TABLES else len(_TABLES), n)):
        table = read_table(found[name], (), notes)
        if "patient_id" in table.columns:
            known |= _join(clinical, name, _first_rows(table, notes), known)
        else:
            notes.note("layout.tables_not_joined")
    return clinical, patients


def _csv_files(place: Place) -> list[Path]:
    """The tables in `clinical_data/` that lie where they may."""
    folder = place.path("clinical_data")
    found = []
    for path in sorted(folder.glob("*.csv")) if folder.is_dir() else []:
        try:
            found.append(place.path(place.claim_names(path.name, below="clinical_data")))
        except DataError as error:
            raise CohortError(
                "A table of the cohort is a link that leads out of its folder.", local_detail=error.local_detail
            ) from None
    return found


def _list(place: Place, view: Table, found: Findings) -> _Listed:
    """Patient → (study, series) → modality that the view expects. What can't be a folder is quarantined."""
    listed: _Listed = defaultdict(dict)
    for row in view.rows:
        patient, study, name = (row.get(column, "") for column in ("patient_id", "study_uid", "series_uid"))
        code = row.get("image_procedure_code", "")
        expected = modality(code)
        if not expected and looks_coded(code):
            found.notes.unplaced["image_procedure_code"] += 1
        if not (patient and study and name):
            found.notes.note("layout.rows_without_patient", 1, patient)
        if (study, name) in listed.get(patient, {}):
            found.notes.note("layout.series_listed_twice", 1, patient)
            continue
        try:
            place.claim_names(patient, study, name, below=_IMAGES)
        except DataError as error:
            found.quarantined.append(Quarantined.because(patient, error))
            continue
        listed[patient][study, name] = expected
    return dict(listed)


def _gather(catalogue: Catalogue, listed: _Listed, found: Findings) -> dict[str, dict[_Key, list[SeriesFacts]]]:
    """Patient → (study, series) → stacks, of listed patients."""
    stacks: defaultdict[str, defaultdict[_Key, list[SeriesFacts]]] = defaultdict(lambda: defaultdict(list))
    for stack in catalogue.every():
        steps = stack.folder.split("/")
        if steps[0] != _IMAGES:
            continue
        if len(steps) != 4:
            found.notes.note("layout.files_not_placed", len(stack.files))
        elif steps[1] not in listed:
            found.notes.note("layout.series_not_listed")
        else:
            stacks[steps[1]][steps[2], steps[3]].append(stack)
    return {patient: dict(series) for patient, series in stacks.items()}


def _missing(place: Place, patient: str, key: _Key, found: Findings) -> None:
    folder = place.path(place.claim_names(patient, *key, below=_IMAGES))
    found.notes.note("layout.series_missing", 1, patient)
    error: DataError = UnreadableFileError("The folder of a series is missing.", local_detail=str(folder))
    if folder.is_dir():
        error = SeriesError("A series has no files.", local_detail=str(folder))
    error = place.absent(place.claim_names(patient, *key, below=_IMAGES), error)
    found.quarantined.append(Quarantined.because(patient, error))


def _members(
    patient: str, rows: dict[_Key, str], series: dict[_Key, list[SeriesFacts]], found: Findings
) -> list[Member]:
    """The listed stacks of a patient, and labels of the studies that are listed."""
    studies = {study for study, _ in rows}
    members = []
    for key, stacks in sorted(series.items()):
        study, name = key
        if key in rows:
            members += [Member(study, name, with_modality(stack, rows[key])) for stack in stacks]
            images = [s for s in stacks if s.series_uid]
            if rows[key] and any(s.modality not in ("", rows[key], "SEG", "RTSTRUCT") for s in images):
                found.notes.note("layout.modality_differs", 1, patient)
            if any(s.series_uid != name for s in images):
                found.notes.note("layout.series_uid_differs", 1, patient)
            continue
        labels = [s for s in stacks if study in studies and s.modality in ("SEG", "RTSTRUCT")]
        members += [Member(study, name, stack) for stack in labels]
        if len(labels) < len(stacks):
            found.notes.note("layout.series_not_listed", 1, patient)
    return members


def find(place: Place, catalogue: Catalogue) -> Findings:
    """The cohort's cases.

    Raises CohortError if a view is missing, unreadable, or lacks a column that identifies patient, study or series.
    """
    found = Findings()
    clinical_view, imaging_view = _views(place, found.notes)
    _unknown(set(imaging_view.columns), found.notes)
    clinical, in_view = _clinical(place, clinical_view, found.notes)
    listed = _list(place, imaging_view, found)
    stacks = _gather(catalogue, listed, found)
    for patient, rows in sorted(listed.items()):
        series = stacks.get(patient, {})
        for key in sorted(set(rows) - set(series)):
            _missing(place, patient, key, found)
        match(place, patient, _members(patient, rows, series, found), clinical.get(patient, {}), found)
        if patient not in in_view:
            found.notes.note("layout.patients_without_clinical", 1, patient)
    for patient in sorted(in_view - {patient for patient in listed if stacks.get(patient)}):
        found.notes.note("layout.patients_without_images", 1, patient)
    return found

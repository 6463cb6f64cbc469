"""NIfTI files and `clinical.csv` with the columns patient_id, image and (if there are labels) label.

Paths are relative to the folder. Other columns are clinical values. A patient may have several rows.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import PurePosixPath

from eucaim_fl.cohorts.facts import Catalogue, SeriesFacts
from eucaim_fl.cohorts.layouts.notes import Findings, Notebook
from eucaim_fl.cohorts.layouts.places import Place, outermost
from eucaim_fl.cohorts.layouts.tables import Row, in_words, read_table
from eucaim_fl.cohorts.manifest import Case, Quarantined
from eucaim_fl.errors import DataError, LabelError, UnreadableFileError

__all__ = ["find", "scan_folders"]

_OWN_COLUMNS = ("patient_id", "image", "label")


def _claims(place: Place, found: Findings) -> Iterator[tuple[Row, str, str]]:
    """Rows with the paths of their image and label ("" if there is none); what can't be used is quarantined."""
    rows = read_table(place.folder / "clinical.csv", ["patient_id", "image"], found.notes).rows
    for number, row in enumerate(rows, start=1):
        patient = row.get("patient_id", "")
        try:
            if not patient or "image" not in row:
                found.notes.note("layout.rows_without_patient", 1, patient)
                detail = f"row {number} below the header, not counting empty ones"
                raise DataError("A row of the cohort's table names no patient or no image.", local_detail=detail)
            yield row, place.claim(row["image"]), place.claim(row["label"]) if "label" in row else ""
        except DataError as error:
            found.quarantined.append(Quarantined.because(patient, error))


def scan_folders(place: Place) -> Sequence[str]:
    """Folders that the table allows to be scanned: those of its images and labels.

    Raises CohortError if the table is missing, unreadable, or lacks patient_id or image.
    """
    files = [path for _, *paths in _claims(place, Findings()) for path in paths if path]
    return outermost("" if len(parts := PurePosixPath(f).parts) == 1 else "/".join(parts[:-1]) for f in files)


def _case(place: Place, row: Row, image: SeriesFacts, label: SeriesFacts | None, notes: Notebook) -> Case:
    return Case(
        row["patient_id"],
        row.get("study_uid", ""),
        row.get("series_uid", row["image"]),
        (place.path(image.files[0]),),
        "nifti",
        label=() if label is None else (place.path(label.files[0]),),
        label_format=None if label is None else "nifti",
        clinical=in_words({k: v for k, v in row.items() if k not in _OWN_COLUMNS}, notes),
        modality=image.modality,
        stack=image.stack,
        facts=image,
        label_identifiers={} if label is None else label.identifiers,
    )


def find(place: Place, catalogue: Catalogue) -> Findings:
    """The cohort's cases.

    Raises CohortError if the table is missing, unreadable, or lacks patient_id or image.
    """
    found = Findings()
    claims = list(_claims(place, found))
    wanted = {path for _, *paths in claims for path in paths if path}
    stacks = {s.files[0]: s for s in catalogue.every() if s.kind == "nifti" and s.files and s.files[0] in wanted}
    for row, image_path, label_path in claims:
        patient = row["patient_id"]
        image, label = stacks.get(image_path), stacks.get(label_path)
        if image is None or (label_path and label is None):
            found.notes.note("layout.series_missing", 1, patient)
            error: DataError = UnreadableFileError(
                "An image named in the cohort's table is missing.", local_detail=image_path
            )
            if image is not None:
                error = LabelError("A label named in the cohort's table is missing.", local_detail=label_path)
            error = place.absent(image_path if image is None else label_path, error)
            found.quarantined.append(Quarantined.because(patient, error))
        elif image.code or (label is not None and label.code):
            found.set_aside(patient, image if image.code or label is None else label)
        else:
            found.cases.append(_case(place, row, image, label, found.notes))
    return found

"""The cohort's tables, given rows for what was brought in. What is in them already stays byte for byte.

Source: EUCAIM common data model (tier 3), clinical_mandatory_view.csv and imaging_mandatory_view.csv.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from eucaim_fl.cohorts.codes import COLUMN_ALIASES
from eucaim_fl.cohorts.intake.journal import SeriesRow
from eucaim_fl.durable import write_atomically
from eucaim_fl.errors import ImportFailedError

__all__ = ["update_tables"]

_LARGEST_TABLE_BYTES = 256 * 1024 * 1024
_CLINICAL_COLUMNS = (
    "dataset_id", "patient_id", "patient_birth_sex", "patient_ethnicity", "patient_diagnostic_category",
    "cancer_condition_age_at_diagnosis", "cancer_condition_age_unit", "cancer_condition_code",
    "cancer_condition_asserted_date", "cancer_condition_type", "cancer_condition_topography",
    "cancer_condition_histology_morphology", "evidence_procedure_code", "first_treatment_type",
    "first_treatment_offset_from_diagnosis", "first_treatment_offset_unit",
)  # fmt: skip
_IMAGING_COLUMNS = (
    "dataset_id", "patient_id", "image_procedure_code", "study_uid", "series_uid", "series_manufacturer",
    "series_body_site_code",
)  # fmt: skip
_SEX = {"M": "COM1001366", "F": "COM1001370", "O": "COM1001288"}
_PROCEDURES = {
    "MR": "IMG1000022", "CT": "IMG1000026", "MG": "IMG1000030", "PT": "IMG1000037", "US": "IMG1000035",
    "DX": "IMG1000028", "CR": "IMG1000028",
}  # fmt: skip
_BODY_SITES = {
    "BREAST": "BP1000136", "LUNG": "BP1000113", "PROSTATE": "BP1000021", "COLON": "BP1000257", "RECTUM": "BP1000130",
    "LIVER": "BP1000105", "BRAIN": "BP1000051", "CHEST": "BP1000067", "PELVIS": "BP1000092",
}  # fmt: skip
_VENDORS = ("Siemens", "Toshiba", "Philips", "GE", "Canon", "Fujifilm", "Hologic")
_NOT_IMAGES = frozenset({"SEG", "RTSTRUCT"})


@dataclass(frozen=True)
class _Table:
    """A table of a cohort. columns: of a new one. known_by: what tells one row from another."""

    name: str
    columns: tuple[str, ...]
    known_by: tuple[str, ...]
    may_lie_above: bool = False


def update_tables(folder: Path, layout: str, rows: Sequence[SeriesRow], dataset: str) -> int:
    """Add what the tables of a cohort don't have of the series in `rows`; returns how many rows were added.

    folder: the cohort's. layout: `eucaim_tier3` gets a row for each series of images and one for each patient in its
    two views, which may lie one level above the folder; `folder_csv` one for each patient in clinical.csv. A table that
    is missing is made. Label objects are found beside their images, so they get no row. dataset: the dataset_id of the
    first rows; later ones take that of the rows there. Values are codes and fixed words made from `rows`, never the
    text of a file. Other cells stay empty.
    Raises ImportFailedError if a table can't be read or lacks a column that a row is known by; JournalError if it can't
    be written.
    """
    images = [row for row in rows if row.modality not in _NOT_IMAGES]
    imaging = [
        {
            "patient_id": row.patient,
            "study_uid": row.study_uid,
            "series_uid": row.series_uid,
            "image_procedure_code": _PROCEDURES.get(row.modality, ""),
            "series_manufacturer": _vendor(row.manufacturer),
            "series_body_site_code": _BODY_SITES.get(row.body_part.upper(), ""),
        }
        for row in images
    ]
    clinical = [{"patient_id": row.patient, "patient_birth_sex": _SEX.get(row.sex, "COM1001289")} for row in images]
    if layout == "folder_csv":
        plain = [{**row, "folder": f"imaging_data/{row['patient_id']}"} for row in clinical]
        return _append(
            folder, _Table("clinical.csv", ("patient_id", "folder"), ("patient_id", "folder")), plain, dataset
        )
    views = {
        _Table(
            "imaging_mandatory_view.csv", _IMAGING_COLUMNS, ("patient_id", "study_uid", "series_uid"), True
        ): imaging,
        _Table("clinical_mandatory_view.csv", _CLINICAL_COLUMNS, ("patient_id",), True): clinical,
    }
    return sum(_append(folder, table, new, dataset) for table, new in views.items())


def _vendor(manufacturer: str) -> str:
    words = manufacturer.upper().replace("-", " ").replace("_", " ").split()
    return next((vendor for vendor in _VENDORS if vendor.upper() in words), "")


def _append(folder: Path, table: _Table, rows: Iterable[Mapping[str, str]], dataset: str) -> int:
    places = [folder / table.name, *([folder.parent / table.name] if table.may_lie_above else [])]
    path = next((place for place in places if place.is_file()), places[0])
    try:
        if path.is_file() and path.stat().st_size > _LARGEST_TABLE_BYTES:
            raise ValueError("too large")
        raw = path.read_bytes() if path.is_file() else (",".join(table.columns) + "\n").encode()
        text = raw.decode("utf-8-sig", "surrogateescape")
        first = text.partition("\n")[0]
        separator = max(",;\t", key=first.count)
        reader = csv.reader(io.StringIO(text, newline=""), delimiter=separator, strict=True)
        names = [COLUMN_ALIASES.get(name.strip(), name.strip()) for name in next(reader, [])]
        there = [dict(zip(names, (cell.strip() for cell in row), strict=False)) for row in reader]
    except (OSError, ValueError, csv.Error) as problem:
        raise ImportFailedError(
            "The images are here, but a table of the cohort can't be read.",
            fix="Mend the table; the next import adds the rows.",
            local_detail=f"{path}: {problem}",
        ) from None
    optional = {"folder"}  # without that column, a patient's name says which folder is meant
    if missing := sorted(set(table.known_by) - set(names) - optional):
        raise ImportFailedError(
            f"The images are here, but a table of the cohort lacks the columns {', '.join(missing)}.",
            fix="Mend the table; the next import adds the rows.",
            local_detail=str(path),
        )
    known_by = [name for name in table.known_by if name in names]
    known = {tuple(row.get(name, "") for name in known_by) for row in there}
    dataset = next((row["dataset_id"] for row in there if row.get("dataset_id")), dataset)
    end = "\r\n" if b"\r\n" in raw else "\n"
    new = io.StringIO(newline="")
    writer = csv.writer(new, delimiter=separator, lineterminator=end)
    added = 0
    for row in rows:
        key = tuple(row.get(name, "") for name in known_by)
        if key not in known:
            known.add(key)
            writer.writerow([{"dataset_id": dataset, **row}.get(name, "") for name in names])
            added += 1
    if added:
        gap = b"" if raw.endswith(b"\n") else end.encode()
        write_atomically(path, raw + gap + new.getvalue().encode("utf-8", "surrogateescape"))
    return added
